//! Each operation: from MLX's arrays to the slices of `mlx-cpu`.
//!
//! What the tensors and settings of an operation are is said by the function of the same name in
//! `native/cpu_kernels.cpp`, which has checked shapes and formats.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all are the same: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{
    Cpu, Element, Frequencies, Mask, Matrix, MatrixMut, QuantizedHeads, QuantizedLayoutError,
    QuantizedMatrix, Rope, RopeLayout, View, ViewMut,
};

use super::Settings;
use super::operations::{Answer, TENSORS};
use super::tensor::{Format, MAX_DIMS, Tensor, with_float};

type Tensors = [Tensor; TENSORS];

/// An output whose rows are its last dimension's.
unsafe fn rows_of<'a, T: Element>(out: &Tensor) -> MatrixMut<'a, T> {
    let columns = out.last();
    // SAFETY: the caller gives an output.
    MatrixMut::contiguous(unsafe { out.output() }, out.len() / columns.max(1), columns)
}

/// A function from rows to rows of the same length.
macro_rules! on_rows {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(super) fn $name([x, out, ..]: &Tensors, _: &Settings) -> Answer {
            with_float!(out.format(), T => {
                let mut copy = Vec::<T>::new();
                // SAFETY: MLX's arrays, of these formats.
                unsafe { $kernel(Cpu::global(), x.rows(&mut copy)?, rows_of(out)) };
                Ok(())
            })
        }
    )*};
}

/// A function of two arrays of the same shape.
macro_rules! on_two {
    ($($name:ident = $kernel:path;)*) => {$(
        pub(super) fn $name([a, b, out, ..]: &Tensors, _: &Settings) -> Answer {
            with_float!(out.format(), T => {
                let mut copies = [Vec::<T>::new(), Vec::<T>::new()];
                let [copy_a, copy_b] = &mut copies;
                // SAFETY: MLX's arrays, of these formats.
                let (a, b) = unsafe { (a.rows(copy_a)?, b.rows(copy_b)?) };
                // SAFETY: as above.
                $kernel(Cpu::global(), a, b, unsafe { rows_of(out) });
                Ok(())
            })
        }
    )*};
}

on_rows! {
    silu = mlx_cpu::silu;
    gelu = mlx_cpu::gelu_tanh;
    softmax = mlx_cpu::softmax;
}

on_two! {
    add = mlx_cpu::add;
    multiply = mlx_cpu::multiply;
    swiglu = mlx_cpu::swiglu;
    geglu = mlx_cpu::geglu;
}

pub(super) fn subtract_from_rows([x, b, out, ..]: &Tensors, _: &Settings) -> Answer {
    with_float!(x.format(), T => {
        let (mut copy, mut numbers) = (Vec::<T>::new(), Vec::<T>::new());
        // SAFETY: MLX's arrays, of these formats.
        unsafe {
            b.gather(&mut numbers);
            mlx_cpu::subtract_from_rows(Cpu::global(), x.rows(&mut copy)?, &numbers, rows_of(out));
        }
        Ok(())
    })
}

pub(super) fn logsumexp([x, out, ..]: &Tensors, _: &Settings) -> Answer {
    with_float!(x.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        unsafe { mlx_cpu::logsumexp(Cpu::global(), x.rows(&mut copy)?, out.output()) };
        Ok(())
    })
}

pub(super) fn argmax([x, out, ..]: &Tensors, _: &Settings) -> Answer {
    with_float!(x.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        unsafe { mlx_cpu::argmax(Cpu::global(), x.rows(&mut copy)?, out.output()) };
        Ok(())
    })
}

pub(super) fn rms_norm([x, second, third, ..]: &Tensors, settings: &Settings) -> Answer {
    let (weight, out) = if settings.i != 0 { (Some(second), third) } else { (None, second) };
    with_float!(out.format(), T => {
        let (mut copy, mut copy_of_weight) = (Vec::<T>::new(), Vec::<T>::new());
        // SAFETY: MLX's arrays, of these formats.
        unsafe {
            let x = x.rows(&mut copy)?;
            let weight = weight.map(|weight| weight.rows(&mut copy_of_weight)).transpose()?;
            mlx_cpu::rms_norm(Cpu::global(), x, weight.as_ref().map(|weight| weight.row(0)), settings.a, rows_of(out));
        }
        Ok(())
    })
}

/// A tensor `[B, H, L, D]`, or `[B, H, G, L, D]` with `H * G` heads, the elements of whose last dimension follow
/// each other: where they do not, or heads lie apart, a copy.
///
/// # Safety
///
/// The tensor is an input of MLX's, of the format of `T`.
unsafe fn heads<'a, T: Copy>(x: &Tensor, copy: &'a mut Vec<T>) -> Result<View<'a, T, 4>, String> {
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

pub(super) fn rope(tensors: &Tensors, settings: &Settings) -> Answer {
    let mut tensors = tensors.iter();
    let mut next = || tensors.next().ok_or("an array is missing");
    let x = next()?;
    let offsets = if settings.k & 1 != 0 { Some(next()?) } else { None };
    let periods = if settings.k & 2 != 0 { Some(next()?) } else { None };
    let out = next()?;

    let (mut copy_offsets, mut copy_periods) = (Vec::new(), Vec::new());
    let offsets: &[i32] = match offsets {
        Some(offsets) => {
            // SAFETY: an input of int32.
            unsafe { offsets.gather(&mut copy_offsets) };
            &copy_offsets
        }
        None => &[settings.j],
    };
    let frequencies = match periods {
        Some(periods) => {
            // SAFETY: an input of float32.
            unsafe { periods.gather(&mut copy_periods) };
            Frequencies::Periods(&copy_periods)
        }
        None => Frequencies::Base(settings.a),
    };
    let rope = Rope {
        dims: settings.i as usize,
        layout: if settings.k & 4 != 0 { RopeLayout::Interleaved } else { RopeLayout::Halves },
        frequencies,
        scale: settings.b,
    };
    with_float!(out.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        unsafe { mlx_cpu::rope(Cpu::global(), heads(x, &mut copy)?, &rope, offsets, out.output()) };
        Ok(())
    })
}

/// Where the matrices of a batch begin, in elements, for each of `count`; `batch` are the dimensions that
/// count them, and an array without them is the same for all.
fn starts(x: &Tensor, batch: &[usize]) -> Vec<usize> {
    let dims = x.strides().len();
    let count = batch.iter().product();
    if dims <= 2 {
        return vec![0; count];
    }
    (0..count)
        .map(|mut index| {
            let mut start = 0;
            for i in (0..batch.len()).rev() {
                start += index % batch[i] * x.strides()[i] as usize;
                index /= batch[i];
            }
            start
        })
        .collect()
}

/// The last two dimensions as a matrix, of an array in memory `data`.
fn matrix<'a, T>(x: &Tensor, data: &'a [T]) -> Matrix<'a, T> {
    let dims = x.strides().len();
    let stride = |i: usize| x.strides()[i] as usize;
    Matrix::new(data, x.size(dims - 2), x.size(dims - 1), stride(dims - 2), stride(dims - 1))
}

/// Calls `one` with each pair of matrices of a batch and the place of their product, or once where the rows
/// of all can be taken as one matrix.
///
/// # Safety
///
/// The tensors are inputs and an output of MLX's, of the format of `T`.
unsafe fn products<T: Element>(
    a: &Tensor,
    b: &Tensor,
    out: &Tensor,
    mut one: impl FnMut(Matrix<'_, T>, Matrix<'_, T>, MatrixMut<'_, T>),
) -> Answer {
    let [mut copy_a, mut copy_b] = [const { Vec::<T>::new() }; 2];
    // SAFETY: the caller's promise.
    let (a, b) = unsafe { (&a.forwards(&mut copy_a), &b.forwards(&mut copy_b)) };
    // SAFETY: the caller's promise.
    let (data_a, data_b, data_out) = unsafe { (a.reach::<T>()?, b.reach::<T>()?, out.output::<T>()) };
    let columns = out.last();
    if b.strides().len() == 2
        && let Some((rows, step)) = a.collapsed(1)
    {
        let stride = a.strides().last().map_or(1, |&stride| stride as usize);
        let a = Matrix::new(data_a, rows, a.last(), step, stride);
        one(a, matrix(b, data_b), MatrixMut::contiguous(data_out, rows, columns));
        return Ok(());
    }
    let batch: Vec<usize> = a.shape().take(a.strides().len() - 2).collect();
    let rows = a.size(batch.len());
    let places = data_out.chunks_exact_mut((rows * columns).max(1));
    for ((start_a, start_b), place) in starts(a, &batch).into_iter().zip(starts(b, &batch)).zip(places) {
        one(
            matrix(a, &data_a[start_a..]),
            matrix(b, &data_b[start_b..]),
            MatrixMut::contiguous(place, rows, columns),
        );
    }
    Ok(())
}

pub(super) fn matmul([a, b, out, ..]: &Tensors, _: &Settings) -> Answer {
    with_float!(out.format(), T => {
        // SAFETY: MLX's arrays, of these formats.
        unsafe { products::<T>(a, b, out, |a, b, out| mlx_cpu::matmul(Cpu::global(), a, b, out)) }
    })
}

pub(super) fn addmm([a, b, c, out, ..]: &Tensors, settings: &Settings) -> Answer {
    with_float!(out.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        let c = unsafe { &c.forwards(&mut copy) };
        // SAFETY: as above.
        let data_c = unsafe { c.reach::<T>()? };
        let stride = |from_last: usize| {
            let i = c.strides().len().checked_sub(from_last);
            i.filter(|&i| c.size(i) > 1).map_or(0, |i| c.strides()[i] as usize)
        };
        let (row, column) = (stride(2), stride(1));
        // SAFETY: as above.
        unsafe {
            products::<T>(a, b, out, |a, b, out| {
                let c = Matrix::new(data_c, out.rows(), out.columns(), row, column);
                mlx_cpu::addmm(Cpu::global(), settings.a, a, b, settings.b, c, out);
            })
        }
    })
}

/// A mask `[..., L, S]`, whose missing and single dimensions stand for all of `shape`'s.
///
/// # Safety
///
/// The tensor is an input of MLX's, of the format of `T`.
unsafe fn mask_view<'a, T>(mask: &Tensor, shape: [usize; 4]) -> Result<View<'a, T, 4>, String> {
    let missing = 4 - mask.strides().len();
    let strides = std::array::from_fn(|i| {
        let own = i.checked_sub(missing).filter(|&own| mask.size(own) > 1);
        own.map_or(0, |own| mask.strides()[own] as usize)
    });
    // SAFETY: the caller's promise.
    Ok(View::new(unsafe { mask.reach()? }, shape, strides))
}

pub(super) fn attention(tensors: &Tensors, settings: &Settings) -> Answer {
    let [queries, keys, values, ..] = tensors;
    let mut rest = tensors[3..].iter();
    let mut next = || rest.next().ok_or("an array is missing");
    let mask = if settings.k & 1 != 0 { Some(next()?) } else { None };
    let sinks = if settings.k & 2 != 0 { Some(next()?) } else { None };
    let out = next()?;
    with_float!(out.format(), T => {
        let [mut copy_q, mut copy_k, mut copy_v, mut copy_sinks] = [const { Vec::<T>::new() }; 4];
        let (mut copy_bools, mut copy_mask) = (Vec::<bool>::new(), Vec::<T>::new());
        // SAFETY: MLX's arrays, of these formats.
        unsafe {
            let queries = heads(queries, &mut copy_q)?;
            let keys = heads(keys, &mut copy_k)?;
            let [batch, count, length, _] = queries.shape();
            let scores = [batch, count, length, keys.shape()[2]];
            let mask = match mask {
                Some(mask) if mask.format() == Format::Bool => {
                    Mask::Bool(mask_view(&mask.forwards(&mut copy_bools), scores)?)
                },
                Some(mask) => Mask::Additive(mask_view(&mask.forwards(&mut copy_mask), scores)?),
                None if settings.k & 4 != 0 => Mask::Causal,
                None => Mask::None,
            };
            let sinks = sinks.map(|sinks| {
                sinks.gather(&mut copy_sinks);
                &copy_sinks[..]
            });
            let strides = std::array::from_fn(|i| out.strides()[i] as usize);
            let out = ViewMut::new(out.output(), std::array::from_fn(|i| out.size(i)), strides);
            mlx_cpu::attention(
                Cpu::global(),
                queries,
                keys,
                heads(values, &mut copy_v)?,
                settings.a,
                mask,
                sinks,
                out,
            );
        }
        Ok(())
    })
}

/// Matrices `[.., R, C]`, each in one piece of memory.
struct Stack<'a, T> {
    data: &'a [T],
    /// How far apart they lie along each dimension before the last two: 0 where there is one for all.
    steps: [usize; MAX_DIMS],
    size: usize,
}

impl<'a, T: Copy> Stack<'a, T> {
    /// The matrices of a tensor: where their elements do not follow each other, of a copy.
    ///
    /// # Safety
    ///
    /// The tensor is an input of MLX's, of the format of `T`, and of at least two dimensions.
    unsafe fn new(x: &Tensor, copy: &'a mut Vec<T>) -> Result<Self, String> {
        let dims = x.strides().len();
        let follow = |(i, &stride): (usize, &i64)| {
            let step: usize = x.shape().skip(i + 1).product();
            x.size(i) == 1 || if i + 2 < dims { stride >= 0 } else { stride == step as i64 }
        };
        let mut steps = [0; MAX_DIMS];
        // SAFETY: the caller's promise.
        let data = if x.strides().iter().enumerate().all(follow) {
            for (i, (step, &stride)) in steps.iter_mut().zip(x.strides()).enumerate() {
                *step = if x.size(i) == 1 { 0 } else { usize::try_from(stride).unwrap_or(0) };
            }
            // SAFETY: as above.
            unsafe { x.reach()? }
        } else {
            for (i, step) in steps.iter_mut().enumerate().take(dims).filter(|&(i, _)| x.size(i) != 1) {
                *step = x.shape().skip(i + 1).product();
            }
            // SAFETY: as above.
            unsafe { x.gather(copy) };
            copy
        };
        Ok(Self { data, steps, size: x.size(dims - 2) * x.size(dims - 1) })
    }

    /// The matrix at this place.
    fn at(&self, place: &[usize]) -> &'a [T] {
        let first: usize = place.iter().zip(self.steps).map(|(index, step)| index * step).sum();
        &self.data[first..][..self.size]
    }
}

/// Quantized matrices `[.., R, C]`. Settings: `i` the mode, `j` the size of a group, `k` the bits.
struct QuantizedStack<'a, T> {
    weights: Stack<'a, u32>,
    scales: QuantizedScales<'a, T>,
    rows: usize,
    columns: usize,
    group: usize,
    bits: usize,
}

enum QuantizedScales<'a, T> {
    Affine { scales: Stack<'a, T>, biases: Stack<'a, T> },
    Floats { scales: Stack<'a, u8>, matrix: FloatMatrix<'a, T> },
}

/// [`QuantizedMatrix::mxfp4`] and its like.
type FloatMatrix<'a, T> =
    fn(&'a [u32], &'a [u8], usize, usize) -> Result<QuantizedMatrix<'a, T>, QuantizedLayoutError>;

/// Copies of what lies oddly.
struct Copies<T> {
    weights: Vec<u32>,
    codes: Vec<u8>,
    scales: Vec<T>,
    biases: Vec<T>,
}

impl<T> Copies<T> {
    const fn new() -> Self {
        Self { weights: Vec::new(), codes: Vec::new(), scales: Vec::new(), biases: Vec::new() }
    }
}

impl<'a, T: Element> QuantizedStack<'a, T> {
    /// Of packed weights, scales and, in the affine mode, biases.
    ///
    /// # Safety
    ///
    /// The tensors are inputs of MLX's; biases and, in the affine mode, scales of the format of `T`.
    unsafe fn new(
        [weights, scales, biases]: [&Tensor; 3],
        settings: &Settings,
        copies: &'a mut Copies<T>,
    ) -> Result<Self, String> {
        let (group, bits) = (settings.j as usize, settings.k as usize);
        let rows = weights.shape().nth_back(1).unwrap_or(1);
        let columns = scales.last() * group;
        // SAFETY: the caller's promise.
        unsafe {
            let scales = if settings.i == 0 {
                QuantizedScales::Affine {
                    scales: Stack::new(scales, &mut copies.scales)?,
                    biases: Stack::new(biases, &mut copies.biases)?,
                }
            } else {
                let matrix: FloatMatrix<'a, T> = match settings.i {
                    1 => QuantizedMatrix::mxfp4,
                    2 => QuantizedMatrix::mxfp8,
                    _ => QuantizedMatrix::nvfp4,
                };
                QuantizedScales::Floats { scales: Stack::new(scales, &mut copies.codes)?, matrix }
            };
            let weights = Stack::new(weights, &mut copies.weights)?;
            Ok(Self { weights, scales, rows, columns, group, bits })
        }
    }

    /// The matrix at this place.
    fn at(&self, place: &[usize]) -> Result<QuantizedMatrix<'a, T>, String> {
        let &Self { rows, columns, group, bits, .. } = self;
        let weights = self.weights.at(place);
        match &self.scales {
            QuantizedScales::Affine { scales, biases } => {
                let (scales, biases) = (scales.at(place), biases.at(place));
                QuantizedMatrix::affine(weights, scales, biases, rows, columns, bits, group)
            }
            QuantizedScales::Floats { scales, matrix } => matrix(weights, scales.at(place), rows, columns),
        }
        .map_err(|e| e.to_string())
    }
}

/// Calls `body` with each place of a stack whose outer dimensions have these sizes, and its number.
fn places(sizes: &[usize], mut body: impl FnMut(usize, &[usize]) -> Answer) -> Answer {
    let mut place = [0; MAX_DIMS];
    for number in 0..sizes.iter().product() {
        let mut rest = number;
        for (index, size) in place.iter_mut().zip(sizes).rev() {
            (*index, rest) = (rest % size, rest / size);
        }
        body(number, &place[..sizes.len()])?;
    }
    Ok(())
}

pub(super) fn quantized_matmul(tensors: &Tensors, settings: &Settings) -> Answer {
    let [x, weights, scales, biases, ..] = tensors;
    let out = if settings.i == 0 { &tensors[4] } else { biases };
    with_float!(out.format(), T => {
        let (mut copy, mut copies) = (Vec::<T>::new(), Copies::new());
        // SAFETY: MLX's arrays, of these formats.
        let (rows, stack, out) = unsafe {
            let stack = QuantizedStack::new([weights, scales, biases], settings, &mut copies)?;
            (x.rows(&mut copy)?, stack, out.output::<T>())
        };
        // Along the last of the outer dimensions one matrix may be for all, as a head's keys are for several
        // heads of queries: then all rows of x are multiplied with it at once.
        let outer = weights.strides().len() - 2;
        let own = (0..outer).rev().find(|&i| weights.size(i) != 1).map_or(0, |i| i + 1);
        let sizes: Vec<usize> = x.shape().take(own).collect();
        let count: usize = sizes.iter().product();
        let (each, columns) = (rows.rows() / count, out.len() / rows.rows());
        places(&sizes, |number, place| {
            let x = rows.part(number * each, each);
            let out = MatrixMut::contiguous(&mut out[number * each * columns..], each, columns);
            mlx_cpu::quantized_matmul(Cpu::global(), x, &stack.at(place)?, settings.l != 0, out);
            Ok(())
        })
    })
}

/// The matrices of a stack, in order.
///
/// # Safety
///
/// As for [`QuantizedStack::new`].
unsafe fn quantized_heads<'a, T: Element>(
    parts: &[Tensor],
    settings: &Settings,
    copies: &'a mut Copies<T>,
) -> Result<Vec<QuantizedMatrix<'a, T>>, String> {
    // Without biases in other modes than the affine.
    let [weights, scales, biases] = [0, 1, parts.len() - 1].map(|i| &parts[i]);
    // SAFETY: the caller's promise.
    let stack = unsafe { QuantizedStack::new([weights, scales, biases], settings, copies)? };
    let outer: Vec<usize> = weights.shape().take(weights.strides().len() - 2).collect();
    let mut matrices = Vec::with_capacity(outer.iter().product());
    places(&outer, |_, place| {
        matrices.push(stack.at(place)?);
        Ok(())
    })?;
    Ok(matrices)
}

pub(super) fn quantized_attention([queries, rest @ ..]: &Tensors, settings: &Settings) -> Answer {
    let parts = if settings.i == 0 { 3 } else { 2 };
    let ((keys, rest), has_mask) = (rest.split_at(parts), settings.l != 0);
    let (values, rest) = rest.split_at(parts);
    let (mask, out) = (has_mask.then_some(&rest[0]), &rest[usize::from(has_mask)]);
    with_float!(out.format(), T => {
        let [mut copy, mut copy_mask] = [const { Vec::<T>::new() }; 2];
        let (mut copy_bools, [mut copy_keys, mut copy_values]) = (Vec::new(), [const { Copies::<T>::new() }; 2]);
        let mut scores: Vec<usize> = queries.shape().collect();
        // SAFETY: MLX's arrays, of these formats.
        unsafe {
            let keys = quantized_heads(keys, settings, &mut copy_keys)?;
            let values = quantized_heads(values, settings, &mut copy_values)?;
            let queries = heads(queries, &mut copy)?;
            let [batch, count, length, _] = queries.shape();
            if let Some(last) = scores.last_mut() {
                *last = keys.first().map_or(0, QuantizedMatrix::rows);
            }
            let mask = match mask.map(|mask| mask.broadcast(&scores)) {
                Some(mask) if mask.format() == Format::Bool => Mask::Bool(heads(&mask, &mut copy_bools)?),
                Some(mask) => Mask::Additive(heads(&mask, &mut copy_mask)?),
                None => Mask::None,
            };
            mlx_cpu::attention(
                Cpu::global(),
                queries,
                QuantizedHeads::new(&keys, batch),
                QuantizedHeads::new(&values, batch),
                1.0, // queries are scaled
                mask,
                None,
                ViewMut::contiguous(out.output(), [batch, count, length, out.last()]),
            );
        }
        Ok(())
    })
}

pub(super) fn dequantize([weights, scales, biases, out, ..]: &Tensors, settings: &Settings) -> Answer {
    with_float!(out.format(), T => {
        let mut copies = Copies::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        let (stack, out) = unsafe {
            (QuantizedStack::new([weights, scales, biases], settings, &mut copies)?, out.output::<T>())
        };
        let outer: Vec<usize> = weights.shape().take(weights.strides().len() - 2).collect();
        let size = stack.rows * stack.columns;
        places(&outer, |number, place| {
            let out = MatrixMut::contiguous(&mut out[number * size..], stack.rows, stack.columns);
            mlx_cpu::dequantize(Cpu::global(), &stack.at(place)?, out);
            Ok(())
        })
    })
}

pub(super) fn quantize([w, weights, scales, biases, ..]: &Tensors, settings: &Settings) -> Answer {
    let (group, bits) = (settings.j as usize, settings.k as usize);
    with_float!(w.format(), T => {
        let mut copy = Vec::<T>::new();
        // SAFETY: MLX's arrays, of these formats.
        let (w, weights, scales, biases) = unsafe {
            (w.rows(&mut copy)?, weights.output(), scales.output::<T>(), biases.output::<T>())
        };
        mlx_cpu::quantize(Cpu::global(), w, bits, group, weights, scales, biases).map_err(|e| e.to_string())
    })
}
