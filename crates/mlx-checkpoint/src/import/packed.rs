//! Whole numbers of a few bits, several in a word: from the order of other programs to MLX's.

use super::method::Layout;
use super::rows::fill_rows;

/// The sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Number of groups of inputs.
    pub(super) groups: usize,
    /// Bits of a number.
    pub(super) bits: usize,
}

impl Sizes {
    /// The numbers in a word.
    pub(super) fn in_word(self) -> usize {
        32 / self.bits
    }

    /// The words of one output in MLX's order.
    pub(super) fn row_words(self) -> usize {
        self.inputs / self.in_word()
    }

    fn largest(self) -> u32 {
        u32::MAX >> (32 - self.bits)
    }
}

/// Which of the eight outputs of a word of AutoAWQ each of its numbers belongs to, from the lowest bits on.
const AWQ_OUTPUTS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Where in a word of AutoAWQ each of its eight outputs is.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Layout {
    /// The numbers in MLX's order: `[outputs, row_words]`, with neighbouring inputs in a word, the first in its lowest bits.
    pub(super) fn codes(self, words: Vec<u32>, sizes: Sizes) -> Vec<u32> {
        match self {
            Self::Awq => from_awq(&words, sizes),
            Self::Gptq { .. } => transposed(&words, sizes),
            Self::Rows => words,
        }
    }

    /// The zero point of a group of an output. Without zero points it is in the middle of the numbers.
    pub(super) fn zero(self, words: Option<&[u32]>, sizes: Sizes, group: usize, output: usize) -> u32 {
        let Some(words) = words else { return 1 << (sizes.bits - 1) };
        let (n, largest) = (sizes.in_word(), sizes.largest());
        let number = |word: u32, place: usize| (word >> (place * sizes.bits)) & largest;
        let by_groups = || words[group * (sizes.outputs / n) + output / n];
        match self {
            Self::Awq => number(by_groups(), AWQ_PLACES[output % n]),
            // Zero was stored as -1, whose lowest bits are those of the largest number.
            Self::Gptq { less_one } => (number(by_groups(), output % n) + u32::from(less_one)) & largest,
            Self::Rows => number(words[output / n * sizes.groups + group], output % n),
        }
    }

    /// The index of the scale of a group of an output.
    pub(super) fn scale_at(self, sizes: Sizes, group: usize, output: usize) -> usize {
        match self {
            Self::Awq | Self::Gptq { .. } => group * sizes.outputs + output,
            Self::Rows => output * sizes.groups + group,
        }
    }
}

/// Words of outputs and inputs change places.
fn transposed(words: &[u32], sizes: Sizes) -> Vec<u32> {
    let mut codes = vec![0; words.len()];
    let (row_words, together) = (sizes.row_words(), sizes.in_word());
    // Neighbouring outputs share lines of the cache.
    fill_rows(&mut codes, together * row_words, |tile, rows| {
        for (at, words) in words.chunks_exact(sizes.outputs).enumerate() {
            let words = &words[tile * together..][..together];
            words.iter().enumerate().for_each(|(row, word)| rows[row * row_words + at] = *word);
        }
    });
    codes
}

/// Eight words of eight outputs, each of one input, become eight words of eight inputs.
fn from_awq(words: &[u32], sizes: Sizes) -> Vec<u32> {
    let mut codes = vec![0; words.len()];
    let (row_words, column_words) = (sizes.row_words(), sizes.outputs / 8);
    // The rows of the eight outputs that share words.
    fill_rows(&mut codes, 8 * row_words, |column, rows| {
        for (at, inputs) in words.chunks_exact(8 * column_words).enumerate() {
            let mut block = std::array::from_fn(|input| inputs[input * column_words + column]);
            transpose_nibbles(&mut block);
            for (word, output) in block.into_iter().zip(AWQ_OUTPUTS) {
                rows[output * row_words + at] = word;
            }
        }
    });
    codes
}

/// Transposes a square of eight words with eight numbers of 4 bits each: blocks of four numbers change places, then those of
/// two, then single numbers.
fn transpose_nibbles(words: &mut [u32; 8]) {
    for (distance, mask) in [(4, 0x0000_FFFF), (2, 0x00FF_00FF), (1, 0x0F0F_0F0F)] {
        for upper in (0..8).filter(|upper| upper & distance == 0) {
            let moved = ((words[upper] >> (4 * distance)) ^ words[upper + distance]) & mask;
            words[upper] ^= moved << (4 * distance);
            words[upper + distance] ^= moved;
        }
    }
}

/// The numbers of a row of words, in MLX's order.
pub(super) fn numbers(row: &[u32], sizes: Sizes) -> impl Iterator<Item = u32> {
    let of_word = move |&word: &u32| {
        (0..sizes.in_word()).map(move |place| (word >> (place * sizes.bits)) & sizes.largest())
    };
    row.iter().flat_map(of_word)
}
