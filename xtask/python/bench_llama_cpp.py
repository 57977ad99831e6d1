"""Measures llama.cpp on a GGUF file: the time of a prompt up to the first token, and of each token after it.

What: prints one line of JSON with the keys of `bench_tokens_mlx_lm.py`: `load_s`, `prefill_s`, `token_s` (a list), the
greedy `tokens`, `peak_memory_bytes` (mapped weights included), and `version`, which says how llama.cpp was built and run. The
context has exactly the size that is needed, keys and values are float16, weights are mapped into memory (`mmap`), a prompt is
read in llama.cpp's own pieces of 512 tokens, and layers with a window cache only their window. A warm-up with two tokens is not
counted.

Why: `cargo xtask speed` and `cargo xtask real` compare this project with llama.cpp in the same run on the same machine.

How to run, from the repository root, with the folder that has `libllama.so` (`cargo xtask speed` compiles it into the user's cache):

    $(cargo xtask python llama-cpp-tools) xtask/python/bench_llama_cpp.py --library DIR --model FILE --prompt-tokens 128 \\
        --gen-tokens 32

It calls llama.cpp's C functions (`llama_decode`) directly, and finds the largest logit with NumPy, which is faster than
llama.cpp's own sampler. The structures below are those of `llama.h` in the pinned version.
"""

import argparse
import ctypes
import json
import os
import resource
import sys
import time
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path

import numpy as np

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
MMAP = 1  # of the enum `llama_load_mode`
Q8_0 = 8  # of the enum `ggml_type`
LOG_FUNCTION = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParameters(Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParameters(Structure):
    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", c_void_p),
        ("logits", POINTER(c_int8)),
    ]


FUNCTIONS = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LOG_FUNCTION, c_void_p]),
    "llama_print_system_info": (c_char_p, []),
    "llama_model_default_params": (ModelParameters, []),
    "llama_context_default_params": (ContextParameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParameters]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParameters]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_batch_get_one": (Batch, [POINTER(c_int32), c_int32]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
}


def library(folder: Path) -> ctypes.CDLL:
    """llama.cpp's C functions."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    found = ctypes.CDLL(str(folder / f"libllama.{suffix}"))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def prompt_of(count: int, vocabulary: int) -> list[int]:
    """The tokens of the prompt, the same for every program in the benchmark."""
    return [(i * 1_664_525 + 1) % 2**32 % vocabulary for i in range(count)]


@LOG_FUNCTION
def say_nothing(_level: int, _text: bytes, _data: c_void_p) -> None:
    pass


class Run:
    """One model with one context."""

    def __init__(self, llama: ctypes.CDLL, file: Path, length: int, threads: int, args: argparse.Namespace) -> None:
        self.llama = llama
        parameters = llama.llama_model_default_params()
        parameters.load_mode = MMAP
        self.model = llama.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        context = llama.llama_context_default_params()
        context.n_ctx = length
        self.batch = context.n_batch = max(2048, args.ubatch)
        context.n_ubatch = args.ubatch
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = FLASH_ATTENTION[args.flash_attention]
        context.swa_full = False
        if args.kv_bits:
            context.type_k = context.type_v = Q8_0
        self.context = llama.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def next_token(self, tokens: list[int]) -> int:
        """Reads these tokens and returns the most probable next one."""
        for start in range(0, len(tokens), self.batch):
            part = tokens[start : start + self.batch]
            array = (c_int32 * len(part))(*part)
            status = self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(array, len(part)))
            if status != 0:
                raise SystemExit(f"llama_decode fails with {status}")
        return int(self.logits().argmax())

    def logits(self) -> np.ndarray:
        logits = self.llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary,))

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Greedy tokens after a prompt, and the seconds for each. Those of the first include reading the prompt."""
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
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
    parser.add_argument("--library", type=Path, required=True, metavar="DIR", help="folder with libllama.so")
    parser.add_argument("--build", default="llama.cpp", metavar="NAME", help="name of this build for `version`")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE")
    parser.add_argument("--prompt-tokens", type=int, required=True, metavar="P")
    parser.add_argument("--gen-tokens", type=int, required=True, metavar="N", help="at least 2")
    parser.add_argument("--warm-up-tokens", type=int, metavar="P", help="tokens of the prompt to warm up with; all, and 0 for no warm-up")
    parser.add_argument("--threads", type=int, metavar="N", help="threads; as many as there are cores to use")
    parser.add_argument("--ubatch", type=int, default=512, metavar="N", help="tokens that are computed at once; 512")
    parser.add_argument("--kv-bits", type=int, choices=[8], help="quantize keys and values to Q8_0")
    parser.add_argument("--flash-attention", choices=list(FLASH_ATTENTION), default="auto")
    args = parser.parse_args()
    if args.prompt_tokens < 1 or args.gen_tokens < 2:
        parser.error("needs a prompt, and two tokens to generate")
    threads = args.threads or len(os.sched_getaffinity(0))

    llama = library(args.library)
    llama.llama_log_set(say_nothing, None)
    llama.llama_backend_init()
    began = time.perf_counter()
    run = Run(llama, args.model, args.prompt_tokens + args.gen_tokens, threads, args)
    load = time.perf_counter() - began

    prompt = prompt_of(args.prompt_tokens, run.vocabulary)
    if args.warm_up_tokens != 0:
        run.generate(prompt[: args.warm_up_tokens], 2)
    tokens, seconds = run.generate(prompt, args.gen_tokens)
    features = llama.llama_print_system_info().decode().strip(" |")
    version = f"{args.build}; {threads} threads, pieces of {args.ubatch}, flash attention {args.flash_attention}; {features}"
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
