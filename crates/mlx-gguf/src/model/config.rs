//! The config of each architecture.

use serde_json::{Map, Value, json};

use super::facts::{Facts, LARGEST, LONG_FACTORS, ROPE_FREQS, SHORT_FACTORS};
use super::keys::{Keys, decimal};
use super::llama3;
use super::rope;
use crate::metadata::Value as Metadatum;
use crate::{Gguf, GgufError, Problem, TensorType};

type Object = Map<String, Value>;

/// The keys that the configs of all architectures have.
fn common(keys: &Keys<'_>, facts: &Facts, model_type: &str) -> Object {
    let mut config = Object::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("model_type", json!(model_type));
    set("hidden_size", json!(facts.hidden));
    set("num_hidden_layers", json!(facts.layers));
    set("intermediate_size", json!(facts.mlp));
    set("num_attention_heads", json!(facts.heads));
    set("num_key_value_heads", json!(facts.key_heads));
    if facts.has_head_dim {
        set("head_dim", json!(facts.head_dim));
    }
    set("rms_norm_eps", json!(facts.epsilon));
    set("vocab_size", json!(facts.vocabulary));
    set("max_position_embeddings", json!(facts.context));
    set("tie_word_embeddings", json!(!keys.has("output.weight")));
    set("torch_dtype", json!(dtype(keys.file)));
    config
}

/// The dtype of the model: float32 for a file whose matrices all are, else bfloat16, in which nearly all models were trained.
fn dtype(file: &Gguf) -> &'static str {
    let mut matrices = file.tensors().map(|tensor| &tensor.info).filter(|info| info.shape.len() > 1);
    if matrices.all(|info| info.kind == TensorType::F32) { "float32" } else { "bfloat16" }
}

/// Adds to the config.
fn set(config: &mut Object, values: Value) {
    if let Value::Object(values) = values {
        config.extend(values.into_iter().filter(|(_, value)| !value.is_null()));
    }
}

/// The keys of [`common`], those of a rotation of whole heads, and which projections have a bias.
fn decoder(keys: &Keys<'_>, facts: &Facts, model_type: &str) -> Result<Object, GgufError> {
    let mut config = common(keys, facts, model_type);
    rope::whole_heads(keys, facts)?;
    set(
        &mut config,
        json!({ "rope_theta": rope::base(keys)?, "rope_scaling": rope::scaling(keys, facts.context)? }),
    );
    Ok(config)
}

/// Which projections have a bias, in architectures whose configs say it.
fn biases(keys: &Keys<'_>) -> Value {
    let attention = keys.has("blk.0.attn_q.bias") || keys.has("blk.0.attn_qkv.bias");
    json!({ "attention_bias": attention, "mlp_bias": keys.has("blk.0.ffn_down.bias"), "hidden_act": "silu" })
}

pub(super) fn llama(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "llama")?;
    set(&mut config, biases(keys));
    llama3_scaling(keys, facts, &mut config)?;
    Ok(config)
}

/// The scaling of Llama 3, which a file has as the factors of the periods.
fn llama3_scaling(keys: &Keys<'_>, facts: &Facts, config: &mut Object) -> Result<(), GgufError> {
    let Some(factors) = rope::factors(keys, ROPE_FREQS, facts.rotated)? else { return Ok(()) };
    let wrong = |problem| keys.file.wrong(Problem::Factors { name: ROPE_FREQS.to_owned(), problem });
    if config.contains_key("rope_scaling") {
        return Err(wrong("the metadata has another scaling of the rotation"));
    }
    let scaling = llama3::scaling(&factors, rope::base(keys)?).map_err(wrong)?;
    set(config, json!({ "rope_scaling": scaling }));
    Ok(())
}

pub(super) fn granite(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "granite")?;
    set(&mut config, biases(keys));
    llama3_scaling(keys, facts, &mut config)?;
    let finetuned = "rope.scaling.finetuned";
    if keys.bool(finetuned)? == Some(false) {
        return Err(keys.wrong(finetuned, false, "true: a Granite without a rotation cannot be loaded"));
    }
    let scale = "logit_scale";
    // Without the others, scores are divided by the root of the length of a key, and nothing is multiplied.
    let of_scores = (facts.head_dim as f64).powf(-0.5);
    set(
        &mut config,
        json!({
            "logits_scaling": keys.needed(scale, keys.number(scale)?)?,
            "attention_multiplier": keys.factor("attention.scale")?.unwrap_or(of_scores),
            "embedding_multiplier": keys.factor("embedding_scale")?.unwrap_or(1.0),
            "residual_multiplier": keys.factor("residual_scale")?.unwrap_or(1.0),
        }),
    );
    Ok(config)
}

pub(super) fn smollm3(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "smollm3")?;
    set(&mut config, biases(keys));
    // Files do not say it; llama.cpp leaves out every fourth rotation, as the only released model does.
    set(&mut config, json!({ "no_rope_layer_interval": 4, "use_sliding_window": false }));
    Ok(config)
}

pub(super) fn mistral3(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let Some(beta) = keys.factor("attention.temperature_scale")? else {
        // A Mistral Small 3.1, whose converter names this architecture too.
        let mut config = decoder(keys, facts, "mistral")?;
        set(&mut config, biases(keys));
        config.insert("sliding_window".to_owned(), Value::Null);
        return Ok(config);
    };
    let mut config = decoder(keys, facts, "ministral3")?;
    let theta = config.remove("rope_theta").unwrap_or_default();
    let mut rope = config.remove("rope_scaling").unwrap_or_else(|| json!({ "rope_type": "default" }));
    if let Some(rope) = rope.as_object_mut() {
        rope.remove("type");
        set(rope, json!({ "rope_theta": theta, "llama_4_scaling_beta": beta }));
        let length = keys.size(rope::ORIGINAL_LENGTH, None)?.unwrap_or(facts.context);
        rope.entry("original_max_position_embeddings").or_insert(json!(length));
    }
    set(&mut config, json!({ "rope_parameters": rope, "hidden_act": "silu", "head_dim": facts.head_dim }));
    config.insert("sliding_window".to_owned(), Value::Null);
    Ok(config)
}

pub(super) fn qwen2(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "qwen2")?;
    set(&mut config, json!({ "hidden_act": "silu", "use_sliding_window": false }));
    Ok(config)
}

pub(super) fn qwen3(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "qwen3")?;
    set(&mut config, biases(keys));
    set(&mut config, json!({ "head_dim": facts.head_dim, "use_sliding_window": false }));
    Ok(config)
}

/// OLMo 2, or OLMo 3 where the file has a window.
pub(super) fn olmo2(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let windows = Windows::read(keys, facts, 4, None)?;
    let mut config = decoder(keys, facts, if windows.is_some() { "olmo3" } else { "olmo2" })?;
    set(&mut config, biases(keys));
    config.insert("tie_word_embeddings".to_owned(), json!(false));
    if let Some(windows) = windows {
        let base = rope::base(keys)?;
        if let Some(found) = rope::base_of_windows(keys)?.filter(|&found| found != base) {
            return Err(keys.wrong(rope::BASE_OF_WINDOWS, found, format!("{base}, as in other layers")));
        }
        set(
            &mut config,
            json!({ "sliding_window": windows.length, "layer_types": windows.layer_types(facts) }),
        );
    }
    Ok(config)
}

pub(super) fn gemma2(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "gemma2")?;
    if let Some(windows) = Windows::read(keys, facts, 2, Some(4096))? {
        set(
            &mut config,
            json!({ "sliding_window": windows.length, "layer_types": windows.layer_types(facts) }),
        );
    }
    let base = rope::base(keys)?;
    if let Some(found) = rope::base_of_windows(keys)?.filter(|&found| found != base) {
        return Err(keys.wrong(rope::BASE_OF_WINDOWS, found, format!("{base}, as in other layers")));
    }
    // 46 layers are Gemma 2 27B.
    set(
        &mut config,
        json!({
            "query_pre_attn_scalar": if facts.layers == 46 { facts.hidden / facts.heads } else { facts.head_dim },
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": facts.head_dim,
        }),
    );
    for (key, default) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        // 0 is no cap.
        let cap = keys.number(key)?.unwrap_or(default);
        config.insert(key.to_owned(), if cap == 0.0 { Value::Null } else { json!(cap) });
    }
    Ok(config)
}

pub(super) fn gemma3(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = decoder(keys, facts, "gemma3_text")?;
    match Windows::read(keys, facts, 6, None)? {
        Some(windows) => {
            set(&mut config, json!({ "sliding_window": windows.length }));
            match &windows.kinds {
                Kinds::FullEvery(pattern) => set(&mut config, json!({ "sliding_window_pattern": pattern })),
                Kinds::Listed(_) => set(&mut config, json!({ "layer_types": windows.layer_types(facts) })),
            }
        }
        None => set(&mut config, json!({ "sliding_window_pattern": 1 })),
    }
    // 62 layers are Gemma 3 27B.
    set(
        &mut config,
        json!({
            "query_pre_attn_scalar": if facts.layers == 62 { facts.hidden / facts.heads } else { facts.head_dim },
            "rope_local_base_freq": rope::base_of_windows(keys)?.unwrap_or(rope::DEFAULT_BASE),
            "hidden_activation": "gelu_pytorch_tanh",
            "head_dim": facts.head_dim,
            "final_logit_softcapping": keys.factor("final_logit_softcapping")?,
        }),
    );
    Ok(config)
}

pub(super) fn phi3(keys: &Keys<'_>, facts: &Facts) -> Result<Object, GgufError> {
    let mut config = common(keys, facts, "phi3");
    let window = keys.full(WINDOW);
    let window = keys.file.metadata().integer(&window).map_err(|problem| keys.file.wrong(problem))?;
    let fraction = facts.rotated as f64 / facts.head_dim as f64;
    let partial = (facts.rotated != facts.head_dim).then_some(fraction);
    config.insert("sliding_window".to_owned(), json!(window.filter(|&window| window != 0)));
    let factors = |name| rope::factors(keys, name, facts.rotated);
    let scaling = match (factors(LONG_FACTORS)?, factors(SHORT_FACTORS)?) {
        (Some(long), Some(short)) => rope::longrope(keys, facts.context, &long, &short, &mut config)?,
        (None, None) => rope::scaling(keys, facts.context)?,
        (long, _) => {
            let missing = if long.is_some() { SHORT_FACTORS } else { LONG_FACTORS };
            return Err(keys.file.wrong(Problem::MissingTensor { name: missing.to_owned() }));
        }
    };
    set(
        &mut config,
        json!({
            "hidden_act": "silu",
            "rope_theta": rope::base(keys)?,
            "rope_scaling": scaling,
            "partial_rotary_factor": partial.map(|partial| decimal(partial as f32)),
        }),
    );
    Ok(config)
}

const WINDOW: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";

/// Which layers have a window, and how long it is.
struct Windows {
    length: i64,
    kinds: Kinds,
}

/// Which layers have no window.
enum Kinds {
    /// Every layer whose number, counted from 1, is a multiple of this.
    FullEvery(i64),
    /// Those that are `false` here.
    Listed(Vec<bool>),
}

impl Windows {
    /// `None` where no layer has a window. `pattern` and `length` are those of files that state none.
    fn read(
        keys: &Keys<'_>,
        facts: &Facts,
        pattern: i64,
        length: Option<i64>,
    ) -> Result<Option<Self>, GgufError> {
        let full = keys.full(PATTERN);
        let listed = match keys.file.metadata().get(&full) {
            Some(Metadatum::Bools(all)) => Some(all.clone()),
            Some(Metadatum::Integers(all)) => Some(all.iter().map(|&is_sliding| is_sliding != 0).collect()),
            _ => None,
        };
        if let Some(all) = listed.as_ref().filter(|all| all.len() != facts.layers) {
            let found = format!("a list of {} values", all.len());
            return Err(keys.wrong(PATTERN, found, format!("one for each of {} layers", facts.layers)));
        }
        let kinds = match listed {
            Some(all) => Kinds::Listed(all),
            None => Kinds::FullEvery(keys.size(PATTERN, None)?.unwrap_or(pattern)),
        };
        let key = keys.full(WINDOW);
        let found = keys.file.metadata().integer(&key).map_err(|problem| keys.file.wrong(problem))?;
        match found.or(length) {
            None | Some(0) => Ok(None),
            Some(length @ 1..=LARGEST) => Ok(Some(Self { length, kinds })),
            Some(other) => Err(keys.wrong(WINDOW, other, format!("between 0 and {LARGEST}"))),
        }
    }

    fn layer_types(&self, facts: &Facts) -> Vec<&'static str> {
        let is_sliding = |layer: usize| match &self.kinds {
            Kinds::FullEvery(pattern) => (layer as i64 + 1) % pattern != 0,
            Kinds::Listed(all) => all[layer],
        };
        let name = |layer| if is_sliding(layer) { "sliding_attention" } else { "full_attention" };
        (0..facts.layers).map(name).collect()
    }
}
