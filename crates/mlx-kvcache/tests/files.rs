//! Cache files: those of mlx-lm, those of this crate, and damaged ones.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use mlx_kvcache::{
    CacheError, CacheFileError, CacheOptions, Full, KvCache, LayerKind, LayerSpec, Layout, Limit, MadeBy,
    ModelCache, Quantization, Ring, SavedCache,
};
use mlx_rs::{Array, Dtype};
use mlx_testing::{assert_as_recorded, assert_same_on_cpu, tensor};

fn full_cache() -> KvCache {
    KvCache::new(Full::new())
}

/// Files that mlx-lm wrote. Beside each is a file with the attention of mlx-lm's loaded cache for further
/// tokens (`xtask/python/make_prompt_caches.py`).
fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mlx-lm");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| !file.to_str().unwrap().ends_with(".next.safetensors")).collect();
    files.sort();
    assert!(files.len() > 30);
    files
}

fn name(file: &Path) -> &str {
    file.file_stem().unwrap().to_str().unwrap()
}

fn next(file: &Path) -> HashMap<String, Array> {
    Array::load_safetensors(file.with_extension("next.safetensors")).unwrap()
}

#[track_caller]
fn assert_equal(case: String, found: &Array, expected: &Array) {
    assert_as_recorded(tensor(found).named(case), tensor(expected));
}

/// Appends the further tokens, and compares attention over the cache with the file's.
#[track_caller]
fn assert_goes_on(mut cache: ModelCache, next: &HashMap<String, Array>, file: &str) {
    let offsets = |layer: &KvCache, expected: &Array| {
        let expected = expected.reshape(&[-1]).unwrap().as_slice::<i32>().to_vec();
        let found = layer.offsets();
        let found = if found.len() == 1 { vec![found[0]; expected.len()] } else { found.to_vec() };
        assert_eq!(found, expected, "{file}");
    };
    for (i, layer) in cache.layers_mut().enumerate() {
        offsets(layer, &next[&format!("{i}.offset")]);
        let scale = next[&format!("{i}.scale")].item_exact::<f32>();
        let mut call = 0;
        while let Some(queries) = next.get(&format!("{i}.{call}.q")) {
            let recorded = |what: &str| &next[&format!("{i}.{call}.{what}")];
            let mask = layer.mask(queries.dim(2)).unwrap();
            let read = layer.append(recorded("k"), recorded("v")).unwrap();
            let out = read.attention(queries, scale, &mask).unwrap();
            assert_equal(format!("{file}, layer {i}, call {call}"), &out, recorded("out"));
            offsets(layer, recorded("offset"));
            call += 1;
        }
    }
}

#[test]
fn files_of_mlx_lm_continue_with_the_results_of_mlx_lm() {
    mlx_testing::stock_mlx();
    for file in fixtures() {
        if name(&file) == "no_layers" {
            let error = SavedCache::read(&file).unwrap_err();
            assert!(matches!(error, CacheFileError::NoCache { .. }), "{error}");
            continue;
        }
        let saved = SavedCache::read(&file).unwrap();
        assert_goes_on(saved.into_cache(), &next(&file), name(&file));
    }
}

/// A file of mlx-lm that is read, saved and read again continues as before, and has the tensors and entries that
/// mlx-lm would write. `xtask/python/load_prompt_caches.py` reads the files that this test leaves.
#[test]
fn files_that_we_save_again_are_those_that_mlx_lm_writes() {
    mlx_testing::stock_mlx();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prompt-caches");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for file in fixtures() {
        let (name, Ok(saved)) = (name(&file), SavedCache::read(&file)) else { continue };
        let ours = folder.join(file.file_name().unwrap());
        saved.clone().into_cache().save(&ours, "test", &[]).unwrap();
        fs::copy(file.with_extension("next.safetensors"), ours.with_extension("next.safetensors")).unwrap();

        let again = SavedCache::read(&ours).unwrap();
        assert_eq!((again.model_type(), again.tokens()), (Some("test"), &[][..]));
        assert_goes_on(again.into_cache(), &next(&file), name);

        let (theirs, their_entries) = Array::load_safetensors_with_metadata(&file).unwrap();
        let (ours, our_entries) = Array::load_safetensors_with_metadata(&ours).unwrap();
        let tensors = |tensors: &HashMap<String, Array>| {
            let mut names: Vec<(String, Dtype, usize)> =
                tensors.iter().map(|(name, array)| (name.clone(), array.dtype(), array.ndim())).collect();
            names.sort_by(|a, b| a.0.cmp(&b.0));
            names
        };
        assert_eq!(tensors(&ours), tensors(&theirs), "{name}");
        let entries = |entries: &HashMap<String, String>| {
            let mut classes: Vec<(String, String)> = entries
                .iter()
                .filter(|(key, _)| key.starts_with("1."))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect();
            classes.sort();
            // Which tensor stands for what, in whatever order.
            let mut kinds: Vec<(String, String)> = (1..)
                .map_while(|i| {
                    Some((entries.get(&format!("2.{i}.0"))?.clone(), entries[&format!("2.{i}.1")].clone()))
                })
                .collect();
            kinds.sort();
            (classes, kinds, entries.get("2.0").cloned())
        };
        assert_eq!(entries(&our_entries), entries(&their_entries), "{name}");
    }
}

#[test]
fn entries_of_mlx_lms_users_are_kept() {
    let file = fixtures().into_iter().find(|file| name(file) == "kv").unwrap();
    let saved = SavedCache::read(&file).unwrap();
    assert_eq!(saved.metadata()["model"], "x");
    assert_eq!(saved.model_type(), None);
}

/// A cache of two layers with seven tokens.
fn cache() -> ModelCache {
    let mut cache =
        ModelCache::for_layers(&layers(), &CacheOptions { rewind: 2, ..CacheOptions::default() }).unwrap();
    for layer in cache.layers_mut() {
        for from in 0..7 {
            let numbers: Vec<f32> = (0..128).map(|i| (i * 7 + from * 31) as f32 % 5.0 - 2.0).collect();
            let x = Array::from_slice(&numbers, &[1, 2, 1, 64]);
            layer.append(&x, &x).unwrap();
        }
    }
    cache
}

fn layers() -> [LayerSpec; 2] {
    let spec = |kind| LayerSpec { kind, heads: 2, key_dim: 64, value_dim: 64 };
    [spec(LayerKind::Full), spec(LayerKind::Sliding { window: 4 })]
}

const TOKENS: [u32; 7] = [3, 1, 4, 1, 5, 9, 2];

fn saved() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    cache().save(&file, "lille-130m", &TOKENS).unwrap();
    (folder, file)
}

#[test]
fn a_loaded_cache_is_the_saved_one() {
    let (folder, file) = saved();
    let saved = SavedCache::read(&file).unwrap();
    assert_eq!((saved.model_type(), saved.tokens()), (Some("lille-130m"), &TOKENS[..]));
    let mut loaded =
        saved.into_cache_for("lille-130m", &layers(), Dtype::Float32, &CacheOptions::default()).unwrap();
    assert_eq!(loaded.offset(), 7);
    assert_eq!(loaded.trim(2).unwrap(), 2);
    // Nothing is left beside the file, and the next one replaces it.
    loaded.save(&file, "lille-130m", &TOKENS[..5]).unwrap();
    assert_eq!(SavedCache::read(&file).unwrap().tokens(), &TOKENS[..5]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_file_has_the_permissions_of_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, file) = saved();
    let other = folder.path().join("other");
    fs::write(&other, "").unwrap();
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode();
    assert_eq!(mode(&file), mode(&other));
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let (_folder, file) = saved();
    let load = |model_type: &str, layers: &[LayerSpec], dtype| {
        SavedCache::read(&file)
            .unwrap()
            .into_cache_for(model_type, layers, dtype, &CacheOptions::default())
            .unwrap_err()
            .to_string()
    };
    let [full, sliding] = layers();
    let (lille, float) = ("lille-130m", Dtype::Float32);
    for (error, needle) in [
        (
            load("phi3", &layers(), float),
            "made by a model of type \"lille-130m\", and this model has type \"phi3\"",
        ),
        (load(lille, &[full], float), "holds 2 layers, and the model has 1"),
        (
            load(lille, &[LayerSpec { heads: 3, ..full }, sliding], float),
            "layer 0 has heads: 2, and the model needs 3",
        ),
        (load(lille, &[LayerSpec { key_dim: 8, ..full }, sliding], float), "a head_dim of keys of 64"),
        (
            load(lille, &[full, LayerSpec { value_dim: 8, ..sliding }], float),
            "layer 1 has a head_dim of values of 64",
        ),
        (
            load(lille, &layers(), Dtype::Bfloat16),
            "layer 0 has the dtype Float32, and the model needs Bfloat16",
        ),
        (
            load(lille, &[full, LayerSpec { kind: LayerKind::Sliding { window: 5 }, ..sliding }], float),
            "layer 1 has a cache of at most 4 tokens with a rewind of 2, and the model needs at most 5 tokens",
        ),
    ] {
        assert!(error.contains(needle), "{error}");
        assert!(error.contains("cache.safetensors"), "{error}");
    }
}

/// A loaded cache is as the options ask for, or there is an error.
#[test]
fn a_loaded_cache_is_what_the_options_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let [full, sliding] = layers();
    let load = |layers: &[LayerSpec], options: &CacheOptions| {
        SavedCache::read(&file).unwrap().into_cache_for("m", layers, Dtype::Float32, options)
    };
    let none = CacheOptions::default();
    let limit = CacheOptions { limit: Some(Limit { max_size: 8, keep: 4 }), ..CacheOptions::default() };
    let limited = KvCache::new(Ring::new(8).unwrap().with_keep(4).unwrap());
    let other = ModelCache::new(vec![limited, full_cache()]);
    other.save(&file, "m", &[]).unwrap();
    let loaded = load(&[full, sliding], &limit).unwrap();
    let Layout::Full(windowed) = loaded.layers()[1].layout() else { panic!() };
    assert_eq!(windowed.window(), Some(4));
    let error = load(&[full, sliding], &none).unwrap_err().to_string();
    assert!(
        error
            .contains("layer 0 has a cache of at most 8 tokens with 4 sinks, and the model needs all tokens"),
        "{error}"
    );

    let windowed = KvCache::new(Full::new().with_window(4).unwrap());
    ModelCache::new(vec![windowed]).save(&file, "m", &[]).unwrap();
    let error = load(&[full], &none).unwrap_err().to_string();
    assert!(
        error.contains("a cache of all tokens with a window of 4, and the model needs all tokens"),
        "{error}"
    );

    // A ring that has wrapped, with a longer rewind from now on, and quantized.
    let eight = Quantization::affine(8, 32).unwrap();
    cache().save(&file, "m", &[]).unwrap();
    let wanted = CacheOptions { rewind: 5, quantization: Some(eight), ..CacheOptions::default() };
    let loaded = load(&layers(), &wanted).unwrap();
    let layer = &loaded.layers()[1];
    let Layout::Ring(ring) = layer.layout() else { panic!() };
    assert_eq!((ring.rewind(), layer.quantization(), layer.offset()), (5, Some(eight), 7));
    assert_eq!(loaded.can_trim(2).unwrap(), 2);
    loaded.save(&file, "m", &[]).unwrap();
    let four =
        CacheOptions { quantization: Some(Quantization::affine(4, 32).unwrap()), ..CacheOptions::default() };
    assert!(matches!(load(&layers(), &four), Err(CacheFileError::Cache(CacheError::Quantized { .. }))));

    // Groups that the model's heads cannot be cut into, though nothing has been cut yet.
    let groups = Quantization::affine(8, 128).unwrap();
    ModelCache::new(vec![full_cache().quantized(groups).unwrap()]).save(&file, "m", &[]).unwrap();
    let error = load(&[full], &none).unwrap_err().to_string();
    assert!(error.contains("quantization as affine of 8 bits in groups of 128"), "{error}");
}

#[test]
fn a_cache_with_some_of_its_token_ids_or_with_unequal_layers_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let mut cache = cache();
    let error = cache.save(&file, "m", &TOKENS[1..]).unwrap_err();
    assert_eq!(error.to_string(), "6 token ids for a cache of 7 tokens; give all of them or none");
    cache.layers_mut().next().unwrap().trim(1).unwrap();
    let error = cache.save(&file, "m", &[]).unwrap_err();
    assert!(
        matches!(error, CacheFileError::Cache(CacheError::Drift { layer: 1, expected: 6, found: 7 })),
        "{error}"
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_old_one() {
    let (folder, file) = saved();
    let before = fs::read(&file).unwrap();
    for wrong in [file.join("below"), folder.path().join("no/such/folder/cache"), folder.path().to_path_buf()]
    {
        let error = cache().save(&wrong, "m", &[]).unwrap_err();
        assert!(matches!(error, CacheFileError::Io { doing: "writing", .. }), "{error}");
        assert!(error.to_string().contains(wrong.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Weights, configs, pipes and devices are not replaced.
#[cfg(unix)]
#[test]
fn only_caches_are_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let (folder, file) = saved();
    let at = |name: &str| folder.path().join(name);
    let weights = [("weight", &Array::ones::<f32>(&[2, 2]).unwrap())];
    Array::save_safetensors(weights, None, at("model.safetensors")).unwrap();
    fs::write(at("config.json"), "{}").unwrap();
    for name in ["model.safetensors", "config.json"] {
        let before = fs::read(at(name)).unwrap();
        let error = cache().save(at(name), "m", &[]).unwrap_err();
        assert!(matches!(error, CacheFileError::NotReplaced { .. }), "{error}");
        assert_eq!(fs::read(at(name)).unwrap(), before);
    }
    assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/null", at("device")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
    for name in ["pipe", "device", "link"] {
        let error = cache().save(at(name), "m", &[]).unwrap_err();
        assert!(matches!(error, CacheFileError::Io { doing: "writing", .. }), "{name}: {error}");
        let error = SavedCache::read(at(name)).unwrap_err();
        assert!(matches!(error, CacheFileError::Io { doing: "opening", .. }), "{name}: {error}");
    }
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    // An empty file, as `mktemp` makes one, and a cache are.
    fs::write(at("empty"), "").unwrap();
    for name in [at("empty"), file] {
        cache().save(&name, "m", &[]).unwrap();
        assert!(SavedCache::read(&name).is_ok());
    }
}

#[track_caller]
fn damaged(contents: &[u8], needle: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.safetensors");
    fs::write(&file, contents).unwrap();
    let error = SavedCache::read(&file).unwrap_err();
    assert!(matches!(error, CacheFileError::Damaged { .. }), "{error}");
    assert!(
        error.to_string().contains(needle) && error.to_string().contains("broken.safetensors"),
        "{error}"
    );
}

#[test]
fn files_that_are_not_caches_are_refused() {
    damaged(b"", "it has 0 bytes");
    damaged(b"PK\x03\x04", "it has 4 bytes");
    damaged(b"once upon a time there was a cache", "its header would have");
    damaged(&[&2_u64.to_le_bytes()[..], b"[]"].concat(), "its header cannot be read");
    let file = b"{\"x\":{\"dtype\":\"F32\",\"shape\":[9999999,9999999],\"data_offsets\":[0,4]}}";
    damaged(&[&(file.len() as u64).to_le_bytes()[..], file, &[0; 4]].concat(), "");
    let folder = tempfile::tempdir().unwrap();
    // A file without blocks, which says that it has more bytes than any machine has memory.
    let endless = folder.path().join("endless");
    fs::File::create(&endless).unwrap().set_len(1 << 40).unwrap();
    let error = SavedCache::read(&endless).unwrap_err().to_string();
    assert!(error.contains("at most 274877906944 are allowed"), "{error}");
    let error = SavedCache::read(folder.path().join("gone")).unwrap_err();
    assert!(matches!(error, CacheFileError::Io { doing: "opening", .. }), "{error}");
    assert!(SavedCache::read(folder.path()).is_err());
}

#[test]
fn tensors_that_are_not_caches_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    Array::save_safetensors([("weight", &Array::ones::<f32>(&[2, 2]).unwrap())], None, &file).unwrap();
    let error = SavedCache::read(&file).unwrap_err();
    assert!(matches!(error, CacheFileError::NoCache { .. }), "{error}");
    assert!(error.to_string().contains("there is no entry 1.0"), "{error}");
}

/// A file of this crate with some entries changed, but the old checksum.
fn edited(edit: impl FnOnce(&mut HashMap<String, Array>, &mut HashMap<String, String>)) -> CacheFileError {
    let (_folder, file) = saved();
    let (mut tensors, mut entries) = Array::load_safetensors_with_metadata(&file).unwrap();
    mlx_rs::transforms::eval(tensors.values()).unwrap();
    edit(&mut tensors, &mut entries);
    Array::save_safetensors(&tensors, &entries, &file).unwrap();
    SavedCache::read(&file).unwrap_err()
}

#[test]
fn a_newer_version_and_other_kinds_are_named() {
    let error = edited(|_, entries| {
        let record = entries.get_mut("0.mlx_models").unwrap();
        *record = record.replace("\"version\":2", "\"version\":3,\"more\":[]");
    });
    assert!(matches!(error, CacheFileError::Version { found: 3, .. }), "{error}");

    let foreign = |entries: &mut HashMap<String, String>| {
        entries.remove("0.mlx_models");
        entries.remove("0.mlx_models_crc32");
    };
    // The second layer has a rewind, and so no class in mlx-lm.
    let error = edited(|_, entries| foreign(entries));
    assert!(
        error
            .to_string()
            .contains("layer 1 is a RotatingKvCache, which is not supported; supported are KVCache"),
        "{error}"
    );
    let error = edited(|_, entries| {
        foreign(entries);
        entries.insert("1.0".to_owned(), "MambaCache".to_owned());
    });
    assert!(matches!(error, CacheFileError::UnknownKind { layer: 0, .. }), "{error}");
    let error = edited(|_, entries| drop(entries.remove("0.mlx_models")));
    assert!(error.to_string().contains("it has a checksum but no entry 0.mlx_models"), "{error}");
    let error = edited(|tensors, _| drop(tensors.remove("0.1")));
    assert!(error.to_string().contains("its checksum does not fit its contents"), "{error}");
}

/// Such a file does not say which model made it, so its keys may be rotated by any factors.
#[test]
fn a_model_refuses_a_file_of_version_1() {
    let (_folder, file) = saved();
    let (tensors, mut entries) = Array::load_safetensors_with_metadata(&file).unwrap();
    mlx_rs::transforms::eval(tensors.values()).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&entries["0.mlx_models"]).unwrap();
    record["version"] = 1.into();
    record.as_object_mut().unwrap().remove("made_by");
    entries.insert("0.mlx_models".to_owned(), record.to_string());
    let crc = checksum(&tensors, &entries);
    entries.insert("0.mlx_models_crc32".to_owned(), crc);
    Array::save_safetensors(&tensors, &entries, &file).unwrap();
    let saved = SavedCache::read(&file).unwrap();
    assert_eq!(saved.clone().into_cache().offset(), 7);
    let options = CacheOptions::default();
    let error = saved.into_cache_for("lille-130m", &layers(), Dtype::Float32, &options).unwrap_err();
    assert!(
        error.to_string().ends_with("an older version of this program wrote it; make the cache again"),
        "{error}"
    );
}

/// A file of mlx-lm is accepted, unless the model needs to know which model made it.
#[test]
fn a_file_that_does_not_say_what_made_it() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mlx-lm/kv.safetensors");
    let load = |made_by: MadeBy| {
        let saved = SavedCache::read(&file).unwrap();
        let layers = vec![layers()[0]; saved.layers().len()];
        saved.into_cache_for(made_by, &layers, Dtype::Float32, &CacheOptions::default()).map(drop)
    };
    let unlike = MadeBy { unlike_mlx_lm: Some("it matters".to_owned()), ..MadeBy::from("m") };
    assert!(
        load(unlike).unwrap_err().to_string().ends_with("does not say which model made it, and it matters")
    );
    // The cache may fail other checks, but not this one.
    let other = load("m".into());
    assert!(!matches!(other, Err(CacheFileError::UnknownOrigin { .. })), "{other:?}");
}

/// Files of mlx-lm whose numbers contradict their tensors.
#[test]
fn numbers_that_contradict_the_tensors_are_named() {
    let file = |wanted: &str| fixtures().into_iter().find(|file| name(file) == wanted).unwrap();
    let fails = |fixture: &str, tensor: &str, value: Array, needle: &str| {
        let (mut tensors, entries) = Array::load_safetensors_with_metadata(file(fixture)).unwrap();
        mlx_rs::transforms::eval(tensors.values()).unwrap();
        tensors.insert(tensor.to_owned(), value);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("wrong.safetensors");
        Array::save_safetensors(&tensors, &entries, &file).unwrap();
        let error = SavedCache::read(&file).unwrap_err();
        assert!(matches!(error, CacheFileError::Layer { layer: 0, .. }), "{fixture} {tensor}: {error}");
        assert!(error.to_string().contains(needle), "{fixture} {tensor}: {error}");
    };
    let int = Array::from_int;
    let ones = |shape: &[i32]| Array::ones::<f32>(shape).unwrap();
    fails("kv", "0.2", int(100_000), "100000 tokens in");
    fails("kv", "0.2", int(-1), "-1 steps");
    fails("kv", "0.2", Array::from_f32(3.0), "integers are needed");
    fails("kv", "0.2", Array::from_slice(&[1, 2], &[2]), "0.2 is not one number");
    fails("kv", "0.0", ones(&[1, 2, 3]), "shapes");
    fails("kv", "0.0", ones(&[1, 7, 256, 32]), "shapes");
    fails("kv", "0.0", Array::ones::<i32>(&[1, 2, 256, 32]).unwrap(), "a float dtype is needed");
    fails("quantized_8_32", "0.4", int(7), "7 bits");
    fails("quantized_8_32", "0.4", int(4), "shapes");
    fails("quantized_8_32", "0.1.1", ones(&[1, 2, 256, 9]), "shapes");
    fails("rotating_wrapped", "0.3", int(-1), "sinks");
    fails("rotating_wrapped", "0.4", int(0), "");
    fails("rotating_wrapped", "0.4", int(3), "");
    fails("rotating_wrapped", "0.5", int(99), "slot 99");
    fails("rotating_wrapped", "0.5", int(-3), "slot -3");
    fails("batch_merged", "0.2", Array::from_slice(&[3, 3], &[2]), "left padding");
    fails("batch_merged", "0.3", Array::from_slice(&[0, 1, 2], &[3]), "left padding");
    fails("batch_rotating_wrapped", "0.2", Array::from_slice(&[1, 1], &[2]), "");
}

/// Pseudo-random numbers, the same in every run.
fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*seed >> 33) as usize) % below
}

/// One wrong bit anywhere is found, and so is a file that ends too early or has been overwritten.
#[test]
fn every_damage_to_a_file_is_found() {
    let (folder, file) = saved();
    let whole = fs::read(&file).unwrap();
    let broken = folder.path().join("broken.safetensors");
    let mut seed = 1;
    for round in 0..600 {
        let mut bytes = whole.clone();
        match round % 4 {
            // Half of them in the header, which is short.
            0 | 1 => {
                let at = random(&mut seed, if round % 2 == 0 { bytes.len() } else { 2000 });
                bytes[at] ^= 1 << random(&mut seed, 8);
            }
            2 => bytes.truncate(random(&mut seed, whole.len())),
            _ => {
                let from = random(&mut seed, whole.len() - 64);
                for byte in &mut bytes[from..from + 64] {
                    *byte = random(&mut seed, 256) as u8;
                }
            }
        }
        fs::write(&broken, &bytes).unwrap();
        let read = SavedCache::read(&broken);
        assert!(read.is_err(), "round {round}");
    }
}

/// Files of mlx-lm have no checksum. Damage may not be found, but then the cache can still be used without a
/// panic.
#[test]
fn damage_to_files_of_mlx_lm_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.safetensors");
    let mut seed = 2;
    for file in fixtures() {
        let whole = fs::read(&file).unwrap();
        let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
        for round in 0..30 {
            let mut bytes = whole.clone();
            // In the header, and in the numbers that stand among the tensors.
            let at = random(&mut seed, if round % 3 == 0 { bytes.len() } else { header.min(bytes.len()) });
            bytes[at] ^= 1 << random(&mut seed, 8);
            fs::write(&broken, &bytes).unwrap();
            if let Ok(saved) = SavedCache::read(&broken) {
                let cache = saved.into_cache();
                cache.masks(3).unwrap();
                let _ = cache.can_trim(3);
                cache.save(&broken, "m", &[]).unwrap();
            }
        }
    }
}

/// Files of mlx-lm with extreme numbers.
#[test]
fn extreme_numbers_in_files_of_mlx_lm_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.safetensors");
    for file in fixtures() {
        let (tensors, entries) = Array::load_safetensors_with_metadata(&file).unwrap();
        mlx_rs::transforms::eval(tensors.values()).unwrap();
        for (name, array) in tensors.iter().filter(|(_, array)| array.dtype() == Dtype::Int32) {
            for number in [i32::MIN, -1, 0, 1, i32::MAX / 2, i32::MAX] {
                let mut changed = tensors.clone();
                changed.insert(
                    name.clone(),
                    Array::full::<i32>(array.shape(), &Array::from_int(number)).unwrap(),
                );
                Array::save_safetensors(&changed, &entries, &broken).unwrap();
                if let Ok(saved) = SavedCache::read(&broken) {
                    let mut cache = saved.into_cache();
                    let _ = cache.masks(3);
                    let _ = cache.can_trim(3);
                    let _ = cache.trim(1);
                    let _ = cache.row(0);
                }
            }
        }
    }
}

/// Files of this crate with numbers that contradict each other, but a correct checksum.
#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn contradictions_in_our_own_entries_are_named() {
    let (_folder, file) = saved();
    let (tensors, entries) = Array::load_safetensors_with_metadata(&file).unwrap();
    mlx_rs::transforms::eval(tensors.values()).unwrap();
    let record: serde_json::Value = serde_json::from_str(&entries["0.mlx_models"]).unwrap();
    let ring = &record["layers"][1]["layout"]["rotating"];
    assert_eq!((&ring["start"], &ring["head"]), (&1.into(), &1.into()));
    let read = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut record = record.clone();
        edit(&mut record);
        let mut entries = entries.clone();
        entries.insert("0.mlx_models".to_owned(), record.to_string());
        let crc = checksum(&tensors, &entries);
        entries.insert("0.mlx_models_crc32".to_owned(), crc);
        Array::save_safetensors(&tensors, &entries, &file).unwrap();
        SavedCache::read(&file).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(read(&|_| {}), Ok(()));
    for (place, number, needle) in [
        ("/layers/1/layout/rotating/start", 0, "the oldest token after the sinks is 0,"),
        ("/layers/1/layout/rotating/start", 5, "the oldest token after the sinks is 5,"),
        ("/layers/1/layout/rotating/start", 8, "the oldest token after the sinks is 8,"),
        ("/layers/1/layout/rotating/start", -1, "the oldest token after the sinks is -1,"),
        ("/layers/1/layout/rotating/head", 6, "slot 6"),
        ("/layers/1/layout/rotating/head", -1, "slot -1"),
        ("/layers/1/layout/rotating/head", 0, ""),
        ("/layers/1/layout/rotating/max_size", 0, "max_size 0"),
        ("/layers/1/layout/rotating/max_size", 5, "7 tokens in 6 slots"),
        ("/layers/1/layout/rotating/rewind", 1, "7 tokens in 6 slots"),
        ("/layers/1/layout/rotating/keep", 4, "keep 4"),
        (
            "/layers/1/steps",
            6,
            "layer 1: it has 1 rows with tokens up to [6], and layer 0 1 rows with tokens up to [7]",
        ),
        ("/layers/0/steps", 9, "9 tokens in 7 slots"),
        ("/layers/0/steps", -1, "-1 steps"),
        ("/version", 3, "version 3"),
    ] {
        let error = read(&|record| *record.pointer_mut(place).unwrap() = number.into());
        if needle.is_empty() {
            continue; // an order that is as good as another
        }
        let error = error.unwrap_err();
        assert!(error.contains(needle), "{place} {number}: {error}");
    }
    // More tokens in order than there are slots.
    let error = read(&|record| {
        record["layers"][1]["layout"]["rotating"]["head"] = 0.into();
        record["layers"][1]["steps"] = 9.into();
    });
    let error = error.unwrap_err();
    assert!(error.contains("9 tokens in 6 slots"), "{error}");
    for (place, value, needle) in [
        ("/layers/0/padding", serde_json::json!([0, 1]), "1 rows have the padding [0, 1]"),
        ("/layers/0/padding", serde_json::json!([-1]), "a padding of [-1]"),
        ("/layers/0/padding", serde_json::json!([2_000_000_000]), "a padding of [2000000000]"),
        ("/tokens", serde_json::json!([1, 2]), "2 token ids for 7 tokens"),
        ("/layers/0/quantization", serde_json::json!({ "bits": 7, "group_size": 64 }), "7 bits"),
        (
            "/layers/0/quantization",
            serde_json::json!({ "bits": 8, "group_size": 64 }),
            "there is no tensor 0.0.0",
        ),
        ("/layers/0/layout", serde_json::json!({ "full": { "window": 0 } }), "window Some(0)"),
        ("/layers/0/layout", serde_json::json!({ "chunks": 3 }), "unknown variant `chunks`"),
    ] {
        let error = read(&|record| *record.pointer_mut(place).unwrap() = value.clone()).unwrap_err();
        assert!(error.contains(needle), "{place}: {error}");
    }
}

/// The checksum of a file, computed as `docs/kv-caches.md` describes it.
fn checksum(tensors: &HashMap<String, Array>, entries: &HashMap<String, String>) -> String {
    let mut crc = crc32fast::Hasher::new();
    let mut names: Vec<_> = entries.keys().filter(|key| *key != "0.mlx_models_crc32").collect();
    names.sort();
    for text in names.into_iter().flat_map(|key| [key, &entries[key]]) {
        crc.update(&(text.len() as u64).to_le_bytes());
        crc.update(text.as_bytes());
    }
    let mut names: Vec<_> = tensors.keys().collect();
    names.sort();
    for name in names {
        let array = &tensors[name];
        crc.update(format!("{name} {:?} {:?}", array.dtype(), array.shape()).as_bytes());
        match array.dtype() {
            Dtype::Float32 => array.as_slice::<f32>().iter().for_each(|x| crc.update(&x.to_le_bytes())),
            Dtype::Int32 => array.as_slice::<i32>().iter().for_each(|x| crc.update(&x.to_le_bytes())),
            other => panic!("{other:?}"),
        }
    }
    format!("{:08x}", crc.finalize())
}

#[cfg(unix)]
#[test]
fn a_link_stays_a_link() {
    let (folder, file) = saved();
    let link = folder.path().join("link.safetensors");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    cache().save(&link, "other", &[]).unwrap();
    assert!(link.is_symlink());
    assert_eq!(SavedCache::read(&file).unwrap().model_type(), Some("other"));
}

#[test]
fn a_cache_without_layers_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let error = ModelCache::new(Vec::new()).save(folder.path().join("x"), "m", &[]).unwrap_err();
    assert!(matches!(error, CacheFileError::NoCache { .. }), "{error}");
}

#[test]
fn a_batch_without_padding_stays_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let batch = ModelCache::new(vec![full_cache().with_left_padding(&[0, 0, 0]).unwrap()]);
    batch.save(&file, "m", &[]).unwrap();
    let (_, entries) = Array::load_safetensors_with_metadata(&file).unwrap();
    assert_eq!(entries["1.0"], "BatchKVCache");
    let mut loaded = SavedCache::read(&file).unwrap().into_cache();
    loaded.filter(&[2]).unwrap();
    assert!(matches!(loaded.filter(&[1]), Err(CacheError::Rows { batch: 1, .. })));
}

#[test]
fn all_kinds_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    let eight = Quantization::affine(8, 32).unwrap();
    let ring = || KvCache::new(Ring::new(4).unwrap().with_keep(1).unwrap());
    let kinds: [KvCache; 6] = [
        full_cache().with_left_padding(&[0, 2]).unwrap().quantized(eight).unwrap(),
        KvCache::new(Full::new().with_window(3).unwrap()).with_left_padding(&[0, 2]).unwrap(),
        ring().with_left_padding(&[0, 2]).unwrap(),
        ring().with_left_padding(&[0, 2]).unwrap().quantized(eight).unwrap(),
        ring().with_left_padding(&[0, 2]).unwrap().with_rewind(3).unwrap(),
        KvCache::new(Ring::new(3).unwrap()).with_left_padding(&[0, 2]).unwrap(),
    ];
    let mut cache = ModelCache::new(kinds.into());
    for count in [3, 1, 1, 5, 1, 2] {
        cache.save(&file, "m", &[]).unwrap();
        let mut loaded = SavedCache::read(&file).unwrap().into_cache();
        for (a, b) in cache.layers_mut().zip(loaded.layers_mut()) {
            let x = Array::from_slice(
                &(0..count * 64).map(|i| (i % 13) as f32).collect::<Vec<_>>(),
                &[1, 1, count, 64],
            );
            let x = mlx_rs::ops::concatenate(&[&x, &x.negative().unwrap()], 0).unwrap();
            assert_eq!(a.offsets(), b.offsets());
            let answer = |cache: &mut KvCache| {
                let mask = cache.mask(count).unwrap();
                cache.append(&x, &x).unwrap().attention(&x, 0.1, &mask).unwrap()
            };
            let named = tensor(&answer(b)).named(format!("{a:?}"));
            // The arrays of the loaded cache have no free slots, so a GPU may choose another kernel.
            assert_same_on_cpu(named, tensor(&answer(a)));
        }
    }
}

/// `[rows, 2, length, 32]` of numbers that depend on the seed.
fn x(rows: i32, seed: i32, length: i32) -> Array {
    let numbers: Vec<f32> =
        (0..rows * 64 * length).map(|i| ((i * 37 + seed * 101) % 59) as f32 / 29.0 - 1.0).collect();
    Array::from_slice(&numbers, &[rows, 2, length, 32])
}

/// Three single tokens and attention for them, as the fixtures have them.
fn three_further_tokens(mut cache: KvCache) -> HashMap<String, Array> {
    let rows = cache.offsets().len() as i32;
    let offsets = |cache: &KvCache| match *cache.offsets() {
        [one] => Array::from_int(one),
        ref rows => Array::from_slice(rows, &[rows.len() as i32]),
    };
    let mut next = HashMap::from([
        ("0.scale".to_owned(), Array::from_f32(0.2)),
        ("0.offset".to_owned(), offsets(&cache)),
    ]);
    for call in 0..3 {
        let (queries, keys) = (x(rows, 50, 1), x(rows, 60 + call, 1));
        let mask = cache.mask(1).unwrap();
        let out = cache.append(&keys, &queries).unwrap().attention(&queries, 0.2, &mask).unwrap();
        let arrays =
            [("q", &queries), ("k", &keys), ("v", &queries), ("out", &out), ("offset", &offsets(&cache))];
        next.extend(arrays.map(|(what, array)| (format!("0.{call}.{what}"), array.clone())));
    }
    next
}

/// States of mlx-lm's classes that mlx-lm itself does not reach. Attention for further tokens is written beside
/// each file for `xtask/python/load_prompt_caches.py`.
#[test]
fn caches_that_only_we_can_make_continue_in_mlx_lm() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prompt-caches-of-ours");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let filled = |cache: &KvCache, calls: &[i32]| {
        let mut cache = cache.clone();
        for (&call, seed) in calls.iter().zip(0..) {
            let x = x(1, seed, call);
            cache.append(&x, &x.negative().unwrap()).unwrap();
        }
        cache.clone()
    };
    let ring = |keep: i32| KvCache::new(Ring::new(8).unwrap().with_keep(keep).unwrap());
    let merged = |rows: &[KvCache]| KvCache::merge(&rows.iter().collect::<Vec<_>>()).unwrap();
    let trimmed = |state: &KvCache, tokens: i32| {
        let mut cache = state.clone();
        cache.trim(tokens).unwrap();
        cache.clone()
    };

    let singles = filled(&ring(0), &[1; 19]);
    let sinks = filled(&ring(3), &[5, 1, 1, 1, 1, 1, 1]);
    let full = |calls: &[i32]| filled(&full_cache(), calls);
    let batch = merged(&[singles.clone(), filled(&ring(0), &[3, 1]), filled(&ring(0), &[12])]);
    let full_batch = merged(&[full(&[9, 1]), full(&[2]), full(&[5])]);
    let states = [
        ("trimmed_after_a_wrap", trimmed(&singles, 1)),
        ("sinks_trimmed_after_a_wrap", trimmed(&sinks, 1)),
        ("sinks_trimmed_into", trimmed(&sinks, 10)),
        ("overlong_trimmed", trimmed(&filled(&ring(0), &[4, 20]), 5)),
        ("overlong_trimmed_far", trimmed(&filled(&ring(0), &[20, 9]), 9)),
        ("merged", batch.clone()),
        ("short_row", batch.row(1).unwrap()),
        ("long_row", batch.row(0).unwrap()),
        ("rows", batch.filter(&[2, 1]).unwrap()),
        ("full_trimmed", trimmed(&full(&[300, 1]), 40)),
        ("full_merged", full_batch.clone()),
        ("full_rows", full_batch.filter(&[1, 2]).unwrap()),
        ("full_row", full_batch.row(1).unwrap()),
    ];
    for (name, state) in states {
        let file = folder.join(name).with_extension("safetensors");
        ModelCache::new(vec![state.clone()]).save(&file, "test", &[]).unwrap();
        if name.contains("after_a_wrap") || name.contains("far") {
            // mlx-lm takes a ring that is shorter for one that has not wrapped.
            assert_eq!(Array::load_safetensors(&file).unwrap()["0.0"].dim(2), 8, "{name}");
        }
        // The cache of the file: its free slots may be elsewhere, and sums in another order round differently.
        let cache = SavedCache::read(&file).unwrap().layers()[0].clone();
        assert_eq!(cache.offsets(), state.offsets());
        let next = three_further_tokens(cache);
        Array::save_safetensors(&next, None, file.with_extension("next.safetensors")).unwrap();
        let again = SavedCache::read(&file).unwrap().into_cache();
        assert_goes_on(again, &next, name);
    }
}
