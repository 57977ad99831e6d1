"""Checks that mlx-lm reads adapters that other programs trained and saved, and computes the same logits with them.

What: the folder contains a checkpoint `base`, and for each test an adapter folder NAME and `NAME.logits.safetensors`.
mlx-lm loads the checkpoint with these adapters and reads the `tokens` of the file, int32 `[B, T]`, in one call. Its logits
must have the dtype, shape and bits of `logits` in the file. Prints a line for each test, then `N passed, N failed`. The
exit status is 0 if there is at least one test and all passed.

Why: mlx-lm and this project must be able to read each other's adapters. `cargo test -p mlx-lille-130m --test adapters`
writes such a folder.

How to run, from the repository root: `cargo xtask fixtures --verify-ours`, or for a folder

    python xtask/python/load_adapters.py target/tmp/adapters
"""

import argparse
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
from load_prompt_caches import difference
from mlx_lm.tuner.utils import load_adapters

LOGITS = ".logits.safetensors"


def adapted_model(folder: Path, adapters: Path) -> tuple[nn.Module, dict]:
    """The model with its adapters, as `mlx_lm.load` loads it, but without a tokenizer."""
    model, config = mlx_lm.utils.load_model(folder)
    model = load_adapters(model, str(adapters))
    model.eval()
    return model, config


def check(base: Path, adapters: Path, file: Path) -> str:
    """What is wrong with these adapters; empty if nothing is."""
    expected = mx.load(str(file))
    logits = adapted_model(base, adapters)[0](expected["tokens"])
    plain = mlx_lm.utils.load_model(base)[0](expected["tokens"])
    if not difference(plain, expected["logits"]):
        return "the adapters change nothing"
    return difference(logits, expected["logits"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    mx.set_default_device(mx.cpu)

    files = sorted(folder.glob(f"*{LOGITS}"))
    failed = 0
    for file in files:
        name = file.name.removesuffix(LOGITS)
        try:
            wrong = check(folder / "base", folder / name, file)
        except Exception as error:  # mlx-lm may raise anything for a folder that it does not understand
            wrong = f"{type(error).__name__}: {error}"
        failed += bool(wrong)
        print(f"{name}: {wrong or 'passed'}")
    print(f"{len(files) - failed} passed, {failed} failed")
    return 0 if files and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
