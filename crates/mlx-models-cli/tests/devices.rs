//! The choice of the device, by option and by environment variable.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::{Command, Output};

use serde_json::Value;

/// Runs the program with this value of the environment variable.
fn run(variable: Option<&str>, arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_mlx-models"));
    program.args(arguments).env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    match variable {
        Some(value) => program.env("MLX_MODELS_DEVICE", value),
        None => program.env_remove("MLX_MODELS_DEVICE"),
    };
    program.output().unwrap()
}

/// The device that `inspect` shows, and why.
fn inspected(variable: Option<&str>, options: &[&str]) -> (String, String) {
    let output = run(variable, &[&["inspect", "demo:lille-130m", "--json"], options].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |key: &str| found["device"][key].as_str().unwrap().to_owned();
    (text("kind"), text("reason"))
}

/// The exit status and the error.
fn refused(variable: Option<&str>, arguments: &[&str]) -> (i32, String) {
    let output = run(variable, arguments);
    assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_option_wins_over_the_variable() {
    let cpu = |reason: &str| ("cpu".to_owned(), reason.to_owned());
    assert_eq!(inspected(None, &["--device", "cpu"]), cpu("it was chosen"));
    assert_eq!(inspected(Some("cpu"), &[]), cpu("MLX_MODELS_DEVICE is cpu"));
    for variable in ["gpu", "auto", "tpu"] {
        assert_eq!(inspected(Some(variable), &["--device", "cpu"]), cpu("it was chosen"));
    }
    let auto = inspected(None, &[]);
    assert_eq!(inspected(Some("auto"), &[]), auto);
    assert_eq!(inspected(Some(""), &[]), auto);
    assert_eq!(inspected(Some("cpu"), &["--device", "auto"]), auto);
}

#[test]
fn wrong_names_are_refused() {
    let (status, said) = refused(None, &["inspect", "demo:lille-130m", "--device", "tpu"]);
    assert!(status == 2 && said.contains("'tpu'") && said.contains("auto, gpu, cpu"), "{said}");
    let (status, said) = refused(Some("tpu"), &["inspect", "demo:lille-130m"]);
    assert!(
        status == 2 && said.contains("MLX_MODELS_DEVICE is \"tpu\", and must be auto, gpu or cpu"),
        "{said}"
    );
    // No model runs, so the device does not matter.
    assert!(run(Some("tpu"), &["completions", "bash"]).status.success());
}

/// The subcommands that run a model, with what they need.
const RUN_A_MODEL: [&[&str]; 7] = [
    &["generate", "--prompt", "x", "-m", "1"],
    &["chat"],
    &["cache-prompt", "--prompt", "x", "--prompt-cache-file", "/nowhere/cache.safetensors"],
    &["perplexity", "/nowhere/text"],
    &["bench", "-p", "1", "-g", "2", "-n", "1"],
    &["convert", "--model", "demo:lille-130m", "--out", "/nowhere/model"],
    &["inspect", "demo:lille-130m"],
];

#[test]
fn every_subcommand_refuses_a_gpu_that_is_not_there() {
    let (kind, why) = inspected(None, &[]);
    if kind == "gpu" {
        assert_eq!(why, "there is one");
        assert_eq!(inspected(None, &["--device", "gpu"]), ("gpu".to_owned(), "it was chosen".to_owned()));
        return;
    }
    for arguments in RUN_A_MODEL {
        for (variable, option) in [(None, &["--device", "gpu"][..]), (Some("gpu"), &[])] {
            let (status, said) = refused(variable, &[arguments, option].concat());
            let expected =
                format!("models cannot run on a GPU, because {why}; choose the device cpu or auto");
            assert!(status == 1 && said.contains(&expected), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn the_figures_name_the_device() {
    let arguments = ["generate", "--prompt", "Once upon a time", "-m", "2", "--device", "cpu"];
    let said = String::from_utf8(run(None, &arguments).stderr).unwrap();
    assert!(said.contains("device: CPU, because it was chosen\n"), "{said}");
    let table = String::from_utf8(run(Some("cpu"), &["inspect", "demo:phi3"]).stdout).unwrap();
    assert!(table.contains("device                CPU, because MLX_MODELS_DEVICE is cpu\n"), "{table}");
}

#[test]
fn completions_and_the_manual_page_have_the_option() {
    for arguments in [&["completions", "bash"][..], &["man"]] {
        let said = String::from_utf8(run(None, arguments).stdout).unwrap().replace('\\', "");
        assert!(said.matches("--device").count() > 8, "{arguments:?}");
    }
}
