//! Compares the time of the masks with that of plain mlx-rs operations: `cargo bench -p mlx-attn-masks`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use mlx_attn_masks::CausalMask;
use mlx_rs::Array;
use mlx_rs::ops::{arange, logical_and};

const WINDOW: i32 = 512;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    // One token beyond the window, a prompt, a long prompt.
    for (queries, offset) in [(1, 2048), (512, 512), (2048, 0)] {
        sliding(&mut criterion, queries, offset);
    }
    // One token in each of four rows, a prompt in each of four rows.
    for (queries, offset) in [(1, 2048), (512, 0)] {
        left_padded(&mut criterion, queries, offset);
    }
    criterion.final_summary();
}

fn sliding(criterion: &mut Criterion, queries: i32, offset: i32) {
    let mask = CausalMask::new(queries).offset(offset).window(WINDOW);
    compare(
        criterion,
        "sliding",
        queries,
        offset,
        || mask.to_array().unwrap(),
        || plain_sliding(queries, offset),
    );
}

fn left_padded(criterion: &mut Criterion, queries: i32, offset: i32) {
    let padding = [0, 3, 100, 17];
    let mask = CausalMask::new(queries).offset(offset).window(WINDOW * 8).left_padding(&padding);
    compare(
        criterion,
        "left padded, 4 rows",
        queries,
        offset,
        || mask.to_array().unwrap(),
        || {
            let first = Array::from_slice(&padding, &[4, 1, 1, 1]);
            let is_token = first.le(places(0, offset + queries, &[1, -1])).unwrap();
            logical_and(is_token, plain_causal(queries, offset)).unwrap()
        },
    );
}

/// The numbers of the keys or queries from `first` to `end`, along one of two axes.
fn places(first: i32, end: i32, shape: &[i32]) -> Array {
    arange::<_, i32>(first, end, None).unwrap().reshape(shape).unwrap()
}

fn plain_causal(queries: i32, offset: i32) -> Array {
    let keys = offset + queries;
    places(offset, keys, &[-1, 1]).ge(places(0, keys, &[1, -1])).unwrap()
}

fn plain_sliding(queries: i32, offset: i32) -> Array {
    let keys = offset + queries;
    let window_end = places(0, keys, &[1, -1]).add(Array::from_int(WINDOW)).unwrap();
    let in_window = places(offset, keys, &[-1, 1]).lt(window_end).unwrap();
    logical_and(plain_causal(queries, offset), in_window).unwrap()
}

fn compare(
    criterion: &mut Criterion,
    what: &str,
    queries: i32,
    offset: i32,
    mut ours: impl FnMut() -> Array,
    mut plain: impl FnMut() -> Array,
) {
    let input = format!("{queries} after {offset}");
    let mut group = criterion.benchmark_group(what);
    group.bench_function(BenchmarkId::new("mlx-attn-masks", &input), |bencher| {
        bencher.iter(|| black_box(ours()).eval().unwrap());
    });
    group.bench_function(BenchmarkId::new("plain ops", &input), |bencher| {
        bencher.iter(|| black_box(plain()).eval().unwrap());
    });
    group.finish();
}
