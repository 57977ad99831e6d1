"""Makes the parity cases of Granite models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). The four factors are
those of Granite 3.3 2B, where the attention multiplier is `1 / head_dim`, not the square root of it.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores: `rope_parameters`, `head_dim`.

How to run, from the repository root:

    python xtask/python/make_granite_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "granite",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
# Numbers that bfloat16 and float16 round.
ROUNDED = {
    "embedding_multiplier": 10.3,
    "attention_multiplier": 0.17,
    "residual_multiplier": 0.175,
    "logits_scaling": 9.7,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
TIED = {"tie_word_embeddings": True}
# mlx-lm quantizes the layers that write to the residual stream, and the head, to 8 bits in groups of 64.
GROUPS_OF_64 = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 1}
ALIKE = {"": True}  # for `Case.per_layer`: all layers are quantized alike
SMALL = {"num_hidden_layers": 1, "intermediate_size": 32}  # for quantized weights, which are no seeds


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights, against the factors: embeddings are small, and what is divided or made smaller is large."""
    if name.endswith(".bias"):
        return 0.3 * values
    if values.ndim == 1:
        return 1 + 0.2 * values
    if "embed_tokens" in name:
        return 0.04 * values
    if "lm_head" in name:
        return matrix(values, 24.0)
    return matrix(values, 3.0 if "q_proj" in name or "k_proj" in name else 5.0)


def scale_tied(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with a large last norm, because an embedding table has small weights for a head."""
    return scale(name, values) * (60.0 if name == "model.norm.weight" else 1.0)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head, whose layers are quantized alike."""
    quantized = "quantize" in rest
    settings = {"scale": scale, "from_seed": not quantized, "per_layer": ALIKE}
    config = CONFIG | (SMALL if quantized else {}) | (config or {})
    return Case(f"granite_{name}", seed, calls, config, **(settings | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [6, 7, 7],
    "bf16": [9, 18, 7],
    "f16": [6, 8, 4],
    "q4": [7, 12, 5],
    "q8": [6, 5, 7],
    "mxfp4": [2, 7, 8],
}
CALLS = [9, 1, 1, 4]
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("rounded_bf16", 23, CALLS, ROUNDED, dtype=mx.bfloat16),
    case("rounded_f16", 33, [9, 4], ROUNDED, dtype=mx.float16),
    case("bias_bf16", 27, CALLS, BIASES, dtype=mx.bfloat16),
    case("tied_bf16_sharded", 26, CALLS, TIED, scale=scale_tied, dtype=mx.bfloat16, shard_bytes=12_000),
    case("tied_q4", 34, CALLS, TIED, scale=scale_tied, **WEIGHTS["q4"]),
    case("q4_mlx_lm", 6, CALLS, GROUPS_OF_64, per_layer={}, **WEIGHTS["q4"]),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_granite_cases.py"))
