//! The calls that mlx-rs does not make: modes other than affine, slices without mlx-rs's general indexing, and operations that
//! are one node where the kernels of `mlx-sys` run.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, Stream};
use mlx_sys::cpu_kernels::{self, NO_KERNEL};
use mlx_sys::{
    mlx_array, mlx_array_free, mlx_array_new, mlx_dequantize, mlx_dtype__MLX_FLOAT32, mlx_optional_dtype,
    mlx_optional_int, mlx_quantize, mlx_quantized_matmul, mlx_slice, mlx_slice_update, mlx_vector_array_free,
    mlx_vector_array_get, mlx_vector_array_new, mlx_vector_array_size,
};

use crate::{BlockFormat, Mode, Quantization, QuantizedArray, QuantizedView};

fn name(mode: Mode) -> &'static CStr {
    match mode {
        Mode::Affine => c"affine",
        Mode::Mxfp4 => c"mxfp4",
        Mode::Mxfp8 => c"mxfp8",
        Mode::Nvfp4 => c"nvfp4",
        Mode::Blocks(BlockFormat::Q4_0) => c"Q4_0",
        Mode::Blocks(BlockFormat::Q4_1) => c"Q4_1",
        Mode::Blocks(BlockFormat::Q5_0) => c"Q5_0",
        Mode::Blocks(BlockFormat::Q5_1) => c"Q5_1",
        Mode::Blocks(BlockFormat::Q8_0) => c"Q8_0",
        Mode::Blocks(BlockFormat::Q2_K) => c"Q2_K",
        Mode::Blocks(BlockFormat::Q3_K) => c"Q3_K",
        Mode::Blocks(BlockFormat::Q4_K) => c"Q4_K",
        Mode::Blocks(BlockFormat::Q5_K) => c"Q5_K",
        Mode::Blocks(BlockFormat::Q6_K) => c"Q6_K",
    }
}

fn given(value: i32) -> mlx_optional_int {
    mlx_optional_int { value, has_value: true }
}

/// An array that mlx-c will write to, or an empty array for an optional argument that is not given. It is freed when it
/// goes out of scope.
struct Slot(mlx_array);

impl Slot {
    fn new() -> Self {
        // SAFETY: makes an empty handle, and has no conditions.
        Self(unsafe { mlx_array_new() })
    }

    /// The array that was written, or an error if mlx-c has refused the call. mlx-c's own message goes to mlx-rs, which
    /// shows it with its next error.
    fn written(self, status: i32, doing: &str) -> Result<Array, Exception> {
        if status != 0 {
            return Err(Exception::custom(format!("MLX refused {doing}")));
        }
        let written = self.0;
        std::mem::forget(self);
        // SAFETY: the call has succeeded, so the handle is a valid array, and nobody else will free it.
        Ok(unsafe { Array::from_ptr(written) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the handle came from `mlx_array_new`, and is freed once: `written` forgets it.
        unsafe { mlx_array_free(self.0) };
    }
}

/// Makes sure that mlx-rs has replaced mlx-c's error handler, which ends the process.
fn with_error_handler() -> Result<(), Exception> {
    static IS_REPLACED: OnceLock<()> = OnceLock::new();
    if IS_REPLACED.get().is_none() {
        // The first operation of mlx-rs replaces it. This one is never computed.
        mlx_rs::ops::zeros::<f32>(&[1])?;
        IS_REPLACED.get_or_init(|| ());
    }
    Ok(())
}

pub(crate) fn quantize(w: &Array, quantization: Quantization) -> Result<[Array; 2], Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let no_scale = Slot::new();
    // SAFETY: all handles are valid for the call: `w` and `stream` are borrowed, the vector and the empty
    // array live until after it. The vector is freed once, and the arrays that it gives out are handles
    // of their own.
    unsafe {
        let mut parts = mlx_vector_array_new();
        let status = mlx_quantize(
            &mut parts,
            w.as_ptr(),
            given(quantization.group_size),
            given(quantization.bits),
            name(quantization.mode).as_ptr(),
            no_scale.0,
            stream.as_ptr(),
        );
        let take = |index| {
            let mut part = Slot::new();
            let status = mlx_vector_array_get(&mut part.0, parts, index);
            part.written(status, "to give out what was quantized")
        };
        let arrays = match status {
            0 if mlx_vector_array_size(parts) == 2 => take(0).and_then(|packed| Ok([packed, take(1)?])),
            _ => Err(Exception::custom(format!("MLX refused to quantize {:?} to {quantization}", w.shape()))),
        };
        mlx_vector_array_free(parts);
        arrays
    }
}

/// The blocks of a GGUF file as codes and scales. `read` is given a row, and reads from its start on. The shape was checked.
pub(crate) fn read_blocks(
    format: BlockFormat,
    [rows, columns]: [i32; 2],
    read: impl FnMut(usize, &mut [u8]) -> io::Result<()>,
) -> io::Result<QuantizedArray> {
    with_error_handler().map_err(io::Error::other)?;
    let quantization = Quantization::blocks(format);
    let shape = [rows, columns];
    let row_bytes = columns / format.block_elements() * format.block_bytes();
    let parts = mlx_sys::cpu_kernels::split_blocks(
        format.name(),
        [columns, row_bytes].map(|size| usize::try_from(size).unwrap_or_default()),
        quantization.packed_shape(shape),
        quantization.groups_shape(shape),
        read,
    )?;
    let [packed, scales] = parts.ok_or_else(|| {
        io::Error::other(format!("the CPU kernels refused to split {format} blocks of shape {shape:?}"))
    })?;
    // SAFETY: the arrays are valid, and nobody else will free them.
    let [packed, scales] = unsafe { [Array::from_ptr(packed), Array::from_ptr(scales)] };
    Ok(QuantizedArray { packed, scales, biases: None, quantization })
}

/// `dtype` is for blocks only.
pub(crate) fn dequantize(w: QuantizedView<'_>, dtype: Option<Dtype>) -> Result<Array, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let (mut out, no_biases, no_scale) = (Slot::new(), Slot::new(), Slot::new());
    // SAFETY: all handles are valid for the call: those of `w` and `stream` are borrowed, the others live
    // until after it.
    let status = unsafe {
        mlx_dequantize(
            &mut out.0,
            w.packed.as_ptr(),
            w.scales.as_ptr(),
            no_biases.0,
            given(w.quantization.group_size),
            given(w.quantization.bits),
            name(w.quantization.mode).as_ptr(),
            no_scale.0,
            mlx_optional_dtype {
                value: dtype.map_or(mlx_dtype__MLX_FLOAT32, Into::into),
                has_value: dtype.is_some(),
            },
            stream.as_ptr(),
        )
    };
    out.written(status, "to dequantize")
}

pub(crate) fn quantized_matmul(x: &Array, w: QuantizedView<'_>, transpose: bool) -> Result<Array, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let (mut out, no_biases) = (Slot::new(), Slot::new());
    // SAFETY: all handles are valid for the call: those of `x`, `w` and `stream` are borrowed, the others
    // live until after it.
    let status = unsafe {
        mlx_quantized_matmul(
            &mut out.0,
            x.as_ptr(),
            w.packed.as_ptr(),
            w.scales.as_ptr(),
            no_biases.0,
            transpose,
            given(w.quantization.group_size),
            given(w.quantization.bits),
            name(w.quantization.mode).as_ptr(),
            stream.as_ptr(),
        )
    };
    out.written(status, "a product with quantized numbers")
}

/// `indices` has a range for each axis.
pub(crate) fn slice<const N: usize>(x: &Array, indices: [Range<i32>; N]) -> Result<Array, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let (starts, ends) = (indices.each_ref().map(|range| range.start), indices.map(|range| range.end));
    let steps = [1; N];
    let mut out = Slot::new();
    // SAFETY: `x` and `stream` are borrowed for the call, and the pointers are those of arrays of N numbers.
    let status = unsafe {
        mlx_slice(
            &mut out.0,
            x.as_ptr(),
            starts.as_ptr(),
            N,
            ends.as_ptr(),
            N,
            steps.as_ptr(),
            N,
            stream.as_ptr(),
        )
    };
    out.written(status, "to slice an array")
}

/// `indices` has a range for each axis.
pub(crate) fn write_slice<const N: usize>(
    x: &Array,
    indices: [Range<i32>; N],
    part: &Array,
) -> Result<Array, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let (starts, ends) = (indices.each_ref().map(|range| range.start), indices.map(|range| range.end));
    let steps = [1; N];
    let mut out = Slot::new();
    // SAFETY: `x`, `part` and `stream` are borrowed for the call, and the pointers are those of arrays of N numbers.
    let status = unsafe {
        mlx_slice_update(
            &mut out.0,
            x.as_ptr(),
            part.as_ptr(),
            starts.as_ptr(),
            N,
            ends.as_ptr(),
            N,
            steps.as_ptr(),
            N,
            stream.as_ptr(),
        )
    };
    out.written(status, "to write into a slice")
}

/// `silu(gate) * up` or `gelu(gate) * up`; none where no kernel computes it.
pub(crate) fn gated(gate: &Array, up: &Array, is_gelu: bool) -> Result<Option<Array>, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let mut out = Slot::new();
    // SAFETY: the arrays and the stream are borrowed for the call.
    let status =
        unsafe { cpu_kernels::gated(&mut out.0, gate.as_ptr(), up.as_ptr(), is_gelu, stream.as_ptr()) };
    if status == NO_KERNEL { Ok(None) } else { out.written(status, "a gate").map(Some) }
}

/// `x` times the transpose of the matrix `w`; none where no kernel computes it.
pub(crate) fn linear(x: &Array, w: &Array) -> Result<Option<Array>, Exception> {
    with_error_handler()?;
    let stream = Stream::thread_local_or_default();
    let mut out = Slot::new();
    // SAFETY: the arrays and the stream are borrowed for the call.
    let status = unsafe { cpu_kernels::linear(&mut out.0, x.as_ptr(), w.as_ptr(), stream.as_ptr()) };
    if status == NO_KERNEL { Ok(None) } else { out.written(status, "a product").map(Some) }
}
