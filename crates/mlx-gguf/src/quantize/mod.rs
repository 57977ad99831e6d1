//! Numbers to the blocks of a type.

mod search;
mod super_blocks;

use half::{bf16, f16};

use crate::TensorType;

/// Appends the blocks that stand for these numbers to `blocks`: the opposite of [`dequantize`](crate::dequantize).
///
/// | types | how a block's scale is chosen |
/// |---|---|
/// | F32, F16, BF16 | none; each number is rounded to the nearest, ties to even |
/// | Q4_0, Q5_0, Q8_0 | so that the code of the largest number is the last one |
/// | Q4_1, Q5_1 | the smallest number gets the first code, the largest the last |
/// | Q4_K, Q5_K, Q6_K | by a search for the smallest squared error, larger numbers weighing more |
///
/// The blocks are those of ggml's reference quantizers without an importance matrix, bit for bit.
///
/// # Errors
///
/// See [`QuantizeError`]. Then `blocks` may have some of the blocks.
///
/// # Reference
///
/// ggml, `quantize_row_*_ref` in `ggml-quants.c` (<https://github.com/ggml-org/ggml>).
pub fn quantize(kind: TensorType, numbers: &[f32], blocks: &mut Vec<u8>) -> Result<(), QuantizeError> {
    let block = quantizer(kind).ok_or(QuantizeError::Type { kind })?;
    if !numbers.len().is_multiple_of(kind.block_elements()) {
        return Err(QuantizeError::Length { kind, numbers: numbers.len() });
    }
    blocks.reserve(numbers.len() / kind.block_elements() * kind.block_bytes());
    // Numbers without scales are stored many at a time.
    let step = if kind.block_elements() == 1 { 256 } else { kind.block_elements() };
    for (index, chunk) in numbers.chunks(step).enumerate() {
        let refused = |number, reason| QuantizeError::Block { kind, first: index * step, number, reason };
        if let Some(&number) = chunk.iter().find(|number| !number.is_finite()) {
            return Err(refused(number, "it is not finite"));
        }
        block(chunk, blocks).ok_or_else(|| {
            let farthest = chunk.iter().fold(0.0_f32, |far, &x| if x.abs() > far.abs() { x } else { far });
            refused(farthest, "it is too large for this type")
        })?;
    }
    Ok(())
}

/// Why numbers cannot be stored in blocks of a type.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// There is no quantizer for the type.
    #[error("tensors of type {kind} can be read and not be written")]
    Type {
        /// The type.
        kind: TensorType,
    },
    /// The numbers do not fill whole blocks.
    #[error("{numbers} numbers do not fill whole blocks of {kind}, which have {} each", kind.block_elements())]
    Length {
        /// The type.
        kind: TensorType,
        /// How many there are.
        numbers: usize,
    },
    /// A block has a number that cannot be stored.
    #[error("the number {number:?} cannot be stored as {kind}: {reason}")]
    Block {
        /// The type.
        kind: TensorType,
        /// The index of the first number of the block.
        first: usize,
        /// The number, or the one that is farthest from zero.
        number: f32,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Appends one block, or any number of elements without scales; `None` where a scale or an element would be infinite.
type Quantizer = fn(&[f32], &mut Vec<u8>) -> Option<()>;

fn quantizer(kind: TensorType) -> Option<Quantizer> {
    Some(match kind {
        TensorType::F32 => |x, out| {
            out.extend(x.iter().flat_map(|x| x.to_le_bytes()));
            Some(())
        },
        TensorType::F16 => |x, out| {
            let rounded = x.iter().map(|&x| f16::from_f32(x));
            out.extend(rounded.clone().flat_map(f16::to_le_bytes));
            rounded.map(f16::is_finite).fold(true, |all, one| all & one).then_some(())
        },
        TensorType::BF16 => |x, out| {
            let rounded = x.iter().map(|&x| bf16::from_f32(x));
            out.extend(rounded.clone().flat_map(bf16::to_le_bytes));
            rounded.map(bf16::is_finite).fold(true, |all, one| all & one).then_some(())
        },
        TensorType::Q4_0 => |x, out| symmetric::<4>(x, out),
        TensorType::Q5_0 => |x, out| symmetric::<5>(x, out),
        TensorType::Q8_0 => q8_0,
        TensorType::Q4_1 => |x, out| with_minimum::<4>(x, out),
        TensorType::Q5_1 => |x, out| with_minimum::<5>(x, out),
        TensorType::Q4_K => super_blocks::q4_k,
        TensorType::Q5_K => super_blocks::q5_k,
        TensorType::Q6_K => super_blocks::q6_k,
        TensorType::Q2_K | TensorType::Q3_K | TensorType::MXFP4 => return None,
    })
}

/// Codes of 4 or 5 bits, zero in the middle. The number that is farthest from zero gets code 0, whichever sign it has: there is
/// one code more below the middle than above it.
fn symmetric<const BITS: u32>(x: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let middle = (1 << (BITS - 1)) as f32;
    let farthest = x.iter().fold(0.0_f32, |far, &x| if far.abs() < x.abs() { x } else { far });
    let d = farthest / -middle;
    push_half(d, out)?;
    let inverse = inverse(d);
    push_codes::<BITS>(x.iter().map(|x| truncated(x * inverse + (middle + 0.5))), out);
    Some(())
}

/// Codes of 8 bits with a sign.
fn q8_0(x: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let farthest = x.iter().fold(0.0_f32, |far, x| if far > x.abs() { far } else { x.abs() });
    let d = farthest / 127.0;
    push_half(d, out)?;
    let inverse = inverse(d);
    out.extend(x.iter().map(|x| truncated((x * inverse).round()).cast_unsigned()));
    Some(())
}

/// Codes of 4 or 5 bits from the smallest number to the largest.
fn with_minimum<const BITS: u32>(x: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let min = x.iter().fold(f32::MAX, |min, &x| if x < min { x } else { min });
    let max = x.iter().fold(-f32::MAX, |max, &x| if x > max { x } else { max });
    let d = (max - min) / ((1 << BITS) - 1) as f32;
    push_half(d, out)?;
    push_half(min, out)?;
    let inverse = inverse(d);
    push_codes::<BITS>(x.iter().map(|x| truncated((x - min) * inverse + 0.5)), out);
    Some(())
}

/// One over a scale, 0 where the scale is 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The integer part of a code. Where the scale is so small that its inverse is infinite, C leaves the result open; processors
/// give 0. The scale is 0 as a float16 then.
fn truncated(code: f32) -> i8 {
    if code.abs() < 256.0 { code as i32 as i8 } else { 0 }
}

/// Appends the codes of a block of 32: the highest bits of codes of 5 bits first, then bytes with 4 bits of two codes each.
fn push_codes<const BITS: u32>(codes: impl Iterator<Item = i8>, out: &mut Vec<u8>) {
    let mut all = [0_u8; 32];
    for (slot, code) in all.iter_mut().zip(codes) {
        *slot = code.min((1 << BITS) - 1).cast_unsigned();
    }
    if BITS == 5 {
        let high = all.iter().rev().fold(0_u32, |high, code| high << 1 | u32::from(code >> 4 & 1));
        out.extend(high.to_le_bytes());
    }
    let (first, second) = all.split_at(16);
    out.extend(first.iter().zip(second).map(|(first, second)| first & 15 | second << 4));
}

/// Appends a number as a float16, and returns what was stored; `None` where it is too large.
fn push_half(number: f32, out: &mut Vec<u8>) -> Option<f32> {
    let rounded = f16::from_f32(number);
    out.extend(rounded.to_le_bytes());
    rounded.is_finite().then(|| rounded.to_f32())
}
