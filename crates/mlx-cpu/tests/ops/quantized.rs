//! Quantized heads, and their elements read bit by bit.

use mlx_cpu::{Element, QuantizedMatrix};
use proptest::prelude::*;

use crate::support::random;

#[derive(Debug, Clone, Copy)]
pub enum Mode {
    Affine { bits: usize, group: usize },
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl Mode {
    pub fn bits_and_group(self) -> (usize, usize) {
        match self {
            Self::Affine { bits, group } => (bits, group),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }
}

pub fn modes() -> impl Strategy<Value = Mode> {
    let bits = prop::sample::select(vec![2_usize, 3, 4, 5, 6, 8]);
    let groups = prop::sample::select(vec![32_usize, 64, 128]);
    prop_oneof![
        6 => (bits, groups).prop_map(|(bits, group)| Mode::Affine { bits, group }),
        1 => Just(Mode::Mxfp4),
        1 => Just(Mode::Mxfp8),
        1 => Just(Mode::Nvfp4),
    ]
}

/// A matrix for each head.
pub struct Memory<T> {
    mode: Mode,
    heads: usize,
    rows: usize,
    columns: usize,
    weights: Vec<u32>,
    pub scales: Vec<T>,
    biases: Vec<T>,
    bytes: Vec<u8>,
}

impl<T: Element> Memory<T> {
    /// Numbers of up to about 1, from a seed.
    pub fn new(mode: Mode, heads: usize, rows: usize, columns: usize, seed: u64) -> Self {
        let (bits, group) = mode.bits_and_group();
        let (words, groups) = (heads * rows * columns * bits / 32, heads * rows * columns / group);
        let weights = random::<f32>(seed, words).into_iter().map(|x| x.to_bits().wrapping_mul(0x9e37_79b9));
        let scaled = |seed, size: f32| {
            random::<f32>(seed, groups).into_iter().map(|x| T::narrow(x * size)).collect::<Vec<_>>()
        };
        let bytes = random::<f32>(seed + 3, groups).into_iter().map(|x| match mode {
            Mode::Nvfp4 => (32.0 + x * 8.0) as u8,
            Mode::Mxfp8 => (119.0 + x) as u8,
            _ => (125.0 + x) as u8,
        });
        Self {
            mode,
            heads,
            rows,
            columns,
            weights: weights.collect(),
            scales: scaled(seed + 1, 0.5 / (1 << bits) as f32),
            biases: scaled(seed + 2, 0.2),
            bytes: bytes.collect(),
        }
    }

    /// The first rows of each head.
    pub fn matrices(&self, rows: usize) -> Vec<QuantizedMatrix<'_, T>> {
        let Self { mode, heads, columns, .. } = *self;
        let (bits, group) = mode.bits_and_group();
        let (words, groups) = (columns * bits / 32, columns / group);
        let matrix = |head: usize| {
            let weights = &self.weights[head * self.rows * words..][..rows * words];
            let of_groups = head * self.rows * groups..(head * self.rows + rows) * groups;
            let (scales, biases) = (&self.scales[of_groups.clone()], &self.biases[of_groups.clone()]);
            let bytes = &self.bytes[of_groups];
            match mode {
                Mode::Affine { .. } => {
                    QuantizedMatrix::affine(weights, scales, biases, rows, columns, bits, group)
                }
                Mode::Mxfp4 => QuantizedMatrix::mxfp4(weights, bytes, rows, columns),
                Mode::Mxfp8 => QuantizedMatrix::mxfp8(weights, bytes, rows, columns),
                Mode::Nvfp4 => QuantizedMatrix::nvfp4(weights, bytes, rows, columns),
            }
        };
        (0..heads).map(|head| matrix(head).unwrap()).collect()
    }

    /// An element, and the sum of the absolute values of its summands.
    pub fn element(&self, head: usize, row: usize, column: usize) -> (f64, f64) {
        let (bits, group) = self.mode.bits_and_group();
        let index = (head * self.rows + row) * self.columns + column;
        let mut code = 0_i32;
        for bit in 0..bits {
            let place = index * bits + bit;
            code |= ((self.weights[place / 32] >> (place % 32) & 1) as i32) << bit;
        }
        // A float with a sign, `exponent` bits and `mantissa` bits.
        let float = |code: i32, exponent: i32, mantissa: i32| {
            let (part, power) = (code & ((1 << mantissa) - 1), code >> mantissa & ((1 << exponent) - 1));
            let bias = (1 << (exponent - 1)) - 1;
            let size = f64::from(part + if power > 0 { 1 << mantissa } else { 0 })
                * 2_f64.powi(power.max(1) - bias - mantissa);
            if code >> (exponent + mantissa) & 1 == 1 { -size } else { size }
        };
        let power = |byte: u8| 2_f64.powi(i32::from(byte) - 127);
        let g = index / group;
        let product = match self.mode {
            Mode::Affine { .. } => {
                let (scale, bias) = (f64::from(self.scales[g].widen()), f64::from(self.biases[g].widen()));
                let product = scale * f64::from(code);
                return (product + bias, product.abs() + bias.abs());
            }
            Mode::Mxfp4 => power(self.bytes[g]) * float(code, 2, 1),
            Mode::Mxfp8 => power(self.bytes[g]) * float(code, 4, 3),
            Mode::Nvfp4 => float(i32::from(self.bytes[g]), 4, 3) * float(code, 2, 1),
        };
        (product, product.abs())
    }
}
