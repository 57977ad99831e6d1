//! Compares tensors: dtype and shape first, then every element.

use std::fmt;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

/// How far two tensors may differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// The same dtype, shape and bits; NaN equals NaN.
    Exact,
    /// The same shape, and `|found - expected| <= atol + rtol * |expected|` in float64.
    Close {
        /// Relative part.
        rtol: f64,
        /// Absolute part.
        atol: f64,
    },
}

impl Tolerance {
    /// How much the results of a whole model of this dtype may differ between two programs on different devices:
    /// [`model_rounding`] as both parts.
    pub fn of(dtype: Dtype) -> Self {
        let rounding = model_rounding(dtype);
        Self::Close { rtol: rounding, atol: rounding }
    }
}

/// By how much the results of a whole model of this dtype may differ between two programs on different devices,
/// absolutely and relatively: some hundred roundings of half a unit in the last place (2^-24, 2^-11 and 2^-8
/// relative).
pub fn model_rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Bfloat16 => 5e-2,
        Dtype::Float16 => 5e-3,
        _ => 2e-4,
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Comparison {
    /// All elements are within the tolerance.
    Equal {
        /// The largest absolute difference.
        worst: f64,
    },
    /// The dtypes differ.
    Dtype {
        /// The dtype of the reference.
        expected: Dtype,
        /// The dtype of the tensor under test.
        found: Dtype,
    },
    /// The shapes differ.
    Shape {
        /// The shape of the reference.
        expected: Vec<i32>,
        /// The shape of the tensor under test.
        found: Vec<i32>,
    },
    /// Some elements differ by more than the tolerance.
    Elements {
        /// The number of these elements.
        differing: usize,
        /// The number of all elements.
        of: usize,
        /// The largest absolute difference; infinite where only one of two elements is NaN.
        worst: f64,
        /// The index of the element with the largest difference.
        at: Vec<usize>,
    },
}

impl Comparison {
    /// Whether all elements are within the tolerance.
    pub fn is_equal(&self) -> bool {
        matches!(self, Self::Equal { .. })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal { worst: 0.0 } => write!(f, "no element differs"),
            Self::Equal { worst } => write!(f, "no element differs by more than {worst:.3e}"),
            Self::Dtype { expected, found } => write!(f, "dtype {found:?}, expected {expected:?}"),
            Self::Shape { expected, found } => write!(f, "shape {found:?}, expected {expected:?}"),
            Self::Elements { differing, of, worst, at } => {
                write!(
                    f,
                    "{differing} of {of} elements differ; the worst is at {at:?} and differs by {worst:.3e}"
                )
            }
        }
    }
}

/// Compares a tensor under test with a reference.
///
/// # Errors
///
/// What MLX reports while it computes the tensors.
pub fn compare(found: &Array, expected: &Array, tolerance: Tolerance) -> Result<Comparison, Exception> {
    if tolerance == Tolerance::Exact && found.dtype() != expected.dtype() {
        return Ok(Comparison::Dtype { expected: expected.dtype(), found: found.dtype() });
    }
    compare_by(found, expected, |found, expected| match tolerance {
        // Every float of MLX's has bits of its own in float64.
        Tolerance::Exact => found.to_bits() == expected.to_bits(),
        Tolerance::Close { rtol, atol } if expected.is_finite() => {
            (found - expected).abs() <= atol + rtol * expected.abs()
        }
        Tolerance::Close { .. } => found == expected,
    })
}

/// Compares shapes, then every pair of elements by this function, which gets the found and the expected value. NaN
/// equals NaN and differs from everything else.
///
/// # Errors
///
/// What MLX reports while it computes the tensors.
pub(crate) fn compare_by(
    found: &Array,
    expected: &Array,
    is_equal: impl Fn(f64, f64) -> bool,
) -> Result<Comparison, Exception> {
    if found.shape() != expected.shape() {
        return Ok(Comparison::Shape { expected: expected.shape().to_vec(), found: found.shape().to_vec() });
    }
    let (found, expected_values) = (to_f64(found)?, to_f64(expected)?);
    let (mut differing, mut worst, mut worst_index) = (0, 0.0_f64, 0);
    for (index, (&found, &expected)) in found.iter().zip(&expected_values).enumerate() {
        let (differs, difference) = match (found.is_nan(), expected.is_nan()) {
            (true, true) => (false, 0.0),
            (false, false) if found == expected => (!is_equal(found, expected), 0.0), // infinities too
            (false, false) => (!is_equal(found, expected), (found - expected).abs()),
            _ => (true, f64::INFINITY),
        };
        // The first that differs, even where the two are 0 and -0, unless another differs by more.
        if difference > worst || (differs && worst == 0.0 && differing == 0) {
            (worst, worst_index) = (difference, index);
        }
        differing += usize::from(differs);
    }
    if differing == 0 {
        return Ok(Comparison::Equal { worst });
    }
    let at = unravel(worst_index, expected.shape());
    Ok(Comparison::Elements { differing, of: found.len(), worst, at })
}

/// The elements of an array in row order. float32, float16, bfloat16, int32 and uint32 are exact in float64.
///
/// # Errors
///
/// Where MLX cannot compute the array, or the array has another dtype.
pub fn to_f64(array: &Array) -> Result<Vec<f64>, Exception> {
    // A copy in row order, because the array may be a view with strides.
    let array = array.contiguous()?;
    if array.size() == 0 {
        return Ok(Vec::new());
    }
    let failed = |e: mlx_rs::error::AsSliceError| Exception::custom(e.to_string());
    Ok(match array.dtype() {
        Dtype::Float32 => {
            array.try_as_slice::<f32>().map_err(failed)?.iter().map(|&v| f64::from(v)).collect()
        }
        Dtype::Float16 => {
            array.try_as_slice::<half::f16>().map_err(failed)?.iter().map(|v| v.to_f64()).collect()
        }
        Dtype::Bfloat16 => {
            array.try_as_slice::<half::bf16>().map_err(failed)?.iter().map(|v| v.to_f64()).collect()
        }
        Dtype::Int32 => array.try_as_slice::<i32>().map_err(failed)?.iter().map(|&v| f64::from(v)).collect(),
        Dtype::Uint32 => array.try_as_slice::<u32>().map_err(failed)?.iter().map(|&v| f64::from(v)).collect(),
        other => return Err(Exception::custom(format!("tensors of {other:?} are not compared"))),
    })
}

fn unravel(mut index: usize, shape: &[i32]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (place, &size) in at.iter_mut().zip(shape).rev() {
        let size = (size as usize).max(1);
        *place = index % size;
        index /= size;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Array {
        Array::from_slice(values, &[2, values.len() as i32 / 2])
    }

    const CLOSE: Tolerance = Tolerance::Close { rtol: 0.1, atol: 0.01 };

    #[test]
    fn equal_tensors_are_equal_nan_and_infinity_too() {
        let x = tensor(&[1.0, f32::NAN, f32::INFINITY, -0.0]);
        for tolerance in [Tolerance::Exact, CLOSE] {
            assert_eq!(compare(&x, &x, tolerance).unwrap(), Comparison::Equal { worst: 0.0 });
        }
    }

    #[test]
    fn exact_sees_one_bit() {
        let next = f32::from_bits(1.0_f32.to_bits() + 1);
        let result = compare(&tensor(&[1.0, next]), &tensor(&[1.0, 1.0]), Tolerance::Exact).unwrap();
        assert!(matches!(result, Comparison::Elements { differing: 1, of: 2, ref at, .. } if at == &[1, 0]));
        let signs = compare(&tensor(&[1.0, -0.0]), &tensor(&[1.0, 0.0]), Tolerance::Exact).unwrap();
        assert!(!signs.is_equal());
    }

    #[test]
    fn zeros_of_both_signs_are_found_where_they_are() {
        let result = compare(&tensor(&[1.0, 0.0]), &tensor(&[1.0, -0.0]), Tolerance::Exact).unwrap();
        assert_eq!(result, Comparison::Elements { differing: 1, of: 2, worst: 0.0, at: vec![1, 0] });
    }

    #[test]
    fn close_counts_what_is_too_far_and_names_the_worst() {
        let expected = tensor(&[10.0, 10.0, 0.0, 0.0]);
        assert!(compare(&tensor(&[11.0, 9.0, 0.01, 0.0]), &expected, CLOSE).unwrap().is_equal());
        let result = compare(&tensor(&[11.5, 9.0, 0.02, f32::NAN]), &expected, CLOSE).unwrap();
        assert_eq!(
            result,
            Comparison::Elements { differing: 3, of: 4, worst: f64::INFINITY, at: vec![1, 1] }
        );
    }

    #[test]
    fn dtype_and_shape_come_first() {
        let x = tensor(&[1.0, 2.0]);
        let half = x.as_dtype(Dtype::Float16).unwrap();
        assert!(matches!(compare(&half, &x, Tolerance::Exact).unwrap(), Comparison::Dtype { .. }));
        assert!(compare(&half, &x, CLOSE).unwrap().is_equal());
        let flat = x.reshape(&[2]).unwrap();
        assert!(matches!(compare(&flat, &x, CLOSE).unwrap(), Comparison::Shape { .. }));
    }

    #[test]
    fn views_are_read_in_their_own_order() {
        let x = tensor(&[1.0, 2.0, 3.0, 4.0]);
        assert!(compare(&x.t(), &tensor(&[1.0, 3.0, 2.0, 4.0]), Tolerance::Exact).unwrap().is_equal());
    }
}
