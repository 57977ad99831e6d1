//! The kernels of `softmax.rs`, compared with MLX's results and with float64.

use mlx_cpu::{Isa, Matrix, MatrixMut, argmax, logsumexp, softmax};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::support::{
    Format, assert_near, assert_same, assert_units, cpus, each_format, few, random, unit, widened,
};

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("softmaxes.safetensors");
    for case in fixture.cases(&format!("{}_", T::NAME)) {
        let x = fixture.floats::<T>(&case, "x");
        let [rows, columns]: [usize; 2] = fixture.shape(&case, "x").try_into().unwrap();
        let matrix = Matrix::contiguous(&x, rows, columns);
        for cpu in cpus() {
            let what = format!("{case} {cpu:?}");
            // In float32 the order of the sum shows in the last place.
            let units = if T::DIGITS == 23 { 3.0 } else { 0.0 };
            let mut out = vec![T::default(); x.len()];
            softmax(cpu, matrix, MatrixMut::contiguous(&mut out, rows, columns));
            assert_units(&out, &fixture.floats::<T>(&case, "softmax"), units, &what);
            let mut out = vec![T::default(); rows];
            logsumexp(cpu, matrix, &mut out);
            assert_units(&out, &fixture.floats::<T>(&case, "logsumexp"), units, &what);
            let mut out = vec![0; rows];
            argmax(cpu, matrix, &mut out);
            assert_eq!(out, fixture.u32s(&case, "argmax"), "{what}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn match_mlx() {
    each_format!(as_mlx());
}

fn as_float64<T: Format>(rows: usize, columns: usize, gap: usize, seed: u64) {
    let stride = columns + gap;
    let memory: Vec<T> = random(seed, rows * stride + 1);
    let x = Matrix::new(&memory, rows, columns, stride, 1);
    let mut first: Vec<(Isa, Vec<T>, Vec<T>)> = Vec::new();
    for cpu in cpus() {
        let what = format!("{rows} by {columns} {cpu:?}");
        let mut shares = vec![T::narrow(7.0); rows * stride + 1];
        softmax(cpu, x, MatrixMut::new(&mut shares, rows, columns, stride));
        let (mut sums, mut places) = (vec![T::default(); rows], vec![0; rows]);
        if columns > 0 {
            logsumexp(cpu, x, &mut sums);
            argmax(cpu, x, &mut places);
        }
        for i in 0..rows.min(if columns == 0 { 0 } else { rows }) {
            let row = widened(x.row(i));
            let top = row.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
            let exact: Vec<f64> = row.iter().map(|x| (x - top).exp() / sum).collect();
            // The errors of the sum and of MLX's exponential, which has no denormal results.
            let share =
                (columns.min(16_384) as f64 / 8.0 + columns as f64 / 16_384.0 + 8.0) * 2_f64.powi(-24);
            assert_near(
                &shares[i * stride..][..columns],
                &exact,
                |j| exact[j] * (share + 2e-6) + 2_f64.powi(-126),
                &what,
            );
            let error = share + 2e-6 + unit::<f32>(top) + 1e-6;
            assert_near(&sums[i..i + 1], &[top + sum.ln()], |_| error, &what);
            assert_eq!(Some(places[i] as usize), row.iter().position(|&x| x == top), "{what}");
            assert!(shares[i * stride + columns..][..gap].iter().all(|x| x.widen() == 7.0), "{what}");
        }
        match first.iter().find(|(isa, ..)| *isa == cpu.isa()) {
            Some((_, first, first_sums)) => {
                assert_same(&shares, first, &what);
                assert_same(&sums, first_sums, &what);
            }
            None => first.push((cpu.isa(), shares, sums)),
        }
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn match_float64(
        rows in 0_usize..5, columns in 0_usize..150, gap in 0_usize..3, seed in 0_u64..1000,
    ) {
        each_format!(as_float64(rows, columns, gap, seed));
    }
}

#[test]
fn long_rows_that_threads_share() {
    if !cfg!(miri) {
        each_format!(as_float64(2, 70_001, 1, 3));
        each_format!(as_float64(90, 900, 0, 4));
    }
}

/// The largest element lies in a later piece, with a NaN and an equal element elsewhere.
#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn argmax_takes_the_first_of_equal_elements_across_pieces() {
    for cpu in cpus() {
        let find = |changes: &[(usize, f32)]| {
            let mut x = vec![0.0_f32; 50_000];
            changes.iter().for_each(|&(at, value)| x[at] = value);
            let mut out = [7];
            argmax(cpu, Matrix::contiguous(&x, 1, x.len()), &mut out);
            out[0]
        };
        assert_eq!(find(&[]), 0);
        assert_eq!(find(&[(40_000, 1.0), (40_001, 1.0), (16_384, f32::NAN)]), 40_000);
        assert_eq!(find(&[(16_384, f32::NAN), (16_390, 2.0), (40_000, 1.0)]), 16_390);
        assert_eq!(find(&[(0, f32::NAN), (3, 2.0), (40_000, 1.0)]), 0);
        assert_eq!(find(&[(0, -0.0), (1, 0.0)]), 0);
        assert_eq!(find(&[(49_999, f32::INFINITY)]), 49_999);
    }
}

#[test]
#[should_panic(expected = "a row of no elements")]
fn an_empty_row_has_no_largest_element() {
    argmax::<f32>(&cpus()[0], Matrix::contiguous(&[], 1, 0), &mut [0]);
}
