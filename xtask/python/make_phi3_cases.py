"""Makes the parity cases of Phi-3 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. With each dtype and quantization, tokens are read in one call, in chunks
and one by one. In the cases with LongRoPE, the sequence becomes longer than the original length. `"longrope": "mlx-lm"` in
`case.json` says that the long factors always apply, as in mlx-lm.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_phi3_transformers.py` have what mlx-lm ignores: the short factors, and sliding windows.

How to run, from the repository root:

    python xtask/python/make_phi3_cases.py

mlx-lm requires a `long_factor` in every `rope_scaling`, although linear scaling does not use it. So mlx-lm gets one, and
it is removed from the `config.json` of the case.
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "phi3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.25, 1.5],
        "long_factor": [1.0, 2.0, 4.5, 7.0],
    },
}
# `su` is an older name of LongRoPE. Here three quarters of each head rotate.
SU = {
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.2, 1.4], "long_factor": [1.5, 3.0, 8.0]},
}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 80}
LINEAR = {"rope_scaling": {"type": "linear", "factor": 4.0, "long_factor": []}}

ALWAYS_LONG = {"description": {"longrope": "mlx-lm"}}
CUTS = {"whole": [18], "pieces": [7, 1, 1, 6, 3], "single": [1] * 12}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights so that logits differ clearly and depend on the tokens before."""
    if values.ndim == 1:
        return 1 + 0.2 * values  # a norm
    if "embed_tokens" in name:
        return 0.4 * values  # may also be the head; with larger numbers each token would predict itself
    return matrix(values, 4.0 if "lm_head" in name else 1.8)


def rotary_leftovers() -> dict[str, mx.array]:
    """Buffers that training code leaves in a checkpoint, and that mlx-lm's loader refuses."""
    frequencies = mx.array([1.0, 0.1, 0.01, 0.001])
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies for i in range(2)}


def without_long_factor(config: dict) -> dict:
    scaling = {key: value for key, value in config["rope_scaling"].items() if key != "long_factor"}
    return config | {"rope_scaling": scaling}


def case(name: str, config: dict | None = None, without: tuple[str, ...] = (), **rest: object) -> Case:
    """A case. The keys in `without` are removed from the config; they have defaults."""
    config = {key: value for key, value in (CONFIG | (config or {})).items() if key not in without}
    return Case(f"phi3_{name}", config=config, scale=scale, **rest)


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [9, 9, 7],
    "bf16": [6, 1, 7],
    "f16": [9, 9, 7],
    "q4": [1, 2, 2],
    "q8": [3, 4, 2],
    "mxfp4": [1, 8, 5],
}
CASES = [
    case(f"{weights}_{cut}", seed=seed, calls=calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("mha", seed=6, calls=[11, 1, 1], config={"num_key_value_heads": None}),
    case("tied", seed=11, calls=[8, 1, 3], config={"tie_word_embeddings": True}),
    case("tied_q4", seed=42, calls=[8, 1, 3], config={"tie_word_embeddings": True}, **WEIGHTS["q4"]),
    case("linear", seed=22, calls=[12, 1, 1, 20], config=LINEAR, hidden_config=without_long_factor),
    case("partial", seed=15, calls=[10, 1, 4], config={"partial_rotary_factor": 0.5, "rope_theta": 500.0}),
    case("interleaved", seed=6, calls=[10, 1, 4], config={"rope_traditional": True}),
    case("default_base", seed=22, calls=[10, 1, 4], config=SMALL, without=("rope_theta",)),
    case("rotary_keys", seed=4, calls=[6, 1, 1], hidden_weights=rotary_leftovers),
    case("longrope_mlx_lm", seed=2, calls=[9, 1, 1, 10, 1], **ALWAYS_LONG, config=LONGROPE),
    case("longrope_mlx_lm_bf16", seed=3, calls=[9, 1, 1, 10, 1], **ALWAYS_LONG, config=LONGROPE, dtype=mx.bfloat16),
    case("su_partial_mlx_lm", seed=11, calls=[20, 1, 3], **ALWAYS_LONG, config=SU),
    case("su_partial_mlx_lm_f16", seed=9, calls=[20, 1, 3], **ALWAYS_LONG, config=SU, dtype=mx.float16),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_phi3_cases.py"))
