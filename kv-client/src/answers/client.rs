//! What a client counts, of itself alone.

/// How reads of a cache travel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadPath {
    /// Through shared memory; single reads may still have to ask.
    Shared,
    /// Each is a request.
    Socket {
        /// Why.
        because: String,
    },
}

impl ReadPath {
    /// Whether reads go through shared memory.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.because().is_none()
    }

    /// Why each read is a request; `None`: it is not.
    #[must_use]
    pub fn because(&self) -> Option<&str> {
        match self {
            ReadPath::Shared => None,
            ReadPath::Socket { because } => Some(because),
        }
    }
}

impl std::fmt::Display for ReadPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ReadPath::Shared => f.write_str("shared"),
            ReadPath::Socket { because } => write!(f, "socket: {because}"),
        }
    }
}

/// What a client counted, of itself alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// By cache, those it was asked for.
    pub caches: Vec<CacheStats>,
}

/// What a client counted about one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// The cache.
    pub name: String,
    /// How it is read now.
    pub path: ReadPath,
    /// Items found without asking. Threads that share a counter may lose one now and then.
    pub shared_hits: u64,
    /// Keys known, without asking, not to be there.
    pub shared_misses: u64,
    /// How often the writer has reused memory while it was being copied; those reads started over.
    pub times_overtaken: u64,
    /// Reads that had to ask, by reason.
    pub fallbacks: Fallbacks,
    /// What `get_or_load` and its kin did.
    pub loads: Loads,
}

/// What `get_or_load` and its kin did with one cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loads {
    /// Answered by an item of the daemon. (Those of shared memory are [`CacheStats::shared_hits`].)
    pub hits_socket: u64,
    /// Answered by what this process loaded while the daemon was away.
    pub hits_standby: u64,
    /// Answers that said "there is none".
    pub hits_negative: u64,
    /// Answers that were past their life.
    pub stale_served: u64,
    /// Loaders that ended.
    pub loads: u64,
    /// Those of them that failed.
    pub loads_failed: u64,
    /// Reloads ahead of the end of a life.
    pub refreshes: u64,
    /// Callers that got what another one of this process loaded.
    pub coalesced: u64,
    /// Values that were not stored, because something newer had happened or the lease was lost.
    pub leases_lost: u64,
    /// Values that could not be stored: too large, too many tags, or the daemon failed. Their callers have got them.
    pub not_stored: u64,
    /// Loads without a lease: inside a transaction, in a ring of loads, after waiting in vain, or with the daemon away.
    pub loads_alone: u64,
    /// Reads that missed because the daemon is away.
    pub outage_misses: u64,
    /// Stored bytes that were of another schema version, or no value.
    pub undecodable: u64,
}

/// Reads that could not be answered from shared memory, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fallbacks {
    /// There was no segment: see [`ReadPath::Socket`].
    pub not_attached: u64,
    /// On disk, or too large for the rings.
    pub not_resident: u64,
    /// The index did not know: it had forgotten a key of that bucket, or not all keys on disk were enumerated yet.
    pub forgotten: u64,
    /// The writer overtook the read too often.
    pub lapped: u64,
    /// The daemon had stopped, gave no sign of life, or had replaced the segment.
    pub not_live: u64,
}
