//! MLX's modes of quantization: integers with a scale and a bias, and small floats with a shared scale.
//!
//! API: usable without the rest of this workspace. mlx-rs 0.33 offers the affine mode only. This crate calls the
//! other modes through mlx-c. It checks all arguments before the call, because an error of mlx-c comes without a message
//! that can be read.
//!
//! A row of a matrix is cut into groups of neighbouring columns, and each group has a scale:
//!
//! | mode | a number is | group size |
//! |---|---|---|
//! | affine | `scale * q + bias`, q an integer of 2, 3, 4, 5, 6 or 8 bits | 32, 64 or 128 |
//! | mxfp4 | `2^e * f`, f a float of 4 bits (E2M1), e an integer of 8 bits | 32 |
//! | mxfp8 | `2^e * f`, f a float of 8 bits (E4M3), e an integer of 8 bits | 32 |
//! | nvfp4 | `s * f`, f a float of 4 bits (E2M1), s a float of 8 bits (E4M3) | 16 |
//!
//! [`Mode::bits`] and [`Mode::group_sizes`] are this table for the rest of the workspace.
//!
//! ```
//! use mlx_quantization::{Quantization, dequantize, quantize, quantized_matmul};
//! use mlx_rs::Array;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let w = Array::ones::<f32>(&[8, 64])?;
//! let q = quantize(&w, Quantization::MXFP4)?;
//! let y = quantized_matmul(&Array::ones::<f32>(&[1, 64])?, &q, true)?;
//! assert_eq!(y.shape(), [1, 8]);
//! assert_eq!(dequantize(&q)?.shape(), [8, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! # Blocks of GGUF files
//!
//! A matrix in a [`BlockFormat`] of GGUF files is one more kind of [`QuantizedArray`], with [`Mode::Blocks`]. Its two arrays
//! hold the bytes of the file, so no number changes and no memory is added. Only the CPU kernels of this project compute with
//! it. A loader asks [`block_formats_work`] first, and converts the numbers to a format of MLX where the answer is no.
//!
//! ```no_run
//! use mlx_quantization::{BlockFormat, block_formats_work, dequantize, from_blocks, quantized_matmul};
//! # fn blocks() -> &'static [u8] { &[] }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! if let (true, Some(format)) = (block_formats_work(), BlockFormat::named("Q4_K")) {
//!     // `weight` and `scales` of a layer with 640 outputs and 2048 inputs; its quantization is `w.quantization`.
//!     let w = from_blocks(format, [640, 2048], blocks())?;
//!     let y = quantized_matmul(&mlx_rs::Array::ones::<f32>(&[1, 2048])?, &w, true)?;
//!     assert_eq!(y.shape(), [1, 640]);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - The arrays have the shapes [`Quantization::packed_shape`] and [`Quantization::groups_shape`], where
//!   `Quantization::blocks(format)` is the quantization of the layer. There are no biases.
//! - [`from_blocks`] takes the bytes of a tensor and splits them on all cores; [`read_blocks`] reads them from a file in pieces.
//!   Rows that a model needs in another order are moved before, as blocks, or after, in both arrays: a row is a row in each.
//! - `x` is float32, float16 or bfloat16, and a product has the dtype of `x`. [`dequantize`] gives bfloat16, and
//!   [`dequantize_blocks`] any of the three. The gradient with respect to `x` is there.
//! - Codes and scales within a row are in an order of the kernels. Files do not keep these arrays.
//!
//! # Calls that mlx-rs does not have
//!
//! The crate is also the place of other calls of mlx-c that need unsafe code: [`slice()`] and [`write_slice`] for caches, and
//! [`linear`], [`swiglu`] and [`geglu`], which are one node of MLX's graph where a CPU kernel computes them.
//!
//! # Reference
//!
//! Rouhani et al., *OCP Microscaling Formats (MX) Specification* 1.0, section 5 (mxfp4, mxfp8); NVIDIA's
//! Blackwell architecture documents (nvfp4); `quantize` in MLX's documentation (affine).

mod blocks;
mod direct;
mod native;
mod scheme;
mod slices;

use std::io;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Device, DeviceType, Dtype};

pub use blocks::BlockFormat;
pub use direct::{geglu, linear, swiglu};
pub use scheme::{Mode, Quantization, UnknownQuantization};
pub use slices::{slice, write_slice};

/// A quantized matrix, or a stack of matrices.
///
/// # Shapes
///
/// For `[.., N, K]` numbers of b bits in groups of g.
#[derive(Debug, Clone)]
pub struct QuantizedArray {
    /// The numbers, packed: uint32 `[.., N, K * b / 32]`.
    pub packed: Array,
    /// `[.., N, K / g]`, in the affine mode of the dtype that the numbers had, in the other modes uint8. For blocks, as many
    /// bytes as their scales have.
    pub scales: Array,
    /// Of the shape and dtype of the scales, in the affine mode only.
    pub biases: Option<Array>,
    /// How the numbers are quantized.
    pub quantization: Quantization,
}

/// A borrowed [`QuantizedArray`].
#[derive(Debug, Clone, Copy)]
pub struct QuantizedView<'a> {
    /// As in [`QuantizedArray`].
    pub packed: &'a Array,
    /// As in [`QuantizedArray`].
    pub scales: &'a Array,
    /// As in [`QuantizedArray`].
    pub biases: Option<&'a Array>,
    /// As in [`QuantizedArray`].
    pub quantization: Quantization,
}

impl<'a> From<&'a QuantizedArray> for QuantizedView<'a> {
    fn from(array: &'a QuantizedArray) -> Self {
        let QuantizedArray { packed, scales, biases, quantization } = array;
        Self { packed, scales, biases: biases.as_ref(), quantization: *quantization }
    }
}

impl QuantizedView<'_> {
    /// Checks that the arrays have the dtypes and shapes that belong together.
    fn check(&self) -> Result<(), Exception> {
        let Quantization { bits, mode, .. } = self.quantization;
        let wrong = |what: &str| {
            Err(Exception::custom(format!(
                "{} numbers {what}: packed {:?} of shape {:?}, scales {:?} of shape {:?}",
                self.quantization,
                self.packed.dtype(),
                self.packed.shape(),
                self.scales.dtype(),
                self.scales.shape()
            )))
        };
        let (packed, scales) = (self.packed.shape(), self.scales.shape());
        let (Some((&packed_last, packed_rows)), Some((&scales_last, scales_rows))) =
            (packed.split_last(), scales.split_last())
        else {
            return wrong("without axes");
        };
        if packed.len() < 2 || packed_rows != scales_rows {
            return wrong("with other rows than their scales");
        }
        if self.quantization.columns(scales_last).map(|columns| columns * i64::from(bits))
            != Some(i64::from(packed_last) * 32)
        {
            return wrong("of another length than their scales say");
        }
        let affine = mode == Mode::Affine;
        if self.packed.dtype() != Dtype::Uint32 || (self.scales.dtype() == Dtype::Uint8) == affine {
            return wrong("of other dtypes");
        }
        match self.biases {
            Some(biases) if affine && biases.shape() == scales && biases.dtype() == self.scales.dtype() => {
                Ok(())
            }
            None if !affine => Ok(()),
            _ => wrong("with biases that do not belong to them, or without"),
        }
    }
}

/// Quantizes the last axis of `w`.
///
/// # Shapes
///
/// `w` `[.., N, K]`, where K is a multiple of the group size.
///
/// # Dtypes
///
/// `w` is float32, float16 or bfloat16.
///
/// # Errors
///
/// If `w` has fewer than two axes, has another dtype, or its last axis cannot be cut into groups.
pub fn quantize(w: &Array, quantization: Quantization) -> Result<QuantizedArray, Exception> {
    let Quantization { bits, group_size, mode } = quantization;
    if let Mode::Blocks(format) = mode {
        return Err(Exception::custom(format!(
            "{format} blocks are read from GGUF files, and not made of arrays"
        )));
    }
    let (shape, dtype) = (w.shape(), w.dtype());
    if shape.len() < 2 || shape.last().is_some_and(|k| k % group_size != 0 || *k == 0) {
        return Err(Exception::custom(format!(
            "{quantization} needs groups of {group_size}, and has {shape:?}"
        )));
    }
    if !is_float(dtype) {
        return Err(Exception::custom(format!("{quantization} is for floats, not for {dtype:?}")));
    }
    if mode == Mode::Affine {
        let (packed, scales, biases) = mlx_rs::ops::quantize(w, group_size, bits)?;
        return Ok(QuantizedArray { packed, scales, biases: Some(biases), quantization });
    }
    let [packed, scales] = native::quantize(w, quantization)?;
    Ok(QuantizedArray { packed, scales, biases: None, quantization })
}

/// The numbers that the quantized numbers stand for.
///
/// # Dtypes
///
/// The result has the dtype of the scales in the affine mode, and bfloat16 in the other modes. [`dequantize_blocks`] gives
/// other dtypes.
///
/// # Errors
///
/// If the dtypes or shapes of the arrays do not belong together.
pub fn dequantize<'a>(w: impl Into<QuantizedView<'a>>) -> Result<Array, Exception> {
    let w = w.into();
    w.check()?;
    let Quantization { bits, group_size, mode } = w.quantization;
    if mode == Mode::Affine {
        return mlx_rs::ops::dequantize(w.packed, w.scales, w.biases, group_size, bits);
    }
    usable(mode)?;
    native::dequantize(w, None)
}

/// [`dequantize`] of a matrix in a block format, with numbers of this dtype: float32, float16 or bfloat16. They are computed
/// in float32, with the bits of ggml, and rounded once.
///
/// # Errors
///
/// Those of [`dequantize`], or if the matrix is not in a block format or the dtype is another one.
pub fn dequantize_blocks<'a>(w: impl Into<QuantizedView<'a>>, dtype: Dtype) -> Result<Array, Exception> {
    let w = w.into();
    w.check()?;
    let mode = w.quantization.mode;
    if !matches!(mode, Mode::Blocks(_)) || !is_float(dtype) {
        return Err(Exception::custom(format!("{mode} numbers to {dtype:?}: blocks become floats")));
    }
    usable(mode)?;
    native::dequantize(w, Some(dtype))
}

/// Whether matrices in block formats can be used now: the CPU kernels are on, and the default device is the CPU. Elsewhere a
/// loader has to convert the numbers to a format of MLX.
pub fn block_formats_work() -> bool {
    let on_cpu = || {
        Device::try_default()
            .and_then(|device| device.get_type())
            .is_ok_and(|kind| matches!(kind, DeviceType::Cpu))
    };
    mlx_sys::cpu_kernels::is_enabled() && on_cpu()
}

/// An error where a block format cannot be used.
fn usable(mode: Mode) -> Result<(), Exception> {
    match mode {
        Mode::Blocks(format) if !block_formats_work() => Err(Exception::custom(format!(
            "weights in {format} blocks need the kernels of this project for the CPU, which are off or run on another device; \
             load the model again on this device, or with MLX_CPU_KERNELS=on"
        ))),
        _ => Ok(()),
    }
}

/// The matrix `[rows, columns]` whose blocks a GGUF file has, row after row. No number is changed; the two arrays together
/// have as many bytes as the blocks.
///
/// # Errors
///
/// If `columns` is not a multiple of the block, there are not as many bytes as the shape asks for, or the formats do not
/// [work](block_formats_work).
pub fn from_blocks(
    format: BlockFormat,
    [rows, columns]: [i32; 2],
    blocks: &[u8],
) -> Result<QuantizedArray, Exception> {
    let (block, bytes) = (format.block_elements(), format.block_bytes());
    let row = i64::from(columns / block) * i64::from(bytes);
    if columns % block != 0 || i64::try_from(blocks.len()) != Ok(i64::from(rows) * row) {
        return Err(Exception::custom(format!(
            "{} bytes are not the {format} blocks of a matrix [{rows}, {columns}]; a block of {block} numbers has {bytes} bytes",
            blocks.len()
        )));
    }
    let copy = |first: usize, to: &mut [u8]| {
        to.copy_from_slice(&blocks[first * row as usize..][..to.len()]);
        Ok(())
    };
    read_blocks(format, [rows, columns], copy).map_err(|e| Exception::custom(e.to_string()))
}

/// [`from_blocks`] for blocks that are still in a file. `read` is given the index of a row and bytes for this row and some that
/// follow it. A few megabytes are read at a time, so that a matrix is in memory only once.
///
/// # Errors
///
/// Those of `read`. If `columns` is not a multiple of the block, or the formats do not [work](block_formats_work).
pub fn read_blocks(
    format: BlockFormat,
    [rows, columns]: [i32; 2],
    read: impl FnMut(usize, &mut [u8]) -> io::Result<()>,
) -> io::Result<QuantizedArray> {
    usable(Mode::Blocks(format)).map_err(|e| io::Error::other(e.what().to_owned()))?;
    if rows < 0 || columns < 0 || columns % format.block_elements() != 0 {
        return Err(io::Error::other(format!(
            "a matrix [{rows}, {columns}] does not consist of {format} blocks, which have {} numbers",
            format.block_elements()
        )));
    }
    native::read_blocks(format, [rows, columns], read)
}

/// Whether the numbers of an array are floats that kernels take.
fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16)
}

/// `x` times the matrix, or `x` times the transposed matrix, without dequantizing the matrix first.
///
/// # Shapes
///
/// For a matrix `[N, K]`: `x` `[.., M, K]` gives `[.., M, N]` with `transpose`, and `x` `[.., M, N]` gives `[.., M, K]`
/// without it.
///
/// # Dtypes
///
/// `x` is float32, float16 or bfloat16. The result has the dtype of `x`, and in the affine mode the dtype that `x` and the
/// scales promote to.
///
/// # Errors
///
/// If the dtypes or shapes of the arrays do not belong together, `x` does not fit them, or the matrix is in a block format and
/// these do not [work](block_formats_work).
pub fn quantized_matmul<'a>(
    x: &Array,
    w: impl Into<QuantizedView<'a>>,
    transpose: bool,
) -> Result<Array, Exception> {
    let w = w.into();
    w.check()?;
    let Quantization { bits, group_size, mode } = w.quantization;
    if mode == Mode::Affine {
        return mlx_rs::ops::quantized_matmul(x, w.packed, w.scales, w.biases, transpose, group_size, bits);
    }
    usable(mode)?;
    // `check` has seen two axes, and that the length is one.
    let rows = w.packed.dim(-2);
    let columns = w.quantization.columns(w.scales.dim(-1)).and_then(|columns| i32::try_from(columns).ok());
    let columns = columns.unwrap_or_default();
    let inner = if transpose { columns } else { rows };
    if x.shape().last() != Some(&inner) || x.ndim() < 2 {
        let found = x.shape();
        return Err(Exception::custom(format!("x of shape {found:?} for a matrix of [{rows}, {columns}]")));
    }
    if !is_float(x.dtype()) {
        return Err(Exception::custom(format!("x of {:?}, and a float is needed", x.dtype())));
    }
    native::quantized_matmul(x, w, transpose)
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
