//! Blocks of 256 numbers in groups, whose scales are quantized too.

use super::push_half;
use super::search::{
    ALMOST_ZERO, Groups, Symmetric, Tries, WithMinimum, groups, nearest, symmetric, with_minimum,
};

/// 8 groups of 32 codes of 4 bits, each group with a scale and a minimum of 6 bits.
pub(super) fn q4_k(numbers: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let codes = minimums(numbers, &Tries { last: 15.0, first: -1.0, more: 20 }, out)?;
    push_low_halves(&codes, out);
    Some(())
}

/// As [`q4_k`] with codes of 5 bits. Bit `g` of high byte `i` belongs to number `i` of group `g`.
pub(super) fn q5_k(numbers: &[f32], out: &mut Vec<u8>) -> Option<()> {
    let codes = minimums(numbers, &Tries { last: 31.0, first: -0.5, more: 15 }, out)?;
    out.extend(codes.iter().map(|row| row.iter().rev().fold(0, |high, code| high << 1 | code >> 4 & 1)));
    push_low_halves(&codes, out);
    Some(())
}

/// The low 4 bits of each code: bytes of two neighbouring groups.
fn push_low_halves(codes: &[[u8; 8]; 32], out: &mut Vec<u8>) {
    for pair in 0..4 {
        out.extend(codes.iter().map(|row| row[2 * pair] & 15 | row[2 * pair + 1] << 4));
    }
}

/// Appends the scales and minimums of 8 groups, and returns the codes: number `i` of group `g` at `[i][g]`.
///
/// The scales and minimums that were found are rounded to multiples of what 6 bits reach, and the codes are rounded anew with
/// them.
fn minimums(numbers: &[f32], tries: &Tries, out: &mut Vec<u8>) -> Option<[[u8; 8]; 32]> {
    let x: Groups<32, 8> = groups(numbers);
    let WithMinimum { scale, minimum, codes } = with_minimum(&x, tries);
    let (largest, largest_minimum) = (largest(&scale), largest(&minimum));
    let d = push_half(largest / 63.0, out)?;
    let d_min = push_half(largest_minimum / 63.0, out)?;
    let inverse = |largest| if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let six_bits = |x: f32, largest: f32| (nearest(inverse(largest) * x) as u8).min(63);
    let scale = scale.map(|scale| six_bits(scale, largest));
    let minimum = minimum.map(|minimum| six_bits(minimum, largest_minimum));
    push_scales(scale, minimum, out);

    let mut rounded = codes.map(|row| row.map(|code| code as u8));
    for group in 0..8 {
        let factor = d * f32::from(scale[group]);
        if factor == 0.0 {
            continue;
        }
        let minimum = d_min * f32::from(minimum[group]);
        for (rounded, x) in rounded.iter_mut().zip(&x) {
            let code = nearest((x[group] + minimum) / factor);
            rounded[group] = code.clamp(0, tries.last as i32) as u8;
        }
    }
    Some(rounded)
}

fn largest(values: &[f32; 8]) -> f32 {
    values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest })
}

/// 12 bytes: the 6 bits of the first four scales and minimums, whose two high bits complete the 4 bits of the last four.
fn push_scales(scale: [u8; 8], minimum: [u8; 8], out: &mut Vec<u8>) {
    for six in [scale, minimum] {
        out.extend((0..4).map(|group| six[group] | six[group + 4] >> 4 << 6));
    }
    out.extend((4..8).map(|group| scale[group] & 15 | minimum[group] << 4));
}

/// 16 groups of 16 codes of 6 bits, each group with a scale of 8 bits with a sign.
pub(super) fn q6_k(numbers: &[f32], out: &mut Vec<u8>) -> Option<()> {
    // Beyond the largest float16 times the largest scale and code. ggml's sums overflow from about 1e12 on, and it stores zeros.
    if numbers.iter().any(|x| x.abs() > 65_504.0 * 128.0 * 32.0) {
        return None;
    }
    let x: Groups<16, 16> = groups(numbers);
    let Symmetric { scale, codes } = symmetric(&x, 32.0);
    let farthest =
        scale.iter().fold(0.0_f32, |far, &scale| if scale.abs() > far.abs() { scale } else { far });
    if farthest.abs() < ALMOST_ZERO {
        out.extend([0; 210]);
        return Some(());
    }
    let inverse = -128.0 / farthest;
    let mut stored = Vec::with_capacity(2);
    let d = push_half(1.0 / inverse, &mut stored)?;
    let scale = scale.map(|scale| nearest(inverse * scale).min(127) as i8);

    let mut rounded = codes.map(|row| row.map(|code| (code + 32.0) as u8));
    for group in 0..16 {
        let factor = d * f32::from(scale[group]);
        if factor == 0.0 {
            continue;
        }
        for (rounded, x) in rounded.iter_mut().zip(&x) {
            rounded[group] = (nearest(x[group] / factor).clamp(-32, 31) + 32) as u8;
        }
    }
    push_six_bits(&rounded, out);
    out.extend(scale.map(i8::cast_unsigned));
    out.extend(stored);
    Some(())
}

/// 128 bytes with the low 4 bits of two codes each, then 64 bytes with the high 2 bits of four codes each. Each half of the block
/// has 8 groups, in 4 pairs of neighbours.
fn push_six_bits(codes: &[[u8; 16]; 16], out: &mut Vec<u8>) {
    let code = |half: usize, pair: usize, i: usize| codes[i % 16][8 * half + 2 * pair + i / 16];
    for half in 0..2 {
        for pair in 0..2 {
            out.extend((0..32).map(|i| code(half, pair, i) & 15 | code(half, pair + 2, i) << 4));
        }
    }
    for half in 0..2 {
        let high = |i| (0..4).rev().fold(0, |byte, pair| byte << 2 | code(half, pair, i) >> 4);
        out.extend((0..32).map(high));
    }
}
