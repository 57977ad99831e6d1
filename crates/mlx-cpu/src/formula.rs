//! Exponential, sigmoid, sine and cosine with MLX's own formulas.
//!
//! MLX's CPU device evaluates the polynomials of Cephes in float32 (`mlx/backend/cpu/simd/math.h`). The functions here
//! give the same bits, so that a kernel agrees with the graph that it replaces.

use crate::{Arithmetic, Element, MAX_LANES};

/// Whether vectors are arrays, as for the portable instruction set. Then no product and sum are fused, and code for
/// several vectors at a time only takes longer to compile.
pub(crate) const fn has_arrays<S: Arithmetic>() -> bool {
    align_of::<S::F>() == align_of::<f32>()
}

/// `a * b + c`, rounded once on every processor. Without that the argument of a sine would lose all its digits.
#[inline(always)]
pub(crate) fn fused<S: Arithmetic>(s: S, a: S::F, b: S::F, c: S::F) -> S::F {
    if const { !has_arrays::<S>() } {
        return s.mul_add(a, b, c);
    }
    let (mut x, mut y, mut z) = ([0.0_f32; MAX_LANES], [0.0_f32; MAX_LANES], [0.0_f32; MAX_LANES]);
    s.store(&mut x, a);
    s.store(&mut y, b);
    s.store(&mut z, c);
    for i in 0..S::LANES {
        // The product is exact in float64. The second rounding differs from a single one only at a tie.
        x[i] = (f64::from(x[i]) * f64::from(y[i]) + f64::from(z[i])) as f32;
    }
    s.load(&x)
}

/// The largest whole number that is not above `x`, for numbers below 2^23.
#[inline(always)]
fn floor<S: Arithmetic>(s: S, x: S::F) -> S::F {
    let near = s.round(x);
    s.where_less(x, near, s.sub(near, s.splat(1.0)), near)
}

/// The absolute value.
#[inline(always)]
pub(crate) fn abs<S: Arithmetic>(s: S, x: S::F) -> S::F {
    s.max(x, s.sub(s.zero(), x))
}

/// e to the power of `x`, with MLX's bits: 0 below -88, infinity above 88. The relative error is about 1e-7 near 0 and
/// 8e-6 at the ends, where `x` times log2(e) has few digits left.
#[inline(always)]
pub(crate) fn exp<S: Arithmetic>(s: S, x: S::F) -> S::F {
    let power = s.mul(x, s.splat(std::f32::consts::LOG2_E));
    // MLX rounds halves up, the processor to even.
    let near = s.round(power);
    let up = s.add(near, s.splat(1.0));
    let whole = s.where_less(s.sub(power, near), s.splat(0.5), near, up);
    let part = s.sub(power, whole);
    let mut y = s.splat(1.535_336_2e-4);
    for coefficient in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0_f32] {
        y = fused(s, y, part, s.splat(coefficient));
    }
    // MLX has no denormal results: exponents of -127 and below give 0. A NaN stays NaN.
    let bounded = s.min(s.max(whole, s.splat(-126.0)), s.splat(127.0));
    let y = s.where_less(whole, s.splat(-126.5), s.zero(), s.scale(y, bounded));
    s.where_less(s.splat(88.0), x, s.splat(f32::INFINITY), y)
}

/// The weight of a score that lies `-x` below the largest: e to the power of `x`, or 0 if that is less than 2^-99.
/// Products of smaller weights with values, and their sums, may be denormal, and processors take many times as long for
/// these.
#[inline(always)]
pub(crate) fn weight<S: Arithmetic>(s: S, x: S::F) -> S::F {
    s.where_less(x, s.splat(-69.0), s.zero(), exp(s, x))
}

/// `1 / (1 + exp(-x))` with MLX's bits for `T`: the exponential is rounded to `T`, the result not yet.
#[inline(always)]
pub(crate) fn sigmoid<S: Arithmetic, T: Element>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let power = T::rounded(s, exp(s, abs(s, x)));
    let small = s.div(one, s.add(one, power));
    s.where_less(x, s.zero(), small, s.sub(one, small))
}

/// For larger arguments MLX uses the sine and cosine of the system's library.
const LARGEST: f32 = 8_388_608.0;

/// Sine and cosine with MLX's bits. Up to 2^23 a multiple of pi/4 is subtracted from the argument, in three parts, with
/// fused operations: the absolute error stays below 1e-6. Beyond that they are those of the system's library.
#[inline(always)]
pub(crate) fn sin_cos<S: Arithmetic>(s: S, x: S::F) -> (S::F, S::F) {
    let positive = abs(s, x);
    // The nearest even multiple of pi/4 is 2 q.
    let octant = floor(s, s.mul(positive, s.splat(1.273_239_5)));
    let q = floor(s, s.mul(s.add(octant, s.splat(1.0)), s.splat(0.5)));
    let y = s.add(q, q);
    let rest = fused(s, y, s.splat(-0.785_156_25), positive);
    let rest = fused(s, y, s.splat(-2.418_756_5e-4), rest);
    let rest = fused(s, y, s.splat(-3.774_895e-8), rest);

    let z = s.mul(rest, rest);
    let mut even = fused(s, z, s.splat(2.443_315_7e-5), s.splat(-1.388_731_6e-3));
    even = fused(s, even, z, s.splat(4.166_664_6e-2));
    even = s.mul(s.mul(even, z), z);
    even = s.add(fused(s, z, s.splat(-0.5), even), s.splat(1.0));
    let mut odd = fused(s, z, s.splat(-1.951_529_6e-4), s.splat(8.332_161e-3));
    odd = fused(s, odd, z, s.splat(-1.666_665_5e-1));
    odd = fused(s, rest, s.mul(odd, z), rest);

    // q modulo 4: 0 (sin, cos), 1 (cos, -sin), 2 (-sin, -cos), 3 (-cos, sin).
    let turn = s.sub(q, s.mul(floor(s, s.mul(q, s.splat(0.25))), s.splat(4.0)));
    let half = floor(s, s.mul(turn, s.splat(0.5)));
    let swap = s.sub(turn, s.add(half, half));
    let one_half = s.splat(0.5);
    let sine = s.where_less(one_half, swap, even, odd);
    let sine = s.where_less(one_half, half, s.sub(s.zero(), sine), sine);
    let sine = s.where_less(x, s.zero(), s.sub(s.zero(), sine), sine);
    let cosine = s.where_less(one_half, swap, odd, even);
    // Negative in the second and third quarter: q modulo 4 is 1 or 2.
    let from_middle = abs(s, s.sub(turn, s.splat(1.5)));
    let cosine = s.where_less(from_middle, s.splat(1.0), s.sub(s.zero(), cosine), cosine);
    let (sine, cosine) = (s.unless_nan(x, sine), s.unless_nan(x, cosine));
    if s.largest(positive) <= LARGEST {
        return (sine, cosine);
    }
    let (mut angles, mut sines, mut cosines) =
        ([0.0_f32; MAX_LANES], [0.0_f32; MAX_LANES], [0.0_f32; MAX_LANES]);
    s.store(&mut angles, x);
    s.store(&mut sines, sine);
    s.store(&mut cosines, cosine);
    for (angle, (sine, cosine)) in angles.into_iter().zip(sines.iter_mut().zip(&mut cosines)) {
        if angle.abs() > LARGEST {
            (*sine, *cosine) = angle.sin_cos();
        }
    }
    (s.load(&sines), s.load(&cosines))
}
