"""Makes the fixtures for the program's greedy text: 500 tokens of mlx-lm from each demo, unchanged and in 4 bits.

What: `greedy_500.json`, and `greedy_500_float32.json` for the same checkpoints after `convert --dtype float32`. One case
per line:

    bits     null for the unchanged checkpoint; 4 if mlx-lm's `convert` quantized it, in groups of 32
    prompt   the prompt
    tokens   500 ids from `generate_step`, which end-of-text tokens do not stop
    ties     at how many tokens two log-probabilities are equal and the largest: mlx-lm's `argmax` then takes the lower id,
             and the texts of a program that takes another one differ from there on
    near     places where the logits of several tokens are at most one step of their dtype below the largest, with these
             ids: another order of sums can change which of them is chosen

Why: `cargo test -p mlx-models-cli` requires the same ids from the program `mlx-models`: those of the first file on stock
MLX, those of the second with the kernels of `mlx-cpu`, which add in another order. With these kernels and unchanged
checkpoints, ids may differ from the first file after a place in `near`.

How to run, from the repository root:

    python xtask/python/make_greedy_fixtures.py

Nothing in it is random.
"""

import contextlib
import io
import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.convert import convert
from mlx_lm.generate import generate_step
from parity_cases import ROOT, argument_parser, demand_own_blas, finish, origin

FILES = {
    "crates/mlx-models-cli/tests/fixtures/greedy_500.json": None,
    "crates/mlx-models-cli/tests/fixtures/greedy_500_float32.json": "float32",
}
DEMOS = ROOT / "crates/mlx-models-cli/demo"
PROMPT, TOKENS = "Once upon a time", 500
# None: the checkpoint is unchanged, in bfloat16. Groups of 32, since Gemma 3's 224 features are no multiple of 64.
BITS, GROUP_SIZE = (None, 4), 32


def near_ids(logits: mx.array) -> list[int]:
    """The ids whose logits are at most one step of their dtype below the largest."""
    digits = {mx.bfloat16: 8, mx.float32: 24}[logits.dtype]
    logits = logits.reshape(-1).astype(mx.float32)
    largest = logits.max().item()
    step = 2.0 ** (math.frexp(largest)[1] - digits)
    return [index for index, near in enumerate((logits >= largest - step).tolist()) if near]


def generated(folder: Path) -> dict:
    """The tokens that mlx-lm generates from the checkpoint in `folder`, with `ties` and `near`."""
    model, tokenizer = load(str(folder))
    tokens, ties, logits = [], 0, []

    def keep(_: mx.array, found: mx.array) -> mx.array:
        logits.append(found)
        return found

    prompt = mx.array(tokenizer.encode(PROMPT))
    for token, logprobs in generate_step(prompt, model, max_tokens=TOKENS, logits_processors=[keep]):
        tokens.append(token)
        first = logprobs == logprobs.max()
        assert token == mx.argmax(first).item(), "argmax takes the lowest id"
        ties += first.sum().item() > 1
    # mlx-lm computes one step more than it returns.
    near = [[place, ids] for place, ids in enumerate(map(near_ids, logits[:TOKENS])) if len(ids) > 1]
    return {"ties": ties, "near": near, "tokens": tokens}


def case(demo: Path, bits: int | None, dtype: str | None) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        folder = demo
        if bits or dtype:
            folder = Path(scratch) / "converted"
            quantized = {"quantize": True, "q_bits": bits, "q_group_size": GROUP_SIZE} if bits else {}
            with contextlib.redirect_stdout(io.StringIO()):
                convert(str(demo), str(folder), dtype=dtype, **quantized)
        group_size = GROUP_SIZE if bits else None
        return {"demo": demo.name, "bits": bits, "group_size": group_size, "prompt": PROMPT} | generated(folder)


def make(file: Path, dtype: str | None) -> None:
    demos = sorted(config.parent for config in DEMOS.glob("*/config.json"))
    lines = [json.dumps(case(demo, bits, dtype)) for demo in demos for bits in BITS]
    head = json.dumps(origin("xtask/python/make_greedy_fixtures.py"))[:-1]
    file.write_text(head + ', "cases": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    return finish({file: partial(make, dtype=dtype) for file, dtype in FILES.items()}, args)


if __name__ == "__main__":
    sys.exit(main())
