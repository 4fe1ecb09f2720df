//! What admins ask of the daemon itself: stop, reload, restart. The engine only checks who asks and passes it on.
//!
//! Called by `apply`. The orders are carried out by the main thread of `cli::serve`; an embedded engine has none, and says so.

use std::sync::Arc;

use kv_proto::wire::{ErrorKind, Response, Restart, encode_into};

use super::{Engine, Failure, Session};
use crate::lock::lock_path;
use crate::orders::{ANSWER_WITHIN, Declined, Order, Orders};
use crate::units::cut_text;

/// Longest text of a change or a reason in an answer, in bytes. Beyond: cut.
const TEXT_BYTES_MAX: usize = kv_proto::limits::ERROR_MESSAGE_BYTES_MAX;

impl Engine {
    /// What the main thread is asked to do.
    #[must_use]
    pub fn orders(&self) -> &Arc<Orders> {
        &self.orders
    }

    pub(super) fn shut_down(&self, out: &mut Vec<u8>) -> Result<(), Failure> {
        self.orders.give(Order::Stop("a request")).map_err(declined)?;
        let lock = lock_path(&self.config.dir);
        encode_into(out, &Response::Stopping { pid: std::process::id(), lock: &lock.to_string_lossy() });
        Ok(())
    }

    pub(super) fn reload(&self, session: &Session, out: &mut Vec<u8>) -> Result<(), Failure> {
        session.must_be_outside("a reload")?;
        let outcome = self.orders.reload().map_err(declined)?.recv_timeout(ANSWER_WITHIN);
        let reloaded = outcome
            .map_err(|_| {
                Failure::new(ErrorKind::Timeout, "the daemon is busy with another order; try again")
            })?
            .map_err(|problem| Failure::new(ErrorKind::Config, problem))?;
        let lines = |lines: &'_ [String]| -> Vec<String> {
            lines.iter().map(|line| cut_text(line, TEXT_BYTES_MAX).to_owned()).collect()
        };
        let (applied, needs) = (lines(&reloaded.applied), lines(&reloaded.needs_restart));
        let applied = applied.iter().map(String::as_str).collect();
        let needs_restart = needs.iter().map(String::as_str).collect();
        encode_into(out, &Response::Reloaded { applied, needs_restart });
        Ok(())
    }

    pub(super) fn restart(&self, clear: &[&str], out: &mut Vec<u8>) -> Result<(), Failure> {
        // Before anything begins: a mistyped name is not worth a restart.
        clear.iter().try_for_each(|name| self.cache(name).map(drop))?;
        let clear = clear.iter().map(|name| (*name).to_owned()).collect();
        let number = self.orders.restart(clear).map_err(declined)?;
        encode_into(out, &Response::Restarting { number });
        Ok(())
    }

    pub(super) fn last_restart(&self, out: &mut Vec<u8>) {
        let report = self.orders.last_restart();
        let restart = Restart {
            number: report.number,
            state: report.state,
            message: cut_text(&report.message, TEXT_BYTES_MAX),
            pid: report.pid,
            paused_us: report.paused_us,
            took_ms: report.took_ms,
            items: report.items,
            bytes: report.bytes,
        };
        encode_into(out, &Response::Restarted(restart));
    }
}

fn declined(why: Declined) -> Failure {
    match why {
        Declined::Embedded => Failure::new(ErrorKind::Config, why.to_string()),
        Declined::Busy => Failure::unavailable(why.to_string(), 1_000),
        Declined::Restarting(_) => Failure::new(ErrorKind::Conflict, why.to_string()),
    }
}
