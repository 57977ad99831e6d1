//! The kinds of scaling, which adapt a rotation to longer contexts than those of the training.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::RopeError;
use crate::names::NAMES;

/// How the frequencies of a rotation are changed for contexts longer than the model was first
/// trained with. The formulas are at [`Rope`](crate::Rope).
///
/// Deserializes from the object under `rope_scaling` in a Hugging Face config, with the kind under `type`, `rope_type` or
/// both. A key that the kind does not use is an error here. [`RopeKeys`](crate::RopeKeys), which reads whole configs, lists
/// such keys in [`ignored`](crate::RopeKeys::ignored).
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
    /// `default`: no scaling.
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
    /// `llama3`: the frequencies of slow pairs are divided by a factor, those of fast pairs stay, those in between are
    /// blended.
    Llama3(Llama3Scaling),
    /// `yarn`, `deepseek_yarn`, `telechat3-yarn`: as `llama3`, but blended by a ramp over the index of the pair, and with
    /// larger scores.
    Yarn(YarnScaling),
    /// `longrope`, `su`: a separate factor for each pair, in one list for short sequences and one for long ones. "Su" is
    /// the first author of RoFormer.
    LongRope(LongRopeScaling),
    /// `proportional`: only a fraction of the pairs is rotated, with the frequencies of a rotation of all pairs.
    Proportional {
        /// The fraction of the features that is rotated, in (0, 1].
        partial_rotary_factor: f64,
        /// Every position is divided by this; from 1 on.
        factor: f64,
    },
    /// `mrope`: three positions (time, height, width), each for a section of the pairs. The three positions of a text
    /// token are equal, so for text this is the rotation without scaling.
    Mrope {
        /// Pairs in each section.
        sections: [i32; 3],
    },
}

/// Parameters of [`RopeScaling::Llama3`].
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3Scaling {
    /// The divisor for the frequencies of slow pairs; from 1 on.
    pub factor: f64,
    /// A pair that makes fewer turns than this within the original length is slow. Default 1: training has shown only a
    /// part of the circle to a pair that never completed a turn.
    pub low_freq_factor: f64,
    /// A pair that makes more turns than this within the original length is fast. Default 4.
    pub high_freq_factor: f64,
    /// The context length before the extension, in tokens. Default 8192, the length of Llama 3.
    pub original_max_position_embeddings: i32,
}

/// Parameters of [`RopeScaling::Yarn`].
#[derive(Debug, Clone, PartialEq)]
pub struct YarnScaling {
    /// The divisor for the frequencies of slow pairs; from 1 on.
    pub factor: f64,
    /// The context length before the extension, in tokens. A config may state it outside of the scaling, so it is needed
    /// only when the rotation is built.
    pub original_max_position_embeddings: Option<i32>,
    /// The ramp starts at the pair that makes this many turns within the original length; faster pairs keep their
    /// frequencies. Default 32, the paper's value for the Llama models (section 3.2).
    pub beta_fast: f64,
    /// The ramp ends at the pair that makes this many turns; the frequencies of slower pairs are divided by the whole
    /// factor. Default 1.
    pub beta_slow: f64,
    /// Weight of the logarithm in the numerator of the attention factor. Default 1.
    pub mscale: f64,
    /// Weight of the logarithm in its denominator. Default 0, which makes the denominator 1.
    pub mscale_all_dim: f64,
    /// The attention factor itself, where a config states it; it replaces the two weights above.
    pub attention_factor: Option<f64>,
    /// Whether the ends of the ramp are rounded to whole pairs. Default true.
    pub truncate: bool,
}

/// Parameters of [`RopeScaling::LongRope`].
#[derive(Debug, Clone, PartialEq)]
pub struct LongRopeScaling {
    /// The divisor for the frequency of each pair, in sequences of at most the original length.
    pub short_factor: Vec<f64>,
    /// The divisor for the frequency of each pair, in longer sequences.
    pub long_factor: Vec<f64>,
    /// The context length before the extension, in tokens. A config may state it outside of the scaling, so it is needed
    /// only when the rotation is built.
    pub original_max_position_embeddings: Option<i32>,
    /// The ratio of the lengths, where a config states it; otherwise it is computed from the lengths.
    pub factor: Option<f64>,
    /// The attention factor, where a config states it.
    pub attention_factor: Option<f64>,
    /// The attention factor of short sequences, where a config states it.
    pub short_mscale: Option<f64>,
    /// The attention factor of long sequences, where a config states it.
    pub long_mscale: Option<f64>,
    /// When each list applies.
    pub mode: LongRopeMode,
}

/// When each of LongRoPE's lists of factors applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongRopeMode {
    /// The short factors apply while the sequence, including cached tokens, is at most as long as the original length. The
    /// long factors apply to longer sequences. This is the rule of the paper and of the models' authors.
    #[default]
    ByLength,
    /// The long factors always apply, as in mlx-lm 0.32.2.
    MlxLm,
}

impl RopeScaling {
    /// The name of this kind in configs; of several names the common one.
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

    /// The number by which the context was extended, where the scaling has one number for it.
    pub fn factor(&self) -> Option<f64> {
        match self {
            Self::Linear { factor } | Self::Dynamic { factor } | Self::Proportional { factor, .. } => {
                Some(*factor)
            }
            Self::Llama3(llama3) => Some(llama3.factor),
            Self::Yarn(yarn) => Some(yarn.factor),
            Self::LongRope(long_rope) => long_rope.factor,
            Self::Default | Self::Mrope { .. } => None,
        }
    }

    /// The factor by which a model that was trained with DeepSeek's YaRN multiplies the scale of its attention:
    /// `(0.1 mscale_all_dim ln(factor) + 1)²`, and 1 for every other kind.
    ///
    /// DeepSeek's code applies this factor in attention and divides the rotation by its root, so `mscale_all_dim` is in
    /// the denominator of the attention factor. A model must apply both, or its scores are wrong.
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

    /// Checks the ranges of the numbers. A scaling from a config has passed this check; one that a program made has not.
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

    /// The same scaling with this [`LongRopeMode`], which only LongRoPE uses.
    pub fn with_long_rope_mode(mut self, mode: LongRopeMode) -> Self {
        if let Self::LongRope(scaling) = &mut self {
            scaling.mode = mode;
        }
        self
    }
}

/// The object in a config: the keys of all kinds.
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
    /// The order of the pairs in the sections. It makes no difference for text, whose three positions are equal.
    mrope_interleaved: Option<bool>,
    /// Of [`QueryScale`](crate::QueryScale).
    pub(crate) llama_4_scaling_beta: Option<f64>,
    /// The same number as outside of the object. Ministral 3 has it here too.
    pub(crate) max_position_embeddings: Option<f64>,
    /// Of transformers 5, in models with two kinds of layers.
    pub(crate) full_attention: Option<Box<RawScaling>>,
    /// Of transformers 5, in models with two kinds of layers.
    pub(crate) sliding_attention: Option<Box<RawScaling>>,
}

/// Reads an object only. Serde's derived code would also read a list, as the values in the order of the fields.
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
    /// The scaling, and the keys that its kind does not use because they belong to other kinds. transformers warns of such
    /// keys, and mlx-lm ignores them.
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
            // Used by the context length only.
            self.original_max_position_embeddings = None;
        }
        let ignored = self.rest();
        match ignored.iter().find(|&&key| !named || key == "full_attention" || key == "sliding_attention") {
            // A key of some kind without a `rope_type` means that the type was forgotten. Layer kinds cannot be nested.
            Some(&key) => Err(RopeError::Unused { key, rope_type }),
            None => Ok((scaling, ignored)),
        }
    }
}

impl RawScaling {
    /// The name of the kind, with aliases resolved. `type` is the older name of the key `rope_type`; where a config has
    /// both, they must name the same kind.
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
        // In the configs that it saves, transformers writes `default` for mrope and keeps the sections.
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

    /// The settings without the keys that [`read`](Self::read) leaves to others.
    pub(crate) fn of_the_kind(&self) -> Self {
        Self {
            rope_theta: None,
            partial_rotary_factor: None,
            llama_4_scaling_beta: None,
            max_position_embeddings: None,
            ..self.clone()
        }
    }

    /// The keys that the kind does not use; none where the config cannot be read.
    pub(crate) fn ignored(&self) -> Vec<&'static str> {
        let mut ignored = self.of_the_kind().read().map(|(_, ignored)| ignored).unwrap_or_default();
        // The factor of queries has the length too.
        ignored.retain(|&key| key != ORIGINAL || self.llama_4_scaling_beta.is_none());
        ignored
    }

    /// The keys that are left after `read` took out those that the kind uses.
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
            llama_4_scaling_beta,
            max_position_embeddings,
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
            ("llama_4_scaling_beta", llama_4_scaling_beta.is_some()),
            ("max_position_embeddings", max_position_embeddings.is_some()),
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
        // A negative weight could make the attention factor 0, negative or infinite.
        check("mscale", self.mscale, self.mscale >= 0.0, "a finite number from 0 on")?;
        check(
            "mscale_all_dim",
            self.mscale_all_dim,
            self.mscale_all_dim >= 0.0,
            "a finite number from 0 on",
        )?;
        optional_positive("attention_factor", self.attention_factor)
    }

    /// The stated attention factor, or `(0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)`: YaRN, equation
    /// 22, with the weights of DeepSeek's code. Queries and keys are both multiplied by it, so scores grow by its square.
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
