//! The kinds of scaling that stretch a rotation beyond the length that it was trained for.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::RopeError;

/// How the frequencies of a rotation are changed for contexts longer than the model was first
/// trained with. The formulas are at [`Rope`](crate::Rope).
///
/// Deserializes from the object that a Hugging Face config has under `rope_scaling`, with the kind
/// under `type`, `rope_type` or both. Every key is used or refused here; [`RopeKeys`](crate::RopeKeys), which reads
/// whole configs, lists keys without a use in [`ignored`](crate::RopeKeys::ignored).
///
/// ```
/// use mlx_rope::RopeScaling;
///
/// let scaling: RopeScaling = serde_json::from_str(r#"{"type": "linear", "factor": 8.0}"#)?;
/// assert_eq!(scaling, RopeScaling::Linear { factor: 8.0 });
/// assert!(serde_json::from_str::<RopeScaling>(r#"{"type": "linear", "scale": 8.0}"#).is_err());
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "RawScaling")]
#[non_exhaustive]
pub enum RopeScaling {
    /// `default`: none.
    Default,
    /// `linear`: every position is divided by `factor` (position interpolation).
    Linear {
        /// How many times longer the context is; from 1 on.
        factor: f64,
    },
    /// `dynamic`: the base grows with the length of the sequence (dynamic NTK-aware scaling).
    Dynamic {
        /// How fast it grows; from 1 on.
        factor: f64,
    },
    /// `llama3`: slow pairs are interpolated, fast ones kept, those between blended.
    Llama3(Llama3Scaling),
    /// `yarn`, `deepseek_yarn`, `telechat3-yarn`: the same with a ramp over the pairs, and scores
    /// that are sharpened.
    Yarn(YarnScaling),
    /// `longrope`, `su`: a factor of its own for each pair, one list for short sequences and one for
    /// long ones. "Su" is the first author of RoFormer.
    LongRope(LongRopeScaling),
    /// `proportional`: only a fraction of the pairs turns, with the frequencies that they would have
    /// if all did.
    Proportional {
        /// The fraction of the features that is rotated, in (0, 1].
        partial_rotary_factor: f64,
        /// Every position is divided by this; from 1 on.
        factor: f64,
    },
    /// `mrope`: three positions (time, height, width), each for a section of the pairs. A token of
    /// text has the same number in all three, so for text this is the plain rotation.
    Mrope {
        /// Pairs in each section.
        sections: [i32; 3],
    },
}

/// Parameters of [`RopeScaling::Llama3`].
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3Scaling {
    /// What slow pairs are divided by; from 1 on.
    pub factor: f64,
    /// A pair that turns fewer times than this within the original length is slow. Default 1: a
    /// pair that never completed a turn in training has seen only a part of the circle.
    pub low_freq_factor: f64,
    /// A pair that turns more often than this is fast. Default 4.
    pub high_freq_factor: f64,
    /// The length of the training before the extension, in tokens. Default 8192, that of Llama 3.
    pub original_max_position_embeddings: i32,
}

/// Parameters of [`RopeScaling::Yarn`].
#[derive(Debug, Clone, PartialEq)]
pub struct YarnScaling {
    /// What slow pairs are divided by; from 1 on.
    pub factor: f64,
    /// The length of the training before the extension, in tokens. May stand outside the scaling in
    /// a config, so it is only needed when the rotation is built.
    pub original_max_position_embeddings: Option<i32>,
    /// Pairs that turn more often than this within the original length are kept. Default 32, which
    /// the paper found to be right for the Llama models (section 3.2).
    pub beta_fast: f64,
    /// Pairs that turn fewer times than this are interpolated in full. Default 1.
    pub beta_slow: f64,
    /// Weight of the logarithm in the numerator of the attention factor. Default 1.
    pub mscale: f64,
    /// Weight of the logarithm in its denominator. Default 0, which makes that 1.
    pub mscale_all_dim: f64,
    /// The attention factor itself, where a config gives it; then the two above do not count.
    pub attention_factor: Option<f64>,
    /// Whether the ends of the ramp are rounded to whole pairs. Default true.
    pub truncate: bool,
}

/// Parameters of [`RopeScaling::LongRope`].
#[derive(Debug, Clone, PartialEq)]
pub struct LongRopeScaling {
    /// What each pair is divided by in sequences of at most the original length.
    pub short_factor: Vec<f64>,
    /// What each pair is divided by in longer sequences.
    pub long_factor: Vec<f64>,
    /// The length of the training before the extension, in tokens. May stand outside the scaling in
    /// a config, so it is only needed when the rotation is built.
    pub original_max_position_embeddings: Option<i32>,
    /// The ratio of the lengths, where a config gives it; otherwise it is computed.
    pub factor: Option<f64>,
    /// The attention factor, where a config gives it.
    pub attention_factor: Option<f64>,
    /// The attention factor of short sequences, where a config gives it.
    pub short_mscale: Option<f64>,
    /// The attention factor of long sequences, where a config gives it.
    pub long_mscale: Option<f64>,
    /// Which list is used when.
    pub mode: LongRopeMode,
}

/// When LongRoPE uses which of its lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongRopeMode {
    /// The rule of the paper and of the models' authors: the short factors while the sequence,
    /// cached tokens included, is at most the original length, the long factors beyond it.
    #[default]
    ByLength,
    /// The long factors always, as mlx-lm 0.32.2 does.
    MlxLm,
}

impl RopeScaling {
    /// The name that a config has for this kind, without aliases.
    pub fn rope_type(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3(_) => "llama3",
            Self::Yarn(_) => "yarn",
            Self::LongRope(_) => "longrope",
            Self::Proportional { .. } => "proportional",
            Self::Mrope { .. } => "mrope",
        }
    }

    /// What a model that was trained with DeepSeek's YaRN multiplies the scale of its attention by:
    /// `(0.1 mscale_all_dim ln(factor) + 1)²`, and 1 for every other kind.
    ///
    /// DeepSeek's code sharpens scores there, and divides it out of the rotation: that is why
    /// `mscale_all_dim` stands in the denominator of the attention factor. A model that applies one
    /// half without the other gets wrong scores.
    ///
    /// # Reference
    ///
    /// DeepSeek-V3's `modeling_deepseek.py`; `apply_yarn_mscale` in mlx-lm 0.32.2.
    pub fn score_factor(&self) -> f64 {
        match self {
            Self::Yarn(yarn) => mscale(yarn.factor, yarn.mscale_all_dim).powi(2),
            _ => 1.0,
        }
    }

    /// Whether the numbers make sense; a config was checked already, a value that a program made was not.
    pub(crate) fn check(&self) -> Result<(), RopeError> {
        match self {
            Self::Default => Ok(()),
            Self::Linear { factor } | Self::Dynamic { factor } => at_least_one("factor", *factor),
            Self::Llama3(llama3) => llama3.check(),
            Self::Yarn(yarn) => yarn.check(),
            Self::LongRope(long_rope) => long_rope.check(),
            Self::Proportional { partial_rotary_factor, factor } => {
                fraction(*partial_rotary_factor)?;
                at_least_one("factor", *factor)
            }
            Self::Mrope { sections } => {
                sections.iter().try_for_each(|&section| positive("mrope_section", f64::from(section)))
            }
        }
    }

    /// The same scaling with another [`LongRopeMode`]; only LongRoPE has one.
    pub fn with_long_rope_mode(mut self, mode: LongRopeMode) -> Self {
        if let Self::LongRope(scaling) = &mut self {
            scaling.mode = mode;
        }
        self
    }
}

/// The object as a config has it: every key of every kind.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, remote = "Self")]
pub(crate) struct RawScaling {
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_type: Option<String>,
    pub(crate) rope_theta: Option<f64>,
    pub(crate) partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    attention_factor: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    short_mscale: Option<f64>,
    long_mscale: Option<f64>,
    mrope_section: Option<Vec<i32>>,
    /// In which order the pairs of the sections lie; for text, where the three positions are one, in none.
    mrope_interleaved: Option<bool>,
    /// v5, in models with two kinds of layers.
    pub(crate) full_attention: Option<Box<RawScaling>>,
    /// v5, in models with two kinds of layers.
    pub(crate) sliding_attention: Option<Box<RawScaling>>,
}

/// From an object only. What serde derives would read a list as well, its values in the order of the fields, and
/// an empty one as an object without keys.
impl<'de> Deserialize<'de> for RawScaling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = RawScaling;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"rope_type\": \"linear\", \"factor\": 8.0}")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawScaling, A::Error> {
                RawScaling::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

impl TryFrom<RawScaling> for RopeScaling {
    type Error = RopeError;

    fn try_from(raw: RawScaling) -> Result<Self, RopeError> {
        let (scaling, ignored) = raw.read()?;
        match ignored.first() {
            Some(&key) => Err(RopeError::Unused { key, rope_type: scaling.rope_type() }),
            None => Ok(scaling),
        }
    }
}

impl RawScaling {
    /// The scaling, and the keys that its kind has no use for: they belong to other kinds. transformers warns of them
    /// and mlx-lm does not look at them.
    pub(crate) fn read(mut self) -> Result<(RopeScaling, Vec<&'static str>), RopeError> {
        let named = self.old_type.is_some() || self.rope_type.is_some();
        let rope_type = self.canonical_type()?;
        let raw = &mut self;
        let scaling = match rope_type {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: raw.need_factor(rope_type)? },
            "dynamic" => RopeScaling::Dynamic { factor: raw.need_factor(rope_type)? },
            "llama3" => RopeScaling::Llama3(raw.llama3()?),
            "yarn" => RopeScaling::Yarn(raw.yarn()?),
            "longrope" => RopeScaling::LongRope(raw.long_rope()?),
            "proportional" => RopeScaling::Proportional {
                partial_rotary_factor: raw.partial_rotary_factor.take().unwrap_or(1.0),
                factor: raw.factor.take().unwrap_or(1.0),
            },
            _ => RopeScaling::Mrope { sections: raw.sections()? },
        };
        scaling.check()?;
        if matches!(scaling, RopeScaling::Linear { .. } | RopeScaling::Proportional { .. }) {
            // What the context length follows from.
            self.original_max_position_embeddings = None;
        }
        let ignored = self.rest();
        match ignored.iter().find(|&&key| !named || key == "full_attention" || key == "sliding_attention") {
            // Without a kind, a key of one means that somebody wanted a scaling. Kinds of layers do not stand there.
            Some(&key) => Err(RopeError::Unused { key, rope_type }),
            None => Ok((scaling, ignored)),
        }
    }
}

/// Every name that a config may have for a kind, and the one that it has here.
const NAMES: &[(&str, &str)] = &[
    ("default", "default"),
    ("linear", "linear"),
    ("dynamic", "dynamic"),
    ("llama3", "llama3"),
    ("yarn", "yarn"),
    ("deepseek_yarn", "yarn"),
    ("telechat3-yarn", "yarn"),
    ("longrope", "longrope"),
    ("su", "longrope"),
    ("proportional", "proportional"),
    ("mrope", "mrope"),
];

/// The names, for a message.
pub(crate) fn known() -> String {
    let names: Vec<&str> = NAMES.iter().map(|&(name, _)| name).collect();
    names.join(", ")
}

impl RawScaling {
    /// The kind, with aliases resolved. `type` is the older name of the key `rope_type`; where both
    /// are given they must mean the same.
    fn canonical_type(&mut self) -> Result<&'static str, RopeError> {
        let (old, new) = (self.old_type.take(), self.rope_type.take());
        let canonical = |name: &Option<String>| {
            let Some(name) = name else { return Ok(None) };
            match NAMES.iter().find(|(known, _)| known == name) {
                Some((_, canonical)) => Ok(Some(*canonical)),
                None => Err(RopeError::UnknownType { found: name.clone() }),
            }
        };
        let rope_type = match (canonical(&old)?, canonical(&new)?) {
            (None, None) => "default",
            (Some(one), None) | (None, Some(one)) => one,
            (Some(old), Some(new)) if old == new => old,
            (Some("mrope"), Some("default")) => "mrope",
            (Some(_), Some(_)) => {
                return Err(RopeError::Contradiction {
                    key: "rope_type",
                    first: format!("type {}", old.unwrap_or_default()),
                    second: format!("rope_type {}", new.unwrap_or_default()),
                });
            }
        };
        // transformers writes `default` for mrope into the configs that it saves, and keeps the sections.
        Ok(if rope_type == "default" && self.mrope_section.is_some() { "mrope" } else { rope_type })
    }

    fn need_factor(&mut self, rope_type: &'static str) -> Result<f64, RopeError> {
        self.factor.take().ok_or(RopeError::Missing { key: "factor", rope_type })
    }

    fn original_length(&mut self) -> Result<Option<i32>, RopeError> {
        self.original_max_position_embeddings.take().map(original_length).transpose()
    }

    fn llama3(&mut self) -> Result<Llama3Scaling, RopeError> {
        Ok(Llama3Scaling {
            factor: self.need_factor("llama3")?,
            low_freq_factor: self.low_freq_factor.take().unwrap_or(1.0),
            high_freq_factor: self.high_freq_factor.take().unwrap_or(4.0),
            original_max_position_embeddings: self.original_length()?.unwrap_or(8192),
        })
    }

    fn yarn(&mut self) -> Result<YarnScaling, RopeError> {
        Ok(YarnScaling {
            factor: self.need_factor("yarn")?,
            original_max_position_embeddings: self.original_length()?,
            beta_fast: self.beta_fast.take().unwrap_or(32.0),
            beta_slow: self.beta_slow.take().unwrap_or(1.0),
            mscale: self.mscale.take().unwrap_or(1.0),
            mscale_all_dim: self.mscale_all_dim.take().unwrap_or(0.0),
            attention_factor: self.attention_factor.take(),
            truncate: self.truncate.take().unwrap_or(true),
        })
    }

    fn long_rope(&mut self) -> Result<LongRopeScaling, RopeError> {
        let list = |key, list: Option<_>| list.ok_or(RopeError::Missing { key, rope_type: "longrope" });
        Ok(LongRopeScaling {
            short_factor: list("short_factor", self.short_factor.take())?,
            long_factor: list("long_factor", self.long_factor.take())?,
            original_max_position_embeddings: self.original_length()?,
            factor: self.factor.take(),
            attention_factor: self.attention_factor.take(),
            short_mscale: self.short_mscale.take(),
            long_mscale: self.long_mscale.take(),
            mode: LongRopeMode::default(),
        })
    }

    fn sections(&mut self) -> Result<[i32; 3], RopeError> {
        let sections = self
            .mrope_section
            .take()
            .ok_or(RopeError::Missing { key: "mrope_section", rope_type: "mrope" })?;
        self.mrope_interleaved = None;
        let found = sections.len();
        sections.try_into().map_err(|_| RopeError::Sections { found })
    }

    /// The keys without a use, of a config that can be read.
    pub(crate) fn ignored(&self) -> Vec<&'static str> {
        let mut raw = self.clone();
        (raw.rope_theta, raw.partial_rotary_factor) = (None, None);
        raw.read().map(|(_, ignored)| ignored).unwrap_or_default()
    }

    /// Every key that a kind used was taken out; what is left it has no use for.
    fn rest(&self) -> Vec<&'static str> {
        let Self {
            old_type: _,
            rope_type: _,
            rope_theta,
            partial_rotary_factor,
            factor,
            original_max_position_embeddings,
            low_freq_factor,
            high_freq_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            attention_factor,
            truncate,
            short_factor,
            long_factor,
            short_mscale,
            long_mscale,
            mrope_section,
            mrope_interleaved,
            full_attention,
            sliding_attention,
        } = self;
        let left = [
            ("rope_theta", rope_theta.is_some()),
            ("partial_rotary_factor", partial_rotary_factor.is_some()),
            ("factor", factor.is_some()),
            ("original_max_position_embeddings", original_max_position_embeddings.is_some()),
            ("low_freq_factor", low_freq_factor.is_some()),
            ("high_freq_factor", high_freq_factor.is_some()),
            ("beta_fast", beta_fast.is_some()),
            ("beta_slow", beta_slow.is_some()),
            ("mscale", mscale.is_some()),
            ("mscale_all_dim", mscale_all_dim.is_some()),
            ("attention_factor", attention_factor.is_some()),
            ("truncate", truncate.is_some()),
            ("short_factor", short_factor.is_some()),
            ("long_factor", long_factor.is_some()),
            ("short_mscale", short_mscale.is_some()),
            ("long_mscale", long_mscale.is_some()),
            ("mrope_section", mrope_section.is_some()),
            ("mrope_interleaved", mrope_interleaved.is_some()),
            ("full_attention", full_attention.is_some()),
            ("sliding_attention", sliding_attention.is_some()),
        ];
        left.into_iter().filter(|&(_, is_left)| is_left).map(|(key, _)| key).collect()
    }
}

impl Llama3Scaling {
    fn check(&self) -> Result<(), RopeError> {
        at_least_one("factor", self.factor)?;
        positive("low_freq_factor", self.low_freq_factor)?;
        let above = self.high_freq_factor > self.low_freq_factor;
        check("high_freq_factor", self.high_freq_factor, above, "above low_freq_factor")?;
        positive(ORIGINAL, f64::from(self.original_max_position_embeddings))
    }
}

impl YarnScaling {
    fn check(&self) -> Result<(), RopeError> {
        at_least_one("factor", self.factor)?;
        optional_positive(ORIGINAL, self.original_max_position_embeddings.map(f64::from))?;
        let (beta_fast, beta_slow) = (self.beta_fast, self.beta_slow);
        positive("beta_fast", beta_fast)?;
        positive("beta_slow", beta_slow)?;
        if beta_fast < beta_slow {
            return Err(RopeError::Betas { beta_fast, beta_slow });
        }
        // Below 0 a score would grow with the distance between what it compares.
        check("mscale", self.mscale, self.mscale >= 0.0, "a finite number from 0 on")?;
        check(
            "mscale_all_dim",
            self.mscale_all_dim,
            self.mscale_all_dim >= 0.0,
            "a finite number from 0 on",
        )?;
        optional_positive("attention_factor", self.attention_factor)
    }

    /// The given one, or `(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`: YaRN,
    /// equation 22, with the weights of DeepSeek's code. Both queries and keys are multiplied by it, so
    /// that scores grow by its square.
    pub(crate) fn attention_factor(&self) -> f64 {
        let quotient = || mscale(self.factor, self.mscale) / mscale(self.factor, self.mscale_all_dim);
        self.attention_factor.unwrap_or_else(quotient)
    }
}

/// `0.1 weight ln(factor) + 1`; 0.1 is the slope that the authors of YaRN fitted on Llama models.
fn mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

impl LongRopeScaling {
    fn check(&self) -> Result<(), RopeError> {
        self.short_factor.iter().try_for_each(|&factor| positive("short_factor", factor))?;
        self.long_factor.iter().try_for_each(|&factor| positive("long_factor", factor))?;
        optional_positive(ORIGINAL, self.original_max_position_embeddings.map(f64::from))?;
        self.factor.map_or(Ok(()), |factor| at_least_one("factor", factor))?;
        optional_positive("attention_factor", self.attention_factor)?;
        optional_positive("short_mscale", self.short_mscale)?;
        optional_positive("long_mscale", self.long_mscale)
    }
}

pub(crate) const ORIGINAL: &str = "original_max_position_embeddings";

fn at_least_one(key: &'static str, found: f64) -> Result<(), RopeError> {
    check(key, found, found >= 1.0, "a finite number from 1 on")
}

fn positive(key: &'static str, found: f64) -> Result<(), RopeError> {
    check(key, found, found > 0.0, "a positive finite number")
}

fn optional_positive(key: &'static str, found: Option<f64>) -> Result<(), RopeError> {
    found.map_or(Ok(()), |found| positive(key, found))
}

pub(crate) fn fraction(found: f64) -> Result<f64, RopeError> {
    check("partial_rotary_factor", found, found > 0.0 && found <= 1.0, "above 0 and at most 1")
        .map(|()| found)
}

pub(crate) fn original_length(found: f64) -> Result<i32, RopeError> {
    let whole = found.fract() == 0.0 && (1.0..=f64::from(i32::MAX)).contains(&found);
    check(ORIGINAL, found, whole, "a positive whole number").map(|()| found as i32)
}

fn check(key: &'static str, found: f64, right: bool, expected: &'static str) -> Result<(), RopeError> {
    if found.is_finite() && right { Ok(()) } else { Err(RopeError::Number { key, found, expected }) }
}
