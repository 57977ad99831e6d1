//! Tensors of heads, and masks of their scores, as views with four dimensions.

use mlx_cpu::{Mask, View};

use crate::abi::{Format, Tensor};

/// A tensor `[B, H, L, D]`, or `[B, H, G, L, D]` with its `H * G` heads in one dimension, as a view in which the elements of
/// the last dimension lie next to each other. Where they do not, or one stride cannot reach all heads, a view of a copy.
///
/// # Safety
///
/// The tensor is an input from MLX, of the format of `T`.
pub(super) unsafe fn heads<'a, T: Copy>(x: &Tensor, copy: &'a mut Vec<T>) -> Result<View<'a, T, 4>, String> {
    if let Some(x) = x.with_merged_heads() {
        let (shape, strides) = (std::array::from_fn(|i| x.size(i)), x.strides());
        if strides.iter().all(|&stride| stride >= 0) && (strides[3] == 1 || shape[3] == 1) {
            // SAFETY: the caller's promise.
            return Ok(View::new(unsafe { x.reach()? }, shape, std::array::from_fn(|i| strides[i] as usize)));
        }
    }
    // SAFETY: the caller's promise.
    unsafe { x.gather(copy) };
    let dims = x.strides().len();
    let heads = x.shape().take(dims - 2).skip(1).product();
    Ok(View::contiguous(copy, [x.size(0), heads, x.size(dims - 2), x.size(dims - 1)]))
}

/// The mask of scores of this shape, `[B, H, L, S]` or `[B, H, G, L, S]`, to which it is broadcast.
///
/// # Safety
///
/// The tensor is an input from MLX, of bool or of the format of `T`.
pub(super) unsafe fn mask_of<'a, T: Copy>(
    mask: &Tensor,
    scores: &[usize],
    bools: &'a mut Vec<bool>,
    numbers: &'a mut Vec<T>,
) -> Result<Mask<'a, T>, String> {
    let whole = mask.broadcast(scores);
    // SAFETY: the caller's promise.
    unsafe {
        Ok(match mask.format() {
            Format::Bool => Mask::Bool(whole_mask(&whole, bools)?),
            _ => Mask::Additive(whole_mask(&whole, numbers)?),
        })
    }
}

/// [`heads`] for a mask, whose last dimension may have any stride, as where it is repeated for all keys.
///
/// # Safety
///
/// The tensor is an input from MLX, of the format of `T`.
unsafe fn whole_mask<'a, T: Copy>(mask: &Tensor, copy: &'a mut Vec<T>) -> Result<View<'a, T, 4>, String> {
    match mask.with_merged_heads() {
        Some(mask) if mask.strides().iter().all(|&stride| stride >= 0) => {
            let strides = std::array::from_fn(|i| mask.strides()[i] as usize);
            // SAFETY: the caller's promise.
            Ok(View::new(unsafe { mask.reach()? }, std::array::from_fn(|i| mask.size(i)), strides))
        }
        // SAFETY: the caller's promise.
        _ => unsafe { heads(mask, copy) },
    }
}
