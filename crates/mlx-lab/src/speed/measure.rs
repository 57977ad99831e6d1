//! The measurements that run in a process of ours.

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::Instant;

use mlx_cpu::{Isa, Kernel, Simd};
use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};
use mlx_rs::ops::matmul;
use mlx_rs::random;

use super::{Bandwidth, Products, Tokens};
use crate::memory;

/// The number of bytes read to measure the bandwidth: more than the processor's caches hold.
const MEMORY: usize = 2 << 30;
/// The number of times that they are read.
const READINGS: usize = 6;
/// The number of products that run first and are not counted.
const WARM_UP: usize = 2;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Generates greedy tokens after a prompt. A shorter run comes first as a warm-up, and is not counted.
pub(super) fn tokens(folder: &Path, prompt_tokens: u32, warm_up: u32, gen_tokens: u32) -> Result<Tokens> {
    let started = Instant::now();
    // llama.cpp reads the tokenizer with the model.
    let tokenizer = folder.is_file().then(|| Tokenizer::open(folder)).transpose()?;
    let mut model = mlx_models::load(folder)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let load_s = started.elapsed().as_secs_f64();

    let prompt = prompt(prompt_tokens, model.info().vocab_size as u32);
    let warm_up = prompt.get(..warm_up as usize).unwrap_or(&prompt);
    if !warm_up.is_empty() {
        run(&mut *model, warm_up, 2)?;
    }
    let (tokens, seconds) = run(&mut *model, &prompt, gen_tokens as usize)?;
    let (prefill_s, token_s) = seconds.split_first().ok_or("no token was generated")?;
    let version = format!("mlx-models {}", env!("CARGO_PKG_VERSION"));
    drop(tokenizer); // it is in memory up to here, as in a program
    Ok(Tokens {
        load_s,
        prefill_s: *prefill_s,
        token_s: token_s.to_vec(),
        tokens,
        version,
        peak_memory_bytes: Some(memory::peak("self")).filter(|&bytes| bytes > 0),
        peak_array_bytes: Some(mlx_rs::memory::peak_memory()? as u64),
    })
}

/// The tokens that every program of the benchmark gets.
fn prompt(count: u32, vocab_size: u32) -> Vec<u32> {
    (0..count).map(|i| i.wrapping_mul(1_664_525).wrapping_add(1) % vocab_size).collect()
}

/// The tokens, and the seconds that each took; the first includes the prompt.
fn run(model: &mut dyn CausalLm, prompt: &[u32], count: usize) -> Result<(Vec<u32>, Vec<f64>)> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let (mut tokens, mut seconds) = (Vec::new(), Vec::new());
    let mut before = Instant::now();
    let options = GenerateOptions { max_tokens: count, ..GenerateOptions::new(&[]) };
    for token in generate(model, &mut session, prompt, options)? {
        tokens.push(token?.id);
        let now = Instant::now();
        seconds.push((now - before).as_secs_f64());
        before = now;
    }
    Ok((tokens, seconds))
}

/// Multiplies square float32 matrices.
pub(super) fn products(size: i32, count: usize) -> Result<Products> {
    let key = random::key(1)?;
    let a = random::normal::<f32>(&[size, size], None, None, &key)?;
    let b = random::normal::<f32>(&[size, size], None, None, &random::key(2)?)?;
    mlx_rs::transforms::eval([&a, &b])?;
    let mut seconds = Vec::new();
    for _ in 0..WARM_UP + count {
        let started = Instant::now();
        matmul(&a, &b)?.eval()?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let version = format!("mlx-models {}", env!("CARGO_PKG_VERSION"));
    Ok(Products { seconds: seconds.split_off(WARM_UP), version })
}

/// The rate of reading memory with this many threads: the sum of an array that is larger than all caches.
pub(super) fn bandwidth(threads: usize) -> Bandwidth {
    let memory = vec![1.0_f32; MEMORY / size_of::<f32>()];
    let part = memory.len().div_ceil(threads);
    let bytes_per_second = (0..READINGS)
        .map(|_| {
            let started = Instant::now();
            thread::scope(|scope| {
                for part in memory.chunks(part) {
                    scope.spawn(move || black_box(Isa::best().run(Sum(part))));
                }
            });
            MEMORY as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    Bandwidth { bytes_per_second }
}

/// Sums with the widest vectors, and with enough of them that the additions only wait for memory. With narrower
/// vectors, a core has fewer requests to memory in flight than it could.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.zero(); 4];
        let chunks = self.0.chunks_exact(4 * S::LANES);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.add(*sum, s.load(&chunk[i * S::LANES..]));
            }
        }
        sums.into_iter().fold(rest, |total, sum| total + s.sum(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_that_of_the_scripts() {
        // The result of `prompt_of(4, 262144)` in bench_llama_cpp.py.
        assert_eq!(prompt(4, 262_144), [1, 91_662, 183_323, 12_840]);
        assert_eq!(prompt(5001, 1000).get(4999..), Some(&[180, 705][..]));
    }

    #[test]
    fn every_number_is_read() {
        let numbers: Vec<f32> = (0..1001_u16).map(f32::from).collect();
        approx::assert_abs_diff_eq!(Isa::best().run(Sum(&numbers)), 500_500.0, epsilon = 0.25);
    }
}
