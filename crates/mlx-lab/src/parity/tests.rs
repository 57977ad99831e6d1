//! Tests of the runner: a correct case passes, and every kind of wrong case fails with its reason.

use super::*;
use mlx_rs::Array;
use std::collections::HashMap;
use tempfile::TempDir;

/// A copy of one of the project's cases, to damage.
fn case(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&workspace::root().join("xtask/cases").join(name), copy.path());
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
    let _alone = crate::alone::alone();
    run_case(folder, &Arguments::default()).unwrap()
}

/// Whether a text contains the parts of `needle` that `..` separates, in this order.
fn has(text: &str, needle: &str) -> bool {
    let mut rest = text;
    needle.split("..").all(|part| {
        let found = rest.split_once(part).map(|(_, after)| after);
        rest = found.unwrap_or_default();
        found.is_some()
    })
}

#[track_caller]
fn assert_fails(folder: &Path, needle: &str) {
    let row = run(folder);
    assert!(!row.passed);
    assert!(has(&row.detail, needle), "{}", row.detail);
}

#[test]
fn a_right_case_passes() {
    let folder = case("lille_f32");
    let row = run(folder.path());
    assert!(row.passed, "{}", row.detail);
    assert_eq!(row.name, "lille_f32");
    assert!(row.worst == Some(0.0) || !mlx_testing::on_recording_device(), "{:?}", row.worst);
}

#[test]
fn the_filter_looks_at_the_name() {
    let folder = case("lille_f32");
    let named = |filter: &str| {
        run_case(folder.path(), &Arguments { filter: filter.to_owned(), ..Arguments::default() })
    };
    assert!(named("lille").is_some());
    assert!(named("gemma").is_none());
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
    assert!(row.detail.contains("1 of 7680 elements differ; the worst is at [0, 2, 5]"), "{}", row.detail);
    approx::assert_abs_diff_eq!(row.worst.unwrap(), 1.0, epsilon = 1e-3);
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
    assert_eq!(run(folder.path()).passed, !mlx_testing::on_recording_device());
    // On another device the comparison is close, and the report says so.
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
    assert_fails(folder.path(), "logits: .. elements differ");
    fs::remove_dir_all(folder.path().join("adapters")).unwrap();
    assert_fails(folder.path(), "there is no folder");
}

#[test]
fn fused_weights_are_part_of_a_case() {
    for (name, edited, needle) in [
        (
            "fused",
            "model.layers.1.self_attn.q_proj.scales",
            "fused: model.layers.1.self_attn.q_proj.scales: .. elements differ",
        ),
        (
            "fused_dequantized",
            "model.norm.weight",
            "fused_dequantized: model.norm.weight: .. elements differ",
        ),
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
        // A close case runs on the kernels, which may choose other tokens.
        replace(folder.path(), "case.json", "\"exact\"", "\"close\", \"rtol\": 9.0, \"atol\": 9.0");
        edit_file(&folder.path().join("reference.safetensors"), |tensors| {
            tensors.retain(|key, _| !key.starts_with("greedy"));
        });
        assert_fails(folder.path(), "the reference does not have model.norm.weight");
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
    assert_fails(with_tokens(Array::from_slice(&[1, 2], &[2])).path(), "must have [B, T]");
    assert_fails(with_tokens(Array::from_slice(&[1.0_f32], &[1, 1])).path(), "do not add up");
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
    let found: Vec<PathBuf> = found.into_iter().map(Result::unwrap).collect();
    assert_eq!(found, [folder.path().join("a"), folder.path().join("b/deep/one")]);

    let json = folder.path().join("results.json");
    let arguments = Arguments { json: Some(json.clone()), ..arguments(folder.path()) };
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
    assert!(!report(&arguments(folder.path()), &mut Vec::new()).unwrap());
    let gone = report(&arguments(&folder.path().join("gone")), &mut Vec::new());
    assert!(gone.unwrap_err().to_string().contains("gone"));
}

/// The results of every case below this folder.
fn arguments(folder: &Path) -> Arguments {
    Arguments { cases: Some(folder.to_path_buf()), ..Arguments::default() }
}

/// Changes the JSON of a case.
fn edit_json(folder: &Path, file: &str, edit: impl FnOnce(&mut serde_json::Value)) {
    let file = folder.join(file);
    let mut json = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// Runs many broken cases at once, and checks the reason that each fails with.
#[test]
#[allow(clippy::too_many_lines, reason = "a table of cases")]
fn whatever_is_in_a_folder_is_a_failed_case_with_its_reason() {
    use serde_json::json;
    let folder = tempfile::tempdir().unwrap();
    let mut expected: Vec<(String, &str)> = Vec::new();

    // A key of `case.json` and its new value.
    for (from, key, value, needle) in [
        ("rope_default", "/name", json!(""), "name is empty"),
        ("rope_default", "/name", json!(7), "invalid type: integer"),
        ("rope_default", "/device", json!([]), "invalid type: sequence"),
        (
            "rope_default",
            "/compare",
            json!({"mode": "close", "rtol": -1.0, "atol": 0.0}),
            "is -1, and must be",
        ),
        ("rope_default", "/compare", json!({"mode": "close", "rtol": 1.0}), "missing field `atol`"),
        ("rope_default", "/calls", json!([]), "calls is empty"),
        (
            "rope_default",
            "/calls",
            json!([{"offset": 1_u64 << 40}]),
            "an offset is a whole number of 32 bits",
        ),
        ("rope_default", "/calls", json!([{"offset": 0}]), "there is a tensor x.1, but only 1 calls"),
        ("rope_default", "/calls/0/offset", json!([1, 2, 3, 4, 5, 6, 7]), "7 offsets"),
        ("rope_default", "/calls/0/offset", json!([]), "0 offsets"),
        ("rope_default", "/calls/0/offset", json!(i32::MAX), "call 0: .. elements differ"),
        ("rope_default", "/rope/dims", json!(0), "over 0 features"),
        ("rope_default", "/rope/dims", json!(1 << 30), "but dims is 1073741824"),
        ("rope_default", "/rope/base", json!(1e300), "rope_theta is 1e300"),
        ("rope_default", "/rope/scaling", json!([]), "invalid type: sequence"),
        ("rope_default", "/rope/scaling", json!({"rope_type": "nonsense"}), "unknown rope_type \"nonsense\""),
        ("rope_default", "/rope/bogus", json!(1), "unknown field `bogus`"),
        ("cache_full_q8_g32", "/cache/quantize/group_size", json!(0), "in groups of 0"),
        ("cache_full_q8_g32", "/cache/quantize/group_size", json!(128), "is not a multiple of the"),
        ("cache_full_q8_g32", "/cache/quantize/bits", json!(-8), "not -8 bits"),
        ("cache_rewind", "/cache/max_size", json!(-5), "max_size -5"),
        ("cache_rewind", "/cache/max_size", json!(i32::MAX), "max_size 2147483647"),
        ("cache_rewind", "/cache/max_size", json!(1_u64 << 40), "expected i32"),
        ("cache_rewind", "/cache/keep", json!(8), "keep 8"),
        ("cache_rewind", "/cache/rewind", json!(-1), "and rewind -1"),
        ("cache_rewind", "/cache/type", json!("square"), "unknown variant `square`"),
        ("cache_rewind", "/window", json!(4), "only a full cache can have a window"),
        ("cache_full_window", "/window", json!(0), "a window of 0"),
        ("cache_full_bf16", "/scale", json!("NaN"), "expected f32"),
        ("cache_full_bf16", "/ops", json!([]), "ops has only 0 updates"),
        (
            "cache_full_bf16",
            "/ops",
            json!([{"op": "trim", "n": 5}]),
            "cannot trim 5 tokens, there are only 0",
        ),
        ("cache_full_bf16", "/ops", json!([{"op": "trim", "n": -5}]), "-5 tokens"),
        ("cache_full_bf16", "/ops", json!([{"op": "explode"}]), "unknown variant `explode`"),
        ("cache_full_bf16", "/ops/0/n", json!(0), "a tensor for 0 tokens has the shape"),
        ("lille_f32", "/calls", json!([]), "do not add up to 24 tokens"),
        ("lille_f32", "/calls", json!([24, 0]), "do not add up to 24 tokens"),
        ("lille_f32", "/calls", json!([25, u64::MAX]), "do not add up to 24 tokens"),
        ("lille_f32", "/calls", json!([-1]), "expected usize"),
        ("lille_f32", "/adapters", json!("../.."), "holds no adapters"),
        ("lille_f32", "/fused", json!([{"folder": "x", "dequantize": true}]), "fused needs adapters"),
    ] {
        let case = place(&folder, from, &mut expected, needle);
        edit_json(&case, "case.json", |json| {
            let (outer, last) = key.rsplit_once('/').unwrap();
            match json.pointer_mut(outer).unwrap() {
                serde_json::Value::Array(list) => list[last.parse::<usize>().unwrap()] = value,
                object => object[last] = value,
            }
        });
    }

    // A tensor of the reference, and its replacement.
    let floats = |shape: &[i32]| Array::ones::<f32>(shape).unwrap();
    let ints = |shape: &[i32]| floats(shape).as_dtype(mlx_rs::Dtype::Int32).unwrap();
    for (from, tensor, new, needle) in [
        ("rope_default", "y.0", None, "there is no tensor y.0"),
        ("rope_default", "x.0", None, "there is no tensor x.0"),
        ("rope_default", "x.0", Some(floats(&[64])), "[B, H, L, D] is rotated"),
        ("rope_default", "x.0", Some(ints(&[1, 1, 1, 64])), "must be a floating type"),
        ("rope_default", "y.0", Some(floats(&[1, 1, 1, 64])), "expected [1, 1, 1, 64]"),
        ("cache_full_bf16", "v.1", None, "there is no tensor v.1"),
        ("cache_full_bf16", "q.0", Some(floats(&[9, 32])), "a tensor for 9 tokens has the shape [9, 32]"),
        (
            "cache_full_bf16",
            "k.0",
            Some(floats(&[1, 2, 8, 32])),
            "a tensor for 9 tokens has the shape [1, 2, 8, 32]",
        ),
        ("cache_full_bf16", "k.0", Some(ints(&[1, 1, 9, 32])), "floats"),
        ("cache_full_bf16", "q.0", Some(floats(&[1, 2, 9, 1])), "matching last dimension"),
        ("lille_f32", "logits", None, "there is no tensor logits"),
        ("lille_f32", "tokens", Some(ints(&[0, 24])), "tokens have shape [0, 24]"),
        (
            "lille_f32",
            "logits",
            Some(floats(&[1, 24, 320]).multiply(Array::from_f32(f32::NAN)).unwrap()),
            "differs by inf",
        ),
        ("lille_f32", "greedy_tokens", None, "there is no tensor greedy_tokens"),
        ("lille_f32", "greedy_tokens", Some(floats(&[4])), "instead of int32"),
        ("lille_f32", "greedy_prompt", Some(ints(&[0])), "the prompt is empty"),
    ] {
        let case = place(&folder, from, &mut expected, needle);
        edit(&case, |tensors| {
            tensors.remove(tensor);
            tensors.extend(new.map(|new| (tensor.to_owned(), new)));
        });
    }

    // A file, and how it is broken.
    type Damage = fn(&Path);
    let into_folder: Damage = |file| {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    };
    let shorter: Damage = |file| {
        let contents = fs::read(file).unwrap();
        fs::write(file, &contents[..contents.len() - 100]).unwrap();
    };
    let with_long_header: Damage = |file| fs::write(file, u64::MAX.to_le_bytes()).unwrap();
    let binary: Damage = |file| fs::write(file, [0, 159, 146, 150]).unwrap();
    let empty: Damage = |file| fs::write(file, "").unwrap();
    let deep: Damage = |file| fs::write(file, "[".repeat(100_000)).unwrap();
    for (from, file, damage, needle) in [
        ("lille_f32", "case.json", into_folder, "case.json: not a regular file"),
        ("lille_f32", "case.json", binary, "UTF-8"),
        ("lille_f32", "case.json", empty, "EOF"),
        ("lille_f32", "case.json", deep, "invalid type: sequence"),
        ("lille_f32", "reference.safetensors", into_folder, "reference.safetensors: not a regular file"),
        ("lille_f32", "reference.safetensors", shorter, "reference.safetensors: "),
        ("lille_f32", "reference.safetensors", with_long_header, "reference.safetensors: "),
        ("lille_f32", "reference.safetensors", empty, "reference.safetensors: "),
        ("lille_q4", "model.safetensors", into_folder, "model.safetensors"),
        ("lille_q4", "model.safetensors", shorter, "is not a whole safetensors file"),
        ("lille_f32", "config.json", deep, "recursion limit"),
    ] {
        let case = place(&folder, from, &mut expected, needle);
        damage(&case.join(file));
    }
    let case = place(&folder, "lille_q4", &mut expected, "transformer.norm.weight: missing");
    edit_file(&case.join("model.safetensors"), |tensors| drop(tensors.remove("transformer.norm.weight")));

    let folders: Vec<PathBuf> = find_cases(folder.path()).unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!(folders.len(), expected.len());
    for (folder, (name, needle)) in folders.iter().zip(&expected) {
        assert!(folder.ends_with(name));
        let row = run(folder);
        assert!(!row.passed && has(&row.detail, needle), "{name}, {needle:?}: {}", row.detail);
        // Only an existing result can differ.
        let has_answer = row.detail.contains("elements differ") || row.detail.contains(", expected [");
        assert_eq!(row.differs, has_answer, "{name}: {}", row.detail);
    }
}

/// A copy of a case below a folder, and the reason that it fails with. The names are numbers, in the order of the calls.
fn place<'a>(
    folder: &TempDir,
    from: &str,
    expected: &mut Vec<(String, &'a str)>,
    needle: &'a str,
) -> PathBuf {
    let name = format!("{:03}_{from}", expected.len());
    let case = folder.path().join(&name);
    fs::create_dir(&case).unwrap();
    copy_folder(&workspace::root().join("xtask/cases").join(from), &case);
    expected.push((name, needle));
    case
}

#[test]
fn two_cases_of_one_name_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    for place in ["one", "two"] {
        fs::create_dir(folder.path().join(place)).unwrap();
        copy_folder(&workspace::root().join("xtask/cases/rope_default"), &folder.path().join(place));
    }
    let mut lines = Vec::new();
    assert!(!report(&arguments(folder.path()), &mut lines).unwrap());
    let lines = String::from_utf8(lines).unwrap();
    assert!(lines.contains("its name is also that of") && lines.contains("/one\n"), "{lines}");
    assert!(lines.ends_with("1 passed, 1 failed\n"), "{lines}");
}

#[test]
fn what_a_case_says_stays_in_its_line() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&workspace::root().join("xtask/cases/rope_default"), folder.path());
    let forged = "x\npassed  forged\u{1b}[31m";
    edit_json(folder.path(), "case.json", |json| {
        json["name"] = forged.into();
        json["kind"] = "rope".into();
        json["calls"] = serde_json::json!([]);
    });
    let mut lines = Vec::new();
    assert!(!report(&arguments(folder.path()), &mut lines).unwrap());
    let lines = String::from_utf8(lines).unwrap();
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.starts_with("FAILED  x passed  forged\u{fffd}[31m"), "{lines}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_case_is_one_and_circles_are_none() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    symlink(workspace::root().join("xtask/cases/rope_default"), folder.path().join("linked")).unwrap();
    symlink(folder.path(), folder.path().join("circle")).unwrap();
    let dangling = folder.path().join("dangling");
    fs::create_dir(&dangling).unwrap();
    symlink("nowhere", dangling.join("case.json")).unwrap();

    let found: Vec<Row> = find_cases(folder.path()).unwrap().iter().map(|case| run(path_of(case))).collect();
    let names: Vec<&str> = found.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["dangling", "rope_default"]);
    assert!(!found[0].passed && found[0].detail.contains("case.json"), "{}", found[0].detail);
    assert!(found[1].passed, "{}", found[1].detail);
}

#[test]
fn a_folder_that_cannot_be_looked_into_is_a_failed_case() {
    let row = unreadable(Path::new("cases/closed"), "clo", "reading the folder: denied").unwrap();
    assert_eq!((row.name.as_str(), row.passed, row.differs), ("closed", false, false));
    assert!(row.detail.contains("denied"));
    assert!(unreadable(Path::new("cases/closed"), "open", "").is_none());
}

/// A reader that closes the pipe after the first line.
struct Closed(usize);

impl Write for Closed {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        if self.0 > 1 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(text.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn results_do_not_depend_on_who_reads_the_lines() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["rope_default", "rope_linear"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        copy_folder(&workspace::root().join("xtask/cases").join(name), &folder.path().join(name));
    }
    let json = folder.path().join("results.json");
    let with_json = |json: &Path| Arguments { json: Some(json.to_path_buf()), ..arguments(folder.path()) };
    assert!(report(&with_json(&json), &mut Closed(0)).unwrap());
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(rows.len(), 2);

    // If the file cannot be written, the command fails after it has printed every line.
    let mut lines = Vec::new();
    let error = report(&with_json(&folder.path().join("no/such/folder.json")), &mut lines).unwrap_err();
    assert!(error.to_string().contains("folder.json"), "{error}");
    assert!(lines.ends_with(b"2 passed, 0 failed\n"));
}

/// mlx-lm's greedy text differs from ours when two tokens are almost equally likely. So this test follows mlx-lm's own text
/// and computes the likeliest token of float32 at each place: the kernels agree with float32 as often as mlx-lm does, and
/// with mlx-lm almost everywhere.
#[test]
fn kernels_choose_greedily_as_float32_does() {
    let fixture = workspace::root().join("crates/mlx-models-cli/tests/fixtures/greedy_500.json");
    let fixture: serde_json::Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    for case in fixture["cases"].as_array().unwrap() {
        let name = case["demo"].as_str().unwrap();
        let demo = workspace::root().join("crates/mlx-models-cli/demo").join(name);
        let scratch = tempfile::tempdir().unwrap();
        let mut folder = demo.clone();
        if let Some(bits) = case["bits"].as_i64() {
            folder = scratch.path().join("quantized");
            let group_size = case["group_size"].as_i64().unwrap() as i32;
            let quantization = mlx_models::Quantization::named("affine", bits as i32, group_size).unwrap();
            let weights = mlx_models::Weights::Quantized(mlx_models::QuantizeOptions {
                quantization,
                recipe: None,
                layers: Vec::new(),
            });
            let options = mlx_models::ConvertOptions { weights, ..Default::default() };
            mlx_models::convert(&demo, None, &folder, &options, |_| std::ops::ControlFlow::Continue(()))
                .unwrap();
        }
        let tokenizer = mlx_models::tokenizer::Tokenizer::from_folder(&demo).unwrap();
        let prompt = tokenizer.encode(case["prompt"].as_str().unwrap()).unwrap();
        let chosen = case["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let chosen: Vec<u32> = chosen.collect();
        let read: Vec<u32> = prompt.iter().chain(&chosen[..chosen.len() - 1]).copied().collect();

        let options = mlx_models::LoadOptions::default();
        let _computing = computing(true);
        let ours = mlx_testing::with_cpu("the kernels are for the CPU", || {
            let mut model = mlx_models::load(&folder).unwrap();
            in_float32::choices(&mut *model, &read).unwrap().split_off(prompt.len() - 1)
        });
        let mut exact = in_float32::InFloat32::load(&folder, &options).unwrap();
        let exact = exact.choices(&read).unwrap().split_off(prompt.len() - 1);
        let same = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        let [us, them, both] = [same(&ours, &exact), same(&chosen, &exact), same(&ours, &chosen)];
        let all = chosen.len();
        println!(
            "{name} {} bits: float32 and kernels {us}, float32 and mlx-lm {them}, kernels and mlx-lm {both} of {all}",
            case["bits"]
        );
        // In bfloat16 both differ from float32 by chance, at ties. With quantized weights mlx-lm's sums are less exact.
        let by_chance = if case["bits"].is_null() { all / 100 } else { 0 };
        assert!(us + by_chance >= them && both * 10 >= all * 9, "{name} {}", case["bits"]);
    }
}
