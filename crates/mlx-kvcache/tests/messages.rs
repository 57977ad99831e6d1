//! What errors say, and that messages show very long texts of a file in part.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use mlx_kvcache::{
    CacheError, CacheFileError, CacheOptions, Full, KvCache, LayerKind, LayerSpec, MadeBy, ModelCache,
    Quantization, Ring, SavedCache,
};
use mlx_rs::{Array, Dtype};

/// The error for a file with this header and one float32 behind it.
fn message(header: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&file, [&length, header.as_bytes(), &[0; 4]].concat()).unwrap();
    let mut error: &dyn std::error::Error = &SavedCache::read(&file).unwrap_err();
    let mut message = error.to_string();
    while let Some(source) = error.source() {
        message += &source.to_string();
        error = source;
    }
    message
}

#[test]
fn long_texts_of_a_file_are_cut() {
    let long = "\u{e9}".repeat(100_000);
    let tensor = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    for (part, header) in [
        (
            "unknown variant",
            format!(r#"{{"0.0": {{"dtype": "{long}", "shape": [1], "data_offsets": [0, 4]}}}}"#),
        ),
        ("is a ", format!(r#"{{"__metadata__": {{"1.0": "{long}", "2.0.0": ""}}, "0.0": {tensor}}}"#)),
        ("__metadata__", format!(r#"{{"__metadata__": {{"0.mlx_models": "{long}"}}, "0.0": {tensor}}}"#)),
        ("cache", format!(r#"{{"{long}": {tensor}}}"#)),
    ] {
        let message = message(&header);
        assert!(message.len() < 2000, "{part}: {} bytes: {}", message.len(), &message[..300]);
    }
}

#[test]
fn long_lists_of_numbers_are_cut() {
    let error = KvCache::new(Full::new()).with_left_padding(&vec![-1; 100_000]).unwrap_err();
    assert!(matches!(error, CacheError::Padding { .. }), "{}", &error.to_string()[..100]);
    assert!(error.to_string().len() < 500);
}

/// A cache with these numbers of tokens, appended call by call.
fn filled(mut cache: KvCache, calls: &[i32]) -> KvCache {
    for &count in calls {
        let x = Array::ones::<f32>(&[1, 2, count, 32]).unwrap();
        cache.append(&x, &x).unwrap();
    }
    cache
}

#[test]
fn errors_of_a_cache_say_what_is_wrong() {
    let full = || KvCache::new(Full::new());
    let three = || filled(full(), &[3]);
    let ring = |max_size| KvCache::new(Ring::new(max_size).unwrap());
    let x = Array::ones::<f32>(&[1, 2, 1, 32]).unwrap();
    let flat = Array::ones::<f32>(&[2, 32]).unwrap();
    let groups = Quantization::affine(8, 64).unwrap();
    let drifted = ModelCache::new(vec![three(), full()]);
    let errors: [(CacheError, &str); 12] = [
        (
            full().append(&flat, &x).unwrap_err(),
            "keys of shape [2, 32] do not fit this cache, which takes [B, H, L, D]",
        ),
        (
            three().append(&x, &flat).unwrap_err(),
            "values of shape [2, 32] do not fit this cache, which takes [1, 2, 1, D], like the keys",
        ),
        (
            filled(ring(4), &[1; 6]).trim(2).unwrap_err(),
            "2 tokens cannot be trimmed: this needs the newest 5 tokens, and the cache holds 4. A cache with a larger \
             `rewind` holds more",
        ),
        (full().trim(i32::MIN).unwrap_err(), "-2147483648 tokens to trim; the number must be 0 or more"),
        (
            Ring::new(i32::MAX).unwrap_err(),
            "a ring with max_size 2147483647, keep 0 and rewind 0; these must satisfy 0 <= keep < max_size, 0 <= \
             rewind, and max_size + rewind < 2^30",
        ),
        (
            three().quantize(groups).unwrap_err(),
            "keys have 32 features per head, which is not a multiple of the quantization group size 64",
        ),
        (
            full().with_left_padding(&[]).unwrap_err(),
            "left padding []: the numbers must be from 0 to 2^30, and at least one must be 0",
        ),
        (
            three().filter(&[]).unwrap_err(),
            "rows [] of a batch of 1 rows: each must exist, and at least one is needed",
        ),
        (
            three().row(usize::MAX).unwrap_err(),
            "rows [18446744073709551615] of a batch of 1 rows: each must exist, and at least one is needed",
        ),
        (
            KvCache::merge(&[&full(), &ring(4)]).unwrap_err(),
            "caches of different layouts cannot be merged into one batch: all tokens, and at most 4 tokens",
        ),
        (
            drifted.masks(1).unwrap_err(),
            "layer 1 holds 0 tokens, and layer 0 holds 3: a call of the model failed between them. \
             `ModelCache::realign` trims the tokens that only some layers hold",
        ),
        (full().mask(0).unwrap_err(), "a mask for 0 queries; at least 1 is needed"),
    ];
    for (error, expected) in errors {
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn errors_of_a_file_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let place = folder.path().display();
    let layers = [LayerSpec { kind: LayerKind::Full, heads: 2, key_dim: 32, value_dim: 32 }];
    let cache = || ModelCache::new(vec![filled(KvCache::new(Full::new()), &[3])]);
    let made_by = MadeBy { weights: "a digest".to_owned(), ..MadeBy::from("m") };
    cache().save(at("cache"), made_by.clone(), &[]).unwrap();
    fs::write(at("other"), "once upon a time there was a cache").unwrap();
    let read = |name: &str| SavedCache::read(at(name)).unwrap_err();
    let load = |made_by: MadeBy| {
        let saved = SavedCache::read(at("cache")).unwrap();
        saved.into_cache_for(made_by, &layers, Dtype::Float32, &CacheOptions::default()).unwrap_err()
    };
    let errors: [(CacheFileError, String); 7] = [
        (read("gone"), format!("opening {place}/gone")),
        (
            cache().save(at("other"), "m", &[]).unwrap_err(),
            format!(
                "{place}/other is not a cache file, and only cache files are replaced; choose another name or remove \
                 the file"
            ),
        ),
        (
            ModelCache::new(Vec::new()).save(at("new"), "m", &[]).unwrap_err(),
            format!("{place}/new holds no cache: there are no layers to save"),
        ),
        (
            cache().save(at("new"), "m", &[1]).unwrap_err(),
            "1 token ids for a cache of 3 tokens; give all of them or none".to_owned(),
        ),
        (
            load(MadeBy::from("m")),
            format!(
                "{place}/cache was made with other weights than this model has, so this model cannot use its keys and \
                 values; make the cache again"
            ),
        ),
        (
            load(MadeBy { adapters: Some(String::new()), ..made_by.clone() }),
            format!(
                "{place}/cache was made with other adapters than this model has, so this model cannot use its keys and \
                 values; make the cache again"
            ),
        ),
        (
            load(MadeBy { config: "another".to_owned(), ..made_by }),
            format!(
                "{place}/cache was made with other settings (config.json, LongRoPE's rule) than this model has, so this \
                 model cannot use its keys and values; make the cache again"
            ),
        ),
    ];
    for (error, expected) in errors {
        assert_eq!(error.to_string(), expected);
    }
}

/// MLX computes pending arrays only on the thread that created them, and says so with a place in its source.
#[test]
fn errors_of_mlx_are_shown_without_their_place_in_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache");
    let pending = Array::ones::<f32>(&[1, 2, 5, 32]).unwrap().square().unwrap();
    let mut layer = KvCache::new(Full::new());
    layer.append(&pending, &pending).unwrap();
    let cache = ModelCache::new(vec![layer]);
    let saved = std::thread::spawn(move || cache.save(file, "m", &[])).join().unwrap();
    let error = saved.unwrap_err();
    let CacheFileError::Mlx(exception) = &error else { panic!("{error:?}") };
    assert!(exception.to_string().contains(" at /"), "{exception}");
    assert!(error.to_string().contains("tream") && !error.to_string().contains(" at "), "{error}");
    assert!(std::error::Error::source(&error).is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
