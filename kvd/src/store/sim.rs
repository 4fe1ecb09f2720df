//! A disk for tests that loses power.
//!
//! Files keep what was synced and, apart, the list of what was written since. A power loss keeps any subset of the latter,
//! torn at sectors, and may drop changes of length. The pending log is memory whose pages reach the disk whenever they like.
//! A kill keeps everything written, synced or not. It can also run full, fail a sync, or lie about syncing.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use kv_proto::segment::Words;
use parking_lot::Mutex;
use redb::StorageBackend;

const SECTOR: usize = 512;
const PAGE_WORDS: usize = 512;

/// A simulated disk. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<String, Arc<Mutex<File>>>,
    log: Option<Log>,
    random: fastrand::Rng,
    /// Writes until the power goes.
    writes_left: Option<u64>,
    is_off: bool,
    sync_lies: bool,
    /// The next sync fails, and what was to be synced is forgotten as Linux forgets it: it stays readable.
    sync_fails: bool,
    free_bytes: u64,
}

#[derive(Debug, Clone, Default)]
struct File {
    synced: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Op>,
}

#[derive(Debug, Clone)]
enum Op {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Debug)]
struct Log {
    words: Arc<Words>,
    /// What of it has reached the disk.
    image: Vec<u64>,
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> SimDisk {
        let state = State {
            files: BTreeMap::new(),
            log: None,
            random: fastrand::Rng::with_seed(seed),
            writes_left: None,
            is_off: false,
            sync_lies: false,
            sync_fails: false,
            free_bytes: 1 << 40,
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// The power goes after so many writes or syncs.
    pub(super) fn cut_after(&self, writes: Option<u64>) {
        self.state.lock().writes_left = writes;
    }

    pub(super) fn is_off(&self) -> bool {
        self.state.lock().is_off
    }

    pub(super) fn set_sync_lies(&self) {
        self.state.lock().sync_lies = true;
    }

    pub(crate) fn fail_next_sync(&self) {
        self.state.lock().sync_fails = true;
    }

    pub(super) fn set_free_bytes(&self, bytes: u64) {
        self.state.lock().free_bytes = bytes;
    }

    /// Some pages of the log reach the disk.
    pub(super) fn write_back(&self, pages: usize) {
        let mut state = self.state.lock();
        for _ in 0..pages {
            let Some(count) = state.log.as_ref().map(|log| log.image.len() / PAGE_WORDS) else { return };
            let page = state.random.usize(..count);
            if let Some(log) = &mut state.log {
                for i in page * PAGE_WORDS..(page + 1) * PAGE_WORDS {
                    log.image[i] = log.words.load(i);
                }
            }
        }
    }

    /// Flips a byte of a file, also of what was synced.
    pub(super) fn damage(&self, name: &str, offset: usize) {
        let file = self.state.lock().files[name].clone();
        let mut file = file.lock();
        file.current[offset] ^= 0x55;
        if offset < file.synced.len() {
            file.synced[offset] ^= 0x55;
        }
    }

    pub(super) fn file_bytes(&self, name: &str) -> Vec<u8> {
        self.state.lock().files[name].lock().current.clone()
    }

    /// The disk as the next process finds it after this one was killed.
    pub(super) fn after_kill(&self) -> SimDisk {
        let mut state = self.state.lock();
        state.is_off = true;
        let files =
            state.files.iter().map(|(name, file)| (name.clone(), Arc::new(Mutex::new(file.lock().clone()))));
        let files = files.collect();
        let log = state.log.as_ref().map(|log| {
            let words = Words::heap(log.words.len());
            (0..words.len()).for_each(|i| words.store(i, log.words.load(i)));
            Log { words, image: log.image.clone() }
        });
        self.reborn(&mut state, files, log)
    }

    /// The disk as it is found after a power loss now, or when the power went.
    pub(super) fn after_power_loss(&self) -> SimDisk {
        let mut state = self.state.lock();
        state.is_off = true;
        let keep = [0.0, 0.1, 0.5, 0.9, 1.0][state.random.usize(..5)];
        let mut random = state.random.fork();
        let files = state.files.iter().map(|(name, file)| {
            let bytes = file.lock().survivor(&mut random, keep);
            (
                name.clone(),
                Arc::new(Mutex::new(File { synced: bytes.clone(), current: bytes, unsynced: Vec::new() })),
            )
        });
        let files = files.collect();
        let log = state.log.as_ref().map(|log| log.survivor(&mut random, keep));
        self.reborn(&mut state, files, log)
    }

    fn reborn(
        &self,
        state: &mut State,
        files: BTreeMap<String, Arc<Mutex<File>>>,
        log: Option<Log>,
    ) -> SimDisk {
        let state = State {
            files,
            log,
            random: state.random.fork(),
            writes_left: None,
            is_off: false,
            sync_lies: state.sync_lies,
            sync_fails: false,
            free_bytes: state.free_bytes,
        };
        SimDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Counts a write; an error if the power is off, or goes now.
    fn write_one(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(left) = state.writes_left.as_mut() {
            if *left == 0 {
                state.is_off = true;
            } else {
                *left -= 1;
            }
        }
        if state.is_off { Err(off()) } else { Ok(()) }
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        let state = self.state.lock();
        state.files.contains_key(name) || (name == super::disk::LOG_FILE && state.log.is_some())
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.state.lock().free_bytes
    }

    pub(super) fn file(&self, name: &str) -> SimFile {
        let file = self.state.lock().files.entry(name.to_owned()).or_default().clone();
        SimFile { disk: self.clone(), file, has_blocks: false }
    }

    pub(super) fn log(&self) -> Option<Arc<Words>> {
        self.state.lock().log.as_ref().map(|log| log.words.clone())
    }

    pub(super) fn create_log(&self, header: &[u8], bytes: usize) -> io::Result<Arc<Words>> {
        self.write_one()?;
        let words = Words::heap(bytes / 8);
        words.copy_in(0, header);
        let image = (0..words.len()).map(|i| words.load(i)).collect();
        self.state.lock().log = Some(Log { words: words.clone(), image });
        Ok(words)
    }

    pub(super) fn read_small(&self, name: &str) -> Option<Vec<u8>> {
        self.state.lock().files.get(name).map(|file| file.lock().current.clone())
    }

    pub(super) fn write_small(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.file(name);
        // What has its blocks can be overwritten on a full disk.
        file.has_blocks = file.len()? >= bytes.len() as u64;
        file.set_len(bytes.len() as u64)?;
        file.write(0, bytes)?;
        file.sync_data()
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.write_one()?;
        let mut state = self.state.lock();
        if from == super::disk::LOG_FILE {
            state.log = None;
        }
        if let Some(file) = state.files.remove(from) {
            state.files.insert(to.to_owned(), file);
        }
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) {
        self.state.lock().files.remove(name);
    }
}

impl File {
    /// What a power loss leaves: of what was not synced each sector with probability `keep`.
    fn survivor(&self, random: &mut fastrand::Rng, keep: f64) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        for op in &self.unsynced {
            match op {
                Op::Length(length) if random.f64() < keep => bytes.resize(*length, 0),
                Op::Length(_) => {}
                Op::Write { offset, data } => {
                    for (i, part) in data.chunks(SECTOR).enumerate() {
                        let at = offset + i * SECTOR;
                        if random.f64() < keep && at + part.len() <= bytes.len() {
                            bytes[at..at + part.len()].copy_from_slice(part);
                        }
                    }
                }
            }
        }
        bytes
    }
}

impl Log {
    fn survivor(&self, random: &mut fastrand::Rng, keep: f64) -> Log {
        let words = Words::heap(self.words.len());
        for (sector, part) in self.image.chunks(SECTOR / 8).enumerate() {
            let is_current = random.f64() < keep;
            for (i, old) in part.iter().enumerate() {
                let at = sector * (SECTOR / 8) + i;
                words.store(at, if is_current { self.words.load(at) } else { *old });
            }
        }
        let image = (0..words.len()).map(|i| words.load(i)).collect();
        Log { words, image }
    }
}

/// A file of a simulated disk.
#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    file: Arc<Mutex<File>>,
    has_blocks: bool,
}

impl StorageBackend for SimFile {
    fn len(&self) -> io::Result<u64> {
        if self.disk.is_off() { Err(off()) } else { Ok(self.file.lock().current.len() as u64) }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.disk.is_off() {
            return Err(off());
        }
        let file = self.file.lock();
        let offset = offset as usize;
        let found = file.current.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.write_one()?;
        let mut file = self.file.lock();
        file.current.resize(len as usize, 0);
        file.unsynced.push(Op::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.write_one()?;
        let mut state = self.disk.state.lock();
        if std::mem::take(&mut state.sync_fails) {
            self.file.lock().unsynced.clear();
            return Err(io::Error::from_raw_os_error(5));
        }
        if !state.sync_lies {
            let mut file = self.file.lock();
            let file = &mut *file;
            for op in file.unsynced.drain(..) {
                match op {
                    Op::Length(length) => file.synced.resize(length, 0),
                    Op::Write { offset, data } => {
                        if file.synced.len() < offset + data.len() {
                            file.synced.resize(offset + data.len(), 0);
                        }
                        file.synced[offset..offset + data.len()].copy_from_slice(&data);
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.write_one()?;
        {
            let mut state = self.disk.state.lock();
            if !self.has_blocks && state.free_bytes < data.len() as u64 {
                state.free_bytes = 0;
                return Err(io::Error::from_raw_os_error(28));
            }
        }
        let mut file = self.file.lock();
        let offset = offset as usize;
        if file.current.len() < offset + data.len() {
            file.current.resize(offset + data.len(), 0);
        }
        file.current[offset..offset + data.len()].copy_from_slice(data);
        file.unsynced.push(Op::Write { offset, data: data.to_vec() });
        Ok(())
    }
}
