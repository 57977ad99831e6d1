//! The modes of quantization, and the sizes that each mode has.

use std::fmt;

use crate::BlockFormat;

/// How numbers are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Integers, with a scale and a bias for each group.
    Affine,
    /// Floats of 4 bits, with a power of two for each group.
    Mxfp4,
    /// Floats of 8 bits, with a power of two for each group.
    Mxfp8,
    /// Floats of 4 bits, with a float of 8 bits for each group.
    Nvfp4,
    /// The blocks of a GGUF file.
    Blocks(BlockFormat),
}

impl Mode {
    /// All modes of MLX: those that configs and files of MLX name.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// The mode of MLX with this name.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization::Mode`] for another name.
    pub fn named(name: &str) -> Result<Self, UnknownQuantization> {
        let known = Self::ALL.into_iter().find(|mode| mode.name() == name);
        known.ok_or_else(|| UnknownQuantization::Mode { found: name.to_owned() })
    }

    /// Its name in MLX and in configs; for blocks the name of the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocks(format) => format.name(),
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The numbers of bits that a quantized number can have.
    pub fn bits(self) -> &'static [i32] {
        self.sizes().bits
    }

    /// The numbers of columns that can share a scale.
    pub fn group_sizes(self) -> &'static [i32] {
        self.sizes().group_sizes
    }

    /// The mode with the sizes that MLX and mlx-lm take if none are given.
    pub fn with_default_sizes(self) -> Quantization {
        let (bits, group_size) = self.sizes().default;
        Quantization { mode: self, bits, group_size }
    }

    /// The table of all sizes.
    fn sizes(self) -> Sizes {
        let one = |bits: &'static [i32; 1], group_sizes: &'static [i32; 1]| Sizes {
            bits,
            group_sizes,
            default: (bits[0], group_sizes[0]),
        };
        match self {
            Self::Affine => {
                Sizes { bits: &[2, 3, 4, 5, 6, 8], group_sizes: &[32, 64, 128], default: (4, 64) }
            }
            Self::Mxfp4 => one(&[4], &[32]),
            Self::Mxfp8 => one(&[8], &[32]),
            Self::Nvfp4 => one(&[4], &[16]),
            Self::Blocks(format) => {
                let (bits, group_sizes) = format.bits_and_group();
                one(bits, group_sizes)
            }
        }
    }
}

/// The sizes that a mode has. Each number of bits goes with each group size.
struct Sizes {
    bits: &'static [i32],
    group_sizes: &'static [i32],
    /// Bits and group size.
    default: (i32, i32),
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bits in groups of {}", Choice(self.bits), Choice(self.group_sizes))
    }
}

/// Numbers in words: `2, 3 or 4`.
struct Choice(&'static [i32]);

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.len().saturating_sub(1);
        for (i, number) in self.0.iter().enumerate() {
            let separator = match i {
                0 => "",
                _ if i == last => " or ",
                _ => ", ",
            };
            write!(f, "{separator}{number}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mode with sizes that MLX has for it.
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
    /// There is no mode of this name.
    #[error("mode {found:?} is not known; known are {}", Mode::ALL.map(Mode::name).join(", "))]
    Mode {
        /// The name.
        found: String,
    },
    /// The mode does not have these sizes.
    #[error("{mode} quantization has {}, and not {bits} bits in groups of {group_size}", mode.sizes())]
    Sizes {
        /// The mode.
        mode: Mode,
        /// Bits of a quantized number.
        bits: i32,
        /// Number of columns that share a scale.
        group_size: i32,
    },
}

impl Quantization {
    /// Floats of 4 bits in groups of 32.
    pub const MXFP4: Self = Self { mode: Mode::Mxfp4, bits: 4, group_size: 32 };
    /// Floats of 8 bits in groups of 32.
    pub const MXFP8: Self = Self { mode: Mode::Mxfp8, bits: 8, group_size: 32 };
    /// Floats of 4 bits in groups of 16.
    pub const NVFP4: Self = Self { mode: Mode::Nvfp4, bits: 4, group_size: 16 };
    /// 8 bits in groups of 64, in the affine mode.
    pub const AFFINE_8_64: Self = Self { mode: Mode::Affine, bits: 8, group_size: 64 };

    /// Integers of this many bits in groups of this size. [`Mode::bits`] and [`Mode::group_sizes`] say which there are.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization::Sizes`] for other sizes.
    pub fn affine(bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        Self::new(Mode::Affine, bits, group_size)
    }

    /// A mode with these sizes.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization::Sizes`] for sizes that the mode does not have.
    pub fn new(mode: Mode, bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        if mode.bits().contains(&bits) && mode.group_sizes().contains(&group_size) {
            Ok(Self { mode, bits, group_size })
        } else {
            Err(UnknownQuantization::Sizes { mode, bits, group_size })
        }
    }

    /// The blocks of a GGUF file.
    pub fn blocks(format: BlockFormat) -> Self {
        Mode::Blocks(format).with_default_sizes()
    }

    /// Every quantization that MLX has.
    pub fn all() -> impl Iterator<Item = Self> {
        Mode::ALL.into_iter().flat_map(|mode| {
            let with_bits = move |&bits: &i32| {
                mode.group_sizes().iter().map(move |&group_size| Self { mode, bits, group_size })
            };
            mode.bits().iter().flat_map(with_bits)
        })
    }

    /// The mode of this name, as configs have it, with these sizes.
    ///
    /// # Errors
    ///
    /// [`UnknownQuantization`] for another name or other sizes.
    pub fn named(mode: &str, bits: i32, group_size: i32) -> Result<Self, UnknownQuantization> {
        Self::new(Mode::named(mode)?, bits, group_size)
    }

    /// The mode of this name, with the default of the mode for a size that is `None`.
    ///
    /// # Errors
    ///
    /// Those of [`named`](Self::named).
    pub fn with_defaults(
        mode: &str,
        bits: Option<i32>,
        group_size: Option<i32>,
    ) -> Result<Self, UnknownQuantization> {
        let mode = Mode::named(mode)?;
        let default = mode.with_default_sizes();
        Self::new(mode, bits.unwrap_or(default.bits), group_size.unwrap_or(default.group_size))
    }

    /// How numbers are quantized.
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Bits of a quantized number.
    pub fn bits(self) -> i32 {
        self.bits
    }

    /// Number of columns that share a scale.
    pub fn group_size(self) -> i32 {
        self.group_size
    }

    /// The shape of the packed numbers of a `[rows, columns]` matrix, whose elements have 32 bits.
    pub fn packed_shape(self, [rows, columns]: [i32; 2]) -> [i32; 2] {
        [rows, columns / 32 * self.bits + columns % 32 * self.bits / 32]
    }

    /// The shape of the scales of a `[rows, columns]` matrix, which is that of its biases too. For blocks, scales are
    /// bytes.
    pub fn groups_shape(self, [rows, columns]: [i32; 2]) -> [i32; 2] {
        match self.mode {
            Mode::Blocks(format) => [rows, columns / format.block_elements() * format.scale_bytes()],
            _ => [rows, columns / self.group_size],
        }
    }

    /// The number of columns of a matrix whose scales have rows of this length; `None` if no matrix has such scales.
    pub(crate) fn columns(self, scales: i32) -> Option<i64> {
        let (scales, each, elements) = match self.mode {
            Mode::Blocks(format) => (scales, format.scale_bytes(), format.block_elements()),
            _ => (scales, 1, self.group_size),
        };
        (scales % each == 0).then(|| i64::from(scales / each) * i64::from(elements))
    }

    /// Whether each group has a bias beside its scale.
    pub fn has_biases(self) -> bool {
        self.mode == Mode::Affine
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Mode::Blocks(format) = self.mode {
            return write!(f, "{format}");
        }
        write!(f, "{} of {} bits in groups of {}", self.mode, self.bits, self.group_size)
    }
}
