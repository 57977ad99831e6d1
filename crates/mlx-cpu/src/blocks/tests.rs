//! Matrices of blocks against the definition of each format, read number by number, and against the package gguf.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::matmul::tests::{is_close, numbers, on_all_processors};
use crate::quantized::tests::{fixed, hash};
use crate::{ActivationBits, Isa, QuantizedLayoutError};

/// Made by `tests/reference/blocks.py` with the package gguf 0.19.
const HASHES: [(BlockFormat, u64); 10] = [
    (BlockFormat::Q4_0, 0xcef6_8c30_ef92_9c0a),
    (BlockFormat::Q4_1, 0xfe41_8ebb_1c92_dd7f),
    (BlockFormat::Q5_0, 0x6069_c312_c80b_499b),
    (BlockFormat::Q5_1, 0x6bac_59c7_de9f_bf2b),
    (BlockFormat::Q8_0, 0x1147_3a6a_8d92_1671),
    (BlockFormat::Q2_K, 0xfd38_86de_d3c4_b08f),
    (BlockFormat::Q3_K, 0x3591_381a_2fde_747a),
    (BlockFormat::Q4_K, 0xe05b_abdd_2f0a_5e5e),
    (BlockFormat::Q5_K, 0xcf93_7ba1_2b7a_25f9),
    (BlockFormat::Q6_K, 0xd885_d0ee_51aa_4118),
];

/// Random bytes, the same as in `tests/reference/blocks.py`.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 56) as u8
        })
        .collect()
}

/// Where the float16 of a block lie.
fn halves(format: BlockFormat) -> &'static [usize] {
    match format {
        BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4_K | BlockFormat::Q5_K => &[0, 2],
        BlockFormat::Q2_K => &[80, 82],
        BlockFormat::Q3_K => &[108],
        BlockFormat::Q6_K => &[208],
    }
}

/// The memory of a matrix, with the blocks that it was split from.
struct Memory {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    blocks: Vec<u8>,
    codes: Vec<u32>,
    scales: Vec<u8>,
}

impl Memory {
    fn new(format: BlockFormat, rows: usize, columns: usize, blocks: Vec<u8>) -> Self {
        let count = rows * columns / format.block();
        // Values that must not show through.
        let mut codes = vec![0xa5a5_a5a5; rows * columns * format.bits() / 32];
        let mut scales = vec![0xa5; count * format.scale_bytes()];
        split_blocks(&Cpu::new(Isa::Portable, 2), format, rows, columns, &blocks, &mut codes, &mut scales)
            .unwrap();
        Self { format, rows, columns, blocks, codes, scales }
    }

    /// Random blocks, whose float16 are the numbers that `half` makes of random bits.
    fn random(
        format: BlockFormat,
        rows: usize,
        columns: usize,
        seed: u64,
        half: impl Fn(u16) -> u16,
    ) -> Self {
        let mut blocks = bytes(seed, rows * columns / format.block() * format.block_bytes());
        for block in blocks.chunks_exact_mut(format.block_bytes()) {
            for &at in halves(format) {
                let bits = half(u16::from_le_bytes([block[at], block[at + 1]]));
                block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            }
        }
        Self::new(format, rows, columns, blocks)
    }

    fn matrix(&self) -> BlockMatrix<'_> {
        BlockMatrix::new(self.format, &self.codes, &self.scales, self.rows, self.columns).unwrap()
    }

    /// The scale, the code, the code of zero and the minimum of an element, by the definition of the format.
    fn parts(&self, row: usize, column: usize) -> [f32; 4] {
        let size = self.format.block_bytes();
        let index = (row * self.columns + column) / self.format.block();
        parts(self.format, &self.blocks[index * size..][..size], column % self.format.block())
    }

    fn element(&self, row: usize, column: usize) -> f32 {
        let [scale, code, zero, minimum] = self.parts(row, column);
        let number = scale * (code - zero);
        if self.format.has_minimums() { number - minimum } else { number }
    }
}

/// Element `i` of a block, as the loops of ggml find it.
fn parts(format: BlockFormat, b: &[u8], i: usize) -> [f32; 4] {
    let half = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
    let nibble = |at: usize| u32::from(b[at + i % 16] >> (4 * (i / 16)) & 15);
    let fifth = |at: usize| u32::from(b[at + i / 8] >> (i % 8) & 1) << 4;
    // In blocks of 256: the half, a quarter of it, and the place there.
    let (part, quarter, l) = (i / 128, i % 128 / 32, i % 32);
    let of_16 = 8 * part + 2 * quarter + l / 16;
    // In blocks with groups of 32.
    let group = i / 32;
    let six = |q: &[u8]| match group {
        0..4 => (q[group] & 63, q[group + 4] & 63),
        _ => (q[group + 4] & 15 | q[group - 4] >> 6 << 4, q[group + 4] >> 4 | q[group] >> 6 << 4),
    };
    let (scale, code, zero, minimum) = match format {
        BlockFormat::Q4_0 => (half(0), nibble(2), 8, 0.0),
        BlockFormat::Q4_1 => (half(0), nibble(4), 0, -half(2)),
        BlockFormat::Q5_0 => (half(0), nibble(6) | fifth(2), 16, 0.0),
        BlockFormat::Q5_1 => (half(0), nibble(8) | fifth(4), 0, -half(2)),
        BlockFormat::Q8_0 => (half(0), u32::from(b[2 + i] ^ 0x80), 128, 0.0),
        BlockFormat::Q2_K => {
            let code = b[16 + 32 * part + l] >> (2 * quarter) & 3;
            let (scale, minimum) = (f32::from(b[of_16] & 15), f32::from(b[of_16] >> 4));
            (half(80) * scale, code.into(), 0, half(82) * minimum)
        }
        BlockFormat::Q3_K => {
            let low = b[32 + 32 * part + l] >> (2 * quarter) & 3;
            let high = b[l] >> (4 * part + quarter) & 1;
            let q = &b[96..108];
            let scale =
                q[of_16 % 8] >> (4 * (of_16 / 8)) & 15 | (q[8 + of_16 % 4] >> (2 * (of_16 / 4)) & 3) << 4;
            (half(108) * (f32::from(scale) - 32.0), (low | high << 2).into(), 4, 0.0)
        }
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            let is_five = format == BlockFormat::Q5_K;
            let from = if is_five { 48 } else { 16 };
            let low = b[from + 32 * (group / 2) + l] >> (4 * (group % 2)) & 15;
            let high = if is_five { b[16 + l] >> group & 1 } else { 0 };
            let (scale, minimum) = six(&b[4..16]);
            (half(0) * f32::from(scale), (low | high << 4).into(), 0, half(2) * f32::from(minimum))
        }
        BlockFormat::Q6_K => {
            let low = b[64 * part + 32 * (quarter % 2) + l] >> (4 * (quarter / 2)) & 15;
            let high = b[128 + 32 * part + l] >> (2 * quarter) & 3;
            (half(208) * f32::from(b[192 + of_16].cast_signed()), (low | high << 4).into(), 32, 0.0)
        }
    };
    [scale, code as f32, zero as f32, minimum]
}

/// From 1/64 to 1/16, of any sign.
fn moderate(bits: u16) -> u16 {
    bits & 0x87ff | 0x2400
}

fn formats() -> impl Strategy<Value = BlockFormat> {
    prop::sample::select(BlockFormat::ALL.to_vec())
}

#[derive(Debug, Clone)]
struct Case {
    format: BlockFormat,
    x_rows: usize,
    /// Groups of 32 elements, rounded up to blocks.
    groups: usize,
    other: usize,
    transpose: bool,
    /// The layout of x: rows with a gap, contiguous columns, elements with a gap, or the same row again and again.
    layout: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let (most_rows, most_groups, most, all) =
        if cfg!(miri) { (20_usize, 3_usize, 6_usize, 12_usize) } else { (40, 45, 70, 200) };
    let x_rows = prop_oneof![4 => 1_usize..=5, 2 => 1..most_rows];
    let other = prop_oneof![4 => 1..most, 1 => most..all];
    (formats(), x_rows, 0..most_groups, other, any::<bool>(), 0_usize..4, any::<u64>()).prop_map(
        |(format, x_rows, groups, other, transpose, layout, seed)| Case {
            format,
            x_rows,
            groups,
            other,
            transpose,
            layout,
            seed,
        },
    )
}

fn run<T: Element>(case: &Case, cpu: &Cpu) -> Result<Vec<f32>, TestCaseError> {
    let Case { format, x_rows, groups, other, transpose, layout, seed } = *case;
    let columns = (32 * groups).next_multiple_of(format.block());
    let memory = Memory::random(format, other, columns, seed, moderate);
    let w = memory.matrix();
    let (depth, columns) = if transpose { (columns, other) } else { (other, columns) };
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
    matmul_blocks(cpu, x, &w, transpose, MatrixMut::new(&mut out, x_rows, columns, columns + 3));
    for row in out.chunks(columns + 3) {
        prop_assert!(row[columns..].iter().all(|x| x.widen() == 77.0), "written between rows");
    }
    let out: Vec<T> = out.chunks(columns + 3).flat_map(|row| &row[..columns]).copied().collect();
    let whole = size_of::<T>() == 2 && transpose;
    let elements: Vec<(f64, f64)> = (0..w.rows() * w.columns())
        .map(|at| {
            let (row, column) = (at / w.columns(), at % w.columns());
            let [scale, code, zero, minimum] = memory.parts(row, column).map(f64::from);
            (memory.element(row, column).into(), scale.abs() * (code + zero) + minimum.abs())
        })
        .collect();
    for i in 0..x_rows {
        let x: Vec<f64> =
            (0..depth).map(|k| f64::from(x.data()[i * row_stride + k * column_stride].widen())).collect();
        let multiplied = if whole {
            x.chunks(format.group()).flat_map(|x| fixed(ActivationBits::Sixteen, x)).collect()
        } else {
            x.clone()
        };
        for j in 0..columns {
            let (mut exact, mut sizes) = (0.0, 0.0);
            for (k, (x, multiplied)) in x.iter().zip(&multiplied).enumerate() {
                let (element, size) = elements[if transpose { j * depth + k } else { k * columns + j }];
                exact += multiplied * element;
                sizes += x.abs() * size;
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

/// The bits of a dequantized matrix in each format of numbers, on each instruction set.
fn plain(memory: &Memory) -> Result<(), TestCaseError> {
    fn compare<T: Element>(memory: &Memory, isa: Isa) -> Result<(), TestCaseError> {
        let mut out = vec![T::default(); memory.rows * memory.columns];
        let to = MatrixMut::contiguous(&mut out, memory.rows, memory.columns);
        dequantize_blocks(&Cpu::new(isa, 2), &memory.matrix(), to);
        for (index, value) in out.iter().enumerate() {
            let expected = memory.element(index / memory.columns, index % memory.columns);
            let (value, expected) = (value.widen(), T::narrow(expected).widen());
            prop_assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{} {} {}",
                isa.name(),
                memory.format,
                index
            );
        }
        Ok(())
    }
    for isa in Isa::available() {
        compare::<f32>(memory, isa)?;
        compare::<f16>(memory, isa)?;
        compare::<bf16>(memory, isa)?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 128 }))]

    #[test]
    fn products_are_those_of_float64(case in cases()) {
        on_all_processors(|cpu| run::<f32>(&case, cpu))?;
        on_all_processors(|cpu| run::<f16>(&case, cpu))?;
        on_all_processors(|cpu| run::<bf16>(&case, cpu))?;
    }

    #[test]
    fn dequantized_as_the_definition_says(
        format in formats(), rows in 1_usize..if cfg!(miri) { 2 } else { 9 }, blocks in 0_usize..5, seed in any::<u64>(),
    ) {
        // All finite float16, also those that are not normal numbers.
        let half = |bits: u16| if bits & 0x7c00 == 0x7c00 { bits & 0xbfff } else { bits };
        plain(&Memory::random(format, rows, blocks * format.block(), seed, half))?;
    }
}

/// All formats, dequantized and in each kind of product; small enough for Miri.
#[test]
fn every_format() {
    for format in BlockFormat::ALL {
        plain(&Memory::random(format, 1, format.block(), 1, moderate)).unwrap();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            for (x_rows, other, transpose) in [(1, 18, true), (3, 5, true), (17, 5, true), (2, 3, false)] {
                if cfg!(miri) && format.block() > 32 && x_rows > 1 {
                    continue;
                }
                let case = Case { format, x_rows, groups: 2, other, transpose, layout: x_rows % 4, seed: 2 };
                run::<f32>(&case, &cpu).unwrap();
                run::<bf16>(&case, &cpu).unwrap();
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "many numbers; dequantized_as_the_definition_says has fewer")]
fn dequantized_as_by_the_package_gguf() {
    for (format, expected) in HASHES {
        // Below 2.
        let memory = Memory::random(format, 3, 1280, 11, |bits| bits & 0xbfff);
        for isa in Isa::available() {
            let mut out = vec![0.0_f32; 3 * 1280];
            dequantize_blocks(&Cpu::new(isa, 2), &memory.matrix(), MatrixMut::contiguous(&mut out, 3, 1280));
            let found = hash(out.iter().flat_map(|x| x.to_le_bytes()));
            assert_eq!(found, expected, "{format} {}", isa.name());
        }
    }
}

/// No byte is added, and the order of blocks within a row is the order of the scales.
#[test]
fn codes_and_scales_have_the_bytes_of_the_blocks() {
    for format in BlockFormat::ALL {
        let memory = Memory::random(format, 2, 512, 3, moderate);
        assert_eq!(memory.codes.len() * 4 + memory.scales.len(), memory.blocks.len(), "{format}");
        let blocks = memory.blocks.chunks_exact(format.block_bytes());
        let halves: Vec<u8> = blocks.map(|block| block[halves(format)[0]]).collect();
        let count = 512 / format.block();
        for (row, halves) in halves.chunks_exact(count).enumerate() {
            let scales = &memory.scales[row * memory.scales.len() / 2..];
            let found: Vec<u8> = scales.chunks(2).map(|half| half[0]).take(count).collect();
            assert_eq!(found, halves, "{format}");
        }
    }
}

#[test]
fn other_lengths_are_errors() {
    let cpu = Cpu::new(Isa::Portable, 1);
    for format in BlockFormat::ALL {
        let memory = Memory::random(format, 3, 512, 3, moderate);
        let matrix = |codes, scales, rows, columns| {
            BlockMatrix::new(format, &memory.codes[..codes], &memory.scales[..scales], rows, columns)
                .unwrap_err()
        };
        let (codes, scales) = (memory.codes.len(), memory.scales.len());
        let error = matrix(codes, scales, 3, 496);
        assert_eq!(error, QuantizedLayoutError::Columns { columns: 496, group: format.block() }.clone());
        let error = matrix(codes - 1, scales, 3, 512);
        let expected =
            QuantizedLayoutError::Length { what: "words of weights", found: codes - 1, expected: codes };
        assert_eq!(error, expected);
        let error = matrix(codes, scales - 1, 3, 512);
        let expected =
            QuantizedLayoutError::Length { what: "bytes of scales", found: scales - 1, expected: scales };
        assert_eq!(error, expected);
        let (mut to, mut scales_to) = (memory.codes.clone(), memory.scales.clone());
        let short = &memory.blocks[1..];
        let error = split_blocks(&cpu, format, 3, 512, short, &mut to, &mut scales_to).unwrap_err();
        let (found, expected) = (short.len(), memory.blocks.len());
        assert_eq!(error, QuantizedLayoutError::Length { what: "bytes of blocks", found, expected });
    }
}

/// A scale or x that is not finite changes its own results and no others.
#[test]
fn what_is_not_finite_stays_in_its_row() {
    fn not_finite<T: Element>(format: BlockFormat) {
        let (rows, columns) = if cfg!(miri) { (9, 256) } else { (37, 768) };
        let mut blocks = Memory::random(format, rows, columns, 5, moderate).blocks;
        let size = format.block_bytes();
        let in_row = columns / format.block();
        for (row, bad) in [(5, f16::INFINITY), (8, f16::NAN)] {
            let block = &mut blocks[(row * in_row + in_row - 1) * size..][..size];
            block[halves(format)[0]..][..2].copy_from_slice(&bad.to_le_bytes());
        }
        let memory = Memory::new(format, rows, columns, blocks);
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            for x_rows in [1, 3, 20] {
                let mut x = vec![T::narrow(1.0); x_rows * columns];
                if x_rows > 1 {
                    x[columns + 40] = T::narrow(f32::INFINITY);
                }
                let mut out = vec![T::narrow(0.0); x_rows * rows];
                let x = Matrix::contiguous(&x, x_rows, columns);
                matmul_blocks(&cpu, x, &memory.matrix(), true, MatrixMut::contiguous(&mut out, x_rows, rows));
                for (index, out) in out.iter().map(|out| out.widen()).enumerate() {
                    let (x_row, row) = (index / rows, index % rows);
                    let finite = row != 5 && row != 8 && x_row != 1;
                    assert_eq!(out.is_finite(), finite, "{} {format} {x_row} {row}: {out}", isa.name());
                }
            }
        }
    }
    for format in BlockFormat::ALL.into_iter().step_by(if cfg!(miri) { 4 } else { 1 }) {
        not_finite::<f32>(format);
        not_finite::<f16>(format);
        not_finite::<bf16>(format);
    }
}

/// The largest sums of whole numbers, and the smallest numbers, in products whose result is known.
#[test]
fn the_ends_of_the_formats() {
    fn run<T: Element>(format: BlockFormat, code: u8, x: f32) {
        // All codes, scales and minimums of K formats are the same.
        let columns = if cfg!(miri) { format.block() } else { 4 * format.block() };
        let one = vec![code; 3 * columns / format.block() * format.block_bytes()];
        let mut memory = Memory::new(format, 3, columns, one);
        for block in memory.blocks.chunks_exact_mut(format.block_bytes()) {
            for &at in halves(format) {
                block[at..at + 2].copy_from_slice(&f16::from_f32(2_f32.powi(-10)).to_le_bytes());
            }
        }
        let memory = Memory::new(format, 3, columns, memory.blocks);
        let (exact, sizes) = (0..columns).fold((0.0, 0.0), |(exact, sizes), column| {
            let [scale, code, zero, minimum] = memory.parts(0, column).map(f64::from);
            let x = f64::from(T::narrow(x).widen());
            let sizes = sizes + x.abs() * (scale.abs() * (code + zero) + minimum.abs());
            (exact + x * f64::from(memory.element(0, column)), sizes)
        });
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            for x_rows in [1, 3, 17] {
                let all = vec![T::narrow(x); x_rows * columns];
                let mut out = vec![T::default(); x_rows * 3];
                let from = Matrix::contiguous(&all, x_rows, columns);
                matmul_blocks(&cpu, from, &memory.matrix(), true, MatrixMut::contiguous(&mut out, x_rows, 3));
                for y in out {
                    let overflows = exact.abs() > 65504.0 && T::PRECISION == 11;
                    let right = if overflows {
                        f64::from(y.widen()) == f64::INFINITY.copysign(exact)
                    } else {
                        is_close(y, exact, sizes, columns + 6)
                    };
                    assert!(right, "{} {format} {code} {x_rows} {x}: {y:?} for {exact}", isa.name());
                }
            }
        }
    }
    for format in BlockFormat::ALL.into_iter().step_by(if cfg!(miri) { 4 } else { 1 }) {
        for code in [0, 0x7f, 0x80, 0xff] {
            for x in [65504.0, -65504.0, 1.0, 6e-8].into_iter().step_by(if cfg!(miri) { 4 } else { 1 }) {
                run::<f16>(format, code, x);
            }
            let all = [1e30, -1.992_187_5, 2_f32.powi(-110), 2_f32.powi(-126), -1e30];
            for x in all.into_iter().step_by(if cfg!(miri) { 5 } else { 1 }) {
                run::<bf16>(format, code, x);
            }
        }
    }
}

/// A model that checks draft tokens must answer like one that decodes them one by one.
#[test]
fn up_to_sixteen_rows_have_the_bits_that_each_has_alone() {
    let (columns, step) = if cfg!(miri) { (18, 5) } else { (70, 1) };
    for format in BlockFormat::ALL.into_iter().step_by(if cfg!(miri) { 4 } else { 1 }) {
        let depth = if cfg!(miri) { format.block() } else { 3 * format.block() };
        let memory = Memory::random(format, columns, depth, 4, moderate);
        let w = memory.matrix();
        let x: Vec<_> = numbers(6, 16 * depth).into_iter().map(bf16::from_f32).collect();
        for isa in Isa::available() {
            let cpu = Cpu::new(isa, 2);
            let product = |x: &[bf16]| {
                let rows = x.len() / depth;
                let mut out = vec![bf16::ZERO; rows * columns];
                let to = MatrixMut::contiguous(&mut out, rows, columns);
                matmul_blocks(&cpu, Matrix::contiguous(x, rows, depth), &w, true, to);
                out
            };
            let alone: Vec<_> = x.chunks(depth).flat_map(product).collect();
            for rows in (1..=16).step_by(step) {
                let together = product(&x[..rows * depth]);
                assert_eq!(together, alone[..rows * columns], "{} {format} {rows}", isa.name());
            }
        }
    }
}

#[test]
fn nothing_gives_zeros_or_nothing() {
    let cpu = Cpu::new(Isa::best(), 2);
    for format in BlockFormat::ALL {
        let none = BlockMatrix::new(format, &[], &[], 3, 0).unwrap();
        let mut out = [5.0; 6];
        matmul_blocks(
            &cpu,
            Matrix::contiguous(&[], 2, 0),
            &none,
            true,
            MatrixMut::contiguous(&mut out, 2, 3),
        );
        assert_eq!(out, [0.0; 6]);
        let none = BlockMatrix::new(format, &[], &[], 0, 256).unwrap();
        let mut out = [5.0; 256];
        matmul_blocks(
            &cpu,
            Matrix::contiguous(&[], 1, 0),
            &none,
            false,
            MatrixMut::contiguous(&mut out, 1, 256),
        );
        assert_eq!(out, [0.0; 256]);
        let x = [1.0; 256];
        let x = Matrix::contiguous(&x, 1, 256);
        matmul_blocks(&cpu, x, &none, true, MatrixMut::contiguous(&mut [], 1, 0));
        dequantize_blocks(&cpu, &none, MatrixMut::contiguous(&mut [0.0_f32; 0], 0, 256));
        split_blocks(&cpu, format, 0, 256, &[], &mut [], &mut []).unwrap();
    }
}
