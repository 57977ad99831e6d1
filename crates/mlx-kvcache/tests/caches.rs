//! Single operations on caches: results and errors.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use approx::assert_relative_eq;
use mlx_attn_masks::AttentionMask;
use mlx_kvcache::{
    CacheError, CacheOptions, Full, KeysValues, KvCache, LayerKind, LayerSpec, Layout, Limit, ModelCache,
    Quantization, Ring,
};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

/// Keys `[1, 2, count, 32]` whose numbers name token and head, and values that are their negatives.
fn tokens(from: i32, count: i32) -> (Array, Array) {
    let token = |head: i32| (from..from + count).flat_map(move |t| vec![(1000 * head + t) as f32; 32]);
    let keys: Vec<f32> = (0..2).flat_map(token).collect();
    let keys = Array::from_slice(&keys, &[1, 2, count, 32]);
    let values = keys.negative().unwrap();
    (keys, values)
}

fn push(cache: &mut KvCache, count: i32) -> KeysValues {
    let (keys, values) = tokens(cache.offset(), count);
    cache.append(&keys, &values).unwrap()
}

/// The tokens that attention reads, in the order of their slots, taken from the keys of the first head.
fn read(read: &KeysValues) -> Vec<i32> {
    let (keys, values) = read.to_dense().unwrap();
    assert_eq!(keys.shape(), values.shape());
    let (keys, values) = (keys.contiguous().unwrap(), values.contiguous().unwrap());
    let count = keys.dim(2) as usize;
    let first = |x: &Array| -> Vec<i32> {
        x.as_slice::<f32>().chunks(32).take(count).map(|token| token[0].round() as i32).collect()
    };
    let found = first(&keys);
    assert_eq!(first(&values), found.iter().map(|token| -token).collect::<Vec<_>>());
    found
}

fn visible(mask: &AttentionMask) -> Vec<u8> {
    let AttentionMask::Array(array) = mask else { panic!("{mask:?}") };
    array.as_slice::<bool>().iter().map(|&sees| u8::from(sees)).collect()
}

fn full() -> KvCache {
    KvCache::new(Full::new())
}

fn merge(caches: &[KvCache]) -> Result<KvCache, CacheError> {
    KvCache::merge(&caches.iter().collect::<Vec<_>>())
}

fn rotating(max_size: i32, keep: i32, rewind: i32) -> KvCache {
    KvCache::new(Ring::new(max_size).unwrap().with_keep(keep).unwrap()).with_rewind(rewind).unwrap()
}

#[test]
fn a_full_cache_grows_by_256_slots() {
    let mut cache = full();
    push(&mut cache, 1);
    let token = 2 * 2 * 32 * 4; // keys and values, 2 heads, 32 features, 4 bytes
    assert_eq!(cache.nbytes(), 256 * token);
    push(&mut cache, 256);
    assert_eq!(cache.nbytes(), (1 + 256) * token);
    assert_eq!(read(&push(&mut cache, 3)), (0..260).collect::<Vec<_>>());
}

#[test]
fn a_ring_overwrites_the_oldest_token_and_never_a_sink() {
    let mut cache = rotating(6, 2, 0);
    push(&mut cache, 4);
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 2, 3, 4]);
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 2, 3, 4, 5]);
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 6, 3, 4, 5]);
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 6, 7, 4, 5]);
    // A longer call lays the tokens out in order: sinks, the three that its first query sees, the call's own.
    assert_eq!(read(&push(&mut cache, 3)), [0, 1, 5, 6, 7, 8, 9, 10]);
    // The next token reduces the ring to its size again, and overwrites the oldest token.
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 11, 8, 9, 10]);
}

#[test]
fn after_a_rewind_the_window_is_complete() {
    let mut cache = rotating(4, 1, 2);
    for _ in 0..9 {
        push(&mut cache, 1);
    }
    // One sink and a ring of 3 + 2: tokens 4 to 8.
    assert_eq!(cache.trim(2).unwrap(), 2);
    assert_eq!(cache.offset(), 7);
    // Token 7 sees itself, 5 and 6, and the sink; 4 and the forgotten 8 are hidden.
    let mask = cache.mask(1).unwrap();
    let keys = read(&push(&mut cache, 1));
    let seen: Vec<i32> =
        keys.iter().zip(visible(&mask)).filter(|&(_, sees)| sees == 1).map(|(&token, _)| token).collect();
    assert_eq!(seen, [0, 6, 7, 5]); // in the order of the ring
}

#[test]
fn an_impossible_trim_is_refused_and_changes_nothing() {
    let mut cache = rotating(4, 1, 2);
    push(&mut cache, 9);
    push(&mut cache, 1);
    // Ten tokens: the ring holds 5 to 9. The next token after a trim of 4 would be 6, which sees 4.
    let error = cache.trim(4).unwrap_err();
    assert!(matches!(error, CacheError::Trim { tokens: 4, held: 5, needed: 6 }), "{error}");
    assert!(error.to_string().contains("a larger `rewind`"));
    assert_eq!(cache.offset(), 10);
    // A trim into the sinks, or of all tokens, needs no token of the ring.
    assert_eq!(cache.clone().trim(9).unwrap(), 9);
    assert_eq!(cache.clone().trim(100).unwrap(), 10);
    assert!(matches!(cache.trim(-1), Err(CacheError::Negative { tokens: -1 })));
    assert_eq!(full().trim(3).unwrap(), 0);
}

#[test]
fn masks_are_the_smallest_that_are_right() {
    let mut full = full();
    let mut ring = rotating(6, 2, 0);
    for cache in [&mut full as &mut KvCache, &mut ring] {
        assert!(matches!(cache.mask(1).unwrap(), AttentionMask::None));
        assert!(matches!(cache.mask(5).unwrap(), AttentionMask::Causal));
        push(cache, 5);
        assert!(matches!(cache.mask(1).unwrap(), AttentionMask::None));
    }
    assert!(matches!(full.mask(9).unwrap(), AttentionMask::Causal));
    // The newest query sees all six slots, so the ring needs no mask, wrapped or not.
    for _ in 0..5 {
        push(&mut ring, 1);
        assert!(matches!(ring.mask(1).unwrap(), AttentionMask::None));
    }
    // Two queries after ten tokens: sinks 0 and 1, and of 7, 8, 9, 10, 11 four each.
    assert_eq!(visible(&ring.mask(2).unwrap()), [1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]);
    assert!(matches!(full.mask(0), Err(CacheError::Mask(_))));
    assert!(matches!(ring.mask(-2), Err(CacheError::Mask(_))));
    let huge = KvCache::new(Ring::new(100_000).unwrap()).mask(200_000);
    assert!(matches!(huge, Err(CacheError::Mask(_))), "{huge:?}");
}

#[test]
fn rows_of_a_batch_have_positions_of_their_own() {
    let padded: [KvCache; 2] = [
        full().with_left_padding(&[1, 0, 4]).unwrap(),
        rotating(8, 2, 0).with_left_padding(&[1, 0, 4]).unwrap(),
    ];
    for mut cache in padded {
        assert_eq!(cache.offsets(), [-1, 0, -4]);
        let (keys, _) = tokens(0, 3);
        let keys = mlx_rs::ops::concatenate(&[&keys, &keys, &keys], 0).unwrap();
        cache.append(&keys, &keys).unwrap();
        assert_eq!(cache.offsets(), [2, 3, -1]);
        assert_eq!(cache.offset(), 3);

        let (one, _) = tokens(0, 1);
        let error = cache.append(&one, &one).unwrap_err();
        assert!(error.to_string().contains("takes [3, 2, L, 32], a row for each of the batch"), "{error}");
    }
    for padding in [&[1, 2][..], &[0, -1], &[], &[0, i32::MAX]] {
        assert!(matches!(full().with_left_padding(padding), Err(CacheError::Padding { .. })));
        assert!(matches!(rotating(8, 2, 0).with_left_padding(padding), Err(CacheError::Padding { .. })));
    }
}

#[test]
fn rows_are_merged_taken_out_and_dropped() {
    for empty in [full(), rotating(6, 2, 1)] {
        let filled = |count: i32| {
            let mut cache = empty.clone();
            for _ in 0..count {
                push(&mut cache, 1);
            }
            cache.clone()
        };
        let batch = merge(&[filled(3), filled(9), empty.clone()]).unwrap();
        assert_eq!(batch.offsets(), [3, 9, 0]);
        let last = batch.filter(&[2, 0]).unwrap();
        assert_eq!(last.offsets(), [0, 3]);
        let mut one = batch.filter(&[1]).unwrap();
        assert_eq!(one.offsets(), [9]);
        let mut alone = filled(9);
        let sorted = |mut tokens: Vec<i32>| {
            tokens.sort_unstable();
            tokens
        };
        assert_eq!(sorted(read(&push(&mut one, 1))), sorted(read(&push(&mut alone, 1))));

        assert!(matches!(batch.filter(&[3]), Err(CacheError::Rows { batch: 3, .. })));
        assert!(matches!(batch.filter(&[]), Err(CacheError::Rows { .. })));
    }
    assert!(matches!(merge(&[]), Err(CacheError::Rows { .. })));
}

#[test]
fn caches_that_differ_do_not_merge() {
    #[track_caller]
    fn fails(a: KvCache, b: KvCache, what: &str) {
        let error = merge(&[a, b]).unwrap_err();
        assert!(matches!(error, CacheError::Merge { what: found, .. } if found == what), "{error}");
    }
    let ring = |max_size, keep, rewind| rotating(max_size, keep, rewind);
    fails(full(), ring(4, 0, 0), "layouts");
    fails(ring(4, 0, 0), ring(5, 0, 0), "layouts");
    fails(ring(4, 0, 1), ring(4, 0, 0), "layouts");
    fails(full(), KvCache::new(Full::new().with_window(3).unwrap()), "layouts");
    let quantized = full().quantized(Quantization::affine(8, 32).unwrap()).unwrap();
    fails(full(), quantized, "quantization");
    let held = |shape: &[i32], dtype| {
        let mut cache = full();
        let x = Array::ones::<f32>(shape).unwrap().as_dtype(dtype).unwrap();
        cache.append(&x, &x).unwrap();
        cache
    };
    let two = held(&[1, 2, 3, 32], Dtype::Float32);
    fails(two.clone(), held(&[1, 1, 3, 32], Dtype::Float32), "heads");
    fails(two, held(&[1, 2, 3, 32], Dtype::Float16), "dtypes");
}

#[test]
fn a_clone_does_not_change_with_the_original() {
    let layers = [
        LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 32, value_dim: 32 },
        LayerSpec { kind: LayerKind::Sliding { window: 4 }, heads: 2, key_dim: 32, value_dim: 32 },
    ];
    let mut cache = ModelCache::for_layers(&layers, &CacheOptions::default()).unwrap();
    let step = |cache: &mut ModelCache, count| -> Vec<Vec<i32>> {
        cache.layers_mut().map(|layer| read(&push(layer, count))).collect()
    };
    step(&mut cache, 6);
    let before = cache.clone();
    let then = step(&mut cache, 1);
    step(&mut cache, 7);
    cache.quantize(Quantization::affine(4, 32).unwrap()).unwrap();
    cache = before;
    assert_eq!(cache.offset(), 6);
    assert_eq!(step(&mut cache, 1), then);

    let mut other = ModelCache::for_layers(&layers[..1], &CacheOptions::default()).unwrap();
    let error = other.extend(&cache).unwrap_err();
    assert!(matches!(error, CacheError::Layers { expected: 1, found: 2 }));
    assert_eq!(error.to_string(), "a cache of 2 layers, where one of 1 is needed");
}

#[test]
fn layers_are_trimmed_together_or_not_at_all() {
    let layers = [
        LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 32, value_dim: 32 },
        LayerSpec { kind: LayerKind::Sliding { window: 4 }, heads: 2, key_dim: 32, value_dim: 32 },
    ];
    for (rewind, trimmed) in [(0, false), (3, true)] {
        let options = CacheOptions { rewind, ..CacheOptions::default() };
        let mut cache = ModelCache::for_layers(&layers, &options).unwrap();
        for _ in 0..9 {
            cache.layers_mut().for_each(|layer| drop(push(layer, 1)));
        }
        assert_eq!(cache.trim(3).is_ok(), trimmed);
        let offset = if trimmed { 6 } else { 9 };
        assert!(cache.layers().iter().all(|layer| layer.offset() == offset));
    }
}

#[test]
fn masks_are_built_once_for_each_kind_of_layer() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 32, value_dim: 32 };
    let sliding = LayerKind::Sliding { window: 2 };
    let layers = [sliding, LayerKind::Full, sliding, LayerKind::Sliding { window: 3 }].map(spec);
    let cache = ModelCache::for_layers(&layers, &CacheOptions::default()).unwrap();
    let masks = cache.masks(4).unwrap();
    let same = |a: usize, b: usize| match (&masks[a], &masks[b]) {
        (AttentionMask::Array(a), AttentionMask::Array(b)) => {
            a.as_slice::<bool>().as_ptr() == b.as_slice::<bool>().as_ptr()
        }
        _ => false,
    };
    assert!(same(0, 2), "one array for two layers");
    assert!(!same(0, 3));
    assert!(matches!(masks[1], AttentionMask::Causal));
}

#[test]
fn options_make_the_caches_that_they_name() {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 64, value_dim: 32 };
    let layers = [spec(LayerKind::Full), spec(LayerKind::Sliding { window: 8 })];
    assert_eq!(layers[0].values_per_token(), 2 * (64 + 32));
    let options = CacheOptions {
        quantization: Some(Quantization::affine(8, 32).unwrap()),
        rewind: 3,
        limit: Some(Limit { max_size: 16, keep: 4 }),
        left_padding: vec![0, 2],
    };
    let cache = ModelCache::for_layers(&layers, &options).unwrap();
    for (layer, (max_size, keep)) in cache.layers().iter().zip([(16, 4), (8, 0)]) {
        let Layout::Ring(ring) = layer.layout() else { panic!() };
        assert_eq!((ring.max_size(), ring.keep(), ring.rewind()), (max_size, keep, 3));
        assert_eq!(layer.quantization(), options.quantization);
        assert_eq!(layer.offsets(), [0, -2]);
    }
    let wrong = |options: CacheOptions| ModelCache::for_layers(&layers, &options).unwrap_err();
    let groups = CacheOptions { quantization: Some(Quantization::affine(8, 64).unwrap()), ..options.clone() };
    assert!(matches!(wrong(groups), CacheError::Groups { what: "values", head_dim: 32, group_size: 64 }));
    let rewind = CacheOptions { rewind: -1, ..options.clone() };
    assert!(matches!(wrong(rewind), CacheError::Negative { tokens: -1 }));
    let limit = CacheOptions { limit: Some(Limit { max_size: 4, keep: 4 }), ..options };
    assert!(matches!(wrong(limit), CacheError::Sizes { max_size: 4, keep: 4, .. }));
}

#[test]
fn shapes_and_dtypes_that_do_not_fit_change_nothing() {
    let ones = |shape: &[i32]| Array::ones::<f32>(shape).unwrap();
    for mut cache in [full(), rotating(8, 1, 2)] {
        push(&mut cache, 3);
        for (keys, values, what) in [
            (ones(&[2, 1, 32]), ones(&[1, 2, 1, 32]), "keys"),
            (ones(&[1, 2, 0, 32]), ones(&[1, 2, 0, 32]), "keys"),
            (ones(&[1, 0, 1, 32]), ones(&[1, 0, 1, 32]), "keys"),
            (ones(&[1, 2, 1, 32]), ones(&[1, 2, 2, 32]), "values"),
            (ones(&[1, 2, 1, 32]), ones(&[1, 2, 1, 0]), "values"),
            (ones(&[1, 3, 1, 32]), ones(&[1, 3, 1, 32]), "keys"),
            (ones(&[1, 2, 1, 32]), ones(&[1, 2, 1, 4]), "values"),
            (ones(&[2, 2, 1, 32]), ones(&[2, 2, 1, 32]), "keys"),
        ] {
            let error = cache.append(&keys, &values).unwrap_err();
            assert!(matches!(error, CacheError::Shape { what: found, .. } if found == what), "{error}");
        }
        let (keys, values) = tokens(3, 1);
        let half = values.as_dtype(Dtype::Float16).unwrap();
        let error = cache.append(&keys, &half).unwrap_err();
        assert_eq!(error.to_string(), "values of dtype Float16 do not fit this cache, which holds Float32");
        assert_eq!(
            Exception::from(error).what(),
            "values of dtype Float16 do not fit this cache, which holds Float32"
        );
        assert_eq!(cache.offset(), 3);
        let mut tokens = read(&push(&mut cache, 1));
        tokens.sort_unstable();
        assert_eq!(tokens, [0, 1, 2, 3]);
    }
}

#[test]
fn quantization_is_checked_before_anything_is_quantized() {
    let error = full().quantized(Quantization::MXFP8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a cache cannot be quantized as mxfp8 of 8 bits in groups of 32; its mode must be affine"
    );
    let eight = Quantization::affine(8, 64).unwrap();
    let mut cache = full();
    push(&mut cache, 3);
    assert!(matches!(cache.quantize(eight), Err(CacheError::Groups { what: "keys", head_dim: 32, .. })));
    assert_eq!(read(&push(&mut cache, 1)), [0, 1, 2, 3]);

    let mut empty = rotating(4, 0, 0).quantized(eight).unwrap();
    let (keys, values) = tokens(0, 1);
    assert!(matches!(empty.append(&keys, &values), Err(CacheError::Groups { .. })));
    let integers = Array::ones::<i32>(&[1, 1, 1, 64]).unwrap();
    assert!(matches!(empty.append(&integers, &integers), Err(CacheError::Dtype { .. })));
    let error = empty.quantize(Quantization::affine(4, 64).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cache is already quantized as affine of 8 bits in groups of 64 and cannot be quantized as affine of 4 bits in groups of 64"
    );
    assert!(empty.quantize(eight).is_ok());
}

/// If one layer cannot be quantized, no layer is changed.
#[test]
fn layers_are_quantized_together_or_not_at_all() {
    let mut cache = ModelCache::new(vec![full(), full()]);
    let wide = Array::ones::<f32>(&[1, 1, 2, 64]).unwrap();
    let narrow = Array::ones::<f32>(&[1, 1, 2, 32]).unwrap();
    for (layer, x) in cache.layers_mut().zip([&wide, &narrow]) {
        layer.append(x, x).unwrap();
    }
    assert!(cache.quantize(Quantization::affine(8, 64).unwrap()).is_err());
    let mut layers = cache.layers_mut();
    let read = layers.next().unwrap().append(&wide, &wide).unwrap();
    assert!(matches!(read, KeysValues::Dense { .. }));
}

#[test]
fn a_quantized_cache_is_as_much_smaller_as_its_bits() {
    for (bits, bytes_of_head) in [(8, 64 + 2 * 2 * 2), (4, 32 + 2 * 2 * 2)] {
        let quantization = Quantization::affine(bits, 32).unwrap();
        let mut cache = full().quantized(quantization).unwrap();
        let x = Array::ones::<f32>(&[1, 2, 1, 64]).unwrap().as_dtype(Dtype::Bfloat16).unwrap();
        cache.append(&x, &x).unwrap();
        // keys and values, 2 heads, 256 slots; two groups with a scale and a bias of 2 bytes each
        assert_eq!(cache.nbytes(), 2 * 2 * 256 * bytes_of_head);
    }
}

/// MLX computes pending arrays only on the thread that created them, and says so with a place in its source.
#[test]
fn an_error_of_mlx_is_shown_without_its_place_in_the_source() {
    let pending = Array::ones::<f32>(&[1, 2, 5, 32]).unwrap().square().unwrap();
    let mut cache = full();
    cache.append(&pending, &pending).unwrap();
    let quantized = std::thread::spawn(move || cache.quantized(Quantization::affine(8, 32).unwrap()));
    let error = quantized.join().unwrap().unwrap_err();
    let CacheError::Mlx(exception) = &error else { panic!("{error:?}") };
    assert!(exception.to_string().contains(" at /"), "{exception}");
    assert!(error.to_string().contains("tream") && !error.to_string().contains(" at "), "{error}");
    assert!(std::error::Error::source(&error).is_none());
    // A model's `forward` returns the error itself.
    let (shown, whole) = (error.to_string(), exception.what().to_owned());
    assert!(whole.starts_with(&shown), "{whole}");
    assert_eq!(Exception::from(error).what(), whole);
}

#[test]
fn sizes_that_contradict_each_other_are_errors() {
    for (max_size, keep, rewind) in
        [(0, 0, 0), (-4, 0, 0), (4, 4, 0), (4, -1, 0), (4, 0, -1), (i32::MAX, 0, 1)]
    {
        let cache = Ring::new(max_size)
            .and_then(|ring| ring.with_keep(keep))
            .and_then(|ring| KvCache::new(ring).with_rewind(rewind));
        let error = cache.unwrap_err();
        assert!(matches!(error, CacheError::Sizes { .. }), "{error}");
    }
    let error = Full::new().with_window(0).unwrap_err();
    assert_eq!(error.to_string(), "a window of 0 tokens; at least 1 is needed, for the token itself");
}

#[test]
fn grouped_queries_read_the_head_of_their_group() {
    // With one token per head, attention returns the value of that head, whatever the scores.
    let queries = Array::ones::<f32>(&[1, 4, 1, 2]).unwrap();
    let keys = Array::ones::<f32>(&[1, 2, 1, 2]).unwrap();
    let values = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[1, 2, 1, 2]);
    let y = KeysValues::Dense { keys, values }.attention(&queries, 1.0, &AttentionMask::None).unwrap();
    assert_eq!(y.as_slice::<f32>(), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);

    let mut cache = full().quantized(Quantization::affine(8, 32).unwrap()).unwrap();
    let keys = Array::ones::<f32>(&[1, 2, 1, 32]).unwrap();
    let read = cache.append(&keys, &keys).unwrap();
    let three = Array::ones::<f32>(&[1, 3, 1, 32]).unwrap();
    let error = read.attention(&three, 1.0, &AttentionMask::None).unwrap_err();
    assert_eq!(error.what(), "3 query heads for 2 key-value heads");
}

/// One feature, so that scores are products of two numbers, and softcapping can be computed by hand.
#[test]
fn softcapped_scores_lie_below_the_cap() {
    let of = |numbers: &[f32]| Array::from_slice(numbers, &[1, 1, numbers.len() as i32, 1]);
    let (queries, keys, values) = (of(&[1.0]), of(&[1000.0, 0.0, -1000.0]), of(&[1.0, 10.0, 100.0]));
    let read = KeysValues::Dense { keys, values };
    let attention = |scale| {
        let y = read.softcapped_attention(&queries, scale, 2.0, &AttentionMask::None).unwrap();
        y.as_slice::<f32>()[0]
    };
    let [e, one] = [2_f32, 0.0].map(f32::exp);
    let expected = (e * 1.0 + one * 10.0 + 100.0 / e) / (e + one + 1.0 / e);
    // Scores of 1000 and of 50 are both at the cap. Small scores hardly change.
    assert_relative_eq!(attention(1.0), expected, max_relative = 1e-5);
    assert_relative_eq!(attention(0.05), expected, max_relative = 1e-5);
    let [s, mean] = [1e-3_f32, 37.0];
    let plain = read.attention(&queries, s / 1000.0, &AttentionMask::None).unwrap();
    assert_relative_eq!(attention(s / 1000.0), plain.as_slice::<f32>()[0], max_relative = 1e-6);
    assert_relative_eq!(attention(0.0), mean, max_relative = 1e-6);
}

/// Positions are int32; one more token than they can count is an error.
#[test]
fn more_tokens_than_positions_can_count_are_refused() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/mlx-lm/rotating_wrapped.safetensors");
    let (mut tensors, entries) = Array::load_safetensors_with_metadata(file).unwrap();
    mlx_rs::transforms::eval(tensors.values()).unwrap();
    tensors.insert("0.2".to_owned(), Array::from_int(i32::MAX));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("long.safetensors");
    Array::save_safetensors(&tensors, &entries, &file).unwrap();
    let cache = mlx_kvcache::SavedCache::read(&file).unwrap().into_cache();
    let error = cache.masks(1).unwrap_err();
    assert_eq!(error.to_string(), "1 more tokens after 2147483647 are over 2^31 - 1");
    let mut layer = cache.layers()[0].clone();
    let (keys, values) = tokens(0, 1);
    assert!(matches!(layer.append(&keys, &values), Err(CacheError::TooLong { tokens: 1, .. })));
    assert!(full().mask(i32::MAX).is_ok()); // causal, whatever its size
    // Rows that are so far apart cannot be merged either.
    let far = full().with_left_padding(&[1 << 30, 0]).unwrap();
    let merged = merge(&[far, cache.layers()[0].clone()]);
    assert!(merged.is_err());
}

#[test]
fn a_ring_gets_a_longer_rewind_and_keeps_its_tokens() {
    for calls in [&[1; 20][..], &[20], &[3], &[9, 9, 1]] {
        let mut ring = rotating(6, 2, 0);
        for &call in calls {
            push(&mut ring, call);
        }
        let mut longer = ring.clone().with_rewind(4).unwrap();
        let sorted = |cache: &mut KvCache| {
            let mut tokens = read(&push(cache, 1));
            tokens.sort_unstable();
            tokens
        };
        let (before, after) = (sorted(&mut ring), sorted(&mut longer));
        assert_eq!(before[before.len().saturating_sub(4)..], after[after.len().saturating_sub(4)..]);
        for _ in 0..4 {
            push(&mut longer, 1);
        }
        assert_eq!(longer.trim(4).unwrap(), 4);
        let error = longer.with_left_padding(&[0, 1]).unwrap_err();
        assert!(
            error.to_string().starts_with("left padding cannot be changed in a cache that holds"),
            "{error}"
        );
    }
}

/// Such caches can be merged, and have the tokens that they would have had with this rewind from the start.
#[test]
fn a_ring_gets_the_rewind_of_another() {
    for (from, to) in [(5, 0), (5, 2), (0, 5), (2, 2)] {
        for calls in [&[1; 20][..], &[20], &[3], &[9, 9, 1]] {
            let (mut ring, mut expected) = (rotating(6, 2, from), rotating(6, 2, to));
            for &call in calls {
                push(&mut ring, call);
                push(&mut expected, call);
            }
            let mut ring = ring.with_rewind_of(&expected).unwrap();
            KvCache::merge(&[&ring, &expected]).unwrap();
            assert_eq!(ring.offset(), expected.offset());
            let newest = |cache: &mut KvCache| {
                let mut tokens = read(&push(cache, 1));
                tokens.sort_unstable();
                tokens.split_off(tokens.len().saturating_sub(4))
            };
            assert_eq!(newest(&mut ring), newest(&mut expected), "{from} to {to}, {calls:?}");
        }
    }
    let error = rotating(6, 2, 3).with_rewind_of(&rotating(6, 1, 3)).unwrap_err();
    assert!(matches!(error, CacheError::Merge { what: "layouts", .. }), "{error}");
    let error = full().with_rewind_of(&rotating(6, 1, 3)).unwrap_err();
    assert!(matches!(error, CacheError::Merge { what: "layouts", .. }), "{error}");
}

/// The mask hides slots that a trim has freed, even if every other slot is visible.
#[test]
fn freed_slots_are_hidden() {
    let mut cache = rotating(4, 1, 2);
    for _ in 0..9 {
        push(&mut cache, 1);
    }
    cache.trim(3).unwrap();
    let mask = cache.mask(1).unwrap();
    let tokens = read(&push(&mut cache, 1));
    let seen: Vec<i32> =
        tokens.iter().zip(visible(&mask)).filter(|&(_, sees)| sees == 1).map(|(&token, _)| token).collect();
    assert_eq!(seen, [0, 6, 4, 5]);
}

/// A batch can trim only as many tokens as every one of its rows could.
#[test]
fn a_batch_trims_no_more_than_each_of_its_rows_can() {
    let mut lost = rotating(4, 0, 2);
    push(&mut lost, 10);
    push(&mut lost, 4);
    lost.trim(2).unwrap();
    let batch = merge(&[lost.clone(), rotating(4, 0, 2).clone()]).unwrap();
    assert!(matches!(batch.can_trim(3), Err(CacheError::Trim { .. })));
}

#[test]
fn an_emptied_cache_is_like_a_new_one() {
    for mut cache in [full(), rotating(8, 1, 2)] {
        push(&mut cache, 3);
        cache.trim(3).unwrap();
        assert_eq!(cache.nbytes(), 0);
        let batch = Array::ones::<f32>(&[2, 1, 1, 16]).unwrap();
        cache.append(&batch, &batch).unwrap();
    }
}

/// The layout of a cache with tokens makes a new cache without tokens, and a rewind is never made shorter.
#[test]
fn a_layout_has_settings_and_no_tokens() {
    let mut filled = rotating(6, 2, 1);
    push(&mut filled, 9);
    let mut new = KvCache::new(*filled.layout());
    assert_eq!((new.offset(), new.nbytes()), (0, 0));
    assert_eq!(read(&push(&mut new, 3)), [0, 1, 2]);
    let names = |cache: KvCache| cache.with_rewind(1).unwrap().layout().to_string();
    assert_eq!(names(full()), "all tokens");
    assert_eq!(names(KvCache::new(Full::new().with_window(4).unwrap())), "all tokens with a window of 4");
    assert_eq!(names(rotating(6, 0, 0)), "at most 6 tokens with a rewind of 1");
    assert_eq!(names(rotating(6, 2, 3)), "at most 6 tokens with 2 sinks and a rewind of 3");
    assert!(matches!(full().with_rewind(-1), Err(CacheError::Negative { tokens: -1 })));
}

#[test]
fn a_call_that_failed_halfway_is_detected_and_undone() {
    let layers = [
        LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 32, value_dim: 32 },
        LayerSpec { kind: LayerKind::Sliding { window: 4 }, heads: 2, key_dim: 32, value_dim: 32 },
    ];
    let mut cache = ModelCache::for_layers(&layers, &CacheOptions::default()).unwrap();
    cache.layers_mut().for_each(|layer| drop(push(layer, 5)));
    push(cache.layers_mut().next().unwrap(), 3);
    let drifted =
        |error: CacheError| assert!(matches!(error, CacheError::Drift { layer: 1, expected: 8, found: 5 }));
    drifted(cache.masks(1).unwrap_err());
    drifted(cache.trim(3).unwrap_err());
    drifted(cache.can_trim(3).unwrap_err());
    drifted(cache.row(0).unwrap_err());
    drifted(cache.filter(&[0]).unwrap_err());
    drifted(ModelCache::merge(&[&cache, &cache]).unwrap_err());
    cache.realign().unwrap();
    assert_eq!(cache.offset(), 5);
    assert!(cache.masks(1).is_ok());
    // A ring that has overwritten tokens that it would need cannot be trimmed.
    for _ in 0..3 {
        push(cache.layers_mut().nth(1).unwrap(), 1);
    }
    assert!(matches!(cache.realign(), Err(CacheError::Trim { .. })));
}

#[test]
fn an_evaluated_cache_moves_to_another_thread() {
    let layers = [LayerSpec { kind: LayerKind::Sliding { window: 4 }, heads: 2, key_dim: 32, value_dim: 32 }];
    let mut cache = ModelCache::for_layers(&layers, &CacheOptions::default()).unwrap();
    cache.layers_mut().for_each(|layer| drop(push(layer, 6)));
    cache.eval().unwrap();
    let read =
        std::thread::spawn(move || cache.layers_mut().map(|layer| read(&push(layer, 1))).next().unwrap());
    assert_eq!(read.join().unwrap(), [6, 3, 4, 5]);
}

/// Rings that were filled differently have their tokens in other slots, so they need different masks.
#[test]
fn merged_layers_share_a_mask_only_where_they_are_alike() {
    let filled = |calls: &[i32], trim: i32| -> KvCache {
        let mut cache = rotating(4, 0, 4);
        for &call in calls {
            push(&mut cache, call);
        }
        cache.trim(trim).unwrap();
        cache
    };
    let fresh = ModelCache::new(vec![rotating(4, 0, 4), rotating(4, 0, 4)]);
    let other = ModelCache::new(vec![filled(&[1; 18], 4), filled(&[9, 9], 4)]);
    let mut merged = ModelCache::merge(&[&fresh, &other]).unwrap();
    let masks = merged.masks(1).unwrap();
    for (layer, mask) in merged.layers_mut().zip(masks) {
        let x = Array::ones::<f32>(&[2, 2, 1, 32]).unwrap();
        layer.append(&x, &x).unwrap().attention(&x, 1.0, &mask).unwrap().eval().unwrap();
    }
}

#[test]
fn the_256th_token_needs_no_second_buffer() {
    let mut cache = full();
    push(&mut cache, 255);
    let places = cache.nbytes();
    push(&mut cache, 1);
    assert_eq!(cache.nbytes(), places);
}
