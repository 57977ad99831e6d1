//! Takes safetensors files apart and puts them together again, correctly or not.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::{Map, Value, json};

use super::json;
use super::random::Random;
use super::values::{interesting_text, mutate_bytes};

/// A tensor as it is stored in its file.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: String,
    pub(super) shape: Vec<i64>,
    pub(super) bytes: Vec<u8>,
}

/// The contents of a file.
#[derive(Debug, Clone, Default)]
pub(super) struct TensorFile {
    pub(super) tensors: Vec<Tensor>,
    pub(super) metadata: Map<String, Value>,
}

/// The bytes of a number.
fn width(dtype: &str) -> usize {
    match dtype {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        _ => 1,
    }
}

impl TensorFile {
    /// The bytes of a valid file.
    pub(super) fn read(file: &Path) -> io::Result<Self> {
        let bytes = fs::read(file)?;
        let invalid = || io::Error::other(format!("{} is no safetensors file", file.display()));
        let length = bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)) as usize;
        let header = bytes.get(8..length.saturating_add(8)).ok_or_else(invalid)?;
        let header: BTreeMap<String, Value> = serde_json::from_slice(header)?;
        let mut parsed = Self::default();
        for (name, entry) in header {
            if name == "__metadata__" {
                parsed.metadata = entry.as_object().cloned().unwrap_or_default();
                continue;
            }
            let numbers = |key: &str| -> Vec<i64> {
                entry[key].as_array().into_iter().flatten().filter_map(Value::as_i64).collect()
            };
            let offsets = numbers("data_offsets");
            let [from, to] = offsets[..] else { return Err(invalid()) };
            let place = |offset: i64| usize::try_from(offset).ok()?.checked_add(8 + length);
            let range = place(from).zip(place(to)).map(|(from, to)| from..to);
            let data = range.and_then(|range| bytes.get(range)).ok_or_else(invalid)?;
            let dtype = entry["dtype"].as_str().unwrap_or_default().to_owned();
            parsed.tensors.push(Tensor { name, dtype, shape: numbers("shape"), bytes: data.to_vec() });
        }
        Ok(parsed)
    }

    /// The header, and the data after it.
    fn parts(&self) -> (Value, Vec<u8>) {
        let (mut header, mut data) = (Map::new(), Vec::new());
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), Value::Object(self.metadata.clone()));
        }
        for tensor in &self.tensors {
            let from = data.len();
            data.extend(&tensor.bytes);
            let entry =
                json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [from, data.len()] });
            header.insert(tensor.name.clone(), entry);
        }
        (Value::Object(header), data)
    }

    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        let (header, data) = self.parts();
        fs::write(file, with_header(header.to_string().as_bytes(), &data))
    }

    /// Converts all half-precision tensors to float32.
    pub(super) fn widen(&mut self) {
        for tensor in &mut self.tensors {
            let widened = |value: fn([u8; 2]) -> f32| -> Vec<u8> {
                let words = tensor.bytes.chunks_exact(2);
                words.flat_map(|word| value([word[0], word[1]]).to_le_bytes()).collect()
            };
            tensor.bytes = match &*tensor.dtype {
                "BF16" => widened(|word| half::bf16::from_le_bytes(word).to_f32()),
                "F16" => widened(|word| half::f16::from_le_bytes(word).to_f32()),
                _ => continue,
            };
            tensor.dtype = "F32".to_owned();
        }
    }

    /// Gives a prompt cache the checksum of its present contents, as a forger would: the CRC-32 of every entry
    /// and every tensor in the order of their names (`mlx-kvcache`, `file/tensors.rs`).
    pub(super) fn sign(&mut self) {
        const CHECKSUM: &str = "0.mlx_models_crc32";
        if self.metadata.remove(CHECKSUM).is_none() {
            return;
        }
        let mut bytes = Vec::new();
        let entries: BTreeMap<&String, &str> =
            self.metadata.iter().map(|(key, value)| (key, value.as_str().unwrap_or_default())).collect();
        for text in entries.into_iter().flat_map(|(key, value)| [key, value]) {
            bytes.extend((text.len() as u64).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for Tensor { name, dtype, shape, bytes: data } in &self.tensors {
            let dtype = match &**dtype {
                "BOOL" => "Bool",
                "I32" => "Int32",
                "U32" => "Uint32",
                "F16" => "Float16",
                "BF16" => "Bfloat16",
                _ => "Float32",
            };
            bytes.extend(format!("{name} {dtype} {shape:?}").as_bytes());
            bytes.extend(data);
        }
        self.metadata.insert(CHECKSUM.to_owned(), json!(format!("{:08x}", crc32fast::hash(&bytes))));
    }

    /// Changes one tensor, or the metadata. The file stays a valid safetensors file.
    pub(super) fn mutate(&mut self, random: &mut Random) {
        if self.tensors.is_empty() || (!self.metadata.is_empty() && random.once_in(3)) {
            return self.mutate_metadata(random);
        }
        let place = random.below(self.tensors.len());
        let other = random.below(self.tensors.len());
        match random.below(14) {
            0 => drop(self.tensors.remove(place)),
            1 => self.tensors[place].name = interesting_text(random),
            2 => self.tensors[place].name += random.one(&[".weight", ".scales", ".lora_a", ".", "\u{1b}[2J"]),
            3 => {
                let name = std::mem::take(&mut self.tensors[place].name);
                self.tensors[place].name = std::mem::replace(&mut self.tensors[other].name, name);
            }
            4 | 5 => self.tensors[place].fill(random),
            6 => {
                let dtype = random
                    .one(&["F32", "F16", "BF16", "U32", "I32", "U8", "I64", "F64", "BOOL", "F8_E4M3", "X"]);
                self.tensors[place].convert(dtype);
            }
            7 => {
                // The same bytes with another dtype or shape.
                self.tensors[place].dtype = random.one(&["F32", "F16", "BF16", "U32", "U8"]).to_owned();
            }
            8 => self.tensors[place].shape.reverse(),
            9 => {
                let shape = &mut self.tensors[place].shape;
                *shape = random.one(&[
                    vec![],
                    vec![0],
                    vec![1; 40],
                    vec![-1],
                    vec![i64::MAX, 2],
                    vec![1 << 32, 1 << 32],
                ]);
            }
            10 => {
                let shape = &mut self.tensors[place].shape;
                let axis = random.below(shape.len());
                if let Some(length) = shape.get_mut(axis) {
                    *length = random.one(&[0, 1, *length + 1, *length * 2, *length / 2]);
                }
                self.tensors[place].fit();
            }
            11 => {
                let copies = random.one(&[1, 2, 3000]);
                let extra = |n| Tensor {
                    name: format!("{}.{n}", self.tensors[place].name),
                    dtype: "F32".to_owned(),
                    shape: vec![1],
                    bytes: vec![0; 4],
                };
                self.tensors.extend((0..copies).map(extra).collect::<Vec<_>>());
            }
            12 => self.tensors.truncate(place),
            _ => self.tensors[place].bytes.clear(),
        }
    }

    /// Metadata values are texts, and some of them are JSON.
    fn mutate_metadata(&mut self, random: &mut Random) {
        let Some(key) = self.metadata.keys().nth(random.below(self.metadata.len())).cloned() else {
            self.metadata.insert(interesting_text(random), json!(interesting_text(random)));
            return;
        };
        let text = self.metadata[&key].as_str().unwrap_or_default().to_owned();
        let changed = match (serde_json::from_str::<Value>(&text), random.below(5)) {
            (Ok(mut value), 0..4) => {
                json::mutate(&mut value, random, &[]);
                json::to_text(&value)
            }
            (Err(_), 0..2) => {
                let mut bytes = text.into_bytes();
                mutate_bytes(&mut bytes, random);
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => interesting_text(random),
        };
        match random.below(8) {
            0 => drop(self.metadata.remove(&key)),
            1 => drop(self.metadata.insert(interesting_text(random), json!(changed))),
            _ => drop(self.metadata.insert(key, json!(changed))),
        }
    }

    /// The bytes of a file with a broken header, a broken header length, or other damage.
    pub(super) fn broken(&self, random: &mut Random) -> Vec<u8> {
        let (mut header, data) = self.parts();
        match random.below(4) {
            0 | 1 => {
                json::mutate(&mut header, random, &[offsets, shape, dtype]);
                with_header(json::to_text(&header).as_bytes(), &data)
            }
            2 => {
                let mut bytes = with_header(header.to_string().as_bytes(), &data);
                let length = random.one(&[
                    0,
                    1,
                    7,
                    100_000_000,
                    100_000_001,
                    u64::MAX,
                    u64::MAX - 7,
                    i64::MAX as u64,
                    bytes.len() as u64,
                ]);
                bytes[..8].copy_from_slice(&length.to_le_bytes());
                bytes
            }
            _ => {
                let mut bytes = with_header(header.to_string().as_bytes(), &data);
                (0..=random.below(3)).for_each(|_| mutate_bytes(&mut bytes, random));
                bytes
            }
        }
    }
}

impl Tensor {
    /// Zeros of this shape.
    pub(super) fn zeros(name: &str, dtype: &str, shape: &[i32]) -> Self {
        let shape: Vec<i64> = shape.iter().copied().map(i64::from).collect();
        let mut tensor = Self { name: name.to_owned(), dtype: dtype.to_owned(), shape, bytes: Vec::new() };
        tensor.fit();
        tensor
    }

    /// Small numbers, the same for the same name.
    pub(super) fn fill_small(&mut self, random: &mut Random) {
        for word in self.bytes.chunks_exact_mut(width(&self.dtype)) {
            let value = (random.below(2001) as f32 - 1000.0) * 2e-4;
            match word.len() {
                4 if self.dtype == "F32" => word.copy_from_slice(&value.to_le_bytes()),
                2 if self.dtype == "F16" => word.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                2 => word.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                _ => word.iter_mut().for_each(|byte| *byte = random.next() as u8),
            }
        }
    }

    /// As many bytes as the shape needs.
    fn fit(&mut self) {
        let elements: i64 = self.shape.iter().map(|&length| length.clamp(0, 1 << 20)).product();
        self.bytes.resize(elements.min(1 << 22) as usize * width(&self.dtype), 0);
    }

    fn convert(&mut self, dtype: &str) {
        self.dtype = dtype.to_owned();
        self.fit();
    }

    /// Writes one number everywhere or at one place: NaN, infinity, the largest, the smallest, or a random one.
    fn fill(&mut self, random: &mut Random) {
        let words: [[u8; 4]; 6] = [
            f32::NAN.to_le_bytes(),
            f32::INFINITY.to_le_bytes(),
            f32::MAX.to_le_bytes(),
            [0; 4],
            [0xff; 4],
            (random.next() as u32).to_le_bytes(),
        ];
        // The upper half of a float32 is the bfloat16 of this value. As a float16 it is a large number or NaN.
        let word = random.one(&words);
        let size = width(&self.dtype).min(4);
        let word = &word[4 - size..];
        let count = self.bytes.len() / size.max(1);
        let places = if random.once_in(2) { 0..count } else { count / 2..count.min(count / 2 + 1) };
        for place in places {
            self.bytes[place * size..(place + 1) * size].copy_from_slice(word);
        }
    }
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn offsets(random: &mut Random) -> (String, Value) {
    let number = |random: &mut Random| random.one(&[0, 1, 2, 4, 100, 1 << 20, 1 << 40, u64::MAX]);
    ("data_offsets".to_owned(), json!([number(random), number(random)]))
}

fn shape(random: &mut Random) -> (String, Value) {
    let shapes = [
        json!([0]),
        json!([1, 1]),
        json!([-1]),
        json!([u64::MAX]),
        json!([1_u64 << 32, 1_u64 << 32]),
        json!([0.5]),
    ];
    ("shape".to_owned(), random.one(&shapes).clone())
}

fn dtype(random: &mut Random) -> (String, Value) {
    ("dtype".to_owned(), json!(random.one(&["F32", "F64", "I4", "F8_E5M2", "C64", "f32", ""])))
}
