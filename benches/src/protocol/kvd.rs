//! kvd: postcard frames, decoded as any client would.

use std::io::{Read, Write};

use kv_proto::limits::{VALUE_BYTES_MAX, frame_bytes_max};
use kv_proto::wire::{
    Bytes, Durability, Envelope, FRAME_HEADER_BYTES, Hello, Item, PROTOCOL_MAGIC, PROTOCOL_OLDEST,
    PROTOCOL_VERSION, PutOptions, Request, Response, Want, Welcome, decode, encode_into, split_frame,
};

use super::replies::{Replies, Step};
use super::{CACHE, Op};
use crate::BenchError;

pub(super) fn push_request(out: &mut Vec<u8>, op: Op, keys: &[Vec<u8>], value: &[u8]) {
    let put = |durability| Request::Put {
        cache: CACHE,
        key: &keys[0],
        value,
        options: PutOptions { durability, ..PutOptions::default() },
    };
    let request = match op {
        Op::Get => Request::Get { cache: CACHE, key: &keys[0], sliding: None, want: Want::Value },
        Op::Put => put(None),
        Op::PutDurable => put(Some(Durability::Durable)),
        Op::GetMany(_) => {
            let keys = keys.iter().map(|key| Bytes(key)).collect();
            Request::GetMany { cache: CACHE, keys, snapshot: None }
        }
    };
    encode_into(out, &Envelope { number: 0, request });
}

pub(super) fn greet(stream: &mut (impl Read + Write)) -> Result<(), BenchError> {
    let mut hello = Vec::new();
    let message =
        Hello { magic: PROTOCOL_MAGIC, version: PROTOCOL_VERSION, oldest: PROTOCOL_OLDEST, name: "bench" };
    encode_into(&mut hello, &message);
    stream.write_all(&hello).map_err(BenchError::io("sending the hello"))?;
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).map_err(BenchError::io("reading the welcome"))?;
    let bytes = u32::from_le_bytes(header) as usize;
    let refused = |what: String| BenchError::Answer { server: "kvd", what };
    if bytes > kv_proto::limits::HELLO_BYTES_MAX {
        return Err(refused(format!("a welcome of {bytes} bytes")));
    }
    let mut frame = vec![0; bytes];
    stream.read_exact(&mut frame).map_err(BenchError::io("reading the welcome"))?;
    match decode::<Welcome<'_>>(&frame) {
        Ok(Welcome::Accepted { .. }) => Ok(()),
        Ok(Welcome::Refused(error)) => Err(refused(error.message.to_owned())),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// One frame is one step.
#[inline]
pub(super) fn step(replies: &mut Replies, input: &[u8], asked: &[u64]) -> Result<Step, BenchError> {
    const FRAME_BYTES_MAX: usize = frame_bytes_max(VALUE_BYTES_MAX);
    let rest = &input[replies.at..];
    let frame = match split_frame(rest, FRAME_BYTES_MAX) {
        Ok(Some((frame, _))) => frame,
        Ok(None) => return Ok(Step::Incomplete),
        Err(_) => return Err(replies.unexpected(rest)),
    };
    let response = decode::<Response<'_>>(frame).map_err(|_| replies.unexpected(frame))?;
    let right = |item: &Item<'_>, number: u64| replies.shape.is_value_of(item.value, number);
    let hits = match (replies.op, &response) {
        (Op::Get, Response::Item(item)) if right(item, asked[0]) => 1,
        (Op::Get, Response::Missing) => 0,
        (Op::Put | Op::PutDurable, Response::Written { .. }) => 1,
        (Op::GetMany(_), Response::Items { items, .. }) if items.len() == asked.len() => {
            let mut found =
                items.iter().zip(asked).filter_map(|(item, &number)| Some((item.as_ref()?, number)));
            if !found.clone().all(|(item, number)| right(item, number)) {
                return Err(replies.unexpected(frame));
            }
            found.by_ref().count() as u64
        }
        (_, Response::Error(error)) => {
            return Err(BenchError::Answer {
                server: "kvd",
                what: format!("{:?}: {}", error.kind, error.message),
            });
        }
        _ => return Err(replies.unexpected(frame)),
    };
    replies.at += FRAME_HEADER_BYTES + frame.len();
    Ok(Step::End(hits))
}
