//! One question for every program: greedy tokens and logits after prompts, and how well pieces of a text are predicted.
//!
//! A program gets a [`Request`] on standard input and prints an [`Answer`]: the scripts `real_*.py`, and this program with
//! `--answer`. Each runs in a process of its own, so that none has another's memory or settings.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use mlx_models::generate::{GenerateOptions, PerplexityOptions, Session, generate, perplexity};
use mlx_models::{CacheOptions, CausalLm, Logits};
use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};
use workspace::python::{self, Environment};

use crate::process::{KERNELS, output, this_program};

/// What is asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Request {
    /// A checkpoint folder or a GGUF file.
    pub(super) model: PathBuf,
    #[serde(default)]
    pub(super) prompts: Vec<Vec<u32>>,
    /// How many greedy tokens follow each prompt.
    #[serde(default)]
    pub(super) generate: usize,
    /// The file that gets the logits after each prompt: float32, one row of the vocabulary for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) logits: Option<PathBuf>,
    /// All tokens of a piece but the first are scored.
    #[serde(default)]
    pub(super) pieces: Vec<Vec<u32>>,
}

/// What a program answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) version: String,
    /// The greedy tokens after each prompt.
    pub(super) tokens: Vec<Vec<u32>>,
    /// For each piece, the sum of `-ln p` of its scored tokens.
    pub(super) nll: Vec<f64>,
    /// The logits after each prompt.
    #[serde(skip)]
    pub(super) logits: Vec<Vec<f32>>,
}

/// A program that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// This project, with its kernels.
    Ours,
    /// This project with MLX's own code for the CPU.
    Stock,
    MlxLm,
    Transformers,
    LlamaCpp,
}

impl Program {
    fn script(self) -> Option<(&'static str, Environment)> {
        match self {
            Self::Ours | Self::Stock => None,
            Self::MlxLm => Some(("real_mlx_lm.py", Environment::MlxLm)),
            Self::Transformers => Some(("real_transformers.py", Environment::Transformers)),
            Self::LlamaCpp => Some(("real_llama_cpp.py", Environment::LlamaCpp)),
        }
    }

    fn command(self) -> io::Result<(Command, &'static str)> {
        if let Some((name, environment)) = self.script() {
            return Ok((python::script(&python::interpreter(environment)?, name), name));
        }
        let mut command = this_program(&["real", "--answer"])?;
        if self == Self::Stock {
            command.env(KERNELS, "off");
        }
        Ok((command, "this program"))
    }

    /// Asks this program. `scratch` is a folder for the logits.
    pub(super) fn ask(self, mut request: Request, scratch: &Path) -> io::Result<Answer> {
        let logits = scratch.join("logits.f32");
        let prompts = request.prompts.len();
        request.logits = (prompts > 0).then(|| logits.clone());
        let (mut command, name) = self.command()?;
        let question = scratch.join("question.json");
        fs::write(&question, serde_json::to_vec(&request)?)?;
        command.stdin(File::open(&question)?);
        let mut answer: Answer = serde_json::from_slice(&output(command, name)?)?;
        if request.logits.is_some() {
            let bytes = fs::read(&logits)?;
            let row = bytes.len().checked_div(prompts).unwrap_or(0);
            let numbers =
                |row: &[u8]| row.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            answer.logits = bytes.chunks_exact(row.max(4)).map(numbers).collect();
        }
        Ok(answer)
    }
}

/// Answers the request on standard input: `cargo xtask real --answer`.
pub(super) fn answer() -> io::Result<bool> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text)?;
    let answer = answer_to(&serde_json::from_str(&text)?).map_err(io::Error::other)?;
    writeln!(io::stdout(), "{}", serde_json::to_string(&answer)?)?;
    Ok(true)
}

fn answer_to(request: &Request) -> Result<Answer, Box<dyn Error + Send + Sync>> {
    let mut model = mlx_models::load(&request.model)?;
    let version = format!("mlx-models {}", env!("CARGO_PKG_VERSION"));
    let mut answer = Answer { version, tokens: Vec::new(), nll: Vec::new(), logits: Vec::new() };
    let mut logits = Vec::new();
    for prompt in &request.prompts {
        logits.extend(last_logits(&mut *model, prompt)?.iter().flat_map(|number| number.to_le_bytes()));
        answer.tokens.push(greedy(&mut *model, prompt, request.generate)?);
    }
    if let Some(file) = &request.logits {
        fs::write(file, logits)?;
    }
    for piece in &request.pieces {
        let (begin, text) = piece.split_first().ok_or("a piece is empty")?;
        let options =
            PerplexityOptions { piece: piece.len(), begin: Some(*begin), ..PerplexityOptions::default() };
        let found = perplexity(&mut *model, text, options, |_, _| std::ops::ControlFlow::Continue(()))?;
        answer.nll.push(found.mean_nll * found.tokens as f64);
    }
    Ok(answer)
}

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The logits after a prompt, in float32.
fn last_logits(model: &mut dyn CausalLm, prompt: &[u32]) -> Result<Vec<f32>> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let tokens = Array::from_slice(prompt, &[1, i32::try_from(prompt.len())?]);
    let logits = session.read(model, &tokens, Logits::Last)?.as_dtype(Dtype::Float32)?;
    logits.eval()?;
    Ok(logits.as_slice::<f32>().to_vec())
}

fn greedy(model: &mut dyn CausalLm, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let options = GenerateOptions { max_tokens: count, ..GenerateOptions::new(&[]) };
    generate(model, &mut session, prompt, options)?.map(|token| Ok(token?.id)).collect()
}
