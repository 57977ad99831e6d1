//! Floats as bytes of a file, and floats of 8 bits.

use half::{bf16, f16};
use mlx_safetensors::Dtype;

use super::rows::fill_rows;

/// The numbers of a tensor. Floats of 8 bits and powers of two in 8 bits are numbers too.
///
/// # Errors
///
/// A dtype that is none of these, in words.
pub(super) fn to_f32(bytes: &[u8], dtype: Dtype) -> Result<Vec<f32>, String> {
    Ok(match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|&x| bf16::from_le_bytes(x).to_f32()).collect(),
        Dtype::F8_E8M0 | Dtype::U8 => bytes.iter().map(|&x| from_e8m0(x)).collect(),
        other => return Err(format!("its scales are {other:?}, which is not supported")),
    })
}

/// Makes the bytes of a matrix of floats: `fill` computes a row, whose numbers are rounded to `dtype`.
pub(super) fn matrix(
    [rows, columns]: [usize; 2],
    dtype: Dtype,
    fill: impl Fn(usize, &mut [f32]) + Sync,
) -> Vec<u8> {
    let width = dtype.bits() / 8;
    let mut bytes = vec![0; rows * columns * width];
    fill_rows(&mut bytes, columns * width, |number, to| {
        let mut row = vec![0.0; columns];
        fill(number, &mut row);
        match dtype {
            Dtype::F16 => write(to, &row, |x| f16::from_f32(x).to_le_bytes()),
            Dtype::BF16 => write(to, &row, |x| bf16::from_f32(x).to_le_bytes()),
            _ => write(to, &row, f32::to_le_bytes),
        }
    });
    bytes
}

fn write<const N: usize>(to: &mut [u8], row: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
    to.as_chunks_mut().0.iter_mut().zip(row).for_each(|(to, &x)| *to = bytes(x));
}

/// The numbers of all floats of 8 bits in the form E4M3, which has no infinities.
pub(super) fn e4m3() -> [f32; 256] {
    std::array::from_fn(|code| {
        let (exponent, fraction) = ((code >> 3 & 15) as i32, (code & 7) as f32);
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f32::NAN,
            (0, _) => fraction / 512.0, // 2^-6 and three bits behind the point
            _ => (1.0 + fraction / 8.0) * f32::powi(2.0, exponent - 7),
        };
        if code < 128 { magnitude } else { -magnitude }
    })
}

/// A power of two in 8 bits.
fn from_e8m0(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(1 << 22), // 2^-127, which has no exponent of its own
        code => f32::from_bits(u32::from(code) << 23),
    }
}
