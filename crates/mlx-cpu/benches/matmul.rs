//! Products in the shapes of Gemma 3 270M: one new token and a prompt; bfloat16, 8 and 4 bits, and blocks of GGUF files.
//!
//! The first two groups are for comparison: how fast this machine reads memory and multiplies while the benchmark runs.
//! Weights do not fit into caches, so they come from memory, as in a model.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use mlx_cpu::{
    BlockFormat, BlockMatrix, Cpu, Kernel, Matrix, MatrixMut, QuantizedMatrix, Simd, matmul, matmul_blocks,
    quantized_matmul, split_blocks,
};

/// Rows and columns of weights: the output layer, attention and MLP.
const WEIGHTS: [(usize, usize); 6] =
    [(262_144, 640), (1024, 640), (256, 640), (640, 1024), (2048, 640), (640, 2048)];
/// More bytes than caches hold.
const MEMORY: usize = 256 << 20;

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.zero(); 4];
        for chunk in self.0.chunks_exact(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&chunk[i * S::LANES..]));
            }
        }
        s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }
}

struct Multiply(usize);

impl Kernel for Multiply {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let factor = s.splat(0.999);
        let mut sums = [s.splat(0.5); 12];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = s.mul_add(*sum, factor, factor);
            }
        }
        sums.into_iter().map(|sum| s.sum(sum)).sum()
    }
}

fn limits(criterion: &mut Criterion) {
    let cpu = Cpu::global();
    let memory = vec![1.0_f32; MEMORY / 4];
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(MEMORY as u64));
    group.bench_function("memory", |bencher| {
        let piece = memory.len() / 1024;
        bencher.iter(|| {
            cpu.parallel(1024, |i| {
                black_box(cpu.run(Read(&memory[i * piece..][..piece])));
            });
        });
    });
    group.finish();
    let mut group = criterion.benchmark_group("multiply and add");
    let (tasks, times) = (cpu.threads() * 8, 100_000);
    let lanes = cpu.isa().lanes();
    group.throughput(Throughput::Elements((2 * 12 * lanes * times * tasks) as u64));
    group.bench_function("float32", |bencher| {
        bencher.iter(|| {
            cpu.parallel(tasks, |_| {
                black_box(cpu.run(Multiply(times)));
            });
        });
    });
    group.finish();
}

/// Calls `product` for one matrix after another, so that no matrix is in a cache.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    rows: usize,
    bytes: impl Fn(usize) -> usize,
    product: impl FnMut(usize, usize, usize, &[bf16], &mut [bf16]),
) {
    bench_shapes(criterion, name, rows, |_| true, bytes, product);
}

/// [`bench`] for the shapes whose number of columns `fits`.
fn bench_shapes(
    criterion: &mut Criterion,
    name: &str,
    rows: usize,
    fits: impl Fn(usize) -> bool,
    bytes: impl Fn(usize) -> usize,
    mut product: impl FnMut(usize, usize, usize, &[bf16], &mut [bf16]),
) {
    let mut group = criterion.benchmark_group(format!("{name}, {rows} rows"));
    for (n, k) in WEIGHTS.into_iter().filter(|&(_, k)| fits(k)) {
        // A prompt does not go through the output layer.
        if rows > 1 && n > 100_000 {
            continue;
        }
        let copies = (MEMORY / bytes(n * k)).clamp(1, 100);
        let x = vec![bf16::from_f32(0.5); rows * k];
        let mut out = vec![bf16::ZERO; rows * n];
        let mut copy = 0;
        group.throughput(if rows == 1 {
            Throughput::Bytes(bytes(n * k) as u64)
        } else {
            Throughput::Elements((2 * rows * n * k) as u64)
        });
        group.bench_function(BenchmarkId::from_parameter(format!("{n}x{k}")), |bencher| {
            bencher.iter(|| {
                copy = (copy + 1) % copies;
                product(copy, n, k, &x, &mut out);
            });
        });
    }
    group.finish();
}

fn products(criterion: &mut Criterion) {
    let cpu = Cpu::global();
    for rows in [1, 128, 1024] {
        let weights = vec![bf16::from_f32(0.25); MEMORY.max(2 * 262_144 * 640) / 2];
        let product = |copy: usize, n: usize, k: usize, x: &[bf16], out: &mut [bf16]| {
            let w = Matrix::contiguous(&weights[copy * n * k..], n, k);
            let x = Matrix::contiguous(x, rows, k);
            matmul(cpu, x, w.transposed(), MatrixMut::contiguous(out, rows, n));
        };
        bench(criterion, "bfloat16", rows, |weights| weights * 2, product);
        for bits in [8, 4] {
            let weights = vec![0x1234_5678_u32; MEMORY / 4];
            let scales = vec![bf16::from_f32(0.25); MEMORY / (8 * bits)];
            let product = |copy: usize, n: usize, k: usize, x: &[bf16], out: &mut [bf16]| {
                let (words, groups) = (n * k * bits / 32, n * k / 64);
                let weights = &weights[copy * words..][..words];
                let scales = &scales[copy * groups..][..groups];
                if let Ok(w) = QuantizedMatrix::affine(weights, scales, scales, n, k, bits, 64) {
                    let x = Matrix::contiguous(x, rows, k);
                    quantized_matmul(cpu, x, &w, true, MatrixMut::contiguous(out, rows, n));
                }
            };
            // Codes, and for each 64 of them a scale and a bias of 2 bytes each.
            let bytes = |weights: usize| weights * bits / 8 + weights / 16;
            bench(criterion, &format!("{bits} bits"), rows, bytes, product);
        }
    }
}

/// Each block format in the shapes whose rows are whole blocks.
fn blocks(criterion: &mut Criterion) {
    let cpu = Cpu::global();
    for rows in [1, 4, 512] {
        for format in BlockFormat::ALL {
            let codes = vec![0x1234_5678_u32; MEMORY / 4];
            let scales = vec![0x21_u8; MEMORY / 4];
            let product = |copy: usize, n: usize, k: usize, x: &[bf16], out: &mut [bf16]| {
                let (words, bytes) =
                    (n * k * format.bits() / 32, n * k / format.block() * format.scale_bytes());
                let codes = &codes[copy * words..][..words];
                let scales = &scales[copy * bytes..][..bytes];
                if let Ok(w) = BlockMatrix::new(format, codes, scales, n, k) {
                    let x = Matrix::contiguous(x, rows, k);
                    matmul_blocks(cpu, x, &w, true, MatrixMut::contiguous(out, rows, n));
                }
            };
            let bytes = |weights: usize| weights / format.block() * format.block_bytes();
            let fits = |k: usize| k.is_multiple_of(format.block());
            bench_shapes(criterion, &format.to_string(), rows, fits, bytes, product);
        }
    }
}

/// From the blocks of a file to codes and scales.
fn split(criterion: &mut Criterion) {
    let cpu = Cpu::global();
    let mut group = criterion.benchmark_group("split");
    for format in BlockFormat::ALL {
        let (rows, columns) = (16_384, 2048);
        let count = rows * columns / format.block();
        let blocks = vec![0x21_u8; count * format.block_bytes()];
        let mut codes = vec![0_u32; rows * columns * format.bits() / 32];
        let mut scales = vec![0_u8; count * format.scale_bytes()];
        group.throughput(Throughput::Bytes(blocks.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format), |bencher| {
            bencher.iter(|| split_blocks(cpu, format, rows, columns, &blocks, &mut codes, &mut scales));
        });
    }
    group.finish();
}

fn float32(criterion: &mut Criterion) {
    let cpu = Cpu::global();
    let mut group = criterion.benchmark_group("float32");
    for (m, k, n) in [(1024, 1024, 1024), (128, 640, 2048)] {
        let (a, w) = (vec![0.5_f32; m * k], vec![0.25_f32; n * k]);
        let mut out = vec![0.0; m * n];
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{m}x{k}x{n}")), |bencher| {
            bencher.iter(|| {
                let (a, w) = (Matrix::contiguous(&a, m, k), Matrix::contiguous(&w, n, k));
                matmul(cpu, a, w.transposed(), MatrixMut::contiguous(&mut out, m, n));
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = limits, products, blocks, split, float32
}
criterion_main!(benches);
