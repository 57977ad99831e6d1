//! Facts about a model.

use std::sync::Arc;

use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rope::Rotation;
use mlx_rs::module::Parameter;
use mlx_rs::nested::NestedHashMap;
use mlx_rs::{Array, Dtype};

/// Facts about a model that a runtime needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// The `model_type` of the checkpoint's config.
    pub model_type: String,
    /// The number of tokens in the vocabulary; every token id is below it.
    pub vocab_size: i32,
    /// The longest sequence that the model was made for, in tokens.
    pub context_length: i32,
    /// Features of the residual stream, D.
    pub hidden_size: i32,
    /// Features inside the feed-forward network.
    pub intermediate_size: i32,
    /// Query heads of each layer, H.
    pub query_heads: i32,
    /// What each layer needs of its cache, first layer first.
    pub layers: Vec<LayerSpec>,
    /// The rotation of each layer's queries and keys, if it has one, first layer first.
    pub rotations: Vec<Option<Arc<Rotation>>>,
    /// The dtype of activations, and so of logits and of the cache: float32, float16 or bfloat16.
    pub dtype: Dtype,
    /// A [`digest`](crate::digest) of everything in the config that keys and values depend on.
    pub config_digest: String,
    /// The settings of its adapters, such as their scale, as `ParameterSource::adapter_settings` of `mlx-layers` gives
    /// them. `None` without adapters.
    pub adapter_settings: Option<String>,
    /// Where mlx-lm computes other keys and values.
    pub unlike_mlx_lm: UnlikeMlxLm,
}

/// Why mlx-lm 0.32.2 computes other keys and values from a model's checkpoint: see
/// [`CausalLm::unlike_mlx_lm`](crate::CausalLm::unlike_mlx_lm).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnlikeMlxLm {
    /// Why its rotation differs, as the end of a sentence.
    pub rotation: Option<&'static str>,
    /// Whether its layers attend to all tokens where the model has a window.
    pub ignores_windows: bool,
}

impl ModelInfo {
    /// Bytes that the cache keeps for each token, over all layers, while no window is full.
    pub fn cache_bytes_per_token(&self) -> usize {
        self.cache_bytes(1)
    }

    /// Bytes that the cache of one sequence of `tokens` tokens holds, over all layers. A layer with a window holds no more
    /// tokens than fit into the window. Buffers grow in steps, so a cache may take slightly more memory.
    pub fn cache_bytes(&self, tokens: i32) -> usize {
        let value = match self.dtype {
            Dtype::Float16 | Dtype::Bfloat16 => 2,
            _ => 4,
        };
        let bytes = |layer: &LayerSpec| {
            let held = match layer.kind {
                LayerKind::Full => tokens,
                LayerKind::Sliding { window } => tokens.min(window),
            };
            (held.max(0) as usize).saturating_mul(layer.values_per_token() * value)
        };
        self.layers.iter().map(bytes).fold(0, usize::saturating_add)
    }
}

/// The dtype of the activations of a model with these parts: the one that all of its floating-point parameters promote
/// to. A single float32 norm makes everything after it float32.
///
/// The parameters of adapters do not count, because the result of an adapter is rounded to the dtype of the layer. The
/// exception is DoRA on an embedding, which makes the embedded tokens float32.
pub fn activation_dtype(parts: &[&dyn Parameter]) -> Dtype {
    let mut parameters = NestedHashMap::new();
    for (index, part) in parts.iter().enumerate() {
        parameters.insert(index.to_string().into(), part.as_nested_value());
    }
    let parameters = parameters.flatten();
    let counts = |key: &str| match key.rsplit_once('.') {
        Some((layer, "lora_a")) => {
            is_embedding_of_dora(|leaf| parameters.get(&*format!("{layer}.{leaf}")).copied())
        }
        Some((_, "lora_b" | "m")) => false,
        _ => true,
    };
    let dtypes = parameters.iter().filter(|(key, _)| counts(key)).map(|(_, parameter)| parameter.dtype());
    let floats = dtypes.filter(|dtype| matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16));
    let promote = |a: Dtype, b: Dtype| if a == b { a } else { Dtype::Float32 };
    floats.reduce(promote).unwrap_or(Dtype::Float32)
}

/// Whether a layer has an adapter of DoRA and is an embedding: its magnitudes `m` then have the length of `lora_a`, one
/// for each token. `leaf` finds the parameter of the layer with this name.
fn is_embedding_of_dora<'a>(leaf: impl Fn(&str) -> Option<&'a Array>) -> bool {
    let (Some(a), Some(b), Some(m)) = (leaf("lora_a"), leaf("lora_b"), leaf("m")) else { return false };
    m.dim(0) == a.dim(0) && m.dim(0) != b.dim(-1)
}
