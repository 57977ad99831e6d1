//! A loaded model of any architecture works on the thread that it is sent to.
#![cfg(all(feature = "architectures", feature = "generate"))]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::thread;

use mlx_models::generate::{GenerateError, GenerateOptions, Session, generate};
use mlx_models::{CacheOptions, CausalLm, LoadOptions};

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/cases").join(name)
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mlx-models-cli/demo/lille-130m")
}

fn tokens(mut model: Box<dyn CausalLm>) -> Result<Vec<u32>, GenerateError> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: 4, ..GenerateOptions::new(&[]) };
    let stream = generate(&mut *model, &mut session, &[1, 2, 3], options)?;
    stream.map(|token| token.map(|token| token.id)).collect()
}

#[test]
fn models_that_were_loaded_on_another_thread() {
    let cases =
        ["phi3_longrope_mlx_lm", "phi3_q4_whole", "gemma3_linear8_bf16", "hf_olmo3_yarn", "qwen3_yarn"];
    for folder in cases.map(case).into_iter().chain([demo()]) {
        let load = {
            let folder = folder.clone();
            move || mlx_models::load(&folder).unwrap()
        };
        let expected = tokens(load()).unwrap();
        let model = thread::spawn(load.clone()).join().unwrap();
        assert_eq!(tokens(model).unwrap(), expected, "{}", folder.display());
        let model = load();
        assert_eq!(thread::spawn(move || tokens(model).unwrap()).join().unwrap(), expected);
    }
}

#[test]
fn models_with_adapters_that_were_loaded_on_another_thread() {
    let name = "lora_phi3_q4";
    let options = || LoadOptions { adapters: Some(case(name).join("adapters")), ..LoadOptions::default() };
    let expected = tokens(mlx_models::load_with(case(name), &options()).unwrap()).unwrap();
    let model = thread::spawn(move || mlx_models::load_with(case(name), &options()).unwrap()).join().unwrap();
    assert_eq!(tokens(model).unwrap(), expected);
}

/// Only the thread that loaded a model can read weights that are still on disk, and the error says so.
#[test]
fn a_lazy_model_belongs_to_its_thread() {
    let options = LoadOptions { lazy: true, ..LoadOptions::default() };
    let model = mlx_models::load_with(demo(), &options).unwrap();
    let error = thread::spawn(move || tokens(model).unwrap_err().to_string()).join().unwrap();
    assert!(error.contains("unless it was loaded with `lazy`"), "{error}");
    let model = mlx_models::load_with(demo(), &options).unwrap();
    assert_eq!(tokens(model).unwrap(), tokens(mlx_models::load(demo()).unwrap()).unwrap());
}
