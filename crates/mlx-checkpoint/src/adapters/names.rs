//! The names of layers in adapters of mlx-lm.

/// What the keys of a language model begin with in a checkpoint with the names of transformers' modules.
const INNER: &str = "model.language_model.";
/// What mlx-lm puts before the keys of a language model: `language_model.model.layers.0` for
/// `model.language_model.layers.0`, and `language_model.lm_head` for `lm_head`.
const OUTER: &str = "language_model.";

/// How mlx-lm names the layers of a checkpoint in adapters. It renames those of a checkpoint with the names of
/// transformers' modules, so that adapters have other names than the checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct MlxLmNames {
    differ: bool,
}

impl MlxLmNames {
    /// For a checkpoint, or a model, with these keys.
    pub(super) fn of(keys: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self { differ: keys.into_iter().any(|key| key.as_ref().starts_with(INNER)) }
    }

    /// Gives the tensors of adapters the names of the checkpoint.
    pub(super) fn of_checkpoint<T, M>(self, tensors: M) -> M
    where
        M: IntoIterator<Item = (String, T)> + FromIterator<(String, T)>,
    {
        tensors.into_iter().map(|(key, value)| (self.in_checkpoint(key), value)).collect()
    }

    fn in_checkpoint(self, key: String) -> String {
        match key.strip_prefix(OUTER) {
            Some(rest) if self.differ => match rest.strip_prefix("model.") {
                Some(rest) => format!("{INNER}{rest}"),
                None => rest.to_owned(),
            },
            _ => key,
        }
    }

    /// The name in adapters of a key of the checkpoint.
    pub(super) fn in_adapters(self, key: &str) -> String {
        match key.strip_prefix(INNER) {
            _ if !self.differ => key.to_owned(),
            Some(rest) => format!("{OUTER}model.{rest}"),
            None => format!("{OUTER}{key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_become_those_of_mlx_lm_and_back() {
        let names = MlxLmNames::of(["model.language_model.norm.weight"]);
        for (checkpoint, adapters) in [
            (
                "model.language_model.layers.0.mlp.up_proj.lora_a",
                "language_model.model.layers.0.mlp.up_proj.lora_a",
            ),
            ("lm_head.lora_b", "language_model.lm_head.lora_b"),
        ] {
            assert_eq!(names.in_adapters(checkpoint), adapters);
            assert_eq!(names.in_checkpoint(adapters.to_owned()), checkpoint);
            assert_eq!(names.in_checkpoint(checkpoint.to_owned()), checkpoint);
        }
        let same = MlxLmNames::of(["model.norm.weight"]);
        assert_eq!(same.in_adapters("model.layers.0.x.lora_a"), "model.layers.0.x.lora_a");
        assert_eq!(same.in_checkpoint("language_model.x".to_owned()), "language_model.x");
    }
}
