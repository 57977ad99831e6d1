//! Options of the program and their effects.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mlx-models"))
        .args(arguments)
        // On the CPU: the demos are in bfloat16, where rounding decides between tokens that are equally likely, and a
        // GPU rounds several tokens in one call otherwise than one by one.
        .env("MLX_MODELS_DEVICE", "cpu")
        .env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .output()
        .unwrap()
}

/// Runs the program, which must succeed, and answers its standard output and standard error.
fn works(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let [out, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{arguments:?}: {errors}");
    (out, errors)
}

fn fails(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn report(arguments: &[&str]) -> Value {
    serde_json::from_str(&works(arguments).0).unwrap()
}

/// A copy of a demo.
fn copy(demo: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo").join(demo);
    for entry in fs::read_dir(files).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

const PROMPT: [&str; 4] = ["--prompt", "Once upon a time", "-m", "12"];

#[test]
fn zero_draft_tokens_mean_no_drafts() {
    let plain = report(&[&["generate", "--json"], &PROMPT[..]].concat());
    for with in [&["--prompt-lookup"][..], &["--draft-model", "demo:lille-130m"]] {
        let options = [&["generate", "--json", "--num-draft-tokens", "0"], with, &PROMPT[..]].concat();
        let found = report(&options);
        assert_eq!(found["tokens"], plain["tokens"]);
        assert!(found.get("guessed_tokens").is_none(), "{found}");
        let found = report(&[&["generate", "--json"], with, &PROMPT[..]].concat());
        assert!(found.get("guessed_tokens").is_some() && found["tokens"] == plain["tokens"], "{found}");
    }
}

/// A draft model may have a longer vocabulary, but its ids must stand for the same tokens.
#[test]
fn a_draft_is_compared_by_its_tokens() {
    let longer = copy("lille-130m");
    let file = longer.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.pop();
    fs::write(&file, tokenizer.to_string()).unwrap();
    let plain = report(&[&["generate", "--json"], &PROMPT[..]].concat());
    let draft = longer.path().to_str().unwrap();
    let found = report(&[&["generate", "--json", "--draft-model", draft], &PROMPT[..]].concat());
    assert_eq!(found["tokens"], plain["tokens"]);
    assert!(found["guessed_tokens"].as_u64().unwrap() > 5, "{found}");

    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> = vocabulary.keys().filter(|key| key.len() == 1).take(2).cloned().collect();
    let [first, second] = [0, 1].map(|i| vocabulary[&names[i]].clone());
    (vocabulary[&names[0]], vocabulary[&names[1]]) = (second, first);
    fs::write(&file, tokenizer.to_string()).unwrap();
    let error = fails(&[&["generate", "--draft-model", draft], &PROMPT[..]].concat());
    assert!(error.contains("the draft model has other tokens than the model"), "{error}");
}

/// The heads of Phi-3-mini have 96 features and those of the demo 32: groups of 64 fit neither.
#[test]
fn quantized_keys_and_values_have_groups_that_fit() {
    let options = |more: &[&'static str]| {
        let model = ["generate", "--model", "demo:phi3", "--kv-bits", "8", "--quantized-kv-start", "0"];
        [&model[..], &PROMPT[..], more].concat()
    };
    let (text, notes) = works(&options(&[]));
    assert!(notes.contains("--kv-group-size 32") && notes.contains("64"), "{notes}");
    let (given, silent) = works(&options(&["--kv-group-size", "32"]));
    assert!(!silent.contains("group"), "{silent}");
    assert_eq!(text, given);
    let error = fails(&options(&["--kv-group-size", "64"]));
    assert!(error.contains("--kv-group-size 32"), "{error}");
}

#[test]
fn line_breaks_in_a_prompt_may_be_written_out() {
    let tokens = |prompt: &str, more: &[&str]| {
        let options = ["generate", "--json", "-m", "3", "--prompt", prompt];
        report(&[&options[..], more].concat())["prompt_tokens"].as_u64().unwrap()
    };
    // A line break, as in mlx-lm, and not a backslash with a letter.
    assert_eq!(tokens("a\\nb\\tc", &[]), tokens("a\nb\tc", &[]));
    assert_eq!(tokens("a\\nb\\tc", &["--no-escape"]), tokens("a\nb\tc", &["--no-escape"]) + 2);
}

#[test]
fn a_note_says_that_a_template_is_applied() {
    let folder = copy("olmo3");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = ["generate", "--model", folder.path().to_str().unwrap()];
    let notes = works(&[&model[..], &PROMPT[..]].concat()).1;
    assert!(notes.contains("chat template applied; --ignore-chat-template continues the text"), "{notes}");
    let notes = works(&[&model[..], &PROMPT[..], &["--ignore-chat-template"]].concat()).1;
    assert!(!notes.contains("template"), "{notes}");
    let notes = works(&[&["generate"], &PROMPT[..]].concat()).1;
    assert!(!notes.contains("template"), "{notes}");
}

#[test]
fn options_are_below_the_right_heading_of_the_help() {
    for verb in ["generate", "chat"] {
        let help = works(&[verb, "--help"]).0;
        // The headings are the lines that are not indented, and each option has a line that begins with its name.
        let (mut heading, mut headings) = ("", std::collections::BTreeMap::new());
        for line in help.lines() {
            if line.ends_with(':') && !line.starts_with(' ') {
                heading = line;
            }
            let option = line.split_whitespace().find(|word| word.starts_with("--"));
            if let Some(option) = option.filter(|_| line.trim_start().starts_with('-')) {
                headings.entry(option.to_owned()).or_insert(heading);
            }
        }
        for option in ["--max-tokens", "--min-tokens", "--stop", "--extra-eos-token", "--ignore-eos"] {
            assert_eq!(headings.get(option), Some(&"Length and end of the text:"), "{verb} {option}");
        }
        assert_eq!(headings.get("--system-prompt"), Some(&"Chat template:"), "{verb}");
        assert_eq!(headings.get("--model"), Some(&"Options:"), "{verb}");
    }
}

#[test]
fn a_benchmark_needs_no_tokenizer() {
    let folder = copy("phi3");
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::remove_file(folder.path().join(file)).unwrap();
    }
    let model = folder.path().to_str().unwrap();
    let found = report(&["bench", "--model", model, "-p", "4", "-g", "3", "-n", "1", "--json"]);
    assert!(found["decode_tps"]["median"].as_f64().unwrap() > 0.0);
}

/// Each piece of a text begins with the beginning-of-text token.
#[test]
fn perplexity_says_how_it_was_measured() {
    let folder = copy("gemma3");
    // The token between the demo's stories becomes its beginning-of-text token.
    let edit = |file: &str, edit: &dyn Fn(&mut Value)| {
        let file = folder.path().join(file);
        let mut contents = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        edit(&mut contents);
        fs::write(&file, contents.to_string()).unwrap();
    };
    edit("tokenizer.json", &|tokenizer| {
        let (id, name) = (&tokenizer["added_tokens"][0]["id"], &tokenizer["added_tokens"][0]["content"]);
        let before =
            json!([{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let special = json!({name.as_str().unwrap(): {"id": name, "ids": [id], "tokens": [name]}});
        let pair = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]);
        tokenizer["post_processor"] =
            json!({"type": "TemplateProcessing", "single": before, "pair": pair, "special_tokens": special});
    });
    edit("tokenizer_config.json", &|config| config["bos_token"] = config["eos_token"].clone());
    let model = folder.path().to_str().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "The dog and the cat were friends. They played in the garden every day. ".repeat(9))
        .unwrap();
    let text = text.to_str().unwrap();
    let of = |more: &[&str]| {
        let options = ["perplexity", "--model", model, text, "--json"];
        report(&[&options[..], more].concat())
    };
    let [whole, pieces, without, overlapping] = [
        &["--sequence-length", "4096"][..],
        &["--sequence-length", "24"],
        &["--sequence-length", "24", "--no-bos"],
        &["--sequence-length", "24", "--stride", "12"],
    ]
    .map(of);
    let number = |found: &Value, key: &str| found[key].as_f64().unwrap();
    // Without this the test would prove nothing: the tokenizer adds the token.
    assert_eq!([&whole, &pieces, &overlapping].map(|found| found["bos"].as_bool()), [Some(true); 3]);
    assert_eq!((without["bos"].as_bool(), without["stride"].as_u64()), (Some(false), Some(0)));
    assert_eq!(
        (overlapping["stride"].as_u64(), overlapping["sequence_length"].as_u64()),
        (Some(12), Some(24))
    );
    // Every token of the text is scored. Without the beginning-of-text token, the first token of a piece is not.
    assert_eq!([&pieces, &overlapping].map(|found| found["tokens"].as_u64()), [whole["tokens"].as_u64(); 2]);
    assert!(number(&without, "tokens") < number(&whole, "tokens"));
    let order = [&whole, &overlapping, &pieces].map(|found| number(found, "perplexity"));
    assert!(order.is_sorted(), "{order:?}");
    let error = fails(&["perplexity", text, "--sequence-length", "8", "--stride", "8"]);
    assert!(error.contains("--stride 8 leaves no tokens to score"), "{error}");
}

#[test]
fn a_cache_of_mlx_lm_is_read_with_its_rotation() {
    let model = case("phi3_longrope_mlx_lm");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(model.join(file), folder.path().join(file)).unwrap();
    }
    // Any tokenizer works for this model of 128 tokens, whose text is not read.
    let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 1, "b": 2, "[UNK]": 0}, "unk_token": "[UNK]"}}"#;
    fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    let cache = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../mlx-models/tests/fixtures/mlx-lm-caches/longrope_9.safetensors");
    let options = [
        "generate",
        "--model",
        folder.path().to_str().unwrap(),
        "--prompt-cache-file",
        cache.to_str().unwrap(),
        "--prompt",
        "a",
        "-m",
        "2",
    ];
    let error = fails(&options);
    assert!(error.contains("--longrope mlx-lm"), "{error}");
    works(&[&options[..], &["--longrope", "mlx-lm"]].concat());
}

#[test]
fn a_damaged_model_says_so() {
    let folder = copy("lille-130m");
    let file = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // These bytes are not a number (NaN) in float32, bfloat16 and float16.
    bytes[header..].fill(0xff);
    fs::write(&file, bytes).unwrap();
    let model = folder.path().to_str().unwrap();
    let error = fails(&[&["generate", "--model", model], &PROMPT[..]].concat());
    assert!(error.contains("not finite numbers"), "{error}");
}

#[test]
fn tokens_that_are_all_forbidden_are_an_error() {
    let bias: Vec<String> = (0..1024).map(|id| format!("--logit-bias={id}:-inf")).collect();
    let bias: Vec<&str> = bias.iter().map(String::as_str).collect();
    let error = fails(&[&["generate", "--model", "demo:phi3"], &PROMPT[..], &bias].concat());
    assert!(error.contains("no token is possible"), "{error}");
}

/// Options take the largest numbers of tokens.
#[test]
fn the_largest_sizes_overflow_nothing() {
    let most = usize::MAX.to_string();
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.txt");
    fs::write(&text, "Once upon a time there was a dog.").unwrap();
    let text = text.to_str().unwrap();
    let perplexity = |length: &str| report(&["perplexity", text, "--json", "--sequence-length", length]);
    assert_eq!(perplexity(&most)["perplexity"], perplexity("512")["perplexity"]);
    let generate = |options: &[&str]| {
        report(&[&["generate", "--prompt", "Once", "--json", "--max-tokens", "3"], options].concat())
    };
    let plain = generate(&[]);
    for option in ["--prefill-step-size", "--repetition-context-size", "--top-k"] {
        assert_eq!(generate(&[option, &most])["text"], plain["text"], "{option}");
    }
    for option in ["--dry-penalty-last-n", "--dry-allowed-length"] {
        let options = [option, &most, "--dry-multiplier", "0.8"];
        assert_eq!(generate(&options)["text"], plain["text"], "{option}");
    }
    assert_eq!(generate(&["--prompt-lookup", "--num-draft-tokens", "256"])["text"], plain["text"]);
    let error = fails(&["generate", "--prompt", "Once", "--prompt-lookup", "--num-draft-tokens", "257"]);
    assert!(error.contains("--num-draft-tokens") && error.contains("256"), "{error}");
}
