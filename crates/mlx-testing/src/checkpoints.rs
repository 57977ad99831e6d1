//! Checkpoint folders for tests, and checks that loading of every architecture must pass.
#![allow(clippy::unwrap_used, reason = "for tests, which want to stop there")]

use std::error::Error;
use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use mlx_causal_lm::{Architecture, CausalLm, LoadError, LoadOptions, Logits};
use mlx_checkpoint::Checkpoint;
use mlx_kvcache::CacheOptions;
use mlx_quantization::{Quantization, quantize};
use mlx_rs::Array;
use mlx_rs::memory::{active_memory, clear_cache, peak_memory, reset_peak_memory};
use mlx_rs::module::ModuleParameters;
use mlx_rs::transforms::eval_params;
use serde_json::{Value, json};
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::models::all_logits;
use crate::tensor;

/// The tensors of a checkpoint, by key.
pub type Tensors = Vec<(String, Array)>;

/// Writes a checkpoint folder with this config and these tensors.
pub fn folder(config: &Value, tensors: Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Array::save_safetensors(tensors, None, folder.path().join("model.safetensors")).unwrap();
    folder
}

/// Writes a checkpoint folder whose tensors are in this many shards, with their index.
pub fn sharded_folder(config: &Value, mut tensors: Tensors, shards: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut map = serde_json::Map::new();
    for (i, shard) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        map.extend(shard.iter().map(|(key, _)| (key.clone(), json!(name))));
        Array::save_safetensors(
            shard.iter().map(|(key, array)| (key, array)),
            None,
            folder.path().join(name),
        )
        .unwrap();
    }
    let index = json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

/// A checkpoint with this config and no tensors, for tests of configs. Its folder no longer exists.
pub fn without_tensors(config: &Value) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    // A safetensors file with no tensors: the length of the header, and the header.
    fs::write(folder.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    Checkpoint::open(folder.path()).unwrap()
}

/// The result of a function, and the messages of the events that it sent to `tracing` on this thread.
pub fn with_warnings<R>(run: impl FnOnce() -> R) -> (R, Vec<String>) {
    #[derive(Clone, Default)]
    struct Messages(Arc<Mutex<Vec<String>>>);

    impl Visit for Messages {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                self.0.lock().unwrap().push(format!("{value:?}"));
            }
        }
    }

    impl Subscriber for Messages {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }

    let messages = Messages::default();
    let answer = tracing::subscriber::with_default(messages.clone(), run);
    let messages = std::mem::take(&mut *messages.0.lock().unwrap());
    (answer, messages)
}

/// The messages of an error and of its causes.
pub fn whole_message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Loads the model of a checkpoint folder with this config and these tensors.
///
/// # Errors
///
/// Those of the architecture.
pub fn load(
    architecture: &Architecture,
    config: &Value,
    tensors: Tensors,
) -> Result<Box<dyn CausalLm>, LoadError> {
    let folder = folder(config, tensors);
    (architecture.load)(&Checkpoint::open(folder.path())?, &LoadOptions::default())
}

/// The parameters of a model as tensors of a checkpoint.
pub fn tensors(model: &(impl ModuleParameters + ?Sized)) -> Tensors {
    model.parameters().flatten().into_iter().map(|(key, array)| (key.to_string(), array.clone())).collect()
}

/// Quantizes every matrix, with the keys of mlx-lm.
pub fn quantized(tensors: Tensors, quantization: Quantization) -> Tensors {
    let quantize_one = |(key, array): (String, Array)| -> Tensors {
        let layer = match key.strip_suffix(".weight") {
            Some(layer) if array.ndim() == 2 => layer,
            _ => return vec![(key, array)],
        };
        let quantized = quantize(&array, quantization).unwrap();
        let mut parts = vec![(key.clone(), quantized.packed), (format!("{layer}.scales"), quantized.scales)];
        parts.extend(quantized.biases.map(|biases| (format!("{layer}.biases"), biases)));
        parts
    };
    tensors.into_iter().flat_map(quantize_one).collect()
}

/// A head in the checkpoint is used, also where the config ties it to the embedding table: a copy of the table gives the
/// logits of the table, and another head gives its own. `tied` are the tensors without a head; the keys are those of the
/// table and of the head.
#[track_caller]
pub fn a_head_in_the_checkpoint_is_used(
    architecture: &Architecture,
    config: &Value,
    tied: &Tensors,
    [table, head]: [&str; 2],
    tokens: &Array,
) {
    let with = |says: bool, weight: Option<Array>| {
        let mut config = config.clone();
        config["tie_word_embeddings"] = json!(says);
        let mut tensors = tied.clone();
        tensors.extend(weight.map(|weight| (head.to_owned(), weight)));
        load(architecture, &config, tensors)
    };
    let copy = || tied.iter().find(|(key, _)| key == table).unwrap().1.clone();
    let other = || copy().negative().unwrap(); // only changes the sign of every logit
    let as_tied = all_logits(&mut *with(true, None).unwrap(), tokens);
    let opposite = as_tied.negative().unwrap();
    for (name, says, weight, expected) in [
        ("a copy in a tied model", true, copy(), &as_tied),
        ("another head in a tied model", true, other(), &opposite),
        ("a copy", false, copy(), &as_tied),
        ("another head", false, other(), &opposite),
    ] {
        let mut model = with(says, Some(weight)).unwrap();
        assert!(model.parameters().flatten().contains_key(head), "{name}");
        assert_eq!(tensor(&all_logits(&mut *model, tokens)), tensor(expected), "{name}");
    }
    let narrow = copy().transpose().unwrap();
    for (says, weight, problem) in
        [(false, None, "missing"), (false, Some(narrow.clone()), "shape"), (true, Some(narrow), "shape")]
    {
        let error = with(says, weight).unwrap_err().to_string();
        assert!(error.contains(&format!("{head}: {problem}")), "{error}");
    }
}

/// The frequencies of rotations that older versions of transformers saved are ignored, with one warning; every other unknown
/// tensor is an error. `module` has the rotation, such as `model.layers.0.self_attn`.
#[track_caller]
pub fn leftover_frequencies_are_ignored(
    architecture: &Architecture,
    config: &Value,
    tensors: &Tensors,
    module: &str,
) {
    let one = || Array::from_slice(&[1.0_f32], &[1]);
    let with = |names: &[&str]| {
        let mut tensors = tensors.clone();
        tensors.extend(names.iter().map(|name| (format!("{module}.{name}"), one())));
        with_warnings(|| load(architecture, config, tensors))
    };
    let (model, warnings) = with(&["rotary_emb.inv_freq", "rotary_emb_local.inv_freq"]);
    model.unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected =
        format!("{module}.rotary_emb.inv_freq has no use, and is ignored, as are all such tensors (2)");
    assert!(warnings[0].contains(&expected), "{warnings:?}");
    for stray in ["inv_freq", "bias.inv_freq"] {
        let error = with(&[stray]).0.unwrap_err().to_string();
        assert!(error.contains(&format!("{module}.{stray}: unexpected")), "{error}");
    }
}

/// Each tensor is read once, when it is first used, and is in memory once: by MLX's own count, the peak is at most 1.1
/// times the size of the checkpoint. Returns the peak in bytes. A test that calls this must be alone in its file, because
/// MLX counts the memory of the whole process, and run on the CPU ([`use_cpu`](crate::use_cpu)).
#[track_caller]
pub fn loading_takes_no_more_than_the_checkpoint(architecture: &Architecture, folder: &Path) -> usize {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let size = checkpoint.size_on_disk().unwrap() as usize;
    assert!(size > 10_000_000, "{size} bytes are too few to tell weights from the rest");

    clear_cache().unwrap();
    let before = active_memory().unwrap();
    reset_peak_memory().unwrap();
    let mut model = (architecture.load)(&checkpoint, &LoadOptions::default()).unwrap();
    let built = peak_memory().unwrap().saturating_sub(before);
    assert!(built < size / 100, "{built} bytes before anything was used");

    eval_params(model.parameters()).unwrap();
    let loaded = peak_memory().unwrap() - before;
    assert!(loaded > size / 2, "{loaded} bytes are not the weights, which have {size}");
    assert!(loaded <= size + size / 10, "{loaded} bytes at the peak for {size} on disk");

    // The first tokens need memory of their own, but no second copy of the weights.
    let mut cache = model.new_cache(&CacheOptions::default()).unwrap();
    let tokens = Array::from_slice(&[1_u32, 2, 3], &[1, 3]);
    model.forward(&tokens, &mut cache, Logits::Last).unwrap().eval().unwrap();
    assert!(active_memory().unwrap() - before <= size + size / 10);
    loaded
}
