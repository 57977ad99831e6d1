//! Options of the libraries, from usual to extreme values.

use mlx_models::generate::{Dry, GenerateOptions, Overflow, Penalties, Penalty, Sampling, Xtc};
use mlx_models::{
    CacheOptions, ConvertOptions, FloatDtype, LayerChoice, Limit, Quantization, QuantizeOptions, Recipe,
    Weights,
};

use super::random::Random;
use super::values::{any_float, any_size, interesting_text};

pub(super) fn cache(extreme: bool, random: &mut Random) -> CacheOptions {
    let mut options = CacheOptions::default();
    if random.once_in(3) {
        options.quantization = quantization(random);
    }
    if random.once_in(3) {
        options.rewind = if extreme { any_i32(random) } else { random.below(10) as i32 };
    }
    if random.once_in(3) {
        let (max_size, keep) = if extreme {
            (any_i32(random), any_i32(random))
        } else {
            (5 + random.below(60) as i32, random.below(5) as i32)
        };
        options.limit = Some(Limit { max_size, keep });
    }
    if extreme && random.once_in(4) {
        options.left_padding = (0..random.below(3)).map(|_| any_i32(random)).collect();
    }
    options
}

fn any_i32(random: &mut Random) -> i32 {
    match random.below(3) {
        0 => random.one(&[i32::MAX, i32::MAX - 1, i32::MIN, -1, 0, 1 << 30]),
        _ => random.below(70) as i32,
    }
}

fn quantization(random: &mut Random) -> Option<Quantization> {
    let bits = random.one(&[2, 3, 4, 5, 6, 8]);
    // The heads of most models here have groups of 32.
    Quantization::affine(bits, random.one(&[32, 32, 32, 64, 128])).ok()
}

pub(super) fn generate(extreme: bool, stop_tokens: &[u32], random: &mut Random) -> GenerateOptions {
    let mut options =
        GenerateOptions { max_tokens: 1 + random.below(5), ..GenerateOptions::new(stop_tokens) };
    if random.once_in(3) {
        options.sampling = sampling(extreme, random);
    }
    if random.once_in(4) {
        options.prefill_chunk = Some(if extreme { any_size(random) } else { 1 + random.below(40) });
    }
    if extreme {
        options.max_tokens = any_size(random);
        options.min_tokens = if random.once_in(3) { any_size(random) } else { 0 };
        options.top_logprobs = if random.once_in(3) { any_size(random) } else { 0 };
        options.overflow = random.one(&[Overflow::Stop, Overflow::Slide]);
        if random.once_in(4) {
            options.stop_tokens = (0..random.below(2000)).map(|id| id as u32).chain([u32::MAX]).collect();
        }
    }
    options
}

fn sampling(extreme: bool, random: &mut Random) -> Sampling {
    let share = |usual: f64, random: &mut Random| {
        if extreme && random.once_in(4) { any_float(random) } else { usual }
    };
    let mut sampling =
        Sampling { temperature: share(0.8, random), seed: random.next(), ..Sampling::default() };
    if random.once_in(2) {
        sampling.top_p = share(0.9, random);
    }
    if random.once_in(2) {
        sampling.min_p = share(0.05, random);
    }
    if random.once_in(3) {
        let special_tokens = if extreme { vec![0, u32::MAX] } else { vec![0] };
        sampling.xtc = Xtc { probability: share(0.5, random), threshold: share(0.1, random), special_tokens };
    }
    if random.once_in(3) {
        sampling.top_k = any_size(random);
        sampling.min_tokens_to_keep = if extreme { any_size(random) } else { 1 };
    }
    sampling
}

pub(super) fn penalties(extreme: bool, random: &mut Random) -> Penalties {
    let penalty = |random: &mut Random| {
        if !random.once_in(if extreme { 3 } else { 10 }) {
            return Penalty::default();
        }
        let penalty = if extreme { any_float(random) } else { 1.1 };
        Penalty { penalty, context_size: any_size(random) }
    };
    let (repetition, presence, frequency) = (penalty(random), penalty(random), penalty(random));
    let mut penalties = Penalties { repetition, presence, frequency, ..Penalties::default() };
    if extreme && random.once_in(3) {
        penalties.logit_bias = match random.below(3) {
            // All tokens of the demos' vocabulary.
            0 => (0..1024).map(|id| (id, f64::NEG_INFINITY)).collect(),
            _ => (0..random.below(4)).map(|_| (random.next() as u32 % 2000, any_float(random))).collect(),
        };
    }
    if random.once_in(if extreme { 3 } else { 20 }) {
        penalties.dry = Some(Dry {
            multiplier: if extreme { any_float(random) } else { 0.8 },
            base: if extreme { any_float(random) } else { 1.75 },
            allowed_length: any_size(random),
            penalty_last_n: random.once_in(2).then(|| any_size(random)),
            sequence_breakers: (0..random.below(3)).map(|n| vec![random.next() as u32 % 1100; n]).collect(),
        });
    }
    penalties
}

pub(super) fn convert(random: &mut Random) -> ConvertOptions {
    let weights = match (random.below(4), quantization(random)) {
        (0, _) => Weights::Kept,
        (1, _) => Weights::Dequantized,
        (_, None) => Weights::Kept,
        (_, Some(quantization)) => {
            let layers = (0..random.below(3)).map(|_| LayerChoice {
                pattern: if random.once_in(2) { "layers.*".to_owned() } else { interesting_text(random) },
                quantization: self::quantization(random),
            });
            let layers = layers.collect();
            let recipe = random.once_in(3).then(|| random.one(&Recipe::ALL));
            Weights::Quantized(QuantizeOptions { quantization, recipe, layers })
        }
    };
    let dtype = random.once_in(3).then(|| random.one(&FloatDtype::ALL));
    ConvertOptions { weights, dtype, largest_shard: random.one(&[5 << 30, 5 << 30, 100_000, 1, 0, u64::MAX]) }
}
