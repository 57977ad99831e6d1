//! A header: read, checked, laid out and written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Dtype, HeaderError};

/// Bytes of the longest header that the format allows. It also bounds the memory that a wrong length can ask for.
pub const LONGEST_HEADER: u64 = 100_000_000;

/// The key under which a header holds texts instead of a tensor.
const METADATA: &str = "__metadata__";

/// Bytes of the number that a file begins with: the length of the header.
const LENGTH: u64 = 8;

/// What a header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// How its elements are stored.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes are, counted from the first byte after the header.
    pub bytes: Range<u64>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that its elements take; `None` where they do not fill whole bytes or the number is too large.
    fn size(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        let bits = elements.checked_mul(self.dtype.bits())?;
        u64::try_from(bits).ok().filter(|bits| bits % 8 == 0).map(|bits| bits / 8)
    }
}

/// The header of a file whose tensors lie one after another without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
    data_start: u64,
}

impl Header {
    /// Reads the header of a file from its beginning, and leaves the file at the first byte of the tensors.
    ///
    /// Everything is checked that can be checked without reading the tensors: the length of the header against the file
    /// and [`LONGEST_HEADER`], the JSON, that each tensor fills exactly the bytes that it is given, that these bytes lie
    /// one after another without gaps or overlaps, that they end where the file ends, and that no axis is longer than
    /// `i32::MAX`. Of a key that stands twice the last entry counts, as in other readers of the format.
    ///
    /// # Errors
    ///
    /// A [`HeaderError`] for what is wrong.
    pub fn read(file: &File) -> Result<Self, HeaderError> {
        let size = file.metadata()?.len();
        Self::read_from(&mut &*file, size)
    }

    /// [`read`](Self::read) from anything that is read; `size` is how many bytes there are, the header's included.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub fn read_from(reader: &mut impl Read, size: u64) -> Result<Self, HeaderError> {
        let room = size.checked_sub(LENGTH).ok_or(HeaderError::TooShort { size })?;
        let mut length = [0; LENGTH as usize];
        reader.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER || length > room {
            return Err(HeaderError::Length { length, size });
        }
        let mut header = vec![0; length as usize];
        reader.read_exact(&mut header)?;
        let header = serde_json::from_slice(&header).map_err(HeaderError::Json)?;
        Self::checked(header, LENGTH + length, room - length)
    }

    /// The header of a parsed file in which `data` bytes follow the first `data_start`.
    fn checked(Json { metadata, tensors }: Json, data_start: u64, data: u64) -> Result<Self, HeaderError> {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by_key(|(_, tensor)| (tensor.bytes.start, tensor.bytes.end));
        let mut expected = 0;
        for (key, tensor) in &tensors {
            let Range { start: begin, end } = tensor.bytes;
            if begin > end || tensor.size() != Some(end - begin) {
                return Err(HeaderError::Size { key: key.clone(), begin, end });
            }
            if begin != expected {
                return Err(HeaderError::Place { key: key.clone(), begin, expected });
            }
            if tensor.shape.iter().any(|&size| i32::try_from(size).is_err()) {
                return Err(HeaderError::Shape { key: key.clone(), shape: tensor.shape.clone() });
            }
            expected = end;
        }
        if data != expected {
            return Err(HeaderError::Data { expected, found: data });
        }
        Ok(Self { metadata, tensors, data_start })
    }

    /// A header for these tensors, given by key, dtype and shape, whose bytes will follow it in this order.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Size`] for a tensor whose elements do not fill whole bytes, [`HeaderError::Shape`] for one with an
    /// axis beyond `i32::MAX`, and [`HeaderError::Twice`].
    pub fn new(
        metadata: BTreeMap<String, String>,
        tensors: impl IntoIterator<Item = (String, Dtype, Vec<usize>)>,
    ) -> Result<Self, HeaderError> {
        let mut laid_out: Vec<(String, TensorInfo)> = Vec::new();
        let mut end = 0;
        for (key, dtype, shape) in tensors {
            let mut tensor = TensorInfo { dtype, shape, bytes: end..end };
            let next = tensor.size().and_then(|size| size.checked_add(end));
            let Some(next) = next else { return Err(HeaderError::Size { key, begin: end, end }) };
            if tensor.shape.iter().any(|&size| i32::try_from(size).is_err()) {
                return Err(HeaderError::Shape { key, shape: tensor.shape });
            }
            tensor.bytes.end = next;
            end = next;
            laid_out.push((key, tensor));
        }
        let mut keys = BTreeSet::from([METADATA]);
        if let Some((key, _)) = laid_out.iter().find(|(key, _)| !keys.insert(key)) {
            return Err(HeaderError::Twice { key: key.clone() });
        }
        let mut header = Self { metadata, tensors: laid_out, data_start: 0 };
        header.data_start = LENGTH + header.padded_json()?.len() as u64;
        Ok(header)
    }

    /// What the file begins with: everything before the bytes of the tensors.
    ///
    /// # Errors
    ///
    /// [`HeaderError::Length`] for a header that no reader would accept.
    pub fn to_bytes(&self) -> Result<Vec<u8>, HeaderError> {
        let json = self.padded_json()?;
        let length = json.len() as u64;
        if length > LONGEST_HEADER {
            return Err(HeaderError::Length { length, size: LENGTH + length + self.data_len() });
        }
        Ok([&length.to_le_bytes()[..], &json].concat())
    }

    /// The JSON, with spaces behind it: the format asks for tensors that begin at a multiple of eight bytes.
    fn padded_json(&self) -> Result<Vec<u8>, HeaderError> {
        let mut json = serde_json::to_vec(self).map_err(HeaderError::Json)?;
        json.resize(json.len().next_multiple_of(LENGTH as usize), b' ');
        Ok(json)
    }

    /// The texts under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The tensors with their keys, in the order of their bytes.
    pub fn tensors(&self) -> &[(String, TensorInfo)] {
        &self.tensors
    }

    /// Where in the file the first byte of the tensors is.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of all tensors.
    pub fn data_len(&self) -> u64 {
        self.tensors.last().map_or(0, |(_, tensor)| tensor.bytes.end)
    }
}

impl From<HeaderError> for io::Error {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Io(error) => error,
            error => Self::other(error),
        }
    }
}

/// The JSON of a header that was read, before it is checked.
struct Json {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// A tensor as the JSON has it.
#[derive(Serialize, Deserialize)]
struct Entry<S> {
    dtype: Dtype,
    shape: S,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let (mut metadata, mut tensors) = (None, BTreeMap::new());
                while let Some(key) = map.next_key::<String>()? {
                    if key == METADATA {
                        let texts: Option<BTreeMap<String, String>> = map.next_value()?;
                        if metadata.replace(texts.unwrap_or_default()).is_some() {
                            return Err(A::Error::duplicate_field(METADATA));
                        }
                        continue;
                    }
                    let Entry { dtype, shape, data_offsets: [start, end] } = map.next_value()?;
                    tensors.insert(key, TensorInfo { dtype, shape, bytes: start..end });
                }
                Ok(Json { metadata: metadata.unwrap_or_default(), tensors })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, &self.metadata)?;
        }
        for (key, TensorInfo { dtype, shape, bytes }) in &self.tensors {
            let entry = Entry { dtype: *dtype, shape, data_offsets: [bytes.start, bytes.end] };
            map.serialize_entry(key, &entry)?;
        }
        map.end()
    }
}
