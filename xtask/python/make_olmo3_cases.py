"""Makes the parity cases of OLMo 3 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Layers 0, 1 and 2 of four have a window of 6 tokens, layer
3 has none and rotates by YaRN.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores or refuses: configs of transformers 5, an `attention_factor`,
models with layers of one kind.

How to run, from the repository root:

    python xtask/python/make_olmo3_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, QUANTIZED, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "olmo3",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "sliding_window": 6,
    "tie_word_embeddings": False,
}
IRREGULAR = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights; norms are near the identity."""
    if name.endswith("bias"):
        return 0.2 * values
    if values.ndim == 1:
        return 1 + 0.2 * values
    if "embed_tokens" in name:
        return 0.3 * values
    return matrix(values, 3.0 if "lm_head" in name else 1.8)


def scale_tied(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with a larger last norm, because an embedding table has small weights for a head."""
    return scale(name, values) * (3.0 if name == "model.norm.weight" else 1.0)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head, as in the released models."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    return Case(f"olmo3_{name}", seed, calls, config, **({"scale": scale} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [1, 1, 12],
    "bf16": [5, 2, 46],
    "f16": [1, 2, 2],
    "q4": [1, 23, 1],
    "q8": [14, 2, 33],
    "mxfp4": [25, 6, 7],
}
CASES = [
    case(
        f"{weights}_{cut}",
        seed,
        calls,
        batch=2 if cut == "pieces" else 1,
        from_seed=weights == "f32",
        **WEIGHTS[weights],
    )
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("plain", 3, [9, 1, 1, 4], {"rope_scaling": None}, from_seed=True),
    case("tied", 1, [9, 1, 1, 4], {"tie_word_embeddings": True}, tied=True, scale=scale_tied),
    case("layer_types", 27, [9, 1, 1, 4], {"layer_types": IRREGULAR}, from_seed=True),
    case("bias", 23, [9, 1, 1, 4], {"attention_bias": True}, from_seed=True),
    case("bias_bf16", 19, [9, 1, 1, 4], {"attention_bias": True}, dtype=mx.bfloat16),
    case("bias_q4", 11, [9, 1, 1, 4], {"attention_bias": True}, **WEIGHTS["q4"]),
    case("head_dim", 70, [9, 1, 1, 4], {"head_dim": 16}, dtype=mx.bfloat16),
    case("mha", 3, [9, 1, 1, 4], {"num_key_value_heads": None}, dtype=mx.bfloat16),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_olmo3_cases.py"))
