//! The runner itself: a right case passes, every kind of wrong one fails with its reason.

use super::*;
use mlx_rs::Array;
use std::collections::HashMap;
use tempfile::TempDir;

/// A copy of one of the project's cases, to damage.
fn case(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&crate::root().join("xtask/cases").join(name), copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() {
            fs::create_dir(&to).unwrap();
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

fn edit(folder: &Path, edit: impl FnOnce(&mut HashMap<String, Array>)) {
    edit_file(&folder.join("reference.safetensors"), edit);
}

fn edit_file(file: &Path, edit: impl FnOnce(&mut HashMap<String, Array>)) {
    let mut tensors = Array::load_safetensors(file).unwrap();
    mlx_rs::transforms::eval(tensors.values()).unwrap();
    edit(&mut tensors);
    Array::save_safetensors(&tensors, None, file).unwrap();
}

fn replace(folder: &Path, file: &str, from: &str, to: &str) {
    let file = folder.join(file);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
}

fn run(folder: &Path) -> Row {
    run_case(folder, "").unwrap()
}

#[track_caller]
fn assert_fails(folder: &Path, needle: &str) {
    let row = run(folder);
    assert!(!row.passed);
    assert!(row.detail.contains(needle), "{}", row.detail);
}

#[test]
fn a_right_case_passes() {
    let folder = case("lille_f32");
    let row = run(folder.path());
    assert!(row.passed, "{}", row.detail);
    assert_eq!((row.name.as_str(), row.worst), ("lille_f32", Some(0.0)));
}

#[test]
fn the_filter_looks_at_the_name() {
    let folder = case("lille_f32");
    assert!(run_case(folder.path(), "lille").is_some());
    assert!(run_case(folder.path(), "gemma").is_none());
}

#[test]
fn a_wrong_logit_is_found_and_placed() {
    let folder = case("lille_f32");
    edit(folder.path(), |tensors| {
        let logits = &tensors["logits"];
        let mut values = logits.as_slice::<f32>().to_vec();
        let vocab = logits.dim(2) as usize;
        values[2 * vocab + 5] += 1.0;
        let wrong = Array::from_slice(&values, logits.shape());
        tensors.insert("logits".to_owned(), wrong);
    });
    let row = run(folder.path());
    assert!(!row.passed);
    assert!(row.detail.contains("at [0, 2, 5], 1 of"), "{}", row.detail);
    assert!((row.worst.unwrap() - 1.0).abs() < 1e-3);
}

#[test]
fn one_bit_is_a_difference_where_exactness_is_promised() {
    let folder = case("lille_f32");
    edit(folder.path(), |tensors| {
        let logits = &tensors["logits"];
        let mut values = logits.as_slice::<f32>().to_vec();
        values[0] = f32::from_bits(values[0].to_bits() ^ 1);
        let wrong = Array::from_slice(&values, logits.shape());
        tensors.insert("logits".to_owned(), wrong);
    });
    let exact = std::env::consts::ARCH == "x86_64" && std::env::consts::OS == "linux";
    assert_eq!(run(folder.path()).passed, !exact);
    // Elsewhere the comparison is close, and says so.
    replace(folder.path(), "case.json", "cpu-linux-x86_64", "gpu-moon-z80");
    let row = run(folder.path());
    assert!(row.passed);
    assert_eq!(row.compare, "close (exact on gpu-moon-z80)");
}

#[test]
fn a_wrong_greedy_token_is_found() {
    let folder = case("lille_f32");
    edit(folder.path(), |tensors| {
        let mut tokens = tensors["greedy_tokens"].as_slice::<i32>().to_vec();
        tokens[3] ^= 1;
        tensors.insert("greedy_tokens".to_owned(), Array::from_slice(&tokens, &[tokens.len() as i32]));
    });
    assert_fails(folder.path(), "greedy token 3");
}

#[test]
fn adapters_are_part_of_a_case() {
    let key = "model.layers.1.self_attn.q_proj.lora_b";
    let folder = case("lora_q4");
    assert!(run(folder.path()).passed);
    edit_file(&folder.path().join("adapters/adapters.safetensors"), |tensors| {
        let twice = tensors[key].multiply(Array::from_f32(2.0)).unwrap();
        tensors.insert(key.to_owned(), twice);
    });
    assert_fails(folder.path(), "logits: worst");
    fs::remove_dir_all(folder.path().join("adapters")).unwrap();
    assert_fails(folder.path(), "holds no adapters");
}

#[test]
fn fused_weights_are_part_of_a_case() {
    for (name, edited, needle) in [
        (
            "fused",
            "model.layers.1.self_attn.q_proj.scales",
            "fused: model.layers.1.self_attn.q_proj.scales: worst",
        ),
        ("fused_dequantized", "model.norm.weight", "fused_dequantized: model.norm.weight: worst"),
    ] {
        let folder = case("lora_q4");
        let file = folder.path().join(name).join("model.safetensors");
        edit_file(&file, |tensors| {
            let more = tensors[edited].add(Array::from_f32(1.0)).unwrap();
            let more = more.as_dtype(tensors[edited].dtype()).unwrap();
            tensors.insert(edited.to_owned(), more);
        });
        assert_fails(folder.path(), needle);
        edit_file(&file, |tensors| drop(tensors.remove("model.norm.weight")));
        replace(folder.path(), "case.json", "\"exact\"", "\"close\", \"rtol\": 9.0, \"atol\": 9.0");
        assert_fails(folder.path(), "model.norm.weight is too much");
    }
}

#[test]
fn json_that_is_none_is_a_failed_case() {
    let folder = case("lille_f32");
    fs::write(folder.path().join("case.json"), "{ \"name\": ").unwrap();
    assert_fails(folder.path(), "case.json");
    fs::write(folder.path().join("case.json"), "{}").unwrap();
    assert_fails(folder.path(), "missing field `name`");
}

#[test]
fn an_unknown_kind_is_a_failed_case() {
    let folder = case("lille_f32");
    replace(folder.path(), "case.json", "\"kind\": \"model\"", "\"kind\": \"tune\"");
    assert_fails(folder.path(), "unknown kind \"tune\"");
}

#[test]
fn an_unknown_mode_is_a_failed_case() {
    let folder = case("lille_f32");
    replace(folder.path(), "case.json", "\"mode\": \"exact\"", "\"mode\": \"roughly\"");
    assert_fails(folder.path(), "roughly");
}

#[test]
fn the_rule_of_long_rope_is_the_one_of_the_case() {
    let folder = case("phi3_longrope_mlx_lm");
    assert!(run(folder.path()).passed);
    replace(folder.path(), "case.json", "\"longrope\": \"mlx-lm\"", "\"longrope\": \"hf\"");
    assert_fails(folder.path(), "logits");
    replace(folder.path(), "case.json", "\"longrope\": \"hf\"", "\"longrope\": \"short\"");
    assert_fails(folder.path(), "unknown variant `short`");
    assert!(run(case("hf_phi3_longrope_crossing").path()).passed);
}

#[test]
fn missing_files_and_tensors_are_failed_cases() {
    let folder = case("lille_f32");
    edit(folder.path(), |tensors| {
        tensors.remove("logits");
    });
    assert_fails(folder.path(), "there is no tensor logits");
    fs::remove_file(folder.path().join("reference.safetensors")).unwrap();
    assert_fails(folder.path(), "reference.safetensors");
    let folder = case("lille_f32");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_fails(folder.path(), "config.json");
}

#[test]
fn tokens_of_another_form_are_failed_cases() {
    let with_tokens = |tokens: Array| {
        let folder = case("lille_f32");
        edit(folder.path(), |tensors| {
            tensors.insert("tokens".to_owned(), tokens);
        });
        folder
    };
    assert_fails(with_tokens(Array::from_slice(&[1, 2], &[2])).path(), "[B, T] is needed");
    assert_fails(with_tokens(Array::from_slice(&[1.0_f32], &[1, 1])).path(), "do not cut");
    let length = case("lille_f32");
    let tokens = Array::load_safetensors(length.path().join("reference.safetensors"))
        .unwrap()
        .remove("tokens")
        .unwrap();
    let far = tokens.add(Array::from_int(100_000)).unwrap();
    assert_fails(with_tokens(far).path(), "outside the vocabulary");
}

#[test]
fn logits_of_another_shape_are_a_failed_case() {
    let folder = case("lille_f32");
    edit(folder.path(), |tensors| {
        tensors.insert("logits".to_owned(), Array::zeros::<f32>(&[1, 2, 3]).unwrap());
    });
    assert_fails(folder.path(), "expected [1, 2, 3]");
}

#[test]
fn every_folder_below_is_looked_into_and_results_are_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b/deep/one", "a"] {
        fs::create_dir_all(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("case.json"), "broken").unwrap();
    }
    let found = find_cases(folder.path()).unwrap();
    assert_eq!(found, [folder.path().join("a"), folder.path().join("b/deep/one")]);

    let json = folder.path().join("results.json");
    let arguments = Arguments {
        cases: Some(folder.path().to_path_buf()),
        filter: String::new(),
        json: Some(json.clone()),
        ..Arguments::default()
    };
    let mut lines = Vec::new();
    assert!(!report(&arguments, &mut lines).unwrap());
    assert!(lines.ends_with(b"0 passed, 2 failed\n"));
    let rows: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(rows[0]["passed"], false);
}

#[test]
fn nothing_to_run_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = Arguments {
        cases: Some(folder.path().to_path_buf()),
        filter: String::new(),
        json: None,
        ..Arguments::default()
    };
    assert!(!report(&arguments, &mut Vec::new()).unwrap());
    let arguments = Arguments {
        cases: Some(folder.path().join("gone")),
        filter: String::new(),
        json: None,
        ..Arguments::default()
    };
    assert!(report(&arguments, &mut Vec::new()).unwrap_err().to_string().contains("gone"));
}
