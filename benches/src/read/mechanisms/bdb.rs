//! Berkeley DB 5.3, the library that eToys.com kept its caches in, in two of its products: the concurrent data store
//! (one lock for the database, many readers or one writer) and the transactional data store (locks on pages, a log).
//!
//! Only built with the feature `bdb`. Every process opens the environment for itself, as its manual has it; locks and
//! pages lie in files that all of them map. `bdb.c` beside this file calls the library.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr::null_mut;

use super::{Key, Source};
use crate::BenchError;
use crate::read::client::ReadSpec;

/// Room for everything, with what a B-tree leaves free.
const CACHE_BYTES_PER_BYTE: u64 = 3;
const NOT_FOUND: c_int = -1;

/// Which of its products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// CDS.
    Concurrent,
    /// TDS.
    Transactional,
}

#[repr(C)]
struct Store {
    _opaque: [u8; 0],
}

#[allow(unsafe_code, reason = "the library is written in C; these are the six functions of bdb.c")]
// SAFETY: the signatures are those of bdb.c.
unsafe extern "C" {
    fn bench_bdb_open(
        dir: *const c_char,
        transactional: c_int,
        cache_mib: c_uint,
        out: *mut *mut Store,
    ) -> c_int;
    fn bench_bdb_close(store: *mut Store);
    fn bench_bdb_get(
        store: *mut Store,
        key: *const c_void,
        key_bytes: c_uint,
        value: *mut c_void,
        room: c_uint,
        bytes: *mut c_uint,
    ) -> c_int;
    fn bench_bdb_put(
        store: *mut Store,
        key: *const c_void,
        key_bytes: c_uint,
        value: *const c_void,
        bytes: c_uint,
    ) -> c_int;
    safe fn bench_bdb_version() -> *const c_char;
    safe fn bench_bdb_error(error: c_int) -> *const c_char;
}

#[derive(Debug)]
pub(super) struct Bdb {
    /// Open until dropped.
    store: *mut Store,
    value_bytes: usize,
}

pub(super) fn version() -> String {
    words(bench_bdb_version())
}

/// Puts all items, in order.
pub(super) fn fill(spec: &ReadSpec, product: Product) -> Result<(), BenchError> {
    let mut store = Bdb::open(spec, product)?;
    for (key, value) in spec.items() {
        store.put(Key { text: &key, number: 0 }, &value)?;
    }
    Ok(())
}

impl Bdb {
    #[allow(unsafe_code, reason = "the library is written in C")]
    pub(super) fn open(spec: &ReadSpec, product: Product) -> Result<Bdb, BenchError> {
        let dir = CString::new(spec.place.as_os_str().as_bytes())
            .map_err(|error| BenchError::Answer { server: "Berkeley DB", what: error.to_string() })?;
        let bytes = spec.keys * u64::from(spec.shape.value_bytes + 64) * CACHE_BYTES_PER_BYTE;
        let cache_mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).clamp(64, 4_000);
        let is_transactional = c_int::from(product == Product::Transactional);
        let mut store = null_mut();
        // SAFETY: `dir` ends with a zero and `store` can be written; both outlive the call.
        let error = unsafe { bench_bdb_open(dir.as_ptr(), is_transactional, cache_mib, &mut store) };
        check(error)?;
        Ok(Bdb { store, value_bytes: spec.shape.value_bytes as usize })
    }
}

impl Source for Bdb {
    #[inline]
    #[allow(unsafe_code, reason = "the library is written in C")]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        let mut value: Vec<u8> = Vec::with_capacity(self.value_bytes);
        let (at, room) = (value.as_mut_ptr(), value.capacity() as c_uint);
        let (text, text_bytes) = (key.text.as_ptr(), key.text.len() as c_uint);
        let mut bytes = 0;
        // SAFETY: the store is open; key and value are as long as is said, and outlive the call.
        let error =
            unsafe { bench_bdb_get(self.store, text.cast(), text_bytes, at.cast(), room, &mut bytes) };
        if error == NOT_FOUND {
            return Ok(None);
        }
        check(error)?;
        assert!(bytes as usize <= value.capacity(), "it says so itself when there is no room");
        // SAFETY: it has written so many bytes, just checked to be within the capacity.
        unsafe { value.set_len(bytes as usize) };
        Ok(Some(value))
    }

    #[allow(unsafe_code, reason = "the library is written in C")]
    fn put(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), BenchError> {
        let (text, text_bytes) = (key.text.as_ptr(), key.text.len() as c_uint);
        let (at, bytes) = (value.as_ptr(), value.len() as c_uint);
        // SAFETY: the store is open; key and value are as long as is said, and outlive the call.
        check(unsafe { bench_bdb_put(self.store, text.cast(), text_bytes, at.cast(), bytes) })
    }
}

impl Drop for Bdb {
    #[allow(unsafe_code, reason = "the library is written in C")]
    fn drop(&mut self) {
        // SAFETY: open since `open`, and nobody can use it after this.
        unsafe { bench_bdb_close(self.store) };
    }
}

fn check(error: c_int) -> Result<(), BenchError> {
    if error == 0 {
        return Ok(());
    }
    Err(BenchError::Answer { server: "Berkeley DB", what: words(bench_bdb_error(error)) })
}

#[allow(unsafe_code, reason = "the library is written in C")]
fn words(text: *const c_char) -> String {
    // SAFETY: both functions that give such a text give one that ends with a zero and lives as long as the program.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
