"""Makes the fixtures of `mlx-generate`: results of mlx-lm's samplers and logits processors for fixed inputs.

What: `sampling.json` has the names of the cases and the arguments that mlx-lm was given; `sampling.safetensors` has the
tensors. For every dtype D:

    D.logprobs                  [B, V], log-probabilities: a row with a few probable tokens; a flat row; a row with many
                                ties; a row with many impossible tokens; a row that is not normalized, with tokens
                                exactly at the limits of min-p and one step above and below
    D.logits                    [1, V], logits
    D.sampler_NAME.left         the log-probabilities after all filters, with the first seed
    D.sampler_NAME.tokens       [seeds, draws, B], the tokens that are drawn
    D.processor_NAME.logits     the logits after the processors
    D.loop_NAME.tokens          [seeds, draws], processors and sampler together; each token is added to the history
                                before the next one is drawn

Why: `cargo test -p mlx-generate` requires the same bits and the same tokens from this project's functions.

How to run, from the repository root:

    python xtask/python/make_sampling_fixtures.py

The first run takes two minutes, because MLX compiles mlx-lm's samplers.
"""

import json
import math
import sys
from unittest import mock

import mlx.core as mx
import numpy as np
from mlx_lm import sample_utils
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from parity_cases import argument_parser, finish, origin

FOLDER = "crates/mlx-generate/tests/fixtures"
SEED, VOCAB = 5, 97
SEEDS, DRAWS = [0, 7, 2**40 + 3], 8
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
XTC = {"xtc_probability": 1.0, "xtc_threshold": 0.05}
SPECIAL = [26, 71]  # the most probable tokens of the rows with ties and with impossible tokens
# Arguments of `make_sampler`.
SAMPLERS = {
    "greedy": {},
    "temperature": {"temp": 0.7},
    "hot": {"temp": 1.9},
    "top_p": {"temp": 1.0, "top_p": 0.8},
    "top_p_small": {"temp": 1.0, "top_p": 1e-6},
    "top_p_large": {"temp": 1.0, "top_p": 0.999},
    "top_p_one": {"temp": 1.0, "top_p": 1.0},
    "min_p": {"temp": 1.0, "min_p": 0.1},
    "min_p_one": {"temp": 1.0, "min_p": 1.0},
    "min_p_keep": {"temp": 1.0, "min_p": 0.9, "min_tokens_to_keep": 5},
    "top_k": {"temp": 1.0, "top_k": 10},
    "top_k_one": {"temp": 1.3, "top_k": 1},
    "top_k_all_but_one": {"temp": 1.0, "top_k": VOCAB - 1},
    "xtc": {"temp": 1.0} | XTC,
    "xtc_sometimes": {"temp": 1.0, "xtc_probability": 0.5, "xtc_threshold": 0.02},
    "xtc_special": {"temp": 1.0, "xtc_special_tokens": SPECIAL} | XTC,
    "xtc_all": {"temp": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.0},
    "xtc_none": {"temp": 1.0, "xtc_probability": 1.0, "xtc_threshold": 0.5},
    "top_p_top_k": {"temp": 0.6, "top_p": 0.95, "top_k": 20},
    "all": {
        "temp": 0.8,
        "top_p": 0.93,
        "min_p": 0.02,
        "min_tokens_to_keep": 3,
        "xtc_probability": 0.6,
        "xtc_threshold": 0.04,
        "xtc_special_tokens": SPECIAL,
        "top_k": 12,
    },
}
BIAS = {1: 2.5, 3: -1.3, 60: 0.1, 96: -100.0}
HISTORY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3]
# Arguments of `make_logits_processors`, and the tokens before.
PROCESSORS = {
    "bias": ({"logit_bias": BIAS}, HISTORY),
    "repetition": ({"repetition_penalty": 1.3}, HISTORY),
    "repetition_below_one": ({"repetition_penalty": 0.7}, HISTORY),
    "repetition_context": ({"repetition_penalty": 1.3, "repetition_context_size": 4}, HISTORY),
    "repetition_all": ({"repetition_penalty": 1.3, "repetition_context_size": 0}, HISTORY),
    "repetition_short": ({"repetition_penalty": 1.3}, HISTORY[:2]),
    "presence": ({"presence_penalty": 0.7}, HISTORY),
    "presence_negative": ({"presence_penalty": -0.7, "presence_context_size": 7}, HISTORY),
    "frequency": ({"frequency_penalty": 0.3}, HISTORY),
    "frequency_negative": ({"frequency_penalty": -0.3, "frequency_context_size": 0}, HISTORY),
    "off": ({"repetition_penalty": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}, HISTORY),
    "all": (
        {
            "logit_bias": BIAS,
            "repetition_penalty": 1.1,
            "repetition_context_size": 16,
            "presence_penalty": 0.4,
            "presence_context_size": 5,
            "frequency_penalty": 0.15,
            "frequency_context_size": 30,
        },
        HISTORY,
    ),
}
# A loop uses a sampler and a case of processors, by their names.
LOOPS = {"greedy": ("greedy", "all"), "sampled": ("all", "all"), "frequency": ("hot", "frequency")}


def make_inputs() -> dict[str, np.ndarray]:
    """The log-probabilities and logits, in float64."""
    rng = np.random.default_rng(SEED)
    peaked = rng.standard_normal(VOCAB) * 4
    flat = rng.standard_normal(VOCAB) * 0.3
    ties = np.round(rng.standard_normal(VOCAB) * 1.5)
    impossible = np.where(rng.random(VOCAB) < 0.8, -np.inf, rng.standard_normal(VOCAB) * 2)
    rows = np.stack([peaked, flat, ties, impossible])
    logits = rng.standard_normal((1, VOCAB)) * 3
    logits[0, 2], logits[0, 6], logits[0, 8] = -np.inf, 0.0, -0.0
    return {"logprobs": rows - np.log(np.exp(rows).sum(-1, keepdims=True)), "logits": logits}


def border(dtype: mx.Dtype) -> mx.array:
    """A row [1, V] with tokens at the limits of min-p. The largest is 0, so the limits are the logarithms of min-p."""
    kind = {2: mx.int16, 4: mx.int32}[dtype.size]
    tokens = [mx.zeros(1, dtype)]
    for part in sorted({arguments.get("min_p", 0.0) for arguments in SAMPLERS.values()} - {0.0, 1.0}):
        bits = mx.array([math.log(part)], dtype).view(kind)
        tokens.append(mx.concatenate([bits - 1, bits, bits + 1]).view(dtype))
    tokens = mx.concatenate(tokens)
    return mx.concatenate([tokens, mx.full(VOCAB - tokens.size, -math.inf, dtype)])[None]


def sampler_tensors(arguments: dict, logprobs: mx.array) -> dict[str, mx.array]:
    sampler = make_sampler(**arguments)
    draws = []
    for seed in SEEDS:
        mx.random.seed(seed)
        draws.append([sampler(logprobs).tolist() for _ in range(DRAWS)])
    tensors = {"tokens": mx.array(draws, dtype=mx.uint32)}
    if arguments.get("temp"):
        mx.random.seed(SEEDS[0])
        with mock.patch.object(sample_utils, "categorical_sampling", lambda left, temp: left):
            tensors["left"] = sampler(logprobs)
    return tensors


def loop_tokens(sampler: str, processors: str, logits: mx.array) -> mx.array:
    arguments, history = PROCESSORS[processors]
    sampler, processors, draws = make_sampler(**SAMPLERS[sampler]), make_logits_processors(**arguments), []
    for seed in SEEDS:
        mx.random.seed(seed)
        tokens = mx.array(history)
        for _ in range(DRAWS):
            step = mx.array(logits)  # a copy, because the processors write into their argument
            for processor in processors:
                step = processor(tokens, step)
            tokens = mx.concatenate([tokens, sampler(step - mx.logsumexp(step, keepdims=True)).astype(tokens.dtype)])
        draws.append(tokens[len(history) :].tolist())
    return mx.array(draws, dtype=mx.uint32)


def make_tensors() -> dict[str, mx.array]:
    tensors, inputs = {}, make_inputs()
    for name, dtype in DTYPES.items():
        logprobs, logits = (mx.array(inputs[kind].astype(np.float32)).astype(dtype) for kind in ("logprobs", "logits"))
        logprobs = mx.concatenate([logprobs, border(dtype)])
        made = {"logprobs": logprobs, "logits": logits}
        for case, arguments in SAMPLERS.items():
            made |= {f"sampler_{case}.{kind}": t for kind, t in sampler_tensors(arguments, logprobs).items()}
        for case, (arguments, history) in PROCESSORS.items():
            processed = mx.array(logits)
            for processor in make_logits_processors(**arguments):
                processed = processor(mx.array(history), processed)
            made[f"processor_{case}.logits"] = processed
        for case, (sampler, processors) in LOOPS.items():
            made[f"loop_{case}.tokens"] = loop_tokens(sampler, processors, logits)
        tensors |= {f"{name}.{key}": tensor for key, tensor in made.items()}
    return tensors


def make_text(about: dict[str, str]) -> str:
    """The JSON text, with one case per line."""

    def lines(cases: dict[str, dict]) -> str:
        return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()) + "\n}"

    processors = {
        name: {"arguments": arguments | {"logit_bias": list(arguments.get("logit_bias", {}).items())}, "history": history}
        for name, (arguments, history) in PROCESSORS.items()
    }
    loops = {name: {"sampler": sampler, "processor": processor} for name, (sampler, processor) in LOOPS.items()}
    head = json.dumps(about | {"dtypes": list(DTYPES), "seeds": SEEDS, "draws": DRAWS})[:-1]
    kinds = {"samplers": lines(SAMPLERS), "processors": lines(processors), "loops": lines(loops)}
    return head + "".join(f', "{kind}": {cases}' for kind, cases in kinds.items()) + "}\n"


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    mx.set_default_device(mx.cpu)

    about = origin("xtask/python/make_sampling_fixtures.py", SEED)
    made = {
        f"{FOLDER}/sampling.safetensors": lambda path: mx.save_safetensors(str(path), make_tensors(), metadata=about),
        f"{FOLDER}/sampling.json": lambda path: path.write_text(make_text(about), encoding="utf-8"),
    }
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
