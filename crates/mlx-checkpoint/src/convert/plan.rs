//! Which layers are quantized, and how.

use std::collections::BTreeMap;

use mlx_layers::Quantization;
use mlx_quantization::Mode;
use serde_json::{Map, Value, json};

use super::error::ConvertError;
use super::layer::Layer;
use super::options::{LayerChoice, QuantizeOptions, Recipe};
use crate::head::HEAD;

/// Which layers are quantized, and how.
pub(super) fn plan(
    layers: &BTreeMap<String, Layer>,
    how: &QuantizeOptions,
    eight_bits: &[&str],
) -> Result<BTreeMap<String, Quantization>, ConvertError> {
    let quantized = layers.iter().find_map(|(key, layer)| Some((key.clone(), layer.quantization?)));
    if let Some((layer, quantization)) = quantized {
        return Err(ConvertError::Quantized { layer, quantization });
    }
    let matrices: BTreeMap<&str, i32> =
        layers.iter().filter_map(|(key, layer)| Some((&**key, layer.columns()?))).collect();
    for LayerChoice { pattern, .. } in &how.layers {
        if !matrices.keys().any(|key| matches(pattern, key)) {
            let of_first_block =
                |key: &&&str| !key.split('.').any(|part| part.parse().is_ok_and(|n: u32| n > 0));
            let layers = matrices.keys().filter(of_first_block).map(|key| (*key).to_owned()).collect();
            return Err(ConvertError::NoSuchLayer { pattern: pattern.clone(), layers });
        }
    }
    let recipe = how.recipe.map(|recipe| RecipeFor::new(recipe, &matrices, how.quantization)).transpose()?;
    let common = how.quantization;
    let mut plan = BTreeMap::new();
    for (&key, &columns) in &matrices {
        let fits = |quantization: Quantization| columns % quantization.group_size() == 0;
        let chosen = how.layers.iter().rfind(|choice| matches(&choice.pattern, key));
        let quantization = match chosen {
            Some(LayerChoice { quantization: Some(quantization), .. }) if !fits(*quantization) => {
                let (layer, quantization) = (key.to_owned(), *quantization);
                return Err(ConvertError::FitsNot { layer, quantization, columns });
            }
            Some(choice) => choice.quantization,
            None if !fits(common) => None,
            None if keeps_eight_bits(key, how, eight_bits) && fits(EIGHT_BITS) => Some(EIGHT_BITS),
            None => Some(recipe.as_ref().map_or(common, |recipe| recipe.of(key))),
        };
        plan.extend(quantization.map(|quantization| (key.to_owned(), quantization)));
    }
    if plan.is_empty() {
        let mut lengths: Vec<i32> = matrices.into_values().collect();
        lengths.sort_unstable();
        lengths.dedup();
        return Err(ConvertError::FitsNoLayer { quantization: common, lengths });
    }
    Ok(plan)
}

/// How layers are quantized that keep 8 bits.
const EIGHT_BITS: Quantization = Quantization::AFFINE_8_64;

/// Whether a layer keeps 8 bits in models of this architecture, and the caller says nothing of it.
fn keeps_eight_bits(key: &str, how: &QuantizeOptions, eight_bits: &[&str]) -> bool {
    let is_chosen = how.layers.iter().any(|choice| matches(&choice.pattern, key));
    how.recipe.is_none() && !is_chosen && eight_bits.iter().any(|pattern| matches(pattern, key))
}

/// A [`Recipe`] for the layers of one model.
struct RecipeFor {
    low: Quantization,
    high: Quantization,
    /// The position of the part of a key that is the number of the block.
    number_at: usize,
    blocks: usize,
}

impl RecipeFor {
    fn new(recipe: Recipe, layers: &BTreeMap<&str, i32>, common: Quantization) -> Result<Self, ConvertError> {
        let refused = || ConvertError::RecipeOfMode { recipe, quantization: common };
        if common.mode() != Mode::Affine {
            return Err(refused());
        }
        let affine = |bits| Quantization::affine(bits, common.group_size()).map_err(|_| refused());
        let [low, high] = recipe.bits();
        let number_of = |part: &str| part.parse::<usize>().ok();
        let mut down = layers.keys().filter(|key| key.contains("down_proj"));
        let number_at = down.next().and_then(|key| key.split('.').position(|part| number_of(part).is_some()));
        let number_at = number_at.ok_or(ConvertError::RecipeOfNames { recipe })?;
        let numbers = layers.keys().filter_map(|key| number_of(key.split('.').nth(number_at)?));
        let blocks = numbers.max().map_or(0, |last| last + 1);
        Ok(Self { low: affine(low)?, high: affine(high)?, number_at, blocks })
    }

    /// How mlx-lm's recipe quantizes a layer.
    fn of(&self, key: &str) -> Quantization {
        let block: usize =
            key.split('.').nth(self.number_at).and_then(|part| part.parse().ok()).unwrap_or_default();
        let eighth = self.blocks / 8;
        let more = block < eighth || block >= 7 * self.blocks / 8 || (block - eighth) % 3 == 2;
        let suffers = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|name| key.contains(name));
        if (suffers && more) || key.contains(HEAD) { self.high } else { self.low }
    }
}

/// The quantization section of the config: the values of all layers, and the layers with other values.
pub(super) fn section(
    how: &QuantizeOptions,
    eight_bits: &[&str],
    plan: &BTreeMap<String, Quantization>,
) -> Value {
    let entry = |quantization: Quantization| {
        json!({
            "group_size": quantization.group_size(), "bits": quantization.bits(), "mode": quantization.mode().name()
        })
    };
    let mut section = entry(how.quantization);
    let of_layer = |(key, own): (&String, &Quantization)| {
        let keeps_eight_bits = *own == EIGHT_BITS && keeps_eight_bits(key, how, eight_bits);
        // With a recipe, mlx-lm lists every layer.
        if !keeps_eight_bits && how.recipe.is_none() && *own == how.quantization {
            return None;
        }
        let mut entry = entry(*own);
        if keeps_eight_bits && let Some(entry) = entry.as_object_mut() {
            entry.remove("mode"); // as in mlx-lm
        }
        Some((key.clone(), entry))
    };
    let named: Map<String, Value> = plan.iter().filter_map(of_layer).collect();
    if let Some(section) = section.as_object_mut() {
        section.extend(named);
    }
    section
}

/// Whether a pattern matches a key, or the part of it after a dot.
fn matches(pattern: &str, key: &str) -> bool {
    let ends = key.match_indices('.').map(|(dot, _)| &key[dot + 1..]);
    std::iter::once(key).chain(ends).any(|end| matches_whole(pattern, end))
}

/// Whether a pattern matches all of a text.
fn matches_whole(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    let starts = rest.char_indices().map(|(place, _)| place).chain([rest.len()]);
    starts.into_iter().any(|start| matches_whole(after, &rest[start..]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use mlx_rs::Array;

    use super::*;

    fn layers(shapes: &[(&str, &[i32])]) -> BTreeMap<String, Layer> {
        let layer = |shape: &[i32]| Layer {
            parts: BTreeMap::from([("weight".to_owned(), Array::ones::<f32>(shape).unwrap())]),
            quantization: None,
        };
        shapes.iter().map(|(key, shape)| ((*key).to_owned(), layer(shape))).collect()
    }

    fn options(quantization: Quantization, layers: &[(&str, Option<Quantization>)]) -> QuantizeOptions {
        let layers = layers
            .iter()
            .map(|&(pattern, quantization)| LayerChoice { pattern: pattern.to_owned(), quantization });
        QuantizeOptions { quantization, recipe: None, layers: layers.collect() }
    }

    fn affine(bits: i32, group_size: i32) -> Quantization {
        Quantization::affine(bits, group_size).unwrap()
    }

    const SHAPES: [(&str, &[i32]); 5] = [
        ("lm_head", &[8, 64]),
        ("model.embed_tokens", &[8, 64]),
        ("model.layers.0.mlp.down_proj", &[64, 96]),
        ("model.layers.1.mlp.down_proj", &[64, 96]),
        ("model.norm", &[64]),
    ];

    #[test]
    fn a_pattern_is_a_key_or_the_end_of_one() {
        for (pattern, key, expected) in [
            ("lm_head", "lm_head", true),
            ("lm_head", "language_model.lm_head", true),
            ("head", "lm_head", false),
            ("down_proj", "model.layers.0.mlp.down_proj", true),
            ("*_proj", "model.layers.0.mlp.down_proj", true),
            ("layers.0.*", "model.layers.0.mlp.down_proj", true),
            ("layers.0", "model.layers.0.mlp.down_proj", false),
            ("layers.1.*", "model.layers.11.mlp.down_proj", false),
            ("model.*.mlp.*", "model.layers.11.mlp.down_proj", true),
            ("*", "lm_head", true),
            ("", "lm_head", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn layers_are_quantized_that_groups_divide_and_the_last_choice_counts() {
        let layers = layers(&SHAPES);
        let plan = |options| plan(&layers, &options, &[]);
        let keys = |plan: BTreeMap<String, Quantization>| plan.into_iter().collect::<Vec<_>>();
        let both = |q| vec![("lm_head".to_owned(), q), ("model.embed_tokens".to_owned(), q)];
        assert_eq!(keys(plan(options(affine(4, 64), &[])).unwrap()), both(affine(4, 64)));
        assert_eq!(plan(options(affine(4, 32), &[])).unwrap().len(), 4);
        let chosen = [
            ("down_proj", Some(affine(8, 32))),
            ("layers.1.*", Some(Quantization::NVFP4)),
            ("lm_head", None),
        ];
        let expected = [
            ("model.embed_tokens", affine(4, 64)),
            ("model.layers.0.mlp.down_proj", affine(8, 32)),
            ("model.layers.1.mlp.down_proj", Quantization::NVFP4),
        ];
        let options = options(affine(4, 64), &chosen);
        let found = plan(options.clone()).unwrap();
        assert_eq!(keys(found.clone()), expected.map(|(key, q)| (key.to_owned(), q)));
        let expected = json!({
            "group_size": 64, "bits": 4, "mode": "affine",
            "model.layers.0.mlp.down_proj": { "group_size": 32, "bits": 8, "mode": "affine" },
            "model.layers.1.mlp.down_proj": { "group_size": 16, "bits": 4, "mode": "nvfp4" },
        });
        assert_eq!(section(&options, &[], &found), expected);
    }

    #[test]
    fn some_layers_keep_eight_bits_unless_the_caller_says_otherwise() {
        const KEEP: &[&str] = &["mlp.down_proj", "lm_head"];
        let layers = layers(&[
            ("lm_head", &[8, 64]),
            ("model.embed_tokens", &[8, 64]),
            ("model.layers.0.mlp.down_proj", &[64, 96]),
            ("model.layers.1.mlp.down_proj", &[64, 128]),
        ]);
        let found = |options: &QuantizeOptions| plan(&layers, options, KEEP).unwrap();
        let how = options(Quantization::MXFP4, &[]);
        let kept = found(&how);
        assert_eq!(kept["lm_head"], affine(8, 64));
        assert_eq!(kept["model.embed_tokens"], Quantization::MXFP4);
        // Groups of 64 do not divide 96.
        assert_eq!(kept["model.layers.0.mlp.down_proj"], Quantization::MXFP4);
        assert_eq!(kept["model.layers.1.mlp.down_proj"], affine(8, 64));
        let kept_entry = json!({ "group_size": 64, "bits": 8 });
        let expected = json!({
            "group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": kept_entry,
            "model.layers.1.mlp.down_proj": kept_entry,
        });
        assert_eq!(section(&how, KEEP, &kept), expected);

        let chosen =
            found(&options(affine(4, 32), &[("lm_head", Some(affine(6, 32))), ("layers.1.*", None)]));
        assert_eq!(chosen["lm_head"], affine(6, 32));
        assert!(!chosen.contains_key("model.layers.1.mlp.down_proj"));
        let recipe = QuantizeOptions { recipe: Some(Recipe::Mixed3And6), ..options(affine(4, 32), &[]) };
        assert_eq!(found(&recipe)["lm_head"], affine(6, 32));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let mut layers = layers(&SHAPES);
        let refused = |layers: &_, options: QuantizeOptions| plan(layers, &options, &[]).unwrap_err();
        let error = refused(&layers, options(affine(4, 128), &[]));
        assert_eq!(error, ConvertError::FitsNoLayer { quantization: affine(4, 128), lengths: vec![64, 96] });
        assert!(error.to_string().ends_with("the rows have 64 or 96 columns"), "{error}");
        let error = refused(&layers, options(affine(4, 32), &[("q_proj", None)]));
        assert!(matches!(&error, ConvertError::NoSuchLayer { layers, .. } if layers.len() == 3), "{error}");
        assert!(
            error.to_string().starts_with("the pattern \"q_proj\" matches no layer; layers are lm_head, "),
            "{error}"
        );
        let error = refused(&layers, options(affine(4, 32), &[(&"a".repeat(100_000), None)]));
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        let error = refused(&layers, options(affine(4, 32), &[("down_proj", Some(affine(8, 64)))]));
        assert_eq!(
            error.to_string(),
            "model.layers.0.mlp.down_proj cannot be quantized as affine of 8 bits in groups of 64: its rows have 96 columns"
        );
        let recipe =
            |quantization| QuantizeOptions { recipe: Some(Recipe::Mixed2And6), ..options(quantization, &[]) };
        let error = refused(&layers, recipe(Quantization::MXFP4));
        let expected =
            "mixed_2_6 is a recipe for affine quantization, and mxfp4 of 4 bits in groups of 32 is asked for";
        assert_eq!(error.to_string(), expected);
        layers.retain(|key, _| !key.contains("down_proj"));
        let error = refused(&layers, recipe(affine(4, 32)));
        let expected = "mixed_2_6 is a recipe for models with layers named down_proj, and this one has none";
        assert_eq!(error.to_string(), expected);
        layers.get_mut("lm_head").unwrap().quantize(affine(8, 32)).unwrap();
        let error = refused(&layers, options(affine(4, 32), &[]));
        assert_eq!(
            error.to_string(),
            "lm_head is quantized already (affine of 8 bits in groups of 32); dequantize the checkpoint first"
        );
    }
}
