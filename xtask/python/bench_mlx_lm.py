"""Measures mlx-lm on a checkpoint: seconds to load, tokens per second of prefill and of greedy decoding, memory.

What: prints one line of JSON. `load_s` is the time of `mlx_lm.utils.load_model`, weights read and evaluated;
`prefill_tps` counts the prompt's tokens up to the first generated one; `decode_tps` counts the tokens after that one.
Each is an object of min, median and max over the repeats. `peak_memory_bytes` is what MLX had allocated at most,
`max_rss_bytes` what the process had resident at most.

Why: the project's own benchmark reports its figures next to the reference's, taken on the same machine in the same run.

How to run, from the repository root:

    python xtask/python/bench_mlx_lm.py --model crates/mlx-models-cli/demo/lille-130m \\
        --prompt-tokens 128 --gen-tokens 64 --repeats 3

The prompt is random tokens from a fixed seed, and the end-of-text token stops nothing, so that every model and every
repeat does the same amount of work. One warm-up generation of two tokens comes first and is not counted.

Four further things it does for `cargo xtask bench`. With `--first-token` it loads the tokenizer too, says one token and ends. With `--write-cache FILE --context N` it writes a prompt cache of N
random keys and values per head, rotating with `--max-kv-size`. With `--cache FILE`, which may be given several times, it
decodes behind each of them, and prints a list of `decode_tps` and `peak_memory_bytes`. With `--chunks N,...` it reads the
prompt in steps of each of these sizes, and prints a list of `prefill_tps` and `peak_memory_bytes`.
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
    """A prompt cache of random numbers in the shapes and the dtype that the model's own have."""
    cache = make_prompt_cache(model, max_kv_size)
    for _ in generate_step(mx.array([1, 2]), model, max_tokens=0, prompt_cache=cache):
        pass
    mx.random.seed(SEED)
    for layer in cache:
        (batch, heads, _, key_features), dtype = layer.keys.shape, layer.keys.dtype
        value_features = layer.values.shape[-1]
        while layer.offset < context:
            # The last ones one by one, as they come in decoding: the layers of a window then have their own size.
            left = context - layer.offset
            step = min(left - 1, FILL_STEP) if left > 1 else 1
            layer.update_and_fetch(
                *(mx.random.normal((batch, heads, step, size), dtype) for size in (key_features, value_features))
            )
            mx.eval(layer.state)
    save_prompt_cache(file, cache)


def rate_behind(model, file: str, count: int) -> float:
    """The decoding rate behind a prompt cache."""
    cache = load_prompt_cache(file)
    mx.eval([layer.state for layer in cache])
    return generation_rates(model, mx.array([1]), count, prompt_cache=cache)[1]


def first_token(folder: Path) -> None:
    """The least that a program can do to generate one token; the caller measures the time of the process."""
    model, tokenizer = mlx_lm.utils.load(str(folder))
    next(generate_step(mx.array(tokenizer.encode("Once upon a time")), model, max_tokens=1))


def measured(run) -> tuple[float, int]:
    """What `run` answers, and what MLX had allocated at most."""
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
