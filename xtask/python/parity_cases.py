"""What the scripts that make references have in common: describing, writing and comparing what they made.

A script makes everything anew below an empty folder, its scratch. Then the results either replace what is there, folder
by folder and file by file and each in one step, or are compared with it, byte by byte. Nothing here imports MLX.
"""

import argparse
import filecmp
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


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
        "device": f"cpu-{platform.system().lower()}-{platform.machine()}",
        "made_by": made_by,
        **keys,
        "compare": {"mode": "close", "rtol": close[0], "atol": close[1]} if close else {"mode": "exact"},
    }
    (folder / "case.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def mlx_version() -> dict[str, str]:
    """Which MLX computed a reference; nothing where the oracle is another program, in an environment without MLX."""
    try:
        return {"mlx": version("mlx")}
    except PackageNotFoundError:
        return {}


def differences(new: Path, old: Path) -> list[str]:
    """The files below `new` that `old` does not hold in the same bytes, and those that only `old` holds."""
    if new.is_file():
        return [] if old.is_file() and filecmp.cmp(new, old, shallow=False) else [old.name]
    new_files = {path.relative_to(new) for path in new.rglob("*") if path.is_file()}
    old_files = {path.relative_to(old) for path in old.rglob("*") if path.is_file()}
    differing = new_files ^ old_files
    differing |= {path for path in new_files & old_files if not filecmp.cmp(new / path, old / path, shallow=False)}
    return sorted(str(Path(old.name) / path) for path in differing)


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
    """`--out` and `--check`, below the first line of a script's description."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="where the results belong")
    parser.add_argument("--check", action="store_true", help="compare with what is there, write nothing")
    return parser


def finish(made: dict[str, Callable[[Path], None]], places: dict[str, Path], check: bool) -> int:
    """Makes everything, each `name` by its function at the path it is given, and then writes or compares it all.

    `places` says where each name belongs. Returns the exit status.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, make in made.items():
            make(Path(scratch) / name)
        if check:
            differing = [path for name in made for path in differences(Path(scratch) / name, places[name])]
            print("\n".join(f"differs: {path}" for path in differing) or f"all {len(made)} are as they are made now")
            return 1 if differing else 0
        for name in made:
            replace(Path(scratch) / name, places[name])
    return 0


def demand_own_blas(parser: argparse.ArgumentParser) -> None:
    """Ends the program where LD_PRELOAD puts another BLAS before MLX's."""
    if "LD_PRELOAD" in os.environ:
        parser.error("unset LD_PRELOAD: the references hold for MLX's own BLAS")
