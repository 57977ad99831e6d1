//! How a layer of a GGUF file is stored in the checkpoint.

use half::f16;
use mlx_gguf::{TensorType, dequantize, in_parallel};
use mlx_layers::Quantization;
use mlx_quantization::{BlockFormat, quantize};
use mlx_rs::{Array, Dtype as MlxDtype};
use mlx_safetensors::{Dtype, arrays};

use super::affine::{self, Groups};
use super::loss::Loss;
use crate::text::of_mlx;

/// How a layer of a file is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// In full precision.
    Full,
    /// In the blocks of the file.
    Blocks(BlockFormat),
    /// In groups of 32 that have the codes of the file, with this many bits.
    Affine(i32),
    /// As MXFP4, which files and MLX both have.
    Mxfp4,
    /// Quantized again, with this many bits in groups of 32. The file has groups of 16, which MLX does not have.
    Again(i32),
}

/// The parts of a quantized layer.
pub(super) struct MadeOf {
    pub(super) packed: Array,
    pub(super) scales: Array,
    pub(super) biases: Option<Array>,
    /// How far its numbers are from those of the file, where they are not the same.
    pub(super) loss: Option<Loss>,
}

impl Stored {
    /// How layers of this type are stored. Two more bits, shared by twice as many numbers, are about as exact as the file.
    ///
    /// With `in_blocks`, they stay as they are.
    pub(super) fn of(kind: TensorType, in_blocks: bool) -> Self {
        if in_blocks && let Some(format) = BlockFormat::named(&kind.to_string()) {
            return Self::Blocks(format);
        }
        match kind {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Self::Full,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4_K => Self::Affine(4),
            TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K => Self::Affine(5),
            TensorType::Q8_0 => Self::Affine(8),
            TensorType::MXFP4 => Self::Mxfp4,
            TensorType::Q2_K => Self::Again(4),
            TensorType::Q3_K => Self::Again(5),
            TensorType::Q6_K => Self::Again(8),
        }
    }

    pub(super) fn quantization(self) -> Option<Quantization> {
        match self {
            Self::Full => None,
            Self::Blocks(format) => Some(Quantization::blocks(format)),
            Self::Affine(bits) | Self::Again(bits) => Quantization::affine(bits, affine::GROUP as i32).ok(),
            Self::Mxfp4 => Some(Quantization::MXFP4),
        }
    }

    /// Makes a layer of these blocks, whose rows have this many columns.
    pub(super) fn make(self, kind: TensorType, blocks: &[u8], columns: usize) -> Result<MadeOf, String> {
        match self {
            Self::Full => Err("it is not quantized".to_owned()),
            Self::Blocks(_) => Err("its blocks are read from the file".to_owned()),
            Self::Mxfp4 => mxfp4(blocks, columns),
            Self::Affine(bits) => {
                let groups = in_parallel(kind, blocks, |blocks| affine::groups(kind, blocks));
                let groups = Groups::joined(groups);
                if groups.scales.iter().chain(&groups.biases).any(|number| !number.is_finite()) {
                    return Err("a scale is not a finite float16 number".to_owned());
                }
                let is_exact = !matches!(kind, TensorType::Q4_K | TensorType::Q5_K);
                let loss = (!is_exact).then(|| groups.loss(bits, &numbers(kind, blocks)));
                affine_arrays(groups, columns, bits, loss)
            }
            Self::Again(bits) => again(kind, blocks, columns, bits),
        }
    }
}

/// The numbers of these blocks.
pub(super) fn numbers(kind: TensorType, blocks: &[u8]) -> Vec<f32> {
    let part = |blocks: &[u8]| {
        let mut numbers = Vec::new();
        dequantize(kind, blocks, &mut numbers);
        numbers
    };
    let mut parts = in_parallel(kind, blocks, part);
    if parts.len() == 1 { parts.pop().unwrap_or_default() } else { parts.concat() }
}

fn affine_arrays(groups: Groups, columns: usize, bits: i32, loss: Option<Loss>) -> Result<MadeOf, String> {
    let in_row = columns / affine::GROUP;
    let rows = groups.scales.len() / in_row;
    let packed = from_words(&groups.words, rows, columns * bits as usize / 32)?;
    let halves = |numbers: &[f16]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        from_bytes(&bytes, Dtype::F16, &[rows, in_row])
    };
    Ok(MadeOf { packed, scales: halves(&groups.scales)?, biases: Some(halves(&groups.biases)?), loss })
}

/// The codes of a file come first in the low halves of the bytes of a block, those of MLX two to a byte in their order.
fn mxfp4(blocks: &[u8], columns: usize) -> Result<MadeOf, String> {
    let whole = blocks.chunks_exact(TensorType::MXFP4.block_bytes());
    let rows = whole.len() / (columns / affine::GROUP);
    let scales: Vec<u8> = whole.clone().map(|block| block[0]).collect();
    let words: Vec<u32> = whole.flat_map(|block| affine::packed(&affine::nibbles(&block[1..]), 4)).collect();
    let packed = from_words(&words, rows, columns / 8)?;
    let scales = from_bytes(&scales, Dtype::U8, &[rows, columns / affine::GROUP])?;
    Ok(MadeOf { packed, scales, biases: None, loss: None })
}

fn again(kind: TensorType, blocks: &[u8], columns: usize, bits: i32) -> Result<MadeOf, String> {
    let numbers = numbers(kind, blocks);
    let shape = [(numbers.len() / columns) as i32, columns as i32];
    let made = || {
        let whole = Array::from_slice(&numbers, &shape).as_dtype(MlxDtype::Float16)?;
        let way = Quantization::affine(bits, affine::GROUP as i32);
        let made = quantize(&whole, way.map_err(|e| mlx_rs::error::Exception::custom(e.to_string()))?)?;
        mlx_rs::transforms::eval(
            [Some(&made.packed), Some(&made.scales), made.biases.as_ref()].into_iter().flatten(),
        )?;
        Ok(made)
    };
    let made = made().map_err(|e: mlx_rs::error::Exception| of_mlx(&e))?;
    let words = made.packed.as_slice::<u32>().to_vec();
    let scales = made.scales.as_slice::<f16>().to_vec();
    let biases = made.biases.as_ref().map(|biases| biases.as_slice::<f16>().to_vec()).unwrap_or_default();
    let loss = Groups { words, scales, biases }.loss(bits, &numbers);
    Ok(MadeOf { packed: made.packed, scales: made.scales, biases: made.biases, loss: Some(loss) })
}

fn from_words(words: &[u32], rows: usize, columns: usize) -> Result<Array, String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    from_bytes(&bytes, Dtype::U32, &[rows, columns])
}

fn from_bytes(bytes: &[u8], dtype: Dtype, shape: &[usize]) -> Result<Array, String> {
    arrays::from_bytes(bytes, dtype, shape).and_then(super::evaluated).map_err(|e| of_mlx(&e))
}
