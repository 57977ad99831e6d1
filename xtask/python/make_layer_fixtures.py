"""Makes the fixtures of `mlx-layers`: inputs, and the outputs of mlx-lm's gates and of MLX's layers with a bias.

What: `gates.safetensors` has `CASE.gate`, `CASE.up` and `CASE.expected` for SwiGLU and GeGLU, as mlx-lm's models compute
them. The inputs are random numbers in float32, and every thirteenth bit pattern in float16 and bfloat16.
`biases.safetensors` has linear layers with a bias, plain and quantized: `CASE.x`, the layer's parameters, and
`CASE.expected`.

Why: `cargo test -p mlx-layers` requires the same bits from this project's functions and layers.

How to run, from the repository root:

    python xtask/python/make_layer_fixtures.py

"""

import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.activations import swiglu
from parity_cases import argument_parser, demand_own_blas, finish, origin

FOLDER = "crates/mlx-layers/tests/fixtures"
SEED, STRIDE = 3, 13  # an odd stride reaches every exponent and many different mantissas
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
GATES = {"swiglu": swiglu, "geglu": lambda gate, up: nn.gelu_approx(gate) * up}
INPUTS, OUTPUTS = 64, 24
QUANTIZATIONS = {"plain": None, "4": {"bits": 4}, "8": {"bits": 8}, "mxfp4": {"bits": 4, "mode": "mxfp4"}}
EDGES = [0.0, -0.0, 1e-30, -1e-30, 10.0, -10.0, 1e4, -1e4, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]


def gate_inputs(dtype: str, rng: np.random.Generator) -> mx.array:
    """Numbers from the whole range of this dtype."""
    if dtype == "f32":
        return mx.array(np.concatenate([rng.standard_normal(4000) * 4, EDGES]).astype(np.float32))
    bits = np.arange(0, 1 << 16, STRIDE, dtype=np.uint16)
    return mx.array(bits).view(DTYPES[dtype])


def gate_cases() -> dict[str, mx.array]:
    """SwiGLU and GeGLU in each dtype."""
    rng, tensors = np.random.default_rng(SEED), {}
    for dtype in DTYPES:
        gate = gate_inputs(dtype, rng)
        up = mx.array(rng.standard_normal(gate.shape, dtype=np.float32)).astype(DTYPES[dtype])
        for name, function in GATES.items():
            case = f"{name}_{dtype}"
            tensors |= {f"{case}.gate": gate, f"{case}.up": up, f"{case}.expected": function(gate, up)}
    return tensors


def bias_cases() -> dict[str, mx.array]:
    """Linear layers with a bias, for several tokens and for a single token."""
    rng, tensors = np.random.default_rng(SEED), {}

    def random(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, dtype=np.float32))

    for dtype in DTYPES:
        for kind, way in QUANTIZATIONS.items():
            for length in (1, 5):
                layer = nn.Linear(INPUTS, OUTPUTS)
                layer.weight, layer.bias = random(OUTPUTS, INPUTS), random(OUTPUTS)
                layer.set_dtype(DTYPES[dtype])
                if way:
                    layer = layer.to_quantized(group_size=32, **way)
                x = random(2, length, INPUTS).astype(DTYPES[dtype])
                case = f"{dtype}_{kind}_{length}"
                parameters = {f"{case}.{key}": value for key, value in tree_flatten(layer.parameters())}
                tensors |= {f"{case}.x": x, f"{case}.expected": layer(x)} | parameters
    return tensors


def write(tensors: dict[str, mx.array], file: Path) -> None:
    """Writes a safetensors file that says which program made it."""
    mx.save_safetensors(str(file), tensors, metadata=origin("xtask/python/make_layer_fixtures.py", SEED))


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    made = {
        f"{FOLDER}/gates.safetensors": lambda file: write(gate_cases(), file),
        f"{FOLDER}/biases.safetensors": lambda file: write(bias_cases(), file),
    }
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
