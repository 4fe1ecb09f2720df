//! A small file database of our own, as a dbm file is one: a file of slots of one size, found by a hash of the key.
//!
//! Used by `flock` and `copy`. It knows no locks. It keeps nothing of the file in this process: whoever opens it after
//! having taken the lock reads what others wrote ("tie after lock", as the mod_perl guide demands).
//!
//! ```text
//! slot: | key's length, 0: empty (8) | key (32) | value |
//! ```

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{See, Store};
use crate::BenchError;
use crate::client::failed;

const LENGTH_BYTES: usize = 8;
const KEY_BYTES_MAX: usize = 32;
const HEAD_BYTES: usize = LENGTH_BYTES + KEY_BYTES_MAX;
/// The file's name in its directory.
pub(super) const FILE: &str = "items.slots";

/// The form of the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    slots: u64,
    slot_bytes: usize,
}

/// The file, open.
#[derive(Debug)]
pub(super) struct Slots {
    form: Form,
    file: File,
    slot: Vec<u8>,
}

impl Form {
    pub(super) fn of(store: Store<'_>) -> Form {
        Form { slots: store.keys * 3 / 2, slot_bytes: HEAD_BYTES + store.shape.value_bytes as usize }
    }

    /// Makes an empty file.
    pub(super) fn create(self, dir: &Path) -> Result<(), BenchError> {
        let make = || File::create(dir.join(FILE))?.set_len(self.slots * self.slot_bytes as u64);
        make().map_err(BenchError::io("making a file of slots"))
    }

    pub(super) fn open(self, path: &Path) -> Result<Slots, BenchError> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(BenchError::io("opening a file of slots"))?;
        Ok(Slots { form: self, file, slot: vec![0; self.slot_bytes] })
    }
}

impl Slots {
    pub(super) fn get(&mut self, key: &str, value: &mut Vec<u8>) -> Result<bool, BenchError> {
        value.clear();
        let (_, is_there) = self.find(key)?;
        if is_there {
            value.extend_from_slice(&self.slot[HEAD_BYTES..]);
        }
        Ok(is_there)
    }

    pub(super) fn put(&mut self, key: &str, value: &[u8]) -> Result<(), BenchError> {
        let (at, _) = self.find(key)?;
        self.slot.fill(0);
        self.slot[..LENGTH_BYTES].copy_from_slice(&(key.len() as u64).to_le_bytes());
        self.slot[LENGTH_BYTES..][..key.len()].copy_from_slice(key.as_bytes());
        self.slot[HEAD_BYTES..].copy_from_slice(value);
        self.file.write_all_at(&self.slot, at).map_err(BenchError::io("writing a slot"))
    }

    pub(super) fn scan(&mut self, see: See<'_>) -> Result<(), BenchError> {
        for number in 0..self.form.slots {
            self.fetch(number * self.form.slot_bytes as u64)?;
            let key_bytes = self.key_bytes()?;
            if key_bytes > 0 {
                see(&self.slot[LENGTH_BYTES..][..key_bytes], &self.slot[HEAD_BYTES..])?;
            }
        }
        Ok(())
    }

    /// Where the key is, or belongs; its slot is then in the buffer.
    fn find(&mut self, key: &str) -> Result<(u64, bool), BenchError> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let first = hasher.finish();
        for step in 0..self.form.slots {
            let at = first.wrapping_add(step) % self.form.slots * self.form.slot_bytes as u64;
            self.fetch(at)?;
            let key_bytes = self.key_bytes()?;
            if key_bytes == 0 {
                return Ok((at, false));
            }
            if &self.slot[LENGTH_BYTES..][..key_bytes] == key.as_bytes() {
                return Ok((at, true));
            }
        }
        Err(failed("the file of slots is full"))
    }

    fn fetch(&mut self, at: u64) -> Result<(), BenchError> {
        self.file.read_exact_at(&mut self.slot, at).map_err(BenchError::io("reading a slot"))
    }

    fn key_bytes(&self) -> Result<usize, BenchError> {
        let length = self.slot.first_chunk::<LENGTH_BYTES>().expect("a slot is longer than that");
        let length = u64::from_le_bytes(*length) as usize;
        if length > KEY_BYTES_MAX { Err(failed("a slot is broken")) } else { Ok(length) }
    }
}
