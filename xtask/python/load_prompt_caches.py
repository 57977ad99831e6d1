"""Checks that mlx-lm reads prompt caches that other programs wrote, and continues from them with the same bits.

What: mlx-lm loads every `NAME.safetensors` of a folder with `load_prompt_cache`. Then it appends the keys and values in
`NAME.next.safetensors`, computes attention, and compares the results and offsets with those in that file. Prints a line
for each file, `passed` or what is wrong, and then `N passed, N failed`. The exit status is 0 if there is at least one file
and all passed.

`NAME.next.safetensors` has these tensors for layer L and its append number i, both counted from 0:

    L.scale                  float32, the factor of the scores
    L.offset                 int32, the offset when the file has been read; [B] of a batch cache
    L.i.q, L.i.k, L.i.v      [B, H, n, D], [B, KV, n, D] and [B, KV, n, DV]
    L.i.out                  [B, H, n, DV], attention of the queries over the cache after the append
    L.i.offset               int32, the offset after the append

Why: mlx-lm and this project must be able to read each other's files. `make_prompt_caches.py` writes such a folder with
mlx-lm, for `cargo test -p mlx-kvcache`. Tests of that crate write such a folder for this script.

How to run, from the repository root:

    python xtask/python/load_prompt_caches.py crates/mlx-kvcache/tests/fixtures/mlx-lm
"""

import argparse
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import BatchKVCache, BatchRotatingKVCache, load_prompt_cache

BITS = {mx.float32: mx.uint32, mx.bfloat16: mx.uint16, mx.float16: mx.uint16}


def load(file: Path) -> list:
    """The caches in a file that `save_prompt_cache` wrote."""
    caches = load_prompt_cache(str(file))
    for cache in caches:
        # mlx-lm 0.32.2 sets only the attributes that are in the file, but later needs these too.
        if isinstance(cache, BatchRotatingKVCache):
            cache._lengths = None
        if isinstance(cache, BatchKVCache):
            cache._right_padding = None
    return caches


def attend(cache, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Appends keys and values, and returns the attention, all with mlx-lm's cache, mask and function."""
    # Copies, because mlx-lm writes into some of its arguments.
    queries, keys, values = (mx.array(array) for array in (queries, keys, values))
    mask = cache.make_mask(queries.shape[2], return_array=False, window_size=None)
    keys, values = cache.update_and_fetch(keys, values)
    return scaled_dot_product_attention(queries, keys, values, cache=cache, scale=scale, mask=mask)


def offset(cache) -> mx.array:
    """A copy of the offset, which the next append does not change."""
    return mx.array(cache.offset, dtype=mx.int32)


def difference(found: mx.array, expected: mx.array) -> str:
    """What is wrong; empty if dtype, shape and bits are the same. NaN equals NaN."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"{found.dtype} {found.shape} and not {expected.dtype} {expected.shape}"
    if found.dtype not in BITS:
        return "" if mx.array_equal(found, expected) else f"{found.tolist()} and not {expected.tolist()}"
    same = found.view(BITS[found.dtype]) == expected.view(BITS[expected.dtype])
    same |= mx.isnan(found) & mx.isnan(expected)
    if mx.all(same).item():
        return ""
    far = mx.max(mx.abs(found.astype(mx.float32) - expected.astype(mx.float32))).item()
    return f"{same.size - mx.sum(same).item()} of {same.size} elements differ, by up to {far:.3g}"


def check(file: Path) -> str:
    """What is wrong with a file; empty if nothing is."""
    beside = file.with_suffix(".next.safetensors")
    if not beside.exists():
        return f"there is no {beside.name}"
    expected = mx.load(str(beside))
    caches = load(file)
    layers = {int(name.split(".")[0]) for name in expected}
    if layers != set(range(len(caches))):
        return f"there are {len(caches)} layers, and {beside.name} has {sorted(layers)}"
    for layer, cache in enumerate(caches):
        if wrong := difference(offset(cache), expected[f"{layer}.offset"]):
            return f"layer {layer} has the offset {wrong}"
        appends = sum(name.startswith(f"{layer}.") and name.endswith(".out") for name in expected)
        if not appends:
            return f"{beside.name} has no append to layer {layer}"
        for append in range(appends):
            at = f"{layer}.{append}"
            inputs = (expected[f"{at}.{name}"] for name in "qkv")
            out = attend(cache, *inputs, expected[f"{layer}.scale"].item())
            if wrong := difference(out, expected[f"{at}.out"]):
                return f"append {append} to layer {layer}: {wrong}"
            if wrong := difference(offset(cache), expected[f"{at}.offset"]):
                return f"after append {append} layer {layer} has the offset {wrong}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    mx.set_default_device(mx.cpu)

    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.endswith(".next.safetensors"))
    failed = 0
    for file in files:
        try:
            wrong = check(file)
        except Exception as error:  # mlx-lm may raise anything for a file that it does not understand
            wrong = f"{type(error).__name__}: {error}"
        failed += bool(wrong)
        print(f"{file.name}: {wrong or 'passed'}")
    print(f"{len(files) - failed} passed, {failed} failed")
    return 0 if files and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
