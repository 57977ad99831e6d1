//! The tensors of a checkpoint, from those of a file.

use std::ops::Range;

use super::architectures::Architecture;
use super::facts::Facts;
use super::keys::Keys;
use super::names::{Part, are_pairs};
use crate::Problem;
use crate::header::TensorInfo;

/// A tensor of a checkpoint, and what of a file it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its key in the checkpoint.
    pub key: String,
    /// The name of the file's tensor.
    pub name: String,
    /// Which rows of the file's tensor it has: all, or the part of one of several projections that are one tensor.
    pub rows: Range<usize>,
    /// Its shape.
    pub shape: Vec<usize>,
    /// In what its numbers differ from those of the file.
    pub change: Change,
}

/// In what the numbers of a checkpoint's tensor differ from those of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// In nothing.
    None,
    /// They are less by 1.
    MinusOne,
    /// The rows of each head have another order: [`half_order`](super::half_order).
    Halves {
        /// The number of heads.
        heads: usize,
    },
}

/// One projection for queries, keys and values, which converters can make of three.
const FUSED: &str = "attn_qkv";

/// Tensors that follow from the metadata.
const FOLLOWS: &[&str] = &["attn_rot_embd.weight"];

/// The tensors of the checkpoint. Each tensor of the file is used, or has no effect.
pub(super) fn of(
    keys: &Keys<'_>,
    architecture: &'static Architecture,
    facts: &Facts,
) -> Result<Vec<ModelTensor>, Problem> {
    let mut tensors = Vec::new();
    for tensor in keys.file.tensors() {
        let info = &tensor.info;
        if follows(&info.name) || keys.has_read(&info.name) {
            continue;
        }
        let fused = architecture.name_of_fused(&info.name);
        let whole = 0..info.shape.first().copied().unwrap_or(1);
        match (architecture.key_of(&info.name), fused) {
            (Some((key, named, block)), _) => {
                check_block(block, facts, info, architecture)?;
                tensors.push(part_of(info, key, whole, named.part, facts)?);
            }
            (None, Some((block, suffix))) => {
                check_block(Some(block), facts, info, architecture)?;
                tensors.extend(split(info, architecture, block, suffix, facts)?);
            }
            (None, None) => {
                return Err(Problem::UnknownTensor {
                    name: info.name.clone(),
                    architecture: architecture.name,
                });
            }
        }
    }
    tensors.sort_by(|a, b| a.key.cmp(&b.key));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].key == pair[1].key) {
        return Err(Problem::Parts(format!(
            "tensors {:.100} and {:.100} are the same part of the model",
            pair[0].name, pair[1].name
        )));
    }
    Ok(tensors)
}

fn follows(name: &str) -> bool {
    let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    part.is_some_and(|(_, part)| FOLLOWS.contains(&part))
}

impl Architecture {
    /// The block and the suffix of a fused projection, in an architecture whose checkpoints have three.
    fn name_of_fused<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (block, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let suffix = rest.strip_prefix(FUSED)?.strip_prefix('.')?;
        Some((block.parse().ok()?, suffix))
    }
}

fn check_block(
    block: Option<usize>,
    facts: &Facts,
    info: &TensorInfo,
    architecture: &Architecture,
) -> Result<(), Problem> {
    match block {
        Some(block) if block >= facts.layers => {
            let key = format!("{}.block_count", architecture.name);
            let needed = format!("more, since there is a tensor {:.100}", info.name);
            Err(Problem::Metadata { key, found: facts.layers.to_string(), needed })
        }
        _ => Ok(()),
    }
}

/// The parts of a fused projection.
fn split(
    info: &TensorInfo,
    architecture: &Architecture,
    block: usize,
    suffix: &str,
    facts: &Facts,
) -> Result<Vec<ModelTensor>, Problem> {
    let (queries, keys) = (facts.heads * facts.head_dim, facts.key_heads * facts.head_dim);
    let ends = [0, queries, queries + keys, queries + 2 * keys];
    if info.shape.first() != Some(&ends[3]) {
        let problem = "its rows are not those of the queries, keys and values that the metadata says";
        return Err(shape(info, problem));
    }
    let part = |(index, file): (usize, &str)| {
        let name = format!("blk.{block}.{file}.{suffix}");
        let found = architecture.key_of(&name);
        let unknown = || Problem::UnknownTensor { name: info.name.clone(), architecture: architecture.name };
        let (key, named, _) = found.ok_or_else(unknown)?;
        part_of(info, key, ends[index]..ends[index + 1], named.part, facts)
    };
    ["attn_q", "attn_k", "attn_v"].into_iter().enumerate().map(part).collect()
}

/// A tensor of the checkpoint that has these rows of one of the file.
fn part_of(
    info: &TensorInfo,
    key: String,
    rows: Range<usize>,
    part: Part,
    facts: &Facts,
) -> Result<ModelTensor, Problem> {
    let heads = match part {
        Part::PairedQueries => Some(facts.heads),
        Part::PairedKeys => Some(facts.key_heads),
        Part::Plain | Part::NormPlusOne => None,
    };
    let change = match (part, heads) {
        (_, Some(heads)) if !are_pairs(rows.len(), heads) => {
            return Err(shape(info, "its rows are not pairs for the heads that the metadata says"));
        }
        (_, Some(heads)) => Change::Halves { heads },
        (Part::NormPlusOne, None) => Change::MinusOne,
        (_, None) => Change::None,
    };
    let mut shape = info.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    Ok(ModelTensor { key, name: info.name.clone(), rows, shape, change })
}

fn shape(info: &TensorInfo, problem: &'static str) -> Problem {
    let dimensions = info.shape.iter().rev().map(|&size| size as u64).collect();
    Problem::Shape { name: info.name.clone(), dimensions, problem }
}
