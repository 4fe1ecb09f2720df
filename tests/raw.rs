//! Requests as the wire has them, for what the client has no method for.

use std::cell::RefCell;
use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use kv_client::ErrorKind;
use kv_proto::wire::{
    self, Envelope, Filling, Hello, PROTOCOL_MAGIC, PROTOCOL_VERSION, PutOptions, Request, Response, Wanted,
    decode, encode_into,
};

use crate::support::Home;

/// A connection.
pub(crate) struct Raw(RefCell<UnixStream>);

/// What became of a wish for one item.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loan {
    Hit(String),
    Leased(u64),
    Busy,
    Alone,
}

impl Raw {
    pub(crate) fn connect(home: &Home) -> Raw {
        Raw::at(&home.socket())
    }

    pub(crate) fn at(socket: &Path) -> Raw {
        let mut stream = UnixStream::connect(socket).unwrap();
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

    /// Processes that this one starts from now on keep the connection open after its death.
    pub(crate) fn let_children_inherit(&self) {
        rustix::io::fcntl_setfd(&*self.0.borrow(), rustix::io::FdFlags::empty()).unwrap();
    }

    pub(crate) fn lease(&self, cache: &str, key: &str, wait_ms: u32) -> Loan {
        let keys = vec![Wanted { key: key.as_bytes(), except: None }];
        let request = Request::Lease { cache, keys, wait_ms, lease_ms: 600_000, holds: vec![] };
        self.ask(request, |response| match response {
            Response::Loans(loans) => match &loans[0] {
                wire::Loan::Hit(item) => Loan::Hit(String::from_utf8(item.value.to_vec()).unwrap()),
                wire::Loan::Leased { lease, .. } => Loan::Leased(*lease),
                wire::Loan::Busy => Loan::Busy,
                wire::Loan::Alone => Loan::Alone,
            },
            other => panic!("{other:?}"),
        })
    }

    /// Whether it was taken.
    pub(crate) fn fill(&self, lease: u64, value: &str) -> bool {
        let options = PutOptions::default();
        let fills = vec![Filling { lease, value: value.as_bytes(), options }];
        self.ask(Request::Fill { fills }, |response| match response {
            Response::Filled(versions) => versions[0].is_some(),
            other => panic!("{other:?}"),
        })
    }

    /// The fence, or who has it.
    pub(crate) fn lock(&self, name: &str, wait_ms: u32) -> Result<u64, String> {
        let request = Request::Lock { name, lock_ms: 600_000, wait_ms, holds: vec![] };
        self.ask(request, |response| match response {
            Response::Locked { fence } => Ok(fence),
            Response::Busy { holder } => Err(holder.to_owned()),
            other => panic!("{other:?}"),
        })
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
