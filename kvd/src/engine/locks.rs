//! Who holds and who waits, for `kvd locks`.

use kv_proto::wire::{Bytes, Response, TransactionInfo, encode_into};

use super::Engine;
use crate::txn::{Mode, Party, PartyKind};

/// Locks named of one transaction. More are only counted.
const NAMED_MAX: usize = 8;

impl Engine {
    /// Answers `transactions`.
    pub(super) fn list_transactions(&self, out: &mut Vec<u8>) {
        let now = self.clock.instant();
        let state = self.lock();
        let mut parties: Vec<_> = state.locks.parties().filter(|(_, party)| party.doom().is_none()).collect();
        parties.sort_by_key(|(number, party)| (party.age, *number));
        let named: Vec<_> = parties.iter().map(|(_, party)| self.names_of(party)).collect();
        let ms = |since: std::time::Instant| u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
        let infos = parties.iter().zip(&named).map(|((number, party), (holds, waits))| TransactionInfo {
            transaction: *number,
            client: party.who.client,
            name: &party.who.name,
            pid: party.who.pid,
            kind: match party.kind {
                PartyKind::Transaction { read_only: false } => "transaction",
                PartyKind::Transaction { read_only: true } => "snapshot",
                PartyKind::Write => "write",
            },
            open_ms: ms(party.began),
            quiet_ms: if party.is_busy { 0 } else { ms(party.quiet_since) },
            held: party.held().len() as u64,
            holds: holds.iter().map(|(mode, name)| (*mode, Bytes(name.as_bytes()))).collect(),
            waits: waits
                .as_ref()
                .zip(party.waits())
                .map(|((mode, name), (.., since))| (*mode, Bytes(name.as_bytes()), ms(*since))),
            behind: state.locks.waits_for(*number),
        });
        encode_into(
            out,
            &Response::Transactions { mode: self.locking.name(), transactions: infos.collect() },
        );
    }

    fn names_of(&self, party: &Party) -> (Vec<(&'static str, String)>, Option<(&'static str, String)>) {
        let holds = party.held().iter().take(NAMED_MAX);
        (
            holds.map(|(resource, mode)| (label(*mode), self.name_of(resource))).collect(),
            party.waits().map(|(resource, mode, _)| (label(*mode), self.name_of(resource))),
        )
    }
}

fn label(mode: Mode) -> &'static str {
    match mode {
        Mode::IntentShared => "reads in",
        Mode::IntentExclusive => "writes in",
        Mode::Shared => "reads",
        Mode::SharedIntentExclusive => "reads all of, writes in",
        Mode::Exclusive => "writes",
    }
}
