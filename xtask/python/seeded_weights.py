"""Weights from a seed: describes the checkpoint of a parity case with a few numbers if it would be too large.

What: `weights.json` lists tensors with their shape, their dtype and two integers, a scale and an offset. All values are
computed from these and a seed, with integer arithmetic and one rounding. `docs/parity.md` describes the rule. The same
code in Rust is in `crates/mlx-lab/src/parity/weights.rs`. A hash of the bytes of all tensors shows that both agree.

Why: the case then needs 5 KB instead of a checkpoint.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GENERATOR = "splitmix64-uniform-1"
SCALE, SHIFT = 4096, 23
GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


@dataclass(frozen=True)
class Tensor:
    """One tensor: uniform numbers between `offset - scale` and `offset + scale`, both in units of 1/4096."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # F32, F16 or BF16
    scale: int
    offset: int

    def description(self) -> dict:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scale": self.scale,
            "offset": self.offset,
        }


def fnv1a(text: str) -> int:
    """The 64-bit FNV-1a hash of the UTF-8 bytes."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The output of SplitMix64 for each of these states."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def float32_values(tensor: Tensor, seed: int) -> np.ndarray:
    """The tensor before it is cast: multiples of 2**-35, rounded once to float32."""
    count = int(np.prod(tensor.shape, dtype=np.int64))
    first = np.uint64(seed ^ fnv1a(tensor.name))
    states = first + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    steps = (splitmix64(states) >> np.uint64(40)).astype(np.int64) - (1 << SHIFT)
    numerators = tensor.scale * steps + (tensor.offset << SHIFT)
    return (numerators.astype(np.float64) / (SCALE << SHIFT)).astype(np.float32).reshape(tensor.shape)


def stored(tensor: Tensor, seed: int) -> np.ndarray:
    """The tensor as it is stored. bfloat16 is in uint16, since NumPy has no such type."""
    values = float32_values(tensor, seed)
    if tensor.dtype == "F32":
        return values
    if tensor.dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def tensor_like(
    name: str, shape: tuple[int, ...], dtype: str, scaled: Callable[[str, np.ndarray], np.ndarray]
) -> Tensor:
    """A tensor with the mean and variance that normally distributed numbers have after `scaled`."""
    zero, one = (float(scaled(name, np.full(shape, value, dtype=np.float32)).flat[0]) for value in (0.0, 1.0))
    return Tensor(name, shape, dtype, round((one - zero) * 3**0.5 * SCALE), round(zero * SCALE))


def digest(tensors: list[Tensor], seed: int) -> str:
    """SHA-256 of the little-endian bytes of all tensors, in this order."""
    value = hashlib.sha256()
    for tensor in tensors:
        array = stored(tensor, seed)
        value.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return value.hexdigest()


def write_weights(file: Path, seed: int, files: dict[str, list[Tensor]]) -> None:
    """Writes `weights.json`, with one tensor per line."""
    sha256 = digest([tensor for tensors in files.values() for tensor in tensors], seed)
    lines = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(tensor.description()) for tensor in tensors) + "\n]"
        for name, tensors in files.items()
    )
    head = f'"generator": "{GENERATOR}",\n"seed": {seed},\n"sha256": "{sha256}"'
    file.write_text(f'{{\n{head},\n"files": {{\n{lines}\n}}\n}}\n', encoding="utf-8")


def main() -> int:
    """Prints the values that the tests of `weights.rs` require."""
    for dtype in ("F32", "F16", "BF16"):
        tensor = Tensor("model.layers.0.weight", (2, 3), dtype, 1597, 4096)
        print(dtype, [hex(bits) for bits in stored(tensor, 7).view(np.uint32 if dtype == "F32" else np.uint16).flat])
    print(hex(fnv1a("model.layers.0.weight")), digest([Tensor("a", (3,), "F16", 8192, 0)], 2**64 - 1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
