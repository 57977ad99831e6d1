//! Adapter folders: what mlx-lm's fine-tuning leaves, and what it loads; and those of PEFT, by `peft.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use mlx_layers::{AdaptedLayer, AdapterParameters, Magnitudes};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::random::RandomState;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{of_config, shortened};
use crate::forms;
use crate::peft::{self, Peft, PeftConfig};
use crate::safetensors_file::{check_regular, mlx_reads, read_header, without_place};
use crate::tensors::{is_frequencies, warn_frequencies};
use crate::write::{commit, partial_file, write_safetensors};
use crate::{CheckpointError, TensorDtype, TensorInfo, TensorProblem, is_present, read_text};

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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLora {
    rank: i32,
    #[serde(default)]
    scale: Option<f32>,
    /// Of older versions of mlx-lm; the newer have `scale` alone.
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
    fn from_raw(raw: RawConfig, kind: AdapterKind, file: &Path) -> Result<Self, String> {
        let num_layers = raw.num_layers.ok_or("num_layers is missing")?;
        let RawLora { rank, scale, alpha, dropout, keys } =
            raw.lora_parameters.ok_or("lora_parameters is missing")?;
        let scale = match (scale, &alpha) {
            (Some(scale), None) => scale,
            (Some(scale), Some(_)) => {
                crate::warn_ignored(file, "lora_parameters.alpha");
                scale
            }
            (None, None) => return Err("lora_parameters.scale is missing".to_owned()),
            (None, Some(_)) => {
                return Err("lora_parameters.scale is missing; it is alpha / rank".to_owned());
            }
        };
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
    /// Trained adapters as PEFT saves them.
    Peft(Box<PeftConfig>, BTreeMap<String, TensorInfo>),
}

impl Adapters {
    /// Everything about them but their arrays.
    pub(crate) fn settings(&self) -> String {
        match &self.content {
            Content::Trained(config, _) => format!("{config:?}"),
            Content::Fresh(config, seed) => format!("{config:?} {seed}"),
            Content::Full(_) => "whole weights".to_owned(),
            Content::Peft(config, _) => format!("{config:?}"),
        }
    }

    /// Reads the config of an adapter folder and the header of its tensors.
    ///
    /// The folder is one of mlx-lm's: `adapter_config.json` and `adapters.safetensors`. Its `fine_tune_type` may be
    /// `lora`, which it is where there is none, `dora`, or `full`, where the tensors are weights that take the
    /// place of the checkpoint's. Or it is one of PEFT's, whose config has a `peft_type`, with `LORA` in it, and whose
    /// tensors are in `adapter_model.safetensors`.
    ///
    /// # Errors
    ///
    /// A [`CheckpointError`] that names the folder, the file, the key or the tensors at fault. Whether the tensors
    /// fit a model is found when it is built.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let folder = folder.as_ref().to_path_buf();
        if !folder.is_dir() {
            return Err(forms::no_adapter_folder(&folder));
        }
        let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
        let absent = |missing: &Path| CheckpointError::NoAdapters {
            folder: folder.clone(),
            missing: missing.to_path_buf(),
        };
        let text = read_text(&config, |_| absent(&config))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|source| CheckpointError::Json { file: config.clone(), source })?;
        let refused = |problem: String| CheckpointError::AdapterConfig { file: config.clone(), problem };
        // What serde derives would read a list as well, its values in the order of the fields.
        if !json.is_object() {
            return Err(refused(
                "it must be a JSON object with fine_tune_type and lora_parameters, or with peft_type"
                    .to_owned(),
            ));
        }
        if json.get("peft_type").is_some() {
            let config = PeftConfig::read(&text, &config, &folder)?;
            let header = read_adapter_header(&folder, &folder.join(peft::TENSORS))?;
            return Ok(Self { folder, content: Content::Peft(Box::new(config), header) });
        }
        if !is_present(&tensors)? {
            return Err(absent(&tensors));
        }
        if let Some(list @ Value::Array(_)) = json.get("lora_parameters") {
            let list = list.to_string();
            let list = shortened(&list);
            return Err(refused(format!(
                "lora_parameters is {list}, and must be an object with rank and scale"
            )));
        }
        let raw: RawConfig = serde_path_to_error::deserialize(&json).map_err(|e| of_config(&config, e))?;
        let kind = match raw.fine_tune_type.as_str() {
            "lora" => Some(AdapterKind::Lora),
            "dora" => Some(AdapterKind::Dora),
            "full" => None,
            other => {
                let other = format!("{other:?}");
                let other = shortened(&other);
                return Err(refused(format!("fine_tune_type is {other}; known are lora, dora and full")));
            }
        };
        let header = read_adapter_header(&folder, &tensors)?;
        let content = match kind {
            Some(kind) => {
                Content::Trained(AdapterConfig::from_raw(raw, kind, &config).map_err(refused)?, header)
            }
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

    /// Which layers have them, and of what kind, as mlx-lm says it; `None` where whole weights were fine-tuned, and
    /// for adapters of PEFT.
    pub fn config(&self) -> Option<&AdapterConfig> {
        match &self.content {
            Content::Trained(config, _) | Content::Fresh(config, _) => Some(config),
            Content::Full(_) | Content::Peft(..) => None,
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
        let target = folder.join(TENSORS);
        let partial = partial_file(&target)?;
        let tensors = tensors.into_iter().map(|(key, array)| (key, array.clone())).collect();
        let mut out = BufWriter::new(partial.as_file());
        write_safetensors(&mut out, tensors, &mut |_| Ok(()))
            .and_then(|()| out.flush())
            .map_err(|e| CheckpointError::Write { file: target.clone(), problem: e.to_string() })?;
        drop(out);
        commit(partial, &target)?;
        let partial = partial_file(&file)?;
        let written = writeln!(partial.as_file(), "{:#}", config.to_json());
        written.map_err(|e| CheckpointError::Write { file: file.clone(), problem: e.to_string() })?;
        commit(partial, &file)
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

/// One tensor of an adapter, as its file has to hold it.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) key: String,
    pub(crate) shape: Vec<i32>,
    /// Whether it is used with its axes swapped.
    pub(crate) transposed: bool,
}

/// What the adapter of a layer is made of.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) a: Part,
    pub(crate) b: Part,
    /// DoRA's.
    pub(crate) m: Option<Part>,
    pub(crate) rank: i32,
    pub(crate) scale: f32,
    /// Why there cannot be one.
    pub(crate) refused: Option<&'static str>,
}

/// Which layers have adapters.
#[derive(Debug)]
enum Rule {
    MlxLm(Plan),
    Peft(Box<Peft>),
}

impl Rule {
    fn wanted(&mut self, layer: &str, kind: AdaptedLayer) -> Option<Wanted> {
        match self {
            Self::MlxLm(plan) => plan.wanted(layer, kind),
            Self::Peft(peft) => peft.wanted(layer, kind),
        }
    }
}

/// Adapters while a model is built.
#[derive(Debug)]
pub(crate) struct AdapterTensors {
    folder: PathBuf,
    /// Which layers have them; none where whole weights were fine-tuned.
    rule: Option<Rule>,
    header: BTreeMap<String, TensorInfo>,
    left: HashMap<String, Array>,
    /// Where fresh ones come from.
    random: Option<RandomState>,
    /// Whether a layer has an adapter, or a weight was replaced.
    applied: bool,
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

    /// The adapter of a layer, if the config gives it one.
    fn wanted(&mut self, layer: &str, kind: AdaptedLayer) -> Option<Wanted> {
        if !self.covers(layer) {
            return None;
        }
        let AdapterConfig { kind: adapter, rank, scale, .. } = self.config;
        let dora = adapter == AdapterKind::Dora;
        let part = |leaf: &str, shape: &[i32]| Part {
            key: format!("{layer}.{leaf}"),
            shape: shape.to_vec(),
            transposed: false,
        };
        let [a, b] = kind.shapes(rank);
        let refused = (dora && matches!(kind, AdaptedLayer::Embedding { quantized: true, .. }))
            .then_some("DoRA has no adapters for quantized embeddings");
        let m = dora.then(|| part("m", &[kind.magnitudes()]));
        Some(Wanted { a: part("lora_a", &a), b: part("lora_b", &b), m, rank, scale, refused })
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
        let load = |name: &str| {
            let file = folder.join(name);
            check_regular(&file)?; // MLX opens whatever is there
            Array::load_safetensors(&file)
                .map_err(|e| CheckpointError::Unreadable { file, problem: without_place(&e.to_string()) })
        };
        let plan = |config: &AdapterConfig| Some(Rule::MlxLm(Plan::new(config.clone(), checkpoint.keys())));
        let mut problems = Vec::new();
        let (rule, header, left, random) = match content {
            Content::Trained(config, header) => (plan(config), header.clone(), load(TENSORS)?, None),
            Content::Full(header) => (None, header.clone(), load(TENSORS)?, None),
            Content::Peft(config, header) => {
                let peft = Peft::new(PeftConfig::clone(config), header);
                problems.extend(peft.twice.iter().map(|[first, second]| TensorProblem::Refused {
                    key: first.clone(),
                    problem: format!("{second} is another name of the same layer"),
                }));
                (Some(Rule::Peft(Box::new(peft))), header.clone(), load(peft::TENSORS)?, None)
            }
            Content::Fresh(config, seed) => {
                let random = RandomState::with_seed(*seed).map_err(|e| unreadable(folder, &e))?;
                (plan(config), BTreeMap::new(), HashMap::new(), Some(random))
            }
        };
        Ok(Self { folder: folder.clone(), rule, header, left, random, applied: false, problems })
    }

    /// Whole weights that were fine-tuned: those that take the place of the checkpoint's, with how each is stored.
    pub(crate) fn replacements(
        &mut self,
        checkpoint: &BTreeMap<String, TensorInfo>,
    ) -> Vec<(String, Array, TensorDtype)> {
        let mut whole: Vec<(String, String)> = match &mut self.rule {
            Some(Rule::MlxLm(_)) => Vec::new(),
            None => self.left.keys().map(|key| (key.clone(), key.clone())).collect(),
            Some(Rule::Peft(peft)) => {
                let names: HashMap<String, &String> =
                    checkpoint.keys().map(|key| (peft::canonical_key(key), key)).collect();
                let found = self.left.keys().filter_map(|key| {
                    let name = peft.whole(key)?;
                    Some((key.clone(), names.get(&name).map_or(name, |&key| key.clone())))
                });
                found.collect()
            }
        };
        let mut frequencies: Vec<String> = Vec::new();
        whole.retain(|(key, name)| {
            let kept = !is_frequencies(name);
            if !kept {
                self.left.remove(key);
                frequencies.push(key.clone());
            }
            kept
        });
        warn_frequencies(&self.folder, frequencies);
        let mut replacements = Vec::new();
        for (key, name) in whole {
            let Some(tensor) = self.left.remove(&key) else { continue };
            let quantized = || {
                name.strip_suffix(".weight").is_some_and(|l| checkpoint.contains_key(&format!("{l}.scales")))
            };
            match (checkpoint.get(&name), self.header.get(&key)) {
                (Some(base), Some(info)) if base.shape == info.shape => {
                    replacements.push((name, tensor, info.dtype));
                }
                (Some(_), _) if self.rule.is_some() && quantized() => {
                    let problem = "the checkpoint's weight is quantized, and cannot be replaced by this one; use a \
                                   checkpoint in full precision";
                    self.refuse(&key, problem.to_owned());
                }
                (Some(base), Some(info)) => {
                    let dims = |shape: &[usize]| shape.iter().map(|&size| size as i32).collect();
                    let (expected, found) = (dims(&base.shape), dims(&info.shape));
                    self.problems.push(TensorProblem::Shape { key, expected, found });
                }
                _ if self.rule.is_some() => {
                    let mut problem = format!("the checkpoint has no {name} that it could replace");
                    if name.rsplit('.').nth(1) == Some(peft::HEAD) {
                        problem += &format!("; {}", peft::TIED);
                    }
                    self.refuse(&key, problem);
                }
                _ => self.problems.push(TensorProblem::Unexpected { key }),
            }
        }
        self.applied |= !replacements.is_empty();
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
        let Wanted { a, b, m, rank, scale, refused } = self.rule.as_mut()?.wanted(layer, kind)?;
        self.applied = true;
        if let Some(problem) = refused {
            self.refuse(layer, problem.to_owned());
            [Some(&a), Some(&b), m.as_ref()].into_iter().flatten().for_each(|part| {
                self.left.remove(&part.key);
            });
            return None;
        }
        if let Some(random) = &mut self.random {
            let [a, b] = kind.shapes(rank);
            let made = fresh(random, a, b);
            let magnitudes = if m.is_some() { Magnitudes::OfTheWeight } else { Magnitudes::None };
            return match made {
                Ok([lora_a, lora_b]) => Some(AdapterParameters { lora_a, lora_b, magnitudes, scale }),
                Err(e) => {
                    self.refuse(layer, without_place(&e.to_string()));
                    None
                }
            };
        }
        let (lora_a, lora_b) = (self.tensor(a), self.tensor(b));
        let magnitudes = match m {
            Some(m) => self.tensor(m).map(Magnitudes::Given),
            None => Some(Magnitudes::None),
        };
        Some(AdapterParameters { lora_a: lora_a?, lora_b: lora_b?, magnitudes: magnitudes?, scale })
    }

    fn tensor(&mut self, Part { key, shape, transposed }: Part) -> Option<Array> {
        let (Some(tensor), Some(info)) = (self.left.remove(&key), self.header.get(&key)) else {
            self.problems.push(TensorProblem::Missing { key, shape });
            return None;
        };
        if tensor.shape() != shape {
            let found = tensor.shape().to_vec();
            self.problems.push(TensorProblem::Shape { key, expected: shape, found });
            return None;
        }
        if !matches!(info.dtype, TensorDtype::F32 | TensorDtype::F16 | TensorDtype::BF16) {
            let found = format!("{:?}", info.dtype);
            self.problems.push(TensorProblem::Dtype { key, expected: crate::tensors::FLOATS, found });
            return None;
        }
        if !transposed {
            return Some(tensor);
        }
        let turned = tensor.transpose();
        turned.map_err(|e| self.refuse(&key, without_place(&e.to_string()))).ok()
    }

    /// Everything that was missing, left over or wrong. `has_head` is whether the model has a head of its own, and
    /// `ignored` names the tensors of a checkpoint that the model has no use for.
    pub(crate) fn finish(
        mut self,
        has_head: bool,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(), CheckpointError> {
        let refused = |key, problem| TensorProblem::Refused { key, problem };
        for key in self.left.into_keys() {
            let problem = match &mut self.rule {
                None => continue,
                Some(Rule::MlxLm(plan)) => adapter_leaf(&key)
                    .filter(|(layer, _)| !plan.covers(layer))
                    .map(|_| format!("{CONFIG} gives this layer no adapter")),
                Some(Rule::Peft(peft)) if peft.is_twice(&key) || Peft::is_ignored(&key, &ignored) => continue,
                Some(Rule::Peft(peft)) => peft.left_over(&key, has_head),
            };
            self.problems.push(match problem {
                Some(problem) => refused(key, problem),
                None => TensorProblem::Unexpected { key },
            });
        }
        match &self.rule {
            Some(Rule::MlxLm(Plan { config: AdapterConfig { keys: Some(keys), .. }, met, .. })) => {
                let unmet = keys.iter().zip(met).filter(|(_, met)| !**met);
                let unmet =
                    unmet.map(|(key, _)| refused(key.clone(), "the model has no such layer".to_owned()));
                self.problems.extend(unmet);
            }
            Some(Rule::Peft(peft)) if !has_head => {
                let problem = format!(
                    "the model's head is this table, too, which PEFT leaves as it is; {}",
                    peft::MERGE
                );
                let changed = peft.embedding.clone();
                self.problems.extend(changed.map(|layer| refused(layer, problem)));
            }
            _ => {}
        }
        if self.problems.is_empty() {
            if self.applied {
                return Ok(());
            }
            let names = match &self.rule {
                None => format!("{TENSORS} has no weight of it"),
                Some(Rule::MlxLm(_)) => {
                    "lora_parameters.keys names none in the last num_layers blocks".to_owned()
                }
                Some(Rule::Peft(peft)) => peft.targets(),
            };
            let problem = format!("no layer of the model has an adapter: {names}");
            return Err(CheckpointError::AdapterConfig { file: self.folder.join(CONFIG), problem });
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
