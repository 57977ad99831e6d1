"""Makes the parity cases of Lille models: tiny checkpoints with what mlx-lm computes from them.

What: each case is a folder with an ordinary checkpoint of seeded random weights, saved by mlx-lm's own functions;
`reference.safetensors`, the tokens fed, the logits that mlx-lm's model class answers through its own cache, and a
greedy continuation by its `generate_step`; and `case.json`, which says how the runner feeds and compares them.

Why: `cargo xtask parity` runs these folders and demands the same bits from this project's models.

How to run, from the repository root:

    python xtask/python/make_cases.py --out xtask/cases

Existing folders of the same names are replaced, others stay. `--check` writes nothing: it makes every case anew and
fails if any file differs from the one in `--out` by a byte. The references hold for MLX's own BLAS, so the script
refuses to run where LD_PRELOAD puts another one before it.

Every greedy continuation is checked when it is made: it must not be a loop of a few tokens, and at each step the best
logit must lead by a margin, so that the tokens are the same on devices that round differently.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from parity_cases import argument_parser, demand_own_blas, finish, write_description

CONFIG = {
    "model_type": "lille-130m",
    "block_size": 128,
    "layer_norm_eps": 1e-5,
    "n_embd": 64,
    "n_head": 4,
    "n_kv_heads": 2,
    "n_layer": 2,
    "rope_theta": 10000.0,
    "vocab_size": 320,
    "tie_word_embeddings": True,
}
PROMPT_LENGTH, GREEDY_LENGTH = 9, 24
SMALLEST_MARGIN, FEWEST_DISTINCT = 0.1, 12
LAYER = "transformer.layers"


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the lengths of the calls that the tokens are fed in."""

    name: str
    seed: int
    calls: list[int]
    dtype: mx.Dtype = mx.float32
    batch: int = 1
    config: dict = field(default_factory=dict)
    quantize: dict | None = None
    per_layer: dict[str, dict | bool] = field(default_factory=dict)
    shard_bytes: int | None = None
    extra_weights: Callable[[], dict[str, mx.array]] = dict


def rotary_leftovers() -> dict[str, mx.array]:
    """Buffers that training code leaves in a checkpoint and that a loader has to drop."""
    head_dim = CONFIG["n_embd"] // CONFIG["n_head"]
    frequencies = CONFIG["rope_theta"] ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    return {
        f"{LAYER}.{layer}.attention.rotary_emb.inv_freq": mx.array(frequencies) for layer in range(CONFIG["n_layer"])
    } | {"transformer.rotary_emb.freqs_cis": mx.zeros((4, head_dim))}


CASES = [
    Case("lille_f32", seed=6, calls=[17, 1, 1, 5]),
    Case("lille_f32_mha", seed=2, calls=[20], config={"n_kv_heads": 4}),
    Case("lille_f32_rotary_keys", seed=5, calls=[6, 1, 1], extra_weights=rotary_leftovers),
    Case("lille_bf16", seed=3, calls=[5, 1, 7, 1, 1], dtype=mx.bfloat16, batch=2),
    Case("lille_bf16_sharded", seed=1, calls=[8, 8], dtype=mx.bfloat16, shard_bytes=100_000),
    Case("lille_f16", seed=8, calls=[7, 1, 1, 3], dtype=mx.float16),
    Case("lille_q4", seed=6, calls=[9, 1, 1, 6], dtype=mx.bfloat16, quantize={"bits": 4, "group_size": 64}),
    Case("lille_q8", seed=11, calls=[5, 1, 1, 3], dtype=mx.bfloat16, quantize={"bits": 8, "group_size": 32}),
    Case("lille_q3", seed=22, calls=[10, 1, 1], dtype=mx.bfloat16, quantize={"bits": 3, "group_size": 64}),
    Case(
        "lille_mxfp4",
        seed=42,
        calls=[9, 1, 1],
        dtype=mx.bfloat16,
        quantize={"bits": 4, "group_size": 32, "mode": "mxfp4"},
    ),
    Case(
        "lille_mxfp8_f16",
        seed=54,
        calls=[9, 1, 1],
        dtype=mx.float16,
        quantize={"bits": 8, "group_size": 32, "mode": "mxfp8"},
    ),
    Case(
        "lille_nvfp4_f32",
        seed=64,
        calls=[9, 1, 1],
        quantize={"bits": 4, "group_size": 16, "mode": "nvfp4"},
        per_layer={f"{LAYER}.0.attention.qkv_proj": {"bits": 5, "group_size": 32, "mode": "affine"}},
    ),
    Case(
        "lille_q4_mixed",
        seed=15,
        calls=[11, 1, 4],
        dtype=mx.bfloat16,
        quantize={"bits": 4, "group_size": 32},
        per_layer={
            "transformer.tok_embeddings": {"bits": 8, "group_size": 64, "mode": "affine"},
            f"{LAYER}.0.feed_forward.down_proj": {"bits": 8, "group_size": 32, "mode": "affine"},
            f"{LAYER}.1.attention.qkv_proj": {"bits": 8, "group_size": 64, "mode": "affine"},
            f"{LAYER}.1.attention.out_proj": False,
        },
    ),
]


def new_model(config: dict, seed: int, dtype: mx.Dtype) -> nn.Module:
    """mlx-lm's model with random weights, scaled so that logits differ clearly and depend on what came before."""
    model_class, args_class = mlx_lm.utils._get_classes(config)
    model = model_class(args_class.from_dict(config))
    rng = np.random.default_rng(seed)
    weights = []
    for name, weight in sorted(tree_flatten(model.parameters())):
        values = rng.standard_normal(weight.shape, dtype=np.float32)
        if weight.ndim == 1:
            values = 1 + 0.2 * values  # a norm
        elif "tok_embeddings" in name:
            values = 0.4 * values  # the same matrix gives the logits: small, or each token would predict itself
        else:
            values = 1.8 * values / np.sqrt(weight.shape[-1])
        weights.append((name, mx.array(values).astype(dtype)))
    model.load_weights(weights)
    return model


def shards_below(limit: int) -> Callable[[dict], list[dict]]:
    """Like mlx-lm's `make_shards`, whose limit counts in whole GiB, with a limit in bytes."""

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
    config = CONFIG | case.config
    model = new_model(config, case.seed, case.dtype)
    if case.quantize:
        with contextlib.redirect_stdout(sys.stderr):
            model, config = mlx_lm.utils.quantize_model(
                model,
                config,
                **case.quantize,
                quant_predicate=lambda path, _: case.per_layer.get(path, True),
            )
    mlx_lm.utils.save_config(config, folder / "config.json")
    if case.shard_bytes:
        with mock.patch.object(mlx_lm.utils, "make_shards", shards_below(case.shard_bytes)):
            mlx_lm.utils.save_model(folder, model)
        return
    mlx_lm.utils.save_model(folder, model)
    (folder / "model.safetensors.index.json").unlink()  # says nothing where there is one file
    if extra := case.extra_weights():
        weights = dict(tree_flatten(model.parameters())) | extra
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def logits_by_calls(model: nn.Module, tokens: mx.array, calls: list[int]) -> mx.array:
    """The logits of `tokens`, fed call by call through one fresh cache."""
    cache = make_prompt_cache(model)
    logits, start = [], 0
    for length in calls:
        logits.append(model(tokens[:, start : start + length], cache=cache))
        mx.eval(logits[-1])
        start += length
    return mx.concatenate(logits, axis=1)


def greedy_tokens(model: nn.Module, prompt: mx.array, name: str) -> list[int]:
    """mlx-lm's greedy continuation, once it is known to be worth comparing."""
    tokens = []
    for token, logprobs in generate_step(prompt, model, max_tokens=GREEDY_LENGTH):
        tokens.append(token)
        second, first = sorted(mx.topk(logprobs.astype(mx.float32), 2).tolist())
        if first - second < SMALLEST_MARGIN:
            raise SystemExit(f"{name}: token {len(tokens)} leads by {first - second:.3f} only; choose another seed")
    if len(set(tokens)) < FEWEST_DISTINCT:
        raise SystemExit(f"{name}: only {len(set(tokens))} distinct tokens; choose another seed")
    return tokens


def make_case(case: Case, folder: Path) -> None:
    """Writes the whole folder of one case."""
    folder.mkdir()
    save_checkpoint(case, folder)
    model, config = mlx_lm.utils.load_model(folder)
    rng = np.random.default_rng([case.seed, 1])
    tokens = mx.array(rng.integers(0, config["vocab_size"], (case.batch, sum(case.calls)), dtype=np.int32))
    prompt = mx.array(rng.integers(0, config["vocab_size"], PROMPT_LENGTH, dtype=np.int32))
    reference = {
        "tokens": tokens,
        "logits": logits_by_calls(model, tokens, case.calls),
        "greedy_prompt": prompt,
        "greedy_tokens": mx.array(greedy_tokens(model, prompt, case.name), dtype=mx.int32),
    }
    mx.save_safetensors(str(folder / "reference.safetensors"), reference)
    write_description(folder, case.name, "model", "xtask/python/make_cases.py", seed=case.seed, calls=case.calls)


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    made = {case.name: partial(make_case, case) for case in CASES}
    return finish(made, {name: args.out / name for name in made}, args.check)


if __name__ == "__main__":
    sys.exit(main())
