//! Going through all keys of a cache for the biggest, or for how many there are of each prefix.
//!
//! Pages without values, one after the other; memory is bounded by what is shown, whatever the cache holds. On a terminal it
//! says how far it is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use indicatif::{ProgressBar, ProgressStyle};
use kv_client::Entry;
use kvd::units::show_bytes;
use serde_json::{Value, json};

use crate::cli::common::{Common, say};
use crate::cli::failure::{Exit, Failure, Outcome};
use crate::cli::show;

/// Prefixes that are told apart. Those that come later are counted together.
const PREFIXES_MAX: usize = 65_536;
/// Keys a page.
const PAGE_KEYS: u32 = 1_024;

/// Hands every key to `visit`; how many there were.
fn go_through(
    common: &Common,
    cache: &str,
    prefix: &[u8],
    mut visit: impl FnMut(Vec<u8>, Entry),
) -> Result<u64, Failure> {
    let mut scan = common.cache(cache)?.scan(prefix).keys_max(PAGE_KEYS);
    // Draws on standard error, and only on a terminal.
    let progress = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {human_pos} keys, {per_sec}, {elapsed}");
    progress.set_style(style.expect("the template is a constant"));
    let mut keys = 0;
    while let Some(page) = scan.next_page()? {
        keys += page.items.len() as u64;
        progress.set_position(keys);
        page.items.into_iter().for_each(|(key, entry)| visit(key, entry));
    }
    progress.finish_and_clear();
    Ok(keys)
}

pub(super) fn print_biggest(common: &Common, cache: &str, prefix: &[u8], count: usize) -> Outcome {
    let mut biggest = Biggest::new(count);
    let keys = go_through(common, cache, prefix, |key, entry| biggest.offer(key, entry))?;
    let found = biggest.into_sorted();
    if common.json {
        let rows = found.iter().map(|(key, entry)| show::entry_json(key, entry));
        rows.map(Value::Object).try_for_each(say)?;
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new(["VALUE", "EXPIRES", "STATE", "KEY"]);
    for (key, entry) in &found {
        table.add([
            show_bytes(u64::from(entry.value_bytes)),
            show::expires_in(entry.expires_in_ms),
            show::freshness(entry.freshness).to_owned(),
            show::escape(key),
        ]);
    }
    say(table)?;
    say(format_args!("the biggest {} of {keys} keys", found.len()))?;
    Ok(Exit::Done)
}

/// The items with the largest values so far.
struct Biggest {
    count: usize,
    // The smallest on top. The number keeps two of a size apart without comparing entries.
    heap: BinaryHeap<Reverse<(u32, u64)>>,
    items: BTreeMap<u64, (Vec<u8>, Entry)>,
    seen: u64,
}

impl Biggest {
    fn new(count: usize) -> Biggest {
        Biggest { count, heap: BinaryHeap::new(), items: BTreeMap::new(), seen: 0 }
    }

    fn offer(&mut self, key: Vec<u8>, entry: Entry) {
        if self.heap.len() == self.count {
            let Some(Reverse((smallest, number))) = self.heap.peek().copied() else { return };
            if entry.value_bytes <= smallest {
                return;
            }
            self.heap.pop();
            self.items.remove(&number);
        }
        self.seen += 1;
        self.heap.push(Reverse((entry.value_bytes, self.seen)));
        self.items.insert(self.seen, (key, entry));
    }

    fn into_sorted(self) -> Vec<(Vec<u8>, Entry)> {
        let mut items: Vec<_> = self.items.into_values().collect();
        items.sort_by(|(one_key, one), (other_key, other)| {
            other.value_bytes.cmp(&one.value_bytes).then_with(|| one_key.cmp(other_key))
        });
        items
    }
}

/// Where a prefix ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut<'a> {
    pub(super) separator: &'a [u8],
    pub(super) depth: usize,
}

impl Cut<'_> {
    /// The beginning of a key up to its last counted separator; `None`: it has none.
    fn of<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        let mut end = 0;
        for _ in 0..self.depth {
            let rest = &key[end..];
            let Some(at) = rest.windows(self.separator.len()).position(|part| part == self.separator) else {
                break;
            };
            end += at + self.separator.len();
        }
        (end > 0).then(|| &key[..end])
    }
}

/// What is counted of a prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    keys: u64,
    bytes: u64,
    largest: u32,
}

impl Sum {
    fn add(&mut self, key: &[u8], entry: &Entry) {
        self.keys += 1;
        self.bytes += key.len() as u64 + u64::from(entry.value_bytes);
        self.largest = self.largest.max(entry.value_bytes);
    }
}

pub(super) fn print_prefixes(
    common: &Common,
    cache: &str,
    prefix: &[u8],
    cut: Cut<'_>,
    limit: usize,
) -> Outcome {
    let mut sums: BTreeMap<Vec<u8>, Sum> = BTreeMap::new();
    let (mut without, mut others) = (Sum::default(), Sum::default());
    go_through(common, cache, prefix, |key, entry| {
        let is_full = sums.len() >= PREFIXES_MAX;
        match cut.of(&key) {
            None => without.add(&key, &entry),
            Some(start) => match sums.get_mut(start) {
                Some(sum) => sum.add(&key, &entry),
                None if is_full => others.add(&key, &entry),
                None => sums.entry(start.to_vec()).or_default().add(&key, &entry),
            },
        }
    })?;
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(_, sum)| Reverse(sum.bytes));
    for (_, sum) in rows.drain(limit.min(rows.len())..) {
        others.keys += sum.keys;
        others.bytes += sum.bytes;
        others.largest = others.largest.max(sum.largest);
    }
    if common.json {
        for (prefix, sum) in &rows {
            say(json_row(Some(prefix), "prefix", *sum))?;
        }
        for (kind, sum) in [("without", without), ("others", others)] {
            if sum.keys > 0 {
                say(json_row(None, kind, sum))?;
            }
        }
        return Ok(Exit::Done);
    }
    let mut table = show::Rows::new(["KEYS", "BYTES", "MEAN", "LARGEST VALUE", "PREFIX"]);
    let mut add = |name: String, sum: Sum| {
        table.add([
            sum.keys.to_string(),
            show_bytes(sum.bytes),
            show_bytes(sum.bytes / sum.keys.max(1)),
            show_bytes(u64::from(sum.largest)),
            name,
        ]);
    };
    rows.iter().for_each(|(prefix, sum)| add(show::escape(prefix), *sum));
    for (name, sum) in [("(no separator)", without), ("(all others)", others)] {
        if sum.keys > 0 {
            add(name.to_owned(), sum);
        }
    }
    say(table)?;
    Ok(Exit::Done)
}

fn json_row(prefix: Option<&[u8]>, kind: &str, sum: Sum) -> Value {
    let mut object = serde_json::Map::new();
    if let Some(prefix) = prefix {
        show::put_bytes(&mut object, "prefix", prefix);
    }
    for (name, value) in [
        ("kind", json!(kind)),
        ("keys", json!(sum.keys)),
        ("bytes", json!(sum.bytes)),
        ("value_bytes_max", json!(sum.largest)),
    ] {
        object.insert(name.to_owned(), value);
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_the_separator_that_was_asked_for() {
        let cut = |depth, key: &'static str| Cut { separator: b":", depth }.of(key.as_bytes());
        assert_eq!(cut(1, "user:1:name"), Some(&b"user:"[..]));
        assert_eq!(cut(2, "user:1:name"), Some(&b"user:1:"[..]));
        assert_eq!(cut(9, "user:1:name"), Some(&b"user:1:"[..]));
        assert_eq!(cut(1, "user"), None);
        assert_eq!(Cut { separator: b"::", depth: 1 }.of(b"a:b::c"), Some(&b"a:b::"[..]));
    }
}
