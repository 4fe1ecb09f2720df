//! What the workers ask for: a real trace, or a shop made up from a seed.
//!
//! The conductor makes it once and hands it to the workers as a file of little-endian 32-bit objects.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use liblzma::read::XzDecoder;

use super::{Failure, objects};

/// Products of the made-up shop.
const PRODUCTS: u32 = 4_000;
/// Customers of the made-up shop.
const CUSTOMERS: u32 = 3_000;
/// Prices a product has at most.
const PRICES_MAX: u32 = 4;
/// Longest trace read, in accesses: what fits the memory of a small machine.
const ACCESSES_MAX: usize = 200_000_000;
/// The first bytes of an xz file.
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];

/// The accesses, in order.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) accesses: Vec<u32>,
    /// How many different objects there are.
    pub(super) objects: usize,
    /// Bytes of all their keys and rows.
    pub(super) bytes: u64,
}

impl Workload {
    fn of(accesses: Vec<u32>) -> Workload {
        let distinct: HashSet<u32> = accesses.iter().copied().collect();
        let mut key = String::new();
        let bytes = distinct.iter().map(|object| {
            objects::key_into(*object, &mut key);
            (key.len() + objects::ROW_BYTES) as u64
        });
        Workload { bytes: bytes.sum(), objects: distinct.len(), accesses }
    }

    /// Reads a trace: big-endian 32-bit objects, plain or in xz.
    pub(super) fn read(path: &Path, requests: Option<u64>) -> Result<Workload, Failure> {
        let doing = || format!("reading {}", path.display());
        let mut file = File::open(path).map_err(Failure::io(doing()))?;
        let mut start = [0; XZ_MAGIC.len()];
        let packed = match file.read_exact(&mut start) {
            Ok(()) => start == XZ_MAGIC,
            Err(_too_short) => false,
        };
        let file = File::open(path).map_err(Failure::io(doing()))?;
        let wanted =
            requests.map_or(ACCESSES_MAX, |n| usize::try_from(n).unwrap_or(ACCESSES_MAX)).min(ACCESSES_MAX);
        let limit = wanted as u64 * 4;
        let mut bytes = Vec::new();
        let read = if packed {
            XzDecoder::new(file).take(limit).read_to_end(&mut bytes)
        } else {
            file.take(limit).read_to_end(&mut bytes)
        };
        read.map_err(Failure::io(doing()))?;
        let (whole, rest) = bytes.as_chunks::<4>();
        if whole.is_empty() || !rest.is_empty() {
            let message =
                format!("{} has {} bytes, a trace has a multiple of 4", path.display(), bytes.len());
            return Err(Failure::Plain(message));
        }
        Ok(Workload::of(whole.iter().map(|object| u32::from_be_bytes(*object)).collect()))
    }

    /// Makes up visits to a shop: popular products are looked at more often, and a look at a product asks for its pieces.
    pub(super) fn make_up(requests: u64, seed: u64) -> Workload {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut accesses = Vec::with_capacity(usize::try_from(requests).unwrap_or(0));
        let full = |accesses: &Vec<u32>| accesses.len() as u64 >= requests;
        while !full(&accesses) {
            let customer = skewed(&mut random, CUSTOMERS);
            accesses.push(object(objects::CUSTOMER, customer, 0));
            for _ in 0..random.u32(1..6) {
                let product = skewed(&mut random, PRODUCTS);
                accesses.push(object(objects::DESCRIPTION, product, 0));
                accesses.push(object(objects::INVENTORY, product, 0));
                for price in 0..1 + product % PRICES_MAX {
                    accesses.push(object(objects::AVAILABILITY, product, price));
                }
            }
        }
        accesses.truncate(usize::try_from(requests).unwrap_or(usize::MAX));
        Workload::of(accesses)
    }

    /// Writes it for the workers.
    pub(super) fn write(&self, path: &Path) -> Result<(), Failure> {
        let bytes: Vec<u8> = self.accesses.iter().flat_map(|object| object.to_le_bytes()).collect();
        let written = File::create(path).and_then(|mut file| file.write_all(&bytes));
        written.map_err(Failure::io(format!("writing {}", path.display())))
    }
}

/// Each worker thread's share of the accesses, in order; the conductor and the workers must divide alike.
pub(super) fn shares(accesses: &[u32], lanes: u32) -> Vec<Vec<u32>> {
    let mut shares = vec![Vec::with_capacity(accesses.len() / lanes as usize); lanes as usize];
    for object in accesses {
        shares[objects::route(*object, lanes) as usize].push(*object);
    }
    shares
}

/// What [`Workload::write`] wrote.
pub(super) fn read_back(path: &Path) -> Result<Vec<u32>, Failure> {
    let bytes = std::fs::read(path).map_err(Failure::io(format!("reading {}", path.display())))?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|object| u32::from_le_bytes(*object)).collect())
}

fn object(kind: u32, id: u32, index: u32) -> u32 {
    (kind << 27) | (id << 9) | index
}

/// One of `n`, the first ones far more often: the logarithm of the rank is uniform, as Zipf's law has it.
fn skewed(random: &mut fastrand::Rng, n: u32) -> u32 {
    let rank = f64::from(n).powf(random.f64()) - 1.0;
    (rank as u32).min(n - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_visits() {
        assert_eq!(Workload::make_up(1_000, 3).accesses, Workload::make_up(1_000, 3).accesses);
        assert_ne!(Workload::make_up(1_000, 3).accesses, Workload::make_up(1_000, 4).accesses);
    }

    #[test]
    fn a_trace_is_read_plain_and_packed() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = [7_u32, 9, 7].iter().flat_map(|object| object.to_be_bytes()).collect();
        let plain = dir.path().join("t");
        std::fs::write(&plain, &bytes).unwrap();
        let packed = dir.path().join("t.xz");
        let mut encoder = liblzma::write::XzEncoder::new(File::create(&packed).unwrap(), 6);
        encoder.write_all(&bytes).unwrap();
        encoder.finish().unwrap();
        for path in [plain, packed] {
            let workload = Workload::read(&path, None).unwrap();
            assert_eq!(workload.accesses, [7, 9, 7]);
            assert_eq!(workload.objects, 2);
            assert_eq!(Workload::read(&path, Some(1)).unwrap().accesses, [7]);
        }
        std::fs::write(dir.path().join("t"), [1, 2, 3]).unwrap();
        assert!(Workload::read(&dir.path().join("t"), None).is_err());
    }

    #[test]
    fn shares_lose_nothing_and_keep_an_object_in_one_place() {
        let workload = Workload::make_up(5_000, 1);
        let shares = shares(&workload.accesses, 6);
        assert_eq!(shares.iter().map(Vec::len).sum::<usize>(), 5_000);
        let places = shares.iter().map(|share| share.iter().collect::<HashSet<_>>().len());
        assert_eq!(places.sum::<usize>(), workload.objects);
    }
}
