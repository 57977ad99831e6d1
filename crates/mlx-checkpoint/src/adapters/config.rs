//! mlx-lm's config of adapters.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files::warn_ignored;

/// The kind of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// LoRA: the product of two matrices of low rank is added to a weight.
    Lora,
    /// DoRA: like LoRA, and each row of the changed weight gets a length that is trained on its own.
    Dora,
}

/// Which layers have adapters, and of which kind, as mlx-lm configures it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// LoRA or DoRA.
    pub kind: AdapterKind,
    /// Number of columns of `lora_a` and of rows of `lora_b`.
    pub rank: i32,
    /// The factor of the product of the two matrices. The `alpha` of other programs is this factor times the rank.
    pub scale: f32,
    /// The share of inputs that mlx-lm drops in training. Nothing here uses it.
    pub dropout: f32,
    /// The number of blocks with adapters, counted from the last block; 0 or less means all blocks.
    pub num_layers: i32,
    /// The layers with adapters: names in each of these blocks, such as `self_attn.q_proj`, or full keys, such as
    /// `model.embed_tokens`. `None` means every linear layer and embedding of these blocks.
    pub keys: Option<Vec<String>>,
}

/// The part of mlx-lm's `adapter_config.json` that describes the adapters. The rest says how they were trained.
#[derive(Deserialize)]
pub(super) struct RawConfig {
    /// mlx-lm's default is LoRA.
    #[serde(default = "lora")]
    pub(super) fine_tune_type: String,
    #[serde(default)]
    num_layers: Option<i32>,
    #[serde(default)]
    lora_parameters: Option<RawLora>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLora {
    rank: i32,
    #[serde(default)]
    scale: Option<f32>,
    /// Written by older versions of mlx-lm; newer versions write only `scale`.
    #[serde(default)]
    alpha: Option<Value>,
    #[serde(default)]
    dropout: f32,
    #[serde(default)]
    keys: Option<Vec<String>>,
}

fn lora() -> String {
    "lora".to_owned()
}

impl AdapterConfig {
    pub(super) fn from_raw(raw: RawConfig, kind: AdapterKind, file: &Path) -> Result<Self, String> {
        let num_layers = raw.num_layers.ok_or("num_layers is missing")?;
        let RawLora { rank, scale, alpha, dropout, keys } =
            raw.lora_parameters.ok_or("lora_parameters is missing")?;
        let scale = match (scale, &alpha) {
            (Some(scale), None) => scale,
            (Some(scale), Some(_)) => {
                warn_ignored(file, "lora_parameters.alpha");
                scale
            }
            (None, None) => return Err("lora_parameters.scale is missing".to_owned()),
            (None, Some(_)) => {
                return Err("lora_parameters.scale is missing; it is alpha / rank".to_owned());
            }
        };
        let config = Self { kind, rank, scale, dropout, num_layers, keys };
        config.check()?;
        Ok(config)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.rank <= 0 {
            return Err(format!("lora_parameters.rank is {}, and must be positive", self.rank));
        }
        if !self.scale.is_finite() {
            return Err(format!("lora_parameters.scale is {}, and must be finite", self.scale));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("lora_parameters.dropout is {}, and must be in 0..1", self.dropout));
        }
        match &self.keys {
            Some(keys) if keys.is_empty() => Err("lora_parameters.keys names no layer".to_owned()),
            _ => Ok(()),
        }
    }

    /// The config as `adapter_config.json` has it.
    pub(super) fn to_json(&self) -> Value {
        let Self { kind, rank, scale, dropout, num_layers, ref keys } = *self;
        // The shortest decimal form: 0.1 as a float32 would otherwise be written as 0.10000000149011612.
        let number = |x: f32| x.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(x));
        let mut lora = json!({ "rank": rank, "scale": number(scale), "dropout": number(dropout) });
        if let Some(keys) = keys {
            lora["keys"] = json!(keys);
        }
        json!({ "fine_tune_type": kind, "num_layers": num_layers, "lora_parameters": lora })
    }
}
