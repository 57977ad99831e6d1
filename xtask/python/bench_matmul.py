"""Measures OpenBLAS: the time of float32 products of square matrices in NumPy.

What: prints one line of JSON: `seconds` (a list, one number for each product) and `version`, which names the BLAS that
NumPy was built with. The first two products are a warm-up and are not counted.

Why: our matrix products should be as fast. `cargo xtask speed` shows both.

How to run, from the repository root:

    $(cargo xtask python) xtask/python/bench_matmul.py --size 1024 --products 10
"""

import argparse
import json
import sys
import time

import numpy as np

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", type=int, default=1024, metavar="N")
    parser.add_argument("--products", type=int, default=10, metavar="K")
    args = parser.parse_args()

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    random = np.random.default_rng(1)
    a, b = (random.standard_normal((args.size, args.size), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    seconds = []
    for _ in range(WARM_UP + args.products):
        began = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"seconds": seconds[WARM_UP:], "version": f"{blas['name']} {blas['version']}"}))


if __name__ == "__main__":
    sys.exit(main())
