//! Reads the rotation of a model from the config of its checkpoint.

use serde::Deserialize;

use crate::context::context_length;
use crate::rope::check_base;
use crate::scaling::{ORIGINAL, RawScaling, fraction, original_length};
use crate::{
    LongRopeMode, QueryScale, Rope, RopeError, RopeLayout, RopeScaling, YarnScaling, initialize_rope,
};

/// The keys of a Hugging Face config that describe rotations, in both of its forms.
///
/// transformers up to version 4 writes `rope_theta`, `rope_scaling`, `partial_rotary_factor` and, for models with two
/// kinds of layers, `rope_local_base_freq`. From version 5 on it writes `rope_parameters` instead: one object, or one for
/// each kind of layer. Where a config has both forms, they must agree.
///
/// Flatten this type into the config of an architecture and ask for the rotation of its layers:
///
/// ```
/// use mlx_rope::{RopeKeys, RopeLayout};
///
/// #[derive(serde::Deserialize)]
/// struct Config {
///     head_dim: i32,
///     #[serde(flatten)]
///     rope: RopeKeys,
/// }
///
/// let v4 = r#"{"head_dim": 64, "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 8}}"#;
/// let v5 = r#"{"head_dim": 64, "rope_parameters": {"rope_type": "linear", "factor": 8, "rope_theta": 1e6}}"#;
/// for text in [v4, v5] {
///     let config: Config = serde_json::from_str(text)?;
///     let settings = config.rope.uniform(None)?;
///     let rope = settings.rope(config.head_dim, RopeLayout::Halves)?;
///     assert_eq!(rope.frequencies(1)?[0], 1.0 / 8.0); // radians per token, of the first pair
/// }
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RopeKeys {
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    partial_rotary_factor: Option<f64>,
    rope_scaling: Option<RawScaling>,
    rope_parameters: Option<RawScaling>,
    original_max_position_embeddings: Option<f64>,
    max_position_embeddings: Option<f64>,
}

/// Which forms of the keys for rotations mlx-lm 0.32.2 reads in its model of an architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MlxLmReads {
    /// `rope_theta` and `rope_scaling` only, the form of transformers 4.
    OldForm {
        /// The base that it takes where it finds none; `None` if it then refuses the config.
        default_base: Option<f64>,
    },
    /// `rope_parameters` too, the form of transformers 5.
    BothForms,
    /// `rope_theta` only. It applies no scaling.
    Base {
        /// The base that it takes where it finds none.
        default: f64,
    },
}

/// The settings of a rotation, without the size and the layout of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSettings {
    /// The base of the frequencies, `rope_theta`.
    pub base: f64,
    /// The fraction of each head that is rotated.
    pub partial_rotary_factor: f64,
    /// How the frequencies are changed for long contexts.
    pub scaling: RopeScaling,
    /// The longest sequence that the model was made for, in tokens, where the config says it.
    pub max_position_embeddings: Option<i32>,
}

impl RopeSettings {
    /// The rotation of heads of `head_dim` features.
    ///
    /// # Errors
    ///
    /// Those of [`initialize_rope`].
    pub fn rope(&self, head_dim: i32, layout: RopeLayout) -> Result<Rope, RopeError> {
        let dims = (f64::from(head_dim) * fraction(self.partial_rotary_factor)?) as i32;
        initialize_rope(dims, self.base, layout, &self.scaling, self.max_position_embeddings)
    }

    /// The same settings with this [`LongRopeMode`], which only LongRoPE uses.
    pub fn with_long_rope_mode(mut self, mode: LongRopeMode) -> Self {
        self.scaling = self.scaling.with_long_rope_mode(mode);
        self
    }
}

impl RopeKeys {
    /// The rotation of a model whose layers all rotate alike. `default_base` is the base for configs that state none.
    ///
    /// # Errors
    ///
    /// Where the config contradicts itself, lacks a key that is needed, or has keys for two kinds of layers.
    pub fn uniform(&self, default_base: Option<f64>) -> Result<RopeSettings, RopeError> {
        if self.rope_local_base_freq.is_some() {
            return Err(RopeError::TwoKinds { key: "rope_local_base_freq" });
        }
        if let Some(parameters) = &self.rope_parameters {
            for (key, given) in [
                ("full_attention", &parameters.full_attention),
                ("sliding_attention", &parameters.sliding_attention),
            ] {
                if given.is_some() {
                    return Err(RopeError::TwoKinds { key });
                }
            }
        }
        self.full_attention(default_base)
    }

    /// The rotation of the layers with full attention, in a model that has layers of two kinds. `default_base` is the base
    /// for configs that state none.
    ///
    /// # Errors
    ///
    /// Where the config contradicts itself or lacks a key that is needed.
    pub fn full_attention(&self, default_base: Option<f64>) -> Result<RopeSettings, RopeError> {
        let v4 = self.rope_scaling.clone();
        match self.rope_parameters.clone() {
            None => self.settings(v4, self.rope_theta, default_base),
            Some(parameters) => {
                let parameters = of_kind(parameters, FULL)?;
                self.agree(&v4, &parameters)?;
                self.settings(Some(parameters), self.rope_theta, default_base)
            }
        }
    }

    /// The rotation of the layers with a sliding window, in a model that has layers of two kinds.
    ///
    /// Where the config has no settings for them, they rotate without scaling, because a window is shorter than the texts
    /// of the training. Their base is then `rope_local_base_freq`, otherwise `default_base`, otherwise the base of the
    /// full layers.
    ///
    /// # Errors
    ///
    /// Where the config contradicts itself or lacks a key that is needed.
    pub fn sliding_attention(&self, default_base: Option<f64>) -> Result<RopeSettings, RopeError> {
        if let Some(base) = self.rope_local_base_freq {
            check_base("rope_local_base_freq", base)?;
        }
        let inner = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        if let Some(parameters) = inner
            && (parameters.sliding_attention.is_some() || parameters.full_attention.is_some())
        {
            let own = of_kind(parameters.clone(), SLIDING)?;
            return self.settings(Some(own), self.rope_local_base_freq, default_base);
        }
        let base_of_full = self.rope_theta.or(inner.and_then(|inner| inner.rope_theta));
        let mut plain = RawScaling::default();
        plain.partial_rotary_factor = inner.and_then(|inner| inner.partial_rotary_factor);
        self.settings(Some(plain), self.rope_local_base_freq.or(default_base).or(base_of_full), None)
    }

    /// The factor of queries that grows with their position, where the config has one (`llama_4_scaling_beta`). No other
    /// function of this type reads it, since it is no part of the rotation: architectures that do not know it ignore it, as
    /// in transformers.
    ///
    /// # Errors
    ///
    /// Where the number is out of range, the original length is missing, or the config contradicts itself.
    pub fn query_scale(&self) -> Result<Option<QueryScale>, RopeError> {
        let both = [&self.rope_parameters, &self.rope_scaling].map(Option::as_ref);
        let (new, old) = (both[0], both[1]);
        let key = |key: fn(&RawScaling) -> Option<f64>| (new.and_then(key), old.and_then(key));
        let (new, old) = key(|raw| raw.llama_4_scaling_beta);
        let Some(beta) = one_of(BETA, new, old)? else { return Ok(None) };
        let (new, old) = key(|raw| raw.original_max_position_embeddings);
        let original = one_of(ORIGINAL, one_of(ORIGINAL, new, old)?, self.original_max_position_embeddings)?;
        let original = original.ok_or(RopeError::NeededBeside { key: ORIGINAL, beside: BETA })?;
        QueryScale::new(beta, original_length(original)?).map(Some)
    }

    /// The longest sequence that the model supports, in tokens. `stated` is the length in its config
    /// (`max_position_embeddings`, or the architecture's key for it).
    ///
    /// Some configs state the length before the extension, others the length after it. So the result is the larger of
    /// `stated` and `factor * original_max_position_embeddings`, for the kinds `yarn`, `linear`, `dynamic` and
    /// `proportional`. With every other kind, and where the config has no original length, it is `stated`. In a model with
    /// two kinds of layers, the scaling of the full layers counts.
    ///
    /// # Errors
    ///
    /// Where the config contradicts itself or lacks a key that is needed, and where the length is beyond 2^28.
    pub fn context_length(&self, stated: i32) -> Result<i32, RopeError> {
        let scaling = match self.rope_parameters.clone() {
            // Windows end long before the context does.
            Some(parameters)
                if parameters.full_attention.is_none() && parameters.sliding_attention.is_some() =>
            {
                None
            }
            Some(parameters) => Some(of_kind(parameters, FULL)?),
            None => self.rope_scaling.clone(),
        };
        let Some(mut raw) = scaling else { return Ok(stated) };
        let inner = raw.original_max_position_embeddings.take();
        let original = one_of(ORIGINAL, inner, self.original_max_position_embeddings)?;
        context_length(&raw.of_the_kind().read()?.0, original, stated)
    }

    /// Why mlx-lm 0.32.2 computes other angles or factors from this config than these `settings` of ours, as the end
    /// of a sentence; `None` where it computes the same.
    pub fn unlike_mlx_lm(&self, settings: &RopeSettings, mlx_lm_reads: MlxLmReads) -> Option<&'static str> {
        let default_base = match mlx_lm_reads {
            MlxLmReads::BothForms => None,
            MlxLmReads::OldForm { default_base } => default_base,
            MlxLmReads::Base { .. } if settings.scaling != RopeScaling::Default => {
                return Some("mlx-lm does not apply the scaling that its config has; make it again");
            }
            MlxLmReads::Base { default } => Some(default),
        };
        let has_new_form_only = self.rope_parameters.is_some() && self.rope_scaling.is_none();
        if mlx_lm_reads != MlxLmReads::BothForms
            && has_new_form_only
            && settings.scaling != RopeScaling::Default
        {
            return Some(
                "mlx-lm does not read the scaling that its config has in `rope_parameters`; make it again",
            );
        }
        if self.rope_theta.is_none() && default_base.is_some_and(|base| base != settings.base) {
            return Some(
                "mlx-lm does not read the base that its config has in `rope_parameters` or `rope_scaling`; make it \
                 again",
            );
        }
        let is_unapplied = match &settings.scaling {
            RopeScaling::Yarn(yarn) => {
                let computed = YarnScaling { attention_factor: None, ..yarn.clone() };
                !yarn.truncate
                    || (yarn.attention_factor() - computed.attention_factor()).abs() > 1e-6
                    || (self.has_length_outside() && yarn.original_max_position_embeddings != Some(4096))
            }
            // mlx-lm's default of the length, as that of YaRN above.
            RopeScaling::Llama3(llama3) => {
                self.has_length_outside() && llama3.original_max_position_embeddings != 8192
            }
            RopeScaling::LongRope(long) => {
                long.factor.or(long.attention_factor).or(long.short_mscale).or(long.long_mscale).is_some()
            }
            _ => false,
        };
        is_unapplied.then_some(
            "mlx-lm does not apply all that its config says of scaling (such as `attention_factor`); make it again",
        )
    }

    /// Whether the original length stands outside of the scaling only.
    fn has_length_outside(&self) -> bool {
        let kinds = |raw: &RawScaling| [raw.full_attention.as_deref().cloned(), Some(raw.clone())];
        let mut scalings = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten().flat_map(kinds);
        self.original_max_position_embeddings.is_some()
            && !scalings.any(|raw| raw.is_some_and(|raw| raw.original_max_position_embeddings.is_some()))
    }

    /// The keys of the config that its kinds of scaling do not use, as paths such as `rope_scaling.long_factor`, for a
    /// warning. No rotation depends on them. Empty where the config cannot be read; the other functions return the error.
    pub fn ignored(&self) -> Vec<String> {
        let mut ignored = Vec::new();
        for (name, raw) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)]
        {
            let Some(raw) = raw else { continue };
            let kinds = [(FULL, &raw.full_attention), (SLIDING, &raw.sliding_attention)];
            if kinds.iter().all(|(_, own)| own.is_none()) {
                ignored.extend(raw.ignored().into_iter().map(|key| format!("{name}.{key}")));
            }
            for (kind, own) in kinds.iter().filter_map(|(kind, own)| Some((kind, own.as_ref()?))) {
                ignored.extend(own.ignored().into_iter().map(|key| format!("{name}.{kind}.{key}")));
            }
        }
        ignored
    }

    /// Combines the keys inside and outside of `scaling`.
    fn settings(
        &self,
        scaling: Option<RawScaling>,
        outer_base: Option<f64>,
        default_base: Option<f64>,
    ) -> Result<RopeSettings, RopeError> {
        let mut raw = scaling.unwrap_or_default();
        let base = one_of("rope_theta", raw.rope_theta.take(), outer_base)?.or(default_base);
        let base = base.ok_or(RopeError::NoBase)?;
        check_base("rope_theta", base)?;

        // Proportional scaling uses the fraction itself, over whole heads.
        let fraction_of_heads =
            one_of("partial_rotary_factor", raw.partial_rotary_factor.take(), self.partial_rotary_factor)?;
        let inner_length = raw.original_max_position_embeddings.take();
        let original = one_of(ORIGINAL, inner_length, self.original_max_position_embeddings)?;
        let original = original.map(original_length).transpose()?;
        let longest = one_of(LONGEST, raw.max_position_embeddings, self.max_position_embeddings)?;

        let mut scaling = match raw.of_the_kind().read()?.0 {
            RopeScaling::Proportional { factor, .. } => RopeScaling::Proportional {
                partial_rotary_factor: fraction(fraction_of_heads.unwrap_or(1.0))?,
                factor,
            },
            other => other,
        };
        let whole_heads = matches!(scaling, RopeScaling::Proportional { .. });
        match &mut scaling {
            RopeScaling::Yarn(yarn) => yarn.original_max_position_embeddings = original,
            RopeScaling::LongRope(long) => long.original_max_position_embeddings = original,
            RopeScaling::Llama3(llama3) => {
                // Without the length mlx-lm takes 8192, and transformers `max_position_embeddings`.
                llama3.original_max_position_embeddings =
                    original.ok_or(RopeError::Missing { key: ORIGINAL, rope_type: "llama3" })?;
            }
            _ => {}
        }
        let max_position_embeddings = longest.map(|length| {
            original_length(length).map_err(|_| RopeError::Number {
                key: LONGEST,
                found: length,
                expected: "a positive whole number",
            })
        });
        Ok(RopeSettings {
            base,
            partial_rotary_factor: if whole_heads {
                1.0
            } else {
                fraction(fraction_of_heads.unwrap_or(1.0))?
            },
            scaling,
            max_position_embeddings: max_position_embeddings.transpose()?,
        })
    }

    /// Checks that the two forms agree, where a config has both.
    fn agree(&self, v4: &Option<RawScaling>, v5: &RawScaling) -> Result<(), RopeError> {
        let Some(v4) = v4 else { return Ok(()) };
        one_of("rope_theta", v4.rope_theta, v5.rope_theta)?;
        one_of("partial_rotary_factor", v4.partial_rotary_factor, v5.partial_rotary_factor)?;
        one_of(BETA, v4.llama_4_scaling_beta, v5.llama_4_scaling_beta)?;
        // Where neither form has an original length, the outer one applies to both and need not be compared.
        let has_length = |raw: &RawScaling| raw.original_max_position_embeddings.is_some();
        let outer = self.original_max_position_embeddings.filter(|_| has_length(v4) || has_length(v5));
        let scaling = |raw: &RawScaling| {
            let mut raw = raw.of_the_kind();
            raw.original_max_position_embeddings = raw.original_max_position_embeddings.or(outer);
            Ok::<_, RopeError>(raw.read()?.0)
        };
        let (first, second) = (scaling(v4)?, scaling(v5)?);
        if first == second {
            return Ok(());
        }
        let (first, second) = (format!("{first:?}"), format!("{second:?}"));
        Err(RopeError::Contradiction { key: "rope_scaling", first, second })
    }
}

const BETA: &str = "llama_4_scaling_beta";
const LONGEST: &str = "max_position_embeddings";
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// The settings for one kind of layer: its own, or those for all kinds.
fn of_kind(mut parameters: RawScaling, kind: &'static str) -> Result<RawScaling, RopeError> {
    if parameters.full_attention.is_none() && parameters.sliding_attention.is_none() {
        return Ok(parameters);
    }
    let (full, sliding) = (parameters.full_attention.take(), parameters.sliding_attention.take());
    if parameters != RawScaling::default() {
        return Err(RopeError::Contradiction {
            key: "rope_parameters",
            first: "settings for each kind of layer".to_owned(),
            second: "settings for all".to_owned(),
        });
    }
    let own = if kind == FULL { full } else { sliding };
    own.map(|own| *own).ok_or(RopeError::NoKind { kind })
}

/// A key that may stand in two places, which must then agree.
fn one_of(key: &'static str, inner: Option<f64>, outer: Option<f64>) -> Result<Option<f64>, RopeError> {
    match (inner, outer) {
        (Some(inner), Some(outer)) if inner != outer => {
            Err(RopeError::Contradiction { key, first: inner.to_string(), second: outer.to_string() })
        }
        (inner, outer) => Ok(inner.or(outer)),
    }
}
