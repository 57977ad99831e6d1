//! Which models can use a prompt cache: the model that made it, and mlx-lm's model where that computes the same.
#![cfg(all(feature = "phi3", feature = "generate"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use approx::assert_abs_diff_eq;
use mlx_models::generate::{GenerateError, Reuse, Session};
use mlx_models::{CacheFileError, CacheOptions, CausalLm, LoadOptions, Logits, LongRopeMode};
use mlx_rs::{Array, Dtype};
use mlx_testing::tensor;
use tempfile::TempDir;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mlx-lm-caches").join(name)
}

fn load(folder: &Path, long_rope: LongRopeMode) -> Box<dyn CausalLm> {
    mlx_models::load_with(folder, &LoadOptions { long_rope, ..LoadOptions::default() }).unwrap()
}

fn resume(model: &dyn CausalLm, file: &Path) -> Result<Session, CacheFileError> {
    Session::load(model, file, &CacheOptions::default()).map_err(|e| match e {
        GenerateError::CacheFile(e) => e,
        e => panic!("{e}"),
    })
}

/// A session that continues from a cache of mlx-lm gives mlx-lm's logits.
fn assert_goes_on_as_mlx_lm(model: &mut dyn CausalLm, name: &str) {
    let mut session = resume(model, &fixture(&format!("{name}.safetensors"))).unwrap();
    let expected = Array::load_safetensors(fixture(&format!("{name}.next.safetensors"))).unwrap();
    let found = session.read(model, &expected["next"], Logits::All).unwrap();
    assert_abs_diff_eq!(tensor(&found).named(name), tensor(&expected["logits"]), epsilon = 2e-4);
}

#[test]
fn caches_of_mlx_lm_with_long_factors() {
    let folder = case("phi3_longrope_mlx_lm");
    let mut by_length = load(&folder, LongRopeMode::ByLength);
    // Below the original length of 16 mlx-lm has the long factors and this model the short ones.
    let error = resume(&*by_length, &fixture("longrope_9.safetensors")).unwrap_err();
    assert!(matches!(error, CacheFileError::UnknownOrigin { .. }), "{error}");
    assert!(error.to_string().contains("--longrope mlx-lm"), "{error}");
    assert_goes_on_as_mlx_lm(&mut *by_length, "longrope_20");
    let mut as_mlx_lm = load(&folder, LongRopeMode::MlxLm);
    assert_goes_on_as_mlx_lm(&mut *as_mlx_lm, "longrope_9");
    assert_goes_on_as_mlx_lm(&mut *as_mlx_lm, "longrope_20");
}

#[test]
fn caches_of_mlx_lm_without_a_window() {
    let model = load(&case("hf_phi3_window"), LongRopeMode::ByLength);
    // As many tokens as the window has, and the next one is the first that mlx-lm reads otherwise.
    let mut session = resume(&*model, &fixture("window_6.safetensors")).unwrap();
    assert_eq!(session.offset(), 6);
    let mut model = model;
    let mut anew = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let files = Array::load_safetensors(fixture("window_6.next.safetensors")).unwrap();
    anew.read(&mut *model, &files["prompt"], Logits::None).unwrap();
    let expected = anew.read(&mut *model, &files["next"], Logits::All).unwrap();
    let found = session.read(&mut *model, &files["next"], Logits::All).unwrap();
    assert_abs_diff_eq!(tensor(&found), tensor(&expected), epsilon = 2e-4);

    let error = resume(&*model, &fixture("window_20.safetensors")).unwrap_err();
    assert!(matches!(error, CacheFileError::UnknownOrigin { .. }), "{error}");
    assert!(error.to_string().contains("window of 6 tokens"), "{error}");
}

/// A folder with the files of a case, with one text in its config replaced.
fn with_config(name: &str, from: &str, to: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(case(name).join(file), folder.path().join(file)).unwrap();
    }
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
    folder
}

fn saved(model: &mut dyn CausalLm, tokens: i32, file: &Path) {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let ids: Vec<u32> = (0..tokens as u32).map(|i| (i * i * 7 + i) % 64).collect();
    session.read(model, &Array::from_slice(&ids, &[1, tokens]), Logits::None).unwrap();
    session.save(model, file).unwrap();
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let name = "phi3_longrope_mlx_lm";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let mut model = load(&case(name), LongRopeMode::ByLength);
    saved(&mut *model, 9, &file);
    assert_eq!(resume(&*model, &file).unwrap().offset(), 9);
    // Loaded once more it is the same.
    assert_eq!(resume(&*load(&case(name), LongRopeMode::ByLength), &file).unwrap().offset(), 9);

    let what_differs = |model: &dyn CausalLm| match resume(model, &file).unwrap_err() {
        CacheFileError::MadeBy { what, .. } => what,
        e => panic!("{e}"),
    };
    // Another rotation, by an option and by the config.
    assert_eq!(
        what_differs(&*load(&case(name), LongRopeMode::MlxLm)),
        "settings (config.json, LongRoPE's rule)"
    );
    for (from, to) in [
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 20000.0"),
        ("1.25", "1.26"),
        ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-04"),
    ] {
        let other = with_config(name, from, to);
        assert_eq!(
            what_differs(&*load(other.path(), LongRopeMode::ByLength)),
            "settings (config.json, LongRoPE's rule)",
            "{to}"
        );
    }
    // What no key or value depends on.
    let other = with_config(name, "\"model_type\"", "\"transformers_version\": \"5.0\", \"model_type\"");
    assert!(resume(&*load(other.path(), LongRopeMode::ByLength), &file).is_ok());

    // Other weights of the same shapes: one element of one tensor would not be seen, a trained one is.
    let other = with_config(name, "phi3", "phi3");
    let weights = Array::load_safetensors(case(name).join("model.safetensors")).unwrap();
    let noise =
        |array: &Array| array.multiply(Array::from_f32(1.001).as_dtype(array.dtype()).unwrap()).unwrap();
    let trained: Vec<(String, Array)> = weights
        .iter()
        .map(|(key, array)| (key.clone(), if key.contains("o_proj") { noise(array) } else { array.clone() }))
        .collect();
    let pairs: Vec<(&str, &Array)> = trained.iter().map(|(key, array)| (&**key, array)).collect();
    Array::save_safetensors(pairs, None, other.path().join("model.safetensors")).unwrap();
    assert_eq!(what_differs(&*load(other.path(), LongRopeMode::ByLength)), "weights");
}

#[test]
fn a_cache_made_with_adapters_is_refused_without_them_and_the_reverse() {
    let name = "lora_phi3_q4";
    let folder = tempfile::tempdir().unwrap();
    let (plain, adapted) =
        (folder.path().join("plain.safetensors"), folder.path().join("adapted.safetensors"));
    let load = |adapters: Option<PathBuf>| {
        mlx_models::load_with(case(name), &LoadOptions { adapters, ..LoadOptions::default() }).unwrap()
    };
    let adapters = case(name).join("adapters");
    let (mut base, mut with) = (load(None), load(Some(adapters)));
    saved(&mut *base, 5, &plain);
    saved(&mut *with, 5, &adapted);
    for (model, file) in [(&base, &adapted), (&with, &plain)] {
        let error = resume(&**model, file).unwrap_err();
        assert!(matches!(error, CacheFileError::MadeBy { what: "adapters", .. }), "{error}");
    }
    assert!(resume(&*base, &plain).is_ok() && resume(&*with, &adapted).is_ok());
    // A file of mlx-lm does not say.
    let error = made_anonymous(&plain, |file| resume(&*with, file)).unwrap_err();
    assert!(matches!(error, CacheFileError::UnknownOrigin { .. }), "{error}");
    assert!(made_anonymous(&plain, |file| resume(&*base, file)).is_ok());
}

/// Adapters with the same arrays and another scale, which is not a parameter of the model.
#[test]
fn a_cache_with_other_adapters_is_refused() {
    let name = "lora_phi3_q4";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let adapters = folder.path().join("adapters");
    fs::create_dir(&adapters).unwrap();
    for entry in fs::read_dir(case(name).join("adapters")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), adapters.join(entry.file_name())).unwrap();
    }
    let load = || {
        let options = LoadOptions { adapters: Some(adapters.clone()), ..LoadOptions::default() };
        mlx_models::load_with(case(name), &options).unwrap()
    };
    saved(&mut *load(), 5, &file);
    assert!(resume(&*load(), &file).is_ok());
    let config = adapters.join("adapter_config.json");
    let mut settings: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&config).unwrap()).unwrap();
    let scale = &mut settings["lora_parameters"]["scale"];
    *scale = (scale.as_f64().unwrap() * 2.0).into();
    fs::write(&config, settings.to_string()).unwrap();
    let error = resume(&*load(), &file).unwrap_err();
    assert!(matches!(error, CacheFileError::MadeBy { what: "adapters", .. }), "{error}");
}

/// The weights differ in one row of the embedding, as after the training of a single token.
#[test]
fn a_cache_of_weights_that_differ_in_one_row_is_refused() {
    let name = "phi3_longrope_mlx_lm";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    saved(&mut *load(&case(name), LongRopeMode::ByLength), 5, &file);
    for row in [0, 77, 127] {
        let other = with_config(name, "phi3", "phi3");
        let mut weights = Array::load_safetensors(case(name).join("model.safetensors")).unwrap();
        let table = &weights["model.embed_tokens.weight"];
        let changed: Vec<f32> = (0..table.dim(0)).map(|i| if i == row { 1.5 } else { 1.0 }).collect();
        let changed = Array::from_slice(&changed, &[table.dim(0), 1]).as_dtype(table.dtype()).unwrap();
        let changed = table.multiply(changed).unwrap();
        weights.insert("model.embed_tokens.weight".to_owned(), changed);
        Array::save_safetensors(&weights, None, other.path().join("model.safetensors")).unwrap();
        let error = resume(&*load(other.path(), LongRopeMode::ByLength), &file).unwrap_err();
        assert!(matches!(error, CacheFileError::MadeBy { what: "weights", .. }), "{error}");
    }
}

/// The file without the entries that only we write, as mlx-lm would write it.
fn made_anonymous<T>(file: &Path, then: impl FnOnce(&Path) -> T) -> T {
    let bytes = fs::read(file).unwrap();
    let (length, _) = bytes.split_at(8);
    let end = 8 + u64::from_le_bytes(length.try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let entries = header["__metadata__"].as_object_mut().unwrap();
    entries.retain(|key, _| !key.starts_with("0.mlx_models"));
    let header = serde_json::to_vec(&header).unwrap();
    let other = file.with_extension("anonymous.safetensors");
    let length = (header.len() as u64).to_le_bytes();
    fs::write(&other, [&length[..], &header, &bytes[end..]].concat()).unwrap();
    then(&other)
}

/// A session that was to cross the border was stopped before it: its keys have the long factors.
#[test]
fn a_cache_that_was_rotated_for_a_longer_text_is_read_again() {
    let mut model = load(&case("phi3_longrope_mlx_lm"), LongRopeMode::ByLength);
    let ids: Vec<u32> = (0..20).collect();
    let row = |ids: &[u32]| Array::from_slice(ids, &[1, ids.len() as i32]);
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let stopped = session.read_all(&mut *model, &ids, 5, |read, _| {
        if read >= 10 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(GenerateError::Cancelled)));
    assert_eq!(session.offset(), 10);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    session.save(&*model, &file).unwrap();

    let mut loaded = resume(&*model, &file).unwrap();
    let (reuse, rest) = loaded.turn_to(&*model, &ids[..12]).unwrap();
    assert_eq!((reuse, rest), (Reuse::ReadAgain { tokens: 10 }, &ids[10..12]));
    let found = loaded.read(&mut *model, &row(&ids[10..12]), Logits::Last).unwrap();
    let mut anew = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let expected = anew.read(&mut *model, &row(&ids[..12]), Logits::Last).unwrap();
    assert_eq!(found.dtype(), Dtype::Float32);
    assert_abs_diff_eq!(tensor(&found), tensor(&expected), epsilon = 1e-5);
}

/// mlx-lm must refuse a cache that it would continue wrongly. It knows caches by the names of its classes.
#[test]
fn mlx_lm_refuses_the_layer_names_of_caches_that_it_would_continue_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let classes = |name: &str, long_rope, tokens| {
        let mut model = load(&case(name), long_rope);
        saved(&mut *model, tokens, &file);
        let bytes = fs::read(&file).unwrap();
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        ["1.0", "1.1"].map(|layer| header["__metadata__"][layer].as_str().unwrap().to_owned())
    };
    let longrope = "phi3_longrope_mlx_lm";
    assert_eq!(classes(longrope, LongRopeMode::ByLength, 16), ["FullKvCache"; 2]);
    assert_eq!(classes(longrope, LongRopeMode::ByLength, 17), ["KVCache"; 2]);
    assert_eq!(classes(longrope, LongRopeMode::MlxLm, 16), ["KVCache"; 2]);
    assert_eq!(classes("hf_phi3_window", LongRopeMode::ByLength, 6), ["RotatingKVCache"; 2]);
    assert_eq!(classes("hf_phi3_window", LongRopeMode::ByLength, 7), ["RotatingKvCache"; 2]);
}

/// Where mlx-lm 0.32.2 reads a config in another way, its caches cannot be used.
#[test]
fn rotations_that_mlx_lm_reads_otherwise() {
    let reason = |name: &str, tokens| load(&case(name), LongRopeMode::MlxLm).unlike_mlx_lm(tokens);
    for (name, needle) in [
        // Its Phi-3 and its Gemma 3 drop the scaling of configs as transformers 5 writes them.
        ("hf_phi3_longrope_long", "rope_parameters"),
        ("hf_gemma3_linear8", "rope_parameters"),
        // It computes YaRN's factor and does not look at that of the config.
        ("hf_olmo3_yarn_attention_factor_v4", "attention_factor"),
    ] {
        let reason = reason(name, 20).unwrap_or_else(|| panic!("{name}"));
        assert!(reason.contains(needle), "{name}: {reason}");
    }
    for name in ["hf_phi3_longrope_long_v4", "phi3_longrope_mlx_lm", "hf_phi3_default", "phi3_f32_whole"] {
        assert_eq!(reason(name, 20), None, "{name}");
    }
}
