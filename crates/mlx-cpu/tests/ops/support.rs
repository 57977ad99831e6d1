//! Formats, comparisons and random tensors.

use approx::abs_diff_eq;
use half::{bf16, f16};
use mlx_cpu::{Cpu, Element, Isa};
use proptest::prelude::*;

/// A float format, with what comparisons need.
pub trait Format: Element + PartialEq {
    const NAME: &'static str;
    /// The binary digits of the significand after the leading one.
    const DIGITS: i32;
    const SMALLEST_EXPONENT: i32;

    fn of_bits(bits: u32) -> Self;
}

impl Format for f32 {
    const NAME: &'static str = "f32";
    const DIGITS: i32 = 23;
    const SMALLEST_EXPONENT: i32 = -126;

    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits)
    }
}

impl Format for f16 {
    const NAME: &'static str = "f16";
    const DIGITS: i32 = 10;
    const SMALLEST_EXPONENT: i32 = -14;

    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits as u16)
    }
}

impl Format for bf16 {
    const NAME: &'static str = "bf16";
    const DIGITS: i32 = 7;
    const SMALLEST_EXPONENT: i32 = -126;

    fn of_bits(bits: u32) -> Self {
        Self::from_bits(bits as u16)
    }
}

/// Calls a function for each format; under Miri not for float16, which would take half of the time.
macro_rules! each_format {
    ($function:ident($($argument:expr),*)) => {
        $function::<f32>($($argument),*);
        if !cfg!(miri) {
            $function::<half::f16>($($argument),*);
        }
        $function::<half::bf16>($($argument),*);
    };
}
pub(crate) use each_format;

/// The unit in the last place of a format at a number.
pub fn unit<T: Format>(x: f64) -> f64 {
    let exponent = if x == 0.0 { T::SMALLEST_EXPONENT } else { x.abs().log2().floor() as i32 };
    2_f64.powi(exponent.max(T::SMALLEST_EXPONENT) - T::DIGITS)
}

pub fn same<T: Format>(a: T, b: T) -> bool {
    let (a, b) = (a.widen(), b.widen());
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[track_caller]
pub fn assert_same<T: Format>(ours: &[T], theirs: &[T], what: &str) {
    assert_units(ours, theirs, 0.0, what);
}

/// Asserts that numbers differ by at most `units` units in the last place.
#[track_caller]
pub fn assert_units<T: Format>(ours: &[T], theirs: &[T], units: f64, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (&a, &b)) in ours.iter().zip(theirs).enumerate() {
        let (x, y) = (f64::from(a.widen()), f64::from(b.widen()));
        let close = abs_diff_eq!(x, y, epsilon = units * unit::<T>(y));
        assert!(
            same(a, b) || units > 0.0 && close,
            "{what} {}: number {i} is {x:e}, expected {y:e}",
            T::NAME
        );
    }
}

/// Asserts that numbers differ from exact ones by at most an error and a rounding.
#[track_caller]
pub fn assert_near<T: Format>(ours: &[T], exact: &[f64], error: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    for (i, (&a, &y)) in ours.iter().zip(exact).enumerate() {
        let x = f64::from(a.widen());
        let close = abs_diff_eq!(x, y, epsilon = error(i) + unit::<T>(y) * 0.501);
        assert!(
            close || x.is_nan() && y.is_nan() || x == y,
            "{what} {}: number {i} is {x:e}, expected {y:e}, allowed {:e}",
            T::NAME,
            error(i)
        );
    }
}

/// Every instruction set with one, two and three threads; under Miri with one and two.
pub fn cpus() -> &'static [Cpu] {
    static CPUS: std::sync::OnceLock<Vec<Cpu>> = std::sync::OnceLock::new();
    CPUS.get_or_init(|| {
        let most = if cfg!(miri) { 2 } else { 3 };
        Isa::available().flat_map(|isa| (1..=most).map(move |threads| Cpu::new(isa, threads))).collect()
    })
}

pub fn rounded<T: Element>(x: f64) -> f64 {
    // Through float32, as MLX does.
    f64::from(T::narrow(x as f32).widen())
}

/// Random numbers from a seed. A few are zero, and none is large enough for sums to overflow.
pub fn random<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count)
        .map(|_| {
            let x = next() + next() + next() - 1.5;
            T::narrow(if next() < 0.02 { 0.0 } else { x * 2.0 })
        })
        .collect()
}

pub fn widened<T: Element>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.widen())).collect()
}

/// Few cases, because each runs on all instruction sets.
pub fn few() -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 48 },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
