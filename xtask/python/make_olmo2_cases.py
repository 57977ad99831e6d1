"""Makes the parity cases of OLMo 2 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). Two query heads share
a key-value head, as in the 32B model, so that the norms of queries and keys have different sizes.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have the config format that mlx-lm ignores.

How to run, from the repository root:

    python xtask/python/make_olmo2_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
# With this size all rows can be cut into groups of 32.
QUANTIZED = {"intermediate_size": 32}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}
OTHER_SHAPES = {"num_attention_heads": 4, "num_key_value_heads": None, "head_dim": 12}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights; norms are near the identity."""
    if name.endswith(".bias"):
        return 0.2 * values
    if values.ndim == 1:
        return 1 + 0.2 * values
    if "embed_tokens" in name:
        return 0.3 * values
    return matrix(values, 4.0 if "lm_head" in name else 1.8)


def scale_tied(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with a larger last norm, because an embedding table has small weights for a head."""
    return scale(name, values) * (5.0 if name == "model.norm.weight" else 1.0)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head, as in the released models."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    config = {key: value for key, value in config.items() if value is not None}
    return Case(f"olmo2_{name}", seed, calls, config, **({"scale": scale, "from_seed": "quantize" not in rest} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [17, 58, 23],
    "bf16": [23, 6, 23],
    "f16": [17, 58, 23],
    "q4": [2, 10, 30],
    "q8": [39, 1, 26],
    "mxfp4": [15, 53, 27],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("default_base", 7, [9, 1, 1, 4], {"rope_theta": None}),
    case("yarn", 7, [9, 1, 1, 4], {"rope_scaling": YARN}),
    case("bias_bf16", 23, [9, 1, 1, 4], {"attention_bias": True}, dtype=mx.bfloat16, shard_bytes=8000),
    case("mha_bf16", 1, [9, 1, 1, 4], OTHER_SHAPES, dtype=mx.bfloat16),
    case("tied_q4", 67, [9, 1, 1, 4], {"tie_word_embeddings": True}, scale=scale_tied, **WEIGHTS["q4"]),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_olmo2_cases.py"))
