//! A storage backend over another that keeps all writes in memory.
//!
//! Used to read a store file that failed: opening redb repairs and writes, and that file must stay as it is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::ops::Bound;

use parking_lot::Mutex;
use redb::{BackendError, StorageBackend};

use super::disk::Backend;

const BLOCK: u64 = 4096;

#[derive(Debug)]
pub(super) struct Shadow {
    inner: Backend,
    inner_len: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    blocks: BTreeMap<u64, Box<[u8]>>,
}

impl Shadow {
    pub(super) fn new(inner: Backend) -> Result<Shadow, redb::Error> {
        let inner_len = inner.len().map_err(redb::Error::Io)?;
        Ok(Shadow { inner, inner_len, state: Mutex::new(State { len: inner_len, blocks: BTreeMap::new() }) })
    }

    fn read_inner(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        let bytes = self.inner_len.saturating_sub(offset).min(out.len() as u64) as usize;
        if bytes > 0 { self.inner.read(offset, &mut out[..bytes]) } else { Ok(()) }
    }
}

impl StorageBackend for Shadow {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        if offset + out.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_inner(offset, out)?;
        let end = offset + out.len() as u64;
        for (number, block) in state.blocks.range(offset / BLOCK..end.div_ceil(BLOCK)) {
            let at = number * BLOCK;
            let from = at.max(offset);
            let to = (at + BLOCK).min(end);
            let part = &block[(from - at) as usize..(to - at) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(part);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.state.lock().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let end = offset + data.len() as u64;
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let at = number * BLOCK;
            let block = match state.blocks.entry(number) {
                Entry::Occupied(found) => found.into_mut(),
                Entry::Vacant(place) => {
                    let mut block = vec![0; BLOCK as usize].into_boxed_slice();
                    self.read_inner(at, &mut block)?;
                    place.insert(block)
                }
            };
            let from = at.max(offset);
            let to = (at + BLOCK).min(end);
            block[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
