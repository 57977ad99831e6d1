//! Adapters of low rank, which change the output of a layer and leave its weight as it is.

use mlx_rs::error::Result;
use mlx_rs::linalg::{NormOptions, norm_l2};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Param;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::matmul;
use mlx_rs::{Array, Dtype, stop_gradient};

/// The kind of a layer with a weight `[rows, columns]`, on which the shapes of an adapter depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdaptedLayer {
    /// A linear layer: `columns` features in, `rows` out.
    Linear {
        /// Features of the input.
        inputs: i32,
        /// Features of the output.
        outputs: i32,
    },
    /// A table with a row of `dims` features for each of `rows` tokens.
    Embedding {
        /// Tokens.
        rows: i32,
        /// Features of a token.
        dims: i32,
        /// Whether the table is quantized.
        quantized: bool,
    },
}

impl AdaptedLayer {
    /// The shapes of `lora_a` and `lora_b` with this rank.
    pub fn shapes(self, rank: i32) -> [[i32; 2]; 2] {
        match self {
            Self::Linear { inputs, outputs } => [[inputs, rank], [rank, outputs]],
            Self::Embedding { rows, dims, .. } => [[rows, rank], [rank, dims]],
        }
    }

    /// The number of DoRA's magnitudes for the layer: one for each row of the weight.
    pub fn magnitudes(self) -> i32 {
        match self {
            Self::Linear { outputs, .. } => outputs,
            Self::Embedding { rows, .. } => rows,
        }
    }
}

/// The parameters of an adapter, as a source provides them.
#[derive(Debug, Clone)]
pub struct AdapterParameters {
    /// `[inputs, R]`, or `[rows, R]` for an embedding.
    pub lora_a: Array,
    /// `[R, outputs]`, or `[R, dims]` for an embedding.
    pub lora_b: Array,
    /// DoRA's magnitudes.
    pub magnitudes: Magnitudes,
    /// The factor of the product of the two.
    pub scale: f32,
}

/// The lengths that DoRA gives to the rows of an adapted weight.
#[derive(Debug, Clone)]
pub enum Magnitudes {
    /// No lengths: this is an adapter of LoRA.
    None,
    /// These lengths, one for each row.
    Given(Array),
    /// The lengths of the rows without the adapter, which are DoRA's before training.
    OfTheWeight,
}

/// What becomes of an adapter when its layer is built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// The layer holds the adapter beside its weight.
    #[default]
    Adapted,
    /// The adapter is added to the weight, which is then quantized as before.
    Fused,
    /// The adapter is added to the weight, and every weight of the model is in full precision.
    FusedDequantized,
}

/// An adapter: a change of low rank to the weight of a layer.
///
/// LoRA changes the output `y` of a layer to `y + scale * (x A) B`. A and B together have far fewer elements than the
/// weight, and B = 0 changes nothing. DoRA also sets the lengths of the rows of the changed weight: the output is divided
/// by the present lengths and multiplied by `m`.
///
/// The parameters have the names of mlx-lm's adapter files: `lora_a`, `lora_b`, and `m` of DoRA.
///
/// # Dtypes
///
/// Adapters are usually float32, for layers of every dtype. The change is computed in the adapter's dtype and then rounded
/// to the dtype of the output or weight that it is added to.
///
/// # Reference
///
/// Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, section 4.1
/// (<https://arxiv.org/abs/2106.09685>); Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, equation 5 and,
/// for the length as a constant of the gradient, equation 11 (<https://arxiv.org/abs/2402.09353>). The order of
/// operations is that of `lora.py` and `dora.py` in mlx-lm's `tuner`.
#[derive(Debug, Clone, ModuleParameters)]
pub(crate) struct Adapter {
    #[param]
    lora_a: Param<Array>,
    #[param]
    lora_b: Param<Array>,
    #[param]
    m: Param<Option<Array>>,
    scale: f32,
}

impl Adapter {
    pub(crate) fn new(lora_a: Array, lora_b: Array, m: Option<Array>, scale: f32) -> Self {
        Self { lora_a: Param::new(lora_a), lora_b: Param::new(lora_b), m: Param::new(m), scale }
    }

    /// DoRA's magnitudes; `None` for LoRA.
    pub(crate) fn magnitudes(&self) -> Option<&Array> {
        self.m.as_ref().as_ref()
    }

    /// `y + scale * (x A) B`, in the dtype of `y` and `x`, for a linear layer with the output `y` for `x`.
    pub(crate) fn add_to_linear(&self, y: &Array, x: &Array) -> Result<Array> {
        let z = matmul(matmul(x, &self.lora_a)?, &self.lora_b)?;
        y.add(self.scaled(&z)?.as_dtype(x.dtype())?)
    }

    /// The output with DoRA of a linear layer with this full-precision weight, without its bias.
    pub(crate) fn magnified_linear(&self, x: &Array, weight: &Array, m: &Array) -> Result<Array> {
        let out = self.add_to_linear(&matmul(x, weight.t())?, x)?;
        let change = matmul(self.scaled(&self.lora_b.t())?, self.lora_a.t())?;
        let lengths = stop_gradient(lengths(&weight.add(change)?)?)?;
        m.divide(lengths)?.as_dtype(x.dtype())?.multiply(out)
    }

    /// The rows of these tokens with LoRA; `y` are the rows without it.
    pub(crate) fn add_to_rows(&self, y: &Array, tokens: &Array) -> Result<Array> {
        let z = matmul(self.lora_a.try_index(tokens)?, &self.lora_b)?;
        y.add(self.scaled(&z)?.as_dtype(y.dtype())?)
    }

    /// [`add_to_rows`](Self::add_to_rows) for DoRA.
    pub(crate) fn magnified_rows(&self, y: &Array, tokens: &Array, m: &Array) -> Result<Array> {
        let z = matmul(self.scaled(&self.lora_a.try_index(tokens)?)?, &self.lora_b)?;
        let out = y.add(z.as_dtype(y.dtype())?)?;
        let lengths = stop_gradient(lengths(&y.add(z)?)?)?;
        m.try_index(tokens)?.divide(lengths)?.expand_dims(-1)?.multiply(out)
    }

    /// `y + scale * (x Bᵀ) Aᵀ`, for an embedding table that is used as a linear layer with the output `y` for `x`.
    pub(crate) fn add_to_similarities(&self, y: &Array, x: &Array) -> Result<Array> {
        let z = matmul(matmul(x, self.lora_b.t())?, self.lora_a.t())?;
        y.add(self.scaled(&z)?.as_dtype(x.dtype())?)
    }

    /// [`add_to_similarities`](Self::add_to_similarities) for DoRA, with the table in full precision.
    pub(crate) fn magnified_similarities(
        &self,
        y: &Array,
        x: &Array,
        table: &Array,
        m: &Array,
    ) -> Result<Array> {
        let out = self.add_to_similarities(y, x)?;
        let change = matmul(self.scaled(&self.lora_a)?, &self.lora_b)?;
        let lengths = stop_gradient(lengths(&table.add(change)?)?)?;
        m.divide(lengths)?.multiply(out)
    }

    /// The weight of a linear layer with the adapter in it, in full precision.
    pub(crate) fn fused_linear(&self, weight: &Array) -> Result<Array> {
        self.fused(weight, &matmul(self.scaled(&self.lora_b.t())?, self.lora_a.t())?)
    }

    /// The table of an embedding with the adapter in it, in full precision.
    pub(crate) fn fused_table(&self, table: &Array) -> Result<Array> {
        self.fused(table, &matmul(self.scaled(&self.lora_a)?, &self.lora_b)?)
    }

    fn fused(&self, weight: &Array, change: &Array) -> Result<Array> {
        let weight = weight.add(change.as_dtype(weight.dtype())?)?;
        match self.magnitudes() {
            None => Ok(weight),
            Some(m) => m.divide(lengths(&weight)?)?.expand_dims(-1)?.multiply(weight),
        }
    }

    /// `scale * array`. The factor takes the dtype of the array, as a number of Python does in mlx-lm.
    fn scaled(&self, array: &Array) -> Result<Array> {
        Array::from_f32(self.scale).as_dtype(array.dtype())?.multiply(array)
    }
}

/// DoRA's magnitudes before training: the lengths of the rows of a full-precision weight. As in mlx-lm, those of a linear
/// layer are float32, and those of an embedding table have the dtype of the table.
pub(crate) fn first_magnitudes(weight: &Array, layer: AdaptedLayer) -> Result<Array> {
    match layer {
        AdaptedLayer::Linear { .. } => lengths(&weight.as_dtype(Dtype::Float32)?),
        AdaptedLayer::Embedding { .. } => lengths(weight),
    }
}

/// The lengths of the vectors on the last axis.
fn lengths(array: &Array) -> Result<Array> {
    norm_l2(array, NormOptions { axes: (-1).into(), keep_dims: false })
}
