"""Asks mlx-lm for greedy tokens and logits, for `cargo xtask real`. `real_llama_cpp.py` describes requests and answers;
`model` is a checkpoint folder, and there are no `pieces`.

Why: our program with stock MLX must give the same bits.

How to run: `cargo xtask real` runs it.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
from mlx_lm.generate import generate_step


def main() -> None:
    request = json.load(sys.stdin)
    model, _ = mlx_lm.utils.load_model(Path(request["model"]))
    answer = {"version": f"mlx-lm {version('mlx-lm')} on MLX {mx.__version__}", "tokens": [], "nll": []}
    rows = []
    for prompt in request["prompts"]:
        rows.append(np.array(model(mx.array(prompt)[None])[0, -1].astype(mx.float32)))
        steps = generate_step(mx.array(prompt), model, max_tokens=request["generate"])
        answer["tokens"].append([int(token) for token, _ in steps])
    if "logits" in request:
        np.array(rows, np.float32).tofile(request["logits"])
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
