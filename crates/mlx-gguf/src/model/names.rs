//! The names of tensors in files and in checkpoints.

/// What a tensor is, as far as files and checkpoints store its numbers in another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Stored alike.
    Plain,
    /// The weight of a norm, to which files have added 1.
    NormPlusOne,
    /// The projection of queries. In files, the two features that rotate together are neighbours ([`pair_order`]).
    PairedQueries,
    /// The projection of keys, stored as that of queries.
    PairedKeys,
}

/// A module, with its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// In files: `attn_q` for `blk.0.attn_q.weight`.
    pub file: &'static str,
    /// In checkpoints: `self_attn.q_proj` for `model.layers.0.self_attn.q_proj.weight`.
    pub checkpoint: &'static str,
    /// How its numbers are stored.
    pub part: Part,
}

const fn plain(file: &'static str, checkpoint: &'static str) -> Named {
    Named { file, checkpoint, part: Part::Plain }
}

const fn plus_one(file: &'static str, checkpoint: &'static str) -> Named {
    Named { file, checkpoint, part: Part::NormPlusOne }
}

/// The modules outside of blocks.
pub(super) const OUTSIDE: &[Named] = &[
    plain("token_embd", "model.embed_tokens"),
    plain("output_norm", "model.norm"),
    plain("output", "lm_head"),
];

/// [`OUTSIDE`] for models of Gemma.
pub(super) const GEMMA_OUTSIDE: &[Named] =
    &[OUTSIDE[0], plus_one("output_norm", "model.norm"), plain("output", "lm_head")];

const V: Named = plain("attn_v", "self_attn.v_proj");
const O: Named = plain("attn_output", "self_attn.o_proj");
const GATE: Named = plain("ffn_gate", "mlp.gate_proj");
const UP: Named = plain("ffn_up", "mlp.up_proj");
const DOWN: Named = plain("ffn_down", "mlp.down_proj");
const Q: Named = plain("attn_q", "self_attn.q_proj");
const K: Named = plain("attn_k", "self_attn.k_proj");
const Q_NORM: Named = plain("attn_q_norm", "self_attn.q_norm");
const K_NORM: Named = plain("attn_k_norm", "self_attn.k_norm");
const ATTENTION_NORM: Named = plain("attn_norm", "input_layernorm");
const MLP_NORM: Named = plain("ffn_norm", "post_attention_layernorm");

/// The blocks of Llama, and of models with the same blocks and the same rotation of neighbours.
pub(super) const LLAMA: &[Named] = &[
    ATTENTION_NORM,
    Named { file: "attn_q", checkpoint: "self_attn.q_proj", part: Part::PairedQueries },
    Named { file: "attn_k", checkpoint: "self_attn.k_proj", part: Part::PairedKeys },
    V,
    O,
    MLP_NORM,
    GATE,
    UP,
    DOWN,
];

/// The blocks of Qwen 2 and 3.
pub(super) const QWEN: &[Named] = &[ATTENTION_NORM, Q, K, V, Q_NORM, K_NORM, O, MLP_NORM, GATE, UP, DOWN];

/// The blocks of OLMo 2 and 3.
pub(super) const OLMO: &[Named] = &[
    Q,
    K,
    V,
    Q_NORM,
    K_NORM,
    O,
    plain("post_attention_norm", "post_attention_layernorm"),
    GATE,
    UP,
    DOWN,
    plain("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The blocks of Gemma 2 and 3.
pub(super) const GEMMA: &[Named] = &[
    plus_one("attn_norm", "input_layernorm"),
    Q,
    K,
    V,
    plus_one("attn_q_norm", "self_attn.q_norm"),
    plus_one("attn_k_norm", "self_attn.k_norm"),
    O,
    plus_one("post_attention_norm", "post_attention_layernorm"),
    plus_one("ffn_norm", "pre_feedforward_layernorm"),
    GATE,
    UP,
    DOWN,
    plus_one("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The blocks of Phi-3, which has one projection for queries, keys and values, and one for the gate and what it scales.
pub(super) const PHI3: &[Named] = &[
    ATTENTION_NORM,
    plain("attn_qkv", "self_attn.qkv_proj"),
    O,
    MLP_NORM,
    plain("ffn_up", "mlp.gate_up_proj"),
    DOWN,
];

/// For each row of a projection as checkpoints have it, the row of the file. In checkpoints a feature rotates with the one half
/// a head away, in files with its neighbour. `None` where the rows are not pairs for `heads` heads.
pub fn half_order(rows: usize, heads: usize) -> Option<Vec<usize>> {
    order(rows, heads, |half, row| if row < half { 2 * row } else { 2 * (row - half) + 1 })
}

/// For each row of a projection as files have it, the row of the checkpoint: the inverse of [`half_order`].
pub fn pair_order(rows: usize, heads: usize) -> Option<Vec<usize>> {
    order(rows, heads, |half, row| row / 2 + half * (row % 2))
}

/// Whether each of the heads has whole pairs of rows.
pub(super) fn are_pairs(rows: usize, heads: usize) -> bool {
    heads > 0 && rows.is_multiple_of(2 * heads)
}

fn order(rows: usize, heads: usize, of_head: impl Fn(usize, usize) -> usize) -> Option<Vec<usize>> {
    if !are_pairs(rows, heads) {
        return None;
    }
    let head = rows / heads;
    Some((0..rows).map(|row| row / head * head + of_head(head / 2, row % head)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn pairs_and_halves_are_inverse_orders() {
        assert_eq!(half_order(8, 2).unwrap(), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(half_order(6, 1).unwrap(), [0, 2, 4, 1, 3, 5]);
        let (halves, pairs) = (half_order(24, 2).unwrap(), pair_order(24, 2).unwrap());
        assert!((0..24).all(|row| halves[pairs[row]] == row));
        assert_eq!([half_order(6, 2), half_order(4, 0), pair_order(5, 1)], [None, None, None]);
    }
}
