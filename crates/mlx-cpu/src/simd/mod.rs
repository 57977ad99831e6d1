//! Vectors of numbers: what kernels are written over, and one implementation for each instruction set.
//!
//! | file | holds |
//! |---|---|
//! | `arithmetic.rs` | [`Arithmetic`]: vectors of float32, and [`Element`], the formats that they are loaded from |
//! | `integers.rs` | [`Integers`]: the same vectors as whole numbers, for products of quantized activations |
//! | `decoding.rs` | [`Decoding`]: the codes of quantized weights as numbers |
//! | `avx2.rs`, `avx512.rs`, `neon.rs`, `portable.rs` | an instruction set each: its implementation of the three traits |
//! | `math.rs` | functions that no processor has as an instruction |
//! | `packing.rs` | codes one by one, for the default methods of [`Decoding`] |
//! | `prefetch.rs` | hints to bring memory into caches |
//!
//! # A new instruction
//!
//! A method that every processor has in some form is a required method of its trait, and each file of an instruction
//! set implements it. A method that only some processors speed up has a default, made of the required ones, which these
//! instruction sets replace. Either way a test in `tests.rs` compares it on every instruction set with plain code.
//!
//! # A new instruction set
//!
//! Write a type that only the presence of the instructions allows to construct (see `Avx2`), and implement the three
//! traits for it. Then add it to [`Isa`](crate::Isa), which finds out whether the processor has it, and to
//! [`Isa::run`](crate::Isa::run), which compiles every kernel for it.

mod arithmetic;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx512;
mod decoding;
mod element;
mod integers;
mod math;
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod neon;
pub(crate) mod packing;
mod portable;
mod prefetch;

pub use arithmetic::{Arithmetic, Element, MAX_LANES};
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use avx2::Avx2;
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub(crate) use avx512::Avx512;
pub use decoding::Decoding;
pub use integers::Integers;
pub(crate) use math::tanh;
#[cfg(all(target_arch = "aarch64", not(miri)))]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;
pub(crate) use prefetch::{prefetch, prefetch_far, prefetch_stream};

/// All that an instruction set offers to kernels. Every instruction set has it, and nothing has to be implemented for
/// it.
///
/// A [`Kernel`](crate::Kernel) is compiled for each `Simd`. The functions that it calls ask for the part that they use:
/// [`Arithmetic`], [`Integers`] or [`Decoding`].
pub trait Simd: Arithmetic + Integers + Decoding {}

impl<S: Arithmetic + Integers + Decoding> Simd for S {}

#[cfg(test)]
mod tests;
