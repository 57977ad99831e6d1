"""What the scripts that make references have in common: describing, writing and comparing what they made.

A script makes everything anew below an empty folder, its scratch, at the paths that it has in the source tree. Then the
results either replace what is there, folder by folder and file by file and each in one step, or are compared with it, byte
by byte. Nothing here imports MLX.

Without arguments a script writes all its fixtures. `--check` writes nothing and fails if any file differs by a byte;
`--filter TEXT` leaves out paths without TEXT; `--out TREE` writes into another tree. The same bytes come out on the same
build of the reference program and processor family.
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
    """Writes `case.json`; `keys` are those of the kind.

    The oracle is mlx-lm unless another is named, and the comparison is exact unless `close` says how far apart two
    elements may be: a part of the reference, and a number.
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
    """Where a file of mlx-lm's answers comes from: metadata for a safetensors file."""
    return {
        "oracle": f"mlx-lm {version('mlx-lm')}",
        **mlx_version(),
        "device": device(),
        "made_by": made_by,
    } | ({} if seed is None else {"seed": str(seed)})


def device() -> str:
    """On which the references hold, in the words of `case.json`."""
    return f"cpu-{platform.system().lower()}-{platform.machine()}"


def mlx_version() -> dict[str, str]:
    """Which MLX computed a reference; nothing where the oracle is another program, in an environment without MLX."""
    try:
        return {"mlx": version("mlx")}
    except PackageNotFoundError:
        return {}


def differences(new: Path, old: Path, path: str) -> list[str]:
    """What is at `path` in `new` and not in the same bytes in `old`, or only in `old`: paths of files."""
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
    """Puts a copy of `new`, a file or a folder, where `old` is or shall be, so that no half of it is ever there."""
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
    """What all scripts understand, below the first line of a script's description."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=ROOT, metavar="TREE", help="not this source tree, but one like it")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only fixtures whose path contains this")
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    return parser


def finish(made: dict[str, Callable[[Path], None]], args: argparse.Namespace) -> int:
    """Makes everything, each by its function at the path that it is given, and then writes or compares it all.

    `made` has a file or a folder for each path in the tree. Returns the exit status.
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
    """The same for parity cases, each with a `name`."""
    return finish({f"{CASES_FOLDER}/{case.name}": partial(make_case, case) for case in cases}, args)


def demand_own_blas(parser: argparse.ArgumentParser) -> None:
    """Ends the program where LD_PRELOAD puts another BLAS before MLX's."""
    if "LD_PRELOAD" in os.environ:
        parser.error("unset LD_PRELOAD: the references hold for MLX's own BLAS")
