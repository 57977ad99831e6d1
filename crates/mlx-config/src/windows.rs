//! Windows that a config switches on.

use mlx_kvcache::LayerKind;
use serde::Deserialize;

use crate::{ConfigError, LayerTypes, limits, size};

/// The keys by which Qwen 2 and Qwen 3 state which layers have a window.
///
/// Without `use_sliding_window` no layer has one, though released configs state `sliding_window` and
/// `max_window_layers`. With it, `layer_types` gives the kind of each layer; where that is missing, all layers from
/// `max_window_layers` on have a window.
///
/// # Reference
///
/// transformers, `Qwen2Config.__post_init__` and `Qwen3Config.__post_init__`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SwitchedWindows {
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<i64>,
    layer_types: Option<Vec<String>>,
}

impl SwitchedWindows {
    /// The kinds of a model's layers, of which there are `layers`.
    ///
    /// # Errors
    ///
    /// Those of [`LayerTypes::kinds`], [`ConfigError::Size`] or [`ConfigError::Missing`] for `max_window_layers`, and
    /// [`ConfigError::Contradiction`] where a layer has a window although windows are switched off.
    pub fn kinds(&self, layers: usize) -> Result<Vec<LayerKind>, ConfigError> {
        let on = self.use_sliding_window.unwrap_or(false);
        match (&self.layer_types, self.max_window_layers) {
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
                // Unlike a size it may be 0: then every layer has a window.
                let first = if first == 0 { 0 } else { size("max_window_layers", first, limits::LAYERS)? };
                LayerTypes::FullFirst(first as usize).kinds(layers, self.sliding_window)
            }
            (None, None) => Err(ConfigError::Missing {
                key: "max_window_layers",
                needed_for: "models with use_sliding_window and without layer_types",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: LayerKind = LayerKind::Full;
    const WINDOW: LayerKind = LayerKind::Sliding { window: 8 };

    fn kinds(text: &str) -> Result<Vec<LayerKind>, ConfigError> {
        serde_json::from_str::<SwitchedWindows>(text).unwrap().kinds(3)
    }

    #[test]
    fn no_layer_has_a_window_unless_windows_are_on() {
        for text in [
            "{}",
            r#"{"sliding_window": 8, "max_window_layers": 1}"#,
            r#"{"use_sliding_window": false, "sliding_window": 0, "max_window_layers": -1}"#,
            r#"{"use_sliding_window": true, "sliding_window": null, "max_window_layers": 3}"#,
        ] {
            assert_eq!(kinds(text).unwrap(), [FULL; 3], "{text}");
        }
    }

    #[test]
    fn the_list_decides_over_the_number() {
        let text = r#"{"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1}"#;
        assert_eq!(kinds(text).unwrap(), [FULL, WINDOW, WINDOW]);
        let types = r#""layer_types": ["sliding_attention", "full_attention", "full_attention"]"#;
        assert_eq!(kinds(&text.replace('}', &format!(", {types}}}"))).unwrap(), [WINDOW, FULL, FULL]);
        let error = kinds(&format!(r#"{{"sliding_window": 8, {types}}}"#)).unwrap_err();
        assert!(matches!(error, ConfigError::Contradiction { first_key: "use_sliding_window", .. }));
    }

    #[test]
    fn the_first_layer_with_a_window_is_stated() {
        let text = r#"{"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0}"#;
        assert_eq!(kinds(text).unwrap(), [WINDOW; 3]);
        let error = kinds(&text.replace("0}", "-1}")).unwrap_err();
        assert!(matches!(error, ConfigError::Size { key: "max_window_layers", found: -1, .. }));
        let error = kinds(r#"{"use_sliding_window": true, "sliding_window": 8}"#).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { key: "max_window_layers", .. }));
    }
}
