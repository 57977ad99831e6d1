//! What codes stand for, at compile time.

use super::Codes;
use crate::Decoding;

/// A kind of code.
pub(super) trait Format: Copy + Send + Sync {
    /// Its size.
    const BITS: usize;
    /// The smallest group that it comes in.
    const GROUP: usize = 32;
    /// Whether a code, multiplied with some number that is the same for all, is a whole number, and
    /// words of 16 bits have whole codes: then [`field16`](Self::field16) is there.
    const WHOLE: bool;

    /// Whether codes are these whole numbers themselves, from 0 on: then [`field8`](Self::field8) is there.
    const PLAIN: bool = false;

    /// `LANES` numbers, as codes from number `first` on say.
    ///
    /// # Safety
    ///
    /// `first` is a multiple of `LANES`, and the codes are within the memory at `from`.
    unsafe fn unpack<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F;

    /// The same in the order [`Decoding::NIBBLES`] where codes have 4 bits.
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    unsafe fn unpack_fast<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { Self::unpack(s, from, first) }
    }

    /// Of each lane as a word of 32 bits, what the code with this index stands for. Only for codes
    /// that do not go on in the next word.
    fn field<S: Decoding>(s: S, words: S::F, index: usize) -> S::F;

    /// Of each byte, the code with this index.
    #[inline(always)]
    fn field8<S: Decoding>(_: S, _: S::I, _: usize) -> S::I {
        unreachable!("codes that are no whole numbers")
    }

    /// Of each word of 16 bits, what the code with this index stands for, in [`Codes::unit`].
    fn field16<S: Decoding>(s: S, words: S::I, index: usize) -> S::I;
}

/// Whole numbers from 0 on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole<const BITS: usize>;

/// Floats of 4 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct E2m1;

/// Floats of 8 bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct E4m3;

impl<const BITS: usize> Format for Whole<BITS> {
    const BITS: usize = BITS;
    const WHOLE: bool = 16 % BITS == 0;
    const PLAIN: bool = Self::WHOLE;

    #[inline(always)]
    fn field8<S: Decoding>(s: S, words: S::I, index: usize) -> S::I {
        s.field8::<BITS>(words, index)
    }

    #[inline(always)]
    unsafe fn unpack<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.unpack::<BITS>(from, first) }
    }

    #[inline(always)]
    unsafe fn unpack_fast<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { if BITS == 4 { s.nibbles(from, first) } else { s.unpack::<BITS>(from, first) } }
    }

    #[inline(always)]
    fn field<S: Decoding>(s: S, words: S::F, index: usize) -> S::F {
        s.field::<BITS>(words, index)
    }

    #[inline(always)]
    fn field16<S: Decoding>(s: S, words: S::I, index: usize) -> S::I {
        s.field16::<BITS>(words, index)
    }
}

impl Format for E2m1 {
    const BITS: usize = 4;
    const GROUP: usize = 16;
    const WHOLE: bool = true;

    #[inline(always)]
    unsafe fn unpack<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.unpack_e2m1(from, first) }
    }

    #[inline(always)]
    unsafe fn unpack_fast<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.nibbles_e2m1(from, first) }
    }

    #[inline(always)]
    fn field<S: Decoding>(s: S, words: S::F, index: usize) -> S::F {
        s.field_e2m1(words, index)
    }

    #[inline(always)]
    fn field16<S: Decoding>(s: S, words: S::I, index: usize) -> S::I {
        s.field16_e2m1(words, index)
    }
}

impl Format for E4m3 {
    const BITS: usize = 8;
    const WHOLE: bool = false;

    #[inline(always)]
    unsafe fn unpack<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.unpack_e4m3(from, first) }
    }

    #[inline(always)]
    fn field<S: Decoding>(s: S, words: S::F, index: usize) -> S::F {
        s.field_e4m3(words, index)
    }

    #[inline(always)]
    fn field16<S: Decoding>(_: S, _: S::I, _: usize) -> S::I {
        unreachable!("numbers of E4M3 are not whole")
    }
}

impl Codes {
    /// Whether [`Format::field16`] is there.
    pub(super) const fn are_whole(self) -> bool {
        matches!(self, Self::Whole(2 | 4 | 8) | Self::E2m1)
    }

    /// Whether they are whole numbers from 0 on in bytes that have whole codes: then [`Format::field8`] is there.
    pub(super) const fn are_plain(self) -> bool {
        matches!(self, Self::Whole(2 | 4 | 8))
    }

    /// What one unit of [`Format::field16`] is.
    pub(super) const fn unit(self) -> f32 {
        match self {
            Self::E2m1 => 0.5,
            _ => 1.0,
        }
    }
}

/// What is done for a format that is known at compile time.
pub(super) trait ForFormat {
    fn run<F: Format>(self, format: F);
}

impl Codes {
    /// Calls `task` with this format.
    #[inline(always)]
    pub(super) fn with(self, task: impl ForFormat) {
        match self {
            Self::Whole(2) => task.run(Whole::<2>),
            Self::Whole(3) => task.run(Whole::<3>),
            Self::Whole(4) => task.run(Whole::<4>),
            Self::Whole(5) => task.run(Whole::<5>),
            Self::Whole(6) => task.run(Whole::<6>),
            Self::Whole(8) => task.run(Whole::<8>),
            Self::Whole(bits) => unreachable!("{bits} bits"),
            Self::E2m1 => task.run(E2m1),
            Self::E4m3 => task.run(E4m3),
        }
    }
}
