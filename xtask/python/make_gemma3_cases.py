"""Makes the parity cases of Gemma 3 models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Layers 0, 1 and 3 of four have a window of 6 tokens, layer
2 has none. The embedding scale, the square root of 32, cannot be represented in bfloat16. In `gemma3_f16_clipped` the
residual stream leaves the range of float16.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The
cases of `make_sliding_transformers.py` have what mlx-lm ignores or refuses: configs of transformers 5, `layer_types`,
models without a global layer.

How to run, from the repository root:

    python xtask/python/make_gemma3_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import CUTS, QUANTIZED, WEIGHTS, Case, matrix, run

CONFIG = {
    "model_type": "gemma3_text",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 12,
    "sliding_window": 6,
    "sliding_window_pattern": 3,
}
FACTOR_8 = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
# Released configs of models with a vision part omit these keys. Their defaults are the values above.
DEFAULTS = ("vocab_size", "rms_norm_eps", "rope_theta", "rope_local_base_freq", "max_position_embeddings")
# Six layers. If the config does not say which are global, the last one is. They are small, since there are many.
SMALL = {key: value for key, value in CONFIG.items() if key not in {*DEFAULTS, "sliding_window_pattern"}} | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 80,
    "max_position_embeddings": 128,
}
MULTIMODAL = {
    "model_type": "gemma3",
    "vocab_size": 80,
    "image_token_index": 79,
    "mm_tokens_per_image": 4,
    "text_config": {key: value for key, value in CONFIG.items() if key not in DEFAULTS}
    | {"model_type": "gemma3_text"}
    | QUANTIZED,
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 8},
}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Norms near the identity, except larger norms after modules, so that the last token alone does not decide."""
    if values.ndim == 1:
        return (1.0 if ".post_" in name else 7.0 if name.endswith("model.norm.weight") else 0.0) + 0.3 * values
    if "embed_tokens" in name:
        return 0.12 * values
    return matrix(values, 1.0 if "lm_head" in name else 1.8)


def scale_beyond_float16(name: str, values: np.ndarray) -> np.ndarray:
    """Weights with which each module adds numbers of about 25 000 to the residual stream."""
    return scale(name, values) + (25_000 if ".post_" in name else 0)


def vision_weights(_: dict[str, mx.array]) -> dict[str, mx.array]:
    """Some weights of the vision part, which a loader of the language model has to ignore."""
    return {
        "vision_tower.vision_model.post_layernorm.weight": mx.ones((8,)),
        "multi_modal_projector.mm_input_projection_weight": mx.zeros((8, 32)),
    }


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case whose head is the embedding table, as in the released models."""
    config = MULTIMODAL if name.startswith("multimodal") else CONFIG | (config or {})
    if "quantize" in rest and config is not MULTIMODAL:
        config = config | QUANTIZED
    return Case(f"gemma3_{name}", seed, calls, config, **({"scale": scale, "tied": True} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [5, 19, 71],
    "bf16": [9, 3, 2],
    "f16": [35, 33, 2],
    "q4": [5, 9, 5],
    "q8": [5, 23, 8],
    "mxfp4": [1, 7, 5],
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
    Case("gemma3_defaults", 4, [9, 1, 1, 4], SMALL, scale, tied=True),
    case("f16_clipped", 1, [9, 1, 1, 4], scale=scale_beyond_float16, dtype=mx.float16),
    case("untied", 3, [9, 1, 1, 4], tied=False, from_seed=True),
    case("untied_q4", 1, [9, 1, 1, 4], tied=False, **WEIGHTS["q4"]),
    case("linear8", 14, [9, 1, 1, 4], FACTOR_8),
    case("linear8_bf16", 14, [9, 1, 1, 4], FACTOR_8, dtype=mx.bfloat16),
    case("all_global", 28, [9, 1, 1, 4], {"sliding_window_pattern": 1}, tied=False, from_seed=True),
    case("mha", 7, [9, 1, 1, 4], {"num_key_value_heads": 4}, from_seed=True),
    case("one_head", 6, [9, 1, 1, 4], {"num_key_value_heads": 1, "head_dim": 16}, dtype=mx.bfloat16),
    case("multimodal", 60, [9, 1, 1, 4], extra_weights=vision_weights, dtype=mx.bfloat16),
    case("multimodal_q8", 4, [9, 1, 1, 4], extra_weights=vision_weights, **WEIGHTS["q8"]),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_gemma3_cases.py"))
