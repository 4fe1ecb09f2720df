//! What the kernel says about this process, under the names that Prometheus' own clients use.
//!
//! Read by `stats` when it is asked; costs some microseconds then and nothing otherwise. What cannot be read is left out.

use std::os::unix::fs::MetadataExt as _;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

use crate::metrics::MetricRow;

/// Appends a row for each figure that can be had. `started`: seconds since 1970.
pub(crate) fn rows(started: f64, rows: &mut Vec<MetricRow>) {
    for (name, value) in [
        ("process_start_time_seconds", Some(started)),
        ("process_cpu_seconds_total", cpu_seconds()),
        ("process_resident_memory_bytes", resident_bytes()),
        ("process_open_fds", open_descriptors()),
        ("process_max_fds", descriptors_max()),
    ] {
        rows.extend(value.map(|value| MetricRow::new(name, None, value)));
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn resident_bytes() -> Option<f64> {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((pages * rustix::param::page_size() as u64) as f64)
}

fn open_descriptors() -> Option<f64> {
    // Since Linux 6.2 the folder's size is their number; before it is 0 and they have to be counted.
    match std::fs::metadata("/proc/self/fd").ok()?.size() {
        0 => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as f64),
        count => Some(count as f64),
    }
}

fn descriptors_max() -> Option<f64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft as f64)
}
