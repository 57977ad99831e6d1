//! How the config says that layers are quantized.

use std::collections::BTreeMap;

use mlx_quantization::{Mode, Quantization};
use serde_json::{Map, Value, json};

use crate::error::CheckpointError;
use crate::text::shortened;

/// How messages name the values that hold for all layers without their own.
const EVERY_LAYER: &str = "every layer";

/// Which layers are quantized, and how: the `quantization` object that mlx-lm writes.
///
/// Its `group_size`, `bits` and `mode` hold for every layer that has scales. Any other key is a layer: its value is an
/// object of the same form, `true` for the values of all layers, or `false` for full precision.
#[derive(Debug, Clone, Default)]
pub(crate) struct QuantizationPlan {
    default: Option<Quantization>,
    layers: BTreeMap<String, Option<Quantization>>,
}

impl QuantizationPlan {
    pub(crate) fn from_config(config: &Value) -> Result<Self, CheckpointError> {
        // mlx-lm writes the same object under both keys.
        let given = |key| config.get(key).filter(|value| !value.is_null());
        match (given("quantization"), given("quantization_config")) {
            (None, None) => Ok(Self::default()),
            (Some(one), None) | (None, Some(one)) => Self::from_section(one),
            (Some(first), Some(second)) if first == second => Self::from_section(first),
            (Some(first), Some(second)) => {
                let (plan, other) = (Self::from_section(first)?, Self::from_section(second)?);
                let Some(layer) = plan.difference(&other) else { return Ok(plan) };
                let [first, second] = [&plan, &other].map(|plan| describe(plan.given(layer)));
                let problem = format!(
                    "quantization says {first}, and quantization_config says {second}; take out the one that is wrong"
                );
                Err(refused(layer, problem))
            }
        }
    }

    fn from_section(section: &Value) -> Result<Self, CheckpointError> {
        let Value::Object(section) = section else {
            return Err(refused(EVERY_LAYER, format!("{section} is not an object")));
        };
        if let Some(method) = section.get("quant_method") {
            return Err(refused(
                EVERY_LAYER,
                format!(
                    "quant_method {method} is not one of MLX's; take a checkpoint in bfloat16, or one that mlx-lm converted"
                ),
            ));
        }
        let default = parse(EVERY_LAYER, section)?;
        let mut layers = BTreeMap::new();
        for (layer, value) in section {
            let own = match value {
                Value::Object(own) => Some(parse(layer, own)?),
                Value::Bool(quantized) => quantized.then_some(default),
                _ if ["group_size", "bits", "mode"].contains(&layer.as_str()) => continue,
                other => {
                    return Err(refused(layer, format!("{other} is neither an object nor a boolean")));
                }
            };
            layers.insert(layer.clone(), own);
        }
        Ok(Self { default: Some(default), layers })
    }

    /// The plan of layers that are quantized in these ways.
    pub(crate) fn of_layers(layers: &BTreeMap<String, Quantization>) -> Self {
        let own = layers.iter().map(|(layer, way)| (layer.clone(), Some(*way)));
        Self { default: most_common(layers), layers: own.collect() }
    }

    /// The quantization of a layer, by its key and by whether the checkpoint has scales for it.
    pub(crate) fn of(&self, layer: &str, has_scales: bool) -> Option<Quantization> {
        match self.layers.get(layer) {
            Some(own) => *own,
            None => self.default.filter(|_| has_scales),
        }
    }

    /// The layers for which the config has an entry of their own.
    pub(crate) fn named_layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The first layer for which two plans differ, or every layer.
    fn difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        if self.default != other.default {
            return Some(EVERY_LAYER);
        }
        let mut layers = self.named_layers().chain(other.named_layers());
        layers.find(|layer| self.given(layer) != other.given(layer))
    }

    /// The config's entry for a layer, or for every layer.
    fn given(&self, layer: &str) -> Option<Quantization> {
        self.layers.get(layer).copied().unwrap_or(self.default)
    }

    /// The quantization of every layer without an entry of its own.
    pub(crate) fn common(&self) -> Option<Quantization> {
        self.default
    }
}

/// The config's section for layers that are quantized in these ways: an entry for each of them. The values of all layers,
/// which mlx-lm requires, are those of the most layers. `None` where there are none, or some are in blocks, which are no mode of MLX.
pub(crate) fn section(layers: &BTreeMap<String, Quantization>) -> Option<Value> {
    if layers.values().any(|way| matches!(way.mode(), Mode::Blocks(_))) {
        return None;
    }
    let common = most_common(layers)?;
    let entry = |way: Quantization| json!({ "group_size": way.group_size(), "bits": way.bits(), "mode": way.mode().name() });
    let mut section = entry(common);
    let own = layers.iter().map(|(layer, way)| (layer.clone(), entry(*way)));
    section.as_object_mut()?.extend(own);
    Some(section)
}

fn most_common(layers: &BTreeMap<String, Quantization>) -> Option<Quantization> {
    let mut counts: Vec<(Quantization, usize)> = Vec::new();
    for &way in layers.values() {
        match counts.iter_mut().find(|(known, _)| *known == way) {
            Some((_, count)) => *count += 1,
            None => counts.push((way, 1)),
        }
    }
    counts.into_iter().max_by_key(|&(_, count)| count).map(|(way, _)| way)
}

fn parse(layer: &str, section: &Map<String, Value>) -> Result<Quantization, CheckpointError> {
    let number = |key: &str| {
        let value = section.get(key).ok_or_else(|| refused(layer, format!("{key} is missing")))?;
        let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
        number.ok_or_else(|| refused(layer, format!("{key} is {value}, and a whole number is needed")))
    };
    let mode = match section.get("mode") {
        None | Some(Value::Null) => "affine",
        Some(Value::String(mode)) => mode,
        Some(other) => return Err(refused(layer, format!("mode is {other}, and a name is needed"))),
    };
    Quantization::named(mode, number("bits")?, number("group_size")?)
        .map_err(|e| refused(layer, e.to_string()))
}

fn describe(quantization: Option<Quantization>) -> String {
    match quantization {
        None => "full precision".to_owned(),
        Some(found) => {
            format!("{} of {} bits in groups of {}", found.mode().name(), found.bits(), found.group_size())
        }
    }
}

fn refused(layer: &str, problem: String) -> CheckpointError {
    let problem = shortened(&problem).into_owned();
    CheckpointError::Quantization { layer: layer.to_owned(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(section: Value) -> Result<QuantizationPlan, CheckpointError> {
        QuantizationPlan::from_config(&json!({ "quantization": section }))
    }

    fn affine(bits: i32, group_size: i32) -> Option<Quantization> {
        Some(Quantization::affine(bits, group_size).unwrap())
    }

    #[test]
    fn a_layer_is_quantized_where_it_has_scales() {
        let plan = plan(json!({ "group_size": 64, "bits": 4, "mode": "affine" })).unwrap();
        assert_eq!(plan.of("model.up_proj", true), affine(4, 64));
        assert_eq!(plan.of("model.up_proj", false), None);
    }

    #[test]
    fn a_layer_may_have_its_own_or_none() {
        let section = json!({
            "group_size": 64, "bits": 4,
            "a": { "group_size": 32, "bits": 8 }, "b": false, "c": true,
        });
        let plan = plan(section).unwrap();
        assert_eq!(plan.of("a", false), affine(8, 32));
        assert_eq!(plan.of("b", true), None);
        assert_eq!(plan.of("c", false), affine(4, 64));
    }

    #[test]
    fn modes_have_their_names() {
        let section = json!({
            "group_size": 32, "bits": 4, "mode": "mxfp4",
            "a": { "group_size": 16, "bits": 4, "mode": "nvfp4" }, "b": { "group_size": 64, "bits": 3 },
        });
        let plan = plan(section).unwrap();
        assert_eq!(plan.common(), Some(Quantization::MXFP4));
        assert_eq!(plan.of("a", true), Some(Quantization::NVFP4));
        assert_eq!(plan.of("b", true), affine(3, 64));
    }

    #[test]
    fn both_keys_are_read_and_none_is_full_precision() {
        let config = json!({ "quantization_config": { "group_size": 64, "bits": 4 } });
        assert_eq!(QuantizationPlan::from_config(&config).unwrap().common(), affine(4, 64));
        assert_eq!(QuantizationPlan::from_config(&json!({})).unwrap().common(), None);
        assert_eq!(plan(Value::Null).unwrap().common(), None);
    }

    #[test]
    fn both_keys_say_the_same_or_are_refused() {
        let both = |first: Value, second: Value| {
            QuantizationPlan::from_config(&json!({ "quantization": first, "quantization_config": second }))
        };
        let first = json!({ "group_size": 64, "bits": 4, "a": { "group_size": 32, "bits": 8 }, "b": true });
        let same =
            json!({ "group_size": 64, "bits": 4, "mode": "affine", "a": { "group_size": 32, "bits": 8 } });
        assert_eq!(both(first.clone(), same).unwrap().common(), affine(4, 64));
        for (second, needle) in [
            (
                json!({ "group_size": 64, "bits": 8 }),
                "quantization of every layer: quantization says affine of 4 bits in groups of 64, and \
                 quantization_config says affine of 8 bits in groups of 64; take out the one that is wrong",
            ),
            (json!({ "group_size": 64, "bits": 4 }), "quantization of a: quantization says affine of 8 bits"),
            (
                json!({ "group_size": 64, "bits": 4, "a": { "group_size": 32, "bits": 8 }, "b": false }),
                "quantization of b: quantization says affine of 4 bits in groups of 64, and quantization_config \
                 says full precision",
            ),
            (json!({ "quant_method": "gptq", "bits": 4 }), "gptq"),
        ] {
            let error = both(first.clone(), second).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (section, needle) in [
            (json!({ "bits": 4 }), "group_size is missing"),
            (json!({ "group_size": 64, "bits": 7 }), "not 7 bits"),
            (json!({ "group_size": 48, "bits": 4 }), "in groups of 48"),
            (json!({ "group_size": 64, "bits": "4" }), "bits is \"4\""),
            (
                json!({ "group_size": 64, "bits": 4, "mode": "mxfp4" }),
                "mxfp4 quantization has 4 bits in groups of 32",
            ),
            (json!({ "group_size": 32, "bits": 4, "mode": "int4" }), "known are affine, mxfp4, mxfp8, nvfp4"),
            (json!({ "group_size": 32, "bits": 4, "mode": 4 }), "mode is 4"),
            (json!({ "group_size": 64, "bits": 4, "x": 3 }), "quantization of x"),
            (json!({ "group_size": 64, "bits": 4, "x": { "bits": 4 } }), "quantization of x"),
            (json!({ "quant_method": "gptq", "bits": 4 }), "gptq"),
            (json!(4), "not an object"),
        ] {
            let error = plan(section).unwrap_err();
            assert!(matches!(error, CheckpointError::Quantization { .. }));
            assert!(error.to_string().contains(needle), "{error}");
        }
    }
}
