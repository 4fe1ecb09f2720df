//! memcached and Redis over a Unix socket, with the requests and the checks of [`crate::protocol`].

use super::{Key, Mechanism, Source};
use crate::BenchError;
use crate::client::{Lane, failed};
use crate::peers::Kind;
use crate::protocol::{Op, Wire};
use crate::read::client::{ReadOp, ReadSpec};

#[derive(Debug)]
pub(super) struct Socket {
    lane: Lane,
    many: Option<Lane>,
    puts: Lane,
    value_bytes: usize,
    /// What stands behind a value.
    tail_bytes: usize,
}

impl Socket {
    pub(super) fn open(spec: &ReadSpec) -> Result<Socket, BenchError> {
        let (wire, tail_bytes) = match spec.mechanism {
            Mechanism::Memcached => (Kind::Memcached.wire(), "\r\nEND\r\n".len()),
            _ => (Wire::Redis, "\r\n".len()),
        };
        let open = |op| Lane::open(wire, op, spec.shape, 1, &spec.place);
        let many = match spec.op {
            ReadOp::Many(keys) => Some(open(Op::GetMany(keys))?),
            ReadOp::Get | ReadOp::Into => None,
        };
        Ok(Socket {
            lane: open(Op::Get)?,
            many,
            puts: open(Op::Put)?,
            value_bytes: spec.shape.value_bytes as usize,
            tail_bytes,
        })
    }
}

impl Source for Socket {
    #[inline]
    fn get(&mut self, key: Key<'_>) -> Result<Option<Vec<u8>>, BenchError> {
        if self.lane.ask([key.number])? == 0 {
            return Ok(None);
        }
        let answer = self.lane.answer();
        let end = answer.len() - self.tail_bytes;
        Ok(Some(answer[end - self.value_bytes..end].to_vec()))
    }

    fn get_many(&mut self, keys: &[Key<'_>]) -> Result<Vec<Option<Vec<u8>>>, BenchError> {
        let lane = self.many.as_mut().ok_or_else(|| failed("get_many was not asked for"))?;
        let hits = lane.ask(keys.iter().map(|key| key.number))? as usize;
        if hits != keys.len() {
            return Ok(vec![None; keys.len()]);
        }
        // All are there and were checked one by one; what remains is to take them out.
        let mut rest = lane.answer();
        let mut values = Vec::with_capacity(keys.len());
        for _ in keys {
            let line = rest.iter().position(|&byte| byte == b'v').unwrap_or(0);
            let value = rest.get(line..line + self.value_bytes).unwrap_or_default();
            values.push(Some(value.to_vec()));
            rest = rest.get(line + self.value_bytes..).unwrap_or_default();
        }
        Ok(values)
    }

    fn put(&mut self, key: Key<'_>, _value: &[u8]) -> Result<(), BenchError> {
        // The lane writes the number into a value of its own.
        self.puts.ask([key.number]).map(drop)
    }
}
