//! `cargo xtask real`: a real model, Gemma 3 270M, beside mlx-lm, transformers and llama.cpp.
//!
//! The model is downloaded into the user's cache and is not part of this project. Each check asks two programs the same
//! question ([`ask`]) and compares their answers. `docs/real-models.md` has the results and explains them.

mod ask;
mod compare;
mod report;
mod speed;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mlx_models::tokenizer::{Around, EncodeOptions, Tokenizer};
use mlx_models::{ConvertOptions, FloatDtype, Weights};
use serde::Deserialize;
use workspace::python::{self, Environment};

use crate::interrupt;
use crate::real_model::RealModel;
use ask::{Answer, Program, Request};
use compare::Difference;
use report::{Report, Row};

/// The greedy tokens after each prompt that are compared with mlx-lm's.
const GREEDY: usize = 24;
/// Characters of the text whose perplexity is measured, and the tokens of a piece, the beginning-of-text token included.
const CHARACTERS: usize = 20_000;
const PIECE: usize = 512;
/// How far a perplexity may be from llama.cpp's.
const LARGEST_DIFFERENCE: f64 = 0.003;
/// How far a logit of a long prompt in float32 may be from that of transformers. Logits are up to 30.
const LARGEST_LOGIT: f64 = 0.01;

/// Arguments of `cargo xtask real`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The checks
    #[arg(long = "only", value_enum, value_name = "CHECK", num_args = 1.., default_values = ["weights", "tokenizer", "tokens", "logits", "perplexity", "long", "speed"])]
    checks: Vec<Check>,
    /// The lengths of the long prompts, in tokens
    #[arg(long, value_name = "N", num_args = 1.., default_values_t = [2000, 8000, 20_000])]
    long: Vec<usize>,
    /// The number of turns of each program in the check of speed
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// The folder of the model; the default is in the user's cache
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// Write the tables into docs/real-models.md
    #[arg(long)]
    write: bool,
    /// Answer the question on standard input
    #[arg(long, hide = true)]
    answer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Check {
    /// Compare the weights that we read with those of the package gguf
    Weights,
    /// Compare the token ids of 500 texts with llama.cpp's and transformers'
    Tokenizer,
    /// Compare greedy tokens with mlx-lm's, bit for bit
    Tokens,
    /// Compare logits with llama.cpp's and transformers'
    Logits,
    /// Compare how well a text is predicted with llama.cpp
    Perplexity,
    /// Compare prompts that are longer than the windows with transformers
    Long,
    /// Compare speed and memory with llama.cpp
    Speed,
}

/// What `real_token_ids.py` prints.
#[derive(Debug, Deserialize)]
struct TokenIds {
    version: String,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
}

/// Everything that a check needs.
struct Model {
    real: RealModel,
    tokenizer: Tokenizer,
    text: String,
    scratch: tempfile::TempDir,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    if arguments.answer {
        return ask::answer();
    }
    interrupt::install()?;
    let model = Model::open(arguments.files.as_deref())?;
    let mut report = Report::new(&model.real.files.sha256, &model.real.files.licence);
    write!(io::stdout(), "{}", report.markdown())?;
    let checks: BTreeSet<Check> = arguments.checks.iter().copied().collect();
    for check in checks {
        let (title, rows) = match check {
            Check::Weights => ("Weights", model.weights()?),
            Check::Tokenizer => ("Token ids", model.token_ids()?),
            Check::Tokens => ("Greedy tokens", model.tokens()?),
            Check::Logits => ("Logits", model.logits()?),
            Check::Perplexity => ("Perplexity", model.perplexity()?),
            Check::Long => ("Long prompts", model.long(&arguments.long)?),
            Check::Speed => ("Speed and memory", speed::rows(&model.real.files.gguf, arguments.turns)?),
        };
        // Each table is printed when it is there, since the checks take long.
        let before = report.markdown().len();
        report.add(title, rows);
        write!(io::stdout(), "{}", report.markdown().get(before..).unwrap_or_default())?;
    }
    if arguments.write {
        report::write(&workspace::root().join("docs/real-models.md"), report.markdown())?;
    }
    Ok(report.holds())
}

impl Model {
    /// Downloads what is missing.
    fn open(folder: Option<&Path>) -> io::Result<Self> {
        let real = RealModel::open(folder, Environment::LlamaCpp)?;
        let tokenizer = Tokenizer::open(&real.files.gguf).map_err(io::Error::other)?;
        Ok(Self { real, tokenizer, text: text::text()?, scratch: tempfile::tempdir()? })
    }

    /// Asks a program, and says so.
    fn ask(&self, program: Program, request: Request) -> io::Result<Answer> {
        let model = request.model.file_name().unwrap_or_default().display();
        workspace::complain(&format!("asking {program:?} with {model}"));
        program.ask(request, self.scratch.path())
    }

    fn encoded(&self, text: &str) -> io::Result<Vec<u32>> {
        self.tokenizer.encode(text).map_err(io::Error::other)
    }

    fn prompts(&self) -> io::Result<Vec<Vec<u32>>> {
        text::PROMPTS.iter().map(|prompt| self.encoded(prompt)).collect()
    }

    /// The GGUF file, dequantized by us, and by the package gguf.
    fn weights(&self) -> io::Result<Vec<Row>> {
        let options = ConvertOptions {
            weights: Weights::Dequantized,
            dtype: Some(FloatDtype::Bfloat16),
            ..ConvertOptions::default()
        };
        let ours = self.real.made.join("weights");
        if ours.exists() {
            fs::remove_dir_all(&ours)?; // it is what is checked
        }
        let ours = tensors(&self.real.converted("weights", &self.real.files.gguf, &options)?)?;
        let theirs = tensors(&self.real.files.bf16)?;
        let same = theirs.iter().filter(|(key, tensor)| ours.get(*key) == Some(tensor)).count();
        Ok(vec![Row::compared(
            "tensors of the GGUF file in bfloat16 with the bits of the package gguf",
            format!("{same} of {}", theirs.len()),
            same == theirs.len() && ours.len() == theirs.len(),
        )])
    }

    /// The tokenizer of the GGUF file and that of the folder, beside llama.cpp's and transformers'.
    fn token_ids(&self) -> io::Result<Vec<Row>> {
        let folder = Tokenizer::from_folder(&self.real.files.bf16).map_err(io::Error::other)?;
        let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
        let mut rows = Vec::new();
        for (environment, path) in [
            (Environment::LlamaCpp, &self.real.files.gguf),
            (Environment::Transformers, &self.real.files.bf16),
        ] {
            let mut script = python::script(&python::interpreter(environment)?, "real_token_ids.py");
            script.arg("--model").arg(path);
            let theirs: TokenIds =
                serde_json::from_slice(&crate::process::output(script, "real_token_ids.py")?)?;
            for (tokenizer, of) in [(&self.tokenizer, "the GGUF file"), (&folder, "tokenizer.json")] {
                let encoded = |text: &String| tokenizer.encode_with(text, options).map_err(io::Error::other);
                let ours = theirs.texts.iter().map(encoded).collect::<io::Result<Vec<_>>>()?;
                let same = ours.iter().zip(&theirs.ids).filter(|(ours, theirs)| ours == theirs).count();
                rows.push(Row {
                    what: format!("texts with the ids of {}, our tokenizer of {of}", theirs.version),
                    found: format!("{same} of {}", ours.len()),
                    // The model's own tokenizer, which transformers runs, is right where llama.cpp differs.
                    holds: (environment == Environment::Transformers).then_some(same == ours.len()),
                });
            }
        }
        Ok(rows)
    }

    fn tokens(&self) -> io::Result<Vec<Row>> {
        let request = Request {
            model: self.real.files.bf16.clone(),
            prompts: self.prompts()?,
            generate: GREEDY,
            ..Request::default()
        };
        let theirs = self.ask(Program::MlxLm, request.clone())?;
        let mut rows = Vec::new();
        for (program, what) in
            [(Program::Stock, "with `MLX_CPU_KERNELS=off`"), (Program::Ours, "with the kernels")]
        {
            let ours = self.ask(program, request.clone())?;
            let same = ours.tokens.iter().zip(&theirs.tokens).filter(|(a, b)| a == b).count();
            let equal = ours.logits == theirs.logits;
            let logits = if equal { "the same bits" } else { "other bits" };
            let found = format!("{same} of {} prompts, logits have {logits}", ours.tokens.len());
            let what = format!("{GREEDY} greedy tokens as {}, bfloat16, {what}", theirs.version);
            // Kernels round elsewhere, so that a token may be decided otherwise.
            let holds = (program == Program::Stock).then_some(equal && same == ours.tokens.len());
            rows.push(Row { what, found, holds });
        }
        Ok(rows)
    }

    fn logits(&self) -> io::Result<Vec<Row>> {
        let of = |program, model: &Path| {
            let request = Request { model: model.to_owned(), prompts: self.prompts()?, ..Request::default() };
            self.ask(program, request)
        };
        let crate::real_model::Files { gguf, bf16, .. } = &self.real.files;
        let exact = of(Program::Transformers, bf16)?;
        let (ours, theirs) = (of(Program::Ours, gguf)?, of(Program::LlamaCpp, gguf)?);
        let in_bf16 = of(Program::Ours, bf16)?;
        let row = |what: &str, a: &Answer, b: &Answer| {
            let difference = Difference::between(&a.logits, &b.logits);
            Row::shown(what, difference.text())
        };
        let to_exact = |answer: &Answer| Difference::between(&answer.logits, &exact.logits).divergence;
        let mut rows = vec![
            row("the GGUF file: ours to llama.cpp", &ours, &theirs),
            row("the GGUF file: ours to transformers in float32", &ours, &exact),
            row("the GGUF file: llama.cpp to transformers in float32", &theirs, &exact),
            row("bfloat16: ours to transformers in float32", &in_bf16, &exact),
        ];
        rows.push(Row::compared(
            "the GGUF file: our divergence from float32 is at most twice llama.cpp's",
            format!("{:.2} times", to_exact(&ours) / to_exact(&theirs)),
            to_exact(&ours) <= 2.0 * to_exact(&theirs),
        ));
        Ok(rows)
    }

    /// Pieces of a text, each behind a beginning-of-text token.
    fn pieces(&self) -> io::Result<Vec<Vec<u32>>> {
        let text = text::beginning(&self.text, CHARACTERS);
        let options = EncodeOptions { around: Around::Nothing, ..EncodeOptions::default() };
        let encoded = self.tokenizer.encode_with(text, options);
        let begin =
            self.tokenizer.special_token("bos_token").and_then(|token| self.tokenizer.token_id(token));
        let begin = begin.ok_or_else(|| io::Error::other("the model has no beginning-of-text token"))?;
        let pieces = encoded.map_err(io::Error::other)?;
        Ok(pieces.chunks(PIECE - 1).map(|piece| [&[begin], piece].concat()).collect())
    }

    fn perplexity(&self) -> io::Result<Vec<Row>> {
        let pieces = self.pieces()?;
        let scored: usize = pieces.iter().map(|piece| piece.len() - 1).sum();
        let of = |program, model: &Path| -> io::Result<f64> {
            let request = Request { model: model.to_owned(), pieces: pieces.clone(), ..Request::default() };
            let nll: f64 = self.ask(program, request)?.nll.iter().sum();
            Ok((nll / scored as f64).exp())
        };
        let mut rows = Vec::new();
        for (name, folder) in self.precisions()? {
            // llama.cpp reads the same weights.
            let file = if folder == self.real.files.gguf { folder.clone() } else { self.as_gguf(&folder)? };
            let (ours, theirs) = (of(Program::Ours, &folder)?, of(Program::LlamaCpp, &file)?);
            let off = ours / theirs - 1.0;
            rows.push(Row::compared(
                &format!("perplexity of {scored} tokens in pieces of {PIECE}, {name}: ours, llama.cpp's"),
                format!("{ours:.3}, {theirs:.3} ({:+.2} %)", 100.0 * off),
                off.abs() <= LARGEST_DIFFERENCE,
            ));
        }
        Ok(rows)
    }

    /// The model in every precision: as it is, and our conversions of the bfloat16 folder.
    fn precisions(&self) -> io::Result<Vec<(&'static str, PathBuf)>> {
        Ok(vec![
            ("the GGUF file", self.real.files.gguf.clone()),
            ("bfloat16", self.real.files.bf16.clone()),
            ("8 bits in groups of 64", self.real.quantized("8-bit", 8, 64)?),
            ("4 bits in groups of 32", self.real.quantized("4-bit", 4, 32)?),
        ])
    }

    /// The same weights as a GGUF file in float32, for llama.cpp. The package gguf writes it, not our own code.
    fn as_gguf(&self, folder: &Path) -> io::Result<PathBuf> {
        let name = folder.file_name().unwrap_or_default().display().to_string();
        let file = self.real.made.join(format!("{name}.gguf"));
        if !file.exists() {
            let is_quantized = *folder != self.real.files.bf16;
            let options = ConvertOptions {
                weights: if is_quantized { Weights::Dequantized } else { Weights::Kept },
                dtype: Some(FloatDtype::Float32),
                ..ConvertOptions::default()
            };
            let whole = self.real.converted(&format!("{name}-float32"), folder, &options)?;
            self.real.as_gguf(&whole, "F32", &file, Environment::LlamaCpp)?;
            fs::remove_dir_all(&whole)?; // a gigabyte that is not needed again
        }
        Ok(file)
    }

    fn long(&self, lengths: &[usize]) -> io::Result<Vec<Row>> {
        let tokens = self.encoded(&self.text)?;
        let options = ConvertOptions { dtype: Some(FloatDtype::Float32), ..ConvertOptions::default() };
        let in_float32 = self.real.converted("float32", &self.real.files.bf16, &options)?;
        let mut rows = Vec::new();
        for &length in lengths {
            let prompt = tokens
                .get(..length)
                .ok_or_else(|| io::Error::other(format!("the text has only {} tokens", tokens.len())))?;
            let of = |program, model: &Path| {
                let prompts = vec![prompt.to_vec()];
                self.ask(program, Request { model: model.to_owned(), prompts, ..Request::default() })
            };
            let exact = of(Program::Transformers, &self.real.files.bf16)?;
            let ours = Difference::between(&of(Program::Ours, &in_float32)?.logits, &exact.logits);
            let what = format!("{length} tokens, float32: ours to transformers");
            rows.push(Row::compared(&what, ours.text(), ours.largest <= LARGEST_LOGIT));
            let gguf = Difference::between(&of(Program::Ours, &self.real.files.gguf)?.logits, &exact.logits);
            rows.push(Row::shown(
                &format!("{length} tokens, the GGUF file: ours to transformers"),
                gguf.text(),
            ));
        }
        Ok(rows)
    }
}

/// The dtype, shape and bytes of a tensor.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// The tensors of a checkpoint with one file.
fn tensors(folder: &Path) -> io::Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(folder.join("model.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
    let tensor = |(key, view): (String, safetensors::tensor::TensorView<'_>)| {
        (key, (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec()))
    };
    Ok(tensors.tensors().into_iter().map(tensor).collect())
}
