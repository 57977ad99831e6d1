//! Attention with norms of queries and keys, head by head.

use mlx_rope::Rope;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, ModuleParameters};

use crate::{AttentionInput, Linear, Parameters, heads};

/// A norm that [`HeadNormAttention`] can put on queries and keys, such as those of `mlx-norms`: a layer from one array to
/// another of the same shape.
pub trait Norm: ModuleParameters + for<'a> Module<&'a Array, Output = Array, Error = Exception> {}

impl<N> Norm for N where N: ModuleParameters + for<'a> Module<&'a Array, Output = Array, Error = Exception> {}

/// The numbers of a [`HeadNormAttention`].
#[derive(Debug, Clone)]
pub struct HeadNormSettings {
    /// Features of the residual stream, D.
    pub dims: i32,
    /// Query heads, H.
    pub num_heads: i32,
    /// Key-value heads, H_kv, each shared by `H / H_kv` query heads.
    pub num_kv_heads: i32,
    /// Features of a head, d.
    pub head_dim: i32,
    /// Whether the four projections have a bias.
    pub bias: bool,
    /// The rotation of queries and keys.
    pub rope: Rope,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// Grouped-query attention over a cache, with queries and keys normalized before they are rotated. `N` is the norm. Each
/// head is normalized by itself; all query heads share one weight, and all key heads share another.
///
/// The norms bound the scores for all weights of the projections, so that the softmax does not collapse to a single key.
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `q_proj.weight` | `[H d, D]` |
/// | `k_proj.weight`, `v_proj.weight` | `[H_kv d, D]` |
/// | `o_proj.weight` | `[D, H d]` |
/// | `q_norm.weight`, `k_norm.weight` | `[d]` |
///
/// With [`bias`](HeadNormSettings::bias) the projections have a `bias` too.
///
/// # Reference
///
/// Dehghani et al., *Scaling Vision Transformers to 22 Billion Parameters*, section 2
/// (<https://arxiv.org/abs/2302.05442>); Ainslie et al., *GQA* (<https://arxiv.org/abs/2305.13245>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct HeadNormAttention<N: Norm> {
    #[param]
    q_proj: Linear,
    #[param]
    k_proj: Linear,
    #[param]
    v_proj: Linear,
    #[param]
    o_proj: Linear,
    #[param]
    q_norm: N,
    #[param]
    k_norm: N,
    rope: Rope,
    num_heads: i32,
    num_kv_heads: i32,
    scale: f32,
}

impl<N: Norm> HeadNormAttention<N> {
    /// Attention of this size, with parameters from the source. `norm` makes a norm from its weight.
    pub fn new(
        mut parameters: Parameters<'_>,
        settings: HeadNormSettings,
        norm: impl Fn(Array) -> N,
    ) -> Self {
        let HeadNormSettings { dims, num_heads, num_kv_heads, head_dim, bias, rope, scale } = settings;
        let (queries, keys) = (num_heads * head_dim, num_kv_heads * head_dim);
        let mut projection =
            |name, inputs, outputs| Linear::with_bias(parameters.at(name), inputs, outputs, bias);
        Self {
            q_proj: projection("q_proj", dims, queries),
            k_proj: projection("k_proj", dims, keys),
            v_proj: projection("v_proj", dims, keys),
            o_proj: projection("o_proj", queries, dims),
            q_norm: norm(parameters.take("q_norm.weight", &[head_dim])),
            k_norm: norm(parameters.take("k_norm.weight", &[head_dim])),
            rope,
            num_heads,
            num_kv_heads,
            scale,
        }
    }
}

impl<N: Norm> Module<AttentionInput<'_>> for HeadNormAttention<N> {
    type Output = Array;
    type Error = Exception;

    /// `[B, L, D]` to `[B, L, D]`.
    fn forward(&mut self, AttentionInput { x, mask, cache }: AttentionInput<'_>) -> Result<Array> {
        let queries = heads::split(&self.q_proj.forward(x)?, self.num_heads)?; // [B, H, L, d]
        let keys = heads::split(&self.k_proj.forward(x)?, self.num_kv_heads)?; // [B, H_kv, L, d]
        let values = heads::split(&self.v_proj.forward(x)?, self.num_kv_heads)?;

        // Over the d features of each head.
        let queries = self.q_norm.forward(&queries)?;
        let keys = self.k_norm.forward(&keys)?;

        let attended = heads::attend([&queries, &keys, &values], &self.rope, self.scale, mask, cache)?;
        self.o_proj.forward(&attended) // [B, L, H d] -> [B, L, D]
    }

    fn training_mode(&mut self, _mode: bool) {}
}
