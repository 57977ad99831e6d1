"""Makes the second reference of rotary embeddings: the frequencies that transformers computes, as one JSON file.

What: each entry has the `rope_parameters` of a config of transformers 5, with the sizes that they need, and the results of
transformers: `inv_freq`, the angle per position of each pair of features, as the exact values of its float32 numbers, and
`attention_factor`, the factor of the cosines and sines.

Why: transformers has features that mlx-lm does not: `attention_factor`, `truncate`, the short factors of LongRoPE.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_rope_transformers.py

On another family of processors the last bit of a frequency may differ.

`ROPE_INIT_FUNCTIONS` has no entry for `default`, since each model has its own function. The script uses Phi-3's, because
it reads `partial_rotary_factor` like the functions in the table. Llama's does not.
"""

import copy
import json
import math
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from parity_cases import argument_parser, finish
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.utils import logging

FILE = "crates/mlx-rope/tests/fixtures/transformers.json"


@dataclass(frozen=True)
class Entry:
    """One entry of the file. `partial_rotary_factor` is added to `parameters`, where transformers reads it."""

    name: str
    parameters: dict
    head_dim: int = 32
    max_position_embeddings: int = 131_072
    seq_len: int | None = None
    partial_rotary_factor: float | None = None


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768}
# The settings of gpt-oss.
YARN_EXACT_RANGE = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
# The settings of DeepSeek-V3.
YARN_MSCALE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8, 2.0],
    "long_factor": [1.08, 1.11, 1.14, 1.34, 1.59, 2.0, 3.12, 6.59, 14.05, 32.32, 48.56, 64.12],
}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1000000.0}

ENTRIES = [
    Entry("default", DEFAULT),
    Entry("default, partial", DEFAULT, partial_rotary_factor=0.75),
    Entry("linear", LINEAR),
    Entry("linear, partial", LINEAR, partial_rotary_factor=0.5),
    Entry("dynamic, no length", DYNAMIC, max_position_embeddings=2048),
    Entry("dynamic, below", DYNAMIC, max_position_embeddings=2048, seq_len=100),
    Entry("dynamic, at", DYNAMIC, max_position_embeddings=2048, seq_len=2048),
    Entry("dynamic, just beyond", DYNAMIC, max_position_embeddings=2048, seq_len=2049),
    Entry("dynamic, far beyond", DYNAMIC, max_position_embeddings=2048, seq_len=50_000),
    Entry("dynamic, partial", DYNAMIC, max_position_embeddings=2048, seq_len=8192, partial_rotary_factor=0.5),
    Entry("llama3", LLAMA_3, head_dim=128),
    Entry("llama3, partial", LLAMA_3 | {"factor": 32.0}, head_dim=64, partial_rotary_factor=0.5),
    Entry("yarn", YARN, head_dim=64),
    Entry("yarn, partial", YARN, head_dim=64, partial_rotary_factor=0.25),
    Entry("yarn, attention_factor", YARN | {"attention_factor": 1.25}),
    Entry("yarn, attention_factor before mscale", YARN_MSCALE | {"attention_factor": 0.5}),
    Entry("yarn, betas", YARN | {"beta_fast": 24.0, "beta_slow": 2.0}),
    Entry("yarn, mscale pair", YARN_MSCALE, head_dim=64, max_position_embeddings=163_840),
    Entry("yarn, mscale pair that differs", YARN_MSCALE | {"mscale": 1.25, "mscale_all_dim": 0.5}),
    Entry("yarn, mscale alone", YARN | {"mscale": 0.5}),
    Entry("yarn, mscale_all_dim alone", YARN | {"mscale_all_dim": 0.5}),
    Entry("yarn, mscale_all_dim null", YARN | {"mscale": 0.5, "mscale_all_dim": None}),
    Entry("yarn, mscale_all_dim zero", YARN | {"mscale": 0.5, "mscale_all_dim": 0.0}),
    Entry("yarn, truncate false", YARN_EXACT_RANGE, head_dim=64),
    Entry("yarn, truncate true", YARN_EXACT_RANGE | {"truncate": True}, head_dim=64),
    Entry("yarn, factor null", YARN | {"factor": None, "original_max_position_embeddings": 8192}),
    Entry("yarn, factor one", YARN | {"factor": 1.0}),
    Entry("longrope, no length", LONGROPE, partial_rotary_factor=0.75),
    Entry("longrope, short", LONGROPE, seq_len=4096, partial_rotary_factor=0.75),
    Entry("longrope, long", LONGROPE, seq_len=4097, partial_rotary_factor=0.75),
    Entry("longrope, whole head", LONGROPE, head_dim=24, seq_len=100_000),
    Entry("longrope, factor", LONGROPE | {"factor": 8.0}, head_dim=24, seq_len=100_000),
    Entry("longrope, attention_factor", LONGROPE | {"attention_factor": 1.5}, head_dim=24, seq_len=10),
    Entry("longrope, not longer", LONGROPE, head_dim=24, max_position_embeddings=4096, seq_len=10),
    Entry("proportional", PROPORTIONAL, partial_rotary_factor=0.25),
    Entry("proportional, factor", PROPORTIONAL | {"factor": 8.0}, partial_rotary_factor=0.5),
    Entry("proportional, whole head", PROPORTIONAL),
    # 0.3 of 32 features are 9.6: four pairs rotate, and in mlx-lm five.
    Entry("proportional, no whole number", PROPORTIONAL, partial_rotary_factor=0.3),
]


def row(entry: Entry) -> dict:
    """The settings of an entry, and the results of transformers."""
    parameters = dict(entry.parameters)
    if entry.partial_rotary_factor is not None:
        parameters["partial_rotary_factor"] = entry.partial_rotary_factor
    config = LlamaConfig(
        hidden_size=2 * entry.head_dim,
        num_attention_heads=2,
        head_dim=entry.head_dim,
        max_position_embeddings=entry.max_position_embeddings,
        rope_parameters=copy.deepcopy(parameters),  # a copy, because transformers changes it
    )
    functions = ROPE_INIT_FUNCTIONS | {"default": Phi3RotaryEmbedding.compute_default_rope_parameters}
    initialize = functions[parameters["rope_type"]]
    inv_freq, attention_factor = initialize(config, torch.device("cpu"), seq_len=entry.seq_len)
    if inv_freq.dtype != torch.float32 or not inv_freq.isfinite().all() or not math.isfinite(attention_factor):
        raise SystemExit(f"{entry.name}: {inv_freq.dtype}, or numbers that are not finite")
    return {
        "name": entry.name,
        "rope_parameters": parameters,
        "head_dim": entry.head_dim,
        "max_position_embeddings": entry.max_position_embeddings,
        "seq_len": entry.seq_len,
        "partial_rotary_factor": entry.partial_rotary_factor,
        "inv_freq": inv_freq.tolist(),
        "attention_factor": float(attention_factor),
    }


def make_file(file: Path) -> None:
    """Writes the file, with one entry per line."""
    rows = ",\n".join(json.dumps(row(entry)) for entry in ENTRIES)
    versions = f'"transformers": "{version("transformers")}",\n"torch": "{version("torch")}"'
    file.write_text(
        f'{{\n"made_by": "xtask/python/make_rope_transformers.py",\n{versions},\n"entries": [\n{rows}\n]\n}}\n',
        encoding="utf-8",
    )


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # some entries have unusual settings, for which transformers prints warnings
    return finish({FILE: make_file}, args)


if __name__ == "__main__":
    sys.exit(main())
