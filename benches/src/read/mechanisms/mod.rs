//! What can be read from: a file each, behind one small trait.
//!
//! [`super::client`] opens one in its own process and reads; [`super::hosts`] prepares what they share. Whatever one of
//! them does for a value (finding it, copying it into memory of its own, checking it) the others do too.

#[cfg(feature = "bdb")]
mod bdb;
mod hashbrown;
mod hashmap;
pub(crate) mod kvd;
pub(crate) mod lmdb;
mod moka;
mod quick_cache;
mod socket;

pub(super) use kvd::answered;
use serde::{Deserialize, Serialize};

use super::client::{self, ReadSpec};
use crate::BenchError;
use crate::client::{ClientReport, failed};
use crate::peers::Kind;

/// Everything that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mechanism {
    /// kvd, through shared memory.
    Kvd,
    /// LMDB, a read transaction for each get.
    Lmdb,
    /// LMDB, a read transaction for 64 gets: what there is to gain, at the price of reading an old state.
    LmdbHeld,
    /// Berkeley DB 5.3, concurrent data store: one lock for the database.
    BdbCds,
    /// Berkeley DB 5.3, transactional data store: page locks and a deadlock detector.
    BdbTds,
    /// memcached over a Unix socket.
    Memcached,
    /// Redis over a Unix socket.
    Redis,
    /// `std::collections::HashMap` in the process itself.
    HashMap,
    /// `hashbrown::HashMap` with its own hasher.
    Hashbrown,
    /// `moka::sync::Cache`.
    Moka,
    /// `quick_cache::sync::Cache`.
    QuickCache,
}

/// What all processes that read from a mechanism share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shared {
    /// A server.
    Server(Kind),
    /// A directory that the processes map, filled beforehand.
    Files,
    /// Nothing: each has its own copy.
    Nothing,
}

impl Mechanism {
    pub(super) fn shared(self) -> Shared {
        match self {
            Mechanism::Kvd => Shared::Server(Kind::Kvd),
            Mechanism::Memcached => Shared::Server(Kind::Memcached),
            Mechanism::Redis => Shared::Server(Kind::Redis),
            Mechanism::Lmdb | Mechanism::LmdbHeld | Mechanism::BdbCds | Mechanism::BdbTds => Shared::Files,
            Mechanism::HashMap | Mechanism::Hashbrown | Mechanism::Moka | Mechanism::QuickCache => {
                Shared::Nothing
            }
        }
    }

    /// Whether its processes map memory that others have filled.
    pub(super) fn is_mapped(self) -> bool {
        self == Mechanism::Kvd || self.shared() == Shared::Files
    }

    /// Whether two of them can use the same directory.
    pub(super) fn family(self) -> Mechanism {
        if self == Mechanism::LmdbHeld { Mechanism::Lmdb } else { self }
    }

    /// Opens it in this process and does what the specification says.
    pub(super) fn serve(self, spec: &ReadSpec) -> Result<ClientReport, BenchError> {
        match self {
            Mechanism::Kvd => client::work(kvd::Kvd::open(spec)?, spec),
            Mechanism::Lmdb => client::work(lmdb::Lmdb::open(spec, 1)?, spec),
            Mechanism::LmdbHeld => client::work(lmdb::Lmdb::open(spec, lmdb::HELD_GETS)?, spec),
            #[cfg(feature = "bdb")]
            Mechanism::BdbCds => client::work(bdb::Bdb::open(spec, bdb::Product::Concurrent)?, spec),
            #[cfg(feature = "bdb")]
            Mechanism::BdbTds => client::work(bdb::Bdb::open(spec, bdb::Product::Transactional)?, spec),
            #[cfg(not(feature = "bdb"))]
            Mechanism::BdbCds | Mechanism::BdbTds => Err(failed(BDB_ABSENT)),
            Mechanism::Memcached | Mechanism::Redis => client::work(socket::Socket::open(spec)?, spec),
            Mechanism::HashMap => client::work(hashmap::filled(spec), spec),
            Mechanism::Hashbrown => client::work(hashbrown::filled(spec), spec),
            Mechanism::Moka => client::work(moka::filled(spec), spec),
            Mechanism::QuickCache => client::work(quick_cache::filled(spec), spec),
        }
    }

    /// Fills what its processes share, where that is files.
    pub(super) fn fill(self, spec: &ReadSpec) -> Result<(), BenchError> {
        match self {
            Mechanism::Lmdb | Mechanism::LmdbHeld => lmdb::fill(spec),
            #[cfg(feature = "bdb")]
            Mechanism::BdbCds => bdb::fill(spec, bdb::Product::Concurrent),
            #[cfg(feature = "bdb")]
            Mechanism::BdbTds => bdb::fill(spec, bdb::Product::Transactional),
            #[cfg(not(feature = "bdb"))]
            Mechanism::BdbCds | Mechanism::BdbTds => Err(failed(BDB_ABSENT)),
            Mechanism::Kvd
            | Mechanism::Memcached
            | Mechanism::Redis
            | Mechanism::HashMap
            | Mechanism::Hashbrown
            | Mechanism::Moka
            | Mechanism::QuickCache => Ok(()),
        }
    }

    /// Its version, or why it is not there.
    pub(super) fn version(self) -> Result<String, String> {
        match self {
            Mechanism::Lmdb | Mechanism::LmdbHeld => Ok(lmdb::version()),
            #[cfg(feature = "bdb")]
            Mechanism::BdbCds | Mechanism::BdbTds => Ok(bdb::version()),
            #[cfg(not(feature = "bdb"))]
            Mechanism::BdbCds | Mechanism::BdbTds => Err(BDB_ABSENT.to_owned()),
            Mechanism::Kvd
            | Mechanism::Memcached
            | Mechanism::Redis
            | Mechanism::HashMap
            | Mechanism::Hashbrown
            | Mechanism::Moka
            | Mechanism::QuickCache => Ok(String::new()),
        }
    }
}

#[cfg(not(feature = "bdb"))]
pub(crate) const BDB_ABSENT: &str = "built without the feature bdb: scripts/peers installs what it needs";

/// The key of a read: as text, and its number for those who write requests of digits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) text: &'a str,
    pub(crate) number: u64,
}

/// Something open in this process. Callers check what they get.
pub(super) trait Source {
    /// The value, in memory of the caller's own.
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError>;

    /// The same, into a buffer that is used again: whether there was one.
    fn get_into(&mut self, key: Key<'_>, _value: &mut Vec<u8>) -> Result<bool, BenchError> {
        Err(failed(format!("{} is only read one value at a time", key.text)))
    }

    /// The values of many keys: sees each with its place.
    fn get_many(&mut self, keys: &[Key<'_>]) -> Result<Vec<Option<Vec<u8>>>, BenchError> {
        keys.iter().map(|&key| self.get(key)).collect()
    }

    /// Puts a value, as durably as `behind` is or less.
    fn put(&mut self, key: Key<'_>, _value: &[u8]) -> Result<(), BenchError> {
        Err(failed(format!("no other process could read {}", key.text)))
    }

    /// How many reads were meant for memory and went to a server.
    fn asked(&self) -> u64 {
        0
    }
}
