//! What the units of the processor do at most, and which part of that the kernels reach.

use std::error::Error;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use half::bf16;
use mlx_cpu::peak::Unit;
use mlx_cpu::{Cpu, Isa, Matrix, MatrixMut, QuantizedMatrix, matmul, quantized_matmul};

use super::found::Peak;
use super::measure::bandwidth;
use super::spread::median;

/// The steps of a loop between two looks at the clock: less than a millisecond.
const STEPS: usize = 20_000;
/// How long a loop is measured, and a product is repeated.
const DURATION: Duration = Duration::from_millis(200);
/// Rows of a prompt, and rows and columns of weights: the MLP of Gemma 3 270M.
const PRODUCT: [usize; 3] = [512, 2048, 640];
/// The largest group of 4-bit weights that the models of the benchmark have.
const GROUP: usize = 64;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Memory, each unit, and products of a prompt, with one thread and with all.
pub(super) fn peaks(cores: usize) -> Result<Vec<Peak>> {
    let mut peaks = Vec::new();
    let mut threads = vec![1, cores];
    threads.dedup();
    for threads in threads {
        let of = if threads == 1 { "one thread".to_owned() } else { format!("{threads} threads") };
        let memory = bandwidth(threads).bytes_per_second.into_iter().fold(f64::NAN, f64::max) / 1e9;
        peaks.push(Peak {
            name: format!("reading memory, {of}"),
            rate: memory,
            counts_bytes: true,
            of: None,
        });
        let units: Vec<(Unit, f64)> = Unit::ALL
            .into_iter()
            .filter(|unit| unit.is_available())
            .map(|unit| (unit, rate(unit, threads)))
            .collect();
        for (unit, rate) in &units {
            peaks.push(Peak {
                name: format!("{}, {of}", unit.name()),
                rate: *rate,
                counts_bytes: false,
                of: None,
            });
        }
        let cpu = Cpu::new(Isa::best(), threads);
        for (name, unit, rate) in products(&cpu)? {
            let unit = units.iter().find(|(found, _)| *found == unit).map(|(_, rate)| *rate);
            peaks.push(Peak { name: format!("{name}, {of}"), rate, counts_bytes: false, of: unit });
        }
    }
    Ok(peaks)
}

/// 10^9 operations of a unit in a second, with this many threads that begin together.
fn rate(unit: Unit, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let one = || {
        unit.run(STEPS);
        barrier.wait();
        let (started, mut operations) = (Instant::now(), 0);
        while started.elapsed() < DURATION {
            operations += unit.run(STEPS);
        }
        operations as f64 / started.elapsed().as_secs_f64() / 1e9
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).sum()
    })
}

/// Products of a prompt: the name, the unit that computes it, and 10^9 operations in a second.
fn products(cpu: &Cpu) -> Result<Vec<(String, Unit, f64)>> {
    let [rows, outputs, inputs] = PRODUCT;
    let shape = format!("{rows} x {inputs} by {inputs} x {outputs}");
    let mut found = Vec::new();
    let x: Vec<bf16> = (0..rows * inputs).map(|i| bf16::from_f32((i % 13) as f32 - 6.0)).collect();
    let weights: Vec<bf16> = (0..outputs * inputs).map(|i| bf16::from_f32((i % 11) as f32 - 5.0)).collect();
    let mut out = vec![bf16::ZERO; rows * outputs];
    let weights = Matrix::contiguous(&weights, outputs, inputs).transposed();
    let unit = match Isa::best() {
        Isa::Amx => Unit::Tiles,
        Isa::Avx512Bf16 => Unit::Bf16,
        _ => Unit::Float32,
    };
    let time = timed(|| {
        matmul(
            cpu,
            Matrix::contiguous(&x, rows, inputs),
            weights,
            MatrixMut::contiguous(&mut out, rows, outputs),
        );
    });
    found.push((format!("product in bfloat16, {shape}"), unit, time));
    for bits in [8, 4] {
        let codes = vec![0x7654_3210_u32; outputs * inputs * bits / 32];
        let scales = vec![bf16::from_f32(0.01); outputs * inputs / GROUP];
        let matrix = QuantizedMatrix::affine(&codes, &scales, &scales, outputs, inputs, bits, GROUP)?;
        let time = timed(|| {
            let out = MatrixMut::contiguous(&mut out, rows, outputs);
            quantized_matmul(cpu, Matrix::contiguous(&x, rows, inputs), &matrix, true, out);
        });
        let unit = if Unit::Words.is_available() { Unit::Words } else { Unit::Float32 };
        found.push((format!("product in {bits} bits, {shape}"), unit, time));
    }
    Ok(found)
}

/// 10^9 operations of a product of the benchmark's shape in a second: by the median of its repetitions.
fn timed(mut product: impl FnMut()) -> f64 {
    product();
    let (started, mut seconds) = (Instant::now(), Vec::new());
    while started.elapsed() < DURATION {
        let before = Instant::now();
        product();
        seconds.push(before.elapsed().as_secs_f64());
    }
    let operations = 2.0 * PRODUCT.into_iter().map(|size| size as f64).product::<f64>();
    operations / median(seconds) / 1e9
}
