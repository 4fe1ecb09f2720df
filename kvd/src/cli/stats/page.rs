//! The page that `kvd stats` shows a person: trouble first, then caches, requests, disk, locks and connections.
//!
//! Pure: figures in, text out. At most 100 columns wide, so that it can be read in a split terminal and pasted into a ticket.

use std::fmt::Write as _;
use std::time::Duration;

use kvd::units::{show_bytes, show_duration};

use super::Figures;
use crate::cli::show;

/// The page; of one cache only, if it is named.
pub(super) fn show(figures: &Figures<'_>, cache: Option<&str>) -> String {
    let mut page = String::new();
    match cache {
        Some(cache) => all_about(figures, cache, &mut page),
        None => {
            head(figures, &mut page);
            caches(figures, &mut page);
            requests(figures, &mut page);
            disk(figures, &mut page);
            locks(figures, &mut page);
            connections(figures, &mut page);
        }
    }
    page.trim_end().to_owned()
}

fn add(page: &mut String, line: impl std::fmt::Display) {
    writeln!(page, "{line}").expect("a String takes everything");
}

fn bytes(value: f64) -> String {
    show_bytes(value as u64)
}

fn percent(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.1}"))
}

/// Who it is, and what is wrong with it.
fn head(figures: &Figures<'_>, page: &mut String) {
    let version = figures.labels("kvd_build_info", "version").first().copied().unwrap_or("of an older build");
    let up = show_duration(Duration::from_secs(figures.one("kvd_uptime_seconds") as u64));
    let used = figures.sum("kvd_cache_memory_bytes");
    add(
        page,
        format_args!(
            "kvd {version}, up {up}, {} connections, {} of {} used, {} resident, {:.1} s of processor time",
            show::count(figures.one("kvd_connections")),
            bytes(used),
            bytes(figures.one("kvd_memory_max_bytes")),
            bytes(figures.one("process_resident_memory_bytes")),
            figures.one("process_cpu_seconds_total"),
        ),
    );
    for trouble in troubles(figures) {
        add(page, format_args!("! {trouble}"));
    }
}

/// What somebody should know before anything else.
fn troubles(figures: &Figures<'_>) -> Vec<String> {
    let mut troubles = Vec::new();
    if figures.with("kvd_store_healthy", &[]).is_some_and(|healthy| healthy == 0.0) {
        troubles.push(
            "the disk does not take what is written: see the daemon's log, and `kvd doctor`".to_owned(),
        );
    }
    let (used, size) = (figures.one("kvd_pending_bytes"), figures.one("kvd_pending_max_bytes"));
    if size > 0.0 && used > 0.8 * size {
        let text = format!(
            "the pending log is {:.0} % full: the disk is slower than the writers",
            100.0 * used / size
        );
        troubles.push(text);
    }
    let refused = figures.sum("kvd_connections_refused_total");
    if refused > 0.0 {
        troubles.push(format!("{} connections were refused (below)", show::count(refused)));
    }
    let (open, most) = (figures.one("process_open_fds"), figures.one("process_max_fds"));
    if most > 0.0 && open > 0.8 * most {
        troubles.push(format!("{open:.0} of {most:.0} file descriptors are open: raise the limit"));
    }
    troubles
}

fn caches(figures: &Figures<'_>, page: &mut String) {
    let names = figures.caches();
    if names.is_empty() {
        add(page, "\nthere is no cache yet: the first write makes one");
        return;
    }
    let mut reads = show::Numbers::new([
        "CACHE", "HIT %", "SHARED", "MEMORY", "DISK", "STALE", "MISSES", "WRITES", "REMOVALS",
    ]);
    let mut sizes = show::Numbers::new([
        "CACHE", "ITEMS", "MEMORY", "OF", "DISK", "EVICTED", "EXPIRED", "LOADS", "WAITED",
    ]);
    for cache in names {
        let of = |name| figures.of_cache(name, cache);
        let count = |name| show::count(of(name));
        let r = figures.reads(cache);
        reads.add([
            cache.to_owned(),
            percent(r.hit_percent()),
            show::count(r.shared),
            show::count(r.memory),
            show::count(r.disk),
            show::count(r.stale),
            show::count(r.misses),
            count("kvd_cache_writes_total"),
            count("kvd_cache_removals_total"),
        ]);
        sizes.add([
            cache.to_owned(),
            count("kvd_cache_items"),
            bytes(of("kvd_cache_memory_bytes")),
            bytes(of("kvd_cache_memory_max_bytes")),
            if of("kvd_cache_disk_max_bytes") > 0.0 {
                bytes(of("kvd_cache_disk_bytes"))
            } else {
                "-".to_owned()
            },
            count("kvd_cache_evicted_total"),
            count("kvd_cache_expired_total"),
            count("kvd_leases_granted_total"),
            count("kvd_lease_waits_total"),
        ]);
    }
    add(page, format_args!("\n{reads}\n\n{sizes}"));
}

fn requests(figures: &Figures<'_>, page: &mut String) {
    let mut table = show::Numbers::new(["OPERATION", "REQUESTS", "P50", "P90", "P99", "P99.9", "MAX"]);
    for operation in figures.labels("kvd_requests_total", "operation") {
        let own = ("operation", operation);
        let total = figures.with("kvd_requests_total", &[own]).unwrap_or(0.0);
        if total == 0.0 {
            continue;
        }
        let at = |quantile| {
            let found = figures.with("kvd_request_seconds", &[own, ("quantile", quantile)]);
            found.map_or("-".to_owned(), show::seconds)
        };
        table.add([
            operation.to_owned(),
            show::count(total),
            at("0.5"),
            at("0.9"),
            at("0.99"),
            at("0.999"),
            at("1"),
        ]);
    }
    add(page, format_args!("\n{table}"));
    let slow = figures.one("kvd_slow_requests_total");
    if slow > 0.0 {
        add(page, format_args!("slow: {} (`kvd slow-log` shows them)", show::count(slow)));
    }
}

/// Quantiles of a histogram without labels.
fn quantiles(figures: &Figures<'_>, name: &str, show: impl Fn(f64) -> String) -> String {
    let at = |quantile| figures.with(name, &[("quantile", quantile)]).map_or("-".to_owned(), &show);
    format!("p50 {}, p99 {}, max {}", at("0.5"), at("0.99"), at("1"))
}

fn disk(figures: &Figures<'_>, page: &mut String) {
    let one = |name| figures.one(name);
    let count = |name| show::count(one(name));
    add(page, "\ndisk");
    add(
        page,
        format_args!(
            "  pending log   {} of {}, {} records not flushed yet",
            bytes(one("kvd_pending_bytes")),
            bytes(one("kvd_pending_max_bytes")),
            count("kvd_pending_records"),
        ),
    );
    add(
        page,
        format_args!(
            "  journal       {} in {} rows, overlay {}",
            bytes(one("kvd_journal_bytes")),
            count("kvd_journal_records"),
            bytes(one("kvd_overlay_bytes")),
        ),
    );
    add(
        page,
        format_args!(
            "  flushes       {}: {}",
            count("kvd_flushes_total"),
            quantiles(figures, "kvd_flush_seconds", show::seconds)
        ),
    );
    let records = quantiles(figures, "kvd_flush_records", show::count);
    add(page, format_args!("  records each  {records}"));
    add(
        page,
        format_args!(
            "  store         {} on disk, {} of it live; {} items folded, {} swept, {} evicted, {} faults",
            bytes(one("kvd_store_file_bytes")),
            bytes(one("kvd_store_live_bytes")),
            count("kvd_folded_items_total"),
            count("kvd_swept_items_total"),
            count("kvd_disk_evicted_items_total"),
            count("kvd_store_faults_total"),
        ),
    );
}

fn locks(figures: &Figures<'_>, page: &mut String) {
    let count = |name| show::count(figures.one(name));
    let mode = figures.labels("kvd_locking_info", "mode").first().copied().unwrap_or("unknown");
    add(page, format_args!("\nlocks (mode {mode})"));
    add(
        page,
        format_args!(
            "  now           {} transactions, {} loads, {} named locks, {} waiting, {} watching",
            count("kvd_transactions_open"),
            count("kvd_leases_held"),
            count("kvd_named_locks_held"),
            count("kvd_lock_waiters"),
            count("kvd_watchers"),
        ),
    );
    add(
        page,
        format_args!(
            "  so far        {} waits, {} deadlocks, ended for others: {} silent, {} old, {} by hand",
            count("kvd_lock_waits_total"),
            count("kvd_deadlocks_total"),
            count("kvd_transactions_ended_silent_total"),
            count("kvd_transactions_ended_old_total"),
            count("kvd_transactions_ended_by_hand_total"),
        ),
    );
}

fn connections(figures: &Figures<'_>, page: &mut String) {
    let one = |name| figures.one(name);
    add(page, "\nconnections");
    add(
        page,
        format_args!(
            "  now           {}, {} so far, {} in, {} out; {:.0} of {:.0} descriptors",
            show::count(one("kvd_connections")),
            show::count(one("kvd_connections_accepted_total")),
            bytes(one("kvd_received_bytes_total")),
            bytes(one("kvd_sent_bytes_total")),
            one("process_open_fds"),
            one("process_max_fds"),
        ),
    );
    for (title, name, by) in [
        ("refused", "kvd_connections_refused_total", "reason"),
        ("cut", "kvd_connections_cut_total", "reason"),
        ("errors", "kvd_errors_total", "kind"),
    ] {
        let counts = figures.labels(name, by).into_iter().filter_map(|value| {
            let count = figures.with(name, &[(by, value)]).filter(|count| *count > 0.0)?;
            Some(format!("{value} {}", show::count(count)))
        });
        let counts: Vec<_> = counts.collect();
        if !counts.is_empty() {
            add(page, format_args!("  {title:<12}  {}", counts.join(", ")));
        }
    }
}

/// Every figure of one cache, with its meaning.
fn all_about(figures: &Figures<'_>, cache: &str, page: &mut String) {
    add(page, format_args!("cache {cache}: {} % hits", percent(figures.reads(cache).hit_percent())));
    for family in kvd::exposition::FAMILIES {
        let Some(value) = figures.with(family.name, &[("cache", cache)]) else { continue };
        let shown = if family.name.ends_with("_bytes") { bytes(value) } else { show::count(value) };
        add(page, format_args!("  {shown:>12}  {}", family.help));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_daemon_that_did_everything_fits_a_hundred_columns() {
        let server = kvd::testing::server();
        let client = kv_client::blocking::Client::builder()
            .socket(server.socket())
            .shared_memory(false)
            .build()
            .unwrap();
        let cache = client.cache("a-cache-with-a-rather-long-name");
        cache.put("k", vec![7; 10_000], None).unwrap();
        cache.get("k").unwrap();
        cache.get("missing").unwrap();
        client.sync().unwrap();
        assert!(client.cache("nothing").get("k").is_err());
        let metrics = client.admin().stats().unwrap();
        let figures = Figures::of(&metrics);
        let page = show(&figures, None);
        for part in
            ["HIT %", "OPERATION", "pending log", "flushes", "locks (mode database)", "unknown_cache 1"]
        {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
        let widest = page.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(110), "{widest:?} columns\n{page}");
        let page = show(&figures, Some("a-cache-with-a-rather-long-name"));
        assert!(page.contains("Items put") && page.contains("50.0 % hits"), "{page}");
    }
}
