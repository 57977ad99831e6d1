//! The facts of released models, from the configs of their checkpoints.
use mlx_gemma2::{ARCHITECTURE, Gemma2};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

const GEMMA_2: Released = Released {
    names: &["gemma-2-2b", "gemma-2-2b-it"],
    model_type: "gemma2",
    sizes: [2304, 9216, 26, 256_000],
    heads: [8, 4],
    context: 8192,
    base: 10_000.0,
    rest: || rest(256, 256),
    head_dim: 256,
    slowest: Released::plain,
    window: |layer| (layer % 2 == 0).then_some(4096),
    has_own_head: false,
};

const RELEASED: &[Released] = &[
    GEMMA_2,
    Released { names: &["gemma-2-9b"], sizes: [3584, 14336, 42, 256_000], heads: [16, 8], ..GEMMA_2 },
    Released {
        names: &["gemma-2-27b"],
        sizes: [4608, 36864, 46, 256_000],
        heads: [32, 16],
        rest: || rest(128, 144),
        head_dim: 128,
        ..GEMMA_2
    },
];

fn rest(head_dim: i32, query_pre_attn_scalar: i32) -> Value {
    json!({
        "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": head_dim,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": query_pre_attn_scalar, "rms_norm_eps": 1e-6, "sliding_window": 4096,
        "sliding_window_size": 4096,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(Gemma2::config(checkpoint)?.into()));
}
