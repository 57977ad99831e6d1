//! Models as other programs quantize them, written without any thought of speed.
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use std::fs::{self, File};
use std::io::Write;

use half::{bf16, f16};
use mlx_checkpoint::TensorDtype;
use mlx_rs::{Array, Dtype};
use mlx_safetensors::Header;
use serde_json::Value;
use tempfile::TempDir;

use crate::checkpoints::Tensors;

/// A tensor of a file, of any dtype.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// How its elements are stored.
    pub dtype: TensorDtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements as the file has them.
    pub bytes: Vec<u8>,
}

/// A tensor of words.
pub fn words(key: impl Into<String>, shape: &[usize], words: impl IntoIterator<Item = u32>) -> Stored {
    let bytes = words.into_iter().flat_map(u32::to_le_bytes).collect();
    Stored { key: key.into(), dtype: TensorDtype::I32, shape: shape.to_vec(), bytes }
}

/// A tensor of floats of 16 bits.
pub fn halves(key: impl Into<String>, shape: &[usize], numbers: impl IntoIterator<Item = f32>) -> Stored {
    let bytes = numbers.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
    Stored { key: key.into(), dtype: TensorDtype::F16, shape: shape.to_vec(), bytes }
}

/// Writes a checkpoint folder with this config and these tensors.
pub fn folder(config: &Value, tensors: &[Stored]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let infos = tensors.iter().map(|tensor| (tensor.key.clone(), tensor.dtype, tensor.shape.clone()));
    let header = Header::new([].into(), infos).unwrap();
    let mut file = File::create(folder.path().join("model.safetensors")).unwrap();
    file.write_all(&header.to_bytes().unwrap()).unwrap();
    tensors.iter().for_each(|tensor| file.write_all(&tensor.bytes).unwrap());
    folder
}

/// How a program quantizes the layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// 4 bits, in groups of this size.
    AutoAwq(usize),
    /// 4 bits, in groups of this size.
    AutoGptq(usize),
    /// 4 bits, in groups of this size, whose inputs are not neighbours.
    AutoGptqReordered(usize),
    /// Floats of 8 bits with a scale for blocks of this many rows and columns.
    Fp8([usize; 2]),
}

/// The checkpoint that a program makes of these tensors, and the tensors with the weights that it computes. All matrices but
/// the embedding table and the head are quantized. The other tensors become float16, or bfloat16 for FP8.
pub fn quantized_by(program: Program, tensors: Tensors) -> (Vec<Stored>, Tensors) {
    let (mut stored, mut twin) = (Vec::new(), Tensors::new());
    for (key, array) in tensors {
        let numbers = array.as_dtype(Dtype::Float32).unwrap().as_slice::<f32>().to_vec();
        let is_layer = array.ndim() == 2 && !key.contains("embed") && !key.contains("lm_head");
        let Some(layer) = key.strip_suffix(".weight").filter(|_| is_layer) else {
            let shape: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
            let (tensor, dtype) = match program {
                Program::Fp8(_) => (floats16(&key, &shape, &numbers), Dtype::Bfloat16),
                _ => (halves(&*key, &shape, numbers), Dtype::Float16),
            };
            stored.push(tensor);
            twin.push((key, array.as_dtype(dtype).unwrap()));
            continue;
        };
        let size = [array.shape()[0] as usize, array.shape()[1] as usize];
        let (parts, weight, dtype) = match program {
            Program::Fp8(block) => {
                let (parts, weight) = floats(layer, &numbers, size, block);
                (parts, weight, Dtype::Bfloat16)
            }
            program => {
                let (parts, weight) = packed(program, layer, &numbers, size);
                (parts, weight, Dtype::Float16)
            }
        };
        stored.extend(parts);
        let weight = Array::from_slice(&weight, array.shape()).as_dtype(dtype).unwrap();
        twin.push((key, weight));
    }
    (stored, twin)
}

fn floats16(key: &str, shape: &[usize], numbers: &[f32]) -> Stored {
    let bytes = numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
    Stored { key: key.to_owned(), dtype: TensorDtype::BF16, shape: shape.to_vec(), bytes }
}

/// Which of the eight outputs of a word of AutoAWQ is in each place.
const AWQ_OUTPUTS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

fn word(number: impl Fn(usize) -> u32) -> u32 {
    (0..8).map(|place| number(place) << (4 * place)).sum()
}

/// The tensors of a layer in 4 bits, and its weight.
fn packed(
    program: Program,
    layer: &str,
    w: &[f32],
    [outputs, inputs]: [usize; 2],
) -> (Vec<Stored>, Vec<f32>) {
    let (Program::AutoAwq(group) | Program::AutoGptq(group) | Program::AutoGptqReordered(group)) = program
    else {
        return (Vec::new(), Vec::new());
    };
    let groups = inputs / group;
    let group_of = |input: usize| match program {
        Program::AutoGptqReordered(_) => input % groups,
        _ => input / group,
    };
    let range = |output: usize, of: usize| {
        let members =
            (0..inputs).filter(|&input| group_of(input) == of).map(|input| w[output * inputs + input]);
        members.fold((0.0_f32, 0.0_f32), |(low, high), x| (low.min(x), high.max(x)))
    };
    let scale = |output, of| {
        let (low, high) = range(output, of);
        f16::from_f32(((high - low) / 15.0).max(1e-4)).to_f32()
    };
    let zero = |output, of| (-range(output, of).0 / scale(output, of)).round().clamp(1.0, 15.0) as u32;
    // `[groups, outputs]`
    let places = || (0..groups * outputs).map(|at| (at % outputs, at / outputs));
    let scales: Vec<f32> = places().map(|(output, of)| scale(output, of)).collect();
    let zeros: Vec<u32> = places().map(|(output, of)| zero(output, of)).collect();
    let of_group = |output: usize, input: usize| group_of(input) * outputs + output;
    let code = |output: usize, input: usize| {
        let at = of_group(output, input);
        ((w[output * inputs + input] / scales[at]).round() + zeros[at] as f32).clamp(0.0, 15.0) as u32
    };
    let weight = |at: usize| {
        let (output, input) = (at / inputs, at % inputs);
        let group = of_group(output, input);
        f16::from_f32((code(output, input) as f32 - zeros[group] as f32) * scales[group]).to_f32()
    };
    let key = |name: &str| format!("{layer}.{name}");
    let mut parts = vec![halves(key("scales"), &[groups, outputs], scales.iter().copied())];
    let (columns, rows) = (outputs / 8, inputs / 8);
    if let Program::AutoAwq(_) = program {
        let codes = (0..inputs * columns)
            .map(|at| word(|place| code(8 * (at % columns) + AWQ_OUTPUTS[place], at / columns)));
        let of_zeros = (0..groups * columns).map(|at| word(|place| zeros[8 * at + AWQ_OUTPUTS[place]]));
        parts.push(words(key("qweight"), &[inputs, columns], codes));
        parts.push(words(key("qzeros"), &[groups, columns], of_zeros));
    } else {
        let codes =
            (0..rows * outputs).map(|at| word(|place| code(at % outputs, 8 * (at / outputs) + place)));
        let of_zeros = (0..groups * columns).map(|at| word(|place| zeros[8 * at + place] - 1));
        parts.push(words(key("qweight"), &[rows, outputs], codes));
        parts.push(words(key("qzeros"), &[groups, columns], of_zeros));
        parts.push(words(key("g_idx"), &[inputs], (0..inputs).map(|input| group_of(input) as u32)));
    }
    (parts, (0..outputs * inputs).map(weight).collect())
}

/// The number of a float of 8 bits, E4M3.
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude =
        if exponent == 0 { fraction / 512.0 } else { (8.0 + fraction) * 2.0_f32.powi(exponent - 10) };
    if code < 128 { magnitude } else { -magnitude }
}

/// The tensors of a layer of floats of 8 bits, and its weight. Each code is the nearest to its number.
fn floats(
    layer: &str,
    w: &[f32],
    [rows, columns]: [usize; 2],
    [high, wide]: [usize; 2],
) -> (Vec<Stored>, Vec<f32>) {
    let (down, across) = (rows.div_ceil(high), columns.div_ceil(wide));
    let block_of = |at: usize| at / columns / high * across + at % columns / wide;
    let mut scales = vec![0.0_f32; down * across];
    w.iter().enumerate().for_each(|(at, x)| scales[block_of(at)] = scales[block_of(at)].max(x.abs() / 448.0));
    let distance = |x: f32, code: u8| (e4m3(code) - x).abs();
    let finite = || (0..=255_u8).filter(|code| code & 127 != 127);
    let nearest = |x: f32| finite().min_by(|&a, &b| distance(x, a).total_cmp(&distance(x, b))).unwrap();
    let codes: Vec<u8> = w.iter().enumerate().map(|(at, x)| nearest(x / scales[block_of(at)])).collect();
    let weight = |(at, &code): (usize, &u8)| bf16::from_f32(e4m3(code) * scales[block_of(at)]).to_f32();
    let weight = codes.iter().enumerate().map(weight).collect();
    let key = |name: &str| format!("{layer}.{name}");
    let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let scales =
        Stored { key: key("weight_scale_inv"), dtype: TensorDtype::F32, shape: vec![down, across], bytes };
    let codes =
        Stored { key: key("weight"), dtype: TensorDtype::F8_E4M3, shape: vec![rows, columns], bytes: codes };
    (vec![codes, scales], weight)
}
