//! The kernels of `rope.rs`, compared with MLX's results and with float64.

use mlx_cpu::{Frequencies, Rope, RopeLayout, View, rope};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::support::{Format, assert_near, assert_same, cpus, each_format, few, random, unit};

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("ropes.safetensors");
    for case in fixture.cases(&format!("{}_", T::NAME)) {
        let x = fixture.floats::<T>(&case, "x");
        let shape: [usize; 4] = fixture.shape(&case, "x").try_into().unwrap();
        let periods = fixture.optional_f32s(&case, "periods");
        let base = fixture.number(&case, "base");
        let arguments = Rope {
            dims: fixture.integer(&case, "dims"),
            layout: match fixture.integer(&case, "traditional") {
                0 => RopeLayout::Halves,
                _ => RopeLayout::Interleaved,
            },
            frequencies: match &periods {
                Some(periods) => Frequencies::Periods(periods),
                None => Frequencies::Base(base.unwrap()),
            },
            scale: fixture.number(&case, "scale").unwrap(),
        };
        for cpu in cpus() {
            let mut out = vec![T::default(); x.len()];
            rope(cpu, View::contiguous(&x, shape), &arguments, &fixture.i32s(&case, "offsets"), &mut out);
            assert_same(&out, &fixture.floats::<T>(&case, "expected"), &format!("{case} {cpu:?}"));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn matches_mlx() {
    each_format!(as_mlx());
}

/// A tensor [B, H, L, D] in the layout of projections: the heads of a position follow each other.
#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    heads: usize,
    length: usize,
    size: usize,
    gap: usize,
}

fn as_float64<T: Format>(shape: Shape, dims: usize, layout: RopeLayout, offsets: &[i32], seed: u64) {
    let Shape { batch, heads, length, size, gap } = shape;
    let width = heads * size + gap;
    let memory = random::<T>(seed, batch * length * width + 1);
    let x = View::new(&memory, [batch, heads, length, size], [length * width, size, width, 1]);
    let base = 10_000.0_f32;
    let arguments = Rope { dims, layout, frequencies: Frequencies::Base(base), scale: 0.5 };

    let mut first: Option<Vec<T>> = None;
    for cpu in cpus() {
        let mut out = vec![T::default(); batch * heads * length * size];
        rope(cpu, x, &arguments, offsets, &mut out);
        let mut at = 0;
        for row in 0..batch {
            for head in 0..heads {
                for position in 0..length {
                    let start = row * length * width + head * size + position * width;
                    let x: Vec<f64> =
                        memory[start..start + size].iter().map(|x| f64::from(x.widen())).collect();
                    let place =
                        0.5 * (position as f64 + f64::from(offsets[if offsets.len() > 1 { row } else { 0 }]));
                    let mut exact = x.clone();
                    let mut error = vec![0.0; size];
                    for pair in 0..dims / 2 {
                        let (i, j) = match layout {
                            RopeLayout::Halves => (pair, pair + dims / 2),
                            RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                        };
                        let angle = place * f64::from(base).powf(-(pair as f64) / (dims / 2) as f64);
                        exact[i] = x[i] * angle.cos() - x[j] * angle.sin();
                        exact[j] = x[i] * angle.sin() + x[j] * angle.cos();
                        let large = x[i].abs() + x[j].abs();
                        // The errors of the angle and of five roundings.
                        error[i] =
                            large * (angle * 1.5e-6 + 1e-6) + 2.0 * unit::<T>(large) + unit::<T>(1.0) * large;
                        error[j] = error[i];
                    }
                    assert_near(&out[at..at + size], &exact, |i| error[i], &format!("{shape:?} {cpu:?}"));
                    at += size;
                }
            }
        }
        match &first {
            Some(first) => assert_same(&out, first, &format!("{shape:?} {cpu:?}")),
            None => first = Some(out),
        }
    }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn matches_float64(
        (batch, heads, length) in (1_usize..3, 0_usize..4, 0_usize..5),
        (pairs, rest, gap) in (0_usize..40, 0_usize..9, 0_usize..3),
        halves in any::<bool>(),
        offsets in prop::collection::vec(0_i32..5000, 2),
        shared in any::<bool>(),
        seed in 0_u64..1000,
    ) {
        let shape = Shape { batch, heads, length, size: 2 * pairs + rest, gap };
        let layout = if halves { RopeLayout::Halves } else { RopeLayout::Interleaved };
        let offsets = &offsets[..if shared { 1 } else { batch }];
        each_format!(as_float64(shape, 2 * pairs, layout, offsets, seed));
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn positions_that_threads_share() {
    let shape = Shape { batch: 2, heads: 3, length: 150, size: 70, gap: 1 };
    each_format!(as_float64(shape, 64, RopeLayout::Halves, &[3], 8));
    each_format!(as_float64(shape, 64, RopeLayout::Interleaved, &[3, 700], 8));
}

#[test]
fn position_zero_changes_nothing() {
    let x = [1.0, f32::from_bits(1), -3.0, f32::MAX];
    for cpu in cpus() {
        let mut out = [0.0; 4];
        let arguments =
            Rope { dims: 4, layout: RopeLayout::Halves, frequencies: Frequencies::Base(1e4), scale: 1.0 };
        rope(cpu, View::contiguous(&x, [1, 1, 1, 4]), &arguments, &[0], &mut out);
        assert_eq!(out, x);
        let x = [f32::NAN, f32::INFINITY, 1.0, 2.0];
        rope(cpu, View::contiguous(&x, [1, 1, 1, 4]), &arguments, &[1], &mut out);
        assert!(out[0].is_nan() && out[2].is_nan());
        assert!(out[1] == f32::INFINITY && out[3] == f32::INFINITY);
    }
}

#[test]
#[should_panic(expected = "3 offsets for a batch of 1")]
fn offsets_must_fit_the_batch() {
    let arguments =
        Rope { dims: 2, layout: RopeLayout::Halves, frequencies: Frequencies::Base(1e4), scale: 1.0 };
    rope(&cpus()[0], View::contiguous(&[0.0_f32; 2], [1, 1, 1, 2]), &arguments, &[1, 2, 3], &mut [0.0; 2]);
}
