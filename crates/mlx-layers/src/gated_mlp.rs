//! The gated feed-forward network with three projections.

use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;

use crate::{Linear, Parameters, geglu, swiglu};

/// The activation function of a [`GatedMlp`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// [`swiglu`]; configs call it `silu`.
    Silu,
    /// [`geglu`]; configs call it `gelu_pytorch_tanh`.
    GeluTanh,
}

impl Gate {
    /// Multiplies `up` by the activated gate.
    ///
    /// # Errors
    ///
    /// Where the shapes do not match.
    pub fn apply(self, gate: &Array, up: &Array) -> Result<Array> {
        match self {
            Self::Silu => swiglu(gate, up),
            Self::GeluTanh => geglu(gate, up),
        }
    }
}

/// A gated feed-forward network: `down(f(gate(x)) * up(x))`.
///
/// # Parameters
///
/// | key | shape |
/// |---|---|
/// | `gate_proj.weight`, `up_proj.weight` | `[hidden, D]` |
/// | `down_proj.weight` | `[D, hidden]` |
///
/// # Reference
///
/// Shazeer, *GLU Variants Improve Transformer*, equation 6 (<https://arxiv.org/abs/2002.05202>).
#[derive(Debug, Clone, ModuleParameters)]
pub struct GatedMlp {
    #[param]
    gate_proj: Linear,
    #[param]
    up_proj: Linear,
    #[param]
    down_proj: Linear,
    gate: Gate,
}

impl GatedMlp {
    /// A network over `dims` features with `hidden` features inside, with parameters from the source.
    pub fn new(parameters: Parameters<'_>, dims: i32, hidden: i32, gate: Gate) -> Self {
        Self::with_bias(parameters, dims, hidden, gate, false)
    }

    /// [`new`](Self::new), where `bias` says whether the three projections have a bias.
    pub fn with_bias(mut parameters: Parameters<'_>, dims: i32, hidden: i32, gate: Gate, bias: bool) -> Self {
        Self {
            gate_proj: Linear::with_bias(parameters.at("gate_proj"), dims, hidden, bias),
            up_proj: Linear::with_bias(parameters.at("up_proj"), dims, hidden, bias),
            down_proj: Linear::with_bias(parameters.at("down_proj"), hidden, dims, bias),
            gate,
        }
    }
}

impl Module<&Array> for GatedMlp {
    type Output = Array;
    type Error = Exception;

    /// `[..., D]` to `[..., D]`.
    fn forward(&mut self, x: &Array) -> Result<Array> {
        let gated = self.gate.apply(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?; // [..., hidden]
        self.down_proj.forward(&gated)
    }

    fn training_mode(&mut self, _mode: bool) {}
}
