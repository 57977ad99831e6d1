//! The tensors and entries in files of mlx-lm's `save_prompt_cache`.
//!
//! The classes of mlx-lm 0.32.2 (`mlx_lm/models/cache.py`, <https://github.com/ml-explore/mlx-lm>) and the
//! state that each class writes:
//!
//! | class | state |
//! |---|---|
//! | `KVCache` | keys, values, offset |
//! | `QuantizedKVCache` | three tensors of keys, three of values, offset, group size, bits |
//! | `RotatingKVCache` | keys, values, offset, keep, max size, next slot |
//! | `BatchKVCache` | keys, values, offsets, left padding, next slot |
//! | `BatchRotatingKVCache` | keys, values, offsets, left padding, max size, steps, next slot, whether it has wrapped |
//!
//! mlx-lm has no classes for other layers, such as quantized rings. They get class names of this crate, which
//! mlx-lm refuses.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use super::entries::{CHECKSUM, CLASSES, RECORD};
use super::error::CacheFileError;
use super::record::{LayerRecord, QuantizationRecord, names};
use super::tensors::Tensors;
use crate::KvCache;
use crate::buffers::Buffers;
use crate::layout::LayoutRecord;

/// What a tensor stands for that is not an array of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Number,
    Nothing,
}

/// Adds the tensors of layer `i`, and returns the class as which mlx-lm reads them.
pub(super) fn write_layer(
    i: usize,
    record: &LayerRecord,
    buffers: Option<&Buffers>,
    contents: &mut Tensors,
    scalars: &mut Vec<(String, Scalar)>,
) -> Result<&'static str, Exception> {
    let quantized = record.quantization.is_some();
    match buffers {
        Some(buffers) => {
            for (name, array) in names(i, quantized).into_iter().zip(buffers.arrays()) {
                contents.tensors.insert(name, array.clone());
            }
        }
        None => {
            for name in names(i, false) {
                contents.tensors.insert(name.clone(), mlx_rs::ops::zeros_dtype(&[0], Dtype::Float32)?);
                scalars.push((name, Scalar::Nothing));
            }
        }
    }

    let (class, state) = state(record, buffers.map_or(0, Buffers::slots));
    for (array, n) in state.into_iter().zip(2..) {
        let name = format!("{i}.{n}");
        if array.ndim() == 0 {
            scalars.push((name.clone(), Scalar::Number));
        }
        contents.tensors.insert(name, array);
    }
    Ok(class)
}

/// The class of a layer with this many slots, and the numbers of its state. A layer for which mlx-lm has no class
/// gets the class name of its layout, and no numbers.
fn state(record: &LayerRecord, slots: i32) -> (&'static str, Vec<Array>) {
    let LayerRecord { layout, steps, ref padding, .. } = *record;
    let per_row = |numbers: Vec<i32>| Array::from_slice(&numbers, &[numbers.len() as i32]);
    let offsets = || per_row(padding.iter().map(|row| steps - row).collect());
    match (layout, record.quantization, padding.is_empty()) {
        (LayoutRecord::Full { .. }, None, true) => ("KVCache", vec![Array::from_int(steps)]),
        (LayoutRecord::Full { .. }, Some(QuantizationRecord { bits, group_size }), true) => {
            ("QuantizedKVCache", [steps, group_size, bits].map(Array::from_int).to_vec())
        }
        (LayoutRecord::Full { .. }, None, false) => {
            ("BatchKVCache", vec![offsets(), per_row(padding.clone()), Array::from_int(steps)])
        }
        (LayoutRecord::Rotating { max_size, keep, rewind: 0, start, head }, None, unpadded)
            if unpadded || keep == 0 =>
        {
            // The used slots in order, with the next slot behind them; or all `max_size` slots, with the next slot
            // among them.
            let ring = max_size - keep;
            let wrapped = head > 0;
            let next = if wrapped { keep + (head + (steps - start)) % ring } else { slots };
            if unpadded {
                ("RotatingKVCache", [steps, keep, max_size, next].map(Array::from_int).to_vec())
            } else {
                // mlx-lm counts padding from the oldest token that it holds.
                let held = if wrapped { ring } else { slots };
                let padding = padding.iter().map(|row| row - (steps - held)).collect();
                let wrapped = Array::from_bool(wrapped);
                let numbers = [max_size, steps, next].map(Array::from_int);
                let mut state = vec![offsets(), per_row(padding)];
                state.extend(numbers);
                state.push(wrapped);
                ("BatchRotatingKVCache", state)
            }
        }
        _ => (layout.class(), Vec::new()),
    }
}

/// Adds the classes, and the list of tensors that stand for numbers.
pub(super) fn write_metadata(
    metadata: &mut BTreeMap<String, String>,
    classes: &[&str],
    scalars: &[(String, Scalar)],
) {
    for (i, class) in classes.iter().enumerate() {
        metadata.insert(format!("1.{i}"), (*class).to_owned());
    }
    metadata.insert("2.0".to_owned(), String::new());
    for ((name, scalar), i) in scalars.iter().zip(1..) {
        let kind = match scalar {
            Scalar::Number => "scalar",
            Scalar::Nothing => "none",
        };
        metadata.insert(format!("2.{i}.0"), name.clone());
        metadata.insert(format!("2.{i}.1"), kind.to_owned());
    }
}

/// The user's entries.
pub(super) fn users_metadata(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let users = metadata.iter().filter(|(key, _)| *key != RECORD && *key != CHECKSUM);
    users.filter_map(|(key, value)| Some((key.strip_prefix("0.")?.to_owned(), value.clone()))).collect()
}

/// The layers of a file that mlx-lm wrote.
pub(super) fn read_layers(path: &Path, contents: &Tensors) -> Result<Vec<KvCache>, CacheFileError> {
    let class = |i: usize| contents.metadata.get(&format!("1.{i}"));
    if class(0).is_none() {
        let problem = "there is no entry 1.0 with the class of a layer".to_owned();
        return Err(CacheFileError::NoCache { file: path.into(), problem });
    }
    let nothing: HashSet<&str> = (1..)
        .map_while(|i| {
            Some((contents.metadata.get(&format!("2.{i}.0"))?, contents.metadata.get(&format!("2.{i}.1"))?))
        })
        .filter_map(|(name, kind)| (kind == "none").then_some(name.as_str()))
        .collect();
    (0..)
        .map_while(|i| Some((i, class(i)?)))
        .map(|(i, class)| {
            if !CLASSES.contains(&class.as_str()) {
                let (file, class) = (path.into(), class.clone());
                return Err(CacheFileError::UnknownKind { file, layer: i, class });
            }
            let problem = |problem: String| CacheFileError::Layer { file: path.into(), layer: i, problem };
            let layer = Layer { contents, i, empty: nothing.contains(format!("{i}.0").as_str()) };
            let record = layer.record(class).map_err(problem)?;
            record.restore(i, contents).map_err(problem)
        })
        .collect()
}

/// The tensors of one layer.
struct Layer<'a> {
    contents: &'a Tensors,
    i: usize,
    /// Whether nothing has been appended.
    empty: bool,
}

impl Layer<'_> {
    /// Item `n` of the state, as integers.
    fn numbers(&self, n: usize) -> Result<Vec<i32>, String> {
        let name = format!("{}.{n}", self.i);
        let array = self.contents.tensors.get(&name).ok_or_else(|| format!("there is no tensor {name}"))?;
        let wrong =
            || format!("{name} is {:?} of shape {:?}, and integers are needed", array.dtype(), array.shape());
        if array.ndim() > 1
            || !matches!(array.dtype(), Dtype::Bool | Dtype::Int32 | Dtype::Int64 | Dtype::Uint32)
        {
            return Err(wrong());
        }
        let array =
            array.reshape(&[-1]).and_then(|array| array.as_dtype(Dtype::Int64)).map_err(|_| wrong())?;
        let numbers = array.try_as_slice::<i64>().map_err(|_| wrong())?;
        numbers
            .iter()
            .map(|&number| i32::try_from(number).map_err(|_| format!("{name} is {number}")))
            .collect()
    }

    fn number(&self, n: usize) -> Result<i32, String> {
        match *self.numbers(n)?.as_slice() {
            [number] => Ok(number),
            _ => Err(format!("{}.{n} is not one number", self.i)),
        }
    }

    fn slots(&self) -> Result<i32, String> {
        if self.empty {
            return Ok(0);
        }
        let name = format!("{}.0", self.i);
        match self.contents.tensors.get(&name).map(Array::shape) {
            Some(&[_, _, slots, _]) => Ok(slots),
            _ => Err(format!("{name} is not [B, H, S, D]")),
        }
    }

    /// This state as a record of this crate.
    fn record(&self, class: &str) -> Result<LayerRecord, String> {
        let record = |layout, steps, padding| LayerRecord { layout, quantization: None, steps, padding };
        let full = LayoutRecord::Full { window: None };
        Ok(match class {
            "KVCache" => record(full, self.number(2)?, Vec::new()),
            "QuantizedKVCache" => {
                let [steps, group_size, bits] = [self.number(2)?, self.number(3)?, self.number(4)?];
                let quantization = Some(QuantizationRecord { bits, group_size });
                LayerRecord { quantization, ..record(full, steps, Vec::new()) }
            }
            "BatchKVCache" => {
                let (offsets, padding, steps) = (self.numbers(2)?, self.numbers(3)?, self.number(4)?);
                check_padding(steps, &offsets, &padding, 0)?;
                record(full, steps, padding)
            }
            "RotatingKVCache" => {
                let [steps, keep, max_size, next] =
                    [self.number(2)?, self.number(3)?, self.number(4)?, self.number(5)?];
                let (start, head) = self.ring(steps, keep, max_size, next)?;
                record(LayoutRecord::Rotating { max_size, keep, rewind: 0, start, head }, steps, Vec::new())
            }
            _ => {
                let (offsets, left_padding) = (self.numbers(2)?, self.numbers(3)?);
                let (max_size, next, wrapped) = (self.number(4)?, self.number(6)?, self.number(7)? != 0);
                let slots = self.slots()?;
                if !(0..=slots).contains(&next) {
                    return Err(format!("its next token is for slot {next} of {slots}"));
                }
                let held = if wrapped { slots } else { next };
                // mlx-lm's own count of steps is not correct after a merge, and 0 for rows of padding only.
                let longest = offsets.iter().copied().max().unwrap_or(0);
                let steps = longest.max(held);
                let padding: Vec<i32> = offsets.iter().map(|&offset| steps.saturating_sub(offset)).collect();
                check_padding(steps, &offsets, &left_padding, steps - held)?;
                let (start, head) = self.ring(steps, 0, max_size, next)?;
                record(LayoutRecord::Rotating { max_size, keep: 0, rewind: 0, start, head }, steps, padding)
            }
        })
    }

    /// The oldest step in the ring and its slot, counted from the first slot behind the sinks; `next` is the
    /// slot that is written next.
    fn ring(&self, steps: i32, keep: i32, max_size: i32, next: i32) -> Result<(i32, i32), String> {
        let slots = self.slots()?;
        let wrong = || {
            format!("{steps} tokens with the next one for slot {next} of {slots}, {keep} of which are sinks")
        };
        if next < 0 || next > slots || keep < 0 || keep >= max_size || steps < 0 {
            return Err(wrong());
        }
        if next == steps || steps <= keep {
            return if next == steps { Ok((keep, 0)) } else { Err(wrong()) };
        }
        // All slots are used. The oldest token lies in the first slot of the ring, or in slot `next`.
        let held = (slots - keep).min(steps - keep);
        if next == slots {
            Ok((steps - held, 0))
        } else if slots == max_size && next >= keep {
            Ok((steps - held, next - keep))
        } else {
            Err(wrong())
        }
    }
}

/// Checks that offsets and left padding of every row fit each other, where `first` is the oldest step in the
/// slots. mlx-lm does not count padding before that step.
fn check_padding(steps: i32, offsets: &[i32], left_padding: &[i32], first: i32) -> Result<(), String> {
    let same = |(&offset, &padding): (&i32, &i32)| {
        let (steps, first) = (i64::from(steps), i64::from(first));
        (steps - i64::from(offset) - first).max(0) == i64::from(padding).max(0)
    };
    if offsets.len() == left_padding.len() && offsets.iter().zip(left_padding).all(same) {
        return Ok(());
    }
    Err(format!("rows at the offsets {offsets:?} after {steps} steps with the left padding {left_padding:?}"))
}
