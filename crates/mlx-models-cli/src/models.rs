//! `mlx-models models`: shows which models work.

use std::io::{self, Write};

use mlx_models::KnownArchitecture;
use serde::Serialize;

use crate::failure::Failure;

/// Arguments of `mlx-models models`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What is not supported, and what to know about it: the tables "Models" and "Files" of docs/limits.md, without links.
const NOT_SUPPORTED: &[(&str, Option<&str>)] = &[
    ("mixtures of experts (Qwen 3 MoE, Mixtral, Llama 4, ...)", None),
    ("state space models, linear attention (Mamba, Qwen 3-Next, ...)", None),
    (
        "images, audio, video",
        Some("of a Gemma 3 or Mistral 3 with a vision part, the language model is loaded"),
    ),
    (
        "encoder models, encoder-decoder models, embedding models, rerankers",
        Some("hidden states of a language model can be read"),
    ),
    (
        "Gemma 3n, Phi-3-small, Phi-3.5-MoE, Phi-3-vision",
        Some("their architectures differ from those with similar names"),
    ),
    ("code in a model's folder (trust_remote_code)", Some("it is never run")),
    (
        "GGUF of other types than F32, F16, BF16, Q4_0 to Q8_0, Q2_K to Q6_K and MXFP4",
        Some("quantize the model to one of these"),
    ),
    ("PyTorch's files (*.bin, *.pt), *.npz", Some("convert them to safetensors")),
    (
        "bitsandbytes, HQQ, AQLM, EETQ, Quanto, torchao, ModelOpt, BitNet, and other quantizations that are not MLX's",
        Some("quantize the model's full-precision checkpoint with mlx-models convert"),
    ),
    (
        "tokenizer.model (SentencePiece) and vocab.json without a tokenizer.json",
        Some("the error says how to convert them"),
    ),
    ("other adapters: IA3, prompt tuning, LoHa, ...", None),
];

/// What is shown. The fields are the keys of the JSON object.
#[derive(Serialize)]
struct Report {
    architectures: Vec<Shown>,
    not_supported: Vec<Missing>,
}

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    model_types: &'static [&'static str],
    feature: &'static str,
    #[serde(rename = "crate")]
    package: String,
    released: &'static [&'static str],
}

#[derive(Serialize)]
struct Missing {
    kind: &'static str,
    note: Option<&'static str>,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let report = Report::new();
    let mut out = io::stdout().lock();
    if arguments.json {
        let json = serde_json::to_string(&report).map_err(io::Error::from)?;
        return Ok(writeln!(out, "{json}")?);
    }
    Ok(out.write_all(report.text().as_bytes())?)
}

impl Report {
    fn new() -> Self {
        let shown = |known: &KnownArchitecture| {
            let architecture = known.compiled_in?;
            Some(Shown {
                name: architecture.name,
                model_types: architecture.model_types,
                feature: known.feature,
                package: format!("mlx-{}", known.feature),
                released: architecture.released,
            })
        };
        Self {
            architectures: mlx_models::known_architectures().iter().filter_map(shown).collect(),
            not_supported: NOT_SUPPORTED.iter().map(|&(kind, note)| Missing { kind, note }).collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for architecture in &self.architectures {
            text += architecture.name;
            text += "\n";
            for (name, value) in [
                ("model_type", architecture.model_types.join(", ")),
                ("feature", architecture.feature.to_owned()),
                ("crate", architecture.package.clone()),
                ("checked", architecture.released.join(", ")),
            ] {
                text += &row(name, &value);
            }
            text += "\n";
        }
        text += &folded(
            "A test has checked what is read from the configs of the released models above. Other sizes, versions and \
             fine-tuned models with the same model_type are read too. mlx-models inspect MODEL shows what is read, or the \
             reason why a model is refused.",
            "",
        );
        text += "\nNot supported\n";
        for Missing { kind, note } in &self.not_supported {
            text += &folded(kind, "  ");
            text += &note.map_or_else(String::new, |note| folded(note, "      "));
        }
        text
    }
}

/// The length of a line, in characters.
const WIDTH: usize = 88;

/// A name, and a value that continues below itself.
fn row(name: &str, value: &str) -> String {
    let indent = " ".repeat(14);
    format!("  {name:<12}{}", folded(value, &indent).trim_start())
}

/// The words in lines of at most [`WIDTH`] characters, each after `indent`.
fn folded(text: &str, indent: &str) -> String {
    let mut lines = vec![indent.to_owned()];
    for word in text.split(' ') {
        let is_full = lines.last().is_some_and(|line| line.len() + 1 + word.len() > WIDTH);
        if is_full {
            lines.push(indent.to_owned());
        }
        if let Some(line) = lines.last_mut() {
            if line.len() > indent.len() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of a cell of a table, without backticks and without the targets of links.
    fn plain(cell: &str) -> String {
        let mut text = String::new();
        let mut parts = cell.split("](");
        text += parts.next().unwrap_or_default();
        for part in parts {
            text += part.split_once(')').map_or(part, |(_, rest)| rest);
        }
        text.replace(['`', '['], "").trim().to_owned()
    }

    #[test]
    fn what_is_not_supported_is_what_the_document_says() {
        let document = include_str!("../../../docs/limits.md");
        let rows = |heading: &str| {
            let section = document.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
            let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
            rows.map(|row| row.split('|').map(plain).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        let expected: Vec<(String, Option<String>)> = ["Models\n", "Files\n"]
            .into_iter()
            .flat_map(rows)
            .map(|cells| (cells[1].clone(), cells[2].clone()))
            .filter(|(kind, _)| !kind.starts_with("architectures other than"))
            .filter_map(|(kind, state)| {
                let note = state.strip_prefix("not supported")?.strip_prefix("; ");
                Some((kind, note.map(str::to_owned)))
            })
            .collect();
        let found: Vec<(String, Option<String>)> =
            NOT_SUPPORTED.iter().map(|&(kind, note)| (kind.to_owned(), note.map(str::to_owned))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn lines_are_short() {
        for line in Report::new().text().lines() {
            assert!(line.len() <= WIDTH && line.trim_end() == line, "{line:?}");
        }
        assert_eq!(row("name", "one two"), "  name        one two\n");
        let words = "word ".repeat(20);
        let indent = " ".repeat(14);
        let expected =
            format!("  name        {}\n{indent}{}\n", "word ".repeat(15).trim(), "word ".repeat(5).trim());
        assert_eq!(row("name", words.trim()), expected);
    }
}
