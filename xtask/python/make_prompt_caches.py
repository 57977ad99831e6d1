"""Makes prompt caches for tests of `mlx-kvcache`: files that mlx-lm writes, and its results after reading them.

What: mlx-lm's `save_prompt_cache` writes `NAME.safetensors`, from caches in many different states. Then mlx-lm reads the
file and appends twice to each layer; `NAME.next.safetensors` has the inputs and results, see `load_prompt_caches.py`. Its
metadata has the versions of the programs, and as JSON the class of each layer, the operations before it was saved, and
the `metadata` that `save_prompt_cache` was given.

Why: `cargo test -p mlx-kvcache` reads these files, and requires the same bits from this project's caches.

How to run, from the repository root:

    python xtask/python/make_prompt_caches.py


All results must agree with the rule of `make_cache_cases.py`, except in padding. Two operations are missing because mlx-lm
0.32.2 breaks the rule: appends of several tokens to a wrapped `RotatingKVCache` with sinks, and to a wrapped
`BatchRotatingKVCache` that has read single tokens and still holds padding. Single tokens are appended in these cases.

Some caches have 256 slots from the first token on. Their heads have 8 features if they are not quantized, so that the
files stay small.
"""

import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
from load_prompt_caches import attend, load, offset
from make_cache_cases import Case, Stored, Update, by_the_rule, distance, stored
from mlx_lm.models.cache import (
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    save_prompt_cache,
)
from parity_cases import argument_parser, demand_own_blas, finish, origin

F32, BF16, F16 = mx.float32, mx.bfloat16, mx.float16
FOLDER = "crates/mlx-kvcache/tests/fixtures/mlx-lm"
LARGEST = 60_000  # the most bytes of a file
METADATA = {"model": "x", "prompt": 'Once upon a time, über "x"', "tokens": "12"}


@dataclass
class Layer:
    """A cache: its class, its operations before it is saved (`past`), and its appends afterwards (`next`).

    In `past`, a positive number appends this number of tokens, and a negative number trims. If there are `rows`, the
    cache is instead merged from these caches.
    """

    kind: Callable
    past: list[int] = field(default_factory=list)
    next: tuple[int, ...] = (1, 3)
    max_size: int | None = None
    keep: int = 0
    left_padding: list[int] | None = None
    rows: list["Layer"] = field(default_factory=list)
    quantize: tuple[int, int] | None = None
    dim: int = 32
    dtype: mx.Dtype = F32

    def description(self) -> dict:
        keys = ("past", "next", "max_size", "keep", "left_padding")
        described = {"class": self.kind.__name__} | {key: value for key in keys if (value := getattr(self, key))}
        if self.quantize:
            described["bits"], described["group_size"] = self.quantize
        if self.rows:
            described["merged"] = [row.description() for row in self.rows]
        return described

    def case(self) -> Case:
        """The settings of the cache as a case of `make_cache_cases.py`, which has the rule."""
        shape = {"heads": (4, 2), "dims": (self.dim, self.dim)}
        return Case("", 0, [], self.max_size, self.keep, quantize=self.quantize, dtype=self.dtype, **shape)


class Tokens:
    """The tokens of one row without its padding, to which the rule applies."""

    def __init__(self, case: Case, padding: int = 0) -> None:
        self.case, self.padding = case, padding
        self.history: tuple[Stored, Stored] | None = None

    def append(self, keys: mx.array, values: mx.array) -> int:
        """Adds tokens. Returns how many of them are padding."""
        skipped = min(self.padding, keys.shape[2])
        self.padding -= skipped
        new = tuple(stored(self.case, array[:, :, skipped:]) for array in (keys, values))
        if self.history is None:
            self.history = new
        else:
            pairs = (zip(*sides, strict=True) for sides in zip(self.history, new, strict=True))
            self.history = tuple(tuple(mx.concatenate(pair, axis=2) for pair in parts) for parts in pairs)
        return skipped

    def trim(self, tokens: int) -> None:
        self.history = tuple(tuple(part[:, :, :-tokens] for part in held) for held in self.history)

    def demand_agreement(self, queries: mx.array, answers: mx.array, skipped: int, name: str) -> None:
        if skipped == queries.shape[2]:
            return
        queries, answers = queries[:, :, skipped:], answers[:, :, skipped:]
        rule = by_the_rule(self.case, Update(queries, queries, queries, self.history))
        if (far := distance(self.case, answers, rule)) > 1:
            raise SystemExit(f"{name}: mlx-lm is {far:.3} tolerances from the rule")


def build(layer: Layer, rng: np.random.Generator) -> tuple[object, list[Tokens]]:
    """The cache after the operations in `past`, and the tokens of its rows."""
    case = layer.case()
    if layer.rows:
        built = [build(row, rng) for row in layer.rows]
        return layer.kind.merge([cache for cache, _ in built]), [tokens for _, rows in built for tokens in rows]
    if layer.quantize:
        bits, group_size = layer.quantize
        cache = layer.kind(group_size=group_size, bits=bits)
    else:
        size = [layer.max_size] if layer.max_size else []
        cache = layer.kind(*size, *filter(None, [layer.left_padding or layer.keep]))
    rows = [Tokens(case, padding) for padding in layer.left_padding or [0]]
    for op in layer.past:
        if op < 0:
            if not cache.is_trimmable() or cache.trim(-op) != -op:
                raise SystemExit(f"{layer.kind.__name__} cannot trim {-op} tokens")
            for tokens in rows:
                tokens.trim(-op)
        else:
            keys, values = (draw(rng, layer, len(rows), 2, op) for _ in range(2))
            for row, tokens in enumerate(rows):
                tokens.append(keys[row : row + 1], values[row : row + 1])
            cache.update_and_fetch(mx.array(keys), mx.array(values))
    return cache, rows


def draw(rng: np.random.Generator, layer: Layer, batch: int, heads: int, tokens: int) -> mx.array:
    return mx.array(rng.standard_normal((batch, heads, tokens, layer.dim), dtype=np.float32)).astype(layer.dtype)


FULL = {"dim": 8}
ROTATING = {"kind": RotatingKVCache, "max_size": 8}
BATCH_ROTATING = {"kind": BatchRotatingKVCache, "max_size": 8}
SINGLES = [1] * 13


def single(past: list[int], **keys: object) -> Layer:
    """A cache of one row, which will be merged."""
    return Layer(RotatingKVCache if "max_size" in keys else KVCache, past, **keys)


# All layers of a file have read the same number of tokens, as the layers of a model do.
FILES: dict[str, list[Layer]] = {
    "no_layers": [],
    "kv": [Layer(KVCache, [5, 1], dtype=BF16, **FULL), Layer(KVCache, [8, -2], dtype=BF16, **FULL)],
    "kv_f16": [Layer(KVCache, [1, 1], dtype=F16, **FULL)],
    "kv_empty": [Layer(KVCache), Layer(KVCache)],
    "mixed": [Layer(KVCache, [11], **FULL), Layer(past=[3, 5, 1, 1, 1], **ROTATING)],
    "rotating_empty": [Layer(**ROTATING)],
    "rotating_singles": [Layer(past=[1, 1, 1], **ROTATING)],
    "rotating_prompt": [Layer(past=[5], **ROTATING)],
    # The buffer has grown to `max_size` slots, and two of them are still unused.
    "rotating_prompt_singles": [Layer(past=[5, 1], **ROTATING)],
    "rotating_exactly_full": [Layer(past=[5, 1, 1, 1], **ROTATING)],
    "rotating_wrapped": [Layer(past=SINGLES, **ROTATING)],
    "rotating_wrapped_bf16": [Layer(past=[6, *SINGLES], dtype=BF16, **ROTATING)],
    # More slots than `max_size`, with the tokens in their order.
    "rotating_overlong": [Layer(past=[4, 9], **ROTATING)],
    "rotating_overlong_prompt": [Layer(past=[20], **ROTATING)],
    "rotating_trimmed": [Layer(past=[6, -2], **ROTATING), Layer(past=[1, 1, 1, 1, 1, 1, -2], **ROTATING)],
    "rotating_keep": [Layer(RotatingKVCache, [6, 1], max_size=12, keep=4)],
    "rotating_keep_wrapped": [Layer(RotatingKVCache, [6, *SINGLES], (1, 1), 12, 4)],
    "rotating_keep_wrapped_f16": [Layer(RotatingKVCache, [*SINGLES, 1, 1], (1, 1), 12, 4, dtype=F16)],
    "rotating_keep_overlong": [Layer(RotatingKVCache, [9, 9], (1, 1), 12, 4)],
    "quantized_8_32": [Layer(QuantizedKVCache, [5, 1, 4, -1], quantize=(8, 32))],
    "quantized_4_64": [Layer(QuantizedKVCache, [5, 1], quantize=(4, 64), dim=64, dtype=BF16)],
    "quantized_empty": [Layer(QuantizedKVCache, quantize=(4, 32))],
    "batch_empty": [Layer(BatchKVCache, left_padding=[1, 0], **FULL)],
    "batch_left_padded": [Layer(BatchKVCache, [5, 1, 2], left_padding=[3, 0], dtype=F16, **FULL)],
    # The next two tokens of the first row are padding too.
    "batch_padding_to_come": [Layer(BatchKVCache, [3], left_padding=[5, 0], dtype=BF16, **FULL)],
    "batch_merged": [Layer(BatchKVCache, rows=[single([9, 1]), single([3])])],
    "batch_merged_with_empty": [Layer(BatchKVCache, rows=[single([4]), single([]), single([5, 1, -3])])],
    "batch_rotating_empty": [Layer(left_padding=[2, 0], **BATCH_ROTATING)],
    "batch_rotating_left_padded": [Layer(past=[5, 1], left_padding=[3, 0], **BATCH_ROTATING)],
    "batch_rotating_padding_to_come": [Layer(past=[3], left_padding=[5, 0], **BATCH_ROTATING)],
    "batch_rotating_wrapped": [Layer(past=[5, *SINGLES], left_padding=[3, 0, 1], **BATCH_ROTATING)],
    "batch_rotating_wrapped_padding": [Layer(past=[7, 1, 1], next=(1, 1), left_padding=[5, 0], **BATCH_ROTATING)],
    "batch_rotating_overlong": [Layer(past=[6, 5], left_padding=[3, 0], dtype=BF16, **BATCH_ROTATING)],
    "batch_rotating_merged": [
        Layer(rows=[single([5, *SINGLES], max_size=8), single([3, 1], max_size=8)], next=(3, 1), **BATCH_ROTATING),
    ],
    "batch_rotating_merged_short": [Layer(rows=[single([5], max_size=8), single([2], max_size=8)], **BATCH_ROTATING)],
}
WITH_METADATA = {"kv", "no_layers", "rotating_wrapped", "batch_rotating_merged"}


def make_files(name: str, layers: list[Layer], folder: Path) -> None:
    """Writes the two files of this name."""
    # One seed for each name, so that a new file does not change the others.
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    built = [build(layer, rng) for layer in layers]
    metadata = METADATA if name in WITH_METADATA else None
    file = folder / f"{name}.safetensors"
    save_prompt_cache(str(file), [cache for cache, _ in built], metadata)

    tensors = {}
    for number, (layer, cache, (_, rows)) in enumerate(zip(layers, load(file), built, strict=True)):
        if type(cache) is not layer.kind:
            raise SystemExit(f"{name}: mlx-lm reads a {type(cache).__name__} from the file")
        scale = np.float32(layer.case().scale)
        tensors |= {f"{number}.scale": mx.array(scale), f"{number}.offset": offset(cache)}
        for append, tokens in enumerate(layer.next):
            at = f"{number}.{append}"
            q, k, v = (draw(rng, layer, len(rows), heads, tokens) for heads in (4, 2, 2))
            out = attend(cache, q, k, v, scale.item())
            if (out.dtype, out.shape) != (q.dtype, q.shape) or not mx.isfinite(out).all().item():
                raise SystemExit(f"{name}: append {at} gives {out.dtype} {out.shape}, or numbers that are not finite")
            for index, history in enumerate(rows):
                this = slice(index, index + 1)
                padding = history.append(k[this], v[this])
                history.demand_agreement(q[this], out[this], padding, f"{name}, append {at}, row {index}")
            tensors |= {f"{at}.q": q, f"{at}.k": k, f"{at}.v": v, f"{at}.out": out, f"{at}.offset": offset(cache)}
    metadata_of_answers = origin("xtask/python/make_prompt_caches.py") | {
        "layers": json.dumps([layer.description() for layer in layers]),
        "metadata": json.dumps(metadata or {}),
    }
    mx.save_safetensors(str(file.with_suffix(".next.safetensors")), tensors, metadata_of_answers)


def make_folder(folder: Path) -> None:
    folder.mkdir()
    for name, layers in FILES.items():
        make_files(name, layers, folder)
    if large := [file.name for file in folder.iterdir() if file.stat().st_size > LARGEST]:
        raise SystemExit(f"over {LARGEST} bytes: {', '.join(large)}")


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    return finish({FOLDER: make_folder}, args)


if __name__ == "__main__":
    sys.exit(main())
