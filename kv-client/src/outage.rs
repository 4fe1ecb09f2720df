//! What a client knows of a daemon that is away: how long calls still wait for it, when they fail at once, and who looks
//! whether it is back.
//!
//! A circuit breaker. While the daemon may be restarting (`restart_grace`) calls wait. After that, or when it did not answer
//! a whole call, the breaker is open: calls fail at once, and one thread of this process looks for the daemon, with growing pauses and
//! jitter, so that neither a caller pays for the looking nor the workers of a host come back together. It delivers what was
//! not delivered ([`Undelivered`]) before it lets calls through again, and ends. Used by both clients; holds no lock while it
//! waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::blocking::Connection;
use crate::error::Error;
use crate::limits::{PROBE_PAUSE_FIRST, PROBE_PAUSE_MAX};
use crate::load::course::Served;
use crate::load::standby::Standby;
use crate::lock::Lock;
use crate::observe::Event;
use crate::options::Settings;
use crate::undelivered::Undelivered;

/// One process's view of the daemon.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    ever_connected: AtomicBool,
    /// Answers so far, whoever got them.
    answers: AtomicU64,
    /// `state` says that calls are to fail; read before every call.
    is_open: AtomicBool,
    state: Lock<State>,
    undelivered: Undelivered,
    /// What this process loads meanwhile.
    pub(crate) standby: Standby,
}

/// A moment of an outage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    answers: u64,
    invalidations: u64,
}

#[derive(Debug, Default)]
struct State {
    away_since: Option<Instant>,
    /// What calls fail with while the breaker is open.
    because: Option<Error>,
    /// Somebody looks for the daemon.
    is_probed: bool,
}

impl Outage {
    /// The view of a forked child, which has heard of the daemon from its parent but has no connection of its own.
    pub(crate) fn begin_anew(&self) -> Outage {
        let anew = Outage::default();
        anew.ever_connected.store(self.ever_connected.load(Ordering::Relaxed), Ordering::Relaxed);
        anew
    }

    /// Before a call: fails while the breaker is open.
    pub(crate) fn admit(&self) -> Result<(), Error> {
        if !self.is_open.load(Ordering::Acquire) {
            return Ok(());
        }
        self.state.lock().because.clone().map_or(Ok(()), Err)
    }

    /// Whether calls fail at once.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// A connection was made.
    pub(crate) fn over(&self, settings: &Settings) {
        self.ever_connected.store(true, Ordering::Relaxed);
        let since = {
            let mut state = self.state.lock();
            if state.is_probed && !self.undelivered.is_empty() {
                // Whoever looks for the daemon delivers first: nobody is to read here what was invalidated here.
                return;
            }
            state.because = None;
            self.standby.clear();
            self.is_open.store(false, Ordering::Release);
            state.away_since.take()
        };
        if let Some(since) = since {
            tracing::info!(after = ?since.elapsed(), "the daemon is back");
            settings.observer.observe(&Event::OutageOver { after: since.elapsed() });
        }
    }

    /// Nobody is there: whether calls still wait for a daemon that was. Where none ever was, nobody waits.
    pub(crate) fn has_grace(&self, grace: Duration, error: &Error) -> bool {
        if !self.ever_connected.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock();
        let has_grace = state.away_since.get_or_insert_with(Instant::now).elapsed() < grace;
        if !has_grace {
            state.because.get_or_insert_with(|| error.clone().of_unsent());
        }
        has_grace
    }

    /// Whether there ever was one.
    pub(crate) fn was_there(&self) -> bool {
        self.ever_connected.load(Ordering::Relaxed)
    }

    /// Counts an answer, whatever it says.
    pub(crate) fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.standby.clear();
    }

    /// When a load without the daemon begins; for [`Outage::keep`] and [`Outage::is_overtaken`].
    pub(crate) fn moment(&self) -> Moment {
        Moment { answers: self.answers(), invalidations: self.standby.moment() }
    }

    /// Keeps what was loaded since, unless the daemon has answered meanwhile: from then on others may have changed it.
    pub(crate) fn keep(&self, since: Moment, seat: u64, key: &[u8], served: &Served) {
        if self.is_silent_since(since.answers) {
            self.standby.keep(since.invalidations, seat, key, served);
        }
    }

    /// Whether this process invalidated anything since.
    pub(crate) fn is_overtaken(&self, since: Moment) -> bool {
        self.standby.moment() != since.invalidations
    }

    /// How many there were; for [`Outage::is_silent_since`].
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Whether nobody has had an answer since there were so many. One caller's impatience is no proof; a whole wait without
    /// any answer to anybody is.
    pub(crate) fn is_silent_since(&self, answers: u64) -> bool {
        self.answers() == answers
    }

    /// Keeps an invalidation that could not be delivered, and sees to it that it will be. Somebody's own impatience is no reason
    /// to let others fail.
    pub(crate) fn deliver_later(
        self: &Arc<Self>,
        frame: &[u8],
        cache: Option<&str>,
        settings: &Settings,
        because: &Error,
    ) {
        self.undelivered.keep(frame, cache);
        if matches!(because, Error::Timeout { .. }) {
            self.look_for_it(settings);
        } else {
            self.open(settings, because);
        }
    }

    /// Opens the breaker, if calls have waited for nothing: from here on they fail with `because` until the daemon is found.
    pub(crate) fn open(self: &Arc<Self>, settings: &Settings, because: &Error) {
        {
            let mut state = self.state.lock();
            state.away_since.get_or_insert_with(Instant::now);
            state.because = Some(because.clone().of_unsent());
            if self.is_open.swap(true, Ordering::AcqRel) {
                return;
            }
        }
        tracing::warn!(%because, "the daemon is away: calls fail at once until it is back");
        settings.observer.observe(&Event::OutageBegan { because });
        self.look_for_it(settings);
    }

    /// Lets one thread look for the daemon, unless one does: a call that found it closes the breaker before the probe does.
    fn look_for_it(self: &Arc<Self>, settings: &Settings) {
        if std::mem::replace(&mut self.state.lock().is_probed, true) {
            return;
        }
        let (outage, settings) = (Arc::downgrade(self), settings.clone());
        let probe = move || probe(&outage, &settings);
        if std::thread::Builder::new().name("kvd-probe".to_owned()).spawn(probe).is_err() {
            // Without a thread every call looks for itself.
            let mut state = self.state.lock();
            (state.is_probed, state.because) = (false, None);
            self.is_open.store(false, Ordering::Release);
        }
    }
}

/// Looks for the daemon until it is there, or the client is not.
fn probe(outage: &Weak<Outage>, settings: &Settings) {
    let mut pause = PROBE_PAUSE_FIRST;
    loop {
        std::thread::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
        pause = (pause * 2).min(PROBE_PAUSE_MAX);
        let Some(outage) = outage.upgrade() else { return };
        let deadline = Instant::now() + settings.connect_timeout;
        let Ok(mut connection) = Connection::open(settings, deadline) else { continue };
        if outage.undelivered.deliver(&mut connection, settings).is_err() {
            continue;
        }
        outage.over(settings);
        // Under the lock: whoever keeps something after this looks for the daemon himself.
        let mut state = outage.state.lock();
        if outage.undelivered.is_empty() && !outage.is_open() {
            state.is_probed = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Builder;

    fn nobody() -> Error {
        Error::Unreachable { tried: Vec::new() }
    }

    #[test]
    fn nobody_waits_for_a_daemon_that_never_was() {
        let outage = Outage::default();
        assert!(!outage.has_grace(Duration::from_secs(2), &nobody()));
        outage.over(&Builder::<()>::new().settings);
        assert!(outage.has_grace(Duration::from_secs(2), &nobody()));
        assert!(!outage.has_grace(Duration::ZERO, &nobody()));
    }

    #[test]
    fn an_open_breaker_fails_calls_until_the_daemon_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Builder::<()>::new().socket(dir.path().join("kvd.sock")).settings;
        let outage = Arc::new(Outage::default());
        assert!(outage.admit().is_ok());
        outage.open(&settings, &nobody());
        assert!(matches!(outage.admit(), Err(Error::Unreachable { .. })));
        outage.over(&settings);
        assert!(outage.admit().is_ok());
    }

    /// The breaker used to stay closed then, and with a daemon that is stopped each call waited its whole time.
    #[test]
    fn a_daemon_that_goes_away_again_while_it_is_still_looked_for_opens_the_breaker_again() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Builder::<()>::new().socket(dir.path().join("kvd.sock")).settings;
        let outage = Arc::new(Outage::default());
        outage.open(&settings, &nobody());
        outage.over(&settings);
        outage.open(&settings, &nobody());
        assert!(outage.admit().is_err());
    }

    #[test]
    fn a_call_that_finds_the_daemon_does_not_let_others_through_before_the_invalidations() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Builder::<()>::new().socket(dir.path().join("kvd.sock")).settings;
        let outage = Arc::new(Outage::default());
        outage.deliver_later(b"frame", Some("c"), &settings, &nobody());
        outage.over(&settings);
        assert!(outage.admit().is_err());
    }

    #[test]
    fn a_child_knows_that_there_was_a_daemon_but_not_that_it_is_away() {
        let outage = Arc::new(Outage::default());
        let settings = Builder::<()>::new().settings;
        outage.over(&settings);
        outage.open(&settings, &nobody());
        let child = outage.begin_anew();
        assert!(child.admit().is_ok());
        assert!(child.has_grace(Duration::from_secs(2), &nobody()));
    }
}
