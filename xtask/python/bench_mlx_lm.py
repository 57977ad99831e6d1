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

SEED = 1


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def generation_rates(model, prompt: mx.array, count: int) -> tuple[float, float]:
    """Prefill and decoding rates, in tokens per second, of one generation of `count` tokens."""
    began = time.perf_counter()
    first = last = began
    for position, _ in enumerate(generate_step(prompt, model, max_tokens=count)):
        last = time.perf_counter()
        if position == 0:
            first = last
    return len(prompt) / (first - began), (count - 1) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="P")
    parser.add_argument("--gen-tokens", type=int, default=64, metavar="N", help="at least 2")
    parser.add_argument("--repeats", type=int, default=3, metavar="R")
    args = parser.parse_args()
    if args.prompt_tokens < 1 or args.gen_tokens < 2 or args.repeats < 1:
        parser.error("needs a prompt, two tokens to generate and one repeat at least")

    load_seconds = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        model, config = mlx_lm.utils.load_model(args.model)
        load_seconds.append(time.perf_counter() - began)

    vocabulary = config.get("text_config", config)["vocab_size"]
    prompt = mx.array(np.random.default_rng(SEED).integers(0, vocabulary, args.prompt_tokens, dtype=np.int32))
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
