"""Measures mlx-lm's caches: the time to append single tokens to a cache that already holds many tokens.

What: a server for a benchmark that alternates with mlx-lm. It reads lines `KIND TOKENS ITERATIONS [DTYPE]` from
standard input. For each line it prints the total seconds of ITERATIONS appends of one token, each evaluated, to a cache
that holds TOKENS tokens. It ends at the end of its input. A line that it does not understand ends it with status 2.

    KIND     full
             quantized8, quantized4: full, in groups of 64
             rotating, rotating-keep (4 sinks): `max_size` is TOKENS, and the cache has wrapped
             batch, batch-rotating: full and rotating, for four rows with left padding
    DTYPE    float32 (the default), bfloat16 or float16

The keys and values of an append have the shape [1, 4, 1, 64], in a batch [4, 4, 1, 64].

Why: the benchmark of `mlx-kvcache` shows its own times next to mlx-lm's, measured alternately on the same machine.

How to run, from the repository root:

    echo full 4096 200 | python xtask/python/bench_caches.py

Every request begins with eight appends that are not timed. After them, a cache that grows has room for 248 more tokens if
TOKENS is a multiple of 256. With more iterations, the time includes allocating larger arrays.
"""

import sys
import time
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.models.cache import (
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

HEADS, HEAD_DIM, GROUP_SIZE, SINKS = 4, 64, 64, 4
LEFT_PADDING = [3, 0, 2, 1]  # one number for each row
WARM_UP = 8
STEP = 256  # the number of slots by which mlx-lm's caches grow

KINDS: dict[str, Callable[[int], object]] = {
    "full": lambda tokens: KVCache(),
    "quantized8": lambda tokens: QuantizedKVCache(group_size=GROUP_SIZE, bits=8),
    "quantized4": lambda tokens: QuantizedKVCache(group_size=GROUP_SIZE, bits=4),
    "rotating": lambda tokens: RotatingKVCache(tokens),
    "rotating-keep": lambda tokens: RotatingKVCache(tokens, keep=SINKS),
    "batch": lambda tokens: BatchKVCache(LEFT_PADDING),
    "batch-rotating": lambda tokens: BatchRotatingKVCache(tokens, LEFT_PADDING),
}
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class Prepared:
    """A cache that holds `tokens` tokens, and one more token to append."""

    def __init__(self, kind: str, tokens: int, dtype: mx.Dtype) -> None:
        self.request, self.rotates = (kind, tokens, dtype), "rotating" in kind
        self.cache = KINDS[kind](tokens)
        batch = len(LEFT_PADDING) if kind.startswith("batch") else 1
        mx.random.seed(1)

        def draw(length: int) -> mx.array:
            return mx.random.normal((batch, HEADS, length, HEAD_DIM)).astype(dtype)

        self.token = draw(1), draw(1)
        mx.eval(self.token)
        self.cache.update_and_fetch(draw(tokens), draw(tokens))
        mx.eval(self.cache.state)

    def append(self, count: int) -> float:
        """Appends `count` single tokens, and returns the seconds that this took."""
        keys, values = self.token
        began = time.perf_counter()
        for _ in range(count):
            # The result is not kept: if it were, MLX could not write into the same memory next time.
            self.cache.update_and_fetch(keys, values)
            mx.eval(self.cache.state)
        return time.perf_counter() - began

    def restore(self, count: int) -> bool:
        """Removes the tokens again. Returns whether the cache can be used for the next request."""
        return self.rotates or count <= STEP and self.cache.trim(count) == count


def parse(line: str) -> tuple[str, int, int, mx.Dtype]:
    kind, tokens, iterations, *dtype = line.split()
    if kind not in KINDS or len(dtype) > 1 or int(tokens) <= SINKS or int(iterations) < 1:
        raise ValueError
    return kind, int(tokens), int(iterations), DTYPES[dtype[0] if dtype else "float32"]


def main() -> int:
    prepared = None
    for line in sys.stdin:
        try:
            kind, tokens, iterations, dtype = parse(line)
        except (ValueError, KeyError):
            print(f"not KIND TOKENS ITERATIONS [DTYPE]: {line.strip()}", file=sys.stderr)
            return 2
        if prepared is None or prepared.request != (kind, tokens, dtype):
            prepared = None  # frees its memory before the next cache is made
            prepared = Prepared(kind, tokens, dtype)
        prepared.append(WARM_UP)
        print(prepared.append(iterations), flush=True)
        if not prepared.restore(WARM_UP + iterations):
            prepared = None
    return 0


if __name__ == "__main__":
    sys.exit(main())
