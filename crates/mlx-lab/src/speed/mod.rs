//! `cargo xtask speed`: compares the speed of models on the CPU with mlx-lm and llama.cpp, in one call on one
//! machine.
//!
//! The models have random weights in the shape of real models. The programs take turns, and each turn is a
//! separate process, so a machine that slows down affects all of them. A turn during which other programs used
//! the processor is repeated. `docs/performance.md` explains the figures.

mod machine;
mod measure;
mod report;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use workspace::python::{self, Environment};

use crate::interrupt;
use crate::random_model::{self, Shape, Width};

/// The value that turns our kernels off and selects stock MLX.
const KERNELS: &str = "MLX_CPU_KERNELS";
/// The variable that makes our kernels report on standard error where the time goes.
const PROFILE: &str = "MLX_CPU_PROFILE";
/// The share of the processor's time that other processes may use during a turn.
const LEAST_OTHERS: f64 = 0.05;
/// How often a disturbed turn is repeated, unless the user says otherwise.
const PATIENCE: u32 = 3;
/// The size of the matrices that are multiplied, and the number of products in a turn.
const MATRIX: usize = 1024;
const PRODUCTS: usize = 20;
/// The folder of the models below the target folder. The number changes when [`random_model`] writes other
/// models.
const MODELS: &str = "speed/models-1";

/// Arguments of `cargo xtask speed`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The shapes of the models; `tiny` is measured at bf16 and the first prompt length only
    #[arg(long = "shape", value_enum, value_name = "SHAPE", num_args = 1.., default_values = ["gemma3-270m", "lille-130m", "tiny"])]
    shapes: Vec<Shape>,
    /// The widths of the weights
    #[arg(long = "width", value_enum, value_name = "WIDTH", num_args = 1.., default_values = ["bf16", "8-bit", "4-bit"])]
    widths: Vec<Width>,
    /// The lengths of the prompts, in tokens
    #[arg(long, value_name = "P", num_args = 1.., default_values_t = [128, 1024], value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: Vec<u32>,
    /// The number of greedy tokens after the prompt
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: u32,
    /// The programs; the tiny model is also measured with `stock`
    #[arg(long = "program", value_enum, value_name = "PROGRAM", num_args = 1.., default_values = ["mlx-models", "llama.cpp", "mlx-lm"])]
    programs: Vec<Program>,
    /// The number of turns of each program; programs that are ten to a hundred times slower get one
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// The longest prompt for the slow programs; their rate is also used for longer prompts
    #[arg(long, value_name = "P", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    slow_prompt_tokens: u32,
    /// The number of tokens that the slow programs generate
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..))]
    slow_gen_tokens: u32,
    /// How often a turn is repeated if other processes disturbed it
    #[arg(long, value_name = "K", default_value_t = PATIENCE)]
    patience: u32,
    /// The folder of the models, which are made if needed; the default is below the target folder
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Write one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Run only this measurement, in this process, and print it as JSON
    #[arg(long, value_enum, hide = true)]
    one: Option<Task>,
    /// The checkpoint folder for `--one tokens`
    #[arg(long, value_name = "DIR", hide = true)]
    model: Option<PathBuf>,
    /// The number of prompt tokens in the warm-up of `--one tokens`
    #[arg(long, value_name = "P", hide = true)]
    warm_up_tokens: Option<u32>,
}

/// A measurement that runs in a process of ours.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Task {
    Tokens,
    Matmul,
    Bandwidth,
}

/// A program that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Program {
    /// This project
    MlxModels,
    /// This project with MLX's own code for the CPU
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

/// The output of a process that runs a model: ours, `bench_llama_cpp.py` or `bench_tokens_mlx_lm.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tokens {
    /// The seconds from the start of loading the model until it can read tokens.
    pub(crate) load_s: f64,
    /// The seconds from the start of the prompt to the first token.
    pub(crate) prefill_s: f64,
    /// The seconds of each token after the first.
    pub(crate) token_s: Vec<f64>,
    tokens: Vec<u32>,
    version: String,
    /// The most memory that the process had, in bytes, where its program measures it.
    #[serde(default)]
    pub(crate) peak_memory_bytes: Option<u64>,
    /// The most memory of arrays, in bytes, as MLX counts it.
    #[serde(default)]
    pub(crate) peak_array_bytes: Option<u64>,
}

/// The output of a process that multiplies matrices: ours or `bench_matmul.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Products {
    seconds: Vec<f64>,
    version: String,
}

/// The output of a process that reads memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Bandwidth {
    bytes_per_second: Vec<f64>,
}

/// The output of a process, and the share of the processor's time that other processes used meanwhile.
#[derive(Debug, Clone, Serialize)]
struct Turn<T> {
    #[serde(flatten)]
    found: T,
    others: Option<f64>,
}

/// One program on one model, with its turns.
#[derive(Debug, Clone)]
struct Row {
    shape: Shape,
    width: Width,
    /// The prompt length of this row; a slow program may have read fewer tokens.
    prompt_tokens: u32,
    program: Program,
    measured_prompt_tokens: u32,
    /// The bytes of all weights. A token reads each of them once, because the embedding is also the head.
    weight_bytes: u64,
    turns: Vec<Turn<Tokens>>,
}

/// All measurements.
#[derive(Debug)]
struct Measurements {
    cores: usize,
    bandwidth: Vec<Turn<Bandwidth>>,
    rows: Vec<Row>,
    matmul: BTreeMap<&'static str, Vec<Turn<Products>>>,
}

/// The folder of a model of one shape and width, and its size.
struct Model {
    shape: Shape,
    width: Width,
    folder: PathBuf,
    gguf: PathBuf,
}

/// The Python interpreters that the command needs.
struct Pythons {
    mlx_lm: PathBuf,
    llama_cpp: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    if let Some(task) = arguments.one {
        return one(task, arguments);
    }
    if cfg!(debug_assertions) {
        workspace::complain("note: not an optimized build; `cargo xtask speed` makes one");
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

/// Runs one process's measurement and prints it on standard output.
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

/// The models, which are made if they do not exist yet.
fn models(arguments: &Arguments, pythons: &Pythons) -> io::Result<Vec<Model>> {
    let root = match &arguments.models {
        Some(folder) => std::path::absolute(folder)?,
        None => workspace::target_folder(&workspace::root())?.join(MODELS),
    };
    let mut models = Vec::new();
    for &shape in &arguments.shapes {
        let plain = root.join(shape.name());
        if !plain.exists() {
            workspace::complain(&format!("making {}", plain.display()));
            random_model::write(shape, random_model::SEED, &plain)?;
        }
        let widths: &[Width] = if shape == Shape::Tiny { &[Width::Bf16] } else { &arguments.widths };
        for &width in widths {
            let folder = root.join(format!("{}{}", shape.name(), width.suffix()));
            if !folder.exists() {
                workspace::complain(&format!("making {}", folder.display()));
                random_model::quantize(&plain, width, &folder)?;
            }
            let gguf = root.join(format!("gguf/{}-{}.gguf", shape.name(), gguf_type(width)));
            if let Some(python) = pythons.llama_cpp.as_ref().filter(|_| !gguf.exists()) {
                workspace::complain(&format!("making {}", gguf.display()));
                let mut script = python::script(python, "write_gguf.py");
                script.arg("--model").arg(&plain).args(["--type", gguf_type(width), "--out"]).arg(&gguf);
                output(script, "write_gguf.py")?;
            }
            models.push(Model { shape, width, folder, gguf });
        }
    }
    Ok(models)
}

/// llama.cpp's type of weights for a width of ours.
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
            _ => &arguments.prompt_tokens,
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

/// One turn of every program.
fn round(
    number: u32,
    arguments: &Arguments,
    models: &[Model],
    pythons: &Pythons,
    measurements: &mut Measurements,
) -> io::Result<()> {
    let say = |what: &str| workspace::complain(&format!("turn {number} of {}: {what}", arguments.turns));
    let Measurements { bandwidth, rows, matmul, .. } = measurements;
    say("memory");
    let patience = arguments.patience;
    bandwidth.push(turn(patience, || Ok((ours(Task::Bandwidth)?, "this program")))?);
    say("matrices");
    let products = turn(patience, || Ok((ours(Task::Matmul)?, "this program")))?;
    matmul.entry(Program::MlxModels.name()).or_default().push(products);
    let numpy = || {
        let mut script = python::script(&pythons.mlx_lm, "bench_matmul.py");
        script.args(["--size", &MATRIX.to_string(), "--products", &PRODUCTS.to_string()]);
        Ok((script, "bench_matmul.py"))
    };
    matmul.entry("OpenBLAS").or_default().push(turn(patience, numpy)?);

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
        let turn = turn(patience, command)?;
        row.turns.push(turn);
    }
    Ok(())
}

/// One turn of a program with a model.
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
    // A short prompt is enough to compile and load everything; a whole prompt can take a minute.
    let warm_up = if slow { prompt_tokens.min(2) } else { prompt_tokens };
    command
        .arg("--model")
        .arg(if program == Program::LlamaCpp { &model.gguf } else { &model.folder })
        .args(["--prompt-tokens", &prompt_tokens.to_string()])
        .args(["--gen-tokens", &gen_tokens.to_string()])
        .args(["--warm-up-tokens", &warm_up.to_string()]);
    Ok((command, name))
}

/// One turn of a program with a GGUF file. A warm-up of no tokens is none.
pub(crate) fn turn_on_file(
    program: Program,
    file: &Path,
    prompt_tokens: u32,
    gen_tokens: u32,
    warm_up: u32,
) -> io::Result<Tokens> {
    let command = || {
        let (mut command, name) = match program {
            Program::LlamaCpp => {
                let python = python::interpreter(Environment::LlamaCpp)?;
                (python::script(&python, "bench_llama_cpp.py"), "bench_llama_cpp.py")
            }
            _ => (ours(Task::Tokens)?, "this program"),
        };
        command.arg("--model").arg(file);
        for (name, count) in
            [("--prompt-tokens", prompt_tokens), ("--gen-tokens", gen_tokens), ("--warm-up-tokens", warm_up)]
        {
            command.args([name, &count.to_string()]);
        }
        Ok((command, name))
    };
    Ok(turn(PATIENCE, command)?.found)
}

/// This program as a new process, for one measurement.
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

/// Runs a turn, and repeats it if other processes disturb it. The least disturbed turn counts.
fn turn<T: DeserializeOwned>(
    patience: u32,
    command: impl Fn() -> io::Result<(Command, &'static str)>,
) -> io::Result<Turn<T>> {
    let mut best: Option<Turn<T>> = None;
    for attempt in 0..=patience {
        let before = machine::Usage::now();
        let (command, name) = command()?;
        let found = serde_json::from_slice(&output(command, name)?)?;
        let others = before.and_then(|before| Some(machine::Usage::now()?.others_since(&before)));
        let better = |best: &Turn<T>| others.unwrap_or(0.0) < best.others.unwrap_or(0.0);
        if best.as_ref().is_none_or(better) {
            best = Some(Turn { found, others });
        }
        if others.is_none_or(|others| others <= LEAST_OTHERS) || attempt == patience {
            break;
        }
        let others = 100.0 * others.unwrap_or(0.0);
        workspace::complain(&format!("  other processes used {others:.0} % of the processor; running again"));
        std::thread::sleep(Duration::from_secs(2));
    }
    best.ok_or_else(|| io::Error::other("no turn was run"))
}

/// Reads the output of a program.
pub(crate) fn output(mut command: Command, name: &str) -> io::Result<Vec<u8>> {
    let output = command.output().map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    interrupt::check()?;
    if !output.status.success() {
        let said = python::last_lines(&output.stderr);
        return Err(io::Error::other(format!("{name} failed ({}):\n{said}", output.status)));
    }
    if std::env::var_os(PROFILE).is_some() && !output.stderr.is_empty() {
        workspace::complain(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// Copies the turns of a slow program to the rows that it was not measured for.
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
                let found = Tokens {
                    load_s: 0.0,
                    prefill_s: 1.0,
                    token_s: vec![1.0],
                    tokens: vec![],
                    version,
                    peak_memory_bytes: None,
                    peak_array_bytes: None,
                };
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
