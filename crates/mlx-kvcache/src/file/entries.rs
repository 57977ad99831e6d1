//! Names in the metadata of a cache file.

/// The version of the entry [`RECORD`] that this crate writes. Version 1 did not say which model made the file.
pub(super) const VERSION: u32 = 2;

/// The entry with what this crate saves besides mlx-lm's entries.
pub(super) const RECORD: &str = "0.mlx_models";

/// The entry with the checksum.
pub(super) const CHECKSUM: &str = "0.mlx_models_crc32";

/// The entry with the class of the first layer, which every cache file has.
pub(super) const FIRST_CLASS: &str = "1.0";

/// The classes of mlx-lm that can be read.
pub(super) const CLASSES: [&str; 5] =
    ["KVCache", "QuantizedKVCache", "RotatingKVCache", "BatchKVCache", "BatchRotatingKVCache"];
