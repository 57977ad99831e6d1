"""Makes the parity cases of caches: the output of attention over a cache after every append.

What: each case is a folder with `reference.safetensors`, which has the inputs `q.0`, `k.0`, `v.0`, `q.1`, ... and the
outputs `out.0`, ... of every append, and `case.json`, which has the cache and the operations on it. The outputs come
from one of two references:

* NumPy in float64, compared within a tolerance. It has no cache, and applies the rule which query sees which key to all
  keys and values so far, which for a quantized cache were quantized by MLX. In a rotating cache query i sees key j if
  `j <= i` and (`j < keep` or `i - j < max_size - keep`); in a full cache if `j <= i` and, with a window,
  `i - j < window`.
* mlx-lm, compared exactly: its own caches, masks and attention, where they follow that rule.

Why: `cargo xtask parity` runs these folders with the caches of `mlx-kvcache`.

How to run, from the repository root:

    python xtask/python/make_cache_cases.py

Before the script writes a case, it checks that the case is useful:

* The outputs, also mlx-lm's, are within the tolerance of the rule.
* MLX's attention over all keys and values, in the dtype of the case, is within half the tolerance.
* If the case is compared within a tolerance, a slightly wrong rule is outside of it: a window that is one token longer
  or shorter, one sink more or less, keys and values that are not quantized.
* A cache of that size can do every trim.

One thing is missing, because mlx-lm 0.32.2 breaks the rule: appends of several tokens to a `RotatingKVCache` with sinks
that holds more than `max_size` tokens. Its mask then hides the sinks, and shows as many other tokens too many.
"""

import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import quantized_scaled_dot_product_attention, scaled_dot_product_attention
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    load_prompt_cache,
    save_prompt_cache,
)
from parity_cases import argument_parser, demand_own_blas, finish_cases, write_description

RULE, MLX_LM = f"numpy {version('numpy')} float64", f"mlx-lm {version('mlx-lm')}"
F32, BF16, F16 = mx.float32, mx.bfloat16, mx.float16
SAVE_LOAD = "save_load"

# The largest accepted difference from the rule in float64: relative, and absolute. In float32 the main difference is
# the order of sums, which is below 1e-6 here. In bfloat16 and float16, scores, weights and outputs, which are around 1,
# are rounded to 8 or 11 binary digits: differences are up to 0.016 and 0.002. For a quantized cache, a kernel adds
# scaled integers and biases, which are larger than their sum and partly cancel. So the tolerance in float32 is ten
# times as large, which is still far below a step of 8 bits (0.02). In bfloat16 and float16 MLX's CPU kernel also rounds
# the sum at every step: differences are up to 0.05 and 0.004. A step of 4 bits (0.3) is larger, as the script checks.
CLOSE = {F32: (1e-4, 1e-5), BF16: (2e-2, 2e-2), F16: (2e-3, 2e-3)}
CLOSE_QUANTIZED = {F32: (1e-3, 1e-4), BF16: (1e-1, 1e-1), F16: (1e-2, 1e-2)}


@dataclass(frozen=True)
class Case:
    """One folder to make.

    In `ops`, a positive number appends this number of tokens, a negative number trims tokens, and `SAVE_LOAD` saves the
    cache and loads it again. Without `max_size` the cache is full. `quantize` is (bits, group size).
    """

    name: str
    seed: int
    ops: list[int | str]
    max_size: int | None = None
    keep: int = 0
    rewind: int = 0
    window: int | None = None
    quantize: tuple[int, int] | None = None
    dtype: mx.Dtype = F32
    batch: int = 1
    heads: tuple[int, int] = (2, 1)  # query heads, key-value heads
    dims: tuple[int, int] = (32, 32)  # features of a head: queries and keys, values
    oracle: str = RULE

    @property
    def scale(self) -> float:
        return self.dims[0] ** -0.5

    @property
    def close(self) -> tuple[float, float]:
        return (CLOSE_QUANTIZED if self.quantize else CLOSE)[self.dtype]

    def cache(self) -> dict:
        """The value of the key `cache` in `case.json`."""
        keys: dict = {"type": "full"}
        if self.max_size:
            keys = {"type": "rotating", "max_size": self.max_size}
        keys |= {name: value for name in ("keep", "rewind") if (value := getattr(self, name))}
        if self.quantize:
            bits, group_size = self.quantize
            keys["quantize"] = {"bits": bits, "group_size": group_size}
        return keys

    def operations(self) -> list[dict]:
        """The value of the key `ops` in `case.json`."""
        named = []
        for op in self.ops:
            if op == SAVE_LOAD:
                named.append({"op": SAVE_LOAD})
            else:
                named.append({"op": "update" if op > 0 else "trim", "n": abs(op)})
        return named


ONES = [1] * 10
Q8, Q4 = {"quantize": (8, 32)}, {"quantize": (4, 64), "dims": (64, 64)}
GROUPS = {"heads": (4, 2)}
BATCH = {"batch": 2, "dims": (32, 64), **GROUPS}
WRAPS = [3, 20, 1, 1, 9, *ONES, 7, 1]
BACK_AND_FORTH = [10, *ONES[:5], -4, *ONES[:7], -3, 1, 1, 1, 1, 5, 1, -2, 1, 1]
SAVED_FULL = [SAVE_LOAD, 5, SAVE_LOAD, 1, 1, -2, SAVE_LOAD, 3, SAVE_LOAD, 1, -1, 1]
SAVED_ROTATING = [SAVE_LOAD, 3, SAVE_LOAD, *ONES, SAVE_LOAD, 1, 1, 13, SAVE_LOAD, 1, SAVE_LOAD, 6, 1]

# Full and rotating caches, compared with the rule.
FULL_CASES = [
    Case("cache_full_chunks_trims", 1, [7, 1, 5, -3, 1, 1, -1, 9, -20, 4, 1], **GROUPS),
    Case("cache_full_window", 2, [4, 1, 5, 1, 1, -3, 8, 1, -10, SAVE_LOAD, 2, 1, 1, 9], window=6),
    Case("cache_full_window_of_one", 3, [3, 1, 1, -2, 4], window=1),
    Case("cache_full_batch", 4, [6, 1, 1, -3, 5, 1], **BATCH),
    Case("cache_full_save_load", 5, SAVED_FULL),
    Case("cache_full_bf16", 6, [9, 1, 1, -4, 6, 1], window=7, dtype=BF16),
    Case("cache_full_f16", 7, [9, 1, 1, -4, 6, 1], window=7, dtype=F16),
    Case("cache_full_q8_g32", 8, [7, 1, 5, -3, 1, 1, -11, 4, 1], quantize=(8, 32)),
    Case("cache_full_q8_g64", 9, [7, 1, 1, -3, 5, 1], quantize=(8, 64), dims=(64, 64)),
    Case("cache_full_q8_g128", 10, [5, 1, -3, 4, 1], quantize=(8, 128), dims=(128, 128)),
    Case("cache_full_q4_g32", 11, [7, 1, 5, -3, 1, 1, -11, 4, 1], quantize=(4, 32), **GROUPS),
    Case("cache_full_q4_g64", 12, [7, 1, 1, -3, 5, 1], quantize=(4, 64), dims=(64, 64)),
    Case("cache_full_q4_g128", 13, [5, 1, -3, 4, 1], quantize=(4, 128), dims=(128, 128)),
    Case("cache_full_q8_window_batch", 14, [6, 1, 2, 1, -3, 1, 6], window=5, **Q8, **BATCH),
    Case("cache_full_q8_save_load", 15, SAVED_FULL, **Q8),
    Case("cache_full_q4_save_load_bf16", 16, SAVED_FULL, dtype=BF16, **Q4),
]
ROTATING_CASES = [
    Case("cache_rotating_chunks", 20, WRAPS, 8),
    Case("cache_rotating_of_one", 21, [1, 1, 3, 1, 4], 1),
    Case("cache_rotating_keep", 22, [2, 1, 25, 1, 1, 11, 4, *ONES, 13, 1], 10, keep=3),
    Case("cache_rotating_keep_prompt_pieces", 23, [5, 5, 5, *ONES, *ONES, 1, 1], 12, keep=4, **GROUPS),
    Case("cache_rotating_keep_from_empty", 24, [1, 1, 2, *ONES, 5, 1, 1], 8, keep=6),
    Case("cache_rotating_keep_all_but_one", 25, [3, *ONES[:4], 6, 1, 1], 5, keep=4),
    Case("cache_rotating_keep_batch", 26, [9, *ONES[:6], 5, 1], 7, keep=2, **BATCH),
    Case("cache_rotating_one_head", 27, WRAPS, 8, heads=(1, 1)),
    Case("cache_rotating_save_load", 28, SAVED_ROTATING, 8),
    Case("cache_rotating_keep_save_load", 29, SAVED_ROTATING, 9, keep=3),
    Case("cache_rotating_bf16", 30, WRAPS, 8, keep=2, dtype=BF16),
    Case("cache_rotating_f16", 31, WRAPS, 8, keep=2, dtype=F16),
    Case("cache_rotating_q8_g32", 32, WRAPS, 8, **Q8, **GROUPS),
    Case("cache_rotating_q8_g32_keep", 33, [2, 1, 25, 1, 1, 11, 4, *ONES, 13, 1], 10, keep=3, **Q8),
    Case("cache_rotating_q4_g64_keep", 34, [5, 5, 5, *ONES, 7, 1, 1], 12, keep=4, **Q4),
    Case("cache_rotating_q8_save_load", 35, SAVED_ROTATING, 9, keep=3, **Q8),
    Case("cache_rotating_q4_bf16", 36, [3, 11, *ONES, 6, 1], 8, keep=2, dtype=BF16, **Q4, **GROUPS),
]
REWIND_CASES = [
    Case("cache_rewind", 40, BACK_AND_FORTH, 8, rewind=4),
    Case("cache_rewind_keep", 41, BACK_AND_FORTH, 10, keep=4, rewind=4, **GROUPS),
    # Trims directly after an append of several tokens, fewer or more than there are slots, and after single tokens.
    Case("cache_rewind_after_chunks", 42, [20, -4, 1, 13, -1, -1, -2, 3, 1, 8, -3, 6, 2, 1], 8, rewind=4),
    Case("cache_rewind_keep_after_chunks", 43, [5, 4, -3, 20, -3, 1, 1, 30, -1, 2, 9, -3, 4, 1], 9, keep=2, rewind=3),
    # There are 14 tokens, then 11, 13 and 9. The next token sees the last 7 of these 9, which are still in the cache.
    Case("cache_rewind_twice", 56, [10, *ONES[:4], -3, 1, 1, -4, 4, -2, 1, 1, 1], 8, rewind=4),
    Case("cache_rewind_before_wrap", 44, [4, -3, 1, 1, 2, -2, 1, *ONES, -2, 1], 8, rewind=3),
    # A trim from 21 to 3 tokens, which are all sinks; after another wrap, a trim to 1 token.
    Case("cache_rewind_into_sinks", 45, [20, 1, -18, 2, 1, 1, -2, *ONES, -3, 1, 1, -13, 6, 1], 10, keep=4, rewind=3),
    Case("cache_rewind_everything", 46, [6, -6, 19, -19, 3, 1, 1, *ONES, -2, 1, -14, 1, 1, 9, -2, 1], 8, rewind=2),
    Case("cache_rewind_keep_everything", 47, [9, *ONES, -19, 2, 1, 12, -2, 1, -14, 7, 7, 1], 8, keep=3, rewind=2),
    Case("cache_rewind_beyond_the_window", 48, [30, -16, 1, 1, 20, *ONES[:3], -12, 1, 1], 6, keep=2, rewind=16),
    Case("cache_rewind_batch", 49, [11, 1, 1, -3, 1, 1, 5, -2, 1], 7, keep=2, rewind=3, **BATCH),
    Case("cache_rewind_save_load", 50, [15, 1, 1, -3, SAVE_LOAD, 1, 1, 9, SAVE_LOAD, -4, 1, 1, 2], 8, rewind=4),
    Case("cache_rewind_keep_save_load", 51, [15, 1, -2, SAVE_LOAD, *ONES, SAVE_LOAD, -3, 3, 1], 9, keep=3, rewind=3),
    Case("cache_rewind_bf16", 52, BACK_AND_FORTH, 10, keep=2, rewind=4, dtype=BF16),
    Case("cache_rewind_q8", 53, BACK_AND_FORTH, 8, rewind=4, **Q8),
    Case("cache_rewind_q4_keep", 54, [9, 1, 1, 1, -3, 1, 12, -2, 1, 1], 10, keep=4, rewind=4, **Q4),
    Case("cache_rewind_q8_save_load", 55, [15, 1, -2, SAVE_LOAD, 1, 6, SAVE_LOAD, -3, 1], 9, keep=3, rewind=3, **Q8),
]

# The outputs of these cases come from mlx-lm's own caches.
FULL, ROTATING = [5, 1, 1, -2, 7, 1, -1, 1, 1], [3, 4, 1, 1, 1, 20, 1, 1, 9, *ONES, 2, 1]
GROWTH = [250, *ONES[:8], 4, 1]
MLX_LM_CASES = [
    Case("cache_mlx_lm_full_f32", 60, FULL, **GROUPS),
    Case("cache_mlx_lm_full_bf16", 61, FULL, dtype=BF16, **GROUPS),
    Case("cache_mlx_lm_full_f16", 62, FULL, dtype=F16),
    Case("cache_mlx_lm_full_batch", 63, FULL, **BATCH),
    Case("cache_mlx_lm_full_save_load", 64, [SAVE_LOAD, 6, SAVE_LOAD, 1, -3, SAVE_LOAD, 1, 3]),
    Case("cache_mlx_lm_full_window", 65, [4, 1, 5, 1, 1, -3, 8, 1], window=6),
    Case("cache_mlx_lm_full_window_bf16", 66, [4, 1, 5, 1, 1, -3, 8, 1], window=6, dtype=BF16),
    Case("cache_mlx_lm_full_past_256", 67, GROWTH, heads=(1, 1)),
    Case("cache_mlx_lm_full_past_512", 68, [230, 1, 40, -20, 255, *ONES], heads=(1, 1), dtype=BF16),
    Case("cache_mlx_lm_rotating_f32", 70, ROTATING, 8),
    Case("cache_mlx_lm_rotating_bf16", 71, ROTATING, 8, dtype=BF16, **GROUPS),
    Case("cache_mlx_lm_rotating_f16", 72, ROTATING, 8, dtype=F16),
    Case("cache_mlx_lm_rotating_batch", 73, [8, *ONES[:9], 3, 1], 7, **BATCH),
    Case("cache_mlx_lm_rotating_from_empty", 74, [*ONES, *ONES, 5, 1, 1], 10),
    Case("cache_mlx_lm_rotating_save_load", 75, SAVED_ROTATING, 8),
    # With single tokens the buffer begins with 256 slots, and grows by the other 6 when they are needed.
    Case("cache_mlx_lm_rotating_past_256", 76, [1] * 266, 262, heads=(1, 1), dtype=F16),
    Case("cache_mlx_lm_rotating_prompt_past_256", 77, [200, 40, *ONES, *ONES, 3, 1], 262, heads=(1, 1), dtype=BF16),
    Case("cache_mlx_lm_keep_f32", 80, [6, 3, *ONES, *ONES, 1], 12, keep=4, **GROUPS),
    Case("cache_mlx_lm_keep_bf16", 81, [7, 2, 1, 2, *ONES, *ONES], 12, keep=4, dtype=BF16),
    Case("cache_mlx_lm_keep_f16", 82, [*ONES, *ONES, 1, 1], 12, keep=4, dtype=F16),
    Case("cache_mlx_lm_keep_batch", 83, [9, *ONES[:8]], 9, keep=4, **BATCH),
    Case("cache_mlx_lm_keep_save_load", 84, [5, SAVE_LOAD, *ONES, SAVE_LOAD, *ONES], 9, keep=4),
    Case("cache_mlx_lm_q8_g32_f32", 90, FULL, **Q8, **GROUPS),
    Case("cache_mlx_lm_q8_g32_bf16", 91, FULL, dtype=BF16, **Q8),
    Case("cache_mlx_lm_q8_g32_f16", 92, FULL, dtype=F16, **Q8),
    Case("cache_mlx_lm_q4_g64_f32", 93, FULL, **Q4),
    Case("cache_mlx_lm_q4_g64_bf16", 94, FULL, dtype=BF16, **Q4, **GROUPS),
    Case("cache_mlx_lm_q4_g64_f16", 95, FULL, dtype=F16, **Q4),
    Case("cache_mlx_lm_q8_g32_batch", 96, FULL, batch=2, **Q8, **GROUPS),
    Case("cache_mlx_lm_q8_g32_one_group", 97, FULL, heads=(2, 2), **Q8),
    Case("cache_mlx_lm_q8_g32_window", 98, [4, 1, 5, 1, 1, -3, 8, 1], window=6, **Q8),
    Case("cache_mlx_lm_q8_g32_save_load", 99, [SAVE_LOAD, 6, SAVE_LOAD, 1, -3, SAVE_LOAD, 1, 3], **Q8),
    Case("cache_mlx_lm_q8_g32_past_256", 100, GROWTH, heads=(1, 1), **Q8),
]
CASES = FULL_CASES + ROTATING_CASES + REWIND_CASES + [replace(case, oracle=MLX_LM) for case in MLX_LM_CASES]


# Keys or values as a cache holds them: one array, or the result of `mx.quantize`. Axis 2 counts the tokens.
Stored = tuple[mx.array, ...]


@dataclass
class Update:
    """One append: its queries, keys and values, and all keys and values so far, these included."""

    queries: mx.array
    keys: mx.array
    values: mx.array
    history: tuple[Stored, Stored] = field(repr=False)


def float64(array: mx.array) -> np.ndarray:
    return np.array(array.astype(F32)).astype(np.float64)


def stored(case: Case, array: mx.array) -> Stored:
    if not case.quantize:
        return (array,)
    bits, group_size = case.quantize
    return tuple(mx.quantize(array, group_size=group_size, bits=bits))


def restored(case: Case, held: Stored) -> np.ndarray:
    """The cached numbers in float64, dequantized from scales and biases without further rounding."""
    if not case.quantize:
        return float64(*held)
    bits, group_size = case.quantize
    packed, scales, biases = held
    return float64(mx.dequantize(packed, scales.astype(F32), biases.astype(F32), group_size=group_size, bits=bits))


def updates(case: Case) -> list[Update]:
    """The appends of a case, with random numbers from its seed."""
    rng = np.random.default_rng(case.seed)
    (heads, kv_heads), (key_dim, value_dim) = case.heads, case.dims

    def draw(heads: int, tokens: int, dim: int) -> mx.array:
        return mx.array(rng.standard_normal((case.batch, heads, tokens, dim), dtype=np.float32)).astype(case.dtype)

    history: tuple[Stored, Stored] | None = None
    made = []
    for op in case.ops:
        if op == SAVE_LOAD:
            continue
        if op < 0:
            history = tuple(tuple(part[:, :, :op] for part in held) for held in history)
            continue
        q, k, v = draw(heads, op, key_dim), draw(kv_heads, op, key_dim), draw(kv_heads, op, value_dim)
        new = stored(case, k), stored(case, v)
        if history is None:
            history = new
        else:
            pairs = (zip(*sides, strict=True) for sides in zip(history, new, strict=True))
            history = tuple(tuple(mx.concatenate(pair, axis=2) for pair in parts) for parts in pairs)
        made.append(Update(q, k, v, history))
    return made


def visible(case: Case, queries: int, tokens: int) -> np.ndarray:
    """The rule: which of all tokens each of the newest tokens sees, `[queries, tokens]`."""
    i, j = np.arange(tokens - queries, tokens)[:, None], np.arange(tokens)
    if case.max_size:
        return (j <= i) & ((j < case.keep) | (i - j < case.max_size - case.keep))
    return (j <= i) & (i - j < (case.window or tokens))


def by_the_rule(case: Case, update: Update) -> np.ndarray:
    """Attention in float64."""
    heads, kv_heads = case.heads
    keys, values = (np.repeat(restored(case, held), heads // kv_heads, axis=1) for held in update.history)
    queries = float64(update.queries)
    scores = np.einsum("bhid,bhjd->bhij", queries, keys) * case.scale
    scores = np.where(visible(case, queries.shape[2], keys.shape[2]), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhij,bhjd->bhid", weights, values)


def by_plain_attention(case: Case, update: Update) -> mx.array:
    """MLX's attention over all keys and values in the dtype of the case, with the rule as its mask."""
    keys, values = update.history
    heads, kv_heads = case.heads
    tokens = keys[0].shape[2]
    mask = mx.array(visible(case, update.queries.shape[2], tokens))
    if not case.quantize:
        return mx.fast.scaled_dot_product_attention(update.queries, *keys, *values, scale=case.scale, mask=mask)
    bits, group_size = case.quantize
    # Keys and values are repeated for each query head: if heads share keys, mlx-lm's function requires that values
    # have as many features as keys.
    keys, values = (tuple(mx.repeat(part, heads // kv_heads, axis=1) for part in held) for held in (keys, values))
    queries = mx.array(update.queries)  # a copy, because mlx-lm multiplies it by the scale in place
    return quantized_scaled_dot_product_attention(queries, keys, values, case.scale, mask, group_size, bits)


def by_mlx_lm(case: Case, made: list[Update]) -> Iterator[mx.array]:
    """The outputs of mlx-lm, with its own cache, mask and attention."""
    if case.max_size:
        cache = RotatingKVCache(case.max_size, keep=case.keep)
    elif case.quantize:
        bits, group_size = case.quantize
        cache = QuantizedKVCache(group_size=group_size, bits=bits)
    else:
        cache = KVCache()
    inputs = iter(made)
    for op in case.ops:
        if op == SAVE_LOAD:
            with tempfile.TemporaryDirectory() as folder:
                file = str(Path(folder) / "cache.safetensors")
                save_prompt_cache(file, [cache])
                [cache] = load_prompt_cache(file)
                mx.eval(cache.state)  # before the file is removed
        elif op < 0:
            if not cache.is_trimmable() or cache.trim(-op) != -op:
                raise SystemExit(f"{case.name}: mlx-lm cannot trim {-op} tokens")
        else:
            update = next(inputs)
            mask = cache.make_mask(op, return_array=False, window_size=case.window)
            # Copies, because mlx-lm multiplies the queries of a quantized cache by the scale in place, and a rotating
            # cache whose first append has `max_size` tokens keeps this array and later writes into it.
            queries, keys, values = (mx.array(array) for array in (update.queries, update.keys, update.values))
            keys, values = cache.update_and_fetch(keys, values)
            yield scaled_dot_product_attention(queries, keys, values, cache=cache, scale=case.scale, mask=mask)


def distance(case: Case, answer: mx.array | np.ndarray, rule: np.ndarray) -> float:
    """The largest difference, divided by the tolerance; infinite if the output is not finite."""
    rtol, atol = case.close
    answer = float64(answer) if isinstance(answer, mx.array) else answer
    parts = np.abs(answer - rule) / (atol + rtol * np.abs(rule))
    return float(parts.max()) if np.isfinite(parts).all() else math.inf


def demand_possible_trims(case: Case) -> None:
    """Checks that a cache can do every trim of the case.

    A full cache can trim any number of tokens. A rotating cache holds the sinks and the newest `max_size - keep + rewind`
    other tokens. It can trim up to `rewind` tokens if all tokens that the next token would see are still there, and any
    number of tokens if only sinks remain.
    """
    window = (case.max_size or 0) - case.keep
    tokens = most = 0
    for op in case.ops:
        if op == SAVE_LOAD:
            continue
        tokens += op
        most = max(most, tokens) if tokens > case.keep else tokens  # a cache with only sinks is like a new one
        possible = tokens >= 0
        if case.max_size and op < 0 and tokens > case.keep:
            oldest, needed = (max(case.keep, step) for step in (most - window - case.rewind, tokens - window + 1))
            possible = -op <= case.rewind and needed >= oldest
        if not possible:
            raise SystemExit(f"{case.name}: a cache of this size cannot go back to {tokens} of {most} tokens")


def slightly_wrong(case: Case) -> Iterator[tuple[str, Case]]:
    """Wrong rules, which must give other outputs in a useful case, and what is wrong with each."""
    if case.max_size:
        yield "a longer window", replace(case, max_size=case.max_size + 1)
        if case.max_size - case.keep > 1:
            yield "a shorter window", replace(case, max_size=case.max_size - 1)
            yield "a sink more", replace(case, keep=case.keep + 1)
        if case.keep:
            yield "a sink less", replace(case, keep=case.keep - 1)
    if case.window:
        yield "a longer window", replace(case, window=case.window + 1)
        if case.window > 1:
            yield "a shorter window", replace(case, window=case.window - 1)
    if case.quantize:
        yield "no quantization", replace(case, quantize=None)


def demand_sound(case: Case, made: list[Update], answers: list[mx.array]) -> None:
    """Ends the program if a check of the module's description fails."""
    demand_possible_trims(case)
    rule = [by_the_rule(case, update) for update in made]
    if (far := max(map(partial(distance, case), answers, rule))) > 1:
        raise SystemExit(f"{case.name}: {case.oracle} is {far:.3} tolerances from the rule")
    plain = [by_plain_attention(case, update) for update in made]
    if (far := max(map(partial(distance, case), plain, rule))) > 0.5:
        raise SystemExit(f"{case.name}: plain attention is {far:.3} tolerances from the rule")
    for what, wrong in slightly_wrong(case) if case.oracle == RULE else ():
        others = [by_the_rule(wrong, update) for update in updates(wrong)]
        if max(map(partial(distance, case), others, rule)) < 2:
            raise SystemExit(f"{case.name}: {what} would pass")


def make_case(case: Case, folder: Path) -> None:
    """Writes the folder of one case."""
    made = updates(case)
    if case.oracle == RULE:
        answers = [mx.array(by_the_rule(case, update).astype(np.float32)).astype(case.dtype) for update in made]
    else:
        answers = list(by_mlx_lm(case, made))
    demand_sound(case, made, answers)
    tensors = {}
    for number, (update, answer) in enumerate(zip(made, answers, strict=True)):
        if answer.dtype != case.dtype:
            raise SystemExit(f"{case.name}: update {number} gives {answer.dtype}")
        tensors |= {
            f"q.{number}": update.queries,
            f"k.{number}": update.keys,
            f"v.{number}": update.values,
            f"out.{number}": answer,
        }
    folder.mkdir()
    mx.save_safetensors(str(folder / "reference.safetensors"), tensors)
    write_description(
        folder,
        case.name,
        "cache",
        "xtask/python/make_cache_cases.py",
        oracle=case.oracle,
        close=case.close if case.oracle == RULE else None,
        seed=case.seed,
        cache=case.cache(),
        window=case.window,
        scale=case.scale,
        ops=case.operations(),
    )


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    return finish_cases(CASES, make_case, args)


if __name__ == "__main__":
    sys.exit(main())
