//! Compares operations of mlx-rs with kernels and with stock MLX.
//!
//! The tests of `mlx-cpu` compare its kernels with float64. These show that each way to call an operation reaches the right
//! kernel with the right arrays, or stock MLX.
#![cfg(all(target_os = "linux", not(feature = "without-cpu-kernels")))]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use approx::abs_diff_eq;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use mlx_rs::error::Result;
use mlx_rs::fast::{
    ScaledDotProductAttentionMask as Mask, rms_norm, rope, rope_dynamic, scaled_dot_product_attention,
};
use mlx_rs::ops::indexing::{Ellipsis, IntoStrideBy, TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{
    addmm, concatenate, dequantize, matmul, power, quantize, quantized_matmul, select, sigmoid, softmax_axis,
    tanh,
};
use mlx_rs::{Array, Device, Dtype, random, transforms};
use mlx_sys::cpu_kernels::{Evaluated, Runner, recorded, set_enabled};

const FLOATS: [Dtype; 3] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16];

/// Kernels are turned on and off for the whole process, so tests run one after the other. They are kernels for the CPU
/// device, which a build with a GPU does not use by default.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    static CPU: Once = Once::new();
    CPU.call_once(|| Device::set_default(&Device::cpu()));
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn normal(shape: &[i32], seed: u64, dtype: Dtype) -> Array {
    let key = random::key(seed).unwrap();
    random::normal::<f32>(shape, None, None, Some(&key)).unwrap().as_dtype(dtype).unwrap()
}

fn evaluated(make: impl Fn() -> Result<Array>, kernels: bool) -> Array {
    set_enabled(kernels);
    let y = make().unwrap();
    y.eval().unwrap();
    set_enabled(true);
    y
}

/// Kernels give what stock MLX gives. Elements may differ by `units` in the last place of the dtype, at the size of the
/// largest element, since sums of float32 are in another order.
fn assert_like_stock(what: &str, units: f64, make: impl Fn() -> Result<Array>) {
    assert_like(what, units, &make, &make);
}

/// `make` with kernels gives what `reference` gives with stock MLX.
fn assert_like(
    what: &str,
    units: f64,
    make: impl Fn() -> Result<Array>,
    reference: impl Fn() -> Result<Array>,
) {
    let (ours, stock) = (evaluated(make, true), evaluated(reference, false));
    assert_eq!(ours.shape(), stock.shape(), "{what}");
    assert_eq!(ours.dtype(), stock.dtype(), "{what}");
    let unit = match stock.dtype() {
        Dtype::Float16 => 2_f64.powi(-10),
        Dtype::Bfloat16 => 2_f64.powi(-7),
        // Stock MLX sums one element after the other, which is less exact.
        _ => 2_f64.powi(-20),
    };
    let [ours, stock] = [ours, stock].map(|y| y.as_dtype(Dtype::Float32).unwrap().evaluated_slice());
    let scale = stock.iter().filter(|y| y.is_finite()).fold(0_f64, |scale, y| scale.max(f64::from(y.abs())));
    for (i, (a, b)) in ours.iter().zip(&stock).enumerate() {
        let is_near = abs_diff_eq!(f64::from(*a), f64::from(*b), epsilon = units * unit * scale);
        assert!(is_near || a.is_nan() && b.is_nan(), "{what}: element {i} is {a}, and stock MLX's is {b}");
    }
}

trait EvaluatedSlice {
    fn evaluated_slice(&self) -> Vec<f32>;
}

impl EvaluatedSlice for Array {
    fn evaluated_slice(&self) -> Vec<f32> {
        if self.size() == 0 {
            return Vec::new();
        }
        // A copy in one piece of memory, since `as_slice` does not look at strides.
        let whole = self.reshape(&[-1]).unwrap().add(Array::from_f32(0.0)).unwrap();
        whole.eval().unwrap();
        whole.as_slice::<f32>().to_vec()
    }
}

#[test]
fn rms_norms() {
    let _turn = turn();
    for dtype in FLOATS {
        for shape in [&[5][..], &[1, 1, 640], &[2, 3, 7], &[4, 100, 64]] {
            let x = normal(shape, 1, dtype);
            let weight = normal(&shape[shape.len() - 1..], 2, dtype);
            assert_like_stock(&format!("{dtype:?} {shape:?}"), 2.0, || rms_norm(&x, Some(&weight), 1e-5));
            assert_like_stock(&format!("{dtype:?} {shape:?} bare"), 2.0, || rms_norm(&x, None, 1e-5));
            // Columns in the place of rows.
            let turned = normal(&[shape[shape.len() - 1], 6], 3, dtype).transpose().unwrap();
            assert_like_stock("turned", 2.0, || rms_norm(&turned, Some(&weight), 1e-5));
        }
        let heads = normal(&[2, 5, 4, 16], 4, dtype).transpose_axes(&[0, 2, 1, 3]).unwrap();
        let weight = normal(&[16], 5, dtype);
        assert_like_stock("heads", 2.0, || rms_norm(&heads, Some(&weight), 1e-5));
        // A weight of another dtype is left to stock MLX.
        let wide = normal(&[16], 5, Dtype::Float32);
        assert_like_stock("another dtype", 2.0, || rms_norm(&heads, Some(&wide), 1e-5));
    }
}

#[test]
fn rotations() {
    let _turn = turn();
    for dtype in FLOATS {
        let x = normal(&[2, 3, 5, 16], 1, dtype);
        let turned = normal(&[2, 5, 3, 16], 2, dtype).transpose_axes(&[0, 2, 1, 3]).unwrap();
        let periods = Array::from_slice(&[1.0_f32, 2.5, 10.0, 300.0], &[4]);
        let offsets = Array::from_slice(&[3_i32, 200], &[2]);
        for traditional in [false, true] {
            for x in [&x, &turned] {
                assert_like_stock("base", 1.0, || rope(x, 16, traditional, 10000.0, 1.0, 7, None));
                assert_like_stock("scale", 1.0, || rope(x, 8, traditional, 10000.0, 0.25, 1000, None));
                assert_like_stock("periods", 1.0, || rope(x, 8, traditional, None, 1.0, 0, &periods));
                assert_like_stock("offsets", 1.0, || {
                    rope_dynamic(x, 8, traditional, None, 1.0, &offsets, &periods)
                });
                assert_like_stock("offsets and base", 1.0, || {
                    rope_dynamic(x, 16, traditional, 500.0, 1.0, &offsets, None)
                });
            }
        }
        let flat = normal(&[2, 5, 16], 2, dtype);
        assert_like_stock("three axes", 1.0, || rope(&flat, 16, false, 10000.0, 1.0, 7, None));
    }
}

#[test]
fn attentions() {
    let _turn = turn();
    for dtype in FLOATS {
        for (heads, of_keys, length, keys, size) in
            [(1, 1, 1, 1, 8), (4, 1, 1, 37, 32), (4, 2, 5, 5, 16), (4, 2, 3, 70, 64), (6, 2, 33, 130, 16)]
        {
            let q = normal(&[2, length, heads, size], 1, dtype).transpose_axes(&[0, 2, 1, 3]).unwrap();
            let k = normal(&[2, of_keys, keys, size], 2, dtype);
            let v = normal(&[2, of_keys, keys, size], 3, dtype);
            let name = format!("{dtype:?} {heads} {of_keys} {length} {keys} {size}");
            let scale = (size as f32).powf(-0.5);
            assert_like_stock(&name, 4.0, || scaled_dot_product_attention(&q, &k, &v, scale, None, None));
            assert_like_stock(&format!("{name} causal"), 4.0, || {
                scaled_dot_product_attention(&q, &k, &v, scale, Mask::Causal, None)
            });
            let sinks = normal(&[heads], 4, dtype);
            assert_like_stock(&format!("{name} sinks"), 4.0, || {
                scaled_dot_product_attention(&q, &k, &v, scale, Mask::Causal, &sinks)
            });
            for shape in [&[length, keys][..], &[2, 1, length, keys], &[2, heads, 1, keys]] {
                let chosen = normal(shape, 5, Dtype::Float32).gt(Array::from_f32(-0.5)).unwrap();
                assert_like_stock(&format!("{name} chosen {shape:?}"), 4.0, || {
                    scaled_dot_product_attention(&q, &k, &v, scale, Mask::Array(&chosen), None)
                });
                let added = normal(shape, 6, dtype);
                assert_like_stock(&format!("{name} added {shape:?}"), 4.0, || {
                    scaled_dot_product_attention(&q, &k, &v, scale, Mask::Array(&added), &sinks)
                });
            }
            // Part of a longer cache, as in decoding.
            let longer = normal(&[2, of_keys, keys + 20, size], 7, dtype);
            let mut parts = longer.split_at_indices(&[keys], 2).unwrap();
            let part = parts.remove(0);
            assert_like_stock(&format!("{name} part"), 4.0, || {
                scaled_dot_product_attention(&q, &part, &part, scale, None, None)?
                    .transpose_axes(&[0, 2, 1, 3])?
                    .reshape(&[2, length, -1])
            });
        }
    }
}

#[test]
fn products() {
    let _turn = turn();
    for dtype in FLOATS {
        for (m, k, n) in [(1, 1, 1), (1, 64, 100), (3, 7, 5), (40, 33, 50), (1, 640, 300), (128, 100, 65)] {
            let name = format!("{dtype:?} {m} {k} {n}");
            let a = normal(&[m, k], 1, dtype);
            let b = normal(&[k, n], 2, dtype);
            let w = normal(&[n, k], 3, dtype);
            assert_like_stock(&name, 4.0, || matmul(&a, &b));
            assert_like_stock(&format!("{name} turned"), 4.0, || matmul(&a, w.transpose()?));
            let c = normal(&[n], 4, dtype);
            assert_like_stock(&format!("{name} and a row"), 4.0, || addmm(&c, &a, w.transpose()?, 0.5, 2.0));
            let c = normal(&[m, n], 5, dtype);
            assert_like_stock(&format!("{name} and a matrix"), 4.0, || addmm(&c, &a, &b, 1.0, -1.0));
            let c = normal(&[n, m], 5, dtype);
            assert_like_stock(&format!("{name} and one turned"), 4.0, || {
                addmm(c.transpose()?, &a, &b, 1.0, 1.0)
            });
            let many = normal(&[2, 3, m, k], 6, dtype);
            assert_like_stock(&format!("{name} many"), 4.0, || matmul(&many, &b));
            let beside = normal(&[2, 3, k, n], 7, dtype);
            assert_like_stock(&format!("{name} many by many"), 4.0, || matmul(&many, &beside));
            let turned = normal(&[2, 3, k, m], 8, dtype).swap_axes(-1, -2).unwrap();
            assert_like_stock(&format!("{name} many turned"), 4.0, || matmul(&turned, &beside));
            assert_like_stock(&format!("{name} broadcast"), 4.0, || matmul(&a, &beside));
            assert_like_stock(&format!("{name} vector"), 4.0, || {
                matmul(a.take_axis(Array::from_int(0), 0)?, &b)
            });
        }
    }
}

#[test]
fn quantized_products() {
    let _turn = turn();
    for dtype in FLOATS {
        for (bits, group_size) in [(2, 32), (3, 64), (4, 64), (4, 128), (5, 32), (6, 64), (8, 32), (8, 64)] {
            for (m, k, n) in [(1, 128, 64), (1, 640, 96), (5, 256, 128), (70, 128, 256)] {
                let (q, scales, biases) = quantize(normal(&[n, k], 1, dtype), group_size, bits).unwrap();
                // The reference is float32: stock MLX sums in the dtype itself, and is less exact than the kernels.
                let wide = |x: &Array| x.as_dtype(Dtype::Float32);
                let weights = || dequantize(&q, wide(&scales)?, &wide(&biases)?, group_size, bits);
                let x = normal(&[2, m, k], 2, dtype);
                let name = format!("{dtype:?} {bits} {group_size} {m} {k} {n}");
                assert_like(
                    &name,
                    4.0,
                    || quantized_matmul(&x, &q, &scales, &biases, true, group_size, bits),
                    || matmul(wide(&x)?, weights()?.transpose()?)?.as_dtype(dtype),
                );
                let x = normal(&[m, n], 2, dtype);
                assert_like(
                    &format!("{name} turned"),
                    4.0,
                    || quantized_matmul(&x, &q, &scales, &biases, false, group_size, bits),
                    || matmul(wide(&x)?, weights()?)?.as_dtype(dtype),
                );
                for part in 0..3 {
                    assert_like_stock("quantize", 0.0, || {
                        let parts = quantize(normal(&[2, n, k], 1, dtype), group_size, bits)?;
                        let part = <[Array; 3]>::from(parts)[part].clone();
                        if part.dtype() != Dtype::Uint32 {
                            return Ok(part);
                        }
                        // In halves, since float32 cannot hold every u32.
                        let half = |number: u32| Array::from_slice(&[number], &[1]);
                        let halves = [part.floor_divide(half(1 << 16))?, part.remainder(half(1 << 16))?];
                        concatenate(&halves, -1)?.as_dtype(Dtype::Float32)
                    });
                }
                assert_like_stock("dequantize", 0.0, || dequantize(&q, &scales, &biases, group_size, bits));
            }
        }
    }
}

/// Quantized keys and values of attention: a matrix for each head, which several heads of queries share, in a part of a
/// larger buffer.
#[test]
fn stacks_of_quantized_matrices() {
    let _turn = turn();
    for dtype in FLOATS {
        let wide = |x: &Array| x.as_dtype(Dtype::Float32);
        for bits in [4, 8] {
            let buffer = normal(&[2, 3, 40, 64], 1, dtype);
            let [q, scales, biases] = <[Array; 3]>::from(quantize(&buffer, 32, bits).unwrap())
                .map(|all| all.try_index((.., .., 5..38, ..)).unwrap());
            let weights = || dequantize(&q, wide(&scales)?, &wide(&biases)?, 32, bits);
            let shared = |x: &Array| x.expand_dims_axes(&[2]);
            for repeats in [1, 4] {
                for length in [1, 6, 20] {
                    for (transpose, depth) in [(true, 64), (false, 33)] {
                        let name = format!("{dtype:?} {bits} {repeats} {length} {transpose}");
                        let x = normal(&[2, 3, repeats, length, depth], 2, dtype);
                        assert_like(
                            &name,
                            4.0,
                            || {
                                let [q, scales, biases] = [&q, &scales, &biases].map(|x| shared(x).unwrap());
                                quantized_matmul(&x, q, scales, &biases, transpose, 32, bits)
                            },
                            || {
                                let weights = shared(&weights()?)?;
                                let weights = if transpose { weights.swap_axes(-1, -2)? } else { weights };
                                matmul(wide(&x)?, weights)?.as_dtype(dtype)
                            },
                        );
                    }
                }
            }
            assert_like_stock("dequantized stack", 0.0, || dequantize(&q, &scales, &biases, 32, bits));
        }
    }
}

/// How a mask is applied to scores.
#[derive(Debug, Clone, Copy)]
enum Hiding<'a> {
    Nothing,
    /// Scores are replaced by the number where the mask is false.
    Chosen(&'a Array, f32),
    Added(&'a Array),
}

impl Hiding<'_> {
    fn apply(self, scores: Array) -> Result<Array> {
        match self {
            Self::Nothing => Ok(scores),
            Self::Chosen(mask, number) => {
                select(mask, &scores, Array::from_f32(number).as_dtype(scores.dtype())?)
            }
            Self::Added(mask) => scores.add(mask),
        }
    }
}

/// The lowest finite number.
fn lowest(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::Float16 => -65504.0,
        Dtype::Bfloat16 => f32::from_bits(0xff7f_0000),
        _ => f32::MIN,
    }
}

/// `cap * tanh(scores / cap)`.
fn softcapped(scores: Array, cap: Option<f32>) -> Result<Array> {
    let Some(cap) = cap else { return Ok(scores) };
    let cap = Array::from_f32(cap).as_dtype(scores.dtype())?;
    tanh(scores.divide(&cap)?)?.multiply(&cap)
}

/// Attention as mlx-lm writes it where keys and values are quantized.
fn quantized_attention(
    queries: &Array,
    keys: &[Array; 3],
    values: &[Array; 3],
    [group, bits]: [i32; 2],
    hiding: Hiding<'_>,
) -> Result<Array> {
    quantized_softcapped_attention(queries, keys, values, [group, bits], None, hiding)
}

fn quantized_softcapped_attention(
    queries: &Array,
    keys: &[Array; 3],
    values: &[Array; 3],
    [group, bits]: [i32; 2],
    cap: Option<f32>,
    hiding: Hiding<'_>,
) -> Result<Array> {
    let product = |x: &Array, [w, scales, biases]: &[Array; 3], transpose| {
        quantized_matmul(x, w, scales, biases, transpose, group, bits)
    };
    let scores = hiding.apply(softcapped(product(queries, keys, true)?, cap)?)?;
    product(&softmax_axis(scores, -1, true)?, values, false)
}

/// The same attention over dequantized keys and values, in float32, rounded wherever the operations round.
fn attention_of_wide(
    queries: &Array,
    keys: &[Array; 3],
    values: &[Array; 3],
    [group, bits]: [i32; 2],
    cap: Option<f32>,
    hiding: Hiding<'_>,
) -> Result<Array> {
    let wide = |x: &Array| x.as_dtype(Dtype::Float32);
    let dtype = queries.dtype();
    let plain = |[w, scales, biases]: &[Array; 3]| dequantize(w, wide(scales)?, &wide(biases)?, group, bits);
    let scores = matmul(wide(queries)?, plain(keys)?.swap_axes(-1, -2)?)?.as_dtype(dtype)?;
    let scores = hiding.apply(softcapped(scores, cap)?)?;
    let weights = softmax_axis(wide(&scores)?, -1, true)?.as_dtype(dtype)?;
    matmul(wide(&weights)?, plain(values)?)?.as_dtype(dtype)
}

/// Quantized keys or values `[B, H, S, _]` as part of a longer cache; `[B, H, 1, S, _]` for grouped heads.
fn cached(
    [batch, heads, count, size]: [i32; 4],
    seed: u64,
    [group, bits]: [i32; 2],
    grouped: bool,
    dtype: Dtype,
) -> [Array; 3] {
    <[Array; 3]>::from(quantize(normal(&[batch, heads, count + 20, size], seed, dtype), group, bits).unwrap())
        .map(|all| {
            let part = all.try_index((.., .., 5..5 + count, ..)).unwrap();
            if grouped { part.expand_dims_axes(&[2]).unwrap() } else { part }
        })
}

#[test]
fn attentions_over_quantized_keys_and_values() {
    let _turn = turn();
    for dtype in FLOATS {
        for (of_keys, repeats, length, count, size) in
            [(1, 1, 1, 1, 32), (2, 1, 1, 37, 64), (2, 3, 1, 150, 64), (1, 4, 5, 70, 32), (2, 2, 33, 130, 64)]
        {
            for format in [[32, 4], [32, 8], [32, 3]] {
                let grouped = repeats > 1;
                let k = cached([2, of_keys, count, size], 1, format, grouped, dtype);
                let v = cached([2, of_keys, count, size + 32], 2, format, grouped, dtype);
                let heads = if grouped { vec![2, of_keys, repeats] } else { vec![2, of_keys] };
                let q = normal(&[&heads[..], &[length, size]].concat(), 3, dtype);
                let q = q.multiply(Array::from_f32(0.125).as_dtype(dtype).unwrap()).unwrap();
                let check = |what: &str, hiding: Hiding<'_>| {
                    for cap in [None, Some(3.0)] {
                        assert_like(
                            &format!(
                                "{dtype:?} {of_keys} {repeats} {length} {count} {size} {format:?} {what} {cap:?}"
                            ),
                            4.0,
                            || quantized_softcapped_attention(&q, &k, &v, format, cap, hiding),
                            || attention_of_wide(&q, &k, &v, format, cap, hiding),
                        );
                    }
                };
                check("all", Hiding::Nothing);
                let mut shapes = vec![vec![length, count], [&heads[..], &[length, count]].concat()];
                // Masks for each row of the batch, for each head of keys, and for the heads of a group.
                if grouped {
                    shapes.extend([
                        vec![2, 1, 1, 1, count],
                        vec![of_keys, 1, length, count],
                        vec![repeats, 1, count],
                    ]);
                } else {
                    shapes.extend([vec![2, 1, length, count], vec![of_keys, 1, 1]]);
                }
                for shape in shapes {
                    // With this mask some queries see no key.
                    let mask = normal(&shape, 5, Dtype::Float32).gt(Array::from_f32(0.3)).unwrap();
                    check(&format!("{shape:?}"), Hiding::Chosen(&mask, lowest(dtype)));
                    // Another number than the lowest does not hide a key.
                    check(&format!("{shape:?} another number"), Hiding::Chosen(&mask, 3.0));
                    let added = normal(&shape, 6, dtype);
                    check(&format!("{shape:?} added"), Hiding::Added(&added));
                }
                let turned =
                    normal(&[&heads[..], &[count, length]].concat(), 7, dtype).swap_axes(-1, -2).unwrap();
                check("turned", Hiding::Added(&turned));
                let backwards = turned.try_index((Ellipsis, (..).stride_by(-1))).unwrap();
                check("backwards", Hiding::Added(&backwards));
            }
        }
    }
}

/// Soft-capped attention as mlx-lm's `gemma2.py` writes it: scores are divided by the first number of `cap`, and multiplied
/// with the second.
fn softcapped_attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    cap: [f32; 2],
    hiding: Hiding<'_>,
) -> Result<Array> {
    let number = |x: f32| Array::from_f32(x).as_dtype(queries.dtype());
    let scores = matmul(queries.multiply(number(scale)?)?, keys.swap_axes(-1, -2)?)?;
    let capped = tanh(scores.divide(number(cap[0])?)?)?.multiply(number(cap[1])?)?;
    matmul(softmax_axis(hiding.apply(capped)?, -1, true)?, values)
}

/// Keys or values `[B, H, S, D]` as part of a longer cache; `[B, H, 1, S, D]` for grouped heads.
fn cached_dense([batch, heads, count, size]: [i32; 4], seed: u64, grouped: bool, dtype: Dtype) -> Array {
    let all = normal(&[batch, heads, count + 20, size], seed, dtype);
    let part = all.try_index((.., .., 5..5 + count, ..)).unwrap();
    if grouped { part.expand_dims_axes(&[2]).unwrap() } else { part }
}

#[test]
fn softcapped_attentions() {
    let _turn = turn();
    for dtype in FLOATS {
        for (of_keys, repeats, length, count, size) in
            [(1, 1, 1, 1, 8), (2, 1, 1, 37, 64), (2, 3, 1, 150, 40), (1, 4, 5, 70, 16), (2, 2, 33, 130, 64)]
        {
            let grouped = repeats > 1;
            let k = cached_dense([2, of_keys, count, size], 1, grouped, dtype);
            let v = cached_dense([2, of_keys, count, size + 8], 2, grouped, dtype);
            let heads = if grouped { vec![of_keys, repeats] } else { vec![of_keys] };
            // As a projection makes them.
            let q = normal(&[&[2, length][..], &heads, &[size]].concat(), 3, dtype);
            let q = if grouped {
                q.transpose_axes(&[0, 2, 3, 1, 4]).unwrap()
            } else {
                q.transpose_axes(&[0, 2, 1, 3]).unwrap()
            };
            let check = |what: &str, hiding: Hiding<'_>| {
                let name = format!("{dtype:?} {of_keys} {repeats} {length} {count} {size} {what}");
                for scale in [0.3, 3.0] {
                    assert_like_stock(&name, 4.0, || {
                        softcapped_attention(&q, &k, &v, scale, [2.3; 2], hiding)
                    });
                }
            };
            check("all", Hiding::Nothing);
            let whole = [&[2], &heads[..], &[length, count]].concat();
            let mut shapes = vec![vec![length, count], whole, vec![count]];
            shapes.push(if grouped { vec![2, 1, 1, length, count] } else { vec![2, 1, length, 1] });
            for shape in shapes {
                // With this mask some queries see no key.
                let mask = normal(&shape, 5, Dtype::Float32).gt(Array::from_f32(0.3)).unwrap();
                check(&format!("{shape:?}"), Hiding::Chosen(&mask, lowest(dtype)));
                check(&format!("{shape:?} another number"), Hiding::Chosen(&mask, 3.0));
                let added = normal(&shape, 6, dtype);
                check(&format!("{shape:?} added"), Hiding::Added(&added));
                let backwards = added.try_index((Ellipsis, (..).stride_by(-1))).unwrap();
                check(&format!("{shape:?} backwards"), Hiding::Added(&backwards));
            }
        }
    }
}

/// Operations that look like soft-capped attention, and are not.
#[test]
fn almost_softcapped_attentions() {
    let _turn = turn();
    let [k, v] = [1, 2].map(|seed| cached_dense([2, 2, 16, 16], seed, false, Dtype::Float32));
    let q = normal(&[2, 2, 16, 16], 3, Dtype::Float32);
    let nothing = Hiding::Nothing;
    assert_like_stock("two caps", 8.0, || softcapped_attention(&q, &k, &v, 1.0, [2.0, 3.0], nothing));
    assert_like_stock("a negative cap", 8.0, || softcapped_attention(&q, &k, &v, 1.0, [-2.0; 2], nothing));
    let larger = normal(&[1, 2, 16, 16], 4, Dtype::Float32);
    assert_like_stock("a mask larger than the scores", 8.0, || {
        let [q, k, v] = [&q, &k, &v].map(|x| x.try_index((0..1, .., .., ..)));
        let added = concatenate(&[&larger, &larger], 0)?;
        softcapped_attention(&q?, &k?, &v?, 1.0, [2.0; 2], Hiding::Added(&added))
    });
    let cap = || Ok::<_, mlx_rs::error::Exception>(Array::from_f32(2.0));
    let finish = |scores: Array| {
        let capped = tanh(scores.divide(cap()?)?)?.multiply(cap()?)?;
        matmul(softmax_axis(capped, -1, true)?, &v)
    };
    assert_like_stock("keys that are not turned", 8.0, || finish(matmul(&q, &k)?));
    assert_like_stock("keys turned another way", 8.0, || {
        finish(matmul(&q, k.transpose_axes(&[1, 0, 3, 2])?)?)
    });
    assert_like_stock("a cap below", 8.0, || {
        let scores = matmul(&q, k.swap_axes(-1, -2)?)?;
        let capped = tanh(cap()?.divide(scores)?)?.multiply(cap()?)?;
        matmul(softmax_axis(capped, -1, true)?, &v)
    });
    // The scores and weights have other uses, so they are computed as well.
    assert_like_stock("result, weights and scores", 8.0, || {
        let scores = softcapped(matmul(&q, k.swap_axes(-1, -2)?)?, Some(2.0))?;
        let weights = softmax_axis(&scores, -1, true)?;
        let result = matmul(&weights, &v)?;
        concatenate(&[result, weights, scores], -1)
    });
}

/// Queries as a projection makes them, with heads apart in memory, and one head of keys for all.
#[test]
fn attentions_over_quantized_keys_of_queries_that_are_not_contiguous() {
    let _turn = turn();
    for dtype in FLOATS {
        let [k, v] = [1, 2].map(|seed| cached([2, 1, 50, 32], seed, [32, 4], false, dtype));
        let projected = normal(&[2, 6, 4, 32], 3, dtype).transpose_axes(&[0, 2, 1, 3]).unwrap();
        let compare = |what: &str, q: &Array, k: &[Array; 3], v: &[Array; 3]| {
            assert_like(
                what,
                4.0,
                || quantized_attention(q, k, v, [32, 4], Hiding::Nothing),
                || attention_of_wide(q, k, v, [32, 4], None, Hiding::Nothing),
            );
        };
        compare("one head of keys", &projected, &k, &v);
        let [k, v] = [1, 2].map(|seed| cached([2, 2, 50, 32], seed, [32, 4], true, dtype));
        let apart = normal(&[2, 2, 4, 6, 32], 4, dtype).try_index((.., .., (..).stride_by(2))).unwrap();
        compare("heads apart", &apart, &k, &v);
        let turned = normal(&[2, 2, 2, 32, 6], 4, dtype).swap_axes(-1, -2).unwrap();
        compare("numbers apart", &turned, &k, &v);
        let crossed = normal(&[2, 2, 2, 6, 32], 5, dtype).swap_axes(1, 2).unwrap();
        compare("heads crossed", &crossed, &k, &v);
    }
}

/// A mask may have more rows of a batch, or more queries, than the scores that it is applied to.
#[test]
fn attention_over_quantized_keys_under_a_mask_that_is_larger_than_the_scores() {
    let _turn = turn();
    let [k, v] = [1, 2].map(|seed| cached([1, 2, 40, 64], seed, [64, 8], false, Dtype::Float32));
    for (length, shape) in [(3, [2, 1, 1, 40]), (1, [1, 1, 5, 40])] {
        let q = normal(&[1, 2, length, 64], 3, Dtype::Float32);
        let added = normal(&shape, 4, Dtype::Float32);
        assert_like_stock(&format!("{shape:?}"), 8.0, || {
            quantized_attention(&q, &k, &v, [64, 8], Hiding::Added(&added))
        });
    }
}

/// The scores and weights have other uses, so they are computed as well.
#[test]
fn attention_over_quantized_keys_whose_scores_have_other_uses() {
    let _turn = turn();
    let [k, v] = [1, 2].map(|seed| cached([1, 2, 40, 64], seed, [64, 8], false, Dtype::Float32));
    let q = normal(&[1, 2, 3, 64], 3, Dtype::Float32);
    assert_like_stock("result and weights", 8.0, || {
        let scores = quantized_matmul(&q, &k[0], &k[1], &k[2], true, 64, 8)?;
        let weights = softmax_axis(&scores, -1, true)?;
        let result = quantized_matmul(&weights, &v[0], &v[1], &v[2], false, 64, 8)?;
        concatenate(&[result, weights, scores], -1)
    });
}

/// `docs/performance-notes.md` says this about quantized products in half precision.
#[test]
fn quantized_products_are_nearer_to_the_exact_answer_than_stock_mlx() {
    let _turn = turn();
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let (q, scales, biases) = quantize(normal(&[256, 640], 1, dtype), 64, 4).unwrap();
        let x = normal(&[3, 640], 2, dtype);
        let wide = |x: &Array| x.as_dtype(Dtype::Float32);
        let exact = evaluated(
            || {
                let weights = dequantize(&q, wide(&scales)?, &wide(&biases)?, 64, 4)?;
                matmul(wide(&x)?, weights.transpose()?)
            },
            false,
        );
        let error = |kernels: bool| -> f64 {
            let y = evaluated(|| quantized_matmul(&x, &q, &scales, &biases, true, 64, 4), kernels);
            let (y, exact) = (wide(&y).unwrap().evaluated_slice(), exact.evaluated_slice());
            y.iter().zip(&exact).map(|(y, exact)| f64::from((y - exact).abs())).sum()
        };
        let (ours, stock) = (error(true), error(false));
        assert!(ours < stock / 2.0, "{dtype:?}: {ours} and {stock}");
    }
}

/// Reversed, strided and broadcast arrays.
#[test]
fn arrays_that_are_not_contiguous() {
    let _turn = turn();
    for dtype in FLOATS {
        let long = normal(&[2, 4, 20, 64], 1, dtype);
        let picks: Vec<(&str, Array)> = vec![
            ("backwards", long.try_index((.., .., (..).stride_by(-1), ..)).unwrap()),
            ("all backwards", long.try_index((.., .., .., (..).stride_by(-1))).unwrap()),
            ("every other", long.try_index((.., .., (..).stride_by(2), ..)).unwrap()),
            ("every other number", long.try_index((.., .., .., (..).stride_by(2))).unwrap()),
            ("the rest", long.try_index((1.., 1.., 3.., 5..)).unwrap()),
            ("repeated", mlx_rs::ops::broadcast_to(normal(&[4, 1, 64], 2, dtype), &[2, 4, 20, 64]).unwrap()),
        ];
        for (name, x) in &picks {
            let size = x.dim(-1);
            let weight = normal(&[size, 24], 3, dtype);
            let norm = normal(&[size], 4, dtype);
            assert_like_stock(name, 2.0, || rms_norm(x, Some(&norm), 1e-5));
            assert_like_stock(name, 1.0, || rope(x, 8, false, 10000.0, 1.0, 7, None));
            assert_like_stock(name, 4.0, || matmul(x, &weight));
            assert_like_stock(name, 4.0, || matmul(x, x.swap_axes(-1, -2)?));
            assert_like_stock(name, 4.0, || scaled_dot_product_attention(x, x, x, 0.2, Mask::Causal, None));
            assert_like_stock(name, 1.0, || x.multiply(sigmoid(x)?)?.multiply(x));
            assert_like_stock(name, 2.0, || softmax_axis(x, -1, true));
            assert_like_stock(name, 0.0, || x.add(x));
            if size == 64 {
                let (q, scales, biases) = quantize(normal(&[40, 64], 5, Dtype::Float32), 32, 8).unwrap();
                let x = x.as_dtype(Dtype::Float32).unwrap();
                assert_like_stock(name, 4.0, || quantized_matmul(&x, &q, &scales, &biases, true, 32, 8));
            }
        }
        let nothing = normal(&[2, 0, 16], 1, dtype);
        let weight = normal(&[16], 2, dtype);
        assert_like_stock("no row", 0.0, || rms_norm(&nothing, Some(&weight), 1e-5));
        assert_like_stock("no row", 0.0, || matmul(&nothing, normal(&[16, 3], 3, dtype)));
        assert_like_stock("no column", 0.0, || matmul(normal(&[2, 0], 3, dtype), normal(&[0, 5], 3, dtype)));
    }
    // Stock MLX reports wrong shapes.
    let [a, b] = [normal(&[2, 3], 1, Dtype::Float32), normal(&[4, 5], 1, Dtype::Float32)];
    assert!(matmul(&a, &b).is_err());
    assert!(rms_norm(&a, Some(&normal(&[5], 1, Dtype::Float32)), 1e-5).is_err());
    // Arrays of different dtypes are promoted by stock MLX.
    assert_like_stock("two dtypes", 4.0, || matmul(&a, normal(&[3, 4], 2, Dtype::Float16)));
    assert_like_stock("integers", 0.0, || {
        Array::from_slice(&[1, 2, 3], &[3]).add(Array::from_slice(&[4, 5, 6], &[3]))?.as_dtype(Dtype::Float32)
    });
}

/// Gates as models write them: several operations, which become one kernel.
#[test]
fn gates() {
    let _turn = turn();
    for dtype in FLOATS {
        for shape in [&[1, 1, 100][..], &[1, 1, 2048], &[2, 30, 64]] {
            let gate =
                normal(shape, 1, dtype).multiply(Array::from_f32(4.0).as_dtype(dtype).unwrap()).unwrap();
            let up = normal(shape, 2, dtype);
            let number = |value: f32| Array::from_f32(value).as_dtype(dtype);
            let silu = || gate.multiply(sigmoid(&gate)?);
            let gelu = || {
                let bent = gate.add(power(&gate, number(3.0)?)?.multiply(number(0.044_715)?)?)?;
                let share = tanh(bent.multiply(number((2.0 / std::f64::consts::PI).sqrt() as f32)?)?)?;
                gate.multiply(number(0.5)?)?.multiply(share.add(number(1.0)?)?)
            };
            assert_like_stock("silu", 1.0, silu);
            assert_like_stock("swiglu", 1.0, || silu()?.multiply(&up));
            assert_like_stock("gelu", 1.0, gelu);
            assert_like_stock("geglu", 1.0, || gelu()?.multiply(&up));
            assert_like_stock("the sum", 0.0, || gate.add(&up));
            assert_like_stock("the product", 0.0, || gate.multiply(&up));
            assert_like_stock("halves", 1.0, || {
                let halves = gate.split_equal(2, -1)?;
                halves[0].multiply(sigmoid(&halves[0])?)?.multiply(&halves[1])
            });
            // These look like gates and are not.
            assert_like_stock("another's sigmoid", 0.0, || gate.multiply(sigmoid(&up)?));
            assert_like_stock("another number", 1.0, || {
                let share = tanh(gate.multiply(number(0.8)?)?)?.add(number(1.0)?)?;
                gate.multiply(number(0.5)?)?.multiply(share)
            });
            // A part of the gate has another use.
            assert_like_stock("gate and silu", 1.0, || {
                let silu = silu()?;
                let gated = silu.multiply(&up)?;
                concatenate(&[&gated, &silu], -1)
            });
        }
    }
}

#[test]
fn reductions() {
    let _turn = turn();
    for dtype in FLOATS {
        for shape in [&[200][..], &[3, 50], &[1, 1, 5000], &[2, 3, 128]] {
            let x = normal(shape, 1, dtype).multiply(Array::from_f32(5.0).as_dtype(dtype).unwrap()).unwrap();
            assert_like_stock("softmax", 16.0, || softmax_axis(&x, -1, None));
            assert_like_stock("precise softmax", 16.0, || softmax_axis(&x, -1, true));
            assert_like_stock("log of the sum", 4.0, || x.logsumexp_axis(-1, true));
            assert_like_stock("log of the sum, flat", 4.0, || x.logsumexp_axis(-1, None));
            assert_like_stock("a number less", 0.0, || x.subtract(x.max_axis(-1, true)?));
            let largest = |keep: bool| {
                move |x: &Array| {
                    let y = mlx_rs::ops::indexing::argmax_axis(x, -1, keep)?;
                    y.as_dtype(Dtype::Float32)
                }
            };
            assert_like_stock("argmax", 0.0, || largest(true)(&x));
            assert_like_stock("argmax, flat", 0.0, || largest(false)(&x));
            // Of equal elements, the first.
            let equal = x.greater_equal_number();
            assert_like_stock("argmax of equals", 0.0, || largest(true)(&equal));
        }
    }
}

trait Equals {
    fn greater_equal_number(&self) -> Array;
}

impl Equals for Array {
    fn greater_equal_number(&self) -> Array {
        self.gt(Array::from_f32(0.0)).unwrap().as_dtype(self.dtype()).unwrap()
    }
}

/// A small block of a model, with most of the operations that have a kernel.
fn block(x: &Array, weight: &Array, norm: &Array) -> Result<Array> {
    let y = rms_norm(x, Some(norm), 1e-5)?;
    let h = matmul(&y, weight.transpose()?)?.reshape(&[1, 6, 2, 8])?.transpose_axes(&[0, 2, 1, 3])?;
    let h = rope(&h, 8, false, 10000.0, 1.0, 3, None)?;
    let h = scaled_dot_product_attention(&h, &h, &h, 0.3, Mask::Causal, None)?;
    let h = h.transpose_axes(&[0, 2, 1, 3])?.reshape(&[1, 6, 16])?;
    let h = h.multiply(sigmoid(&h)?)?.multiply(&y)?;
    softmax_axis(x.add(&h)?, -1, None)
}

/// Gradients go through stock MLX, even when kernels are on.
#[test]
fn gradients() {
    let _turn = turn();
    let [x, weight, norm] = [(&[1, 6, 16][..], 1), (&[16, 16], 2), (&[16], 3)]
        .map(|(shape, seed)| normal(shape, seed, Dtype::Float32));
    for part in 0..4 {
        assert_like_stock("gradient", 16.0, || {
            let cotangent = normal(&[1, 6, 16], 4, Dtype::Float32);
            let (values, gradients) = transforms::vjp(
                |inputs: &[Array]| vec![block(&inputs[0], &inputs[1], &inputs[2]).unwrap()],
                &[x.clone(), weight.clone(), norm.clone()],
                &[cotangent],
            )?;
            Ok(if part == 3 { values[0].clone() } else { gradients[part].clone() })
        });
    }
}

/// A gradient with respect to some inputs. What depends on the other inputs alone runs kernels.
#[test]
fn gradients_beside_constants() {
    let _turn = turn();
    let x = normal(&[1, 6, 16], 1, Dtype::Float32);
    let (weight, norm) = (normal(&[16, 16], 2, Dtype::Float32), normal(&[16], 3, Dtype::Float32));
    assert_like_stock("gradient", 16.0, || {
        let (_, gradients) = transforms::vjp(
            |inputs: &[Array]| {
                let constant = block(&x, &weight, &norm).unwrap();
                vec![block(&constant, &inputs[0], &norm).unwrap()]
            },
            std::slice::from_ref(&weight),
            &[normal(&[1, 6, 16], 4, Dtype::Float32)],
        )?;
        Ok(gradients[0].clone())
    });
}

/// A gradient with respect to queries, through quantized keys and values.
#[test]
fn gradients_of_attention_over_quantized_keys() {
    let _turn = turn();
    let [k, v] = [1, 2].map(|seed| cached([1, 2, 40, 64], seed, [64, 8], true, Dtype::Float32));
    let mask = normal(&[3, 40], 4, Dtype::Float32).gt(Array::from_f32(0.0)).unwrap();
    let hiding = Hiding::Chosen(&mask, f32::MIN);
    assert_like_stock("gradient", 16.0, || {
        let (_, gradients) = transforms::vjp(
            |inputs: &[Array]| vec![quantized_attention(&inputs[0], &k, &v, [64, 8], hiding).unwrap()],
            &[normal(&[1, 2, 2, 3, 64], 3, Dtype::Float32)],
            &[normal(&[1, 2, 2, 3, 64], 5, Dtype::Float32)],
        )?;
        Ok(gradients[0].clone())
    });
}

/// A gradient with respect to queries, keys and values of soft-capped attention.
#[test]
fn gradients_of_softcapped_attention() {
    let _turn = turn();
    let shapes = [[1, 2, 2, 3, 16], [1, 2, 1, 40, 16], [1, 2, 1, 40, 16]];
    let [q, k, v] = [0, 1, 2].map(|i| normal(&shapes[i], i as u64, Dtype::Float32));
    let mask = normal(&[3, 40], 4, Dtype::Float32).gt(Array::from_f32(0.0)).unwrap();
    let hiding = Hiding::Chosen(&mask, f32::MIN);
    for part in 0..3 {
        assert_like_stock("gradient", 16.0, || {
            let (_, gradients) = transforms::vjp(
                |x: &[Array]| vec![softcapped_attention(&x[0], &x[1], &x[2], 0.5, [2.0; 2], hiding).unwrap()],
                &[q.clone(), k.clone(), v.clone()],
                &[normal(&shapes[0], 5, Dtype::Float32)],
            )?;
            Ok(gradients[part].clone())
        });
    }
}

#[test]
fn compiled_functions() {
    let _turn = turn();
    let [x, weight, norm] = [(&[1, 6, 16][..], 1), (&[16, 16], 2), (&[16], 3)]
        .map(|(shape, seed)| normal(shape, seed, Dtype::Float32));
    assert_like_stock("compiled", 8.0, || {
        let mut compiled = transforms::compile::compile(
            |inputs: &[Array]| -> Result<Vec<Array>> { Ok(vec![block(&inputs[0], &inputs[1], &inputs[2])?]) },
            None,
        );
        Ok(compiled(&[x.clone(), weight.clone(), norm.clone()])?[0].clone())
    });
}

/// Counts the calls of kernels, since the comparisons with stock MLX would pass if no kernel ran.
#[test]
fn every_operation_reaches_its_kernel() {
    let _turn = turn();
    let name = "CPU_KERNELS_TEST_COUNTS";
    if std::env::var_os(name).is_none() {
        // The environment must ask for counters before the program starts.
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "every_operation_reaches_its_kernel"])
            .envs([(name, "1"), ("MLX_CPU_PROFILE", "1")])
            .output()
            .unwrap();
        let said = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(child.status.success(), "{said:?}");
        assert!(said[1].contains("all kernels: "), "{said:?}");
        return;
    }
    for dtype in FLOATS {
        rows_reach_their_kernels(dtype);
        products_reach_their_kernels(dtype);
        heads_reach_their_kernels(dtype);
        for grouped in [false, true] {
            quantized_attention_reaches_its_kernel(dtype, grouped);
        }
        gates_reach_their_kernels(dtype);
    }
    for row in include_str!("../native/operations.def").lines().filter(|line| line.starts_with("KERNEL(")) {
        let name = row.split('"').nth(1).unwrap();
        assert_ne!(calls(name), 0, "no operation above runs the kernel {name}");
    }
    sums_run_the_operations_before_them();
}

/// How often a kernel was called until now.
fn calls(name: &str) -> u64 {
    let found = mlx_sys::cpu_kernels::profile().into_iter().find(|timing| timing.name == name);
    found.map_or(0, |timing| timing.calls)
}

/// `make` calls the kernel once, and not at all when kernels are off.
fn check(name: &str, make: &dyn Fn() -> Result<Array>) {
    let before = calls(name);
    make().unwrap().eval().unwrap();
    assert_eq!(calls(name), before + 1, "{name}");
    set_enabled(false);
    make().unwrap().eval().unwrap();
    set_enabled(true);
    assert_eq!(calls(name), before + 1, "{name}, turned off");
}

/// An array that is computed, so that no check computes it.
fn computed(shape: &[i32], seed: u64, dtype: Dtype) -> Array {
    let x = normal(shape, seed, dtype);
    x.eval().unwrap();
    x
}

/// A mask of `shape`, computed.
fn computed_mask(shape: &[i32], seed: u64, threshold: f32) -> Array {
    let mask = normal(shape, seed, Dtype::Float32).gt(Array::from_f32(threshold)).unwrap();
    mask.eval().unwrap();
    mask
}

fn rows_reach_their_kernels(dtype: Dtype) {
    let (x, weight) = (computed(&[2, 3, 64], 1, dtype), computed(&[64], 2, dtype));
    check("RMSNorm", &|| rms_norm(&x, Some(&weight), 1e-5));
    check("RMSNorm", &|| rms_norm(&x, None, 1e-5));
    check("Softmax", &|| softmax_axis(&x, -1, true));
    check("LogSumExp", &|| x.logsumexp_axis(-1, true));
    check("ArgMax", &|| mlx_rs::ops::indexing::argmax_axis(&x, -1, false));
    check("Add", &|| x.add(&x));
    check("Multiply", &|| x.multiply(&x));
    let long = normal(&[2, 200], 9, dtype);
    check("Subtract", &|| long.subtract(long.logsumexp_axis(-1, true)?));
}

fn products_reach_their_kernels(dtype: Dtype) {
    let (x, weight) = (computed(&[2, 3, 64], 1, dtype), computed(&[64], 2, dtype));
    let square = computed(&[64, 64], 3, dtype);
    let (q, scales, biases) = quantize(&square, 32, 4).unwrap();
    transforms::eval([&q, &scales, &biases]).unwrap();
    check("Matmul", &|| matmul(&x, square.transpose()?));
    check("AddMM", &|| addmm(&weight, &x, &square, 1.0, 1.0));
    check("QuantizedMatmul", &|| quantized_matmul(&x, &q, &scales, &biases, true, 32, 4));
    let (keys, key_scales, key_biases) = quantize(normal(&[1, 2, 9, 32], 7, dtype), 32, 8).unwrap();
    let queries = normal(&[1, 2, 3, 32], 8, dtype);
    check("QuantizedMatmul", &|| quantized_matmul(&queries, &keys, &key_scales, &key_biases, true, 32, 8));
    check("Quantize", &|| Ok(quantize(&square, 32, 4)?.1));
    check("Dequantize", &|| dequantize(&q, &scales, &biases, 32, 4));
}

fn heads_reach_their_kernels(dtype: Dtype) {
    let heads = computed(&[1, 4, 5, 16], 4, dtype);
    let (chosen, added) = (computed_mask(&[5, 5], 5, -0.5), computed(&[1, 1, 5, 5], 6, dtype));
    let offset = Array::from_slice(&[3_i32], &[1]);
    check("RoPE", &|| rope(&heads, 16, false, 10000.0, 1.0, 7, None));
    check("RoPE", &|| rope_dynamic(&heads, 16, true, 10000.0, 1.0, &offset, None));
    let attention = |mask| scaled_dot_product_attention(&heads, &heads, &heads, 0.25, mask, None);
    check("Attention", &|| attention(None));
    check("Attention", &|| attention(Some(Mask::Causal)));
    check("Attention", &|| attention(Some(Mask::Array(&chosen))));
    check("Attention", &|| attention(Some(Mask::Array(&added))));
    let capped = |q: &Array, k: &Array, hiding| softcapped_attention(q, k, k, 0.25, [2.0; 2], hiding);
    let products = calls("Matmul");
    check("Attention", &|| capped(&heads, &heads, Hiding::Nothing));
    check("Attention", &|| capped(&heads, &heads, Hiding::Chosen(&chosen, lowest(dtype))));
    check("Attention", &|| capped(&heads, &heads, Hiding::Added(&added)));
    let grouped = computed(&[1, 4, 3, 5, 16], 7, dtype);
    let shared = computed(&[1, 4, 1, 5, 16], 8, dtype);
    check("Attention", &|| capped(&grouped, &shared, Hiding::Nothing));
    check("Attention", &|| capped(&grouped, &shared, Hiding::Chosen(&chosen, lowest(dtype))));
    assert_eq!(calls("Matmul"), products, "besides the attention that they are part of");
    let attentions = calls("Attention");
    capped(&heads, &heads, Hiding::Chosen(&chosen, -1e9)).unwrap().eval().unwrap();
    assert_eq!(calls("Attention"), attentions, "with another number than the lowest");
}

fn quantized_attention_reaches_its_kernel(dtype: Dtype, grouped: bool) {
    let [k, v] = [1, 2].map(|seed| cached([1, 2, 60, 32], seed, [32, 4], grouped, dtype));
    k.iter().chain(&v).for_each(|array| array.eval().unwrap());
    let q = computed(if grouped { &[1, 2, 2, 3, 32] } else { &[1, 2, 3, 32] }, 9, dtype);
    let (mask, added) = (computed_mask(&[3, 60], 4, 0.0), computed(&[3, 60], 5, dtype));
    let products = calls("QuantizedMatmul");
    let masked = |hiding| quantized_attention(&q, &k, &v, [32, 4], hiding);
    check("QuantizedAttention", &|| masked(Hiding::Nothing));
    check("QuantizedAttention", &|| masked(Hiding::Chosen(&mask, lowest(dtype))));
    check("QuantizedAttention", &|| masked(Hiding::Added(&added)));
    let capped = |hiding| quantized_softcapped_attention(&q, &k, &v, [32, 4], Some(3.0), hiding);
    check("QuantizedAttention", &|| capped(Hiding::Nothing));
    check("QuantizedAttention", &|| capped(Hiding::Chosen(&mask, lowest(dtype))));
    check("QuantizedAttention", &|| capped(Hiding::Added(&added)));
    // So few scores that stock MLX computes their softmax.
    let few = |x: &[Array; 3]| x.clone().map(|x| x.take_axis(Array::from_slice(&[0, 1], &[2]), -2).unwrap());
    let (few_keys, few_values) = (few(&k), few(&v));
    few_keys.iter().chain(&few_values).for_each(|array| array.eval().unwrap());
    check("QuantizedAttention", &|| {
        quantized_attention(&q, &few_keys, &few_values, [32, 4], Hiding::Nothing)
    });
    assert_eq!(calls("QuantizedMatmul"), products, "besides the attention that they are part of");
    let attentions = calls("QuantizedAttention");
    masked(Hiding::Chosen(&mask, -1e9)).unwrap().eval().unwrap();
    assert_eq!(calls("QuantizedMatmul"), products + 2, "with another number than the lowest");
    assert_eq!(calls("QuantizedAttention"), attentions);
}

fn gates_reach_their_kernels(dtype: Dtype) {
    let x = computed(&[2, 3, 64], 1, dtype);
    let number = |value: f32| Array::from_f32(value).as_dtype(dtype);
    let silu = || x.multiply(sigmoid(&x)?);
    let gelu = || {
        let bent = x.add(power(&x, number(3.0)?)?.multiply(number(0.044_715)?)?)?;
        let share = tanh(bent.multiply(number((2.0 / std::f64::consts::PI).sqrt() as f32)?)?)?;
        x.multiply(number(0.5)?)?.multiply(share.add(number(1.0)?)?)
    };
    check("SiLU", &silu);
    check("SwiGLU", &|| silu()?.multiply(&x));
    check("GELU", &gelu);
    check("GeGLU", &|| gelu()?.multiply(&x));
}

/// A sum of few rows runs the operations of its terms itself. A product that is a term of many sums runs twice: in the first
/// sum's node, and once for all others.
fn sums_run_the_operations_before_them() {
    let (x, w) = (normal(&[1, 128], 1, Dtype::Float32), normal(&[128, 128], 2, Dtype::Float32));
    let y = matmul(&x, &w).unwrap();
    let sums: Vec<Array> =
        (3..43).map(|seed| normal(&[1, 128], seed, Dtype::Float32).add(&y).unwrap()).collect();
    let before = calls("Matmul");
    transforms::eval(&sums).unwrap();
    assert_eq!(calls("Matmul"), before + 2);
    for (rows, times) in [(16, 2), (17, 1)] {
        let x = normal(&[rows, 128], 1, Dtype::Float32);
        let [sum, down] = network(&x, Dtype::Float32, false, false).unwrap();
        let before = calls("Matmul");
        transforms::eval([&sum, &down]).unwrap();
        assert_eq!(calls("Matmul"), before + 3 * times, "{rows} rows");
    }
}

/// A gated feed-forward network between two norms, added to its input; also the output of its last product. With `at_once`
/// each operation is evaluated as soon as it is made, so that none becomes part of another.
fn network(x: &Array, dtype: Dtype, packed: bool, at_once: bool) -> Result<[Array; 2]> {
    let step = |y: Result<Array>| -> Result<Array> {
        let y = y?;
        if at_once {
            y.eval()?;
        }
        Ok(y)
    };
    let product = |x: &Array, seed, rows, columns| {
        let w = normal(&[rows, columns], seed, dtype);
        if !packed {
            return step(matmul(x, w.transpose()?));
        }
        let (q, scales, biases) = quantize(&w, 32, 4)?;
        step(quantized_matmul(x, &q, &scales, &biases, true, 32, 4))
    };
    let weight = normal(&[128], 2, dtype);
    let normed = step(rms_norm(x, Some(&weight), 1e-5))?;
    let (gate, up) = (product(&normed, 3, 64, 128)?, product(&normed, 4, 64, 128)?);
    let gated = step(gate.multiply(sigmoid(&gate)?)?.multiply(up))?;
    let down = product(&gated, 5, 128, 64)?;
    let normed = step(rms_norm(&down, Some(&weight), 1e-5))?;
    Ok([step(x.add(&normed))?, down])
}

#[test]
fn a_sum_that_runs_the_operations_before_it_has_the_same_bits() {
    let _turn = turn();
    for dtype in FLOATS {
        for (rows, packed) in [(1, true), (1, false), (16, true), (17, true)] {
            let x = normal(&[1, rows, 128], 1, dtype);
            let [fused, _] = network(&x, dtype, packed, false).unwrap();
            let [each, _] = network(&x, dtype, packed, true).unwrap();
            let what = format!("{dtype:?}, {rows} rows, packed: {packed}");
            assert_eq!(fused.evaluated_slice(), each.evaluated_slice(), "{what}");
            // An operation that runs in two nodes gives the same bits in both.
            let [fused, down] = network(&x, dtype, packed, false).unwrap();
            let twice = down.add(&fused).unwrap();
            transforms::eval([&twice, &down, &fused]).unwrap();
            let [each, expected] = network(&x, dtype, packed, true).unwrap();
            assert_eq!(down.evaluated_slice(), expected.evaluated_slice(), "{what}");
            assert_eq!(fused.evaluated_slice(), each.evaluated_slice(), "{what}");
            let sum = expected.add(&each).unwrap();
            assert_eq!(twice.evaluated_slice(), sum.evaluated_slice(), "{what}");
        }
    }
}

/// A formula like that of GELU, with constants that were rounded to another dtype, is not GELU.
#[test]
fn a_rounded_constant_is_another_number() {
    let _turn = turn();
    let x = normal(&[2, 200], 1, Dtype::Float32);
    let rounded = |value: f32| {
        let number = Array::from_f32(value).as_dtype(Dtype::Bfloat16)?;
        number.eval()?;
        Ok::<_, mlx_rs::error::Exception>(number)
    };
    let gelu = || {
        let bent = x.add(power(&x, rounded(3.0)?)?.multiply(rounded(0.044_715)?)?)?;
        let share = tanh(bent.multiply(rounded((2.0 / std::f64::consts::PI).sqrt() as f32)?)?)?;
        x.multiply(rounded(0.5)?)?.multiply(share.add(rounded(1.0)?)?)
    };
    assert_like_stock("rounded constants", 2.0, gelu);
}

/// A sum that runs other operations in its node has inputs that are not its terms.
#[test]
fn patterns_do_not_match_a_sum_of_several_steps() {
    let _turn = turn();
    let format = [32, 4];
    let [keys, values] = [1, 2].map(|seed| cached([1, 2, 60, 32], seed, format, false, Dtype::Float32));
    let queries = normal(&[1, 2, 3, 32], 3, Dtype::Float32);
    let bias = normal(&[1, 2, 3, 60], 4, Dtype::Float32).multiply(Array::from_f32(5.0)).unwrap();
    bias.eval().unwrap();
    let norm = || rms_norm(&bias, None, 1e-5);
    let gate = || bias.multiply(sigmoid(&bias)?)?.multiply(&bias);
    let added: [(&str, &dyn Fn() -> Result<Array>); 2] = [("a norm", &norm), ("a gate", &gate)];
    for (what, added) in added {
        assert_like(
            what,
            8.0,
            || quantized_attention(&queries, &keys, &values, format, Hiding::Added(&added()?)),
            || attention_of_wide(&queries, &keys, &values, format, None, Hiding::Added(&added()?)),
        );
    }
    let x = normal(&[2, 200], 1, Dtype::Float32);
    let number = Array::from_f32;
    assert_like_stock("GELU with a norm in it", 4.0, || {
        let cube = power(&x, number(3.0))?.multiply(number(0.044_715))?;
        let bent = x.add(rms_norm(&cube, None, 1e-5)?)?;
        let share = tanh(bent.multiply(number((2.0 / std::f64::consts::PI).sqrt() as f32))?)?;
        x.multiply(number(0.5))?.multiply(share.add(number(1.0))?)
    });
    assert_like_stock("GELU with a half that was a whole number", 4.0, || {
        let bent = x.add(power(&x, number(3.0))?.multiply(number(0.044_715))?)?;
        let share = tanh(bent.multiply(number((2.0 / std::f64::consts::PI).sqrt() as f32))?)?;
        let half = number(0.5).as_dtype(Dtype::Int32)?.as_dtype(Dtype::Float32)?;
        x.multiply(half)?.multiply(share.add(number(1.0))?)
    });
}

/// Inside a gradient, arrays that are traced can be evaluated, as with stock MLX.
#[test]
fn evaluation_inside_a_gradient() {
    let _turn = turn();
    let seen = Mutex::new(Vec::new());
    let function = |x: &Array| -> Result<Array> {
        let y = x.multiply(Array::from_f32(3.0))?;
        y.eval()?;
        seen.lock().unwrap().push(y.item_exact::<f32>());
        y.multiply(Array::from_f32(2.0))
    };
    let gradient = transforms::grad(function)(&Array::from_f32(5.0)).unwrap();
    assert_eq!((gradient.item_exact::<f32>(), seen.into_inner().unwrap()), (6.0, vec![15.0]));
}

/// Waiting for an array that does not exist is an error, as in stock MLX.
#[test]
fn waiting_for_an_array_that_does_not_exist() {
    let _turn = turn();
    // mlx-rs installs its error handler, without which mlx-c would end the program.
    transforms::eval([&Array::from_f32(1.0)]).unwrap();
    // SAFETY: calls of mlx-c with what its functions made.
    unsafe {
        let nothing = mlx_sys::mlx_array_new();
        assert_ne!(mlx_sys::mlx_array_eval(nothing), 0);
    }
}

/// Several threads build graphs with more operations than MLX queues, and wait for them. One of them works on kernels
/// meanwhile, the others sleep.
#[test]
fn threads_that_wait_for_long_graphs() {
    let _turn = turn();
    std::thread::scope(|scope| {
        for seed in 0..4_u16 {
            scope.spawn(move || {
                let start = f32::from(seed);
                // Large enough for several threads, and exact in float32.
                let (mut y, step) = (
                    Array::from_slice(&[start; 40_000], &[40, 1000]),
                    Array::from_slice(&[0.5; 40_000], &[40, 1000]),
                );
                for _ in 0..400 {
                    y = y.add(&step).unwrap();
                }
                let last = y.try_index((39, 999)).unwrap();
                transforms::async_eval([&last, &y]).unwrap();
                assert_eq!(last.item_exact::<f32>(), start + 200.0);
                assert!(y.as_slice::<f32>().iter().all(|y| *y == start + 200.0));
            });
        }
    });
}

/// How often this thread ran an operation with this runner.
fn count(all: &[Evaluated], name: &str, runner: Runner) -> u64 {
    all.iter().filter(|one| one.name == name && one.runner == runner).map(|one| one.count).sum()
}

/// A record has what ran each operation: kernels, also those within a sum, views, and MLX.
#[test]
fn a_record_says_what_ran_each_operation() {
    let _turn = turn();
    let (x, w) = (computed(&[1, 64], 1, Dtype::Float32), computed(&[64, 64], 2, Dtype::Float32));
    let ((), all) = recorded(|| {
        let y = x.add(matmul(&x, w.t()).unwrap()).unwrap();
        let y = y.reshape(&[8, 8]).unwrap().cos().unwrap();
        y.eval().unwrap();
    });
    for name in ["Matmul", "Add"] {
        assert_eq!(count(&all, name, Runner::Kernel), 1, "{name}: {all:?}");
    }
    assert_eq!((count(&all, "Reshape", Runner::View), count(&all, "Cos", Runner::Mlx)), (1, 1), "{all:?}");
    // The weight was computed before, so that its transpose is no operation.
    assert_eq!(all.len(), 4, "{all:?}");
    let ((), nothing) = recorded(|| {});
    assert_eq!(nothing, []);
}

/// Views, kernels, operations of MLX, and operations of several outputs, in one graph of more nodes than a task takes.
fn long_graph(steps: i32) -> Result<Array> {
    let weight = normal(&[48, 48], 1, Dtype::Float32);
    let mut x = normal(&[3, 48], 2, Dtype::Float32);
    for step in 0..steps {
        let norm = rms_norm(&matmul(&x, weight.t())?, None, 1e-5)?;
        let parts = norm.split_equal(3, 1)?;
        let turned = concatenate(&[&parts[2], &parts[0], &parts[1]], 1)?;
        x = x.add(turned.reshape(&[48, 3])?.transpose()?.multiply(Array::from_f32(0.5))?)?;
        if step % 5 == 0 {
            x = x.subtract(x.sin()?)?;
        }
    }
    Ok(x)
}

#[test]
fn a_graph_that_is_evaluated_at_once_has_the_bits_of_its_parts() {
    let _turn = turn();
    let at_once = long_graph(60).unwrap();
    at_once.eval().unwrap();
    // Without `eval` as a whole: each step ends with an array that is computed.
    let weight = normal(&[48, 48], 1, Dtype::Float32);
    let mut x = normal(&[3, 48], 2, Dtype::Float32);
    for step in 0..60 {
        let norm = rms_norm(matmul(&x, weight.t()).unwrap(), None, 1e-5).unwrap();
        norm.eval().unwrap();
        let parts = norm.split_equal(3, 1).unwrap();
        let turned = concatenate(&[&parts[2], &parts[0], &parts[1]], 1).unwrap();
        turned.eval().unwrap();
        let turned = turned.reshape(&[48, 3]).unwrap().transpose().unwrap();
        x = x.add(turned.multiply(Array::from_f32(0.5)).unwrap()).unwrap();
        x.eval().unwrap();
        if step % 5 == 0 {
            x = x.subtract(x.sin().unwrap()).unwrap();
        }
    }
    assert_eq!(at_once.as_slice::<f32>(), x.as_slice::<f32>());
}

/// What is written into a part of an array goes to the array's own memory where nothing else holds it, and to a copy where
/// something does.
#[test]
fn parts_are_written_in_place() {
    let _turn = turn();
    let part = |number: f32| Array::from_slice(&[number; 8], &[2, 1, 4]);
    let mut x = normal(&[2, 32, 4], 1, Dtype::Float32);
    x.eval().unwrap();
    let (memory, mut expected) = (x.as_slice::<f32>().as_ptr(), x.as_slice::<f32>().to_vec());
    let mut write = |x: &mut Array, slot: i32| {
        let number = slot as f32;
        x.try_index_mut((.., slot..slot + 1, ..), part(number)).unwrap();
        for row in 0..2 {
            let first = (row * 32 + slot as usize) * 4;
            expected[first..first + 4].fill(number);
        }
        expected.clone()
    };
    let mut sums = Vec::new();
    for slot in 0..20 {
        let expected = write(&mut x, slot);
        // Something reads the array each time, as attention does.
        let read = x.try_index((.., ..=slot, ..)).unwrap().sum(None).unwrap();
        let ((), all) = recorded(|| transforms::async_eval([&read, &x]).unwrap());
        assert_eq!(count(&all, "SliceUpdate", Runner::Kernel), 1, "{all:?}");
        sums.push((read, expected));
    }
    assert_eq!(x.as_slice::<f32>(), sums.last().unwrap().1);
    assert_eq!(x.as_slice::<f32>().as_ptr(), memory);
    for (slot, (read, expected)) in sums.iter().enumerate() {
        let rows = expected.chunks(32 * 4).flat_map(|row| &row[..(slot + 1) * 4]);
        let sum: f64 = rows.map(|&x| f64::from(x)).sum();
        assert!((f64::from(read.item_exact::<f32>()) - sum).abs() < 1e-3, "slot {slot}");
    }

    let snapshot = x.clone();
    let before = snapshot.as_slice::<f32>().to_vec();
    let expected = write(&mut x, 31);
    let ((), all) = recorded(|| x.eval().unwrap());
    assert_eq!(count(&all, "SliceUpdate", Runner::Mlx), 1, "{all:?}");
    assert_eq!((x.as_slice::<f32>(), snapshot.as_slice::<f32>()), (&expected[..], &before[..]));
}

/// A result that its caller drops while it is being computed is not written into memory that another array has got.
#[test]
fn results_that_are_dropped_leave_other_arrays_alone() {
    let _turn = turn();
    const SIZE: i32 = 300;
    let (a, b) = (computed(&[SIZE, SIZE], 1, Dtype::Float32), computed(&[SIZE, 2 * SIZE], 2, Dtype::Float32));
    let ones = vec![1.0_f32; (SIZE * SIZE) as usize];
    for _ in 0..50 {
        let product = matmul(&a, &a).unwrap();
        let halves = matmul(&a, &b).unwrap().split_equal(2, 1).unwrap();
        transforms::async_eval([&product, &halves[0]]).unwrap();
        drop((product, halves));
        let others: Vec<Array> = (0..4).map(|_| Array::from_slice(&ones, &[SIZE, SIZE])).collect();
        // Behind the products, on the same thread.
        a.add(&a).unwrap().eval().unwrap();
        for other in &others {
            assert!(other.as_slice::<f32>() == ones);
        }
    }
}

/// Runs this test again as a child process, which names the environment variables that it ignores and goes on.
#[test]
fn environment_variables_that_are_ignored_are_named() {
    let _turn = turn();
    let name = "CPU_KERNELS_TEST_WORDS";
    if std::env::var_os(name).is_some() {
        let x = normal(&[64, 64], 1, Dtype::Float32);
        matmul(&x, &x).unwrap().eval().unwrap();
        return;
    }
    let words = [("MLX_CPU_KERNELS", "of"), ("MLX_CPU_ISA", "avx9"), ("MLX_CPU_THREADS", "two")];
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "environment_variables_that_are_ignored_are_named"])
        .env(name, "1")
        .envs(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
    for (variable, word) in words {
        assert!(said.contains(&format!("{variable}={word} ")), "{variable}: {said}");
    }
}

/// Runs this test again as a child process with kernels turned off by the environment, and compares what it computes.
#[test]
fn off_by_environment_means_stock_mlx() {
    let _turn = turn();
    let block = || {
        let [x, weight, norm] = [(&[1, 6, 16][..], 1), (&[16, 16], 2), (&[16], 3)]
            .map(|(shape, seed)| normal(shape, seed, Dtype::Bfloat16));
        block(&x, &weight, &norm)?.as_dtype(Dtype::Float32)
    };
    let name = "CPU_KERNELS_TEST_FILE";
    if let Some(file) = std::env::var_os(name) {
        // The child process: here kernels cannot be turned on.
        set_enabled(true);
        assert!(!mlx_sys::cpu_kernels::is_enabled());
        let bits: Vec<u8> =
            block().unwrap().evaluated_slice().iter().flat_map(|y| y.to_bits().to_le_bytes()).collect();
        std::fs::write(file, bits).unwrap();
        return;
    }
    assert!(mlx_sys::cpu_kernels::is_enabled());
    let file = tempfile::NamedTempFile::new().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "off_by_environment_means_stock_mlx"])
        .env(name, file.path())
        .env("MLX_CPU_KERNELS", "off")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let stock: Vec<u8> =
        evaluated(block, false).evaluated_slice().iter().flat_map(|y| y.to_bits().to_le_bytes()).collect();
    assert_eq!(std::fs::read(file.path()).unwrap(), stock);
}
