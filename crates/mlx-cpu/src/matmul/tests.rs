//! Products against sums in float64, on all instruction sets and several numbers of threads.

use approx::abs_diff_eq;
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::Isa;
use crate::products::{Lines, Panels};

/// Random numbers from a seed, from -1 to 1.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Half a unit in the last place of 1 in a format.
pub(crate) fn rounding<T: Element>() -> f64 {
    match size_of::<T>() {
        4 => 2_f64.powi(-24),
        _ if T::narrow(1.0 + 2_f32.powi(-10)).widen() > 1.0 => 2_f64.powi(-11),
        _ => 2_f64.powi(-8),
    }
}

pub(crate) fn is_close<T: Element>(value: T, exact: f64, sum_of_sizes: f64, depth: usize) -> bool {
    let value = f64::from(value.widen());
    let bound = (depth as f64 + 2.0) * 2_f64.powi(-24) * sum_of_sizes;
    // Numbers below the smallest normal one of float16 lie 2^-24 apart, those of the others 2^-126 and less.
    let apart = if rounding::<T>() == 2_f64.powi(-11) { 2_f64.powi(-25) } else { 2_f64.powi(-127) };
    let bound = bound + (exact.abs() + bound) * rounding::<T>() + apart;
    abs_diff_eq!(value, exact, epsilon = bound)
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    Rows,
    Columns,
    Apart,
}

fn strides(layout: Layout, rows: usize, columns: usize, gap: usize) -> (usize, usize) {
    match layout {
        Layout::Rows => (columns + gap, 1),
        Layout::Columns => (1, rows + gap),
        Layout::Apart => (2 * columns + gap, 2),
    }
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Rows), Just(Layout::Columns), Just(Layout::Apart)]
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    depth: usize,
    columns: usize,
    a: (Layout, usize),
    b: (Layout, usize),
    gap: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let (most, all) = if cfg!(miri) { (12_usize, 36_usize) } else { (40, 150) };
    let small = move || prop_oneof![4 => 1..most, 1 => most..all, 1 => Just(0_usize)];
    (small(), small(), small(), (layouts(), 0_usize..3), (layouts(), 0_usize..3), 0_usize..3, any::<u64>())
        .prop_map(|(rows, depth, columns, a, b, gap, seed)| Case { rows, depth, columns, a, b, gap, seed })
}

fn run<T: Element>(case: &Case, cpu: &Cpu) -> Result<Vec<f32>, TestCaseError> {
    let Case { rows, depth, columns, .. } = *case;
    let size = |(row, column): (usize, usize), rows: usize, columns: usize| {
        rows.saturating_sub(1) * row + columns.saturating_sub(1) * column + 1
    };
    let narrow = |numbers: Vec<f32>| numbers.into_iter().map(T::narrow).collect::<Vec<T>>();
    let (at, bt) = (strides(case.a.0, rows, depth, case.a.1), strides(case.b.0, depth, columns, case.b.1));
    // The gap shifts the beginning, too, so that vectors are not aligned.
    let a = narrow(numbers(case.seed, case.gap + size(at, rows, depth)));
    let b = narrow(numbers(case.seed ^ 0xabcd, case.gap + size(bt, depth, columns)));
    let a = Matrix::new(&a[case.gap..], rows, depth, at.0, at.1);
    let b = Matrix::new(&b[case.gap..], depth, columns, bt.0, bt.1);
    let c = narrow(numbers(case.seed ^ 0x1234, columns.max(1)));
    let stride = columns + case.gap;
    let mark = T::narrow(77.0);
    let (mut plain, mut sum) = (vec![mark; rows * stride], vec![mark; rows * stride]);
    matmul(cpu, a, b, MatrixMut::new(&mut plain, rows, columns, stride));
    let row = Matrix::new(&c, rows, columns, 0, 1);
    addmm(cpu, 0.5, a, b, -2.0, row, MatrixMut::new(&mut sum, rows, columns, stride));
    for i in 0..rows {
        for j in 0..stride {
            if j >= columns {
                prop_assert_eq!(plain[i * stride + j].widen(), 77.0, "written outside of the output");
                continue;
            }
            let (mut exact, mut sizes) = (0.0, 0.0);
            for k in 0..depth {
                let x = f64::from(a.data()[i * at.0 + k * at.1].widen())
                    * f64::from(b.data()[k * bt.0 + j * bt.1].widen());
                exact += x;
                sizes += x.abs();
            }
            prop_assert!(
                is_close(plain[i * stride + j], exact, sizes, depth),
                "({}, {}): {:?} for {}",
                i,
                j,
                plain[i * stride + j],
                exact
            );
            let c = -2.0 * f64::from(c[j].widen());
            let (exact, sizes) = (0.5 * exact + c, 0.5 * sizes + c.abs());
            prop_assert!(
                is_close(sum[i * stride + j], exact, sizes, depth + 2),
                "({}, {}): sum {:?} for {}",
                i,
                j,
                sum[i * stride + j],
                exact
            );
        }
    }
    Ok(plain.iter().chain(&sum).map(|x| x.widen()).collect())
}

pub(crate) fn on_all_processors(
    test: impl Fn(&Cpu) -> Result<Vec<f32>, TestCaseError>,
) -> Result<(), TestCaseError> {
    for isa in Isa::available() {
        let run = |threads| {
            let named = |error| TestCaseError::fail(format!("{}: {error}", isa.name()));
            test(&Cpu::new(isa, threads)).map_err(named)
        };
        let one = run(1)?;
        for threads in [2, 3] {
            let several = run(threads)?;
            prop_assert!(
                one.iter().zip(&several).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{} with {} threads differs",
                isa.name(),
                threads
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    #[test]
    fn products_are_those_of_float64(case in cases()) {
        on_all_processors(|cpu| run::<f32>(&case, cpu))?;
        on_all_processors(|cpu| run::<f16>(&case, cpu))?;
        on_all_processors(|cpu| run::<bf16>(&case, cpu))?;
    }

    #[test]
    fn a_few_rows(
        mut case in cases(), rows in 1_usize..=12, columns in 1_usize..if cfg!(miri) { 40 } else { 600 },
    ) {
        case.rows = rows;
        case.columns = columns;
        case.b.0 = Layout::Columns;
        on_all_processors(|cpu| run::<f32>(&case, cpu))?;
        on_all_processors(|cpu| run::<bf16>(&case, cpu))?;
    }
}

/// Each row of a product has the bits that it has alone: up to 64 rows, and any number of rows of bfloat16 with
/// AVX512-BF16. Rows are cut into parts if they are longer than 1024 numbers.
#[test]
fn rows_have_the_bits_of_single_rows() {
    let shapes = if cfg!(miri) { vec![(75, 21)] } else { vec![(37, 21), (640, 83), (1100, 70), (4500, 37)] };
    for (depth, columns) in shapes {
        same_bits::<f32>(depth, columns);
        same_bits::<f16>(depth, columns);
        same_bits::<bf16>(depth, columns);
    }
}

fn same_bits<T: Element>(depth: usize, columns: usize) {
    let few: &[usize] = if cfg!(miri) { &[2, 9, 20] } else { &[2, 3, 4, 5, 8, 9, 16, 17, 31, 40, 63, 64] };
    let many: &[usize] = if cfg!(miri) { &[] } else { &[65, 128, 150] };
    let narrow = |numbers: Vec<f32>| numbers.into_iter().map(T::narrow).collect::<Vec<T>>();
    let most = 150;
    // Rows lie apart, so that they begin anywhere in a cache line.
    let (a, b) = (narrow(numbers(5, most * (depth + 1))), narrow(numbers(6, columns * (depth + 3))));
    let w = Matrix::new(&b, columns, depth, depth + 3, 1).transposed();
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        let product = |first: usize, rows: usize| {
            let mut out = vec![T::default(); rows * columns];
            let x = Matrix::new(&a[first * (depth + 1)..], rows, depth, depth + 1, 1);
            matmul(&cpu, x, w, MatrixMut::contiguous(&mut out, rows, columns));
            out.into_iter().map(|x| x.widen().to_bits()).collect::<Vec<_>>()
        };
        let alone: Vec<_> = (0..most).flat_map(|row| product(row, 1)).collect();
        let any = isa == Isa::Avx512Bf16 && rounding::<T>() == 2_f64.powi(-8);
        for rows in few.iter().chain(if any { many } else { &[] }).copied() {
            let same = product(0, rows) == alone[..rows * columns];
            assert!(same, "{} {rows} rows of {depth} numbers", isa.name());
        }
    }
}

/// Shapes that are cut in every direction: rows into thousands, the depth beyond what caches hold,
/// weights into pieces.
#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn large_shapes() {
    for (rows, depth, columns) in
        [(1030, 5, 33), (30, 10_000, 33), (64, 3000, 70), (150, 2500, 90), (2, 130, 3000), (60, 130, 300)]
    {
        let case =
            Case { rows, depth, columns, a: (Layout::Rows, 0), b: (Layout::Columns, 0), gap: 0, seed: 1 };
        on_all_processors(|cpu| run::<f32>(&case, cpu)).unwrap();
        on_all_processors(|cpu| run::<bf16>(&case, cpu)).unwrap();
    }
}

/// NaN and infinity reach the elements that they are part of and no others.
#[test]
fn what_is_not_finite_stays_in_its_row_and_column() {
    not_finite::<f32>();
    not_finite::<bf16>();
}

fn not_finite<T: Element>() {
    let (depth, columns) = (37, 45);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for rows in [1, 3, 20, 40, 70] {
            let mut a: Vec<_> = numbers(1, rows * depth).into_iter().map(T::narrow).collect();
            let mut b: Vec<_> = numbers(2, columns * depth).into_iter().map(T::narrow).collect();
            a[(rows - 1) * depth + 36] = T::narrow(f32::NAN);
            b[7 * depth] = T::narrow(f32::INFINITY);
            b[44 * depth + 36] = T::narrow(f32::NEG_INFINITY);
            let mut out = vec![T::default(); rows * columns];
            let (x, w) = (Matrix::contiguous(&a, rows, depth), Matrix::contiguous(&b, columns, depth));
            matmul(&cpu, x, w.transposed(), MatrixMut::contiguous(&mut out, rows, columns));
            for i in 0..rows {
                for j in 0..columns {
                    let product =
                        |k: usize| f64::from(a[i * depth + k].widen()) * f64::from(b[j * depth + k].widen());
                    let exact: f64 = (0..depth).map(product).sum();
                    let found = out[i * columns + j].widen();
                    let same = if exact.is_finite() {
                        found.is_finite()
                    } else {
                        found.is_nan() == exact.is_nan() && (found.is_nan() || f64::from(found) == exact)
                    };
                    assert!(same, "{} {rows} rows, ({i}, {j}): {found} for {exact}", isa.name());
                }
            }
        }
    }
}

/// Denormal numbers count, except in instructions that multiply bfloat16, which take them as zeros.
#[test]
fn denormals() {
    let columns = 45;
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for rows in [1, 3, 20, 40, 70] {
            let tiny = vec![f32::from_bits(3); rows * 5];
            let twos = vec![2.0; 5 * columns];
            let mut out = vec![0.0; rows * columns];
            let (x, w) = (Matrix::contiguous(&tiny, rows, 5), Matrix::contiguous(&twos, columns, 5));
            matmul(&cpu, x, w.transposed(), MatrixMut::contiguous(&mut out, rows, columns));
            assert!(out.iter().all(|x| x.to_bits() == 30), "{} {rows} rows", isa.name());

            let is_zero = isa.multiplies_bf16();
            let tiny = vec![bf16::from_bits(3); rows * 5];
            for (factor, product) in
                [(2.0, 30), (2_f32.powi(40), bf16::from_f32(15.0 * 2_f32.powi(-93)).to_bits())]
            {
                let factors = vec![bf16::from_f32(factor); 5 * columns];
                let mut out = vec![bf16::ONE; rows * columns];
                let (x, w) = (Matrix::contiguous(&tiny, rows, 5), Matrix::contiguous(&factors, columns, 5));
                matmul(&cpu, x, w.transposed(), MatrixMut::contiguous(&mut out, rows, columns));
                let expected = if is_zero { 0 } else { product };
                assert!(
                    out.iter().all(|x| x.to_bits() == expected),
                    "{} {rows} rows: {factor:e}",
                    isa.name()
                );
            }
        }
    }
}

/// Around the smallest normal number, products of bfloat16 keep to the bound that `matmul` states.
#[test]
fn small_numbers() {
    let (depth, columns) = if cfg!(miri) { (27, 19) } else { (75, 35) };
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        for rows in [2, 20, 40, 70] {
            // Elements from 2^-137 on, products from 2^-147 to 2^-107.
            let spread = |seed, count, from: i32| -> Vec<_> {
                let exponents =
                    numbers(seed ^ 0x55, count).into_iter().map(|x| from + (10.0 * x + 10.0) as i32);
                let scaled = numbers(seed, count).into_iter().zip(exponents);
                scaled.map(|(x, exponent)| bf16::from_f64(f64::from(x) * 2_f64.powi(exponent))).collect()
            };
            let (a, b) = (spread(3, rows * depth, -130), spread(4, columns * depth, -10));
            let mut out = vec![bf16::ZERO; rows * columns];
            let (x, w) = (Matrix::contiguous(&a, rows, depth), Matrix::contiguous(&b, columns, depth));
            matmul(&cpu, x, w.transposed(), MatrixMut::contiguous(&mut out, rows, columns));
            let flushes = isa.multiplies_bf16();
            for (at, found) in out.iter().enumerate() {
                let (i, j) = (at / columns, at % columns);
                let (mut exact, mut sizes) = (0.0, 0.0);
                for k in 0..depth {
                    let a = f64::from(a[i * depth + k]);
                    let a = if flushes && a.abs() < 2_f64.powi(-126) { 0.0 } else { a };
                    let x = a * f64::from(b[j * depth + k]);
                    exact += x;
                    sizes += x.abs();
                }
                let steps = depth as f64 + 2.0;
                // What underflows: the stated bound, or half a step between denormal float32, at each step.
                let smallest =
                    if flushes { 2.0 * depth as f64 * 2_f64.powi(-126) } else { steps * 2_f64.powi(-150) };
                let bound = steps * 2_f64.powi(-24) * sizes + smallest;
                let bound = bound + (exact.abs() + bound) * rounding::<bf16>() + 2_f64.powi(-134);
                let close = abs_diff_eq!(f64::from(*found), exact, epsilon = bound);
                assert!(close, "{} {rows} rows, ({i}, {j}): {found:e} for {exact:e}", isa.name());
            }
        }
    }
}

#[test]
fn beta_zero_does_not_read_c() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        for rows in [1, 20] {
            let (a, b, c) = (vec![1.0; rows * 3], vec![2.0; 3 * 40], [f32::NAN]);
            let mut out = vec![0.0; rows * 40];
            addmm(
                &cpu,
                0.5,
                Matrix::contiguous(&a, rows, 3),
                Matrix::new(&b, 3, 40, 1, 3),
                0.0,
                Matrix::new(&c, rows, 40, 0, 0),
                MatrixMut::contiguous(&mut out, rows, 40),
            );
            assert!(out.iter().all(|x| *x == 3.0), "{} {rows}", isa.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

    /// Panels of pairs have the layout that the instructions need. Tested on processors without them, too.
    #[test]
    fn pairs(case in cases()) {
        let Case { rows: lines, columns, .. } = case;
        let stride = strides(case.a.0, lines, columns, case.a.1);
        let size = lines.saturating_sub(1) * stride.0 + columns.saturating_sub(1) * stride.1 + 1;
        let data: Vec<_> = numbers(case.seed, size).into_iter().map(bf16::from_f32).collect();
        let matrix = Matrix::new(&data, lines, columns, stride.0, stride.1);
        let element = |line: usize, k: usize| {
            let inside = line < lines && k < columns;
            if inside { data[line * stride.0 + k * stride.1].to_bits() } else { 0 }
        };
        for isa in Isa::available() {
            for (of, left) in [(Isa::Avx512Bf16, true), (Isa::Amx, true), (Isa::Avx512Bf16, false), (Isa::Amx, false)] {
                let pairs = if left { Pairs::left(matrix, of) } else { Pairs::right(matrix, of) };
                let depth = pairs.depth();
                prop_assert!(2 * depth >= columns && (of != Isa::Amx || depth.is_multiple_of(16)));
                let width = match (left, of) { (false, _) => 32, (_, Isa::Amx) => 16, _ => 13 };
                for first in (0..lines).step_by(width) {
                    let mut to = vec![f32::NAN; width * depth];
                    let lines = Lines { first, count: width.min(lines - first), width };
                    pairs.pack(isa, lines, &mut to, &mut vec![f32::NAN; pairs.scratch(16)]);
                    for line in 0..width {
                        for p in 0..depth {
                            let at = if left && of == Isa::Amx {
                                (p / 16 * width + line) * 16 + p % 16
                            } else {
                                p * width + line
                            };
                            let [low, high] = [element(first + line, 2 * p), element(first + line, 2 * p + 1)];
                            let expected = u32::from(low) | u32::from(high) << 16;
                            // Lines of the next panel do not belong to this one.
                            let expected = if line < lines.count { expected } else { 0 };
                            prop_assert_eq!(to[at].to_bits(), expected, "{}: {:?} {} {}", isa.name(), of, line, p);
                        }
                    }
                }
            }
        }
    }
}
