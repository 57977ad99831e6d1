"""Makes the fixtures of `mlx-gguf`: a GGUF file with a tensor of each type, and its numbers.

What: `types.gguf`, written by the Python package gguf, has metadata of every type and, for each type of tensors that we read, a
tensor of random blocks. `types.f32` has the numbers that the package makes of these tensors, as little-endian float32, one
tensor after another, sorted by name.

Why: `cargo test -p mlx-gguf` requires the same bits.

How to run, from the repository root:

    cargo xtask fixtures --only make_gguf
"""

import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize
from gguf.constants import GGML_QUANT_SIZES
from parity_cases import argument_parser, finish

FOLDER = "crates/mlx-gguf/tests/fixtures"
SEED = 23
ROWS, BLOCKS = 2, 2

# Where the float16 numbers of a block are. Random bytes there could be infinite or not a number.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}


def blocks(kind: Type, rng: np.random.Generator) -> np.ndarray:
    """`[ROWS, bytes of BLOCKS blocks]`, random."""
    _, size = GGML_QUANT_SIZES[kind]
    bytes_ = rng.integers(0, 256, (ROWS * BLOCKS, size), dtype=np.uint8)
    for start in HALVES[kind]:
        half = rng.standard_normal((ROWS * BLOCKS, 1)).astype(np.float16)
        bytes_[:, start : start + 2] = half.view(np.uint8)
    return bytes_.reshape(ROWS, -1)


def exponents(kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Blocks of MXFP4: one for each scale that a file has, the smallest and the largest finite ones among them."""
    _, size = GGML_QUANT_SIZES[kind]
    scales = [0, 1, 2, 3, 100, 126, 127, 128, 200, 250]
    bytes_ = rng.integers(0, 256, (len(scales), size), dtype=np.uint8)
    bytes_[:, 0] = scales
    return bytes_


def write(path: Path) -> None:
    """Writes `types.gguf`."""
    rng = np.random.default_rng(SEED)
    writer = GGUFWriter(path, "llama")
    values = {
        GGUFValueType.UINT8: 200,
        GGUFValueType.INT8: -100,
        GGUFValueType.UINT16: 60_000,
        GGUFValueType.INT16: -30_000,
        GGUFValueType.UINT32: 4_000_000_000,
        GGUFValueType.INT32: -2_000_000_000,
        GGUFValueType.UINT64: 2**64 - 1,
        GGUFValueType.INT64: -(2**63),
        GGUFValueType.FLOAT32: 0.1,
        GGUFValueType.FLOAT64: 0.1,
        GGUFValueType.BOOL: True,
        GGUFValueType.STRING: "ein Wörtchen",
    }
    for kind, value in values.items():
        writer.add_key_value(f"test.{kind.name.lower()}", value, kind)
    lists = {
        "integers": ([1, -2, 3], GGUFValueType.INT32),
        "bytes": ([255, 0], GGUFValueType.UINT8),
        "floats": ([0.5, -0.25], GGUFValueType.FLOAT32),
        "bools": ([True, False], GGUFValueType.BOOL),
        "texts": (["a", "", "ü€"], GGUFValueType.STRING),
    }
    for name, (value, kind) in lists.items():
        writer.add_key_value(f"test.list.{name}", value, GGUFValueType.ARRAY, sub_type=kind)
    for kind in HALVES:
        writer.add_tensor(kind.name, blocks(kind, rng), raw_dtype=kind)
    writer.add_tensor("MXFP4", exponents(Type.MXFP4, rng), raw_dtype=Type.MXFP4)
    numbers = rng.standard_normal((2, 3, 5)).astype(np.float32)
    writer.add_tensor("F32", numbers)
    writer.add_tensor("F16", numbers.astype(np.float16))
    writer.add_tensor("BF16", (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), raw_dtype=Type.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    args = argument_parser(__doc__).parse_args()

    def make(folder: Path) -> None:
        folder.mkdir()
        write(folder / "types.gguf")
        tensors = sorted(GGUFReader(folder / "types.gguf").tensors, key=lambda tensor: tensor.name)
        numbers = [np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32) for tensor in tensors]
        assert all(np.isfinite(tensor).all() for tensor in numbers)
        (folder / "types.f32").write_bytes(b"".join(tensor.astype("<f4").tobytes() for tensor in numbers))

    return finish({FOLDER: make}, args)


if __name__ == "__main__":
    sys.exit(main())
