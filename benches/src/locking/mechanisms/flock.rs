//! `flock` around every operation on a small file database: shared for reading, exclusive for writing and transactions.
//!
//! The file is opened after the lock was taken and closed before it is let go. The lock is on a file of its own, which
//! is never replaced.

use std::fs::File;
use std::path::PathBuf;

use super::slots::{FILE, Form, Slots};
use super::{About, Failure, Inside, Key, Mechanism, See, Store, Work, Worker};
use crate::BenchError;

/// The mechanism.
#[derive(Debug)]
pub(in crate::locking) struct Flock;

impl Mechanism for Flock {
    fn about(&self) -> About {
        About {
            name: "flock",
            settings: "not synced, page cache of the system; flock on a file beside it, shared or exclusive, the database opened after \
         the lock; no rollback; waits without limit",
        }
    }

    fn version(&self) -> Result<String, String> {
        Ok("flock(2)".to_owned())
    }

    fn create(&self, store: Store<'_>) -> Result<(), BenchError> {
        Form::of(store).create(store.place)
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        Ok(Box::new(Opened::open(store)?))
    }
}

/// The file that is locked.
#[derive(Debug)]
pub(super) struct Lock(File);

/// How it is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Exclusive,
}

impl Lock {
    /// Holds it for as long as this takes.
    pub(super) fn held<T>(&self, hold: Hold, act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let locked = match hold {
            Hold::Shared => self.0.lock_shared(),
            Hold::Exclusive => self.0.lock(),
        };
        locked.map_err(BenchError::io("taking the lock"))?;
        let done = act();
        self.0.unlock().map_err(BenchError::io("letting the lock go"))?;
        done
    }
}

/// The file and its lock.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) lock: Lock,
    pub(super) path: PathBuf,
    pub(super) form: Form,
}

impl Opened {
    pub(super) fn open(store: Store<'_>) -> Result<Opened, BenchError> {
        let lock = File::options().create(true).truncate(false).write(true).open(store.place.join("lock"));
        let lock = lock.map(Lock).map_err(BenchError::io("opening a lock file"))?;
        Ok(Opened { lock, path: store.place.join(FILE), form: Form::of(store) })
    }
}

impl Worker for Opened {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        self.lock.held(Hold::Shared, || Ok(self.form.open(&self.path)?.get(key.text, value)?))
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.lock.held(Hold::Exclusive, || Ok(self.form.open(&self.path)?.put(key.text, value)?))
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        self.lock.held(Hold::Exclusive, || work(&mut self.form.open(&self.path)?))
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        self.lock.held(Hold::Shared, || Ok(self.form.open(&self.path)?.scan(see)?))
    }
}

impl Inside for Slots {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        Ok(self.get(key.text, value)?)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        Ok(self.put(key.text, value)?)
    }
}
