"""Writes a checkpoint as GGUF, so that llama.cpp does the same work with the same weights in benchmarks.

What: reads `config.json` and `model.safetensors` (bfloat16 or float32) of a Gemma 3, Lille, Llama 3.2, Phi-3 or Qwen 2 model and writes one
GGUF file. Matrices are F32, BF16, Q8_0 or Q4_0, including the embedding and the head; norms and biases are F32. The
file has no tokenizer (`tokenizer.ggml.model` is `none`), because the benchmark uses token ids. Prints one line of JSON: the
number of tensors of each type, and their bytes.

In llama.cpp, Lille is the architecture `llama`: heads share keys and values, rotation is interleaved, norms are RMSNorm, the
MLP is SwiGLU. Lille's fused projection is written as three. llama.cpp does not add 1 to the weights of Gemma's norms, so
the script does. Since `llama` rotates pairs of neighbours, the rows of Llama's queries and keys are sorted so that its pairs
are neighbours, and the stretching of its slower pairs is a tensor of factors.

Why: `cargo xtask speed` and `cargo xtask real` compare this project with llama.cpp, which reads GGUF files only.

How to run, from the repository root:

    $(cargo xtask python llama-cpp-tools) xtask/python/write_gguf.py --model DIR --type Q8_0 --out FILE
"""

import argparse
import contextlib
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

TYPES = ("F32", "BF16", "Q8_0", "Q4_0")

GEMMA3_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

LILLE_NAMES = {
    "attention.norm": "attn_norm",
    "attention.out_proj": "attn_output",
    "feed_forward.norm": "ffn_norm",
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
}

LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


PHI3_NAMES = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a safetensors file: float32, and bfloat16 as uint16."""
    with open(file, "rb") as source:
        (length,) = struct.unpack("<Q", source.read(8))
        header = json.loads(source.read(length))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        dtype = {"BF16": np.dtype("<u2"), "F32": np.dtype("<f4")}.get(entry["dtype"])
        if dtype is None:
            raise SystemExit(f"{file}: {name} is {entry['dtype']}; it must be BF16 or F32")
        begin, end = entry["data_offsets"]
        array = np.fromfile(file, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=8 + length + begin)
        yield name, array.reshape(entry["shape"])


def float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 else (array.astype(np.uint32) << 16).view(np.float32)


def name_in(names: dict[str, str], name: str) -> str:
    """llama.cpp's name of a tensor that is named as in transformers, with these names for the parts of a layer."""
    name, kind = name.removeprefix("model.").rsplit(".", 1)
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{names[part]}.{kind}"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name] + f".{kind}"


def gemma3(writer: GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_sliding_window(config["sliding_window"])
    # llama.cpp has these values built in; older versions have no key for the second.
    if config["sliding_window_pattern"] != 6 or config["rope_local_base_freq"] != 10000:
        raise SystemExit("llama.cpp takes a window in five layers of six, and 10000 for their rotation")
    if config["query_pre_attn_scalar"] != config["head_dim"]:
        raise SystemExit("llama.cpp scales queries by the size of a head")


def llama(writer: GGUFWriter, config: dict) -> None:
    qwen2(writer, config)
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_rope_dimension_count(head_dim)
    writer.add_tensor("rope_freqs.weight", llama3_factors(config["rope_scaling"], config["rope_theta"], head_dim))


def qwen2(writer: GGUFWriter, config: dict) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])


def phi3(writer: GGUFWriter, config: dict) -> None:
    if config["rope_scaling"] or config["sliding_window"]:
        raise SystemExit("only a Phi-3 model without a window and with plain rotations can be written")
    qwen2(writer, config)
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def llama3_factors(scaling: dict, base: float, head_dim: int) -> np.ndarray:
    """By how much each pair of a head turns slower: 1 for fast pairs, `factor` for slow ones, a blend in between."""
    frequencies = base ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / factor)).astype(np.float32)


def neighbours(array: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a projection, sorted so that the pairs of a head are neighbours and not in its two halves."""
    return array.reshape(heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)


def lille_name(name: str) -> str:
    name = name.removesuffix(".weight").removeprefix("transformer.")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{LILLE_NAMES[part]}.weight"
    return {"tok_embeddings": "token_embd.weight", "norm": "output_norm.weight"}[name]


def lille(writer: GGUFWriter, config: dict) -> None:
    head_dim = config["n_embd"] // config["n_head"]
    writer.add_context_length(config["block_size"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(256 * round(int(8 * config["n_embd"] / 3) / 256))
    writer.add_head_count(config["n_head"])
    writer.add_head_count_kv(config["n_kv_heads"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["layer_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])


def parts(config: dict, name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of llama.cpp for one of our tensors."""
    if config["model_type"] == "gemma3_text":
        yield name_in(GEMMA3_NAMES, name), array
    elif config["model_type"] in ("phi3", "qwen2"):
        yield name_in(PHI3_NAMES if config["model_type"] == "phi3" else LLAMA_NAMES, name), array
    elif config["model_type"] == "llama":
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        part = name.split(".")[-2]
        yield name_in(LLAMA_NAMES, name), neighbours(array, heads[part]) if part in heads else array
    elif name.endswith("qkv_proj.weight"):
        layer = name.split(".")[2]
        head_dim = config["n_embd"] // config["n_head"]
        queries, keys = config["n_head"] * head_dim, config["n_kv_heads"] * head_dim
        for part, rows in zip("qkv", np.split(array, [queries, queries + keys])):
            yield f"blk.{layer}.attn_{part}.weight", rows
    else:
        yield lille_name(name), array


def write(model: Path, kind: str, file: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    architectures = {
        "gemma3_text": ("gemma3", gemma3),
        "lille-130m": ("llama", lille),
        "llama": ("llama", llama),
        "phi3": ("phi3", phi3),
        "qwen2": ("qwen2", qwen2),
    }
    if config["model_type"] not in architectures:
        raise SystemExit(f"{model}: {config['model_type']} has no counterpart here; {', '.join(architectures)} have")
    if not (config["tie_word_embeddings"] or config["model_type"] == "phi3") or "quantization" in config:
        raise SystemExit(f"{model}: only a tied model of full precision, or Phi-3, can be written")
    architecture, describe = architectures[config["model_type"]]
    writer = GGUFWriter(file, architecture)
    describe(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")

    stored = GGMLQuantizationType[kind]
    for name, array in tensors(model / "model.safetensors"):
        for name, array in parts(config, name, array):
            if array.ndim == 1:
                writer.add_tensor(name, float32(array) + (architecture == "gemma3"))
            elif kind == "BF16" and array.dtype != np.float32:
                writer.add_tensor(name, np.ascontiguousarray(array).view(np.uint8), raw_dtype=stored)
            else:
                writer.add_tensor(name, gguf.quants.quantize(float32(array), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--type", choices=TYPES, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()

    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f"{args.out.name}.partial-{os.getpid()}")
    try:
        write(args.model, args.type, partial)
        written = GGUFReader(partial).tensors
        wrong = [tensor.name for tensor in written if len(tensor.shape) > 1 and tensor.tensor_type.name != args.type]
        if wrong:
            raise SystemExit(f"not of type {args.type}: {', '.join(wrong)}")
        report = {
            "types": Counter(tensor.tensor_type.name for tensor in written),
            "bytes": sum(int(tensor.n_bytes) for tensor in written),
        }
        os.replace(partial, args.out)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
