//! What the tests here have in common: waiting with a deadline, who is left holding what, a relay that can be stopped.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use kv_client::{CacheStats, Event, Observer, TransactionInfo};
use kvd::testing::TestServer;
use parking_lot::Mutex;

/// Longer than anything here takes.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) type Never = std::convert::Infallible;

#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {SOON:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn seed() -> u64 {
    let given = std::env::var("KVD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    seed
}

/// Who holds or waits for anything at the daemon: loads, locks, transactions.
pub(crate) fn held(server: &TestServer) -> Vec<TransactionInfo> {
    server.direct().admin().transactions().expect("the engine answers").transactions
}

#[track_caller]
pub(crate) fn until_nothing_is_held(server: &TestServer) {
    until("leases and locks to be given back", || held(server).is_empty());
}

#[track_caller]
pub(crate) fn until_waiting(server: &TestServer, count: usize) {
    until("others to wait", || held(server).iter().filter(|party| party.waits.is_some()).count() == count);
}

pub(crate) fn stats(client: &Client, cache: &str) -> CacheStats {
    client.stats().caches.into_iter().find(|stats| stats.name == cache).expect("it was asked for")
}

pub(crate) fn bytes<E>(text: &str) -> Result<Vec<u8>, E> {
    Ok(text.as_bytes().to_vec())
}

pub(crate) async fn async_client(server: &TestServer) -> kv_client::Client {
    kv_client::Client::builder().socket(server.socket()).build().await.expect("the daemon is there")
}

/// Without shared memory: every read is a request.
pub(crate) fn by_socket(socket: impl Into<PathBuf>) -> kv_client::Builder<Client> {
    Client::builder().socket(socket).shared_memory(false)
}

/// Notes the names of events.
#[derive(Default)]
pub(crate) struct Noted(Mutex<Vec<String>>);

impl Noted {
    pub(crate) fn count(&self, name: &str) -> usize {
        self.0.lock().iter().filter(|event| event.starts_with(name)).count()
    }
}

impl Observer for Noted {
    fn observe(&self, event: &Event<'_>) {
        self.0.lock().push(format!("{event:?}"));
    }
}

/// Stands between a client and its daemon. Stopped, it behaves as a process does after SIGSTOP: connections are still taken by
/// the kernel, and nothing comes back.
pub(crate) struct Relay {
    dir: tempfile::TempDir,
    state: Arc<Between>,
}

#[derive(Default)]
struct Between {
    is_stopped: AtomicBool,
    is_over: AtomicBool,
    open: Mutex<Vec<UnixStream>>,
}

impl Relay {
    pub(crate) fn to(daemon: &Path) -> Relay {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("relay.sock")).expect("the socket is free");
        let (state, daemon) = (Arc::<Between>::default(), daemon.to_path_buf());
        let between = Arc::clone(&state);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if between.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(far) = UnixStream::connect(&daemon) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().expect("a file"), to.try_clone().expect("a file"));
                    let between = Arc::clone(&between);
                    std::thread::spawn(move || between.carry(from, to));
                }
                between.open.lock().extend([near, far]);
            }
        });
        Relay { dir, state }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("relay.sock")
    }

    pub(crate) fn stop(&self) {
        self.state.is_stopped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn go_on(&self) {
        self.state.is_stopped.store(false, Ordering::SeqCst);
    }

    /// Every stream is closed, as by a daemon that is restarted.
    pub(crate) fn cut(&self) {
        for stream in self.state.open.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Between {
    fn carry(&self, mut from: UnixStream, mut to: UnixStream) {
        let mut bytes = [0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            while self.is_stopped.load(Ordering::SeqCst) && !self.is_over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.socket());
        self.cut();
    }
}

/// For what a test does not look at.
pub(crate) fn ignore<T>(_: T) {}
