//! Adapter folders: what mlx-lm's fine-tuning leaves, and what it loads.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use mlx_layers::{AdaptedLayer, AdapterParameters, Magnitudes};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::random::RandomState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::safetensors_file::{mlx_reads, read_header, without_place};
use crate::write::write_in_place;
use crate::{CheckpointError, TensorDtype, TensorInfo, TensorProblem};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapters.safetensors";

/// What the last part of an adapter tensor's key may be.
const LEAVES: [&str; 3] = ["lora_a", "lora_b", "m"];

/// How a model was fine-tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// By adding matrices of low rank.
    Lora,
    /// The same, with the lengths of the rows apart.
    Dora,
}

/// Which layers have adapters, and of what kind.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// LoRA or DoRA.
    pub kind: AdapterKind,
    /// Columns of `lora_a` and rows of `lora_b`.
    pub rank: i32,
    /// What the product of the two is multiplied by. Other programs write `alpha`, which is this times the rank.
    pub scale: f32,
    /// Which share of the inputs mlx-lm leaves out when it trains. Nothing here does.
    pub dropout: f32,
    /// In how many of the last blocks, where 0 or less means all.
    pub num_layers: i32,
    /// Which layers: names in each of these blocks, such as `self_attn.q_proj`, or full keys, such as
    /// `model.embed_tokens`. `None` for every linear layer and embedding of these blocks.
    pub keys: Option<Vec<String>>,
}

/// The part of `adapter_config.json` that says what the adapters are; the rest is how they were trained.
#[derive(Deserialize)]
struct RawConfig {
    /// mlx-lm takes it for LoRA's where it is missing.
    #[serde(default = "lora")]
    fine_tune_type: String,
    #[serde(default)]
    num_layers: Option<i32>,
    #[serde(default)]
    lora_parameters: Option<RawLora>,
    /// In the configs of the library PEFT, which have the same file name.
    #[serde(default)]
    peft_type: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLora {
    rank: i32,
    #[serde(default)]
    scale: Option<f32>,
    #[serde(default)]
    alpha: Option<Value>,
    #[serde(default)]
    dropout: f32,
    #[serde(default)]
    keys: Option<Vec<String>>,
}

fn lora() -> String {
    "lora".to_owned()
}

impl AdapterConfig {
    fn from_raw(raw: RawConfig, kind: AdapterKind) -> Result<Self, String> {
        let num_layers = raw.num_layers.ok_or("num_layers is missing")?;
        let RawLora { rank, scale, alpha, dropout, keys } =
            raw.lora_parameters.ok_or("lora_parameters is missing")?;
        if alpha.is_some() {
            return Err(
                "lora_parameters.alpha is not mlx-lm's: it has scale, which is alpha / rank".to_owned()
            );
        }
        let scale = scale.ok_or("lora_parameters.scale is missing")?;
        let config = Self { kind, rank, scale, dropout, num_layers, keys };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.rank <= 0 {
            return Err(format!("lora_parameters.rank is {}, and must be positive", self.rank));
        }
        if !self.scale.is_finite() {
            return Err(format!("lora_parameters.scale is {}, and must be finite", self.scale));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("lora_parameters.dropout is {}, and must be in 0..1", self.dropout));
        }
        match &self.keys {
            Some(keys) if keys.is_empty() => Err("lora_parameters.keys names no layer".to_owned()),
            _ => Ok(()),
        }
    }

    fn to_json(&self) -> Value {
        let Self { kind, rank, scale, dropout, num_layers, ref keys } = *self;
        // Through its shortest decimal form: as float64 a float32 would show digits that nobody wrote.
        let number = |x: f32| x.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(x));
        let mut lora = json!({ "rank": rank, "scale": number(scale), "dropout": number(dropout) });
        if let Some(keys) = keys {
            lora["keys"] = json!(keys);
        }
        json!({ "fine_tune_type": kind, "num_layers": num_layers, "lora_parameters": lora })
    }
}

/// What an adapter folder holds, or what is to be trained.
#[derive(Debug, Clone)]
pub struct Adapters {
    /// Empty for fresh ones.
    folder: PathBuf,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// Trained adapters, and what the header of their file says.
    Trained(AdapterConfig, BTreeMap<String, TensorInfo>),
    /// Adapters that change nothing yet, from this seed.
    Fresh(AdapterConfig, u64),
    /// Weights that take the place of a checkpoint's.
    Full(BTreeMap<String, TensorInfo>),
}

impl Adapters {
    /// Reads the config of an adapter folder and the header of its tensors.
    ///
    /// The folder is one of mlx-lm's: `adapter_config.json` and `adapters.safetensors`. Its `fine_tune_type` may be
    /// `lora`, which it is where there is none, `dora`, or `full`, where the tensors are weights that take the
    /// place of the checkpoint's.
    ///
    /// # Errors
    ///
    /// A [`CheckpointError`] that names the folder, the file, the key or the tensors at fault. Whether the tensors
    /// fit a model is found when it is built.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref().to_path_buf();
        let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
        if let Some(missing) = [&config, &tensors].into_iter().find(|file| !file.is_file()) {
            return Err(CheckpointError::NoAdapters { folder: folder.clone(), missing: missing.clone() });
        }
        let text = fs::read_to_string(&config)
            .map_err(|source| CheckpointError::Io { file: config.clone(), source })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|source| CheckpointError::Json { file: config.clone(), source })?;
        let refused = |problem: String| CheckpointError::AdapterConfig { file: config.clone(), problem };
        // What serde derives would read a list as well, its values in the order of the fields.
        if !json.is_object() {
            return Err(refused(
                "it must be a JSON object with fine_tune_type and lora_parameters".to_owned(),
            ));
        }
        if let Some(list @ Value::Array(_)) = json.get("lora_parameters") {
            return Err(refused(format!(
                "lora_parameters is {list}, and must be an object with rank and scale"
            )));
        }
        let raw: RawConfig =
            serde_path_to_error::deserialize(&json).map_err(|e| CheckpointError::Config {
                file: config.clone(),
                key: e.path().to_string(),
                source: e.into_inner(),
            })?;
        if let Some(peft) = raw.peft_type {
            return Err(refused(format!(
                "peft_type is {peft}: this folder is PEFT's, and mlx-lm's is needed"
            )));
        }
        let kind = match raw.fine_tune_type.as_str() {
            "lora" => Some(AdapterKind::Lora),
            "dora" => Some(AdapterKind::Dora),
            "full" => None,
            other => {
                return Err(refused(format!("fine_tune_type is {other:?}; known are lora, dora and full")));
            }
        };
        let header = read_adapter_header(&folder, &tensors)?;
        let content = match kind {
            Some(kind) => Content::Trained(AdapterConfig::from_raw(raw, kind).map_err(refused)?, header),
            None => Content::Full(header),
        };
        Ok(Self { folder, content })
    }

    /// Adapters to be trained: `lora_a` random, `lora_b` zero, and DoRA's magnitudes those of the weights, so that
    /// a model answers with them as without.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::AdapterConfig`] where a number of the config is none that an adapter can have.
    pub fn fresh(config: AdapterConfig, seed: u64) -> Result<Self, CheckpointError> {
        let file = PathBuf::from(CONFIG);
        config.check().map_err(|problem| CheckpointError::AdapterConfig { file, problem })?;
        Ok(Self { folder: PathBuf::new(), content: Content::Fresh(config, seed) })
    }

    /// Which layers have them, and of what kind; `None` where whole weights were fine-tuned.
    pub fn config(&self) -> Option<&AdapterConfig> {
        match &self.content {
            Content::Trained(config, _) | Content::Fresh(config, _) => Some(config),
            Content::Full(_) => None,
        }
    }

    /// Writes an adapter folder that mlx-lm loads, too. `parameters` are a model's: of these the adapters are
    /// taken, which end in `lora_a`, `lora_b` or `m`.
    ///
    /// Files of the two names that are there already are replaced, each in one step.
    ///
    /// # Errors
    ///
    /// Where there is no adapter among the parameters, or a file cannot be written.
    pub fn save<'p>(
        folder: impl AsRef<Path>,
        config: &AdapterConfig,
        parameters: impl IntoIterator<Item = (impl AsRef<str>, &'p Array)>,
    ) -> Result<(), CheckpointError> {
        let folder = folder.as_ref();
        let file = folder.join(CONFIG);
        config.check().map_err(|problem| CheckpointError::AdapterConfig { file: file.clone(), problem })?;
        let parameters = parameters.into_iter().map(|(key, array)| (key.as_ref().to_owned(), array));
        let tensors: BTreeMap<String, &Array> =
            parameters.filter(|(key, _)| adapter_leaf(key).is_some()).collect();
        if tensors.is_empty() {
            let problem = "the model has no adapters".to_owned();
            return Err(CheckpointError::AdapterConfig { file, problem });
        }
        fs::create_dir_all(folder).map_err(|source| CheckpointError::Write {
            file: folder.to_path_buf(),
            problem: source.to_string(),
        })?;
        write_in_place(&folder.join(TENSORS), |file| {
            Array::save_safetensors(&tensors, None, file).map_err(|e| without_place(&e.to_string()))
        })?;
        let text = format!("{:#}\n", config.to_json());
        write_in_place(&file, |file| fs::write(file, text).map_err(|e| e.to_string()))
    }
}

fn read_adapter_header(folder: &Path, file: &Path) -> Result<BTreeMap<String, TensorInfo>, CheckpointError> {
    let header: BTreeMap<String, TensorInfo> = read_header(file, 0)?.into_iter().collect();
    let unknown = |(key, info): (&String, &TensorInfo)| {
        let found = format!("{:?}", info.dtype);
        (!mlx_reads(info.dtype)).then(|| TensorProblem::Dtype {
            key: key.clone(),
            expected: crate::tensors::FLOATS,
            found,
        })
    };
    let problems: Vec<_> = header.iter().filter_map(unknown).collect();
    if problems.is_empty() {
        return Ok(header);
    }
    Err(CheckpointError::Adapters { folder: folder.to_path_buf(), problems })
}

/// The layer of an adapter tensor, and which one it is.
fn adapter_leaf(key: &str) -> Option<(&str, &str)> {
    key.rsplit_once('.').filter(|(_, leaf)| LEAVES.contains(leaf))
}

/// Adapters while a model is built.
#[derive(Debug)]
pub(crate) struct AdapterTensors {
    folder: PathBuf,
    /// Which layers have them; none where whole weights were fine-tuned.
    plan: Option<Plan>,
    header: BTreeMap<String, TensorInfo>,
    left: HashMap<String, Array>,
    /// Where fresh ones come from.
    random: Option<RandomState>,
    problems: Vec<TensorProblem>,
}

/// A config, and what the model has made of it.
#[derive(Debug)]
struct Plan {
    config: AdapterConfig,
    /// How many blocks there are below each prefix, such as `model.layers`.
    blocks: BTreeMap<String, usize>,
    /// Whether each of the config's keys was a layer.
    met: Vec<bool>,
}

impl Plan {
    fn new(config: AdapterConfig, checkpoint_keys: impl Iterator<Item = impl AsRef<str>>) -> Self {
        let mut blocks = BTreeMap::new();
        for key in checkpoint_keys {
            if let Some(Block { list, index, .. }) = Block::of(key.as_ref()) {
                let count = blocks.entry(list.to_owned()).or_default();
                *count = index.saturating_add(1).max(*count);
            }
        }
        let met = vec![false; config.keys.as_ref().map_or(0, Vec::len)];
        Self { config, blocks, met }
    }

    /// Whether the config gives this layer an adapter.
    fn covers(&mut self, layer: &str) -> bool {
        let block = Block::of(layer);
        let Some(keys) = &self.config.keys else {
            return block.is_some_and(|block| self.is_late(&block));
        };
        let named = |key: &str| key == layer || block.as_ref().is_some_and(|block| block.rest == key);
        for (key, met) in keys.iter().zip(&mut self.met) {
            *met |= named(key);
        }
        let late = block.as_ref().is_some_and(|block| self.is_late(block));
        keys.iter().any(|key| key == layer || late && block.as_ref().is_some_and(|block| block.rest == key))
    }

    /// Whether a block is one of the last that the config counts.
    fn is_late(&self, block: &Block<'_>) -> bool {
        let count = self.blocks.get(block.list).copied().unwrap_or(0);
        match usize::try_from(self.config.num_layers) {
            Ok(last @ 1..) => block.index.saturating_add(last) >= count,
            _ => true,
        }
    }
}

/// A key inside a block: `model.layers`, `3`, `self_attn.q_proj`.
struct Block<'a> {
    list: &'a str,
    index: usize,
    rest: &'a str,
}

impl<'a> Block<'a> {
    fn of(key: &'a str) -> Option<Self> {
        const LIST: &str = "layers.";
        let start = key.find(".layers.").map(|dot| dot + 1).or_else(|| key.starts_with(LIST).then_some(0))?;
        let (index, rest) = key[start + LIST.len()..].split_once('.')?;
        Some(Self { list: &key[..start + LIST.len() - 1], index: index.parse().ok()?, rest })
    }
}

impl AdapterTensors {
    pub(crate) fn open(
        adapters: &Adapters,
        checkpoint: &BTreeMap<String, TensorInfo>,
    ) -> Result<Self, CheckpointError> {
        let Adapters { folder, content } = adapters;
        let load = || {
            let file = folder.join(TENSORS);
            Array::load_safetensors(&file)
                .map_err(|e| CheckpointError::Unreadable { file, problem: without_place(&e.to_string()) })
        };
        let plan = |config: &AdapterConfig| Some(Plan::new(config.clone(), checkpoint.keys()));
        let (plan, header, left, random) = match content {
            Content::Trained(config, header) => (plan(config), header.clone(), load()?, None),
            Content::Full(header) => (None, header.clone(), load()?, None),
            Content::Fresh(config, seed) => {
                let random = RandomState::with_seed(*seed).map_err(|e| unreadable(folder, &e))?;
                (plan(config), BTreeMap::new(), HashMap::new(), Some(random))
            }
        };
        Ok(Self { folder: folder.clone(), plan, header, left, random, problems: Vec::new() })
    }

    /// Where whole weights were fine-tuned: those that take the place of the checkpoint's, with how each is stored.
    pub(crate) fn replacements(
        &mut self,
        checkpoint: &BTreeMap<String, TensorInfo>,
    ) -> Vec<(String, Array, TensorDtype)> {
        if self.plan.is_some() {
            return Vec::new();
        }
        let mut replacements = Vec::new();
        for (key, tensor) in self.left.drain() {
            match (checkpoint.get(&key), self.header.get(&key)) {
                (Some(base), Some(info)) if base.shape == info.shape => {
                    replacements.push((key, tensor, info.dtype));
                }
                (Some(base), Some(info)) => {
                    let dims = |shape: &[usize]| shape.iter().map(|&size| size as i32).collect();
                    let (expected, found) = (dims(&base.shape), dims(&info.shape));
                    self.problems.push(TensorProblem::Shape { key, expected, found });
                }
                _ => self.problems.push(TensorProblem::Unexpected { key }),
            }
        }
        replacements
    }

    /// Notes that a tensor has no place in the model.
    pub(crate) fn unused(&mut self, key: String) {
        self.problems.push(TensorProblem::Unexpected { key });
    }

    pub(crate) fn refuse(&mut self, key: &str, problem: String) {
        self.problems.push(TensorProblem::Refused { key: key.to_owned(), problem });
    }

    /// The adapter of a layer, if the config gives it one and the file has it as it should be.
    pub(crate) fn take(&mut self, layer: &str, kind: AdaptedLayer) -> Option<AdapterParameters> {
        let plan = self.plan.as_mut()?;
        if !plan.covers(layer) {
            return None;
        }
        let AdapterConfig { kind: adapter, rank, scale, .. } = plan.config;
        let dora = adapter == AdapterKind::Dora;
        if dora && matches!(kind, AdaptedLayer::Embedding { quantized: true, .. }) {
            self.refuse(layer, "DoRA has no adapters for quantized embeddings".to_owned());
            LEAVES.iter().for_each(|leaf| drop(self.left.remove(&format!("{layer}.{leaf}"))));
            return None;
        }
        let [a, b] = kind.shapes(rank);
        if let Some(random) = &mut self.random {
            let made = fresh(random, a, b);
            let magnitudes = if dora { Magnitudes::OfTheWeight } else { Magnitudes::None };
            return match made {
                Ok([lora_a, lora_b]) => Some(AdapterParameters { lora_a, lora_b, magnitudes, scale }),
                Err(e) => {
                    self.refuse(layer, without_place(&e.to_string()));
                    None
                }
            };
        }
        let lora_a = self.tensor(&format!("{layer}.lora_a"), &a);
        let lora_b = self.tensor(&format!("{layer}.lora_b"), &b);
        let magnitudes = if dora {
            self.tensor(&format!("{layer}.m"), &[kind.magnitudes()]).map(Magnitudes::Given)
        } else {
            Some(Magnitudes::None)
        };
        Some(AdapterParameters { lora_a: lora_a?, lora_b: lora_b?, magnitudes: magnitudes?, scale })
    }

    fn tensor(&mut self, key: &str, shape: &[i32]) -> Option<Array> {
        let owned = key.to_owned();
        let (Some(tensor), Some(info)) = (self.left.remove(key), self.header.get(key)) else {
            self.problems.push(TensorProblem::Missing { key: owned, shape: shape.to_vec() });
            return None;
        };
        if tensor.shape() != shape {
            let (expected, found) = (shape.to_vec(), tensor.shape().to_vec());
            self.problems.push(TensorProblem::Shape { key: owned, expected, found });
            return None;
        }
        if !matches!(info.dtype, TensorDtype::F32 | TensorDtype::F16 | TensorDtype::BF16) {
            let found = format!("{:?}", info.dtype);
            self.problems.push(TensorProblem::Dtype { key: owned, expected: crate::tensors::FLOATS, found });
            return None;
        }
        Some(tensor)
    }

    /// Everything that was missing, left over or wrong.
    pub(crate) fn finish(mut self) -> Result<(), CheckpointError> {
        let refused = |key, problem| TensorProblem::Refused { key, problem };
        for key in self.left.into_keys() {
            let Some(plan) = &mut self.plan else { continue };
            let outside = adapter_leaf(&key).is_some_and(|(layer, _)| !plan.covers(layer));
            self.problems.push(if outside {
                refused(key, format!("{CONFIG} gives this layer no adapter"))
            } else {
                TensorProblem::Unexpected { key }
            });
        }
        if let Some(Plan { config: AdapterConfig { keys: Some(keys), .. }, met, .. }) = &self.plan {
            let unmet = keys.iter().zip(met).filter(|(_, met)| !**met);
            let unmet = unmet.map(|(key, _)| refused(key.clone(), "the model has no such layer".to_owned()));
            self.problems.extend(unmet);
        }
        if self.problems.is_empty() {
            return Ok(());
        }
        self.problems.sort_by(|a, b| a.key().cmp(b.key()));
        Err(CheckpointError::Adapters { folder: self.folder, problems: self.problems })
    }
}

/// `lora_a` as mlx-lm draws it, and `lora_b` zero.
fn fresh(random: &mut RandomState, a: [i32; 2], b: [i32; 2]) -> Result<[Array; 2], Exception> {
    let next = random.next_key()?;
    let bound = (a[0] as f32).sqrt().recip();
    let lora_a = mlx_rs::random::uniform::<_, f32>(-bound, bound, &a, &next)?;
    Ok([lora_a, Array::zeros::<f32>(&b)?])
}

fn unreadable(folder: &Path, e: &Exception) -> CheckpointError {
    CheckpointError::Unreadable { file: folder.to_path_buf(), problem: without_place(&e.to_string()) }
}
