//! Checks that every architecture on `mlx-decoder` must pass, as one macro: [`decoder_tests`](crate::decoder_tests).
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use std::marker::PhantomData;

use mlx_causal_lm::{Architecture, CausalLm, LoadError, LoadOptions, Logits};
use mlx_checkpoint::{Checkpoint, CheckpointError};
use mlx_decoder::{Decoder, DecoderArchitecture, DecoderConfig};
use mlx_generate::{
    Batch, Draft, DraftModel, GenerateOptions, PromptLookup, Session, Speculation, generate,
    generate_speculative,
};
use mlx_kvcache::CacheOptions;
use mlx_quantization::Quantization;
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, Dtype};
use mlx_sys::cpu_kernels::{self, Runner};
use serde_json::{Value, json};

use crate::checkpoints::{
    self, folder, load, quantized, sharded_folder, tensors, whole_message, without_tensors,
};
use crate::models::{self, all_logits};
use crate::{RandomParameters, on_cpu, tensor, use_cpu};

/// Tests of an architecture that is made with `mlx-decoder`: the model compared with itself, and its checkpoints.
///
/// `configs` should change the forward pass in all ways that the architecture knows, for sequences of 18 tokens: windows of
/// 5 tokens in some and in all layers, for example. Each has 3 layers or more, a vocabulary of 64 tokens, and a head that is
/// not tied. `learns` are configs with the seed of their weights; with some seeds a step of the optimizer is too long, and the
/// loss rises once.
///
/// ```ignore
/// mlx_testing::decoder_tests! {
///     keys: OwnKeys,
///     architecture: ARCHITECTURE,
///     configs: [config(), with(json!({ "sliding_window": 5 }))],
///     learns: [(config(), 1), (with(json!({ "attention_bias": true, "tie_word_embeddings": true })), 1)],
/// }
/// ```
#[macro_export]
macro_rules! decoder_tests {
    (
        keys: $keys:ty,
        architecture: $architecture:expr,
        configs: [$($config:expr),+ $(,)?],
        learns: [$(($learning:expr, $seed:expr)),+ $(,)?] $(,)?
    ) => {
        mod every_decoder {
            use super::*;

            fn checks() -> $crate::decoder::Checks<$keys> {
                $crate::decoder::Checks::new(&$architecture, vec![$($config),+])
            }

            #[test]
            fn logits_do_not_depend_on_how_the_tokens_are_cut_into_calls() {
                checks().splits_do_not_matter();
            }

            #[test]
            fn a_row_of_a_batch_has_the_logits_that_it_has_alone() {
                checks().batches_do_not_matter();
            }

            #[test]
            fn a_token_does_not_change_the_logits_before_it() {
                checks().the_future_is_not_seen();
            }

            #[test]
            fn only_the_logits_that_are_asked_for_are_computed() {
                checks().logits_come_as_asked_for();
            }

            #[test]
            fn tokens_can_be_trimmed_after_the_window_is_full() {
                checks().tokens_can_be_taken_back();
            }

            #[test]
            fn wrong_calls_are_errors() {
                checks().wrong_calls_are_errors();
            }

            #[test]
            fn speculation_and_batches_generate_the_tokens_of_plain_decoding() {
                checks().generated_tokens_are_the_same();
            }

            #[test]
            fn kernels_run_the_model() {
                checks().kernels_run_the_model();
            }

            #[test]
            fn every_parameter_learns() {
                for (config, seed) in [$(($learning, $seed)),+] {
                    checks().it_learns(&config, seed);
                }
            }

            #[test]
            fn parameters_are_the_tensors_of_a_checkpoint() {
                checks().parameters_are_the_tensors_of_a_checkpoint();
            }

            #[test]
            fn every_tensor_that_is_not_right_is_listed() {
                checks().every_tensor_that_is_not_right_is_listed();
            }

            #[test]
            fn a_head_in_the_checkpoint_is_used() {
                checks().a_head_in_the_checkpoint_is_used();
            }

            #[test]
            fn the_dtype_is_that_of_the_weights() {
                checks().the_dtype_is_that_of_the_weights();
            }

            #[test]
            fn leftover_frequencies_are_ignored() {
                checks().leftover_frequencies_are_ignored();
            }
        }
    };
}

/// A model of this config with random weights.
pub fn model_of<A: DecoderArchitecture>(config: &Value, source: &mut RandomParameters) -> Decoder<A> {
    Decoder::new(&Decoder::<A>::config(&without_tensors(config)).unwrap(), source)
}

/// A model of this config with random float32 weights, always the same.
pub fn random<A: DecoderArchitecture>(config: &Value) -> Decoder<A> {
    model_of(config, &mut RandomParameters::new(4, Dtype::Float32))
}

/// A config with some keys changed.
#[must_use]
pub fn with(mut config: Value, changes: &Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// A config without this key, which it has.
#[must_use]
pub fn without(mut config: Value, key: &str) -> Value {
    config.as_object_mut().unwrap().remove(key).unwrap();
    config
}

/// Reads a config.
///
/// # Errors
///
/// The messages of the error and its causes.
pub fn read<A: DecoderArchitecture>(config: &Value) -> Result<DecoderConfig, String> {
    Decoder::<A>::config(&without_tensors(config)).map_err(|error| whole_message(&error))
}

/// Loading a checkpoint of this config with weights in 4 bits takes no more memory than the checkpoint. Like
/// [`checkpoints::loading_takes_no_more_than_the_checkpoint`], it must be alone in its process.
pub fn loading_takes_no_more_than_a_quantized_checkpoint<A: DecoderArchitecture>(
    architecture: &Architecture,
    config: &Value,
) {
    use_cpu("MLX frees the memory of a GPU's temporary arrays some time after they were used");
    let quantized_config = json!({ "quantization": { "group_size": 64, "bits": 4 } });
    let saved = {
        let model = model_of::<A>(config, &mut RandomParameters::new(1, Dtype::Bfloat16));
        let tensors = quantized(tensors(&model), Quantization::affine(4, 64).unwrap());
        folder(&with(config.clone(), &quantized_config), tensors)
    };
    checkpoints::loading_takes_no_more_than_the_checkpoint(architecture, saved.path());
}

/// `[2, 18]`, two different rows.
pub fn tokens() -> Array {
    Array::from_slice(&(0..36_u32).map(|i| i * i * 7 % 61).collect::<Vec<_>>(), &[2, 18])
}

fn options() -> GenerateOptions {
    GenerateOptions { max_tokens: 20, ..GenerateOptions::new(&[]) }
}

fn plain(model: &mut dyn CausalLm, prompt: &[u32]) -> Vec<u32> {
    let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
    generate(model, &mut session, prompt, options()).unwrap().map(|token| token.unwrap().id).collect()
}

/// What MLX runs itself in a forward pass: it moves numbers, chooses rows, and builds masks. Of arithmetic there are the scale of
/// the embedding, that of the logits and their cap, biases that are added to quantized products, and the factors by which
/// Ministral multiplies queries: a logarithm of their positions.
const LEFT_TO_MLX: &[&str] = &[
    "Add",
    "AsType",
    "Concatenate",
    "Contiguous",
    "Divide",
    "Full",
    "Gather",
    "Log",
    "Minimum",
    "Multiply",
    "Reshape",
    "Split",
    "Tanh",
];

fn only_kernels(model: &mut dyn CausalLm, options: &CacheOptions) {
    let all = tokens().try_index((..1, ..)).unwrap();
    // Reads the weights of a checkpoint.
    let mut other = model.new_cache(options).unwrap();
    model.forward(&all, &mut other, Logits::Last).unwrap().eval().unwrap();
    let mut cache = model.new_cache(options).unwrap();
    for step in [0..16, 16..17, 17..18] {
        let tokens = all.try_index((.., step.clone())).unwrap();
        let (logits, ran) = cpu_kernels::recorded(|| {
            let logits = model.forward(&tokens, &mut cache, Logits::Last)?;
            logits.eval()?;
            cache.eval().map_err(|e| Exception::custom(e.to_string()))?;
            Ok::<_, Exception>(logits)
        });
        assert_eq!(logits.unwrap().shape(), [1, 1, 64]);
        let by = |runner| ran.iter().filter(move |one| one.runner == runner).map(|one| one.name.as_str());
        // A window that the prompt fills is copied once.
        let is_copied = |name: &str| name == "SliceUpdate" && step.start < 17;
        let left: Vec<&str> =
            by(Runner::Mlx).filter(|name| !LEFT_TO_MLX.contains(name) && !is_copied(name)).collect();
        assert!(left.is_empty(), "{step:?}: MLX ran {left:?}, of {ran:?}");
        assert!(by(Runner::Kernel).any(|name| name.ends_with("Attention")), "{step:?}: {ran:?}");
        assert!(by(Runner::Kernel).any(|name| name.ends_with("Matmul")), "{step:?}: {ran:?}");
    }
}

/// The checks of [`decoder_tests`](crate::decoder_tests).
#[derive(Debug)]
pub struct Checks<A> {
    architecture: &'static Architecture,
    /// Not empty.
    configs: Vec<Value>,
    keys: PhantomData<A>,
}

impl<A: DecoderArchitecture + 'static> Checks<A> {
    /// The checks of an architecture of this type, with these configs.
    pub fn new(architecture: &'static Architecture, configs: Vec<Value>) -> Self {
        assert!(configs.iter().all(|config| config["tie_word_embeddings"] != json!(true)));
        Self { architecture, configs, keys: PhantomData }
    }

    fn models(&self) -> impl Iterator<Item = Decoder<A>> {
        self.configs.iter().map(random)
    }

    /// See [`models::splits_do_not_matter`].
    pub fn splits_do_not_matter(&self) {
        let splits = [vec![1; 18], vec![4, 14], vec![5, 13], vec![6, 1, 1, 10], vec![2, 9, 7], vec![17, 1]];
        self.models().for_each(|mut model| models::splits_do_not_matter(&mut model, &tokens(), &splits));
    }

    /// See [`models::batches_do_not_matter`].
    pub fn batches_do_not_matter(&self) {
        self.models().for_each(|mut model| models::batches_do_not_matter(&mut model, &tokens()));
    }

    /// See [`models::the_future_is_not_seen`].
    pub fn the_future_is_not_seen(&self) {
        self.models().for_each(|mut model| models::the_future_is_not_seen(&mut model, &tokens()));
    }

    /// See [`models::logits_come_as_asked_for`].
    pub fn logits_come_as_asked_for(&self) {
        self.models().for_each(|mut model| models::logits_come_as_asked_for(&mut model, &tokens()));
    }

    /// See [`models::tokens_can_be_taken_back`].
    pub fn tokens_can_be_taken_back(&self) {
        self.models().for_each(|mut model| models::tokens_can_be_taken_back(&mut model, &tokens(), 3));
    }

    /// See [`models::wrong_calls_are_errors`].
    pub fn wrong_calls_are_errors(&self) {
        self.models().for_each(|mut model| models::wrong_calls_are_errors(&mut model, &tokens()));
    }

    /// A draft model, guesses from the prompt, and other rows of a batch do not change which tokens are generated, also far
    /// past the windows.
    pub fn generated_tokens_are_the_same(&self) {
        for config in &self.configs {
            let mut model = random::<A>(config);
            let mut draft = model_of::<A>(config, &mut RandomParameters::new(5, Dtype::Float32));
            let prompt: Vec<u32> = (0..23).map(|i| i * i % 7 + i % 3).collect();
            let expected = [plain(&mut model, &prompt), plain(&mut model, &prompt[..4])];

            let mut draft = DraftModel::new(&mut draft, &options()).unwrap();
            let mut lookup = PromptLookup::default();
            for draft in [&mut draft as &mut dyn Draft, &mut lookup] {
                let mut session = Session::new(model.new_cache(&CacheOptions::default()).unwrap());
                let speculation = Speculation { draft, most: 4 };
                let stream =
                    generate_speculative(&mut model, &mut session, &prompt, options(), speculation).unwrap();
                assert_eq!(stream.map(|token| token.unwrap().id).collect::<Vec<_>>(), expected[0]);
            }

            let mut batch = Batch::new(CacheOptions::default());
            let rows =
                [&prompt[..], &prompt[..4]].map(|prompt| batch.add(&mut model, prompt, options()).unwrap());
            let mut found = [Vec::new(), Vec::new()];
            while !batch.is_empty() {
                for answer in batch.step(&mut model).unwrap() {
                    let row = usize::from(answer.row != rows[0]);
                    found[row].extend(answer.token.map(|token| token.id));
                }
            }
            assert_eq!(found, expected);
        }
    }

    /// On the CPU, kernels run every product, norm, rotation, gate and attention of a prompt and of the token after it, with
    /// bfloat16 and 4-bit weights and with plain and quantized caches. MLX runs no more than the operations of
    /// `LEFT_TO_MLX`.
    pub fn kernels_run_the_model(&self) {
        if !on_cpu() || !cpu_kernels::is_enabled() {
            return;
        }
        // Sizes that can be quantized in groups of 32.
        let sizes = json!({ "hidden_size": 128, "intermediate_size": 64, "head_dim": 32 });
        for config in &self.configs {
            let config = with(config.clone(), &sizes);
            let mut plain = model_of::<A>(&config, &mut RandomParameters::new(4, Dtype::Bfloat16));
            let tensors = quantized(tensors(&plain), Quantization::affine(4, 32).unwrap());
            let quantization = json!({ "quantization": { "group_size": 32, "bits": 4 } });
            let mut packed = load(self.architecture, &with(config, &quantization), tensors).unwrap();
            for model in [&mut plain as &mut dyn CausalLm, &mut *packed] {
                only_kernels(model, &CacheOptions::default());
                let quantization = Some(Quantization::affine(8, 32).unwrap());
                only_kernels(model, &CacheOptions { quantization, ..CacheOptions::default() });
            }
        }
    }

    /// See [`models::it_learns`].
    pub fn it_learns(&self, config: &Value, seed: u64) {
        let mut model = model_of::<A>(config, &mut RandomParameters::new(seed, Dtype::Float32));
        models::it_learns(&mut model, &tokens());
    }

    /// The keys of the parameters are those that the model asked its source for, and a checkpoint of these tensors, whole
    /// or in shards, gives the same model.
    pub fn parameters_are_the_tensors_of_a_checkpoint(&self) {
        for config in &self.configs {
            for tied in [false, true] {
                let config = with(config.clone(), &json!({ "tie_word_embeddings": tied }));
                let mut source = RandomParameters::new(4, Dtype::Float32);
                let mut model = model_of::<A>(&config, &mut source);
                let mut names: Vec<String> = tensors(&model).into_iter().map(|(key, _)| key).collect();
                names.sort();
                source.taken.sort();
                assert_eq!(names, source.taken);
                assert_eq!(names.contains(&"lm_head.weight".to_owned()), !tied);

                let expected = tensor(&all_logits(&mut model, &tokens()));
                let sharded = sharded_folder(&config, tensors(&model), 3);
                let sharded = Checkpoint::open(sharded.path()).unwrap();
                for loaded in [
                    load(self.architecture, &config, tensors(&model)),
                    (self.architecture.load)(&sharded, &LoadOptions::default()),
                ] {
                    let mut loaded = loaded.unwrap();
                    assert_eq!(loaded.info(), model.info());
                    assert_eq!(tensor(&all_logits(&mut *loaded, &tokens())), expected);
                }
            }
        }
    }

    /// All tensors that are missing, unknown or of another shape are in one error.
    pub fn every_tensor_that_is_not_right_is_listed(&self) {
        let config = &self.configs[0];
        let mut wrong = tensors(&random::<A>(config));
        wrong.push(("model.layers.0.self_attn.rotary_emb.scale".to_owned(), Array::from_f32(1.0)));
        wrong.push(("model.layers.1.other.weight".to_owned(), Array::from_f32(1.0)));
        wrong.retain(|(key, _)| key != "lm_head.weight");
        let narrow = "model.layers.2.self_attn.k_proj.weight";
        let mut needed = None;
        for (key, array) in &mut wrong {
            if key == narrow {
                needed = Some(array.shape().to_vec());
                *array = Array::zeros::<f32>(&[3, 5]).unwrap();
            }
        }
        let error = load(self.architecture, config, wrong).unwrap_err();
        let LoadError::Checkpoint(CheckpointError::Tensors { problems, .. }) = &error else {
            panic!("{error}")
        };
        let problems: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
        let sizes = [&config["vocab_size"], &config["hidden_size"]];
        assert_eq!(
            problems,
            [
                format!("lm_head.weight: missing, [{}, {}] is needed", sizes[0], sizes[1]),
                "model.layers.0.self_attn.rotary_emb.scale: unexpected, the model has no such parameter"
                    .into(),
                "model.layers.1.other.weight: unexpected, the model has no such parameter".into(),
                format!("{narrow}: shape [3, 5], {:?} is needed", needed.unwrap()),
            ]
        );
    }

    /// See [`checkpoints::a_head_in_the_checkpoint_is_used`]. Some released checkpoints of tied models hold the embedding
    /// table twice.
    pub fn a_head_in_the_checkpoint_is_used(&self) {
        let config = with(self.configs[0].clone(), &json!({ "tie_word_embeddings": true }));
        let (tied, keys) = (tensors(&random::<A>(&config)), ["model.embed_tokens.weight", "lm_head.weight"]);
        checkpoints::a_head_in_the_checkpoint_is_used(self.architecture, &config, &tied, keys, &tokens());
    }

    /// The weights of a checkpoint decide in which dtype a model computes.
    pub fn the_dtype_is_that_of_the_weights(&self) {
        for dtype in [Dtype::Bfloat16, Dtype::Float16] {
            let mut model = model_of::<A>(&self.configs[0], &mut RandomParameters::new(4, dtype));
            assert_eq!(model.info().dtype, dtype);
            assert_eq!(all_logits(&mut model, &tokens()).dtype(), dtype);
        }
    }

    /// See [`checkpoints::leftover_frequencies_are_ignored`].
    pub fn leftover_frequencies_are_ignored(&self) {
        let config = &self.configs[0];
        let (tensors, module) = (tensors(&random::<A>(config)), "model.layers.0.self_attn");
        checkpoints::leftover_frequencies_are_ignored(self.architecture, config, &tensors, module);
    }
}
