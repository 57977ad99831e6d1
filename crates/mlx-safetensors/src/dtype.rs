//! How the elements of a tensor are stored.

use serde::{Deserialize, Serialize};

/// How the elements of a tensor are stored. The names are those that headers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "the format's own names")]
#[non_exhaustive]
pub enum Dtype {
    /// A truth value in a byte.
    BOOL,
    /// A float of 4 bits, E2M1.
    F4,
    /// A float of 6 bits, E2M3.
    F6_E2M3,
    /// A float of 6 bits, E3M2.
    F6_E3M2,
    /// An unsigned integer of 8 bits.
    U8,
    /// A signed integer of 8 bits.
    I8,
    /// A float of 8 bits, E5M2.
    F8_E5M2,
    /// A float of 8 bits, E4M3.
    F8_E4M3,
    /// A power of two in 8 bits.
    F8_E8M0,
    /// A float of 8 bits, E4M3, without infinities and negative zero.
    F8_E4M3FNUZ,
    /// A float of 8 bits, E5M2, without infinities and negative zero.
    F8_E5M2FNUZ,
    /// A signed integer of 16 bits.
    I16,
    /// An unsigned integer of 16 bits.
    U16,
    /// A float of 16 bits, IEEE 754 binary16.
    F16,
    /// A float of 16 bits with the exponents of float32.
    BF16,
    /// A signed integer of 32 bits.
    I32,
    /// An unsigned integer of 32 bits.
    U32,
    /// A float of 32 bits.
    F32,
    /// A complex number of two floats of 32 bits.
    C64,
    /// A float of 64 bits.
    F64,
    /// A signed integer of 64 bits.
    I64,
    /// An unsigned integer of 64 bits.
    U64,
}

impl Dtype {
    /// Bits of one element.
    pub fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6_E2M3 | Self::F6_E3M2 => 6,
            Self::BOOL
            | Self::U8
            | Self::I8
            | Self::F8_E5M2
            | Self::F8_E4M3
            | Self::F8_E8M0
            | Self::F8_E4M3FNUZ
            | Self::F8_E5M2FNUZ => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::C64 | Self::F64 | Self::I64 | Self::U64 => 64,
        }
    }

    /// Whether MLX 0.32 opens a file that holds a tensor of this dtype. Because of one tensor of another dtype it refuses
    /// the whole file.
    pub fn is_read_by_mlx(self) -> bool {
        match self {
            Self::BOOL
            | Self::U8
            | Self::I8
            | Self::F8_E4M3
            | Self::F8_E8M0
            | Self::I16
            | Self::U16
            | Self::F16
            | Self::BF16
            | Self::I32
            | Self::U32
            | Self::F32
            | Self::C64
            | Self::I64
            | Self::U64 => true,
            Self::F4
            | Self::F6_E2M3
            | Self::F6_E3M2
            | Self::F8_E5M2
            | Self::F8_E4M3FNUZ
            | Self::F8_E5M2FNUZ
            | Self::F64 => false,
        }
    }
}
