"""Makes the parity cases of rotary embeddings: random numbers, rotated by modules of mlx-lm's `initialize_rope`.

What: each case is a folder with `reference.safetensors`, which has the inputs `x.0`, `x.1`, ... and mlx-lm's outputs
`y.0`, ..., and `case.json`, which has the arguments of `initialize_rope` and the offset of each call. The calls of a case
use float32, bfloat16 and float16, one token and several, one offset for all rows and one for each row.

Why: `cargo xtask parity` runs these folders and requires the same bits from `mlx-rope`.

How to run, from the repository root:

    python xtask/python/make_rope_cases.py

The file `yarn_inverse.safetensors` is for a test of `mlx-rope` and not a parity case, because parity cases of the kind
`rope` have no inverse. It is mlx-lm's `YarnRoPE`, called with `inverse=True`. Its tensors have the same names, and its
metadata has the arguments and the offsets as JSON.

Two things are missing because mlx-lm 0.32.2 does not support them: `dynamic` with one offset for each row, and the name
`su`, which `initialize_rope` refuses. `longrope` has one layout only, because mlx-lm ignores `traditional` for it.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.rope_utils import initialize_rope
from parity_cases import CASES_FOLDER, argument_parser, demand_own_blas, finish, origin, write_description

HEADS = 2
INVERSE_FILE = "crates/mlx-rope/tests/fixtures/yarn_inverse.safetensors"
DTYPES = [mx.float32, mx.bfloat16, mx.float16]


@dataclass(frozen=True)
class Call:
    """One call: `batch` rows whose positions begin at `offset`, or at an offset of their own."""

    offset: int | list[int]
    batch: int
    length: int
    dtype: mx.Dtype


def calls(far: int, near: int = 5) -> list[Call]:
    """Calls at position 0, at a small offset, and at an offset beyond the context that models are trained for."""
    rows = [near + 6, 0, far]
    shapes = [(0, 1, 6), (near, 2, 3), (far, 3, 1), (rows, 3, 2), (rows, 3, 1)]
    return [Call(*shape, dtype) for shape, dtype in product(shapes, DTYPES)]


def scalar_calls(offsets: list[int], length: int = 4) -> list[Call]:
    """Calls with one offset for all rows: one row of several tokens, and three rows with its last token."""
    shapes = [shape for at in offsets for shape in ((at, 1, length), (at + length - 1, 3, 1))]
    return [Call(*shape, dtype) for shape, dtype in product(shapes, DTYPES)]


@dataclass(frozen=True)
class Case:
    """One folder to make. `dims` of the `head_dim` features rotate."""

    name: str
    seed: int
    calls: list[Call]
    scaling: dict | None
    dims: int = 32
    head_dim: int = 32
    base: float = 10000.0
    traditional: bool = False
    max_position_embeddings: int | None = None
    longrope: str | None = None

    def arguments(self) -> dict:
        """The arguments of `initialize_rope`, with their names in `case.json`."""
        return {
            "dims": self.dims,
            "base": self.base,
            "traditional": self.traditional,
            "scaling": self.scaling,
            "max_position_embeddings": self.max_position_embeddings,
        }


LLAMA_31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
YARN_MSCALE = {
    "type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 24,
    "beta_slow": 2,
    "mscale": 1.25,
    "mscale_all_dim": 0.5,
}
DEEPSEEK_V3 = {
    "type": "deepseek_yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
TELECHAT_3 = {
    "type": "telechat3-yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 8192,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
}
LONGROPE = {
    "type": "longrope",
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 2.0],
    "long_factor": [1.08, 1.11, 1.14, 1.34, 1.59, 2.0, 3.12, 6.59, 14.05, 32.32, 48.56, 64.12],
}

CASES = [
    Case("rope_default", 1, calls(far=100_000), None),
    Case("rope_default_interleaved", 2, calls(far=3000), {"rope_type": "default"}, 16, 24, traditional=True),
    Case("rope_linear", 3, calls(far=20_000), {"type": "linear", "factor": 8.0}, 24, base=1e6),
    Case("rope_linear_interleaved", 4, calls(far=20_000), {"rope_type": "linear", "factor": 3.0}, traditional=True),
    # The original length is 64: the calls at 60 end there, and the calls at 61 are the first beyond it.
    Case(
        "rope_dynamic",
        5,
        scalar_calls([0, 9, 60, 61, 5000]),
        {"type": "dynamic", "factor": 4.0},
        max_position_embeddings=64,
    ),
    Case(
        "rope_dynamic_interleaved",
        6,
        scalar_calls([0, 2044, 2045, 100_000]),
        {"rope_type": "dynamic", "factor": 2.5},
        16,
        24,
        traditional=True,
        max_position_embeddings=2048,
    ),
    Case("rope_llama3", 7, calls(far=100_000), LLAMA_31, 64, 64, 500_000.0, max_position_embeddings=131_072),
    Case(
        "rope_llama3_interleaved",
        8,
        calls(far=100_000),
        LLAMA_31 | {"factor": 32.0},
        24,
        base=500_000.0,
        traditional=True,
        max_position_embeddings=131_072,
    ),
    Case("rope_yarn", 9, calls(far=120_000), YARN, 64, 64, 1e6, max_position_embeddings=131_072),
    Case("rope_yarn_mscale", 10, calls(far=50_000), YARN_MSCALE, 24, max_position_embeddings=65_536),
    Case(
        "rope_yarn_mscale_interleaved",
        11,
        calls(far=50_000),
        YARN_MSCALE | {"mscale": 0.7},
        16,
        24,
        150_000.0,
        traditional=True,
    ),
    Case("rope_deepseek_yarn", 12, calls(far=150_000), DEEPSEEK_V3, 64, 64, 10_000.0, True, 163_840),
    Case("rope_telechat3_yarn", 13, calls(far=12_000), TELECHAT_3, base=1e6, max_position_embeddings=16_384),
    Case("rope_longrope", 14, calls(far=100_000), LONGROPE, 24, max_position_embeddings=131_072, longrope="mlx-lm"),
    Case(
        "rope_proportional",
        15,
        calls(far=100_000),
        {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        base=1e6,
    ),
    Case(
        "rope_proportional_interleaved",
        16,
        calls(far=100_000),
        {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 8.0},
        traditional=True,
    ),
    Case("rope_mrope", 17, calls(far=30_000), {"type": "mrope", "mrope_section": [4, 6, 6]}, base=1e6),
]
INVERSE = Case("yarn_inverse", 18, calls(far=50_000), YARN_MSCALE, 16, 24, traditional=True)


def answers(case: Case, **keywords: bool) -> dict[str, mx.array]:
    """The inputs and mlx-lm's outputs, call by call."""
    rope = initialize_rope(case.dims, case.base, case.traditional, case.scaling, case.max_position_embeddings)
    rng = np.random.default_rng(case.seed)
    tensors = {}
    for number, call in enumerate(case.calls):
        values = rng.standard_normal((call.batch, HEADS, call.length, case.head_dim), dtype=np.float32)
        x = mx.array(values).astype(call.dtype)
        offset = mx.array(call.offset, dtype=mx.int32) if isinstance(call.offset, list) else call.offset
        y = rope(x, offset, **keywords)
        if (y.dtype, y.shape) != (x.dtype, x.shape) or not mx.isfinite(y).all().item():
            raise SystemExit(f"{case.name}: call {number} gives {y.dtype} {y.shape}, or numbers that are not finite")
        tensors |= {f"x.{number}": x, f"y.{number}": y}
    return tensors


def make_case(case: Case, folder: Path) -> None:
    """Writes the folder of one case."""
    folder.mkdir()
    mx.save_safetensors(str(folder / "reference.safetensors"), answers(case))
    write_description(
        folder,
        case.name,
        "rope",
        "xtask/python/make_rope_cases.py",
        seed=case.seed,
        rope=case.arguments(),
        **({"longrope": case.longrope} if case.longrope else {}),
        calls=[{"offset": call.offset} for call in case.calls],
    )


def make_inverse(file: Path) -> None:
    """Writes the results of `YarnRoPE` with `inverse=True`."""
    metadata = {
        **origin("xtask/python/make_rope_cases.py", INVERSE.seed),
        "rope": json.dumps(INVERSE.arguments()),
        "calls": json.dumps([{"offset": call.offset} for call in INVERSE.calls]),
    }
    mx.save_safetensors(str(file), answers(INVERSE, inverse=True), metadata=metadata)


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    made = {f"{CASES_FOLDER}/{case.name}": partial(make_case, case) for case in CASES}
    return finish(made | {INVERSE_FILE: make_inverse}, args)


if __name__ == "__main__":
    sys.exit(main())
