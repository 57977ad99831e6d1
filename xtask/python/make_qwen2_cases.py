"""Makes the parity cases of Qwen 2 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). Queries, keys and
values have biases, and nothing else has. `qwen2_windows_off` has a window that its config switches off, as in released
configs.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores: windows, `rope_parameters`, `head_dim`, an `attention_factor`.

How to run, from the repository root:

    python xtask/python/make_qwen2_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
# For groups of 32.
QUANTIZED = {"intermediate_size": 32}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
WINDOWS_OFF = {"use_sliding_window": False, "sliding_window": 3, "max_window_layers": 1}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights. Norms are near the identity. Queries and keys are larger than values, for clear attention."""
    if name.endswith(".bias"):
        return 0.5 * values
    if values.ndim == 1:
        return 1 + 0.2 * values
    if "embed_tokens" in name:
        return 0.3 * values
    if "q_proj" in name or "k_proj" in name:
        return matrix(values, 2.0)
    return matrix(values, 3.0 if "lm_head" in name else 1.8)


def scale_tied(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with a larger last norm, because an embedding table has small weights for a head."""
    return scale(name, values) * (3.0 if name == "model.norm.weight" else 1.0)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    return Case(f"qwen2_{name}", seed, calls, config, **({"scale": scale, "from_seed": "quantize" not in rest} | rest))


def tied(name: str, seed: int, config: dict | None = None, **rest: object) -> Case:
    """A case whose head is the embedding table."""
    config = {"tie_word_embeddings": True} | (config or {})
    return case(name, seed, [9, 1, 1, 4], config, scale=scale_tied, **rest)


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [8, 3, 1],
    "bf16": [8, 4, 1],
    "f16": [8, 3, 1],
    "q4": [27, 1, 13],
    "q8": [3, 4, 7],
    "mxfp4": [9, 18, 15],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("yarn", 16, [9, 1, 1, 4], {"rope_scaling": YARN}),
    case("mha", 2, [9, 1, 1, 4], {"num_key_value_heads": 4}, dtype=mx.bfloat16),
    tied("tied_q4", 1, shard_bytes=6_000, **WEIGHTS["q4"]),
    tied("windows_off", 2, WINDOWS_OFF),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_qwen2_cases.py"))
