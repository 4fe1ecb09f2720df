//! The first look at a key, in shared memory: all there is to most loads.

use std::time::Duration;

use kv_proto::Version;

use super::course::{Served, decode};
use crate::codec::{Codec, Decoded};
use crate::observe::{Event, Source};
use crate::options::Settings;
use crate::scope::Scope;
use crate::shared::{Found, Parts, Seat, give_back, scratch};

/// What shared memory says of a key that may have to be loaded.
#[derive(Debug)]
pub(crate) enum Glance<T> {
    /// There it is; `None`: that there is none. `refresh`: it is to be reloaded ahead of its end, this version of it.
    There { value: Option<T>, refresh: Option<Version> },
    /// It has to be loaded, or asked for.
    Load {
        /// What may be served meanwhile.
        stale: Option<Served>,
        /// An item that is there and will not do.
        except: Option<Version>,
    },
}

/// How one caller looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looker<'a, T> {
    pub(crate) seat: &'a Seat,
    pub(crate) settings: &'a Settings,
    pub(crate) scope: Option<&'a Scope>,
    pub(crate) codec: Codec<T>,
    /// "There is none" is an answer.
    pub(crate) takes_negatives: bool,
}

impl<T> Looker<'_, T> {
    /// Looks. `is_due` is set when what was read should be told now.
    // Inlined, or the answer is moved about once more and reads in a row overlap less: a tenth of what a hit costs.
    #[inline(always)]
    pub(crate) fn glance(&self, key: &[u8], refresh_ahead: Option<f64>, is_due: &mut bool) -> Glance<T> {
        if refresh_ahead.is_none() && self.scope.is_none() {
            let own = self.codec.own();
            let mut bytes = if own.is_some() { Vec::new() } else { scratch() };
            let glance = match self.seat.value(key, &mut bytes, is_due) {
                Some(Found::Fresh) => {
                    let value = match own {
                        Some(own) => Some(Some(own(std::mem::take(&mut bytes)))),
                        // What is no value is counted when it is looked at closely.
                        None => self.accept(self.codec.decode(&bytes)),
                    };
                    value.map(|value| {
                        self.hit(Source::Shared, false);
                        Glance::There { value, refresh: None }
                    })
                }
                Some(Found::Nothing) | None => Some(Glance::Load { stale: None, except: None }),
                Some(Found::Stale) => None,
            };
            if own.is_none() {
                give_back(bytes);
            }
            if let Some(glance) = glance {
                return glance;
            }
        }
        self.look_closely(key, refresh_ahead, is_due)
    }

    /// With all that is known about the item.
    #[cold]
    fn look_closely(&self, key: &[u8], refresh_ahead: Option<f64>, is_due: &mut bool) -> Glance<T> {
        let Some(Some(entry)) = self.seat.entry(key, Parts::All, is_due) else {
            return Glance::Load { stale: None, except: None };
        };
        let (version, age, left) = (entry.version, entry.age, entry.left());
        let served = Served::of_entry(entry, Source::Shared);
        match self.take(&served.bytes) {
            Some(value) if !served.is_stale => {
                self.hit(Source::Shared, false);
                served.note(self.scope);
                Glance::There { value, refresh: is_near_its_end(refresh_ahead, age, left).then_some(version) }
            }
            Some(_) => Glance::Load { stale: Some(served), except: None },
            None => Glance::Load { stale: None, except: Some(version) },
        }
    }

    /// What bytes say to this caller; `None`: nothing it takes.
    pub(crate) fn take(&self, bytes: &[u8]) -> Option<Option<T>> {
        self.accept(decode(self.codec, bytes, self.seat, self.settings))
    }

    #[inline]
    fn accept(&self, decoded: Option<Decoded<T>>) -> Option<Option<T>> {
        match decoded? {
            Decoded::Value(value) => Some(Some(value)),
            Decoded::Negative if self.takes_negatives => {
                self.seat.loads().negative();
                Some(None)
            }
            Decoded::Negative => None,
        }
    }

    /// Counts an answer without a loader.
    pub(crate) fn hit(&self, source: Source, is_stale: bool) {
        self.seat.loads().hit(source, is_stale);
        self.settings.observer.observe(&Event::Hit { cache: self.seat.name(), source, stale: is_stale });
    }
}

/// Whether an item of this age, with so much life left, is to be reloaded ahead of its end: after this fraction of its life.
pub(crate) fn is_near_its_end(fraction: Option<f64>, age: Duration, left: Option<Duration>) -> bool {
    match (fraction, left) {
        (Some(fraction), Some(left)) => age.as_secs_f64() >= fraction * (age + left).as_secs_f64(),
        // What never expires is never near it.
        (Some(_), None) | (None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_is_wanted_after_its_fraction_of_the_life() {
        let s = Duration::from_secs;
        assert!(!is_near_its_end(Some(0.9), s(89), Some(s(11))));
        assert!(is_near_its_end(Some(0.9), s(90), Some(s(10))));
        assert!(!is_near_its_end(Some(0.9), s(1_000), None));
        assert!(!is_near_its_end(None, s(99), Some(s(1))));
    }
}
