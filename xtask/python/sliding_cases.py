"""What the scripts have in common that make parity cases of Gemma 3, OLMo 3 and Qwen 3 models with mlx-lm.

A case is a folder as `make_cases.py` makes it for Lille models. Every way of holding the weights is read in one call, in
pieces across the window, and token by token beyond it; the window is 6 tokens.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
from make_cases import PROMPT_LENGTH, greedy_tokens, logits_by_calls
from mlx.utils import tree_flatten
from parity_cases import argument_parser, demand_own_blas, finish, write_description

# The values that a weight of this name gets, from normally distributed ones.
Scale = Callable[[str, np.ndarray], np.ndarray]

WEIGHTS = {
    "f32": {},
    "bf16": {"dtype": mx.bfloat16},
    "f16": {"dtype": mx.float16},
    "q4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32}},
    "q8": {"dtype": mx.bfloat16, "quantize": {"bits": 8, "group_size": 32}},
    "mxfp4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
}
# Rows that can be cut into groups of 32.
QUANTIZED = {"intermediate_size": 64}
# One call longer than the window; pieces that end before, in and behind it; single tokens from an empty cache.
CUTS = {"whole": [17], "pieces": [4, 5, 1, 1, 8, 3], "single": [1] * 14}


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the lengths of the calls that the tokens are fed in."""

    name: str
    seed: int
    calls: list[int]
    config: dict
    scale: Scale
    dtype: mx.Dtype = mx.float32
    batch: int = 1
    tied: bool = False
    quantize: dict | None = None
    extra_weights: Callable[[dict[str, mx.array]], dict[str, mx.array]] = lambda _: {}
    extra_config: dict = field(default_factory=dict)  # which mlx-lm must not see


def matrix(values: np.ndarray, gain: float) -> np.ndarray:
    """A projection that answers with numbers of the size of `gain` where its inputs are of the size of 1."""
    return gain * values / np.sqrt(values.shape[-1])


def new_model(case: Case) -> nn.Module:
    """mlx-lm's model with random weights."""
    model_class, args_class = mlx_lm.utils._get_classes(case.config)
    model = model_class(args_class.from_dict(json.loads(json.dumps(case.config))))  # a copy: it writes into its config
    if case.tied and hasattr(model, "sanitize"):
        model.sanitize({"language_model": {"": mx.zeros(1)}} if hasattr(model, "language_model") else {})
    rng = np.random.default_rng(case.seed)
    weights = []
    for name, weight in sorted(tree_flatten(model.parameters())):
        values = case.scale(name, rng.standard_normal(weight.shape, dtype=np.float32))
        weights.append((name, mx.array(values).astype(case.dtype)))
    model.load_weights(weights)
    return model


def save_checkpoint(case: Case, folder: Path) -> None:
    """Writes config and weights with mlx-lm's own functions."""
    model, config = new_model(case), dict(case.config)
    if case.quantize:
        with contextlib.redirect_stdout(sys.stderr):
            model, config = mlx_lm.utils.quantize_model(model, config, **case.quantize)
    mlx_lm.utils.save_config(config, folder / "config.json")
    mlx_lm.utils.save_model(folder, model)
    (folder / "model.safetensors.index.json").unlink()  # says nothing where there is one file
    weights = dict(tree_flatten(model.parameters()))
    if extra := case.extra_weights(weights):
        mx.save_safetensors(str(folder / "model.safetensors"), weights | extra, metadata={"format": "mlx"})


def make_case(case: Case, made_by: str, folder: Path) -> None:
    """Writes the whole folder of one case."""
    folder.mkdir()
    save_checkpoint(case, folder)
    model, _ = mlx_lm.utils.load_model(folder)
    vocab_size = case.config["vocab_size"]
    rng = np.random.default_rng([case.seed, 1])
    tokens = mx.array(rng.integers(0, vocab_size, (case.batch, sum(case.calls)), dtype=np.int32))
    prompt = mx.array(rng.integers(0, vocab_size, PROMPT_LENGTH, dtype=np.int32))
    reference = {
        "tokens": tokens,
        "logits": logits_by_calls(model, tokens, case.calls),
        "greedy_prompt": prompt,
        "greedy_tokens": mx.array(greedy_tokens(model, prompt, case.name), dtype=mx.int32),
    }
    mx.save_safetensors(str(folder / "reference.safetensors"), reference)
    if case.extra_config:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        mlx_lm.utils.save_config(written | case.extra_config, folder / "config.json")
    write_description(folder, case.name, "model", made_by, seed=case.seed, calls=case.calls)


def first_good_seed(case: Case, made_by: str) -> int | None:
    """The first seed with greedy tokens that are worth comparing, its own before all others."""
    for seed in [case.seed, *range(1, 200)]:
        with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(SystemExit):
            make_case(replace(case, seed=seed), made_by, Path(scratch) / case.name)
            return seed
    return None


def run(description: str | None, cases: list[Case], made_by: str) -> int:
    """The whole of such a script. Returns the exit status."""
    parser = argument_parser(description)
    parser.add_argument("--seeds", action="store_true", help="print a good seed for each case, write nothing")
    args = parser.parse_args()
    demand_own_blas(parser)
    if args.seeds:
        print("\n".join(f"{case.name}: {first_good_seed(case, made_by)}" for case in cases))
        return 0
    made = {case.name: partial(make_case, case, made_by) for case in cases}
    return finish(made, {name: args.out / name for name in made}, args.check)
