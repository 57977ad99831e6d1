//! The table of architectures.

use serde_json::{Map, Value};

use super::config;
use super::facts::Facts;
use super::keys::Keys;
use super::names::{self, Named};
use crate::{GgufError, Metadata, Problem};

/// An architecture of language models, as files describe it.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// The values of `model_type` of the configs of its checkpoints.
    pub model_types: &'static [&'static str],
    /// The modules outside of blocks.
    pub outside: &'static [Named],
    /// The modules of a block.
    pub blocks: &'static [Named],
    pub(super) config: Config,
}

/// Makes the config of a checkpoint.
type Config = fn(&Keys<'_>, &Facts) -> Result<Map<String, Value>, GgufError>;

/// A row for each architecture.
pub static ARCHITECTURES: &[Architecture] = &[
    row("gemma2", &["gemma2"], names::GEMMA, config::gemma2),
    row("gemma3", &["gemma3_text", "gemma3"], names::GEMMA, config::gemma3),
    row("granite", &["granite"], names::LLAMA, config::granite),
    row("llama", &["llama", "mistral"], names::LLAMA, config::llama),
    row("mistral3", &["ministral3", "mistral3"], names::LLAMA, config::mistral3),
    row("olmo2", &["olmo2", "olmo3"], names::OLMO, config::olmo2),
    row("phi3", &["phi3"], names::PHI3, config::phi3),
    row("qwen2", &["qwen2"], names::QWEN, config::qwen2),
    row("qwen3", &["qwen3"], names::QWEN, config::qwen3),
    row("smollm3", &["smollm3"], names::LLAMA, config::smollm3),
];

const fn row(
    name: &'static str,
    model_types: &'static [&'static str],
    blocks: &'static [Named],
    config: Config,
) -> Architecture {
    let outside = match name.as_bytes() {
        [b'g', b'e', b'm', b'm', b'a', ..] => names::GEMMA_OUTSIDE,
        _ => names::OUTSIDE,
    };
    Architecture { name, model_types, outside, blocks, config }
}

/// By the name, of which each row has another.
impl PartialEq for Architecture {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// What the names of the tensors of blocks begin with.
const LAYER_IN_CHECKPOINT: &str = "model.layers.";
const LAYER_IN_FILE: &str = "blk.";

impl Architecture {
    /// The row for the architecture that a file names.
    pub(super) fn of(metadata: &Metadata) -> Result<&'static Self, Problem> {
        let kind = metadata.text("general.type")?.unwrap_or("model");
        if kind != "model" {
            let needed = "model: the file holds no language model".to_owned();
            return Err(Problem::Metadata { key: "general.type".to_owned(), found: kind.to_owned(), needed });
        }
        let name = metadata.text("general.architecture")?.unwrap_or_default();
        let found = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
        let known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        found.ok_or_else(|| Problem::Architecture { found: name.to_owned(), known: known.join(", ") })
    }

    /// The row for checkpoints of this `model_type`.
    pub fn of_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type))
    }

    /// The key of a tensor in checkpoints, its module, and the number of its block, from its name in files.
    pub fn key_of(&self, name: &str) -> Option<(String, Named, Option<usize>)> {
        let (module, suffix) = name.rsplit_once('.')?;
        let Some(rest) = module.strip_prefix(LAYER_IN_FILE) else {
            let named = *self.outside.iter().find(|named| named.file == module)?;
            return Some((format!("{}.{suffix}", named.checkpoint), named, None));
        };
        let (number, module) = rest.split_once('.')?;
        let number = plain_number(number)?;
        let named = *self.blocks.iter().find(|named| named.file == module)?;
        let key = format!("{LAYER_IN_CHECKPOINT}{number}.{}.{suffix}", named.checkpoint);
        Some((key, named, Some(number)))
    }

    /// The name of a tensor in files, its module, and the number of its block, from its key in checkpoints.
    pub fn name_of(&self, key: &str) -> Option<(String, Named, Option<usize>)> {
        let (module, suffix) = key.rsplit_once('.')?;
        let Some(rest) = module.strip_prefix(LAYER_IN_CHECKPOINT) else {
            let named = *self.outside.iter().find(|named| named.checkpoint == module)?;
            return Some((format!("{}.{suffix}", named.file), named, None));
        };
        let (number, module) = rest.split_once('.')?;
        let number = plain_number(number)?;
        let named = *self.blocks.iter().find(|named| named.checkpoint == module)?;
        Some((format!("{LAYER_IN_FILE}{number}.{}.{suffix}", named.file), named, Some(number)))
    }
}

/// A number of at most six digits without zeros before it.
fn plain_number(text: &str) -> Option<usize> {
    let number: usize = text.parse().ok()?;
    (text.len() <= 6 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys_read_in_both_directions() {
        for architecture in ARCHITECTURES {
            for (index, named) in architecture.outside.iter().enumerate() {
                let name = format!("{}.weight", named.file);
                let key = format!("{}.weight", named.checkpoint);
                assert_eq!(architecture.key_of(&name), Some((key.clone(), *named, None)));
                assert_eq!(architecture.name_of(&key), Some((name, *named, None)));
                assert!(architecture.outside[index + 1..].iter().all(|other| other.file != named.file));
            }
            for (index, named) in architecture.blocks.iter().enumerate() {
                let name = format!("blk.17.{}.bias", named.file);
                let key = format!("model.layers.17.{}.bias", named.checkpoint);
                assert_eq!(architecture.key_of(&name), Some((key.clone(), *named, Some(17))));
                assert_eq!(architecture.name_of(&key), Some((name, *named, Some(17))));
                let others = &architecture.blocks[index + 1..];
                assert!(
                    others
                        .iter()
                        .all(|other| other.file != named.file && other.checkpoint != named.checkpoint)
                );
            }
            for unknown in [
                "",
                "weight",
                "token_embd",
                "blk.weight",
                "blk.1.weight",
                "blk.01.attn_v.weight",
                "blk.-1.attn_v.weight",
                "blk.9999999.attn_v.weight",
                "blk.1.attn_x.weight",
            ] {
                assert_eq!(architecture.key_of(unknown), None, "{unknown}");
            }
        }
    }

    #[test]
    fn model_types_have_one_row() {
        for architecture in ARCHITECTURES {
            for model_type in architecture.model_types {
                assert_eq!(Architecture::of_model_type(model_type), Some(architecture));
            }
        }
        assert_eq!(Architecture::of_model_type("lille-130m"), None);
    }
}
