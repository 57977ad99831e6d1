//! What a file says of its model: special sizes, fused and permuted projections, and files that contradict themselves.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use mlx_gguf::model::{ARCHITECTURES, Change, Model};
use mlx_gguf::{Gguf, NewTensor, TensorType, Value, Writer};
use serde_json::json;

/// The metadata and the shapes of the tensors of a small model.
#[derive(Clone)]
struct File {
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Vec<usize>>,
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A model of 32 features with four query heads and two key-value heads.
fn file(architecture: &str) -> File {
    let sizes = [
        ("block_count", 1),
        ("context_length", 128),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ];
    let size = |(key, size): (&str, i128)| (format!("{architecture}.{key}"), Value::Integer(size));
    let mut metadata: BTreeMap<String, Value> = sizes.into_iter().map(size).collect();
    metadata.insert("general.architecture".to_owned(), text(architecture));
    metadata.insert(
        format!("{architecture}.attention.layer_norm_rms_epsilon"),
        Value::Float(f64::from(1e-6_f32)),
    );
    let shapes: [(&str, &[usize]); 4] = [
        ("token_embd.weight", &[40, 32]),
        ("output_norm.weight", &[32]),
        ("blk.0.attn_q.weight", &[32, 32]),
        ("blk.0.attn_k.weight", &[16, 32]),
    ];
    let tensors = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec())).collect();
    File { metadata, tensors }
}

impl File {
    fn with(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    fn without(mut self, key: &str) -> Self {
        assert!(self.metadata.remove(key).is_some() || self.tensors.remove(key).is_some(), "{key}");
        self
    }

    fn tensor(mut self, name: &str, shape: &[usize]) -> Self {
        self.tensors.insert(name.to_owned(), shape.to_vec());
        self
    }

    /// The model, or the message of the error. The numbers of the tensors are 1.
    fn model(&self) -> Result<Model, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let metadata: Vec<(String, Value)> = self.metadata.clone().into_iter().collect();
        let tensor = |(name, shape): (&String, &Vec<usize>)| NewTensor {
            name: name.clone(),
            kind: TensorType::F32,
            shape: shape.clone(),
        };
        let tensors: Vec<NewTensor> = self.tensors.iter().map(tensor).collect();
        let sizes: Vec<usize> = tensors.iter().map(NewTensor::elements).collect();
        let mut writer = Writer::create(&path, &metadata, tensors).unwrap();
        sizes.into_iter().for_each(|size| writer.append(&vec![1.0; size]).unwrap());
        writer.finish().unwrap();
        Gguf::open(&path).unwrap().model().map_err(|error| error.to_string())
    }
}

#[test]
fn numbers_that_files_do_not_say_are_those_of_llama_cpp() {
    for architecture in ARCHITECTURES {
        let mut file = file(architecture.name);
        if architecture.name == "granite" {
            file = file.with("granite.logit_scale", Value::Float(8.0));
        }
        if architecture.name == "phi3" {
            file = file.without("blk.0.attn_q.weight").without("blk.0.attn_k.weight");
        }
        let config = file.model().unwrap().config;
        assert_eq!(config["hidden_size"], 32, "{}", architecture.name);
        assert_eq!(config["rms_norm_eps"], json!(1e-6));
        assert_eq!(config["rope_theta"], 10_000.0);
        let types = architecture.model_types;
        let model_type = config["model_type"].as_str().unwrap();
        assert!(types.contains(&model_type) || model_type == "mistral", "{model_type}");
    }
    let scalar = |name: &str, layers: i128| {
        let file = file(name).with(&format!("{name}.block_count"), Value::Integer(layers));
        let file = file.with(&format!("{name}.attention.key_length"), Value::Integer(16));
        file.model().unwrap().config["query_pre_attn_scalar"].as_i64().unwrap()
    };
    assert_eq!([scalar("gemma2", 42), scalar("gemma2", 46)], [16, 8]);
    assert_eq!([scalar("gemma3", 48), scalar("gemma3", 62)], [16, 8]);
    let gemma2 = file("gemma2").model().unwrap().config;
    assert_eq!([&gemma2["attn_logit_softcapping"], &gemma2["final_logit_softcapping"]], [50.0, 30.0]);
    assert_eq!(
        (&gemma2["sliding_window"], &gemma2["layer_types"]),
        (&json!(4096), &json!(["sliding_attention"]))
    );
    let granite = file("granite").with("granite.logit_scale", Value::Float(8.0)).model().unwrap().config;
    assert_eq!([&granite["embedding_multiplier"], &granite["residual_multiplier"]], [1.0, 1.0]);
    assert_eq!(granite["attention_multiplier"], 8_f64.powf(-0.5));
}

#[test]
fn factors_that_an_architecture_does_not_read_are_refused() {
    for architecture in ARCHITECTURES {
        let name = architecture.name;
        let reads: &[&str] = match name {
            "llama" | "granite" => &["rope_freqs.weight"],
            "phi3" => &["rope_factors_long.weight", "rope_factors_short.weight"],
            _ => &[],
        };
        for factors in ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"] {
            let mut file = file(name).tensor(factors, &[4]);
            if name == "granite" {
                file = file.with("granite.logit_scale", Value::Float(8.0));
            }
            if name == "phi3" {
                file = file.without("blk.0.attn_q.weight").without("blk.0.attn_k.weight");
            }
            let found = file.model().err().unwrap_or_default();
            assert_eq!(
                found.contains(&format!("tensor {factors}: models of the architecture {name} have no such")),
                !reads.contains(&factors),
                "{name}: {found}"
            );
        }
    }
}

#[test]
fn one_projection_for_queries_keys_and_values_is_three() {
    let llama = file("llama").without("blk.0.attn_q.weight").without("blk.0.attn_k.weight");
    let tensors = llama.tensor("blk.0.attn_qkv.weight", &[64, 32]).model().unwrap().tensors;
    let find = |part: &str| tensors.iter().find(|tensor| tensor.key.contains(part)).unwrap();
    let (q, k, v) = (find("q_proj"), find("k_proj"), find("v_proj"));
    assert_eq!((q.rows.clone(), q.change, &q.shape[..]), (0..32, Change::Halves { heads: 4 }, &[32, 32][..]));
    assert_eq!(
        (k.rows.clone(), k.change, &k.shape[..]),
        (32..48, Change::Halves { heads: 2 }, &[16, 32][..])
    );
    assert_eq!(
        (v.rows.clone(), v.change, &*v.key),
        (48..64, Change::None, "model.layers.0.self_attn.v_proj.weight")
    );
    let gemma = file("gemma3").model().unwrap().tensors;
    assert!(
        gemma.iter().any(|tensor| tensor.key == "model.norm.weight" && tensor.change == Change::MinusOne)
    );
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn files_that_contradict_themselves_name_the_key() {
    let llama = || file("llama");
    let number = Value::Integer;
    let bools = |count: usize| Value::Bools(vec![true; count]);
    for (file, expected) in [
        (
            llama().without("general.architecture"),
            "metadata general.architecture is \"\"; known are gemma2, gemma3",
        ),
        (llama().with("general.architecture", text("mamba")), "general.architecture is \"mamba\"; known are"),
        (llama().with("general.type", text("adapter")), "general.type is adapter, and must be model"),
        (llama().without("llama.block_count"), "model.gguf: metadata llama.block_count is missing"),
        (llama().with("llama.block_count", number(0)), "llama.block_count is 0, and must be at least 1"),
        (
            llama().with("llama.block_count", number(1 << 62)),
            "llama.block_count is 4611686018427387904, and must be at most 4096",
        ),
        (
            llama().with("llama.context_length", number((1 << 28) + 1)),
            "llama.context_length is 268435457, and must be at most 268435456",
        ),
        (
            llama().with("llama.block_count", number(100_000)),
            "llama.block_count is 100000, and must be at most 4096",
        ),
        (llama().with("llama.block_count", text("1")), "llama.block_count is \"1\", and must be an integer"),
        (llama().with("llama.attention.head_count", number(0)), "llama.attention.head_count is 0"),
        (llama().with("llama.attention.head_count", number(-4)), "llama.attention.head_count is -4"),
        (
            llama().with("llama.attention.head_count", number(5)),
            "llama.attention.head_count_kv is 2, and must be a divisor of 5",
        ),
        (
            llama().with("llama.attention.head_count", Value::Integers(vec![4, 4])),
            "llama.attention.head_count is a list of 2 integers, and must be a number for each of 1 layers",
        ),
        (
            llama()
                .with("llama.block_count", number(2))
                .with("llama.feed_forward_length", Value::Integers(vec![64, 32])),
            "llama.feed_forward_length is 64 in one layer and 32 in another, and must be the same in all layers",
        ),
        (
            llama().with("llama.attention.value_length", number(16)),
            "llama.attention.value_length is 16, and must be 8",
        ),
        (
            llama().with("llama.rope.dimension_count", number(4)),
            "llama.rope.dimension_count is 4, and must be 8",
        ),
        (llama().with("llama.embedding_length", number(64)), "llama.embedding_length is 64, and must be 32"),
        (
            llama().with("llama.vocab_size", number(41)),
            "llama.vocab_size is 41, and must be 40, the number of rows",
        ),
        (
            llama().with("llama.attention.causal", Value::Bool(false)),
            "llama.attention.causal is false, and must be true",
        ),
        (llama().with("llama.expert_count", number(8)), "llama.expert_count is 8, and must be 0"),
        (
            llama().with("llama.rope.freq_base", Value::Float(f64::NAN)),
            "llama.rope.freq_base is NaN, and must be a finite",
        ),
        (
            llama().with("llama.rope.scaling.type", text("dynamic")),
            "llama.rope.scaling.type is \"dynamic\", and must be none",
        ),
        (llama().with("llama.rope.scaling.type", text("yarn")), "llama.rope.scaling.factor is missing"),
        (
            llama().with("llama.something", number(1)),
            "metadata llama.something: models of the architecture llama have no such key",
        ),
        (llama().without("token_embd.weight"), "tensor token_embd.weight is missing"),
        (
            llama().tensor("token_embd.weight", &[40]),
            "tensor token_embd.weight has dimensions [40]: it must have two",
        ),
        (
            llama().tensor("blk.1.attn_v.weight", &[16, 32]),
            "llama.block_count is 1, and must be more, since there is a tensor blk.1",
        ),
        (llama().tensor("blk.0.attn_q.weight", &[33, 32]), "its rows are not pairs for the heads"),
        (
            llama().tensor("blk.0.attn_qkv.weight", &[65, 32]),
            "its rows are not those of the queries, keys and values",
        ),
        (llama().tensor("blk.0.attn_qkv.weight", &[64, 32]), "are the same part of the model"),
        (
            llama().tensor("blk.0.ssm_a", &[4]),
            "tensor blk.0.ssm_a: models of the architecture llama have no such tensor",
        ),
        (
            llama().tensor("rope_freqs.weight", &[5]),
            "tensor rope_freqs.weight: it must have one for each pair",
        ),
        (
            file("phi3").tensor("rope_factors_long.weight", &[4]),
            "tensor rope_factors_short.weight is missing",
        ),
        (file("granite"), "metadata granite.logit_scale is missing"),
        (
            file("olmo2")
                .with("olmo2.attention.sliding_window", number(4))
                .with("olmo2.attention.sliding_window_pattern", bools(2)),
            "olmo2.attention.sliding_window_pattern is a list of 2 values, and must be one for each of 1 layers",
        ),
        (
            file("gemma3").with("gemma3.attention.sliding_window", number(-1)),
            "gemma3.attention.sliding_window is -1, and must be between 0",
        ),
    ] {
        let error = file.model().unwrap_err();
        assert!(error.contains(expected), "{error}\n{expected}");
    }
}

#[test]
fn what_has_no_effect_is_accepted() {
    let file = file("qwen3")
        .with("qwen3.pooling_type", Value::Integer(3))
        .with("qwen3.expert_count", Value::Integer(0))
        .with("general.author", text("somebody"))
        .with("another.program", Value::Bool(true))
        .tensor("blk.0.attn_rot_embd.weight", &[4]);
    assert_eq!(file.model().unwrap().tensors.len(), 4);
}
