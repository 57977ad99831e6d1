//! The name of a model's output layer.

/// The name of the layer that computes logits, in checkpoints of every architecture here, and for mlx-lm and PEFT.
pub(crate) const HEAD: &str = "lm_head";

/// Whether a layer's key is that of the head. It may be below other modules: `language_model.lm_head`.
pub(crate) fn is_head(layer: &str) -> bool {
    layer.rsplit('.').next() == Some(HEAD)
}
