//! `bench traces`: which requests a cache of a given size answers, replayed through the production segment and its peers.
//!
//! Called by `bin/bench`. [`sources`] says who asks for what (with [`shapes`], the made-up part of it), [`candidates`] are
//! the caches, [`segment`] is ours, [`belady`] is the best that could be had, [`table`] prints. Nothing here measures time,
//! so a busy machine does no harm.
//!
//! Every candidate gets the same bytes: a weight an object, which is what the object takes in a ring of kvd (key, value and
//! item header), and a sum of weights that must not be passed. What the others keep beside that (entries, lists,
//! sketches) is not counted against them. kvd is run twice: with rings of that many bytes, and in a segment that has header, index and rings in that
//! many.

pub mod belady;
pub mod candidates;
pub mod segment;
pub mod shapes;
pub mod sources;
pub mod table;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::BenchError;
use candidates::{Kind, replay};
use sources::Source;

/// Sizes of caches, in parts of all the bytes a source asks for.
pub const SHARES_PERCENT: [u32; 4] = [1, 5, 10, 25];

/// What is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where the recorded traces lie.
    pub data: PathBuf,
    /// Accesses of a source at most.
    pub accesses_max: usize,
    /// Only these sources; empty: all.
    pub only: Vec<String>,
    /// Chooses what is made up.
    pub seed: u64,
}

/// Hits of one candidate at one size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// Which cache.
    pub kind: Kind,
    /// Its size in parts of the source's bytes.
    pub share_percent: u32,
    /// Its size in bytes.
    pub budget_bytes: u64,
    /// How many accesses were hits.
    pub hits: u64,
    /// `hits` in per cent of all accesses.
    pub hit_percent: f64,
}

/// A source and how all candidates did.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The source's name.
    pub name: &'static str,
    /// What it is.
    pub what: String,
    /// How often something was asked for.
    pub accesses: usize,
    /// How many different things.
    pub objects: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// One a candidate and size.
    pub cells: Vec<Cell>,
}

impl Found {
    /// Hits in per cent.
    #[must_use]
    pub fn percent(&self, kind: Kind, share_percent: u32) -> Option<f64> {
        let cell = self.cells.iter().find(|cell| cell.kind == kind && cell.share_percent == share_percent)?;
        Some(cell.hit_percent)
    }
}

/// Runs every candidate at every size over every source. The second list says what was skipped, and why.
///
/// # Errors
/// When a trace is there and cannot be read.
pub fn run(plan: &Plan) -> Result<(Vec<Found>, Vec<String>), BenchError> {
    let mut skipped = Vec::new();
    let mut found = Vec::new();
    for name in sources::NAMES {
        if !plan.only.is_empty() && !plan.only.iter().any(|only| only == name) {
            continue;
        }
        match Source::open(name, plan)? {
            Ok(source) => found.push(run_source(&source)),
            Err(reason) => skipped.push(format!("{name}: {reason}")),
        }
    }
    Ok((found, skipped))
}

/// All candidates and sizes of one source, as many at a time as there are processors.
fn run_source(source: &Source) -> Found {
    let jobs: Vec<(Kind, u32)> =
        Kind::ALL.iter().flat_map(|&kind| SHARES_PERCENT.map(|share| (kind, share))).collect();
    let next = AtomicUsize::new(0);
    let cells = Mutex::new(Vec::new());
    let nexts = belady::next_uses(&source.accesses);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(kind, share_percent)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let budget_bytes = source.bytes() * u64::from(share_percent) / 100;
                    let hits = replay(kind, source, &nexts, budget_bytes);
                    let hit_percent = 100.0 * hits as f64 / source.accesses.len() as f64;
                    let cell = Cell { kind, share_percent, budget_bytes, hits, hit_percent };
                    cells.lock().expect("nobody panics while holding it").push(cell);
                }
            });
        }
    });
    Found {
        name: source.name,
        what: source.what.clone(),
        accesses: source.accesses.len(),
        objects: source.objects.len(),
        bytes: source.bytes(),
        cells: cells.into_inner().expect("all threads have ended well"),
    }
}
