//! A stand-in for the engine, so that the server can be built before the engine is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::wire::{ErrorKind, Item, Request, Response, WireError, encode_into};
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;

/// Position in the log.
pub type LogNumber = u64;

/// What one connection reuses.
#[derive(Debug, Default)]
pub struct Session;

impl Session {
    /// An empty one.
    #[must_use]
    pub fn new() -> Session {
        Session
    }
}

/// What came of a request.
#[derive(Debug)]
pub struct Applied {
    /// Must be on stable storage before the answer goes out.
    pub durable: Option<LogNumber>,
    /// The answer is an error of this kind.
    pub failure: Option<ErrorKind>,
}

/// A refused or failed operation.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the caller does next.
    pub kind: ErrorKind,
    /// Names the value and the limit.
    pub message: String,
}

impl Failure {
    /// As the wire carries it.
    #[must_use]
    pub fn to_wire(&self) -> WireError<'_> {
        WireError { kind: self.kind, message: &self.message, maybe_applied: true, retry_after_ms: 1_000 }
    }
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
#[error("it does not start")]
pub struct StartError;

impl StartError {
    /// For the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        78
    }
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    items: Mutex<BTreeMap<Vec<u8>, (Vec<u8>, u64)>>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

impl Engine {
    /// Opens.
    pub fn open(_config: Config, clock: Clock) -> Result<Arc<Engine>, StartError> {
        Ok(Arc::new(Engine { items: Mutex::default(), metrics: Arc::default(), clock }))
    }

    /// Applies.
    pub fn apply(&self, _session: &mut Session, request: &Request<'_>, out: &mut Vec<u8>) -> Applied {
        let mut items = self.items.lock();
        let mut applied = Applied { durable: None, failure: None };
        match request {
            Request::Get { key, .. } => match items.get(*key) {
                Some((value, version)) => {
                    encode_into(out, &Response::Item(Item { value, version: *version, entry: None }));
                }
                None => encode_into(out, &Response::Missing),
            },
            Request::Put { cache, key, value, .. } => {
                let version = items.len() as u64 + 1;
                items.insert(key.to_vec(), (value.to_vec(), version));
                applied.durable = match *cache {
                    "durable" => Some(version),
                    "failing" => Some(u64::MAX),
                    _ => None,
                };
                encode_into(out, &Response::Written { version });
            }
            Request::Scan { .. } => {
                applied.failure = Some(ErrorKind::UnknownCache);
                let error = WireError {
                    kind: ErrorKind::UnknownCache,
                    message: "no",
                    maybe_applied: false,
                    retry_after_ms: 0,
                };
                encode_into(out, &Response::Error(error));
            }
            _ => encode_into(out, &Response::Done),
        }
        applied
    }

    /// Waits.
    pub fn wait_durable(&self, number: LogNumber, _deadline: Instant) -> Result<(), Failure> {
        if number != u64::MAX {
            return Ok(());
        }
        Err(Failure { kind: ErrorKind::StoreFailed, message: "the disk failed".to_owned() })
    }

    /// Closes.
    pub fn close(&self, _deadline: Duration) -> Result<(), Failure> {
        Ok(())
    }

    /// In a line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{} items", self.items.lock().len())
    }

    /// Names the run.
    #[must_use]
    pub fn run_id(&self) -> u64 {
        1
    }

    /// Counts.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Time.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
