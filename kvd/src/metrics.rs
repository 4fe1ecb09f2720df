//! What the daemon counts about its requests and connections, from the first day.
//!
//! Connection threads record a batch at a time under one of a few locks, so that counting costs a request some tens of
//! nanoseconds and never meets all threads in one place. `stats` merges the shards when asked. Must never count by
//! key or by client: the number of time series stays fixed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use kv_proto::wire::{self, ErrorKind, Request};
use parking_lot::Mutex;

/// Locks to spread recording over. More than the cores of small hosts, few enough to merge at once.
const SHARDS: usize = 8;
/// Latencies beyond this count as this.
const LATENCY_MAX: Duration = Duration::from_secs(60);
/// Two significant digits: 1 % precise, some 30 KiB an operation and shard that saw it.
const LATENCY_DIGITS: u8 = 2;
/// What is shown of a distribution.
const QUANTILES: [(f64, &str); 5] =
    [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999"), (1.0, "1")];

/// Upper bounds of the latency buckets that `stats` shows, in nanoseconds, and as Prometheus writes them in seconds. 1, 2.5, 5 a
/// decade: what a dashboard interpolates between them is at most 2.5 times off; people get the quantiles themselves.
const LATENCY_BUCKETS_NS: [(u64, &str); 19] = [
    (10_000, "0.00001"),
    (25_000, "0.000025"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
    (10_000_000_000, "10"),
];
/// Upper bounds of the buckets of counts, such as records a flush.
const COUNT_BUCKETS: [(u64, &str); 13] = [
    (1, "1"),
    (2, "2"),
    (4, "4"),
    (8, "8"),
    (16, "16"),
    (32, "32"),
    (64, "64"),
    (128, "128"),
    (256, "256"),
    (1_024, "1024"),
    (4_096, "4096"),
    (16_384, "16384"),
    (65_536, "65536"),
];

/// The names of a histogram's rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HistogramNames {
    /// The family; quantiles, for people, have its name.
    pub(crate) family: &'static str,
    pub(crate) bucket: &'static str,
    pub(crate) sum: &'static str,
    pub(crate) count: &'static str,
}

macro_rules! histogram_names {
    ($name:literal) => {
        $crate::metrics::HistogramNames {
            family: $name,
            bucket: concat!($name, "_bucket"),
            sum: concat!($name, "_sum"),
            count: concat!($name, "_count"),
        }
    };
}
pub(crate) use histogram_names;

const REQUEST_SECONDS: HistogramNames = histogram_names!("kvd_request_seconds");

/// What the values of a histogram count.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scale {
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Things.
    Count,
}

impl Scale {
    /// What a value is in the row: seconds, or things.
    fn shown(self, value: f64) -> f64 {
        match self {
            Scale::Nanoseconds => value / 1e9,
            Scale::Microseconds => value / 1e6,
            Scale::Count => value,
        }
    }

    /// Upper bounds in the histogram's own unit, and as they are written.
    fn buckets(self) -> impl Iterator<Item = (u64, &'static str)> {
        let (bounds, divisor): (&[(u64, &str)], u64) = match self {
            Scale::Nanoseconds => (&LATENCY_BUCKETS_NS, 1),
            Scale::Microseconds => (&LATENCY_BUCKETS_NS, 1_000),
            Scale::Count => (&COUNT_BUCKETS, 1),
        };
        bounds.iter().map(move |(bound, text)| (bound / divisor, *text))
    }
}

/// Appends a distribution: buckets for Prometheus, quantiles for people, sum and count. `sum` in the row's unit; `None`: as
/// exactly as the histogram knows it.
pub(crate) fn histogram_rows(
    names: HistogramNames,
    label: Option<(&'static str, &str)>,
    histogram: &Histogram<u64>,
    scale: Scale,
    sum: Option<f64>,
    rows: &mut Vec<MetricRow>,
) {
    let labels = |more: Option<(&'static str, &str)>| {
        label.into_iter().chain(more).map(|(name, value)| (name, value.to_owned())).collect::<Vec<_>>()
    };
    let mut recorded = histogram.iter_recorded().peekable();
    let mut below = 0;
    for (bound, text) in scale.buckets() {
        while let Some(step) = recorded.next_if(|step| step.value_iterated_to() <= bound) {
            below += step.count_since_last_iteration();
        }
        rows.push(MetricRow { name: names.bucket, labels: labels(Some(("le", text))), value: below as f64 });
    }
    let all = histogram.len() as f64;
    rows.push(MetricRow { name: names.bucket, labels: labels(Some(("le", "+Inf"))), value: all });
    // Of nothing there is no quantile.
    for (quantile, text) in QUANTILES.into_iter().filter(|_| !histogram.is_empty()) {
        let value = scale.shown(histogram.value_at_quantile(quantile) as f64);
        rows.push(MetricRow { name: names.family, labels: labels(Some(("quantile", text))), value });
    }
    let sum = sum.unwrap_or_else(|| {
        let of_step = |step: hdrhistogram::iterators::IterationValue<u64>| {
            step.value_iterated_to() as f64 * step.count_since_last_iteration() as f64
        };
        scale.shown(histogram.iter_recorded().map(of_step).sum())
    });
    rows.push(MetricRow { name: names.sum, labels: labels(None), value: sum });
    rows.push(MetricRow { name: names.count, labels: labels(None), value: all });
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident => $label:literal, $vdoc:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $(#[doc = $vdoc] $variant,)+ }

        impl $name {
            const ALL: [$name; [$($name::$variant),+].len()] = [$($name::$variant),+];

            /// Its label in metrics.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)+ }
            }
        }
    };
}

labels! {
    /// What a request is counted as.
    Operation {
        Ping => "ping", "[`Request::Ping`].";
        Get => "get", "[`Request::Get`], sliding or not.";
        GetMany => "get_many", "[`Request::GetMany`].";
        Describe => "describe", "[`Request::Describe`].";
        Scan => "scan", "[`Request::Scan`], one page.";
        Put => "put", "[`Request::Put`].";
        Expire => "expire", "[`Request::Expire`].";
        Delete => "delete", "[`Request::Delete`].";
        Take => "take", "[`Request::Take`].";
        Increment => "increment", "[`Request::Increment`].";
        Commit => "commit", "[`Request::Commit`].";
        Clear => "clear", "[`Request::Clear`].";
        Drop => "drop", "[`Request::Drop`].";
        Stats => "stats", "[`Request::Stats`].";
        Caches => "caches", "[`Request::Caches`].";
        Sync => "sync", "[`Request::Sync`].";
        Attach => "attach", "[`Request::Attach`].";
        Hits => "hits", "[`Request::Hits`].";
        Clients => "clients", "[`Request::Clients`].";
        Begin => "begin", "[`Request::Begin`].";
        CommitTransaction => "commit_transaction", "[`Request::CommitTransaction`].";
        Rollback => "rollback", "[`Request::Rollback`].";
        Renew => "renew", "[`Request::Renew`].";
        Transactions => "transactions", "[`Request::Transactions`].";
        Lease => "lease", "[`Request::Lease`].";
        Fill => "fill", "[`Request::Fill`].";
        Abandon => "abandon", "[`Request::Abandon`].";
        Lock => "lock", "[`Request::Lock`].";
        RenewLock => "renew_lock", "[`Request::RenewLock`].";
        Unlock => "unlock", "[`Request::Unlock`].";
        Watch => "watch", "[`Request::Watch`].";
        SlowLog => "slow_log", "[`Request::SlowLog`].";
        Hottest => "hottest", "[`Request::Hottest`].";
        ScanAll => "scan_all", "[`Request::ScanAll`], one page.";
        ClearVersions => "clear_versions", "[`Request::ClearVersions`].";
        Backup => "backup", "[`Request::Backup`].";
        Check => "check", "[`Request::Check`].";
        Compact => "compact", "[`Request::Compact`].";
        Shutdown => "shutdown", "[`Request::Shutdown`].";
        Reload => "reload", "[`Request::Reload`].";
        Restart => "restart", "[`Request::Restart`].";
        LastRestart => "last_restart", "[`Request::LastRestart`].";
        Access => "access", "[`Request::Access`].";
    }
}

labels! {
    /// Why a connection was not served.
    RefusedFor {
        Denied => "denied", "Its user may not use this daemon.";
        Limit => "limit", "There are as many connections as may be.";
        UserLimit => "user_limit", "Its user has as many connections as it may.";
        Resources => "resources", "No descriptor or thread was to be had.";
    }
}

labels! {
    /// Why the daemon ended a connection.
    CutFor {
        Idle => "idle", "It asked nothing for too long.";
        PartialFrame => "partial_frame", "A frame was not completed in time.";
        Stalled => "stalled", "It did not read its answers.";
        Protocol => "protocol", "Its bytes were not of this protocol.";
    }
}

impl Operation {
    /// What `request` is counted as.
    #[must_use]
    pub fn of(request: &Request<'_>) -> Operation {
        match request {
            Request::Ping => Operation::Ping,
            Request::Get { .. } => Operation::Get,
            Request::GetMany { .. } => Operation::GetMany,
            Request::Describe { .. } => Operation::Describe,
            Request::Scan { .. } => Operation::Scan,
            Request::Put { .. } => Operation::Put,
            Request::Expire { .. } => Operation::Expire,
            Request::Delete { .. } => Operation::Delete,
            Request::Take { .. } => Operation::Take,
            Request::Increment { .. } => Operation::Increment,
            Request::Commit { .. } => Operation::Commit,
            Request::Clear { .. } => Operation::Clear,
            Request::Drop { .. } => Operation::Drop,
            Request::Stats => Operation::Stats,
            Request::Caches => Operation::Caches,
            Request::Sync => Operation::Sync,
            Request::Attach { .. } => Operation::Attach,
            Request::Hits { .. } => Operation::Hits,
            Request::Clients => Operation::Clients,
            Request::Begin { .. } => Operation::Begin,
            Request::CommitTransaction { .. } => Operation::CommitTransaction,
            Request::Rollback { .. } => Operation::Rollback,
            Request::Renew { .. } => Operation::Renew,
            Request::Transactions => Operation::Transactions,
            Request::Lease { .. } => Operation::Lease,
            Request::Fill { .. } => Operation::Fill,
            Request::Abandon { .. } => Operation::Abandon,
            Request::Lock { .. } => Operation::Lock,
            Request::RenewLock { .. } => Operation::RenewLock,
            Request::Unlock { .. } => Operation::Unlock,
            Request::Watch { .. } => Operation::Watch,
            Request::SlowLog { .. } => Operation::SlowLog,
            Request::Hottest { .. } => Operation::Hottest,
            Request::ScanAll { .. } => Operation::ScanAll,
            Request::ClearVersions { .. } => Operation::ClearVersions,
            Request::Backup { .. } => Operation::Backup,
            Request::Check { .. } => Operation::Check,
            Request::Compact => Operation::Compact,
            Request::Shutdown => Operation::Shutdown,
            Request::Reload => Operation::Reload,
            Request::Restart { .. } => Operation::Restart,
            Request::LastRestart => Operation::LastRestart,
            Request::Access { .. } => Operation::Access,
        }
    }
}

/// The label of an error kind.
#[must_use]
pub fn error_label(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Timeout => "timeout",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Deadlock => "deadlock",
        ErrorKind::LeaseLost => "lease_lost",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::Invalid => "invalid",
        ErrorKind::Denied => "denied",
        ErrorKind::UnknownCache => "unknown_cache",
        ErrorKind::StoreFull => "store_full",
        ErrorKind::StoreFailed => "store_failed",
        ErrorKind::Protocol => "protocol",
        ErrorKind::Config => "config",
        ErrorKind::Codec => "codec",
        ErrorKind::Loader => "loader",
        // The enum is open towards newer builds of the wire; this build answers with none of those.
        _ => "other",
    }
}

/// One request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// What it was.
    pub operation: Operation,
    /// From when its bytes had been read until its answer could be sent, the wait for the disk included.
    pub latency: Duration,
    /// The error it was answered with.
    pub error: Option<ErrorKind>,
}

/// A number of `stats` that owns its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    /// As Prometheus would name it.
    pub name: &'static str,
    /// Label pairs in order.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: f64,
}

impl MetricRow {
    /// A row with at most one label.
    #[must_use]
    pub fn new(name: &'static str, label: Option<(&'static str, &str)>, value: f64) -> MetricRow {
        let labels = label.map(|(k, v)| (k, v.to_owned())).into_iter().collect();
        MetricRow { name, labels, value }
    }

    /// As the wire carries it.
    #[must_use]
    pub fn as_wire(&self) -> wire::Metric<'_> {
        let labels = self.labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        wire::Metric { name: self.name, labels, value: self.value }
    }
}

/// Everything counted. One a daemon, shared by all its threads.
#[derive(Debug, Default)]
pub struct Metrics {
    shards: [Mutex<Shard>; SHARDS],
    connections: AtomicUsize,
    connections_total: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    refused: [AtomicU64; RefusedFor::ALL.len()],
    cut: [AtomicU64; CutFor::ALL.len()],
}

#[derive(Debug)]
struct Shard {
    operations: [PerOperation; Operation::ALL.len()],
    // By label, because the enum is open; a handful of entries.
    errors: Vec<(&'static str, u64)>,
}

#[derive(Debug, Default)]
struct PerOperation {
    latency_sum: Duration,
    // Made by the first request of its kind: most operations never occur in most shards.
    latency_ns: Option<Box<Histogram<u64>>>,
}

fn new_histogram() -> Histogram<u64> {
    let max_ns = u64::try_from(LATENCY_MAX.as_nanos()).expect("a minute");
    Histogram::new_with_bounds(1, max_ns, LATENCY_DIGITS).expect("the bounds are constants that fit")
}

impl Default for Shard {
    fn default() -> Shard {
        // Arrays of more than 32 have no default of their own.
        Shard { operations: std::array::from_fn(|_| PerOperation::default()), errors: Vec::new() }
    }
}

impl Shard {
    fn record(&mut self, sample: &Sample) {
        let operation = &mut self.operations[sample.operation as usize];
        operation.latency_sum += sample.latency;
        let ns = u64::try_from(sample.latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        operation.latency_ns.get_or_insert_with(|| Box::new(new_histogram())).saturating_record(ns);
        if let Some(kind) = sample.error {
            add_error(&mut self.errors, error_label(kind), 1);
        }
    }
}

fn add_error(errors: &mut Vec<(&'static str, u64)>, label: &'static str, count: u64) {
    match errors.iter_mut().find(|(known, _)| *known == label) {
        Some((_, n)) => *n += count,
        None => errors.push((label, count)),
    }
}

impl Metrics {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// Counts a batch of requests; `spread` (the connection's number) picks the lock.
    pub fn record(&self, spread: u64, samples: &[Sample]) {
        let mut shard = self.shards[(spread % SHARDS as u64) as usize].lock();
        for sample in samples {
            shard.record(sample);
        }
    }

    /// Counts bytes that came in.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes that went out.
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a connection that is served from now on.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.connections_total.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of a connection that was served.
    pub fn disconnected(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a connection that was not served.
    pub fn refused(&self, reason: RefusedFor) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that the daemon ended.
    pub fn cut(&self, reason: CutFor) {
        self.cut[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Connections served now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests answered so far.
    #[must_use]
    pub fn requests_total(&self) -> u64 {
        self.shards.iter().map(|s| s.lock().operations.iter().map(PerOperation::count).sum::<u64>()).sum()
    }

    /// Everything, shards merged. Operations and reasons that never occurred are shown as zero requests, so that a
    /// graph has them from the start.
    #[must_use]
    pub fn rows(&self) -> Vec<MetricRow> {
        let number = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let mut rows = Vec::with_capacity(256);
        rows.push(MetricRow::new("kvd_connections", None, self.connections() as f64));
        rows.push(MetricRow::new("kvd_connections_accepted_total", None, number(&self.connections_total)));
        for reason in RefusedFor::ALL {
            let label = Some(("reason", reason.label()));
            rows.push(MetricRow::new(
                "kvd_connections_refused_total",
                label,
                number(&self.refused[reason as usize]),
            ));
        }
        for reason in CutFor::ALL {
            let label = Some(("reason", reason.label()));
            rows.push(MetricRow::new("kvd_connections_cut_total", label, number(&self.cut[reason as usize])));
        }
        rows.push(MetricRow::new("kvd_received_bytes_total", None, number(&self.received_bytes)));
        rows.push(MetricRow::new("kvd_sent_bytes_total", None, number(&self.sent_bytes)));
        self.error_rows(&mut rows);
        for operation in Operation::ALL {
            self.operation_rows(operation, &mut rows);
        }
        rows
    }

    fn error_rows(&self, rows: &mut Vec<MetricRow>) {
        let mut errors = Vec::new();
        for shard in &self.shards {
            for (label, count) in &shard.lock().errors {
                add_error(&mut errors, label, *count);
            }
        }
        errors.sort_unstable();
        rows.extend(
            errors.iter().map(|(l, n)| MetricRow::new("kvd_errors_total", Some(("kind", l)), *n as f64)),
        );
    }

    fn operation_rows(&self, operation: Operation, rows: &mut Vec<MetricRow>) {
        let mut merged: Option<Histogram<u64>> = None;
        let mut latency_sum = Duration::ZERO;
        for shard in &self.shards {
            let shard = shard.lock();
            let one = &shard.operations[operation as usize];
            latency_sum += one.latency_sum;
            if let Some(latency_ns) = &one.latency_ns {
                match &mut merged {
                    None => merged = Some((**latency_ns).clone()),
                    Some(merged) => {
                        merged.add(&**latency_ns).expect("all histograms have the same bounds");
                    }
                }
            }
        }
        let label = Some(("operation", operation.label()));
        let total = merged.as_ref().map_or(0, Histogram::len);
        rows.push(MetricRow::new("kvd_requests_total", label, total as f64));
        if let Some(merged) = merged {
            let sum = Some(latency_sum.as_secs_f64());
            histogram_rows(REQUEST_SECONDS, label, &merged, Scale::Nanoseconds, sum, rows);
        }
    }
}

impl PerOperation {
    fn count(&self) -> u64 {
        self.latency_ns.as_ref().map_or(0, |h| h.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(rows: &[MetricRow], name: &str, labels: &[&str]) -> f64 {
        let matches = |row: &&MetricRow| {
            row.name == name && row.labels.iter().map(|(_, v)| v.as_str()).eq(labels.iter().copied())
        };
        rows.iter().find(matches).unwrap_or_else(|| panic!("{name} {labels:?}")).value
    }

    #[test]
    fn shards_are_merged_into_one_answer() {
        let metrics = Metrics::new();
        let sample =
            |us| Sample { operation: Operation::Get, latency: Duration::from_micros(us), error: None };
        for spread in 0..100 {
            metrics.record(spread, &[sample(10), sample(1_000)]);
        }
        let failed = Sample { error: Some(ErrorKind::TooLarge), operation: Operation::Put, ..sample(5) };
        metrics.record(3, &[failed]);
        metrics.record(4, &[failed]);
        let rows = metrics.rows();
        assert_eq!(value(&rows, "kvd_requests_total", &["get"]), 200.0);
        assert_eq!(value(&rows, "kvd_requests_total", &["scan"]), 0.0);
        assert_eq!(value(&rows, "kvd_errors_total", &["too_large"]), 2.0);
        assert!((value(&rows, "kvd_request_seconds", &["get", "0.5"]) - 10e-6).abs() < 1e-6);
        assert!((value(&rows, "kvd_request_seconds", &["get", "1"]) - 1e-3).abs() < 2e-5);
        assert!((value(&rows, "kvd_request_seconds_sum", &["get"]) - 0.101).abs() < 1e-6);
        assert_eq!(metrics.requests_total(), 202);
    }

    #[test]
    fn latencies_beyond_the_bound_count_as_the_bound() {
        let metrics = Metrics::new();
        let sample = Sample { operation: Operation::Sync, latency: Duration::from_secs(3_600), error: None };
        metrics.record(0, &[sample]);
        let shown = value(&metrics.rows(), "kvd_request_seconds", &["sync", "1"]);
        assert!((60.0..62.0).contains(&shown), "{shown}");
    }

    #[test]
    fn connections_are_a_gauge_and_a_counter() {
        let metrics = Metrics::new();
        metrics.connected();
        metrics.connected();
        metrics.disconnected();
        metrics.refused(RefusedFor::Denied);
        let rows = metrics.rows();
        assert_eq!(value(&rows, "kvd_connections", &[]), 1.0);
        assert_eq!(value(&rows, "kvd_connections_accepted_total", &[]), 2.0);
        assert_eq!(value(&rows, "kvd_connections_refused_total", &["denied"]), 1.0);
        assert_eq!(rows[0].as_wire().name, "kvd_connections");
    }
}
