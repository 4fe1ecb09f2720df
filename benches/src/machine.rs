//! What a table must say beside its figures: the machine, the commit, the disk.
//!
//! Called by [`crate::report`]. What cannot be found out is said to be unknown.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;

use crate::clock::sleep;

/// Where and of what a measurement was made.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that may be used.
    pub cpus: usize,
    /// Memory, in GiB.
    pub memory_gib: u64,
    /// The kernel.
    pub kernel: String,
    /// The commit, with `+` when the work tree differs from it.
    pub commit: String,
    /// How much of all processors others used in the half second before, in per cent.
    pub busy_percent: f64,
}

impl Machine {
    /// Looks around.
    #[must_use]
    pub fn look() -> Machine {
        let unknown = || "unknown".to_owned();
        let first = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1.trim().to_owned();
            Some(line)
        };
        let memory_kib = field(&first("/proc/meminfo"), "MemTotal");
        let memory_kib = memory_kib.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Machine {
            cpu: field(&first("/proc/cpuinfo"), "model name").unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: memory_kib.unwrap_or(0).div_ceil(1 << 20),
            kernel: first("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: commit().unwrap_or_else(unknown),
            busy_percent: busy_percent(),
        }
    }

    /// Whether somebody else was at work when it was looked at: then not even ratios count.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        const BUSY_PERCENT_MAX: f64 = 10.0;
        self.busy_percent > BUSY_PERCENT_MAX
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let Machine { cpu, cpus, memory_gib, kernel, commit, busy_percent } = self;
        format!(
            "{cpus} x {cpu}, {memory_gib} GiB, Linux {kernel}, commit {commit}, {busy_percent:.0} % busy with other things"
        )
    }
}

/// Whether files here live in memory only, so that durable writes mean nothing.
#[must_use]
pub fn is_in_memory(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
}

/// Looked at for half a second, because the load average still remembers the build.
fn busy_percent() -> f64 {
    const LOOK: Duration = Duration::from_millis(500);
    let ticks = || {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // The fourth and fifth are idle time and time idle for the disk; guests are counted in the first already.
        let idle: f64 = ticks.iter().skip(3).take(2).sum();
        (idle, ticks.iter().take(8).sum::<f64>())
    };
    let before = ticks();
    sleep(LOOK);
    let after = ticks();
    let all = (after.1 - before.1).max(1.0);
    100.0 * (1.0 - (after.0 - before.0) / all)
}

fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|lines| !lines.is_empty());
    Some(if changed { commit + "+" } else { commit })
}
