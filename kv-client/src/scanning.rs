//! Where a scan stands. Both clients' scans drive it; it does no I/O.

use kv_proto::limits::SCAN_KEYS_MAX;

/// Where a scan stands, and what it wants.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    pub(crate) cache: Box<str>,
    pub(crate) prefix: Vec<u8>,
    pub(crate) keys_max: u32,
    pub(crate) values: bool,
    pub(crate) stale: bool,
    pub(crate) at: Vec<u8>,
    pub(crate) ended: bool,
}

impl Cursor {
    pub(crate) fn new(cache: &str, prefix: &[u8]) -> Cursor {
        let keys_max = SCAN_KEYS_MAX as u32;
        Cursor {
            cache: cache.into(),
            prefix: prefix.into(),
            keys_max,
            values: false,
            stale: false,
            at: Vec::new(),
            ended: false,
        }
    }

    /// An empty cursor is the end.
    pub(crate) fn go_on_at(&mut self, at: Vec<u8>) {
        self.ended = at.is_empty();
        self.at = at;
    }
}
