//! Requests and answers of all three protocols, cut at every boundary.

use kv_proto::wire::{Envelope, Item, Request, Response, decode, encode_into, split_frame};

use super::{Batch, Op, Replies, Shape, Wire};

const SHAPE: Shape = Shape { key_digits: 8, value_bytes: 48 };

fn value_of(number: u64) -> Vec<u8> {
    let mut batch = Batch::new(Wire::Memcached, Op::Put, SHAPE, 1);
    let bytes = batch.fill(&[number]);
    bytes[bytes.len() - 50..bytes.len() - 2].to_vec()
}

/// What a server would say; `None`: it has not got the key.
fn answer(wire: Wire, op: Op, numbers: &[Option<u64>]) -> Vec<u8> {
    let values: Vec<Option<Vec<u8>>> = numbers.iter().map(|number| number.map(value_of)).collect();
    let mut out = Vec::new();
    match (wire, op) {
        (Wire::Kvd, Op::Put | Op::PutDurable) => encode_into(&mut out, &Response::Written { version: 5 }),
        (Wire::Kvd, _) => {
            let mut items: Vec<_> = values
                .iter()
                .map(|value| value.as_ref().map(|value| Item { value, version: 3, entry: None }))
                .collect();
            match (op, items.pop()) {
                (Op::Get, Some(Some(item))) => encode_into(&mut out, &Response::Item(item)),
                (Op::Get, _) => encode_into(&mut out, &Response::Missing),
                (_, last) => {
                    items.extend(last);
                    encode_into(&mut out, &Response::Items { items, snapshot: 9 });
                }
            }
        }
        (Wire::Memcached, Op::Put | Op::PutDurable) => out.extend_from_slice(b"STORED\r\n"),
        (Wire::Memcached, _) => {
            for (number, value) in numbers.iter().zip(&values) {
                if let (Some(number), Some(value)) = (number, value) {
                    out.extend_from_slice(format!("VALUE product:{number:08} 0 48\r\n").as_bytes());
                    out.extend_from_slice(value);
                    out.extend_from_slice(b"\r\n");
                }
            }
            out.extend_from_slice(b"END\r\n");
        }
        (Wire::Redis, Op::Put | Op::PutDurable) => out.extend_from_slice(b"+OK\r\n"),
        (Wire::Redis, _) => {
            if let Op::GetMany(keys) = op {
                out.extend_from_slice(format!("*{keys}\r\n").as_bytes());
            }
            for value in &values {
                match value {
                    Some(value) => {
                        out.extend_from_slice(b"$48\r\n");
                        out.extend_from_slice(value);
                        out.extend_from_slice(b"\r\n");
                    }
                    None => out.extend_from_slice(b"$-1\r\n"),
                }
            }
        }
    }
    out
}

const WIRES: [Wire; 3] = [Wire::Kvd, Wire::Memcached, Wire::Redis];

#[test]
fn answers_are_understood_however_they_are_cut() {
    for wire in WIRES {
        for op in [Op::Get, Op::Put, Op::PutDurable, Op::GetMany(3)] {
            let keys = op.keys();
            let numbers: Vec<u64> = (0..2 * keys as u64).map(|i| 70 + i).collect();
            let found: Vec<Option<u64>> = numbers.iter().copied().map(Some).collect();
            let bytes: Vec<u8> = found.chunks(keys).flat_map(|found| answer(wire, op, found)).collect();
            for cut in 0..bytes.len() {
                let mut replies = Replies::new(wire, op, SHAPE);
                assert!(!replies.advance(&bytes[..cut], &numbers).unwrap(), "{wire:?} {op:?} cut at {cut}");
                assert!(replies.advance(&bytes, &numbers).unwrap(), "{wire:?} {op:?} cut at {cut}");
                assert_eq!(replies.hits(), numbers.len() as u64, "{wire:?} {op:?} cut at {cut}");
            }
        }
    }
}

#[test]
fn misses_are_counted_as_such() {
    for wire in WIRES {
        let numbers = [1, 2, 3, 4];
        let bytes = answer(wire, Op::GetMany(4), &[None, Some(2), None, Some(4)]);
        let mut replies = Replies::new(wire, Op::GetMany(4), SHAPE);
        assert!(replies.advance(&bytes, &numbers).unwrap(), "{wire:?}");
        assert_eq!(replies.hits(), 2, "{wire:?}");
        replies.restart();
        let mut replies = Replies::new(wire, Op::Get, SHAPE);
        assert!(replies.advance(&answer(wire, Op::Get, &[None]), &[1]).unwrap(), "{wire:?}");
        assert_eq!(replies.hits(), 0, "{wire:?}");
    }
}

#[test]
fn another_keys_value_or_an_error_or_extra_bytes_are_refused() {
    for wire in WIRES {
        let mut replies = Replies::new(wire, Op::Get, SHAPE);
        replies.advance(&answer(wire, Op::Get, &[Some(7)]), &[8]).expect_err("a value of another key");
        replies.restart();
        let mut twice = answer(wire, Op::Get, &[Some(7)]);
        twice.extend_from_slice(b"SERVER_ERROR");
        replies.advance(&twice, &[7]).expect_err("more than was asked for");
    }
    let mut replies = Replies::new(Wire::Redis, Op::Put, SHAPE);
    let error = replies.advance(b"-OOM no room\r\n", &[7]).unwrap_err();
    assert_eq!(error.to_string(), "redis answered -OOM no room");
}

#[test]
fn a_filled_batch_is_the_request_for_those_keys() {
    let mut batch = Batch::new(Wire::Kvd, Op::GetMany(2), SHAPE, 2);
    let (first, rest) = split_frame(batch.fill(&[1, 2, 3, 99_999_999]), 4096).unwrap().unwrap();
    let keys = |frame| match decode::<Envelope<'_>>(frame).unwrap().request {
        Request::GetMany { cache: "product", keys, snapshot: None } => {
            keys.iter().map(|key| String::from_utf8(key.0.to_vec()).unwrap()).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(keys(first), ["product:00000001", "product:00000002"]);
    let (second, _) = split_frame(rest, 4096).unwrap().unwrap();
    assert_eq!(keys(second), ["product:00000003", "product:99999999"]);

    let mut batch = Batch::new(Wire::Redis, Op::Put, SHAPE, 1);
    let text = String::from_utf8(batch.fill(&[42]).to_vec()).unwrap();
    assert!(
        text.starts_with("*3\r\n$3\r\nSET\r\n$16\r\nproduct:00000042\r\n$48\r\nvalue:00000042"),
        "{text}"
    );
    let mut batch = Batch::new(Wire::Memcached, Op::GetMany(2), SHAPE, 1);
    assert_eq!(batch.fill(&[4, 5]), b"get product:00000004 product:00000005\r\n");
}
