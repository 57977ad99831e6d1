"""Measures llama.cpp on a GGUF file: the time of a prompt up to the first token, and of each token after it.

What: prints one line of JSON with the keys of `bench_tokens_mlx_lm.py`: `load_s`, `prefill_s`, `token_s` (a list), the
greedy `tokens`, `peak_memory_bytes` (mapped weights included), and `version`, which says how llama.cpp was built and run. The context has exactly the size that is
needed, keys and values are float16, weights are mapped into memory (`mmap`), the whole prompt is one batch, and layers
with a window cache only their window. A warm-up with the whole prompt and two tokens is not counted.

Why: `cargo xtask speed` compares this project with llama.cpp in the same run on the same machine.

How to run, from the repository root:

    $(cargo xtask python llama-cpp) xtask/python/bench_llama_cpp.py --model FILE --prompt-tokens 128 --gen-tokens 32

It calls llama.cpp's C functions (`llama_decode`) directly, without the Python classes around them, and finds the largest
logit with NumPy, which is faster than llama.cpp's own sampler.
"""

import argparse
import ctypes
import json
import os
import resource
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


def prompt_of(count: int, vocabulary: int) -> list[int]:
    """The tokens of the prompt, the same for every program in the benchmark."""
    return [(i * 1_664_525 + 1) % 2**32 % vocabulary for i in range(count)]


@llama_cpp.llama_log_callback
def say_nothing(_level: int, _text: bytes, _data: ctypes.c_void_p) -> None:
    pass


class Run:
    """One model with one context."""

    def __init__(self, file: Path, length: int, batch: int, threads: int, flash_attention: str) -> None:
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_mmap = True
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        self.batch = batch
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = length
        context.n_batch = context.n_ubatch = batch
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = FLASH_ATTENTION[flash_attention]
        context.swa_full = False
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def next_token(self, tokens: list[int]) -> int:
        """Reads these tokens and returns the most probable next one."""
        for start in range(0, len(tokens), self.batch):
            part = tokens[start : start + self.batch]
            array = (llama_cpp.llama_token * len(part))(*part)
            status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(part)))
            if status != 0:
                raise SystemExit(f"llama_decode fails with {status}")
        return int(self.logits().argmax())

    def logits(self) -> np.ndarray:
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,))

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Greedy tokens after a prompt, and the seconds for each. Those of the first include reading the prompt."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        tokens, seconds = [], []
        text = prompt
        for _ in range(count):
            began = time.perf_counter()
            text = [self.next_token(text)]
            seconds.append(time.perf_counter() - began)
            tokens += text
        return tokens, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FILE")
    parser.add_argument("--prompt-tokens", type=int, required=True, metavar="P")
    parser.add_argument("--gen-tokens", type=int, required=True, metavar="N", help="at least 2")
    parser.add_argument("--warm-up-tokens", type=int, metavar="P", help="tokens of the prompt to warm up with; all, and 0 for no warm-up")
    parser.add_argument("--threads", type=int, metavar="N", help="threads; as many as there are cores to use")
    parser.add_argument("--batch", type=int, metavar="N", help="tokens of a batch; the whole prompt, 512 at least")
    parser.add_argument("--flash-attention", choices=list(FLASH_ATTENTION), default="auto")
    args = parser.parse_args()
    if args.prompt_tokens < 1 or args.gen_tokens < 2:
        parser.error("needs a prompt, and two tokens to generate")
    threads = args.threads or len(os.sched_getaffinity(0))
    batch = args.batch or max(512, args.prompt_tokens)

    llama_cpp.llama_log_set(say_nothing, None)
    llama_cpp.llama_backend_init()
    began = time.perf_counter()
    length = args.prompt_tokens + args.gen_tokens
    run = Run(args.model, length, batch, threads, args.flash_attention)
    load = time.perf_counter() - began

    prompt = prompt_of(args.prompt_tokens, run.vocabulary)
    if args.warm_up_tokens != 0:
        run.generate(prompt[: args.warm_up_tokens], 2)
    tokens, seconds = run.generate(prompt, args.gen_tokens)
    features = llama_cpp.llama_print_system_info().decode().strip(" |")
    version = f"llama-cpp-python {llama_cpp.__version__}; {threads} threads, batch {batch}, "
    version += f"flash attention {args.flash_attention}; {features}"
    print(
        json.dumps(
            {
                "load_s": load,
                "prefill_s": seconds[0],
                "token_s": seconds[1:],
                "tokens": tokens,
                "version": version,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
