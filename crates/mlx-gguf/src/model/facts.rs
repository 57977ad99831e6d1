//! What the metadata of all architectures says.

use super::keys::Keys;
use crate::{GgufError, Problem};

/// Tensors that the config has in place of the checkpoint.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// The most layers of a model.
const MOST_LAYERS: i64 = 4096;

/// The longest context, in tokens. The configs of checkpoints have the same limit.
const LONGEST: i64 = 1 << 28;

/// The largest size of any kind.
pub(super) const LARGEST: i64 = i32::MAX as i64;

/// What all architectures have.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) head_dim: usize,
    pub(super) hidden: usize,
    pub(super) mlp: usize,
    pub(super) context: i64,
    pub(super) vocabulary: usize,
    pub(super) epsilon: f64,
    /// Whether the file states the size of a head.
    pub(super) has_head_dim: bool,
    /// Features of a head that are rotated.
    pub(super) rotated: usize,
}

impl Facts {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self, GgufError> {
        let size = |key, layers| {
            let most = match key {
                "block_count" => MOST_LAYERS,
                "context_length" => LONGEST,
                _ => LARGEST,
            };
            match keys.size(key, layers)? {
                Some(found) if found > most => Err(keys.wrong(key, found, format!("at most {most}"))),
                found => Ok(found.map(|found| found as usize)),
            }
        };
        let needed = |key, layers| size(key, layers).and_then(|found| keys.needed(key, found));
        let layers = needed("block_count", None)?;
        let all = Some(layers);
        let heads = needed("attention.head_count", all)?;
        let key_heads = size("attention.head_count_kv", all)?.unwrap_or(heads);
        if !heads.is_multiple_of(key_heads) {
            let needed = format!("a divisor of {heads}, the number of query heads");
            return Err(keys.wrong("attention.head_count_kv", key_heads, needed));
        }
        let hidden = needed("embedding_length", None)?;
        let stated = size("attention.key_length", None)?;
        if stated.is_none() && !hidden.is_multiple_of(heads) {
            let needed =
                format!("a divisor of embedding_length, {hidden}, since there is no attention.key_length");
            return Err(keys.wrong("attention.head_count", heads, needed));
        }
        let head_dim = stated.unwrap_or(hidden / heads);
        // Values are as long as keys, and in layers with a window both are as long as in the others.
        for key in ["attention.value_length", "attention.key_length_swa", "attention.value_length_swa"] {
            if let Some(found) = size(key, None)?.filter(|&found| found != head_dim) {
                return Err(keys.wrong(key, found, format!("{head_dim}, the length of keys")));
            }
        }
        let rotated = size("rope.dimension_count", None)?.unwrap_or(head_dim);
        if let Some(found) = size("rope.dimension_count_swa", None)?.filter(|&found| found != rotated) {
            return Err(keys.wrong(
                "rope.dimension_count_swa",
                found,
                format!("{rotated}, as in other layers"),
            ));
        }
        if keys.bool("attention.causal")? == Some(false) {
            return Err(keys.wrong("attention.causal", false, "true: only such models can be loaded"));
        }
        Ok(Self {
            layers,
            heads,
            key_heads,
            head_dim,
            hidden,
            mlp: needed("feed_forward_length", all)?,
            context: needed("context_length", None)? as i64,
            vocabulary: vocabulary(keys, hidden, size("vocab_size", None)?)?,
            epsilon: keys.needed(EPSILON, keys.number(EPSILON)?)?,
            has_head_dim: stated.is_some(),
            rotated,
        })
    }
}

const EPSILON: &str = "attention.layer_norm_rms_epsilon";
const EMBEDDING: &str = "token_embd.weight";

/// The number of tokens: the rows of the embedding table.
fn vocabulary(keys: &Keys<'_>, hidden: usize, stated: Option<usize>) -> Result<usize, GgufError> {
    let missing = || keys.file.wrong(Problem::MissingTensor { name: EMBEDDING.to_owned() });
    let table = &keys.file.tensor(EMBEDDING).ok_or_else(missing)?.info.shape;
    let &[rows, columns] = &table[..] else {
        let dimensions = table.iter().rev().map(|&size| size as u64).collect();
        let problem = "it must have two";
        return Err(keys.file.wrong(Problem::Shape { name: EMBEDDING.to_owned(), dimensions, problem }));
    };
    if columns != hidden {
        let needed = format!("{columns}, the length of a row of {EMBEDDING}");
        return Err(keys.wrong("embedding_length", hidden, needed));
    }
    match stated {
        Some(stated) if stated != rows => {
            Err(keys.wrong("vocab_size", stated, format!("{rows}, the number of rows of {EMBEDDING}")))
        }
        _ => Ok(rows),
    }
}
