//! Who holds and who waits, for `kvd locks`.

use std::time::Instant;

use kv_proto::wire::{Bytes, Response, TransactionInfo, encode_into};

use super::{Engine, Session};
use crate::txn::{Mode, Need, Number, Party, PartyKind, Resource, Who};

/// Transactions listed, the oldest. More are left out.
const LISTED_MAX: usize = 256;
/// Locks named of one transaction, and others named that it waits for. More are only counted, or left out.
const NAMED_MAX: usize = 8;

/// What is listed of a party, taken under the mutex and worded outside it.
struct Listed {
    number: Number,
    who: Who,
    kind: PartyKind,
    open_ms: u64,
    quiet_ms: u64,
    held: usize,
    holds: Vec<Need>,
    waits: Option<(Resource, Mode, u64)>,
    behind: Vec<Number>,
}

impl Engine {
    /// Answers `transactions`.
    pub(super) fn list_transactions(&self, session: &Session, out: &mut Vec<u8>) {
        let listed = self.take_list();
        // What is locked in a cache that the caller may not scan is not named.
        let name = |resource: &Resource| match resource {
            Resource::Cache(id) | Resource::Key(id, _) | Resource::Lease(id, _)
                if !self.may_scan(session, *id) =>
            {
                "a cache of others".to_owned()
            }
            Resource::Database
            | Resource::Cache(_)
            | Resource::Key(..)
            | Resource::Lease(..)
            | Resource::Name(_) => self.name_of(resource),
        };
        let named: Vec<_> = listed
            .iter()
            .map(|party| {
                let holds: Vec<_> = party
                    .holds
                    .iter()
                    .map(|(resource, mode)| (label(resource, *mode), name(resource)))
                    .collect();
                let waits = party
                    .waits
                    .as_ref()
                    .map(|(resource, mode, ms)| (label(resource, *mode), name(resource), *ms));
                (holds, waits)
            })
            .collect();
        let infos = listed.iter().zip(&named).map(|(party, (holds, waits))| TransactionInfo {
            transaction: party.number,
            client: party.who.client,
            name: &party.who.name,
            pid: party.who.pid,
            kind: match party.kind {
                PartyKind::Transaction { read_only: false } => "transaction",
                PartyKind::Transaction { read_only: true } => "snapshot",
                PartyKind::Write => "write",
                PartyKind::Load => "load",
                PartyKind::Lock => "lock",
            },
            open_ms: party.open_ms,
            quiet_ms: party.quiet_ms,
            held: party.held as u64,
            holds: holds.iter().map(|(mode, name)| (*mode, Bytes(name.as_bytes()))).collect(),
            waits: waits.as_ref().map(|(mode, name, ms)| (*mode, Bytes(name.as_bytes()), *ms)),
            behind: party.behind.clone(),
        });
        encode_into(
            out,
            &Response::Transactions { mode: self.locking.name(), transactions: infos.collect() },
        );
    }

    fn take_list(&self) -> Vec<Listed> {
        let state = self.lock();
        let now = self.clock.instant();
        let ms = |since: Instant| {
            u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX)
        };
        let mut parties: Vec<(Number, &Party)> =
            state.locks.parties().filter(|(_, party)| party.doom().is_none()).collect();
        parties.sort_by_key(|(number, party)| (party.age, *number));
        parties.truncate(LISTED_MAX);
        let listed = parties.into_iter().map(|(number, party)| Listed {
            number,
            who: party.who.clone(),
            kind: party.kind,
            open_ms: ms(party.began),
            quiet_ms: if party.is_busy { 0 } else { ms(party.quiet_since) },
            held: party.held().len(),
            holds: party.held().iter().take(NAMED_MAX).cloned().collect(),
            waits: party.waits().map(|(resource, mode, since)| (resource.clone(), *mode, ms(*since))),
            behind: state.locks.waits_for(number).into_iter().take(NAMED_MAX).collect(),
        });
        listed.collect()
    }
}

fn label(resource: &Resource, mode: Mode) -> &'static str {
    match resource {
        Resource::Database | Resource::Cache(_) | Resource::Key(..) => label_of_mode(mode),
        Resource::Lease(..) => "loads",
        Resource::Name(_) => "has",
    }
}

fn label_of_mode(mode: Mode) -> &'static str {
    match mode {
        Mode::IntentShared => "reads in",
        Mode::IntentExclusive => "writes in",
        Mode::Shared => "reads",
        Mode::SharedIntentExclusive => "reads all of, writes in",
        Mode::Exclusive => "writes",
    }
}
