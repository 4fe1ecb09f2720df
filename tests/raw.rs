//! Requests as the wire has them, for what the client has no method for.

use std::cell::RefCell;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;

use kv_client::ErrorKind;
use kv_proto::wire::{
    Envelope, Hello, PROTOCOL_MAGIC, PROTOCOL_VERSION, PutOptions, Request, Response, decode, encode_into,
};

use crate::support::Home;

/// A connection.
pub(crate) struct Raw(RefCell<UnixStream>);

impl Raw {
    pub(crate) fn connect(home: &Home) -> Raw {
        let mut stream = UnixStream::connect(home.socket()).unwrap();
        let mut hello = Vec::new();
        let greeting =
            Hello { magic: PROTOCOL_MAGIC, version: PROTOCOL_VERSION, oldest: PROTOCOL_VERSION, name: "raw" };
        encode_into(&mut hello, &greeting);
        stream.write_all(&hello).unwrap();
        Raw::frame(&mut stream);
        Raw(stream.into())
    }

    fn frame(stream: &mut UnixStream) -> Vec<u8> {
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut body).unwrap();
        body
    }

    fn ask<T>(&self, request: Request<'_>, read: impl FnOnce(Response<'_>) -> T) -> T {
        let mut frame = Vec::new();
        encode_into(&mut frame, &Envelope { number: 0, request });
        let mut stream = self.0.borrow_mut();
        stream.write_all(&frame).unwrap();
        let body = Raw::frame(&mut stream);
        read(decode(&body).unwrap())
    }

    pub(crate) fn begin(&self) -> u64 {
        let request = Request::Begin { read_only: false, wait_ms: 2_000, first: 0, tries: 0 };
        self.ask(request, |response| match response {
            Response::Begun { transaction } => transaction,
            other => panic!("{other:?}"),
        })
    }

    pub(crate) fn put(&self, cache: &str, key: &str, value: &str) {
        let options = PutOptions::default();
        let request = Request::Put { cache, key: key.as_bytes(), value: value.as_bytes(), options };
        self.ask(request, |response| assert!(matches!(response, Response::Written { .. }), "{response:?}"));
    }

    pub(crate) fn delete(&self, cache: &str, key: &str) {
        let request = Request::Delete { cache, key: key.as_bytes() };
        self.ask(request, |response| assert!(matches!(response, Response::Written { .. }), "{response:?}"));
    }

    /// All pages; the keys in order.
    pub(crate) fn scan(&self, cache: &str, prefix: &str) -> Vec<String> {
        let (mut keys, mut cursor) = (Vec::new(), Vec::new());
        loop {
            let request = Request::Scan {
                cache,
                prefix: prefix.as_bytes(),
                cursor: &cursor,
                keys_max: 2,
                values: false,
            };
            let next = self.ask(request, |response| match response {
                Response::Page { items, cursor } => {
                    keys.extend(items.iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap()));
                    cursor.to_vec()
                }
                other => panic!("{other:?}"),
            });
            if next.is_empty() {
                break;
            }
            cursor = next;
        }
        keys.sort();
        keys
    }

    pub(crate) fn commit(&self, transaction: u64) -> Result<(), ErrorKind> {
        let request = Request::CommitTransaction { transaction, durability: None };
        self.ask(request, |response| match response {
            Response::Committed { .. } => Ok(()),
            Response::Error(error) => Err(error.kind),
            other => panic!("{other:?}"),
        })
    }
}
