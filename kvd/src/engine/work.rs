//! Work that takes longer than a request may: answered by as many frames as it takes.
//!
//! `apply` begins it for a session, whose connection asks for the next frame as long as there is work. It stops when the
//! connection does. It must never keep anybody else waiting.

use std::sync::mpsc::Receiver;

use kv_proto::wire::{Response, encode_into};

use super::backup::Sending;
use super::{Engine, Session};
use crate::store::CompactionNews;

/// What a session is at.
pub(super) enum Work {
    /// A backup is being sent.
    Backup(Box<Sending>),
    /// The store is being compacted.
    Compaction(Receiver<CompactionNews>),
}

impl Engine {
    /// Appends the next frame of what a session is at; waits a moment for it.
    pub fn go_on(&self, session: &mut Session, out: &mut Vec<u8>) {
        let start = out.len();
        let gone_on = match &mut session.work {
            None => return,
            Some(Work::Backup(sending)) => self.send_part(sending, out),
            Some(Work::Compaction(news)) => Engine::tell_compaction(news, out),
        };
        match gone_on {
            Ok(true) => {}
            Ok(false) => session.work = None,
            Err(failure) => {
                session.work = None;
                out.truncate(start);
                encode_into(out, &Response::Error(failure.to_wire()));
            }
        }
    }
}

impl Session {
    /// Whether it is at something that takes more frames.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.work.is_some()
    }
}
