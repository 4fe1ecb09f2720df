//! Starting daemons, waiting with a deadline, and ending what was started.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tempfile::TempDir;

/// Longest wait of a test for anything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(20);

static MACHINE: RwLock<()> = RwLock::new(());

/// What a thread has of the machine: all of it, or the same part as often as it was asked for.
#[derive(Default)]
struct Held {
    parts: usize,
    part: Option<RwLockReadGuard<'static, ()>>,
    whole: Option<RwLockWriteGuard<'static, ()>>,
}

thread_local!(static HELD: RefCell<Held> = RefCell::default());

/// A part of the machine, given back when the thread's last one is dropped; whoever has a [`Home`] has one.
pub(crate) struct Part {
    /// It is given back where it was taken.
    _of_this_thread: PhantomData<std::sync::MutexGuard<'static, ()>>,
}

/// Held by a test that says how long something may take at most, before it has a [`Home`] or without one.
pub(crate) fn timed() -> Part {
    HELD.with_borrow_mut(|held| {
        if held.parts == 0 && held.whole.is_none() {
            held.part = Some(MACHINE.read());
        }
        held.parts += 1;
    });
    Part { _of_this_thread: PhantomData }
}

impl Drop for Part {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| {
            held.parts -= 1;
            if held.parts == 0 {
                held.part = None;
            }
        });
    }
}

/// All of the machine.
pub(crate) struct Whole;

/// Held by a test that takes the whole machine: while it does, no other that is timed or has a daemon runs.
pub(crate) fn whole_machine() -> Whole {
    HELD.with_borrow_mut(|held| {
        assert_eq!(held.parts, 0, "the whole machine is taken before a part of it");
        held.whole = Some(MACHINE.write());
    });
    Whole
}

impl Drop for Whole {
    fn drop(&mut self) {
        HELD.with_borrow_mut(|held| held.whole = None);
    }
}

/// A directory with a daemon's store, socket and configuration; the daemon may come and go.
pub(crate) struct Home {
    dir: TempDir,
    elsewhere: Option<PathBuf>,
    flags: Vec<String>,
    _part: Part,
}

/// A running `kvd serve`; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) first_line: String,
    stderr: std::thread::JoinHandle<String>,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home::with(&[])
    }

    /// A home whose daemons get these flags.
    pub(crate) fn with(flags: &[&str]) -> Home {
        let part = timed();
        let dir = tempfile::Builder::new()
            .prefix("kvd-test-")
            .tempdir()
            .expect("a temporary directory can be made");
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Home { dir, elsewhere: None, flags, _part: part }
    }

    /// A home whose daemons read this configuration.
    pub(crate) fn configured(toml: &str) -> Home {
        let mut home = Home::new();
        let path = home.path().join("kvd.toml");
        std::fs::write(&path, toml).expect("the directory is ours");
        home.flags = vec!["--config".to_owned(), path.display().to_string()];
        home
    }

    /// Gives its daemons more flags.
    pub(crate) fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
    }

    /// Lets the daemon live in another directory.
    pub(crate) fn keep_in(&mut self, dir: &Path) {
        self.elsewhere = Some(dir.to_owned());
    }

    pub(crate) fn path(&self) -> &Path {
        self.elsewhere.as_deref().unwrap_or(self.dir.path())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("kvd.sock")
    }

    /// The command that serves this home.
    pub(crate) fn serve(&self) -> Command {
        let mut command = kvd();
        command.arg("serve").arg("--dir").arg(self.path()).args(&self.flags);
        command
    }

    /// Starts a daemon and waits until it serves.
    pub(crate) fn start(&self) -> Daemon {
        self.start_by(self.serve())
    }

    /// As `start`, by a command of the test's own.
    pub(crate) fn start_by(&self, mut command: Command) -> Daemon {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kvd was built");
        let mut stderr = child.stderr.take().expect("piped");
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut first_line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut first_line).expect("the daemon prints where it listens");
        if first_line.is_empty() {
            let status = child.wait().expect("our child");
            panic!("kvd serve ended with {status}: {}", stderr.join().unwrap_or_default());
        }
        Daemon { child, first_line, stderr }
    }

    pub(crate) fn client(&self) -> Client {
        // Beside all other tests a daemon may be kept from its processor for a while.
        let builder = Client::builder().socket(self.socket()).connect_timeout(SOON);
        builder.build().expect("the daemon serves")
    }

    /// Runs `kvd ARGS` against this home.
    pub(crate) fn kvd(&self, args: &[&str]) -> Output {
        kvd()
            .args(args)
            .env("KVD_SOCKET", self.socket())
            .stdin(Stdio::null())
            .output()
            .expect("kvd was built")
    }
}

impl Daemon {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pids are small"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our child is there");
    }

    /// Kills it with -9 and reaps it.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// Waits for its end; its exit status and what it logged.
    pub(crate) fn wait(mut self, limit: Duration) -> (ExitStatus, String) {
        let status = wait_for(limit, "the daemon to end", || self.child.try_wait().expect("our child"));
        let stderr = std::mem::replace(&mut self.stderr, std::thread::spawn(String::new));
        (status, stderr.join().unwrap_or_default())
    }

    /// TERM, and wait.
    pub(crate) fn stop(self) -> (ExitStatus, String) {
        self.signal(Signal::SIGTERM);
        self.wait(SOON)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary under test.
pub(crate) fn kvd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvd"));
    for name in
        ["KVD_SOCKET", "KVD_DIR", "KVD_MEMORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"]
    {
        command.env_remove(name);
    }
    command
}

/// Tries until there is an answer; panics when it takes too long.
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A seeded source of randomness; the seed is printed, and `KVD_SEED` replays it.
pub(crate) fn random() -> fastrand::Rng {
    let seed = std::env::var("KVD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("KVD_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
