//! How the elements of a tensor are stored.

use std::fmt;

/// How the elements of a tensor are stored. The quantized types store blocks: a number of neighbouring elements together with
/// what turns their codes into numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the format's own names")]
#[expect(non_camel_case_types, reason = "the format's own names")]
pub enum TensorType {
    F32,
    F16,
    BF16,
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
    MXFP4,
}

/// One row for each type: its number in files, its name, elements of a block, bytes of a block.
const TABLE: &[(u32, TensorType, &str, usize, usize)] = &[
    (0, TensorType::F32, "F32", 1, 4),
    (1, TensorType::F16, "F16", 1, 2),
    (2, TensorType::Q4_0, "Q4_0", 32, 2 + 16),
    (3, TensorType::Q4_1, "Q4_1", 32, 4 + 16),
    (6, TensorType::Q5_0, "Q5_0", 32, 2 + 4 + 16),
    (7, TensorType::Q5_1, "Q5_1", 32, 4 + 4 + 16),
    (8, TensorType::Q8_0, "Q8_0", 32, 2 + 32),
    (10, TensorType::Q2_K, "Q2_K", 256, 16 + 64 + 4),
    (11, TensorType::Q3_K, "Q3_K", 256, 32 + 64 + 12 + 2),
    (12, TensorType::Q4_K, "Q4_K", 256, 4 + 12 + 128),
    (13, TensorType::Q5_K, "Q5_K", 256, 4 + 12 + 32 + 128),
    (14, TensorType::Q6_K, "Q6_K", 256, 128 + 64 + 16 + 2),
    (30, TensorType::BF16, "BF16", 1, 2),
    (39, TensorType::MXFP4, "MXFP4", 32, 1 + 16),
];

/// The names of types that exist and are not read, for messages.
const UNKNOWN: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
];

impl TensorType {
    /// Every type that is read.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.1)
    }

    /// The type with this number in files.
    pub fn from_number(number: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.0 == number).map(|row| row.1)
    }

    /// The number of this type in files.
    pub fn number(self) -> u32 {
        self.row().0
    }

    /// Elements of a block: 1 for types that are not quantized.
    pub fn block_elements(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a row of this many elements; `None` where they do not fill whole blocks or the number is too large.
    pub fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    fn row(self) -> &'static (u32, Self, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.1 == self).unwrap_or(&TABLE[0])
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

/// How a message names a type that is not read.
pub(crate) fn unknown_name(number: u32) -> String {
    let name = UNKNOWN.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_one_row() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(TensorType::from_number(row.0), Some(row.1));
            assert_eq!((row.1.number(), row.1.to_string()), (row.0, row.2.to_owned()));
            assert!(TABLE[index + 1..].iter().all(|other| other.0 != row.0 && other.1 != row.1));
            assert!(UNKNOWN.iter().all(|(number, _)| *number != row.0));
        }
        assert_eq!(TensorType::from_number(20), None);
        assert_eq!([unknown_name(20), unknown_name(4)], ["IQ4_NL", "number 4"]);
    }

    #[test]
    fn rows_fill_whole_blocks() {
        assert_eq!(TensorType::Q4_0.row_bytes(64), Some(36));
        assert_eq!(TensorType::Q6_K.row_bytes(512), Some(420));
        assert_eq!(TensorType::Q4_0.row_bytes(48), None);
        assert_eq!(TensorType::F32.row_bytes(usize::MAX), None);
    }
}
