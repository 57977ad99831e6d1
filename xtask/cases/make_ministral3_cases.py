"""Makes the parity cases of Ministral 3, and of the language models of Mistral 3: tiny checkpoints and mlx-lm's results for
them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). The original context
length is 8 tokens, so that the calls of most cases cross several multiples of it, where the factor of queries changes. With
this length, the pairs of a head are of all three kinds of YaRN (kept, stretched, between).

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores or refuses.

How to run, from the repository root:

    python xtask/python/make_ministral3_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, WEIGHTS, Case, matrix, run

YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 16.0,
    "original_max_position_embeddings": 8,
    "max_position_embeddings": 128,
    "beta_fast": 4.0,
    "beta_slow": 0.25,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
CONFIG = {
    "model_type": "ministral3",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 48,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": YARN,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
SMALL = {"num_hidden_layers": 1, "intermediate_size": 32}  # for quantized weights, which are no seeds
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
# Devstral 2: no factor of queries, and an attention factor of YaRN.
DEVSTRAL = {"rope_parameters": YARN | {"mscale_all_dim": 0.0, "llama_4_scaling_beta": 0.0}}
# Large factors without YaRN.
PLAIN = {
    "rope_parameters": {
        "rope_theta": 5000.0,
        "original_max_position_embeddings": 4,
        "llama_4_scaling_beta": 0.7,
    }
}
# Mistral Small 3.1: a language model of type `mistral`, whose heads have their own size.
MISTRAL = {key: value for key, value in CONFIG.items() if key not in ("rope_parameters", "tie_word_embeddings")} | {
    "model_type": "mistral",
    "rope_theta": 1000000000.0,
}


def multimodal(text: dict) -> dict:
    """The config of a model with this language model and a vision part."""
    return {"model_type": "mistral3", "image_token_index": 10, "text_config": text}


def vision_weights(_: dict[str, mx.array]) -> dict[str, mx.array]:
    """Tensors of the other parts of a model, which a language model ignores."""
    return {
        "vision_tower.ln_pre.weight": mx.ones((4,)),
        "multi_modal_projector.norm.weight": mx.zeros((8,)),
    }


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights. Norms are near the identity. Queries and keys are larger than values, for clear attention."""
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
    quantized = "quantize" in rest
    config = CONFIG | (SMALL if quantized else {}) | (config or {})
    return Case(f"ministral3_{name}", seed, calls, config, **({"scale": scale, "from_seed": not quantized} | rest))


def mistral3(name: str, seed: int, text: dict, **rest: object) -> Case:
    """A case with a vision part beside this language model."""
    settings = {"scale": scale, "extra_weights": vision_weights, "from_seed": True} | rest
    return Case(f"mistral3_{name}", seed, CALLS, multimodal(text), **settings)


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [8, 15, 5],
    "bf16": [12, 1, 5],
    "f16": [8, 7, 5],
    "q4": [9, 16, 13],
    "q8": [1, 3, 2],
    "mxfp4": [7, 6, 5],
}
CALLS = [9, 1, 1, 4]
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("windows", 11, CUTS["pieces"], WINDOWS),
    case("devstral_bf16", 19, CALLS, DEVSTRAL, dtype=mx.bfloat16),
    case("plain", 8, CALLS, PLAIN, dtype=mx.bfloat16),
    case("tied_bf16", 8, CALLS, {"tie_word_embeddings": True}, scale=scale_tied, dtype=mx.bfloat16),
    mistral3("bf16", 24, CONFIG, dtype=mx.bfloat16),
    mistral3("mistral", 2, MISTRAL),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_ministral3_cases.py"))
