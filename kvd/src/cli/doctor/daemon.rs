//! What the daemon says about itself.

use kv_client::{ClientInfo, Metric};
use kvd::units::show_bytes;

use super::{Findings, Level};
use crate::cli::common::Common;
use crate::cli::show;
use crate::cli::stats::Figures;

/// Of the clients that read over the socket so many are named.
const CLIENTS_NAMED: usize = 5;
/// A pending log that is fuller than this is about to slow writers down.
const PENDING_SHARE_MAX: f64 = 0.8;

/// What a daemon that answers said.
pub(super) struct Running {
    pub(super) metrics: Vec<Metric>,
}

/// Asks it; `None`: it does not answer.
pub(super) fn look(common: &Common, findings: &mut Findings) -> Option<Running> {
    let client = match common.client().and_then(|client| Ok(client.ping().map(|()| client)?)) {
        Ok(client) => client,
        Err(failure) => {
            findings.add(Level::Warning, "daemon", "does not answer", failure.to_string());
            return None;
        }
    };
    let metrics = match client.admin().stats() {
        Ok(metrics) => metrics,
        Err(error) => {
            findings.add(Level::Error, "daemon", "answers no request", error.to_string());
            return None;
        }
    };
    let figures = Figures::of(&metrics);
    let version = figures.labels("kvd_build_info", "version").first().copied().unwrap_or("of an older build");
    let up = show::whole_seconds(std::time::Duration::from_secs(figures.one("kvd_uptime_seconds") as u64));
    if version == env!("CARGO_PKG_VERSION") {
        findings.ok("daemon", format!("kvd {version} answers, up {up}"));
    } else {
        let what = format!("kvd {version} answers, this command is {}", env!("CARGO_PKG_VERSION"));
        findings.add(Level::Note, "daemon", what, "restart it, so that it is what is installed");
    }
    store(&figures, findings);
    trouble(&figures, findings);
    match client.admin().clients() {
        Ok(clients) => readers(&clients, findings),
        Err(error) => findings.add(Level::Note, "clients", "cannot be seen", error.to_string()),
    }
    drop(figures);
    Some(Running { metrics })
}

fn store(figures: &Figures<'_>, findings: &mut Findings) {
    if figures.with("kvd_store_healthy", &[]).is_some_and(|healthy| healthy == 0.0) {
        let cure = "its log says why; make room or repair the disk, it resumes by itself. Durable writes fail until then";
        findings.add(Level::Error, "store", "the disk does not take what is written", cure);
    } else {
        let bytes = show_bytes(figures.one("kvd_store_file_bytes") as u64);
        findings.ok("store", format!("healthy, {bytes} on disk"));
    }
    let faults = figures.one("kvd_store_faults_total");
    if faults > 0.0 {
        let cure = "look into the kernel's log (`dmesg`) for errors of the device";
        findings.add(Level::Warning, "store", format!("the disk has failed {faults} times"), cure);
    }
    let (used, size) = (figures.one("kvd_pending_bytes"), figures.one("kvd_pending_max_bytes"));
    if size > 0.0 && used > PENDING_SHARE_MAX * size {
        let what = format!("the pending log is {:.0} % full: writers wait soon", 100.0 * used / size);
        findings.add(
            Level::Warning,
            "store",
            what,
            "the disk is slower than the writers: see flushes in `kvd stats`",
        );
    }
    if figures.with("kvd_start_clean", &[]).is_some_and(|clean| clean == 0.0) {
        let cure = "nothing is to be done: caches were recovered as configured; find out what ended it";
        findings.add(Level::Note, "store", "the daemon before this one did not stop cleanly", cure);
    }
}

fn trouble(figures: &Figures<'_>, findings: &mut Findings) {
    let refused: Vec<_> = figures
        .labels("kvd_connections_refused_total", "reason")
        .into_iter()
        .filter_map(|reason| {
            let count = figures.with("kvd_connections_refused_total", &[("reason", reason)])?;
            (count > 0.0).then(|| format!("{reason} {}", show::count(count)))
        })
        .collect();
    if !refused.is_empty() {
        let cure = "denied: list the user under [access]; limit: raise connections_max, or see who leaks in `kvd clients`";
        let what = format!("connections were refused since the start: {}", refused.join(", "));
        findings.add(Level::Warning, "connections", what, cure);
    }
    let (open, most) = (figures.one("process_open_fds"), figures.one("process_max_fds"));
    if most > 0.0 && open > 0.8 * most {
        let what = format!("{open:.0} of {most:.0} file descriptors are open");
        findings.add(Level::Warning, "limits", what, "raise LimitNOFILE, or `ulimit -n` before the start");
    }
    let waiting = figures.one("kvd_lock_waiters");
    if waiting >= 20.0 {
        let what = format!("{waiting} transactions, writes or loads wait for others");
        findings.add(Level::Warning, "locks", what, "`kvd locks` shows for whom, `kvd rollback` ends one");
    }
}

/// Who reads by asking, and why.
fn readers(clients: &[ClientInfo], findings: &mut Findings) {
    let mut by_socket: Vec<String> = clients
        .iter()
        .flat_map(|client| client.paths.iter().map(move |(cache, _, path)| (client, cache, path)))
        .filter_map(|(client, cache, path)| {
            let because = path.because()?;
            Some(format!("{} (pid {}) reads {cache} over the socket: {because}", client.name, client.pid))
        })
        .map(|line| show::escape(line.as_bytes()))
        .collect();
    by_socket.sort();
    by_socket.dedup();
    if by_socket.is_empty() {
        findings.ok(
            "clients",
            format!("{} connections; none says that it must read over the socket", clients.len()),
        );
        return;
    }
    let cure = "shared memory is some hundred times faster; the reason says what is in its way";
    for line in by_socket.iter().take(CLIENTS_NAMED) {
        findings.add(Level::Note, "clients", line, cure);
    }
    if by_socket.len() > CLIENTS_NAMED {
        let what = format!("{} more read over the socket", by_socket.len() - CLIENTS_NAMED);
        findings.add(Level::Note, "clients", what, "`kvd clients` lists all");
    }
}
