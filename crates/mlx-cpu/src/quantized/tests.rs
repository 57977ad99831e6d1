//! Quantized matrices against their definition, read bit by bit, and against what MLX printed.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::matmul::tests::{is_close, numbers, on_all_processors, rounding};
use crate::simd::packing::{E2M1, e4m3, e8m0};
use crate::{ActivationBits, Isa};

#[derive(Debug, Clone, Copy)]
enum Mode {
    Affine { bits: usize, group: usize },
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl Mode {
    fn bits_and_group(self) -> (usize, usize) {
        match self {
            Self::Affine { bits, group } => (bits, group),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }
}

fn modes() -> impl Strategy<Value = Mode> {
    let bits = prop::sample::select(vec![2_usize, 3, 4, 5, 6, 8]);
    let groups = prop::sample::select(vec![32_usize, 64, 128]);
    prop_oneof![
        6 => (bits, groups).prop_map(|(bits, group)| Mode::Affine { bits, group }),
        1 => Just(Mode::Mxfp4),
        1 => Just(Mode::Mxfp8),
        1 => Just(Mode::Nvfp4),
    ]
}

/// The memory of a quantized matrix.
struct Memory<T> {
    mode: Mode,
    rows: usize,
    columns: usize,
    weights: Vec<u32>,
    scales: Vec<T>,
    biases: Vec<T>,
    bytes: Vec<u8>,
}

impl<T: Element> Memory<T> {
    fn new(mode: Mode, rows: usize, columns: usize, seed: u64) -> Self {
        let (bits, group) = mode.bits_and_group();
        let words = rows * columns * bits / 32;
        let groups = rows * columns / group;
        let weights: Vec<u32> = numbers(seed, 2 * words)
            .chunks(2)
            .map(|two| (two[0] * 32768.0) as i32 as u32 & 0xffff | ((two[1] * 32768.0) as i32 as u32) << 16)
            .collect();
        let narrow = |seed| numbers(seed, groups).into_iter().map(T::narrow).collect();
        // Scales between 1/16 and 16.
        let bytes = numbers(seed ^ 3, groups).into_iter().map(|x| match mode {
            Mode::Nvfp4 => (56.0 + x * 32.0) as u8,
            _ => (127.0 + x * 4.0) as u8,
        });
        Self {
            mode,
            rows,
            columns,
            weights,
            scales: narrow(seed ^ 1),
            biases: narrow(seed ^ 2),
            bytes: bytes.collect(),
        }
    }

    fn matrix(&self) -> QuantizedMatrix<'_, T> {
        let Self { rows, columns, ref weights, ref scales, ref biases, ref bytes, .. } = *self;
        match self.mode {
            Mode::Affine { bits, group } => {
                QuantizedMatrix::affine(weights, scales, biases, rows, columns, bits, group)
            }
            Mode::Mxfp4 => QuantizedMatrix::mxfp4(weights, bytes, rows, columns),
            Mode::Mxfp8 => QuantizedMatrix::mxfp8(weights, bytes, rows, columns),
            Mode::Nvfp4 => QuantizedMatrix::nvfp4(weights, bytes, rows, columns),
        }
        .unwrap()
    }

    /// The product of scale and code, and the bias. Bit by bit.
    fn element(&self, row: usize, column: usize) -> (f64, f64) {
        let (bits, group) = self.mode.bits_and_group();
        let index = row * self.columns + column;
        let mut code = 0;
        for bit in 0..bits {
            let place = index * bits + bit;
            code |= (self.weights[place / 32] >> (place % 32) & 1) << bit;
        }
        let g = index / group;
        match self.mode {
            Mode::Affine { .. } => {
                (f64::from(self.scales[g].widen()) * f64::from(code), f64::from(self.biases[g].widen()))
            }
            Mode::Mxfp4 => (f64::from(e8m0(self.bytes[g])) * f64::from(E2M1[code as usize]), 0.0),
            Mode::Mxfp8 => (f64::from(e8m0(self.bytes[g])) * f64::from(e4m3(code as u8)), 0.0),
            Mode::Nvfp4 => (f64::from(e4m3(self.bytes[g])) * f64::from(E2M1[code as usize]), 0.0),
        }
    }
}

#[derive(Debug, Clone)]
struct Case {
    mode: Mode,
    x_rows: usize,
    groups: usize,
    other: usize,
    transpose: bool,
    /// The layout of x: rows with a gap, contiguous columns, elements with a gap, or the same row again and again.
    layout: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let (most_rows, most_groups, most, all) =
        if cfg!(miri) { (20_usize, 3_usize, 6_usize, 12_usize) } else { (40, 8, 70, 300) };
    let x_rows = prop_oneof![4 => 1_usize..=5, 2 => 1..most_rows];
    let other = prop_oneof![4 => 1..most, 1 => most..all];
    (modes(), x_rows, 0..most_groups, other, any::<bool>(), 0_usize..4, any::<u64>()).prop_map(
        |(mode, x_rows, groups, other, transpose, layout, seed)| Case {
            mode,
            x_rows,
            groups,
            other,
            transpose,
            layout,
            seed,
        },
    )
}

/// A group of half-precision numbers in fixed point. With 16 bits: whole multiples of the smallest power of two for which
/// the largest number is less than 32640. With 8 bits: whole multiples of 1/127 of the largest number.
pub(crate) fn fixed(bits: ActivationBits, group: &[f64]) -> Vec<f64> {
    if bits == ActivationBits::Eight {
        // In float32, as the kernels compute it.
        let largest = group.iter().fold(2_f32.powi(-112), |largest, x| largest.max(x.abs() as f32));
        let (unit, inverse) = (largest / 127.0, 127.0 / largest);
        return group
            .iter()
            .map(|x| f64::from((*x as f32 * inverse).round_ties_even()) * f64::from(unit))
            .collect();
    }
    let largest = group.iter().fold(0_f64, |largest, x| largest.max(x.abs()));
    let unit = (-126..127).map(|power| f64::from(power).exp2()).find(|unit| largest < 32640.0 * unit);
    let unit = unit.unwrap_or(f64::INFINITY);
    group.iter().map(|x| (x / unit).round_ties_even() * unit).collect()
}

fn run<T: Element>(case: &Case, cpu: &Cpu) -> Result<Vec<f32>, TestCaseError> {
    let Case { mode, x_rows, groups, other, transpose, layout, seed } = *case;
    let memory = Memory::<T>::new(mode, other, groups * mode.bits_and_group().1, seed);
    let w = memory.matrix();
    let (depth, columns) = if transpose { (w.columns(), w.rows()) } else { (w.rows(), w.columns()) };
    let (row_stride, column_stride) = [(depth + 1, 1), (1, x_rows), (2 * depth + 1, 2), (0, 1)][layout];
    let length = x_rows * row_stride.max(1) + depth * column_stride;
    // Of different magnitudes, so that some lose digits in whole numbers.
    let x: Vec<T> = numbers(seed ^ 9, length)
        .into_iter()
        .enumerate()
        .map(|(k, x)| T::narrow(x * 2_f32.powi(-(k as i32 * 5 % 13))))
        .collect();
    let x = Matrix::new(&x, x_rows, depth, row_stride, column_stride);
    let mut out = vec![T::narrow(77.0); x_rows * (columns + 3)];
    quantized_matmul(cpu, x, &w, transpose, MatrixMut::new(&mut out, x_rows, columns, columns + 3));
    for row in out.chunks(columns + 3) {
        prop_assert!(row[columns..].iter().all(|x| x.widen() == 77.0), "written between rows");
    }
    let out: Vec<T> = out.chunks(columns + 3).flat_map(|row| &row[..columns]).copied().collect();
    let halves = size_of::<T>() == 2;
    let odd = matches!(mode, Mode::Mxfp8 | Mode::Affine { bits: 3 | 5 | 6, .. });
    let whole = halves && transpose && !odd;
    let elements: Vec<(f64, f64)> =
        (0..w.rows() * w.columns()).map(|at| memory.element(at / w.columns(), at % w.columns())).collect();
    for i in 0..x_rows {
        let x: Vec<f64> =
            (0..depth).map(|k| f64::from(x.data()[i * row_stride + k * column_stride].widen())).collect();
        let fixed = |x: &[f64]| fixed(cpu.activations(), x);
        let x: Vec<f64> = if whole { x.chunks(w.group).flat_map(fixed).collect() } else { x };
        for j in 0..columns {
            let (mut exact, mut sizes) = (0.0, 0.0);
            for (k, x) in x.iter().enumerate() {
                let (product, bias) = elements[if transpose { j * depth + k } else { k * columns + j }];
                exact += x * (product + bias);
                sizes += x.abs() * (product.abs() + bias.abs());
            }
            let value = out[i * columns + j];
            prop_assert!(
                is_close(value, exact, sizes, depth + 6),
                "({}, {}): {:?} for {}",
                i,
                j,
                value,
                exact
            );
        }
    }
    Ok(out.iter().map(|x| x.widen()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

    #[test]
    fn products_are_those_of_float64(case in cases()) {
        on_all_processors(|cpu| run::<f32>(&case, cpu))?;
        on_all_processors(|cpu| run::<f16>(&case, cpu))?;
        on_all_processors(|cpu| run::<bf16>(&case, cpu))?;
        for isa in Isa::available() {
            run::<bf16>(&case, &Cpu::new(isa, 2).with_activations(ActivationBits::Eight))?;
        }
    }

    #[test]
    fn dequantized_as_the_definition_says(
        mode in modes(), rows in 1_usize..if cfg!(miri) { 5 } else { 20 }, groups in 0_usize..5, seed in any::<u64>(),
    ) {
        plain(mode, rows, groups, seed)?;
    }
}

fn plain(mode: Mode, rows: usize, groups: usize, seed: u64) -> Result<(), TestCaseError> {
    let memory = Memory::<bf16>::new(mode, rows, groups * mode.bits_and_group().1, seed);
    for isa in Isa::available() {
        let w = memory.matrix();
        let mut out = vec![bf16::ZERO; rows * w.columns()];
        dequantize(&Cpu::new(isa, 2), &w, MatrixMut::contiguous(&mut out, rows, w.columns()));
        for (index, value) in out.iter().enumerate() {
            let (product, bias) = memory.element(index / w.columns(), index % w.columns());
            // The product is exact in float32 before it is rounded.
            let mut expected = bf16::from_f32(product as f32);
            if let Mode::Affine { .. } = mode {
                expected = bf16::from_f32(expected.to_f32() + bias as f32);
            }
            prop_assert_eq!(value.to_bits(), expected.to_bits(), "{} {}", isa.name(), index);
        }
    }
    Ok(())
}

/// All formats of codes, dequantized and in each kind of product; small enough for Miri.
#[test]
fn every_format() {
    let affine = [(2, 32), (3, 32), (4, 64), (5, 32), (6, 64), (8, 64)];
    let affine = affine.map(|(bits, group)| Mode::Affine { bits, group });
    for mode in affine.into_iter().chain([Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4]) {
        // Codes of two bits do not fill a vector of words.
        let groups = 64 / mode.bits_and_group().1;
        plain(mode, 2, groups, 1).unwrap();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            for (x_rows, other, transpose) in [(1, 18, true), (3, 5, true), (17, 5, true), (2, 3, false)] {
                let case = Case { mode, x_rows, groups, other, transpose, layout: x_rows % 4, seed: 2 };
                // Products that are not in whole numbers take the same path for both formats.
                if !cfg!(miri) || Memory::<bf16>::new(mode, 0, 0, 0).matrix().is_whole() {
                    run::<f32>(&case, &cpu).unwrap();
                }
                run::<bf16>(&case, &cpu).unwrap();
            }
        }
    }
}

/// Whole products have one order of sums for any number of rows, and those in float32 for up to 64.
#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn rows_have_the_bits_that_they_have_alone() {
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| [32, 64, 128].map(|group| (bits, group)));
    let affine = affine.map(|(bits, group)| Mode::Affine { bits, group });
    for mode in affine.chain([Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4]) {
        // More groups than scales are converted at a time, and parts of vectors of words.
        let group = mode.bits_and_group().1;
        alone::<bf16>(mode, ActivationBits::Sixteen, group * 35, [3, 20].into_iter());
        alone::<f32>(mode, ActivationBits::Sixteen, 384, 1..=64);
        for bits in [ActivationBits::Sixteen, ActivationBits::Eight] {
            alone::<f16>(mode, bits, 384, 1..=64);
            let whole = Memory::<bf16>::new(mode, 0, 0, 0).matrix().is_whole();
            alone::<bf16>(mode, bits, 384, (1..=64).chain(whole.then_some(130)));
        }
    }
}

/// Compares products of several rows with those of single rows.
fn alone<T: Element>(
    mode: Mode,
    bits: ActivationBits,
    depth: usize,
    rows: impl Iterator<Item = usize> + Clone,
) {
    let (columns, most) = (37, rows.clone().max().unwrap());
    let memory = Memory::<T>::new(mode, columns, depth, 5);
    let w = memory.matrix();
    let x: Vec<T> = numbers(6, most * depth)
        .into_iter()
        .enumerate()
        .map(|(k, x)| T::narrow(x * 2_f32.powi(-(k as i32 * 5 % 13))))
        .collect();
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2).with_activations(bits);
        let product = |first: usize, rows: usize| {
            let mut out = vec![T::default(); rows * columns];
            let x = Matrix::contiguous(&x[first * depth..(first + rows) * depth], rows, depth);
            quantized_matmul(&cpu, x, &w, true, MatrixMut::contiguous(&mut out, rows, columns));
            out.into_iter().map(|x| x.widen().to_bits()).collect::<Vec<_>>()
        };
        let singles: Vec<u32> = (0..most).flat_map(|row| product(row, 1)).collect();
        for rows in rows.clone() {
            let first = most - rows;
            assert!(
                product(first, rows) == singles[first * columns..],
                "{} {mode:?} {bits:?}: {rows} rows of {} numbers",
                isa.name(),
                size_of::<T>()
            );
        }
    }
}

#[test]
fn other_layouts_are_errors() {
    let (weights, scales) = ([0_u32; 32], [0.0_f32; 4]);
    let affine = |rows, columns, bits, group| {
        QuantizedMatrix::affine(&weights, &scales, &scales, rows, columns, bits, group)
            .map(|_| ())
            .unwrap_err()
    };
    assert_eq!(affine(4, 64, 7, 64), QuantizedLayoutError::Bits(7));
    assert_eq!(affine(4, 64, 4, 16), QuantizedLayoutError::Group(16));
    assert_eq!(affine(4, 96, 4, 64), QuantizedLayoutError::Columns { columns: 96, group: 64 });
    let error = affine(4, 128, 4, 128);
    assert_eq!(error, QuantizedLayoutError::Length { what: "words of weights", found: 32, expected: 64 });
    assert_eq!(error.to_string(), "32 words of weights where the shape asks for 64");
    assert_eq!(affine(8, 32, 4, 32), QuantizedLayoutError::Length { what: "scales", found: 4, expected: 8 });
}

/// FNV-1a.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn bytes<T: Element>(numbers: &[T]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|x| {
            let wide = x.widen();
            match (size_of::<T>(), rounding::<T>() == 2_f64.powi(-8)) {
                (4, _) => wide.to_bits().to_le_bytes().to_vec(),
                (_, true) => bf16::from_f32(wide).to_bits().to_le_bytes().to_vec(),
                _ => f16::from_f32(wide).to_bits().to_le_bytes().to_vec(),
            }
        })
        .collect()
}

/// The rows of `tests/reference/quantize.py`.
fn rows_of_all_kinds<T: Element>() -> Vec<T> {
    let mut x = numbers(7, 8 * 128);
    for (row, x) in x.chunks_mut(128).enumerate() {
        for (i, x) in x.iter_mut().enumerate() {
            *x = match row {
                1 => x.abs() + 0.5,
                2 => -x.abs() - 2.0,
                3 => 0.3,
                4 => 0.0,
                5 => *x * 1e-8,
                6 if i == 17 => 40.0,
                7 => 1.0_f32.copysign(*x),
                _ => *x,
            };
        }
    }
    x.into_iter().map(T::narrow).collect()
}

fn quantized_as_by_mlx<T: Element>(name: &str) {
    let w = rows_of_all_kinds::<T>();
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for &(_, bits, group, words, parameters, plain) in super::reference::QUANTIZED
            .iter()
            .filter(|row| row.0 == name)
            .step_by(if cfg!(miri) { 11 } else { 1 })
        {
            let mut weights = vec![0; 8 * 128 * bits / 32];
            let mut scales = vec![T::default(); 8 * 128 / group];
            let mut biases = scales.clone();
            let from = Matrix::contiguous(&w, 8, 128);
            quantize(&cpu, from, bits, group, &mut weights, &mut scales, &mut biases).unwrap();
            let case = format!("{} {name}, {bits} bits, groups of {group}", isa.name());
            assert_eq!(hash(weights.iter().flat_map(|x| x.to_le_bytes())), words, "codes: {case}");
            let found = hash(bytes(&scales).into_iter().chain(bytes(&biases)));
            assert_eq!(found, parameters, "scales and biases: {case}");
            let q = QuantizedMatrix::affine(&weights, &scales, &biases, 8, 128, bits, group).unwrap();
            let mut out = vec![T::default(); 8 * 128];
            dequantize(&cpu, &q, MatrixMut::contiguous(&mut out, 8, 128));
            assert_eq!(hash(bytes(&out)), plain, "dequantized: {case}");
        }
    }
}

#[test]
fn quantized_and_dequantized_as_by_mlx() {
    quantized_as_by_mlx::<f32>("f32");
    quantized_as_by_mlx::<f16>("f16");
    quantized_as_by_mlx::<bf16>("bf16");
}

/// Values that `mx.dequantize` printed.
#[test]
fn float_codes_are_those_of_mlx() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        let weights: Vec<u32> =
            (0..64_u8).map(|i| u32::from_le_bytes([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3])).collect();
        for (scale, expected) in [
            (0, [0.0, 1.148e-41, 8.035_6e-41, 2.633_107_3e-36, 2.821_186_4e-36, -2.821_186_4e-36]),
            (1, [0.0, 2.295_9e-41, 1.607_12e-40, 5.266_214_7e-36, 5.642_373e-36, -5.642_373e-36]),
            (127, [0.0, 1.953_125e-3, 1.367_187_5e-2, 448.0, 480.0, -480.0]),
        ] {
            let scales = [scale; 8];
            let mut out = [0.0; 256];
            let w = QuantizedMatrix::<f32>::mxfp8(&weights, &scales, 1, 256).unwrap();
            dequantize(&cpu, &w, MatrixMut::contiguous(&mut out, 1, 256));
            assert_eq!([0, 1, 7, 126, 127, 255].map(|i| out[i]), expected, "{} {scale}", isa.name());
        }
        // The scale is rounded first: 2^-27 is 0 in float16, and 2^127 is infinite.
        for (scale, expected) in [(120, -3.5), (135, f32::NEG_INFINITY), (0, 0.0), (100, 0.0)] {
            let mut out = [f16::ZERO; 32];
            let (weights, scales) = ([0xfefe_fefe; 8], [scale]);
            let w = QuantizedMatrix::<f16>::mxfp8(&weights, &scales, 1, 32).unwrap();
            dequantize(&cpu, &w, MatrixMut::contiguous(&mut out, 1, 32));
            assert_eq!(out[0].to_f32(), expected, "{} {scale}", isa.name());
        }
        // All numbers of E2M1, with scales E4M3 and E8M0.
        let weights = [0x7654_3210, 0xfedc_ba98].repeat(2);
        let numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (index, scale) in
            [(1_u8, 1.953_125e-3), (9, 1.757_812_5e-2), (0x38, 1.0), (128, 0.0), (0xfe, -448.0)]
        {
            let mut out = [0.0; 32];
            let scales = [index; 2];
            let w = QuantizedMatrix::<f32>::nvfp4(&weights, &scales, 1, 32).unwrap();
            dequantize(&cpu, &w, MatrixMut::contiguous(&mut out, 1, 32));
            let expected: Vec<f32> = numbers.iter().chain(&numbers.map(|x| -x)).map(|x| x * scale).collect();
            assert_eq!(out, expected.repeat(2)[..], "{} {index}", isa.name());
        }
        let mut out = [0.0; 32];
        let w = QuantizedMatrix::<f32>::mxfp4(&weights, &[130], 1, 32).unwrap();
        dequantize(&cpu, &w, MatrixMut::contiguous(&mut out, 1, 32));
        assert_eq!(out[..8], numbers.map(|x| x * 8.0), "{}", isa.name());
    }
}

/// A scale, bias or x that is not finite changes its own results and no others.
#[test]
fn what_is_not_finite_stays_in_its_row() {
    not_finite::<f32>();
    not_finite::<f16>();
    not_finite::<bf16>();
}

fn not_finite<T: Element>() {
    let rows = if cfg!(miri) { 9 } else { 37 };
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for x_rows in [1, 3, 20] {
            let all = [(4, f32::NAN), (8, f32::INFINITY), (3, f32::NAN), (2, f32::NEG_INFINITY)];
            for (bits, bad) in all.into_iter().step_by(if cfg!(miri) { 2 } else { 1 }) {
                let memory = Memory::<T>::new(Mode::Affine { bits, group: 32 }, rows, 96, 5);
                let (mut scales, mut biases) = (memory.scales.clone(), memory.biases.clone());
                scales[3 * 5 + 2] = T::narrow(bad);
                biases[3 * 8] = T::narrow(bad);
                let w =
                    QuantizedMatrix::affine(&memory.weights, &scales, &biases, rows, 96, bits, 32).unwrap();
                let mut x = vec![T::narrow(1.0); x_rows * 96];
                if x_rows > 1 {
                    x[96 + 40] = T::narrow(bad);
                }
                let mut out = vec![T::narrow(0.0); x_rows * rows];
                let x = Matrix::contiguous(&x, x_rows, 96);
                quantized_matmul(&cpu, x, &w, true, MatrixMut::contiguous(&mut out, x_rows, rows));
                for (index, out) in out.iter().map(|out| out.widen()).enumerate() {
                    let (x_row, row) = (index / rows, index % rows);
                    let finite = row != 5 && row != 8 && x_row != 1;
                    assert_eq!(out.is_finite(), finite, "{} {bits} {x_row} {row}: {out}", isa.name());
                }
            }
        }
    }
}

/// The largest sums of whole numbers, and the smallest numbers, in products whose result is known.
#[test]
fn the_ends_of_the_formats() {
    fn run<T: Element>(x: f32) {
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let step = if cfg!(miri) { 2 } else { 1 };
            for (bits, group) in [(2, 32), (4, 64), (4, 128), (8, 64), (8, 128)].into_iter().step_by(step) {
                // All codes of a group are the largest.
                let groups = if cfg!(miri) { 1 } else { 9 };
                let columns = groups * group;
                let (words, groups) = (vec![u32::MAX; 3 * columns * bits / 32], 3 * groups);
                let (scales, biases) =
                    (vec![T::narrow(2_f32.powi(-10)); groups], vec![T::narrow(0.0); groups]);
                let w = QuantizedMatrix::affine(&words, &scales, &biases, 3, columns, bits, group).unwrap();
                for x_rows in [1, 3, 17].into_iter().step_by(step) {
                    let all = vec![T::narrow(x); x_rows * columns];
                    let mut out = vec![T::default(); x_rows * 3];
                    let from = Matrix::contiguous(&all, x_rows, columns);
                    quantized_matmul(&cpu, from, &w, true, MatrixMut::contiguous(&mut out, x_rows, 3));
                    let code = f64::from((1 << bits) - 1);
                    let exact = f64::from(T::narrow(x).widen()) * code * columns as f64 * 2_f64.powi(-10);
                    for y in out {
                        let name = isa.name();
                        let overflows = exact.abs() > 65504.0 && T::PRECISION == 11;
                        let right = if overflows {
                            y.widen() == f32::INFINITY.copysign(x)
                        } else {
                            is_close(y, exact, exact.abs(), columns)
                        };
                        assert!(right, "{name} {bits} {group} {x_rows} {x}: {y:?} for {exact}");
                    }
                }
            }
        }
    }
    let step = if cfg!(miri) { 3 } else { 1 };
    for x in [65504.0, -65504.0, 1.0, 6e-8].into_iter().step_by(step) {
        run::<f16>(x);
    }
    // The second is the largest bfloat16 below a power of two.
    for x in [1e30, -1.992_187_5, 1.0, 2_f32.powi(-110), 2_f32.powi(-126), -1e30].into_iter().step_by(step) {
        run::<bf16>(x);
    }
}

/// The largest bfloat16, alone in its group: its exponent in float32 is the last one.
#[test]
fn the_largest_number_keeps_its_sign() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        for bits in [2, 4, 8] {
            let words = vec![u32::MAX; 64 * bits / 32];
            let (scales, biases) = ([bf16::from_f32(2_f32.powi(-20))], [bf16::ZERO]);
            let w = QuantizedMatrix::affine(&words, &scales, &biases, 1, 64, bits, 64).unwrap();
            for (at, x_rows) in [(0, 1), (63, 1), (17, 3), (5, 40)] {
                for largest in [bf16::MAX, bf16::MIN] {
                    let mut x = vec![bf16::ZERO; 64 * x_rows];
                    x[at] = largest;
                    let mut out = vec![bf16::ONE; x_rows];
                    let to = MatrixMut::contiguous(&mut out, x_rows, 1);
                    quantized_matmul(&cpu, Matrix::contiguous(&x, x_rows, 64), &w, true, to);
                    let exact = f64::from(largest) * f64::from((1 << bits) - 1) * 2_f64.powi(-20);
                    assert!(
                        is_close(out[0], exact, exact.abs(), 64),
                        "{} {bits} {at}: {:?}",
                        isa.name(),
                        out[0]
                    );
                }
            }
        }
    }
}

/// A model that checks draft tokens must answer like one that decodes them one by one.
#[test]
fn up_to_sixteen_rows_have_the_bits_that_each_has_alone() {
    let (columns, depth, step) = if cfg!(miri) { (18, 64, 5) } else { (70, 192, 1) };
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for bits in [2, 3, 4, 8] {
            let memory = Memory::<bf16>::new(Mode::Affine { bits, group: 64 }, columns, depth, 4);
            let w = memory.matrix();
            let x: Vec<_> = numbers(6, 16 * depth).into_iter().map(bf16::from_f32).collect();
            let product = |x: &[bf16]| {
                let rows = x.len() / depth;
                let mut out = vec![bf16::ZERO; rows * columns];
                let to = MatrixMut::contiguous(&mut out, rows, columns);
                quantized_matmul(&cpu, Matrix::contiguous(x, rows, depth), &w, true, to);
                out
            };
            let alone: Vec<_> = x.chunks(depth).flat_map(product).collect();
            for rows in (1..=16).step_by(step) {
                let together = product(&x[..rows * depth]);
                assert_eq!(together, alone[..rows * columns], "{} {bits} {rows}", isa.name());
            }
        }
    }
}

#[test]
fn nothing_gives_zeros_or_nothing() {
    let cpu = Cpu::new(Isa::best(), 2);
    let none = QuantizedMatrix::<f32>::affine(&[], &[], &[], 3, 0, 4, 64).unwrap();
    let mut out = [5.0; 6];
    let x = Matrix::contiguous(&[], 2, 0);
    quantized_matmul(&cpu, x, &none, true, MatrixMut::contiguous(&mut out, 2, 3));
    assert_eq!(out, [0.0; 6]);
    let none = QuantizedMatrix::<f32>::mxfp4(&[], &[], 0, 64).unwrap();
    let mut out = [5.0; 64];
    let x = Matrix::contiguous(&[], 1, 0);
    quantized_matmul(&cpu, x, &none, false, MatrixMut::contiguous(&mut out, 1, 64));
    assert_eq!(out, [0.0; 64]);
    let x = [1.0; 64];
    let x = Matrix::contiguous(&x, 1, 64);
    quantized_matmul(&cpu, x, &none, true, MatrixMut::contiguous(&mut [], 1, 0));
    dequantize(&cpu, &none, MatrixMut::contiguous(&mut [], 0, 64));
}
