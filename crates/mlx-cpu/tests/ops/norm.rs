//! The kernels of `norm.rs`, compared with MLX's results and with float64.

use approx::assert_abs_diff_eq;
use mlx_cpu::{Matrix, MatrixMut, rms_norm};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::support::{
    Format, assert_near, assert_same, cpus, each_format, few, random, rounded, unit, widened,
};

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("norms.safetensors");
    for case in fixture.cases(&format!("{}_", T::NAME)) {
        let (x, weight) = (fixture.floats::<T>(&case, "x"), fixture.floats::<T>(&case, "weight"));
        let eps = fixture.number(&case, "eps").unwrap();
        let columns = weight.len();
        let rows = x.len() / columns;
        for cpu in cpus() {
            for (weight, expected) in [(Some(&weight[..]), "expected"), (None, "plain")] {
                let mut out = vec![T::default(); x.len()];
                let to = MatrixMut::contiguous(&mut out, rows, columns);
                rms_norm(cpu, Matrix::contiguous(&x, rows, columns), weight, eps, to);
                let what = format!("{case} {expected} {cpu:?}");
                // In float32 the order of the sum shows in the last place.
                let units = if T::DIGITS == 23 && columns > 1 { 8.0 } else { 0.0 };
                crate::support::assert_units(&out, &fixture.floats::<T>(&case, expected), units, &what);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn matches_mlx() {
    each_format!(as_mlx());
}

fn as_float64<T: Format>(rows: usize, columns: usize, gap: usize, offset: usize, seed: u64) {
    let stride = columns + gap;
    let memory = random::<T>(seed, offset + rows * stride + 1);
    let weight = random::<T>(seed + 1, columns);
    let x = Matrix::new(&memory[offset..], rows, columns, stride, 1);
    let eps = 1e-5_f32;
    let mut first: Vec<(mlx_cpu::Isa, Vec<T>)> = Vec::new();
    for cpu in cpus() {
        let mut out = vec![T::narrow(7.0); rows * stride + 1];
        rms_norm(cpu, x, Some(&weight), eps, MatrixMut::new(&mut out, rows, columns, stride));
        let what = format!("{rows} by {columns} {cpu:?}");
        for i in 0..rows {
            let row = widened(x.row(i));
            let mean = row.iter().map(|x| x * x).sum::<f64>() / columns as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            let exact: Vec<f64> = row
                .iter()
                .zip(&weight)
                .map(|(x, weight)| rounded::<T>(x * factor) * f64::from(weight.widen()))
                .collect();
            let sum = (columns as f64 / 4.0 + 8.0) * 2_f64.powi(-24);
            // The first rounding may differ: by one unit, times the weight.
            let error = |j: usize| {
                exact[j].abs() * sum + unit::<T>(row[j] * factor) * f64::from(weight[j].widen()).abs()
            };
            assert_near(&out[i * stride..][..columns], &exact, error, &what);
            let between = &out[i * stride + columns..][..gap.min(out.len() - i * stride - columns)];
            assert!(between.iter().all(|x| x.widen() == 7.0), "{what}: wrote between rows");
        }
        match first.iter().find(|(isa, _)| *isa == cpu.isa()) {
            Some((_, first)) => assert_same(&out, first, &what),
            None => first.push((cpu.isa(), out)),
        }
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn matches_float64(
        rows in 0_usize..5, columns in 0_usize..150, gap in 0_usize..3, offset in 0_usize..3, seed in 0_u64..1000,
    ) {
        each_format!(as_float64(rows, columns, gap, offset, seed));
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn rows_that_threads_share() {
    each_format!(as_float64(70, 2000, 1, 0, 5));
}

fn at_the_ends<T: Format>() {
    for cpu in cpus() {
        let norm = |x: &[f32]| {
            let x: Vec<T> = x.iter().map(|&x| T::narrow(x)).collect();
            let mut out = vec![T::default(); x.len()];
            let to = MatrixMut::contiguous(&mut out, 1, x.len());
            rms_norm(cpu, Matrix::contiguous(&x, 1, x.len()), None, 1e-6, to);
            out.iter().map(|x| x.widen()).collect::<Vec<_>>()
        };
        assert!(norm(&[1.0, f32::NAN, 2.0]).iter().all(|x| x.is_nan()));
        // The mean is infinite: numbers become 0, and infinity times 0 is NaN.
        let y = norm(&[1.0, f32::INFINITY]);
        assert!(y[0] == 0.0 && y[1].is_nan());
        assert_eq!(norm(&[0.0, -0.0]).iter().map(|x| x.to_bits()).collect::<Vec<_>>(), [0, 1 << 31]);
        assert!(norm(&[]).is_empty());
        // The square of a denormal is 0; eps keeps the factor finite.
        let small = T::of_bits(1).widen();
        assert_abs_diff_eq!(norm(&[small])[0], small * 1e3, epsilon = small * 2.0);
    }
}

#[test]
fn infinities_denormals_and_empty_rows() {
    each_format!(at_the_ends());
}
