//! Kernels of language models for the CPU, as safe functions on slices.
//!
//! MLX's own CPU device is portable scalar code on Linux. `mlx-sys` makes MLX call the functions of this crate instead,
//! so that MLX programs run at the speed of the hardware without a change. Nothing here knows of MLX: each function
//! takes slices with shapes and strides, and a [`Cpu`], which is an instruction set and a number of threads.
//!
//! # Numbers
//!
//! Half-precision numbers are widened to float32 when they are loaded and rounded to nearest, ties to even, when they
//! are stored. Sums are float32. Two kinds of products differ: [products of bfloat16](matmul()#numbers) on processors
//! that have such instructions, and [products of quantized weights](quantized_matmul#numbers) with half-precision
//! activations, also in [blocks of GGUF files](matmul_blocks#numbers), which are sums of whole numbers. Where MLX's own
//! graph of an operation rounds between two steps, the kernel rounds there too. What differs from MLX is the order of sums.
//!
//! # How to write a kernel
//!
//! A kernel is written once, over vectors of any width, and compiled for every instruction set. It has two parts:
//!
//! 1. A function takes a [`Cpu`] and the tensors: [`Matrix`], [`View`] or plain slices. It checks the shapes and splits
//!    the work into tasks with [`Cpu::parallel`] or [`Cpu::parallel_pieces`]. A task computes a part of the *output*;
//!    a sum is never split between tasks, so results do not depend on the number of threads.
//! 2. A struct holds the arguments of one task and implements [`Kernel`]. Its method `run` gets a value `s` of a type
//!    [`Simd`], which has all vector operations. [`Cpu::run`] chooses the instruction set and calls it.
//!
//! `examples/sum_of_squares.rs` is such a kernel. The tests of this crate run it.
//!
//! ```ignore
#![doc = include_str!("../examples/sum_of_squares.rs")]
//! ```
//!
//! Functions that `run` calls with vectors are generic over the part of [`Simd`] that they use, so that their
//! signatures say what they need:
//!
//! | bound | for |
//! |---|---|
//! | [`Arithmetic`] | loads, stores and arithmetic of float32: norms, softmax, rotation, attention |
//! | [`Integers`] | products and sums of whole numbers: quantized activations |
//! | [`Decoding`] | codes of quantized weights as numbers |
//! | [`Simd`] | all of them |
//!
//! Rules that the compiler does not check:
//!
//! - Mark `run` and every function that it calls with vectors `#[inline(always)]`. A function that is not inlined is
//!   compiled without the instructions. That includes closures: one that is called in several places may not be inlined.
//! - An array for one vector has the length [`MAX_LANES`]; only its first `S::LANES` numbers are used.
//! - Put a condition that depends on the instruction set alone into `const { ... }`, so that the other branch is not
//!   compiled.
//! - Test it on all of [`Isa::available`] with one, two and three threads: against plain code in float64, and for equal
//!   bits whatever the number of threads. `tests/ops` has the helpers.
//!
//! The README of `mlx-sys` explains how to make MLX call a new kernel.

mod activation_bits;
mod attention;
mod blocks;
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
pub mod peak;
mod pool;
mod products;
mod quantized;
mod rope;
mod rows;
mod simd;
mod softmax;
mod view;

pub use activation_bits::ActivationBits;
pub use attention::{Heads, Mask, QuantizedHeads, Scores, attention};
pub use blocks::{BlockFormat, BlockMatrix, dequantize_blocks, matmul_blocks, split_blocks};
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
