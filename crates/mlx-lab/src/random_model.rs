//! `cargo xtask random-model`: a checkpoint with random weights in the shape of a real model.
//!
//! The speed of a model does not depend on the values of its weights, so benchmarks need no download. The
//! weights are generated in the same way as those of parity cases (docs/parity.md, "Weights from a seed"), so
//! they are the same on every machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx_files::Partial;
use mlx_models::{ConvertOptions, Quantization, QuantizeOptions, Weights};
use mlx_safetensors::{Dtype, Header};
use serde_json::{Value, json};

use crate::interrupt;
use crate::parity::weights::{self, PARTS, Stored, Tensor};

/// The seed of the weights, unless another one is given.
pub(crate) const SEED: u64 = 1;
/// The number of weights that share a scale in a quantized model.
const GROUP: i32 = 64;

/// Arguments of `cargo xtask random-model`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The model whose shape is used
    #[arg(long, value_enum)]
    shape: Shape,
    /// How the weights are stored; quantized weights are made from bf16 by our own `convert`
    #[arg(long, value_enum, default_value_t = Width::Bf16)]
    width: Width,
    /// The seed of the weights
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// The folder to write; it must not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// The sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Gemma 3 with 270 million weights, most of them in its embedding
    #[value(name = "gemma3-270m")]
    Gemma3,
    /// Lille with 130 million weights
    #[value(name = "lille-130m")]
    Lille,
    /// Six layers of width 64 in the form of Gemma 3; its time is mostly overhead
    Tiny,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Width {
    /// bfloat16
    Bf16,
    /// 8 bits, affine, in groups of 64
    #[value(name = "8-bit")]
    Eight,
    /// 4 bits, affine, in groups of 64
    #[value(name = "4-bit")]
    Four,
}

/// The sizes of a model in the form of Gemma 3.
struct Gemma3 {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
    sliding_window: usize,
}

/// The sizes of the released Gemma 3 270M.
const GEMMA3_270M: Gemma3 = Gemma3 {
    vocab_size: 262_144,
    hidden_size: 640,
    intermediate_size: 2048,
    layers: 18,
    heads: 4,
    head_dim: 256,
    sliding_window: 512,
};
/// Sizes that are small enough to keep all weights in the fastest cache.
const TINY: Gemma3 = Gemma3 {
    vocab_size: 256,
    hidden_size: 64,
    intermediate_size: 128,
    layers: 6,
    heads: 2,
    head_dim: 64,
    sliding_window: 512,
};
/// In both shapes, one layer in this many has full attention.
const PATTERN: usize = 6;

/// The sizes of the released Lille-130M: vocabulary, features, features of the feed-forward network, layers,
/// heads.
const LILLE: [usize; 6] = [32_768, 640, 1792, 24, 10, 2];

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3-270m",
            Self::Lille => "lille-130m",
            Self::Tiny => "tiny",
        }
    }

    /// The bytes of keys and values in half precision that a token reads when this many tokens precede it,
    /// including its own.
    pub(crate) fn key_value_bytes(self, tokens_before: usize) -> usize {
        let tokens = tokens_before + 1;
        let numbers = match self {
            Self::Gemma3 => gemma3_key_values(&GEMMA3_270M, tokens),
            Self::Tiny => gemma3_key_values(&TINY, tokens),
            Self::Lille => {
                let [_, features, _, layers, heads, kv_heads] = LILLE;
                2 * layers * kv_heads * (features / heads) * tokens
            }
        };
        2 * numbers
    }

    fn config(self) -> Value {
        let mut config = match self {
            Self::Gemma3 => gemma3_config(&GEMMA3_270M),
            Self::Tiny => gemma3_config(&TINY),
            Self::Lille => {
                let [vocab_size, n_embd, _, n_layer, n_head, n_kv_heads] = LILLE;
                // The released model has 512 positions, too few for a long prompt. Nothing else depends on this
                // value.
                json!({
                    "model_type": "lille-130m", "architectures": ["LilleForCausalLM"], "vocab_size": vocab_size,
                    "n_embd": n_embd, "n_layer": n_layer, "n_head": n_head, "n_kv_heads": n_kv_heads,
                    "block_size": 4096, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
                })
            }
        };
        config["tie_word_embeddings"] = json!(true);
        config["torch_dtype"] = json!("bfloat16");
        config
    }

    fn tensors(self) -> Vec<Tensor> {
        match self {
            Self::Gemma3 => gemma3_tensors(&GEMMA3_270M),
            Self::Tiny => gemma3_tensors(&TINY),
            Self::Lille => lille_tensors(),
        }
    }
}

/// The number of values in the keys and values of the last tokens: one head of each per layer, which attends to
/// its window or to everything.
fn gemma3_key_values(sizes: &Gemma3, tokens: usize) -> usize {
    let full = sizes.layers / PATTERN;
    let seen = full * tokens + (sizes.layers - full) * tokens.min(sizes.sliding_window);
    2 * sizes.head_dim * seen
}

impl Width {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Eight => "8-bit",
            Self::Four => "4-bit",
        }
    }

    /// The suffix of a model's folder, after the name of the shape.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::Bf16 => "",
            Self::Eight => "-8bit",
            Self::Four => "-4bit",
        }
    }

    fn bits(self) -> Option<i32> {
        match self {
            Self::Bf16 => None,
            Self::Eight => Some(8),
            Self::Four => Some(4),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    interrupt::install()?;
    let Arguments { shape, width, seed, folder } = arguments;
    if *width == Width::Bf16 {
        write(*shape, *seed, folder)?;
    } else {
        // The bf16 model that is quantized is temporary.
        let scratch = tempfile::Builder::new().prefix("random-model-").tempdir_in(parent(folder)?)?;
        let plain = scratch.path().join(shape.name());
        write(*shape, *seed, &plain)?;
        quantize(&plain, *width, folder)?;
    }
    writeln!(io::stdout(), "{}", folder.display())?;
    Ok(true)
}

/// Writes the bf16 checkpoint of this shape. The folder appears when it is complete.
pub(crate) fn write(shape: Shape, seed: u64, folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Err(io::Error::other(format!("{} already exists; name a new folder", folder.display())));
    }
    parent(folder)?;
    let partial = Partial::folder(folder)?;
    let config = serde_json::to_string_pretty(&shape.config())?;
    fs::write(partial.path().join("config.json"), config + "\n")?;
    write_tensors(&shape.tensors(), seed, &partial.path().join("model.safetensors"))?;
    partial.commit().map_err(|e| io::Error::new(e.kind(), format!("writing {}: {e}", folder.display())))
}

/// Writes a quantized model, made from a bf16 model by our own `convert`.
pub(crate) fn quantize(plain: &Path, width: Width, folder: &Path) -> io::Result<()> {
    let Some(bits) = width.bits() else {
        return Err(io::Error::other("only a bf16 model can be quantized"));
    };
    parent(folder)?;
    let quantization = Quantization::affine(bits, GROUP).map_err(io::Error::other)?;
    let weights = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let options = ConvertOptions { weights, dtype: None, largest_shard: 5 << 30 };
    let go_on = |_: mlx_models::Progress<'_>| {
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let converted = mlx_models::convert(plain, None, folder, &options, go_on);
    interrupt::check()?;
    converted.map(drop).map_err(io::Error::other)
}

/// The parent folder, which is made if needed.
pub(crate) fn parent(path: &Path) -> io::Result<PathBuf> {
    let parent = std::path::absolute(path)?.parent().map(Path::to_path_buf);
    let parent =
        parent.ok_or_else(|| io::Error::other(format!("{} has no parent folder", path.display())))?;
    fs::create_dir_all(&parent)
        .map_err(|e| io::Error::new(e.kind(), format!("making {}: {e}", parent.display())))?;
    Ok(parent)
}

/// Writes a safetensors file, tensor by tensor, so that only one tensor is in memory.
fn write_tensors(tensors: &[Tensor], seed: u64, file: &Path) -> io::Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "mlx".to_owned())]);
    let header = tensors.iter().map(|tensor| (tensor.name.clone(), Dtype::BF16, tensor.shape.clone()));
    let header = Header::new(metadata, header)?;
    let mut out = BufWriter::new(File::create(file)?);
    out.write_all(&header.to_bytes()?)?;
    for tensor in tensors {
        interrupt::check()?;
        out.write_all(&weights::bytes(tensor, seed).map_err(io::Error::other)?)?;
    }
    out.flush()
}

fn gemma3_config(sizes: &Gemma3) -> Value {
    json!({
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": sizes.vocab_size, "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": 1, "head_dim": sizes.head_dim,
        "query_pre_attn_scalar": sizes.head_dim, "sliding_window": sizes.sliding_window,
        "sliding_window_pattern": PATTERN, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "rope_local_base_freq": 10000.0, "rope_scaling": null,
        "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
    })
}

fn gemma3_tensors(sizes: &Gemma3) -> Vec<Tensor> {
    let &Gemma3 { vocab_size, hidden_size, intermediate_size, layers, heads, head_dim, .. } = sizes;
    let mut tensors = vec![matrix("model.embed_tokens.weight", vocab_size, hidden_size)];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_norm", "k_norm"] {
            tensors.push(vector(name(&format!("self_attn.{part}")), head_dim, 0));
        }
        for part in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            tensors.push(vector(name(&format!("{part}_layernorm")), hidden_size, 0));
        }
        for (part, rows, columns) in [
            ("self_attn.q_proj", heads * head_dim, hidden_size),
            ("self_attn.k_proj", head_dim, hidden_size),
            ("self_attn.v_proj", head_dim, hidden_size),
            ("self_attn.o_proj", hidden_size, heads * head_dim),
            ("mlp.gate_proj", intermediate_size, hidden_size),
            ("mlp.up_proj", intermediate_size, hidden_size),
            ("mlp.down_proj", hidden_size, intermediate_size),
        ] {
            tensors.push(matrix(name(part), rows, columns));
        }
    }
    tensors.push(vector("model.norm.weight", hidden_size, 0));
    tensors
}

fn lille_tensors() -> Vec<Tensor> {
    let [vocab_size, n_embd, hidden_dim, layers, heads, kv_heads] = LILLE;
    let head_dim = n_embd / heads;
    let mut tensors = vec![matrix("transformer.tok_embeddings.weight", vocab_size, n_embd)];
    for layer in 0..layers {
        let name = |part: &str| format!("transformer.layers.{layer}.{part}.weight");
        for part in ["attention.norm", "feed_forward.norm"] {
            tensors.push(vector(name(part), n_embd, 1));
        }
        for (part, rows, columns) in [
            ("attention.qkv_proj", (heads + 2 * kv_heads) * head_dim, n_embd),
            ("attention.out_proj", n_embd, n_embd),
            ("feed_forward.gate_proj", hidden_dim, n_embd),
            ("feed_forward.up_proj", hidden_dim, n_embd),
            ("feed_forward.down_proj", n_embd, hidden_dim),
        ] {
            tensors.push(matrix(name(part), rows, columns));
        }
    }
    tensors.push(vector("transformer.norm.weight", n_embd, 1));
    tensors
}

/// Random weights with the variance 1 / columns, so that the outputs are about as large as the inputs.
fn matrix(name: impl Into<String>, rows: usize, columns: usize) -> Tensor {
    // The variance of a uniform number is a third of the square of its bound.
    let bound = (3.0 / columns as f64).sqrt();
    let scale = (bound * PARTS).round() as i64;
    Tensor { name: name.into(), shape: vec![rows, columns], dtype: Stored::Bf16, scale, offset: 0 }
}

/// The weight of a norm: around 1, or around 0 if the model itself adds 1.
fn vector(name: impl Into<String>, length: usize, center: i64) -> Tensor {
    let scale = (0.1 * PARTS).round() as i64;
    let offset = center * PARTS as i64;
    Tensor { name: name.into(), shape: vec![length], dtype: Stored::Bf16, scale, offset }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use mlx_models::CacheOptions;
    use mlx_models::generate::{GenerateOptions, Session, generate};

    use super::*;

    fn weights_of(shape: Shape) -> usize {
        shape.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_shapes_have_the_sizes_of_the_released_models() {
        // The numbers in the model cards: 268,098,176 and 127.17 million.
        assert_eq!(weights_of(Shape::Gemma3), 268_098_176);
        assert_eq!(weights_of(Shape::Lille), 127_171_200);
        // The tiny shape: six layers of width 64.
        let config = Shape::Tiny.config();
        assert_eq!((&config["num_hidden_layers"], &config["hidden_size"]), (&json!(6), &json!(64)));
    }

    #[test]
    fn a_token_reads_the_keys_and_values_that_its_layers_see() {
        // 24 layers of 2 heads of 64, in 2 bytes.
        assert_eq!(Shape::Lille.key_value_bytes(1023), 12_582_912);
        // 3 layers attend to everything, 15 to the last 512; one head of 256.
        assert_eq!(Shape::Gemma3.key_value_bytes(1023), 11_010_048);
        assert_eq!(Shape::Gemma3.key_value_bytes(0), 18_432);
    }

    #[test]
    fn a_model_loads_and_answers_finite_numbers_at_each_width() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("new/tiny");
        write(Shape::Tiny, SEED, &plain).unwrap();
        let mut folders = vec![plain.clone()];
        for width in [Width::Eight, Width::Four] {
            let quantized = folder.path().join(width.name());
            quantize(&plain, width, &quantized).unwrap();
            folders.push(quantized);
        }
        for folder in folders {
            let mut model = mlx_models::load(&folder).unwrap();
            let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
            let options = GenerateOptions { max_tokens: 3, ..GenerateOptions::new(&[]) };
            let tokens = generate(&mut *model, &mut session, &[1, 2, 3], options).unwrap();
            let logprobs: Vec<f32> = tokens.map(|token| token.unwrap().logprob).collect();
            assert_eq!(logprobs.len(), 3);
            assert!(logprobs.iter().all(|logprob| logprob.is_finite() && *logprob < 0.0), "{logprobs:?}");
        }
    }

    #[test]
    fn the_weights_follow_from_the_seed_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str, seed| {
            let folder = folder.path().join(name);
            write(Shape::Tiny, seed, &folder).unwrap();
            fs::read(folder.join("model.safetensors")).unwrap()
        };
        let first = made("a", 1);
        assert_eq!(first, made("b", 1));
        assert_ne!(first, made("c", 2));
        let error = write(Shape::Tiny, 1, &folder.path().join("a")).unwrap_err().to_string();
        assert!(error.ends_with("a already exists; name a new folder"), "{error}");
        // No partial folder is left.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    /// The matrices' mean square keeps activations near 1.
    #[test]
    fn matrices_keep_the_size_of_what_they_multiply() {
        let bytes = weights::bytes(&matrix("m", 64, 640), SEED).unwrap();
        let values = bytes.chunks_exact(2).map(|word| half::bf16::from_le_bytes([word[0], word[1]]).to_f64());
        let squares: f64 = values.map(|value| value * value).sum::<f64>() / 64.0;
        approx::assert_abs_diff_eq!(squares, 1.0, epsilon = 0.05);
    }
}
