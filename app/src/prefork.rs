//! Worker processes behind one listening socket: the parent opens it and every worker inherits it.
//!
//! The parent serves nobody, so it has no reason to fall: it makes the database, starts the workers, replaces one that dies, and
//! ends them all when it is told to. A worker gets the socket as its standard input, as with FastCGI: descriptors are then
//! neither numbered nor trusted, which would be unsafe code. The workers share nothing but the database and kvd.

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::{Failure, Places, Web, Worker};
use crate::database::Database;
use crate::web;

/// The pause before a worker that died is replaced. It doubles while they die young, so that a crash loop does not spin …
const REPLACE_PAUSE_FIRST: Duration = Duration::from_millis(50);
/// … up to this.
const REPLACE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that lived so long did not die young.
const YOUNG: Duration = Duration::from_secs(10);
/// How long a worker may take to answer what it has accepted when it is told to end. Beyond: it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The parent: until TERM or INT.
pub(crate) async fn lead(options: &Web) -> Result<(), Failure> {
    let failed = |source| Failure::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let file = &options.places.database;
    let seeded = Database::create(file).await;
    seeded.map_err(|source| Failure::Database { file: file.clone(), source })?;

    // Before there is a worker: from here on nobody ends without them.
    let told = told_to_end()?;
    let (end, ending) = watch::channel(false);
    let crew = Arc::new(Crew { listener, places: options.places.clone() });
    let mut places: JoinSet<()> =
        (0..options.workers).map(|_| keep_staffed(Arc::clone(&crew), ending.clone())).collect();
    println!("the shop is open at http://{address}/product/1, {} workers", options.workers);

    told.await;
    // Whoever is not there to hear it has ended already.
    let _ = end.send(true);
    while places.join_next().await.is_some() {}
    Ok(())
}

/// A worker: until TERM or INT, and not longer than its parent.
pub(crate) async fn work(options: &Worker) -> Result<(), Failure> {
    let told = told_to_end()?;
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|error| Failure::Signals(error.into()))?;
    // It may have gone before it was said.
    if getppid().map(Pid::as_raw_pid) != Some(options.parent) {
        return Err(Failure::Orphaned(options.parent));
    }
    web::serve(inherited().map_err(Failure::NoListener)?, &options.places, told).await
}

fn inherited() -> std::io::Result<tokio::net::TcpListener> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    listener.local_addr()?; // fails if it is no socket
    tokio::net::TcpListener::from_std(listener)
}

/// Ends when this process is told to. What is told counts from the call on.
fn told_to_end() -> Result<impl Future<Output = ()> + Send + 'static, Failure> {
    let mut term = signal(SignalKind::terminate()).map_err(Failure::Signals)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Failure::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => (),
            _ = int.recv() => (),
        }
    })
}

/// What starting a worker takes.
struct Crew {
    listener: TcpListener,
    places: Places,
}

impl Crew {
    fn start_one(&self) -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("worker").arg("--parent").arg(std::process::id().to_string());
        command.arg("--database").arg(&self.places.database);
        if let Some(cache) = &self.places.cache {
            command.arg("--cache").arg(cache);
        }
        command.stdin(Stdio::from(OwnedFd::from(self.listener.try_clone()?))).kill_on_drop(true).spawn()
    }
}

/// Sees to it that one place has a worker.
async fn keep_staffed(crew: Arc<Crew>, mut ending: watch::Receiver<bool>) {
    let mut pause = REPLACE_PAUSE_FIRST;
    loop {
        let began = Instant::now();
        match crew.start_one() {
            Ok(mut worker) => tokio::select! {
                status = worker.wait() => match status {
                    Ok(status) => tracing::warn!(%status, "a worker died and is replaced"),
                    Err(error) => tracing::warn!(%error, "a worker was lost and is replaced"),
                },
                () = begun(&mut ending) => return end(worker).await,
            },
            Err(error) => tracing::error!(%error, "a worker cannot be started"),
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

/// Tells a worker to end, and waits until it has.
async fn end(mut worker: Child) {
    // A terminal's INT reaches the workers as well; being told twice does no harm.
    if let Some(pid) = worker.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(END_WITHIN, worker.wait()).await.is_err() {
        tracing::warn!("a worker did not end within {END_WITHIN:?} and is killed");
        let _ = worker.kill().await;
    }
}
