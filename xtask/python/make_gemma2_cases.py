"""Makes the parity cases of Gemma 2 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). The caps are so low
that many scores and logits are near them. Layer 0 has a window, which is longer than any case: mlx-lm ignores windows. The
embedding scale, the square root of 32, cannot be represented in bfloat16.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores or refuses: windows, `rope_parameters`, biases, models without caps.

How to run, from the repository root:

    python xtask/python/make_gemma2_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "gemma2",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.3,
    "final_logit_softcapping": 40.0,
    "sliding_window": 64,
}
# Without the keys for which mlx-lm has a default.
DEFAULTS = ("attn_logit_softcapping", "final_logit_softcapping")
FEW_KEYS = {key: value for key, value in CONFIG.items() if key not in DEFAULTS}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Large norms after modules, so that the last token alone does not decide. Queries and keys are larger than values."""
    if values.ndim == 1:
        return (10.0 if ".post_" in name else 40.0 if name.endswith("model.norm.weight") else 0.0) + 0.3 * values
    if "embed_tokens" in name:
        return 0.12 * values
    return matrix(values, 3.0 if "q_proj" in name or "k_proj" in name else 1.8)


def scale_beyond_the_caps(name: str, values: np.ndarray) -> np.ndarray:
    """As `scale`, with scores of hundreds, for the caps of the released models."""
    return scale(name, values) * (4.0 if "q_proj" in name or "k_proj" in name else 1.0)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case whose head is the embedding table, as in the released models."""
    config = (config or CONFIG) | ({"intermediate_size": 32} if "quantize" in rest else {})  # groups of 32
    return Case(f"gemma2_{name}", seed, calls, config, **({"scale": scale, "from_seed": "quantize" not in rest} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [13, 5, 1],
    "bf16": [7, 32, 13],
    "f16": [13, 5, 1],
    "q4": [22, 8, 12],
    "q8": [44, 9, 8],
    "mxfp4": [2, 12, 49],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("defaults", 1, [9, 1, 1, 4], FEW_KEYS, scale=scale_beyond_the_caps),
    case("defaults_bf16", 1, [9, 1, 1, 4], FEW_KEYS, scale=scale_beyond_the_caps, dtype=mx.bfloat16),
    case("mha", 21, [9, 1, 1, 4], CONFIG | {"num_key_value_heads": 4}, dtype=mx.bfloat16),
    case("one_head", 51, [9, 1, 1, 4], CONFIG | {"num_key_value_heads": 1, "head_dim": 16}, dtype=mx.bfloat16),
    case("base", 1, [9, 1, 1, 4], CONFIG | {"rope_theta": 1000.0}),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_gemma2_cases.py"))
