//! `cargo xtask speed`: how fast models run on the CPU, beside mlx-lm and llama.cpp, in one run on one machine.
//!
//! The models have random weights in the shape of real ones. Programs take turns, each turn in a process of its own, so
//! that a machine that becomes slower becomes slower for all. A turn during which other programs used the processor is
//! taken again. `docs/performance.md` says what the figures mean.

mod machine;
mod measure;
mod report;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::interrupt;
use crate::python::{self, Environment};
use crate::random_model::{self, Shape, Width};

/// Turns off our kernels: MLX as it comes.
const KERNELS: &str = "MLX_CPU_KERNELS";
/// Has our kernels say on standard error where the time goes.
const PROFILE: &str = "MLX_CPU_PROFILE";
/// A part of the processor's time that others may use during a turn.
const LEAST_OTHERS: f64 = 0.05;
/// Size of the matrices that are multiplied, and how often in a turn.
const MATRIX: usize = 1024;
const PRODUCTS: usize = 20;
/// Where models are kept below the target folder. The number changes with what [`random_model`] writes.
const MODELS: &str = "speed/models-1";

/// Arguments of `cargo xtask speed`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which models; `tiny` is measured at bf16 and the first prompt only
    #[arg(long = "shape", value_enum, value_name = "SHAPE", num_args = 1.., default_values = ["gemma3-270m", "lille-130m", "tiny"])]
    shapes: Vec<Shape>,
    /// Which widths of weights
    #[arg(long = "width", value_enum, value_name = "WIDTH", num_args = 1.., default_values = ["bf16", "8-bit", "4-bit"])]
    widths: Vec<Width>,
    /// Lengths of prompts
    #[arg(long, value_name = "P", num_args = 1.., default_values_t = [128, 1024], value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Vec<u32>,
    /// Greedy tokens after the prompt
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// Which programs; the tiny model is measured with `stock`, too
    #[arg(long = "program", value_enum, value_name = "PROGRAM", num_args = 1.., default_values = ["mlx-models", "llama.cpp", "mlx-lm"])]
    programs: Vec<Program>,
    /// How often each program takes its turn; those that are ten to a hundred times slower take one
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// The longest prompt for the slow programs, whose rate is taken for that of longer ones
    #[arg(long, value_name = "P", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    slow_prompt_tokens: u32,
    /// Tokens that the slow programs generate
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    slow_gen_tokens: u32,
    /// How often a turn is taken again that others have disturbed
    #[arg(long, value_name = "K", default_value_t = 3)]
    patience: u32,
    /// Where the models are, or are made; without it, below the target folder
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Write one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Only measure this, here, and print what was found as JSON
    #[arg(long, value_enum, hide = true)]
    one: Option<Task>,
    /// The checkpoint folder of `--one tokens`
    #[arg(long, value_name = "DIR", hide = true)]
    model: Option<PathBuf>,
    /// Tokens of the prompt that `--one tokens` warms up with
    #[arg(long, value_name = "P", hide = true)]
    warm_up_tokens: Option<u32>,
}

/// What one process of ours measures.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Task {
    Tokens,
    Matmul,
    Bandwidth,
}

/// Who runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Program {
    /// This project
    MlxModels,
    /// This project on MLX's own code for the CPU
    Stock,
    #[value(name = "llama.cpp")]
    LlamaCpp,
    MlxLm,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::MlxModels => "mlx-models",
            Self::Stock => "stock",
            Self::LlamaCpp => "llama.cpp",
            Self::MlxLm => "mlx-lm",
        }
    }

    fn is_slow(self, shape: Shape) -> bool {
        matches!(self, Self::Stock | Self::MlxLm) && shape != Shape::Tiny
    }
}

/// What a process that runs a model prints: ours, `bench_llama_cpp.py` and `bench_tokens_mlx_lm.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tokens {
    load_s: f64,
    /// From the start of the prompt to the first token.
    prefill_s: f64,
    /// Of each token after the first.
    token_s: Vec<f64>,
    tokens: Vec<u32>,
    version: String,
}

/// What a process that multiplies matrices prints: ours and `bench_matmul.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Products {
    seconds: Vec<f64>,
    version: String,
}

/// What a process that reads memory prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bandwidth {
    bytes_per_second: Vec<f64>,
}

/// What a process found, and the part of the processor's time that others used meanwhile.
#[derive(Debug, Clone, Serialize)]
struct Turn<T> {
    #[serde(flatten)]
    found: T,
    others: Option<f64>,
}

/// One program on one model, by its turns.
#[derive(Debug, Clone)]
struct Row {
    shape: Shape,
    width: Width,
    /// Of the comparison; a slow program may have read fewer.
    prompt_tokens: u32,
    program: Program,
    measured_prompt_tokens: u32,
    /// Bytes of all weights, each of which a token reads once: the embedding is the head as well.
    weight_bytes: u64,
    turns: Vec<Turn<Tokens>>,
}

/// Everything that was measured.
#[derive(Debug)]
struct Measurements {
    cores: usize,
    bandwidth: Vec<Turn<Bandwidth>>,
    rows: Vec<Row>,
    matmul: BTreeMap<&'static str, Vec<Turn<Products>>>,
}

/// Where a model of one shape and width is, and how large.
struct Model {
    shape: Shape,
    width: Width,
    folder: PathBuf,
    gguf: PathBuf,
}

/// The Python interpreters that the run needs.
struct Pythons {
    mlx_lm: PathBuf,
    llama_cpp: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    if let Some(task) = arguments.one {
        return one(task, arguments);
    }
    if cfg!(debug_assertions) {
        crate::complain("note: not an optimized build; use `cargo run --release --package xtask -- speed`");
    }
    interrupt::install()?;
    let with_llama_cpp = arguments.programs.contains(&Program::LlamaCpp);
    let pythons = Pythons {
        mlx_lm: python::interpreter(Environment::MlxLm)?,
        llama_cpp: with_llama_cpp.then(|| python::interpreter(Environment::LlamaCpp)).transpose()?,
    };
    let models = models(arguments, &pythons)?;
    let mut measurements = Measurements {
        cores: machine::cores(),
        bandwidth: Vec::new(),
        rows: rows(arguments, &models)?,
        matmul: BTreeMap::new(),
    };
    for number in 1..=arguments.turns {
        round(number, arguments, &models, &pythons, &mut measurements)?;
    }
    share_slow_turns(&mut measurements.rows);

    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer(&mut out, &report::json(&measurements))?;
        writeln!(out)?;
    } else {
        report::text(&measurements, &mut out)?;
    }
    Ok(true)
}

/// One process's measurement, on standard output.
fn one(task: Task, arguments: &Arguments) -> io::Result<bool> {
    let found = match task {
        Task::Tokens => {
            let folder = arguments.model.as_ref().ok_or_else(|| io::Error::other("--model is needed"))?;
            let prompt = arguments.prompt_tokens.first().copied().unwrap_or(1);
            let warm_up = arguments.warm_up_tokens.unwrap_or(prompt);
            let found = measure::tokens(folder, prompt, warm_up, arguments.gen_tokens);
            serde_json::to_string(&found.map_err(io::Error::other)?)?
        }
        Task::Matmul => {
            serde_json::to_string(&measure::products(MATRIX as i32, PRODUCTS).map_err(io::Error::other)?)?
        }
        Task::Bandwidth => serde_json::to_string(&measure::bandwidth(machine::cores()))?,
    };
    writeln!(io::stdout(), "{found}")?;
    Ok(true)
}

/// The models, which are made where they are not there yet.
fn models(arguments: &Arguments, pythons: &Pythons) -> io::Result<Vec<Model>> {
    let root = match &arguments.models {
        Some(folder) => std::path::absolute(folder)?,
        None => crate::fixtures::target_folder(&crate::root())?.join(MODELS),
    };
    let mut models = Vec::new();
    for &shape in &arguments.shapes {
        let plain = root.join(shape.name());
        if !plain.exists() {
            crate::complain(&format!("making {}", plain.display()));
            random_model::write(shape, random_model::SEED, &plain)?;
        }
        let widths: &[Width] = if shape == Shape::Tiny { &[Width::Bf16] } else { &arguments.widths };
        for &width in widths {
            let folder = root.join(format!("{}{}", shape.name(), width.suffix()));
            if !folder.exists() {
                crate::complain(&format!("making {}", folder.display()));
                random_model::quantize(&plain, width, &folder)?;
            }
            let gguf = root.join(format!("gguf/{}-{}.gguf", shape.name(), gguf_type(width)));
            if let Some(python) = pythons.llama_cpp.as_ref().filter(|_| !gguf.exists()) {
                crate::complain(&format!("making {}", gguf.display()));
                let mut script = python::script(python, "write_gguf.py");
                script.arg("--model").arg(&plain).args(["--type", gguf_type(width), "--out"]).arg(&gguf);
                output(script, "write_gguf.py")?;
            }
            models.push(Model { shape, width, folder, gguf });
        }
    }
    Ok(models)
}

/// llama.cpp's type of weights beside a width of ours.
fn gguf_type(width: Width) -> &'static str {
    match width {
        Width::Bf16 => "BF16",
        Width::Eight => "Q8_0",
        Width::Four => "Q4_0",
    }
}

/// The rows of the report, without turns.
fn rows(arguments: &Arguments, models: &[Model]) -> io::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for model in models {
        let prompts = match model.shape {
            Shape::Tiny => arguments.prompt_tokens.get(..1).unwrap_or_default(),
            Shape::Gemma3 | Shape::Lille => &arguments.prompt_tokens,
        };
        let mut programs = arguments.programs.clone();
        if model.shape == Shape::Tiny && !programs.contains(&Program::Stock) {
            programs.push(Program::Stock);
        }
        programs.sort();
        for &prompt_tokens in prompts {
            for &program in &programs {
                let file = match program {
                    Program::LlamaCpp => model.gguf.clone(),
                    _ => model.folder.join("model.safetensors"),
                };
                let slow = program.is_slow(model.shape);
                rows.push(Row {
                    shape: model.shape,
                    width: model.width,
                    prompt_tokens,
                    program,
                    measured_prompt_tokens: if slow {
                        prompt_tokens.min(arguments.slow_prompt_tokens)
                    } else {
                        prompt_tokens
                    },
                    // The header is a few kilobytes.
                    weight_bytes: std::fs::metadata(&file)?.len(),
                    turns: Vec::new(),
                });
            }
        }
    }
    Ok(rows)
}

/// Every program once.
fn round(
    number: u32,
    arguments: &Arguments,
    models: &[Model],
    pythons: &Pythons,
    measurements: &mut Measurements,
) -> io::Result<()> {
    let say = |what: &str| crate::complain(&format!("turn {number} of {}: {what}", arguments.turns));
    let Measurements { bandwidth, rows, matmul, .. } = measurements;
    say("memory");
    bandwidth.push(turn(arguments, || Ok((ours(Task::Bandwidth)?, "this program")))?);
    say("matrices");
    let products = turn(arguments, || Ok((ours(Task::Matmul)?, "this program")))?;
    matmul.entry(Program::MlxModels.name()).or_default().push(products);
    let numpy = || {
        let mut script = python::script(&pythons.mlx_lm, "bench_matmul.py");
        script.args(["--size", &MATRIX.to_string(), "--products", &PRODUCTS.to_string()]);
        Ok((script, "bench_matmul.py"))
    };
    matmul.entry("OpenBLAS").or_default().push(turn(arguments, numpy)?);

    let mut measured_slowly = Vec::new();
    for row in rows {
        let same = |model: &&Model| (model.shape, model.width) == (row.shape, row.width);
        let Some(model) = models.iter().find(same) else { continue };
        if row.program.is_slow(row.shape) {
            let key = (row.shape, row.width, row.program, row.measured_prompt_tokens);
            if number > 1 || measured_slowly.contains(&key) {
                continue;
            }
            measured_slowly.push(key);
        }
        let (shape, width, program) = (row.shape.name(), row.width.name(), row.program.name());
        say(&format!("{shape} {width} prompt {}: {program}", row.prompt_tokens));
        let command = || run_model(row.program, model, row.measured_prompt_tokens, arguments, pythons);
        let turn = turn(arguments, command)?;
        row.turns.push(turn);
    }
    Ok(())
}

/// What one program does with a model.
fn run_model(
    program: Program,
    model: &Model,
    prompt_tokens: u32,
    arguments: &Arguments,
    pythons: &Pythons,
) -> io::Result<(Command, &'static str)> {
    let (mut command, name) = match program {
        Program::MlxModels => (ours(Task::Tokens)?, "this program"),
        Program::Stock => {
            let mut command = ours(Task::Tokens)?;
            command.env(KERNELS, "off");
            (command, "this program")
        }
        Program::MlxLm => {
            (python::script(&pythons.mlx_lm, "bench_tokens_mlx_lm.py"), "bench_tokens_mlx_lm.py")
        }
        Program::LlamaCpp => {
            let python = pythons.llama_cpp.as_deref().unwrap_or(Path::new("python3"));
            (python::script(python, "bench_llama_cpp.py"), "bench_llama_cpp.py")
        }
    };
    let slow = program.is_slow(model.shape);
    let gen_tokens = if slow { arguments.slow_gen_tokens } else { arguments.gen_tokens };
    // Enough to have everything compiled and loaded, where a whole prompt takes a minute.
    let warm_up = if slow { prompt_tokens.min(2) } else { prompt_tokens };
    command
        .arg("--model")
        .arg(if program == Program::LlamaCpp { &model.gguf } else { &model.folder })
        .args(["--prompt-tokens", &prompt_tokens.to_string()])
        .args(["--gen-tokens", &gen_tokens.to_string()])
        .args(["--warm-up-tokens", &warm_up.to_string()]);
    Ok((command, name))
}

/// This program again, for one task.
fn ours(task: Task) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let task = match task {
        Task::Tokens => "tokens",
        Task::Matmul => "matmul",
        Task::Bandwidth => "bandwidth",
    };
    command.args(["speed", "--one", task]).env_remove(KERNELS);
    Ok(command)
}

/// A turn, taken again while others disturb it: the least disturbed counts.
fn turn<T: DeserializeOwned>(
    arguments: &Arguments,
    command: impl Fn() -> io::Result<(Command, &'static str)>,
) -> io::Result<Turn<T>> {
    let mut best: Option<Turn<T>> = None;
    for attempt in 0..=arguments.patience {
        let before = machine::Usage::now();
        let (command, name) = command()?;
        let found = serde_json::from_slice(&output(command, name)?)?;
        let others = before.and_then(|before| Some(machine::Usage::now()?.others_since(&before)));
        let better = |best: &Turn<T>| others.unwrap_or(0.0) < best.others.unwrap_or(0.0);
        if best.as_ref().is_none_or(better) {
            best = Some(Turn { found, others });
        }
        if others.is_none_or(|others| others <= LEAST_OTHERS) || attempt == arguments.patience {
            break;
        }
        let others = 100.0 * others.unwrap_or(0.0);
        crate::complain(&format!("  others used {others:.0} % of the processor; again"));
        std::thread::sleep(Duration::from_secs(2));
    }
    best.ok_or_else(|| io::Error::other("no turn was taken"))
}

/// What a program prints.
fn output(mut command: Command, name: &str) -> io::Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    interrupt::check()?;
    if !output.status.success() {
        let said = python::last_lines(&output.stderr);
        return Err(io::Error::other(format!("{name} failed ({}):\n{said}", output.status)));
    }
    if std::env::var_os(PROFILE).is_some() && !output.stderr.is_empty() {
        crate::complain(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// Gives rows of a slow program the turns of the row that stands for them.
fn share_slow_turns(rows: &mut [Row]) {
    for index in 0..rows.len() {
        if rows[index].turns.is_empty() {
            let key = |row: &Row| (row.shape, row.width, row.program, row.measured_prompt_tokens);
            let twin = rows.iter().find(|row| key(row) == key(&rows[index]) && !row.turns.is_empty());
            rows[index].turns = twin.map(|row| row.turns.clone()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_turn_stands_for_every_prompt_that_it_was_shortened_from() {
        let row = |width, prompt_tokens, measured_prompt_tokens, others: &[f64]| {
            let found = |&others: &f64| {
                let version = String::new();
                let found =
                    Tokens { load_s: 0.0, prefill_s: 1.0, token_s: vec![1.0], tokens: vec![], version };
                Turn { found, others: Some(others) }
            };
            let (shape, program) = (Shape::Gemma3, Program::MlxLm);
            let turns = others.iter().map(found).collect();
            Row { shape, width, prompt_tokens, program, measured_prompt_tokens, weight_bytes: 1, turns }
        };
        let mut rows = [
            row(Width::Bf16, 128, 32, &[0.1]),
            row(Width::Bf16, 1024, 32, &[]),
            row(Width::Bf16, 16, 16, &[]),
            row(Width::Four, 1024, 32, &[]),
        ];
        share_slow_turns(&mut rows);
        assert_eq!(rows.map(|row| row.turns.len()), [1, 1, 0, 0]);
    }

    #[test]
    fn only_stock_kernels_on_real_models_are_slow() {
        assert!(Program::MlxLm.is_slow(Shape::Gemma3) && Program::Stock.is_slow(Shape::Lille));
        assert!(!Program::MlxLm.is_slow(Shape::Tiny) && !Program::LlamaCpp.is_slow(Shape::Gemma3));
    }
}
