//! The rotation itself.

use std::fmt;
use std::sync::Arc;

use mlx_rs::Array;
use mlx_rs::error::Exception;
use mlx_rs::fast;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::{IndexUpdateError, TryIndexOp, TryIndexUpdateOp, UpdateMode};

use crate::RopeError;
use crate::offset::RopeOffset;
use crate::periods;
use crate::query_scale::QueryScale;
use crate::rotation::{RopeLayout, Rotation};
use crate::scaling::{LongRopeMode, LongRopeScaling, RopeScaling, YarnScaling};

/// A rotary position embedding.
///
/// Pair `i` of a token at position `p` is rotated by the angle `p * f_i` radians. Without scaling, the frequency is
/// `f_i = base^(-2i / dims)`: one radian per token for the first pair, and so low for the last pair that it hardly
/// completes a turn within the context. [`RopeScaling`] changes the frequencies:
///
/// | kind | frequency of pair `i` |
/// |---|---|
/// | linear | `f_i / factor` |
/// | dynamic | `f_i` with the base `base * (factor * n / m - (factor - 1))^(dims / (dims - 2))` for a sequence of `n > m` tokens |
/// | llama3 | `f_i` for fast pairs, `f_i / factor` for slow pairs, a blend of both in between |
/// | yarn | `f_i * k_i + f_i / factor * (1 - k_i)`, with a ramp `k_i` from 1 (fast) to 0 (slow) |
/// | longrope | `f_i / short_i`, or `f_i / long_i` beyond the original length |
/// | proportional | `base^(-2i / dims) / factor` for the first pairs, 0 for the others |
///
/// YaRN and LongRoPE also multiply queries and keys by an attention factor, because a softmax over more keys is flatter
/// and larger scores compensate for that.
///
/// The tables of frequencies are computed when the rotation is built. Clones share them.
///
/// # Reference
///
/// Su et al., *RoFormer: Enhanced Transformer with Rotary Position Embedding*, section 3.2.2,
/// equations 14 and 15 (<https://arxiv.org/abs/2104.09864>). `docs/rope.md` of the repository has the references of the
/// scalings.
#[derive(Clone)]
pub struct Rope {
    dims: i32,
    layout: RopeLayout,
    kind: Kind,
    /// See [`Self::followed_by`].
    following: i32,
    query_scale: Option<QueryScale>,
    rotation: Arc<Rotation>,
}

/// What rotated queries and keys depend on. The settings are left out: `kind` follows from them. The factor of queries is
/// there only where a model has one, because digests of configs are computed from this text.
impl fmt::Debug for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dims, layout, kind, following, query_scale, rotation: _ } = self;
        let mut text = f.debug_struct("Rope");
        text.field("dims", dims).field("layout", layout).field("kind", kind).field("following", following);
        if let Some(query_scale) = query_scale {
            text.field("query_scale", query_scale);
        }
        text.finish()
    }
}

/// Where the angles of a call come from.
#[derive(Debug, Clone)]
enum Kind {
    Plain { base: f32, scale: f32 },
    Table(Table),
    Dynamic { base: f64, factor: f64, trained: i32 },
    ByLength { short: Table, long: Table, original: i32 },
}

/// The periods of the pairs, and the factor of the rotated features.
#[derive(Debug, Clone)]
struct Table {
    periods: Array,
    attention_factor: f64,
}

/// The angles for sequences of one length.
#[derive(Debug, Clone, Copy)]
enum Angles<'a> {
    Plain { base: f32, scale: f32 },
    Table(&'a Table),
}

/// Builds the rotation of the first `dims` features of each head. The other features keep their values.
///
/// `max_position_embeddings` is the longest sequence that the model was made for. [`RopeScaling::Dynamic`] needs it,
/// because its frequencies change beyond that length. [`RopeScaling::LongRope`] needs it to compute its attention factor,
/// unless the scaling states the factor or the ratio of the lengths.
///
/// # Errors
///
/// - [`RopeError::Dims`] if `dims` is not a positive even number, if it is 2 for dynamic scaling, or if proportional
///   scaling would rotate an odd number of features or none.
/// - [`RopeError::Base`] if `base` is below 1 or not finite as a float32.
/// - [`RopeError::Number`] if a number is outside of its range: `max_position_embeddings` must be positive, and `base`
///   above 1 for YaRN; [`RopeScaling`] states the other ranges. [`RopeError::Betas`] for those of YaRN's ramp.
/// - [`RopeError::Missing`] if the scaling needs a length that is not given.
/// - [`RopeError::Length`] if a list of factors does not have one entry for each pair, or the sections of mrope do not
///   add up to the number of pairs.
/// - [`RopeError::Mlx`] if MLX cannot compute the tables.
pub fn initialize_rope(
    dims: i32,
    base: f64,
    layout: RopeLayout,
    scaling: &RopeScaling,
    max_position_embeddings: Option<i32>,
) -> Result<Rope, RopeError> {
    if dims <= 0 || dims % 2 != 0 {
        return Err(RopeError::Dims { dims });
    }
    check_base("rope_theta", base)?;
    scaling.check()?;
    if let Some(longest) = max_position_embeddings.filter(|&longest| longest <= 0) {
        let (key, expected) = ("max_position_embeddings", "a positive whole number");
        return Err(RopeError::Number { key, found: f64::from(longest), expected });
    }
    let rope_type = scaling.rope_type();
    let missing = |key| RopeError::Missing { key, rope_type };
    let plain = Kind::Plain { base: base as f32, scale: 1.0 };
    let kind = match scaling {
        RopeScaling::Default => plain,
        RopeScaling::Linear { factor } => Kind::Plain { base: base as f32, scale: (1.0 / factor) as f32 },
        RopeScaling::Dynamic { factor } => {
            let trained = max_position_embeddings.ok_or(missing("max_position_embeddings"))?;
            if dims == 2 {
                // The exponent dims / (dims - 2) of the base would be infinite.
                return Err(RopeError::Dims { dims });
            }
            Kind::Dynamic { base, factor: *factor, trained }
        }
        RopeScaling::Llama3(llama3) => Kind::Table(Table::new(periods::llama3(dims, base, llama3)?, 1.0)?),
        RopeScaling::Yarn(yarn) => Kind::Table(yarn.table(dims, base)?),
        RopeScaling::LongRope(long_rope) => long_rope.kind(dims, base, max_position_embeddings)?,
        RopeScaling::Proportional { partial_rotary_factor, factor } => {
            let rotated = (f64::from(dims) * partial_rotary_factor) as i32;
            if rotated <= 0 || rotated % 2 != 0 {
                return Err(RopeError::Dims { dims: rotated });
            }
            Kind::Table(Table::new(periods::proportional(dims, rotated, base, *factor)?, 1.0)?)
        }
        RopeScaling::Mrope { sections } => {
            let pairs: i64 = sections.iter().map(|&section| i64::from(section)).sum();
            if pairs * 2 != i64::from(dims) {
                return Err(RopeError::Length {
                    key: "mrope_section",
                    found: usize::try_from(pairs).unwrap_or(0),
                    expected: dims as usize / 2,
                });
            }
            plain
        }
    };
    let rotation = Arc::new(Rotation { dims, layout, base, scaling: scaling.clone() });
    Ok(Rope { dims, layout, kind, following: 0, query_scale: None, rotation })
}

impl Rope {
    /// A rotation without scaling: [`initialize_rope`] with [`RopeScaling::Default`].
    ///
    /// # Errors
    ///
    /// [`RopeError::Dims`] if `dims` is not a positive even number, [`RopeError::Base`] if `base` is below 1 or not finite
    /// as a float32.
    pub fn new(dims: i32, base: f64, layout: RopeLayout) -> Result<Self, RopeError> {
        initialize_rope(dims, base, layout, &RopeScaling::Default, None)
    }

    /// The same rotation for a model that multiplies its queries by this factor, or by none; see
    /// [`scale_queries`](Self::scale_queries).
    pub fn with_query_scale(self, query_scale: Option<QueryScale>) -> Self {
        Self { query_scale, ..self }
    }

    /// The factor of queries by their positions, where the model has one.
    pub fn query_scale(&self) -> Option<QueryScale> {
        self.query_scale
    }

    /// Multiplies rotated queries by the factor of their positions, where the model has such a factor. Other models get
    /// their queries back.
    ///
    /// # Errors
    ///
    /// Those of [`QueryScale::scale`].
    pub fn scale_queries<'a>(
        &self,
        queries: &Array,
        offset: impl Into<RopeOffset<'a>>,
    ) -> Result<Array, Exception> {
        match self.query_scale {
            Some(scale) => scale.scale(queries, offset),
            None => Ok(queries.clone()),
        }
    }

    /// Rotates queries or keys. `offset` is the position of the first token of the call: one number for all rows of the
    /// batch, or a slice with one number for each row.
    ///
    /// # Shapes
    ///
    /// `x` `[B, H, L, D]` with `D >= dims`; the result has the same shape.
    ///
    /// # Dtypes
    ///
    /// Any float; the result has the dtype of `x`. Angles are computed in float32.
    ///
    /// # Errors
    ///
    /// Where `x` does not have four axes, a head has fewer features than are rotated, or the number of offsets is not the
    /// number of rows.
    pub fn rotate<'a>(&self, x: &Array, offset: impl Into<RopeOffset<'a>>) -> Result<Array, Exception> {
        self.turn(x, offset.into(), 1.0)
    }

    /// Undoes [`rotate`](Self::rotate) with the same offset, including the attention factor.
    ///
    /// # Errors
    ///
    /// Those of [`rotate`](Self::rotate).
    pub fn rotate_back<'a>(&self, x: &Array, offset: impl Into<RopeOffset<'a>>) -> Result<Array, Exception> {
        self.turn(x, offset.into(), -1.0)
    }

    /// The rotation for sequences that will have `length` tokens in the end, for calls at every offset.
    ///
    /// [`rotate`](Self::rotate) takes the end of each call for the end of the sequence. That is right for decoding and for
    /// a prompt that is read in one call. A prompt that is read in pieces needs this function, because a piece ends before
    /// the prompt does.
    pub fn for_length(&self, length: i32) -> Self {
        let kind = match self.angles(length) {
            Angles::Plain { base, scale } => Kind::Plain { base, scale },
            Angles::Table(table) => Kind::Table(table.clone()),
        };
        Self { kind, following: 0, ..self.clone() }
    }

    /// The rotation for calls that are followed by `tokens` more tokens in each row, so that a sequence ends `tokens` after
    /// the end of the call. This is [`for_length`](Self::for_length) for a batch whose rows differ in length.
    pub fn followed_by(&self, tokens: i32) -> Self {
        Self { following: tokens, ..self.clone() }
    }

    /// Whether sequences of these two lengths are rotated alike, so that keys that were cached for one length are right for
    /// the other, when a sequence grows and when tokens are removed from it.
    pub fn rotates_alike(&self, a: i32, b: i32) -> bool {
        match self.kind {
            Kind::Plain { .. } | Kind::Table(_) => true,
            Kind::Dynamic { trained, .. } => a.max(trained) == b.max(trained),
            Kind::ByLength { original, .. } => (a > original) == (b > original),
        }
    }

    /// Whether LongRoPE's short factors apply to a sequence of this length.
    pub fn has_short_factors_at(&self, length: i32) -> bool {
        matches!(self.kind, Kind::ByLength { original, .. } if length <= original)
    }

    /// Whether reading `length` more tokens after `offset` makes the cached keys wrong, so that the sequence has to be read
    /// again, with [`for_length`](Self::for_length) of its whole length.
    ///
    /// This happens with LongRoPE when a call crosses the original length: the cached keys were rotated with the short
    /// factors, and now the long ones apply. Dynamic scaling also changes with every token beyond its length, but there
    /// the convention is to keep the cached keys.
    pub fn crosses_border(&self, offset: i32, length: i32) -> bool {
        let by_length = matches!(self.kind, Kind::ByLength { .. });
        by_length && offset > 0 && !self.rotates_alike(offset, offset.saturating_add(length))
    }

    /// The number of features that are rotated.
    pub fn dims(&self) -> i32 {
        self.dims
    }

    /// The settings that this rotation was built from. Clones share them.
    pub fn rotation(&self) -> Arc<Rotation> {
        Arc::clone(&self.rotation)
    }

    /// The frequency of each pair, in radians per token, in a sequence of `length` tokens.
    ///
    /// # Errors
    ///
    /// What MLX reports while it computes them.
    pub fn frequencies(&self, length: i32) -> Result<Vec<f32>, RopeError> {
        let (periods, scale) = match self.angles(length) {
            Angles::Plain { base, scale } => (periods::plain(self.dims, self.dims, f64::from(base))?, scale),
            Angles::Table(table) => (table.periods.clone(), 1.0),
        };
        let failed = |e: mlx_rs::error::AsSliceError| Exception::custom(e.to_string());
        let periods = periods.try_as_slice::<f32>().map_err(failed)?;
        Ok(periods.iter().map(|period| scale / period).collect())
    }

    /// The factor of rotated queries and of rotated keys in a sequence of `length` tokens.
    pub fn attention_factor(&self, length: i32) -> f32 {
        match self.angles(length) {
            Angles::Plain { .. } => 1.0,
            Angles::Table(table) => table.attention_factor as f32,
        }
    }

    fn angles(&self, length: i32) -> Angles<'_> {
        match &self.kind {
            &Kind::Plain { base, scale } => Angles::Plain { base, scale },
            Kind::Table(table) => Angles::Table(table),
            &Kind::Dynamic { base, factor, trained } => {
                let (length, trained) = (f64::from(length.max(trained)), f64::from(trained));
                let growth = factor * length / trained - (factor - 1.0);
                let exponent = f64::from(self.dims) / f64::from(self.dims - 2);
                Angles::Plain { base: (base * growth.powf(exponent)) as f32, scale: 1.0 }
            }
            Kind::ByLength { short, long, original } => {
                Angles::Table(if length > *original { long } else { short })
            }
        }
    }

    /// Rotates by the angles of `offset` times `direction`, which is 1, or -1 to undo a rotation.
    fn turn(&self, x: &Array, offset: RopeOffset<'_>, direction: f32) -> Result<Array, Exception> {
        let [batch, _, length, head_dim] = *x.shape() else {
            return Err(Exception::custom(format!("[B, H, L, D] is rotated, not {:?}", x.shape())));
        };
        if head_dim < self.dims {
            return Err(RopeError::BeyondHead { dims: self.dims, head_dim }.into());
        }
        let total = |offset: i32| offset.saturating_add(length).saturating_add(self.following);
        match offset {
            RopeOffset::One(offset) => {
                self.turn_by(x, Position::One(offset), self.angles(total(offset)), direction)
            }
            RopeOffset::PerRow(offsets) if offsets.len() != batch as usize => {
                Err(RopeError::Offsets { found: offsets.len(), batch }.into())
            }
            RopeOffset::PerRow([]) => Ok(x.clone()),
            RopeOffset::PerRow(offsets) => {
                let first = total(offsets[0]);
                if offsets.iter().all(|&offset| self.rotates_alike(first, total(offset))) {
                    let position = Position::PerRow(Array::from_slice(offsets, &[batch]));
                    return self.turn_by(x, position, self.angles(first), direction);
                }
                // Rows on both sides of a border: one call for each row.
                let rows = (0..batch).zip(offsets).map(|(row, &offset)| {
                    let x = x.try_index((row..row + 1, .., .., ..))?;
                    self.turn_by(&x, Position::One(offset), self.angles(total(offset)), direction)
                });
                concatenate(&rows.collect::<Result<Vec<_>, _>>()?, 0)
            }
        }
    }

    fn turn_by(
        &self,
        x: &Array,
        position: Position,
        angles: Angles<'_>,
        direction: f32,
    ) -> Result<Array, Exception> {
        let interleaved = self.layout == RopeLayout::Interleaved;
        let (x, base, scale, periods) = match angles {
            Angles::Plain { base, scale } => (x.clone(), Some(base), scale, None),
            Angles::Table(Table { periods, attention_factor }) => {
                let factor = if direction < 0.0 { 1.0 / attention_factor } else { *attention_factor };
                (self.scaled(x, factor as f32)?, None, 1.0, Some(periods))
            }
        };
        let scale = scale * direction;
        match position {
            Position::One(offset) => fast::rope(&x, self.dims, interleaved, base, scale, offset, periods),
            Position::PerRow(offsets) => {
                fast::rope_dynamic(&x, self.dims, interleaved, base, scale, offsets, periods)
            }
        }
    }

    /// Multiplies the features that are rotated by `factor`, and leaves the others.
    fn scaled(&self, x: &Array, factor: f32) -> Result<Array, Exception> {
        if factor == 1.0 {
            return Ok(x.clone());
        }
        // In the dtype of x: a float32 scalar would widen half precision.
        let factor = Array::from_f32(factor).as_dtype(x.dtype())?;
        if x.dim(-1) == self.dims {
            return x.multiply(factor);
        }
        x.try_index_update((.., .., .., ..self.dims), factor, UpdateMode::Product).map_err(|e| match e {
            IndexUpdateError::Exception(exception) => exception,
            other => Exception::custom(other.to_string()),
        })
    }
}

/// A [`RopeOffset`] on the device.
enum Position {
    One(i32),
    PerRow(Array),
}

impl Table {
    fn new(periods: Array, attention_factor: f64) -> Result<Self, Exception> {
        // Evaluated here, so that no call computes the table again.
        periods.eval()?;
        Ok(Self { periods, attention_factor })
    }
}

impl YarnScaling {
    fn table(&self, dims: i32, base: f64) -> Result<Table, RopeError> {
        let original = self
            .original_max_position_embeddings
            .ok_or(RopeError::Missing { key: "original_max_position_embeddings", rope_type: "yarn" })?;
        if base <= 1.0 {
            // The ends of the ramp are divided by the logarithm of the base.
            let (key, expected) = ("rope_theta", "above 1 for yarn");
            return Err(RopeError::Number { key, found: base, expected });
        }
        Ok(Table::new(periods::yarn(dims, base, original, self)?, self.attention_factor())?)
    }
}

impl LongRopeScaling {
    fn kind(&self, dims: i32, base: f64, max_position_embeddings: Option<i32>) -> Result<Kind, RopeError> {
        let rope_type = "longrope";
        let pairs = dims as usize / 2;
        for (key, list) in [("short_factor", &self.short_factor), ("long_factor", &self.long_factor)] {
            if list.len() != pairs {
                return Err(RopeError::Length { key, found: list.len(), expected: pairs });
            }
        }
        let missing = |key| RopeError::Missing { key, rope_type };
        let original =
            self.original_max_position_embeddings.ok_or(missing("original_max_position_embeddings"))?;
        let factor_of_lengths = || match (self.attention_factor, self.factor, max_position_embeddings) {
            (Some(given), ..) => Ok(given),
            (None, Some(factor), _) => attention_factor(factor, original),
            (None, None, Some(longest)) => {
                attention_factor(f64::from(longest) / f64::from(original), original)
            }
            (None, None, None) => Err(missing("max_position_embeddings")),
        };
        let table = |factors: &[f64], own: Option<f64>| {
            let periods = periods::per_pair(dims, base, factors)?;
            Ok::<_, RopeError>(Table::new(periods, own.map_or_else(factor_of_lengths, Ok)?)?)
        };
        let long = table(&self.long_factor, self.long_mscale)?;
        Ok(match self.mode {
            LongRopeMode::MlxLm => Kind::Table(long),
            LongRopeMode::ByLength => {
                Kind::ByLength { short: table(&self.short_factor, self.short_mscale)?, long, original }
            }
        })
    }
}

/// `sqrt(1 + ln(factor) / ln(original))`, as in LongRoPE's code for Phi-3. When the number of keys grows by `factor`, the
/// entropy of attention grows from about `ln(original)` by about `ln(factor)`.
fn attention_factor(factor: f64, original: i32) -> Result<f64, RopeError> {
    if factor <= 1.0 {
        return Ok(1.0);
    }
    if original == 1 {
        return Err(RopeError::Number {
            key: "original_max_position_embeddings",
            found: 1.0,
            expected: "above 1, since its logarithm is divided by",
        });
    }
    Ok((1.0 + factor.ln() / f64::from(original).ln()).sqrt())
}

/// Checks the base of the frequencies, also as the float32 that MLX computes with.
pub(crate) fn check_base(key: &'static str, base: f64) -> Result<(), RopeError> {
    if base >= 1.0 && (base as f32).is_finite() { Ok(()) } else { Err(RopeError::Base { key, base }) }
}
