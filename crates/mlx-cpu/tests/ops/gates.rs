//! The kernels of `gates.rs`, compared with MLX's results and with float64.

use approx::{abs_diff_eq, relative_eq};
use mlx_cpu::{Isa, Matrix, MatrixMut, geglu, gelu_tanh, silu, swiglu};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::support::{Format, assert_same, cpus, each_format, few, random, unit};

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("gates.safetensors");
    let (x, up) = (fixture.floats::<T>(T::NAME, "x"), fixture.floats::<T>(T::NAME, "up"));
    for cpu in cpus() {
        for name in ["silu", "swiglu", "gelu_tanh", "geglu"] {
            let mut out = vec![T::default(); x.len()];
            let to = MatrixMut::contiguous(&mut out, 1, x.len());
            let a = Matrix::contiguous(&x, 1, x.len());
            let b = Matrix::contiguous(&up, 1, x.len());
            match name {
                "silu" => silu(cpu, a, to),
                "swiglu" => swiglu(cpu, a, b, to),
                "gelu_tanh" => gelu_tanh(cpu, a, to),
                _ => geglu(cpu, a, b, to),
            }
            let expected = fixture.floats::<T>(T::NAME, name);
            let what = format!("{name} {cpu:?}");
            if name.starts_with("ge") && T::DIGITS == 23 {
                // The hyperbolic tangent is not MLX's.
                for ((&x, &a), (&b, &up)) in x.iter().zip(&out).zip(expected.iter().zip(&up)) {
                    let (x, a, b) = (f64::from(x.widen()), f64::from(a.widen()), f64::from(b.widen()));
                    let up = if name == "geglu" { f64::from(up.widen()).abs() } else { 1.0 };
                    let error = 3e-7 * x.abs() * up;
                    let is_near = relative_eq!(a, b, epsilon = error, max_relative = 0.0);
                    assert!(is_near || a.is_nan() && b.is_nan(), "{what}({x}): {a} {b}");
                }
            } else {
                assert_same(&out, &expected, &what);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn match_mlx() {
    each_format!(as_mlx());
}

/// Strides, tails and threads do not change a result.
fn is_elementwise<T: Format>(rows: usize, columns: usize, gap: usize, seed: u64) {
    let stride = 2 * columns + gap;
    let memory = random::<T>(seed, rows.max(1) * stride + 1);
    for cpu in cpus() {
        for gate in [swiglu::<T>, geglu::<T>] {
            let mut out = vec![T::narrow(7.0); rows * (columns + gap) + 1];
            let half = |from: usize| Matrix::new(&memory[from..], rows, columns, stride, 1);
            gate(cpu, half(0), half(columns), MatrixMut::new(&mut out, rows, columns, columns + gap));
            for i in 0..rows {
                for j in 0..columns {
                    let at = |from: usize| std::slice::from_ref(&memory[from + i * stride + j]);
                    let mut one = [T::default()];
                    let single = |from| Matrix::contiguous(at(from), 1, 1);
                    gate(cpu, single(0), single(columns), MatrixMut::contiguous(&mut one, 1, 1));
                    assert_same(&[out[i * (columns + gap) + j]], &one, &format!("{i} {j} {cpu:?}"));
                }
                let end = i * (columns + gap) + columns;
                assert!(out[end..end + gap].iter().all(|x| x.widen() == 7.0), "wrote between rows");
            }
        }
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn each_element_is_computed_on_its_own(
        rows in 0_usize..4, columns in 0_usize..70, gap in 0_usize..3, seed in 0_u64..1000,
    ) {
        each_format!(is_elementwise(rows, columns, gap, seed));
    }
}

#[test]
fn long_rows_that_threads_share() {
    if !cfg!(miri) {
        is_elementwise::<half::bf16>(2, 40_000, 0, 3);
    }
}

/// All numbers of a format give what float64 gives, within the roundings of the graph.
#[test]
fn silu_of_every_bfloat16() {
    let x: Vec<half::bf16> = (0..=u16::MAX).map(half::bf16::from_bits).collect();
    for cpu in cpus().iter().filter(|cpu| cpu.threads() == 1 && (cpu.isa() != Isa::Portable || !cfg!(miri))) {
        let mut out = vec![half::bf16::ZERO; x.len()];
        let to = MatrixMut::contiguous(&mut out, 1, x.len());
        silu(cpu, Matrix::contiguous(&x, 1, x.len()), to);
        for (x, y) in x.iter().zip(out).filter(|(x, _)| x.to_f32().abs() < 80.0) {
            let exact = x.to_f64() / (1.0 + (-x.to_f64()).exp());
            // The exponential and the sigmoid are rounded, and 1 - y cancels at most half a unit of 1.
            let error = exact.abs() / 60.0 + unit::<half::bf16>(0.0);
            assert!(abs_diff_eq!(y.to_f64(), exact, epsilon = error), "{:?}: {x} {y}", cpu.isa());
        }
    }
}
