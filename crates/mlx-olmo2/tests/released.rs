//! The facts of released models, from the configs of their checkpoints.
use mlx_olmo2::{ARCHITECTURE, Olmo2};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::json;

const OLMO_2: Released = Released {
    names: &["OLMo-2-0425-1B"],
    model_type: "olmo2",
    sizes: [2048, 8192, 16, 100_352],
    heads: [16, 16],
    context: 4096,
    base: 500_000.0,
    rest: || json!({ "tie_word_embeddings": false, "attention_bias": false, "rms_norm_eps": 1e-6 }),
    head_dim: 128,
    slowest: Released::plain,
    window: Released::no_window,
    has_own_head: true,
};

const RELEASED: &[Released] = &[
    OLMO_2,
    Released { names: &["OLMo-2-1124-7B"], sizes: [4096, 11008, 32, 100_352], heads: [32, 32], ..OLMO_2 },
    Released { names: &["OLMo-2-1124-13B"], sizes: [5120, 13824, 40, 100_352], heads: [40, 40], ..OLMO_2 },
    Released { names: &["OLMo-2-0325-32B"], sizes: [5120, 27648, 64, 100_352], heads: [40, 8], ..OLMO_2 },
];

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(Olmo2::config(checkpoint)?.into()));
}
