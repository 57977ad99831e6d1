//! Released models: what their configs state, and the facts that an architecture reads from them.
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use mlx_causal_lm::{Architecture, LoadError};
use mlx_checkpoint::Checkpoint;
use mlx_config::Layer;
use mlx_decoder::DecoderConfig;
use mlx_kvcache::LayerKind;
use serde_json::{Value, json};

use crate::checkpoints::{whole_message, without_tensors};

/// One released model, or several with the same facts. `..` fills a row from the row of another model.
#[derive(Debug, Clone, Copy)]
pub struct Released {
    /// As their repositories on the Hub are named, without the owner.
    pub names: &'static [&'static str],
    /// The config's `model_type`.
    pub model_type: &'static str,
    /// `hidden_size`, `intermediate_size`, `num_hidden_layers`, `vocab_size`.
    pub sizes: [i32; 4],
    /// `num_attention_heads`, `num_key_value_heads`.
    pub heads: [i32; 2],
    /// `max_position_embeddings`, and the context length that is expected.
    pub context: i32,
    /// `rope_theta`.
    pub base: f64,
    /// The other keys of the config. A `null` takes the place of a key above.
    pub rest: fn() -> Value,
    /// The features of a head that are expected.
    pub head_dim: i32,
    /// The frequency that is expected of the slowest pair of features in each layer, for short sequences; 0 for a layer
    /// without a rotation.
    pub slowest: fn(&Self, usize) -> f64,
    /// The window that is expected in each layer.
    pub window: fn(usize) -> Option<i32>,
    /// Whether a head with a weight of its own is expected.
    pub has_own_head: bool,
}

/// What an architecture read from a config.
#[derive(Debug)]
pub struct Facts {
    /// Query heads and key-value heads.
    pub heads: [i32; 2],
    /// Features of a head.
    pub head_dim: i32,
    /// The context length, in tokens.
    pub context_length: i32,
    /// The layers, first layer first.
    pub layers: Vec<Layer>,
    /// Whether the head has a weight of its own.
    pub has_own_head: bool,
}

impl From<DecoderConfig> for Facts {
    fn from(config: DecoderConfig) -> Self {
        Self {
            heads: [config.num_attention_heads, config.num_key_value_heads],
            head_dim: config.head_dim,
            context_length: config.context_length,
            layers: config.layers,
            has_own_head: config.has_own_head,
        }
    }
}

impl Released {
    /// The slowest pair of a plain rotation over all features of a head, the same in all layers.
    pub fn plain(&self, _layer: usize) -> f64 {
        slowest(self.base, self.head_dim)
    }

    /// No layer has a window.
    pub fn no_window(_layer: usize) -> Option<i32> {
        None
    }

    /// The config as the checkpoint has it.
    pub fn config(&self) -> Value {
        let ([hidden, inside, layers, vocabulary], [heads, key_heads]) = (self.sizes, self.heads);
        let mut config = json!({
            "model_type": self.model_type, "hidden_size": hidden, "intermediate_size": inside,
            "num_hidden_layers": layers, "vocab_size": vocabulary, "num_attention_heads": heads,
            "num_key_value_heads": key_heads, "max_position_embeddings": self.context, "rope_theta": self.base,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_scaling": null,
        });
        for (key, value) in (self.rest)().as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    fn assert_facts(&self, facts: &Facts) {
        let name = self.names[0];
        assert_eq!(facts.head_dim, self.head_dim, "{name}");
        assert_eq!(facts.heads, self.heads, "{name}");
        assert_eq!(facts.context_length, self.context, "{name}");
        assert_eq!(facts.has_own_head, self.has_own_head, "{name}");
        assert_eq!(facts.layers.len(), self.sizes[2] as usize, "{name}");
        for (index, layer) in facts.layers.iter().enumerate() {
            let kind = (self.window)(index).map_or(LayerKind::Full, |window| LayerKind::Sliding { window });
            assert_eq!(layer.kind, kind, "{name}, layer {index}");
            let frequencies = layer.rope.iter().flat_map(|rope| rope.frequencies(1).unwrap());
            let found = frequencies.last().unwrap_or_default();
            let expected = (self.slowest)(self, index) as f32;
            assert!(
                approx::relative_eq!(found, expected, epsilon = 0.0, max_relative = 1e-4),
                "{name}, layer {index}: {found}, and not {expected}"
            );
        }
    }
}

/// The frequency of the slowest pair of a plain rotation of this base over `features`.
pub fn slowest(base: f64, features: i32) -> f64 {
    base.powf(-f64::from(features - 2) / f64::from(features))
}

/// Checks the facts of each row of a table, and that the architecture names the models of this table and no others.
///
/// # Panics
///
/// Where a fact is wrong, or a name is missing or not checked.
pub fn facts_are_read(
    architecture: &Architecture,
    table: &[Released],
    read: impl Fn(&Checkpoint) -> Result<Facts, LoadError>,
) {
    for released in table {
        match read(&without_tensors(&released.config())) {
            Ok(facts) => released.assert_facts(&facts),
            Err(error) => panic!("{}: {}", released.names[0], whole_message(&error)),
        }
    }
    let checked: Vec<&str> = table.iter().flat_map(|released| released.names).copied().collect();
    assert_eq!(architecture.released, checked, "`released` of the architecture has the names of the table");
}
