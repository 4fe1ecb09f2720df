//! Redis: RESP 2.

use super::Op;
use super::replies::{Replies, Step, parse_number};
use crate::BenchError;

pub(super) fn push_request(out: &mut Vec<u8>, op: Op, keys: &[Vec<u8>], value: &[u8]) {
    let (verb, value): (&[u8], Option<&[u8]>) = match op {
        Op::Get => (b"GET", None),
        Op::GetMany(_) => (b"MGET", None),
        Op::Put | Op::PutDurable => (b"SET", Some(value)),
    };
    let parts = 1 + keys.len() + usize::from(value.is_some());
    out.extend_from_slice(format!("*{parts}\r\n").as_bytes());
    for part in std::iter::once(verb).chain(keys.iter().map(Vec::as_slice)).chain(value) {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
}

/// One line, with the value behind it, is one step.
#[inline]
pub(super) fn step(replies: &mut Replies, input: &[u8], asked: &[u64]) -> Result<Step, BenchError> {
    let many = matches!(replies.op, Op::GetMany(_));
    if many && replies.head_done && replies.keys_done == asked.len() {
        return Ok(Step::End(0));
    }
    let Some(line) = replies.line(input) else { return Ok(Step::Incomplete) };
    let number = line.get(1..).and_then(parse_number);
    match (line.first(), number) {
        (Some(b'+'), _) if matches!(replies.op, Op::Put | Op::PutDurable) => {
            replies.at += line.len() + 2;
            Ok(Step::End(1))
        }
        (Some(b'*'), Some(parts)) if many && !replies.head_done && parts == asked.len() => {
            replies.at += line.len() + 2;
            replies.head_done = true;
            Ok(Step::Skip)
        }
        (Some(b'$'), None) if line == b"$-1" => {
            replies.at += line.len() + 2;
            replies.keys_done += 1;
            Ok(if many { Step::Skip } else { Step::End(0) })
        }
        (Some(b'$'), Some(length)) => {
            let value_at = replies.at + line.len() + 2;
            let Some(value) = input.get(value_at..value_at + length + 2) else { return Ok(Step::Incomplete) };
            if !replies.shape.is_value_of(&value[..length], asked[replies.keys_done]) {
                return Err(replies.unexpected(value));
            }
            replies.at = value_at + length + 2;
            Ok(if many { Step::Hit(replies.keys_done) } else { Step::End(1) })
        }
        _ => Err(replies.unexpected(line)),
    }
}
