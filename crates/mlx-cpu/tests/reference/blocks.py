"""Makes the table `HASHES` in `src/blocks/tests.rs`: hashes of the numbers that random blocks stand for.

Run it with the Python package gguf 0.19, and copy its output into that table.
"""

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

MASK = (1 << 64) - 1
ROWS, COLUMNS = 3, 1280


def codes(seed, count):
    """Bytes from the generator of the tests."""
    state = (seed * 0x9E3779B97F4A7C15 & MASK) | 1
    out = bytearray()
    for _ in range(count):
        state ^= (state << 13) & MASK
        state ^= state >> 7
        state ^= (state << 17) & MASK
        out.append(state >> 56)
    return out


def fnv(data):
    hash = 0xCBF29CE484222325
    for byte in data:
        hash = ((hash ^ byte) * 0x100000001B3) & MASK
    return hash


# The block's elements and bytes, and where its float16 lie.
for name, elements, size, halves in [
    ("Q4_0", 32, 18, [0]),
    ("Q4_1", 32, 20, [0, 2]),
    ("Q5_0", 32, 22, [0]),
    ("Q5_1", 32, 24, [0, 2]),
    ("Q8_0", 32, 34, [0]),
    ("Q2_K", 256, 84, [80, 82]),
    ("Q3_K", 256, 110, [108]),
    ("Q4_K", 256, 144, [0, 2]),
    ("Q5_K", 256, 176, [0, 2]),
    ("Q6_K", 256, 210, [208]),
]:
    data = codes(11, ROWS * COLUMNS // elements * size)
    for start in range(0, len(data), size):
        for at in halves:
            # Numbers below 2 of any sign.
            data[start + at + 1] &= 0xBF
    numbers = dequantize(np.frombuffer(bytes(data), np.uint8).reshape(ROWS, -1), Type[name])
    print(f"    (BlockFormat::{name}, 0x{fnv(numbers.astype('<f4').tobytes()):016x}),")
