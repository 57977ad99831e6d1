"""Makes the parity cases of Lille models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them, one for each dtype and quantization mode, and one with several
safetensors files. Weights that are not quantized are made from a seed, see `seeded_weights.py`.

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models.

How to run, from the repository root:

    python xtask/python/make_cases.py
"""

import sys

import mlx.core as mx
import numpy as np
from model_cases import Case, matrix, run

CONFIG = {
    "model_type": "lille-130m",
    "block_size": 128,
    "layer_norm_eps": 1e-5,
    "n_embd": 64,
    "n_head": 4,
    "n_kv_heads": 2,
    "n_layer": 2,
    "rope_theta": 10000.0,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
LAYER = "transformer.layers"


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights so that logits differ clearly and depend on the tokens before."""
    if values.ndim == 1:
        return 1 + 0.2 * values  # a norm
    if "tok_embeddings" in name:
        return 0.4 * values  # is also the head; with larger numbers each token would predict itself
    return matrix(values, 1.8)


def rotary_leftovers(_: dict[str, mx.array]) -> dict[str, mx.array]:
    """Buffers that training code leaves in checkpoints, and that a loader has to ignore."""
    head_dim = CONFIG["n_embd"] // CONFIG["n_head"]
    frequencies = CONFIG["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    return {
        f"{LAYER}.{layer}.attention.rotary_emb.inv_freq": mx.array(frequencies) for layer in range(CONFIG["n_layer"])
    } | {"transformer.rotary_emb.freqs_cis": mx.zeros((4, head_dim))}


def case(name: str, config: dict | None = None, **rest: object) -> Case:
    return Case(f"lille_{name}", config=CONFIG | (config or {}), scale=scale, **rest)


CASES = [
    case("f32", seed=6, calls=[17, 1, 1, 5], from_seed=True),
    case("f32_mha", seed=5, calls=[20], config={"n_kv_heads": 4}, from_seed=True),
    case("f32_rotary_keys", seed=13, calls=[6, 1, 1], extra_weights=rotary_leftovers, from_seed=True),
    case("bf16", seed=9, calls=[5, 1, 7, 1, 1], dtype=mx.bfloat16, batch=2, from_seed=True),
    case("bf16_sharded", seed=2, calls=[8, 8], dtype=mx.bfloat16, shard_bytes=100_000, from_seed=True),
    case("f16", seed=7, calls=[7, 1, 1, 3], dtype=mx.float16, from_seed=True),
    case("q4", seed=6, calls=[9, 1, 1, 6], dtype=mx.bfloat16, quantize={"bits": 4, "group_size": 64}),
    case("q8", seed=11, calls=[5, 1, 1, 3], dtype=mx.bfloat16, quantize={"bits": 8, "group_size": 32}),
    case("q3", seed=22, calls=[10, 1, 1], dtype=mx.bfloat16, quantize={"bits": 3, "group_size": 64}),
    case(
        "mxfp4",
        seed=42,
        calls=[9, 1, 1],
        dtype=mx.bfloat16,
        quantize={"bits": 4, "group_size": 32, "mode": "mxfp4"},
    ),
    case(
        "mxfp8_f16",
        seed=54,
        calls=[9, 1, 1],
        dtype=mx.float16,
        quantize={"bits": 8, "group_size": 32, "mode": "mxfp8"},
    ),
    case(
        "nvfp4_f32",
        seed=64,
        calls=[9, 1, 1],
        quantize={"bits": 4, "group_size": 16, "mode": "nvfp4"},
        per_layer={f"{LAYER}.0.attention.qkv_proj": {"bits": 5, "group_size": 32, "mode": "affine"}},
    ),
    case(
        "q4_mixed",
        seed=15,
        calls=[11, 1, 4],
        dtype=mx.bfloat16,
        quantize={"bits": 4, "group_size": 32},
        per_layer={
            "transformer.tok_embeddings": {"bits": 8, "group_size": 64, "mode": "affine"},
            f"{LAYER}.0.feed_forward.down_proj": {"bits": 8, "group_size": 32, "mode": "affine"},
            f"{LAYER}.1.attention.qkv_proj": {"bits": 8, "group_size": 64, "mode": "affine"},
            f"{LAYER}.1.attention.out_proj": False,
        },
    ),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_cases.py"))
