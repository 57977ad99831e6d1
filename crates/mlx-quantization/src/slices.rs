//! Slices of arrays, for caches.
//!
//! mlx-rs's own indexing takes any combination of indices. For a cache that is written once in each layer for each token
//! it takes longer than all else that MLX does for this write, and it reshapes what is written twice.

use std::ops::Range;

use mlx_rs::Array;
use mlx_rs::error::Exception;

use crate::native;

/// A view of the elements at these indices, a range for each axis.
///
/// # Errors
///
/// If `x` does not have N axes, or a range is not within its axis.
pub fn slice<const N: usize>(x: &Array, indices: [Range<i32>; N]) -> Result<Array, Exception> {
    check(x, &indices)?;
    native::slice(x, indices)
}

/// `x` with `part`, which has the shape and the dtype of these elements, in place of the elements at these indices. There is a
/// range for each axis. MLX writes in place where nothing else holds `x` when it computes the result.
///
/// # Errors
///
/// If `x` does not have N axes, a range is not within its axis, or `part` is of another shape or dtype.
pub fn write_slice<const N: usize>(
    x: &Array,
    indices: [Range<i32>; N],
    part: &Array,
) -> Result<Array, Exception> {
    check(x, &indices)?;
    let shape = indices.each_ref().map(|range| range.end - range.start);
    if part.shape() != shape || part.dtype() != x.dtype() {
        return Err(Exception::custom(format!(
            "{:?} of shape {:?} where {:?} of shape {shape:?} is written",
            part.dtype(),
            part.shape(),
            x.dtype()
        )));
    }
    native::write_slice(x, indices, part)
}

fn check<const N: usize>(x: &Array, indices: &[Range<i32>; N]) -> Result<(), Exception> {
    let shape = x.shape();
    let are_within = shape.len() == N
        && shape
            .iter()
            .zip(indices)
            .all(|(&size, range)| 0 <= range.start && range.start <= range.end && range.end <= size);
    if are_within {
        return Ok(());
    }
    Err(Exception::custom(format!("the slice {indices:?} of an array of shape {shape:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers() -> Array {
        Array::from_slice(&(0..12).collect::<Vec<i32>>(), &[2, 3, 2])
    }

    fn all(x: &Array) -> Vec<i32> {
        x.flatten(None, None).unwrap().as_slice::<i32>().to_vec()
    }

    #[test]
    fn a_slice_has_the_elements_of_the_ranges() {
        let part = slice(&numbers(), [0..2, 1..3, 1..2]).unwrap();
        assert_eq!((part.shape(), all(&part)), (&[2, 2, 1][..], vec![3, 5, 9, 11]));
        assert_eq!(all(&slice(&numbers(), [1..2, 0..1, 0..2]).unwrap()), [6, 7]);
        assert_eq!(slice(&numbers(), [0..0, 0..3, 0..2]).unwrap().shape(), [0, 3, 2]);
    }

    #[test]
    fn a_part_is_written_and_the_rest_stays() {
        let x = numbers();
        let part = Array::from_slice(&[-1, -2], &[2, 1, 1]);
        let written = write_slice(&x, [0..2, 2..3, 0..1], &part).unwrap();
        assert_eq!(all(&written), [0, 1, 2, 3, -1, 5, 6, 7, 8, 9, -2, 11]);
        // The array is still held.
        assert_eq!(all(&x), (0..12).collect::<Vec<i32>>());
    }

    #[test]
    fn written_again_and_again_it_holds_everything() {
        let mut x = Array::zeros::<f32>(&[1, 2, 8, 4]).unwrap();
        for slot in 0..8_i16 {
            let part = Array::full::<f32>(&[1, 2, 1, 4], Array::from_f32(f32::from(slot))).unwrap();
            x = write_slice(&x, [0..1, 0..2, slot.into()..i32::from(slot) + 1, 0..4], &part).unwrap();
        }
        let row: Vec<f32> = (0..8_i16).flat_map(|slot| [f32::from(slot); 4]).collect();
        assert_eq!(x.flatten(None, None).unwrap().as_slice::<f32>(), [row.clone(), row].concat());
    }

    #[test]
    fn a_range_beyond_its_axis_and_another_part_are_errors() {
        let x = numbers();
        let one = Array::from_slice(&[1], &[1, 1, 1]);
        for indices in [[0..3, 0..1, 0..1], [0..1, -1..1, 0..1], [0..1, 0..1, 1..3]] {
            assert!(slice(&x, indices.clone()).is_err(), "{indices:?}");
            assert!(write_slice(&x, indices, &one).is_err());
        }
        assert!(slice(&x, [0..1, 0..1]).unwrap_err().what().contains("[2, 3, 2]"));
        assert!(write_slice(&x, [0..2, 0..1, 0..1], &one).unwrap_err().what().contains("[2, 1, 1]"));
        let float = Array::from_slice(&[1.0_f32], &[1, 1, 1]);
        assert!(write_slice(&x, [0..1, 0..1, 0..1], &float).is_err());
    }
}
