//! The block formats: as a value ([`BlockFormat`]), and the layout of their codes as a type ([`Planes`]).

use std::fmt;

use crate::{Integers, MAX_LANES};

/// A block format of GGUF files: how the numbers of a row are stored in blocks.
///
/// A number is `scale * (code - zero)` or, in formats with minimums, `scale * code - minimum`.
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

/// The numbers of a format.
struct Facts {
    name: &'static str,
    bits: usize,
    group: usize,
    block: usize,
    scale_bytes: usize,
    zero: u8,
    minimums: bool,
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

    #[inline(always)]
    const fn facts(self) -> Facts {
        let (name, bits, group, block, scale_bytes, zero, minimums) = match self {
            Self::Q4_0 => ("Q4_0", 4, 32, 32, 2, 8, false),
            Self::Q4_1 => ("Q4_1", 4, 32, 32, 4, 0, true),
            Self::Q5_0 => ("Q5_0", 5, 32, 32, 2, 16, false),
            Self::Q5_1 => ("Q5_1", 5, 32, 32, 4, 0, true),
            Self::Q8_0 => ("Q8_0", 8, 32, 32, 2, 128, false),
            Self::Q2_K => ("Q2_K", 2, 16, 256, 20, 0, true),
            Self::Q3_K => ("Q3_K", 3, 16, 256, 14, 4, false),
            Self::Q4_K => ("Q4_K", 4, 32, 256, 16, 0, true),
            Self::Q5_K => ("Q5_K", 5, 32, 256, 16, 0, true),
            Self::Q6_K => ("Q6_K", 6, 16, 256, 18, 32, false),
        };
        Facts { name, bits, group, block, scale_bytes, zero, minimums }
    }

    /// The name in GGUF files.
    #[inline]
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// The size of a code in bits.
    #[inline]
    pub const fn bits(self) -> usize {
        self.facts().bits
    }

    /// The elements of a group, which share a scale: 16 or 32.
    #[inline]
    pub const fn group(self) -> usize {
        self.facts().group
    }

    /// The elements of a block: 32 or 256.
    #[inline]
    pub const fn block(self) -> usize {
        self.facts().block
    }

    /// The bytes of a block that hold scales and minimums. The others hold codes.
    #[inline]
    pub const fn scale_bytes(self) -> usize {
        self.facts().scale_bytes
    }

    /// The bytes of a block.
    #[inline]
    pub const fn block_bytes(self) -> usize {
        self.block() * self.bits() / 8 + self.scale_bytes()
    }

    /// The code that stands for the number 0.
    #[inline(always)]
    pub(super) const fn zero(self) -> u8 {
        self.facts().zero
    }

    /// Whether each group has a minimum.
    #[inline(always)]
    pub(super) const fn has_minimums(self) -> bool {
        self.facts().minimums
    }

    /// Runs `task` for the layout of the codes.
    #[inline(always)]
    pub(super) fn with<R>(self, task: impl ForPlanes<R>) -> R {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => task.run(Fours),
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => task.run(Fives),
            Self::Q8_0 => task.run(Eights),
            Self::Q2_K => task.run(Twos),
            Self::Q3_K => task.run(Threes),
            Self::Q6_K => task.run(Sixes),
        }
    }
}

impl fmt::Display for BlockFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A computation that is compiled for each layout of codes.
pub(super) trait ForPlanes<R> {
    fn run<P: Planes>(self, planes: P) -> R;
}

/// The most words that hold the codes of a group.
pub(super) const MOST_WORDS: usize = 8;
/// The groups of a chunk of a row. The last chunk of a row may have fewer.
pub(super) const CHUNK: usize = 16;

/// Words of 32 bits, one or a vector of them.
pub(super) trait Words: Copy {
    type Word: Copy;

    /// The bits of `mask` of a word that is shifted to the right by `by` bits, or to the left if `by` is negative.
    fn field(self, word: Self::Word, by: i32, mask: u32) -> Self::Word;

    fn or(self, a: Self::Word, b: Self::Word) -> Self::Word;
}

/// One word at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct One;

impl Words for One {
    type Word = u32;

    #[inline(always)]
    fn field(self, word: u32, by: i32, mask: u32) -> u32 {
        (if by < 0 { word << by.unsigned_abs() } else { word >> by }) & mask
    }

    #[inline(always)]
    fn or(self, a: u32, b: u32) -> u32 {
        a | b
    }
}

/// A vector at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Many<S>(pub(super) S);

impl<S: Integers> Words for Many<S> {
    type Word = S::I;

    #[inline(always)]
    fn field(self, word: S::I, by: i32, mask: u32) -> S::I {
        let shifted = match by {
            0 => word,
            1.. => self.0.shift_right(word, by.unsigned_abs()),
            _ => self.0.shift_left(word, by.unsigned_abs()),
        };
        self.0.and(shifted, self.0.splat_bits(mask))
    }

    #[inline(always)]
    fn or(self, a: S::I, b: S::I) -> S::I {
        self.0.or(a, b)
    }
}

/// How the codes of a row lie in memory.
///
/// A row is cut into chunks of [`CHUNK`] groups, and each group of a chunk has a *lane*. First come the first words of
/// all groups of the chunk, then their second words, and so on, so that a vector of words has a lane for each group.
/// Codes of 5 and 6 bits have their low 4 bits in some words and the others in one more word. Codes of 3 bits have
/// their low 2 bits in a word and the others in half a word.
///
/// Code `4 h + b` of a group, with `b` below 4, is byte `b` of vector number `h` of codes.
pub(super) trait Planes: Copy + Send + Sync {
    /// The size of a code in bits.
    const BITS: usize;
    /// The elements of a group.
    const GROUP: usize;
    /// The number of vectors of codes in a group, with four codes for each lane.
    const VECTORS: usize = Self::GROUP / 4;
    /// The whole words of a group.
    const WORDS: usize = Self::GROUP * Self::BITS / 32;
    /// Whether half a word follows.
    const HALF: bool = Self::GROUP * Self::BITS % 32 != 0;

    /// Vector number `h` of the codes in the words of a group: a code in each byte.
    fn codes<W: Words>(w: W, words: &[W::Word; MOST_WORDS], h: usize) -> W::Word;
}

/// Loads the words of `S::LANES` groups, as floats with which there is no arithmetic, of a chunk of `lanes` groups, from group `first` on. Only `count` groups are
/// there; the words of the others are 0.
///
/// # Safety
///
/// The words of the chunk can be read at `chunk`, `first + count` is at most `lanes`, and `count` at most `S::LANES`.
#[inline(always)]
pub(super) unsafe fn load<S: Integers, P: Planes>(
    s: S,
    chunk: *const u32,
    lanes: usize,
    first: usize,
    count: usize,
) -> [S::F; MOST_WORDS] {
    let mut words = [s.zero(); MOST_WORDS];
    // SAFETY: the caller's promise.
    unsafe {
        for (k, word) in words.iter_mut().enumerate().take(P::WORDS) {
            let at = chunk.add(k * lanes + first).cast();
            *word = if count == S::LANES { s.load_f32(at) } else { s.load_first(at, count) };
        }
        if const { P::HALF } {
            let at = chunk.add(P::WORDS * lanes).cast::<u16>().add(first);
            let mut halves = [0; MAX_LANES];
            for (i, half) in halves[..S::LANES].iter_mut().enumerate().take(count) {
                *half = spread(at.add(i).read());
            }
            words[P::WORDS] = s.load_f32(halves.as_ptr().cast());
        }
    }
    words
}

/// The words of one group, of lane `lane` of a chunk of `lanes` groups.
#[inline(always)]
pub(super) fn words_of<P: Planes>(chunk: &[u32], lanes: usize, lane: usize) -> [u32; MOST_WORDS] {
    let mut words = [0; MOST_WORDS];
    for (k, word) in words.iter_mut().enumerate().take(P::WORDS) {
        *word = chunk[k * lanes + lane];
    }
    if const { P::HALF } {
        words[P::WORDS] = spread((chunk[P::WORDS * lanes + lane / 2] >> (lane % 2 * 16)) as u16);
    }
    words
}

/// The third bits of 16 codes: those of codes `4 h + b` for all `h` in the low bits of byte `b`.
#[inline(always)]
const fn spread(half: u16) -> u32 {
    let half = half as u32;
    half & 0x0f0f | (half & 0xf0f0) << 12
}

/// The half word for [`spread`].
#[inline(always)]
pub(super) const fn unspread(word: u32) -> u32 {
    word & 0x0f0f | word >> 12 & 0xf0f0
}

macro_rules! planes {
    ($($name:ident, $bits:literal bits, groups of $group:literal: |$w:ident, $words:ident, $h:ident| $codes:expr;)*) => {$(
        #[doc = concat!("Codes of ", $bits, " bits in groups of ", $group, ".")]
        #[derive(Debug, Clone, Copy)]
        pub(super) struct $name;

        impl Planes for $name {
            const BITS: usize = $bits;
            const GROUP: usize = $group;

            #[inline(always)]
            fn codes<W: Words>($w: W, $words: &[W::Word; MOST_WORDS], $h: usize) -> W::Word {
                $codes
            }
        }
    )*};
}

planes! {
    Twos, 2 bits, groups of 16: |w, words, h| w.field(words[0], 2 * h as i32, 0x0303_0303);
    Threes, 3 bits, groups of 16: |w, words, h| {
        w.or(w.field(words[0], 2 * h as i32, 0x0303_0303), w.field(words[1], h as i32 - 2, 0x0404_0404))
    };
    Fours, 4 bits, groups of 32: |w, words, h| w.field(words[h % 4], (h / 4 * 4) as i32, 0x0f0f_0f0f);
    Fives, 5 bits, groups of 32: |w, words, h| {
        let low = w.field(words[h % 4], (h / 4 * 4) as i32, 0x0f0f_0f0f);
        w.or(low, w.field(words[4], h as i32 - 4, 0x1010_1010))
    };
    Sixes, 6 bits, groups of 16: |w, words, h| {
        let low = w.field(words[h % 2], (h / 2 * 4) as i32, 0x0f0f_0f0f);
        w.or(low, w.field(words[2], 2 * h as i32 - 4, 0x3030_3030))
    };
    Eights, 8 bits, groups of 32: |_w, words, h| words[h];
}
