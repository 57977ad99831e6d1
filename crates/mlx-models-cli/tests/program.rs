//! The program as a user or a script calls it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn demo() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/lille-130m"))
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mlx-models"));
    // The tests do not touch the user's cache.
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// A copy of the demo checkpoint, to damage.
fn copy() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn replace(folder: &Path, file: &str, from: &str, to: &str) {
    let file = folder.join(file);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(&file, text.replacen(from, to, 1)).unwrap();
}

/// `generate` on this folder fails with status 1, nothing on standard output, and one line that contains `needles`.
#[track_caller]
fn assert_fails(folder: &Path, prompt: &str, needles: &[&str]) {
    let output = program().args(["generate", "--prompt", prompt, "--model"]).arg(folder).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(text(&output.stdout), "");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{said}");
    for needle in needles {
        assert_eq!(said.matches(needle).count(), 1, "{needle:?} in {said}");
    }
}

#[test]
fn the_demo_continues_a_prompt() {
    let output = run(&["generate", "--prompt", "Once upon a time", "--max-tokens", "20"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        " there was a little rabbit named Ada. She lived in a cozy burrow at the edge of\n"
    );
    let said = text(&output.stderr);
    for needle in
        ["device: ", ", because ", "prompt: 4 tokens", "generation: 20 tokens", "tokens/s", "peak memory"]
    {
        assert!(said.contains(needle), "{said}");
    }
}

#[test]
fn a_story_ends_where_the_model_ends_it() {
    let output = run(&["generate", "--prompt", "Once upon a time", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "stop_token");
    let story = report["text"].as_str().unwrap();
    assert!(story.ends_with(['.', '"', '!']) && !story.contains("<|"), "{story}");
    assert_eq!(
        report["tokens"].as_array().unwrap().len(),
        report["generation_tokens"].as_u64().unwrap() as usize
    );
    assert!(report["generation_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["peak_memory_bytes"].as_u64().unwrap() > 2_000_000);
}

#[test]
fn zero_tokens_end_with_max_tokens() {
    let output = run(&["generate", "--prompt", "Once upon a time", "--max-tokens", "0", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["finish_reason"], "max_tokens");
    assert_eq!(report["text"], "");
}

#[test]
fn a_dash_reads_the_prompt_from_standard_input() {
    let mut child = program()
        .args(["generate", "--prompt", "-", "--max-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"Once upon a time").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), " there was a little\n");
}

#[test]
fn standard_input_that_is_not_text_is_an_error() {
    let mut child = program()
        .args(["generate", "--prompt", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[0xff, 0xfe, 0x00]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard input, which must be UTF-8"), "{}", text(&output.stderr));
}

#[test]
fn the_same_seed_tells_the_same_story_and_another_tells_another() {
    let story = |seed: &str| {
        let arguments = ["generate", "--prompt", "Once", "--max-tokens", "30", "--temp", "1", "--seed", seed];
        text(&run(&arguments).stdout).to_owned()
    };
    assert_eq!(story("3"), story("3"));
    assert_ne!(story("3"), story("4"));
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = program()
        .args(["generate", "--prompt", "Once upon a time", "--temp", "1", "--seed", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 5];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(!text(&output.stderr).contains("error"), "{}", text(&output.stderr));
}

#[test]
#[cfg(unix)]
fn an_interrupt_ends_it_cleanly() {
    let mut child = program()
        .args([
            "generate",
            "--prompt",
            "Once upon a time",
            "--max-tokens",
            "500",
            "--temp",
            "1.5",
            "--seed",
            "2",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    // The program may have been at its last token when the signal came. The signal must not have killed it.
    assert!(matches!(output.status.code(), Some(130 | 0)), "{:?} {said}", output.status);
    assert!(text(&output.stdout).ends_with('\n') && said.contains("generation: "), "{said}");
}

#[test]
fn inspect_describes_a_checkpoint() {
    let output = program().arg("inspect").arg(demo()).output().unwrap();
    let table = text(&output.stdout);
    for line in [
        "architecture          lille-130m",
        "layers                6",
        "hidden size           128",
        "intermediate size     256",
        "query heads           4",
        "key-value heads       2",
        "head size             32",
        "vocabulary            1024 tokens",
        "rotation              base 10000, 32 features, interleaved",
        "windows               none",
        "stop tokens           1023 (<|endoftext|>)",
        "chat template         none",
        "parameters            1017472",
        "dtype                 bfloat16",
        "quantization          none",
        "size on disk          2.04 MB",
        "context length        512 tokens",
        // 6 layers, keys and values, 2 heads of 32, 2 bytes
        "cache                 1536 bytes per token",
        "memory                weights 2.0 MB, cache of a full context 786.4 kB; this ",
    ] {
        assert!(table.contains(line), "{table}");
    }
    let output = program().arg("inspect").arg(demo()).arg("--json").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["cache_bytes_per_token"], 1536);
    let memory = &json["memory"];
    assert_eq!(
        (&memory["weights_bytes"], &memory["cache_bytes"]),
        (&(2 * 1_017_472).into(), &(512 * 1536).into())
    );
    assert_eq!((&memory["fitting_tokens"], &memory["warning"]), (&512.into(), &Value::Null));
    let config: Value = serde_json::from_slice(&fs::read(demo().join("config.json")).unwrap()).unwrap();
    assert_eq!(json["config"], config);
}

#[test]
fn inspect_lists_the_layers_without_a_rotation() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases/smollm3_q4_whole");
    let output = program().arg("inspect").arg(&case).output().unwrap();
    let table = text(&output.stdout);
    let row = "rotation              base 5000, 16 features (layer 0); none (layer 1)\n";
    assert!(table.contains(row), "{table}");
    let output = program().arg("inspect").arg(&case).arg("--json").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["rotations"].as_array().unwrap().len(), 1);
    assert_eq!(json["rotations"][0]["layers"], serde_json::json!([0]));
}

#[test]
fn inspect_says_how_each_layer_rotates_and_which_have_a_window() {
    let output = run(&["inspect", "demo:olmo3"]);
    let table = text(&output.stdout);
    for line in [
        "rotation              base 500000, 32 features (layers 0, 1, 2); yarn by 8, base 500000, 32 features (layer 3)\n",
        "windows               32 tokens in 3 of 4 layers\n",
    ] {
        assert!(table.contains(line), "{table}");
    }
    let json: Value = serde_json::from_slice(&run(&["inspect", "demo:gemma3", "--json"]).stdout).unwrap();
    let whole = serde_json::json!({
        "rope_type": "default", "base": 1e6, "dims": 48, "layout": "halves", "factor": null, "layers": [2, 5],
    });
    assert_eq!(json["rotations"][1], whole);
    assert_eq!(json["windows"], serde_json::json!([32, 32, null, 32, 32, null]));
    // A layer with a window keeps 32 tokens.
    let (context, bytes) = (json["context_length"].as_u64().unwrap(), 2 * 48 * 2);
    assert_eq!(json["memory"]["cache_bytes"], (4 * 32 + 2 * context) * bytes);
    let sizes = ["layers", "hidden_size", "intermediate_size", "query_heads", "key_value_heads", "head_dim"];
    assert_eq!(sizes.map(|size| json[size].as_i64().unwrap()), [6, 128, 224, 4, 1, 48]);
    assert_eq!(json["vocab_size"], 1024);
}

#[test]
fn inspect_describes_the_tokenizer_and_a_folder_without_one() {
    let folder = copy();
    let inspect = || {
        let output = program().arg("inspect").arg(folder.path()).arg("--json").output().unwrap();
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let file = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["chat_template"] = "{{ messages[0].content }}".into();
    fs::write(&file, config.to_string()).unwrap();
    let json = inspect();
    assert_eq!(json["chat_templates"], serde_json::json!(["default"]));
    assert_eq!(json["stop_tokens"], serde_json::json!([{ "id": 1023, "token": "<|endoftext|>" }]));
    assert_eq!(json["tokenizer_error"], Value::Null);

    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let json = inspect();
    assert_eq!((&json["chat_templates"], &json["stop_tokens"]), (&Value::Null, &Value::Null));
    assert!(json["tokenizer_error"].as_str().unwrap().contains("tokenizer.json"), "{json}");
    let output = program().arg("inspect").arg(folder.path()).output().unwrap();
    let table = text(&output.stdout);
    assert!(table.contains("\nstop tokens           unknown: "), "{table}");
}

#[test]
fn inspect_escapes_control_characters_of_the_config() {
    let folder = copy();
    replace(folder.path(), "config.json", "{", "{\"note\": \"\u{9b}2J\", ");
    let output = program().arg("inspect").arg(folder.path()).arg("--json").output().unwrap();
    let shown = text(&output.stdout);
    assert!(shown.contains(r#""note":"\u009b2J""#), "{shown}");
    assert_eq!(serde_json::from_str::<Value>(shown).unwrap()["config"]["note"], "\u{9b}2J");
}

#[test]
fn inspect_counts_what_a_quantized_checkpoint_stands_for() {
    let mixed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases/lille_q4_mixed");
    let output = program().arg("inspect").arg(&mixed).arg("--json").output().unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    // 320 x 64 embedding; per layer 128 x 64 + 64 x 64 + 3 x 256 x 64 and two norms of 64; a last norm.
    assert_eq!(json["parameters"], 320 * 64 + 2 * ((128 + 64 + 3 * 256) * 64 + 2 * 64) + 64);
    assert!(json["quantization"].as_str().unwrap().starts_with("affine of 4 bits in groups of 32"), "{json}");
}

#[test]
fn models_lists_architectures_and_what_is_not_supported() {
    let output = run(&["models"]);
    assert!(output.status.success() && output.stderr.is_empty());
    let shown = text(&output.stdout);
    assert!(shown.contains(
        "Qwen 3\n  model_type  qwen3\n  feature     qwen3\n  crate       mlx-qwen3\n  checked     Qwen3-0.6B,"
    ));
    assert!(shown.contains("\nNot supported\n  mixtures of experts"), "{shown}");
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");

    let json: Value = serde_json::from_slice(&run(&["models", "--json"]).stdout).unwrap();
    let architectures = json["architectures"].as_array().unwrap();
    let types = architectures.iter().flat_map(|known| known["model_types"].as_array().unwrap());
    let types: Vec<&str> = types.map(|name| name.as_str().unwrap()).collect();
    assert_eq!(types, mlx_models::known_model_types());
    for architecture in architectures {
        assert!(!architecture["released"].as_array().unwrap().is_empty(), "{architecture}");
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(architecture["crate"].as_str().unwrap());
        assert!(folder.is_dir(), "{architecture}");
    }
    assert!(
        json["not_supported"]
            .as_array()
            .unwrap()
            .iter()
            .any(|missing| missing["kind"].as_str().unwrap().starts_with("GGUF"))
    );
}

#[test]
fn no_folder() {
    assert_fails(Path::new("/no/such/folder"), "x", &["there is no folder /no/such/folder"]);
}

#[test]
fn no_config() {
    let folder = copy();
    fs::remove_file(folder.path().join("config.json")).unwrap();
    assert_fails(folder.path(), "x", &["there is no", "config.json"]);
}

#[test]
fn broken_json() {
    let folder = copy();
    replace(folder.path(), "config.json", "{", "{,");
    assert_fails(folder.path(), "x", &["config.json is not valid JSON", "line 1"]);
}

#[test]
fn an_unknown_model_type() {
    let folder = copy();
    replace(folder.path(), "config.json", "lille-130m", "lille-131m");
    let known = format!("known are {}", mlx_models::known_model_types().join(", "));
    assert!(known.contains("lille-130m"));
    assert_fails(folder.path(), "x", &["unknown model_type \"lille-131m\"", &known]);
}

#[test]
fn missing_extra_and_wrongly_shaped_tensors_are_all_listed() {
    let folder = copy();
    // One layer more, one layer less, and a vocabulary of another size.
    replace(folder.path(), "config.json", "\"n_layer\": 6", "\"n_layer\": 7");
    replace(folder.path(), "config.json", "\"vocab_size\": 1024", "\"vocab_size\": 1000");
    assert_fails(
        folder.path(),
        "x",
        &[
            "transformer.layers.6.attention.qkv_proj.weight: missing, [256, 128] is needed",
            "transformer.layers.6.feed_forward.norm.weight: missing, [128] is needed",
            "transformer.tok_embeddings.weight: shape [1024, 128], [1000, 128] is needed",
        ],
    );
    let folder = copy();
    replace(folder.path(), "config.json", "\"n_layer\": 6", "\"n_layer\": 5");
    assert_fails(folder.path(), "x", &["transformer.layers.5.attention.norm.weight: unexpected"]);
}

#[test]
fn a_truncated_tensor_file() {
    let folder = copy();
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_fails(folder.path(), "x", &["model.safetensors is not a whole safetensors file"]);
}

#[test]
fn an_index_that_names_a_missing_shard() {
    let folder = copy();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_fails(folder.path(), "x", &["model-00001-of-00002.safetensors", "there is no such file"]);
}

#[test]
fn sizes_that_make_no_model() {
    for (from, to, needle) in [
        ("\"n_head\": 4", "\"n_head\": 3", "n_embd is 128, and must be a multiple of n_head, which is 3"),
        (
            "\"n_kv_heads\": 2",
            "\"n_kv_heads\": 3",
            "n_head is 4, and must be a multiple of n_kv_heads, which is 3",
        ),
        ("\"n_embd\": 128", "\"n_embd\": 0", "n_embd is 0"),
        ("\"n_layer\": 6", "\"n_layer\": -6", "n_layer is -6"),
    ] {
        let folder = copy();
        replace(folder.path(), "config.json", from, to);
        assert_fails(folder.path(), "x", &["config.json of lille-130m", needle]);
    }
}

#[test]
fn a_value_of_another_type_is_named() {
    for (from, to, needle) in [
        ("\"n_embd\": 128", "\"n_embd\": \"128\"", "n_embd: invalid type: string \"128\""),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": \"x\"", "rope_theta: invalid type"),
        ("\"rope_theta\": 10000.0", "\"rope_theta\": 1e300", "rope_theta is 1e300"),
        ("\"layer_norm_eps\": 1e-05", "\"layer_norm_eps\": 1e-300", "layer_norm_eps is 1e-300"),
        ("\"n_layer\": 6,", "", "missing field `n_layer`"),
        ("\"eos_token_id\": 1023", "\"eos_token_id\": -1", "eos_token_id is -1"),
        ("\"n_layer\": 6", "\"hidden_act\": \"gelu\", \"n_layer\": 6", "hidden_act is \"gelu\""),
        (
            "\"n_layer\": 6",
            "\"rope_scaling\": {\"type\": \"ntk\"}, \"n_layer\": 6",
            "unknown rope_type \"ntk\"",
        ),
    ] {
        let folder = copy();
        replace(folder.path(), "config.json", from, to);
        assert_fails(folder.path(), "x", &[needle]);
    }
}

#[test]
fn an_empty_prompt() {
    assert_fails(demo(), "", &["the prompt is empty"]);
}

#[test]
fn a_prompt_beyond_the_context() {
    assert_fails(demo(), &"fox ".repeat(2000), &["tokens, and the model's context ends at 512"]);
}

#[test]
fn a_token_outside_the_vocabulary() {
    // A model of 320 tokens beside a tokenizer of 1024.
    let folder = tempfile::tempdir().unwrap();
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases/lille_q4");
    for (from, file) in [(&*small, "config.json"), (&*small, "model.safetensors"), (demo(), "tokenizer.json")]
    {
        fs::copy(from.join(file), folder.path().join(file)).unwrap();
    }
    assert_fails(folder.path(), "a little fox", &["at position 1 of the prompt", "vocabulary of 320"]);
}

#[test]
fn no_tokenizer() {
    let folder = copy();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_fails(folder.path(), "x", &["there is no", "tokenizer.json"]);
}

/// For files that users have in place of a checkpoint, `generate` says what to do.
#[test]
fn models_in_other_formats() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases");
    let adapters = cases.join("peft_lora_phi3/adapters");
    assert_fails(&adapters, "x", &["it holds adapters, and no model", "which is base, with --adapters"]);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.model"), "x").unwrap();
    assert_fails(folder.path(), "x", &["it holds a tokenizer, and no model"]);
    let file = folder.path().join("model.gguf");
    fs::write(&file, b"GGUF\x03\0\0\0").unwrap();
    assert_fails(
        folder.path(),
        "x",
        &["a folder with a GGUF file, and no checkpoint", "name the file: ", "/model.gguf"],
    );
    assert_fails(&file, "x", &["model.gguf: the file ends at byte 8, inside of the number of tensors"]);
}

#[test]
fn a_negative_temperature() {
    let output = run(&["generate", "--prompt", "x", "--temp", "-1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("temperature is -1"), "{}", text(&output.stderr));
}

#[test]
fn options_out_of_their_ranges() {
    let cases = [
        (&["--top-p", "1.5"][..], "top_p is 1.5, and must be a number from 0 to 1"),
        (&["--logit-bias", "9999999:1"], "the token id of a logit bias is 9999999, and must be below"),
        (&["--dry-multiplier", "1", "--dry-base", "0"], "dry base is 0, and must be a number from 1 on"),
    ];
    for (options, message) in cases {
        let output = run(&[&["generate", "--prompt", "x"], options].concat());
        assert_eq!(output.status.code(), Some(1), "{options:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
    for options in [&["--logit-bias", "3=1"][..], &["--top-logprobs", "3"], &["--dry-sequence-breaker", ""]] {
        let output = run(&[&["generate", "--prompt", "x"], options].concat());
        assert_eq!(output.status.code(), Some(2), "{options:?}");
    }
}

/// What `--json` prints with these options, for a prompt with repetitions.
fn report(options: &[&str]) -> serde_json::Value {
    let arguments = ["generate", "--prompt", "One day, one day, one day", "--max-tokens", "12", "--json"];
    let output = run(&[&arguments, options].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn options_of_sampling_reach_the_model() {
    let plain = report(&[]);
    let first = plain["tokens"][0].as_u64().unwrap();
    assert!(plain.get("alternatives").is_none());

    let alternatives = &report(&["--top-logprobs", "3"])["alternatives"];
    assert_eq!(alternatives.as_array().unwrap().len(), plain["tokens"].as_array().unwrap().len());
    assert_eq!(alternatives[0].as_array().unwrap().len(), 3);
    assert_eq!(alternatives[0][0][0], first);
    assert_eq!(alternatives[0][0][1], plain["logprobs"][0]);

    // Without the most probable token, the next one is generated.
    let without = report(&["--logit-bias", &format!("{first}:-inf")]);
    assert_eq!(without["tokens"][0], alternatives[0][1][0]);

    // With one token to sample from, there is no randomness.
    for filter in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        assert_eq!(report(&["--temp", "3", filter[0], filter[1]])["tokens"], plain["tokens"], "{filter:?}");
    }
    let penalties = [
        &["--repetition-penalty", "5"][..],
        &["--presence-penalty", "9"],
        &["--frequency-penalty", "9", "--frequency-context-size", "0"],
        &["--dry-multiplier", "50"],
        &["--temp", "1", "--seed", "1", "--xtc-probability", "1", "--xtc-threshold", "0"],
    ];
    for options in penalties {
        assert_ne!(report(options)["tokens"], plain["tokens"], "{options:?}");
    }
    // A comma as a sequence breaker shortens the repetitions.
    let dry = ["--dry-multiplier", "50", "--dry-sequence-breaker", ","];
    assert_ne!(report(&dry)["logprobs"], report(&dry[..2])["logprobs"]);
}

#[test]
fn arguments_that_make_no_sense() {
    for arguments in
        [&["generate"][..], &["generate", "--prompt", "x", "--max-tokens", "many"], &["dance"], &[]]
    {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// A folder of adapters that change nothing: their second matrix is zero.
fn adapters() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{ "fine_tune_type": "lora", "num_layers": 1,
        "lora_parameters": { "rank": 4, "scale": 10.0, "dropout": 0.0, "keys": ["attention.out_proj"] } }"#;
    fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    let a = mlx_rs::Array::ones::<f32>(&[128, 4]).unwrap();
    let b = mlx_rs::Array::zeros::<f32>(&[4, 128]).unwrap();
    let layer = "transformer.layers.5.attention.out_proj";
    let tensors = [(format!("{layer}.lora_a"), &a), (format!("{layer}.lora_b"), &b)];
    mlx_rs::Array::save_safetensors(tensors, None, folder.path().join("adapters.safetensors")).unwrap();
    folder
}

#[test]
fn adapters_are_loaded_or_named() {
    let folder = adapters();
    let path = folder.path().to_str().unwrap();
    let tell =
        |adapters: &[&str]| run(&[&["generate", "--prompt", "Once", "--max-tokens", "8"], adapters].concat());
    let told = tell(&["--adapters", path]);
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert_eq!(told.stdout, tell(&[]).stdout);
    fs::remove_file(folder.path().join("adapters.safetensors")).unwrap();
    let told = tell(&["--adapters", path]);
    assert_eq!(told.status.code(), Some(1));
    assert!(text(&told.stderr).contains("adapters.safetensors"), "{}", text(&told.stderr));
}

#[test]
fn demos_have_names() {
    let told = run(&["generate", "--model", "demo:lille-130m", "--prompt", "Once", "--max-tokens", "3"]);
    assert!(told.status.success(), "{}", text(&told.stderr));
    assert_eq!(told.stdout, run(&["generate", "--prompt", "Once", "--max-tokens", "3"]).stdout);
    assert!(text(&run(&["inspect", "demo:lille-130m"]).stdout).contains("lille-130m"));
    let unknown = run(&["generate", "--model", "demo:gpt", "--prompt", "x"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains(
        "there is no demo \"gpt\"; the demos are demo:lille-130m, demo:gemma3, demo:olmo3, demo:phi3, demo:gemma2, demo:smollm3"
    ));
}

/// A damaged copy of the demo in the cache is replaced.
#[test]
fn a_damaged_copy_of_a_demo_is_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let tell = || {
        let mut command = program();
        command.env("XDG_CACHE_HOME", cache.path());
        command.args(["generate", "--prompt", "Once", "--max-tokens", "3"]).output().unwrap()
    };
    let first = tell();
    let folder = fs::read_dir(cache.path().join("mlx-models")).unwrap().next().unwrap().unwrap().path();
    fs::write(folder.join("model.safetensors"), "broken").unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    let second = tell();
    assert!(second.status.success(), "{}", text(&second.stderr));
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(fs::read_dir(cache.path().join("mlx-models")).unwrap().count(), 1);
}
