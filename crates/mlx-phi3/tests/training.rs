//! The model trains: gradients reach every parameter, and steps along them lower the loss.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use approx::abs_diff_eq;
use common::{long_rope, model, plain, tokens, with};
use mlx_causal_lm::{CausalLm, Logits};
use mlx_kvcache::CacheOptions;
use mlx_phi3::Phi3;
use mlx_rs::Array;
use mlx_rs::error::{Exception, Result};
use mlx_rs::module::ModuleParametersExt;
use mlx_rs::nn::value_and_grad;
use mlx_rs::ops::indexing::{TryIndexOp, take_along_axis};
use mlx_rs::optimizers::{AdamW, Optimizer};
use mlx_testing::checkpoints::tensors;
use serde_json::json;

/// The mean loss of predicting the next token, in nats.
fn loss(model: &mut Phi3, tokens: &Array) -> Result<Array> {
    let cache = model.new_cache(&CacheOptions::default());
    let mut cache = cache.map_err(|e| Exception::custom(e.to_string()))?;
    let logits = model.forward(&tokens.try_index((.., ..-1))?, &mut cache, Logits::All)?;
    let next = tokens.try_index((.., 1..))?.expand_dims(-1)?;
    let chosen = take_along_axis(&logits, &next, -1)?.squeeze_axes(&[-1])?;
    logits.logsumexp_axis(-1, false)?.subtract(chosen)?.mean(None)
}

#[test]
fn every_parameter_has_a_finite_gradient_and_steps_lower_the_loss() {
    let tied = [("tie_word_embeddings", json!(true)), ("sliding_window", json!(4))];
    for config in [plain(), long_rope(), with(long_rope(), &tied)] {
        let mut model = model(&config);
        let tokens = tokens(2, 13);
        let mut step = value_and_grad(loss);
        let (before, gradients) = step(&mut model, &tokens).unwrap();

        let names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
        assert_eq!(gradients.len(), names.len());
        for name in names {
            let gradient = &gradients[name.as_str()];
            let size = gradient.abs().unwrap().sum(None).unwrap().item_exact::<f32>();
            assert!(size.is_finite() && size > 0.0, "{name}: {size}");
        }

        let mut optimizer = AdamW::new(0.01);
        let mut losses = vec![before.item_exact::<f32>()];
        for _ in 0..6 {
            let (_, gradients) = step(&mut model, &tokens).unwrap();
            optimizer.update(&mut model, &gradients).unwrap();
            model.eval().unwrap();
            losses.push(loss(&mut model, &tokens).unwrap().item_exact::<f32>());
        }
        assert!(losses[6] < 0.7 * losses[0], "{losses:?}");
    }
}

/// The slope of the loss along one parameter of each kind, measured by steps to both sides.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let mut phi3 = model(&long_rope());
    let tokens = tokens(2, 13);
    let (_, gradients) = value_and_grad(loss)(&mut phi3, &tokens).unwrap();
    for name in ["model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"] {
        let gradient = &gradients[name];
        // The slope along the gradient is the length of the gradient.
        let length = gradient.square().unwrap().sum(None).unwrap().sqrt().unwrap().item_exact::<f32>();
        let at = |distance: f32| {
            let mut moved = model(&long_rope());
            let mut parameters = mlx_rs::module::ModuleParameters::parameters_mut(&mut moved).flatten();
            let weight = parameters.get_mut(name).unwrap();
            let along = gradient.multiply(Array::from_f32(distance / length)).unwrap();
            let new = weight.add(along).unwrap();
            **weight = new;
            drop(parameters);
            loss(&mut moved, &tokens).unwrap().item_exact::<f32>()
        };
        let slope = (at(0.01) - at(-0.01)) / 0.02;
        assert!(abs_diff_eq!(slope / length, 1.0, epsilon = 0.02), "{name}: {slope} {length}");
    }
}
