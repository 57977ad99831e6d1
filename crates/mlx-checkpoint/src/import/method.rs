//! What the config says of a quantization by another program.

use serde_json::Value;

use crate::error::CheckpointError;
use crate::text::shortened;

/// How another program quantized the layers of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Method {
    /// Whole numbers, several in a word.
    Packed(Packing),
    /// Floats of 8 bits.
    Floats {
        /// What messages call the method.
        name: &'static str,
        /// Rows and columns that share a scale, if the config says it.
        block: Option<[usize; 2]>,
    },
}

/// Whole numbers of a few bits, several in a word of 32 bits, with a scale and a zero point for each group of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    pub(super) layout: Layout,
    /// Bits of a number: 2, 4 or 8.
    pub(super) bits: usize,
    /// Number of columns that share a scale; `None` for all columns.
    pub(super) group: Option<usize>,
    /// Whether layers may have no zero points. They are in the middle of the numbers then.
    pub(super) symmetric: bool,
    /// Whether inputs are not in the order of the groups, so that a tensor must say in which group each is.
    pub(super) reordered: bool,
}

impl Packing {
    /// What messages call the method.
    pub(super) fn name(self) -> &'static str {
        match self.layout {
            Layout::Awq => "AWQ",
            Layout::Gptq { .. } => "GPTQ",
            Layout::Rows => "compressed-tensors",
        }
    }
}

/// Where the number of an input and an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// AutoAWQ's `gemm`: a word has eight outputs of one input, the even ones first.
    Awq,
    /// AutoGPTQ's: a word has neighbouring inputs of one output.
    Gptq {
        /// Whether zero points are stored less one, as in the first version of the format.
        less_one: bool,
    },
    /// That of compressed-tensors: as MLX's, a row of words for each output.
    Rows,
}

/// What to do with a checkpoint that is not supported.
pub(super) const ADVICE: &str =
    "take the model in bfloat16, which `mlx-models convert --quantize` makes small";

impl Method {
    /// `None` for a config without a quantization, and for one that MLX made.
    pub(crate) fn from_config(config: &Value) -> Result<Option<Self>, CheckpointError> {
        let given = |config: &Value, key| config.get(key).filter(|value| !value.is_null()).cloned();
        if given(config, "quantization").is_some() {
            return Ok(None);
        }
        let of_text = || given(config.get("text_config")?, "quantization_config");
        let Some(section) = given(config, "quantization_config").or_else(of_text) else { return Ok(None) };
        let section = Section(&section);
        let Some(method) = section.text("quant_method")? else { return section.no_method().map(|()| None) };
        match method.as_str() {
            "awq" => awq(section).map(|packing| Some(Self::Packed(packing))),
            "gptq" => gptq(section).map(|packing| Some(Self::Packed(packing))),
            "fp8" => {
                let of_all = section.0.get("weight_block_size").is_some();
                let block = section.block("weight_block_size")?.or((!of_all).then_some([128, 128]));
                Ok(Some(Self::Floats { name: "FP8", block }))
            }
            "fbgemm_fp8" => Ok(Some(Self::Floats { name: "FP8", block: None })),
            "compressed-tensors" => compressed_tensors(section).map(Some),
            other => Err(refused(format!(
                "quant_method {other:?} is not supported; known are awq, gptq, fp8, fbgemm_fp8 and compressed-tensors, and \
                 the form of mlx-lm, which has no quant_method; {ADVICE}"
            ))),
        }
    }
}

fn awq(section: Section<'_>) -> Result<Packing, CheckpointError> {
    let version = section.text("version")?.or(section.text("format")?).unwrap_or_else(|| "gemm".to_owned());
    if version.to_lowercase() != "gemm" {
        return Err(refused(format!("AWQ of version {version:?} is not supported, only gemm is; {ADVICE}")));
    }
    let bits = if section.get("bits").is_none() { 4 } else { section.bits(&[4], "AWQ")? };
    let symmetric = section.flag("zero_point")? == Some(false);
    let group = section.group(Some(128))?;
    Ok(Packing { layout: Layout::Awq, bits, group, symmetric, reordered: false })
}

fn gptq(section: Section<'_>) -> Result<Packing, CheckpointError> {
    let format = section.text("checkpoint_format")?.or(section.text("format")?);
    let less_one = match format.as_deref().unwrap_or("gptq") {
        "gptq" => true,
        "gptq_v2" => false,
        other => {
            let problem =
                format!("GPTQ of checkpoint_format {other:?} is not supported, only gptq and gptq_v2 are");
            return Err(refused(format!("{problem}; {ADVICE}")));
        }
    };
    if section.flag("is_marlin_format")? == Some(true) {
        return Err(refused(format!("GPTQ with is_marlin_format is not supported; {ADVICE}")));
    }
    let (bits, group) = (section.bits(&[2, 4, 8], "GPTQ")?, section.group(Some(128))?);
    // GPTQModel's rules for layers whose names match a pattern. Those of a pattern that begins with "-:" are not quantized.
    for (pattern, rule) in section.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
        let rule = Section(rule);
        let other_bits = rule.get("bits").is_some_and(|other| other.as_u64() != Some(bits as u64));
        let is_other = other_bits || rule.group(group)? != group;
        if is_other && !pattern.starts_with("-:") {
            return Err(refused(format!(
                "GPTQ with other bits or another group size for the layers {pattern:.100?} (dynamic) is not supported; {ADVICE}"
            )));
        }
    }
    let symmetric = section.flag("sym")? == Some(true);
    let reordered = section.flag("desc_act")? == Some(true);
    Ok(Packing { layout: Layout::Gptq { less_one }, bits, group, symmetric, reordered })
}

fn compressed_tensors(section: Section<'_>) -> Result<Method, CheckpointError> {
    let format = section.text("format")?.unwrap_or_default();
    let groups = section.0.get("config_groups").and_then(Value::as_object);
    let all: Vec<Section<'_>> = groups
        .into_iter()
        .flat_map(|g| g.values())
        .filter_map(|g| Section(g).get("weights").map(Section))
        .collect();
    let Some(&weights) = all.first() else {
        return Err(refused(
            "compressed-tensors without config_groups that say how weights are stored".to_owned(),
        ));
    };
    // Scales have shapes that say the blocks of floats. Those of whole numbers are for the same groups in every layer.
    let is_other = |other: &Section<'_>| {
        let by_key = ["num_bits", "type", "symmetric"].iter().any(|key| other.get(key) != weights.get(key));
        Ok(by_key || other.group(None)? != weights.group(None)?)
    };
    if all.iter().map(is_other).collect::<Result<Vec<bool>, CheckpointError>>()?.contains(&true) {
        return Err(refused(format!(
            "compressed-tensors with several config_groups, whose weights are stored differently, is not supported; {ADVICE}"
        )));
    }
    match format.as_str() {
        "float-quantized" => Ok(Method::Floats { name: "FP8", block: weights.block("block_structure")? }),
        "pack-quantized" => {
            let bits = weights.named_bits("num_bits", &[4, 8], "compressed-tensors")?;
            let symmetric = weights.flag("symmetric")? != Some(false);
            let reordered = weights.get("actorder").is_some_and(|order| order == "group" || order == true);
            let group = weights.group(None)?;
            Ok(Method::Packed(Packing { layout: Layout::Rows, bits, group, symmetric, reordered }))
        }
        other => Err(refused(format!(
            "compressed-tensors of format {other:?} is not supported, only float-quantized and pack-quantized are; {ADVICE}"
        ))),
    }
}

/// A section of the config.
#[derive(Clone, Copy)]
struct Section<'a>(&'a Value);

impl<'a> Section<'a> {
    /// Refuses what bitsandbytes writes. Its sections may have no `quant_method`, as those of MLX.
    fn no_method(&self) -> Result<(), CheckpointError> {
        for key in ["load_in_4bit", "load_in_8bit"] {
            if self.flag(key)? == Some(true) {
                return Err(refused(format!("bitsandbytes ({key}) is not supported; {ADVICE}")));
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<String>, CheckpointError> {
        let text =
            |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(key, value, "a name"));
        self.get(key).map(text).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, CheckpointError> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| wrong(key, value, "true or false"));
        self.get(key).map(flag).transpose()
    }

    fn bits(&self, known: &[u64], name: &str) -> Result<usize, CheckpointError> {
        self.named_bits("bits", known, name)
    }

    fn named_bits(&self, key: &str, known: &[u64], name: &str) -> Result<usize, CheckpointError> {
        let Some(value) = self.get(key) else { return Err(refused(format!("{key} is missing"))) };
        match value.as_u64() {
            Some(bits) if known.contains(&bits) => Ok(bits as usize),
            Some(bits) => {
                let (last, others) = known.split_last().unwrap_or((&0, &[]));
                let others: Vec<String> = others.iter().map(u64::to_string).collect();
                let and = if others.is_empty() { "" } else { " and " };
                let known = format!("{}{and}{last}", others.join(", "));
                Err(refused(format!("{name} of {bits} bits is not supported, {known} bits are; {ADVICE}")))
            }
            None => Err(wrong(key, value, "a whole number")),
        }
    }

    /// The number of columns of a group; `None` where all columns are one. `default` is taken if the config does not say it.
    fn group(&self, default: Option<usize>) -> Result<Option<usize>, CheckpointError> {
        match self.get("group_size") {
            None => Ok(default),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(group @ 1..) => Ok(Some(group as usize)),
                _ => Err(wrong("group_size", value, "a positive whole number or -1")),
            },
        }
    }

    fn block(&self, key: &str) -> Result<Option<[usize; 2]>, CheckpointError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = |value: &Value| value.as_u64().filter(|&size| size > 0).map(|size| size as usize);
        let sizes: Option<Vec<usize>> = value.as_array().and_then(|sizes| sizes.iter().map(size).collect());
        let sizes = sizes.and_then(|sizes| <[usize; 2]>::try_from(sizes).ok());
        sizes.map(Some).ok_or_else(|| wrong(key, value, "a list of two sizes"))
    }
}

fn wrong(key: &str, value: &Value, needed: &str) -> CheckpointError {
    refused(format!("{key} is {value}, and {needed} is needed"))
}

fn refused(problem: String) -> CheckpointError {
    let problem = shortened(&problem).into_owned();
    CheckpointError::Quantization { layer: "every layer".to_owned(), problem }
}
