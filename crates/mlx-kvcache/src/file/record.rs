//! The entry `0.mlx_models`: the numbers of a cache that do not stand in mlx-lm's entries.

use mlx_rs::{Array, Dtype};
use serde::{Deserialize, Serialize};

use super::entries::{RECORD, VERSION};
use super::tensors::Tensors;
use crate::buffers::{Buffers, Form};
use crate::cache::Held;
use crate::layout::LayoutRecord;
use crate::rows::Rows;
use crate::{CacheError, KvCache, Quantization};

/// The entry `0.mlx_models`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) model_type: String,
    /// Not present in version 1.
    #[serde(default)]
    pub(super) made_by: Option<OriginRecord>,
    pub(super) tokens: Vec<u32>,
    pub(super) layers: Vec<LayerRecord>,
}

/// The model that made the cache, without its type.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OriginRecord {
    pub(super) weights: String,
    pub(super) config: String,
    pub(super) adapters: Option<String>,
    /// The expected length of the sequence: see [`ModelCache::expect`](crate::ModelCache::expect).
    pub(super) expected: i32,
}

/// The version only. It is read first, because other versions may have other fields.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The numbers of one layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    pub(super) layout: LayoutRecord,
    pub(super) quantization: Option<QuantizationRecord>,
    /// The number of steps: tokens of the longest row.
    pub(super) steps: i32,
    /// The left padding of each row; empty if the cache is not a batch.
    pub(super) padding: Vec<i32>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuantizationRecord {
    pub(super) bits: i32,
    pub(super) group_size: i32,
}

impl Record {
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Reads the entry. The error is a version that is too new, or a message.
    pub(super) fn from_json(json: &str) -> Result<Self, Result<u32, String>> {
        let wrong = |e: serde_json::Error| Err(format!("its entry {}: {e}", RECORD));
        let Version { version } = serde_json::from_str(json).map_err(wrong)?;
        if version > VERSION {
            return Err(Ok(version));
        }
        serde_json::from_str(json).map_err(wrong)
    }
}

/// The names of the tensors of layer `i`, in the order of [`Buffers`].
pub(super) fn names(i: usize, quantized: bool) -> Vec<String> {
    if quantized {
        (0..2).flat_map(|which| (0..3).map(move |part| format!("{i}.{which}.{part}"))).collect()
    } else {
        (0..2).map(|which| format!("{i}.{which}")).collect()
    }
}

impl LayerRecord {
    /// The numbers of this cache, and its buffers.
    pub(super) fn of(cache: &KvCache) -> Result<(Self, Option<Buffers>), CacheError> {
        let (layout, buffers) = cache.to_save()?;
        let quantization = cache.quantization().map(|quantization| QuantizationRecord {
            bits: quantization.bits(),
            group_size: quantization.group_size(),
        });
        let (steps, padding) = (cache.rows().steps(), cache.rows().padding_of_batch());
        Ok((Self { layout: layout.rules().record(), quantization, steps, padding }, buffers))
    }

    /// The cache with these numbers and the tensors of layer `i`. The error says which numbers contradict each
    /// other or the tensors.
    pub(super) fn restore(&self, i: usize, contents: &Tensors) -> Result<KvCache, String> {
        let quantization = self.quantization.map(|q| Quantization::affine(q.bits, q.group_size));
        let quantization = quantization.transpose().map_err(|e| e.to_string())?;
        if self.steps < 0 || self.padding.iter().any(|row| !(0..=1 << 30).contains(row)) {
            return Err(format!("{} steps with a padding of {:?}", self.steps, self.padding));
        }
        let rows = Rows::at(self.steps, self.padding.clone());

        let held = if self.steps == 0 {
            None
        } else {
            let tensor = |name: String| match contents.tensors.get(&name) {
                Some(array) => Ok(array.clone()),
                None => Err(format!("there is no tensor {name}")),
            };
            let arrays: Vec<Array> =
                names(i, quantization.is_some()).into_iter().map(tensor).collect::<Result<_, _>>()?;
            let form = form(&arrays, quantization)?;
            if rows.count().is_some_and(|rows| rows as i32 != form.batch) {
                return Err(format!("{} rows have the padding {:?}", form.batch, self.padding));
            }
            Some(Held { form, buffers: Buffers::from_arrays(arrays, quantization) })
        };
        let slots = held.as_ref().map_or(0, |held| held.buffers.slots());
        let layout = self.layout.restore(self.steps, slots)?;
        Ok(KvCache::from_parts(layout, quantization, rows, held))
    }
}

/// The form of keys and values with these tensors, or a message if they do not fit each other.
pub(super) fn form(arrays: &[Array], quantization: Option<Quantization>) -> Result<Form, String> {
    let shapes: Vec<&[i32]> = arrays.iter().map(Array::shape).collect();
    let wrong = || format!("its tensors have the shapes {shapes:?}");
    let mut sizes: Vec<[i32; 4]> = Vec::with_capacity(arrays.len());
    for shape in &shapes {
        let &[batch, heads, slots, dim] = *shape else { return Err(wrong()) };
        if batch < 1
            || heads < 1
            || slots < 1
            || dim < 1
            || sizes.first().is_some_and(|first| first[..3] != shape[..3])
        {
            return Err(wrong());
        }
        sizes.push([batch, heads, slots, dim]);
    }
    // The head sizes of keys and values, and which arrays have the dtype of the appended tokens.
    let (dims, floats) = match (sizes.as_slice(), quantization) {
        ([[.., key_dim], [.., value_dim]], None) => ([*key_dim, *value_dim], vec![0, 1]),
        ([keys, key_scales, key_biases, values, value_scales, value_biases], Some(quantization)) => {
            let (bits, group_size) = (i64::from(quantization.bits()), i64::from(quantization.group_size()));
            for (packed, scales, biases) in
                [(keys, key_scales, key_biases), (values, value_scales, value_biases)]
            {
                if i64::from(packed[3]) * 32 != i64::from(scales[3]) * group_size * bits || scales != biases {
                    return Err(format!("{} for {quantization}", wrong()));
                }
            }
            if [0, 3].iter().any(|&packed| arrays[packed].dtype() != Dtype::Uint32) {
                return Err("its packed numbers are not uint32".to_owned());
            }
            let dim = |scales: &[i32; 4]| scales[3].saturating_mul(quantization.group_size());
            ([dim(key_scales), dim(value_scales)], vec![1, 4, 2, 5])
        }
        _ => return Err(wrong()),
    };
    let dtypes: Vec<Dtype> = floats.iter().map(|&float| arrays[float].dtype()).collect();
    if let Some(other) =
        dtypes.iter().find(|dtype| !matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16))
    {
        return Err(format!("its tensors have dtype {other:?}, and a float dtype is needed"));
    }
    if dtypes.len() == 4 && dtypes[..2] != dtypes[2..] {
        return Err("its scales and biases have different dtypes".to_owned());
    }
    let &[batch, heads, ..] = sizes.first().ok_or_else(wrong)?;
    let ([key_dim, value_dim], [key_dtype, value_dtype]) = (dims, [dtypes[0], dtypes[1]]);
    Ok(Form { batch, heads, key_dim, value_dim, key_dtype, value_dtype })
}
