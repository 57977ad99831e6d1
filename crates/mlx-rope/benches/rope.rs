//! A rotation compared with the same rotation composed of plain operations.
//!
//! `cargo bench -p mlx-rope` prints both; compare their ratio, because machines differ.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark stops where something is wrong")]

use criterion::{Criterion, criterion_group, criterion_main};
use mlx_rope::{Rope, RopeLayout, RopeScaling, initialize_rope};
use mlx_rs::ops::concatenate;
use mlx_rs::{Array, Dtype};

const HEADS: i32 = 8;
const HEAD_DIM: i32 = 64;
const BASE: f64 = 10_000.0;

/// The formula of RoFormer, operation by operation, for halves.
fn composed(x: &Array, offset: i32, frequencies: &Array) -> Array {
    let length = x.dim(2);
    let positions =
        Array::arange::<_, f32>(offset, offset + length, 1).unwrap().reshape(&[length, 1]).unwrap();
    let angles = positions.multiply(frequencies).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    let halves = x.as_dtype(Dtype::Float32).unwrap().split_equal(2, -1).unwrap();
    let (a, b) = (&halves[0], &halves[1]);
    let first = a.multiply(&cos).unwrap().subtract(b.multiply(&sin).unwrap()).unwrap();
    let second = a.multiply(&sin).unwrap().add(b.multiply(&cos).unwrap()).unwrap();
    concatenate(&[first, second], -1).unwrap().as_dtype(x.dtype()).unwrap()
}

fn rotations(criterion: &mut Criterion) {
    let plain = Rope::new(HEAD_DIM, BASE, RopeLayout::Halves).unwrap();
    let yarn: RopeScaling =
        serde_json::from_str(r#"{"type": "yarn", "factor": 8, "original_max_position_embeddings": 4096}"#)
            .unwrap();
    let yarn = initialize_rope(HEAD_DIM, BASE, RopeLayout::Halves, &yarn, None).unwrap();
    let frequencies = plain.frequencies(1).unwrap();
    let frequencies = Array::from_slice(&frequencies, &[1, HEAD_DIM / 2]);

    for (length, offset) in [(1, 1000), (256, 0)] {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let mut group = criterion.benchmark_group(format!("{length} tokens, {dtype:?}"));
            let x = Array::ones::<f32>(&[1, HEADS, length, HEAD_DIM]).unwrap().as_dtype(dtype).unwrap();
            x.eval().unwrap();
            let run = |array: Array| array.eval().unwrap();
            group.bench_function("plain", |bench| bench.iter(|| run(plain.rotate(&x, offset).unwrap())));
            group.bench_function("yarn", |bench| bench.iter(|| run(yarn.rotate(&x, offset).unwrap())));
            let by_row = [offset];
            group.bench_function("plain, offset per row", |bench| {
                bench.iter(|| run(plain.rotate(&x, &by_row[..]).unwrap()));
            });
            group.bench_function("composed of plain operations", |bench| {
                bench.iter(|| run(composed(&x, offset, &frequencies)));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, rotations);
criterion_main!(benches);
