//! The modes, and the sizes that each of them has.

use std::fmt;

/// What a quantized number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// An integer, with a scale and a bias for its group.
    Affine,
    /// A float of 4 bits, with a power of two for its group.
    Mxfp4,
    /// A float of 8 bits, with a power of two for its group.
    Mxfp8,
    /// A float of 4 bits, with a float of 8 bits for its group.
    Nvfp4,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// As MLX and configs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mode with its sizes: one that MLX has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quantization {
    pub(crate) mode: Mode,
    pub(crate) bits: i32,
    pub(crate) group_size: i32,
}

/// A quantization that MLX does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownQuantization {
    /// A mode of another name.
    #[error("mode {found:?} is not known; known are {}", Mode::ALL.map(Mode::name).join(", "))]
    Mode {
        /// The name.
        found: String,
    },
    /// A mode with other sizes than it has.
    #[error("{mode} quantization has {expected}, and not {bits} bits in groups of {group_size}")]
    Sizes {
        /// The mode.
        mode: Mode,
        /// Bits of a number.
        bits: i32,
        /// Numbers that share a scale.
        group_size: i32,
        /// What the mode has.
        expected: &'static str,
    },
}

impl Quantization {
    /// Floats of 4 bits in groups of 32.
    pub const MXFP4: Self = Self { mode: Mode::Mxfp4, bits: 4, group_size: 32 };
    /// Floats of 8 bits in groups of 32.
    pub const MXFP8: Self = Self { mode: Mode::Mxfp8, bits: 8, group_size: 32 };
    /// Floats of 4 bits in groups of 16.
    pub const NVFP4: Self = Self { mode: Mode::Nvfp4, bits: 4, group_size: 16 };

    /// Integers of 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization::Sizes`] for other sizes.
    pub fn affine(bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        Self::new(Mode::Affine, bits, group_size)
    }

    /// A mode with its sizes.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization::Sizes`] for sizes that the mode does not have.
    pub fn new(mode: Mode, bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        let (known, expected) = match mode {
            Mode::Affine => (
                [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size),
                "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
            ),
            Mode::Mxfp4 => ((bits, group_size) == (4, 32), "4 bits in groups of 32"),
            Mode::Mxfp8 => ((bits, group_size) == (8, 32), "8 bits in groups of 32"),
            Mode::Nvfp4 => ((bits, group_size) == (4, 16), "4 bits in groups of 16"),
        };
        if known {
            Ok(Self { mode, bits, group_size })
        } else {
            Err(UnknownQuantization::Sizes { mode, bits, group_size, expected })
        }
    }

    /// The mode of this name, as configs have it, with its sizes.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization`] for another name or other sizes.
    pub fn named(mode: &str, bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        let known = Mode::ALL.into_iter().find(|known| known.name() == mode);
        let known = known.ok_or_else(|| UnknownQuantization::Mode { found: mode.to_owned() })?;
        Self::new(known, bits, group_size)
    }

    /// What a number is.
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Bits of a number.
    pub fn bits(self) -> i32 {
        self.bits
    }

    /// Numbers that share a scale.
    pub fn group_size(self) -> i32 {
        self.group_size
    }

    /// The shape of the packed numbers of a `[rows, columns]` matrix: 32 bits to an element.
    pub fn packed_shape(self, [rows, columns]: [i32; 2]) -> [i32; 2] {
        [rows, columns / 32 * self.bits + columns % 32 * self.bits / 32]
    }

    /// The shape of the scales, and of the biases, of a `[rows, columns]` matrix.
    pub fn groups_shape(self, [rows, columns]: [i32; 2]) -> [i32; 2] {
        [rows, columns / self.group_size]
    }

    /// Whether each group has a bias beside its scale.
    pub fn has_biases(self) -> bool {
        self.mode == Mode::Affine
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bits in groups of {}", self.mode, self.bits, self.group_size)
    }
}
