//! The numbers of quantized tensors.

use half::{bf16, f16};

use crate::TensorType;

/// Appends the numbers that these blocks stand for to `numbers`. Bytes behind the last whole block are ignored.
///
/// Each step is rounded to float32, in the order in which ggml computes, so that the numbers are those of llama.cpp and of the
/// Python package `gguf`, bit for bit.
///
/// # Reference
///
/// The layouts of the blocks: ggml, `ggml-common.h` (`block_q4_0` and so on) and `dequantize_row_*` of `ggml-quants.c`
/// (<https://github.com/ggml-org/ggml>). MXFP4: *OCP Microscaling Formats (MX) Specification*, version 1.0, section 5.3.3.
pub fn dequantize(kind: TensorType, blocks: &[u8], numbers: &mut Vec<f32>) {
    let whole = blocks.chunks_exact(kind.block_bytes());
    numbers.reserve(whole.len() * kind.block_elements());
    for block in whole {
        match kind {
            TensorType::F32 => numbers.push(f32::from_le_bytes(at(block, 0))),
            TensorType::F16 => numbers.push(half_at(block, 0)),
            TensorType::BF16 => numbers.push(bf16::from_le_bytes(at(block, 0)).to_f32()),
            TensorType::Q4_0 => {
                let (d, codes) = (half_at(block, 0), &block[2..]);
                numbers.extend(nibbles(codes).map(|code| d * (f32::from(code) - 8.0)));
            }
            TensorType::Q4_1 => {
                let (d, min, codes) = (half_at(block, 0), half_at(block, 2), &block[4..]);
                numbers.extend(nibbles(codes).map(|code| d * f32::from(code) + min));
            }
            TensorType::Q5_0 => {
                let (d, high, codes) = (half_at(block, 0), u32::from_le_bytes(at(block, 2)), &block[6..]);
                numbers.extend(fives(codes, high).map(|code| d * (f32::from(code) - 16.0)));
            }
            TensorType::Q5_1 => {
                let (d, min) = (half_at(block, 0), half_at(block, 2));
                let (high, codes) = (u32::from_le_bytes(at(block, 4)), &block[8..]);
                numbers.extend(fives(codes, high).map(|code| d * f32::from(code) + min));
            }
            TensorType::Q8_0 => {
                let d = half_at(block, 0);
                numbers.extend(block[2..].iter().map(|&code| f32::from(code.cast_signed()) * d));
            }
            TensorType::Q2_K => q2_k(block, numbers),
            TensorType::Q3_K => q3_k(block, numbers),
            TensorType::Q4_K => q4_k(block, numbers),
            TensorType::Q5_K => q5_k(block, numbers),
            TensorType::Q6_K => q6_k(block, numbers),
            TensorType::MXFP4 => {
                let scale = power_of_two(block[0]);
                numbers.extend(nibbles(&block[1..]).map(|code| scale * E2M1_DOUBLED[usize::from(code)]));
            }
        }
    }
}

/// The 16 numbers of 4 bits with 2 bits of exponent and 1 bit of mantissa, doubled: 0 to 6 in MX's specification. ggml keeps them
/// doubled, and halves the scale.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Half of two to the power of `exponent - 127`. The two smallest are not normal numbers.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

/// Codes of 4 bits: first the low halves of all bytes, then the high halves.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// Codes of 5 bits: 4 of them as in [`nibbles`], and bit i of `high` is the highest of code i.
fn fives(bytes: &[u8], high: u32) -> impl Iterator<Item = u8> {
    nibbles(bytes).enumerate().map(move |(i, low)| low | ((high >> i & 1) as u8) << 4)
}

/// 16 groups of 16 codes of 2 bits, each group with a scale and a minimum of 4 bits.
fn q2_k(block: &[u8], numbers: &mut Vec<f32>) {
    let (scales, codes) = (&block[..16], &block[16..80]);
    let (d, d_min) = (half_at(block, 80), half_at(block, 82));
    for (group, scale) in scales.iter().enumerate() {
        let (factor, min) = (d * f32::from(scale & 15), d_min * f32::from(scale >> 4));
        let codes = twos(codes, group);
        numbers.extend(codes.map(|code| factor * f32::from(code) - min));
    }
}

/// 16 groups of 16 codes of 3 bits, each group with a scale of 6 bits.
fn q3_k(block: &[u8], numbers: &mut Vec<f32>) {
    let (high, low, packed, d) = (&block[..32], &block[32..96], &block[96..108], half_at(block, 108));
    for group in 0..16 {
        let scale_low = packed[group % 8] >> (4 * (group / 8)) & 15;
        let scale_high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
        let factor = d * (f32::from(scale_low | scale_high << 4) - 32.0);
        let bits = (0..16).map(|i| high[16 * (group % 2) + i] >> (group / 2) & 1);
        // A bit that is not set stands for -4.
        let codes =
            twos(low, group).zip(bits).map(|(low, high)| f32::from(low) - if high == 0 { 4.0 } else { 0.0 });
        numbers.extend(codes.map(|code| factor * code));
    }
}

/// The codes of 2 bits of a group of 16. Each half of the 64 bytes has 8 groups: bits 0 and 1 of its first and second 16
/// bytes, then bits 2 and 3 of them, and so on.
fn twos(bytes: &[u8], group: usize) -> impl Iterator<Item = u8> {
    let (start, shift) = (32 * (group / 8) + 16 * (group % 2), 2 * (group % 8 / 2));
    bytes[start..start + 16].iter().map(move |byte| byte >> shift & 3)
}

/// 8 groups of 32 codes of 4 bits, each group with a scale and a minimum of 6 bits.
fn q4_k(block: &[u8], numbers: &mut Vec<f32>) {
    let (d, d_min, packed, codes) = (half_at(block, 0), half_at(block, 2), &block[4..16], &block[16..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(packed, group);
        let (factor, min) = (d * f32::from(scale), d_min * f32::from(min));
        let bytes = &codes[32 * (group / 2)..][..32];
        let codes = bytes.iter().map(|byte| byte >> (4 * (group % 2)) & 15);
        numbers.extend(codes.map(|code| factor * f32::from(code) - min));
    }
}

/// As [`q4_k`], with a fifth bit of each code.
fn q5_k(block: &[u8], numbers: &mut Vec<f32>) {
    let (d, d_min, packed) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    let (high, codes) = (&block[16..48], &block[48..]);
    for group in 0..8 {
        let (scale, min) = scale_and_min(packed, group);
        let (factor, min) = (d * f32::from(scale), d_min * f32::from(min));
        let bytes = &codes[32 * (group / 2)..][..32];
        let codes = bytes
            .iter()
            .zip(high)
            .map(|(byte, high)| byte >> (4 * (group % 2)) & 15 | (high >> group & 1) << 4);
        numbers.extend(codes.map(|code| factor * f32::from(code) - min));
    }
}

/// The scale and the minimum of a group of [`q4_k`]: 6 bits each. Those of the first four groups are the low bits of a byte,
/// whose two high bits complete the last four.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[4 + group] & 63);
    }
    let (low, scale_high, min_high) = (packed[4 + group], packed[group - 4] >> 6, packed[group] >> 6);
    (low & 15 | scale_high << 4, low >> 4 | min_high << 4)
}

/// 16 groups of 16 codes of 6 bits, each group with a signed scale of 8 bits.
fn q6_k(block: &[u8], numbers: &mut Vec<f32>) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half_at(block, 208));
    for (group, scale) in scales.iter().enumerate() {
        let factor = d * f32::from(scale.cast_signed());
        // Each half of the block has 8 groups, in 4 pairs: two pairs in the low halves of bytes, then two in the high halves.
        let (half, pair, start) = (group / 8, group % 8 / 2, 16 * (group % 2));
        let low = &low[64 * half + 32 * (pair % 2) + start..][..16];
        let high = &high[32 * half + start..][..16];
        let codes = low
            .iter()
            .zip(high)
            .map(|(low, high)| low >> (4 * (pair / 2)) & 15 | (high >> (2 * pair) & 3) << 4);
        numbers.extend(codes.map(|code| factor * (f32::from(code) - 32.0)));
    }
}

/// The bytes of a block from `start` on.
fn at<const N: usize>(block: &[u8], start: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[start..start + N]);
    bytes
}

fn half_at(block: &[u8], start: usize) -> f32 {
    f16::from_le_bytes(at(block, start)).to_f32()
}
