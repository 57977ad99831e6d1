//! The works of the benchmark, and how each program does them in a turn.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::found::{Batched, Figure, Found, Limit, Peak, Products, Tokens, Unit, batched_bench};
use super::models::{Model, Source, Stored, weight_bytes};
use super::peers::{Peers, Program};
use super::spread::median;
use super::{Arguments, MATRIX, PRODUCTS, machine};
use crate::process::{KERNELS, output, this_program};

/// The tokens of the prompt of each row of a batch, and the tokens that follow it.
const BATCH_PROMPT: u32 = 128;
const BATCH_TOKENS: u32 = 32;
/// The prompt that is used to warm up is not longer.
const LONGEST_WARM_UP: u32 = 512;
/// Four tokens of the real model, the beginning-of-text token included.
pub(super) const FEW_WORDS: &str = "The capital of";

/// What is asked for on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Read a prompt, and decode behind it
    Tokens,
    /// Decode several rows together
    Batch,
    /// Start a process, load the model and its tokenizer, read four tokens, and generate one; the real model
    FirstToken,
    /// Decode with drafts from the text so far, while a text is edited; the real model
    Lookup,
    /// Decode with drafts of the same model in 4 bits; the real model in wider forms
    Draft,
    /// Multiply float32 matrices, as OpenBLAS does
    Matrices,
    /// Measure what the units of the processor do at most, and products of a prompt beside it
    Peaks,
}

/// One work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Tokens { prompt: u32 },
    Batch { rows: u32 },
    FirstToken,
    Lookup,
    Draft,
    Matrices,
    Peaks,
}

impl Work {
    /// The works of a kind.
    pub(super) fn of(kind: Kind, arguments: &Arguments) -> Vec<Self> {
        match kind {
            Kind::Tokens => arguments.prompt_tokens.iter().map(|&prompt| Self::Tokens { prompt }).collect(),
            Kind::Batch => arguments.rows.iter().map(|&rows| Self::Batch { rows }).collect(),
            Kind::FirstToken => vec![Self::FirstToken],
            Kind::Lookup => vec![Self::Lookup],
            Kind::Draft => vec![Self::Draft],
            Kind::Matrices => vec![Self::Matrices],
            Kind::Peaks => vec![Self::Peaks],
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Tokens { prompt } => format!("prompt of {prompt}"),
            Self::Batch { rows } => format!("{rows} rows"),
            Self::FirstToken => "first token".to_owned(),
            Self::Lookup => "lookup".to_owned(),
            Self::Draft => "draft".to_owned(),
            Self::Matrices => "matrices".to_owned(),
            Self::Peaks => "peaks".to_owned(),
        }
    }

    /// Whether it needs a model.
    pub(super) fn has_model(self) -> bool {
        !matches!(self, Self::Matrices | Self::Peaks)
    }

    /// Whether it is measured with this model.
    pub(super) fn fits(self, model: &Model) -> bool {
        match self {
            Self::Tokens { .. } | Self::Batch { .. } => true,
            // The file in Q4_K_M has a tokenizer that both programs read.
            Self::FirstToken => model.stored == Stored::Q4KM,
            Self::Lookup => model.source == Source::Real,
            Self::Draft => {
                model.source == Source::Real && matches!(model.stored, Stored::Bf16 | Stored::Eight)
            }
            Self::Matrices | Self::Peaks => false,
        }
    }

    /// The programs that do it, of those that are wanted.
    pub(super) fn programs(self, model: Option<&Model>, wanted: &[Program]) -> Vec<Program> {
        let of_these = |able: &[Program]| -> Vec<Program> {
            able.iter().copied().filter(|program| wanted.contains(program)).collect()
        };
        let all = [Program::MlxModels, Program::Stock, Program::LlamaCpp, Program::OpenVino, Program::MlxLm];
        match self {
            Self::Tokens { .. } => {
                let is_q4_k_m = model.is_some_and(|model| model.stored == Stored::Q4KM);
                let reads = |program: &Program| {
                    !is_q4_k_m || matches!(program, Program::MlxModels | Program::Stock | Program::LlamaCpp)
                };
                of_these(&all).into_iter().filter(reads).collect()
            }
            Self::Batch { .. } | Self::FirstToken => of_these(&[Program::MlxModels, Program::LlamaCpp]),
            Self::Lookup | Self::Draft => vec![Program::MlxModels, Program::Plain],
            Self::Matrices => vec![Program::MlxModels, Program::OpenBlas],
            Self::Peaks => vec![Program::MlxModels],
        }
    }
}

/// What a turn needs.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub(super) work: Work,
    /// `None` for a work without a model.
    pub(super) model: Option<&'a Model>,
    pub(super) program: Program,
    pub(super) arguments: &'a Arguments,
    pub(super) peers: &'a Peers,
}

impl Task<'_> {
    /// Does the work once.
    pub(super) fn run(&self) -> io::Result<Found> {
        match self.work {
            Work::Tokens { prompt } => self.tokens(prompt),
            Work::Batch { rows } => self.batch(rows),
            Work::FirstToken => self.first_token(),
            Work::Lookup | Work::Draft => self.speculation(),
            Work::Matrices => self.matrices(),
            Work::Peaks => peaks(),
        }
    }

    fn model(&self) -> io::Result<&Model> {
        self.model.ok_or_else(|| io::Error::other("this work needs a model"))
    }

    /// The file or folder that the program reads.
    fn path(&self) -> io::Result<std::path::PathBuf> {
        let model = self.model()?;
        Ok(match self.program {
            Program::LlamaCpp => model.gguf.clone(),
            Program::OpenVino => model.openvino.clone(),
            _ => model.ours.clone(),
        })
    }

    fn tokens(&self, prompt: u32) -> io::Result<Found> {
        let (model, path) = (self.model()?, self.path()?);
        let mut generated = self.arguments.gen_tokens;
        let mut measured = prompt;
        if self.program.is_slow() && model.source.shape() != crate::random_model::Shape::Tiny {
            measured = prompt.min(self.arguments.slow_prompt_tokens);
            generated = self.arguments.slow_gen_tokens;
        }
        let warm_up = measured.min(LONGEST_WARM_UP);
        let found = tokens_of(
            self.program,
            self.peers,
            &path,
            [measured, generated, warm_up],
            self.arguments.kv_bits,
        )?;
        let key_values = |tokens: usize| self.key_value_bytes(model, tokens);
        let mut figures = vec![Figure::new(
            format!("prompt of {prompt}"),
            Unit::TokensPerSecond,
            f64::from(measured) / found.prefill_s,
        )];
        let decode = Figure::new(format!("decode behind {prompt}"), Unit::TokensPerSecond, found.decode());
        // OpenVINO's files are not looked into.
        if matches!(self.program, Program::OpenVino) {
            figures.push(decode);
        } else {
            let weights = weight_bytes(&path)? as f64;
            // In the middle of the tokens after the first.
            let read = weights + key_values((measured + generated / 2) as usize);
            figures.push(Figure { limit: Some(Limit::Reads(read)), ..decode });
            if let (Program::MlxModels, Some(bytes)) = (self.program, found.peak_array_bytes) {
                let computed = Limit::Computed((weights + key_values((measured + generated) as usize)) / 1e6);
                let memory =
                    Figure::new(format!("memory behind {prompt}"), Unit::Megabytes, bytes as f64 / 1e6);
                figures.push(Figure { limit: Some(computed), ..memory });
            }
        }
        Ok(Found { figures, tokens: found.tokens, version: found.version })
    }

    fn key_value_bytes(&self, model: &Model, tokens: usize) -> f64 {
        let bytes = model.source.shape().key_value_bytes(tokens) as f64;
        match self.arguments.kv_bits {
            // Two numbers in half precision for each group of 64.
            Some(bits) => bytes / 16.0 * (f64::from(bits) + 0.5),
            None => bytes,
        }
    }

    fn batch(&self, rows: u32) -> io::Result<Found> {
        let (path, rows_text) = (self.path()?, rows.to_string());
        let (prompt, generated) = (BATCH_PROMPT.to_string(), BATCH_TOKENS.to_string());
        let found: Batched = if self.program == Program::LlamaCpp {
            let mut command = self.peers.llama_program("llama-batched-bench")?;
            let context = (rows * (BATCH_PROMPT + BATCH_TOKENS)).to_string();
            command.arg("-m").arg(&path).args(["-c", &context, "-npp", &prompt, "-ntg", &generated]);
            command.args([
                "-npl",
                &rows_text,
                "-t",
                &machine::cores().to_string(),
                "--output-format",
                "jsonl",
            ]);
            let text = output(command, "llama-batched-bench")?;
            let decode = batched_bench(&String::from_utf8_lossy(&text), rows)?;
            Batched { decode, version: self.peers.llama_version() }
        } else {
            let mut command = this_program(&["speed", "--one", "batch"])?;
            command.arg("--model").arg(&path).args(["--rows", &rows_text]);
            command.args(["--prompt-tokens", &prompt, "--gen-tokens", &generated]);
            parsed(command, "this program")?
        };
        let figure = Figure::new(format!("{rows} rows"), Unit::TokensPerSecond, found.decode);
        Ok(Found { figures: vec![figure], tokens: Vec::new(), version: found.version })
    }

    fn first_token(&self) -> io::Result<Found> {
        let path = self.path()?;
        let (mut command, name, version) = if self.program == Program::LlamaCpp {
            let mut command = self.peers.llama_program("llama-completion")?;
            command.arg("-m").arg(&path).args(["-p", FEW_WORDS, "-n", "1", "--temp", "0", "-no-cnv"]);
            // It would choose the size of the context by trials otherwise, and take half a second longer.
            command.args(["--no-warmup", "-c", "512", "-fit", "off", "-t", &machine::cores().to_string()]);
            (command, "llama-completion", self.peers.llama_version())
        } else {
            let mut command = this_program(&["speed", "--one", "first-token"])?;
            command.arg("--model").arg(&path);
            (command, "this program", our_version())
        };
        command.stdin(std::process::Stdio::null());
        let started = Instant::now();
        output(command, name)?;
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let figures = vec![Figure::new("process to the first token", Unit::Milliseconds, milliseconds)];
        Ok(Found { figures, tokens: Vec::new(), version })
    }

    fn speculation(&self) -> io::Result<Found> {
        let model = self.model()?;
        let mut command = this_program(&["speed", "--one", "speculation"])?;
        command.arg("--model").arg(&model.ours);
        command.args(["--gen-tokens", &self.arguments.gen_tokens.max(128).to_string()]);
        if let Some(tokenizer) = &model.tokenizer {
            command.arg("--tokenizer").arg(tokenizer);
        }
        let what =
            if self.work == Work::Lookup { "drafts from the text" } else { "drafts of the 4-bit model" };
        match (self.program, self.work) {
            (Program::Plain, _) => {}
            (_, Work::Lookup) => drop(command.arg("--lookup")),
            _ => drop(command.arg("--draft").arg(model.draft.as_ref().unwrap_or(&model.ours))),
        }
        let found: Tokens = parsed(command, "this program")?;
        let figure = Figure::new(format!("decode with {what}"), Unit::TokensPerSecond, found.decode());
        Ok(Found { figures: vec![figure], tokens: found.tokens, version: found.version })
    }

    fn matrices(&self) -> io::Result<Found> {
        let found: Products = if self.program == Program::OpenBlas {
            let (mut script, name) = self.peers.script(Program::OpenBlas)?;
            script.args(["--size", &MATRIX.to_string(), "--products", &PRODUCTS.to_string()]);
            parsed(script, name)?
        } else {
            parsed(this_program(&["speed", "--one", "matmul"])?, "this program")?
        };
        let operations = 2.0 * (MATRIX as f64).powi(3) / 1e9;
        let seconds = median(found.seconds.iter().copied());
        let name = format!("float32 product of {MATRIX} x {MATRIX} matrices");
        let figures = vec![Figure::new(name, Unit::Gigaops, operations / seconds)];
        Ok(Found { figures, tokens: Vec::new(), version: found.version })
    }
}

fn peaks() -> io::Result<Found> {
    let found: Vec<Peak> = parsed(this_program(&["speed", "--one", "peaks"])?, "this program")?;
    let figure = |peak: Peak| {
        let unit = if peak.counts_bytes { Unit::GigabytesPerSecond } else { Unit::Gigaops };
        Figure { limit: peak.of.map(Limit::Peak), ..Figure::new(peak.name, unit, peak.rate) }
    };
    Ok(Found { figures: found.into_iter().map(figure).collect(), tokens: Vec::new(), version: our_version() })
}

/// The version of this program, for the report.
pub(super) fn our_version() -> String {
    format!("mlx-models {}", env!("CARGO_PKG_VERSION"))
}

/// One turn of a program: the tokens of the prompt, the generated tokens, and the tokens of the prompt that warms up, where
/// none is no warm-up.
pub(super) fn tokens_of(
    program: Program,
    peers: &Peers,
    path: &Path,
    [prompt, generated, warm_up]: [u32; 3],
    kv_bits: Option<i32>,
) -> io::Result<Tokens> {
    let (mut command, name) = match program {
        Program::MlxModels | Program::Plain | Program::Stock => {
            (this_program(&["speed", "--one", "tokens"])?, "this program")
        }
        _ => peers.script(program)?,
    };
    if program == Program::Stock {
        command.env(KERNELS, "off");
    }
    command.arg("--model").arg(path);
    for (name, count) in
        [("--prompt-tokens", prompt), ("--gen-tokens", generated), ("--warm-up-tokens", warm_up)]
    {
        command.args([name, &count.to_string()]);
    }
    if let (Some(bits), Program::MlxModels | Program::LlamaCpp) = (kv_bits, program) {
        command.args(["--kv-bits", &bits.to_string()]);
    }
    parsed(command, name)
}

/// The output of a program that prints JSON.
pub(super) fn parsed<T: DeserializeOwned>(command: Command, name: &str) -> io::Result<T> {
    Ok(serde_json::from_slice(&output(command, name)?)?)
}
