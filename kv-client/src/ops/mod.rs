//! Every operation: how its request is built and its answer read. The only place in the client that names wire requests.
//!
//! Both clients call these and differ in how the bytes travel. Limits are checked here, before anything is sent.

mod admin;
mod checks;
mod items;
mod leases;
mod shared;
mod transactions;

pub(crate) use admin::*;
pub(crate) use checks::{check_cache, check_item};
pub(crate) use items::*;
pub(crate) use leases::*;
pub(crate) use shared::*;
pub(crate) use transactions::*;

use kv_proto::Version;
use kv_proto::wire::{Envelope, Request, Response, encode_into};

use crate::answers::Entry;
use crate::error::{Error, Result};

/// A request ready to be sent, and how to read its answer.
#[derive(Debug)]
pub(crate) struct Call<T> {
    pub(crate) sending: Sending,
    pub(crate) read: fn(Response<'_>) -> Result<T>,
}

/// A request ready to be sent.
#[derive(Debug)]
pub(crate) struct Sending {
    pub(crate) frame: Vec<u8>,
    /// The largest value in it, to be held against what the daemon takes.
    pub(crate) value_bytes: usize,
    /// Only the async client pipelines; the blocking one has a connection a call anyway.
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))]
    pub(crate) lane: Lane,
    pub(crate) repeat: Repeat,
}

/// What a request may wait for in the daemon; those that may wait never share a connection with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// For nothing.
    Reads,
    /// For a transaction, or for room.
    Writes,
    /// For the disk.
    Waits,
}

/// Whether a request may be sent again when its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing that a repetition would change again.
    Harmless,
    /// Its own version condition keeps a repetition from being applied twice, or over somebody's newer value. A
    /// repetition that is refused may mean that the first one was applied.
    Guarded,
    /// It may overwrite or remove what somebody wrote in between.
    Never,
}

impl<T> Call<T> {
    fn new(request: Request<'_>, lane: Lane, repeat: Repeat, read: fn(Response<'_>) -> Result<T>) -> Call<T> {
        Call::sized(request, 64, 0, lane, repeat, read)
    }

    fn sized(
        request: Request<'_>,
        frame_bytes: usize,
        value_bytes: usize,
        lane: Lane,
        repeat: Repeat,
        read: fn(Response<'_>) -> Result<T>,
    ) -> Call<T> {
        let mut frame = Vec::with_capacity(frame_bytes);
        encode_into(&mut frame, &Envelope { number: 0, request });
        Call { sending: Sending { frame, value_bytes, lane, repeat }, read }
    }
}

fn read_done(response: Response<'_>) -> Result<()> {
    match response {
        Response::Done => Ok(()),
        other => Err(unexpected("a request without result", &other)),
    }
}

fn read_written(response: Response<'_>) -> Result<Version> {
    match response {
        Response::Written { version } => Ok(version),
        other => Err(unexpected("a write", &other)),
    }
}

fn read_written_or_missing(response: Response<'_>) -> Result<Option<Version>> {
    match response {
        Response::Written { version } => Ok(Some(version)),
        Response::Missing => Ok(None),
        other => Err(unexpected("a write", &other)),
    }
}

fn read_entry(response: Response<'_>) -> Result<Option<Entry>> {
    match response {
        Response::Item(item) => Entry::from_wire(&item)
            .map(Some)
            .ok_or_else(|| without("an entry", "what is known about the item")),
        Response::Missing => Ok(None),
        other => Err(unexpected("an entry", &other)),
    }
}

/// The error for an answer that does not belong to its request; the daemon's own errors pass through.
pub(crate) fn unexpected(asked: &str, response: &Response<'_>) -> Error {
    if let Response::Error(error) = response {
        return Error::from_wire(error);
    }
    let debug = format!("{response:?}");
    let name = debug.split([' ', '(', '{']).next().unwrap_or_default();
    Error::Protocol {
        message: format!("the daemon answered {asked} with {name}"),
        maybe_applied: true,
        source: None,
    }
}

fn without(asked: &str, what: &str) -> Error {
    Error::Protocol {
        message: format!("the answer to {asked} lacks {what}"),
        maybe_applied: false,
        source: None,
    }
}
