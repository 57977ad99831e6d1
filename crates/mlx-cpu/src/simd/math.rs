//! Functions that no processor has as an instruction.

use super::arithmetic::Arithmetic;

/// e to the power of `x`, within 2 units in the last place; 0 below -104, infinity above 88.73.
///
/// Splits `x` into `k ln 2 + r` with whole `k` and `|r| <= ln 2 / 2`, and sums the series of
/// `exp(r)`; Cody and Waite, *Software Manual for the Elementary Functions*, chapter 6.
#[inline(always)]
pub(super) fn exp<S: Arithmetic>(s: S, x: S::F) -> S::F {
    // Beyond these bounds the result is 0 or infinity anyway, and the two halves of k stay within the range of `scale`.
    let bounded = s.min(s.max(x, s.splat(-110.0)), s.splat(100.0));
    let k = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, the first with few bits, so that k times it is exact.
    let r = s.mul_add(k, s.splat(-0.693_359_4), bounded);
    let r = s.mul_add(k, s.splat(2.121_944_4e-4), r);
    // The series of exp up to r^7: the rest is below 2^-27 for |r| <= 0.35.
    let mut y = s.splat(1.0 / 5040.0);
    for factorial in [720.0_f32, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        y = s.mul_add(y, r, s.splat(1.0 / factorial));
    }
    // In two steps: 2^k alone may overflow or underflow although the result does not.
    let half = s.round(s.mul(k, s.splat(0.5)));
    let y = s.scale(s.scale(y, half), s.sub(k, half));
    s.unless_nan(x, y)
}

/// The hyperbolic tangent, within 5 units in the last place: `1 - 2 / (exp(2 x) + 1)`, and near 0, where that loses
/// digits, a Padé approximation.
#[inline(always)]
pub(crate) fn tanh<S: Arithmetic>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    let square = s.mul(x, x);
    // Of order 7 over 6.
    let bounded = s.min(square, s.splat(1.0));
    let top = s.mul_add(bounded, s.splat(1.0), s.splat(378.0));
    let top = s.mul_add(top, bounded, s.splat(17_325.0));
    let top = s.mul(s.mul_add(top, bounded, s.splat(135_135.0)), x);
    let bottom = s.mul_add(bounded, s.splat(28.0), s.splat(3_150.0));
    let bottom = s.mul_add(bottom, bounded, s.splat(62_370.0));
    let bottom = s.mul_add(bottom, bounded, s.splat(135_135.0));
    // One division for both.
    let (half, two) = (s.splat(0.5), s.splat(2.0));
    let bottom = s.where_less(square, half, bottom, s.add(exp(s, s.add(x, x)), one));
    let near = s.div(s.where_less(square, half, top, two), bottom);
    let y = s.where_less(square, half, near, s.sub(one, near));
    s.unless_nan(x, y)
}
