//! The kernels of `lookup.rs`, compared with MLX's results and with float64.

use mlx_cpu::{Matrix, MatrixMut, QuantizedMatrix, dequantize, lookup, lookup_quantized};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::quantized::{Memory, Mode};
use crate::support::{Format, assert_same, cpus, each_format, few};

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("lookups.safetensors");
    for case in fixture.cases(&format!("{}_", T::NAME)) {
        let (w, ids) = (fixture.u32s(&case, "w"), fixture.u32s(&case, "ids"));
        let (scales, biases) = (fixture.floats::<T>(&case, "scales"), fixture.floats::<T>(&case, "biases"));
        let (bits, group) = (fixture.integer(&case, "bits"), fixture.integer(&case, "group"));
        let expected = fixture.floats::<T>(&case, "expected");
        let columns = expected.len() / ids.len();
        let rows = scales.len() * group / columns;
        let table = QuantizedMatrix::affine(&w, &scales, &biases, rows, columns, bits, group).unwrap();
        for cpu in cpus() {
            let mut out = vec![T::default(); expected.len()];
            lookup_quantized(cpu, &table, &ids, MatrixMut::contiguous(&mut out, ids.len(), columns));
            assert_same(&out, &expected, &format!("{case} {cpu:?}"));
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn matches_mlx() {
    each_format!(as_mlx());
}

fn as_dequantized<T: Format>() {
    let memory = Memory::<T>::new(Mode::Affine { bits: 3, group: 32 }, 1, 3, 160, 1);
    let table = memory.matrices(3)[0];
    for cpu in cpus() {
        let (mut all, mut out) = ([T::default(); 3 * 160], [T::default(); 3 * 160]);
        dequantize(cpu, &table, MatrixMut::contiguous(&mut all, 3, 160));
        lookup_quantized(cpu, &table, &[2, 0, 9], MatrixMut::contiguous(&mut out, 3, 160));
        let expected = [2, 0, 2].map(|row| &all[row * 160..][..160]).concat();
        assert_same(&out, &expected, &format!("{cpu:?}"));
    }
}

/// Small enough for Miri.
#[test]
fn quantized_rows_are_those_of_the_dequantized_table() {
    each_format!(as_dequantized());
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn rows_are_those_of_the_table(
        rows in 1_usize..9, columns in 0_usize..70, gap in 0_usize..3,
        ids in prop::collection::vec(0_u32..12, 0..20),
    ) {
        let memory: Vec<u16> = (0..rows * (columns + gap) + 1).map(|x| x as u16).collect();
        let table = Matrix::new(&memory, rows, columns, columns + gap, 1);
        for cpu in cpus() {
            let mut out = vec![7; ids.len() * columns];
            lookup(cpu, table, &ids, MatrixMut::contiguous(&mut out, ids.len(), columns));
            let expected: Vec<u16> = ids
                .iter()
                .flat_map(|&id| table.row((id as usize).min(rows - 1)).iter().copied())
                .collect();
            prop_assert_eq!(out, expected);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn many_rows_that_threads_share() {
    let memory: Vec<u32> = (0..100 * 1000).collect();
    let ids: Vec<u32> = (0..300).map(|i| i * 7 % 100).collect();
    for cpu in cpus() {
        let mut out = vec![0; 300 * 1000];
        lookup(cpu, Matrix::contiguous(&memory, 100, 1000), &ids, MatrixMut::contiguous(&mut out, 300, 1000));
        for (id, row) in ids.iter().zip(out.chunks(1000)) {
            assert!((id * 1000..).zip(row).all(|(x, &y)| x == y));
        }
    }
}

#[test]
#[should_panic(expected = "an empty table has no row")]
fn an_empty_table_has_no_row() {
    lookup::<u8>(&cpus()[0], Matrix::contiguous(&[], 0, 2), &[0], MatrixMut::contiguous(&mut [0; 2], 1, 2));
}
