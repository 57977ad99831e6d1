//! The types of metadata values, as files number them.

/// The type of a value or of the elements of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueType {
    /// An integer of this many bytes.
    Integer {
        bytes: usize,
        signed: bool,
    },
    Float32,
    Float64,
    Bool,
    Text,
    List,
}

/// The types with their numbers in files.
const NUMBERS: [(u32, ValueType); 13] = [
    (0, integer(1, false)),
    (1, integer(1, true)),
    (2, integer(2, false)),
    (3, integer(2, true)),
    (4, ValueType::U32),
    (5, ValueType::I32),
    (6, ValueType::Float32),
    (7, ValueType::Bool),
    (8, ValueType::Text),
    (9, ValueType::List),
    (10, ValueType::U64),
    (11, ValueType::I64),
    (12, ValueType::Float64),
];

const fn integer(bytes: usize, signed: bool) -> ValueType {
    ValueType::Integer { bytes, signed }
}

impl ValueType {
    pub(crate) const U32: Self = integer(4, false);
    pub(crate) const I32: Self = integer(4, true);
    pub(crate) const U64: Self = integer(8, false);
    pub(crate) const I64: Self = integer(8, true);

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        NUMBERS.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    pub(crate) fn number(self) -> u32 {
        NUMBERS.iter().find(|row| row.1 == self).map_or(0, |row| row.0)
    }

    /// The fewest bytes of an element of a list.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Integer { bytes, .. } => bytes,
            Self::Float32 => 4,
            Self::Bool => 1,
            Self::Float64 | Self::Text | Self::List => 8,
        }
    }

    /// Whether an integer can be stored in this type.
    pub(crate) fn holds(self, value: i128) -> bool {
        let Self::Integer { bytes, signed } = self else { return false };
        let bits = 8 * bytes as u32;
        let range = if signed { -(1 << (bits - 1))..1 << (bits - 1) } else { 0..1_i128 << bits };
        range.contains(&value)
    }
}
