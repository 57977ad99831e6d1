//! How exact activations are in products of whole numbers.

/// How many bits of an activation take part in products with quantized matrices that are computed in whole numbers.
///
/// Codes of 2, 4 and 8 bits, `mxfp4`, `nvfp4` and the blocks of GGUF files are multiplied in whole numbers if activations
/// have half precision. Products with other matrices do not depend on this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationBits {
    /// Numbers of 8 bits, in units of 1/127 of the largest number of each group. Twice as many are multiplied at a time.
    Eight,
    /// Numbers of 16 bits, in units of a power of two for each group, which keep all bits of most half-precision numbers.
    #[default]
    Sixteen,
}

impl ActivationBits {
    /// The number, as in the environment variable `MLX_CPU_ACTIVATIONS`.
    pub const fn count(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }
}
