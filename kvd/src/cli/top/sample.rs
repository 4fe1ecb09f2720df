//! Asks the daemon once a second, also while it is away.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{ClientInfo, Error, HotKey, Metric};

use super::model::Model;
use crate::cli::failure::Failure;

/// Time from one question to the next.
pub(super) const EVERY: Duration = Duration::from_secs(1);
/// Hottest keys that are asked for; more do not fit any screen.
const KEYS: u32 = 100;

/// What the daemon said at one moment.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) metrics: Vec<Metric>,
    pub(super) clients: Vec<ClientInfo>,
    pub(super) keys: Vec<HotKey>,
}

/// Asks now.
pub(super) fn ask(client: &Client) -> Result<Sample, Error> {
    let admin = client.admin();
    let metrics = admin.stats()?;
    let at = kvd::clock::Clock::system().instant();
    // An older daemon does not know this request; everything else is shown nevertheless.
    let keys = match admin.hottest(None, KEYS) {
        Ok(keys) => keys,
        Err(error) if error.kind() == kv_client::ErrorKind::Protocol => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Sample { at, metrics, clients: admin.clients()?, keys })
}

/// A thread that asks, and what it was answered. The thread ends when this is dropped.
pub(super) struct Sampler {
    samples: Receiver<Result<Sample, Error>>,
    _until_dropped: Sender<()>,
}

impl Sampler {
    pub(super) fn start(client: Client) -> Result<Sampler, Failure> {
        let (give, samples) = channel();
        let (until_dropped, dropped) = channel::<()>();
        let work = move || {
            let clock = kvd::clock::Clock::system();
            let mut next = clock.instant();
            loop {
                let sample = ask(&client);
                if give.send(sample).is_err() {
                    return;
                }
                next = (next + EVERY).max(clock.instant());
                match dropped.recv_timeout(next.saturating_duration_since(clock.instant())) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        std::thread::Builder::new()
            .name("kvd-top-ask".to_owned())
            .spawn(work)
            .map_err(|source| Failure::Input { what: "no thread is to be had".to_owned(), source })?;
        Ok(Sampler { samples, _until_dropped: until_dropped })
    }

    /// Hands over what has come, unless the picture is held; whether there was something.
    pub(super) fn take(&self, model: &mut Model, is_held: bool) -> bool {
        let mut is_new = false;
        while let Ok(sample) = self.samples.try_recv() {
            if is_held {
                continue;
            }
            is_new = true;
            match sample {
                Ok(sample) => model.take(sample),
                Err(error) => model.away(error.to_string()),
            }
        }
        is_new
    }
}
