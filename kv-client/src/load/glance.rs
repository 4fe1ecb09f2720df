//! The first look at a key, in shared memory: all there is to most loads.

use kv_proto::Version;

use super::course::{Served, decode};
use super::entry::LoadOptions;
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
    #[inline]
    pub(crate) fn glance(&self, key: &[u8], options: &LoadOptions, is_due: &mut bool) -> Glance<T> {
        if options.refresh_ahead.is_none() && self.scope.is_none() {
            let mut bytes = scratch();
            let found = self.seat.value(key, &mut bytes, is_due);
            let glance = match found {
                // What is no value is counted when it is looked at closely.
                Some(Found::Fresh) => self.accept(self.codec.decode(&bytes)).map(|value| {
                    self.hit(Source::Shared, false);
                    Glance::There { value, refresh: None }
                }),
                Some(Found::Nothing) | None => Some(Glance::Load { stale: None, except: None }),
                Some(Found::Stale) => None,
            };
            give_back(bytes);
            if let Some(glance) = glance {
                return glance;
            }
        }
        self.look_closely(key, options, is_due)
    }

    /// With all that is known about the item.
    #[cold]
    fn look_closely(&self, key: &[u8], options: &LoadOptions, is_due: &mut bool) -> Glance<T> {
        let Some(Some(entry)) = self.seat.entry(key, Parts::All, is_due) else {
            return Glance::Load { stale: None, except: None };
        };
        let (version, age, left) = (entry.version, entry.age, entry.left());
        let served = Served::of_entry(entry, Source::Shared);
        match self.take(&served.bytes) {
            Some(value) if !served.is_stale => {
                self.hit(Source::Shared, false);
                served.note(self.scope);
                Glance::There { value, refresh: options.wants_refresh(age, left).then_some(version) }
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
