"""What the scripts have in common that make parity cases with transformers, in float32.

A case is a folder with a checkpoint of seeded random weights as transformers saves it, and the logits that transformers
computes in passes over all tokens, without a cache. `greedy_tokens` come from such passes, too; the best logit must lead by
a margin at each step. A case is made from its own `config.json`, read back from the folder, after a script has rewritten it.

The same bytes come out on the same build of PyTorch and the same family of processors.
"""

import json
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from parity_cases import argument_parser, finish_cases, write_description
from safetensors.numpy import save_file
from transformers import PreTrainedModel
from transformers.utils import logging

PROMPT_LENGTH, GREEDY_LENGTH = 9, 16
SMALLEST_MARGIN, FEWEST_DISTINCT = 0.1, 8
CLOSE = (2e-4, 2e-4)


def save_checkpoint(
    model: PreTrainedModel,
    seed: int,
    scale: Callable[[str, np.ndarray], np.ndarray],
    rewrite: Callable[[dict], dict],
    folder: Path,
    **keywords: object,
) -> None:
    """Gives the model random weights, scaled by their names, and writes it with transformers' own functions.

    `rewrite` makes the config that is written from that of transformers. `keywords` are for `save_pretrained`.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = rng.standard_normal(weight.shape, dtype=np.float32)
            weight.copy_(torch.from_numpy(np.float32(scale(name, values))))
    model.save_pretrained(folder, **keywords)
    (folder / "generation_config.json").unlink(missing_ok=True)  # holds nothing of its own
    file = folder / "config.json"
    config = rewrite(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def logits_of(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """One pass over all of `tokens`."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.numpy()


def logits_by_calls(model: PreTrainedModel, tokens: np.ndarray, calls: list[int]) -> np.ndarray:
    """The logits of each call, from one pass over everything up to its end."""
    logits, end = [], 0
    for length in calls:
        end += length
        logits.append(logits_of(model, tokens[:, :end])[:, end - length :])
    return np.concatenate(logits, axis=1)


def greedy_tokens(model: PreTrainedModel, prompt: np.ndarray, name: str) -> np.ndarray:
    """The greedy continuation, once it is known to be worth comparing."""
    tokens = prompt[None]
    for i in range(GREEDY_LENGTH):
        last = logits_of(model, tokens)[0, -1]
        second, first = np.sort(last)[-2:]
        if first - second < SMALLEST_MARGIN:
            raise SystemExit(f"{name}: token {i + 1} leads by {first - second:.3f} only; choose another seed")
        tokens = np.concatenate([tokens, [[last.argmax()]]], axis=1).astype(np.int32)
    new = tokens[0, len(prompt) :]
    if len(set(new.tolist())) < FEWEST_DISTINCT:
        raise SystemExit(f"{name}: only {len(set(new.tolist()))} distinct tokens; choose another seed")
    return new


def run(
    description: str | None,
    cases: Iterable,
    make_model: Callable[[object, Path], PreTrainedModel],
    made_by: str,
    *,
    vocab_size: int,
    pass_by_call: bool = False,
) -> int:
    """The whole of such a script. Returns the exit status.

    `make_model` writes a case's checkpoint and loads it again. With `pass_by_call` the logits of each call come from a
    pass of their own over everything up to its end, for models whose answers depend on the length; without, all come
    from one pass.
    """

    def make_case(case, folder: Path) -> None:
        torch.manual_seed(case.seed)
        model = make_model(case, folder).eval()
        rng = np.random.default_rng([case.seed, 1])
        tokens = rng.integers(0, vocab_size, (case.batch, sum(case.calls)), dtype=np.int32)
        prompt = rng.integers(0, vocab_size, PROMPT_LENGTH, dtype=np.int32)
        reference = {
            "tokens": tokens,
            "logits": logits_by_calls(model, tokens, case.calls if pass_by_call else [tokens.shape[1]]),
            "greedy_prompt": prompt,
            "greedy_tokens": greedy_tokens(model, prompt, case.name),
        }
        save_file(reference, folder / "reference.safetensors")
        oracle = f"transformers {version('transformers')}"
        write_description(
            folder, case.name, "model", made_by, oracle=oracle, close=CLOSE, seed=case.seed, calls=case.calls
        )

    args = argument_parser(description).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    return finish_cases(cases, make_case, args)
