//! How a model rotates queries and keys.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::keys::{Keys, decimal};
use crate::{GgufError, Problem};

/// llama.cpp's base for files that state none.
pub(super) const DEFAULT_BASE: f64 = 10_000.0;

pub(super) const BASE_OF_WINDOWS: &str = "rope.freq_base_swa";
pub(super) const ORIGINAL_LENGTH: &str = "rope.scaling.original_context_length";
const BASE: &str = "rope.freq_base";
const KIND: &str = "rope.scaling.type";
const FACTOR: &str = "rope.scaling.factor";
const OLD_FACTOR: &str = "rope.scale_linear";
const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";
const YARN_ATTENTION_FACTOR: &str = "rope.scaling.yarn_attn_factor";
const YARN_EXTRAPOLATION: &str = "rope.scaling.yarn_ext_factor";
const YARN_LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";

/// The base of the frequencies.
pub(super) fn base(keys: &Keys<'_>) -> Result<f64, GgufError> {
    Ok(keys.number(BASE)?.unwrap_or(DEFAULT_BASE))
}

/// The base in layers with a window, where the file has one of its own.
pub(super) fn base_of_windows(keys: &Keys<'_>) -> Result<Option<f64>, GgufError> {
    keys.number(BASE_OF_WINDOWS)
}

/// Checks that all features of a head are rotated.
pub(super) fn whole_heads(keys: &Keys<'_>, facts: &Facts) -> Result<(), GgufError> {
    if facts.rotated == facts.head_dim {
        return Ok(());
    }
    let needed = format!("{}, the length of keys", facts.head_dim);
    Err(keys.wrong("rope.dimension_count", facts.rotated, needed))
}

/// What a config has under `rope_scaling`.
pub(super) fn scaling(keys: &Keys<'_>, context: i64) -> Result<Option<Value>, GgufError> {
    let factor = keys.factor(FACTOR)?;
    let factor = factor.or(keys.factor(OLD_FACTOR)?).filter(|&factor| factor != 1.0);
    let of_attention = keys.factor(ATTENTION_FACTOR)?.filter(|&factor| factor != 1.0);
    let yarn = Yarn::read(keys)?;
    let original = keys.size(ORIGINAL_LENGTH, None)?;
    match (keys.text(KIND)?.unwrap_or("linear"), factor) {
        ("yarn", factor) => {
            let factor = keys.needed(FACTOR, factor)?;
            yarn.scaling(keys, factor, original.unwrap_or(context), of_attention).map(Some)
        }
        ("none" | "linear", _) if of_attention.is_some() => Err(keys.wrong(
            ATTENTION_FACTOR,
            of_attention.unwrap_or_default(),
            format!("1 unless {KIND} is yarn"),
        )),
        ("none", _) | ("linear", None) => Ok(None),
        ("linear", Some(factor)) => {
            Ok(Some(json!({ "type": "linear", "rope_type": "linear", "factor": factor })))
        }
        (other, _) => {
            Err(keys.wrong(KIND, format!("{other:?}"), "none, linear or yarn in this architecture"))
        }
    }
}

/// The numbers of YaRN beside its factor.
struct Yarn {
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    attention_factor: Option<f64>,
    extrapolation: Option<f64>,
    log_multiplier: Option<f64>,
}

impl Yarn {
    fn read(keys: &Keys<'_>) -> Result<Self, GgufError> {
        Ok(Self {
            beta_fast: keys.number("rope.scaling.yarn_beta_fast")?,
            beta_slow: keys.number("rope.scaling.yarn_beta_slow")?,
            attention_factor: keys.number(YARN_ATTENTION_FACTOR)?,
            extrapolation: keys.number(YARN_EXTRAPOLATION)?,
            log_multiplier: keys.factor(YARN_LOG_MULTIPLIER)?,
        })
    }

    fn scaling(
        self,
        keys: &Keys<'_>,
        factor: f64,
        original: i64,
        of_attention: Option<f64>,
    ) -> Result<Value, GgufError> {
        if let Some(found) = self.extrapolation.filter(|&found| found != 1.0) {
            return Err(keys.wrong(YARN_EXTRAPOLATION, found, "1"));
        }
        let grows = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
        let of_paper = grows(1.0) / self.log_multiplier.map_or(1.0, grows);
        // The file's factor multiplies that of the paper; a config's replaces it.
        let attention_factor = self.attention_factor.or(of_attention.map(|more| more * of_paper));
        let mut scaling = json!({
            "type": "yarn",
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        });
        let more = [
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("attention_factor", attention_factor),
            ("mscale", self.log_multiplier.map(|_| 1.0)),
            ("mscale_all_dim", self.log_multiplier),
        ];
        if let Some(scaling) = scaling.as_object_mut() {
            let given = more.into_iter().filter_map(|(key, number)| Some((key.to_owned(), json!(number?))));
            scaling.extend(given);
        }
        Ok(scaling)
    }
}

/// The scaling of Phi-3's long versions, which has a list of factors for short texts and one for long ones.
pub(super) fn longrope(
    keys: &Keys<'_>,
    context: i64,
    long: &[f32],
    short: &[f32],
    config: &mut Map<String, Value>,
) -> Result<Option<Value>, GgufError> {
    match keys.text(KIND)? {
        None | Some("longrope") => {}
        Some(other) => {
            return Err(keys.wrong(KIND, format!("{other:?}"), "longrope, as the file has its factors"));
        }
    }
    let original = keys.needed(ORIGINAL_LENGTH, keys.size(ORIGINAL_LENGTH, None)?)?;
    let numbers = |factors: &[f32]| factors.iter().map(|&factor| decimal(factor)).collect::<Vec<_>>();
    let mut scaling = json!({
        "type": "longrope",
        "rope_type": "longrope",
        "long_factor": numbers(long),
        "short_factor": numbers(short),
    });
    let ratio = context as f64 / original as f64;
    let of_paper = if ratio <= 1.0 { 1.0 } else { (1.0 + ratio.ln() / (original as f64).ln()).sqrt() };
    let stated = keys.factor(ATTENTION_FACTOR)?.filter(|stated| (stated - of_paper).abs() > 1e-5);
    if let (Some(stated), Some(scaling)) = (stated, scaling.as_object_mut()) {
        scaling.insert("attention_factor".to_owned(), json!(stated));
    }
    config.insert("original_max_position_embeddings".to_owned(), json!(original));
    Ok(Some(scaling))
}

/// The factors of the periods of all pairs, which a tensor of the file has.
pub(super) fn factors(
    keys: &Keys<'_>,
    name: &'static str,
    rotated: usize,
) -> Result<Option<Vec<f32>>, GgufError> {
    let Some(tensor) = keys.file.tensor(name) else { return Ok(None) };
    keys.note_tensor(name);
    let wrong = |problem| keys.file.wrong(Problem::Factors { name: name.to_owned(), problem });
    if tensor.info.shape != [rotated / 2] {
        return Err(wrong("it must have one for each pair of features that are rotated"));
    }
    let numbers = keys.file.numbers(tensor)?;
    let is_factor = |number: &f32| number.is_finite() && *number > 0.0;
    if numbers.iter().all(is_factor) {
        Ok(Some(numbers))
    } else {
        Err(wrong("it must have positive numbers"))
    }
}
