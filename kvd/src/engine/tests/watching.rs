//! Watching: what is told, to whom, in which order, and how much is said to be missing.

use kv_proto::limits;
use kv_proto::wire::{
    Bytes, Change, Effect, Expiry, PutOptions, Request, Response, Rights, Scope, What, decode,
};

use super::super::{Caller, ThreadPark};
use super::{House, Somebody, house, house_with};
use crate::config::Access;

impl House {
    /// A session of a connection, as far as the engine can tell.
    fn connected(&self, uid: u32) -> Somebody {
        let rights = if uid == 0 { Rights::all() } else { Rights::CACHE };
        let caller = Caller { id: 7, uid, rights, ..Caller::default() };
        let session = self.engine.join(caller, Box::new(ThreadPark::default()));
        Somebody { engine: self.engine.clone(), session }
    }
}

impl Somebody {
    fn watch(&mut self, cache: Option<&str>, prefix: &[u8]) {
        assert_eq!(self.say(Request::Watch { cache, prefix }), "Watching");
        assert!(self.session.is_watching());
    }

    /// All that waits for it, and how much is missing.
    fn changes(&mut self) -> (Vec<String>, u64) {
        let mut frames = Vec::new();
        self.engine.take_changes(&self.session, &mut frames);
        let (mut told, mut missing) = (Vec::new(), 0);
        let mut rest = &frames[..];
        while let Some((body, after)) = kv_proto::wire::split_frame(rest, frames.len()).unwrap() {
            let Response::Changes { changes, missed } = decode(body).unwrap() else { panic!("not changes") };
            missing += missed;
            told.extend(changes.iter().map(show));
            rest = after;
        }
        (told, missing)
    }

    fn told(&mut self) -> Vec<String> {
        let (told, missing) = self.changes();
        assert_eq!(missing, 0);
        told
    }

    fn put_in(&mut self, cache: &str, key: &str) {
        let options = PutOptions { tags: vec![Bytes(b"t")], ..PutOptions::default() };
        self.write(Request::Put { cache, key: key.as_bytes(), value: b"12345", options });
    }
}

fn show(change: &Change<'_>) -> String {
    assert!(change.version > 0);
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let what = match change.what {
        What::Put { key, value_bytes } => format!("put {} {value_bytes}", text(key)),
        What::Removed { key } => format!("removed {}", text(key)),
        What::Cleared { effect } => format!("cleared {effect:?}"),
        What::ClearedPrefix { prefix, effect } => format!("cleared {}* {effect:?}", text(prefix)),
        What::ClearedTag { tag, effect } => format!("cleared #{} {effect:?}", text(tag)),
        What::Dropped => "dropped".to_owned(),
    };
    format!("{} {what}", change.cache)
}

#[test]
fn a_watcher_is_told_all_that_changes_in_order() {
    let house = house();
    let (mut writer, mut watcher) = (house.somebody(), house.connected(0));
    writer.put_in("a", "before");
    watcher.watch(None, b"");
    writer.put_in("a", "k");
    writer.write(Request::Expire { cache: "a", key: b"k", expiry: Expiry::Stale });
    writer.write(Request::Delete { cache: "a", key: b"k" });
    assert_eq!(writer.say(Request::Delete { cache: "a", key: b"k" }), "Missing");
    let transaction = writer.begin();
    writer.put_in("a", "inside");
    assert_eq!(watcher.told(), ["a put k 5", "a put k 5", "a removed k"]);
    let commit = Request::CommitTransaction { transaction, durability: None };
    writer.ask(commit, |response| assert!(matches!(response, Response::Committed { .. })));
    writer.clear(Scope::Prefix { cache: "a", prefix: b"in" }, Effect::Gone);
    writer.clear(Scope::Tag { cache: Some("a"), tag: b"t" }, Effect::Stale);
    writer.clear(Scope::Everything, Effect::Gone);
    writer.write(Request::Drop { cache: "a" });
    let expected =
        ["a put inside 5", "a cleared in* Gone", "a cleared #t Stale", "a cleared Gone", "a dropped"];
    assert_eq!(watcher.told(), expected);
    assert_eq!(watcher.told(), [""; 0]);
}

#[test]
fn a_watcher_of_a_prefix_is_told_only_what_may_be_of_its_keys() {
    let house = house();
    let (mut writer, mut watcher) = (house.somebody(), house.connected(0));
    writer.put_in("a", "user:1");
    writer.put_in("b", "user:1");
    watcher.watch(Some("a"), b"user:");
    writer.put_in("a", "user:2");
    writer.put_in("a", "item:2");
    writer.put_in("b", "user:2");
    for prefix in [&b"user:1"[..], b"us", b"item"] {
        writer.clear(Scope::Prefix { cache: "a", prefix }, Effect::Gone);
    }
    writer.clear(Scope::Cache("b"), Effect::Gone);
    assert_eq!(watcher.told(), ["a put user:2 5", "a cleared user:1* Gone", "a cleared us* Gone"]);
    drop(watcher);
    assert_eq!(house.engine.watchers_count(), 0);
}

#[test]
fn a_slow_watcher_holds_up_nobody_and_knows_how_much_it_missed() {
    let house = house();
    let (mut writer, mut slow) = (house.somebody(), house.connected(0));
    writer.put_in("a", "first");
    slow.watch(None, b"");
    for number in 0..limits::WATCH_CHANGES_MAX + 10 {
        writer.put_in("a", &number.to_string());
    }
    let (told, missing) = slow.changes();
    assert_eq!((told.len(), missing), (limits::WATCH_CHANGES_MAX, 10));
    assert_eq!(told.last().unwrap(), &format!("a put {} 5", limits::WATCH_CHANGES_MAX - 1));
    writer.put_in("a", "after");
    assert_eq!(slow.told(), ["a put after 5"]);
    let long = "k".repeat(limits::KEY_BYTES_MAX);
    for _ in 0..=limits::WATCH_BYTES_MAX / limits::KEY_BYTES_MAX {
        writer.put_in("a", &long);
    }
    assert!(slow.changes().1 > 0, "its keys may not take any amount of memory either");
}

#[test]
fn nobody_is_told_of_caches_that_it_may_not_use() {
    let house = house_with(|config| {
        let mut own = config.default.clone();
        own.access = Access { users: [(4_242, Rights::CACHE)].into(), groups: [].into() };
        config.caches.insert("own".to_owned(), own);
    });
    let (mut writer, mut stranger, mut owner) =
        (house.somebody(), house.connected(5_000), house.connected(4_242));
    assert_eq!(stranger.say(Request::Watch { cache: Some("own"), prefix: b"" }), "Denied");
    stranger.watch(None, b"");
    owner.watch(None, b"");
    writer.put_in("own", "k");
    writer.put_in("a", "k");
    assert_eq!(stranger.told(), ["a put k 5"]);
    assert_eq!(owner.told(), ["own put k 5", "a put k 5"]);
}

#[test]
fn bounds_of_watching_are_named() {
    let house = house();
    house.somebody().put_in("a", "k");
    let watch = Request::Watch { cache: Some("b"), prefix: b"" };
    assert_eq!(house.connected(0).say(watch), "UnknownCache");
    let long = vec![b'p'; limits::KEY_BYTES_MAX + 1];
    assert_eq!(house.connected(0).say(Request::Watch { cache: None, prefix: &long }), "TooLarge");
    let all = Request::Watch { cache: None, prefix: b"" };
    assert_eq!(house.somebody().say(all.clone()), "Invalid", "there is nobody to send to");
    let watchers: Vec<_> = (0..limits::WATCHERS_MAX)
        .map(|_| {
            let mut watcher = house.connected(0);
            watcher.watch(None, b"");
            watcher
        })
        .collect();
    assert_eq!(house.connected(0).say(all), "Unavailable");
    drop(watchers);
    house.connected(0).watch(None, b"");
}
