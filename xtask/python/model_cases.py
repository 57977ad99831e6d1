"""Shared code of the scripts that make parity cases of whole models with mlx-lm.

A case is a folder with these files:

    a checkpoint             random weights from a seed, saved by mlx-lm's own functions; if it would be large,
                             `weights.json` has only the seed (`seeded_weights.py`)
    reference.safetensors    tokens, the logits that mlx-lm's model computes with its own cache, and greedy tokens of its
                             `generate_step`
    case.json                how tokens are read and results are compared

The greedy tokens of each case are checked: they must not be a loop of a few tokens, and at each step the largest logit
must be larger than the second by a margin, so that they are the same on devices that round differently. `--seeds` prints a
seed for each case whose greedy tokens pass these checks.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from parity_cases import argument_parser, demand_own_blas, finish_cases, write_description
from seeded_weights import Tensor, stored, tensor_like, write_weights

DTYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
PROMPT_LENGTH, GREEDY_LENGTH = 9, 24
SMALLEST_MARGIN, FEWEST_DISTINCT = 0.1, 12

# Makes the values of the weight with this name from normally distributed numbers.
Scale = Callable[[str, np.ndarray], np.ndarray]

WEIGHTS = {
    "f32": {},
    "bf16": {"dtype": mx.bfloat16},
    "f16": {"dtype": mx.float16},
    "q4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32}},
    "q8": {"dtype": mx.bfloat16, "quantize": {"bits": 8, "group_size": 32}},
    "mxfp4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
}
# For the models with windows and Qwen 3: with this size all rows can be cut into groups of 32.
QUANTIZED = {"intermediate_size": 64}
# For the same models, whose window has 6 tokens: one call that is longer than the window; calls that end before, in and
# after it; single tokens.
CUTS = {"whole": [17], "pieces": [4, 5, 1, 1, 8, 3], "single": [1] * 14}


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the numbers of tokens that are read in each call."""

    name: str
    seed: int
    calls: list[int]
    config: dict
    scale: Scale
    dtype: mx.Dtype = mx.float32
    batch: int = 1
    tied: bool = False  # for models of mlx-lm whose config cannot say it
    quantize: dict | None = None
    per_layer: dict[str, dict | bool] = field(default_factory=dict)  # other quantizations of some layers
    shard_bytes: int | None = None
    from_seed: bool = False  # write `weights.json` instead of tensors, see `seeded_weights.py`
    extra_weights: Callable[[dict[str, mx.array]], dict[str, mx.array]] = lambda _: {}
    description: dict = field(default_factory=dict)  # more keys of `case.json`
    store: Callable[[Path], None] | None = None  # writes the checkpoint in another form before mlx-lm reads it
    # Added to the checkpoint after mlx-lm has read it, because mlx-lm would refuse or misread it.
    hidden_weights: Callable[[], dict[str, mx.array]] = dict
    hidden_config: Callable[[dict], dict] | None = None


def matrix(values: np.ndarray, gain: float) -> np.ndarray:
    """A matrix whose products with inputs of about 1 are about `gain`."""
    return gain * values / np.sqrt(values.shape[-1])


def new_model(case: Case) -> nn.Module:
    """mlx-lm's model with random weights."""
    model_class, args_class = mlx_lm.utils._get_classes(case.config)
    model = model_class(args_class.from_dict(json.loads(json.dumps(case.config))))  # a copy, because mlx-lm changes it
    if case.tied and hasattr(model, "sanitize"):
        model.sanitize({"language_model": {"": mx.zeros(1)}} if hasattr(model, "language_model") else {})
    if case.from_seed:
        model.set_dtype(case.dtype)
        tensors = (like(case, name, weight) for name, weight in tree_flatten(model.parameters()))
        model.load_weights([(tensor.name, seeded(tensor, case.seed)) for tensor in tensors])
        return model
    rng = np.random.default_rng(case.seed)
    weights = []
    for name, weight in sorted(tree_flatten(model.parameters())):
        values = case.scale(name, rng.standard_normal(weight.shape, dtype=np.float32))
        weights.append((name, mx.array(values).astype(case.dtype)))
    model.load_weights(weights)
    return model


def like(case: Case, name: str, array: mx.array) -> Tensor:
    """The entry of this array in `weights.json`."""
    return tensor_like(name, array.shape, DTYPES[array.dtype], case.scale)


def seeded(tensor: Tensor, seed: int) -> mx.array:
    array = mx.array(stored(tensor, seed))
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array


def replace_weights(case: Case, folder: Path) -> None:
    """Replaces the files with tensors by `weights.json`, after a check that both have the same numbers."""
    files = {}
    for file in sorted(folder.glob("model*.safetensors")):
        arrays = mx.load(str(file))
        files[file.name] = [like(case, name, array) for name, array in sorted(arrays.items())]
        for tensor in files[file.name]:
            if not mx.array_equal(arrays[tensor.name], seeded(tensor, case.seed)).item():
                raise SystemExit(f"{case.name}: {tensor.name} is not what its seed gives")
        del arrays
        file.unlink()
    write_weights(folder / "weights.json", case.seed, files)


def shards_below(limit: int) -> Callable[[dict], list[dict]]:
    """Does what mlx-lm's `make_shards` does, with a limit in bytes instead of gigabytes."""

    def make_shards(weights: dict) -> list[dict]:
        shards, size = [], 0
        for name, weight in weights.items():
            if not shards or size + weight.nbytes > limit:
                shards.append({})
                size = 0
            shards[-1][name] = weight
            size += weight.nbytes
        return shards

    return make_shards


def save_checkpoint(case: Case, folder: Path) -> None:
    """Writes config and weights with mlx-lm's own functions."""
    model, config = new_model(case), dict(case.config)
    if case.quantize:
        predicate = (lambda path, _: case.per_layer.get(path, True)) if case.per_layer else None
        with contextlib.redirect_stdout(sys.stderr):
            model, config = mlx_lm.utils.quantize_model(model, config, **case.quantize, quant_predicate=predicate)
    mlx_lm.utils.save_config(config, folder / "config.json")
    if case.shard_bytes:
        with mock.patch.object(mlx_lm.utils, "make_shards", shards_below(case.shard_bytes)):
            mlx_lm.utils.save_model(folder, model)
        return
    mlx_lm.utils.save_model(folder, model)
    (folder / "model.safetensors.index.json").unlink()  # not needed for a single file
    if extra := case.extra_weights(dict(tree_flatten(model.parameters()))):
        if case.from_seed:
            extra = {name: seeded(like(case, name, array), case.seed) for name, array in extra.items()}
        save_weights(model, extra, folder)


def save_weights(model: nn.Module, extra: dict[str, mx.array], folder: Path) -> None:
    """Writes the weights as mlx-lm does, and some more tensors."""
    weights = dict(tree_flatten(model.parameters())) | extra
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def logits_by_calls(model: nn.Module, tokens: mx.array, calls: list[int]) -> mx.array:
    """The logits of `tokens`, read in these calls with one cache."""
    cache = make_prompt_cache(model)
    logits, start = [], 0
    for length in calls:
        logits.append(model(tokens[:, start : start + length], cache=cache))
        mx.eval(logits[-1])
        start += length
    return mx.concatenate(logits, axis=1)


def greedy_tokens(model: nn.Module, prompt: mx.array, name: str) -> list[int]:
    """Greedy tokens of mlx-lm. Ends the program if they do not pass the checks."""
    tokens = []
    for token, logprobs in generate_step(prompt, model, max_tokens=GREEDY_LENGTH):
        tokens.append(token)
        second, first = sorted(mx.topk(logprobs.astype(mx.float32), 2).tolist())
        if first - second < SMALLEST_MARGIN:
            raise SystemExit(f"{name}: token {len(tokens)} leads by {first - second:.3f} only; choose another seed")
    if len(set(tokens)) < FEWEST_DISTINCT:
        raise SystemExit(f"{name}: only {len(set(tokens))} distinct tokens; choose another seed")
    return tokens


def reference(case: Case, model: nn.Module) -> dict[str, mx.array]:
    """The tensors of `reference.safetensors`: random tokens and mlx-lm's results for them."""
    rng = np.random.default_rng([case.seed, 1])
    vocab_size = (case.config.get("text_config", {}) | case.config)["vocab_size"]
    tokens = mx.array(rng.integers(0, vocab_size, (case.batch, sum(case.calls)), dtype=np.int32))
    prompt = mx.array(rng.integers(0, vocab_size, PROMPT_LENGTH, dtype=np.int32))
    return {
        "tokens": tokens,
        "logits": logits_by_calls(model, tokens, case.calls),
        "greedy_prompt": prompt,
        "greedy_tokens": mx.array(greedy_tokens(model, prompt, case.name), dtype=mx.int32),
    }


def make_case(case: Case, made_by: str, folder: Path) -> None:
    """Writes the folder of one case."""
    folder.mkdir()
    save_checkpoint(case, folder)
    if case.store:
        case.store(folder)
    model, _ = mlx_lm.utils.load_model(folder)
    mx.save_safetensors(str(folder / "reference.safetensors"), reference(case, model))
    if hidden := case.hidden_weights():
        save_weights(model, hidden, folder)
    if case.from_seed:
        replace_weights(case, folder)
    if case.hidden_config:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        mlx_lm.utils.save_config(case.hidden_config(written), folder / "config.json")
    write_description(folder, case.name, "model", made_by, seed=case.seed, calls=case.calls, **case.description)


def first_good_seed(case: Case, made_by: str) -> int | None:
    """A seed with greedy tokens that pass the checks: the seed of the case if they do, or another one."""
    for seed in [case.seed, *range(1, 200)]:
        with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(SystemExit):
            make_case(replace(case, seed=seed), made_by, Path(scratch) / case.name)
            return seed
    return None


def run(description: str | None, cases: list[Case], made_by: str) -> int:
    """The main function of such a script. Returns the exit status."""
    parser = argument_parser(description)
    parser.add_argument("--seeds", action="store_true", help="print a good seed for each case, write nothing")
    args = parser.parse_args()
    demand_own_blas(parser)
    if args.seeds:
        for case in cases:
            if args.filter in case.name:
                print(f"{case.name}: {first_good_seed(case, made_by)}", flush=True)
        return 0
    return finish_cases(cases, lambda case, folder: make_case(case, made_by, folder), args)
