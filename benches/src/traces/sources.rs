//! Who asks for what: recorded traces and made-up ones, and what their objects weigh and how long they live.
//!
//! Called by [`super::run`]. A trace that is not there is skipped with a reason; nothing is downloaded.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use liblzma::read::XzDecoder;

use super::{Plan, shapes};
use crate::BenchError;

/// All sources, in the order of the tables.
pub const NAMES: [&str; 9] = [
    "orm-busy",
    "web07",
    "orm-busy.ttl",
    "zipf",
    "zipf.ttl",
    "zipf.sizes.ttl",
    "scan",
    "scan.sizes.ttl",
    "loop",
];

/// What an object of one size weighs: header, key and value. A row, and a page.
const ROW_BYTES: u32 = 1_024;
const PAGE_BYTES: u32 = 4_096;
/// Keys are hexadecimal numbers of this length.
pub const KEY_BYTES: u32 = 16;
/// Before key and value of an item in a ring, and two words more if it has a life.
pub const HEAD_BYTES: u32 = 16;
/// See there.
pub const LIFE_BYTES: u32 = 16;
/// Made-up sources: objects, accesses at most.
const OBJECTS: usize = 200_000;
const ACCESSES_MAX: usize = 2_000_000;
/// The loop is short, and goes around ten times.
const LOOP_OBJECTS: usize = 50_000;
const LOOP_ACCESSES_MAX: usize = 10 * LOOP_OBJECTS;
/// Longest trace read.
const TRACE_BYTES_MAX: u64 = 400_000_000;

/// Something that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Bytes it takes in a ring, a multiple of 8.
    pub bytes: u32,
    /// For how many accesses it may be served; `None`: for ever.
    pub life: Option<u64>,
}

impl Object {
    fn new(payload_bytes: u32, life: Option<u64>) -> Object {
        let head = if life.is_some() { HEAD_BYTES + LIFE_BYTES } else { HEAD_BYTES };
        Object { bytes: (head + payload_bytes).next_multiple_of(8), life }
    }

    /// Weighs the same with and without a life.
    fn row(life: Option<u64>) -> Object {
        Object { bytes: ROW_BYTES, life }
    }

    /// Bytes of its value.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        let life = if self.life.is_some() { LIFE_BYTES } else { 0 };
        (self.bytes - HEAD_BYTES - life - KEY_BYTES) as usize
    }
}

/// A list of accesses.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: String,
    /// Indexes into `objects`, in order.
    pub accesses: Vec<u32>,
    /// What can be asked for, in the order in which it first is.
    pub objects: Vec<Object>,
}

impl Source {
    /// Makes or reads a source of [`NAMES`]; or says why it is skipped.
    ///
    /// # Errors
    /// When a trace is there and cannot be read.
    pub fn open(name: &'static str, plan: &Plan) -> Result<Result<Source, String>, BenchError> {
        let count = plan.accesses_max.min(ACCESSES_MAX);
        let seed = plan.seed;
        let forever = |_: &mut fastrand::Rng, _| Object::row(None);
        let mixed = |random: &mut fastrand::Rng, _| Object::row(shapes::mixed_life(random, count));
        let sized = |random: &mut fastrand::Rng, _| {
            let payload = KEY_BYTES + shapes::etc_value_bytes(random);
            Object::new(payload, shapes::mixed_life(random, count))
        };
        let make = |what: &str, accesses, object: &dyn Fn(&mut fastrand::Rng, u32) -> Object| {
            Ok(Ok(Source::of(name, what, accesses, seed, object)))
        };
        let zipf = || shapes::zipf(count, OBJECTS, seed);
        let scan = || shapes::scanned(count, OBJECTS, seed);
        match name {
            "zipf" => make("Zipf's law, exponent 0.99", zipf(), &forever),
            "zipf.ttl" => make("the same, lives mixed", zipf(), &mixed),
            "zipf.sizes.ttl" => make("the same, lives mixed, sizes of Facebook's ETC pool", zipf(), &sized),
            "scan" => make("Zipf's law over a third, long scans over the rest", scan(), &forever),
            "scan.sizes.ttl" => make("the same, lives mixed, sizes of Facebook's ETC pool", scan(), &sized),
            "loop" => {
                let accesses = shapes::looped(count.min(LOOP_ACCESSES_MAX), LOOP_OBJECTS);
                make("one object after the other, over and over", accesses, &forever)
            }
            "web07" => {
                let page = |_: &mut fastrand::Rng, _| Object { bytes: PAGE_BYTES, life: None };
                recorded(name, "product pages of a shop", plan, &page)
            }
            "orm-busy" => recorded(name, "database objects of a shop", plan, &forever),
            "orm-busy.ttl" => {
                let accesses = plan.accesses_max.min(5_000_000) as u64;
                recorded(name, "the same, each type of object with a life of its own", plan, &|_, key| {
                    Object::row(shop_life(key, accesses))
                })
            }
            other => unreachable!("{other} is not in NAMES"),
        }
    }

    /// Numbers what is asked for in the order in which it first is, and gives each of it a weight and a life.
    fn of(
        name: &'static str,
        what: &str,
        keys: Vec<u32>,
        seed: u64,
        object: &dyn Fn(&mut fastrand::Rng, u32) -> Object,
    ) -> Source {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x0b1e_c75e);
        let mut numbers = HashMap::new();
        let mut objects = Vec::new();
        let number = |key: u32| {
            *numbers.entry(key).or_insert_with(|| {
                objects.push(object(&mut random, key));
                objects.len() as u32 - 1
            })
        };
        let accesses = keys.into_iter().map(number).collect();
        Source { name, what: what.to_owned(), accesses, objects }
    }

    /// What all objects weigh together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| u64::from(object.bytes)).sum()
    }
}

/// Lives by type (bits 27-31 of a key), as a shop would choose them: stock and prices short, descriptions longer, some for ever.
fn shop_life(key: u32, accesses: u64) -> Option<u64> {
    [None, Some(accesses / 4), Some(accesses / 20), Some(accesses / 100)][(key >> 27) as usize % 4]
}

fn recorded(
    name: &'static str,
    what: &str,
    plan: &Plan,
    object: &dyn Fn(&mut fastrand::Rng, u32) -> Object,
) -> Result<Result<Source, String>, BenchError> {
    let file = name.split('.').next().expect("a split has a first part");
    let path = plan.data.join(format!("traces/{file}.trace.xz"));
    match read(&path, plan.accesses_max) {
        Ok(keys) => Ok(Ok(Source::of(name, what, keys, plan.seed, object))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(Err(format!("there is no {}; name the folder with --data", path.display())))
        }
        Err(error) => Err(BenchError::io(format!("reading {}", path.display()))(error)),
    }
}

/// Big-endian 32-bit numbers, in xz.
fn read(path: &Path, accesses_max: usize) -> io::Result<Vec<u32>> {
    let limit = (accesses_max as u64).saturating_mul(4).min(TRACE_BYTES_MAX);
    let mut bytes = Vec::new();
    XzDecoder::new(File::open(path)?).take(limit).read_to_end(&mut bytes)?;
    let (whole, rest) = bytes.as_chunks::<4>();
    if whole.is_empty() || !rest.is_empty() {
        return Err(io::Error::other(format!("{} bytes are no list of 32-bit numbers", bytes.len())));
    }
    Ok(whole.iter().map(|key| u32::from_be_bytes(*key)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(data: &Path) -> Plan {
        Plan { data: data.to_owned(), accesses_max: 20_000, only: Vec::new(), seed: 1 }
    }

    #[test]
    fn what_is_made_up_needs_no_file_and_comes_out_the_same() {
        let plan = plan(Path::new("/nowhere"));
        for name in NAMES {
            let Ok(source) = Source::open(name, &plan).unwrap() else {
                assert!(name.starts_with("orm") || name.starts_with("web"), "{name} was skipped");
                continue;
            };
            let again = Source::open(name, &plan).unwrap().unwrap();
            assert_eq!((&source.accesses, &source.objects), (&again.accesses, &again.objects));
            assert_eq!(source.accesses.len(), 20_000);
            assert!(source.accesses.iter().all(|&object| (object as usize) < source.objects.len()));
            assert!(source.objects.iter().all(|object| object.bytes.is_multiple_of(8)));
        }
    }

    #[test]
    fn a_trace_is_read_and_numbered_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("traces")).unwrap();
        let path = dir.path().join("traces/web07.trace.xz");
        let bytes: Vec<u8> = [70_u32, 9, 70].iter().flat_map(|key| key.to_be_bytes()).collect();
        let mut packed = Vec::new();
        liblzma::read::XzEncoder::new(&bytes[..], 6).read_to_end(&mut packed).unwrap();
        std::fs::write(&path, packed).unwrap();
        let source = Source::open("web07", &plan(dir.path())).unwrap().unwrap();
        assert_eq!(source.accesses, [0, 1, 0]);
        assert_eq!(source.objects.len(), 2);
        std::fs::write(&path, b"no xz").unwrap();
        assert!(Source::open("web07", &plan(dir.path())).is_err());
    }
}
