//! Under a service manager: what systemd is told, and what it passes. A socket of the test's stands for it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, SOON, text, wait_for};

/// A stand-in for systemd's end of the protocol.
pub(crate) struct Manager {
    _dir: tempfile::TempDir,
    path: PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    pub(crate) fn new() -> Manager {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { _dir: dir, path, socket }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message that has a line which begins so.
    pub(crate) fn await_line(&self, begins: &str) -> String {
        let deadline = Instant::now() + SOON;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nobody said {begins}, only {seen:?}");
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut bytes = [0; 4_096];
            let Ok(count) = self.socket.recv(&mut bytes) else { continue };
            let message = text(&bytes[..count]);
            if message.lines().any(|line| line.starts_with(begins)) {
                return message;
            }
            seen.push(message);
        }
    }

    /// Hears everything from here on, on a thread that lives as long as the test run: a manager that does not listen would be
    /// waited for.
    pub(crate) fn listen(&self) -> Receiver<String> {
        let socket = self.socket.try_clone().unwrap();
        let (sender, heard) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count) = socket.recv(&mut bytes) {
                let _ = sender.send(text(&bytes[..count]));
            }
        });
        heard
    }

    /// Whether a message with this line comes within `wait`.
    fn says_within(&self, line: &str, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut bytes = [0; 4_096];
            let Ok(count) = self.socket.recv(&mut bytes) else { continue };
            if text(&bytes[..count]).lines().any(|said| said == line) {
                return true;
            }
        }
    }
}

struct Supervised(Child);

impl Supervised {
    fn start(mut command: Command) -> Supervised {
        Supervised(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ready_comes_when_the_socket_serves_and_stopping_before_it_goes() {
    let home = Home::new();
    let manager = Manager::new();
    let mut command = home.serve();
    command.env("NOTIFY_SOCKET", manager.path());
    let mut daemon = Supervised::start(command);
    let ready = manager.await_line("READY=1");
    assert!(ready.contains("STATUS="), "{ready}");
    home.client().ping().unwrap();
    daemon.signal(Signal::SIGHUP);
    let reloading = manager.await_line("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.await_line("READY=1");
    daemon.signal(Signal::SIGTERM);
    manager.await_line("STOPPING=1");
    assert!(wait_for(SOON, "its end", || daemon.0.try_wait().unwrap()).success());
}

#[test]
fn a_restart_announces_the_new_main_process_before_the_old_one_ends() {
    let home = Home::new();
    let manager = Manager::new();
    let mut command = home.serve();
    command.env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "400000");
    let mut daemon = Supervised::start(command);
    manager.await_line("READY=1");
    let restart = home.kvd(&["restart", "--json"]);
    assert_eq!(restart.status.code(), Some(0), "{}", text(&restart.stderr));
    let said: serde_json::Value = serde_json::from_slice(&restart.stdout).unwrap();
    let announced = manager.await_line("MAINPID=");
    assert!(announced.lines().any(|line| line == format!("MAINPID={}", said["pid"])), "{announced}");
    assert!(announced.contains("READY=1"), "{announced}");
    assert!(wait_for(SOON, "the old one's end", || daemon.0.try_wait().unwrap()).success());
    manager.await_line("WATCHDOG=1");
    let stop = home.kvd(&["stop"]);
    assert_eq!(stop.status.code(), Some(0), "{}", text(&stop.stderr));
    manager.await_line("STOPPING=1");
}

#[test]
fn the_watchdog_is_fed_while_the_engine_works_and_not_by_a_daemon_that_is_stopped() {
    let home = Home::new();
    let manager = Manager::new();
    let mut command = home.serve();
    command.env("NOTIFY_SOCKET", manager.path()).env("WATCHDOG_USEC", "400000");
    let daemon = Supervised::start(command);
    manager.await_line("READY=1");
    for _ in 0..3 {
        manager.await_line("WATCHDOG=1");
    }
    daemon.signal(Signal::SIGSTOP);
    // What was under way comes at once.
    manager.says_within("WATCHDOG=1", Duration::from_millis(100));
    assert!(!manager.says_within("WATCHDOG=1", Duration::from_millis(800)));
    daemon.signal(Signal::SIGCONT);
    manager.await_line("WATCHDOG=1");
}

#[test]
fn a_passed_socket_is_served_and_stays_when_the_daemon_ends() {
    let home = Home::new();
    let passed = home.path().join("passed.sock");
    let listener = UnixListener::bind(&passed).unwrap();
    let start = || {
        // The shell's `exec` keeps its process id, which is what LISTEN_PID has to say.
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null", "sh"])
            .arg(env!("CARGO_BIN_EXE_kvd"))
            .args(["serve", "--dir"])
            .arg(home.path())
            .stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("passed.sock"), "{line}");
        Supervised(child)
    };
    let client = || kv_client::blocking::Client::builder().socket(&passed).build();
    let mut daemon = start();
    client().unwrap().cache("c").put("k", "v", None).unwrap();
    daemon.signal(Signal::SIGTERM);
    assert!(wait_for(SOON, "its end", || daemon.0.try_wait().unwrap()).success());
    assert!(passed.exists(), "the socket is the manager's");
    // Who connects meanwhile waits in the queue for the next daemon.
    let early = std::thread::spawn({
        let passed = passed.clone();
        move || {
            let builder = kv_client::blocking::Client::builder().socket(passed);
            builder.connect_timeout(SOON).op_timeout(SOON).build().unwrap().cache("c").get("k").unwrap()
        }
    });
    let _daemon = start();
    assert_eq!(early.join().unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn the_units_are_well_formed_and_leave_little_open() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/systemd");
    let checked = Command::new(units.join("check")).output().unwrap();
    let said = text(&checked.stdout) + &text(&checked.stderr);
    println!("{said}");
    assert!(checked.status.success(), "{said}");
}
