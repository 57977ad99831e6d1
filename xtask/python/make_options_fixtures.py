"""Makes the list of options of mlx-lm's programs, for the table in `docs/generation.md`.

What: `mlx_lm_options.json` has the names of all options of each program.

Why: `cargo test -p mlx-models-cli` requires that the table lists all of them, and that our options in the table exist.

How to run, from the repository root:

    python xtask/python/make_options_fixtures.py

The script has no random numbers.
"""

import argparse
import importlib
import json
import sys
from unittest import mock

from parity_cases import argument_parser, finish, origin

FILE = "crates/mlx-models-cli/tests/fixtures/mlx_lm_options.json"
PROGRAMS = ("generate", "chat", "cache_prompt", "convert", "perplexity", "benchmark", "fuse")


class Parsed(Exception):
    """Raised instead of running the program."""


def options(program: str) -> list[list[str]]:
    """The names of each option of a program, taken from the parser in its `main`."""
    parsers = []

    def parse_args(parser, *_args, **_keys):
        parsers.append(parser)
        raise Parsed

    module = importlib.import_module(f"mlx_lm.{program}")
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        try:
            module.main()
        except Parsed:
            pass
    (parser,) = parsers
    return [action.option_strings for action in parser._actions if action.option_strings != ["-h", "--help"]]


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    programs = {program: options(program) for program in PROGRAMS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(names)}" for name, names in programs.items())
    head = json.dumps(origin("xtask/python/make_options_fixtures.py"))[:-1]
    text = head + ', "programs": {\n' + lines + "\n}}\n"
    return finish({FILE: lambda path: path.write_text(text, encoding="utf-8")}, args)


if __name__ == "__main__":
    sys.exit(main())
