"""Makes small models of each architecture as GGUF files, with the config of the same model in a checkpoint folder.

What: for each model `NAME.gguf`, `NAME.json` and `NAME.f32` in the fixtures of `mlx-models`. The file follows the rules of
llama.cpp's converter: its names, the order of the rows of rotated projections, norms plus one, factors of rotations as tensors.
The weights follow from the keys of the checkpoint by a formula (`weight`), which the tests repeat, so no checkpoint is stored.
`NAME.json` is the config that the converter would have read. `NAME.f32` has llama.cpp's logits after `TOKENS`, of the same model
with all weights in float32, as little-endian float32 `[len(TOKENS), vocabulary]`.

Why: `cargo test -p mlx-models --test gguf` requires that a file gives this config and, bit for bit, these weights, and that the
model computes these logits.

How to run, from the repository root:

    cargo xtask fixtures --only make_gguf_model
"""

import ctypes
import json
import math
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, RopeScalingType
from parity_cases import argument_parser, finish

FOLDER = "crates/mlx-models/tests/fixtures/gguf"
TOKENS = [1, 17, 5, 30, 2, 2, 9, 23]
VOCABULARY, MLP, HEADS, KEY_HEADS = 40, 24, 4, 2

BASE = {
    "hidden_size": 16,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "num_hidden_layers": 2,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# The configs of the checkpoints, by the names of the fixtures, and the type of the matrices.
MODELS = {
    "gemma3": (
        Type.BF16,
        {
            "model_type": "gemma3_text",
            "head_dim": 8,
            "num_hidden_layers": 6,
            "sliding_window": 4,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 8,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma2": (
        Type.F16,
        {
            "model_type": "gemma2",
            "head_dim": 8,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "granite": (
        Type.BF16,
        {
            "model_type": "granite",
            "attention_multiplier": 0.25,
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.25,
            "logits_scaling": 4.0,
            "attention_bias": False,
        },
    ),
    "llama": (
        Type.F16,
        {
            "model_type": "llama",
            "head_dim": 16,
            "rope_theta": 500000.0,
            "rope_scaling": LLAMA3,
            "tie_word_embeddings": False,
        },
    ),
    "llama_bias": (Type.F32, {"model_type": "llama", "attention_bias": True, "mlp_bias": False, "num_hidden_layers": 1}),
    "ministral3": (
        Type.BF16,
        {
            "model_type": "ministral3",
            "head_dim": 8,
            "rope_parameters": {
                **YARN,
                "rope_theta": 10000.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                # The text is longer than the original length, so that the factor of queries counts.
                "original_max_position_embeddings": 4,
                "llama_4_scaling_beta": 0.1,
            },
        },
    ),
    "mistral3": (Type.BF16, {"model_type": "mistral", "head_dim": 8, "sliding_window": None}),
    "olmo2": (Type.BF16, {"model_type": "olmo2", "tie_word_embeddings": False}),
    "olmo3": (
        Type.F16,
        {
            "model_type": "olmo3",
            "num_hidden_layers": 4,
            "sliding_window": 4,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rope_scaling": {**YARN, "attention_factor": 0.1 * math.log(4) + 1, "beta_fast": 32.0, "beta_slow": 1.0},
            "tie_word_embeddings": False,
        },
    ),
    "phi3": (Type.BF16, {"model_type": "phi3", "sliding_window": None, "tie_word_embeddings": False}),
    "phi3_long": (
        Type.F16,
        {
            "model_type": "phi3",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "sliding_window": None,
            "partial_rotary_factor": 0.75,
            # llama.cpp rounds a context up to 256 tokens, and would take the long factors for a shorter original length.
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.25, 1.5],
                "long_factor": [1.5, 3.0, 4.75],
            },
        },
    ),
    "qwen2": (Type.BF16, {"model_type": "qwen2", "rope_theta": 1000000.0}),
    "qwen3": (Type.F16, {"model_type": "qwen3", "head_dim": 8, "rope_theta": 1000000.0, "rope_scaling": YARN}),
    "smollm3": (
        Type.BF16,
        {"model_type": "smollm3", "num_hidden_layers": 5, "no_rope_layer_interval": 4, "rope_theta": 2000000.0},
    ),
}

# llama.cpp's names of the modules of a block.
LLAMA = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up",
}
AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GEMMA = {**LLAMA, **AFTER, "pre_feedforward_layernorm": "ffn_norm"}
ARCHITECTURES = {
    "gemma3_text": ("gemma3", GEMMA),
    "gemma2": ("gemma2", GEMMA),
    "granite": ("granite", LLAMA),
    "llama": ("llama", LLAMA),
    "ministral3": ("mistral3", LLAMA),
    "mistral": ("mistral3", LLAMA),
    "olmo2": ("olmo2", {**LLAMA, **AFTER}),
    "olmo3": ("olmo2", {**LLAMA, **AFTER}),
    "phi3": ("phi3", LLAMA),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", LLAMA),
    "smollm3": ("smollm3", LLAMA),
}
# Whose projections of queries and keys have the two features of a pair as neighbours.
PAIRED = ("granite", "llama", "mistral3", "smollm3")


def fnv(text: str) -> int:
    """The 32-bit FNV-1a hash."""
    state = 0x811C9DC5
    for byte in text.encode():
        state = (state ^ byte) * 0x01000193 % 2**32
    return state


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a tensor: multiples of 1/256, which bfloat16 and float16 have exactly. Those of norms are around 3/4."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    mixed = (index * np.uint64(7919) + np.uint64(fnv(key))) * np.uint64(2654435761) % np.uint64(2**32)
    mixed = (mixed >> np.uint64(16)).astype(np.int64)
    numbers = 0.5 + mixed % 64 / 128 if "norm" in key else (mixed % 255 - 127) / 256
    return numbers.astype(np.float32).reshape(shape)


def head_size(config: dict) -> int:
    return config.get("head_dim", config["hidden_size"] // HEADS)


def tensors(config: dict) -> dict[str, np.ndarray]:
    """The tensors of the checkpoint."""
    kind = config["model_type"]
    hidden, head = config["hidden_size"], head_size(config)
    queries, keys = HEADS * head, KEY_HEADS * head
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, hidden)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind.startswith("olmo"):
        norms = ["post_attention_layernorm", "post_feedforward_layernorm"]
    if kind.startswith("gemma"):
        norms = [*norms, "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    parts = {f"{norm}.weight": (hidden,) for norm in norms}
    parts["self_attn.o_proj.weight"] = (hidden, queries)
    parts["mlp.down_proj.weight"] = (hidden, MLP)
    if kind == "phi3":
        parts["self_attn.qkv_proj.weight"] = (queries + 2 * keys, hidden)
        parts["mlp.gate_up_proj.weight"] = (2 * MLP, hidden)
    else:
        rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        parts |= {f"self_attn.{name}.weight": (size, hidden) for name, size in rows.items()}
        parts |= {f"mlp.{name}_proj.weight": (MLP, hidden) for name in ("gate", "up")}
        if kind == "qwen2" or config.get("attention_bias"):
            parts |= {f"self_attn.{name}.bias": (size,) for name, size in rows.items()}
        if config.get("attention_bias"):
            parts["self_attn.o_proj.bias"] = (hidden,)
    if kind in ("gemma3_text", "qwen3"):
        parts |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    if kind.startswith("olmo"):
        parts |= {"self_attn.q_norm.weight": (queries,), "self_attn.k_norm.weight": (keys,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    return {key: weight(key, shape) for key, shape in shapes.items()}


def pairs_as_neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def in_file(config: dict) -> dict[str, np.ndarray]:
    """The tensors of the file, in float32."""
    architecture, names = ARCHITECTURES[config["model_type"]]
    file = {}
    for key, array in tensors(config).items():
        module, suffix = key.rsplit(".", 1)
        if architecture in PAIRED and module.endswith(("q_proj", "k_proj")):
            array = pairs_as_neighbours(array, HEADS if module.endswith("q_proj") else KEY_HEADS)
        if architecture.startswith("gemma") and module.endswith("norm"):
            array = array + 1
        outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        if module in outside:
            name = outside[module]
        else:
            _, _, layer, part = module.split(".", 3)
            name = f"blk.{layer}.{names[part]}"
        file[f"{name}.{suffix}"] = array
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        file["rope_freqs.weight"] = llama3_factors(config)
    if "long_factor" in scaling:
        file["rope_factors_long.weight"] = np.asarray(scaling["long_factor"], np.float32)
        file["rope_factors_short.weight"] = np.asarray(scaling["short_factor"], np.float32)
    return file


def llama3_factors(config: dict) -> np.ndarray:
    """By how much each pair of a head turns slower."""
    scaling, head = config["rope_scaling"], head_size(config)
    frequencies = 1.0 / (config["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float32) / head))
    length, low, high = (scaling[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    factors = []
    for wave in 2 * math.pi / frequencies:
        if wave < length / high:
            factors.append(1)
        elif wave > length / low:
            factors.append(scaling["factor"])
        else:
            smooth = (length / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.asarray(factors, np.float32)


def describe(writer: GGUFWriter, config: dict) -> None:
    """Writes the metadata."""
    architecture, kind = ARCHITECTURES[config["model_type"]][0], config["model_type"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if architecture in PAIRED:
        writer.add_rope_dimension_count(head_size(config))
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    if kind != "gemma2":
        writer.add_rope_freq_base(rope["rope_theta"])
    scale(writer, rope)
    if kind == "gemma3_text":
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
    if kind in ("gemma2", "gemma3_text", "olmo3"):
        writer.add_sliding_window(config["sliding_window"])
    if kind == "olmo3":
        writer.add_sliding_window_pattern([name == "sliding_attention" for name in config["layer_types"]])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if kind == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if kind == "ministral3":
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if kind == "phi3":
        phi3(writer, config)


def scale(writer: GGUFWriter, rope: dict) -> None:
    kind = rope.get("rope_type")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[kind.upper()])
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        optional = {
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for key, add in optional.items():
            if key in rope:
                add(rope[key])


def phi3(writer: GGUFWriter, config: dict) -> None:
    original = config.get("original_max_position_embeddings", config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(int(config.get("partial_rotary_factor", 1) * config["hidden_size"]) // HEADS)
    writer.add_sliding_window(config["sliding_window"] or 0)
    if config.get("rope_scaling"):
        ratio = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(original)))


def write(path: Path, config: dict, kind: Type) -> None:
    """Writes a model whose matrices have this type."""
    writer = GGUFWriter(path, ARCHITECTURES[config["model_type"]][0])
    describe(writer, config)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name, array in in_file(config).items():
        if array.ndim == 1 or kind == Type.F32:
            writer.add_tensor(name, array)
        elif kind == Type.F16:
            writer.add_tensor(name, array.astype(np.float16))
        else:
            bits = (array.view(np.uint32) >> 16).astype(np.uint16)
            writer.add_tensor(name, bits.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@llama_cpp.llama_log_callback
def say_nothing(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


def logits(file: Path) -> np.ndarray:
    """llama.cpp's logits after each of `TOKENS`, with keys and values in float32."""
    llama_cpp.llama_log_set(say_nothing, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {file}")
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = 32
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = Type.F32.value
    parameters.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, parameters)
    rows = []
    for token in TOKENS:
        batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(token), 1)
        if llama_cpp.llama_decode(context, batch) != 0:
            raise SystemExit(f"llama.cpp cannot run {file}")
        row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (VOCABULARY,))
        rows.append(row.astype(np.float32).copy())
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(rows)


def make(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (kind, config) in MODELS.items():
        config = {**BASE, **config}
        if "rope_parameters" in config:
            del config["rope_theta"]
        whole = folder / "whole.gguf"
        write(whole, config, Type.F32)
        found = logits(whole)
        whole.unlink()
        assert np.isfinite(found).all(), name
        write(folder / f"{name}.gguf", config, kind)
        (folder / f"{name}.f32").write_bytes(found.astype("<f4").tobytes())
        text = json.dumps(config, indent=1)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    return finish({FOLDER: make}, args)


if __name__ == "__main__":
    sys.exit(main())
