//! A matrix of blocks in memory.

use super::format::{BlockFormat, CHUNK};
use crate::QuantizedLayoutError;

/// A matrix whose rows consist of blocks of a GGUF file. [`split_blocks`](super::split_blocks) makes its two slices: the
/// codes, and the scales of the blocks in the format that the file has.
#[derive(Debug, Clone, Copy)]
pub struct BlockMatrix<'a> {
    pub(super) format: BlockFormat,
    pub(super) codes: &'a [u32],
    pub(super) scales: &'a [u8],
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl<'a> BlockMatrix<'a> {
    /// A matrix over what [`split_blocks`](super::split_blocks) has written.
    ///
    /// # Shapes
    ///
    /// `codes` `[rows, columns * bits / 32]`, `scales` `[rows, columns / block * scale_bytes]`, with the numbers of
    /// [`BlockFormat`].
    ///
    /// # Errors
    ///
    /// If `columns` is not a multiple of [`BlockFormat::block`], or a slice has another length.
    pub fn new(
        format: BlockFormat,
        codes: &'a [u32],
        scales: &'a [u8],
        rows: usize,
        columns: usize,
    ) -> Result<Self, QuantizedLayoutError> {
        check(format, codes.len(), scales.len(), rows, columns)?;
        Ok(Self { format, codes, scales, rows, columns })
    }

    /// The format of the blocks.
    #[inline(always)]
    pub const fn format(&self) -> BlockFormat {
        self.format
    }

    /// The number of rows.
    #[inline(always)]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns, in elements.
    #[inline(always)]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The number of groups in a row.
    #[inline(always)]
    pub(super) const fn groups(&self) -> usize {
        self.columns / self.format.group()
    }

    /// The number of words of the codes of a row.
    #[inline(always)]
    pub(super) const fn row_words(&self) -> usize {
        self.columns * self.format.bits() / 32
    }

    /// The codes of some rows.
    #[inline(always)]
    pub(super) fn codes_of(&self, rows: std::ops::Range<usize>) -> &'a [u32] {
        &self.codes[rows.start * self.row_words()..rows.end * self.row_words()]
    }
}

/// Checks the lengths of the two slices of a matrix.
pub(super) fn check(
    format: BlockFormat,
    codes: usize,
    scales: usize,
    rows: usize,
    columns: usize,
) -> Result<(), QuantizedLayoutError> {
    let block = format.block();
    if !columns.is_multiple_of(block) {
        return Err(QuantizedLayoutError::Columns { columns, group: block });
    }
    let words = rows.saturating_mul(columns / 32).saturating_mul(format.bits());
    let bytes = rows.saturating_mul(columns / block).saturating_mul(format.scale_bytes());
    for (what, found, expected) in [("words of weights", codes, words), ("bytes of scales", scales, bytes)] {
        if found != expected {
            return Err(QuantizedLayoutError::Length { what, found, expected });
        }
    }
    Ok(())
}

/// A chunk of a row: some groups whose words lie together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    /// The first of its groups.
    pub(super) first: usize,
    /// The number of its groups.
    pub(super) lanes: usize,
}

impl Chunk {
    /// The chunk of a row of `groups` groups that group `group` lies in.
    #[inline(always)]
    pub(super) fn of(group: usize, groups: usize) -> Self {
        let first = group / CHUNK * CHUNK;
        Self { first, lanes: CHUNK.min(groups - first) }
    }

    /// The word of the row that the chunk begins with, for `bits` bits in groups of `group`.
    #[inline(always)]
    pub(super) const fn word(self, bits: usize, group: usize) -> usize {
        // A chunk that is not the first begins with an even group.
        self.first * group * bits / 32
    }
}
