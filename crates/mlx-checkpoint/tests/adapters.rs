//! Adapter folders: good ones change the model as they should, and bad ones are errors that name what is wrong.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::Path;

use approx::{assert_relative_eq, assert_relative_ne};
use mlx_checkpoint::{AdapterConfig, AdapterKind, Adapters, Checkpoint, CheckpointError, TensorNames};
use mlx_layers::{Embedding, Linear, Parameters};
use mlx_quantization::{Quantization, quantize};
use mlx_rs::macros::ModuleParameters;
use mlx_rs::module::{Module, ModuleParameters};
use mlx_rs::random::RandomState;
use mlx_rs::{Array, Dtype};
use mlx_testing::checkpoints::with_warnings;
use mlx_testing::{Tolerance, compare, tensor};
use tempfile::TempDir;

const ROWS: i32 = 40;
const DIMS: i32 = 32;

/// The smallest model with everything that adapters meet: an embedding, blocks, a bias.
#[derive(Debug, Clone, ModuleParameters)]
struct Model {
    #[param]
    embed: Embedding,
    #[param]
    layers: Vec<Block>,
}

#[derive(Debug, Clone, ModuleParameters)]
struct Block {
    #[param]
    up: Linear,
    #[param]
    down: Linear,
}

impl Model {
    fn load(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let mut tensors = checkpoint.tensors()?;
        let mut root = Parameters::root(&mut tensors);
        let block = |mut parameters: Parameters<'_>| Block {
            up: Linear::with_bias(parameters.at("up"), DIMS, 2 * DIMS, true),
            down: Linear::new(parameters.at("down"), 2 * DIMS, DIMS),
        };
        let model = Self {
            embed: Embedding::new(root.at("embed"), ROWS, DIMS),
            layers: (0..3).map(|i| block(root.index("layers", i))).collect(),
        };
        tensors.finish(|key| key == "ignored")?;
        Ok(model)
    }

    fn logits(&mut self) -> Array {
        let tokens = Array::from_slice(&[1_i32, 5, 39, 1, 0, 17], &[2, 3]);
        let mut x = self.embed.forward(&tokens).unwrap();
        for Block { up, down } in &mut self.layers {
            x = x.add(down.forward(&up.forward(&x).unwrap()).unwrap()).unwrap();
        }
        self.embed.as_linear(&x).unwrap()
    }

    fn tensors(&self) -> Vec<(String, Array)> {
        let all = self.parameters().flatten().into_iter();
        all.map(|(key, array)| (key.to_string(), array.clone())).collect()
    }
}

fn noise(random: &mut RandomState, shape: &[i32], width: f32) -> Array {
    mlx_rs::random::normal::<f32>(shape, 0.0, width, &random.next_key().unwrap()).unwrap()
}

/// A checkpoint folder of this model.
fn base(quantization: Option<Quantization>) -> TempDir {
    let mut random = RandomState::with_seed(3).unwrap();
    let mut tensors = vec![("ignored".to_owned(), Array::from_f32(1.0))];
    let mut layer = |name: String, shape: [i32; 2]| {
        let weight = noise(&mut random, &shape, 0.2);
        match quantization {
            None => tensors.push((format!("{name}.weight"), weight)),
            Some(quantization) => {
                let q = quantize(&weight, quantization).unwrap();
                tensors.push((format!("{name}.weight"), q.packed));
                tensors.push((format!("{name}.scales"), q.scales));
                tensors.extend(q.biases.map(|biases| (format!("{name}.biases"), biases)));
            }
        }
        if name.ends_with("up") {
            tensors.push((format!("{name}.bias"), noise(&mut random, &shape[..1], 0.1)));
        }
    };
    layer("embed".to_owned(), [ROWS, DIMS]);
    for i in 0..3 {
        layer(format!("layers.{i}.up"), [2 * DIMS, DIMS]);
        layer(format!("layers.{i}.down"), [DIMS, 2 * DIMS]);
    }
    let folder = tempfile::tempdir().unwrap();
    let section = quantization.map_or_else(String::new, |q| {
        format!(
            r#", "quantization": {{"bits": {}, "group_size": {}, "mode": "{}"}}"#,
            q.bits(),
            q.group_size(),
            q.mode()
        )
    });
    fs::write(folder.path().join("config.json"), format!(r#"{{"model_type": "test"{section}}}"#)).unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    Array::save_safetensors(tensors, None, folder.path().join("model.safetensors")).unwrap();
    folder
}

fn config(kind: AdapterKind, keys: &[&str], num_layers: i32) -> AdapterConfig {
    let keys = (!keys.is_empty()).then(|| keys.iter().map(|&key| key.to_owned()).collect());
    AdapterConfig { kind, rank: 4, scale: 1.5, dropout: 0.0, num_layers, keys }
}

fn open(folder: &TempDir) -> Checkpoint {
    Checkpoint::open(folder.path()).unwrap()
}

/// A folder of adapters of this model that change something.
fn trained(base: &TempDir, config: &AdapterConfig) -> TempDir {
    let adapters = Adapters::fresh(config.clone(), 7).unwrap();
    let mut model = Model::load(&open(base).with_adapters(adapters)).unwrap();
    let mut random = RandomState::with_seed(5).unwrap();
    let mut parameters: Vec<_> = model.parameters_mut().flatten().into_iter().collect();
    parameters.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, array) in parameters {
        let change = noise(&mut random, array.shape(), 0.1);
        if key.ends_with(".lora_b") {
            *array = change;
        } else if key.ends_with(".m") {
            *array = array.multiply(change.add(Array::from_f32(1.0)).unwrap()).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    Adapters::save(folder.path(), config, model.parameters().flatten()).unwrap();
    folder
}

fn adapted(base: &TempDir, adapters: &TempDir) -> Checkpoint {
    open(base).with_adapters(Adapters::open(adapters.path()).unwrap())
}

fn q8() -> Quantization {
    Quantization::affine(8, 32).unwrap()
}

/// Every kind of adapters, over every kind of weights.
fn combinations() -> Vec<(AdapterConfig, Option<Quantization>)> {
    let mut all = Vec::new();
    for quantization in [None, Some(q8()), Some(Quantization::MXFP4)] {
        for kind in [AdapterKind::Lora, AdapterKind::Dora] {
            all.push((config(kind, &[], -1), quantization));
            all.push((config(kind, &["up", "layers.0.down"], 2), quantization));
            if kind == AdapterKind::Lora || quantization.is_none() {
                all.push((config(kind, &["embed", "down"], 1), quantization));
            }
        }
    }
    all
}

#[test]
fn fresh_adapters_change_nothing() {
    for (config, quantization) in combinations() {
        let base = base(quantization);
        let plain = Model::load(&open(&base)).unwrap().logits();
        let fresh = Adapters::fresh(config.clone(), 1).unwrap();
        let mut model = Model::load(&open(&base).with_adapters(fresh)).unwrap();
        assert!(model.num_parameters() > Model::load(&open(&base)).unwrap().num_parameters());
        let found = tensor(&model.logits()).named(format!("{config:?}"));
        assert_relative_eq!(found, tensor(&plain), epsilon = 2e-2, max_relative = 2e-2);
    }
}

#[test]
fn adapters_that_were_saved_load_to_the_same_model() {
    for (config, quantization) in combinations() {
        let base = base(quantization);
        let folder = trained(&base, &config);
        let adapters = Adapters::open(folder.path()).unwrap();
        assert_eq!(adapters.config(), Some(&config));
        let mut model = Model::load(&open(&base).with_adapters(adapters)).unwrap();
        let logits = model.logits();
        let plain = Model::load(&open(&base)).unwrap().logits();
        assert_eq!(logits.dtype(), plain.dtype());
        let found = tensor(&logits).named(format!("{config:?}"));
        assert_relative_ne!(found, tensor(&plain), epsilon = 2e-2, max_relative = 2e-2);

        let again = tempfile::tempdir().unwrap();
        Adapters::save(again.path(), &config, model.parameters().flatten()).unwrap();
        let again = Model::load(&adapted(&base, &again)).unwrap().logits();
        assert_eq!(tensor(&again), tensor(&logits), "{config:?}");
    }
}

#[test]
fn a_fused_model_computes_what_the_adapted_one_does_and_loads_without_adapters() {
    for (config, quantization) in combinations() {
        let base = base(quantization);
        let folder = trained(&base, &config);
        let expected = Model::load(&adapted(&base, &folder)).unwrap().logits();
        for dequantize in [false, true] {
            let checkpoint = adapted(&base, &folder).fused(dequantize);
            let model = Model::load(&checkpoint).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let out = scratch.path().join("fused/"); // as a shell completes it
            checkpoint.save_as(&out, model.parameters().flatten(), &TensorNames::default()).unwrap();
            assert!(out.join("tokenizer.json").is_file());

            let fused = Checkpoint::open(&out).unwrap();
            assert_eq!(fused.default_quantization().is_some(), quantization.is_some() && !dequantize);
            let mut loaded = Model::load(&fused).unwrap();
            assert_eq!(loaded.tensors().len(), model.tensors().len());
            // With 4 bits the error is too large to compare. Small floats of 8 bits dequantize to bfloat16.
            let tolerance = match quantization {
                Some(Quantization::MXFP4) if !dequantize => continue,
                Some(_) => 6e-2,
                None => 1e-4,
            };
            let close = Tolerance::Close { rtol: tolerance, atol: tolerance };
            let result = compare(&loaded.logits(), &expected, close).unwrap();
            assert!(result.is_equal(), "{config:?} {dequantize}: {result}");

            let error =
                checkpoint.save_as(&out, model.parameters().flatten(), &TensorNames::default()).unwrap_err();
            assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_leaves_nothing() {
    let base = base(None);
    let checkpoint = open(&base);
    let model = Model::load(&checkpoint).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let error = checkpoint
        .save_as(file.join("out"), model.parameters().flatten(), &TensorNames::default())
        .unwrap_err();
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
}

/// Whole weights replace those of the checkpoint.
#[test]
fn full_fine_tuning_replaces_weights() {
    let base = base(None);
    let mut model = Model::load(&open(&base)).unwrap();
    let replacement = Array::ones::<f32>(&[DIMS, 2 * DIMS]).unwrap();
    let folder = full(&[("layers.2.down.weight", replacement.clone())]);
    let mut loaded = Model::load(&adapted(&base, &folder)).unwrap();
    **model.parameters_mut().flatten().get_mut("layers.2.down.weight").unwrap() = replacement;
    assert_eq!(tensor(&loaded.logits()), tensor(&model.logits()));
}

/// Models that older versions of transformers fine-tuned have such tensors, which follow from the config.
#[test]
fn frequencies_in_full_fine_tuning_are_ignored() {
    let base = base(None);
    let one = || Array::ones::<f32>(&[DIMS, 2 * DIMS]).unwrap();
    let frequencies = ("layers.0.self_attn.rotary_emb.inv_freq", Array::ones::<f32>(&[4]).unwrap());
    let plain = full(&[("layers.2.down.weight", one())]);
    let folder = full(&[("layers.2.down.weight", one()), frequencies.clone()]);
    let (model, warnings) = with_warnings(|| Model::load(&adapted(&base, &folder)));
    let mut expected = Model::load(&adapted(&base, &plain)).unwrap();
    assert_eq!(tensor(&model.unwrap().logits()), tensor(&expected.logits()));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("rotary_emb.inv_freq has no use, and is ignored"), "{warnings:?}");
    let error = Model::load(&adapted(&base, &full(&[frequencies]))).unwrap_err().to_string();
    let expected =
        "adapter_config.json: no layer of the model has an adapter: adapters.safetensors has no weight";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_path_that_is_no_folder_says_what_to_name() {
    let base = base(None);
    let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
    let error = |path: &Path| Adapters::open(path).unwrap_err().to_string();
    let text = error(Path::new("owner/name"));
    assert!(
        text.contains("there is no folder owner/name") && text.contains("ids of the Hub are not"),
        "{text}"
    );
    let text = error(&folder.path().join("adapters.safetensors"));
    assert!(
        text.contains("it is a file, and adapters are a folder; name the folder that it is in"),
        "{text}"
    );
}

fn full(tensors: &[(&str, Array)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("adapter_config.json"), r#"{"fine_tune_type": "full"}"#).unwrap();
    Array::save_safetensors(
        tensors.iter().map(|(k, v)| (*k, v)),
        None,
        folder.path().join("adapters.safetensors"),
    )
    .unwrap();
    folder
}

#[test]
fn weights_of_full_fine_tuning_that_have_no_place_are_listed() {
    let base = base(None);
    let one = || Array::ones::<f32>(&[1]).unwrap();
    let folder = full(&[
        ("layers.9.up.weight", one()),
        ("layers.0.up.bias", one()),
        ("ignored", Array::from_f32(2.0)),
        ("layers.0.up.lora_a", one()),
    ]);
    let error = Model::load(&adapted(&base, &folder)).unwrap_err().to_string();
    for needle in [
        "layers.9.up.weight: unexpected",
        "layers.0.up.bias: shape [1], [64] is needed",
        "ignored: unexpected",
        "layers.0.up.lora_a: unexpected",
    ] {
        assert!(error.contains(needle), "{error}");
    }
}

/// Edits the JSON of a folder's config.
fn edit(folder: &Path, from: &str, to: &str) {
    let file = folder.join("adapter_config.json");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&file, text.replace(from, to)).unwrap();
}

#[test]
fn configs_that_describe_no_adapters() {
    let base = base(None);
    for (from, to, needle) in [
        ("{", "", "is not valid JSON"),
        ("\"lora\"", "\"lokr\"", "fine_tune_type is \"lokr\"; known are lora, dora and full"),
        ("\"lora\"", "3", "fine_tune_type"),
        ("\"num_layers\": 2", "\"layers\": 2", "num_layers is missing"),
        ("\"num_layers\": 2", "\"num_layers\": \"all\"", "num_layers"),
        ("\"lora_parameters\"", "\"lora\"", "lora_parameters is missing"),
        ("\"rank\": 4,", "", "lora_parameters"),
        (
            "\"lora_parameters\": {",
            "\"lora_parameters\": [4, 1.5], \"rest\": {",
            "lora_parameters is [4,1.5], and must be",
        ),
        ("\"rank\": 4", "\"rank\": 0", "rank is 0, and must be positive"),
        ("\"rank\": 4", "\"rank\": 1.5", "lora_parameters.rank"),
        ("\"scale\": 1.5", "\"seed\": 1.5", "lora_parameters"),
        ("\"scale\": 1.5", "\"alpha\": 6", "scale is missing; it is alpha / rank"),
        (",\n    \"scale\": 1.5", "", "scale is missing"),
        ("\"scale\": 1.5", "\"scale\": 1e39", "scale"),
        ("\"dropout\": 0.0", "\"dropout\": 1.0", "dropout is 1, and must be in 0..1"),
        ("\"up\"", "", "keys names no layer"),
        ("\"num_layers\": 2", "\"num_layers\": 2, \"peft_type\": \"LORA\"", "there is no"),
    ] {
        let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
        edit(folder.path(), from, to);
        let error = Adapters::open(folder.path()).unwrap_err();
        let text = match &error {
            CheckpointError::Config { key, source, .. } => format!("{key}: {source}"),
            other => other.to_string(),
        };
        assert!(text.contains(needle), "{from} -> {to}: {text}");
    }
    let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
    fs::write(folder.path().join("adapter_config.json"), "[]").unwrap();
    let error = Adapters::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("must be a JSON object"), "{error}");
}

#[test]
fn folders_with_a_missing_or_incomplete_file() {
    let base = base(None);
    for file in ["adapter_config.json", "adapters.safetensors"] {
        let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
        fs::remove_file(folder.path().join(file)).unwrap();
        let error = Adapters::open(folder.path()).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::NoAdapters { missing, .. } if missing.ends_with(file)),
            "{error}"
        );
    }
    let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
    let file = folder.path().join("adapters.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 5]).unwrap();
    assert!(matches!(Adapters::open(folder.path()).unwrap_err(), CheckpointError::Safetensors { .. }));
    assert!(matches!(Adapters::open("/no/such").unwrap_err(), CheckpointError::NoAdapterFolder { .. }));
}

/// A change to the tensors of good adapters of `up` in the last two blocks, and the error that follows.
#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn adapters_that_do_not_fit_are_listed() {
    type Edit = fn(&mut Vec<(String, Array)>);
    fn with(tensors: &mut Vec<(String, Array)>, key: &str, array: Array) {
        tensors.retain(|(found, _)| found != key);
        tensors.push((key.to_owned(), array));
    }
    fn without(tensors: &mut Vec<(String, Array)>, key: &str) {
        tensors.retain(|(found, _)| found != key);
    }
    fn ones(shape: &[i32]) -> Array {
        Array::ones::<f32>(shape).unwrap()
    }
    let edits: &[(AdapterKind, Edit, &str)] = &[
        (
            AdapterKind::Lora,
            |t| without(t, "layers.1.up.lora_a"),
            "layers.1.up.lora_a: missing, [32, 4] is needed",
        ),
        (
            AdapterKind::Lora,
            |t| without(t, "layers.2.up.lora_b"),
            "layers.2.up.lora_b: missing, [4, 64] is needed",
        ),
        (AdapterKind::Dora, |t| without(t, "layers.2.up.m"), "layers.2.up.m: missing, [64] is needed"),
        (
            AdapterKind::Dora,
            |t| with(t, "layers.2.up.m", ones(&[32])),
            "layers.2.up.m: shape [32], [64] is needed",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.1.up.lora_a", ones(&[32, 8])),
            "layers.1.up.lora_a: shape [32, 8], [32, 4] is needed",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.1.up.lora_b", ones(&[64, 4])),
            "layers.1.up.lora_b: shape [64, 4], [4, 64] is needed",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.0.up.lora_a", ones(&[32, 4])),
            "layers.0.up.lora_a: adapter_config.json gives this layer no adapter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "embed.lora_a", ones(&[40, 4])),
            "embed.lora_a: adapter_config.json gives this layer no adapter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.7.up.lora_a", ones(&[32, 4])),
            "layers.7.up.lora_a: unexpected, the model has no such parameter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.18446744073709551615.up.lora_a", ones(&[32, 4])),
            "layers.18446744073709551615.up.lora_a: unexpected, the model has no such parameter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.1.up.m", ones(&[64])),
            "layers.1.up.m: unexpected, the model has no such parameter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.1.up.weight", ones(&[64, 32])),
            "layers.1.up.weight: unexpected, the model has no such parameter",
        ),
        (
            AdapterKind::Lora,
            |t| with(t, "layers.1.up.lora_a", ones(&[32, 4]).as_dtype(Dtype::Int32).unwrap()),
            "layers.1.up.lora_a: has dtype I32, and F32, F16 or BF16 is needed",
        ),
    ];
    let base = base(None);
    for &(kind, edit, needle) in edits {
        let folder = trained(&base, &config(kind, &["up"], 2));
        let file = folder.path().join("adapters.safetensors");
        let mut tensors: Vec<_> = Array::load_safetensors(&file).unwrap().into_iter().collect();
        mlx_rs::transforms::eval(tensors.iter().map(|(_, array)| array)).unwrap();
        edit(&mut tensors);
        Array::save_safetensors(tensors, None, &file).unwrap();
        let error = Model::load(&adapted(&base, &folder)).unwrap_err();
        assert!(
            matches!(&error, CheckpointError::Adapters { problems, .. } if problems.len() == 1),
            "{error}"
        );
        assert!(error.to_string().contains(needle), "{needle}: {error}");
    }
}

#[test]
fn configs_that_do_not_fit_the_model_are_errors() {
    let base8 = base(Some(q8()));
    let base = base(None);
    let lora = |keys: &[&str], layers| trained(&base, &config(AdapterKind::Lora, keys, layers));
    let folder = lora(&["up"], 2);
    edit(folder.path(), "\"num_layers\": 2", "\"num_layers\": 1");
    let error = Model::load(&adapted(&base, &folder)).unwrap_err().to_string();
    assert!(
        error.contains("layers.1.up.lora_a: adapter_config.json gives")
            && error.contains("layers.1.up.lora_b")
    );
    edit(folder.path(), "\"num_layers\": 1", "\"num_layers\": 0");
    let error = Model::load(&adapted(&base, &folder)).unwrap_err().to_string();
    assert!(error.contains("layers.0.up.lora_a: missing"), "{error}");

    let folder = lora(&["up"], 2);
    edit(folder.path(), "\"up\"", "\"up\", \"self_attn.q_proj\"");
    let error = Model::load(&adapted(&base, &folder)).unwrap_err().to_string();
    assert!(error.contains("self_attn.q_proj: the model has no such layer"), "{error}");

    let folder = lora(&["up"], 2);
    edit(folder.path(), "\"rank\": 4", "\"rank\": 8");
    let error = Model::load(&adapted(&base, &folder)).unwrap_err();
    assert!(matches!(&error, CheckpointError::Adapters { problems, .. } if problems.len() == 4), "{error}");

    let dora = Adapters::fresh(config(AdapterKind::Dora, &["embed"], 2), 1).unwrap();
    let error = Model::load(&open(&base8).with_adapters(dora)).unwrap_err().to_string();
    assert!(error.contains("embed: DoRA has no adapters for quantized embeddings"), "{error}");

    let bad = AdapterConfig { rank: -1, ..config(AdapterKind::Lora, &[], 2) };
    assert!(matches!(Adapters::fresh(bad, 1).unwrap_err(), CheckpointError::AdapterConfig { .. }));

    let plain = Model::load(&open(&base)).unwrap();
    let nothing = tempfile::tempdir().unwrap();
    let config = config(AdapterKind::Lora, &[], 2);
    let error = Adapters::save(nothing.path(), &config, plain.parameters().flatten()).unwrap_err();
    assert!(error.to_string().contains("the model has no adapters"), "{error}");
}

#[test]
fn freezing_without_recursion_leaves_the_adapters() {
    let base = base(None);
    let config = config(AdapterKind::Dora, &["embed", "down"], 2);
    let mut model = Model::load(&open(&base).with_adapters(Adapters::fresh(config, 1).unwrap())).unwrap();
    assert_eq!(model.trainable_parameters().flatten().len(), model.parameters().flatten().len());
    model.freeze_parameters(false);
    let mut trainable: Vec<_> = model.trainable_parameters().flatten().into_keys().collect();
    trainable.sort();
    let layers = ["embed", "layers.1.down", "layers.2.down"];
    let expected =
        layers.iter().flat_map(|layer| ["lora_a", "lora_b", "m"].map(|leaf| format!("{layer}.{leaf}")));
    assert_eq!(trainable.iter().map(ToString::to_string).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let down = &model.layers[2].down;
    assert_eq!((down.all_frozen(), down.any_frozen()), (Some(false), Some(true)));
    assert_eq!(model.layers[0].down.all_frozen(), Some(true));
    model.freeze_parameters(true);
    assert!(model.trainable_parameters().flatten().is_empty());
    assert_eq!(model.all_frozen(), Some(true));
    model.unfreeze_parameters(false);
    assert!(
        model
            .trainable_parameters()
            .flatten()
            .keys()
            .all(|key| key.ends_with("weight") || key.ends_with("bias"))
    );
    model.unfreeze_parameters(true);
    assert_eq!(model.any_frozen(), Some(false));
}

/// Older versions of mlx-lm wrote `alpha`. The versions that write `scale` do not read it.
#[test]
fn an_alpha_beside_the_scale_is_ignored() {
    let base = base(None);
    let folder = trained(&base, &config(AdapterKind::Lora, &["up"], 2));
    let mut expected = Model::load(&adapted(&base, &folder)).unwrap();
    edit(folder.path(), "\"scale\": 1.5", "\"scale\": 1.5, \"alpha\": 160");
    let (model, warnings) = with_warnings(|| Model::load(&adapted(&base, &folder)));
    assert_eq!(tensor(&model.unwrap().logits()), tensor(&expected.logits()));
    let file = folder.path().join("adapter_config.json");
    assert_eq!(warnings, [format!("{}: lora_parameters.alpha has no use, and is ignored", file.display())]);
}

/// What a killed program left is removed, what another program is writing stays, and only regular files are replaced.
#[cfg(unix)]
#[test]
fn saving_replaces_only_regular_files_and_leaves_no_temporary_files() {
    let base = base(None);
    let config = config(AdapterKind::Lora, &["up"], 2);
    let folder = trained(&base, &config);
    let model = Model::load(&adapted(&base, &folder)).unwrap();
    let stale = folder.path().join(".adapters.safetensors.1-0.partial");
    fs::write(&stale, "half").unwrap();
    Adapters::save(folder.path(), &config, model.parameters().flatten()).unwrap();
    assert!(!stale.exists());
    for name in ["adapters.safetensors", "adapter_config.json"] {
        let file = folder.path().join(name);
        fs::remove_file(&file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        let error = Adapters::save(folder.path(), &config, model.parameters().flatten()).unwrap_err();
        assert!(error.to_string().contains("it is a named pipe, and must be a regular file"), "{error}");
        let error = Adapters::open(folder.path()).unwrap_err();
        assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
        fs::remove_file(&file).unwrap();
        Adapters::save(folder.path(), &config, model.parameters().flatten()).unwrap();
    }
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    let out = tempfile::tempdir().unwrap();
    let stale = out.path().join(".fused.1-0.partial");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("model.safetensors"), "half").unwrap();
    open(&base)
        .save_as(
            out.path().join("fused"),
            model.tensors().iter().map(|(key, array)| (key, array)),
            &TensorNames::default(),
        )
        .unwrap();
    assert!(!stale.exists());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}
