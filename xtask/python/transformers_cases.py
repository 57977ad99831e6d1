"""Shared code of the scripts that make parity cases of models with transformers, in float32.

A case is a folder with a checkpoint of random weights from a seed, saved by transformers, and with transformers' logits and
greedy tokens, which it computes without a cache, in passes over all tokens. At each greedy step the largest logit must be
larger than the second by a margin. A script can change `config.json`; the results come from the model that transformers
then loads from the folder.

The bytes are the same for the same build of PyTorch and the same family of processors.
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
    """Gives the model random weights, scaled according to their names, and saves it with transformers.

    `rewrite` changes the config that transformers wrote. `keywords` are arguments of `save_pretrained`.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = rng.standard_normal(weight.shape, dtype=np.float32)
            weight.copy_(torch.from_numpy(np.float32(scale(name, values))))
    model.save_pretrained(folder, **keywords)
    (folder / "generation_config.json").unlink(missing_ok=True)  # repeats the config
    file = folder / "config.json"
    config = rewrite(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def logits_of(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """The logits of all tokens, from one pass."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.numpy()


def logits_by_calls(model: PreTrainedModel, tokens: np.ndarray, calls: list[int]) -> np.ndarray:
    """The logits of each call, from a pass over all tokens up to the end of the call."""
    logits, end = [], 0
    for length in calls:
        end += length
        logits.append(logits_of(model, tokens[:, :end])[:, end - length :])
    return np.concatenate(logits, axis=1)


def greedy_tokens(model: PreTrainedModel, prompt: np.ndarray, name: str) -> np.ndarray:
    """Greedy tokens after the prompt. Ends the program if they do not pass the checks."""
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
    """The main function of such a script. Returns the exit status.

    `make_model` writes the checkpoint of a case and loads it again. Normally all logits come from one pass. With
    `pass_by_call` the logits of each call come from a pass over all tokens up to its end, which is for models whose
    results depend on the length.
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
