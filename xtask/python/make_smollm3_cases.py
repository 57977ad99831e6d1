"""Makes the parity cases of SmolLM3 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). One of two layers
has no rotation. The head is the embedding table, as in the released model.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores: `rope_parameters`, and the windows of layers without a rotation.

How to run, from the repository root:

    python xtask/python/make_smollm3_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "smollm3",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "no_rope_layer_interval": 2,
    "tie_word_embeddings": True,
}
# With this size all rows can be cut into groups of 32.
QUANTIZED = {"intermediate_size": 32}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
BIASES = {"attention_bias": True, "mlp_bias": True}
OTHER_SHAPES = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12}
WINDOWS = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 6, "use_sliding_window": True}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights. Norms are near the identity, and the last is larger, because an embedding table has small
    weights for a head. Queries and keys are larger than values, for clear attention."""
    if name.endswith(".bias"):
        return 0.3 * values
    if values.ndim == 1:
        return (3.0 if name == "model.norm.weight" else 1.0) * (1 + 0.2 * values)
    if "embed_tokens" in name:
        return 0.3 * values
    return matrix(values, 2.0 if "q_proj" in name or "k_proj" in name else 1.8)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case whose second layer has no rotation."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    config = {key: value for key, value in config.items() if value is not None}
    return Case(f"smollm3_{name}", seed, calls, config, **({"scale": scale, "from_seed": "quantize" not in rest} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [8, 1, 2],
    "bf16": [2, 1, 3],
    "f16": [2, 1, 2],
    "q4": [9, 6, 1],
    "q8": [3, 8, 4],
    "mxfp4": [6, 6, 1],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("listed", 11, [9, 1, 1, 4], {"no_rope_layers": [0, 1], "no_rope_layer_interval": None}),
    case("default_interval", 2, [9, 1, 1, 4], {"num_hidden_layers": 5, "no_rope_layer_interval": None}),
    case("yarn", 2, [9, 1, 1, 4], {"rope_scaling": YARN}),
    # In one call: mlx-lm has no caches with a window for SmolLM3, and adds up masked keys too.
    case("windows", 6, [17], WINDOWS),
    case("bias_bf16", 1, [9, 1, 1, 4], BIASES, dtype=mx.bfloat16, shard_bytes=8000),
    case("mha_bf16", 1, [9, 1, 1, 4], OTHER_SHAPES, dtype=mx.bfloat16),
    case("untied_q4", 3, [9, 1, 1, 4], {"tie_word_embeddings": False}, **WEIGHTS["q4"]),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_smollm3_cases.py"))
