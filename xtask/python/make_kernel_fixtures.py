"""Makes the fixtures of `mlx-cpu`: the results of MLX's own CPU device for the operations that have kernels.

What: one safetensors file for each operation. `CASE.expected` is the result, `CASE.x` and similar names are the inputs.
Numbers that are arguments are tensors with one element.

Why: `cargo test -p mlx-cpu` requires the same bits, or numbers that differ by no more than another order of sums explains.

How to run, from the repository root:

    python xtask/python/make_kernel_fixtures.py

"""

import math
import sys

import mlx.core as mx
import numpy as np
from parity_cases import argument_parser, finish, origin

FOLDER = "crates/mlx-cpu/tests/fixtures"
SEED = 11
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
INF, NAN = float("inf"), float("nan")
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-7,
    -1e-7,
    1e-3,
    11.1,
    -11.1,
    30.0,
    -30.0,
    88.0,
    -88.1,
    200.0,
    -200.0,
    INF,
    -INF,
    NAN,
]
# exp(x) is a power of two with an exponent half way between two integers.
EDGES += [k * math.log(2) for k in [0.5, 2.5, -4.5, 6.5, -8.5, 20.5]]


def number(x: float) -> mx.array:
    """An argument, as a tensor."""
    return mx.array([x], mx.int32 if isinstance(x, int) else mx.float32)


def normal(rng: np.random.Generator, *shape: int, dtype: mx.Dtype, scale: float = 1.0) -> mx.array:
    """Normally distributed random numbers."""
    return mx.array(rng.standard_normal(shape, dtype=np.float32) * scale).astype(dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """The operations that `mlx.nn.gelu_approx` compiles."""
    cube = mx.power(x, 3)
    share = mx.tanh((x + cube * 0.044715) * math.sqrt(2 / math.pi)) + 1
    return (x * 0.5) * share


def gates() -> dict[str, mx.array]:
    """Activation functions of special and random numbers, and gates."""
    rng, tensors = np.random.default_rng(SEED), {}
    values = np.concatenate([np.array(EDGES, np.float32), rng.standard_normal(45, dtype=np.float32) * 4])
    for name, dtype in DTYPES.items():
        x = mx.array(values).astype(dtype)
        up = normal(rng, len(values), dtype=dtype)
        tensors |= {
            f"{name}.x": x,
            f"{name}.up": up,
            f"{name}.silu": x * mx.sigmoid(x),
            f"{name}.swiglu": mx.multiply(mx.multiply(x, mx.sigmoid(x)), up),
            f"{name}.gelu_tanh": gelu_tanh(x),
            f"{name}.geglu": gelu_tanh(x) * up,
        }
    return tensors


def norms() -> dict[str, mx.array]:
    """Norms of rows with one number, with a few, and with those of a head, with and without a weight."""
    rng, tensors = np.random.default_rng(SEED), {}
    for name, dtype in DTYPES.items():
        for size in [1, 5, 64]:
            x, weight = normal(rng, 3, size, dtype=dtype, scale=3), normal(rng, size, dtype=dtype)
            for eps in [1e-6, 1e-2]:
                case = f"{name}_{size}_{eps}"
                tensors |= {f"{case}.x": x, f"{case}.weight": weight, f"{case}.eps": number(eps)}
                tensors[f"{case}.expected"] = mx.fast.rms_norm(x, weight, eps)
                tensors[f"{case}.plain"] = mx.fast.rms_norm(x, None, eps)
    return tensors


def ropes() -> dict[str, mx.array]:
    """Rotations: both layouts, whole and partial heads, near and far positions, frequencies from a base and given."""
    rng, tensors = np.random.default_rng(SEED), {}
    for name, dtype in DTYPES.items():
        for i, (shape, dims, base, scale, offsets) in enumerate(
            [
                ((1, 2, 3, 8), 8, 10000.0, 1.0, [0]),
                ((2, 1, 2, 12), 6, 1e6, 0.125, [5, 131071]),
                ((2, 2, 1, 16), 16, 500000.0, 1.0, [1000003]),
                ((2, 1, 1, 40), 38, None, 1.0, [7, 20000000]),
            ]
        ):
            x = normal(rng, *shape, dtype=dtype)
            periods = mx.array(np.geomspace(1, 3e5, dims // 2).astype(np.float32)) if base is None else None
            for traditional in [False, True]:
                case = f"{name}_{i}_{int(traditional)}"
                offset = mx.array(offsets, mx.int32)
                arguments = {"dims": dims, "traditional": int(traditional), "scale": scale}
                tensors |= {f"{case}.{key}": number(value) for key, value in arguments.items()}
                tensors |= {f"{case}.x": x, f"{case}.offsets": offset}
                tensors |= {f"{case}.base": number(base)} if periods is None else {f"{case}.periods": periods}
                tensors[f"{case}.expected"] = mx.fast.rope(
                    x,
                    dims,
                    traditional=traditional,
                    base=base,
                    scale=scale,
                    offset=offset if len(offsets) > 1 else offsets[0],
                    freqs=periods,
                )
    return tensors


def softcapped(
    q: mx.array, k: mx.array, v: mx.array, scale: float, cap: float, mask: mx.array | None
) -> mx.array:
    """The operations of attention in mlx-lm's `gemma2.py`."""
    repeats = q.shape[1] // k.shape[1]
    q = (q * scale).reshape(q.shape[0], -1, repeats, *q.shape[2:])
    k, v = mx.expand_dims(k, 2), mx.expand_dims(v, 2)
    scores = mx.tanh((q @ k.swapaxes(-1, -2)) / cap)
    scores *= cap
    if mask is not None and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.array(mx.finfo(scores.dtype).min, scores.dtype))
    elif mask is not None:
        scores = scores + mask.reshape(*scores.shape[:2], repeats, *scores.shape[3:])
    out = mx.softmax(scores, precise=True, axis=-1) @ v
    return out.reshape(out.shape[0], -1, *out.shape[3:])


def attentions() -> dict[str, mx.array]:
    """Attention: each kind of mask, with and without sinks, soft-capped, heads that share keys, rows that see nothing."""
    rng, tensors = np.random.default_rng(SEED), {}
    for name, dtype in DTYPES.items():
        for i, (heads, groups, length, keys, size, out_size) in enumerate(
            [(2, 2, 1, 5, 8, 8), (4, 2, 3, 9, 16, 8), (4, 1, 7, 7, 8, 12), (2, 1, 5, 3, 4, 4), (3, 3, 33, 40, 8, 4)]
        ):
            q = normal(rng, 1, heads, length, size, dtype=dtype, scale=2)
            k = normal(rng, 1, groups, keys, size, dtype=dtype)
            v = normal(rng, 1, groups, keys, out_size, dtype=dtype)
            sinks = normal(rng, heads, dtype=dtype)
            seen = rng.random((length, keys)) < 0.6
            seen[0] = False
            masks = {
                "none": None,
                "causal": "causal",
                "bool": mx.array(seen),
                "added": normal(rng, 1, heads, length, keys, dtype=dtype),
            }
            inputs = {"q": q, "k": k, "v": v, "sinks": sinks, "seen": masks["bool"], "addend": masks["added"]}
            tensors |= {f"{name}_{i}.{key}": value for key, value in inputs.items()}
            tensors |= {f"{name}_{i}.scale": number(0.3), f"{name}_{i}.cap": number(2.3)}
            past = mx.arange(keys - length, keys)[:, None] >= mx.arange(keys)
            for kind, mask in masks.items():
                for with_sinks in [False, True]:
                    tensors[f"{name}_{i}.{kind}{'_sinks' * with_sinks}"] = mx.fast.scaled_dot_product_attention(
                        q, k, v, scale=0.3, mask=mask, sinks=sinks if with_sinks else None
                    )
                array = past if kind == "causal" else mask
                tensors[f"{name}_{i}.{kind}_capped"] = softcapped(q, k, v, 0.3, 2.3, array)
    return tensors


def softmaxes() -> dict[str, mx.array]:
    """Softmax, log-sum-exp and argmax of ordinary rows, rows with ties, and rows with infinities and NaN."""
    rng, tensors = np.random.default_rng(SEED), {}
    rows = {
        "plain": rng.standard_normal((3, 21), dtype=np.float32) * 5,
        "one": np.array([[3.0], [-INF], [NAN]], np.float32),
        "edges": np.array(
            [[1, 2, 2, -INF], [-INF] * 4, [1, INF, 2, INF], [1, NAN, 5, 2], [NAN, 1, 2, 3], [90, 1, -90, 0]]
        ),
    }
    for name, dtype in DTYPES.items():
        for kind, values in rows.items():
            x = mx.array(values.astype(np.float32)).astype(dtype)
            tensors |= {
                f"{name}_{kind}.x": x,
                f"{name}_{kind}.softmax": mx.softmax(x, axis=-1, precise=True),
                f"{name}_{kind}.logsumexp": mx.logsumexp(x, axis=-1),
                f"{name}_{kind}.argmax": mx.argmax(x, axis=-1),
            }
    return tensors


def lookups() -> dict[str, mx.array]:
    """Rows that are read from a quantized table."""
    rng, tensors = np.random.default_rng(SEED), {}
    ids = mx.array([4, 0, 4, 2], mx.uint32)
    for name, dtype in DTYPES.items():
        for bits in [2, 3, 4, 5, 6, 8]:
            for group in [32, 64]:
                table = normal(rng, 5, 128, dtype=dtype)
                w, scales, biases = mx.quantize(table, group_size=group, bits=bits)
                case = f"{name}_{bits}_{group}"
                tensors |= {f"{case}.w": w, f"{case}.scales": scales, f"{case}.biases": biases, f"{case}.ids": ids}
                tensors |= {f"{case}.bits": number(bits), f"{case}.group": number(group)}
                tensors[f"{case}.expected"] = mx.dequantize(
                    w[ids], scales=scales[ids], biases=biases[ids], group_size=group, bits=bits
                )
    return tensors


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    mx.set_default_device(mx.cpu)

    metadata = origin("xtask/python/make_kernel_fixtures.py", SEED)
    files = {
        "gates.safetensors": gates(),
        "norms.safetensors": norms(),
        "ropes.safetensors": ropes(),
        "attentions.safetensors": attentions(),
        "softmaxes.safetensors": softmaxes(),
        "lookups.safetensors": lookups(),
    }
    made = {
        f"{FOLDER}/{name}": lambda path, tensors=tensors: mx.save_safetensors(str(path), tensors, metadata=metadata)
        for name, tensors in files.items()
    }
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
