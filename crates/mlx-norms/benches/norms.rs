//! The norms compared with the same computations in plain mlx-rs operations: `cargo bench -p mlx-norms`.
#![allow(clippy::unwrap_used, reason = "a benchmark that fails has nothing to say")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion};
use mlx_norms::{OffsetRmsNorm, RmsNorm, clip_residual};
use mlx_rs::module::Module;
use mlx_rs::{Array, Dtype};

/// One token and a prompt, of Gemma 3 270M's hidden size.
const SHAPES: [[i32; 3]; 2] = [[1, 1, 640], [1, 128, 640]];
const EPS: f32 = 1e-6;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for shape in SHAPES {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            rms_norm(&mut criterion, shape, dtype);
            offset_rms_norm(&mut criterion, shape, dtype);
        }
        residual(&mut criterion, shape);
    }
    criterion.final_summary();
}

fn rms_norm(criterion: &mut Criterion, shape: [i32; 3], dtype: Dtype) {
    let (x, weight) = inputs(shape, dtype);
    let mut norm = RmsNorm::new(weight.clone(), EPS);
    compare(
        criterion,
        "rms_norm",
        &format!("{shape:?} {dtype:?}"),
        || norm.forward(&x).unwrap(),
        || plain_rms_norm(&x, &weight),
    );
}

fn offset_rms_norm(criterion: &mut Criterion, shape: [i32; 3], dtype: Dtype) {
    let (x, weight) = inputs(shape, dtype);
    let mut norm = OffsetRmsNorm::new(weight.clone(), EPS);
    let one = Array::from_f32(1.0).as_dtype(dtype).unwrap();
    let name = format!("{shape:?} {dtype:?}");
    compare(
        criterion,
        "offset_rms_norm",
        &name,
        || norm.forward(&x).unwrap(),
        || plain_rms_norm(&x, &one.add(&weight).unwrap()),
    );
}

fn residual(criterion: &mut Criterion, shape: [i32; 3]) {
    let (x, _) = inputs(shape, Dtype::Float16);
    let (smallest, largest) = (Array::from_f32(-65504.0), Array::from_f32(65504.0));
    let name = format!("{shape:?} Float16");
    compare(
        criterion,
        "clip_residual",
        &name,
        || clip_residual(&x, &x).unwrap(),
        || {
            let single = |array: &Array| array.as_dtype(Dtype::Float32).unwrap();
            let sum = single(&x).add(single(&x)).unwrap();
            let sum = mlx_rs::ops::minimum(mlx_rs::ops::maximum(sum, &smallest).unwrap(), &largest).unwrap();
            sum.as_dtype(Dtype::Float16).unwrap()
        },
    );
}

fn plain_rms_norm(x: &Array, weight: &Array) -> Array {
    let single = x.as_dtype(Dtype::Float32).unwrap();
    let mean_square = single.square().unwrap().mean_axis(-1, true).unwrap();
    let scale = mean_square.add(Array::from_f32(EPS)).unwrap().rsqrt().unwrap();
    single.multiply(scale).unwrap().as_dtype(x.dtype()).unwrap().multiply(weight).unwrap()
}

fn inputs(shape: [i32; 3], dtype: Dtype) -> (Array, Array) {
    let [.., dim] = shape;
    let values: Vec<f32> =
        (0..shape.iter().product::<i32>()).map(|i| (i % 251) as f32 / 60.0 - 2.0).collect();
    let weight: Vec<f32> = (0..dim).map(|i| (i % 17) as f32 / 20.0).collect();
    let x = Array::from_slice(&values, &shape).as_dtype(dtype).unwrap();
    let weight = Array::from_slice(&weight, &[dim]).as_dtype(dtype).unwrap();
    mlx_rs::transforms::eval([&x, &weight]).unwrap();
    (x, weight)
}

fn compare(
    criterion: &mut Criterion,
    what: &str,
    input: &str,
    mut ours: impl FnMut() -> Array,
    mut plain: impl FnMut() -> Array,
) {
    let mut group = criterion.benchmark_group(what);
    group.bench_function(BenchmarkId::new("mlx-norms", input), |bencher| {
        bencher.iter(|| black_box(ours()).eval().unwrap());
    });
    group.bench_function(BenchmarkId::new("plain ops", input), |bencher| {
        bencher.iter(|| black_box(plain()).eval().unwrap());
    });
    group.finish();
}
