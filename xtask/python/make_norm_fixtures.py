"""Makes the fixtures of `mlx-norms`: inputs and outputs of mlx-lm's norms and residual sum.

What: one safetensors file for each function. Its cases have the tensors `CASE.x`, `CASE.weight` or `CASE.y`, and
`CASE.expected`. The metadata has the versions of the programs and the value of `eps`.

Why: `cargo test -p mlx-norms` requires the same bits from this project's functions.

How to run, from the repository root:

    python xtask/python/make_norm_fixtures.py

"""

import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import gemma3_text
from parity_cases import argument_parser, finish, origin

FOLDER = "crates/mlx-norms/tests/fixtures"
SEED, EPS = 3, 1e-6
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
# The dtypes of the activations, and of the weight or the second summand.
PAIRS = [("f32", "f32"), ("bf16", "bf16"), ("f16", "f16"), ("bf16", "f32"), ("f16", "f32"), ("f32", "bf16")]
# Sizes of the last axis: one feature, an odd number, a head, a hidden size.
DIMS = [1, 7, 64, 640]
INF, NAN, LARGEST = float("inf"), float("nan"), 65504.0
SMALLEST = 2.0**-24  # the smallest float16 above zero
EDGES = [0.0, -0.0, 1.0, -1.0, SMALLEST, -SMALLEST, 15.99, 16.0, 2049.0, 60000.0, LARGEST, -LARGEST, INF, -INF, NAN]


def activations(rng: np.random.Generator, dim: int) -> np.ndarray:
    """Ordinary rows, a row of zeros, a row of very small and a row of very large numbers."""
    x = rng.standard_normal((2, 3, dim), dtype=np.float32) * 3
    x[0, 1], x[1, 0], x[1, 2] = 0, x[1, 0] * 1e-5, np.clip(x[1, 2] * 2e4, -6e4, 6e4)
    return x


def norm_cases(norm_class: type[nn.Module], center: float) -> dict[str, mx.array]:
    """Cases of a norm of mlx-lm or MLX, with random weights around `center`."""
    rng, tensors = np.random.default_rng(SEED), {}
    for dim in DIMS:
        x, weight = activations(rng, dim), center + rng.standard_normal(dim, dtype=np.float32) * 0.4
        for of_x, of_weight in PAIRS:
            norm = norm_class(dim, eps=EPS)
            norm.weight = mx.array(weight).astype(DTYPES[of_weight])
            case, inputs = f"{dim}_{of_x}_{of_weight}", mx.array(x).astype(DTYPES[of_x])
            tensors |= {f"{case}.x": inputs, f"{case}.weight": norm.weight, f"{case}.expected": norm(inputs)}
    return tensors


def residual_cases() -> dict[str, mx.array]:
    """Sums of ordinary values, of values that leave the range of float16, and of every pair of edge values."""
    rng = np.random.default_rng(SEED)
    inputs = {
        "ordinary": rng.standard_normal((2, 2, 3, 40), dtype=np.float32) * 50,
        "large": rng.uniform(-65504, 65504, (2, 2, 3, 40)).astype(np.float32),
        "edges": np.stack(np.meshgrid(EDGES, EDGES)).astype(np.float32),
    }
    tensors = {}
    for name, pair in inputs.items():
        for of_x, of_y in PAIRS:
            x, y = (mx.array(values).astype(DTYPES[dtype]) for values, dtype in zip(pair, (of_x, of_y), strict=True))
            case = f"{name}_{of_x}_{of_y}"
            expected = gemma3_text.clip_residual(x, y)
            tensors |= {f"{case}.x": x, f"{case}.y": y, f"{case}.expected": expected}
    return tensors


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    mx.set_default_device(mx.cpu)

    metadata = origin("xtask/python/make_norm_fixtures.py", SEED) | {"eps": str(EPS)}
    files = {
        "rms_norm.safetensors": norm_cases(nn.RMSNorm, 1.0),
        "offset_rms_norm.safetensors": norm_cases(gemma3_text.RMSNorm, 0.0),
        "clip_residual.safetensors": residual_cases(),
    }
    made = {
        f"{FOLDER}/{name}": lambda path, tensors=tensors: mx.save_safetensors(str(path), tensors, metadata=metadata)
        for name, tensors in files.items()
    }
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
