use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::Isa;
use crate::matmul::tests::{is_close, numbers, on_all_processors};
use crate::simd::packing::{E2M1, e4m3, e8m0};

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
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let x_rows = prop_oneof![4 => 1_usize..=5, 1 => 1_usize..40];
    let other = prop_oneof![4 => 1_usize..70, 1 => 70_usize..300];
    (modes(), x_rows, 0_usize..8, other, any::<bool>(), any::<u64>()).prop_map(
        |(mode, x_rows, groups, other, transpose, seed)| Case {
            mode,
            x_rows,
            groups,
            other,
            transpose,
            seed,
        },
    )
}

fn run<T: Element>(case: &Case, cpu: &Cpu) -> Result<Vec<f32>, TestCaseError> {
    let Case { mode, x_rows, groups, other, transpose, seed } = *case;
    let memory = Memory::<T>::new(mode, other, groups * mode.bits_and_group().1, seed);
    let w = memory.matrix();
    let (depth, columns) = if transpose { (w.columns(), w.rows()) } else { (w.rows(), w.columns()) };
    // One element more than a row needs, so that rows are not aligned.
    let x: Vec<T> = numbers(seed ^ 9, x_rows * (depth + 1)).into_iter().map(T::narrow).collect();
    let x = Matrix::new(&x, x_rows, depth, depth + 1, 1);
    let mut out = vec![T::narrow(77.0); x_rows * columns];
    quantized_matmul(cpu, x, &w, transpose, MatrixMut::contiguous(&mut out, x_rows, columns));
    for i in 0..x_rows {
        for j in 0..columns {
            let (mut exact, mut sizes) = (0.0, 0.0);
            for (k, x) in x.row(i).iter().enumerate() {
                let (product, bias) = if transpose { memory.element(j, k) } else { memory.element(k, j) };
                let x = f64::from(x.widen());
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
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn products_are_those_of_float64(case in cases()) {
        on_all_processors(|cpu| run::<f32>(&case, cpu))?;
        on_all_processors(|cpu| run::<f16>(&case, cpu))?;
        on_all_processors(|cpu| run::<bf16>(&case, cpu))?;
    }

    #[test]
    fn dequantized_as_the_definition_says(mode in modes(), rows in 1_usize..20, groups in 0_usize..5, seed in any::<u64>()) {
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
    }
}

#[test]
fn what_is_no_quantized_matrix() {
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
