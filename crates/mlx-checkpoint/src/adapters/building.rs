//! The adapters of the layers of a model that is being built.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use mlx_layers::{AdaptedLayer, AdapterParameters, Magnitudes};
use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::random::RandomState;
use mlx_safetensors::Dtype;

use super::config::AdapterConfig;
use super::folder::{Adapters, CONFIG, Content, TENSORS, adapter_leaf};
use super::names::MlxLmNames;
use super::peft::{self, Peft, PeftConfig};
use super::plan::Plan;
use super::wanted::{Part, Wanted};
use crate::error::{CheckpointError, TensorProblem};
use crate::files::check_regular;
use crate::head::HEAD;
use crate::safetensors_file::{FLOATS, TensorInfo, is_float, is_frequencies, warn_frequencies};
use crate::text::of_mlx;

/// What decides which layers have adapters.
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
    /// `None` for whole weights.
    rule: Option<Rule>,
    header: BTreeMap<String, TensorInfo>,
    /// The tensors that were not taken yet.
    left: HashMap<String, Array>,
    /// The random numbers of fresh adapters.
    random: Option<RandomState>,
    /// Whether a layer got an adapter, or a weight was replaced.
    applied: bool,
    problems: Vec<TensorProblem>,
}

/// A whole weight that takes the place of one of the checkpoint's.
pub(crate) struct Replacement {
    /// The key in the checkpoint.
    pub(crate) key: String,
    pub(crate) tensor: Array,
    /// The dtype in the adapters' file.
    pub(crate) stored: Dtype,
}

impl AdapterTensors {
    /// Opens the tensors of adapters, for a checkpoint with these tensors.
    pub(crate) fn open(
        adapters: &Adapters,
        checkpoint: &BTreeMap<String, TensorInfo>,
    ) -> Result<Self, CheckpointError> {
        let Adapters { folder, content } = adapters;
        let load = |name: &str| {
            let file = folder.join(name);
            check_regular(&file)?;
            Array::load_safetensors(&file)
                .map_err(|e| CheckpointError::Unreadable { file, problem: of_mlx(&e) })
        };
        let plan = |config: &AdapterConfig| Some(Rule::MlxLm(Plan::new(config.clone(), checkpoint.keys())));
        let names = MlxLmNames::of(checkpoint.keys());
        let mut problems = Vec::new();
        let (rule, header, left, random) = match content {
            Content::Trained(config, header) => {
                (plan(config), names.of_checkpoint(header.clone()), names.of_checkpoint(load(TENSORS)?), None)
            }
            Content::Full(header) => {
                (None, names.of_checkpoint(header.clone()), names.of_checkpoint(load(TENSORS)?), None)
            }
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

    /// Takes the whole weights that replace those of the checkpoint.
    pub(crate) fn replacements(&mut self, checkpoint: &BTreeMap<String, TensorInfo>) -> Vec<Replacement> {
        let mut whole = self.whole_weights(checkpoint);
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
            let info = self.header.get(&key).cloned();
            match (checkpoint.get(&name), info) {
                (Some(base), Some(info)) if base.shape == info.shape => {
                    replacements.push(Replacement { key: name, tensor, stored: info.dtype });
                }
                (base, info) => self.refuse_whole(key, &name, base, info, checkpoint),
            }
        }
        self.applied |= !replacements.is_empty();
        replacements
    }

    /// The tensors that are whole weights: their keys, and those of the weights that they replace.
    fn whole_weights(&mut self, checkpoint: &BTreeMap<String, TensorInfo>) -> Vec<(String, String)> {
        match &mut self.rule {
            Some(Rule::MlxLm(_)) => Vec::new(),
            None => self.left.keys().map(|key| (key.clone(), key.clone())).collect(),
            Some(Rule::Peft(peft)) => {
                let names: HashMap<String, &String> =
                    checkpoint.keys().map(|key| (peft::canonical(key), key)).collect();
                let found = self.left.keys().filter_map(|key| {
                    let name = peft.whole(key)?;
                    Some((key.clone(), names.get(&name).map_or(name, |&key| key.clone())))
                });
                found.collect()
            }
        }
    }

    /// Notes why a whole weight cannot replace the weight `name` of the checkpoint.
    fn refuse_whole(
        &mut self,
        key: String,
        name: &str,
        base: Option<&TensorInfo>,
        info: Option<TensorInfo>,
        checkpoint: &BTreeMap<String, TensorInfo>,
    ) {
        let quantized = || {
            let layer = name.strip_suffix(".weight");
            layer.is_some_and(|layer| checkpoint.contains_key(&format!("{layer}.scales")))
        };
        match (base, info) {
            (Some(_), _) if self.rule.is_some() && quantized() => {
                let problem = "the checkpoint's weight is quantized, and cannot be replaced by this one; use a \
                               checkpoint in full precision";
                self.refuse(&key, problem.to_owned());
            }
            (Some(base), Some(info)) => {
                let (expected, found) = (base.mlx_shape(), info.mlx_shape());
                self.problems.push(TensorProblem::Shape { key, expected, found });
            }
            _ if self.rule.is_some() => {
                let mut problem = format!("the checkpoint has no {name} that it could replace");
                if name.rsplit('.').nth(1) == Some(HEAD) {
                    problem += &format!("; {}", peft::TIED);
                }
                self.refuse(&key, problem);
            }
            _ => self.problems.push(TensorProblem::Unexpected { key }),
        }
    }

    /// Notes that the model has no place for a tensor.
    pub(crate) fn unused(&mut self, key: String) {
        self.problems.push(TensorProblem::Unexpected { key });
    }

    fn refuse(&mut self, key: &str, problem: String) {
        self.problems.push(TensorProblem::Refused { key: key.to_owned(), problem });
    }

    /// Takes the adapter of a layer, if the config gives it one. Notes what is wrong with it.
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
                    self.refuse(layer, of_mlx(&e));
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
        if !is_float(info.dtype) {
            let found = format!("{:?}", info.dtype);
            self.problems.push(TensorProblem::Dtype { key, expected: FLOATS, found });
            return None;
        }
        if !transposed {
            return Some(tensor);
        }
        tensor.transpose().map_err(|e| self.refuse(&key, of_mlx(&e))).ok()
    }

    /// Ends the building of a model. `has_head` says whether the model has a head of its own, and `ignored` which tensors
    /// of a checkpoint the model does not use.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Adapters`] with every tensor that was missing, left over or wrong;
    /// [`CheckpointError::AdapterConfig`] if no layer has an adapter.
    pub(crate) fn finish(
        mut self,
        has_head: bool,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(), CheckpointError> {
        self.note_left_over(has_head, ignored);
        self.note_unmet(has_head);
        if self.problems.is_empty() {
            return if self.applied { Ok(()) } else { Err(self.without_effect()) };
        }
        self.problems.sort_by(|a, b| a.key().cmp(b.key()));
        Err(CheckpointError::Adapters { folder: self.folder, problems: self.problems })
    }

    /// Notes the tensors that no layer took.
    fn note_left_over(&mut self, has_head: bool, ignored: impl Fn(&str) -> bool) {
        for key in std::mem::take(&mut self.left).into_keys() {
            let problem = match &mut self.rule {
                None => continue,
                Some(Rule::MlxLm(plan)) => adapter_leaf(&key)
                    .filter(|(layer, _)| !plan.covers(layer))
                    .map(|_| format!("{CONFIG} gives this layer no adapter")),
                Some(Rule::Peft(peft)) if peft.is_twice(&key) || Peft::is_ignored(&key, &ignored) => continue,
                Some(Rule::Peft(peft)) => peft.left_over(&key, has_head),
            };
            self.problems.push(match problem {
                Some(problem) => TensorProblem::Refused { key, problem },
                None => TensorProblem::Unexpected { key },
            });
        }
    }

    /// Notes the layers of the config that the model does not have, and an embedding whose change would not reach a tied
    /// head.
    fn note_unmet(&mut self, has_head: bool) {
        let refused = |key: &str, problem| TensorProblem::Refused { key: key.to_owned(), problem };
        match &self.rule {
            Some(Rule::MlxLm(plan)) => {
                let problem = || "the model has no such layer".to_owned();
                self.problems.extend(plan.unmet().map(|key| refused(key, problem())));
            }
            Some(Rule::Peft(peft)) if !has_head => {
                let problem = || {
                    let merge = peft::MERGE;
                    format!("the model's head is this table, too, which PEFT leaves as it is; {merge}")
                };
                self.problems.extend(peft.embedding.iter().map(|layer| refused(layer, problem())));
            }
            _ => {}
        }
    }

    /// The error for adapters of which no layer has one.
    fn without_effect(&self) -> CheckpointError {
        let names = match &self.rule {
            None => format!("{TENSORS} has no weight of it"),
            Some(Rule::MlxLm(_)) => {
                "lora_parameters.keys names none in the last num_layers blocks".to_owned()
            }
            Some(Rule::Peft(peft)) => peft.targets(),
        };
        let problem = format!("no layer of the model has an adapter: {names}");
        CheckpointError::AdapterConfig { file: self.folder.join(CONFIG), problem }
    }
}

/// `lora_a` as mlx-lm draws it, and `lora_b` of zeros.
fn fresh(random: &mut RandomState, a: [i32; 2], b: [i32; 2]) -> Result<[Array; 2], Exception> {
    let next = random.next_key()?;
    let bound = (a[0] as f32).sqrt().recip();
    let lora_a = mlx_rs::random::uniform::<_, f32>(-bound, bound, &a, &next)?;
    Ok([lora_a, Array::zeros::<f32>(&b)?])
}

fn unreadable(folder: &Path, e: &Exception) -> CheckpointError {
    CheckpointError::Unreadable { file: folder.to_path_buf(), problem: of_mlx(e) }
}
