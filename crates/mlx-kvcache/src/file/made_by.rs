//! Which model made a cache.

/// Which model made a cache. Only a model with the same weights, rotation, windows and adapters can use its keys and
/// values.
///
/// `mlx_causal_lm::made_by` returns the value for a model. A model type alone (`"phi3".into()`) is enough for callers
/// that check the rest themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MadeBy {
    /// The `model_type` of the checkpoint's config.
    pub model_type: String,
    /// A digest of the weights and their quantization.
    pub weights: String,
    /// A digest of the config's settings: rotation, windows, scales.
    pub config: String,
    /// A digest of the adapters, if there are any.
    pub adapters: Option<String>,
    /// Why caches cannot be exchanged with mlx-lm, as the end of a sentence: mlx-lm computes other keys and values for a
    /// sequence of this length, or the model has adapters, which files of mlx-lm do not name. If this is set, mlx-lm
    /// refuses the saved file, and files of mlx-lm are refused.
    pub unlike_mlx_lm: Option<String>,
}

impl From<&str> for MadeBy {
    fn from(model_type: &str) -> Self {
        Self { model_type: model_type.to_owned(), ..Self::default() }
    }
}
