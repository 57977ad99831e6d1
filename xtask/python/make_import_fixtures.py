"""Makes the fixtures of `mlx-checkpoint`: layers as other programs quantize them, and the weights that these programs compute.

What: a folder for each case, with the config and the tensors of a checkpoint with one layer, and with `expected.safetensors`,
which has its weight in full precision. FP8 weights are dequantized by transformers. Of AWQ, GPTQ and compressed-tensors the
script packs random numbers q, as these formats lay them out, and the weight is `(q - zero) * scale`, rounded once to the dtype
of the scales, as AutoAWQ, AutoGPTQ and compressed-tensors compute it.

Why: `cargo test -p mlx-checkpoint` requires the same numbers.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    cargo xtask fixtures --only make_import
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from parity_cases import argument_parser, finish
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, _dequantize_fp8_weight

FOLDER = "crates/mlx-checkpoint/tests/fixtures/imported"
SEED = 23
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]

Tensors = dict[str, torch.Tensor]


def pack(numbers: torch.Tensor, bits: int, order: list[int] | None = None) -> torch.Tensor:
    """Packs the last axis into words of 32 bits. `order` says which number is in each place, from the lowest bits on."""
    places = numbers.to(torch.int64).unflatten(-1, (-1, 32 // bits))
    places = places[..., order] if order else places
    words = (places << torch.arange(0, 32, bits)).sum(-1)
    return words.to(torch.int64).where(words < 1 << 31, words - (1 << 32)).to(torch.int32)


@dataclass(frozen=True)
class Packed:
    """A layer of whole numbers."""

    name: str
    config: dict
    outputs: int = 8
    inputs: int = 128
    group: int = 32
    bits: int = 4
    zero: int | None = None  # the zero point of all groups; random without it
    dtype: torch.dtype = torch.float16
    reordered: bool = False  # inputs of a group are not neighbours
    tensors: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")

    def make(self) -> tuple[Tensors, torch.Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        groups, top = -(-self.inputs // self.group), 1 << self.bits
        q = torch.randint(0, top, (self.outputs, self.inputs), generator=generator)
        # No zero point of 0 in the first version of GPTQ: its writers store it so that it spoils its neighbours.
        zeros = torch.randint(1, top, (self.outputs, groups), generator=generator)
        zeros = zeros if self.zero is None else torch.full_like(zeros, self.zero)
        scales = (torch.rand((self.outputs, groups), generator=generator) * 0.02 + 0.001).to(self.dtype)
        group_of = torch.arange(self.inputs) // self.group
        if self.reordered:
            group_of = group_of[torch.randperm(self.inputs, generator=generator)]
        # int8 less int8, times float16: one rounding
        weight = (q - zeros[:, group_of]).to(torch.int8) * scales[:, group_of]
        tensors = self.stored(q, zeros, scales, group_of)
        bias = torch.randn(self.outputs, generator=generator).to(self.dtype)
        return {name: tensors[name] for name in self.tensors} | {"bias": bias}, weight

    def stored(self, q: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor) -> Tensors:
        method = self.config["quant_method"]
        if method == "compressed-tensors":
            return {
                "weight_packed": pack(q, self.bits),
                "weight_scale": scales,
                "weight_shape": torch.tensor([self.outputs, self.inputs]),
                "weight_zero_point": pack(zeros.T, self.bits).T,
                "weight_g_idx": group_of.to(torch.int32),
            }
        order = AWQ_ORDER if method == "awq" else None
        less_one = int(method == "gptq" and self.config.get("checkpoint_format") != "gptq_v2")
        return {
            "qweight": pack(q.T, self.bits, order) if method == "awq" else pack(q, self.bits).T,
            "qzeros": pack(zeros.T - less_one, self.bits, order),
            "scales": scales.T,
            "g_idx": group_of.to(torch.int32),
        }


@dataclass(frozen=True)
class Floats:
    """A layer of floats of 8 bits. `grid` is the shape of its scales."""

    name: str
    config: dict
    grid: tuple[int, ...]
    size: tuple[int, int] = (24, 40)
    scale_name: str = "weight_scale_inv"
    scale_dtype: torch.dtype = torch.float32
    others: Tensors = field(default_factory=dict)

    def make(self) -> tuple[Tensors, torch.Tensor]:
        generator = torch.Generator().manual_seed(SEED)
        weight = torch.randn(self.size, generator=generator).mul(100).clamp(-448, 448).to(torch.float8_e4m3fn)
        scales = torch.rand(self.grid, generator=generator) * 0.01 + 0.0001
        if self.scale_dtype == torch.uint8:  # exponents
            scales = torch.randint(110, 130, self.grid, generator=generator)
        scales = scales.to(self.scale_dtype)
        return {"weight": weight, self.scale_name: scales} | self.others, self.weight(weight, scales)

    def weight(self, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        block = self.config.get("weight_block_size")
        if block and any(size % part for size, part in zip(self.size, block, strict=True)):
            # Blocks that are cut off, which only transformers' other function knows.
            return _dequantize_fp8_weight(weight, scales, block, torch.float32).to(torch.bfloat16)
        scales = scales.reshape(-1, 1) if scales.ndim == 1 else scales
        return Fp8Dequantize(None)._dequantize_one(weight, scales, torch.bfloat16)


AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": False, "sym": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
SYMMETRIC = GPTQ | {"sym": True}


def compressed(fmt: str, **weights: object) -> dict:
    """A config of compressed-tensors."""
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": fmt, "config_groups": groups, "ignore": ["lm_head"]}


ROWS = compressed("pack-quantized", num_bits=4, type="int", symmetric=True, strategy="group", group_size=32)
ROWS_WITH_ZEROS = compressed("pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group", group_size=32)
ROWS_TENSORS = ("weight_packed", "weight_scale", "weight_shape")
NO_ORDER = ("qweight", "qzeros", "scales")

CASES = [
    Packed("awq_32", AWQ | {"group_size": 32}, tensors=NO_ORDER),
    Packed("awq_64", AWQ | {"group_size": 64}, group=64, tensors=NO_ORDER),
    Packed("awq_128", AWQ | {"group_size": 128}, group=128, inputs=256, tensors=NO_ORDER),
    Packed("awq_symmetric", AWQ | {"group_size": 32, "zero_point": False}, zero=8, tensors=("qweight", "scales")),
    Packed("gptq_32", GPTQ | {"group_size": 32}),
    Packed("gptq_64_symmetric", SYMMETRIC | {"group_size": 64}, group=64, zero=8),
    Packed("gptq_128_bf16", GPTQ | {"group_size": 128}, group=128, inputs=256, dtype=torch.bfloat16),
    Packed("gptq_v2_32", GPTQ | {"group_size": 32, "checkpoint_format": "gptq_v2"}, tensors=NO_ORDER),
    Packed("gptq_all", SYMMETRIC | {"group_size": -1}, group=256, inputs=256, zero=8),
    Packed("gptq_8_bits", SYMMETRIC | {"group_size": 32, "bits": 8}, bits=8, zero=128),
    Packed("gptq_2_bits", GPTQ | {"group_size": 32, "bits": 2}, bits=2, outputs=16),
    Packed("gptq_desc_act", GPTQ | {"group_size": 32, "desc_act": True}, reordered=True),
    Packed("gptq_v2_desc_act", SYMMETRIC | {"group_size": 64, "desc_act": True, "checkpoint_format": "gptq_v2"}, group=64, reordered=True),
    Packed("gptq_48", GPTQ | {"group_size": 48}, group=48),
    Packed("rows_32", ROWS, zero=8, dtype=torch.bfloat16, tensors=ROWS_TENSORS),
    Packed("rows_32_zeros", ROWS_WITH_ZEROS, outputs=16, tensors=(*ROWS_TENSORS, "weight_zero_point")),
    Floats("fp8_blocks", FP8 | {"weight_block_size": [8, 8]}, (3, 5)),
    Floats("fp8_cut_blocks", FP8 | {"weight_block_size": [16, 16]}, (2, 3)),
    Floats("fp8_exponents", FP8 | {"weight_block_size": [8, 8], "scale_fmt": "ue8m0"}, (3, 5), scale_dtype=torch.uint8),
    Floats(
        "fp8_tensor",
        FP8 | {"activation_scheme": "static", "weight_block_size": None},
        (),
        scale_dtype=torch.bfloat16,
        others={"activation_scale": torch.tensor(0.5, dtype=torch.bfloat16)},
    ),
    Floats("fp8_rows", {"quant_method": "fbgemm_fp8"}, (24, 1), scale_name="weight_scale"),
    Floats(
        "fp8_compressed",
        compressed("float-quantized", num_bits=8, type="float", symmetric=True, strategy="channel"),
        (24, 1),
        scale_name="weight_scale",
        scale_dtype=torch.bfloat16,
    ),
]


def write(case: Packed | Floats, folder: Path) -> None:
    """Writes the folder of one case."""
    folder.mkdir()
    config = {"model_type": "test", "dtype": "bfloat16", "quantization_config": case.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    stored, weight = case.make()
    metadata = {"made_by": "xtask/python/make_import_fixtures.py"}  # several keys would be in random order
    named = {f"layer.{name}": tensor.contiguous() for name, tensor in stored.items()}
    save_file(named, folder / "model.safetensors", metadata)
    save_file({"layer.weight": weight.contiguous()}, folder / "expected.safetensors", metadata)


if __name__ == "__main__":
    made: dict[str, Callable[[Path], None]] = {f"{FOLDER}/{case.name}": partial(write, case) for case in CASES}
    sys.exit(finish(made, argument_parser(__doc__).parse_args()))
