//! Which layers have a window, by the keys of families of models.

use mlx_kvcache::LayerKind;

use crate::{ConfigError, LayerTypes, limits, within};

/// The keys by which Qwen 2 and Qwen 3 state which layers have a window.
///
/// Without `use_sliding_window` no layer has one, though released configs state `sliding_window` and
/// `max_window_layers`. With it, `layer_types` gives the kind of each layer; where that is missing, all layers from
/// `max_window_layers` on have a window.
///
/// # Reference
///
/// transformers, `Qwen2Config.__post_init__` and `Qwen3Config.__post_init__`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SwitchedWindows<'a> {
    /// Whether windows are on. Without the key they are off.
    pub use_sliding_window: Option<bool>,
    /// The length of the windows, in tokens.
    pub sliding_window: Option<i64>,
    /// The number of layers without a window, which come first.
    pub max_window_layers: Option<i64>,
    /// The kind of each layer.
    pub layer_types: Option<&'a [String]>,
}

impl SwitchedWindows<'_> {
    /// The kinds of a model's layers, of which there are `layers`.
    ///
    /// # Errors
    ///
    /// Those of [`LayerTypes::kinds`], [`ConfigError::Size`] or [`ConfigError::Missing`] for `max_window_layers`, and
    /// [`ConfigError::Contradiction`] where a layer has a window although windows are switched off.
    pub fn kinds(self, layers: usize) -> Result<Vec<LayerKind>, ConfigError> {
        let on = self.use_sliding_window.unwrap_or(false);
        match (self.layer_types, self.max_window_layers) {
            (Some(types), _) => {
                let kinds = LayerTypes::Listed(types).kinds(layers, self.sliding_window)?;
                match kinds.iter().position(|kind| *kind != LayerKind::Full) {
                    Some(_) if !on => Err(ConfigError::Contradiction {
                        first_key: "use_sliding_window",
                        first: on.to_string(),
                        second_key: "layer_types",
                        second: format!("{types:?}"),
                    }),
                    _ => Ok(kinds),
                }
            }
            (None, _) if !on => Ok(vec![LayerKind::Full; layers]),
            (None, Some(first)) => {
                // With 0, every layer has a window.
                let first = within("max_window_layers", first, 0, limits::LAYERS)?;
                LayerTypes::FullFirst(first as usize).kinds(layers, self.sliding_window)
            }
            (None, None) => Err(ConfigError::Missing {
                key: "max_window_layers",
                needed_for: "models with use_sliding_window and without layer_types",
            }),
        }
    }
}

/// The keys by which Mistral models state which layers have a window: those that `layer_types` says, and without it all
/// layers, or none.
///
/// # Reference
///
/// transformers, `MistralModel.forward`; mlx-lm 0.32.2 reads `layer_types` only.
#[derive(Debug, Clone, Copy)]
pub struct MistralWindows<'a> {
    /// The length of the windows, in tokens: `Some(None)` where the config states `null`, and `None` where it lacks the
    /// key.
    pub sliding_window: Option<Option<i64>>,
    /// The kind of each layer.
    pub layer_types: Option<&'a [String]>,
}

impl MistralWindows<'_> {
    /// The kinds of a model's layers, of which there are `layers`.
    ///
    /// # Errors
    ///
    /// Those of [`LayerTypes::kinds`], and [`ConfigError::Missing`] where the config has neither key.
    pub fn kinds(self, layers: usize) -> Result<Vec<LayerKind>, ConfigError> {
        match (self.layer_types, self.sliding_window) {
            (Some(types), window) => LayerTypes::Listed(types).kinds(layers, window.flatten()),
            (None, Some(None)) => Ok(vec![LayerKind::Full; layers]),
            (None, Some(window)) => LayerTypes::FullFirst(0).kinds(layers, window),
            // transformers would take a window of 4096, and mlx-lm none.
            (None, None) => Err(ConfigError::Missing {
                key: "sliding_window",
                needed_for: "Mistral models, as a number or null",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: LayerKind = LayerKind::Full;
    const WINDOW: LayerKind = LayerKind::Sliding { window: 8 };

    /// Windows of 8 tokens.
    fn windows(on: Option<bool>, first: Option<i64>) -> SwitchedWindows<'static> {
        SwitchedWindows {
            use_sliding_window: on,
            sliding_window: Some(8),
            max_window_layers: first,
            layer_types: None,
        }
    }

    #[test]
    fn no_layer_has_a_window_unless_windows_are_on() {
        for windows in [
            SwitchedWindows::default(),
            windows(None, Some(1)),
            windows(Some(false), Some(-1)),
            SwitchedWindows { sliding_window: None, ..windows(Some(true), Some(3)) },
        ] {
            assert_eq!(windows.kinds(3).unwrap(), [FULL; 3], "{windows:?}");
        }
    }

    #[test]
    fn the_list_decides_over_the_number() {
        let types = ["sliding_attention", "full_attention", "full_attention"].map(str::to_owned);
        let listed = |on| SwitchedWindows { layer_types: Some(&types), ..windows(on, Some(1)) }.kinds(3);
        assert_eq!(windows(Some(true), Some(1)).kinds(3).unwrap(), [FULL, WINDOW, WINDOW]);
        assert_eq!(listed(Some(true)).unwrap(), [WINDOW, FULL, FULL]);
        let error = listed(None).unwrap_err();
        assert!(matches!(error, ConfigError::Contradiction { first_key: "use_sliding_window", .. }));
    }

    #[test]
    fn all_layers_of_a_mistral_have_a_window_or_none() {
        let types = ["sliding_attention", "full_attention"].map(str::to_owned);
        let kinds = |sliding_window, layer_types| MistralWindows { sliding_window, layer_types }.kinds(2);
        assert_eq!(kinds(Some(Some(8)), None).unwrap(), [WINDOW; 2]);
        assert_eq!(kinds(Some(None), None).unwrap(), [FULL; 2]);
        assert_eq!(kinds(Some(Some(8)), Some(&types)).unwrap(), [WINDOW, FULL]);
        for (window, types) in [(None, None), (None, Some(&types[..])), (Some(None), Some(&types))] {
            let error = kinds(window, types).unwrap_err();
            assert!(matches!(error, ConfigError::Missing { key: "sliding_window", .. }));
        }
    }

    #[test]
    fn the_first_layer_with_a_window_is_stated() {
        assert_eq!(windows(Some(true), Some(0)).kinds(3).unwrap(), [WINDOW; 3]);
        let error = windows(Some(true), Some(-1)).kinds(3).unwrap_err();
        assert_eq!(error.to_string(), "max_window_layers is -1, and must be between 0 and 4096");
        let error = windows(Some(true), None).kinds(3).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { key: "max_window_layers", .. }));
    }
}
