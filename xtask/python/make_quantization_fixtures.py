"""Makes the fixture of `mlx-quantization`: matrices that MLX quantizes in each mode.

What: one safetensors file. A case has the name MODE_BITS_GROUP_DTYPE. Its tensors are the matrix `CASE.w`; its `packed`
numbers, `scales` and, in the affine mode, `biases`; `dequantized`; and the products `y` of `x` with the transposed matrix
and `y_t` of `x_t` with the matrix itself.

Why: `cargo test -p mlx-quantization` requires the same bits from this project's functions.

How to run, from the repository root:

    python xtask/python/make_quantization_fixtures.py

"""

import sys
from importlib.metadata import version

import mlx.core as mx
import numpy as np
from parity_cases import argument_parser, device, finish

FILE = "crates/mlx-quantization/tests/fixtures/modes.safetensors"
SEED = 11
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
MODES = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)] + [("affine", bits, 64) for bits in (2, 3, 4, 5, 6, 8)]
ROWS, COLUMNS, QUERIES = 6, 128, 3


def make_case(mode: str, bits: int, group_size: int, dtype: mx.Dtype, rng: np.random.Generator) -> dict[str, mx.array]:
    """The tensors of one case."""
    w = rng.standard_normal((ROWS, COLUMNS), dtype=np.float32)
    w[1], w[2] = 0, w[2] * 300  # a row of zeros, and a row of large numbers
    w = mx.array(w).astype(dtype)
    how = {"group_size": group_size, "bits": bits, "mode": mode}
    parts = mx.quantize(w, **how)
    x = mx.array(rng.standard_normal((2, QUERIES, COLUMNS), dtype=np.float32)).astype(dtype)
    x_t = mx.array(rng.standard_normal((2, QUERIES, ROWS), dtype=np.float32)).astype(dtype)
    return {
        "w": w,
        **dict(zip(("packed", "scales", "biases"), parts, strict=False)),
        "dequantized": mx.dequantize(*parts, **how),
        "x": x,
        "y": mx.quantized_matmul(x, *parts, transpose=True, **how),
        "x_t": x_t,
        "y_t": mx.quantized_matmul(x_t, *parts, transpose=False, **how),
    }


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    mx.set_default_device(mx.cpu)
    rng, tensors = np.random.default_rng(SEED), {}
    for mode, bits, group_size in MODES:
        for name, dtype in DTYPES.items():
            case = f"{mode}_{bits}_{group_size}_{name}"
            tensors |= {f"{case}.{key}": array for key, array in make_case(mode, bits, group_size, dtype, rng).items()}
    metadata = {
        "oracle": f"mlx {version('mlx')}",
        "device": device(),
        "made_by": "xtask/python/make_quantization_fixtures.py",
        "seed": str(SEED),
    }
    made = {FILE: lambda path: mx.save_safetensors(str(path), tensors, metadata=metadata)}
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
