"""Makes the parity cases of Llama and Mistral models: tiny checkpoints and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Weights in full precision are seeds (`weights.json`). All heads together
have more features than the hidden size, as in Mistral Nemo. All but a few cases rotate as Llama 3.1 does: with 64 tokens in
the first training, the pairs of a head are of all three kinds (kept, stretched, between).

Why: `cargo xtask parity` runs these folders and requires the same bits from this project's models. The cases of
`make_sliding_transformers.py` have what mlx-lm ignores: the window of Mistral, `rope_parameters`.

How to run, from the repository root:

    python xtask/python/make_llama_cases.py
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
from model_cases import CUTS, QUANTIZED, WEIGHTS, Case, matrix, run

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 80,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "rope_scaling": LLAMA3,
    "tie_word_embeddings": False,
}
PLAIN = {"rope_scaling": None, "rope_theta": None}
MISTRAL = {"model_type": "mistral", "sliding_window": None, "rope_scaling": None, "rope_theta": 1000000.0}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}

GROUP = 32
AWQ = {"dtype": mx.float16, "quantize": {"bits": 4, "group_size": GROUP}}
ONLY_LAYERS = {"model.embed_tokens": False, "lm_head": False}
WITH_HEAD = {"model.embed_tokens": False}


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights. Norms are near the identity. Queries and keys are larger than values, for clear attention."""
    if name.endswith(".bias"):
        return 0.3 * values
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


def store_as_awq(folder: Path) -> None:
    """Writes the layers that mlx-lm quantized as AutoAWQ does, and all other tensors in bfloat16."""
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)  # the file is written again
    places = np.arange(0, 32, 4, dtype=np.uint32)

    def packed(numbers: np.ndarray) -> mx.array:
        words = numbers.reshape(len(numbers), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]].astype(np.uint32) << places
        return mx.array(words.sum(-1).astype(np.uint32).view(np.int32))

    for layer in [key.removesuffix(".scales") for key in weights if key.endswith(".scales")]:
        words, scales, biases = (np.array(weights.pop(f"{layer}.{part}")) for part in ("weight", "scales", "biases"))
        codes = (words[..., None] >> places & 15).reshape(len(words), -1)
        zeros = np.clip(np.round(-biases.astype(np.float32) / scales), 0, 15).astype(np.uint32)
        # MLX's scales may be negative, those of AutoAWQ are not.
        turned = scales < 0
        zeros, turned_codes = np.where(turned, 15 - zeros, zeros), turned.repeat(GROUP, axis=1)
        codes = np.where(turned_codes, 15 - codes, codes)
        weights |= {f"{layer}.qweight": packed(codes.T), f"{layer}.qzeros": packed(zeros.T)}
        weights[f"{layer}.scales"] = mx.array(np.abs(scales).T)
    others = {key: value.astype(mx.bfloat16) for key, value in weights.items() if key.endswith(".weight")}
    mx.save_safetensors(str(folder / "model.safetensors"), weights | others, metadata={"format": "pt"})
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    del config["quantization"]
    config["quantization_config"] = {
        "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True,
        "modules_to_not_convert": None,
    }
    mlx_lm.utils.save_config(config, file)


def case(name: str, seed: int, calls: list[int], config: dict | None = None, **rest: object) -> Case:
    """A case with a separate head."""
    config = CONFIG | (config or {}) | (QUANTIZED if "quantize" in rest else {})
    config = {key: value for key, value in config.items() if value is not None or key == "sliding_window"}
    return Case(f"llama_{name}", seed, calls, config, **({"scale": scale, "from_seed": "quantize" not in rest} | rest))


# In the order of `CUTS`. Each seed gives greedy tokens that pass the checks of `model_cases.py`.
SEEDS = {
    "f32": [11, 4, 6],
    "bf16": [24, 4, 6],
    "f16": [11, 4, 6],
    "q4": [8, 7, 4],
    "q8": [10, 6, 13],
    "mxfp4": [4, 6, 20],
}
CASES = [
    case(f"{weights}_{cut}", seed, calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    case("plain", 2, [9, 1, 1, 4], PLAIN),
    case("bias_bf16", 12, [9, 1, 1, 4], {"attention_bias": True, "mlp_bias": True}, dtype=mx.bfloat16),
    case("mha", 11, [9, 1, 1, 4], {"num_key_value_heads": None, "head_dim": None}, dtype=mx.bfloat16),
    case("windows", 2, CUTS["pieces"], WINDOWS),
    case("tied_q4", 1, [9, 1, 1, 4], {"tie_word_embeddings": True}, scale=scale_tied, **WEIGHTS["q4"]),
    case("awq", 1, [9, 1, 1, 4], store=store_as_awq, per_layer=ONLY_LAYERS, **AWQ),
    case("awq_head", 17, CUTS["pieces"], batch=2, store=store_as_awq, per_layer=WITH_HEAD, **AWQ),
    case("mistral_bf16", 7, [9, 1, 1, 4], MISTRAL, dtype=mx.bfloat16),
]

if __name__ == "__main__":
    sys.exit(run(__doc__, CASES, "xtask/python/make_llama_cases.py"))
