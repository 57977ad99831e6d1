"""Makes the fixture of `mlx_models::convert`: tiny checkpoints of parity cases, converted by mlx-lm's `convert`.

What: `converted.json`, one case per line: a checkpoint, the options, and a description of the folder that mlx-lm writes.
It has the config, the sizes in the index, and the dtype, shape and the beginning of the SHA-256 of each tensor. If there
are several files, it says which tensors each contains. With `adapters`, mlx-lm's `fuse` adds them to the weights first.

Why: `cargo test -p mlx-models --features architectures` requires the same folders from this project's `convert`.

How to run, from the repository root:

    python xtask/python/make_convert_fixtures.py

The script itself has no random numbers: the checkpoints have their own seeds.
"""

import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx_lm.utils
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.convert import convert
from parity_cases import CASES_FOLDER, ROOT, argument_parser, demand_own_blas, finish, origin

FILE = "crates/mlx-models/tests/fixtures/converted.json"

# Quantized checkpoints are dequantized first. They are here because some models have no other case.
CHECKPOINTS = {
    "gemma3": "gemma3_bf16_whole",
    "gemma3_untied": "gemma3_untied_q4",
    "gemma3_multimodal": "gemma3_multimodal",
    "olmo3": "olmo3_f16_whole",
    "olmo3_bias": "olmo3_bias_bf16",
    "phi3": "phi3_f32_whole",
    "qwen3": "qwen3_bf16_whole",
    "lille": "lille_q8",
}
FIRST = {"dequantize_first": True}
AFFINE = {"quantize": True, "q_mode": "affine", "q_group_size": 32}
# The first checkpoint of each architecture is converted with all `OPTIONS`, the `VARIANTS` with `OF_VARIANTS` only.
VARIANTS = ("gemma3_untied", "gemma3_multimodal", "olmo3_bias")
OF_VARIANTS = ("bf16", "q4", "mixed_3_6", "shards")
OPTIONS = {
    "same": {},
    "f32": {"dtype": "float32"},
    "f16": {"dtype": "float16"},
    "bf16": {"dtype": "bfloat16"},
    "q4": AFFINE | {"q_bits": 4},
    "q8_f16": AFFINE | {"q_bits": 8, "dtype": "float16"},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
    "mixed_3_6": AFFINE | {"q_bits": 4, "quant_predicate": "mixed_3_6"},
    "shards": AFFINE | {"q_bits": 4, "largest_shard": 6000},
}
# Other cases: a checkpoint and options.
MORE = {
    "gemma3_mixed_2_6": ("gemma3_bf16_whole", AFFINE | {"q_bits": 4, "quant_predicate": "mixed_2_6"}),
    "qwen3_mixed_3_4": ("qwen3_bf16_whole", AFFINE | {"q_bits": 4, "quant_predicate": "mixed_3_4"}),
    "phi3_mixed_4_6": ("phi3_f32_whole", AFFINE | {"q_bits": 8, "quant_predicate": "mixed_4_6"}),
    "lille_q3_64": ("lille_q8", FIRST | {"quantize": True, "q_mode": "affine", "q_group_size": 64, "q_bits": 3}),
    "lille_q4_defaults": ("lille_q8", FIRST | {"quantize": True, "q_mode": "affine"}),
    "gemma3_q4_dequantized": ("gemma3_q4_whole", {"dequantize": True}),
    "gemma3_mxfp4_dequantized": ("gemma3_mxfp4_whole", {"dequantize": True}),
    "gemma3_q8_multimodal_dequantized": ("gemma3_multimodal_q8", {"dequantize": True}),
    "olmo3_bias_q4_dequantized": ("olmo3_bias_q4", {"dequantize": True}),
    "phi3_q8_dequantized_f16": ("phi3_q8_whole", {"dequantize": True, "dtype": "float16"}),
    "qwen3_q4_f16": ("qwen3_q4_whole", {"dtype": "float16"}),
    "lille_q4_mixed_same": ("lille_q4_mixed", {}),
    "lille_nvfp4_dequantized": ("lille_nvfp4_f32", {"dequantize": True}),
    "lora_f32_q4": ("lora_f32", AFFINE | {"q_bits": 4, "adapters": "adapters"}),
    "lora_q4_same": ("lora_q4", {"adapters": "adapters"}),
    "lora_phi3_q4_dequantized": ("lora_phi3_q4", {"adapters": "adapters", "dequantize": True}),
    # Layers of Granite models keep 8 bits.
    "granite_q4": ("granite_q4_mlx_lm", FIRST | AFFINE | {"q_bits": 4}),
    "granite_mxfp4": ("granite_q4_mlx_lm", FIRST | {"quantize": True, "q_mode": "mxfp4"}),
    "granite_mixed_3_6": (
        "granite_q4_mlx_lm",
        FIRST | AFFINE | {"q_bits": 4, "quant_predicate": "mixed_3_6"},
    ),
    "granite_q4_same": ("granite_q4_mlx_lm", {}),
    # Options for single layers. mlx-lm takes a function for them; the first name with which a key ends applies.
    "olmo3_layers": (
        "olmo3_f16_whole",
        AFFINE | {"q_bits": 4, "layers": {"lm_head": "8:32", "self_attn.v_proj": "none", "mlp.up_proj": "mxfp8"}},
    ),
    "gemma3_multimodal_layers": ("gemma3_multimodal", AFFINE | {"q_bits": 4, "layers": {"embed_tokens": "6:32"}}),
}


def chooser(layers: dict[str, str]):
    """The function that tells mlx-lm how each of these layers is quantized."""

    def choose(path: str, _module) -> bool | dict:
        for name, how in layers.items():
            if path == name or path.endswith(f".{name}"):
                if how == "none":
                    return False
                if ":" not in how:
                    return {"group_size": 32, "bits": {"mxfp4": 4, "mxfp8": 8}[how], "mode": how}
                bits, group_size = map(int, how.split(":"))
                return {"group_size": group_size, "bits": bits, "mode": "affine"}
        return True

    return choose


@contextlib.contextmanager
def as_it_is():
    """Switches off what mlx-lm does besides tensors: reading a tokenizer, which cases lack, and writing a card."""
    no_tokenizer = mock.Mock()
    with (
        mock.patch("mlx_lm.utils.load_tokenizer", return_value=no_tokenizer),
        mock.patch("mlx_lm.utils.create_model_card"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def make_shards(weights: dict, limit: int) -> list[dict]:
    """Does what mlx-lm's function does, with a limit in bytes instead of gigabytes."""
    shards, size = [], 0
    for key, value in weights.items():
        if not shards or size + value.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][key] = value
        size += value.nbytes
    return shards


def fuse(folder: Path, adapters: Path, out: Path, dequantize: bool) -> None:
    """Fuses adapters, as `mlx_lm fuse` does."""
    model, _, config = mlx_lm.utils.load(str(folder), adapter_path=str(adapters), return_config=True)
    fused = [(n, m.fuse(dequantize=dequantize)) for n, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    if dequantize:
        model = mlx_lm.utils.dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    mlx_lm.utils.save(out, folder, model, mock.Mock(), config, donate_model=False)


def convert_case(checkpoint: str, options: dict, out: Path) -> None:
    """Converts a checkpoint with mlx-lm."""
    options = dict(options)
    folder = ROOT / CASES_FOLDER / checkpoint
    own = ("dequantize_first", "adapters", "largest_shard", "layers")
    first, adapters, limit, layers = (options.pop(key, None) for key in own)
    if layers:
        options["quant_predicate"] = chooser(layers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(as_it_is())
        if limit:
            shards = lambda weights: make_shards(weights, limit)  # noqa: E731
            stack.enter_context(mock.patch("mlx_lm.utils.make_shards", shards))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if first:
            convert(str(folder), str(scratch / "dequantized"), dequantize=True)
            folder = scratch / "dequantized"
        if adapters:
            dequantize = options.pop("dequantize", False)
            fuse(folder, folder / adapters, scratch / "fused", dequantize)
            folder = scratch / "fused"
        convert(str(folder), str(out), **options)


def describe(folder: Path) -> dict:
    """The description of a folder that mlx-lm wrote."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        for key, array in mx.load(str(file)).items():
            digest = hashlib.sha256(bytes(memoryview(mx.contiguous(array.reshape(-1)).view(mx.uint8)))).hexdigest()
            dtype = str(array.dtype).removeprefix("mlx.core.")
            assert index["weight_map"][key] == file.name
            tensors[key] = f"{dtype} {'x'.join(map(str, array.shape))} {digest[:12]}"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # mlx-lm copies the outer `vocab_size` here when it reads the model, which is not a part of the conversion.
    config.get("text_config", {}).pop("vocab_size", None)
    files = sorted(set(index["weight_map"].values()))
    several = {"files": {file: [key for key, of in index["weight_map"].items() if of == file] for file in files}}
    made = {"metadata": index["metadata"], "config": config, "tensors": dict(sorted(tensors.items()))}
    return made | (several if len(files) > 1 else {})


def cases() -> dict[str, tuple[str, dict]]:
    matrix = {
        f"{architecture}_{name}": (checkpoint, (FIRST if "_q" in checkpoint else {}) | options)
        for architecture, checkpoint in CHECKPOINTS.items()
        for name, options in OPTIONS.items()
        if architecture not in VARIANTS or name in OF_VARIANTS
    }
    return matrix | MORE


def make_text() -> str:
    lines = []
    for name, (checkpoint, options) in cases().items():
        with tempfile.TemporaryDirectory() as scratch:
            convert_case(checkpoint, options, Path(scratch) / "out")
            made = describe(Path(scratch) / "out")
        lines.append(json.dumps({"name": name, "checkpoint": checkpoint, "options": options} | made))
    head = json.dumps(origin("xtask/python/make_convert_fixtures.py"))[:-1]
    return head + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    text = make_text()
    return finish({FILE: lambda path: path.write_text(text, encoding="utf-8")}, args)


if __name__ == "__main__":
    sys.exit(main())
