//! The clock that tests move, and the way that reads take.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kv_client::{Life, Source};
use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::*;

/// Keeps what is warned of.
#[derive(Default, Clone)]
struct Warned(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warned {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        Id::from_u64(NEXT.fetch_add(1, Ordering::Relaxed) as u64)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().push(text.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        use std::fmt::Write as _;
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

#[test]
fn semantic_12_a_test_moves_the_clock_for_all_readers_of_its_server_and_no_other() {
    let (server, other) = (kvd::testing::server(), kvd::testing::server());
    let clients =
        [server.client(), by_socket(server.socket()).build().unwrap(), server.direct(), other.client()];
    for client in &clients {
        client.cache("c").put("k", "v", MINUTE).unwrap();
        assert!(client.cache("c").get("k").unwrap().is_some());
        assert!(client.cache("c").get("k").unwrap().is_some());
    }
    server.clock().advance(MINUTE);
    for (client, lives) in clients.iter().zip([false, false, false, true]) {
        assert_eq!(client.cache("c").get("k").unwrap().is_some(), lives);
    }
    clients[0].cache("c").put("k", "v", MINUTE).unwrap();
    server.clock().step_wall(-86_400_000);
    let life = clients[0].cache("c").ttl("k").unwrap();
    assert!(matches!(life, Some(Life::Left(left)) if left.as_secs() >= 59), "{life:?}");
}

#[test]
fn semantic_14_the_way_of_reads_is_seen_by_client_and_by_entry() {
    let server = kvd::testing::server();
    let (shared, socket) = (server.client(), by_socket(server.socket()).build().unwrap());
    shared.cache("c").put("k", "v", None).unwrap();
    for client in [&shared, &socket] {
        client.cache("c").get("k").unwrap();
    }
    assert!(stats(&shared, "c").path.is_shared());
    let because = stats(&socket, "c").path;
    assert!(because.because().is_some_and(|because| !because.is_empty()), "{because}");
    let source =
        |client: &kv_client::blocking::Client| client.cache("c").get_entry("k").unwrap().unwrap().source;
    assert_eq!((source(&shared), source(&socket)), (Source::Shared, Source::Socket));
    assert_eq!(stats(&shared, "c").shared_hits, 1);
}

#[test]
fn semantic_14_falling_back_to_the_socket_is_warned_of_once_with_the_reason() {
    let server = kvd::testing::server();
    // The relay does not pass descriptors on: shared memory cannot be had through it.
    let relay = Relay::to(server.socket());
    let warned = Warned::default();
    let client = kv_client::blocking::Client::builder().socket(relay.socket()).build().unwrap();
    tracing::subscriber::with_default(warned.clone(), || {
        for n in 0..20 {
            client.cache("c").put(format!("{n}"), "v", None).unwrap();
            client.cache("c").get(format!("{n}")).unwrap();
        }
    });
    let said = warned.0.lock().clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains('c') && said[0].contains("because"), "{said:?}");
    assert!(stats(&client, "c").path.because().is_some());
}
