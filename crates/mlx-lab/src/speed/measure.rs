//! The measurements that run in a process of ours.

use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use mlx_models::generate::{
    Batch, Draft, DraftModel, GenerateOptions, Overflow, PromptLookup, Session, Speculation,
    default_prefill_chunk, generate, generate_speculative,
};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm, Logits, Quantization};
use mlx_rs::ops::indexing::argmax;
use mlx_rs::ops::matmul;
use mlx_rs::{Array, random};

use super::found::{Bandwidth, Batched, Products, Tokens};
use super::work::{FEW_WORDS, our_version};
use crate::memory;

/// The number of bytes read to measure the bandwidth: more than the processor's caches hold.
const MEMORY: usize = 2 << 30;
/// The number of times that they are read.
const READINGS: usize = 6;
/// The number of products that run first and are not counted.
const WARM_UP: usize = 2;
/// The group size of quantized keys and values.
const GROUP: i32 = 64;
/// The most tokens that are drafted at a time.
const DRAFTED: usize = 8;
/// A text that is repeated with a change: its words can be looked up.
const TEXT: &str = "The old lighthouse keeper climbed the narrow stairs every evening at sunset. He carried a small \
    lamp, a tin of oil and a book about the stars. From the top he could see the fishing boats come home, one after \
    another, and he counted them until the last one was safe behind the harbour wall. Then he lit the great lamp, sat \
    down beside it, and read until the morning came.";
const CHANGED: &str =
    "\n\nThe same text, with \"The young\" in place of \"The old\":\n\nThe young lighthouse keeper";

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// How many tokens are read and generated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub(super) prompt: u32,
    pub(super) generated: u32,
    pub(super) warm_up: u32,
}

/// The options of a cache whose keys and values have this many bits.
fn cache_options(kv_bits: Option<i32>) -> Result<CacheOptions> {
    let quantization = kv_bits.map(|bits| Quantization::affine(bits, GROUP)).transpose()?;
    Ok(CacheOptions { quantization, ..CacheOptions::default() })
}

/// Generates greedy tokens after a prompt. A shorter run comes first as a warm-up, and is not counted.
pub(super) fn tokens(path: &Path, counts: Counts, kv_bits: Option<i32>) -> Result<Tokens> {
    let started = Instant::now();
    // llama.cpp reads the tokenizer with the model.
    let tokenizer = path.is_file().then(|| Tokenizer::open(path)).transpose()?;
    let mut model = mlx_models::load(path)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let load_s = started.elapsed().as_secs_f64();

    let prompt = prompt(counts.prompt, 0, model.info().vocab_size as u32);
    let options = cache_options(kv_bits)?;
    let warm_up = prompt.get(..counts.warm_up as usize).unwrap_or(&prompt);
    if !warm_up.is_empty() {
        run(&mut *model, &options, warm_up, 2)?;
        mlx_rs::memory::clear_cache()?;
    }
    mlx_rs::memory::reset_peak_memory()?;
    let (tokens, seconds) = run(&mut *model, &options, &prompt, counts.generated as usize)?;
    let (prefill_s, token_s) = seconds.split_first().ok_or("no token was generated")?;
    drop(tokenizer); // it is in memory up to here, as in a program
    Ok(Tokens {
        load_s,
        prefill_s: *prefill_s,
        token_s: token_s.to_vec(),
        tokens,
        version: our_version(),
        peak_memory_bytes: Some(memory::peak("self")).filter(|&bytes| bytes > 0),
        peak_array_bytes: Some(mlx_rs::memory::peak_memory()? as u64),
    })
}

/// The tokens that every program of the benchmark gets. Prompts with other beginnings are other prompts.
fn prompt(count: u32, begin: u32, vocab_size: u32) -> Vec<u32> {
    let token = |i: u32| i.wrapping_mul(1_664_525).wrapping_add(1) % vocab_size;
    (begin..begin + count).map(token).collect()
}

/// The tokens, and the seconds that each took. The seconds of the first are those of the whole prompt, its last token
/// included: what llama.cpp does in one call.
fn run(
    model: &mut dyn CausalLm,
    options: &CacheOptions,
    prompt: &[u32],
    count: usize,
) -> Result<(Vec<u32>, Vec<f64>)> {
    let mut session = Session::new(model.new_cache(options)?);
    let mut before = Instant::now();
    let ids = Array::from_slice(prompt, &[1, i32::try_from(prompt.len())?]);
    let logits = session.read_in_chunks(model, &ids, Logits::Last, default_prefill_chunk())?;
    let first = argmax(&logits, None)?.item_exact::<u32>();
    let mut seconds = vec![before.elapsed().as_secs_f64()];
    let mut tokens = vec![first];
    before = Instant::now();
    for token in generate(model, &mut session, &[first], endless(count - 1))? {
        tokens.push(token?.id);
        let now = Instant::now();
        seconds.push((now - before).as_secs_f64());
        before = now;
    }
    Ok((tokens, seconds))
}

/// This many greedy tokens, whatever they are. The text may go beyond the context length of the model: the work is the same.
fn endless(count: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: count, overflow: Overflow::Slide, ..GenerateOptions::new(&[]) }
}

/// Decodes rows together, each behind a prompt of its own, as `llama-batched-bench` does. One turn of three tokens warms up.
pub(super) fn batch(path: &Path, rows: u32, prompt_tokens: u32, gen_tokens: u32) -> Result<Batched> {
    let mut model = mlx_models::load(path)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    decode_together(&mut *model, rows, 8, 3)?;
    let seconds = decode_together(&mut *model, rows, prompt_tokens, gen_tokens)?;
    Ok(Batched { decode: f64::from(rows * gen_tokens) / seconds, version: our_version() })
}

/// The seconds of `gen_tokens` steps of all rows, when the prompts are read.
fn decode_together(model: &mut dyn CausalLm, rows: u32, prompt_tokens: u32, gen_tokens: u32) -> Result<f64> {
    let vocab_size = model.info().vocab_size as u32;
    let mut batch = Batch::new(CacheOptions::default()).prompt_tokens_per_step(usize::MAX);
    for row in 0..rows {
        let prompt = prompt(prompt_tokens, row * prompt_tokens, vocab_size);
        batch.add(model, &prompt, endless(gen_tokens as usize + 1))?;
    }
    // The first step reads the prompts and gives the first tokens.
    let mut tokens = batch.step(model)?.len();
    let started = Instant::now();
    while !batch.is_empty() {
        tokens += batch.step(model)?.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    let expected = (rows * (gen_tokens + 1)) as usize;
    if tokens != expected {
        return Err(format!("{tokens} tokens were generated and not {expected}").into());
    }
    Ok(seconds)
}

/// What a process does up to its first token: it loads a model and its tokenizer, and reads a few words.
pub(super) fn first_token(path: &Path) -> Result<()> {
    let mut model = mlx_models::load(path)?;
    let prompt = Tokenizer::open(path)?.encode(FEW_WORDS)?;
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: 1, ..GenerateOptions::new(&[]) };
    generate(&mut *model, &mut session, &prompt, options)?.next().transpose()?;
    Ok(())
}

/// What drafts tokens.
#[derive(Debug, Clone)]
pub(super) enum Drafts {
    Nothing,
    Lookup,
    Model(PathBuf),
}

/// Continues a text that repeats most of its beginning, with drafts or without.
pub(super) fn speculation(path: &Path, tokenizer: &Path, drafts: &Drafts, count: u32) -> Result<Tokens> {
    let started = Instant::now();
    let mut model = mlx_models::load(path)?;
    mlx_rs::transforms::eval_params(model.parameters())?;
    let mut small = match drafts {
        Drafts::Model(path) => Some(mlx_models::load(path)?),
        _ => None,
    };
    let load_s = started.elapsed().as_secs_f64();
    let prompt = Tokenizer::open(tokenizer)?.encode(&format!("{TEXT}{CHANGED}"))?;
    let mut turn = |count| -> Result<(Vec<u32>, usize, Vec<f64>)> {
        let mut lookup = PromptLookup::default();
        let mut draft_model = match &mut small {
            Some(small) => Some(DraftModel::new(&mut **small, &endless(count))?),
            None => None,
        };
        let draft: Option<&mut dyn Draft> = match (drafts, &mut draft_model) {
            (_, Some(draft)) => Some(draft),
            (Drafts::Lookup, _) => Some(&mut lookup),
            _ => None,
        };
        continued(&mut *model, &prompt, draft, count)
    };
    turn(4)?;
    let (tokens, drafted, seconds) = turn(count as usize)?;
    let (prefill_s, token_s) = seconds.split_first().ok_or("no token was generated")?;
    let version = format!("{}; {drafted} of {} tokens were drafted", our_version(), tokens.len());
    Ok(Tokens {
        load_s,
        prefill_s: *prefill_s,
        token_s: token_s.to_vec(),
        tokens,
        version,
        peak_memory_bytes: None,
        peak_array_bytes: None,
    })
}

/// The tokens, how many of them were drafted, and the seconds of each.
fn continued(
    model: &mut dyn CausalLm,
    prompt: &[u32],
    draft: Option<&mut dyn Draft>,
    count: usize,
) -> Result<(Vec<u32>, usize, Vec<f64>)> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let (mut tokens, mut drafted, mut seconds) = (Vec::new(), 0, Vec::new());
    let mut before = Instant::now();
    let mut take = |token: mlx_models::generate::Token| {
        tokens.push(token.id);
        drafted += usize::from(token.drafted);
        let now = Instant::now();
        seconds.push((now - before).as_secs_f64());
        before = now;
    };
    match draft {
        Some(draft) => {
            let speculation = Speculation { draft, most: DRAFTED };
            for token in generate_speculative(model, &mut session, prompt, endless(count), speculation)? {
                take(token?);
            }
        }
        None => {
            for token in generate(model, &mut session, prompt, endless(count))? {
                take(token?);
            }
        }
    }
    Ok((tokens, drafted, seconds))
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
    Ok(Products { seconds: seconds.split_off(WARM_UP), version: our_version() })
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
                    scope.spawn(move || black_box(mlx_cpu::peak::read(part)));
                }
            });
            MEMORY as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    Bandwidth { bytes_per_second }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompt_is_that_of_the_scripts() {
        // The result of `prompt_of(4, 262144)` in bench_llama_cpp.py.
        assert_eq!(prompt(4, 0, 262_144), [1, 91_662, 183_323, 12_840]);
        assert_eq!(prompt(2, 2, 262_144), [183_323, 12_840]);
        assert_eq!(prompt(5001, 0, 1000).get(4999..), Some(&[180, 705][..]));
    }
}
