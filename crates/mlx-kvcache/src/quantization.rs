//! How keys and values are quantized.

use std::fmt;

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::ops::{dequantize, quantize, quantized_matmul};

use crate::CacheError;

/// Affine quantization: each group of neighbouring features has a scale and a bias, and a feature
/// is `scale * q + bias` with an integer q of a few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvQuantization {
    bits: i32,
    group_size: i32,
}

impl KvQuantization {
    /// Quantization to `bits` bits (2, 3, 4, 5, 6 or 8) in groups of `group_size` features (32, 64 or 128).
    ///
    /// # Errors
    ///
    /// [`CacheError::Quantization`] for numbers that MLX does not have.
    pub fn new(bits: i32, group_size: i32) -> Result<Self, CacheError> {
        if ![2, 3, 4, 5, 6, 8].contains(&bits) || ![32, 64, 128].contains(&group_size) {
            return Err(CacheError::Quantization { bits, group_size });
        }
        Ok(Self { bits, group_size })
    }

    /// Bits of a number.
    pub fn bits(self) -> i32 {
        self.bits
    }

    /// Features that share a scale and a bias.
    pub fn group_size(self) -> i32 {
        self.group_size
    }
}

impl fmt::Display for KvQuantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits in groups of {}", self.bits, self.group_size)
    }
}

/// Keys or values that are quantized.
///
/// # Shapes
///
/// For `[B, H, S, D]` of features, with g features in a group and b bits of a number.
#[derive(Debug, Clone)]
pub struct Quantized {
    /// The integers, packed: uint32 `[B, H, S, D * b / 32]`.
    pub packed: Array,
    /// `[B, H, S, D / g]`, of the dtype of what was quantized.
    pub scales: Array,
    /// `[B, H, S, D / g]`, of the same dtype.
    pub biases: Array,
    /// How.
    pub quantization: KvQuantization,
}

impl Quantized {
    /// Quantizes the last axis, whose length must be a multiple of the group size.
    pub(crate) fn quantize(x: &Array, quantization: KvQuantization) -> Result<Self, Exception> {
        let KvQuantization { bits, group_size } = quantization;
        let (packed, scales, biases) = quantize(x, group_size, bits)?;
        Ok(Self { packed, scales, biases, quantization })
    }

    /// The features, as near as the bits allow.
    ///
    /// # Errors
    ///
    /// Where the three arrays do not fit each other.
    pub fn dequantize(&self) -> Result<Array, Exception> {
        let KvQuantization { bits, group_size } = self.quantization;
        dequantize(&self.packed, &self.scales, &self.biases, group_size, bits)
    }

    /// `x` times these, or times these transposed, without dequantizing them first.
    pub(crate) fn matmul(&self, x: &Array, transpose: bool) -> Result<Array, Exception> {
        let KvQuantization { bits, group_size } = self.quantization;
        quantized_matmul(x, &self.packed, &self.scales, &self.biases, transpose, group_size, bits)
    }

    /// The same with an axis more, which is one long.
    pub(crate) fn expand(&self, axis: i32) -> Result<Self, Exception> {
        Ok(Self {
            packed: self.packed.expand_dims(axis)?,
            scales: self.scales.expand_dims(axis)?,
            biases: self.biases.expand_dims(axis)?,
            quantization: self.quantization,
        })
    }
}
