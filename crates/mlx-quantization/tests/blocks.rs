//! Block formats of GGUF files: numbers as `mlx-gguf` dequantizes them, products, gradients and errors.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use mlx_gguf::TensorType;
use mlx_quantization::{
    BlockFormat, Mode, Quantization, QuantizedArray, block_formats_work, dequantize, dequantize_blocks,
    from_blocks, quantize, quantized_matmul,
};
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::transforms::vjp;
use mlx_rs::{Array, Dtype};

/// Blocks of random codes, whose float16 scales lie between 1/16 and 1/2 with any sign.
fn blocks(format: BlockFormat, rows: i32, columns: i32, seed: u64) -> Vec<u8> {
    let bytes = format.block_bytes() as usize;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as u8
    };
    let mut all = Vec::new();
    for _ in 0..rows * (columns / format.block_elements()) {
        let mut block: Vec<u8> = (0..bytes).map(|_| next()).collect();
        let halves: &[usize] = match format {
            BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => &[0],
            BlockFormat::Q2_K => &[80, 82],
            BlockFormat::Q3_K => &[108],
            BlockFormat::Q6_K => &[208],
            _ => &[0, 2],
        };
        for &at in halves {
            block[at + 1] = block[at + 1] & 0x87 | 0x28;
        }
        all.extend(block);
    }
    all
}

fn kind(format: BlockFormat) -> TensorType {
    TensorType::all().find(|kind| kind.to_string() == format.name()).unwrap()
}

fn expected(format: BlockFormat, blocks: &[u8]) -> Vec<f32> {
    let mut numbers = Vec::new();
    mlx_gguf::dequantize(kind(format), blocks, &mut numbers);
    numbers
}

fn matrix(format: BlockFormat, rows: i32, columns: i32) -> (QuantizedArray, Array) {
    let blocks = blocks(format, rows, columns, 7);
    let numbers = Array::from_slice(&expected(format, &blocks), &[rows, columns]);
    (from_blocks(format, [rows, columns], &blocks).unwrap(), numbers)
}

fn x(shape: &[i32]) -> Array {
    let count: i32 = shape.iter().product();
    let numbers: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    Array::from_slice(&numbers, shape)
}

/// Columns of one chunk of groups and a part of another one.
fn columns(format: BlockFormat) -> i32 {
    if format.block_elements() == 32 { 640 } else { 768 }
}

fn bits(array: &Array) -> Vec<u32> {
    array.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn numbers_are_those_of_ggml_bit_for_bit() {
    assert!(block_formats_work());
    for format in BlockFormat::ALL {
        let (w, numbers) = matrix(format, 5, columns(format));
        let bytes = w.packed.nbytes() + w.scales.nbytes();
        assert_eq!(bytes, (5 * columns(format) / format.block_elements() * format.block_bytes()) as usize);
        let found = dequantize_blocks(&w, Dtype::Float32).unwrap();
        assert_eq!((found.shape(), found.dtype()), (numbers.shape(), Dtype::Float32), "{format}");
        assert_eq!(bits(&found), bits(&numbers), "{format}");
        let found = dequantize(&w).unwrap();
        assert_eq!(found.dtype(), Dtype::Bfloat16);
        assert_eq!(bits(&found), bits(&numbers.as_dtype(Dtype::Bfloat16).unwrap()), "{format}");
        // Rows of an embedding, in any order.
        let ids = Array::from_slice(&[4, 0, 4, 2], &[2, 2]);
        let rows = QuantizedArray {
            packed: w.packed.try_index(&ids).unwrap(),
            scales: w.scales.try_index(&ids).unwrap(),
            ..w
        };
        let found = dequantize_blocks(&rows, Dtype::Float16).unwrap();
        let numbers = numbers.try_index(&ids).unwrap().as_dtype(Dtype::Float16).unwrap();
        assert_eq!(bits(&found), bits(&numbers), "{format}");
    }
}

/// The largest difference of two arrays, as a part of the largest number of the second.
fn difference(a: &Array, b: &Array) -> f32 {
    let wide = |a: &Array| a.as_dtype(Dtype::Float32).unwrap();
    let largest =
        |a: &Array| mlx_rs::ops::max(mlx_rs::ops::abs(a).unwrap(), None).unwrap().item_exact::<f32>();
    largest(&wide(a).subtract(wide(b)).unwrap()) / largest(&wide(b))
}

#[test]
fn products_are_those_of_the_numbers() {
    for format in BlockFormat::ALL {
        let (rows, columns) = (37, columns(format));
        let (w, numbers) = matrix(format, rows, columns);
        for (dtype, within) in [(Dtype::Float32, 1e-5), (Dtype::Float16, 1e-3), (Dtype::Bfloat16, 6e-3)] {
            for m in [1, 3, 20] {
                let x = x(&[2, m, columns]).as_dtype(dtype).unwrap();
                let y = quantized_matmul(&x, &w, true).unwrap();
                assert_eq!((y.shape(), y.dtype()), (&[2, m, rows][..], dtype));
                let exact = x.as_dtype(Dtype::Float32).unwrap().matmul(numbers.t()).unwrap();
                assert!(
                    difference(&y, &exact) < within,
                    "{format} {dtype:?} {m}: {}",
                    difference(&y, &exact)
                );
            }
            let x = x(&[3, rows]).as_dtype(dtype).unwrap();
            let y = quantized_matmul(&x, &w, false).unwrap();
            let exact = x.as_dtype(Dtype::Float32).unwrap().matmul(&numbers).unwrap();
            assert!(difference(&y, &exact) < within, "{format} {dtype:?}");
        }
    }
}

#[test]
fn gradients_of_x_are_products_with_the_matrix() {
    for format in BlockFormat::ALL {
        let (rows, columns) = (9, columns(format));
        let (w, numbers) = matrix(format, rows, columns);
        for (transpose, numbers) in [(true, numbers.clone()), (false, numbers.t())] {
            let x = x(&[4, if transpose { columns } else { rows }]);
            let weights = self::x(&[4, if transpose { rows } else { columns }]);
            let (w, numbers) = (w.clone(), numbers.clone());
            let product = move |x: &[Array]| vec![quantized_matmul(&x[0], &w, transpose).unwrap()];
            let (_, gradients) = vjp(product, &[x], std::slice::from_ref(&weights)).unwrap();
            assert!(
                difference(&gradients[0], &weights.matmul(&numbers).unwrap()) < 1e-5,
                "{format} {transpose}"
            );
        }
    }
}

#[test]
fn no_config_names_a_block_format() {
    for format in BlockFormat::ALL {
        assert!(Mode::named(format.name()).is_err());
        assert_eq!(BlockFormat::named(format.name()), Some(format));
        let quantization = Quantization::blocks(format);
        assert_eq!(quantization.mode(), Mode::Blocks(format));
        assert_eq!(quantization.to_string(), format.name());
        assert!(!quantization.has_biases());
        assert!(Quantization::all().all(|known| known != quantization));
        let error = quantize(&x(&[2, 256]), quantization).unwrap_err().to_string();
        assert!(error.contains("GGUF"), "{error}");
    }
}

#[test]
fn blocks_of_another_length_are_errors() {
    for format in BlockFormat::ALL {
        let columns = columns(format);
        let all = blocks(format, 2, columns, 1);
        for (rows, columns, bytes) in
            [(2, columns, all.len() - 1), (3, columns, all.len()), (2, columns - 16, all.len())]
        {
            let error = from_blocks(format, [rows, columns], &all[..bytes]).unwrap_err().to_string();
            assert!(error.contains(format.name()), "{error}");
        }
        let (w, _) = matrix(format, 2, columns);
        let wrong = QuantizedArray { scales: w.packed.clone(), ..w.clone() };
        assert!(dequantize(&wrong).is_err() && quantized_matmul(&x(&[1, columns]), &wrong, true).is_err());
        assert!(quantized_matmul(&x(&[1, columns / 2]), &w, true).is_err());
    }
}
