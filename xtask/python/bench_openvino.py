"""Measures OpenVINO GenAI on a folder of optimum-intel: the time of a prompt up to the first token, and of the tokens after it.

What: prints one line of JSON with the keys of `bench_tokens_mlx_lm.py`: `load_s`, `prefill_s`, `token_s` (a list, the mean
time for each token), the greedy `tokens`, and `version`. OpenVINO keeps what it computed for a prompt, and uses it for a
later prompt that begins with the same tokens. So the warm-up has other tokens.

Why: `cargo xtask speed` compares this project with OpenVINO in the same run on the same machine.

How to run, from the repository root:

    $(cargo xtask python openvino) xtask/python/bench_openvino.py --model DIR --prompt-tokens 128 --gen-tokens 32
"""

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
import openvino_genai


def prompt_of(count: int, vocabulary: int) -> list[int]:
    """The tokens of the prompt, the same for every program in the benchmark."""
    return [(i * 1_664_525 + 1) % 2**32 % vocabulary for i in range(count)]


def generate(pipeline: openvino_genai.LLMPipeline, prompt: list[int], count: int) -> openvino_genai.EncodedResults:
    """This many greedy tokens after a prompt."""
    config = openvino_genai.GenerationConfig(max_new_tokens=count, min_new_tokens=count, ignore_eos=True)
    config.do_sample = False
    ids = np.array([prompt], dtype=np.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
    return pipeline.generate(inputs, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--prompt-tokens", type=int, required=True, metavar="P")
    parser.add_argument("--gen-tokens", type=int, required=True, metavar="N", help="at least 2")
    parser.add_argument("--warm-up-tokens", type=int, metavar="P", help="tokens to warm up with; all, and 0 for no warm-up")
    args = parser.parse_args()
    if args.prompt_tokens < 1 or args.gen_tokens < 2:
        parser.error("needs a prompt, and two tokens to generate")

    vocabulary = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    began = time.perf_counter()
    pipeline = openvino_genai.LLMPipeline(str(args.model), "CPU")
    load = time.perf_counter() - began
    warm_up = args.prompt_tokens if args.warm_up_tokens is None else args.warm_up_tokens
    if warm_up:
        generate(pipeline, prompt_of(warm_up + 1, vocabulary)[1:], 2)
    result = generate(pipeline, prompt_of(args.prompt_tokens, vocabulary), args.gen_tokens)
    metrics = result.perf_metrics
    print(
        json.dumps(
            {
                "load_s": load,
                "prefill_s": metrics.get_ttft().mean / 1e3,
                "token_s": [metrics.get_tpot().mean / 1e3] * (args.gen_tokens - 1),
                "tokens": list(result.tokens[0]),
                "version": f"OpenVINO GenAI {version('openvino-genai')}",
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
