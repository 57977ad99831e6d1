"""Asks llama.cpp what `cargo xtask real` asks every program: greedy tokens, logits, and how well a text is predicted.

What: reads a request from standard input, one JSON object, and prints the answer, one JSON object.

| key of the request | meaning |
|---|---|
| `model` | the model: a GGUF file |
| `prompts` | lists of token ids |
| `generate` | how many greedy tokens follow each prompt |
| `logits` | the file that gets the logits after each prompt: float32, one row of the vocabulary for each |
| `pieces` | lists of token ids; all but the first of each are scored |

The answer has `version`, `tokens` (a list for each prompt) and `nll` (for each piece the sum of `-ln p` of its scored tokens).

Why: the same questions to llama.cpp, mlx-lm, transformers and this project show whether they answer alike.

How to run: `cargo xtask real` runs it.
"""

import json
import os
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from bench_llama_cpp import Run, say_nothing


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """The sum of `-ln p` of the target of each row of logits."""
    top = logits.max(axis=-1, keepdims=True)
    total = np.log(np.exp((logits - top).astype(np.float64)).sum(axis=-1)) + top[:, 0]
    return float((total - logits[np.arange(len(targets)), targets]).sum())


def score(run: Run, piece: list[int]) -> float:
    """Reads a piece in one batch and scores its tokens, except the first."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(run.context), True)
    batch = llama_cpp.llama_batch_init(len(piece), 0, 1)
    batch.n_tokens = len(piece)
    for i, token in enumerate(piece):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    status = llama_cpp.llama_decode(run.context, batch)
    if status != 0:
        raise SystemExit(f"llama_decode fails with {status}")
    total = 0.0
    # A few rows at a time, since a row is the whole vocabulary.
    all_logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(run.context), (len(piece), run.vocabulary))
    for start in range(0, len(piece) - 1, 64):
        rows = range(start, min(start + 64, len(piece) - 1))
        targets = np.array([piece[i + 1] for i in rows])
        total += negative_log_likelihood(all_logits[rows.start : rows.stop], targets)
    llama_cpp.llama_batch_free(batch)
    return total


def main() -> None:
    request = json.load(sys.stdin)
    prompts, pieces, count = request.get("prompts", []), request.get("pieces", []), request.get("generate", 0)
    llama_cpp.llama_log_set(say_nothing, None)
    llama_cpp.llama_backend_init()
    longest = max(len(tokens) for tokens in prompts + pieces)
    run = Run(Path(request["model"]), longest + count, max(512, longest), len(os.sched_getaffinity(0)), "auto")
    answer = {"version": f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", "tokens": [], "nll": []}
    rows = []
    for prompt in prompts:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(run.context), True)
        run.next_token(prompt)
        rows.append(run.logits().copy())
        answer["tokens"].append(run.generate(prompt, count)[0] if count else [])
    if "logits" in request:
        np.array(rows, np.float32).tofile(request["logits"])
    answer["nll"] = [score(run, piece) for piece in pieces]
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
