//! The facts of released models, from the configs of their checkpoints.

use mlx_qwen2::{ARCHITECTURE, Qwen2};
use mlx_testing::released::{Released, facts_are_read};
use serde_json::{Value, json};

const QWEN_0_5B: Released = Released {
    names: &["Qwen2.5-0.5B", "Qwen2.5-0.5B-Instruct"],
    model_type: "qwen2",
    sizes: [896, 4864, 24, 151_936],
    heads: [14, 2],
    context: 32768,
    base: 1_000_000.0,
    rest: || rest(true, 32768, 24),
    head_dim: 64,
    slowest: Released::plain,
    window: Released::no_window,
    has_own_head: false,
};
const QWEN_1_5B: Released = Released {
    names: &["Qwen2.5-1.5B-Instruct"],
    sizes: [1536, 8960, 28, 151_936],
    heads: [12, 2],
    rest: || rest(true, 32768, 21),
    head_dim: 128,
    ..QWEN_0_5B
};
const QWEN_7B: Released = Released {
    names: &["Qwen2.5-7B-Instruct", "Qwen2.5-Coder-7B", "Qwen2.5-Coder-7B-Instruct"],
    sizes: [3584, 18944, 28, 152_064],
    heads: [28, 4],
    rest: || rest(false, 131_072, 28),
    head_dim: 128,
    has_own_head: true,
    ..QWEN_0_5B
};
/// `max_window_layers` is more than the 64 layers.
const QWEN_32B: Released = Released {
    names: &["Qwen2.5-32B-Instruct"],
    sizes: [5120, 27648, 64, 152_064],
    heads: [40, 8],
    rest: || rest(false, 131_072, 70),
    ..QWEN_7B
};

const RELEASED: &[Released] = &[
    Released { names: &["Qwen1.5-0.5B"], sizes: [1024, 2816, 24, 151_936], heads: [16, 16], ..QWEN_0_5B },
    Released { names: &["Qwen2-0.5B"], context: 131_072, ..QWEN_0_5B },
    Released { names: &["Qwen2-7B-Instruct"], ..QWEN_7B },
    QWEN_0_5B,
    QWEN_1_5B,
    Released {
        names: &["Qwen2.5-3B", "Qwen2.5-3B-Instruct"],
        sizes: [2048, 11008, 36, 151_936],
        heads: [16, 2],
        ..QWEN_1_5B
    },
    Released { names: &["Qwen2.5-7B"], context: 131_072, ..QWEN_7B },
    QWEN_7B,
    Released {
        names: &["Qwen2.5-14B"],
        sizes: [5120, 13824, 48, 152_064],
        heads: [40, 8],
        context: 131_072,
        ..QWEN_7B
    },
    // This config does not say whether windows are on.
    Released {
        names: &["Qwen2.5-32B"],
        context: 131_072,
        rest: || json!({ "sliding_window": 131_072, "max_window_layers": 64 }),
        ..QWEN_32B
    },
    QWEN_32B,
    Released { names: &["QwQ-32B-Preview"], ..QWEN_32B },
    Released { names: &["QwQ-32B"], context: 40960, ..QWEN_32B },
    Released {
        names: &["Qwen2.5-72B-Instruct"],
        sizes: [8192, 29568, 80, 152_064],
        heads: [64, 8],
        ..QWEN_7B
    },
    Released { names: &["Qwen2.5-Math-7B-Instruct"], context: 4096, base: 10_000.0, ..QWEN_7B },
    Released {
        names: &["DeepSeek-R1-Distill-Qwen-1.5B"],
        context: 131_072,
        base: 10_000.0,
        rest: || json!({ "tie_word_embeddings": false, "use_sliding_window": false, "use_mrope": false }),
        has_own_head: true,
        ..QWEN_1_5B
    },
    Released { names: &["DeepSeek-R1-Distill-Qwen-7B"], context: 131_072, base: 10_000.0, ..QWEN_7B },
    Released { names: &["DeepSeek-R1-Distill-Qwen-32B"], context: 131_072, ..QWEN_32B },
];

/// The window that nearly all of these configs state, and do not switch on.
fn rest(tie_word_embeddings: bool, sliding_window: i32, max_window_layers: i32) -> Value {
    json!({
        "tie_word_embeddings": tie_word_embeddings, "use_sliding_window": false,
        "sliding_window": sliding_window, "max_window_layers": max_window_layers,
    })
}

#[test]
fn the_facts_of_released_models() {
    facts_are_read(&ARCHITECTURE, RELEASED, |checkpoint| Ok(Qwen2::config(checkpoint)?.into()));
}
