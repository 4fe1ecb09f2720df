//! What encoding and decoding a frame costs: `cargo bench -p kvd-benches --bench codec`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_proto::wire::{
    Bytes, Envelope, Item, PutOptions, Request, Response, Want, decode, encode_into, split_frame,
};

const KEY: &[u8] = b"product:00001234";
const FRAME_BYTES_MAX: usize = 1 << 21;

fn body(bytes: &[u8]) -> &[u8] {
    split_frame(bytes, FRAME_BYTES_MAX).expect("it is within the bound").expect("it is complete").0
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/request");
    let value = vec![b'v'; 512];
    let get = Request::Get { cache: "product", key: KEY, sliding: None, want: Want::Value };
    let put = Request::Put { cache: "product", key: KEY, value: &value, options: PutOptions::default() };
    let many = Request::GetMany { cache: "product", keys: vec![Bytes(KEY); 100], snapshot: None };
    for (name, request) in [("get", get), ("put 512 B", put), ("get_many 100", many)] {
        let envelope = Envelope { number: 0, request };
        let mut out = Vec::new();
        group.bench_function(format!("encode {name}"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode_into(&mut out, black_box(&envelope));
            });
        });
        group.bench_function(format!("decode {name}"), |bencher| {
            bencher.iter(|| decode::<Envelope<'_>>(body(black_box(&out))).expect("we encoded it").number);
        });
    }
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec/response");
    for value_bytes in [64, 512, 4_096] {
        let value = vec![b'v'; value_bytes];
        let item = Item { value: &value, version: 1 << 50, entry: None };
        let one = (format!("item {value_bytes} B"), 1, Response::Item(item.clone()));
        let many = Response::Items { items: vec![Some(item); 100], snapshot: 1 << 50 };
        for (name, items, response) in [one, (format!("100 items {value_bytes} B"), 100, many)] {
            let mut out = Vec::new();
            group.throughput(Throughput::Elements(items));
            group.bench_function(format!("encode {name}"), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    encode_into(&mut out, black_box(&response));
                });
            });
            group.bench_function(format!("decode {name}"), |bencher| {
                bencher.iter(|| {
                    let response = decode::<Response<'_>>(body(black_box(&out))).expect("we encoded it");
                    matches!(response, Response::Item(_))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests, responses);
criterion_main!(benches);
