//! How a checkpoint is converted.

use mlx_layers::Quantization;
use mlx_rs::Dtype;

/// Bytes of the tensors in one file, as in mlx-lm.
pub(crate) const LARGEST_SHARD: u64 = 5 << 30;

/// How a checkpoint is converted.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// What becomes of the layers.
    pub weights: Weights,
    /// The dtype of all numbers that are not quantized. `None` for the `torch_dtype` of the config, or else the dtype that
    /// they have.
    pub dtype: Option<FloatDtype>,
    /// Bytes of the tensors in one file. A larger tensor gets a file of its own.
    pub largest_shard: u64,
}

impl Default for ConvertOptions {
    /// The model unchanged, in files of at most 5 GiB.
    fn default() -> Self {
        Self { weights: Weights::Kept, dtype: None, largest_shard: LARGEST_SHARD }
    }
}

/// What becomes of the layers.
#[derive(Debug, Clone)]
pub enum Weights {
    /// They stay as they are.
    Kept,
    /// They are quantized, except those whose rows cannot be cut into groups.
    Quantized(QuantizeOptions),
    /// They are brought into full precision.
    Dequantized,
}

/// How layers are quantized: all in one way, except for the layers of a recipe and of choices.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// How a layer is quantized for which neither the recipe nor a choice says otherwise.
    pub quantization: Quantization,
    /// A recipe that gives some layers more bits.
    pub recipe: Option<Recipe>,
    /// Choices for single layers, which count before both. Of several choices that match a layer, the last counts.
    pub layers: Vec<LayerChoice>,
}

/// How the layers of a pattern are quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerChoice {
    /// The key of a layer, or the part of it after a dot. `*` stands for any text: `lm_head`, `layers.0.*`, `*_proj`.
    pub pattern: String,
    /// How these layers are quantized; `None` for full precision.
    pub quantization: Option<Quantization>,
}

/// mlx-lm's recipes with two numbers of bits: more bits for the layers whose quantization costs a model most.
///
/// The head has more bits. So have `v_proj` and `down_proj` in the first eighth of the blocks, in the last eighth, and in
/// every third block between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// 2 and 6 bits.
    Mixed2And6,
    /// 3 and 4 bits.
    Mixed3And4,
    /// 3 and 6 bits.
    Mixed3And6,
    /// 4 and 6 bits.
    Mixed4And6,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mixed2And6, Self::Mixed3And4, Self::Mixed3And6, Self::Mixed4And6];

    /// mlx-lm's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed2And6 => "mixed_2_6",
            Self::Mixed3And4 => "mixed_3_4",
            Self::Mixed3And6 => "mixed_3_6",
            Self::Mixed4And6 => "mixed_4_6",
        }
    }

    /// The bits of most layers, and the bits of those that have more.
    pub(super) fn bits(self) -> [i32; 2] {
        match self {
            Self::Mixed2And6 => [2, 6],
            Self::Mixed3And4 => [3, 4],
            Self::Mixed3And6 => [3, 6],
            Self::Mixed4And6 => [4, 6],
        }
    }
}

/// The dtype of numbers that are not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatDtype {
    /// A float of 32 bits.
    Float32,
    /// A float of 16 bits with 11 bits of precision.
    Float16,
    /// A float of 16 bits with 8 bits of precision and the range of float32.
    Bfloat16,
}

impl FloatDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Float16, Self::Bfloat16];

    /// Its name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    /// The dtype of MLX.
    pub(super) fn mlx(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::Float32,
            Self::Float16 => Dtype::Float16,
            Self::Bfloat16 => Dtype::Bfloat16,
        }
    }
}
