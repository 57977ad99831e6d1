//! The arrays of keys and values, with one slot for each token, dense or quantized.

use std::ops::Range;

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};
use mlx_rs::{Array, Dtype};

use crate::{CacheError, KeysValues, Quantization, QuantizedArray};

/// Shapes and dtypes of keys and values, without the number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) batch: i32,
    pub(crate) heads: i32,
    pub(crate) key_dim: i32,
    pub(crate) value_dim: i32,
    pub(crate) key_dtype: Dtype,
    pub(crate) value_dtype: Dtype,
}

impl Form {
    /// The form of keys `[B, H, L, D]` and values `[B, H, L, D_v]`, and L. If the cache has a form, the new
    /// form must equal it; if the number of its rows is known, the new keys must have as many rows.
    pub(crate) fn of(
        keys: &Array,
        values: &Array,
        held: Option<Form>,
        rows: Option<usize>,
    ) -> Result<(Self, i32), CacheError> {
        let shape = |what, expected: String, found: &Array| {
            Err(CacheError::Shape { what, expected, found: found.shape().to_vec() })
        };
        let any = |rows: Option<usize>| rows.map_or_else(|| "B".to_owned(), |rows| rows.to_string());
        let &[batch, heads, length, key_dim] = keys.shape() else {
            return shape("keys", format!("[{}, H, L, D]", any(rows)), keys);
        };
        if [batch, heads, length, key_dim].iter().any(|&size| size < 1) {
            return shape("keys", format!("[{}, H, L, D] with none of them 0", any(rows)), keys);
        }
        if rows.is_some_and(|rows| rows != batch as usize) {
            let expected = format!("[{}, {heads}, L, {key_dim}], a row for each of the batch", any(rows));
            return shape("keys", expected, keys);
        }
        let value_dim = match *values.shape() {
            [b, h, l, value_dim] if [b, h, l] == [batch, heads, length] && value_dim > 0 => value_dim,
            _ => return shape("values", format!("[{batch}, {heads}, {length}, D], like the keys"), values),
        };
        let (key_dtype, value_dtype) = (keys.dtype(), values.dtype());
        let form = Self { batch, heads, key_dim, value_dim, key_dtype, value_dtype };
        for (what, found) in [("keys", key_dtype), ("values", value_dtype)] {
            if !matches!(found, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
                return Err(CacheError::Dtype { what, expected: "floats".to_owned(), found });
            }
        }
        let Some(held) = held else { return Ok((form, length)) };

        let sizes = |dim| format!("[{}, {}, L, {dim}]", held.batch, held.heads);
        if (batch, heads, key_dim) != (held.batch, held.heads, held.key_dim) {
            return shape("keys", sizes(held.key_dim), keys);
        }
        if value_dim != held.value_dim {
            return shape("values", sizes(held.value_dim), values);
        }
        for (what, expected, found) in
            [("keys", held.key_dtype, key_dtype), ("values", held.value_dtype, value_dtype)]
        {
            if found != expected {
                return Err(CacheError::Dtype { what, expected: format!("{expected:?}"), found });
            }
        }
        Ok((form, length))
    }

    /// An error if the size of these heads is not a multiple of the quantization group.
    pub(crate) fn check_quantization(&self, quantization: Quantization) -> Result<(), CacheError> {
        check_groups(self.key_dim, self.value_dim, quantization)
    }
}

/// An error if the number of features per head is not a multiple of the quantization group.
pub(crate) fn check_groups(
    key_dim: i32,
    value_dim: i32,
    quantization: Quantization,
) -> Result<(), CacheError> {
    let group_size = quantization.group_size();
    for (what, head_dim) in [("keys", key_dim), ("values", value_dim)] {
        if head_dim % group_size != 0 {
            return Err(CacheError::Groups { what, head_dim, group_size });
        }
    }
    Ok(())
}

/// The indices of all that an array has in these slots.
fn places(array: &Array, slots: Range<i32>) -> Result<[Range<i32>; 4], Exception> {
    match *array.shape() {
        [batch, heads, _, features] => Ok([0..batch, 0..heads, slots, 0..features]),
        ref shape => Err(Exception::custom(format!("keys or values of shape {shape:?}"))),
    }
}

/// Keys and values of many tokens. Every array is `[B, H, slots, _]`. Dense buffers have two arrays, keys
/// and values; quantized buffers have six, the packed numbers, scales and biases of each. Every
/// operation on slots or rows applies to all arrays.
#[derive(Debug, Clone)]
pub(crate) struct Buffers {
    arrays: Vec<Array>,
    quantization: Option<Quantization>,
}

impl Buffers {
    /// Buffers of these keys and values, quantized if asked for.
    pub(crate) fn new(
        keys: &Array,
        values: &Array,
        quantization: Option<Quantization>,
    ) -> Result<Self, Exception> {
        let dense = Self { arrays: vec![keys.clone(), values.clone()], quantization: None };
        match quantization {
            None => Ok(dense),
            Some(quantization) => dense.quantize(quantization),
        }
    }

    /// Buffers of these arrays, in the order of [`arrays`](Self::arrays).
    pub(crate) fn from_arrays(arrays: Vec<Array>, quantization: Option<Quantization>) -> Self {
        Self { arrays, quantization }
    }

    pub(crate) fn arrays(&self) -> &[Array] {
        &self.arrays
    }

    /// Quantizes dense buffers.
    pub(crate) fn quantize(&self, quantization: Quantization) -> Result<Self, Exception> {
        let mut arrays = Vec::with_capacity(6);
        for dense in &self.arrays {
            let QuantizedArray { packed, scales, biases, .. } =
                mlx_quantization::quantize(dense, quantization)?;
            arrays.extend([packed, scales]);
            arrays.extend(biases);
        }
        Ok(Self { arrays, quantization: Some(quantization) })
    }

    /// The number of slots for tokens.
    pub(crate) fn slots(&self) -> i32 {
        self.arrays.first().map_or(0, |array| array.dim(2))
    }

    fn map(&self, mut f: impl FnMut(&Array) -> Result<Array, Exception>) -> Result<Self, Exception> {
        let arrays = self.arrays.iter().map(&mut f).collect::<Result<_, _>>()?;
        Ok(Self { arrays, quantization: self.quantization })
    }

    /// A view of these slots.
    pub(crate) fn range(&self, slots: Range<i32>) -> Result<Self, Exception> {
        if slots == (0..self.slots()) {
            return Ok(self.clone());
        }
        self.map(|array| mlx_quantization::slice(array, places(array, slots.clone())?))
    }

    /// New buffers of the same form with this many slots, all zero.
    pub(crate) fn zeros(&self, slots: i32) -> Result<Self, Exception> {
        self.map(|array| {
            let mut shape = array.shape().to_vec();
            shape[2] = slots;
            zeros_dtype(&shape, array.dtype())
        })
    }

    /// All slots of these buffers, one after the other.
    pub(crate) fn concatenate(parts: &[Self]) -> Result<Self, Exception> {
        Self::join(parts, 2)
    }

    /// All rows of these buffers, which have the same number of slots.
    pub(crate) fn stack(parts: &[Self]) -> Result<Self, Exception> {
        Self::join(parts, 0)
    }

    fn join(parts: &[Self], axis: i32) -> Result<Self, Exception> {
        let filled: Vec<&Self> = parts.iter().filter(|part| axis == 0 || part.slots() > 0).collect();
        match *filled.as_slice() {
            [] => parts.first().cloned().ok_or_else(|| Exception::custom("no keys and values to join")),
            [one] => Ok(one.clone()),
            [first, ..] => {
                let join =
                    |i| concatenate(&filled.iter().map(|part| &part.arrays[i]).collect::<Vec<_>>(), axis);
                let arrays = (0..first.arrays.len()).map(join).collect::<Result<_, _>>()?;
                Ok(Self { arrays, quantization: first.quantization })
            }
        }
    }

    /// Adds this many slots of zeros before and behind.
    pub(crate) fn pad(&self, before: i32, behind: i32) -> Result<Self, Exception> {
        Self::concatenate(&[self.zeros(before)?, self.clone(), self.zeros(behind)?])
    }

    /// A copy of these rows of the batch.
    pub(crate) fn rows(&self, rows: &[i32]) -> Result<Self, Exception> {
        let rows = Array::from_slice(rows, &[rows.len() as i32]);
        self.map(|array| array.take_axis(&rows, 0))
    }

    /// Writes into these slots. MLX writes in place if nothing else holds the old arrays when it computes
    /// the new ones, so the caller must drop the old buffers.
    pub(crate) fn write(&mut self, slots: Range<i32>, new: &Self) -> Result<(), Exception> {
        if slots.is_empty() {
            return Ok(());
        }
        for (array, new) in self.arrays.iter_mut().zip(&new.arrays) {
            *array = mlx_quantization::write_slice(array, places(array, slots.clone())?, new)?;
        }
        Ok(())
    }

    /// Writes into these slots of one row what `new` has in that row.
    pub(crate) fn write_row(&mut self, row: i32, slots: Range<i32>, new: &Self) -> Result<(), Exception> {
        for (array, new) in self.arrays.iter_mut().zip(&new.arrays) {
            array.try_index_mut((row..row + 1, .., slots.clone(), ..), new.try_index(row..row + 1)?)?;
        }
        Ok(())
    }

    /// A copy, if the arrays are views into larger ones: a view of a few heads would keep the memory of the
    /// whole projection.
    pub(crate) fn contiguous(&self) -> Result<Self, Exception> {
        self.map(|array| array.contiguous())
    }

    /// Computes the arrays now, so that the arrays they were made from can be freed.
    pub(crate) fn eval(&self) -> Result<(), Exception> {
        mlx_rs::transforms::eval(&self.arrays)
    }

    /// The arrays as attention reads them.
    pub(crate) fn read(&self) -> Result<KeysValues, Exception> {
        let quantized = |packed: &Array, scales: &Array, biases: &Array, quantization| QuantizedArray {
            packed: packed.clone(),
            scales: scales.clone(),
            biases: Some(biases.clone()),
            quantization,
        };
        match (self.arrays.as_slice(), self.quantization) {
            ([keys, values], None) => Ok(KeysValues::Dense { keys: keys.clone(), values: values.clone() }),
            ([keys, key_scales, key_biases, values, value_scales, value_biases], Some(quantization)) => {
                Ok(KeysValues::Quantized {
                    keys: quantized(keys, key_scales, key_biases, quantization),
                    values: quantized(values, value_scales, value_biases, quantization),
                })
            }
            _ => Err(Exception::custom("a cache with the wrong number of arrays")),
        }
    }
}
