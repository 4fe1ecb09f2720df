//! The processes of one run, as their parent has them: started, told when to begin, heard with a deadline, killed by
//! their ids if they do not answer.
//!
//! Called by `turns` and `trials`. Nothing here waits without a limit: whatever a mechanism does to its processes, the
//! lab goes on.

use std::io::{BufRead, Write};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use super::worker::WorkerSpec;
use crate::BenchError;
use crate::client::{Moments, moments_line};
use crate::clock::now_ns;
use crate::fleet::{Process, last_words};

/// How long opening a mechanism may take, with others doing the same.
pub(super) const READY_TIME_MAX: Duration = Duration::from_secs(15);

/// Why a process did not say what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silence {
    /// It did not answer in time.
    Hung,
    /// It ended, and said this last.
    Died(String),
}

impl Silence {
    pub(super) fn words(&self) -> String {
        match self {
            Silence::Hung => "hung".to_owned(),
            Silence::Died(what) => what.clone(),
        }
    }
}

/// A process; killed when dropped.
#[derive(Debug)]
pub(super) struct Member {
    child: Child,
    said: Receiver<String>,
}

impl Member {
    pub(super) fn start(spec: &WorkerSpec) -> Result<Member, BenchError> {
        let spec = serde_json::to_string(spec).expect("a spec has only numbers and a path of ours");
        let (child, mut output) = Process { role: "locking-worker", spec }.spawn()?;
        let (tell, said) = channel();
        let listen = move || {
            let mut line = String::new();
            while matches!(output.read_line(&mut line), Ok(1..)) {
                if tell.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("lab-listener".to_owned())
            .spawn(listen)
            .map_err(BenchError::io("starting a thread"))?;
        Ok(Member { child, said })
    }

    /// Waits until it has opened its mechanism.
    pub(super) fn await_ready(&mut self, deadline_ns: u64) -> Result<(), Silence> {
        match self.line(deadline_ns)?.trim_end() {
            "ready" => Ok(()),
            other => Err(Silence::Died(format!("it said {other:?}"))),
        }
    }

    /// Tells it when to begin and when to end; what it does with that, it says later.
    pub(super) fn tell(&mut self, moments: Moments) {
        if let Some(input) = self.child.stdin.as_mut() {
            // One that is gone is noticed when it says nothing.
            drop(input.write_all(moments_line(moments).as_bytes()));
        }
    }

    /// What it reports.
    pub(super) fn report<T: DeserializeOwned>(&mut self, deadline_ns: u64) -> Result<T, Silence> {
        let line = self.line(deadline_ns)?;
        serde_json::from_str(&line).map_err(|error| Silence::Died(format!("it reported nonsense: {error}")))
    }

    fn line(&mut self, deadline_ns: u64) -> Result<String, Silence> {
        let rest = Duration::from_nanos(deadline_ns.saturating_sub(now_ns()));
        match self.said.recv_timeout(rest) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(Silence::Hung),
            Err(RecvTimeoutError::Disconnected) => {
                self.kill();
                Err(Silence::Died(last_words(&mut self.child)))
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It is a child that was not waited for: its id is its own, and one that has ended takes no harm.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Whether a signal has stopped it.
    pub(super) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Ends it, whatever it is doing.
    pub(super) fn kill(&mut self) {
        // Both may find it gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts them, and gives them back when all of them are ready.
pub(super) fn assemble(specs: &[WorkerSpec]) -> Result<Vec<Member>, Silence> {
    let started = specs.iter().map(Member::start).collect::<Result<Vec<_>, _>>();
    let mut members = started.map_err(|error| Silence::Died(error.to_string()))?;
    let deadline_ns = now_ns() + READY_TIME_MAX.as_nanos() as u64;
    members.iter_mut().try_for_each(|member| member.await_ready(deadline_ns))?;
    Ok(members)
}

/// Moments that begin as soon as everybody can have been told.
pub(super) fn moments(warm_up: Duration, time: Duration) -> Moments {
    const TELLING: Duration = Duration::from_millis(10);
    let start_ns = now_ns() + TELLING.as_nanos() as u64;
    let measure_ns = start_ns + warm_up.as_nanos() as u64;
    Moments { start_ns, measure_ns, end_ns: measure_ns + time.as_nanos() as u64 }
}
