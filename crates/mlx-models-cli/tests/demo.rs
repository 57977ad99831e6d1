//! The demo checkpoints generate the same tokens as with mlx-lm.
//!
//! The expected ids in `greedy.json` were written by `xtask/python/train_demo.py`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use mlx_models::CacheOptions;
use mlx_models::generate::{GenerateOptions, Sampling, Session, generate};
use mlx_models::tokenizer::Tokenizer;
use mlx_testing::with_cpu;
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    sampled: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    prompt_tokens: Vec<u32>,
    tokens: Vec<u32>,
    temp: Option<f64>,
    seed: Option<u64>,
}

fn demos() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn expected(demo: &Path) -> Expected {
    serde_json::from_str(&fs::read_to_string(demo.join("greedy.json")).unwrap()).unwrap()
}

fn check(demo: &Path, case: &Case, sampling: Sampling) {
    mlx_testing::stock_mlx();
    let tokenizer = Tokenizer::from_folder(demo).unwrap();
    assert_eq!(tokenizer.encode(&case.prompt).unwrap(), case.prompt_tokens);
    let mut model = mlx_models::load(demo).unwrap();
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let options = GenerateOptions { max_tokens: case.tokens.len(), sampling, ..GenerateOptions::new(&[]) };
    let stream = generate(&mut *model, &mut session, &case.prompt_tokens, options).unwrap();
    let found: Vec<u32> = stream.map(|token| token.unwrap().id).collect();
    assert_eq!(found, case.tokens, "{}: {}", demo.display(), case.prompt);
}

/// On other platforms MLX adds in another order, and in these texts the logits of the two most probable tokens may differ by at
/// most one step of bfloat16 (`smallest_margin`).
#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    ignore = "the last bit decides, on another device"
)]
fn greedy_tokens_are_those_of_mlx_lm() {
    with_cpu("the last bit decides", || {
        for demo in demos() {
            let cases = expected(&demo).cases;
            assert_eq!(cases.len(), 3);
            for case in cases {
                assert_eq!(case.tokens.len(), 200);
                check(&demo, &case, Sampling::default());
            }
        }
    });
}

/// Both programs take their random numbers from MLX.
#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_arch = "x86_64")),
    ignore = "the last bit decides, on another device"
)]
fn sampled_tokens_are_those_of_mlx_lm() {
    with_cpu("the last bit decides", || {
        for demo in demos() {
            for case in expected(&demo).sampled {
                let (temperature, seed) = (case.temp.unwrap(), case.seed.unwrap());
                check(&demo, &case, Sampling { temperature, seed, ..Sampling::default() });
            }
        }
    });
}

#[test]
fn demos_are_small() {
    for demo in demos() {
        let files = fs::read_dir(&demo).unwrap();
        let bytes: u64 = files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 2_500_000, "{}: {bytes}", demo.display());
    }
}
