//! Tensors in the assertions of tests: `assert_eq!` for the same bits, the macros of `approx` for tolerances.
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use std::cell::RefCell;
use std::fmt;

use approx::{AbsDiffEq, RelativeEq};
use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;

use crate::compare::{Comparison, Tolerance, compare, compare_by, to_f64};

/// A tensor that assertions can compare.
///
/// A comparison looks at the dtypes first, then at the shapes, then at every element. NaN equals NaN.
/// `==` wants the same bits. [`AbsDiffEq`] and [`RelativeEq`] mean for each element what they mean for two
/// `f64`, and both tolerances are 0 unless the test states them.
///
/// The left tensor of a comparison remembers the result and shows it in its `Debug` output, so that the message
/// of a failed assertion says how many elements differ, which one is the worst, and by how much:
///
/// ```text
/// left  = Float32 [2, 2]: 3 of 4 elements differ; the worst is at [1, 1] and differs by 5.000e-1: 1.5
/// right = Float32 [2, 2]: 1.0
/// ```
///
/// # Panics
///
/// A comparison panics where MLX cannot compute a tensor, or where [`to_f64`] does not read its dtype.
///
/// # Examples
///
/// ```
/// use approx::{assert_abs_diff_eq, assert_relative_eq};
/// use mlx_rs::Array;
/// use mlx_testing::tensor;
///
/// let third = Array::from_slice(&[1.0_f32 / 3.0; 4], &[2, 2]);
/// let one = third.multiply(Array::from_f32(3.0)).unwrap();
/// assert_relative_eq!(tensor(&one), tensor(&one.square().unwrap()), max_relative = 1e-6);
/// assert_abs_diff_eq!(tensor(&third), tensor(&third.round(2).unwrap()), epsilon = 0.01);
/// assert_eq!(tensor(&third), tensor(&third));
/// ```
pub struct Tensor {
    array: Array,
    name: Option<String>,
    /// What the last comparison found, in words.
    report: RefCell<Option<String>>,
}

/// A tensor that assertions can compare.
pub fn tensor(array: &Array) -> Tensor {
    // Stops a test that would run on another device than the one that was asked for.
    crate::on_cpu();
    Tensor { array: array.clone(), name: None, report: RefCell::new(None) }
}

impl Tensor {
    /// The same tensor with a name that the message of a failed assertion shows, such as the case of a loop.
    pub fn named(self, name: impl fmt::Display) -> Self {
        Self { name: Some(name.to_string()), ..self }
    }

    /// The dtype of its elements.
    pub(crate) fn dtype(&self) -> mlx_rs::Dtype {
        self.array.dtype()
    }

    /// Notes down what a comparison with `other` found, and answers whether the two are equal enough.
    fn note(&self, other: &Self, comparison: &Comparison) -> bool {
        let (mut left, mut right) = (comparison.to_string(), None);
        if let Comparison::Elements { at, .. } = comparison {
            left = format!("{left}: {:?}", self.element(at));
            right = Some(format!("{:?}", other.element(at)));
        }
        *self.report.borrow_mut() = Some(left);
        *other.report.borrow_mut() = right;
        comparison.is_equal()
    }

    fn element(&self, at: &[usize]) -> f64 {
        let mut element = self.array.clone();
        for &index in at {
            element = element.try_index(index as i32).unwrap();
        }
        to_f64(&element).unwrap()[0]
    }

    /// Compares the dtypes, then the shapes, then the elements by this function.
    fn is_near(&self, other: &Self, near: impl Fn(&f64, &f64) -> bool) -> bool {
        let (found, expected) = (&self.array, &other.array);
        let comparison = if found.dtype() == expected.dtype() {
            compare_by(found, expected, |found, expected| near(&found, &expected)).unwrap()
        } else {
            Comparison::Dtype { expected: expected.dtype(), found: found.dtype() }
        };
        self.note(other, &comparison)
    }
}

/// The same dtype, shape and bits; NaN equals NaN, and 0 does not equal -0.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.note(other, &compare(&self.array, &other.array, Tolerance::Exact).unwrap())
    }
}

impl AbsDiffEq for Tensor {
    type Epsilon = f64;

    fn default_epsilon() -> f64 {
        0.0
    }

    fn abs_diff_eq(&self, other: &Self, epsilon: f64) -> bool {
        self.is_near(other, |found, expected| found.abs_diff_eq(expected, epsilon))
    }
}

impl RelativeEq for Tensor {
    fn default_max_relative() -> f64 {
        0.0
    }

    fn relative_eq(&self, other: &Self, epsilon: f64, max_relative: f64) -> bool {
        self.is_near(other, |found, expected| found.relative_eq(expected, epsilon, max_relative))
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        write!(f, "{:?} {:?}", self.array.dtype(), self.array.shape())?;
        match &*self.report.borrow() {
            Some(report) => write!(f, ": {report}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq, assert_relative_eq, relative_eq};
    use mlx_rs::Dtype;

    fn of(values: &[f32]) -> Tensor {
        tensor(&Array::from_slice(values, &[2, values.len() as i32 / 2]))
    }

    /// The message of an assertion that must fail.
    fn message(assertion: impl FnOnce() + std::panic::UnwindSafe) -> String {
        *catch_unwind(assertion).unwrap_err().downcast::<String>().unwrap()
    }

    #[test]
    fn a_failed_assertion_says_how_many_differ_and_which_is_the_worst() {
        let relative = message(|| {
            let found = of(&[1.0, 1.25, 2.0, 1.5]).named("layer 3");
            assert_relative_eq!(found, of(&[1.0; 4]), max_relative = 1e-3);
        });
        let left = "3 of 4 elements differ; the worst is at [1, 0] and differs by 1.000e0: 2.0\n";
        assert!(relative.contains(&format!("left  = layer 3: Float32 [2, 2]: {left}")), "{relative}");
        assert!(relative.contains("right = Float32 [2, 2]: 1.0\n"), "{relative}");
        let absolute = message(|| assert_abs_diff_eq!(of(&[1.0, 2.0]), of(&[1.0, 1.0]), epsilon = 0.5));
        assert!(absolute.contains("1 of 2 elements differ; the worst is at [1, 0]"), "{absolute}");
        let equal = message(|| assert_eq!(of(&[1.0, -0.0]), of(&[1.0, 0.0])));
        assert!(equal.contains("1 of 2 elements differ; the worst is at [1, 0]"), "{equal}");
        let unequal = message(|| assert_ne!(of(&[1.0, 0.0]), of(&[1.0, 0.0])));
        assert!(unequal.contains("Float32 [2, 1]: no element differs"), "{unequal}");
    }

    #[test]
    fn dtype_and_shape_come_first() {
        let x = Array::from_slice(&[1.0_f32, 2.0], &[2]);
        let half = x.as_dtype(Dtype::Float16).unwrap();
        let dtype = message(move || assert_relative_eq!(tensor(&half), tensor(&x), epsilon = 9.0));
        assert!(dtype.contains("left  = Float16 [2]: dtype Float16, expected Float32"), "{dtype}");
        let shape = message(|| assert_abs_diff_eq!(of(&[1.0; 4]), of(&[1.0; 2]), epsilon = 9.0));
        assert!(shape.contains("shape [2, 2], expected [2, 1]"), "{shape}");
    }

    #[test]
    fn elements_are_compared_as_approx_compares_numbers() {
        let numbers = [0.0_f32, -0.0, 1.0, 1.001, 1.1, -1.0, 1e6, 1.001e6, f32::INFINITY, f32::NEG_INFINITY];
        for x in numbers {
            for y in numbers {
                let (left, right) = (of(&[x, 7.0]), of(&[y, 7.0]));
                let (x, y) = (f64::from(x), f64::from(y));
                for epsilon in [0.0, 0.01, 2000.0] {
                    assert_eq!(
                        abs_diff_eq!(left, right, epsilon = epsilon),
                        abs_diff_eq!(x, y, epsilon = epsilon),
                        "{x} {y} {epsilon}"
                    );
                    for max_relative in [0.0, 0.002, 0.5] {
                        assert_eq!(
                            relative_eq!(left, right, epsilon = epsilon, max_relative = max_relative),
                            relative_eq!(x, y, epsilon = epsilon, max_relative = max_relative),
                            "{x} {y} {epsilon} {max_relative}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn nan_equals_nan_only() {
        let nan = || of(&[f32::NAN, 1.0]);
        assert_eq!(nan(), nan());
        assert_relative_eq!(nan(), nan());
        assert!(!relative_eq!(nan(), of(&[1.0, 1.0]), epsilon = 1e9, max_relative = 1e9));
    }

    #[test]
    fn without_a_tolerance_values_must_be_equal() {
        let next = f32::from_bits(1.0_f32.to_bits() + 1);
        assert!(!relative_eq!(of(&[next, 1.0]), of(&[1.0, 1.0])));
        assert!(!abs_diff_eq!(of(&[next, 1.0]), of(&[1.0, 1.0])));
        assert!(relative_eq!(of(&[-0.0, 1.0]), of(&[0.0, 1.0])));
    }
}
