//! Berkeley DB 5.3, the library that eToys.com kept its caches in, in two of its products: the concurrent data store
//! (one lock for the database, many readers or one writer) and the transactional data store (locks on pages, a log).
//!
//! Only built with the feature `bdb`; `bench read` and `bench locking` both open it through [`Bdb`]. Every process opens
//! the environment for itself, as its manual has it; locks and pages lie in files that all of them map. `bdb.c` beside
//! this file calls the library. What is opened by one thread must not be used by another.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

use crate::BenchError;

const NOT_FOUND: c_int = -1;
const DEADLOCK: c_int = -2;
/// The longest key that a scan may meet.
const KEY_BYTES_MAX: usize = 256;

/// Which of its products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// CDS.
    Concurrent,
    /// TDS.
    Transactional,
}

/// How it is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) product: Product,
    pub(crate) cache_mib: u32,
    /// TDS: the youngest goes at a deadlock, not whoever the library picks.
    pub(crate) youngest: bool,
    /// TDS: a commit leaves its log in shared memory, instead of writing it without a sync.
    pub(crate) nosync: bool,
    /// Recovery first; nobody else may have it open.
    pub(crate) recover: bool,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The deadlock detector chose this one: begin again.
    Deadlock,
    /// Anything else, in the library's words.
    Other(String),
}

#[repr(C)]
struct Store {
    _opaque: [u8; 0],
}

#[repr(C)]
struct Options {
    transactional: c_int,
    youngest: c_int,
    nosync: c_int,
    recover: c_int,
    cache_mib: c_uint,
}

#[allow(unsafe_code, reason = "the library is written in C; these are the functions of bdb.c")]
// SAFETY: the signatures are those of bdb.c.
unsafe extern "C" {
    fn bench_bdb_open(dir: *const c_char, options: *const Options, out: *mut *mut Store) -> c_int;
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
    fn bench_bdb_begin(store: *mut Store) -> c_int;
    fn bench_bdb_end(store: *mut Store, commit: c_int) -> c_int;
    fn bench_bdb_scan_begin(store: *mut Store) -> c_int;
    fn bench_bdb_scan_next(
        store: *mut Store,
        key: *mut c_void,
        key_bytes: *mut c_uint,
        value: *mut c_void,
        bytes: *mut c_uint,
    ) -> c_int;
    fn bench_bdb_scan_end(store: *mut Store) -> c_int;
    safe fn bench_bdb_version() -> *const c_char;
    safe fn bench_bdb_error(error: c_int) -> *const c_char;
}

/// An environment with its database, open until dropped.
#[derive(Debug)]
pub(crate) struct Bdb {
    store: *mut Store,
    value_bytes: usize,
}

pub(crate) fn version() -> String {
    words(bench_bdb_version())
}

/// The cache for so many items, with what a B-tree leaves free.
pub(crate) fn cache_mib(keys: u64, value_bytes: u32) -> u32 {
    const CACHE_BYTES_PER_BYTE: u64 = 3;
    let bytes = keys * u64::from(value_bytes + 64) * CACHE_BYTES_PER_BYTE;
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX).clamp(64, 4_000)
}

#[allow(unsafe_code, reason = "the library is written in C")]
impl Bdb {
    /// Opens the directory; values are at most `value_bytes` long.
    pub(crate) fn open(dir: &Path, opening: Opening, value_bytes: usize) -> Result<Bdb, BenchError> {
        let dir =
            CString::new(dir.as_os_str().as_bytes()).map_err(|error| Refusal::Other(error.to_string()))?;
        let options = Options {
            transactional: c_int::from(opening.product == Product::Transactional),
            youngest: c_int::from(opening.youngest),
            nosync: c_int::from(opening.nosync),
            recover: c_int::from(opening.recover),
            cache_mib: opening.cache_mib,
        };
        let mut store = null_mut();
        // SAFETY: `dir` ends with a zero and `store` can be written; all three outlive the call.
        check(unsafe { bench_bdb_open(dir.as_ptr(), &options, &mut store) })?;
        Ok(Bdb { store, value_bytes })
    }

    /// The value, into a buffer that is used again: whether there is one.
    #[inline]
    pub(crate) fn get(&mut self, key: &str, value: &mut Vec<u8>) -> Result<bool, Refusal> {
        value.clear();
        value.reserve(self.value_bytes);
        let (at, room) = (value.as_mut_ptr(), value.capacity() as c_uint);
        let (text, text_bytes) = (key.as_ptr(), key.len() as c_uint);
        let mut bytes = 0;
        // SAFETY: the store is open; key and value are as long as is said, and outlive the call.
        let error =
            unsafe { bench_bdb_get(self.store, text.cast(), text_bytes, at.cast(), room, &mut bytes) };
        if error == NOT_FOUND {
            return Ok(false);
        }
        check(error)?;
        assert!(bytes as usize <= value.capacity(), "it says so itself when there is no room");
        // SAFETY: it has written so many bytes, just checked to be within the capacity.
        unsafe { value.set_len(bytes as usize) };
        Ok(true)
    }

    pub(crate) fn put(&mut self, key: &str, value: &[u8]) -> Result<(), Refusal> {
        let (text, text_bytes) = (key.as_ptr(), key.len() as c_uint);
        let (at, bytes) = (value.as_ptr(), value.len() as c_uint);
        // SAFETY: the store is open; key and value are as long as is said, and outlive the call.
        check(unsafe { bench_bdb_put(self.store, text.cast(), text_bytes, at.cast(), bytes) })
    }

    /// What is read and written until [`Bdb::end`] is one transaction; in CDS, which has none, it is done under a write
    /// cursor, which keeps other writers out.
    pub(crate) fn begin(&mut self) -> Result<(), Refusal> {
        // SAFETY: the store is open.
        check(unsafe { bench_bdb_begin(self.store) })
    }

    /// Ends what was begun: commits it, or takes it back (CDS cannot).
    pub(crate) fn end(&mut self, commit: bool) -> Result<(), Refusal> {
        // SAFETY: the store is open, and something was begun.
        check(unsafe { bench_bdb_end(self.store, c_int::from(commit)) })
    }

    /// Sees every item, under a cursor.
    pub(crate) fn scan<E: From<Refusal>>(
        &mut self,
        mut see: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // SAFETY: the store is open.
        check(unsafe { bench_bdb_scan_begin(self.store) })?;
        let (mut key, mut value) = ([0u8; KEY_BYTES_MAX], vec![0u8; self.value_bytes]);
        let mut steps = || -> Result<(), E> {
            loop {
                let (mut key_bytes, mut bytes) = (KEY_BYTES_MAX as c_uint, self.value_bytes as c_uint);
                let (key_at, at) = (key.as_mut_ptr(), value.as_mut_ptr());
                // SAFETY: the scan is open; both buffers are as long as is said, and outlive the call.
                let error = unsafe {
                    bench_bdb_scan_next(self.store, key_at.cast(), &mut key_bytes, at.cast(), &mut bytes)
                };
                if error == NOT_FOUND {
                    return Ok(());
                }
                check(error)?;
                see(&key[..key_bytes as usize], &value[..bytes as usize])?;
            }
        };
        let seen = steps();
        // SAFETY: the scan is open since it began above.
        let ended = check(unsafe { bench_bdb_scan_end(self.store) });
        seen?;
        ended.map_err(E::from)
    }
}

impl Drop for Bdb {
    #[allow(unsafe_code, reason = "the library is written in C")]
    fn drop(&mut self) {
        // SAFETY: open since `open`, and nobody can use it after this.
        unsafe { bench_bdb_close(self.store) };
    }
}

impl From<Refusal> for BenchError {
    fn from(refusal: Refusal) -> BenchError {
        let what = match refusal {
            Refusal::Deadlock => "that it was chosen to resolve a deadlock".to_owned(),
            Refusal::Other(what) => what,
        };
        BenchError::Answer { server: "Berkeley DB", what }
    }
}

fn check(error: c_int) -> Result<(), Refusal> {
    match error {
        0 => Ok(()),
        DEADLOCK => Err(Refusal::Deadlock),
        other => Err(Refusal::Other(words(bench_bdb_error(other)))),
    }
}

#[allow(unsafe_code, reason = "the library is written in C")]
fn words(text: *const c_char) -> String {
    // SAFETY: both functions that give such a text give one that ends with a zero and lives as long as the program.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
