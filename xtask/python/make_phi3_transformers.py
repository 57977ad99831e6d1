"""Makes the parity cases of Phi-3 models against transformers, for what mlx-lm leaves out.

What: tiny float32 checkpoints as transformers saves them, and the logits that transformers answers: those of each call
are from one pass over everything up to the end of that call, without a cache. `greedy_tokens` come from such passes,
too, so that they cross the border of LongRoPE in the middle. A case is made from its own `config.json`, read back from
the folder: with `v4` the one that transformers wrote (`rope_parameters`) is rewritten in the older form (`rope_theta`,
`rope_scaling`) first.

Why: mlx-lm has neither the short factors of LongRoPE nor sliding windows, and ignores configs of the newer form.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_phi3_transformers.py --out xtask/cases

`--check` makes every case anew and fails if any file differs from the one in `--out` by a byte, which a processor of
another family may make it do.

transformers' Phi-3 refuses linear scaling, though its rotary embedding can do it: the refusal is switched off here.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from parity_cases import argument_parser, finish, write_description
from safetensors.numpy import save_file
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.utils import logging

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 96,
    "original_max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.25, 1.5],
    "long_factor": [1.0, 2.0, 4.5, 7.0],
}
PARTIAL = LONGROPE | {"short_factor": [1.0, 1.3], "long_factor": [1.5, 6.0], "partial_rotary_factor": 0.5}
WINDOW = {"sliding_window": 6}
# Up to the original length, from beyond it, and over it in a piece and token by token.
SHORT, LONG, CROSSING = [9, 1, 1, 4], [20, 1, 6], [11, 1, 1, 1, 1, 1, 1, 1, 7]
PROMPT_LENGTH, GREEDY_LENGTH = 9, 16
SMALLEST_MARGIN, FEWEST_DISTINCT = 0.1, 8


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the lengths of the calls that the tokens are fed in."""

    name: str
    seed: int
    calls: list[int]
    rope: dict = field(default_factory=lambda: dict(LONGROPE))
    config: dict = field(default_factory=dict)
    batch: int = 1
    v4: str | None = None
    add: dict = field(default_factory=dict)


CASES = [
    Case("hf_phi3_default", seed=1, calls=SHORT, rope={"rope_type": "default", "rope_theta": 10000.0}),
    Case("hf_phi3_default_v4", seed=9, calls=SHORT, rope={"rope_type": "default", "rope_theta": 5e5}, v4="default"),
    Case("hf_phi3_linear", seed=6, calls=LONG, rope={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
    Case("hf_phi3_longrope_short", seed=1, calls=SHORT),
    Case("hf_phi3_longrope_short_v4", seed=1, calls=SHORT, v4="longrope"),
    Case("hf_phi3_longrope_long", seed=1, calls=LONG),
    Case("hf_phi3_longrope_long_v4", seed=1, calls=LONG, v4="longrope"),
    Case("hf_phi3_longrope_crossing", seed=1, calls=CROSSING),
    Case("hf_phi3_longrope_crossing_v4", seed=1, calls=CROSSING, v4="longrope"),
    Case("hf_phi3_longrope_crossing_batch", seed=5, calls=CROSSING, batch=2),
    # The checkpoint has a head of its own, and the config was left as it was. transformers uses that head.
    Case("hf_phi3_su_v4", seed=1, calls=CROSSING, v4="su", add={"tie_word_embeddings": True}),
    Case("hf_phi3_longrope_partial", seed=1, calls=CROSSING, rope=PARTIAL),
    Case("hf_phi3_longrope_partial_v4", seed=1, calls=CROSSING, rope=PARTIAL, v4="longrope"),
    Case("hf_phi3_longrope_factor", seed=2, calls=CROSSING, rope=LONGROPE | {"factor": 8.0}),
    Case("hf_phi3_longrope_attention_factor", seed=2, calls=CROSSING, rope=LONGROPE | {"attention_factor": 1.4}),
    Case("hf_phi3_longrope_tied", seed=5, calls=CROSSING, config={"tie_word_embeddings": True}),
    Case("hf_phi3_head_dim", seed=3, calls=SHORT, config={"head_dim": 8, "hidden_size": 24}),
    Case("hf_phi3_window", seed=1, calls=[4, 1, 1, 1, 7, 1, 12], rope={"rope_type": "default"}, config=WINDOW),
    Case("hf_phi3_window_singles", seed=2, calls=[1] * 15, rope={"rope_type": "default"}, config=WINDOW),
    Case("hf_phi3_window_longrope", seed=1, calls=CROSSING, config=WINDOW),
    Case("hf_phi3_window_longrope_v4", seed=1, calls=CROSSING, config=WINDOW, v4="longrope", batch=2),
]


def save_checkpoint(case: Case, folder: Path) -> None:
    """Writes config and weights with transformers' own functions."""
    torch.manual_seed(case.seed)
    config = Phi3Config(**CONFIG | case.config, rope_parameters=dict(case.rope), dtype="float32")
    model = Phi3ForCausalLM(config)
    rng = np.random.default_rng(case.seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = rng.standard_normal(weight.shape, dtype=np.float32)
            if weight.ndim == 1:
                values = 1 + 0.2 * values  # a norm
            elif "embed_tokens" in name:
                values = 0.4 * values  # may give the logits too: small, or each token would predict itself
            else:
                values = (4.0 if "lm_head" in name else 1.8) * values / np.sqrt(weight.shape[-1])
            weight.copy_(torch.from_numpy(values))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # holds nothing of its own
    if case.v4:
        rewrite_as_v4(folder / "config.json", case.v4, case.add)


def rewrite_as_v4(file: Path, name: str, add: dict) -> None:
    """The same config in the form of transformers 4, with the kind of scaling under `name`, and with other keys."""
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.pop("rope_parameters")
    kind = rope.pop("rope_type")
    config["rope_theta"] = rope.pop("rope_theta")
    config["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    rope.pop("original_max_position_embeddings", None)  # stands outside as well
    config["rope_scaling"] = None if kind == "default" else {"type": name} | rope
    config["transformers_version"] = "4.41.2"
    file.write_text(json.dumps(config | add, indent=2) + "\n", encoding="utf-8")


def logits_of(model: Phi3ForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """One pass over all of `tokens`."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.numpy()


def logits_by_calls(model: Phi3ForCausalLM, tokens: np.ndarray, calls: list[int]) -> np.ndarray:
    """The logits of each call, from one pass over everything up to its end."""
    logits, end = [], 0
    for length in calls:
        end += length
        logits.append(logits_of(model, tokens[:, :end])[:, end - length :])
    return np.concatenate(logits, axis=1)


def greedy_tokens(model: Phi3ForCausalLM, prompt: np.ndarray, name: str) -> np.ndarray:
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


def make_case(case: Case, folder: Path) -> None:
    """Writes the whole folder of one case."""
    others = [check for check in Phi3Config.__class_validators__ if check.__name__ != "validate_rope"]
    with mock.patch.object(Phi3Config, "__class_validators__", others):
        save_checkpoint(case, folder)
        model = Phi3ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    rng = np.random.default_rng([case.seed, 1])
    tokens = rng.integers(0, CONFIG["vocab_size"], (case.batch, sum(case.calls)), dtype=np.int32)
    prompt = rng.integers(0, CONFIG["vocab_size"], PROMPT_LENGTH, dtype=np.int32)
    reference = {
        "tokens": tokens,
        "logits": np.ascontiguousarray(logits_by_calls(model, tokens, case.calls)),
        "greedy_prompt": prompt,
        "greedy_tokens": greedy_tokens(model, prompt, case.name),
    }
    save_file(reference, folder / "reference.safetensors")
    write_description(
        folder,
        case.name,
        "model",
        "xtask/python/make_phi3_transformers.py",
        oracle=f"transformers {version('transformers')}",
        close=(2e-4, 2e-4),
        seed=case.seed,
        calls=case.calls,
    )


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    made = {case.name: partial(make_case, case) for case in CASES}
    return finish(made, {name: args.out / name for name in made}, args.check)


if __name__ == "__main__":
    sys.exit(main())
