//! A table that can be sorted by any column and loses its last columns where there is no room for them.

use std::cmp::Ordering;

use kvd::units::show_bytes;

use super::model::{CacheRow, ClientRow, KeyRow, Model, OperationRow};
use crate::cli::show;

/// The tables, in the order of their keys.
pub(super) const TABLES: [&str; 4] = ["caches", "clients", "keys", "requests"];
/// Of a name so many characters are shown.
const NAME_CHARS_MAX: usize = 24;

/// A cell: what is shown, and what it is sorted by.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) text: String,
    number: Option<f64>,
}

impl Cell {
    fn text(text: &str) -> Cell {
        Cell { text: show::escape(text.as_bytes()), number: None }
    }

    fn name(text: &str) -> Cell {
        Cell { text: show::key_within(text.as_bytes(), NAME_CHARS_MAX), number: None }
    }

    fn shown(text: String, number: f64) -> Cell {
        Cell { text, number: Some(number) }
    }

    fn count(number: f64) -> Cell {
        Cell::shown(show::count(if number >= 10.0 { number.round() } else { number }), number)
    }

    fn bytes(number: f64) -> Cell {
        Cell::shown(show_bytes(number as u64), number)
    }

    fn seconds(seconds: Option<f64>) -> Cell {
        Cell::shown(seconds.map_or("-".to_owned(), show::seconds), seconds.unwrap_or(-1.0))
    }

    fn compare(&self, other: &Cell) -> Ordering {
        match (self.number, other.number) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            // Names rise where numbers fall: both begin with what one looks for.
            (None | Some(_), None | Some(_)) => other.text.cmp(&self.text),
        }
    }
}

/// A table, not yet in order.
#[derive(Debug)]
pub(super) struct Sheet {
    /// Name, and whether it stands to the right.
    pub(super) columns: Vec<(&'static str, bool)>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// The column that it is sorted by unless asked otherwise.
    pub(super) sort_default: usize,
    /// This column takes what is left of the width.
    pub(super) wide: usize,
}

impl Sheet {
    /// The table of this number in [`TABLES`].
    pub(super) fn of(model: &Model, number: usize) -> Sheet {
        match number {
            0 => caches(&model.caches),
            1 => clients(&model.clients),
            2 => keys(&model.keys),
            _ => operations(&model.operations),
        }
    }

    /// The largest first, or the smallest.
    pub(super) fn sort(&mut self, column: usize, is_turned: bool) {
        self.rows.sort_by(|one, other| {
            let order = other[column].compare(&one[column]);
            if is_turned { order.reverse() } else { order }
        });
    }

    /// Widths of the columns that fit into `width`, the first ones first; the wide one takes the rest.
    pub(super) fn fit(&self, width: usize) -> Vec<(usize, usize)> {
        let natural = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].text.chars().count());
            cells.chain([self.columns[column].0.chars().count()]).max().unwrap_or(0)
        };
        let mut fitting: Vec<(usize, usize)> = Vec::new();
        let mut left = width;
        for column in 0..self.columns.len() {
            // The wide column is content with its heading, and last.
            let least = if column == self.wide { natural(column).min(12) } else { natural(column) };
            let with_gap = least + usize::from(!fitting.is_empty());
            if with_gap > left {
                break;
            }
            left -= with_gap;
            fitting.push((column, least));
        }
        if let Some((_, wide)) = fitting.iter_mut().find(|(column, _)| *column == self.wide) {
            *wide += left.min(natural(self.wide).saturating_sub(*wide));
        }
        fitting
    }
}

fn caches(rows: &[CacheRow]) -> Sheet {
    let row = |cache: &CacheRow| {
        let reads = cache.reads;
        vec![
            Cell::name(&cache.name),
            Cell::count(reads.hits() + reads.misses),
            Cell::shown(
                reads.hit_percent().map_or("-".to_owned(), |percent| format!("{percent:.1}")),
                reads.hit_percent().unwrap_or(-1.0),
            ),
            Cell::count(reads.shared),
            Cell::count(reads.memory),
            Cell::count(reads.disk),
            Cell::count(reads.stale),
            Cell::count(reads.misses),
            Cell::count(cache.writes),
            Cell::count(cache.items),
            Cell::bytes(cache.memory_bytes),
            Cell::bytes(cache.memory_max_bytes),
            Cell::count(cache.evicted),
            Cell::count(cache.loads),
            Cell::bytes(cache.disk_bytes),
        ]
    };
    Sheet {
        columns: vec![
            ("CACHE", false),
            ("READS/s", true),
            ("HIT %", true),
            ("SHARED", true),
            ("MEMORY", true),
            ("DISK", true),
            ("STALE", true),
            ("MISSES", true),
            ("WRITES", true),
            ("ITEMS", true),
            ("USED", true),
            ("OF", true),
            ("EVICTED", true),
            ("LOADS", true),
            ("ON DISK", true),
        ],
        rows: rows.iter().map(row).collect(),
        sort_default: 1,
        wide: 0,
    }
}

fn clients(rows: &[ClientRow]) -> Sheet {
    let row = |client: &ClientRow| {
        let idle = client.idle;
        vec![
            Cell::shown(client.pid.to_string(), f64::from(client.pid)),
            Cell::name(&client.name),
            Cell::count(client.requests),
            Cell::count(client.shared),
            Cell::count(client.connections as f64),
            Cell::shown(show::whole_seconds(idle), idle.as_secs_f64()),
            Cell::text(if client.path.is_empty() { "-" } else { &client.path }),
        ]
    };
    Sheet {
        columns: vec![
            ("PID", true),
            ("NAME", false),
            ("REQUESTS/s", true),
            ("SHARED/s", true),
            ("CONNS", true),
            ("IDLE", true),
            ("PATH", false),
        ],
        rows: rows.iter().map(row).collect(),
        sort_default: 2,
        wide: 6,
    }
}

fn keys(rows: &[KeyRow]) -> Sheet {
    let all: f64 = rows.iter().map(|key| key.reads).sum();
    let row = |key: &KeyRow| {
        let share = if all > 0.0 { 100.0 * key.reads / all } else { 0.0 };
        vec![
            Cell::count(key.reads),
            Cell::shown(format!("{share:.1}"), share),
            Cell::bytes(f64::from(key.value_bytes)),
            Cell::name(&key.cache),
            Cell { text: show::escape(&key.key), number: None },
        ]
    };
    Sheet {
        columns: vec![("READS", true), ("SHARE %", true), ("VALUE", true), ("CACHE", false), ("KEY", false)],
        rows: rows.iter().map(row).collect(),
        sort_default: 0,
        wide: 4,
    }
}

fn operations(rows: &[OperationRow]) -> Sheet {
    let row = |operation: &OperationRow| {
        vec![
            Cell::text(&operation.name),
            Cell::count(operation.requests),
            Cell::seconds(operation.p50),
            Cell::seconds(operation.p99),
        ]
    };
    Sheet {
        columns: vec![("OPERATION", false), ("REQUESTS/s", true), ("P50", true), ("P99", true)],
        rows: rows.iter().map(row).collect(),
        sort_default: 1,
        wide: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_without_room_are_left_out_from_the_end_and_numbers_sort_downwards() {
        let key = |key: &str, reads| KeyRow { cache: "c".to_owned(), key: key.into(), reads, value_bytes: 9 };
        let mut sheet = keys(&[key("a-long-key-of-twenty", 5.0), key("b", 50.0)]);
        sheet.sort(0, false);
        assert_eq!(sheet.rows[0][4].text, "b");
        sheet.sort(4, false);
        assert_eq!(sheet.rows[0][4].text, "a-long-key-of-twenty");
        let columns = |width| sheet.fit(width).iter().map(|(column, _)| *column).collect::<Vec<_>>();
        assert_eq!(columns(60), [0, 1, 2, 3, 4]);
        assert_eq!(columns(20), [0, 1]);
        assert_eq!(sheet.fit(60)[4].1, 20, "the key has what it needs");
    }
}
