//! What a user may do with a cache.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

bitflags::bitflags! {
    /// Verbs of an access list, as a set.
    ///
    /// ```
    /// use kv_proto::wire::Rights;
    /// let rights: Rights = "read+scan".parse()?;
    /// assert!(rights.contains(Rights::READ) && !rights.contains(Rights::WRITE));
    /// assert_eq!(rights.to_string(), "read+scan");
    /// # Ok::<(), String>(())
    /// ```
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Rights: u8 {
        /// Get and describe; with `WRITE`, load or wait for what another loads, and increment.
        const READ = 1;
        /// Put, change lives, store what was loaded; in any cache: begin transactions and take named locks.
        const WRITE = 1 << 1;
        /// Delete and expire single items; with `READ`, take them.
        const DELETE = 1 << 2;
        /// See which keys there are: scan, watch, the hottest keys, the slow log; with `READ`, the shared memory.
        const SCAN = 1 << 3;
        /// Make many items gone or stale at once, and drop the cache.
        const CLEAR = 1 << 4;
        /// Everything, and what concerns the daemon: stop, reload, restart, backup, check, compact, end what others hold.
        const ADMIN = 1 << 5;
    }
}

impl Rights {
    /// All that can be done with a cache.
    pub const CACHE: Rights = Rights::ADMIN.complement();

    /// The verbs, each with the word for it.
    pub const VERBS: [(&'static str, Rights); 6] = [
        ("read", Rights::READ),
        ("write", Rights::WRITE),
        ("delete", Rights::DELETE),
        ("scan", Rights::SCAN),
        ("clear", Rights::CLEAR),
        ("admin", Rights::ADMIN),
    ];

    /// The words for the verbs in it.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Rights::VERBS.into_iter().filter(move |(_, verb)| self.contains(*verb)).map(|(word, _)| word)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_empty() {
            true => f.write_str("nothing"),
            false => f.write_str(&self.words().collect::<Vec<_>>().join("+")),
        }
    }
}

impl FromStr for Rights {
    type Err = String;

    /// Reads `read+write`.
    fn from_str(text: &str) -> Result<Rights, String> {
        let verb = |word: &str| {
            let found = Rights::VERBS.into_iter().find(|(known, _)| *known == word);
            found.map(|(_, verb)| verb).ok_or_else(|| {
                let known = Rights::VERBS.map(|(known, _)| known).join(", ");
                format!("{word:?} is none of the verbs: {known}")
            })
        };
        text.split('+').map(str::trim).map(verb).try_fold(Rights::empty(), |all, verb| Ok(all | verb?))
    }
}
