"""Shared code of all scripts that make fixtures: describes, writes and compares them.

A script makes all its fixtures in a temporary folder, with the paths that they have in the source tree. Then each file or
folder replaces the one in the source tree in one step, or is compared with it byte by byte. This module does not import
MLX.

Without arguments a script writes all its fixtures. `--check` writes nothing and fails if a file differs; `--filter TEXT`
makes only fixtures with TEXT in their path; `--out TREE` writes into another tree. The bytes are the same for the same
build of the reference program and the same family of processors.
"""

import argparse
import filecmp
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CASES_FOLDER = "xtask/cases"


def write_description(
    folder: Path,
    name: str,
    kind: str,
    made_by: str,
    *,
    oracle: str | None = None,
    close: tuple[float, float] | None = None,
    **keys: object,
) -> None:
    """Writes `case.json`. `keys` are the keys that only this kind of case has.

    `oracle` is the program that computed the reference; the default is mlx-lm. Results are compared exactly, or with the
    tolerance `close`: (relative, absolute).
    """
    description = {
        "name": name,
        "kind": kind,
        "oracle": oracle or f"mlx-lm {version('mlx-lm')}",
        **mlx_version(),
        "device": device(),
        "made_by": made_by,
        **keys,
        "compare": {"mode": "close", "rtol": close[0], "atol": close[1]} if close else {"mode": "exact"},
    }
    (folder / "case.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def origin(made_by: str, seed: int | None = None) -> dict[str, str]:
    """The origin of mlx-lm's results, as metadata of a safetensors file."""
    return {
        "oracle": f"mlx-lm {version('mlx-lm')}",
        **mlx_version(),
        "device": device(),
        "made_by": made_by,
    } | ({} if seed is None else {"seed": str(seed)})


def device() -> str:
    """The device for which the references are exact, as `case.json` names it."""
    return f"cpu-{platform.system().lower()}-{platform.machine()}"


def mlx_version() -> dict[str, str]:
    """The version of MLX, or nothing in an environment without MLX, whose references come from other programs."""
    try:
        return {"mlx": version("mlx")}
    except PackageNotFoundError:
        return {}


def differences(new: Path, old: Path, path: str) -> list[str]:
    """The files at `path`, or below it, that are only in one of the trees or differ. Returns their paths."""
    if (new / path).is_file():
        same = (old / path).is_file() and filecmp.cmp(new / path, old / path, shallow=False)
        return [] if same else [path]
    new_files, old_files = (
        {file.relative_to(tree).as_posix() for file in (tree / path).rglob("*") if file.is_file()}
        for tree in (new, old)
    )
    differing = new_files ^ old_files
    return sorted(
        differing | {file for file in new_files & old_files if not filecmp.cmp(new / file, old / file, shallow=False)}
    )


def replace(new: Path, old: Path) -> None:
    """Replaces `old`, a file or a folder that may not exist yet, by a copy of `new`, in one step."""
    old.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{old.name}-", dir=old.parent) as beside:
        copy = Path(beside) / "new"
        if new.is_file():
            shutil.copyfile(new, copy)
        else:
            shutil.copytree(new, copy)
            if old.exists():
                old.rename(Path(beside) / "old")
        os.replace(copy, old)


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all scripts. The first line of a script's description is shown in its help."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT, metavar="TREE", help="write into this tree instead of the source tree")
    parser.add_argument("--filter", default="", metavar="TEXT", help="make only fixtures whose path contains this text")
    parser.add_argument("--check", action="store_true", help="compare with the existing fixtures, write nothing")
    return parser


def finish(made: dict[str, Callable[[Path], None]], args: argparse.Namespace) -> int:
    """Makes fixtures in a temporary folder, and then writes or compares all of them.

    `made` has a function for each path in the tree, which makes a file or a folder. Returns the exit status.
    """
    made = {path: make for path, make in made.items() if args.filter in path}
    with tempfile.TemporaryDirectory() as scratch:
        for path, make in made.items():
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            make(Path(scratch) / path)
        if args.check:
            differing = [file for path in made for file in differences(Path(scratch), args.out, path)]
            print("\n".join(f"differs: {file}" for file in differing) or f"all {len(made)} are as they are made now")
            return 1 if differing else 0
        for path in made:
            replace(Path(scratch) / path, args.out / path)
    return 0


def finish_cases(cases: Iterable, make_case: Callable[[Any, Path], None], args: argparse.Namespace) -> int:
    """Makes parity cases and then does what `finish` does. A case has a `name`, the name of its folder."""
    return finish({f"{CASES_FOLDER}/{case.name}": partial(make_case, case) for case in cases}, args)


def demand_own_blas(parser: argparse.ArgumentParser) -> None:
    """Ends the program if LD_PRELOAD could replace the BLAS of MLX."""
    if "LD_PRELOAD" in os.environ:
        parser.error("unset LD_PRELOAD: the references hold for MLX's own BLAS")
