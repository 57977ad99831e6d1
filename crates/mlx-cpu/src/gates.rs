//! Activations and gates: SwiGLU and GeGLU.
//!
//! Shazeer 2020, *GLU Variants Improve Transformer*, arXiv:2002.05202. MLX computes them as graphs of elementwise
//! operations. Each of these rounds to the format of the tensors, and these kernels round at the same places.

use crate::elementwise::{Map, each};
use crate::simd::tanh;
use crate::{Arithmetic, Cpu, Element, Matrix, MatrixMut, formula};

/// `silu(gate) * up`: MLX's graph `multiply(multiply(gate, sigmoid(gate)), up)`, bit for bit.
///
/// # Shapes
///
/// All `[N, D]`. Rows of `gate` and `up` may have any stride (they may be the halves of a fused projection); the
/// elements of a row follow each other.
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn swiglu<T: Element>(cpu: &Cpu, gate: Matrix<'_, T>, up: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, Gate(Silu), gate, Some(up), out, 1);
}

/// `gelu_tanh(gate) * up`, with the roundings and the error of [`gelu_tanh`].
///
/// # Shapes
///
/// As for [`swiglu`].
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn geglu<T: Element>(cpu: &Cpu, gate: Matrix<'_, T>, up: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, Gate(GeluTanh), gate, Some(up), out, 1);
}

/// `x * sigmoid(x)`: MLX's graph, bit for bit.
///
/// # Shapes
///
/// As for [`swiglu`].
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn silu<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, Silu, x, None, out, 1);
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`; Hendrycks and Gimpel 2016, *Gaussian Error
/// Linear Units*, arXiv:1606.08415.
///
/// The constants, and the result of each operation, are rounded as in MLX's graph. The hyperbolic tangent is within 5
/// units in the last place of float32; MLX uses the system library's. Results in bfloat16 and float16 have MLX's bits.
/// Results in float32 differ by up to `3e-7 * |x|`, where `1 + tanh` cancels.
///
/// # Shapes
///
/// As for [`swiglu`].
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn gelu_tanh<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, GeluTanh, x, None, out, 1);
}

#[derive(Debug, Clone, Copy)]
struct Silu;

impl Map for Silu {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, x: S::F, _: S::F) -> S::F {
        s.mul(x, T::rounded(s, formula::sigmoid::<S, T>(s, x)))
    }
}

#[derive(Debug, Clone, Copy)]
struct GeluTanh;

impl Map for GeluTanh {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, x: S::F, _: S::F) -> S::F {
        let constant = |x: f32| s.splat(T::narrow(x).widen());
        let square = s.mul(x, x);
        let cube = if size_of::<T>() == 2 {
            // The square of a half-precision number is exact.
            s.mul(square, x)
        } else {
            // Rounded once, as `pow` does: `lost` is the error of the rounded square.
            let lost = formula::fused(s, x, x, s.sub(s.zero(), square));
            let cube = formula::fused(s, square, x, s.mul(lost, x));
            // If the cube overflows, the error is not a number.
            s.where_less(formula::abs(s, x), s.splat(1e18), cube, s.mul(square, x))
        };
        let cube = T::rounded(s, cube);
        let bent = T::rounded(s, s.add(x, T::rounded(s, s.mul(cube, constant(0.044_715)))));
        let angle = T::rounded(s, s.mul(bent, constant((2.0 / std::f64::consts::PI).sqrt() as f32)));
        let share = T::rounded(s, s.add(T::rounded(s, tanh(s, angle)), s.splat(1.0)));
        s.mul(T::rounded(s, s.mul(x, s.splat(0.5))), share)
    }
}

/// An activation of the first number, times the second number.
#[derive(Debug, Clone, Copy)]
struct Gate<F>(F);

impl<F: Map> Map for Gate<F> {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, gate: S::F, up: S::F) -> S::F {
        s.mul(T::rounded(s, self.0.map::<S, T>(s, gate, up)), up)
    }
}
