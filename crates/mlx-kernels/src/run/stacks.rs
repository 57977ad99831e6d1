//! Tensors of three and more dimensions as stacks of matrices, plain and quantized.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "all have one reason: MLX's arrays hold what their format, shape and strides say, and live during the call"
)]

use mlx_cpu::{
    BlockFormat, BlockMatrix, Cpu, Element, Matrix, MatrixMut, QuantizedLayoutError, QuantizedMatrix,
};

use super::Answer;
use crate::abi::{Quantization, QuantizationMode, Tensor};
use crate::tensor::MAX_DIMS;

/// Matrices `[.., R, C]`, each in one piece of memory.
///
/// A place is an index for each dimension before the last two.
struct Stack<'a, T> {
    data: &'a [T],
    /// How many elements apart two matrices lie along each dimension before the last two; 0 where there is one matrix for
    /// the whole dimension.
    steps: [usize; MAX_DIMS],
    size: usize,
}

impl<'a, T: Copy> Stack<'a, T> {
    /// The matrices of a tensor. Where the elements of a matrix do not lie next to each other, those of a copy in `copy`.
    ///
    /// # Safety
    ///
    /// The tensor is an input from MLX, of the format of `T`, with two dimensions or more.
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

/// Quantized matrices `[.., R, C]`.
pub(super) struct QuantizedStack<'a, T> {
    weights: Stack<'a, u32>,
    scales: QuantizedScales<'a, T>,
    /// The sizes of the dimensions before the last two.
    pub(super) outer: Vec<usize>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    quantization: Quantization,
}

enum QuantizedScales<'a, T> {
    Affine { scales: Stack<'a, T>, biases: Stack<'a, T> },
    Floats { scales: Stack<'a, u8>, matrix: FloatMatrix<'a, T> },
    Blocks { scales: Stack<'a, u8>, format: BlockFormat },
}

/// A quantized matrix of any mode.
pub(super) enum AnyMatrix<'a, T> {
    Quantized(QuantizedMatrix<'a, T>),
    Blocks(BlockMatrix<'a>),
}

impl<T: Element> AnyMatrix<'_, T> {
    /// The product of `x` and this matrix, or its transpose.
    pub(super) fn multiply(&self, x: Matrix<'_, T>, transpose: bool, out: MatrixMut<'_, T>) {
        match self {
            Self::Quantized(w) => mlx_cpu::quantized_matmul(Cpu::global(), x, w, transpose, out),
            Self::Blocks(w) => mlx_cpu::matmul_blocks(Cpu::global(), x, w, transpose, out),
        }
    }

    /// Writes the numbers that the matrix stands for.
    pub(super) fn dequantize(&self, out: MatrixMut<'_, T>) {
        match self {
            Self::Quantized(w) => mlx_cpu::dequantize(Cpu::global(), w, out),
            Self::Blocks(w) => mlx_cpu::dequantize_blocks(Cpu::global(), w, out),
        }
    }
}

/// Makes a matrix of weights, scales, rows and columns.
type FloatMatrix<'a, T> =
    fn(&'a [u32], &'a [u8], usize, usize) -> Result<QuantizedMatrix<'a, T>, QuantizedLayoutError>;

/// What a mode's scales and codes are.
enum Kind<'a, T> {
    Affine,
    /// Small floats: how they make a matrix.
    Floats(FloatMatrix<'a, T>),
    Blocks(BlockFormat),
}

fn kind<'a, T: Element>(mode: QuantizationMode) -> Kind<'a, T> {
    match mode {
        QuantizationMode::Affine => Kind::Affine,
        QuantizationMode::Mxfp4 => Kind::Floats(QuantizedMatrix::mxfp4),
        QuantizationMode::Mxfp8 => Kind::Floats(QuantizedMatrix::mxfp8),
        QuantizationMode::Nvfp4 => Kind::Floats(QuantizedMatrix::nvfp4),
        QuantizationMode::Q4_0 => Kind::Blocks(BlockFormat::Q4_0),
        QuantizationMode::Q4_1 => Kind::Blocks(BlockFormat::Q4_1),
        QuantizationMode::Q5_0 => Kind::Blocks(BlockFormat::Q5_0),
        QuantizationMode::Q5_1 => Kind::Blocks(BlockFormat::Q5_1),
        QuantizationMode::Q8_0 => Kind::Blocks(BlockFormat::Q8_0),
        QuantizationMode::Q2_K => Kind::Blocks(BlockFormat::Q2_K),
        QuantizationMode::Q3_K => Kind::Blocks(BlockFormat::Q3_K),
        QuantizationMode::Q4_K => Kind::Blocks(BlockFormat::Q4_K),
        QuantizationMode::Q5_K => Kind::Blocks(BlockFormat::Q5_K),
        QuantizationMode::Q6_K => Kind::Blocks(BlockFormat::Q6_K),
    }
}

/// Room for copies of tensors whose matrices do not lie in one piece of memory.
pub(super) struct Copies<T> {
    weights: Vec<u32>,
    codes: Vec<u8>,
    scales: Vec<T>,
    biases: Vec<T>,
}

impl<T> Copies<T> {
    pub(super) const fn new() -> Self {
        Self { weights: Vec::new(), codes: Vec::new(), scales: Vec::new(), biases: Vec::new() }
    }
}

impl<'a, T: Element> QuantizedStack<'a, T> {
    /// The matrices of packed weights, scales and, in the affine mode, biases.
    ///
    /// # Safety
    ///
    /// The tensors are inputs from MLX with two dimensions or more. In the affine mode scales and biases have the format of
    /// `T`; in others the scales are bytes and the slot of the biases is empty.
    pub(super) unsafe fn new(
        [weights, scales, biases]: [&Tensor; 3],
        quantization: Quantization,
        copies: &'a mut Copies<T>,
    ) -> Result<Self, String> {
        let outer: Vec<usize> = weights.shape().take(weights.strides().len() - 2).collect();
        let rows = weights.size(outer.len());
        let columns = weights.last() * 32 / quantization.bits as usize;
        // SAFETY: the caller's promise.
        unsafe {
            let scales = match kind(quantization.mode) {
                Kind::Affine => QuantizedScales::Affine {
                    scales: Stack::new(scales, &mut copies.scales)?,
                    biases: Stack::new(biases, &mut copies.biases)?,
                },
                Kind::Floats(matrix) => {
                    QuantizedScales::Floats { scales: Stack::new(scales, &mut copies.codes)?, matrix }
                }
                Kind::Blocks(format) => {
                    QuantizedScales::Blocks { scales: Stack::new(scales, &mut copies.codes)?, format }
                }
            };
            let weights = Stack::new(weights, &mut copies.weights)?;
            Ok(Self { weights, scales, outer, rows, columns, quantization })
        }
    }

    /// The matrix at this place.
    pub(super) fn at(&self, place: &[usize]) -> Result<AnyMatrix<'a, T>, String> {
        let (rows, columns, weights) = (self.rows, self.columns, self.weights.at(place));
        let matrix = match &self.scales {
            QuantizedScales::Affine { scales, biases } => {
                let Quantization { group_size, bits, .. } = self.quantization;
                let (scales, biases) = (scales.at(place), biases.at(place));
                QuantizedMatrix::affine(
                    weights,
                    scales,
                    biases,
                    rows,
                    columns,
                    bits as usize,
                    group_size as usize,
                )
            }
            QuantizedScales::Floats { scales, matrix } => matrix(weights, scales.at(place), rows, columns),
            QuantizedScales::Blocks { scales, format } => {
                let blocks = BlockMatrix::new(*format, weights, scales.at(place), rows, columns);
                return blocks.map(AnyMatrix::Blocks).map_err(|e| e.to_string());
            }
        };
        matrix.map(AnyMatrix::Quantized).map_err(|e| e.to_string())
    }

    /// All matrices, in the order of their places.
    pub(super) fn matrices(&self) -> Result<Vec<QuantizedMatrix<'a, T>>, String> {
        let mut matrices = Vec::with_capacity(self.outer.iter().product());
        places(&self.outer, |_, place| {
            match self.at(place)? {
                AnyMatrix::Quantized(matrix) => matrices.push(matrix),
                AnyMatrix::Blocks(_) => return Err("keys and values are not in a block format".to_owned()),
            }
            Ok(())
        })?;
        Ok(matrices)
    }
}

/// Calls `body` for each place of a stack, with the number of the place and the place. `sizes` are the sizes of the
/// dimensions before the last two.
pub(super) fn places(sizes: &[usize], mut body: impl FnMut(usize, &[usize]) -> Answer) -> Answer {
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
