//! Times of the kernels, compared with the peak of a core and the speed of a copy: `cargo bench -p mlx-cpu --bench
//! ops`.
//!
//! On one thread, or `MLX_CPU_THREADS`. Prints the best of many runs, which other work on the machine changes little.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it has measured")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::bf16;
use mlx_cpu::*;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let threads = std::env::var("MLX_CPU_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let cpu = &Cpu::new(Isa::best(), threads);
    println!("{:44} {:>12} {:>20}", "kernel", "best", "");
    let peak = 2.0 * Peak::PRODUCTS as f64 * 16.0 / best(|| cpu.run(Peak)).as_secs_f64() / 1e9;
    println!("{:44} {:>12} {peak:13.1} GFLOP/s", "products in registers", "");
    let bandwidth = copy_bandwidth();
    println!("{:44} {:>12} {bandwidth:13.1} GB/s", "copy of 64 MB, read and written", "");

    for (name, heads, shared, length, count, size) in [
        ("attention, 1 query, 512 keys, 4 heads of 256", 4, 1, 1, 512, 256),
        ("attention, 1 query, 4096 keys, 4 heads of 256", 4, 1, 1, 4096, 256),
        ("attention, 1 query, 32000 keys, 4 heads of 256", 4, 1, 1, 32_000, 256),
        ("attention, 1 query, 8192 keys, 32/8 heads of 64", 32, 8, 1, 8192, 64),
        ("attention, 1 query, 1024 keys, 10/5 heads of 64", 10, 5, 1, 1024, 64),
        ("attention, 8 queries, 4096 keys, 4 heads of 256", 4, 1, 8, 4096, 256),
        ("attention, 64 queries, 1024 keys, 4 heads of 256", 4, 1, 64, 1024, 256),
        ("attention, prompt 128, 4 heads of 256", 4, 1, 128, 128, 256),
        ("attention, prompt 1024, 4 heads of 256", 4, 1, 1024, 1024, 256),
        ("attention, prompt 512, 8192 keys, 4 heads of 256", 4, 1, 512, 8192, 256),
        ("attention, prompt 512, 8 heads of 96", 8, 8, 512, 512, 96),
        ("attention, prompt 1024, 8/2 heads of 128", 8, 2, 1024, 1024, 128),
        ("attention, prompt 1024, 10/5 heads of 64", 10, 5, 1024, 1024, 64),
    ] {
        if !name.contains(&filter) {
            continue;
        }
        let make = |heads: usize, length: usize, seed: u32| numbers(heads * length * size, seed);
        let (q, k, v) = (make(heads, length, 1), make(shared, count, 2), make(shared, count, 3));
        let mut out = vec![bf16::ZERO; q.len()];
        let mut timed = |softcap| {
            best(|| {
                attention(
                    cpu,
                    View::contiguous(&q, [1, heads, length, size]),
                    View::contiguous(&k, [1, shared, count, size]),
                    View::contiguous(&v, [1, shared, count, size]),
                    Scores { scale: 0.0625, softcap },
                    Mask::Causal,
                    None,
                    ViewMut::contiguous(&mut out, [1, heads, length, size]),
                );
            })
        };
        let (time, capped) = (timed(None), timed(Some(50.0)));
        let seen = length * count - length * (length - 1) / 2;
        let products = 4.0 * (heads * seen * size) as f64 / time.as_secs_f64() / 1e9;
        let bytes = (2 * 2 * shared * count * size) as f64 / time.as_secs_f64() / 1e9;
        println!(
            "{name:50} {time:12.2?} {products:7.1} GFLOP/s, {:4.0} % of the peak; {bytes:6.1} GB/s; \
             soft-capped {capped:12.2?}, {:4.2}",
            100.0 * products / peak,
            capped.as_secs_f64() / time.as_secs_f64()
        );
    }
    if "quantized attention".contains(&filter) {
        quantized_attention(cpu);
    }
    if "rows".contains(&filter) {
        rows(cpu);
    }
}

/// Attention over quantized keys and values, compared with separate kernels and with attention over bfloat16.
fn quantized_attention(cpu: &Cpu) {
    for (heads, shared, size) in [(10, 5, 64), (4, 1, 256)] {
        for (length, count) in [(1, 1024), (1, 4096), (1, 16384), (16, 1024), (512, 4096)] {
            let q = numbers(heads * length * size, 1);
            let rows = shared * count;
            let [k, v] = [2, 3].map(|seed| numbers(rows * size, seed));
            let mut out = q.clone();
            let queries = View::contiguous(&q, [1, heads, length, size]);
            let shape = [1, heads, length, size];
            let dense = best(|| {
                let [k, v] = [&k, &v].map(|x| View::contiguous(x, [1, shared, count, size]));
                attention(cpu, queries, k, v, 1.0, Mask::None, None, ViewMut::contiguous(&mut out, shape));
            });
            for bits in [4, 8] {
                let [k, v] = [&k, &v].map(|x| {
                    let (mut words, groups) = (vec![0; rows * size * bits / 32], rows * size / 64);
                    let [mut scales, mut biases] = [(); 2].map(|()| vec![bf16::ZERO; groups]);
                    let x = Matrix::contiguous(x, rows, size);
                    quantize(cpu, x, bits, 64, &mut words, &mut scales, &mut biases).unwrap();
                    (words, scales, biases)
                });
                let [k, v] = [&k, &v].map(|(words, scales, biases)| -> Vec<_> {
                    let heads = words.chunks(words.len() / shared);
                    let groups =
                        scales.chunks(scales.len() / shared).zip(biases.chunks(scales.len() / shared));
                    let matrix = |(words, (scales, biases))| {
                        QuantizedMatrix::affine(words, scales, biases, count, size, bits, 64).unwrap()
                    };
                    heads.zip(groups).map(matrix).collect()
                });
                let one = best(|| {
                    let [k, v] = [&k, &v].map(|x| QuantizedHeads::new(x, 1));
                    attention(
                        cpu,
                        queries,
                        k,
                        v,
                        1.0,
                        Mask::None,
                        None,
                        ViewMut::contiguous(&mut out, shape),
                    );
                });
                let several = best(|| separate_kernels(cpu, &q, &k, &v, &mut out));
                let name = format!(
                    "attention, {length} of {heads}/{shared} heads of {size}, {count} keys of {bits} bits"
                );
                println!(
                    "{name:64} {one:10.2?}; as separate kernels {several:10.2?}, {:5.2}; bfloat16 {dense:10.2?}, {:5.2}",
                    several.as_secs_f64() / one.as_secs_f64(),
                    dense.as_secs_f64() / one.as_secs_f64(),
                );
            }
        }
    }
}

/// Attention over quantized heads of `k` and `v` as separate kernels, with all scores in memory between them.
fn separate_kernels(
    cpu: &Cpu,
    q: &[bf16],
    k: &[QuantizedMatrix<'_, bf16>],
    v: &[QuantizedMatrix<'_, bf16>],
    out: &mut [bf16],
) {
    let (count, size) = (k[0].rows(), k[0].columns());
    let rows = q.len() / size;
    let each = rows / k.len();
    let [mut scores, mut weights] = [(); 2].map(|()| vec![bf16::ZERO; rows * count]);
    for (head, k) in k.iter().enumerate() {
        let q = Matrix::contiguous(&q[head * each * size..], each, size);
        let to = MatrixMut::contiguous(&mut scores[head * each * count..], each, count);
        quantized_matmul(cpu, q, k, true, to);
    }
    let from = Matrix::contiguous(&scores, rows, count);
    softmax(cpu, from, MatrixMut::contiguous(&mut weights, rows, count));
    for (head, v) in v.iter().enumerate() {
        let weights = Matrix::contiguous(&weights[head * each * count..], each, count);
        let to = MatrixMut::contiguous(&mut out[head * each * size..], each, size);
        quantized_matmul(cpu, weights, v, false, to);
    }
}

fn rows(cpu: &Cpu) {
    for (count, size) in [(1, 640), (128, 640), (1024, 2048)] {
        let (x, w) = (numbers(count * size, 1), numbers(size, 2));
        let mut out = x.clone();
        let time = best(|| {
            let to = MatrixMut::contiguous(&mut out, count, size);
            rms_norm(cpu, Matrix::contiguous(&x, count, size), Some(&w), 1e-6, to);
        });
        report("rms_norm", count, size, time);
        type Gate = fn(&Cpu, Matrix<'_, bf16>, Matrix<'_, bf16>, MatrixMut<'_, bf16>);
        for (name, gate) in [("swiglu", swiglu as Gate), ("geglu", geglu as Gate)] {
            let time = best(|| {
                let x = Matrix::contiguous(&x, count, size);
                gate(cpu, x, x, MatrixMut::contiguous(&mut out, count, size));
            });
            report(name, count, size, time);
        }
    }
    for (count, size) in [(1, 262_144), (4096, 512)] {
        let x = numbers(count * size, 1);
        let mut out = x.clone();
        let time = best(|| {
            softmax(cpu, Matrix::contiguous(&x, count, size), MatrixMut::contiguous(&mut out, count, size))
        });
        report("softmax", count, size, time);
        let mut places = vec![0; count];
        let time = best(|| argmax(cpu, Matrix::contiguous(&x, count, size), &mut places));
        report("argmax", count, size, time);
        let time = best(|| logsumexp(cpu, Matrix::contiguous(&x, count, size), &mut out[..count]));
        report("logsumexp", count, size, time);
    }
    let x = numbers(1024 * 1024, 1);
    let mut out = x.clone();
    let time = best(|| {
        let from = View::new(&x, [1, 4, 1024, 256], [0, 256, 1024, 1]);
        copy_strided(cpu, from, ViewMut::contiguous(&mut out, [1, 4, 1024, 256]));
    });
    report("copy of heads", 1024, 1024, time);
    let time = best(|| {
        let from = View::new(&x, [1, 1, 1024, 1024], [0, 0, 1, 1024]);
        copy_strided(cpu, from, ViewMut::contiguous(&mut out, [1, 1, 1024, 1024]));
    });
    report("transposition", 1024, 1024, time);
    for (length, heads, size) in [(1, 4, 256), (1, 1, 256), (1024, 4, 256)] {
        for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
            let x = numbers(heads * length * size, 1);
            let mut out = x.clone();
            let turn = Rope { dims: size, layout, frequencies: Frequencies::Base(1e6), scale: 1.0 };
            let time =
                best(|| rope(cpu, View::contiguous(&x, [1, heads, length, size]), &turn, &[1000], &mut out));
            report(&format!("rope {layout:?}"), heads * length, size, time);
        }
    }
}

fn report(name: &str, rows: usize, columns: usize, time: Duration) {
    let each = time.as_secs_f64() * 1e9 / (rows * columns) as f64;
    println!("{:50} {time:12.2?} {each:7.3} ns an element", format!("{name}, {rows} rows of {columns}"));
}

fn numbers(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

fn best(mut task: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    while start.elapsed() < Duration::from_millis(600) {
        let one = Instant::now();
        let mut count = 0;
        let all = loop {
            task();
            count += 1;
            let all = one.elapsed();
            if all > Duration::from_micros(50) {
                break all;
            }
        };
        best = best.min(all / count);
    }
    best
}

fn copy_bandwidth() -> f64 {
    let (from, mut to) = (vec![1_u8; 64 << 20], vec![0_u8; 64 << 20]);
    let time = best(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    2.0 * from.len() as f64 / time.as_secs_f64() / 1e9
}

struct Peak;

impl Peak {
    const PRODUCTS: usize = 16 * 4096;
}

impl Kernel for Peak {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = s.splat(black_box(1e-6));
        let mut sums = [s.zero(); 16];
        for _ in 0..Self::PRODUCTS / S::LANES {
            for sum in &mut sums {
                *sum = s.mul_add(x, x, *sum);
            }
        }
        let sum = sums.into_iter().fold(s.zero(), |a, b| s.add(a, b));
        black_box(s.sum(sum));
    }
}
