//! The operations of a language model on the CPU, as functions on slices.
//!
//! MLX's own CPU device is portable scalar code on Linux. `mlx-sys` hands the operations below to
//! this crate, and MLX programs then run at the speed of the hardware without a change. Nothing
//! here knows of MLX: every kernel is a safe function that takes slices, shapes and strides.
//!
//! # How a kernel is written
//!
//! Once, over the vectors of [`Simd`], as a [`Kernel`]; [`Isa::run`] compiles it for every
//! instruction set and chooses at run time. A kernel splits its *output* among the threads of a
//! [`Cpu`], never a sum: results do not depend on the number of threads.
//!
//! # Numbers
//!
//! Half-precision numbers are widened to float32 when they are loaded and rounded to nearest even
//! when they are stored, but for [products of bfloat16](matmul()#numbers) where a processor has them; sums are
//! float32, or, of quantized weights with half-precision activations,
//! [whole numbers](quantized_matmul#numbers). Where MLX's own graph of an operation rounds
//! between two steps, the kernel rounds there too, so that what differs is the order of sums.

mod attention;
mod copy;
mod cpu;
mod elementwise;
mod environment;
mod formula;
mod gates;
mod isa;
mod lookup;
mod matmul;
mod matrix;
mod norm;
mod pool;
mod quantized;
mod rope;
mod rows;
mod simd;
mod softmax;
mod view;

pub use attention::{Heads, Mask, QuantizedHeads, attention};
pub use copy::copy_strided;
pub use cpu::Cpu;
pub use elementwise::{add, multiply, subtract_from_rows};
pub use gates::{geglu, gelu_tanh, silu, swiglu};
pub use isa::{Isa, Kernel};
pub use lookup::{lookup, lookup_quantized};
pub use matmul::{addmm, matmul};
pub use matrix::{Matrix, MatrixMut};
pub use norm::rms_norm;
pub use quantized::{QuantizedLayoutError, QuantizedMatrix, dequantize, quantize, quantized_matmul};
pub use rope::{Frequencies, Rope, RopeLayout, rope};
pub use simd::{Arithmetic, Decoding, Element, Integers, MAX_LANES, Simd};
pub use softmax::{argmax, logsumexp, softmax};
pub use view::{View, ViewMut};
