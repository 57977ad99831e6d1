//! Runs every example on a demo, and checks that it did its work.
//!
//! `cargo test -p mlx-models --features architectures,generate,tokenizer` builds the examples before it runs this; with `--test examples` they must have been
//! built before.
#![cfg(all(feature = "architectures", feature = "generate", feature = "tokenizer"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::env::consts::EXE_SUFFIX;
use std::path::Path;
use std::process::Command;

use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm};
use mlx_testing::with_cpu;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../mlx-models-cli/demo/lille-130m");

/// Runs an example on the CPU, and returns what it prints.
fn run(name: &str) -> String {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().with_file_name("examples").join(format!("{name}{EXE_SUFFIX}"));
    assert!(
        program.is_file(),
        "build {}: cargo build -p mlx-models --features architectures,generate,tokenizer --examples",
        program.display()
    );
    // On the CPU: the demo is in bfloat16, where rounding decides between tokens that are equally likely.
    let output = Command::new(program).env("MLX_MODELS_DEVICE", "cpu").output().unwrap();
    let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name}: {errors}{said}");
    said
}

/// The text behind `name: ` in a line of its own.
fn line<'a>(said: &'a str, name: &str) -> &'a str {
    let found = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    found.unwrap_or_else(|| panic!("no line {name:?} in {said}"))
}

/// What the demo generates after a prompt on the CPU, without an example.
fn continued(model: &mut dyn CausalLm, prompt: &str, max_tokens: usize) -> String {
    let tokenizer = Tokenizer::from_folder(DEMO).unwrap();
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let options = GenerateOptions { max_tokens, ..GenerateOptions::new(tokenizer.stop_tokens()) };
    let prompt = tokenizer.encode(prompt).unwrap();
    let ids: Vec<u32> = with_cpu("the example that it is compared with runs on the CPU", || {
        let tokens = generate(model, &mut session, &prompt, options).unwrap();
        tokens.map(|token| token.unwrap().id).collect()
    });
    tokenizer.decode(&[prompt, ids].concat()).unwrap()
}

#[test]
fn every_example_has_a_test() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = std::fs::read_to_string(here.join("tests/examples.rs")).unwrap();
    let manifest = std::fs::read_to_string(here.join("Cargo.toml")).unwrap();
    for entry in std::fs::read_dir(here.join("examples")).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(tests.contains(&format!("run({name:?})")), "no test runs {name}");
        assert!(manifest.contains(&format!("name = {name:?}\nrequired-features")), "{name}");
    }
}

#[test]
fn stream_prints_a_whole_story() {
    let said = run("stream");
    let mut model = mlx_models::load(DEMO).unwrap();
    let story = continued(&mut *model, "Once upon a time", 200);
    assert_eq!(said, format!("{story}\nended by: Tokens(StopToken)\n"));
}

#[test]
fn sampling_depends_on_the_seed() {
    let said = run("sampling");
    assert_eq!(line(&said, "seed 7"), line(&said, "seed 7 again"));
    let different = ["greedy", "seed 7", "seed 8", "without repetition"].map(|name| line(&said, name));
    for (index, text) in different.iter().enumerate() {
        assert!(!text.is_empty() && !different[..index].contains(text), "{said}");
    }
    let (forbidden, text) = said.lines().last().unwrap().split_once(": ").unwrap();
    let word = forbidden.split('"').nth(1).unwrap();
    assert!(line(&said, "greedy").contains(word) && !text.contains(word), "{said}");
}

#[test]
fn chat_reads_only_what_is_new() {
    let said = run("chat");
    let counts: Vec<Vec<usize>> = (said.lines().filter(|line| line.starts_with('(')))
        .map(|line| line.split(['(', ' ']).filter_map(|word| word.parse().ok()).collect())
        .collect();
    let [first, second] = &counts[..] else { panic!("{said}") };
    assert_eq!(first[0], first[1]);
    // The first question and its answer are in the session.
    assert!(second[0] < second[1] / 2 && second[1] > first[1] + 20, "{said}");
    assert!(
        said.lines().filter(|line| line.starts_with("model: ")).all(|answer| answer.len() > 20),
        "{said}"
    );
}

#[test]
fn rows_of_a_batch_say_what_they_would_say_alone() {
    let said = run("batch");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines.len() == 9 && lines[8].ends_with(" steps"), "{said}");
    let mut model = mlx_models::load(DEMO).unwrap();
    let alone = continued(&mut *model, "Once upon a time", 10);
    assert_eq!(lines[0], alone.replace('\n', " "));
    let alone = continued(&mut *model, "At the edge of the forest", 22);
    assert_eq!(lines[6], alone.replace('\n', " "));
}

#[test]
fn speculative_decoding_does_not_change_the_text() {
    let said = run("speculative");
    assert_eq!(line(&said, "plain"), line(&said, "with a draft model"));
    let drafted = |line: &str| line.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap();
    assert!(drafted(said.lines().nth(2).unwrap()) > 20, "{said}");
    assert!(drafted(line(&said, "by looking back")) > 20, "{said}");
}

#[test]
fn a_saved_cache_continues_as_the_kept_one() {
    let said = run("save_cache");
    assert_eq!(line(&said, "kept"), line(&said, "loaded"));
    assert!(said.contains("loaded a session of 42 tokens"), "{said}");
}

#[test]
fn hidden_states_of_similar_sentences_are_similar() {
    let said = run("hidden_states");
    let cosine = |pair| line(&said, pair).parse::<f64>().unwrap();
    approx::assert_abs_diff_eq!(cosine("0 and 0"), 1.0, epsilon = 1e-2);
    assert!(cosine("0 and 1") > 0.8, "{said}");
    assert!(cosine("0 and 1") > cosine("0 and 2") + 0.2, "{said}");
}

#[test]
fn the_logits_hook_forces_one_of_three_words() {
    let said = run("logits_hook");
    let words: Vec<&str> = said.lines().map(|line| line.split_once(": ").unwrap().1).collect();
    assert_eq!(words.len(), 3);
    assert!(words.iter().all(|word| ["castle", "river", "mountain"].contains(word)), "{said}");
}

#[test]
fn lora_learns_a_sentence() {
    let said = run("lora");
    let losses: Vec<f64> = (said.lines().filter_map(|line| line.split_once("loss ")))
        .map(|(_, loss)| loss.parse().unwrap())
        .collect();
    assert!(losses[0] > 2.0 && losses[losses.len() - 1] < 0.5, "{said}");
    // The model that was loaded with the saved adapter.
    assert_eq!(
        said.lines().last(),
        Some("Once upon a time there was a little dragon who counted the stars.")
    );
}

#[test]
fn a_model_of_ones_own_reads_tokens_alike_together_and_one_by_one() {
    let said = run("own_model");
    let difference = said.split("largest difference ").nth(1).unwrap().lines().next().unwrap();
    assert!(difference.parse::<f64>().unwrap() < 1e-4, "{said}");
}

#[test]
fn tasks_of_tokio_get_the_answers_to_their_requests() {
    let said = run("async_tokio");
    let mut model = mlx_models::load(DEMO).unwrap();
    let mut expected = String::new();
    for (prompt, max_tokens) in [("Once upon a time", 20), ("In a little cottage", 12)] {
        expected += &(continued(&mut *model, prompt, max_tokens) + "\n");
    }
    assert_eq!(said, expected);
}
