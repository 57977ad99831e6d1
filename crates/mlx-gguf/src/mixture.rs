//! Which type each tensor of a written file has.

use std::fmt;
use std::str::FromStr;

use crate::TensorType;
use crate::model::Description;

/// A kind of file, by the name that files of this kind have: most of the numbers are stored in one type, some in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the format's own names")]
#[expect(non_camel_case_types, reason = "the format's own names")]
pub enum FileKind {
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_K_M,
}

impl FileKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F16, Self::BF16, Self::Q8_0, Self::Q4_0, Self::Q4_K_M];

    /// Its number in files (`general.file_type`).
    pub fn number(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::BF16 => 32,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_K_M => "Q4_K_M",
        }
    }

    /// The type of most matrices.
    fn usual(self) -> TensorType {
        match self {
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_K_M => TensorType::Q4_K,
        }
    }

    /// The type of a tensor of a model. `has_own_head` says whether the model has an `output.weight`; otherwise the embedding is the
    /// head too.
    ///
    /// Vectors and norms are F32. In quantized files the head has more bits than other matrices, and so have, in Q4_K_M, the
    /// projections of values and those at the end of feed-forward networks in about half of the blocks. A row that does not have whole
    /// blocks of its type gets another type with smaller blocks.
    ///
    /// # Reference
    ///
    /// llama.cpp (<https://github.com/ggml-org/llama.cpp>), `llama_tensor_get_type` in `src/llama-quant.cpp`, without an importance
    /// matrix.
    pub fn type_of(self, name: &str, shape: &[usize], model: &Description, has_own_head: bool) -> TensorType {
        let (rows_are_vectors, columns) = (shape.len() > 1, shape.last().copied().unwrap_or(1));
        if !rows_are_vectors || !name.ends_with("weight") || name.ends_with("_norm.weight") {
            return TensorType::F32;
        }
        let usual = self.usual();
        if usual.block_elements() == 1 {
            return usual;
        }
        let is_head = name == "output.weight" || (name == "token_embd.weight" && !has_own_head);
        let kind = match () {
            () if is_head && !columns.is_multiple_of(usual.block_elements()) => TensorType::Q8_0,
            () if is_head && usual != TensorType::Q8_0 => TensorType::Q6_K,
            () if self == Self::Q4_K_M => of_block(name, model),
            () => usual,
        };
        that_fits(kind, columns)
    }
}

/// The type of a matrix of a block in Q4_K_M.
fn of_block(name: &str, model: &Description) -> TensorType {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let number: Option<usize> = block.and_then(|(number, _)| number.parse().ok());
    let (Some(number), Some((_, part))) = (number, block) else { return TensorType::Q4_K };
    let is_value = matches!(part, "attn_v.weight" | "attn_qkv.weight");
    let has_more_bits = (is_value || part == "ffn_down.weight") && has_more_bits(number, model.layers);
    match (has_more_bits, is_value && shares_values(model)) {
        (true, _) => TensorType::Q6_K,
        (false, true) => TensorType::Q5_K,
        (false, false) => TensorType::Q4_K,
    }
}

/// Whether a block is one of those that suffer most: the first and the last eighth, and each third between them.
fn has_more_bits(block: usize, blocks: usize) -> bool {
    let eighth = blocks / 8;
    block < eighth || block >= 7 * blocks / 8 || (block - eighth) % 3 == 2
}

/// Whether the model is one of those with 70 billion parameters, where eight query heads share the values of one.
fn shares_values(model: &Description) -> bool {
    match model.architecture.name {
        "llama" => model.layers == 80 && model.heads != model.key_heads,
        "qwen2" => model.layers == 80,
        _ => false,
    }
}

/// The type, or one with smaller blocks where rows do not have whole blocks.
fn that_fits(kind: TensorType, columns: usize) -> TensorType {
    let smaller = match kind {
        TensorType::Q4_K => TensorType::Q5_0,
        TensorType::Q5_K => TensorType::Q5_1,
        TensorType::Q6_K => TensorType::Q8_0,
        other => other,
    };
    let fits = |kind: &TensorType| columns.is_multiple_of(kind.block_elements());
    [kind, smaller].into_iter().find(fits).unwrap_or(TensorType::F16)
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FileKind {
    type Err = String;

    /// Reads a name, in upper or lower case.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("known are {}", Self::ALL.map(Self::name).join(", ")))
    }
}
