"""Makes the fixtures of `mlx-gguf`: GGUF files with a tensor of each type, and their numbers.

What: `types.gguf`, written by the Python package gguf, has metadata of every type and, for each type of tensors that we read, a
tensor of random blocks. `types.f32` has the numbers that the package makes of these tensors, as little-endian float32, one
tensor after another, sorted by name. `quantized.gguf` has a tensor `numbers` in float32, and the blocks that ggml makes of these
numbers, a tensor for each type that we write.

Why: `cargo test -p mlx-gguf` requires the same bits.

How to run, from the repository root:

    cargo xtask fixtures --only make_gguf
"""

import ctypes
import importlib.util
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


# The types that are quantized by ggml itself.
QUANTIZED = [
    Type.F16,
    Type.BF16,
    Type.Q4_0,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q8_0,
    Type.Q4_K,
    Type.Q5_K,
    Type.Q6_K,
]


def ggml() -> ctypes.CDLL:
    """ggml's library in the package llama_cpp."""
    package = Path(importlib.util.find_spec("llama_cpp").origin).parent
    (library,) = (package / "lib").glob("libggml-base.*[!0-9]")
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    rows = [ctypes.c_int64] * 3
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *rows, ctypes.c_void_p]
    return ggml


def hard_numbers(rng: np.random.Generator) -> np.ndarray:
    """`[blocks, 256]`: usual weights, and blocks that are hard to quantize."""
    normal = rng.standard_normal((16, 256))
    rows = [
        normal[0] * 0.02,
        normal[1] * 3,
        rng.standard_t(2, 256) * 0.01,
        np.abs(normal[2]),
        -np.abs(normal[3]) - 1,
        np.where(rng.random(256) < 0.9, 0, normal[4]),
        # Groups of very different sizes.
        normal[5] * np.repeat(10.0 ** rng.uniform(-9, 2, 8), 32),
        normal[6] * np.repeat(10.0 ** rng.uniform(-9, 2, 16), 16),
        rng.integers(-8, 8, 256) / 8,
        # Scales that are no normal float16 numbers, or none at all.
        normal[7] * 1e-7,
        normal[8] * 1e-20,
        normal[9] * 1e-42,
        np.zeros(256),
        np.full(256, 0.3),
        np.full(256, -0.3),
        normal[10] * 1e4,
    ]
    return np.stack(rows).astype(np.float32)


def write_quantized(path: Path) -> None:
    """Writes `quantized.gguf`."""
    numbers = hard_numbers(np.random.default_rng(SEED))
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("numbers", numbers)
    quantize = ggml().ggml_quantize_chunk
    for kind in QUANTIZED:
        elements, size = GGML_QUANT_SIZES[kind]
        blocks = np.zeros((len(numbers), 256 // elements * size), np.uint8)
        assert quantize(kind, numbers.ctypes.data, blocks.ctypes.data, 0, *numbers.shape, None) == blocks.size
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
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
        write_quantized(folder / "quantized.gguf")
        (folder / "types.f32").write_bytes(b"".join(tensor.astype("<f4").tobytes() for tensor in numbers))

    return finish({FOLDER: make}, args)


if __name__ == "__main__":
    sys.exit(main())
