//! The layers that another program quantized: their tensors, checked.

use std::collections::BTreeMap;

use mlx_quantization::Quantization;
use mlx_safetensors::Dtype;

use super::floats::{e4m3, matrix, to_f32};
use super::method::{Layout, Packing};
use super::packed::{Sizes, numbers};
use crate::safetensors_file::{TensorInfo, is_float};

/// Reads the bytes of a tensor of a file.
pub(super) type ReadBytes<'a> = &'a dyn Fn(&TensorInfo) -> Result<Vec<u8>, String>;

/// The headers of the files.
pub(super) type Headers = BTreeMap<String, TensorInfo>;

/// The group sizes that MLX has, the largest first.
const MLX_GROUPS: [usize; 3] = [128, 64, 32];

/// The names of the tensors of a packed layer.
struct Names {
    codes: &'static str,
    scales: &'static str,
    zeros: &'static str,
    order: &'static str,
    /// Those that say nothing that is not known.
    others: &'static [&'static str],
}

fn names(layout: Layout) -> Names {
    let (codes, scales, zeros, order) = ("qweight", "scales", "qzeros", "g_idx");
    match layout {
        Layout::Awq | Layout::Gptq { .. } => Names { codes, scales, zeros, order, others: &[] },
        Layout::Rows => Names {
            codes: "weight_packed",
            scales: "weight_scale",
            zeros: "weight_zero_point",
            order: "weight_g_idx",
            others: &["weight_shape"],
        },
    }
}

/// The name of the layer to which a tensor with packed numbers belongs.
pub(super) fn packed_layer<'k>(key: &'k str, packing: &Packing) -> Option<&'k str> {
    key.strip_suffix(names(packing.layout).codes)?.strip_suffix('.')
}

/// The name of the layer to which a tensor with floats of 8 bits belongs.
pub(super) fn float_layer<'k>(key: &'k str, info: &TensorInfo) -> Option<&'k str> {
    key.strip_suffix(".weight").filter(|_| info.dtype == Dtype::F8_E4M3)
}

/// The name of the layer to which a tensor with floats of 8 bits in another format belongs.
pub(super) fn other_floats<'k>(key: &'k str, info: &TensorInfo) -> Option<&'k str> {
    let is_other = matches!(info.dtype, Dtype::F8_E5M2 | Dtype::F8_E5M2FNUZ | Dtype::F8_E4M3FNUZ);
    key.strip_suffix(".weight").filter(|_| is_other)
}

/// A layer of whole numbers.
#[derive(Debug, Clone)]
pub(super) struct PackedLayer {
    layout: Layout,
    sizes: Sizes,
    codes: TensorInfo,
    scales: TensorInfo,
    zeros: Option<TensorInfo>,
    /// The group of each input.
    group_of: GroupOf,
}

#[derive(Debug, Clone)]
enum GroupOf {
    /// A group is this many neighbouring inputs.
    Neighbours(usize),
    /// As a tensor says, whose inputs are in another order.
    Listed(TensorInfo),
}

impl PackedLayer {
    /// Finds and checks the tensors of a layer. Returns the keys of all of them, too.
    ///
    /// # Errors
    ///
    /// What is wrong with a tensor, in words that begin with its name.
    pub(super) fn find(
        layer: &str,
        headers: &Headers,
        packing: &Packing,
        read: ReadBytes<'_>,
    ) -> Result<(Self, Vec<String>), String> {
        let Packing { layout, bits, group, symmetric, reordered } = *packing;
        let names = names(layout);
        let key = |name: &str| format!("{layer}.{name}");
        let get = |name: &str| headers.get(&key(name));
        let needed = |name: &'static str| get(name).ok_or_else(|| format!("{name} is missing"));

        let (codes, scales) = (needed(names.codes)?, needed(names.scales)?);
        let sizes =
            sizes(layout, bits, codes, scales).map_err(|problem| format!("{} {problem}", names.codes))?;
        let zeros = get(names.zeros);
        if zeros.is_none() && !symmetric {
            return Err(format!(
                "{} is missing, and the config does not say that there are none",
                names.zeros
            ));
        }
        if !is_float(scales.dtype) {
            return Err(format!("{} is {:?}, and F16, BF16 or F32 is needed", names.scales, scales.dtype));
        }
        let group = group.unwrap_or(sizes.inputs);
        let [outputs, words] = [sizes.outputs, sizes.outputs / sizes.in_word()];
        let groups = sizes.inputs.div_ceil(group);
        let (of_scales, of_zeros) = match layout {
            Layout::Rows => ([outputs, groups], [words, groups]),
            Layout::Awq | Layout::Gptq { .. } => ([groups, outputs], [groups, words]),
        };
        has_shape(names.scales, scales, &of_scales)?;
        if let Some(zeros) = zeros {
            is_words(zeros).map_err(|problem| format!("{} {problem}", names.zeros))?;
            has_shape(names.zeros, zeros, &of_zeros)?;
        }
        let order = get(names.order);
        let group_of = match order {
            Some(order) => group_of(names.order, order, group, sizes, read)?,
            None if reordered && groups > 1 => {
                return Err(format!(
                    "{} is missing, and the config says that inputs are reordered",
                    names.order
                ));
            }
            None => GroupOf::Neighbours(group),
        };
        let all = [names.codes, names.scales, names.zeros, names.order]
            .into_iter()
            .chain(names.others.iter().copied());
        let used = all.map(key).filter(|key| headers.contains_key(key)).collect();
        let (codes, scales, zeros) = (codes.clone(), scales.clone(), zeros.cloned());
        Ok((Self { layout, sizes, codes, scales, zeros, group_of }, used))
    }

    /// The dtype of its scales.
    pub(super) fn dtype(&self) -> Dtype {
        self.scales.dtype
    }

    /// How MLX has the same numbers. `None` where MLX has no such groups.
    ///
    /// Groups that are larger than MLX's become several groups with the same scale.
    pub(super) fn quantization(&self) -> Option<Quantization> {
        let GroupOf::Neighbours(group) = self.group_of else { return None };
        let of_mlx = MLX_GROUPS.into_iter().find(|size| group.is_multiple_of(*size))?;
        // The last group may have fewer inputs than the others.
        let whole = self.sizes.inputs.is_multiple_of(group);
        Quantization::affine(self.sizes.bits as i32, of_mlx as i32).ok().filter(|_| whole)
    }

    /// The tensors that are made of it: its parameters in MLX's form, or its weight.
    pub(super) fn made(&self) -> Vec<(Part, TensorInfo)> {
        let Sizes { outputs, inputs, .. } = self.sizes;
        let Some(quantization) = self.quantization() else {
            return vec![(Part::Weight, TensorInfo::made(self.dtype(), vec![outputs, inputs]))];
        };
        let of_group =
            TensorInfo::made(self.dtype(), vec![outputs, inputs / quantization.group_size() as usize]);
        let codes = TensorInfo::made(Dtype::U32, vec![outputs, self.sizes.row_words()]);
        vec![(Part::Codes, codes), (Part::Scales, of_group.clone()), (Part::Biases, of_group)]
    }

    /// One of the tensors that are made of it.
    pub(super) fn make(&self, part: Part, read: ReadBytes<'_>) -> Result<Made, String> {
        let codes = || {
            let stored = words(&read(&self.codes)?); // the bytes are freed here
            Ok::<_, String>(self.layout.codes(stored, self.sizes))
        };
        if part == Part::Codes {
            return codes().map(Made::Words);
        }
        let scales = to_f32(&read(&self.scales)?, self.scales.dtype)?;
        let zeros = self.zeros.as_ref().map(|zeros| read(zeros).map(|bytes| words(&bytes))).transpose()?;
        let sizes = self.sizes;
        let scale = |group, output| scales[self.layout.scale_at(sizes, group, output)];
        let zero = |group, output| self.layout.zero(zeros.as_deref(), sizes, group, output);
        let Some(quantization) = self.quantization() else {
            let groups = self.groups(read)?;
            let codes = codes()?;
            let weight = matrix([sizes.outputs, sizes.inputs], self.dtype(), |output, row| {
                let of_group = |group| (zero(group, output) as f32, scale(group, output));
                let of_group: Vec<_> = (0..sizes.groups).map(of_group).collect();
                let codes = &codes[output * sizes.row_words()..][..sizes.row_words()];
                for ((to, code), &group) in row.iter_mut().zip(numbers(codes, sizes)).zip(&groups) {
                    let (zero, scale) = of_group[group];
                    *to = (code as f32 - zero) * scale;
                }
            });
            return Ok(Made::Bytes(weight));
        };
        let columns = sizes.inputs / quantization.group_size() as usize;
        let repeated = columns / sizes.groups;
        Ok(Made::Bytes(matrix([sizes.outputs, columns], self.dtype(), |output, row| {
            for (at, to) in row.iter_mut().enumerate() {
                let group = at / repeated;
                let scale = scale(group, output);
                *to = if part == Part::Scales { scale } else { -(zero(group, output) as f32) * scale };
            }
        })))
    }

    /// The group of each input.
    fn groups(&self, read: ReadBytes<'_>) -> Result<Vec<usize>, String> {
        Ok(match &self.group_of {
            GroupOf::Neighbours(group) => (0..self.sizes.inputs).map(|input| input / group).collect(),
            GroupOf::Listed(order) => words(&read(order)?).into_iter().map(|group| group as usize).collect(),
        })
    }

    /// Whether its inputs are in another order than the columns.
    pub(super) fn is_reordered(&self) -> bool {
        matches!(self.group_of, GroupOf::Listed(_))
    }
}

/// The elements of a tensor that was made.
pub(super) enum Made {
    Words(Vec<u32>),
    Bytes(Vec<u8>),
}

/// A tensor that is made of a packed layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Codes,
    Scales,
    Biases,
    /// In full precision.
    Weight,
}

impl Part {
    /// Its name in MLX's form.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Codes | Self::Weight => "weight",
            Self::Scales => "scales",
            Self::Biases => "biases",
        }
    }
}

/// The sizes of a layer, from the shape of its packed numbers.
fn sizes(layout: Layout, bits: usize, codes: &TensorInfo, scales: &TensorInfo) -> Result<Sizes, String> {
    is_words(codes)?;
    let shape = &codes.shape;
    let &[first, second] = &shape[..] else {
        return Err(format!("has the shape {shape:?}, and two axes are needed"));
    };
    let n = 32 / bits;
    let (outputs, inputs) = match layout {
        Layout::Awq => (second * n, first),
        Layout::Gptq { .. } => (second, first * n),
        Layout::Rows => (first, second * n),
    };
    let fits = |size: usize| size > 0 && size.is_multiple_of(n) && i32::try_from(size).is_ok();
    // Words hold eight outputs of zero points, and eight inputs in MLX's form.
    if !fits(outputs) || !fits(inputs) {
        return Err(format!(
            "has {outputs} outputs and {inputs} inputs, of which {n} are needed in each word"
        ));
    }
    let groups = scales.shape.get(usize::from(layout == Layout::Rows)).copied().unwrap_or_default();
    Ok(Sizes { outputs, inputs, groups, bits })
}

/// Checks the tensor that says in which group each input is.
fn group_of(
    name: &str,
    order: &TensorInfo,
    group: usize,
    sizes: Sizes,
    read: ReadBytes<'_>,
) -> Result<GroupOf, String> {
    is_words(order).map_err(|problem| format!("{name} {problem}"))?;
    has_shape(name, order, &[sizes.inputs])?;
    let groups = words(&read(order)?);
    if let Some((at, &found)) = groups.iter().enumerate().find(|(_, found)| **found as usize >= sizes.groups)
    {
        let found = found.cast_signed();
        return Err(format!("{name} has {found} at {at}, and the groups are 0 to {}", sizes.groups - 1));
    }
    let in_order = groups.iter().enumerate().all(|(input, &found)| found as usize == input / group);
    Ok(if in_order { GroupOf::Neighbours(group) } else { GroupOf::Listed(order.clone()) })
}

fn is_words(info: &TensorInfo) -> Result<(), String> {
    match info.dtype {
        Dtype::I32 | Dtype::U32 => Ok(()),
        other => Err(format!("is {other:?}, and I32 is needed")),
    }
}

fn has_shape(name: &str, info: &TensorInfo, shape: &[usize]) -> Result<(), String> {
    if info.shape == shape {
        Ok(())
    } else {
        Err(format!("{name} has the shape {:?}, and {shape:?} is needed", info.shape))
    }
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
}

/// A layer of floats of 8 bits.
#[derive(Debug, Clone)]
pub(super) struct FloatLayer {
    codes: TensorInfo,
    scales: TensorInfo,
    /// Rows and columns of the weight.
    size: [usize; 2],
    /// Rows and columns that share a scale.
    block: [usize; 2],
    /// Of the weight that is made.
    dtype: Dtype,
}

impl FloatLayer {
    /// The names of tensors with scales, and of tensors for activations in 8 bits, which stay in full precision here.
    const SCALES: [&str; 2] = ["weight_scale_inv", "weight_scale"];
    const OF_ACTIVATIONS: [&str; 3] = ["activation_scale", "input_scale", "input_scale_ub"];

    /// Finds and checks the tensors of a layer. Returns the keys of all of them, too.
    ///
    /// # Errors
    ///
    /// What is wrong with a tensor, in words that begin with its name.
    pub(super) fn find(
        layer: &str,
        headers: &Headers,
        block: Option<[usize; 2]>,
        dtype: Dtype,
    ) -> Result<(Self, Vec<String>), String> {
        let key = |name: &str| format!("{layer}.{name}");
        let codes = headers.get(&key("weight")).ok_or("weight is missing")?;
        let &[rows, columns] = &codes.shape[..] else {
            return Err(format!("weight has the shape {:?}, and two axes are needed", codes.shape));
        };
        let found = Self::SCALES.into_iter().find_map(|name| Some((name, headers.get(&key(name))?)));
        let (name, scales) =
            found.ok_or("weight_scale_inv is missing, and there is no weight_scale either")?;
        if !is_float(scales.dtype) && !matches!(scales.dtype, Dtype::F8_E8M0 | Dtype::U8) {
            return Err(format!("{name} is {:?}, and F32, F16, BF16 or F8_E8M0 is needed", scales.dtype));
        }
        let block = shared(&scales.shape, [rows, columns], block).ok_or_else(|| {
            let needed = block.map_or_else(String::new, |block| format!(" in blocks of {block:?}"));
            format!(
                "{name} has the shape {:?}, which does not fit a weight of [{rows}, {columns}]{needed}",
                scales.shape
            )
        })?;
        let used = Self::SCALES.into_iter().chain(Self::OF_ACTIVATIONS).chain(["weight"]).map(key);
        let used = used.filter(|key| headers.contains_key(key)).collect();
        let (codes, scales) = (codes.clone(), scales.clone());
        Ok((Self { codes, scales, size: [rows, columns], block, dtype }, used))
    }

    /// The weight that is made of it.
    pub(super) fn made(&self) -> TensorInfo {
        TensorInfo::made(self.dtype, self.size.to_vec())
    }

    /// The bytes of this weight.
    pub(super) fn make(&self, read: ReadBytes<'_>) -> Result<Vec<u8>, String> {
        let numbers = e4m3();
        let codes = read(&self.codes)?;
        let scales = to_f32(&read(&self.scales)?, self.scales.dtype)?;
        let ([_, columns], [high, wide]) = (self.size, self.block);
        let in_row = columns.div_ceil(wide);
        Ok(matrix(self.size, self.dtype, |number, row| {
            let scales = &scales[number / high * in_row..][..in_row];
            let codes = &codes[number * columns..][..columns];
            for ((row, codes), scale) in row.chunks_mut(wide).zip(codes.chunks(wide)).zip(scales) {
                row.iter_mut().zip(codes).for_each(|(to, &code)| *to = numbers[usize::from(code)] * scale);
            }
        }))
    }
}

/// How many rows and columns share a scale, by the shape of the scales.
///
/// Blocks of the config may be cut off at the last rows and columns. Otherwise the scales are a grid of equal blocks: one for
/// all numbers, or one for each row.
fn shared(scales: &[usize], [rows, columns]: [usize; 2], block: Option<[usize; 2]>) -> Option<[usize; 2]> {
    let [down, across] = match *scales {
        [] => [1, 1],
        [down] => [down, 1],
        [down, across] => [down, across],
        _ => return None,
    };
    if down == 0 || across == 0 || rows == 0 || columns == 0 {
        return None;
    }
    match block {
        Some([high, wide]) if [rows.div_ceil(high), columns.div_ceil(wide)] == [down, across] => {
            Some([high, wide])
        }
        _ if rows.is_multiple_of(down) && columns.is_multiple_of(across) => {
            Some([rows / down, columns / across])
        }
        _ => None,
    }
}
