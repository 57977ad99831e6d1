//! The kernel of `copy.rs`, compared with copies element by element.

use mlx_cpu::{Matrix, MatrixMut, View, ViewMut, add, copy_strided, multiply, subtract_from_rows};
use proptest::prelude::*;

use crate::support::{Format, assert_same, cpus, each_format, few, random};

/// Strides of a tensor whose axes lie in memory in this order, the last fastest, with gaps.
fn strides(shape: [usize; 4], order: [usize; 4], gap: usize) -> ([usize; 4], usize) {
    let (mut strides, mut next) = ([0; 4], 1);
    for axis in order.into_iter().rev() {
        strides[axis] = next;
        next = next * shape[axis].max(1) + gap;
    }
    (strides, next)
}

fn orders() -> impl Strategy<Value = [usize; 4]> {
    Just([0, 1, 2, 3]).prop_shuffle()
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn every_element_arrives(
        shape in [0_usize..4, 1_usize..5, 1_usize..40, 1_usize..40],
        (from_order, to_order) in (orders(), orders()),
        (from_gap, to_gap) in (0_usize..3, 0_usize..3),
        repeated in prop::option::of(0_usize..4),
    ) {
        let (mut from_strides, length) = strides(shape, from_order, from_gap);
        if let Some(axis) = repeated {
            from_strides[axis] = 0;
        }
        let (to_strides, to_length) = strides(shape, to_order, to_gap);
        let memory: Vec<u32> = (1..=length as u32 * 2).collect();
        let mut expected = vec![0; to_length * 2];
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    for l in 0..shape[3] {
                        let at = |strides: [usize; 4]| {
                            i * strides[0] + j * strides[1] + k * strides[2] + l * strides[3]
                        };
                        expected[at(to_strides)] = memory[at(from_strides)];
                    }
                }
            }
        }
        for cpu in cpus() {
            let mut out = vec![0; to_length * 2];
            let from = View::new(&memory, shape, from_strides);
            copy_strided(cpu, from, ViewMut::new(&mut out, shape, to_strides));
            prop_assert_eq!(&out, &expected);
        }
    }

    #[test]
    fn sums_and_products(
        rows in 0_usize..4, columns in 0_usize..70, gap in 0_usize..3, repeats in any::<bool>(), seed in 0_u64..1000,
    ) {
        each_format!(sums(rows, columns, gap, repeats, seed));
    }
}

fn sums<T: Format>(rows: usize, columns: usize, gap: usize, repeats: bool, seed: u64) {
    let stride = columns + gap;
    let (a, b) = (random::<T>(seed, rows * stride + columns), random::<T>(seed + 1, rows * stride + columns));
    let a = Matrix::new(&a, rows, columns, stride, 1);
    let b = Matrix::new(&b, rows, columns, if repeats { 0 } else { stride }, 1);
    for cpu in cpus() {
        let mut out = [(); 3].map(|()| vec![T::default(); rows * columns]);
        let [sum, product, difference] = &mut out;
        add(cpu, a, b, MatrixMut::contiguous(sum, rows, columns));
        multiply(cpu, a, b, MatrixMut::contiguous(product, rows, columns));
        let numbers = random::<T>(seed + 2, rows);
        subtract_from_rows(cpu, a, &numbers, MatrixMut::contiguous(difference, rows, columns));
        for (i, number) in numbers.iter().enumerate() {
            for (j, (&x, &y)) in a.row(i).iter().zip(b.row(i)).enumerate() {
                let (x, y) = (x.widen(), y.widen());
                let at = i * columns + j;
                let expected = [x + y, x * y, x - number.widen()].map(T::narrow);
                assert_same(&[0, 1, 2].map(|which| out[which][at]), &expected, "sum, product, difference");
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn large_copies_that_threads_share() {
    let memory: Vec<u16> = (0..1_200_000_u32).map(|x| x as u16).collect();
    for cpu in cpus() {
        let mut out = vec![0; memory.len()];
        let shape = [1, 1, 1, memory.len()];
        copy_strided(cpu, View::contiguous(&memory, shape), ViewMut::contiguous(&mut out, shape));
        assert!(out == memory);
        // [2, 3, 400, 500] as [2, 3, 500, 400].
        let from = View::new(&memory, [2, 3, 500, 400], [600_000, 200_000, 1, 500]);
        copy_strided(cpu, from, ViewMut::contiguous(&mut out, [2, 3, 500, 400]));
        assert!((0..out.len()).all(|at| {
            let (outer, inner) = (at / 200_000, at % 200_000);
            out[at] == memory[outer * 200_000 + inner / 400 + inner % 400 * 500]
        }));
    }
}

#[test]
#[should_panic(expected = "overlap")]
fn two_elements_in_one_place() {
    ViewMut::new(&mut [0_u8; 8], [1, 1, 2, 4], [8, 8, 3, 1]);
}

#[test]
#[should_panic(expected = "does not fit into 7")]
fn an_element_outside() {
    View::new(&[0_u8; 7], [1, 1, 2, 4], [8, 8, 4, 1]);
}
