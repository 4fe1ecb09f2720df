//! A `get_many` over as many requests as it takes, all of one moment.
//!
//! The daemon answers as much as fits and names the moment; the rest is asked for at that moment. When the moment is
//! gone, all begins anew, a bounded number of times. Both clients drive it; it does no I/O.

use kv_proto::Version;
use kv_proto::limits::{COMMIT_BYTES_MAX, GET_MANY_KEYS_MAX};
use kv_proto::wire::{Bytes, Envelope, Request, Response, encode_into};

use crate::error::{Error, Result};
use crate::limits::SNAPSHOT_RESTARTS_MAX;
use crate::ops::{self, Lane, Repeat, Sending};

/// A `get_many` under way.
#[derive(Debug)]
pub(crate) struct GetMany<'a, K> {
    cache: &'a str,
    keys: &'a [K],
    values: Vec<Option<Vec<u8>>>,
    moment: Option<Version>,
    restarts: u32,
}

impl<'a, K: AsRef<[u8]>> GetMany<'a, K> {
    pub(crate) fn new(cache: &'a str, keys: &'a [K]) -> Result<GetMany<'a, K>> {
        ops::check_cache(cache)?;
        for key in keys {
            ops::check_item(cache, key.as_ref())?;
        }
        Ok(GetMany { cache, keys, values: Vec::with_capacity(keys.len()), moment: None, restarts: 0 })
    }

    /// The next request, `None` when all is there.
    pub(crate) fn next(&self) -> Option<Sending> {
        let rest = &self.keys[self.values.len()..];
        if rest.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let fits = |key: &&K| {
            bytes += key.as_ref().len() + 2;
            bytes < COMMIT_BYTES_MAX
        };
        let keys: Vec<_> =
            rest.iter().take(GET_MANY_KEYS_MAX).take_while(fits).map(|key| Bytes(key.as_ref())).collect();
        let mut frame = Vec::with_capacity(bytes + 64);
        let request = Request::GetMany { cache: self.cache, keys, snapshot: self.moment };
        encode_into(&mut frame, &Envelope { number: 0, request });
        Some(Sending { frame, value_bytes: 0, lane: Lane::Reads, repeat: Repeat::Harmless })
    }

    /// Takes an answer in.
    pub(crate) fn answered(&mut self, response: Response<'_>) -> Result<()> {
        match response {
            Response::Items { items, snapshot } => {
                if items.is_empty() || items.len() > self.keys.len() - self.values.len() {
                    let message = format!(
                        "the daemon answered get_many of {} keys with {} items",
                        self.keys.len() - self.values.len(),
                        items.len()
                    );
                    return Err(Error::Protocol { message, maybe_applied: false, source: None });
                }
                self.moment = Some(snapshot);
                self.values.extend(items.iter().map(|item| item.as_ref().map(|item| item.value.to_vec())));
                Ok(())
            }
            Response::Moved if self.restarts < SNAPSHOT_RESTARTS_MAX => {
                self.restarts += 1;
                self.moment = None;
                self.values.clear();
                Ok(())
            }
            Response::Moved => Err(Error::Refused {
                kind: kv_proto::wire::ErrorKind::Conflict,
                message: format!(
                    "the cache changed faster than {} keys could be read at one moment, {SNAPSHOT_RESTARTS_MAX} times over; ask for fewer at once",
                    self.keys.len()
                ),
                maybe_applied: false,
                retry_after: std::time::Duration::ZERO,
            }),
            other => Err(ops::unexpected("get_many", &other)),
        }
    }

    pub(crate) fn values(self) -> Vec<Option<Vec<u8>>> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::wire::{ErrorKind, Item};

    use super::*;

    fn items(values: &[&'static [u8]]) -> Vec<Option<Item<'static>>> {
        values.iter().map(|value| Some(Item { value, version: 1, entry: None })).collect()
    }

    #[test]
    fn a_partial_answer_is_continued_and_a_lost_moment_begins_anew() {
        let keys = ["a", "b", "c"];
        let mut many = GetMany::new("product", &keys).unwrap();
        many.answered(Response::Items { items: items(&[b"old"]), snapshot: 5 }).unwrap();
        assert_eq!(many.moment, Some(5));
        many.answered(Response::Moved).unwrap();
        assert_eq!((many.moment, many.values.len()), (None, 0));
        many.answered(Response::Items { items: items(&[b"1", b"2"]), snapshot: 6 }).unwrap();
        assert!(many.next().is_some());
        many.answered(Response::Items { items: items(&[b"3"]), snapshot: 6 }).unwrap();
        assert!(many.next().is_none());
        assert_eq!(many.values(), [Some(b"1".to_vec()), Some(b"2".to_vec()), Some(b"3".to_vec())]);
    }

    #[test]
    fn it_does_not_begin_anew_for_ever() {
        let mut many = GetMany::new("product", &["a"]).unwrap();
        for _ in 0..SNAPSHOT_RESTARTS_MAX {
            many.answered(Response::Moved).unwrap();
        }
        assert_eq!(many.answered(Response::Moved).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn an_answer_that_goes_nowhere_or_too_far_is_an_error() {
        let mut many = GetMany::new("product", &["a"]).unwrap();
        assert!(many.answered(Response::Items { items: Vec::new(), snapshot: 1 }).is_err());
        assert!(many.answered(Response::Items { items: items(&[b"1", b"2"]), snapshot: 1 }).is_err());
    }
}
