//! Writing a model in another form: quantized, in full precision, or of another dtype.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use mlx_layers::Quantization;
use mlx_quantization::{Mode, QuantizedArray, QuantizedView, dequantize, quantize};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};
use serde_json::{Map, Value, json};

use crate::error::shortened;
use crate::safetensors_file::without_place;
use crate::write::{Contents, LARGEST_SHARD, Progress, parameter_count};
use crate::{Checkpoint, CheckpointError};

/// What a checkpoint becomes.
#[derive(Debug, Clone)]
pub struct ConvertOptions {
    /// What becomes of the layers.
    pub weights: Weights,
    /// What every number is that is not quantized. Without it, what the config's `torch_dtype` says, or what it was.
    pub dtype: Option<FloatDtype>,
    /// Bytes of tensors in one file. A tensor that is larger has a file of its own.
    pub largest_shard: u64,
}

impl Default for ConvertOptions {
    /// As it is, in files of 5 GiB.
    fn default() -> Self {
        Self { weights: Weights::Kept, dtype: None, largest_shard: LARGEST_SHARD }
    }
}

/// What becomes of the layers.
#[derive(Debug, Clone)]
pub enum Weights {
    /// They stay what they are.
    Kept,
    /// They are quantized, those that groups divide.
    Quantized(QuantizeOptions),
    /// They are in full precision.
    Dequantized,
}

/// How layers are quantized: all in the same way, but for those that a recipe or a choice names.
#[derive(Debug, Clone)]
pub struct QuantizeOptions {
    /// How a layer is quantized of which nothing else says how.
    pub quantization: Quantization,
    /// Which layers have other bits.
    pub recipe: Option<Recipe>,
    /// What counts before both. Of several that match a layer, the last counts.
    pub layers: Vec<LayerChoice>,
}

/// How the layers of a pattern are quantized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerChoice {
    /// A layer's key, or the end of it from a dot on; `*` is any text: `lm_head`, `layers.0.*`, `*_proj`.
    pub pattern: String,
    /// How, or not at all.
    pub quantization: Option<Quantization>,
}

/// mlx-lm's recipes of two numbers of bits: more for the layers that a model suffers most from.
///
/// More bits have the head, and in the first and the last eighth of the blocks, and in every third between, the values'
/// projection and the one back from the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipe {
    /// 2 and 6 bits.
    Mixed2And6,
    /// 3 and 4 bits.
    Mixed3And4,
    /// 3 and 6 bits.
    Mixed3And6,
    /// 4 and 6 bits.
    Mixed4And6,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mixed2And6, Self::Mixed3And4, Self::Mixed3And6, Self::Mixed4And6];

    /// As mlx-lm calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixed2And6 => "mixed_2_6",
            Self::Mixed3And4 => "mixed_3_4",
            Self::Mixed3And6 => "mixed_3_6",
            Self::Mixed4And6 => "mixed_4_6",
        }
    }

    /// The bits of most layers, and of those that have more.
    fn bits(self) -> [i32; 2] {
        match self {
            Self::Mixed2And6 => [2, 6],
            Self::Mixed3And4 => [3, 4],
            Self::Mixed3And6 => [3, 6],
            Self::Mixed4And6 => [4, 6],
        }
    }
}

/// What a number is that is not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatDtype {
    /// 32 bits.
    Float32,
    /// 16 bits, 11 of them for the digits.
    Float16,
    /// 16 bits, 8 of them for the digits, with the range of 32.
    Bfloat16,
}

impl FloatDtype {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Float16, Self::Bfloat16];

    /// As configs call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
        }
    }

    fn of(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::Float32,
            Self::Float16 => Dtype::Float16,
            Self::Bfloat16 => Dtype::Bfloat16,
        }
    }
}

/// Why a checkpoint cannot be converted as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// Layers are quantized that are to be quantized.
    #[error("{layer} is quantized already ({quantization}); dequantize the checkpoint first")]
    Quantized {
        /// The first such layer.
        layer: String,
        /// How it is quantized.
        quantization: Quantization,
    },
    /// No layer is quantized that could be dequantized.
    #[error("no layer is quantized, so there is nothing to dequantize")]
    NotQuantized,
    /// Groups divide the rows of no layer.
    #[error("no layer can be quantized as {quantization}: the rows have {}", columns(lengths))]
    FitsNoLayer {
        /// How they were to be quantized.
        quantization: Quantization,
        /// The lengths of the layers' rows.
        lengths: Vec<i32>,
    },
    /// Groups do not divide the rows of a layer that was named.
    #[error("{layer} cannot be quantized as {quantization}: its rows have {columns} columns")]
    FitsNot {
        /// The layer.
        layer: String,
        /// How it was to be quantized.
        quantization: Quantization,
        /// The length of its rows.
        columns: i32,
    },
    /// A pattern matches no layer.
    #[error("the pattern {:?} matches no layer; layers are {}", shortened(pattern), shortened(&layers.join(", ")))]
    NoSuchLayer {
        /// The pattern.
        pattern: String,
        /// Some of the layers that there are.
        layers: Vec<String>,
    },
    /// A recipe is one for affine quantization.
    #[error("{} is a recipe for affine quantization, and {quantization} is asked for", recipe.name())]
    RecipeOfMode {
        /// The recipe.
        recipe: Recipe,
        /// What the other layers were to be.
        quantization: Quantization,
    },
    /// A recipe knows layers by names that the model does not have.
    #[error("{} is a recipe for models with layers named down_proj, and this one has none", recipe.name())]
    RecipeOfNames {
        /// The recipe.
        recipe: Recipe,
    },
}

fn columns(lengths: &[i32]) -> String {
    let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
    format!("{} columns", lengths.join(" or "))
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Converted {
    /// How layers are quantized, with how many there are of each kind, the most first.
    pub quantized: Vec<(Quantization, usize)>,
    /// The layers in full precision, by their keys.
    pub full_precision: Vec<String>,
    /// How many numbers the tensors stand for.
    pub parameters: usize,
    /// Bytes of the tensors.
    pub bytes: usize,
    /// The names of the tensor files.
    pub files: Vec<String>,
}

impl Converted {
    /// Bits that a number takes on average.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

impl fmt::Display for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (quantization, layers) in &self.quantized {
            writeln!(f, "{layers} layers {quantization}")?;
        }
        if !self.full_precision.is_empty() {
            writeln!(f, "{} layers in full precision", self.full_precision.len())?;
        }
        write!(
            f,
            "{:.3} bits per weight, {:.2} MB in {} files",
            self.bits_per_weight(),
            self.bytes as f64 / 1e6,
            self.files.len()
        )
    }
}

impl Checkpoint {
    /// Writes a checkpoint folder with the parameters of a model in another form.
    ///
    /// `parameters` are those of the model that was built from this checkpoint, whose layers are told by what every
    /// language model has in common: a matrix named `weight` is that of a linear layer or of an embedding, as norms and
    /// biases are vectors. What is written is what mlx-lm's `convert` writes, bit for bit. They are computed layer by
    /// layer as they are written, so the model should be dropped before: it would hold them all.
    ///
    /// `progress` is told of each layer, and answers whether to go on.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Convert`] for what cannot be done, [`CheckpointError::Exists`] unless `out` is absent or
    /// empty, [`CheckpointError::Write`] with the file that cannot be written, and [`CheckpointError::Stopped`].
    pub fn convert(
        &self,
        out: impl AsRef<Path>,
        parameters: Vec<(String, Array)>,
        options: &ConvertOptions,
        mut progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Converted, CheckpointError> {
        let out = out.as_ref();
        crate::write::is_free(out)?;
        let mut config = self.saved_config()?;
        if parameters.iter().any(|(key, _)| key.starts_with(INNER)) {
            for key in ["quantization", "quantization_config"] {
                config.get_mut(key).and_then(Value::as_object_mut).map(rename_layers);
            }
        }
        let mut layers = self.layers(parameters);
        let mlx = |e: Exception| CheckpointError::Write {
            file: out.to_path_buf(),
            problem: without_place(&e.to_string()),
        };

        let from_config = || {
            let given = config.get("torch_dtype").filter(|dtype| !dtype.is_null());
            let given = given.or_else(|| config.get("text_config")?.get("dtype"))?.as_str()?;
            FloatDtype::ALL.into_iter().find(|dtype| dtype.name() == given)
        };
        if let Some(dtype) = options.dtype.or_else(from_config) {
            for layer in layers.values_mut() {
                layer.cast(dtype).map_err(mlx)?;
            }
        }
        match &options.weights {
            Weights::Kept => {}
            Weights::Quantized(how) => {
                let plan = plan(&layers, how)?;
                set_quantization(&mut config, Some(section(how, &plan)));
                for (key, quantization) in plan {
                    if let Some(layer) = layers.get_mut(&key) {
                        layer.quantize(quantization).map_err(mlx)?;
                    }
                }
            }
            Weights::Dequantized => {
                if layers.values().all(|layer| layer.quantization.is_none()) && !self.is_dequantized() {
                    return Err(ConvertError::NotQuantized.into());
                }
                set_quantization(&mut config, None);
                for layer in layers.values_mut() {
                    layer.dequantize().map_err(mlx)?;
                    // The modes of small floats give bfloat16, whatever the other numbers are.
                    if let Some(dtype) = options.dtype {
                        layer.cast(dtype).map_err(mlx)?;
                    }
                }
            }
        }
        untie(&mut config, &layers);

        let mut quantized: Vec<(Quantization, usize)> = Vec::new();
        let mut full_precision = Vec::new();
        for (key, layer) in &layers {
            match layer.quantization {
                Some(way) => match quantized.iter_mut().find(|(known, _)| *known == way) {
                    Some((_, layers)) => *layers += 1,
                    None => quantized.push((way, 1)),
                },
                None if layer.columns().is_some() => full_precision.push(key.clone()),
                None => {}
            }
        }
        quantized.sort_by_key(|&(_, layers)| std::cmp::Reverse(layers));

        let quantizations: BTreeMap<String, Quantization> =
            layers.iter().filter_map(|(key, layer)| Some((key.clone(), layer.quantization?))).collect();
        let tensors: Vec<(String, Array)> = layers
            .into_iter()
            .flat_map(|(key, layer)| {
                layer.parts.into_iter().map(move |(part, array)| (format!("{key}.{part}"), array))
            })
            .collect();
        let parameters = parameter_count(&tensors, |layer| quantizations.get(layer).copied());
        let bytes = tensors.iter().map(|(_, array)| array.nbytes()).sum();
        let contents = Contents { config, tensors, parameters, largest_shard: options.largest_shard };
        let files = self.write(out, contents, &mut progress)?;
        Ok(Converted { quantized, full_precision, parameters, bytes, files })
    }

    /// Parameters by the layers that they belong to, under the names that mlx-lm has for them.
    fn layers(&self, parameters: Vec<(String, Array)>) -> BTreeMap<String, Layer> {
        let inner = parameters.iter().any(|(key, _)| key.starts_with(INNER));
        let mut layers: BTreeMap<String, Layer> = BTreeMap::new();
        for (key, array) in parameters {
            let (layer, part) = key.rsplit_once('.').unwrap_or(("", &key));
            let name = if inner { released_name(layer) } else { layer.to_owned() };
            let entry = layers.entry(name).or_default();
            if part == "scales" {
                entry.quantization = self.quantization_of(layer);
            }
            entry.parts.insert(part.to_owned(), array);
        }
        layers
    }
}

/// What stands before the names of a language model beside others in the modules of transformers.
const INNER: &str = "model.language_model.";

/// The name of such a layer in checkpoints, which is the one that mlx-lm knows.
fn released_name(layer: &str) -> String {
    match layer.strip_prefix(INNER) {
        Some(rest) => format!("language_model.model.{rest}"),
        None => format!("language_model.{layer}"),
    }
}

/// The same for the layers that a config's quantization names.
fn rename_layers(section: &mut Map<String, Value>) {
    let renamed = std::mem::take(section).into_iter().map(|(key, value)| {
        let is_layer = value.is_object() || value.is_boolean();
        (if is_layer { released_name(&key) } else { key }, value)
    });
    *section = renamed.collect();
}

/// The parameters of one layer.
#[derive(Debug, Default)]
struct Layer {
    parts: BTreeMap<String, Array>,
    quantization: Option<Quantization>,
}

impl Layer {
    /// The length of the rows of the weight, if it is one of a linear layer or an embedding and not quantized.
    fn columns(&self) -> Option<i32> {
        let shape = self.parts.get("weight")?.shape();
        (shape.len() == 2 && self.quantization.is_none()).then(|| shape[1])
    }

    fn cast(&mut self, dtype: FloatDtype) -> Result<(), Exception> {
        for array in self.parts.values_mut() {
            if matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
                *array = array.as_dtype(dtype.of())?;
            }
        }
        Ok(())
    }

    fn quantize(&mut self, quantization: Quantization) -> Result<(), Exception> {
        let Some(weight) = self.parts.get("weight") else { return Ok(()) };
        let QuantizedArray { packed, scales, biases, .. } = quantize(weight, quantization)?;
        self.parts.insert("weight".to_owned(), packed);
        self.parts.insert("scales".to_owned(), scales);
        self.parts.extend(biases.map(|biases| ("biases".to_owned(), biases)));
        self.quantization = Some(quantization);
        Ok(())
    }

    fn dequantize(&mut self) -> Result<(), Exception> {
        let (Some(quantization), Some(packed), Some(scales)) =
            (self.quantization, self.parts.get("weight"), self.parts.get("scales"))
        else {
            return Ok(());
        };
        let biases = self.parts.get("biases");
        let whole = dequantize(QuantizedView { packed, scales, biases, quantization })?;
        self.parts.insert("weight".to_owned(), whole);
        self.parts.remove("scales");
        self.parts.remove("biases");
        self.quantization = None;
        Ok(())
    }
}

/// Which layers are quantized, and how.
fn plan(
    layers: &BTreeMap<String, Layer>,
    how: &QuantizeOptions,
) -> Result<BTreeMap<String, Quantization>, ConvertError> {
    let quantized = layers.iter().find_map(|(key, layer)| Some((key.clone(), layer.quantization?)));
    if let Some((layer, quantization)) = quantized {
        return Err(ConvertError::Quantized { layer, quantization });
    }
    let matrices: BTreeMap<&str, i32> =
        layers.iter().filter_map(|(key, layer)| Some((&**key, layer.columns()?))).collect();
    for LayerChoice { pattern, .. } in &how.layers {
        if !matrices.keys().any(|key| matches(pattern, key)) {
            let of_first_block =
                |key: &&&str| !key.split('.').any(|part| part.parse().is_ok_and(|n: u32| n > 0));
            let layers = matrices.keys().filter(of_first_block).map(|key| (*key).to_owned()).collect();
            return Err(ConvertError::NoSuchLayer { pattern: pattern.clone(), layers });
        }
    }
    let recipe = how.recipe.map(|recipe| RecipeFor::new(recipe, &matrices, how.quantization)).transpose()?;
    let common = how.quantization;
    let mut plan = BTreeMap::new();
    for (&key, &columns) in &matrices {
        let fits = |quantization: Quantization| columns % quantization.group_size() == 0;
        let chosen = how.layers.iter().rfind(|choice| matches(&choice.pattern, key));
        let quantization = match chosen {
            Some(LayerChoice { quantization: Some(quantization), .. }) if !fits(*quantization) => {
                let (layer, quantization) = (key.to_owned(), *quantization);
                return Err(ConvertError::FitsNot { layer, quantization, columns });
            }
            Some(choice) => choice.quantization,
            None if !fits(common) => None,
            None => Some(recipe.as_ref().map_or(common, |recipe| recipe.of(key))),
        };
        plan.extend(quantization.map(|quantization| (key.to_owned(), quantization)));
    }
    if plan.is_empty() {
        let mut lengths: Vec<i32> = matrices.into_values().collect();
        lengths.sort_unstable();
        lengths.dedup();
        return Err(ConvertError::FitsNoLayer { quantization: common, lengths });
    }
    Ok(plan)
}

/// A [`Recipe`] for the layers of one model.
struct RecipeFor {
    low: Quantization,
    high: Quantization,
    /// Which part of a key is the number of the block.
    number_at: usize,
    blocks: usize,
}

impl RecipeFor {
    fn new(recipe: Recipe, layers: &BTreeMap<&str, i32>, common: Quantization) -> Result<Self, ConvertError> {
        let refused = || ConvertError::RecipeOfMode { recipe, quantization: common };
        if common.mode() != Mode::Affine {
            return Err(refused());
        }
        let affine = |bits| Quantization::affine(bits, common.group_size()).map_err(|_| refused());
        let [low, high] = recipe.bits();
        let number_of = |part: &str| part.parse::<usize>().ok();
        let mut down = layers.keys().filter(|key| key.contains("down_proj"));
        let number_at = down.next().and_then(|key| key.split('.').position(|part| number_of(part).is_some()));
        let number_at = number_at.ok_or(ConvertError::RecipeOfNames { recipe })?;
        let numbers = layers.keys().filter_map(|key| number_of(key.split('.').nth(number_at)?));
        let blocks = numbers.max().map_or(0, |last| last + 1);
        Ok(Self { low: affine(low)?, high: affine(high)?, number_at, blocks })
    }

    /// How mlx-lm's recipe quantizes a layer.
    fn of(&self, key: &str) -> Quantization {
        let block: usize =
            key.split('.').nth(self.number_at).and_then(|part| part.parse().ok()).unwrap_or_default();
        let eighth = self.blocks / 8;
        let more = block < eighth || block >= 7 * self.blocks / 8 || (block - eighth) % 3 == 2;
        let suffers = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|name| key.contains(name));
        if (suffers && more) || key.contains("lm_head") { self.high } else { self.low }
    }
}

/// The config's section: what is common, and the layers that are not.
fn section(how: &QuantizeOptions, plan: &BTreeMap<String, Quantization>) -> Value {
    let entry = |quantization: Quantization| {
        json!({
            "group_size": quantization.group_size(), "bits": quantization.bits(), "mode": quantization.mode().name()
        })
    };
    let mut section = entry(how.quantization);
    // mlx-lm's recipes name every layer.
    let named = plan.iter().filter(|(_, own)| how.recipe.is_some() || **own != how.quantization);
    let named: Map<String, Value> = named.map(|(key, own)| (key.clone(), entry(*own))).collect();
    if let Some(section) = section.as_object_mut() {
        section.extend(named);
    }
    section
}

fn set_quantization(config: &mut Value, section: Option<Value>) {
    let Some(config) = config.as_object_mut() else { return };
    for key in ["quantization", "quantization_config"] {
        match &section {
            Some(section) => config.insert(key.to_owned(), section.clone()),
            None => config.remove(key),
        };
    }
}

/// Says in the config that the head is one of its own, where the checkpoint had one though its config ties it to the
/// embedding: mlx-lm leaves such a head out, or refuses it.
fn untie(config: &mut Value, layers: &BTreeMap<String, Layer>) {
    let has_own_head = layers.keys().any(|key| key == "lm_head" || key.ends_with(".lm_head"));
    if let Some(tied) = config.get_mut("tie_word_embeddings")
        && has_own_head
        && tied == &Value::Bool(true)
    {
        *tied = Value::Bool(false);
    }
}

/// Whether a pattern matches a key, or the end of it from a dot on.
fn matches(pattern: &str, key: &str) -> bool {
    let ends = key.match_indices('.').map(|(dot, _)| &key[dot + 1..]);
    std::iter::once(key).chain(ends).any(|end| matches_whole(pattern, end))
}

/// Whether a pattern matches all of a text.
fn matches_whole(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let starts = rest.char_indices().map(|(place, _)| place).chain([rest.len()]);
    starts.into_iter().any(|start| matches_whole(after, &rest[start..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    fn layers(shapes: &[(&str, &[i32])]) -> BTreeMap<String, Layer> {
        let layer = |shape: &[i32]| Layer {
            parts: BTreeMap::from([("weight".to_owned(), Array::ones::<f32>(shape).unwrap())]),
            quantization: None,
        };
        shapes.iter().map(|(key, shape)| ((*key).to_owned(), layer(shape))).collect()
    }

    fn options(quantization: Quantization, layers: &[(&str, Option<Quantization>)]) -> QuantizeOptions {
        let layers = layers
            .iter()
            .map(|&(pattern, quantization)| LayerChoice { pattern: pattern.to_owned(), quantization });
        QuantizeOptions { quantization, recipe: None, layers: layers.collect() }
    }

    fn affine(bits: i32, group_size: i32) -> Quantization {
        Quantization::affine(bits, group_size).unwrap()
    }

    const SHAPES: [(&str, &[i32]); 5] = [
        ("lm_head", &[8, 64]),
        ("model.embed_tokens", &[8, 64]),
        ("model.layers.0.mlp.down_proj", &[64, 96]),
        ("model.layers.1.mlp.down_proj", &[64, 96]),
        ("model.norm", &[64]),
    ];

    #[test]
    fn a_pattern_is_a_key_or_the_end_of_one() {
        for (pattern, key, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "language_model.lm_head", true),
            ("head", "lm_head", false),
            ("down_proj", "model.layers.0.mlp.down_proj", true),
            ("*_proj", "model.layers.0.mlp.down_proj", true),
            ("layers.0.*", "model.layers.0.mlp.down_proj", true),
            ("layers.0", "model.layers.0.mlp.down_proj", false),
            ("layers.1.*", "model.layers.11.mlp.down_proj", false),
            ("model.*.mlp.*", "model.layers.11.mlp.down_proj", true),
            ("*", "lm_head", true),
            ("", "lm_head", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn layers_are_quantized_that_groups_divide_and_the_last_choice_counts() {
        let layers = layers(&SHAPES);
        let plan = |options| plan(&layers, &options);
        let keys = |plan: BTreeMap<String, Quantization>| plan.into_iter().collect::<Vec<_>>();
        let both = |q| vec![("lm_head".to_owned(), q), ("model.embed_tokens".to_owned(), q)];
        assert_eq!(keys(plan(options(affine(4, 64), &[])).unwrap()), both(affine(4, 64)));
        assert_eq!(plan(options(affine(4, 32), &[])).unwrap().len(), 4);
        let chosen = [
            ("down_proj", Some(affine(8, 32))),
            ("layers.1.*", Some(Quantization::NVFP4)),
            ("lm_head", None),
        ];
        let expected = [
            ("model.embed_tokens", affine(4, 64)),
            ("model.layers.0.mlp.down_proj", affine(8, 32)),
            ("model.layers.1.mlp.down_proj", Quantization::NVFP4),
        ];
        let options = options(affine(4, 64), &chosen);
        let found = plan(options.clone()).unwrap();
        assert_eq!(keys(found.clone()), expected.map(|(key, q)| (key.to_owned(), q)));
        let expected = json!({
            "group_size": 64, "bits": 4, "mode": "affine",
            "model.layers.0.mlp.down_proj": { "group_size": 32, "bits": 8, "mode": "affine" },
            "model.layers.1.mlp.down_proj": { "group_size": 16, "bits": 4, "mode": "nvfp4" },
        });
        assert_eq!(section(&options, &found), expected);
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let mut layers = layers(&SHAPES);
        let refused = |layers: &_, options: QuantizeOptions| plan(layers, &options).unwrap_err();
        let error = refused(&layers, options(affine(4, 128), &[]));
        assert_eq!(error, ConvertError::FitsNoLayer { quantization: affine(4, 128), lengths: vec![64, 96] });
        assert!(error.to_string().ends_with("the rows have 64 or 96 columns"), "{error}");
        let error = refused(&layers, options(affine(4, 32), &[("q_proj", None)]));
        assert!(matches!(&error, ConvertError::NoSuchLayer { layers, .. } if layers.len() == 3), "{error}");
        let error = refused(&layers, options(affine(4, 32), &[(&"a".repeat(100_000), None)]));
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        let error = refused(&layers, options(affine(4, 32), &[("down_proj", Some(affine(8, 64)))]));
        assert!(matches!(error, ConvertError::FitsNot { columns: 96, .. }), "{error}");
        let recipe =
            |quantization| QuantizeOptions { recipe: Some(Recipe::Mixed2And6), ..options(quantization, &[]) };
        let error = refused(&layers, recipe(Quantization::MXFP4));
        assert!(matches!(error, ConvertError::RecipeOfMode { .. }), "{error}");
        layers.retain(|key, _| !key.contains("down_proj"));
        let error = refused(&layers, recipe(affine(4, 32)));
        assert!(matches!(error, ConvertError::RecipeOfNames { .. }), "{error}");
        layers.get_mut("lm_head").unwrap().quantize(affine(8, 32)).unwrap();
        let error = refused(&layers, options(affine(4, 32), &[]));
        assert_eq!(
            error.to_string(),
            "lm_head is quantized already (affine of 8 bits in groups of 32); dequantize the checkpoint first"
        );
    }

    #[test]
    fn names_of_transformers_become_those_of_checkpoints() {
        assert_eq!(
            released_name("model.language_model.layers.0.mlp.up_proj"),
            "language_model.model.layers.0.mlp.up_proj"
        );
        assert_eq!(released_name("lm_head"), "language_model.lm_head");
        let mut section =
            json!({ "bits": 4, "lm_head": false, "model.language_model.embed_tokens": { "bits": 8 } });
        rename_layers(section.as_object_mut().unwrap());
        let expected = json!({ "bits": 4, "language_model.lm_head": false, "language_model.model.embed_tokens": { "bits": 8 } });
        assert_eq!(section, expected);
    }

    #[test]
    fn a_head_of_its_own_is_not_tied() {
        let with_head = layers(&SHAPES);
        let mut config = json!({ "tie_word_embeddings": true });
        untie(&mut config, &layers(&SHAPES[1..]));
        assert_eq!(config, json!({ "tie_word_embeddings": true }));
        untie(&mut config, &with_head);
        assert_eq!(config, json!({ "tie_word_embeddings": false }));
        let mut config = json!({});
        untie(&mut config, &with_head);
        assert_eq!(config, json!({}));
    }
}
