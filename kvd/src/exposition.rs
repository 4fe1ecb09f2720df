//! The rows of `stats` in Prometheus' text format, each family with what it means.
//!
//! `kvd stats --prometheus` and the endpoint call [`render`]; how a line is written is the exporter's. [`FAMILIES`] is the one
//! place that describes a metric; rows are made where things are counted, and a test holds the two against each other, and all
//! names against promtool's rules. Must never leave a row out: one that a newer daemon sent is shown without a type.

use std::collections::BTreeMap;

use metrics::{Key, Label};
use metrics_exporter_prometheus::LabelSet;
use metrics_exporter_prometheus::formatting::{write_help_line, write_metric_line, write_type_line};

use Kind::{Counter, Gauge, Histogram};

/// What Prometheus does with a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the daemon starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Rows `_bucket`, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    /// As the text format has it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        }
    }
}

/// A metric: its name, kind and meaning.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its rows are named so, those of a histogram with a suffix.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it says, without a full stop.
    pub help: &'static str,
}

const fn family(name: &'static str, kind: Kind, help: &'static str) -> Family {
    Family { name, kind, help }
}

/// Every metric of this build, in the order in which they are shown.
pub const FAMILIES: &[Family] = &[
    family("kvd_build_info", Gauge, "Always 1; the daemon's version is a label"),
    family("kvd_locking_info", Gauge, "Always 1; the locking mode is a label"),
    family("kvd_uptime_seconds", Gauge, "How long the daemon has been serving"),
    family("kvd_sequence", Gauge, "The newest sequence that was committed"),
    family("kvd_memory_max_bytes", Gauge, "Bound of the memory of all caches together"),
    family("kvd_connections", Gauge, "Connections served now"),
    family("kvd_connections_accepted_total", Counter, "Connections served so far"),
    family("kvd_connections_refused_total", Counter, "Connections that were not served, by reason"),
    family("kvd_connections_cut_total", Counter, "Connections that the daemon ended, by reason"),
    family("kvd_received_bytes_total", Counter, "Bytes that came in over the socket"),
    family("kvd_sent_bytes_total", Counter, "Bytes that went out over the socket"),
    family("kvd_errors_total", Counter, "Requests that were answered with an error, by kind"),
    family("kvd_requests_total", Counter, "Requests answered, by operation"),
    family(
        "kvd_request_seconds",
        Histogram,
        "From when a request's bytes had been read until its answer could be sent, waits included",
    ),
    family("kvd_slow_requests_total", Counter, "Requests beyond slow_log_threshold"),
    family(
        "kvd_start_clean",
        Gauge,
        "Whether the daemon before this one had stopped cleanly, or there was none: 1 or 0",
    ),
    family("kvd_start_replayed_journal_records", Gauge, "Journal records replayed at the start"),
    family("kvd_start_replayed_pending_records", Gauge, "Records of the pending log replayed at the start"),
    family("kvd_store_healthy", Gauge, "Whether the disk takes what is written: 1 or 0"),
    family("kvd_store_faults_total", Counter, "Failures of the disk"),
    family("kvd_store_file_bytes", Gauge, "Disk space of the store"),
    family("kvd_store_live_bytes", Gauge, "Keys and values in the store's tree"),
    family("kvd_overlay_bytes", Gauge, "Memory of what is not in the tree yet, about"),
    family("kvd_pending_records", Gauge, "Acknowledged records that are not flushed yet"),
    family("kvd_pending_bytes", Gauge, "Bytes of the pending log in use"),
    family("kvd_pending_max_bytes", Gauge, "Size of the pending log"),
    family("kvd_journal_records", Gauge, "Records of the journal, to be folded into the tree"),
    family("kvd_journal_bytes", Gauge, "Bytes of the journal"),
    family("kvd_flushes_total", Counter, "Flushes to stable storage"),
    family("kvd_flush_seconds", Histogram, "How long a flush took"),
    family("kvd_flush_records", Histogram, "Records that one flush made durable together"),
    family("kvd_folds_total", Counter, "Folds of the journal into the tree"),
    family("kvd_folded_items_total", Counter, "Items folded into the tree"),
    family("kvd_sweeps_total", Counter, "Passes of the sweep over the tree"),
    family("kvd_swept_items_total", Counter, "Dead items that the sweep dropped from the tree"),
    family(
        "kvd_disk_evicted_items_total",
        Counter,
        "Items evicted because a cache had reached its share of the disk",
    ),
    family("kvd_transactions_open", Gauge, "Open transactions, and writes that wait for one"),
    family("kvd_leases_held", Gauge, "Loads under way"),
    family("kvd_named_locks_held", Gauge, "Named locks held"),
    family("kvd_lock_waiters", Gauge, "Transactions, writes, loads and named locks that wait for others"),
    family("kvd_watchers", Gauge, "Connections that watch changes"),
    family("kvd_lock_waits_total", Counter, "Waits for a lock; those for loads are counted by cache"),
    family("kvd_deadlocks_total", Counter, "Rings of waiting transactions that were broken"),
    family(
        "kvd_transactions_ended_silent_total",
        Counter,
        "Transactions ended because they were silent and in the way",
    ),
    family("kvd_transactions_ended_old_total", Counter, "Transactions ended because they were open too long"),
    family("kvd_transactions_ended_by_hand_total", Counter, "Transactions ended by kvd rollback"),
    family("kvd_grants_taken_back_total", Counter, "Locks taken back from who did nothing under them"),
    family(
        "kvd_cache_hits_shared_total",
        Counter,
        "Reads answered in the reader's own process, told in arrears",
    ),
    family(
        "kvd_cache_misses_shared_total",
        Counter,
        "Misses found in the reader's own process, told in arrears",
    ),
    family("kvd_cache_hits_memory_total", Counter, "Reads that the daemon answered from memory"),
    family("kvd_cache_hits_disk_total", Counter, "Reads that the daemon answered from disk"),
    family("kvd_cache_hits_stale_total", Counter, "Reads answered with a stale item"),
    family("kvd_cache_misses_total", Counter, "Reads that the daemon answered with nothing"),
    family("kvd_cache_writes_total", Counter, "Items put"),
    family("kvd_cache_removals_total", Counter, "Items deleted, taken, or expired by hand"),
    family("kvd_cache_clears_total", Counter, "Clears that covered items of this cache"),
    family("kvd_cache_conditions_refused_total", Counter, "Writes whose condition did not hold"),
    family("kvd_cache_items", Gauge, "Items in memory"),
    family("kvd_cache_disk_marks", Gauge, "Keys that memory knows to be on disk only"),
    family("kvd_cache_evicted_total", Counter, "Live items that left memory for others"),
    family("kvd_cache_expired_total", Counter, "Items dropped from memory after their life"),
    family("kvd_cache_promoted_total", Counter, "Items that were read often enough to stay"),
    family("kvd_cache_ghost_hits_total", Counter, "Items that came back soon after they had left memory"),
    family("kvd_cache_index_forgotten_total", Counter, "Keys whose place in the index was needed by others"),
    family("kvd_cache_memory_bytes", Gauge, "Memory in use"),
    family("kvd_cache_memory_max_bytes", Gauge, "Share of the memory"),
    family("kvd_cache_disk_bytes", Gauge, "Keys and values on disk, about"),
    family("kvd_cache_disk_max_bytes", Gauge, "Share of the disk; 0: none"),
    family("kvd_leases_granted_total", Counter, "Leases to load that were granted"),
    family("kvd_lease_fills_total", Counter, "Values that were put by right of a lease"),
    family("kvd_lease_fills_refused_total", Counter, "Loaded values that came too late"),
    family("kvd_lease_abandons_total", Counter, "Leases given back without a value"),
    family("kvd_lease_waits_total", Counter, "Waits for somebody else's load"),
    family("kvd_leases_overtaken_total", Counter, "Leases ended by a write or clear of their key"),
    family("kvd_leases_expired_total", Counter, "Leases held too long and wanted by others"),
    family("kvd_leases_lost_total", Counter, "Leases whose connection ended"),
    family("process_start_time_seconds", Gauge, "When the daemon started, in seconds since 1970"),
    family("process_cpu_seconds_total", Counter, "Processor time of the daemon"),
    family("process_resident_memory_bytes", Gauge, "Resident memory of the daemon, shared memory included"),
    family("process_open_fds", Gauge, "Open file descriptors of the daemon"),
    family("process_max_fds", Gauge, "Most file descriptors that the daemon may have open"),
];

/// One row: name, label pairs, number.
pub type Row<'a> = (&'a str, Vec<(&'a str, &'a str)>, f64);

/// The family that a row belongs to, if this build knows it.
#[must_use]
pub fn family_of(row: &str) -> Option<&'static Family> {
    let of = |name: &str| FAMILIES.iter().find(|family| family.name == name);
    of(row).or_else(|| {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| row.strip_suffix(suffix))?;
        of(stem).filter(|family| family.kind == Histogram)
    })
}

/// The rows as Prometheus scrapes them. The quantiles of histograms are for people only: Prometheus computes them itself, over
/// any time and any number of daemons.
#[must_use]
pub fn render<'a>(rows: impl IntoIterator<Item = Row<'a>>) -> String {
    let mut known: BTreeMap<&str, Vec<Row<'a>>> = BTreeMap::new();
    let mut strange: BTreeMap<&str, Vec<Row<'a>>> = BTreeMap::new();
    for row in rows {
        match family_of(row.0) {
            Some(family) if family.kind == Histogram && row.0 == family.name => {}
            Some(family) => known.entry(family.name).or_default().push(row),
            None => strange.entry(row.0).or_default().push(row),
        }
    }
    let mut text = String::new();
    for family in FAMILIES {
        let Some(rows) = known.get(family.name) else { continue };
        write_help_line(&mut text, family.name, None, None, family.help);
        write_type_line(&mut text, family.name, None, None, family.kind.label());
        rows.iter().for_each(|row| write_row(&mut text, row));
    }
    for row in strange.into_values().flatten() {
        write_row(&mut text, &row);
    }
    text
}

fn write_row(text: &mut String, (name, labels, value): &Row<'_>) {
    let labels = labels.iter().map(|(name, value)| Label::new((*name).to_owned(), (*value).to_owned()));
    let key = Key::from_parts((*name).to_owned(), labels.collect::<Vec<_>>());
    let labels = LabelSet::from_key_and_global(&key, &Default::default());
    write_metric_line(text, name, None, &labels, None::<(&'static str, &str)>, value, None);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for family in FAMILIES {
            let problems = lint(family);
            assert!(problems.is_empty(), "{}: {problems:?}", family.name);
        }
        let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len(), "a family is described twice");
    }

    #[test]
    fn the_lint_finds_what_promtool_finds() {
        for (name, kind) in [
            ("kvd_requests", Counter),
            ("kvd_items_total", Gauge),
            ("kvd_wait_ms", Gauge),
            ("kvd_wait_milliseconds", Gauge),
            ("kvd_bytes_max", Gauge),
            ("kvd_items_count", Gauge),
            ("kvd_items_gauge", Gauge),
            ("kvdItems", Gauge),
            ("kvd:items", Gauge),
            ("kvd_memory_kib", Gauge),
        ] {
            assert!(!lint(&family(name, kind, "x")).is_empty(), "{name} passes");
        }
        assert!(!lint(&family("kvd_items", Gauge, "")).is_empty(), "no help passes");
    }

    /// The rules of `promtool check metrics` that a name can break, and that the unit comes last.
    fn lint(family: &Family) -> Vec<&'static str> {
        const ABBREVIATED: [&str; 17] = [
            "s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "kib", "mib", "gib", "m", "h",
            "d",
        ];
        const NOT_BASE: [&str; 11] = [
            "milliseconds",
            "microseconds",
            "nanoseconds",
            "minutes",
            "hours",
            "days",
            "kilobytes",
            "megabytes",
            "gigabytes",
            "bits",
            "percent",
        ];
        let name = family.name;
        let words: Vec<&str> = name.split('_').collect();
        let unit = words.iter().position(|word| ["seconds", "bytes"].contains(word));
        let after_unit = unit.map_or(&[][..], |at| &words[at + 1..]);
        let is_counter = family.kind == Counter;
        [
            (family.help.is_empty(), "no help"),
            (family.help.ends_with('.'), "help ends with a full stop"),
            (is_counter != name.ends_with("_total"), "counters, and only they, end with _total"),
            (["_count", "_sum", "_bucket"].iter().any(|s| name.ends_with(s)), "a suffix of histograms"),
            (name.contains(':'), "colons are for recording rules"),
            (
                name.bytes().any(|b| !(b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')),
                "not snake_case",
            ),
            (words.iter().any(|word| ABBREVIATED.contains(word)), "an abbreviated unit"),
            (words.iter().any(|word| NOT_BASE.contains(word)), "not a base unit"),
            (
                words.iter().any(|word| ["counter", "gauge", "histogram", "summary"].contains(word)),
                "its type in its name",
            ),
            (!after_unit.iter().all(|word| *word == "total"), "the unit is not last"),
        ]
        .into_iter()
        .filter_map(|(is_wrong, problem)| is_wrong.then_some(problem))
        .collect()
    }

    #[test]
    fn alert_rules_name_only_metrics_that_exist() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/alerts.yml");
        let rules = std::fs::read_to_string(path).unwrap();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let named: BTreeSet<_> = rules
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(|line| line.split(|c| !is_word(c)))
            .filter(|word| word.starts_with("kvd_") || word.starts_with("process_"))
            .collect();
        assert!(named.len() > 10, "{named:?}");
        for name in named {
            let family = family_of(name).unwrap_or_else(|| panic!("no metric is called {name}"));
            assert!(
                family.kind != Histogram || name != family.name,
                "{name} is a histogram: name its buckets"
            );
        }
        // An alert that nobody can act upon only wakes people.
        let count = |what: &str| rules.lines().filter(|line| line.trim_start().starts_with(what)).count();
        assert_eq!(count("- alert:"), count("action:"));
    }

    #[test]
    fn every_row_is_described_and_every_description_has_rows() {
        let server = crate::testing::server();
        let client = server.client();
        client.cache("c").put("k", "v", None).unwrap();
        client.sync().unwrap();
        assert!(client.cache("unknown").get("k").is_err());
        let rows = server.engine().metric_rows();
        let mut described = BTreeSet::new();
        for row in &rows {
            let family = family_of(row.name).unwrap_or_else(|| panic!("{} is not described", row.name));
            described.insert(family.name);
        }
        let bare: Vec<_> = FAMILIES.iter().map(|f| f.name).filter(|name| !described.contains(name)).collect();
        assert!(bare.is_empty(), "nothing is counted for {bare:?}");
        // No row twice, and every bucket holds what the one before it holds.
        let series: BTreeSet<_> = rows.iter().map(|row| (row.name, row.labels.clone())).collect();
        assert_eq!(series.len(), rows.len());
        let buckets: Vec<f64> =
            rows.iter().filter(|row| row.name == "kvd_flush_records_bucket").map(|row| row.value).collect();
        assert!(buckets.is_sorted() && buckets.last() >= Some(&1.0), "{buckets:?}");
        // A flush syncs: none takes less than some microseconds, whatever the disk.
        let flush = rows.iter().find(|row| row.name == "kvd_flush_seconds_sum").unwrap();
        assert!(flush.value > 10e-6, "{flush:?}");
    }

    #[test]
    fn a_page_has_each_family_once_with_help_and_type_and_escapes_labels() {
        let rows = [
            ("kvd_requests_total", vec![("operation", "get")], 3.0),
            ("kvd_connections", vec![], 2.0),
            ("kvd_requests_total", vec![("operation", "a\"b\\c\nd")], 1.0),
            ("kvd_request_seconds", vec![("operation", "get"), ("quantile", "0.5")], 0.1),
            ("kvd_request_seconds_bucket", vec![("operation", "get"), ("le", "+Inf")], 3.0),
            ("kvd_of_tomorrow", vec![], 7.5),
        ];
        assert_eq!(
            render(rows),
            "# HELP kvd_connections Connections served now\n\
             # TYPE kvd_connections gauge\n\
             kvd_connections 2\n\
             # HELP kvd_requests_total Requests answered, by operation\n\
             # TYPE kvd_requests_total counter\n\
             kvd_requests_total{operation=\"get\"} 3\n\
             kvd_requests_total{operation=\"a\\\"b\\\\c\\nd\"} 1\n\
             # HELP kvd_request_seconds From when a request's bytes had been read until its answer could be sent, waits included\n\
             # TYPE kvd_request_seconds histogram\n\
             kvd_request_seconds_bucket{operation=\"get\",le=\"+Inf\"} 3\n\
             kvd_of_tomorrow 7.5\n"
        );
    }
}
