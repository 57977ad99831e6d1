"""Makes the parity cases of Qwen 3 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. All heads together have more features than the hidden size, as in the
released 0.6B model. `qwen3_windows_off` has a window that its config switches off, as in released configs, and a copy of
the embedding table as its head although `tie_word_embeddings` is true.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores: windows, biases, an `attention_factor`.

How to run, from the repository root:

    python xtask/python/make_qwen3_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, QUANTIZED, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
YARN_V5 = {"rope_theta": None, "rope_parameters": YARN | {"rope_theta": 1000000.0}}
WINDOWS_OFF = {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights. Norms are near the identity, those of queries and keys larger, for clear attention."""
    if values.ndim == 1:
        return (1.4 if "_norm" in name else 1) + 0.2 * values
    if "embed_tokens" in name:
        return 0.3 * values
    return matrix(values, 3.0 if "lm_head" in name else 1.8)


def scale_tied(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with a larger last norm, because an embedding table has small weights for a head."""
    return scale(name, values) * (3.0 if name == "model.norm.weight" else 1.0)


def copied_head(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """The embedding table a second time, as in some released checkpoints of tied models."""
    return {"lm_head.weight": weights["model.embed_tokens.weight"]}


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    return Case(f"qwen3_{name}", seed, calls, config, **({"scale": scale} | rest))


def tied(name: str, seed: int, config: dict | None = None, **rest: object) -> Case:
    """A case whose head is the embedding table."""
    config = {"tie_word_embeddings": True} | (config or {})
    return case(name, seed, [9, 1, 1, 4], config, tied=True, scale=scale_tied, **rest)


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [2, 4, 29],
    "bf16": [5, 13, 15],
    "f16": [2, 4, 9],
    "q4": [11, 1, 9],
    "q8": [5, 7, 7],
    "mxfp4": [1, 5, 7],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("yarn", 1, [9, 1, 1, 4], {"rope_scaling": YARN}),
    case("yarn_v5_bf16", 6, [9, 1, 1, 4], YARN_V5, dtype=mx.bfloat16),
    case("mha", 5, [9, 1, 1, 4], {"num_key_value_heads": 4, "head_dim": 8}, dtype=mx.bfloat16),
    tied("tied_q4", 1, **WEIGHTS["q4"]),
    tied("windows_off", 1, WINDOWS_OFF, extra_weights=copied_head),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_qwen3_cases.py"))
