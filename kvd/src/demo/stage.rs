//! The demo's directory and processes: made here, and gone at the end however it ends.
//!
//! Children ask the kernel to be killed when the conductor dies, so not even a kill -9 of the demo leaves any. A signal is
//! noticed by the conductor's loop; a panic, which aborts in release builds, removes the directory in its hook.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_client::blocking::Client;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::Failure;

/// How long a process may take to say it is ready.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a process may take to end when asked.
const END_WITHIN: Duration = Duration::from_secs(10);
/// Tells a process of the demo who started it.
const PARENT: &str = "KVD_DEMO_PARENT";
/// How often somebody is looked for who is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The directory of one demo, and whether somebody wants it to end.
pub(super) struct Stage {
    dir: TempDir,
    stopped: Arc<AtomicBool>,
}

impl Stage {
    pub(super) fn new() -> Result<Stage, Failure> {
        let dir = tempfile::Builder::new()
            .prefix("kvd-demo-")
            .tempdir()
            .map_err(Failure::io("making a temporary directory"))?;
        let stopped = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&stopped))
                .map_err(Failure::io("minding signals"))?;
        }
        let doomed = dir.path().to_owned();
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tell(panic);
            // Children are killed by the kernel when this process aborts.
            let _ = std::fs::remove_dir_all(&doomed);
        }));
        Ok(Stage { dir, stopped })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fails once somebody pressed Ctrl-C.
    pub(super) fn go_on(&self) -> Result<(), Failure> {
        if self.stopped.load(Ordering::Relaxed) { Err(Failure::Interrupted) } else { Ok(()) }
    }

    /// Starts this program in one of its roles. Settings of the user's own daemon must not reach the demo's.
    pub(super) fn start(&self, role: &str, configure: impl FnOnce(&mut Command)) -> Result<Process, Failure> {
        let program = std::env::current_exe().map_err(Failure::io("finding this program"))?;
        let log = self.path(&format!("{role}.log"));
        let errors =
            File::options().create(true).append(true).open(&log).map_err(Failure::io("opening a log"))?;
        let mut command = Command::new(program);
        command.args(["demo", role]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        // Its own group: Ctrl-C at the terminal is for the conductor, who ends the others in order.
        command.process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("KVD_") {
                command.env_remove(name);
            }
        }
        command.env(PARENT, std::process::id().to_string());
        configure(&mut command);
        let child = command.spawn().map_err(Failure::io(format!("starting the {role}")))?;
        Ok(Process { child, role: role.to_owned(), log })
    }

    /// Starts the daemon; it may not be ready yet.
    pub(super) fn start_daemon(&self, config: &Path) -> Result<Process, Failure> {
        let dir = self.path("kvd");
        self.start("daemon", |command| {
            command.arg("--config").arg(config).arg("--dir").arg(dir);
        })
    }

    /// Waits until the daemon answers.
    pub(super) fn daemon_answers(&self, daemon: &mut Process, socket: &Path) -> Result<Client, Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.go_on()?;
            let client = Client::builder().socket(socket).name("demo").build();
            match client {
                Ok(client) => return Ok(client),
                Err(source) if Instant::now() > deadline => {
                    return Err(Failure::Cache { doing: "waiting for the daemon", source });
                }
                Err(_) => daemon.still_runs()?,
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A process of the demo; killed when dropped.
pub(super) struct Process {
    pub(super) child: Child,
    role: String,
    log: PathBuf,
}

impl Process {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process numbers fit"))
    }

    /// Ends it as an outage would.
    pub(super) fn kill(&mut self) -> Result<(), Failure> {
        kill(self.pid(), Signal::SIGKILL).map_err(|errno| Failure::io("killing the daemon")(errno.into()))?;
        self.child.wait().map_err(Failure::io("waiting for the killed daemon"))?;
        Ok(())
    }

    /// Asks it to end, and says whether it ended well.
    pub(super) fn stop(&mut self) -> Result<bool, Failure> {
        kill(self.pid(), Signal::SIGTERM)
            .map_err(|errno| Failure::io("stopping the daemon")(errno.into()))?;
        let deadline = Instant::now() + END_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().map_err(Failure::io("waiting for the daemon"))? {
                return Ok(status.success());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(false)
    }

    /// Fails with its last words if it has ended.
    pub(super) fn still_runs(&mut self) -> Result<(), Failure> {
        match self.child.try_wait().map_err(Failure::io("looking after a process"))? {
            None => Ok(()),
            Some(status) => {
                let words = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last =
                    words.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
                Err(Failure::Plain(format!("the {} ended ({status}):\n{}", self.role, last.join("\n"))))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the kernel to kill this process when the one that started it dies.
pub(super) fn die_with_parent() -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Failure::io("tying this process to the demo")(errno.into()))?;
    // It may have died before that.
    let parent = std::env::var(PARENT).unwrap_or_default();
    if nix::unistd::getppid().to_string() == parent {
        return Ok(());
    }
    Err(Failure::Plain("this is a part of kvd demo, which is not there".to_owned()))
}

/// Turns this process into `kvd serve`.
pub(super) fn become_daemon(config: &Path, dir: &Path) -> Result<(), Failure> {
    die_with_parent()?;
    let program = std::env::current_exe().map_err(Failure::io("finding this program"))?;
    let mut serve = Command::new(program);
    serve.arg("serve").arg("--config").arg(config).arg("--dir").arg(dir).env_remove(PARENT);
    let error = serve.exec();
    Err(Failure::io("starting kvd serve")(error))
}
