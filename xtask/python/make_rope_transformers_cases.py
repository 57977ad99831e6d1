"""Makes the parity cases of rotary embeddings with transformers, for features that mlx-lm does not have.

What: each case is a folder with `reference.safetensors`, which has the inputs `x.0`, `x.1`, ... and the outputs `y.0`, ...,
and with `case.json`. transformers computes the angles per position and the attention factor for the length of each row, in
float32. The script computes the rotation from them in float64.

Why: mlx-lm lacks the short factors of LongRoPE, YaRN's `truncate`, separate attention factors for LongRoPE's two lists
(except in one model), and dynamic scaling with one offset for each row. So it cannot be the reference for a batch in
which some rows are longer than the original length and some are not.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_rope_transformers_cases.py

"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from parity_cases import argument_parser, finish_cases, write_description
from safetensors.numpy import save_file
from transformers import LlamaConfig, PhimoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding
from transformers.utils import logging

HEADS = 2
# The original length is 64. Calls end at it, cross it, or begin beyond it. In two calls the rows differ in this.
OFFSETS = [(0, 1, 6), (58, 1, 6), (59, 2, 6), (150, 1, 3), ([3, 58, 59], 3, 6), ([64, 0, 63, 150], 4, 1)]

LONGROPE = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4],
    "long_factor": [1.08, 1.34, 1.59, 2.0, 3.12, 6.59, 14.05, 32.32],
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 1.0}


@dataclass(frozen=True)
class Case:
    """One folder to make."""

    name: str
    seed: int
    scaling: dict
    max_position_embeddings: int = 512
    dims: int = 16
    base: float = 10000.0
    offsets: list[tuple[int | list[int], int, int]] = field(default_factory=lambda: OFFSETS)


CASES = [
    Case("rope_transformers_longrope", 1, LONGROPE),
    Case("rope_transformers_longrope_mscale", 3, LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}),
    Case("rope_transformers_dynamic", 4, {"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=64),
    Case("rope_transformers_yarn_not_truncated", 5, YARN | {"truncate": False}),
]


def angles(case: Case, length: int) -> tuple[np.ndarray, float]:
    """The angles per position in transformers for a sequence of this length, and the factor of cosines and sines."""
    parameters = copy.deepcopy(case.scaling) | {"rope_theta": case.base}  # a copy, because transformers changes it
    keywords = {
        "hidden_size": 2 * case.dims,
        "num_attention_heads": 2,
        "max_position_embeddings": case.max_position_embeddings,
        "rope_parameters": parameters,
    }
    initialize: Callable = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    if "long_mscale" in parameters:
        # In transformers, only Phi's mixture of experts has separate attention factors for the two lists.
        rope = PhimoeRotaryEmbedding(PhimoeConfig(**keywords))
        cosines, _ = rope(torch.zeros(1), torch.tensor([[0, length - 1]]))  # at position 0 the cosine is 1, times the factor
        inv_freq, _ = initialize(rope.config, torch.device("cpu"), length)
        return inv_freq.double().numpy(), float(cosines[0, 0, 0])
    inv_freq, factor = initialize(LlamaConfig(head_dim=case.dims, **keywords), torch.device("cpu"), length)
    return inv_freq.double().numpy(), float(factor)


def rotated(case: Case, x: np.ndarray, offset: int) -> np.ndarray:
    """Rotates one row `[H, L, D]` whose first token has the position `offset`."""
    length = x.shape[1]
    inv_freq, factor = angles(case, offset + length)
    turns = (offset + np.arange(length))[:, None] * inv_freq  # [L, D / 2]
    cosines, sines = factor * np.cos(turns), factor * np.sin(turns)
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def make_case(case: Case, folder: Path) -> None:
    """Writes the folder of one case."""
    folder.mkdir()
    rng = np.random.default_rng(case.seed)
    reference = {}
    for i, (offset, batch, length) in enumerate(case.offsets):
        x = rng.standard_normal((batch, HEADS, length, case.dims), dtype=np.float32)
        rows = offset if isinstance(offset, list) else [offset] * batch
        y = np.stack([rotated(case, row, at) for row, at in zip(x, rows, strict=True)])
        reference |= {f"x.{i}": x, f"y.{i}": y.astype(np.float32)}
    save_file(reference, folder / "reference.safetensors")
    rope = {
        "dims": case.dims,
        "base": case.base,
        "traditional": False,
        "scaling": case.scaling,
        "max_position_embeddings": case.max_position_embeddings,
    }
    write_description(
        folder,
        case.name,
        "rope",
        "xtask/python/make_rope_transformers_cases.py",
        oracle=f"transformers {version('transformers')}",
        close=(1e-4, 1e-4),
        seed=case.seed,
        rope=rope,
        calls=[{"offset": offset} for offset, _, _ in case.offsets],
    )


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    return finish_cases(CASES, make_case, args)


if __name__ == "__main__":
    sys.exit(main())
