//! What the machine gives: limits, memory and its pressure, clock, huge pages, what the kernel can do.
//!
//! Of a running daemon where one is found, else of this process, which is what a daemon started from here would have.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use kvd::config::Config;
use kvd::units::show_bytes;
use rustix::fs::{MemfdFlags, SealFlags};

use super::daemon::Running;
use super::{Findings, Level};
use crate::cli::stats::Figures;

/// Descriptors that a daemon needs beside its connections: store, logs, segments, log.
const DESCRIPTORS_BESIDE: u64 = 128;
/// Percent of the last minute in which some process waited for memory, from which on that is worth saying.
const PRESSURE_SOME: f64 = 10.0;
/// … and in which all did.
const PRESSURE_FULL: f64 = 5.0;

pub(super) fn look(
    config: Option<&Config>,
    running: Option<&Running>,
    holder: Option<u32>,
    findings: &mut Findings,
) {
    let process = holder.map_or("self".to_owned(), |pid| pid.to_string());
    limits(config, &process, findings);
    memory(config, running, &process, findings);
    clock(config, findings);
    huge_pages(findings);
    kernel(findings);
}

fn read(path: impl Into<PathBuf>) -> Option<String> {
    std::fs::read_to_string(path.into()).ok()
}

fn limits(config: Option<&Config>, process: &str, findings: &mut Findings) {
    let Some(text) = read(format!("/proc/{process}/limits")) else {
        let cure = "run this as the daemon's user or root";
        findings.add(Level::Note, "limits", "those of the daemon cannot be seen", cure);
        return;
    };
    let whose = if process == "self" { "this shell" } else { "the daemon" };
    let Some(open) = soft_limit(&text, "Max open files") else { return };
    let wanted = config.map_or(0, |config| config.connections_max as u64) + DESCRIPTORS_BESIDE;
    if open < wanted {
        let what = format!("{whose} may open {open} files, connections_max alone may need {wanted}");
        let cure = "LimitNOFILE= in the unit, or `ulimit -n` before the start; or lower connections_max";
        findings.add(Level::Warning, "limits", what, cure);
    } else {
        findings.ok("limits", format!("{whose} may open {} files", show_limit(open)));
    }
    if let Some(locked) = soft_limit(&text, "Max locked memory") {
        findings.ok("limits", format!("locked memory: {}; kvd locks none", show_limit(locked)));
    }
}

fn show_limit(limit: u64) -> String {
    if limit == u64::MAX { "any number of".to_owned() } else { limit.to_string() }
}

/// The soft limit of this name in the text of /proc/PID/limits.
fn soft_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn memory(config: Option<&Config>, running: Option<&Running>, process: &str, findings: &mut Findings) {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let total = kib_of(&meminfo, "MemTotal:").unwrap_or(u64::MAX);
    let available = kib_of(&meminfo, "MemAvailable:").unwrap_or(u64::MAX);
    let (limit, by) = match cgroup_limit(process) {
        Some(limit) if limit < total => (limit, "the control group's memory.max"),
        Some(_) | None => (total, "the memory of this machine"),
    };
    if let Some(config) = config {
        let wanted = config.memory_bytes
            + config.redb_cache_bytes
            + config.journal_bytes_max
            + config.pending_log_bytes;
        let resident =
            running.map_or(0.0, |running| Figures::of(&running.metrics).one("process_resident_memory_bytes"));
        let missing = wanted.saturating_sub(resident as u64);
        let what = format!("up to {} for kvd, {by} is {}", show_bytes(wanted), show_bytes(limit));
        if wanted > limit {
            let cure = "lower `memory`: the kernel would kill the daemon, or swap";
            findings.add(Level::Error, "memory", what, cure);
        } else if wanted > limit / 10 * 9 {
            findings.add(
                Level::Warning,
                "memory",
                what,
                "lower `memory`, or give it more: nothing is left for the rest",
            );
        } else if missing > available {
            let what =
                format!("{} are available, kvd may grow by {}", show_bytes(available), show_bytes(missing));
            findings.add(Level::Warning, "memory", what, "lower `memory`, or see who else uses it");
        } else {
            findings.ok("memory", what);
        }
    }
    if let Some((some, full)) = read("/proc/pressure/memory").and_then(|text| pressure(&text)) {
        let what =
            format!("processes waited for memory {some:.1} % of the last minute, all of them {full:.1} %");
        if some >= PRESSURE_SOME || full >= PRESSURE_FULL {
            findings.add(
                Level::Warning,
                "memory",
                what,
                "there is too little for all: lower `memory`, or stop others",
            );
        } else {
            findings.ok("memory", what);
        }
    }
    let swapped =
        read(format!("/proc/{process}/status")).and_then(|text| kib_of(&text, "VmSwap:")).unwrap_or(0);
    if process != "self" && swapped > 16 << 20 {
        let what = format!("{} of the daemon are swapped out: reads wait for the disk", show_bytes(swapped));
        findings.add(Level::Warning, "memory", what, "lower `memory`, or MemorySwapMax=0 in the unit");
    }
}

/// A line of /proc/meminfo or /proc/PID/status, in bytes.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

/// `some` and `full` of the last minute.
fn pressure(text: &str) -> Option<(f64, f64)> {
    let of = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.split(' ').find_map(|part| part.strip_prefix("avg60=")?.parse().ok())
    };
    Some((of("some")?, of("full")?))
}

/// The least memory.max from the process's control group upwards (version 2).
fn cgroup_limit(process: &str) -> Option<u64> {
    let text = read(format!("/proc/{process}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut group = PathBuf::from("/sys/fs/cgroup").join(path);
    let mut least = None;
    while group.starts_with("/sys/fs/cgroup") {
        let own: Option<u64> = read(group.join("memory.max")).and_then(|text| text.trim().parse().ok());
        least = [least, own].into_iter().flatten().min();
        if !group.pop() {
            break;
        }
    }
    least
}

fn clock(config: Option<&Config>, findings: &mut Findings) {
    let now_ms = kvd::clock::Clock::system().wall_ms();
    let written = config.and_then(|config| std::fs::metadata(config.dir.join("marks")).ok());
    let written_s = written.map_or(0, |found| std::os::unix::fs::MetadataExt::mtime(&found));
    if now_ms / 1_000 + 60 < written_s {
        let what = "the store was written in the future: the wall clock was set back";
        let cure = "set the clock right before the daemon is started: items' ages are wrong until then";
        findings.add(Level::Warning, "clock", what, cure);
    } else {
        findings.ok("clock", "the wall clock is not behind what was written");
    }
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let Some(source) = source.as_deref().map(str::trim) else { return };
    // What the vDSO can read without a system call.
    if ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase"].contains(&source) {
        findings.ok("clock", format!("is read without a system call ({source})"));
    } else {
        let what = format!("clock source {source}: each look at the time is a system call");
        findings.add(Level::Note, "clock", what, "tsc is faster, where the machine has a stable one");
    }
}

fn huge_pages(findings: &mut Findings) {
    let Some(text) = read("/sys/kernel/mm/transparent_hugepage/shmem_enabled") else { return };
    match chosen(&text) {
        Some(mode @ ("never" | "deny")) => {
            let what = format!("shared memory gets none ({mode})");
            let cure = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled makes reads of large caches faster";
            findings.add(Level::Note, "huge pages", what, cure);
        }
        Some(mode) => findings.ok("huge pages", format!("shared memory may have them ({mode})")),
        None => {}
    }
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(word, _)| word)
}

fn kernel(findings: &mut Findings) {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let sealed = rustix::fs::memfd_create(c"kvd-doctor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .and_then(|memory| {
            rustix::fs::fcntl_add_seals(memory.as_fd(), SealFlags::SHRINK | SealFlags::FUTURE_WRITE)
        });
    match sealed {
        Ok(()) => findings.ok("kernel", format!("{release}: sealed memory can be shared")),
        Err(error) => {
            let what = format!("{release}: memory cannot be sealed for readers: {error}");
            let cure = "all reads go over the socket; Linux 5.1 or newer can, and a sandbox may forbid it";
            findings.add(Level::Warning, "kernel", what, cure);
        }
    }
    let own = rustix::process::getpid();
    match rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()) {
        Ok(_) => findings.ok("kernel", "the end of a process is seen at once (pidfd)"),
        Err(error) => {
            let cure =
                "locks of killed processes are free only when their sockets close; Linux 5.3 or newer has it";
            findings.add(Level::Note, "kernel", format!("no pidfd: {error}"), cure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 1048576              files     \n\
                      Max locked memory         unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1_024));
        assert_eq!(soft_limit(limits, "Max locked memory"), Some(u64::MAX));
        assert_eq!(kib_of("MemTotal:       2048 kB\n", "MemTotal:"), Some(2 << 20));
        let text =
            "some avg10=0.00 avg60=12.50 avg300=0.0 total=1\nfull avg10=0.00 avg60=1.25 avg300=0.0 total=1\n";
        assert_eq!(pressure(text), Some((12.5, 1.25)));
        assert_eq!(chosen("always within_size [advise] never deny force"), Some("advise"));
    }
}
