"""Makes the parity cases of Phi-3 models: tiny checkpoints with what mlx-lm computes from them.

What: folders as `make_cases.py` makes them for Lille models: a checkpoint of seeded random weights, the tokens fed, the
logits that mlx-lm's model class answers through its own cache, and a greedy continuation. The five kinds of weights are
each read in one call, in pieces and token by token. In the cases of LongRoPE the sequence grows beyond the original
length; `"longrope": "mlx-lm"` in `case.json` asks the runner for mlx-lm's rule, the long factors always.

Why: `cargo xtask parity` runs these folders and demands the same bits from this project's models. What mlx-lm leaves out
(the short factors, sliding windows) is in the cases of `make_phi3_transformers.py`.

How to run, from the repository root:

    python xtask/python/make_phi3_cases.py --out xtask/cases

`--check` compares, as in `make_cases.py`. mlx-lm asks for a `long_factor` in every `rope_scaling`, where a linear one
has no use for it: it is given one, and the `config.json` that is written has it no more.
"""

import contextlib
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
import numpy as np
from make_cases import PROMPT_LENGTH, greedy_tokens, logits_by_calls
from mlx.utils import tree_flatten
from parity_cases import argument_parser, demand_own_blas, finish, write_description

CONFIG = {
    "model_type": "phi3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.25, 1.5],
        "long_factor": [1.0, 2.0, 4.5, 7.0],
    },
}
# The older name of the same thing, over three quarters of each head.
SU = {
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "su", "short_factor": [1.0, 1.2, 1.4], "long_factor": [1.5, 3.0, 8.0]},
}
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 80}
LINEAR = {"rope_scaling": {"type": "linear", "factor": 4.0, "long_factor": []}}

WEIGHTS = {
    "f32": {},
    "bf16": {"dtype": mx.bfloat16},
    "f16": {"dtype": mx.float16},
    "q4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32}},
    "q8": {"dtype": mx.bfloat16, "quantize": {"bits": 8, "group_size": 32}},
    "mxfp4": {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32, "mode": "mxfp4"}},
}
CUTS = {"whole": [18], "pieces": [7, 1, 1, 6, 3], "single": [1] * 12}


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
    rotary_keys: bool = False
    without: tuple[str, ...] = ()  # keys that have defaults


# In the order of `CUTS`. Each gives a greedy continuation that is worth comparing.
SEEDS = {
    "f32": [9, 9, 7],
    "bf16": [6, 1, 7],
    "f16": [9, 9, 7],
    "q4": [1, 2, 2],
    "q8": [3, 4, 2],
    "mxfp4": [1, 8, 5],
}
CASES = [
    Case(f"phi3_{weights}_{cut}", seed=seed, calls=calls, batch=2 if cut == "pieces" else 1, **WEIGHTS[weights])
    for weights, seeds in SEEDS.items()
    for (cut, calls), seed in zip(CUTS.items(), seeds, strict=True)
] + [
    Case("phi3_mha", seed=6, calls=[11, 1, 1], config={"num_key_value_heads": None}),
    Case("phi3_tied", seed=11, calls=[8, 1, 3], config={"tie_word_embeddings": True}),
    Case("phi3_tied_q4", seed=42, calls=[8, 1, 3], config={"tie_word_embeddings": True}, **WEIGHTS["q4"]),
    Case("phi3_linear", seed=22, calls=[12, 1, 1, 20], config=LINEAR),
    Case("phi3_partial", seed=15, calls=[10, 1, 4], config={"partial_rotary_factor": 0.5, "rope_theta": 500.0}),
    Case("phi3_interleaved", seed=6, calls=[10, 1, 4], config={"rope_traditional": True}),
    Case("phi3_default_base", seed=22, calls=[10, 1, 4], config=SMALL, without=("rope_theta",)),
    Case("phi3_rotary_keys", seed=4, calls=[6, 1, 1], rotary_keys=True),
    Case("phi3_longrope_mlx_lm", seed=2, calls=[9, 1, 1, 10, 1], config=LONGROPE),
    Case("phi3_longrope_mlx_lm_bf16", seed=3, calls=[9, 1, 1, 10, 1], config=LONGROPE, dtype=mx.bfloat16),
    Case("phi3_su_partial_mlx_lm", seed=11, calls=[20, 1, 3], config=SU),
    Case("phi3_su_partial_mlx_lm_f16", seed=9, calls=[20, 1, 3], config=SU, dtype=mx.float16),
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
        elif "embed_tokens" in name:
            values = 0.4 * values  # may give the logits too: small, or each token would predict itself
        else:
            values = (4.0 if "lm_head" in name else 1.8) * values / np.sqrt(weight.shape[-1])
        weights.append((name, mx.array(values).astype(dtype)))
    model.load_weights(weights)
    return model


def make_case(case: Case, folder: Path) -> None:
    """Writes the whole folder of one case."""
    folder.mkdir()
    config = {key: value for key, value in (CONFIG | case.config).items() if key not in case.without}
    model = new_model(config, case.seed, case.dtype)
    if case.quantize:
        with contextlib.redirect_stdout(sys.stderr):
            model, config = mlx_lm.utils.quantize_model(model, config, **case.quantize)
    mlx_lm.utils.save_config(dict(config), folder / "config.json")
    mlx_lm.utils.save_model(folder, model)
    (folder / "model.safetensors.index.json").unlink()  # says nothing where there is one file

    rng = np.random.default_rng([case.seed, 1])
    model, _ = mlx_lm.utils.load_model(folder)
    tokens = mx.array(rng.integers(0, config["vocab_size"], (case.batch, sum(case.calls)), dtype=np.int32))
    prompt = mx.array(rng.integers(0, config["vocab_size"], PROMPT_LENGTH, dtype=np.int32))
    reference = {
        "tokens": tokens,
        "logits": logits_by_calls(model, tokens, case.calls),
        "greedy_prompt": prompt,
        "greedy_tokens": mx.array(greedy_tokens(model, prompt, case.name), dtype=mx.int32),
    }
    mx.save_safetensors(str(folder / "reference.safetensors"), reference)

    if case.rotary_keys:  # which mlx-lm's loader refuses
        frequencies = mx.array([1.0, 0.1, 0.01, 0.001])
        keys = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies for i in range(2)}
        weights = dict(tree_flatten(model.parameters())) | keys
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    if case.config is LINEAR:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del written["rope_scaling"]["long_factor"]
        mlx_lm.utils.save_config(written, folder / "config.json")
    always_long = {"longrope": "mlx-lm"} if "original_max_position_embeddings" in case.config else {}
    write_description(
        folder,
        case.name,
        "model",
        "xtask/python/make_phi3_cases.py",
        seed=case.seed,
        calls=case.calls,
        **always_long,
    )


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    made = {case.name: partial(make_case, case) for case in CASES}
    return finish(made, {name: args.out / name for name in made}, args.check)


if __name__ == "__main__":
    sys.exit(main())
