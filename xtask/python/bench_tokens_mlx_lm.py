"""Measures mlx-lm on a checkpoint: the time of a prompt up to the first token, and of each token after it.

What: prints one line of JSON with the keys of `bench_llama_cpp.py`: `load_s`, `prefill_s`, `token_s` (a list), the
greedy `tokens`, and `version`. A warm-up with a part of the prompt and two tokens is not counted: MLX compiles functions
at their first call, which takes seconds.

Why: `cargo xtask speed` compares this project with mlx-lm on MLX's package, in the same run on the same machine.

How to run, from the repository root:

    $(cargo xtask python) xtask/python/bench_tokens_mlx_lm.py --model DIR --prompt-tokens 32 --gen-tokens 4
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
from mlx_lm.generate import generate_step


def prompt_of(count: int, vocabulary: int) -> list[int]:
    """The tokens of the prompt, the same for every program in the benchmark."""
    return [(i * 1_664_525 + 1) % 2**32 % vocabulary for i in range(count)]


def generate(model, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy tokens after a prompt, and the seconds for each. Those of the first include reading the prompt."""
    tokens, times = [], [time.perf_counter()]
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
        times.append(time.perf_counter())
        tokens.append(int(token))
    return tokens, [after - before for before, after in zip(times, times[1:])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, required=True, metavar="P")
    parser.add_argument("--gen-tokens", type=int, required=True, metavar="N", help="at least 2")
    parser.add_argument("--warm-up-tokens", type=int, metavar="P", help="tokens of the prompt to warm up with; all")
    args = parser.parse_args()
    if args.prompt_tokens < 1 or args.gen_tokens < 2:
        parser.error("needs a prompt, and two tokens to generate")

    began = time.perf_counter()
    model, config = mlx_lm.utils.load_model(args.model)
    load = time.perf_counter() - began
    prompt = prompt_of(args.prompt_tokens, config["vocab_size"])
    generate(model, prompt[: args.warm_up_tokens], 2)
    tokens, seconds = generate(model, prompt, args.gen_tokens)
    versions = f"mlx-lm {version('mlx-lm')}, MLX {mx.__version__}"
    print(
        json.dumps(
            {"load_s": load, "prefill_s": seconds[0], "token_s": seconds[1:], "tokens": tokens, "version": versions}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
