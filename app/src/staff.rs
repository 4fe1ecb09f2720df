//! Processes that are kept: one that dies is replaced, all end with whoever started them.
//!
//! From "Building a Large-scale E-commerce Site with Apache and mod_perl" (a parent that serves nobody has no reason to fall) and "Experience feedback in
//! running a SaaS application" (roles of one program, switched on where they are needed). Pitfalls: a crash loop that spins, so the pause before a
//! replacement doubles while it dies young; and children that outlive a parent that was killed, so each asks the kernel for a signal when
//! its parent dies, and looks whether that has happened already.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::Failure;

/// The pause before a process that died is replaced. It doubles while they die young …
const REPLACE_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// … up to this.
const REPLACE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A process that lived so long did not die young.
const YOUNG: Duration = Duration::from_secs(10);
/// How long one may take to finish what it does when it is told to end. Beyond: it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What starting a process of this program takes.
#[derive(Debug)]
pub(crate) struct Job {
    /// For log lines.
    pub(crate) role: &'static str,
    pub(crate) arguments: Vec<OsString>,
    /// What it inherits as its standard input.
    pub(crate) stdin: Option<OwnedFd>,
}

impl Job {
    fn start(&self) -> std::io::Result<Child> {
        let stdin = match &self.stdin {
            Some(socket) => Stdio::from(socket.try_clone()?),
            None => Stdio::null(),
        };
        // Not by its path, where by now there may be another release or nothing. Its own group: Ctrl-C at the terminal is for the parent,
        // who ends the others in order.
        Command::new("/proc/self/exe")
            .arg0("app")
            .args(&self.arguments)
            .stdin(stdin)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

/// Sees to it that a job has a process, until the end has begun.
pub(crate) async fn keep(job: Job, mut ending: watch::Receiver<bool>) {
    let (mut pause, role) = (REPLACE_PAUSE_FIRST, job.role);
    loop {
        let began = Instant::now();
        match job.start() {
            Ok(mut process) => tokio::select! {
                status = process.wait() => match status {
                    Ok(status) => tracing::warn!(role, %status, "a process died and is replaced"),
                    Err(error) => tracing::warn!(role, %error, "a process was lost and is replaced"),
                },
                () = begun(&mut ending) => return end(process, role).await,
            },
            Err(error) => tracing::error!(role, %error, "a process cannot be started"),
        }
        if began.elapsed() > YOUNG {
            pause = REPLACE_PAUSE_FIRST;
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(REPLACE_PAUSE_MAX),
            () = begun(&mut ending) => return,
        }
    }
}

/// Waits until the end has begun.
async fn begun(ending: &mut watch::Receiver<bool>) {
    // A parent that is not there to say so is at its end as well.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// Tells a process to end, and waits until it has.
async fn end(mut process: Child, role: &str) {
    if let Some(pid) = process.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
        // One that has ended by itself need not be told.
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(END_WITHIN, process.wait()).await.is_err() {
        tracing::warn!(role, "a process did not end within {END_WITHIN:?} and is killed");
        let _ = process.kill().await;
    }
}

/// Ends when this process is told to. What is told counts from the call on.
pub(crate) fn told_to_end() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut term = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Failure::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => (),
            _ = int.recv() => (),
        }
    })
}

/// From here on this process is told to end when its parent does.
pub(crate) fn end_with_parent(parent: i32) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| Failure::Signals(error.into()))?;
    // It may have gone before it was said.
    if getppid().map(Pid::as_raw_pid) == Some(parent) { Ok(()) } else { Err(Failure::Orphaned(parent)) }
}
