//! Requests and responses over the Unix socket.
//!
//! A connection begins with a [`Hello`] frame each way; then the client sends [`Envelope`]s and gets one
//! [`Response`] each, in order (after `Watch` as many as there is to tell). A frame is a little-endian `u32` length and that many bytes of postcard.
//! Variants are append-only (invariant I8): golden bytes in the tests hold every one of them still.

mod error;
mod frame;
mod request;
mod response;
mod rights;

pub use error::{ErrorKind, WireError};
pub use frame::{
    FRAME_HEADER_BYTES, FrameError, Hello, PROTOCOL_MAGIC, PROTOCOL_OLDEST, PROTOCOL_VERSION, Split, Welcome,
    decode, encode_into, split_frame,
};
pub use request::{
    Bytes, Check, Condition, Effect, Envelope, Expect, Expiry, Filling, PutOptions, Request, Scope, Sliding,
    SlowOrder, Versioned, Want, Wanted, Write,
};
pub use response::{
    AccessReport, CacheInfo, CacheRights, Change, Checked, ClientInfo, Durability, Entry, Freshness, HotKey,
    Item, Loan, Metric, ReadPath, Response, Restart, RestartState, ScanItem, SlowRequest, Tags,
    TransactionInfo, What,
};
pub use rights::Rights;
