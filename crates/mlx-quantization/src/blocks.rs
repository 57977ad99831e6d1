//! The block formats of GGUF files.

use std::fmt;

/// A block format of GGUF files, in which a row is a sequence of blocks.
///
/// These formats exist beside those of MLX: stock MLX does not compute with them, and no config of a checkpoint names them.
/// [`block_formats_work`](crate::block_formats_work) says whether this process can use them, and
/// [`from_blocks`](crate::from_blocks) makes arrays of the blocks of a file.
///
/// # Reference
///
/// ggml, `ggml-common.h`: `block_q4_0` and so on (<https://github.com/ggml-org/ggml>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of the file format")]
#[expect(non_camel_case_types, reason = "the names of the file format")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The sizes of a format.
struct Facts {
    name: &'static str,
    /// In a slice, as [`Mode`](crate::Mode) gives it.
    bits: &'static [i32; 1],
    group: &'static [i32; 1],
    block: i32,
    scale_bytes: i32,
}

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    fn facts(self) -> Facts {
        let facts = |name, bits, group, block, scale_bytes| Facts { name, bits, group, block, scale_bytes };
        match self {
            Self::Q4_0 => facts("Q4_0", &[4], &[32], 32, 2),
            Self::Q4_1 => facts("Q4_1", &[4], &[32], 32, 4),
            Self::Q5_0 => facts("Q5_0", &[5], &[32], 32, 2),
            Self::Q5_1 => facts("Q5_1", &[5], &[32], 32, 4),
            Self::Q8_0 => facts("Q8_0", &[8], &[32], 32, 2),
            Self::Q2_K => facts("Q2_K", &[2], &[16], 256, 20),
            Self::Q3_K => facts("Q3_K", &[3], &[16], 256, 14),
            Self::Q4_K => facts("Q4_K", &[4], &[32], 256, 16),
            Self::Q5_K => facts("Q5_K", &[5], &[32], 256, 16),
            Self::Q6_K => facts("Q6_K", &[6], &[16], 256, 18),
        }
    }

    /// The format with this name; `None` for another name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Its name in GGUF files: `Q4_K`.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The elements of a block: 32 or 256. A row is a multiple of it.
    pub fn block_elements(self) -> i32 {
        self.facts().block
    }

    /// The bytes of a block.
    pub fn block_bytes(self) -> i32 {
        let Facts { bits, block, scale_bytes, .. } = self.facts();
        block * bits[0] / 8 + scale_bytes
    }

    /// The bytes of a block that hold scales and minimums. The others hold codes.
    pub(crate) fn scale_bytes(self) -> i32 {
        self.facts().scale_bytes
    }

    /// The bits of a code, and the elements that share a scale.
    pub(crate) fn bits_and_group(self) -> (&'static [i32; 1], &'static [i32; 1]) {
        let Facts { bits, group, .. } = self.facts();
        (bits, group)
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
