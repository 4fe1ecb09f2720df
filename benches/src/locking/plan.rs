//! What is run: cells, each a load of its own, in profiles of several, by name or from a file.
//!
//! Called by [`super`]. A cell says everything that a child process has to know about its work.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value::{VALUE_BYTES_MIN, WORD_BYTES};
use super::worker::Class;
use crate::BenchError;
use crate::protocol::Shape;
use crate::read::Pick;

const PROCESSES_MAX: usize = 64;
const KEYS_MAX: u64 = 1_000_000;
const KEYS_A_TRANSACTION_MAX: usize = 100;

/// A load: what all processes do, over and over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cell {
    /// What tables call it.
    pub name: String,
    /// Of 100 operations: writes of one key.
    pub writes_percent: f64,
    /// Of 100 operations: transactions, which read their keys, think, and write them. The rest reads one key.
    pub transactions_percent: f64,
    /// Keys of a transaction.
    pub keys_a_transaction: usize,
    /// How long it thinks in between, in milliseconds.
    pub think_ms: f64,
    /// How long a process does nothing between two operations, in milliseconds.
    pub pause_ms: f64,
    /// Skew of the keys: the exponent of a Zipf distribution; none: all alike.
    pub zipf: Option<f64>,
    /// Items.
    pub keys: u64,
    /// Length of their values.
    pub value_bytes: u32,
    /// Processes that do this.
    pub processes: usize,
    /// Further processes that walk over all items and take their time.
    pub scanners: usize,
    /// How long a scanner rests after every 250 items, in milliseconds.
    pub scan_rest_ms: f64,
}

impl Default for Cell {
    fn default() -> Cell {
        Cell {
            name: "cell".to_owned(),
            writes_percent: 0.0,
            transactions_percent: 0.0,
            keys_a_transaction: 5,
            think_ms: 0.0,
            pause_ms: 0.0,
            zipf: None,
            // As many as the mod_perl guide thinks a dbm file is good for.
            keys: 10_000,
            value_bytes: 512,
            processes: 8,
            scanners: 0,
            scan_rest_ms: 5.0,
        }
    }
}

impl Cell {
    fn named(name: &str, writes_percent: f64) -> Cell {
        Cell { name: name.to_owned(), writes_percent, ..Cell::default() }
    }

    pub(super) fn shape(&self) -> Shape {
        Shape { key_digits: 8, value_bytes: self.value_bytes }
    }

    pub(super) fn pick(&self) -> Pick {
        self.zipf.map_or(Pick::Uniform, Pick::Zipf)
    }

    /// A sentence for a reader of the table.
    #[must_use]
    pub fn what(&self) -> String {
        let Cell { writes_percent, transactions_percent, keys_a_transaction, processes, scanners, .. } = self;
        let mut what = format!("{processes} processes: {writes_percent} % writes");
        if *transactions_percent > 0.0 {
            what += &format!(
                ", {transactions_percent} % transactions that read {keys_a_transaction} keys and write them"
            );
            if self.think_ms > 0.0 {
                what += &format!(" after {} ms of thought", self.think_ms);
            }
        }
        let reads_percent = 100.0 - writes_percent - transactions_percent;
        if reads_percent > 0.0 {
            what += &format!(", {reads_percent} % reads");
        }
        if self.pause_ms > 0.0 {
            what += &format!(", {} ms between two", self.pause_ms);
        }
        if *scanners > 0 {
            what += &format!(
                "; beside them {scanners} walking over all items, resting {} ms after every {SCAN_ITEMS_A_REST}",
                self.scan_rest_ms
            );
        }
        let skew = self.zipf.map_or_else(|| "uniform".to_owned(), |exponent| format!("Zipf {exponent}"));
        what + &format!("; {} keys ({skew}), values of {} bytes", self.keys, self.value_bytes)
    }

    /// Whether operations of this class are asked for.
    pub(super) fn has(&self, class: Class) -> bool {
        let changes_percent = self.writes_percent + self.transactions_percent;
        match class {
            Class::Reader => changes_percent < 100.0,
            Class::Writer => changes_percent > 0.0,
            Class::Scanner => self.scanners > 0,
        }
    }

    /// Refuses what no machine should be asked for.
    fn check(&self) -> Result<(), String> {
        let shares = [self.writes_percent, self.transactions_percent];
        let times = [self.think_ms, self.pause_ms, self.scan_rest_ms];
        let name = &self.name;
        if !shares.iter().all(|share| (0.0..=100.0).contains(share)) || shares.iter().sum::<f64>() > 100.0 {
            Err(format!("{name}: writes and transactions are more than 100 % or less than nothing"))
        } else if !times.iter().all(|ms| (0.0..=1_000.0).contains(ms)) {
            Err(format!("{name}: times are from 0 to 1000 ms"))
        } else if !self.zipf.is_none_or(|exponent| (0.0..=5.0).contains(&exponent)) {
            Err(format!("{name}: zipf is from 0 to 5"))
        } else if !(1..=KEYS_A_TRANSACTION_MAX).contains(&self.keys_a_transaction) {
            Err(format!("{name}: a transaction has from 1 to {KEYS_A_TRANSACTION_MAX} keys"))
        } else if !(200..=KEYS_MAX).contains(&self.keys) {
            Err(format!("{name}: keys are from 200 to {KEYS_MAX}"))
        } else if !(VALUE_BYTES_MIN..=65_536).contains(&self.value_bytes)
            || !(self.value_bytes as usize).is_multiple_of(WORD_BYTES)
        {
            Err(format!("{name}: value_bytes is from {VALUE_BYTES_MIN} to 65536, a multiple of {WORD_BYTES}"))
        } else if !(1..=PROCESSES_MAX).contains(&self.processes) || self.scanners > PROCESSES_MAX {
            Err(format!("{name}: processes are from 1 to {PROCESSES_MAX}, scanners at most as many"))
        } else {
            Ok(())
        }
    }
}

/// Items that a scanner sees before it rests.
pub(super) const SCAN_ITEMS_A_REST: u64 = 250;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Within a minute.
    Quick,
    /// In about two.
    Default,
    /// The matrix.
    Full,
}

/// Everything that is run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its name, or the file it came from.
    pub profile: String,
    /// How much of it.
    pub extent: Extent,
    /// The loads.
    pub cells: Vec<Cell>,
    /// Rounds of each.
    pub rounds: usize,
    /// Work before it is counted.
    pub warm_up: Duration,
    /// Work that is counted.
    pub time: Duration,
    /// The trials beside the loads: somebody killed again and again, somebody stopped. `None`: not run.
    pub trials: Option<Trials>,
}

/// How long the trials take.
#[derive(Debug, Clone, Copy)]
pub struct Trials {
    /// Somebody is killed every 100 ms for this long.
    pub storm: Duration,
    /// Somebody is stopped for this long.
    pub stop: Duration,
}

/// A profile in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Loads, each beginning with `[[cell]]`.
    cell: Vec<Cell>,
}

impl Plan {
    /// How often a cell is run: where time is short, once if it is no part of a goal.
    pub(super) fn rounds_of(&self, cell: &Cell) -> usize {
        let is_more = self.profile != "default" || FIRST.contains(&cell.name.as_str());
        if is_more || self.extent == Extent::Full { self.rounds } else { 1 }
    }

    /// By name, or from a file.
    ///
    /// # Errors
    /// When there is no such profile or it asks for something that cannot be run; the reason is for a person to read.
    pub fn of(profile: &str, extent: Extent) -> Result<Plan, BenchError> {
        let refused = |what: String| BenchError::Server { server: "bench locking", what };
        let cells = match profile {
            "default" => default_cells(extent),
            "etoys" => etoys(),
            path => read(Path::new(path))
                .map_err(|why| refused(format!("--profile is default, etoys or a file: {path}: {why}")))?,
        };
        cells.iter().try_for_each(Cell::check).map_err(refused)?;
        let ms = Duration::from_millis;
        let seconds = Duration::from_secs;
        let (rounds, warm_up, time, storm, stop) = match extent {
            Extent::Quick => (1, ms(50), ms(180), ms(600), seconds(1)),
            Extent::Default => (3, ms(100), ms(340), ms(1_200), seconds(3)),
            Extent::Full => (3, ms(200), ms(600), seconds(30), seconds(10)),
        };
        let trials = (profile == "default").then_some(Trials { storm, stop });
        Ok(Plan { profile: profile.to_owned(), extent, cells, rounds, warm_up, time, trials })
    }
}

fn read(path: &Path) -> Result<Vec<Cell>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let written: Written = toml::from_str(&text).map_err(|error| error.to_string())?;
    Ok(written.cell)
}

/// The names of the cells in the first table.
pub(super) const FIRST: [&str; 4] = ["w1", "w10", "w50", "tx5"];

fn default_cells(extent: Extent) -> Vec<Cell> {
    let tx5 = Cell { transactions_percent: 5.0, ..Cell::named("tx5", 10.0) };
    let mut cells = vec![Cell::named("w1", 1.0), Cell::named("w10", 10.0), Cell::named("w50", 50.0), tx5];
    cells.push(Cell::named("fair", 100.0));
    cells.push(Cell { processes: 7, scanners: 1, ..Cell::named("scan", 10.0) });
    if extent == Extent::Full {
        cells.extend(matrix());
    }
    cells
}

/// Writes, keys of a transaction, thought and skew crossed; then value length and number of processes by themselves.
fn matrix() -> Vec<Cell> {
    let mut cells = Vec::new();
    for writes in [1.0, 10.0, 50.0, 100.0] {
        for keys_a_transaction in [1, 5] {
            for think_ms in [0.0, 1.0] {
                for zipf in [None, Some(0.99)] {
                    let skew = if zipf.is_some() { "z" } else { "u" };
                    cells.push(Cell {
                        transactions_percent: writes,
                        keys_a_transaction,
                        think_ms,
                        zipf,
                        ..Cell::named(&format!("t{writes}k{keys_a_transaction}m{think_ms}{skew}"), 0.0)
                    });
                }
            }
        }
    }
    for value_bytes in [64, 4_096] {
        cells.push(Cell { value_bytes, ..Cell::named(&format!("w10v{value_bytes}"), 10.0) });
    }
    for processes in [1, 2, 16, 32] {
        cells.push(Cell { processes, ..Cell::named(&format!("w10p{processes}"), 10.0) });
    }
    cells
}

/// What eToys.com told of its caches: about 1 % writes, and cursors and transactions that think for 10 ms.
fn etoys() -> Vec<Cell> {
    let etoys = Cell { transactions_percent: 0.5, think_ms: 10.0, ..Cell::named("etoys", 0.5) };
    let cursor = Cell { scanners: 1, scan_rest_ms: 10.0, processes: 7, ..etoys.clone() };
    vec![
        Cell { name: "etoys zipf".to_owned(), zipf: Some(0.99), ..etoys.clone() },
        Cell { name: "etoys cursor".to_owned(), ..cursor },
        etoys,
    ]
}

#[cfg(test)]
mod tests {
    use super::{Cell, Extent, FIRST, Plan};

    #[test]
    fn every_profile_can_be_run() {
        for extent in [Extent::Quick, Extent::Default, Extent::Full] {
            for profile in ["default", "etoys"] {
                let plan = Plan::of(profile, extent).expect("it is ours");
                let mut names: Vec<_> = plan.cells.iter().map(|cell| &cell.name).collect();
                names.sort();
                names.dedup();
                assert_eq!(names.len(), plan.cells.len(), "{profile} has two cells of one name");
            }
        }
        let plan = Plan::of("default", Extent::Quick).expect("it is ours");
        assert!(FIRST.iter().all(|first| plan.cells.iter().any(|cell| cell.name == *first)));
    }

    #[test]
    fn a_profile_of_ones_own_is_checked() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mine.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            Plan::of(path.to_str().expect("a path of ours"), Extent::Quick)
        };
        let plan = read("[[cell]]\nname = \"mine\"\nwrites_percent = 20\nzipf = 0.9\n").expect("it is right");
        assert_eq!(plan.cells[0], Cell { zipf: Some(0.9), ..Cell::named("mine", 20.0) });
        assert!(plan.trials.is_none());
        for wrong in ["[[cell]]\nwriters = 1", "[[cell]]\nvalue_bytes = 33", "[[cell]]\nwrites_percent = 101"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
