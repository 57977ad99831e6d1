//! The context lengths of real configs.
//!
//! The expected values come from the model cards, or from their instructions to extend the context. Comments name the
//! values of vLLM's `_get_and_verify_max_len` where these differ.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use mlx_rope::{RopeError, RopeKeys};
use serde_json::{Value, json};

fn keys(config: &Value) -> RopeKeys {
    serde_json::from_value(config.clone()).unwrap()
}

/// The context length of a config that states `max_position_embeddings`.
fn context(config: &Value) -> Result<i32, RopeError> {
    let stated = config["max_position_embeddings"].as_i64().unwrap();
    keys(config).context_length(stated as i32)
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table of cases")]
fn the_context_of_real_configs() {
    let yarn = |factor: f64, original: i32| json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
    let long = json!({ "type": "longrope", "short_factor": [1.0], "long_factor": [2.0] });
    let long_with_factor =
        json!({ "type": "longrope", "factor": 64.0, "short_factor": [1.0], "long_factor": [2.0] });
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    let llama3 = |factor: f64| {
        json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 })
    };
    let plain = |base: i32| json!({ "rope_type": "default", "rope_theta": base });
    for (name, expected, config) in [
        ("Qwen3-8B", 40_960, json!({ "max_position_embeddings": 40960, "rope_scaling": null })),
        (
            "Qwen3-8B, v5",
            40_960,
            json!({ "max_position_embeddings": 40960, "rope_parameters": plain(1_000_000) }),
        ),
        (
            "Qwen3-8B as its card extends it",
            131_072,
            json!({ "max_position_embeddings": 40960, "rope_scaling": yarn(4.0, 32768) }),
        ),
        (
            "the same, v5",
            131_072,
            json!({ "max_position_embeddings": 40960, "rope_parameters": yarn(4.0, 32768) }),
        ),
        (
            "the same, stated already",
            131_072,
            json!({ "max_position_embeddings": 131072, "rope_scaling": yarn(4.0, 32768) }),
        ),
        (
            "the same, original length outside",
            131_072,
            json!({ "max_position_embeddings": 40960, "original_max_position_embeddings": 32768,
                "rope_scaling": { "rope_type": "yarn", "factor": 4.0 } }),
        ),
        (
            "Qwen3-8B, twice as long as trained",
            65_536,
            json!({ "max_position_embeddings": 40960, "rope_scaling": yarn(2.0, 32768) }),
        ),
        // vLLM: 32768, less than without YaRN.
        (
            "Qwen3-8B, a factor that extends nothing",
            40_960,
            json!({ "max_position_embeddings": 40960, "rope_scaling": yarn(1.0, 32768) }),
        ),
        (
            "a factor that is no whole number",
            49_152,
            json!({ "max_position_embeddings": 32768, "rope_scaling": yarn(1.5, 32768) }),
        ),
        (
            "Olmo-3.1-32B",
            65_536,
            json!({ "max_position_embeddings": 65536, "rope_scaling": yarn(8.0, 8192) }),
        ),
        (
            "Olmo-3.1-32B, v5",
            65_536,
            json!({ "max_position_embeddings": 65536, "rope_parameters": {
                "full_attention": yarn(8.0, 8192), "sliding_attention": plain(500_000) } }),
        ),
        (
            "OLMo 3 with two kinds of layers, extended",
            131_072,
            json!({ "max_position_embeddings": 65536, "rope_parameters": {
                "full_attention": yarn(16.0, 8192), "sliding_attention": plain(500_000) } }),
        ),
        (
            "gpt-oss-20b",
            131_072,
            json!({ "max_position_embeddings": 131072, "rope_scaling": yarn(32.0, 4096) }),
        ),
        (
            "DeepSeek-V3",
            163_840,
            json!({ "max_position_embeddings": 163840, "rope_scaling": yarn(40.0, 4096) }),
        ),
        (
            "Phi-3-mini-4k",
            4096,
            json!({ "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rope_scaling": null }),
        ),
        (
            "Phi-3-mini-128k",
            131_072,
            json!({ "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_scaling": long }),
        ),
        // A factor of LongRoPE is not applied a second time, whatever it is.
        (
            "LongRoPE with a factor",
            131_072,
            json!({ "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
                "rope_scaling": long_with_factor }),
        ),
        (
            "Phi-3-mini-4k with positions divided by 8",
            32_768,
            json!({ "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rope_scaling": linear }),
        ),
        // vLLM has an exception for Gemma 3, whose config states the length after the extension.
        ("gemma-3-12b", 131_072, json!({ "max_position_embeddings": 131072, "rope_scaling": linear })),
        (
            "gemma-3-12b, v5",
            131_072,
            json!({ "max_position_embeddings": 131072, "rope_parameters": {
                "full_attention": linear, "sliding_attention": plain(10_000) } }),
        ),
        (
            "gemma-3-1b",
            32_768,
            json!({ "max_position_embeddings": 32768, "rope_scaling": null, "rope_theta": 1e6 }),
        ),
        // States 16384, and its card says 16K. vLLM: 65536.
        (
            "deepseek-coder-6.7b",
            16_384,
            json!({ "max_position_embeddings": 16384, "rope_scaling": { "type": "linear", "factor": 4.0 } }),
        ),
        ("Llama-3.1-8B", 131_072, json!({ "max_position_embeddings": 131072, "rope_scaling": llama3(8.0) })),
        // 32 * 8192 would be 262144.
        ("Llama-3.2-1B", 131_072, json!({ "max_position_embeddings": 131072, "rope_scaling": llama3(32.0) })),
        (
            "Qwen2.5-VL-7B",
            128_000,
            json!({ "max_position_embeddings": 128000, "rope_scaling": { "type": "mrope", "mrope_section": [16, 24, 24] } }),
        ),
    ] {
        assert_eq!(context(&config).unwrap(), expected, "{name}");
    }
}

/// In a model whose layers all have a window, the stated context length applies.
#[test]
fn windows_do_not_extend_the_context() {
    let config = json!({ "max_position_embeddings": 4096, "rope_parameters": {
        "sliding_attention": { "rope_type": "linear", "factor": 4.0 } } });
    assert_eq!(context(&config).unwrap(), 4096);
}

#[test]
fn settings_without_a_valid_context_length_are_errors() {
    let with = |factor: f64, original: f64| {
        context(&json!({ "max_position_embeddings": 4096, "rope_scaling": {
            "type": "yarn", "factor": factor, "original_max_position_embeddings": original } }))
        .unwrap_err()
        .to_string()
    };
    let beyond =
        "factor is 100000, and must be such that factor * original_max_position_embeddings is at most 2^28";
    assert_eq!(with(1e5, 32768.0), beyond);
    assert!(with(1e300, 32768.0).starts_with("factor is 1"));
    assert!(with(0.5, 32768.0).starts_with("factor is 0.5, and must be"));
    assert!(with(4.0, 0.5).starts_with("original_max_position_embeddings is 0.5"));
    let twice = json!({ "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rope_scaling": { "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192 } });
    assert!(context(&twice).unwrap_err().to_string().contains("contradicts itself"));
}
