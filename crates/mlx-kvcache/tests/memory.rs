//! The memory of caches as MLX counts it. The only test in its file, since MLX counts the whole process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use mlx_kvcache::{Full, KvCache, Quantization, Ring};
use mlx_rs::memory::{active_memory, clear_cache, peak_memory, reset_peak_memory};
use mlx_rs::{Array, Dtype};
use mlx_testing::allocation_slack;

const HEADS: i32 = 2;
const HEAD_DIM: i32 = 32;

fn append(cache: &mut KvCache, x: &Array) {
    drop(cache.append(x, x).unwrap());
    mlx_rs::transforms::eval(cache.arrays()).unwrap();
}

#[test]
fn memory_is_bounded_and_nothing_is_copied() {
    mlx_testing::use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let x = Array::ones::<f32>(&[1, HEADS, 1, HEAD_DIM]).unwrap().as_dtype(Dtype::Bfloat16).unwrap();
    x.eval().unwrap();
    rings_stay_within_their_size(&x);
    a_full_cache_copies_nothing_per_token(&x);
    a_call_of_many_tokens_leaves_no_more_than_its_own(&x);
}

/// For 20000 single tokens a ring never takes more memory than `max_size + rewind + 256` tokens, and does not grow
/// after token 5000.
fn rings_stay_within_their_size(x: &Array) {
    for (max_size, keep, rewind, bits) in
        [(512, 4, 0, None), (512, 0, 16, None), (300, 4, 8, Some(8)), (1000, 0, 0, Some(4))]
    {
        clear_cache().unwrap();
        let before = active_memory().unwrap();
        let ring = KvCache::new(Ring::new(max_size).unwrap().with_keep(keep).unwrap());
        let mut cache: KvCache = ring.with_rewind(rewind).unwrap();
        // 16 in bfloat16; otherwise the bits, and a scale and a bias of 16 bits for 32 numbers.
        let bits_of_feature = bits.map_or(16, |bits| bits + 1);
        if let Some(bits) = bits {
            cache.quantize(Quantization::affine(bits, 32).unwrap()).unwrap();
        }
        let token = (2 * HEADS * HEAD_DIM * bits_of_feature / 8) as usize;
        // Keys and values; quantized ones have codes, scales and biases.
        let arrays = if bits.is_some() { 6 } else { 2 };
        let bound = (max_size + rewind + 256) as usize * token + allocation_slack(arrays);

        let mut at_5000 = 0;
        for i in 1..=20_000 {
            append(&mut cache, x);
            if i % 100 == 0 {
                let held = active_memory().unwrap() - before;
                assert!(held <= bound, "{held} bytes after {i} tokens, and {bound} are allowed");
                if i == 5000 {
                    at_5000 = held;
                }
                assert!(i <= 5000 || held <= at_5000, "{held} bytes after {i} tokens, {at_5000} after 5000");
            }
        }
        assert_eq!(cache.offset(), 20_000);
        assert!(cache.nbytes() <= bound);
    }
}

/// At 16000 tokens, a copy of the buffers would be a peak of their size.
fn a_full_cache_copies_nothing_per_token(x: &Array) {
    for bits in [None, Some(8)] {
        let mut cache = KvCache::new(Full::new());
        if let Some(bits) = bits {
            cache.quantize(Quantization::affine(bits, 32).unwrap()).unwrap();
        }
        let prompt =
            Array::ones::<f32>(&[1, HEADS, 16_000, HEAD_DIM]).unwrap().as_dtype(Dtype::Bfloat16).unwrap();
        cache.append(&prompt, &prompt).unwrap();
        mlx_rs::transforms::eval(cache.arrays()).unwrap();
        drop(prompt);
        // 16000 is a multiple of neither: 128 slots are free.
        for _ in 0..100 {
            clear_cache().unwrap();
            let before = active_memory().unwrap();
            reset_peak_memory().unwrap();
            append(&mut cache, x);
            let more = peak_memory().unwrap().saturating_sub(before);
            assert!(
                more < cache.nbytes() / 20 + allocation_slack(6),
                "{more} bytes more at the peak, {} held",
                cache.nbytes()
            );
        }
    }
}

/// Keys and values are views into one projection. A ring that stores a whole prompt must not keep the memory of the
/// queries.
fn a_call_of_many_tokens_leaves_no_more_than_its_own(x: &Array) {
    clear_cache().unwrap();
    let before = active_memory().unwrap();
    let mut cache = KvCache::new(Ring::new(64).unwrap());
    {
        let projected = Array::ones::<f32>(&[1, 2048, 10 * HEADS * HEAD_DIM]).unwrap();
        let projected = projected.as_dtype(Dtype::Bfloat16).unwrap();
        let parts = projected.split_equal(10, -1).unwrap();
        let heads = |part: &Array| {
            part.reshape(&[1, 2048, HEADS, HEAD_DIM]).unwrap().transpose_axes(&[0, 2, 1, 3]).unwrap()
        };
        cache.append(&heads(&parts[8]), &heads(&parts[9])).unwrap();
        mlx_rs::transforms::eval(cache.arrays()).unwrap();
    }
    let token = (2 * HEADS * HEAD_DIM * 2) as usize;
    let held = active_memory().unwrap() - before;
    assert!(held <= 2048 * token + 16_384 * 2 + allocation_slack(2), "{held} bytes");
    // The next token reduces the ring to its size.
    append(&mut cache, x);
    let held = active_memory().unwrap() - before;
    assert!(held <= (64 + 256) * token + allocation_slack(2), "{held} bytes");
}
