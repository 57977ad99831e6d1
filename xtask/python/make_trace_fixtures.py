"""Makes traces for tests: mlx-lm's intermediate outputs for a few tokens, for each architecture.

What: the outputs of every layer, rotation, attention and block, as `trace_reference.py` writes them. There is one trace
for each architecture, made from a parity case with a checkpoint.

Why: `cargo test -p mlx-lab` requires that our models record the same outputs, with the same names and the same bits.

How to run, from the repository root:

    python xtask/python/make_trace_fixtures.py

"""

import sys
from functools import partial
from pathlib import Path

from parity_cases import CASES_FOLDER, ROOT, argument_parser, demand_own_blas, finish, origin
from trace_reference import mlx_lm_answer, save

FOLDER = "xtask/fixtures"
CASES = [
    "gemma2_q4_whole",
    "gemma3_bf16_whole",
    "granite_tied_q4",
    "lille_q4",
    "llama_q4_whole",
    "ministral3_q4_whole",
    "olmo2_q8_whole",
    "olmo3_bf16_whole",
    "phi3_bf16_whole",
    "qwen2_q8_whole",
    "qwen3_f32_whole",
    "smollm3_q8_whole",
]
TOKENS = [3, 14, 15, 9, 2]


def make_trace(case: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    answer = mlx_lm_answer(ROOT / CASES_FOLDER / case, TOKENS, count=1, at=0)
    save(file, answer, origin("xtask/python/make_trace_fixtures.py"))


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    return finish({f"{FOLDER}/trace_{case}.safetensors": partial(make_trace, case) for case in CASES}, args)


if __name__ == "__main__":
    sys.exit(main())
