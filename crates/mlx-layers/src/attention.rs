//! Attention as most architectures have it, with norms of queries and keys where a model has them.

use mlx_rope::Rope;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, ModuleParamMut, ModuleParamRef, ModuleParameters};

use crate::{AttentionInput, Linear, Parameters, heads};

/// A norm that [`Attention`] can put on queries and keys, such as those of `mlx-norms`: a layer from one array to
/// another of the same shape.
pub trait Norm: ModuleParameters + for<'a> Module<&'a Array, Output = Array, Error = Exception> {}

impl<N> Norm for N where N: ModuleParameters + for<'a> Module<&'a Array, Output = Array, Error = Exception> {}

/// The numbers of an [`Attention`].
#[derive(Debug, Clone)]
pub struct AttentionSettings {
    /// Features of the residual stream, D.
    pub dims: i32,
    /// Query heads, H.
    pub num_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads.
    pub num_kv_heads: i32,
    /// Features of a head, d.
    pub head_dim: i32,
    /// Which projections have a bias.
    pub bias: AttentionBias,
    /// The rotation of queries and keys. Without a rotation, attention knows the order of the tokens only from the mask.
    pub rope: Option<Rope>,
    /// What scores are multiplied by.
    pub scale: f32,
    /// The cap of soft-capped scores: each score s, which is a product times the scale, becomes `cap * tanh(s / cap)`.
    pub softcap: Option<f32>,
}

/// Which projections of an [`Attention`] have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionBias {
    /// None.
    None,
    /// Those of queries, keys and values.
    Inputs,
    /// All four.
    All,
}

impl From<bool> for AttentionBias {
    /// All or none, as `attention_bias` of a config says.
    fn from(all: bool) -> Self {
        if all { Self::All } else { Self::None }
    }
}

/// What each norm of queries or keys is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOver {
    /// The d features of each head by itself. All query heads share one weight, and all key heads share another.
    EachHead,
    /// The features of all heads together, with a weight for each of them.
    AllHeads,
}

/// Grouped-query attention over a cache. `N` is the norm of queries and keys, which are normalized before they are rotated;
/// without one, it is [`NoNorm`].
///
/// Norms bound the scores for all weights of the projections, so that the softmax does not collapse to a single key.
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `q_proj.weight` | `[H d, D]` |
/// | `k_proj.weight`, `v_proj.weight` | `[H_kv d, D]` |
/// | `o_proj.weight` | `[D, H d]` |
/// | `q_proj.bias`, `k_proj.bias`, `v_proj.bias`, `o_proj.bias`, as [`AttentionBias`] says | one for each row of the weight |
/// | `q_norm.weight`, `k_norm.weight` over each head | `[d]` |
/// | `q_norm.weight`, `k_norm.weight` over all heads | `[H d]`, `[H_kv d]` |
///
/// # Reference
///
/// Vaswani et al., *Attention Is All You Need*, section 3.2.2 (<https://arxiv.org/abs/1706.03762>); Ainslie et al., *GQA*
/// (<https://arxiv.org/abs/2305.13245>); for the norms Dehghani et al., *Scaling Vision Transformers to 22 Billion
/// Parameters*, section 2 (<https://arxiv.org/abs/2302.05442>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct Attention<N: Norm = NoNorm> {
    #[param]
    q_proj: Linear,
    #[param]
    k_proj: Linear,
    #[param]
    v_proj: Linear,
    #[param]
    o_proj: Linear,
    #[param]
    q_norm: Option<N>,
    #[param]
    k_norm: Option<N>,
    norm_over: NormOver,
    rope: Option<Rope>,
    num_heads: i32,
    num_kv_heads: i32,
    scale: f32,
    softcap: Option<f32>,
}

impl Attention {
    /// Attention of this size without norms, with parameters from the source.
    pub fn new(parameters: Parameters<'_>, settings: AttentionSettings) -> Self {
        Self::build(parameters, settings, NormOver::EachHead, |_, _| None)
    }
}

impl<N: Norm> Attention<N> {
    /// Attention of this size whose queries and keys are normalized over what `over` says, or not at all, with parameters
    /// from the source. `norm` makes a norm from its weight.
    pub fn with_norms(
        parameters: Parameters<'_>,
        settings: AttentionSettings,
        over: impl Into<Option<NormOver>>,
        norm: impl Fn(Array) -> N,
    ) -> Self {
        let over = over.into();
        Self::build(parameters, settings, over.unwrap_or(NormOver::EachHead), |mut parameters, dims| {
            over.map(|_| norm(parameters.take("weight", &[dims])))
        })
    }

    fn build(
        mut parameters: Parameters<'_>,
        settings: AttentionSettings,
        norm_over: NormOver,
        norm: impl Fn(Parameters<'_>, i32) -> Option<N>,
    ) -> Self {
        let AttentionSettings { dims, num_heads, num_kv_heads, head_dim, bias, rope, scale, softcap } =
            settings;
        let (queries, keys) = (num_heads * head_dim, num_kv_heads * head_dim);
        let normed = |all| match norm_over {
            NormOver::EachHead => head_dim,
            NormOver::AllHeads => all,
        };
        let (inputs, output) = (bias != AttentionBias::None, bias == AttentionBias::All);
        Self {
            q_proj: Linear::with_bias(parameters.at("q_proj"), dims, queries, inputs),
            k_proj: Linear::with_bias(parameters.at("k_proj"), dims, keys, inputs),
            v_proj: Linear::with_bias(parameters.at("v_proj"), dims, keys, inputs),
            o_proj: Linear::with_bias(parameters.at("o_proj"), queries, dims, output),
            q_norm: norm(parameters.at("q_norm"), normed(queries)),
            k_norm: norm(parameters.at("k_norm"), normed(keys)),
            norm_over,
            rope,
            num_heads,
            num_kv_heads,
            scale,
            softcap,
        }
    }
}

impl<N: Norm> Module<AttentionInput<'_>> for Attention<N> {
    type Output = Array;
    type Error = Exception;

    /// `[B, L, D]` to `[B, L, D]`.
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array> {
        let over = self.norm_over;
        // [B, L, D] -> [B, H, L, d] for queries, [B, H_kv, L, d] for keys and values
        let queries = normed_heads(&self.q_proj.forward(x)?, self.num_heads, &mut self.q_norm, over)?;
        let keys = normed_heads(&self.k_proj.forward(x)?, self.num_kv_heads, &mut self.k_norm, over)?;
        let values = heads::split(&self.v_proj.forward(x)?, self.num_kv_heads)?;

        let (rope, scale, softcap) = (self.rope.as_ref(), self.scale, self.softcap);
        let attended = heads::attend([&queries, &keys, &values], rope, scale, softcap, mask, cache)?;
        self.o_proj.forward(&attended) // [B, L, H d] -> [B, L, D]
    }

    fn training_mode(&mut self, _mode: bool) {}
}

/// Cuts queries or keys into heads, and normalizes them before or after.
fn normed_heads<N: Norm>(x: &Array, heads: i32, norm: &mut Option<N>, over: NormOver) -> Result<Array> {
    match (norm, over) {
        (None, _) => heads::split(x, heads),
        (Some(norm), NormOver::EachHead) => norm.forward(&heads::split(x, heads)?),
        (Some(norm), NormOver::AllHeads) => heads::split(&norm.forward(x)?, heads),
    }
}

/// The norm of an [`Attention`] that has none. It has no values.
#[derive(Debug, Clone, Copy)]
pub enum NoNorm {}

impl Module<&Array> for NoNorm {
    type Output = Array;
    type Error = Exception;

    fn forward(&mut self, _: &Array) -> Result<Array> {
        match *self {}
    }

    fn training_mode(&mut self, _: bool) {
        match *self {}
    }
}

impl ModuleParameters for NoNorm {
    fn num_parameters(&self) -> usize {
        match *self {}
    }

    fn parameters(&self) -> ModuleParamRef<'_> {
        match *self {}
    }

    fn parameters_mut(&mut self) -> ModuleParamMut<'_> {
        match *self {}
    }

    fn trainable_parameters(&self) -> ModuleParamRef<'_> {
        match *self {}
    }

    fn freeze_parameters(&mut self, _: bool) {
        match *self {}
    }

    fn unfreeze_parameters(&mut self, _: bool) {
        match *self {}
    }

    fn all_frozen(&self) -> Option<bool> {
        match *self {}
    }

    fn any_frozen(&self) -> Option<bool> {
        match *self {}
    }
}
