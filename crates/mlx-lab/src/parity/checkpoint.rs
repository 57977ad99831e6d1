//! `cargo xtask parity --model DIR`: compares any checkpoint folder with a reference program on the same tokens.
//!
//! The reference runs in a separate process (`xtask/python/trace_reference.py`), which writes its results to a file. If
//! the results differ, both run again and record all intermediate outputs, and the first difference is shown.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mlx_models::generate::Session;
use mlx_models::tokenizer::Tokenizer;
use mlx_models::{CacheOptions, CausalLm, LoadOptions, Logits, LongRopeMode, Traced, trace};
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_testing::{Comparison, Tolerance, compare};
use serde::Serialize;
use workspace::python::{self, ReferenceProgram};

use super::weights::CheckpointFolder;
use super::{Lines, in_full};

/// The default prompt.
const PROMPT: &str = "Once upon a time there was a little house by the sea, and in the house lived";
/// The number of ids to read if there is neither a prompt nor a tokenizer.
const IDS: u32 = 24;
/// The tolerance for float32 results of another library.
const CLOSE: Tolerance = Tolerance::Close { rtol: 2e-4, atol: 2e-4 };

/// Arguments of `cargo xtask parity --model`.
#[derive(Default, clap::Args)]
pub(super) struct CheckpointArguments {
    /// Compare this checkpoint folder with a reference program, instead of running cases
    #[arg(long, value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// With --model: the text to read
    #[arg(long, value_name = "TEXT", requires = "model", conflicts_with = "tokens")]
    prompt: Option<String>,
    /// With --model: the token ids to read
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', requires = "model")]
    tokens: Option<Vec<u32>>,
    /// With --model: the number of tokens to generate greedily
    #[arg(long, value_name = "N", default_value_t = 64, requires = "model", value_parser = clap::value_parser!(u32).range(..=100_000))]
    greedy: u32,
    /// With --model: the program to compare with
    #[arg(long, value_enum, default_value_t = ReferenceProgram::MlxLm, requires = "model")]
    reference: ReferenceProgram,
    /// With --model: the rule for LongRoPE, transformers' (by length) or mlx-lm's (always the long factors)
    #[arg(long, value_enum, default_value_t = Rule::Hf, requires = "model")]
    longrope: Rule,
    /// With --model: show the intermediate outputs of this call (0 is the prompt, K reads token K), even if all are equal
    #[arg(long, value_name = "K", requires = "model")]
    at: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Rule {
    #[default]
    Hf,
    MlxLm,
}

/// The results of one of the programs.
struct Answer {
    /// `[1, T, V]`.
    prompt_logits: Array,
    /// `[N, V]`: token i is chosen from row i.
    greedy_logits: Array,
    /// The likeliest token of each row; of equally likely tokens the smallest.
    greedy_tokens: Vec<u32>,
}

/// What the reference program wrote.
struct Reference {
    answer: Answer,
    intermediate: HashMap<String, Array>,
    programs: String,
    /// The device that it ran on: `cpu` or `gpu`.
    device: String,
}

/// One comparison, and its result.
#[derive(Serialize)]
struct Verdict {
    what: &'static str,
    passed: bool,
    found: String,
}

type Error = Box<dyn std::error::Error>;

/// Compares and prints. Returns whether everything is equal.
pub(super) fn run(arguments: &CheckpointArguments, folder: &Path, json: Option<&Path>) -> io::Result<bool> {
    let out = &mut Lines { out: &mut io::stdout().lock(), closed: false };
    // The reference computes with stock MLX.
    let _computing = super::computing(false);
    let verdicts = report(arguments, folder, out).map_err(|e| match e.downcast::<io::Error>() {
        Ok(e) => *e,
        Err(e) => io::Error::other(in_full(&*e)),
    })?;
    if let Some(file) = json {
        super::write_whole(file, &serde_json::to_vec_pretty(&verdicts)?)?;
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passed).count();
    out.line(&format!("{passed} passed, {} failed", verdicts.len() - passed))?;
    Ok(passed == verdicts.len())
}

fn report(
    arguments: &CheckpointArguments,
    folder: &Path,
    out: &mut Lines<'_, impl Write>,
) -> Result<Vec<Verdict>, Error> {
    let checkpoint = CheckpointFolder::of(&named(folder))?;
    let folder = checkpoint.path();
    let mut model = load(arguments, folder)?;
    let tokens = tokens(arguments, folder, &*model)?;
    let calls = arguments.greedy.max(1) as usize - 1;
    if let Some(at) = arguments.at.filter(|&at| at > calls) {
        return Err(format!("--at {at}: the calls have the numbers 0 to {calls}").into());
    }
    warn_of_length(arguments, tokens.len(), &*model);
    let device = super::case::this_device_kind();
    let reference = ask(arguments, folder, &tokens, arguments.at.unwrap_or(0))?;
    let info = model.info();
    let tolerance = match arguments.reference {
        ReferenceProgram::MlxLm if reference.device == device => Tolerance::Exact,
        // The same layers, on devices that add in different orders.
        ReferenceProgram::MlxLm => Tolerance::of(info.dtype),
        ReferenceProgram::Transformers => CLOSE,
    };
    let dtype = match arguments.reference {
        ReferenceProgram::MlxLm => info.dtype,
        ReferenceProgram::Transformers => Dtype::Float32,
    };
    line(out, "model", format_args!("{}, in {dtype:?}, {} layers", info.model_type, info.layers.len()))?;
    line(out, "device", device)?;
    line(out, "reference", format_args!("{}, on the {}", reference.programs, reference.device))?;
    line(out, "tokens", format_args!("{} read, {} generated", tokens.len(), arguments.greedy))?;

    workspace::complain("computing our results");
    let theirs = &reference.answer;
    let ours = answer(&mut *model, &tokens, &theirs.greedy_tokens)?;
    let Judged { verdicts, first_call } = judge(&ours, theirs, tolerance, out)?;
    let call = arguments.at.or(first_call);
    if arguments.reference == ReferenceProgram::MlxLm && verdicts.iter().any(|verdict| !verdict.passed) {
        workspace::complain(
            "note: docs/differences.md lists the deliberate differences from mlx-lm; --longrope mlx-lm uses its rule for LongRoPE",
        );
    }
    if let Some(call) = call {
        let reference = if call == arguments.at.unwrap_or(0) {
            reference
        } else {
            ask(arguments, folder, &tokens, call)?
        };
        let ours = intermediate_outputs(&mut *model, &tokens, &reference.answer.greedy_tokens, call)?;
        show_first_difference(&ours, &reference.intermediate, tolerance, call, out)?;
    }
    Ok(verdicts)
}

/// What was compared, and the first call whose logits differ.
struct Judged {
    verdicts: Vec<Verdict>,
    first_call: Option<usize>,
}

/// Compares the results, and prints a line for each.
fn judge(
    ours: &Answer,
    theirs: &Answer,
    tolerance: Tolerance,
    out: &mut Lines<'_, impl Write>,
) -> Result<Judged, Error> {
    let mut verdicts = Vec::new();
    let mut judge = |what, passed, found: String| {
        line(out, what, format_args!("{}{found}", if passed { "" } else { "DIFFERENT: " }))?;
        verdicts.push(Verdict { what, passed, found });
        Ok::<_, io::Error>(passed)
    };
    let compared = compare(&ours.prompt_logits, &theirs.prompt_logits, tolerance)?;
    let prompt_is_equal = judge("prompt logits", compared.is_equal(), said(&compared))?;
    let mut first_call = (!prompt_is_equal).then_some(0);
    if !theirs.greedy_tokens.is_empty() {
        let compared = compare(&ours.greedy_logits, &theirs.greedy_logits, tolerance)?;
        if !judge("greedy logits", compared.is_equal(), said(&compared))? && prompt_is_equal {
            first_call = first_row(&ours.greedy_logits, &theirs.greedy_logits, tolerance)?;
        }
        let (same, found) = compare_tokens(ours, theirs);
        judge("greedy tokens", same, found)?;
    }
    Ok(Judged { verdicts, first_call })
}

fn warn_of_length(arguments: &CheckpointArguments, tokens: usize, model: &dyn CausalLm) {
    let context = usize::try_from(model.info().context_length).unwrap_or(usize::MAX);
    if tokens + arguments.greedy as usize > context {
        workspace::complain(&format!(
            "note: {tokens} tokens and {} generated ones exceed the model's context of {context}",
            arguments.greedy
        ));
    }
}

fn line(out: &mut Lines<'_, impl Write>, what: &str, text: impl Display) -> io::Result<()> {
    out.line(&format!("{what:16}{text}"))
}

/// The folder, or the folder of the demo with this name.
fn named(folder: &Path) -> PathBuf {
    match folder.to_str().and_then(|name| name.strip_prefix("demo:")) {
        Some(name) => workspace::root().join("crates/mlx-models-cli/demo").join(name),
        None => folder.to_path_buf(),
    }
}

fn said(comparison: &Comparison) -> String {
    match comparison {
        Comparison::Equal { worst } if *worst == 0.0 => "exact".to_owned(),
        Comparison::Equal { worst } => format!("equal within the tolerance, largest difference {worst:.3e}"),
        Comparison::Elements { differing, of, worst, at } => {
            format!("largest difference {worst:.3e} at {at:?}, {differing} of {of} elements")
        }
        other => other.to_string(),
    }
}

/// Loads the model as a user would; in float32 if the reference runs in float32.
fn load(arguments: &CheckpointArguments, folder: &Path) -> Result<Box<dyn CausalLm>, Error> {
    let long_rope = match arguments.longrope {
        Rule::Hf => LongRopeMode::ByLength,
        Rule::MlxLm => LongRopeMode::MlxLm,
    };
    let options = LoadOptions { long_rope, ..LoadOptions::default() };
    let mut model = mlx_models::load_with(folder, &options)?;
    if arguments.reference == ReferenceProgram::Transformers {
        for (key, parameter) in model.parameters_mut().flatten() {
            match parameter.dtype() {
                Dtype::Float32 => {}
                Dtype::Float16 | Dtype::Bfloat16 => *parameter = parameter.as_dtype(Dtype::Float32)?,
                _ => {
                    return Err(format!(
                        "{key} is quantized by MLX, which transformers cannot read; \
                         use --reference mlx-lm, or the original checkpoint"
                    )
                    .into());
                }
            }
        }
    }
    Ok(model)
}

fn tokens(arguments: &CheckpointArguments, folder: &Path, model: &dyn CausalLm) -> Result<Vec<u32>, Error> {
    let vocab_size = u32::try_from(model.info().vocab_size)?;
    let tokens = match (&arguments.tokens, &arguments.prompt) {
        (Some(tokens), _) => tokens.clone(),
        (None, Some(prompt)) => Tokenizer::from_folder(folder)?.encode(prompt)?,
        (None, None) if folder.join("tokenizer.json").is_file() => {
            Tokenizer::from_folder(folder)?.encode(PROMPT)?
        }
        // Spread over the vocabulary: 7919 is a prime.
        (None, None) => (1..=IDS).map(|i| i.wrapping_mul(7919) % vocab_size).collect(),
    };
    match tokens.iter().find(|&&token| token >= vocab_size) {
        _ if tokens.is_empty() => Err("the prompt has no tokens; use another --prompt or --tokens".into()),
        Some(token) => Err(format!("token {token} is outside the model's vocabulary of {vocab_size}").into()),
        None => Ok(tokens),
    }
}

/// Runs the reference program, which records the intermediate outputs of call `at`.
fn ask(
    arguments: &CheckpointArguments,
    folder: &Path,
    tokens: &[u32],
    at: usize,
) -> Result<Reference, Error> {
    let name = match arguments.reference {
        ReferenceProgram::MlxLm => "mlx-lm",
        ReferenceProgram::Transformers => "transformers",
    };
    let interpreter = python::interpreter(arguments.reference.environment())?;
    workspace::complain(&format!("running {name}"));
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("trace.safetensors");
    let ids: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let output = python::script(&interpreter, "trace_reference.py")
        .arg("--model")
        .arg(folder.canonicalize()?)
        .args(["--tokens", &ids.join(","), "--greedy", &arguments.greedy.to_string()])
        .args(["--at", &at.to_string(), "--reference", name])
        .args(["--device", super::case::this_device_kind(), "--out"])
        .arg(&file)
        .output()?;
    if !output.status.success() {
        return Err(python::last_lines(&output.stderr).into());
    }
    let (mut tensors, metadata) = Array::load_safetensors_with_metadata(&file)?;
    let mut take = |name: &str| {
        tensors
            .remove(name)
            .ok_or_else(|| format!("trace_reference.py did not write {name}; its version does not match"))
    };
    let (prompt_logits, greedy_logits) = (take("prompt_logits")?, take("greedy_logits")?);
    let greedy_tokens = match take("greedy_tokens")? {
        tokens if tokens.size() == 0 => Vec::new(),
        tokens => tokens.try_as_slice::<i32>()?.iter().map(|&token| token as u32).collect(),
    };
    // Evaluated now, because the file is removed when this function returns.
    tensors.values().chain([&prompt_logits, &greedy_logits]).try_for_each(Array::eval)?;
    let mut programs: Vec<String> = metadata
        .iter()
        .filter(|(program, _)| !["device", "format"].contains(&&***program))
        .map(|(program, version)| format!("{program} {version}"))
        .collect();
    programs.sort_unstable();
    let intermediate = tensors
        .into_iter()
        .filter_map(|(key, output)| Some((key.strip_prefix("on_the_way/")?.to_owned(), output)));
    Ok(Reference {
        answer: Answer { prompt_logits, greedy_logits, greedy_tokens },
        intermediate: intermediate.collect(),
        programs: programs.join(", "),
        device: metadata.get("device").cloned().unwrap_or_default(),
    })
}

/// Our results for the prompt in one call, and then for the reference's tokens one by one. Following the reference's
/// tokens keeps later logits comparable after a token that differs.
fn answer(model: &mut dyn CausalLm, tokens: &[u32], greedy: &[u32]) -> Result<Answer, Error> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let prompt_logits = session.read_in_chunks(model, &row(tokens), Logits::All, tokens.len())?;
    let mut rows = vec![prompt_logits.try_index((.., -1.., ..))?];
    let read = greedy.split_last().map_or(&[][..], |(_, read)| read);
    for (number, &token) in read.iter().enumerate() {
        let logits = session.read(model, &row(&[token]), Logits::Last)?;
        logits.eval()?;
        rows.push(logits);
        if (number + 1) % 16 == 0 {
            workspace::complain(&format!("token {} of {}", number + 1, greedy.len()));
        }
    }
    let greedy_logits = concatenate(&rows, 1)?.squeeze_axes(&[0])?; // [N, V]
    let best = mlx_rs::ops::indexing::argmax_axis(&greedy_logits, -1, false)?;
    let greedy_tokens = best.try_as_slice::<u32>()?.to_vec();
    Ok(Answer { prompt_logits, greedy_logits, greedy_tokens })
}

fn row(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

fn compare_tokens(ours: &Answer, theirs: &Answer) -> (bool, String) {
    let pairs = || ours.greedy_tokens.iter().zip(&theirs.greedy_tokens);
    match pairs().position(|(ours, theirs)| ours != theirs) {
        None => (true, format!("all {} equal", theirs.greedy_tokens.len())),
        Some(at) => {
            let (found, expected) = (ours.greedy_tokens[at], theirs.greedy_tokens[at]);
            let others = pairs().filter(|(ours, theirs)| ours != theirs).count();
            (
                false,
                format!(
                    "token {at} is {found}, the reference's is {expected}; {others} tokens differ along its text"
                ),
            )
        }
    }
}

/// The first row that differs, which is also the number of its call.
fn first_row(ours: &Array, theirs: &Array, tolerance: Tolerance) -> Result<Option<usize>, Error> {
    for at in 0..ours.dim(0).min(theirs.dim(0)) {
        if !compare(&ours.try_index(at)?, &theirs.try_index(at)?, tolerance)?.is_equal() {
            return Ok(usize::try_from(at).ok());
        }
    }
    Ok(None)
}

/// Every intermediate output of call `at`. Call 0 reads the prompt, call K the greedy token K - 1.
fn intermediate_outputs(
    model: &mut dyn CausalLm,
    tokens: &[u32],
    greedy: &[u32],
    at: usize,
) -> Result<Vec<Traced>, Error> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default())?);
    let calls = std::iter::once(tokens).chain(greedy.chunks(1));
    for (number, call) in calls.take(at + 1).enumerate() {
        let call = row(call);
        if number == at {
            let (logits, outputs) =
                trace(model, |model| session.read_in_chunks(model, &call, Logits::All, tokens.len()));
            logits?.eval()?;
            return Ok(last_of_each(outputs));
        }
        session.read_in_chunks(model, &call, Logits::Last, tokens.len())?.eval()?;
    }
    Err(format!("there is no call {at}").into())
}

/// The last output of each name. A session that reads its tokens again has several, and the logits come from the last
/// ones.
fn last_of_each(outputs: Vec<Traced>) -> Vec<Traced> {
    let mut seen = HashSet::new();
    let newest_first = outputs.into_iter().rev();
    let mut last: Vec<Traced> =
        newest_first.filter(|traced| seen.insert((traced.block, traced.name.clone()))).collect();
    last.reverse();
    last
}

/// Prints a line for each block, and one for each output inside the first block that differs.
fn show_first_difference(
    ours: &[Traced],
    theirs: &HashMap<String, Array>,
    tolerance: Tolerance,
    call: usize,
    out: &mut Lines<'_, impl Write>,
) -> Result<(), Error> {
    let mut compared = Vec::new();
    for traced in ours {
        let block = traced.block.map_or_else(|| "-".to_owned(), |block| block.to_string());
        // An output without a counterpart does not count: the reference may compute this in another way.
        let Some(expected) = theirs.get(&format!("{block}/{}", traced.name)) else { continue };
        compared.push((traced.block, &*traced.name, compare(&traced.output, expected, tolerance)?));
    }
    let reads = if call == 0 { "the prompt".to_owned() } else { format!("greedy token {}", call - 1) };
    out.line(&format!(
        "\nIntermediate outputs of the call that reads {reads} ({} compared):",
        compared.len()
    ))?;
    let name = |block: Option<usize>, name: &str| match block {
        Some(block) => format!("block {block}, {name}"),
        None => name.to_owned(),
    };
    let first = compared.iter().find(|(_, _, comparison)| !comparison.is_equal());
    for (block, layer, comparison) in &compared {
        let is_inside = first.is_some_and(|(first, ..)| first.is_some() && block == first);
        if is_inside || block.is_none() || *layer == "output" {
            let mark = if comparison.is_equal() { ' ' } else { '*' };
            out.line(&format!("{mark} {:44}{}", name(*block, layer), said(comparison)))?;
        }
    }
    match first {
        Some((block, layer, comparison)) => {
            line(out, "\nstarts at", format_args!("{}: {}", name(*block, layer), said(comparison)))?;
        }
        None if compared.is_empty() => line(out, "\nstarts at", "no intermediate output could be compared")?,
        None => line(out, "\nstarts at", "no intermediate output: all are equal")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use workspace::metadata::Metadata;

    use super::*;

    const IDS: [u32; 5] = [3, 14, 15, 9, 2];

    fn cases() -> PathBuf {
        workspace::root().join("xtask/cases")
    }

    /// The intermediate outputs of mlx-lm for [`IDS`], with the checkpoint of this case.
    fn theirs(case: &str) -> HashMap<String, Array> {
        let file = workspace::root().join(format!("xtask/fixtures/trace_{case}.safetensors"));
        let tensors = Array::load_safetensors(file).unwrap().into_iter();
        tensors
            .filter_map(|(key, output)| Some((key.strip_prefix("on_the_way/")?.to_owned(), output)))
            .collect()
    }

    fn ours(case: &str) -> Vec<Traced> {
        let _computing = crate::parity::computing(false);
        let mut model = mlx_models::load(cases().join(case)).unwrap();
        intermediate_outputs(&mut *model, &IDS, &[], 0).unwrap()
    }

    fn story(ours: &[Traced], theirs: &HashMap<String, Array>) -> String {
        let mut out = Vec::new();
        let lines = &mut Lines { out: &mut out, closed: false };
        show_first_difference(ours, theirs, Tolerance::Exact, 0, lines).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_intermediate_output_is_that_of_mlx_lm() {
        let traces = fs::read_dir(workspace::root().join("xtask/fixtures")).unwrap();
        let mut found = BTreeSet::new();
        for file in traces {
            let name = file.unwrap().file_name().into_string().unwrap();
            let Some(case) = name.strip_prefix("trace_").and_then(|name| name.strip_suffix(".safetensors"))
            else {
                continue;
            };
            let (ours, theirs) = (ours(case), theirs(case));
            for traced in &ours {
                let block = traced.block.map_or_else(|| "-".to_owned(), |block| block.to_string());
                let key = format!("{block}/{}", traced.name);
                let comparison = compare(&traced.output, &theirs[&key], Tolerance::Exact).unwrap();
                assert!(comparison.is_equal(), "{case}: {key}: {comparison}");
            }
            // All outputs of mlx-lm are compared.
            assert_eq!(ours.len(), theirs.len(), "{case}");
            assert!(story(&ours, &theirs).contains("all are equal"));
            found.insert(mlx_models::load(cases().join(case)).unwrap().info().model_type.clone());
        }
        // One for each architecture.
        let metadata = Metadata::of_workspace(&workspace::root()).unwrap();
        assert_eq!(found.len(), metadata.architectures().len(), "{found:?}");
    }

    #[test]
    fn the_first_difference_is_named() {
        let (ours, mut theirs) = (ours("qwen3_f32_whole"), theirs("qwen3_f32_whole"));
        for key in ["0/mlp.down_proj", "0/output", "1/output"] {
            let other = theirs[key].add(Array::from_f32(0.5)).unwrap();
            theirs.insert(key.to_owned(), other);
        }
        let story = story(&ours, &theirs);
        let line = |what: &str| story.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
        assert!(line("starts at").contains("block 0, mlp.down_proj: largest difference 5.0"), "{story}");
        // In the first block that differs, every output has a line; in the others, only the last one has.
        assert!(line("block 0, gated").ends_with("exact"), "{story}");
        assert!(line("block 1, output").starts_with('*'), "{story}");
        assert!(line("block 1, gated").is_empty(), "{story}");
    }

    /// This call crosses LongRoPE's original length of 16 tokens, so the session reads all tokens again.
    #[test]
    fn the_last_outputs_count_if_tokens_are_read_again() {
        let mut model = mlx_models::load(cases().join("hf_phi3_longrope_crossing")).unwrap();
        let tokens: Vec<u32> = (1..15).collect();
        let outputs = intermediate_outputs(&mut *model, &tokens, &[3, 1, 4], 3).unwrap();
        let names: BTreeSet<_> = outputs.iter().map(|traced| (traced.block, &traced.name)).collect();
        assert_eq!(names.len(), outputs.len());
        let embeddings = &outputs[0];
        assert_eq!((&*embeddings.name, embeddings.output.shape()), ("embeddings", &[1, 1, 32][..]));
    }

    #[test]
    fn a_token_that_differs_is_named() {
        let answer = |greedy_tokens: &[u32]| Answer {
            prompt_logits: Array::from_f32(0.0),
            greedy_logits: Array::from_slice(&[1.0_f32, 2.0, 3.0], &[3, 1]),
            greedy_tokens: greedy_tokens.to_vec(),
        };
        assert_eq!(
            compare_tokens(&answer(&[1, 2, 3]), &answer(&[1, 2, 3])),
            (true, "all 3 equal".to_owned())
        );
        let (same, found) = compare_tokens(&answer(&[1, 7, 8]), &answer(&[1, 2, 3]));
        assert!(!same && found.starts_with("token 1 is 7, the reference's is 2; 2 tokens"), "{found}");

        let other = Array::from_slice(&[1.0_f32, 2.5, 3.0], &[3, 1]);
        let first = first_row(&other, &answer(&[]).greedy_logits, Tolerance::Exact).unwrap();
        assert_eq!(first, Some(1));
    }
}
