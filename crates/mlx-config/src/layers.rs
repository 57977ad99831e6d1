//! Layers of two kinds: with full attention, and with a sliding window.

use mlx_kvcache::{LayerKind, LayerSpec};
use mlx_rope::{Rope, RopeKeys, RopeLayout, RopeScaling, RopeSettings};

use crate::{ConfigError, limits, size};

/// How a config states which layers have full attention and which have a window.
#[derive(Debug, Clone, Copy)]
pub enum LayerTypes<'a> {
    /// `layer_types`: one entry for each layer, `full_attention` or `sliding_attention`.
    Listed(&'a [String]),
    /// Every n-th layer is full: with 6, layers 5, 11, 17 and so on, counted from 0. All others have a window.
    FullEvery(usize),
    /// The first n layers are full, and all others have a window.
    FullFirst(usize),
}

impl LayerTypes<'_> {
    /// The kinds of a model's layers, of which there are `layers`. `sliding_window` may be missing where no layer has a
    /// window.
    ///
    /// # Errors
    ///
    /// [`ConfigError::LayerCount`], [`ConfigError::LayerType`], and [`ConfigError::Missing`] or
    /// [`ConfigError::Size`] for the window.
    pub fn kinds(self, layers: usize, sliding_window: Option<i64>) -> Result<Vec<LayerKind>, ConfigError> {
        let sliding = || {
            let (key, needed_for) = ("sliding_window", "layers of kind sliding_attention");
            let window = sliding_window.ok_or(ConfigError::Missing { key, needed_for })?;
            Ok(LayerKind::Sliding { window: size(key, window, limits::TOKENS)? })
        };
        match self {
            Self::Listed(types) if types.len() != layers => {
                Err(ConfigError::LayerCount { key: "layer_types", found: types.len(), layers })
            }
            Self::Listed(types) => (types.iter().enumerate())
                .map(|(layer, found)| match found.as_str() {
                    "full_attention" => Ok(LayerKind::Full),
                    "sliding_attention" => sliding(),
                    _ => Err(ConfigError::LayerType { layer, found: found.clone() }),
                })
                .collect(),
            Self::FullEvery(n) => (1..=layers)
                .map(|number| if number.is_multiple_of(n) { Ok(LayerKind::Full) } else { sliding() })
                .collect(),
            Self::FullFirst(n) => {
                (0..layers).map(|layer| if layer < n { Ok(LayerKind::Full) } else { sliding() }).collect()
            }
        }
    }
}

/// Which layers of a model rotate queries and keys. `listed` is `no_rope_layers` of the config, which in spite of its name
/// has a 1 for each layer with a rotation, and a 0 for each without. Where it is missing, every n-th layer has no rotation,
/// by `interval`, the config's `no_rope_layer_interval`: with 4, layers 3, 7, 11 and so on, counted from 0.
///
/// # Errors
///
/// [`ConfigError::LayerCount`] and [`ConfigError::Unsupported`] for the list, [`ConfigError::Size`] for the interval.
pub fn rotating(listed: Option<&[i64]>, interval: i64, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let key = "no_rope_layers";
    match listed {
        Some(listed) if listed.len() != layers => {
            Err(ConfigError::LayerCount { key, found: listed.len(), layers })
        }
        Some(listed) => (listed.iter())
            .map(|&found| match found {
                0 => Ok(false),
                1 => Ok(true),
                _ => Err(ConfigError::Unsupported { key, found: found.to_string(), only: "0 and 1" }),
            })
            .collect(),
        None => {
            let interval = size("no_rope_layer_interval", interval, limits::LAYERS)? as usize;
            Ok((1..=layers).map(|number| !number.is_multiple_of(interval)).collect())
        }
    }
}

/// What distinguishes the layers of a model that has several kinds of them.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Which tokens the layer attends to.
    pub kind: LayerKind,
    /// The rotation of its queries and keys, if it has one.
    pub rope: Option<Rope>,
}

/// What each layer needs of its cache, with this number of key-value heads and of features of a head.
pub fn specs(layers: &[Layer], heads: i32, head_dim: i32) -> Vec<LayerSpec> {
    let spec = |layer: &Layer| LayerSpec { kind: layer.kind, heads, key_dim: head_dim, value_dim: head_dim };
    layers.iter().map(spec).collect()
}

/// An architecture's default bases of the rotation's frequencies, for configs that state none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bases {
    /// For layers with full attention. `None` where the config must state the base.
    pub full: Option<f64>,
    /// For layers with a window. `None` where they take the base of the full layers.
    pub sliding: Option<f64>,
}

/// Layers of these kinds, each with the rotation of its kind, over whole heads whose pairs lie in two halves. The config
/// needs settings only for the kinds that occur.
///
/// # Errors
///
/// [`ConfigError::Rope`] where the config lacks a setting or contradicts itself. [`ConfigError::Unsupported`] where it
/// rotates only a part of each head, or by angles that depend on the final length of the sequence: with those, the
/// logits would depend on how the tokens are cut into calls.
pub fn layers(
    kinds: Vec<LayerKind>,
    keys: &RopeKeys,
    bases: Bases,
    head_dim: i32,
) -> Result<Vec<Layer>, ConfigError> {
    let rope = |settings: RopeSettings| rope(settings, head_dim);
    let is_full = |kind: &LayerKind| *kind == LayerKind::Full;
    let full = kinds.iter().any(is_full).then(|| rope(keys.full_attention(bases.full)?)).transpose()?;
    let some_slide = !kinds.iter().all(is_full);
    let sliding = some_slide.then(|| rope(keys.sliding_attention(bases.sliding)?)).transpose()?;
    let layer = |kind: LayerKind| {
        let rope = if is_full(&kind) { full.clone() } else { sliding.clone() };
        Layer { kind, rope }
    };
    Ok(kinds.into_iter().map(layer).collect())
}

/// Layers of these kinds that all have the same rotation, over whole heads whose pairs lie in two halves. Without a
/// `default_base` the config must state the base.
///
/// # Errors
///
/// Those of [`layers`].
pub fn layers_alike(
    kinds: Vec<LayerKind>,
    keys: &RopeKeys,
    default_base: Option<f64>,
    head_dim: i32,
) -> Result<Vec<Layer>, ConfigError> {
    let rope = Some(rope(keys.uniform(default_base)?, head_dim)?);
    Ok(kinds.into_iter().map(|kind| Layer { kind, rope: rope.clone() }).collect())
}

fn rope(settings: RopeSettings, head_dim: i32) -> Result<Rope, ConfigError> {
    Ok(checked(settings)?.rope(head_dim, RopeLayout::Halves)?)
}

fn checked(settings: RopeSettings) -> Result<RopeSettings, ConfigError> {
    if settings.partial_rotary_factor != 1.0 {
        let (key, found) = ("partial_rotary_factor", settings.partial_rotary_factor.to_string());
        return Err(ConfigError::Unsupported { key, found, only: "1" });
    }
    match settings.scaling {
        RopeScaling::Default
        | RopeScaling::Linear { .. }
        | RopeScaling::Llama3(_)
        | RopeScaling::Yarn(_)
        | RopeScaling::Proportional { .. } => Ok(settings),
        ref other => {
            let (key, found) = ("rope_type", format!("{:?}", other.rope_type()));
            Err(ConfigError::Unsupported { key, found, only: "default, linear, llama3, yarn, proportional" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    const WINDOW: LayerKind = LayerKind::Sliding { window: 8 };

    fn listed(types: &[&str], layers: usize, window: Option<i64>) -> Result<Vec<LayerKind>, ConfigError> {
        let types: Vec<String> = types.iter().map(|&name| name.to_owned()).collect();
        LayerTypes::Listed(&types).kinds(layers, window)
    }

    fn keys(text: &str) -> RopeKeys {
        serde_json::from_str(text).unwrap()
    }

    fn frequencies(layer: &Layer) -> Vec<f32> {
        layer.rope.as_ref().unwrap().frequencies(1).unwrap()
    }

    #[test]
    fn every_nth_layer_has_no_rotation() {
        assert_eq!(rotating(None, 3, 4).unwrap(), [true, true, false, true]);
        assert_eq!(rotating(None, 1, 2).unwrap(), [false; 2]);
        let error = rotating(None, 0, 4).unwrap_err().to_string();
        assert!(error.starts_with("no_rope_layer_interval is 0"), "{error}");
    }

    #[test]
    fn a_list_states_which_layers_rotate() {
        // The interval does not count beside the list.
        assert_eq!(rotating(Some(&[0, 1, 0]), 0, 3).unwrap(), [false, true, false]);
        let error = rotating(Some(&[1, 0]), 4, 3).unwrap_err();
        assert_eq!(error.to_string(), "no_rope_layers has 2 entries, and num_hidden_layers is 3");
        let error = rotating(Some(&[1, 2]), 4, 2).unwrap_err();
        assert_eq!(error.to_string(), "no_rope_layers is 2, and this architecture knows 0 and 1 only");
    }

    #[test]
    fn every_nth_layer_is_full() {
        let kinds = LayerTypes::FullEvery(3).kinds(5, Some(8)).unwrap();
        assert_eq!(kinds, [WINDOW, WINDOW, LayerKind::Full, WINDOW, WINDOW]);
        assert_eq!(LayerTypes::FullEvery(6).kinds(2, Some(8)).unwrap(), [WINDOW, WINDOW]);
        assert_eq!(LayerTypes::FullEvery(1).kinds(2, None).unwrap(), [LayerKind::Full; 2]);
    }

    #[test]
    fn the_first_layers_are_full() {
        let kinds = LayerTypes::FullFirst(2).kinds(3, Some(8)).unwrap();
        assert_eq!(kinds, [LayerKind::Full, LayerKind::Full, WINDOW]);
        assert_eq!(LayerTypes::FullFirst(0).kinds(2, Some(8)).unwrap(), [WINDOW; 2]);
        assert_eq!(LayerTypes::FullFirst(9).kinds(2, None).unwrap(), [LayerKind::Full; 2]);
    }

    #[test]
    fn layers_of_two_kinds_may_rotate_alike() {
        let text = r#"{"rope_theta": 100, "rope_scaling": {"type": "linear", "factor": 8}}"#;
        let layers = layers_alike(vec![WINDOW, LayerKind::Full], &keys(text), None, 4).unwrap();
        assert_eq!([layers[0].kind, layers[1].kind], [WINDOW, LayerKind::Full]);
        assert!(layers.iter().all(|layer| frequencies(layer)[0] == 1.0 / 8.0));
        assert!(layers_alike(vec![WINDOW], &keys(r#"{"rope_local_base_freq": 100}"#), None, 4).is_err());
    }

    #[test]
    fn a_list_states_the_kind_of_each_layer() {
        let kinds = listed(&["full_attention", "sliding_attention"], 2, Some(8)).unwrap();
        assert_eq!(kinds, [LayerKind::Full, WINDOW]);
        assert_eq!(listed(&["full_attention"], 1, None).unwrap(), [LayerKind::Full]);

        let error = listed(&["full_attention"], 2, None).unwrap_err();
        assert_eq!(error.to_string(), "layer_types has 1 entries, and num_hidden_layers is 2");
        let error = listed(&["full_attention", "chunked_attention"], 2, Some(8)).unwrap_err();
        assert!(error.to_string().starts_with("layer_types[1] is \"chunked_attention\""), "{error}");
    }

    #[test]
    fn a_window_is_needed_where_a_layer_has_one() {
        let error = listed(&["sliding_attention"], 1, None).unwrap_err();
        let expected = "sliding_window is missing, and layers of kind sliding_attention need it";
        assert_eq!(error.to_string(), expected);
        let error = listed(&["sliding_attention"], 1, Some(0)).unwrap_err();
        assert!(matches!(error, ConfigError::Size { key: "sliding_window", found: 0, .. }));
    }

    #[test]
    fn each_kind_rotates_in_its_own_way() {
        let keys = keys(
            r#"{"rope_theta": 1e6, "rope_local_base_freq": 100, "rope_scaling": {"type": "linear", "factor": 8}}"#,
        );
        let layers = layers(vec![WINDOW, LayerKind::Full], &keys, Bases::default(), 4).unwrap();
        assert_eq!([layers[0].kind, layers[1].kind], [WINDOW, LayerKind::Full]);
        let frequencies: Vec<Vec<f32>> = layers.iter().map(frequencies).collect();
        assert_eq!([frequencies[0][0], frequencies[1][0]], [1.0, 1.0 / 8.0]);
        assert_abs_diff_eq!(frequencies[0][1], 0.1, epsilon = 1e-6);
        assert_abs_diff_eq!(frequencies[1][1], 1e-3 / 8.0, epsilon = 1e-8);
    }

    #[test]
    fn a_kind_that_no_layer_is_of_needs_no_rotation() {
        let keys = keys(r#"{"rope_parameters": {"sliding_attention": {"rope_theta": 100}}}"#);
        assert_eq!(layers(vec![WINDOW; 2], &keys, Bases::default(), 4).unwrap().len(), 2);
        let error = layers(vec![WINDOW, LayerKind::Full], &keys, Bases::default(), 4).unwrap_err();
        assert_eq!(error.to_string(), "rope_parameters has no full_attention");
    }

    #[test]
    fn rotations_that_depend_on_the_length_are_refused() {
        for (text, key) in [
            (r#"{"rope_theta": 100, "partial_rotary_factor": 0.5}"#, "partial_rotary_factor is 0.5"),
            (
                r#"{"rope_theta": 100, "rope_scaling": {"type": "dynamic", "factor": 2}}"#,
                "rope_type is \"dynamic\"",
            ),
        ] {
            let error = layers(vec![LayerKind::Full], &keys(text), Bases::default(), 4).unwrap_err();
            assert!(matches!(error, ConfigError::Unsupported { .. }));
            assert!(error.to_string().starts_with(key), "{error}");
        }
    }
}
