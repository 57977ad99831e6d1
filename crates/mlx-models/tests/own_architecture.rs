//! An architecture from outside the workspace, made of its components: loaded from a folder, decoded, fused, converted.
#![cfg(feature = "generate")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;

use mlx_kvcache::{CacheOptions, LayerKind, LayerSpec, ModelCache};
use mlx_layers::{
    AttentionInput, Embedding, Gate, GatedMlp, Linear, ParameterSource, Parameters, heads, through_blocks,
};
use mlx_models::generate::{GenerateOptions, Session, generate};
use mlx_models::{
    Architecture, Architectures, CausalLm, Checkpoint, ConvertOptions, LoadError, LoadOptions, Logits,
    ModelInfo, Quantization, QuantizeOptions, TensorNames, Weights,
};
use mlx_norms::RmsNorm;
use mlx_rope::{Rope, RopeLayout};
use mlx_rs::error::Exception;
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::Module;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::{Tensors, folder, tensors, whole_message};
use mlx_testing::{RandomParameters, models};
use serde_json::json;

const D: i32 = 64;
const HEADS: i32 = 2;
const VOCAB: i32 = 96;

/// A Llama in small: its config says how many layers it has, and everything else is fixed.
#[derive(Debug, ModuleParameters)]
struct Tiny {
    #[param]
    embed_tokens: Embedding,
    #[param]
    layers: Vec<Block>,
    #[param]
    norm: RmsNorm,
    rope: Rope,
    info: ModelInfo,
}

#[derive(Debug, ModuleParameters)]
struct Block {
    #[param]
    norm: RmsNorm,
    #[param]
    qkv: Linear,
    #[param]
    out: Linear,
    #[param]
    mlp: GatedMlp,
}

#[derive(serde::Deserialize)]
struct Config {
    layers: i32,
}

impl CausalLm for Tiny {
    fn hidden_states(&mut self, tokens: &Array, cache: &mut ModelCache) -> Result<Array, Exception> {
        let x = self.embed_tokens.forward(tokens)?;
        let rope = &self.rope;
        let x = through_blocks(&mut self.layers, x, cache, |block, input| block.forward(input, rope))?;
        self.norm.forward(&x)
    }

    fn head(&mut self, hidden: &Array) -> Result<Array, Exception> {
        self.embed_tokens.as_linear(hidden)
    }

    fn info(&self) -> &ModelInfo {
        &self.info
    }
}

impl Block {
    fn forward(
        &mut self,
        AttentionInput { x, mask, cache }: AttentionInput<'_>,
        rope: &Rope,
    ) -> Result<Array, Exception> {
        let [queries, keys, values] =
            heads::split_fused(&self.qkv.forward(&self.norm.forward(x)?)?, HEADS, HEADS)?;
        let scale = ((D / HEADS) as f32).powf(-0.5);
        let attended = heads::attend([&queries, &keys, &values], rope, scale, None, mask, cache)?;
        let h = x.add(self.out.forward(&attended)?)?;
        h.add(self.mlp.forward(&h)?)
    }
}

impl Tiny {
    fn new(model_type: &str, config: &Config, source: &mut dyn ParameterSource) -> Self {
        let adapter_settings = source.adapter_settings();
        let mut root = Parameters::root(source);
        let spec =
            LayerSpec { kind: LayerKind::Full, heads: HEADS, key_dim: D / HEADS, value_dim: D / HEADS };
        let rope = Rope::new(D / HEADS, 10_000.0, RopeLayout::Halves).unwrap();
        Self {
            embed_tokens: Embedding::new(root.at("embed_tokens"), VOCAB, D),
            layers: (0..config.layers as usize).map(|i| Block::new(root.index("layers", i))).collect(),
            norm: RmsNorm::new(root.take("norm.weight", &[D]), 1e-5),
            info: ModelInfo {
                model_type: model_type.to_owned(),
                vocab_size: VOCAB,
                context_length: 128,
                hidden_size: D,
                intermediate_size: D,
                query_heads: HEADS,
                layers: vec![spec; config.layers as usize],
                rotations: vec![Some(rope.rotation()); config.layers as usize],
                dtype: Dtype::Float32,
                config_digest: config.layers.to_string(),
                adapter_settings,
                unlike_mlx_lm: Default::default(),
            },
            rope,
        }
    }
}

impl Block {
    fn new(mut parameters: Parameters<'_>) -> Self {
        Self {
            norm: RmsNorm::new(parameters.take("norm.weight", &[D]), 1e-5),
            qkv: Linear::new(parameters.at("qkv"), D, 3 * D),
            out: Linear::new(parameters.at("out"), D, D),
            mlp: GatedMlp::new(parameters.at("mlp"), D, D, Gate::Silu),
        }
    }
}

fn load(checkpoint: &Checkpoint, _: &LoadOptions) -> Result<Box<dyn CausalLm>, LoadError> {
    let config: Config = checkpoint.config()?;
    let mut tensors = checkpoint.tensors()?;
    let model = Tiny::new(checkpoint.model_type(), &config, &mut tensors);
    tensors.finish(|_| false)?;
    Ok(Box::new(model))
}

const ORDER: &[&str] = &["embed_tokens", "layers", "norm", "qkv", "out", "mlp"];
const TINY: Architecture = Architecture {
    // The second one is an architecture of this project, compiled in or not.
    model_types: &["tiny", "lille-130m"],
    name: "Tiny",
    released: &[],
    load,
    names: TensorNames::in_order(ORDER),
};

fn random() -> (Tiny, Tensors) {
    let model = Tiny::new("tiny", &Config { layers: 2 }, &mut RandomParameters::new(5, Dtype::Float32));
    let tensors = tensors(&model);
    (model, tensors)
}

fn decoded(model: &mut dyn CausalLm) -> Vec<u32> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    let options = GenerateOptions { max_tokens: 20, ..GenerateOptions::new(&[]) };
    generate(model, &mut session, &[3, 1, 4], options).unwrap().map(|token| token.unwrap().id).collect()
}

#[test]
fn a_folder_becomes_a_model_of_an_architecture_from_outside() {
    let (mut expected, tensors) = random();
    for model_type in ["tiny", "lille-130m"] {
        let folder = folder(&json!({"model_type": model_type, "layers": 2}), tensors.clone());
        let architectures = Architectures::default().with(TINY);
        let mut model = architectures.load_with(folder.path(), &LoadOptions::default()).unwrap();
        assert_eq!(decoded(&mut *model), decoded(&mut expected));
        models::splits_do_not_matter(
            &mut *model,
            &Array::from_slice(&[3_u32, 1, 4, 1, 5], &[1, 5]),
            &[vec![2, 3]],
        );

        // Without it, the free function knows what the project knows.
        let error = mlx_models::load(folder.path()).unwrap_err();
        let is_unknown =
            matches!(&error, LoadError::UnknownModelType { known, .. } if !known.contains(&"tiny"));
        assert_eq!(is_unknown, model_type == "tiny", "{error:?}");
    }
}

#[test]
fn errors_are_those_of_the_project() {
    let architectures = Architectures::default().with(TINY);
    let (_, mut tensors) = random();
    tensors.retain(|(key, _)| key != "layers.1.out.weight");
    let broken = folder(&json!({"model_type": "tiny", "layers": 2}), tensors);
    let error = whole_message(&architectures.load(broken.path()).unwrap_err());
    assert!(error.contains("layers.1.out.weight"), "{error}");
    let other = folder(&json!({"model_type": "mamba"}), Vec::new());
    let error = architectures.load(other.path()).unwrap_err().to_string();
    assert!(error.contains("\"mamba\"") && error.ends_with("tiny"), "{error}");
    let known = architectures.model_types();
    assert_eq!(known.len(), mlx_models::known_model_types().len() + 1);
}

/// The newest of several with one `model_type` is used.
#[test]
fn an_architecture_replaces_earlier_ones() {
    let (_, tensors) = random();
    let folder = folder(&json!({"model_type": "tiny", "layers": 2}), tensors);
    let refuse = Architecture { load: |_, _| Err(LoadError::config("tiny", std::fmt::Error)), ..TINY };
    let loaded = |architectures: Architectures| architectures.load(folder.path()).is_ok();
    assert!(!loaded(Architectures::default().with(TINY).with(refuse)));
    assert!(loaded(Architectures::default().with(refuse).with(TINY)));
}

#[test]
fn such_a_model_can_be_converted() {
    let (_, tensors) = random();
    let source = folder(&json!({"model_type": "tiny", "layers": 2}), tensors);
    let architectures = Architectures::default().with(TINY);
    let out = source.path().join("out");
    let quantization = Quantization::affine(4, 32).unwrap();
    let weights = Weights::Quantized(QuantizeOptions { quantization, recipe: None, layers: Vec::new() });
    let options = ConvertOptions { weights, ..ConvertOptions::default() };
    architectures.convert(source.path(), None, &out, &options, |_| ControlFlow::Continue(())).unwrap();
    let mut model = architectures.load(&out).unwrap();
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let logits = model.forward(&Array::from_slice(&[3_u32], &[1, 1]), &mut cache, Logits::Last).unwrap();
    assert_eq!(logits.shape(), [1, 1, VOCAB]);
    let keys: Vec<String> = model.parameters().flatten().keys().map(ToString::to_string).collect();
    assert!(keys.iter().any(|key| key == "layers.0.qkv.scales"), "{keys:?}");
}
