//! The names that tensors have in a checkpoint.

use std::collections::HashMap;
use std::rc::Rc;

use mlx_checkpoint::{Checkpoint, Renaming};
use mlx_rs::nested::{NestedHashMap, NestedValue};

/// The keys that the tensors of the language model have in a checkpoint.
///
/// | layout | blocks, embedding, norm | head | other parts, ignored |
/// |---|---|---|---|
/// | [`Text`](Self::Text) | `model.` | `lm_head.` | none |
/// | [`LanguageModel`](Self::LanguageModel) | `language_model.model.` | `language_model.lm_head.` | `vision_tower.`, `multi_modal_projector.` |
/// | [`Inner`](Self::Inner) | `model.language_model.` | `lm_head.` | `model.vision_tower.`, `model.multi_modal_projector.` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLayout {
    /// A checkpoint of a language model alone.
    Text,
    /// With a vision part, as released, and as mlx-lm saves it.
    LanguageModel,
    /// With a vision part, with the names that the modules of transformers have from 4.52 on.
    Inner,
}

impl KeyLayout {
    /// The layout of a checkpoint, by its `model_type` and its keys. `multimodal` is the `model_type` of the architecture's
    /// checkpoints with a vision part.
    pub fn of(checkpoint: &Checkpoint, multimodal: Option<&str>) -> Self {
        if Some(checkpoint.model_type()) != multimodal {
            return Self::Text;
        }
        // The layout with more keys wins, so that a single stray tensor is reported, and not all of the others.
        let count = |layout: Self| {
            let prefix = format!("{}.", layout.model());
            checkpoint.headers().keys().filter(|key| key.starts_with(&prefix)).count()
        };
        if count(Self::Inner) > count(Self::LanguageModel) { Self::Inner } else { Self::LanguageModel }
    }

    /// How layers are renamed in a checkpoint that is written: mlx-lm knows the names of
    /// [`LanguageModel`](Self::LanguageModel), and not those of [`Inner`](Self::Inner).
    pub fn renaming(checkpoint: &Checkpoint, multimodal: &str) -> Option<Renaming> {
        (Self::of(checkpoint, Some(multimodal)) == Self::Inner).then_some(of_language_model as Renaming)
    }

    /// The prefix of the keys of the blocks, the embedding and the last norm.
    pub(crate) fn model(self) -> &'static str {
        match self {
            Self::Text => "model",
            Self::LanguageModel => "language_model.model",
            Self::Inner => "model.language_model",
        }
    }

    /// The prefix of the keys of the head.
    pub(crate) fn lm_head(self) -> &'static str {
        match self {
            Self::Text | Self::Inner => "lm_head",
            Self::LanguageModel => "language_model.lm_head",
        }
    }

    /// Whether a tensor belongs to another part of the model than the language model.
    pub(crate) fn ignores(self, key: &str) -> bool {
        let parts: &[&str] = match self {
            Self::Text => &[],
            Self::LanguageModel => &["vision_tower.", "multi_modal_projector."],
            Self::Inner => &["model.vision_tower.", "model.multi_modal_projector."],
        };
        parts.iter().any(|part| key.starts_with(part))
    }

    /// Renames parameters from the layout [`Text`](Self::Text) to this layout.
    pub(crate) fn wrap<T>(self, mut parameters: NestedHashMap<Rc<str>, T>) -> NestedHashMap<Rc<str>, T> {
        let name: Rc<str> = "language_model".into();
        match self {
            Self::Text => parameters,
            Self::LanguageModel => NestedHashMap { entries: HashMap::from([(name, parameters.into())]) },
            Self::Inner => {
                if let Some(model) = parameters.entries.remove("model") {
                    let inner = NestedValue::Map(HashMap::from([(name, model)]));
                    parameters.insert("model".into(), inner);
                }
                parameters
            }
        }
    }
}

/// The name that a layer of the layout [`Inner`](KeyLayout::Inner) has in the layout
/// [`LanguageModel`](KeyLayout::LanguageModel).
fn of_language_model(layer: &str) -> String {
    match layer.strip_prefix("model.language_model.") {
        Some(rest) => format!("language_model.model.{rest}"),
        None => format!("language_model.{layer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::of_language_model;

    #[test]
    fn names_of_transformers_become_those_of_mlx_lm() {
        assert_eq!(
            of_language_model("model.language_model.layers.0.mlp.up_proj"),
            "language_model.model.layers.0.mlp.up_proj"
        );
        assert_eq!(of_language_model("lm_head"), "language_model.lm_head");
    }
}
