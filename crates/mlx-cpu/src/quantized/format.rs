//! The formats of codes: as a value ([`Codes`]), and as a type, for code that is compiled for each format ([`Format`]).

use crate::Decoding;

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// A whole number from 0 on, of this many bits.
    Whole(usize),
    /// A float of 4 bits.
    E2m1,
    /// A float of 8 bits.
    E4m3,
}

impl Codes {
    /// The size of a code in bits.
    pub(super) const fn bits(self) -> usize {
        match self {
            Self::Whole(bits) => bits,
            Self::E2m1 => 4,
            Self::E4m3 => 8,
        }
    }

    /// Whether the format has [`Format::WHOLE`], and so [`Format::field16`].
    pub(super) const fn are_whole(self) -> bool {
        matches!(self, Self::Whole(2 | 4 | 8) | Self::E2m1)
    }

    /// Whether the format has [`Format::PLAIN`], and so [`Format::field8`].
    pub(super) const fn are_plain(self) -> bool {
        matches!(self, Self::Whole(2 | 4 | 8))
    }

    /// The number that 1 stands for in the results of [`Format::field16`].
    pub(super) const fn unit(self) -> f32 {
        match self {
            Self::E2m1 => 0.5,
            _ => 1.0,
        }
    }
}

/// A format of codes, at compile time.
pub(super) trait Format: Copy + Send + Sync {
    /// The size of a code in bits.
    const BITS: usize;
    /// The size of its smallest groups.
    const GROUP: usize = 32;
    /// Whether codes times a constant are whole numbers, and no code crosses the border of a 16-bit word. Then
    /// [`field16`](Self::field16) can be called.
    const WHOLE: bool;
    /// Whether, in addition, the codes themselves are these whole numbers. Then [`field8`](Self::field8) can be called.
    const PLAIN: bool = false;

    /// Decodes `LANES` codes in memory, from code number `first` on.
    ///
    /// # Safety
    ///
    /// `first` is a multiple of `LANES`, and the codes lie in memory that can be read at `from`.
    unsafe fn unpack<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F;

    /// As [`unpack`](Self::unpack), but codes of 4 bits come in the order [`Decoding::NIBBLES`].
    ///
    /// # Safety
    ///
    /// As above.
    #[inline(always)]
    unsafe fn unpack_fast<S: Decoding>(s: S, from: *const u8, first: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { Self::unpack(s, from, first) }
    }

    /// Decodes code number `index` of each word of 32 bits. Only for codes that do not cross the border of a word.
    fn field<S: Decoding>(s: S, words: S::F, index: usize) -> S::F;

    /// Code number `index` of each byte.
    #[inline(always)]
    fn field8<S: Decoding>(_: S, _: S::I, _: usize) -> S::I {
        unreachable!("codes that are not whole numbers")
    }

    /// Decodes code number `index` of each word of 16 bits, in units of [`Codes::unit`].
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

/// A computation that is compiled for each format.
pub(super) trait ForFormat {
    fn run<F: Format>(self, format: F);
}

impl Codes {
    /// Runs `task` for this format.
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
