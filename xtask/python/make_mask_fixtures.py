"""Makes the fixture of `mlx-attn-masks`: masks of mlx-lm.

What: `causal_masks.json`, one case per line: the arguments of mlx-lm's `create_causal_mask`, the shape of the mask, and
its rows as strings of 0 and 1, with 1 where the query sees the key.

Why: `cargo test -p mlx-attn-masks` requires the same shapes and entries from this project's masks.

How to run, from the repository root:

    python xtask/python/make_mask_fixtures.py

Nothing is random and all numbers are integers, so the result is the same on every machine.
"""

import itertools
import json
import sys
from importlib.metadata import version

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask
from parity_cases import argument_parser, finish

FILE = "crates/mlx-attn-masks/tests/fixtures/causal_masks.json"
BLOCKS = [(1, 0), (1, 4), (2, 0), (3, 2), (5, 0), (4, 9)]  # number of queries, number of keys before them
WINDOWS = [None, 1, 2, 3, 5, 13, 100]
# Left and right padding of each row, as a share of the keys. One row has nothing but padding.
PADDINGS = [(None, None), ([0, 0], None), ([0, 0.3, 1], None), (None, [0.6, 0, 1]), ([0, 0.4, 0.5], [0, 0.2, 0.5])]


def make_case(queries: int, offset: int, window: int | None, left: list | None, right: list | None) -> dict:
    keys = offset + queries
    left, right = ([int(part * keys) for part in side] if side else None for side in (left, right))
    mask = create_causal_mask(
        queries,
        offset,
        window_size=window,
        left_padding=mx.array(left) if left else None,
        right_padding=mx.array(right) if right else None,
    )
    assert mask.dtype == mx.bool_
    rows = mask.reshape(-1, keys).astype(mx.int32).tolist()
    numbers = {"queries": queries, "offset": offset, "window": window, "left": left, "right": right}
    return numbers | {"shape": list(mask.shape), "visible": ["".join(map(str, row)) for row in rows]}


def make_text() -> str:
    head = {
        "oracle": f"mlx-lm {version('mlx-lm')}",
        "mlx": version("mlx"),
        "made_by": "xtask/python/make_mask_fixtures.py",
    }
    cases = [
        make_case(queries, offset, window, left, right)
        for (queries, offset), window, (left, right) in itertools.product(BLOCKS, WINDOWS, PADDINGS)
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    return json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n'


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    text = make_text()
    return finish({FILE: lambda path: path.write_text(text, encoding="utf-8")}, args)


if __name__ == "__main__":
    sys.exit(main())
