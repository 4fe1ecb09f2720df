//! memcached: the classic text protocol, whose `get` takes many keys.

use super::Op;
use super::replies::{Replies, Step, parse_number};
use crate::BenchError;

pub(super) fn push_request(out: &mut Vec<u8>, op: Op, keys: &[Vec<u8>], value: &[u8]) {
    match op {
        Op::Get | Op::GetMany(_) => {
            out.extend_from_slice(b"get");
            for key in keys {
                out.push(b' ');
                out.extend_from_slice(key);
            }
        }
        Op::Put | Op::PutDurable => {
            out.extend_from_slice(b"set ");
            out.extend_from_slice(&keys[0]);
            out.extend_from_slice(format!(" 0 0 {}\r\n", value.len()).as_bytes());
            out.extend_from_slice(value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// One line, with the value behind it, is one step. Keys that miss are simply left out, the others come in order.
#[inline]
pub(super) fn step(replies: &mut Replies, input: &[u8], asked: &[u64]) -> Result<Step, BenchError> {
    let Some(line) = replies.line(input) else { return Ok(Step::Incomplete) };
    match (replies.op, line) {
        (Op::Get | Op::GetMany(_), b"END") => {
            replies.at += line.len() + 2;
            Ok(Step::End(0))
        }
        (Op::Put | Op::PutDurable, b"STORED") => {
            replies.at += line.len() + 2;
            Ok(Step::End(1))
        }
        (Op::Get | Op::GetMany(_), line) if line.starts_with(b"VALUE ") => {
            let length = line.rsplit(|&byte| byte == b' ').next().and_then(parse_number);
            let length = length.ok_or_else(|| replies.unexpected(line))?;
            let value_at = replies.at + line.len() + 2;
            let Some(value) = input.get(value_at..value_at + length + 2) else { return Ok(Step::Incomplete) };
            let is_it = |&index: &usize| replies.shape.is_value_of(&value[..length], asked[index]);
            let index =
                (replies.keys_done..asked.len()).find(is_it).ok_or_else(|| replies.unexpected(value))?;
            replies.at = value_at + length + 2;
            Ok(Step::Hit(index))
        }
        _ => Err(replies.unexpected(line)),
    }
}
