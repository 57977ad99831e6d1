//! Keys that real configs have, also in the wrong place and with other values.

use serde_json::{Value, json};

use super::json::{Word, anything};
use super::random::Random;
use super::values::{interesting_float, interesting_number, interesting_text};

/// Keys of `config.json`.
pub(super) const CONFIG: &[Word] = &[
    |r| ("rope_scaling".to_owned(), rope(r)),
    |r| ("rope_scaling".to_owned(), rope(r)),
    |r| ("rope_parameters".to_owned(), rope_parameters(r)),
    |r| ("quantization".to_owned(), quantization(r)),
    |r| ("quantization_config".to_owned(), quantization(r)),
    |r| ("layer_types".to_owned(), layer_types(r)),
    |r| ("no_rope_layers".to_owned(), rotating(r)),
    |r| {
        (
            "model_type".to_owned(),
            json!(r.one(&[
                "gemma2",
                "gemma3_text",
                "gemma3",
                "granite",
                "ministral3",
                "mistral3",
                "olmo2",
                "olmo3",
                "phi3",
                "qwen2",
                "qwen3",
                "smollm3",
                "lille-130m",
                "llama"
            ])),
        )
    },
    |r| ("torch_dtype".to_owned(), json!(r.one(&["float32", "float16", "bfloat16", "float8"]))),
    |r| ("hidden_act".to_owned(), json!(r.one(&["silu", "gelu", "gelu_pytorch_tanh", "relu"]))),
    |r| (a_size(r), interesting_number(r)),
    |r| (a_size(r), interesting_number(r)),
    |r| (a_flag(r), json!(r.once_in(2))),
    |r| (a_flag(r), anything(r)),
    |r| ("eos_token_id".to_owned(), token_ids(r)),
    |r| {
        let inner = json!({ a_size(r): interesting_number(r), a_flag(r): true, "rope_scaling": rope(r) });
        (r.one(&["text_config", "vision_config"]).to_owned(), inner)
    },
];

/// Keys of `generation_config.json`.
pub(super) const GENERATION: &[Word] = &[
    |r| ("eos_token_id".to_owned(), token_ids(r)),
    |r| ("bos_token_id".to_owned(), token_ids(r)),
    |r| ("temperature".to_owned(), json!(interesting_float(r))),
    |r| ("stop_strings".to_owned(), json!([interesting_text(r)])),
];

/// Keys of `tokenizer_config.json` and `special_tokens_map.json`.
pub(super) const TOKENIZER_CONFIG: &[Word] = &[
    |r| (a_token(r), token(r)),
    |r| (a_token(r), token(r)),
    |r| ("chat_template".to_owned(), chat_template(r)),
    |r| ("additional_special_tokens".to_owned(), json!([token(r), token(r)])),
    |r| ("extra_special_tokens".to_owned(), json!({ interesting_text(r): token(r) })),
    |r| ("extra_special_tokens".to_owned(), json!([token(r)])),
    |r| ("add_bos_token".to_owned(), anything(r)),
    |r| ("added_tokens_decoder".to_owned(), json!({ interesting_number(r).to_string(): token(r) })),
    |r| ("tokenizer_class".to_owned(), json!(interesting_text(r))),
    |r| ("model_max_length".to_owned(), interesting_number(r)),
];

/// Keys of `model.safetensors.index.json`.
pub(super) const INDEX: &[Word] = &[
    |r| ("weight_map".to_owned(), json!({ interesting_text(r): a_shard(r) })),
    |r| (interesting_text(r), a_shard(r)),
    |r| ("metadata".to_owned(), json!({ "total_size": interesting_number(r) })),
];

/// Keys of `adapter_config.json`, mlx-lm's and PEFT's.
pub(super) const ADAPTERS: &[Word] = &[
    |r| ("fine_tune_type".to_owned(), json!(r.one(&["lora", "dora", "full", "LORA", ""]))),
    |r| ("num_layers".to_owned(), interesting_number(r)),
    |r| {
        let keys = json!([interesting_text(r), "self_attn.q_proj"]);
        let lora = json!({ "rank": interesting_number(r), "scale": interesting_float(r), "dropout": 0.0, "keys": keys });
        ("lora_parameters".to_owned(), lora)
    },
    |r| ("rank".to_owned(), interesting_number(r)),
    |r| ("scale".to_owned(), interesting_number(r)),
    |r| ("keys".to_owned(), json!([interesting_text(r)])),
    |r| ("peft_type".to_owned(), json!(r.one(&["LORA", "IA3", "lora"]))),
    |r| ("r".to_owned(), interesting_number(r)),
    |r| ("lora_alpha".to_owned(), interesting_number(r)),
    |r| ("target_modules".to_owned(), json!(interesting_text(r))),
    |r| ("target_modules".to_owned(), json!(["q_proj", interesting_text(r)])),
    |r| ("use_rslora".to_owned(), anything(r)),
    |r| ("use_dora".to_owned(), anything(r)),
    |r| ("rank_pattern".to_owned(), json!({ interesting_text(r): interesting_number(r) })),
    |r| ("alpha_pattern".to_owned(), json!({ interesting_text(r): interesting_number(r) })),
    |r| ("modules_to_save".to_owned(), json!([interesting_text(r)])),
    |r| ("layers_to_transform".to_owned(), json!([interesting_number(r)])),
    |r| ("layers_pattern".to_owned(), json!(interesting_text(r))),
    |r| ("exclude_modules".to_owned(), json!(interesting_text(r))),
    |r| ("bias".to_owned(), json!(r.one(&["none", "all", "lora_only"]))),
];

/// Values of a config that a model could have; its tensors are made to fit.
const USUAL: &[(&str, &[i64])] = &[
    ("hidden_size", &[32, 64, 96, 160, 256]),
    ("n_embd", &[32, 64, 96, 160, 256]),
    ("intermediate_size", &[1, 7, 32, 100, 128]),
    ("num_hidden_layers", &[1, 2, 3, 7]),
    ("n_layer", &[1, 2, 3, 7]),
    ("num_attention_heads", &[1, 2, 4, 8]),
    ("n_head", &[1, 2, 4, 8]),
    ("num_key_value_heads", &[1, 2, 4]),
    ("n_kv_heads", &[1, 2, 4]),
    ("head_dim", &[2, 8, 16, 24, 40, 64, 80, 96, 128, 256]),
    ("vocab_size", &[1024, 1000, 1025, 300]),
    ("max_position_embeddings", &[1, 2, 64, 100, 40_960, 131_072]),
    ("block_size", &[1, 2, 64, 100, 40_960, 131_072]),
    ("original_max_position_embeddings", &[1, 16, 64, 4096]),
    ("sliding_window", &[1, 2, 7, 32, 100]),
    ("sliding_window_pattern", &[1, 2, 3, 6]),
    ("query_pre_attn_scalar", &[1, 16, 256]),
];

/// Gives some keys of a config other values that models have, and sometimes another rotation.
pub(super) fn vary(config: &mut Value, random: &mut Random) {
    let Value::Object(config) = config else { return };
    for _ in 0..random.below(4) {
        let there: Vec<_> = USUAL.iter().filter(|(key, _)| config.contains_key(*key)).collect();
        if let Some((key, values)) = there.get(random.below(there.len())) {
            config.insert((*key).to_owned(), json!(random.one(values)));
        }
    }
    if random.once_in(2) {
        let mut scaling = rope(random);
        // The config has its own scaling, and would contradict the new one.
        for key in ["rope_theta", "partial_rotary_factor"] {
            scaling.as_object_mut().and_then(|scaling| scaling.remove(key));
        }
        config.insert("rope_scaling".to_owned(), scaling);
    }
    if let (Some(layers), true) = (config.get("num_hidden_layers").and_then(Value::as_u64), random.once_in(2))
    {
        let kinds = (0..layers.min(20)).map(|_| random.one(&["full_attention", "sliding_attention"]));
        config.insert("layer_types".to_owned(), kinds.collect());
    }
    for key in ["tie_word_embeddings", "attention_bias", "use_sliding_window"] {
        if random.once_in(6) && config.contains_key(key) {
            config.insert(key.to_owned(), json!(random.once_in(2)));
        }
    }
}

fn a_size(random: &mut Random) -> String {
    let names = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "sliding_window",
        "sliding_window_pattern",
        "max_window_layers",
        "no_rope_layer_interval",
        "rope_theta",
        "rope_local_base_freq",
        "rms_norm_eps",
        "query_pre_attn_scalar",
        "partial_rotary_factor",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "n_embd",
        "n_head",
        "n_kv_heads",
        "n_layer",
        "block_size",
        "layer_norm_eps",
        "bos_token_id",
        "pad_token_id",
    ];
    random.one(&names).to_owned()
}

fn a_flag(random: &mut Random) -> String {
    let names = [
        "tie_word_embeddings",
        "attention_bias",
        "use_sliding_window",
        "use_bidirectional_attention",
        "rope_interleaved",
    ];
    random.one(&names).to_owned()
}

fn a_token(random: &mut Random) -> String {
    random
        .one(&["bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token"])
        .to_owned()
}

fn a_shard(random: &mut Random) -> Value {
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "../model.safetensors",
        "config.json",
        "/dev/zero",
    ];
    if random.once_in(4) { json!(interesting_text(random)) } else { json!(random.one(&names)) }
}

fn token(random: &mut Random) -> Value {
    match random.below(3) {
        0 => {
            json!({ "content": interesting_text(random), "lstrip": random.once_in(2), "special": random.once_in(2) })
        }
        1 => json!("<|endoftext|>"),
        _ => json!(interesting_text(random)),
    }
}

fn token_ids(random: &mut Random) -> Value {
    match random.below(3) {
        0 => json!([interesting_number(random), interesting_number(random)]),
        _ => interesting_number(random),
    }
}

fn chat_template(random: &mut Random) -> Value {
    let text = super::template::template(random);
    match random.below(3) {
        0 => {
            json!([{ "name": "default", "template": text }, { "name": "tool_use", "template": interesting_text(random) }])
        }
        1 => json!({ "default": text }),
        _ => json!(text),
    }
}

fn quantization(random: &mut Random) -> Value {
    let sizes = |random: &mut Random| {
        let bits = random.one(&[2, 3, 4, 5, 6, 8, 0, 7, -4, 32]);
        json!({ "bits": bits, "group_size": random.one(&[32, 64, 128, 16, 0, -32]) })
    };
    let mut all = sizes(random);
    if random.once_in(3) {
        all["mode"] = json!(random.one(&["affine", "mxfp4", "mxfp8", "nvfp4", "gguf"]));
    }
    if random.once_in(2) {
        let layer = random.one(&["model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head", "a"]);
        all[layer] = if random.once_in(2) { json!(random.once_in(2)) } else { sizes(random) };
    }
    if random.once_in(8) {
        let methods = ["awq", "gptq", "fp8", "fbgemm_fp8", "compressed-tensors", "bitsandbytes", "mxfp4"];
        all["quant_method"] = json!(random.one(&methods));
        all["checkpoint_format"] = json!(random.one(&["gptq", "gptq_v2", "marlin"]));
        all["weight_block_size"] = random.one(&[json!([128, 128]), json!([1, 0]), json!([1]), Value::Null]);
        all["format"] = json!(random.one(&["gemm", "pack-quantized", "float-quantized"]));
    }
    all
}

fn layer_types(random: &mut Random) -> Value {
    let types = ["full_attention", "sliding_attention", "chunked_attention", "linear_attention"];
    let count = random.below(9);
    let known = if random.once_in(3) { types.len() } else { 2 };
    Value::Array((0..count).map(|_| json!(random.one(&types[..known]))).collect())
}

/// Which layers have a rotation.
fn rotating(random: &mut Random) -> Value {
    let count = random.below(9);
    let largest = if random.once_in(3) { 3 } else { 2 };
    Value::Array((0..count).map(|_| json!(random.below(largest))).collect())
}

/// A scaling of positions, of every type, with most of its keys and some keys of other types.
fn rope(random: &mut Random) -> Value {
    let types =
        ["default", "linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional", "ntk"];
    let mut scaling = json!({});
    let key = random.one(&["type", "rope_type"]);
    scaling[key] = json!(random.one(&types));
    scaling["factor"] = number(random, &[1.0, 2.0, 8.0]);
    for (key, usual) in [
        ("original_max_position_embeddings", &[64.0, 512.0][..]),
        ("low_freq_factor", &[1.0]),
        ("high_freq_factor", &[4.0]),
        ("attention_factor", &[1.0, 1.2]),
        ("beta_fast", &[32.0]),
        ("beta_slow", &[1.0]),
        ("mscale", &[1.0]),
        ("mscale_all_dim", &[0.0, 1.0]),
        ("llama_4_scaling_beta", &[0.0, 0.1]),
        ("rope_theta", &[10_000.0]),
        ("partial_rotary_factor", &[0.5, 0.75, 1.0]),
        ("short_mscale", &[1.0]),
        ("long_mscale", &[1.2]),
    ] {
        if random.once_in(2) {
            scaling[key] = number(random, usual);
        }
    }
    for key in ["short_factor", "long_factor"] {
        if random.once_in(2) {
            let count = random.one(&[12, 16, 24, 4, 0]);
            scaling[key] = Value::Array((0..count).map(|_| number(random, &[1.0, 1.5, 4.0])).collect());
        }
    }
    if random.once_in(4) {
        scaling["mrope_section"] = json!([random.below(9), random.below(9), random.below(9)]);
    }
    scaling
}

fn rope_parameters(random: &mut Random) -> Value {
    match random.below(3) {
        0 => json!({ "full_attention": rope(random), "sliding_attention": rope(random) }),
        1 => json!({ "full_attention": rope(random) }),
        _ => rope(random),
    }
}

/// Mostly one of the usual values. Whole numbers are written as integers.
fn number(random: &mut Random, usual: &[f64]) -> Value {
    if random.once_in(8) {
        return interesting_number(random);
    }
    let number = random.one(usual);
    if number.fract() == 0.0 && random.once_in(2) { json!(number as i64) } else { json!(number) }
}
