"""Loads the checkpoints that this project's `convert` wrote with mlx-lm, and compares the logits.

What: for every case of `make_convert_fixtures.py`, mlx-lm's `convert` writes a checkpoint, and the test has written one
below the folder. mlx-lm computes logits with both, which must have the same bits.

Why: mlx-lm must be able to use the checkpoints that this project writes.

How to run, from the repository root, after `cargo test -p mlx-models --features architectures --test convert`:

    python xtask/python/load_converted.py target/tmp/converted
"""

import argparse
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from make_convert_fixtures import cases, convert_case
from mlx_lm.utils import load_model
from parity_cases import demand_own_blas

TOKENS = [[1, 5, 9, 2, 40, 17]]


def logits(folder: Path) -> mx.array:
    model, _ = load_model(folder)
    return model(mx.array(TOKENS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the test has written its checkpoints")
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    wrong, count = [], 0
    for name, (checkpoint, options) in cases().items():
        if not (args.folder / name).is_dir():
            wrong.append(f"{name}: not there")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            convert_case(checkpoint, options, Path(scratch) / "out")
            ours, theirs = logits(args.folder / name), logits(Path(scratch) / "out")
        count += 1
        if ours.dtype != theirs.dtype or not mx.array_equal(ours, theirs, equal_nan=True):
            wrong.append(f"{name}: other logits")
    print("\n".join(wrong) or f"all {count} have the same logits")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
