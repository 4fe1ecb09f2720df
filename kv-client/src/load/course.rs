//! What a load passes through, and what its end means to those who wait: types that both clients share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::Version;

use super::entry::LoadOptions;
use super::fill::Fill;
use crate::answers::Entry;
use crate::codec::{Codec, Decoded};
use crate::error::{Error, Result};
use crate::observe::{Event, Source};
use crate::options::{PutOptions, Settings};
use crate::scope::Scope;
use crate::shared::Seat;

/// A value for callers, whole and shared.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) source: Source,
    pub(crate) is_stale: bool,
    /// How long it still lives; `None`: for ever.
    pub(crate) left: Option<Duration>,
    pub(crate) stale_for: Duration,
    pub(crate) tags: Vec<Vec<u8>>,
    /// The version of a stored item.
    pub(crate) version: Option<Version>,
}

impl Served {
    pub(crate) fn of_entry(entry: Entry, source: Source) -> Served {
        let is_stale = entry.is_stale();
        Served {
            left: entry.left(),
            is_stale,
            source,
            stale_for: entry.stale_for,
            version: Some(entry.version),
            tags: entry.tags,
            bytes: entry.value.into(),
        }
    }

    pub(crate) fn loaded(bytes: Arc<[u8]>) -> Served {
        Served {
            bytes,
            source: Source::Loader,
            is_stale: false,
            left: None,
            stale_for: Duration::ZERO,
            tags: Vec::new(),
            version: None,
        }
    }

    /// Notes in a scope that it was used.
    pub(crate) fn note(&self, scope: Option<&Scope>) {
        if let Some(scope) = scope {
            // What is stale is over already.
            let left = if self.is_stale { Some(Duration::ZERO) } else { self.left };
            scope.used(left, self.stale_for, &self.tags);
        }
    }
}

/// What a loader came to, encoded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) bytes: Vec<u8>,
    /// How it is to be put; `None`: not at all.
    pub(crate) put: Option<PutOptions>,
    /// Life and tags, whether it is put or not.
    pub(crate) options: PutOptions,
}

impl Loaded {
    pub(crate) fn served(&self) -> Served {
        // What is not kept is true at this moment alone: nothing made of it may be kept either.
        let kept = self.put.is_some();
        Served {
            left: if kept { self.options.ttl } else { Some(Duration::ZERO) },
            stale_for: if kept { self.options.stale_for } else { Duration::ZERO },
            tags: self.options.tags.clone(),
            ..Served::loaded(self.bytes.as_slice().into())
        }
    }
}

/// The last thing an answer of the caller's loader goes through: encoded, and with all that was said about it.
pub(crate) fn conclude<T>(
    value: Option<&T>,
    fill: &Fill<T>,
    codec: Codec<T>,
    options: &LoadOptions,
    keep: bool,
    took: Duration,
) -> Result<Loaded> {
    let said = fill.said();
    let mut put = options.put.clone();
    put.load_cost = took;
    put.tags.extend(said.tags);
    put.stale_for = said.stale_for.unwrap_or(put.stale_for);
    let (bytes, ttl, is_kept) = match value {
        Some(value) => (codec.encode(value)?, said.ttl.or(put.ttl), keep && !said.do_not_store),
        None => {
            let ttl = said.ttl.or(options.negative_ttl);
            (codec.negative()?, ttl, ttl.is_some() && !said.do_not_store)
        }
    };
    put.ttl = ttl;
    Ok(Loaded { bytes, put: is_kept.then(|| put.clone()), options: put })
}

/// How a load ended.
#[derive(Debug, Clone)]
pub(crate) enum Landing {
    /// With a value for all who waited.
    Value(Served),
    /// Something newer happened to the key meanwhile: the value is for the one who led, the others look again.
    Overtaken(Served),
    Failed(Error),
}

/// What who leads a load waits for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Stage {
    /// For the daemon.
    #[default]
    Asks,
    /// For its loader, or for what the daemon said to be used.
    Loads,
    /// For its loader since then, because the daemon did not answer.
    LoadsAlone(Instant),
}

impl Stage {
    /// What comes after the daemon was asked.
    pub(crate) fn after<T>(asked: &Result<T>) -> Stage {
        match asked {
            Err(error) if error.is_outage() => Stage::LoadsAlone(Instant::now()),
            Ok(_) | Err(_) => Stage::Loads,
        }
    }
}

/// How far a load is, for those who wait for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    /// What may be served meanwhile.
    pub(crate) stale: Option<Served>,
    pub(crate) landing: Option<Landing>,
}

/// How long the daemon has for the question whether a lease is free after a `wait` in vain: what is left of a call's time.
pub(crate) fn last_answer_within(op_timeout: Duration, wait: Duration) -> Duration {
    op_timeout.saturating_sub(wait).max(op_timeout / 10)
}

/// What a caller who waits does next.
#[derive(Debug)]
pub(crate) enum Turn {
    Take(Served),
    /// It was not the leader, and what it waited for is outdated.
    LookAgain(Served),
    Fail(Error),
    /// Nothing yet: wait until then, `None`: as long as it takes.
    Wait(Option<Instant>),
    /// The wait is over, in vain.
    GiveUp,
}

/// How long one caller waits, for what.
#[derive(Debug)]
pub(crate) struct Patience {
    leads: bool,
    /// What the caller itself saw.
    pub(crate) stale: Option<Served>,
    /// From here on a stale value does.
    soft: Instant,
    /// Here its patience ends.
    hard: Option<Instant>,
    /// Its patience with somebody else's load; `None`: it leads.
    others: Option<Others>,
}

#[derive(Debug)]
struct Others {
    wait: Duration,
    until: Instant,
    /// So much longer while that one asks, so that the daemon's silence is noticed by one and not by all.
    grace: Duration,
}

impl Patience {
    /// `wait`: how long it waits for somebody else's load.
    pub(crate) fn new(leads: bool, stale: Option<Served>, options: &LoadOptions, wait: Duration) -> Patience {
        let now = Instant::now();
        Patience {
            leads,
            stale,
            soft: now + options.soft_timeout.unwrap_or(Duration::ZERO),
            hard: options.hard_timeout.map(|hard| now + hard),
            others: (!leads).then(|| Others {
                wait,
                until: now + wait,
                // The wait is nine tenths of a call's time, and the one who asks has had all of it by then.
                grace: if options.wait.is_none() { wait / 8 } else { Duration::ZERO },
            }),
        }
    }

    /// When it is over. The wait for a load that the daemon did not answer begins with the load: whoever gave up before would
    /// ask in vain too, and load beside it.
    fn ends(&self, stage: Stage) -> Option<Instant> {
        let others = self.others.as_ref().map(|others| match stage {
            Stage::Asks => others.until + others.grace,
            Stage::Loads => others.until,
            Stage::LoadsAlone(since) => others.until.max(since + others.wait),
        });
        [self.hard, others].into_iter().flatten().min()
    }

    /// Whether its hard timeout is over, whoever loads.
    pub(crate) fn has_run_out(&self) -> bool {
        self.hard.is_some_and(|hard| Instant::now() >= hard)
    }

    pub(crate) fn turn(&self, progress: &Progress) -> Turn {
        match &progress.landing {
            Some(Landing::Value(served)) => return Turn::Take(served.clone()),
            Some(Landing::Overtaken(served)) if self.leads => return Turn::Take(served.clone()),
            Some(Landing::Overtaken(served)) => return Turn::LookAgain(served.clone()),
            // What it had when it came is better than an error.
            Some(Landing::Failed(error)) => {
                return self.stale.clone().map_or_else(|| Turn::Fail(error.clone()), Turn::Take);
            }
            None => {}
        }
        let now = Instant::now();
        let ends = self.ends(progress.stage);
        let is_over = ends.is_some_and(|ends| now >= ends);
        match self.stale.as_ref().or(progress.stale.as_ref()) {
            // What is shown while it is reloaded ahead of its end is as good as any.
            Some(stale) if !stale.is_stale || now >= self.soft || is_over => Turn::Take(stale.clone()),
            Some(_) => Turn::Wait(Some(ends.map_or(self.soft, |ends| ends.min(self.soft)))),
            None if is_over => Turn::GiveUp,
            None => Turn::Wait(ends),
        }
    }
}

/// The error for those who waited for a loader that panicked, or whose runtime ended.
pub(crate) fn loader_vanished(cache: &str, key: &[u8]) -> Error {
    loader_failed(cache, key, Arc::from(Box::<dyn std::error::Error + Send + Sync>::from("it did not end")))
}

/// Says that what was loaded could not be stored. Its caller has it all the same.
pub(crate) fn not_stored(seat: &Seat, settings: &Settings, because: &Error) {
    tracing::warn!(cache = seat.name(), error = %because, "what was loaded could not be stored");
    seat.loads().not_stored();
    settings.observer.observe(&Event::NotStored { cache: seat.name(), because });
}

/// The error of a loader that failed.
pub(crate) fn loader_failed(
    cache: &str,
    key: &[u8],
    source: Arc<dyn std::error::Error + Send + Sync>,
) -> Error {
    Error::Loader { cache: cache.into(), key: key.escape_ascii().to_string().into(), source }
}

/// Decodes what was served, or says that it is nothing to this type.
pub(crate) fn decode<T>(
    codec: Codec<T>,
    served: &[u8],
    seat: &Seat,
    settings: &Settings,
) -> Option<Decoded<T>> {
    let decoded = codec.decode(served);
    if decoded.is_none() {
        seat.loads().undecodable();
        settings.observer.observe(&Event::Undecodable { cache: seat.name() });
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(text: &str) -> Served {
        Served::loaded(text.as_bytes().into())
    }

    fn options(soft: Option<u64>, hard: Option<u64>) -> LoadOptions {
        LoadOptions {
            soft_timeout: soft.map(Duration::from_millis),
            hard_timeout: hard.map(Duration::from_millis),
            ..LoadOptions::with_ttl(None)
        }
    }

    #[test]
    fn who_has_something_stale_waits_no_longer_than_the_soft_timeout() {
        let progress = Progress::default();
        let wait = Duration::from_secs(60);
        let served = |text| Served { is_stale: true, ..served(text) };
        let at_once = Patience::new(true, Some(served("old")), &options(None, None), wait);
        assert!(matches!(at_once.turn(&progress), Turn::Take(_)));
        let later = Patience::new(true, Some(served("old")), &options(Some(60_000), None), wait);
        assert!(matches!(later.turn(&progress), Turn::Wait(Some(_))));
        let with_hard = Patience::new(true, Some(served("old")), &options(Some(60_000), Some(0)), wait);
        assert!(matches!(with_hard.turn(&progress), Turn::Take(_)), "the hard timeout holds always");
        let ahead = Progress {
            stale: Some(Served { is_stale: false, ..served("still good") }),
            ..Progress::default()
        };
        let patient = Patience::new(true, None, &options(Some(60_000), None), wait);
        assert!(matches!(patient.turn(&ahead), Turn::Take(_)), "nobody waits for a reload ahead of the end");
    }

    #[test]
    fn who_leads_waits_for_its_own_loader_and_others_as_long_as_they_said() {
        let progress = Progress::default();
        let leads = Patience::new(true, None, &options(None, None), Duration::ZERO);
        assert!(matches!(leads.turn(&progress), Turn::Wait(None)));
        let joins = Patience::new(false, None, &options(None, None), Duration::ZERO);
        let loads = Progress { stage: Stage::Loads, ..Progress::default() };
        assert!(matches!(joins.turn(&loads), Turn::GiveUp));
    }

    /// They used to ask a daemon that does not answer once more, each for all the time of a call, and then loaded beside each other.
    #[test]
    fn who_waits_for_somebody_that_the_daemon_does_not_answer_waits_for_its_load() {
        let at = |stage| Progress { stage, ..Progress::default() };
        let now = Instant::now();
        let joins = Patience::new(false, None, &options(None, None), Duration::ZERO);
        assert!(matches!(joins.turn(&at(Stage::LoadsAlone(now))), Turn::GiveUp));
        let wait = Duration::from_secs(60);
        let joins = Patience::new(false, None, &options(None, None), wait);
        let end = |stage| match joins.turn(&at(stage)) {
            Turn::Wait(Some(until)) => until,
            turn => panic!("it waits, and does not {turn:?}"),
        };
        assert!(
            end(Stage::Asks) >= end(Stage::Loads) + wait / 9,
            "until the other one has asked for all its time"
        );
        let later = now + Duration::from_secs(30);
        assert_eq!(end(Stage::LoadsAlone(later)), later + wait);
        let brief = Patience::new(false, None, &options(None, Some(0)), wait);
        assert!(matches!(brief.turn(&at(Stage::Asks)), Turn::GiveUp), "the hard timeout holds always");
    }

    #[test]
    fn a_failed_load_shows_what_its_caller_had() {
        let landing = Some(Landing::Failed(loader_vanished("c", b"k")));
        let progress = Progress { landing, ..Progress::default() };
        let had = Patience::new(true, Some(served("old")), &options(None, None), Duration::ZERO);
        assert!(matches!(had.turn(&progress), Turn::Take(_)));
        let had_nothing = Patience::new(true, None, &options(None, None), Duration::ZERO);
        assert!(matches!(had_nothing.turn(&progress), Turn::Fail(_)));
    }

    #[test]
    fn a_hard_timeout_has_run_out_whoever_loads_and_another_wait_has_not() {
        let wait = Duration::ZERO;
        assert!(Patience::new(false, None, &options(None, Some(0)), wait).has_run_out());
        assert!(!Patience::new(false, None, &options(None, Some(60_000)), wait).has_run_out());
        assert!(!Patience::new(false, None, &options(None, None), wait).has_run_out());
    }

    #[test]
    fn what_was_overtaken_is_for_its_leader_alone() {
        let landing = Some(Landing::Overtaken(served("old")));
        let progress = Progress { landing, ..Progress::default() };
        let wait = Duration::from_secs(60);
        assert!(matches!(
            Patience::new(true, None, &options(None, None), wait).turn(&progress),
            Turn::Take(_)
        ));
        let joined = Patience::new(false, None, &options(None, None), wait);
        assert!(matches!(joined.turn(&progress), Turn::LookAgain(_)));
    }
}
