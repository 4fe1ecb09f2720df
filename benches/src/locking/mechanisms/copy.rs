//! Copy on read, as Tie::DB_Lock does it: each reader copies the file under a shared lock and reads its copy without any,
//! so that slow readers never block writers. Writers change the file under the exclusive lock.

use std::path::PathBuf;

use super::flock::{self, Hold};
use super::slots::{Form, Slots};
use super::{About, Failure, Key, Mechanism, See, Store, Work, Worker};
use crate::BenchError;

/// The mechanism.
#[derive(Debug)]
pub(in crate::locking) struct CopyOnRead;

impl Mechanism for CopyOnRead {
    fn about(&self) -> About {
        About {
            name: "copy on read",
            settings: "as flock, but a reader holds the lock only while it copies the file, for each read anew",
        }
    }

    fn version(&self) -> Result<String, String> {
        Ok("copy_file_range(2)".to_owned())
    }

    fn create(&self, store: Store<'_>) -> Result<(), BenchError> {
        Form::of(store).create(store.place)
    }

    fn open(&self, store: Store<'_>) -> Result<Box<dyn Worker>, BenchError> {
        let copy = store.place.join(format!("copy-{}", std::process::id()));
        Ok(Box::new(Opened { original: flock::Opened::open(store)?, copy }))
    }
}

struct Opened {
    original: flock::Opened,
    copy: PathBuf,
}

impl Opened {
    /// A copy of its own, with no lock held any more.
    fn copied(&self) -> Result<Slots, Failure> {
        let flock::Opened { lock, path, form } = &self.original;
        lock.held(Hold::Shared, || {
            std::fs::copy(path, &self.copy).map_err(BenchError::io("copying the file"))?;
            Ok(())
        })?;
        Ok(form.open(&self.copy)?)
    }
}

impl Worker for Opened {
    fn read(&mut self, key: Key<'_>, value: &mut Vec<u8>) -> Result<bool, Failure> {
        Ok(self.copied()?.get(key.text, value)?)
    }

    fn write(&mut self, key: Key<'_>, value: &[u8]) -> Result<(), Failure> {
        self.original.write(key, value)
    }

    fn transact(&mut self, work: Work<'_>) -> Result<(), Failure> {
        self.original.transact(work)
    }

    fn scan(&mut self, see: See<'_>) -> Result<(), Failure> {
        Ok(self.copied()?.scan(see)?)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // The directory goes with all of them later.
        drop(std::fs::remove_file(&self.copy));
    }
}
