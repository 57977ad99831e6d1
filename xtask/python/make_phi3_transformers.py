"""Makes the parity cases of Phi-3 models with transformers, for features that mlx-lm does not have.

What: folders as `transformers_cases.py` describes them. The logits of each call come from one pass over all tokens up to
the end of the call. So the factors of LongRoPE change during a case, when the sequence becomes longer than the original
length. With `v4`, the config that transformers wrote (`rope_parameters`) is rewritten in the form of transformers 4
(`rope_theta`, `rope_scaling`).

Why: mlx-lm has neither the short factors of LongRoPE nor sliding windows, and ignores configs of transformers 5.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_phi3_transformers.py

transformers' Phi-3 refuses linear scaling although its rotary embedding supports it. The script switches this check off.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import Phi3Config, Phi3ForCausalLM
from transformers_cases import run, save_checkpoint

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
# Sequences below the original length, beyond it, and across it in calls of one and of several tokens.
SHORT, LONG, CROSSING = [9, 1, 1, 4], [20, 1, 6], [11, 1, 1, 1, 1, 1, 1, 1, 7]


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the numbers of tokens that are read in each call."""

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
    # The checkpoint has a separate head although its config says that it has none. transformers uses this head.
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


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights so that logits differ clearly and depend on the tokens before."""
    if values.ndim == 1:
        return 1 + 0.2 * values  # a norm
    if "embed_tokens" in name:
        return 0.4 * values  # may also be the head; with larger numbers each token would predict itself
    return (4.0 if "lm_head" in name else 1.8) * values / np.sqrt(values.shape[-1])


def as_v4(config: dict, name: str) -> dict:
    """The same config in the form of transformers 4, which calls the kind of scaling `name`."""
    rope = config.pop("rope_parameters")
    kind = rope.pop("rope_type")
    config["rope_theta"] = rope.pop("rope_theta")
    config["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
    rope.pop("original_max_position_embeddings", None)  # the config has this key outside of `rope_parameters` too
    config["rope_scaling"] = None if kind == "default" else {"type": name} | rope
    config["transformers_version"] = "4.41.2"
    return config


def make_model(case: Case, folder: Path) -> Phi3ForCausalLM:
    """Writes the checkpoint of a case, and loads it again."""
    others = [check for check in Phi3Config.__class_validators__ if check.__name__ != "validate_rope"]
    with mock.patch.object(Phi3Config, "__class_validators__", others):
        config = Phi3Config(**CONFIG | case.config, rope_parameters=dict(case.rope), dtype="float32")
        rewrite = (lambda config: as_v4(config, case.v4) | case.add) if case.v4 else dict
        save_checkpoint(Phi3ForCausalLM(config), case.seed, scale, rewrite, folder)
        return Phi3ForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)


if __name__ == "__main__":
    made_by = "xtask/python/make_phi3_transformers.py"
    sys.exit(run(__doc__, CASES, make_model, made_by, vocab_size=CONFIG["vocab_size"], pass_by_call=True))
