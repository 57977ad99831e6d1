"""Measures mlx-lm on a checkpoint: the time to load it, the speed of prefill and of greedy decoding, and memory.

What: prints one line of JSON. `load_s` is the time of `mlx_lm.utils.load_model`, including reading the weights.
`prefill_tps` is the number of prompt tokens per second up to the first generated token; `decode_tps` is the number of
tokens per second after it. Each of the three is an object with min, median and max over the repeats.
`peak_memory_bytes` is the most memory that MLX allocated, `max_rss_bytes` the most resident memory of the process.

Why: `cargo xtask bench` shows our figures next to mlx-lm's, measured in the same run on the same machine.

How to run, from the repository root:

    python xtask/python/bench_mlx_lm.py --model crates/mlx-models-cli/demo/lille-130m \\
        --prompt-tokens 128 --gen-tokens 64 --repeats 3

The prompt is random tokens from a fixed seed, and generation does not stop at the end-of-text token, so that every model
and every repeat does the same amount of work. A warm-up that generates two tokens is not counted.

`cargo xtask bench` uses four other modes:

- `--first-token` loads the tokenizer too, generates one token and ends.
- `--write-cache FILE --context N` writes a prompt cache with random keys and values for N tokens; it is a rotating cache
  with `--max-kv-size`.
- `--cache FILE` (can be repeated) decodes after each of these caches, and prints a list of `decode_tps` and
  `peak_memory_bytes`.
- `--chunks N,...` reads the prompt in chunks of each of these sizes, and prints a list of `prefill_tps` and
  `peak_memory_bytes`.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

SEED = 1
FILL_STEP = 256


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def generation_rates(model, prompt: mx.array, count: int, **options) -> tuple[float, float]:
    """Prefill and decoding rates, in tokens per second, of one generation of `count` tokens."""
    began = time.perf_counter()
    first = last = began
    for position, _ in enumerate(generate_step(prompt, model, max_tokens=count, **options)):
        last = time.perf_counter()
        if position == 0:
            first = last
    return len(prompt) / (first - began), (count - 1) / (last - first) if count > 1 else 0.0


def write_cache(model, file: str, context: int, max_kv_size: int | None) -> None:
    """A prompt cache of random numbers, with the shapes and the dtype of the model's own caches."""
    cache = make_prompt_cache(model, max_kv_size)
    for _ in generate_step(mx.array([1, 2]), model, max_tokens=0, prompt_cache=cache):
        pass
    mx.random.seed(SEED)
    for layer in cache:
        (batch, heads, _, key_features), dtype = layer.keys.shape, layer.keys.dtype
        value_features = layer.values.shape[-1]
        while layer.offset < context:
            # The last tokens are added one by one, as in decoding, so that layers with a window have its size.
            left = context - layer.offset
            step = min(left - 1, FILL_STEP) if left > 1 else 1
            layer.update_and_fetch(
                *(mx.random.normal((batch, heads, step, size), dtype) for size in (key_features, value_features))
            )
            mx.eval(layer.state)
    save_prompt_cache(file, cache)


def rate_behind(model, file: str, count: int) -> float:
    """The decoding rate after a prompt cache, in tokens per second."""
    cache = load_prompt_cache(file)
    mx.eval([layer.state for layer in cache])
    return generation_rates(model, mx.array([1]), count, prompt_cache=cache)[1]


def first_token(folder: Path) -> None:
    """Generates one token with as little work as possible. The caller measures the time of the process."""
    model, tokenizer = mlx_lm.utils.load(str(folder))
    next(generate_step(mx.array(tokenizer.encode("Once upon a time")), model, max_tokens=1))


def measured(run) -> tuple[float, int]:
    """The result of `run`, and the most memory that MLX had allocated."""
    mx.clear_cache()
    mx.reset_peak_memory()
    return run(), mx.get_peak_memory()


def behind_caches(model, files: list[str], count: int) -> list[dict]:
    figures = []
    for file in files:
        rate_behind(model, file, 2)
        rate, peak = measured(lambda file=file: rate_behind(model, file, count))
        figures.append({"decode_tps": rate, "peak_memory_bytes": peak})
    return figures


def in_chunks(model, prompt: mx.array, chunks: list[int]) -> list[dict]:
    generation_rates(model, prompt[:16], 1)
    figures = []
    for chunk in chunks:
        rate, peak = measured(lambda chunk=chunk: generation_rates(model, prompt, 1, prefill_step_size=chunk)[0])
        figures.append({"prefill_tps": rate, "peak_memory_bytes": peak})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="P")
    parser.add_argument("--gen-tokens", type=int, default=64, metavar="N", help="at least 2")
    parser.add_argument("--repeats", type=int, default=3, metavar="R")
    parser.add_argument("--first-token", action="store_true")
    parser.add_argument("--write-cache", metavar="FILE")
    parser.add_argument("--context", type=int, default=100, metavar="N")
    parser.add_argument("--max-kv-size", type=int, metavar="N")
    parser.add_argument("--cache", action="append", default=[], metavar="FILE")
    parser.add_argument("--chunks", type=lambda text: [int(size) for size in text.split(",")], metavar="N,...")
    args = parser.parse_args()
    if args.first_token:
        return first_token(args.model)
    if args.prompt_tokens < 1 or args.gen_tokens < 2 or args.repeats < 1:
        parser.error("needs a prompt, two tokens to generate and one repeat at least")

    load_seconds = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        model, config = mlx_lm.utils.load_model(args.model)
        load_seconds.append(time.perf_counter() - began)

    vocabulary = config.get("text_config", config)["vocab_size"]
    prompt = mx.array(np.random.default_rng(SEED).integers(0, vocabulary, args.prompt_tokens, dtype=np.int32))
    if args.write_cache:
        return write_cache(model, args.write_cache, args.context, args.max_kv_size)
    if args.cache:
        return print(json.dumps(behind_caches(model, args.cache, args.gen_tokens)))
    if args.chunks:
        return print(json.dumps(in_chunks(model, prompt, args.chunks)))
    generation_rates(model, prompt, 2)
    rates = [generation_rates(model, prompt, args.gen_tokens) for _ in range(args.repeats)]
    prefill, decode = (spread(list(values)) for values in zip(*rates))

    # ru_maxrss counts bytes on macOS and KiB elsewhere
    unit = 1 if sys.platform == "darwin" else 1024
    print(
        json.dumps(
            {
                "load_s": spread(load_seconds),
                "prefill_tps": prefill,
                "decode_tps": decode,
                "peak_memory_bytes": mx.get_peak_memory(),
                "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            }
        )
    )


if __name__ == "__main__":
    main()
