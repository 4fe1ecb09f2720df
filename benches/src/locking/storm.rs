//! Work that tells afterwards whether anything was lost or torn when processes were killed meanwhile.
//!
//! [`super::worker`] calls [`step`] in each process of the storm and [`inspect`] in the process that looks at what is
//! left. Every process writes a key of its own, and keeps in a file which of those writes was acknowledged; and it
//! writes groups of keys that are only ever written together, with one stamp.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::value;
use super::worker::{AtWork, Done, Drawn, number_of};
use crate::BenchError;
use crate::client::failed;

/// Keys below this belong to one process each.
pub(super) const OWN_KEYS: u64 = 64;
/// Groups of keys behind those: so many that a torn one is seldom written again before it is found.
const GROUPS: u64 = 1_900;
const KEYS_A_GROUP: u64 = 5;
/// How long a transaction thinks, so that some are killed inside it.
const THINK: Duration = Duration::from_micros(500);

/// What one process was acknowledged; outlives it.
#[derive(Debug)]
pub(super) struct Acks(File);

impl Acks {
    pub(super) fn open(dir: &Path, index: u64) -> Result<Acks, BenchError> {
        let path = dir.join(index.to_string());
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        file.map(Acks).map_err(BenchError::io("opening a file of acknowledgements"))
    }

    /// The last acknowledged write; 0 if there is none.
    fn last(&self) -> Result<u64, BenchError> {
        let mut bytes = [0; 8];
        match self.0.read_at(&mut bytes, 0) {
            Ok(8) => Ok(u64::from_le_bytes(bytes)),
            Ok(_) => Ok(0),
            Err(error) => Err(BenchError::io("reading acknowledgements")(error)),
        }
    }

    fn keep(&self, write: u64) -> Result<(), BenchError> {
        let kept = self.0.write_all_at(&write.to_le_bytes(), 0);
        kept.map_err(BenchError::io("keeping an acknowledgement"))
    }
}

/// One operation of a process in the storm.
pub(super) fn step(at_work: &mut AtWork<'_>, acks: &mut Acks) -> Result<Done, BenchError> {
    /// Transactions and writes that were not acknowledged have numbers too.
    const WRITES_A_LIFE: u64 = 1 << 20;
    if *at_work.writes_mut() == 0 {
        *at_work.writes_mut() = acks.last()? / WRITES_A_LIFE * WRITES_A_LIFE + WRITES_A_LIFE;
    }
    let shape = at_work.spec.cell.shape();
    let drawn = |number| Drawn { text: shape.key_of(number), number };
    match at_work.random.u8(0..4) {
        0 | 1 => at_work.read(),
        2 => {
            let done = at_work.write(&drawn(at_work.spec.index))?;
            acks.keep(*at_work.writes_mut())?;
            Ok(done)
        }
        _ => {
            let first = OWN_KEYS + at_work.random.u64(0..GROUPS) * KEYS_A_GROUP;
            let keys: Vec<Drawn> = (first..first + KEYS_A_GROUP).map(drawn).collect();
            at_work.transact(&keys, THINK)
        }
    }
}

/// What a storm has left.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Left {
    /// Values that are not what any process wrote there.
    pub wrong: u64,
    /// Keys that are not there any more.
    pub missing: u64,
    /// Groups of which a part was written and a part was not.
    pub torn: u64,
    /// Processes of which an acknowledged write is not there.
    pub lost: u64,
}

impl Left {
    /// Whether nothing is amiss.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Left::default()
    }

    /// What is amiss, in words.
    #[must_use]
    pub fn words(&self) -> String {
        let Left { wrong, missing, torn, lost } = self;
        let all = [(wrong, "wrong"), (missing, "missing"), (torn, "torn"), (lost, "lost")];
        let amiss = all.iter().filter(|(count, _)| **count > 0);
        amiss.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    }
}

/// Looks at everything, then writes and does a transaction: a store that can only be read does not work.
pub(super) fn inspect(mut at_work: AtWork<'_>, acks: &Path) -> Result<Left, BenchError> {
    let cell = &at_work.spec.cell;
    let (keys, shape) = (cell.keys, cell.shape());
    let mut stamps: Vec<Option<u64>> = vec![None; keys as usize];
    let mut left = Left::default();
    at_work.scan(&mut |key, value| {
        let number = number_of(key).filter(|number| *number < keys);
        let stamp = number.and_then(|number| value::stamp_of(value, shape.value_bytes, number));
        match (number, stamp) {
            (Some(number), Some(stamp)) => stamps[number as usize] = Some(stamp),
            (Some(number), None) => {
                stamps[number as usize] = Some(0);
                left.wrong += 1;
            }
            (None, _) => left.wrong += 1,
        }
        Ok(())
    })?;
    let groups_end = OWN_KEYS + GROUPS * KEYS_A_GROUP;
    if groups_end > keys {
        return Err(failed(format!("a storm needs {groups_end} keys, there are {keys}")));
    }
    left.missing = stamps.iter().filter(|stamp| stamp.is_none()).count() as u64;
    let groups = stamps[OWN_KEYS as usize..groups_end as usize].chunks(KEYS_A_GROUP as usize);
    left.torn = groups.filter(|group| group.iter().any(|stamp| stamp != &group[0])).count() as u64;
    // Nobody writes these.
    left.wrong +=
        stamps[groups_end as usize..].iter().filter(|stamp| stamp.is_some_and(|it| it != 0)).count() as u64;
    for index in 0..OWN_KEYS {
        let acknowledged = Acks::open(acks, index)?.last()?;
        let found = stamps[index as usize].unwrap_or(0);
        let is_lost = acknowledged > 0 && found < value::stamp(index, acknowledged);
        left.lost += u64::from(is_lost);
    }
    let drawn = |number| Drawn { text: shape.key_of(number), number };
    // Keys of processes that are not there.
    at_work.write(&drawn(OWN_KEYS - 1))?;
    at_work.transact(&[drawn(OWN_KEYS - 2), drawn(OWN_KEYS - 3)], Duration::ZERO)?;
    at_work.read()?;
    Ok(left)
}
