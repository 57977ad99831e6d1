"""Makes the parity cases of most architectures with transformers, for features that mlx-lm does not have.

What: folders as `transformers_cases.py` describes them. With `v4`, the config that transformers wrote (`rope_parameters`)
is rewritten in the form of transformers 4 (`rope_theta`, `rope_scaling`, `rope_local_base_freq`). `drop` removes keys.

Why: mlx-lm ignores `attention_factor`, `layer_types` of Gemma 3, and the scaling of Gemma 3's global layers in configs of
transformers 5. It refuses configs of transformers 5 for OLMo 3, and models whose layers are all of one kind. For Qwen 3 it
ignores windows, biases and `attention_factor`, and for Qwen 2 windows, `rope_parameters` and `head_dim`. For
Llama and Mistral it ignores `rope_parameters` and Mistral's window. For Granite it refuses `rope_parameters`, and ignores
`head_dim`. For Ministral 3 it refuses configs of transformers 4, and ignores windows. For Gemma 2 it ignores windows and every
scaling, and needs both caps.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_sliding_transformers.py

The square roots of the Gemma models' hidden sizes can be represented in bfloat16. With others, transformers and mlx-lm
would differ: mlx-lm rounds the embedding scale to bfloat16, and transformers does not in a float32 model.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PixtralVisionConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers_cases import run, save_checkpoint

FULL, SLIDING = "full_attention", "sliding_attention"
SHARED = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "sliding_window": 6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OLMO = SHARED | {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 4}
QWEN = SHARED | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "head_dim": 24,
    "use_sliding_window": True,
    "max_window_layers": 1,
}
QWEN_2 = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "use_sliding_window": True,
    "max_window_layers": 1,
}
LLAMA = {key: value for key, value in SHARED.items() if key != "sliding_window"} | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "head_dim": 12,
}
MISTRAL = LLAMA | {"sliding_window": 6}
GRANITE = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {
    "embedding_multiplier": 1.5,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.6,
    "logits_scaling": 0.7,
    "num_hidden_layers": 1,
}
MINISTRAL = LLAMA | {"num_hidden_layers": 1, "sliding_window": None}
OLMO2 = {key: value for key, value in LLAMA.items() if key != "head_dim"}
GEMMA2 = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.3,
    "final_logit_softcapping": 40.0,
}
SMOLLM3 = OLMO2 | {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "sliding_window": 6}
# The models whose checkpoint is a language model alone.
TEXT = {
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, GEMMA2),
    "granite": (GraniteConfig, GraniteForCausalLM, GRANITE),
    "llama": (LlamaConfig, LlamaForCausalLM, LLAMA),
    "ministral3": (Ministral3Config, Ministral3ForCausalLM, MINISTRAL),
    "mistral": (MistralConfig, MistralForCausalLM, MISTRAL),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, OLMO2),
    "olmo3": (Olmo3Config, Olmo3ForCausalLM, OLMO),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, QWEN_2),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, QWEN),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, SMOLLM3),
}
GEMMA = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
# Ministral 3, with an original length that is short enough for several factors of queries.
SCALED = YARN | {
    "rope_theta": 100.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 4.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4,
}
LLAMA3 = PLAIN | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_8 = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}
GLOBAL = {"rope_type": "default", "rope_theta": 1000000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the numbers of tokens that are read in each call."""

    name: str
    seed: int
    kind: str  # a key of `MODELS`
    rope: dict
    config: dict = field(default_factory=dict)
    calls: list[int] = field(default_factory=lambda: [4, 5, 1, 1, 8, 1, 3])
    batch: int = 1
    v4: bool = False
    drop: tuple[str, ...] = ()
    add: dict = field(default_factory=dict)


def olmo3(name: str, seed: int, full: dict, sliding: dict = PLAIN, **rest: object) -> Case:
    """An OLMo 3 with these rotations in its full and its sliding layers."""
    return Case(f"hf_olmo3_{name}", seed, "olmo3", {FULL: full, SLIDING: sliding}, **rest)


def qwen2(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A Qwen 2 with this rotation in all layers, and with a window in the second of its two layers."""
    return Case(f"hf_qwen2_{name}", seed, "qwen2", rope, **rest)


def qwen3(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A Qwen 3 with this rotation in all layers, and with a window in all layers but the first."""
    return Case(f"hf_qwen3_{name}", seed, "qwen3", rope, **rest)


def llama(name: str, seed: int, rope: dict, kind: str = "llama", **rest: object) -> Case:
    """A Llama, a Granite, a Ministral 3, or a Mistral whose layers all have a window, with this rotation."""
    return Case(f"hf_{kind}_{name}", seed, kind, rope, **rest)


def mistral3(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A Mistral 3 whose language model is a Ministral 3, with the names of transformers' modules."""
    return Case(f"hf_mistral3_{name}", seed, "mistral3", rope, **rest)


def olmo2(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """An OLMo 2 with this rotation."""
    return Case(f"hf_olmo2_{name}", seed, "olmo2", rope, **rest)


def gemma2(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A Gemma 2 with this rotation in all layers. Without `layer_types`, the first of the two layers has a window."""
    return Case(f"hf_gemma2_{name}", seed, "gemma2", rope, **rest)


def smollm3(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A SmolLM3 with this rotation in all layers but the second."""
    return Case(f"hf_smollm3_{name}", seed, "smollm3", rope, **rest)


def gemma3(name: str, seed: int, full: dict = GLOBAL, kind: str = "gemma3_text", **rest: object) -> Case:
    """A Gemma 3 with this rotation in its global layers."""
    return Case(f"hf_gemma3_{name}", seed, kind, {FULL: full, SLIDING: LOCAL}, **rest)


# The checkpoint has a separate head although its config says that it has none. transformers uses this head.
STALE_TIE = {"tie_word_embeddings": True}
ALL_BIASES = {"attention_bias": True, "mlp_bias": True}
IRREGULAR = [FULL, SLIDING, SLIDING, FULL, FULL, SLIDING]
CASES = [
    olmo3("yarn", 6, YARN),
    olmo3("yarn_batch", 3, YARN, batch=2, calls=[1] * 9 + [7, 1]),
    olmo3("yarn_v4", 6, YARN, v4=True),
    olmo3("yarn_attention_factor", 1, YARN | {"attention_factor": 1.5}),
    olmo3("yarn_attention_factor_v4", 1, YARN | {"attention_factor": 1.5}, v4=True),
    olmo3("two_bases", 4, PLAIN, PLAIN | {"rope_theta": 1000.0}, add=STALE_TIE),
    olmo3("all_sliding", 1, YARN, config={"layer_types": [SLIDING] * 4}),
    olmo3("all_full", 8, YARN, config={"layer_types": [FULL] * 4}, drop=("sliding_window",)),
    olmo3("fewer_layers", 1, PLAIN, config={"num_hidden_layers": 3}, v4=True, drop=("layer_types",)),
    olmo3("bias_tied", 4, YARN, config={"attention_bias": True, "tie_word_embeddings": True}),
    gemma2("window", 58, LOCAL, batch=2),
    gemma2("window_v4", 23, LOCAL, v4=True, drop=("layer_types",)),
    gemma2("no_caps", 1, LOCAL, config={"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    gemma2(
        "layer_types_bias_untied_v4",
        64,
        LINEAR_8,
        config={"layer_types": [FULL, SLIDING], "attention_bias": True, "tie_word_embeddings": False},
        v4=True,
        add=STALE_TIE,
    ),
    gemma3("linear8", 1, LINEAR_8),
    gemma3("linear8_v4", 1, LINEAR_8, v4=True),
    gemma3("pattern_v4", 14, config={"sliding_window_pattern": 3}, v4=True, drop=("layer_types",)),
    gemma3("fewer_layers", 1, LINEAR_8, config={"num_hidden_layers": 4}),
    gemma3("fewer_layers_v4", 1, config={"num_hidden_layers": 4}, v4=True, drop=("layer_types",)),
    gemma3("layer_types", 9, LINEAR_8, config={"layer_types": IRREGULAR}),
    # The pattern, 6, contradicts `layer_types`: with it only the last layer would be global.
    gemma3("layer_types_v4", 18, config={"layer_types": IRREGULAR}, v4=True, add={"sliding_window_pattern": 6}),
    gemma3(
        "all_global",
        1,
        GLOBAL,
        config={"layer_types": [FULL] * 6, "tie_word_embeddings": False},
        drop=("sliding_window",),
    ),
    gemma3("softcap", 1, config={"final_logit_softcapping": 12.0}, batch=2),
    gemma3("bias_untied", 1, config={"attention_bias": True, "tie_word_embeddings": False}, add=STALE_TIE),
    gemma3("multimodal", 1, LINEAR_8, kind="gemma3"),
    gemma3("multimodal_inner_keys", 1, LINEAR_8, kind="gemma3 with the names of its modules"),
    qwen2("window", 1, PLAIN),
    qwen2("window_v4", 8, YARN, v4=True, drop=("layer_types",), config={"tie_word_embeddings": True}),
    qwen2(
        "layer_types_head_dim",
        6,
        PLAIN,
        config={"layer_types": [SLIDING, FULL], "head_dim": 12, "tie_word_embeddings": True},
        add={"max_window_layers": 2},
    ),
    qwen3("window", 3, PLAIN, batch=2),
    qwen3("window_v4", 2, YARN, v4=True, drop=("layer_types",)),
    qwen3(
        "layer_types_yarn",
        1,
        YARN | {"attention_factor": 1.5},
        config={"layer_types": [SLIDING, FULL, SLIDING]},
        add=STALE_TIE,
    ),
    qwen3(
        "windows_off_bias_tied",
        8,
        PLAIN,
        config={"use_sliding_window": False, "attention_bias": True, "tie_word_embeddings": True},
    ),
    llama("llama3", 2, LLAMA3, batch=2),
    llama("bias_tied_v4", 15, LLAMA3, config=ALL_BIASES | {"tie_word_embeddings": True}, v4=True),
    llama("default_head", 2, PLAIN, config={"head_dim": None, "num_key_value_heads": None}),
    llama("window", 1, PLAIN, kind="mistral", batch=2),
    llama("window_v4", 3, PLAIN, kind="mistral", v4=True, drop=("head_dim",), config={"head_dim": 8}),
    llama("no_window", 2, PLAIN, kind="mistral", config={"sliding_window": None}),
    llama("factors", 3, PLAIN, kind="granite"),
    llama(
        "bias_tied_v4", 13, LINEAR_8, kind="granite", config=ALL_BIASES | {"tie_word_embeddings": True}, v4=True
    ),
    llama("head_dim_v4", 1, PLAIN, kind="granite", config={"head_dim": 12}, v4=True),
    llama("scaled", 7, SCALED, kind="ministral3"),
    llama("window_v4", 5, SCALED, kind="ministral3", config={"sliding_window": 6}, v4=True),
    mistral3("inner_keys", 30, SCALED),
    olmo2("yarn", 1, YARN | {"attention_factor": 1.5}),
    olmo2("bias_tied_v4", 113, PLAIN, config={"attention_bias": True, "tie_word_embeddings": True}, v4=True),
    olmo2("head_dim", 3, PLAIN, config={"head_dim": 12, "num_key_value_heads": None}),
    smollm3("window", 2, PLAIN, config={"use_sliding_window": True}),
    smollm3("window_v4", 2, PLAIN, config={"use_sliding_window": True}, v4=True, drop=("layer_types", "no_rope_layers")),
    smollm3(
        "listed_bias_untied",
        3,
        YARN,
        config=ALL_BIASES
        | {"num_hidden_layers": 2, "no_rope_layers": [0, 1], "layer_types": [FULL, SLIDING]}
        | {"use_sliding_window": True, "tie_word_embeddings": False},
        add=STALE_TIE,
    ),
]


def new_model(case: Case) -> PreTrainedModel:
    """A model of transformers, before it gets its weights."""
    text = {**case.config, "rope_parameters": json.loads(json.dumps(case.rope)), "dtype": "float32"}
    if case.kind in TEXT:
        config_class, model_class, config = TEXT[case.kind]
        return model_class(config_class(**config | text))
    if case.kind == "mistral3":
        vision = PixtralVisionConfig(**VISION, head_dim=8)
        config = Ministral3Config(**MINISTRAL | text)
        return Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=config, vision_config=vision, tie_word_embeddings=False, dtype="float32")
        )
    config = Gemma3TextConfig(**GEMMA | text)
    if case.kind == "gemma3_text":
        return Gemma3ForCausalLM(config)
    vision = SiglipVisionConfig(**VISION)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=config, vision_config=vision, mm_tokens_per_image=4, dtype="float32")
    )


def scaled(case: Case, name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights so that logits differ clearly and depend on the tokens before."""
    gemma = case.kind.startswith("gemma3")
    if name.endswith("bias"):
        return 0.2 * values
    if values.ndim == 1 and case.kind == "gemma2":
        return (10.0 if ".post_" in name else 40.0 if name.endswith("model.norm.weight") else 0.0) + 0.3 * values
    if values.ndim == 1 and gemma:  # Gemma adds 1 to the weights of norms
        return (1.0 if ".post_" in name else 5.0 if name.endswith("model.norm.weight") else 0.0) + 0.3 * values
    if values.ndim == 1:
        return (3.0 if name == "model.norm.weight" else 1.0) * (1 + 0.2 * values)
    if "embed_tokens" in name:
        return (0.15 if gemma else 0.3) * values
    return (1.0 if "lm_head" in name else 1.8) * values / np.sqrt(values.shape[-1])


def rewritten(case: Case, config: dict) -> dict:
    """The config that is written, made from transformers' config."""
    if case.v4:
        as_v4(config)
    for key in case.drop:
        del config[key]
    return config | case.add


def as_v4(config: dict) -> None:
    """Rewrites a config in the form of transformers 4."""
    rope = config.pop("rope_parameters")
    full = rope.get(FULL, rope)
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = None if full["rope_type"] == "default" else full
    if config["model_type"].startswith("gemma3"):
        config["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
    if "_sliding_window_pattern" in config and "sliding_window_pattern" not in config:
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    config["transformers_version"] = "4.57.0"


def make_model(case: Case, folder: Path) -> PreTrainedModel:
    """Writes the checkpoint of a case, and loads it again."""
    text = case.kind == "gemma3_text" or case.kind in TEXT
    # True: keys are named as in released checkpoints. False: keys are named like transformers' modules.
    original = text or case.kind == "gemma3"
    scale, rewrite = partial(scaled, case), partial(rewritten, case)
    save_checkpoint(new_model(case), case.seed, scale, rewrite, folder, save_original_format=original)
    if case.kind == "mistral3":
        auto = Mistral3ForConditionalGeneration
    else:
        auto = AutoModelForCausalLM if text else Gemma3ForConditionalGeneration
    return auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


if __name__ == "__main__":
    made_by = "xtask/python/make_sliding_transformers.py"
    sys.exit(run(__doc__, CASES, make_model, made_by, vocab_size=SHARED["vocab_size"]))
