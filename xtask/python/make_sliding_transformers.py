"""Makes the parity cases of OLMo 3, Gemma 3 and Qwen 3 models against transformers, for what mlx-lm leaves out or raises on.

What: tiny float32 checkpoints as transformers saves them, and the logits that transformers answers in one pass over all
tokens, without a cache. `greedy_tokens` come from such passes, too. A case is made from its own `config.json`, read back
from the folder: with `v4` the one that transformers wrote (`rope_parameters`) is rewritten in the older form first
(`rope_theta`, `rope_scaling`, `rope_local_base_freq`), with `drop` keys are taken out of it.

Why: mlx-lm ignores a given `attention_factor`, `layer_types` of Gemma 3 and its global scaling in configs of the newer
form, and raises on such configs of OLMo 3 and on models whose layers are all of one kind. It ignores windows, biases
and a given `attention_factor` of Qwen 3, too.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_sliding_transformers.py --out xtask/cases

`--check` makes every case anew and fails if any file differs from the one in `--out` by a byte, which a processor of
another family may make it do.

The square root of Gemma's hidden sizes is a number that bfloat16 holds: transformers does not round the embedding scale
in a float32 model, and mlx-lm does.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from parity_cases import argument_parser, finish, write_description
from safetensors.numpy import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)
from transformers.utils import logging

FULL, SLIDING = "full_attention", "sliding_attention"
SHARED = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 80,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "sliding_window": 6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OLMO = SHARED | {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 4}
QWEN = SHARED | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "head_dim": 24,
    "use_sliding_window": True,
    "max_window_layers": 1,
}
GEMMA = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "head_dim": 8,
    "query_pre_attn_scalar": 12,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}
LINEAR_8 = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0}
GLOBAL = {"rope_type": "default", "rope_theta": 1000000.0}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 4,
}
PROMPT_LENGTH, GREEDY_LENGTH = 9, 16
SMALLEST_MARGIN, FEWEST_DISTINCT = 0.1, 8


@dataclass(frozen=True)
class Case:
    """One folder to make. `calls` are the lengths of the calls that the tokens are fed in."""

    name: str
    seed: int
    kind: str  # a key of `MODELS`
    rope: dict
    config: dict = field(default_factory=dict)
    calls: list[int] = field(default_factory=lambda: [4, 5, 1, 1, 8, 1, 3])
    batch: int = 1
    v4: bool = False
    drop: tuple[str, ...] = ()
    add: dict = field(default_factory=dict)


def olmo3(name: str, seed: int, full: dict, sliding: dict = PLAIN, **rest: object) -> Case:
    """An OLMo 3 with these rotations."""
    return Case(f"hf_olmo3_{name}", seed, "olmo3", {FULL: full, SLIDING: sliding}, **rest)


def qwen3(name: str, seed: int, rope: dict, **rest: object) -> Case:
    """A Qwen 3 whose layers all rotate in this way, with a window in those after the first."""
    return Case(f"hf_qwen3_{name}", seed, "qwen3", rope, **rest)


def gemma3(name: str, seed: int, full: dict = GLOBAL, kind: str = "gemma3_text", **rest: object) -> Case:
    """A Gemma 3 whose global layers rotate in this way."""
    return Case(f"hf_gemma3_{name}", seed, kind, {FULL: full, SLIDING: LOCAL}, **rest)


# The checkpoint has a head of its own, and the config was left as it was. transformers uses that head.
STALE_TIE = {"tie_word_embeddings": True}
IRREGULAR = [FULL, SLIDING, SLIDING, FULL, FULL, SLIDING]
CASES = [
    olmo3("yarn", 6, YARN),
    olmo3("yarn_batch", 3, YARN, batch=2, calls=[1] * 9 + [7, 1]),
    olmo3("yarn_v4", 6, YARN, v4=True),
    olmo3("yarn_attention_factor", 1, YARN | {"attention_factor": 1.5}),
    olmo3("yarn_attention_factor_v4", 1, YARN | {"attention_factor": 1.5}, v4=True),
    olmo3("two_bases", 4, PLAIN, PLAIN | {"rope_theta": 1000.0}, add=STALE_TIE),
    olmo3("all_sliding", 1, YARN, config={"layer_types": [SLIDING] * 4}),
    olmo3("all_full", 8, YARN, config={"layer_types": [FULL] * 4}, drop=("sliding_window",)),
    olmo3("fewer_layers", 1, PLAIN, config={"num_hidden_layers": 3}, v4=True, drop=("layer_types",)),
    olmo3("bias_tied", 4, YARN, config={"attention_bias": True, "tie_word_embeddings": True}),
    gemma3("linear8", 1, LINEAR_8),
    gemma3("linear8_v4", 1, LINEAR_8, v4=True),
    gemma3("pattern_v4", 14, config={"sliding_window_pattern": 3}, v4=True, drop=("layer_types",)),
    gemma3("fewer_layers", 1, LINEAR_8, config={"num_hidden_layers": 4}),
    gemma3("fewer_layers_v4", 1, config={"num_hidden_layers": 4}, v4=True, drop=("layer_types",)),
    gemma3("layer_types", 9, LINEAR_8, config={"layer_types": IRREGULAR}),
    # The pattern, 6, is left over from another model and says that only the last layer is global.
    gemma3("layer_types_v4", 18, config={"layer_types": IRREGULAR}, v4=True, add={"sliding_window_pattern": 6}),
    gemma3("all_global", 1, GLOBAL, config={"layer_types": [FULL] * 6, "tie_word_embeddings": False}, drop=("sliding_window",)),
    gemma3("softcap", 1, config={"final_logit_softcapping": 12.0}, batch=2),
    gemma3("bias_untied", 1, config={"attention_bias": True, "tie_word_embeddings": False}, add=STALE_TIE),
    gemma3("multimodal", 1, LINEAR_8, kind="gemma3"),
    gemma3("multimodal_inner_keys", 1, LINEAR_8, kind="gemma3 with the names of its modules"),
    qwen3("window", 3, PLAIN, batch=2),
    qwen3("window_v4", 2, YARN, v4=True, drop=("layer_types",)),
    qwen3("layer_types_yarn", 1, YARN | {"attention_factor": 1.5}, config={"layer_types": [SLIDING, FULL, SLIDING]}, add=STALE_TIE),
    qwen3("windows_off_bias_tied", 8, PLAIN, config={"use_sliding_window": False, "attention_bias": True, "tie_word_embeddings": True}),
]


def new_model(case: Case) -> PreTrainedModel:
    """transformers' model without particular weights."""
    text = {**case.config, "rope_parameters": json.loads(json.dumps(case.rope)), "dtype": "float32"}
    if case.kind == "olmo3":
        return Olmo3ForCausalLM(Olmo3Config(**OLMO | text))
    if case.kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**QWEN | text))
    config = Gemma3TextConfig(**GEMMA | text)
    if case.kind == "gemma3_text":
        return Gemma3ForCausalLM(config)
    vision = SiglipVisionConfig(**VISION)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=config, vision_config=vision, mm_tokens_per_image=4, dtype="float32")
    )


def scaled(case: Case, name: str, values: np.ndarray) -> np.ndarray:
    """The values that a weight of this name gets, so that logits differ clearly and depend on what came before."""
    gemma = case.kind not in ("olmo3", "qwen3")
    if name.endswith("bias"):
        return 0.2 * values
    if values.ndim == 1 and gemma:  # the distance from 1
        return (1.0 if ".post_" in name else 5.0 if name.endswith("model.norm.weight") else 0.0) + 0.3 * values
    if values.ndim == 1:
        return (3.0 if name == "model.norm.weight" else 1.0) * (1 + 0.2 * values)
    if "embed_tokens" in name:
        return (0.15 if gemma else 0.3) * values
    return (1.0 if "lm_head" in name else 1.8) * values / np.sqrt(values.shape[-1])


def save_checkpoint(case: Case, folder: Path) -> None:
    """Writes config and weights with transformers' own functions."""
    torch.manual_seed(case.seed)
    model = new_model(case)
    rng = np.random.default_rng(case.seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            values = rng.standard_normal(weight.shape, dtype=np.float32)
            weight.copy_(torch.from_numpy(np.float32(scaled(case, name, values))))
    # Without the conversion, which gives the names of the released checkpoints, the names are those of the modules.
    model.save_pretrained(folder, save_original_format=case.kind in ("gemma3", "gemma3_text", "olmo3", "qwen3"))
    (folder / "generation_config.json").unlink(missing_ok=True)  # holds nothing of its own
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if case.v4:
        rewrite_as_v4(config)
    for key in case.drop:
        del config[key]
    file.write_text(json.dumps(config | case.add, indent=2) + "\n", encoding="utf-8")


def rewrite_as_v4(config: dict) -> None:
    """The same config in the form of transformers 4."""
    rope = config.pop("rope_parameters")
    full = rope.get(FULL, rope)
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = None if full["rope_type"] == "default" else full
    if config["model_type"] not in ("olmo3", "qwen3"):
        config["rope_local_base_freq"] = rope[SLIDING]["rope_theta"]
    if "_sliding_window_pattern" in config and "sliding_window_pattern" not in config:
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    config["transformers_version"] = "4.57.0"


def logits_of(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """One pass over all of `tokens`."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(tokens.astype(np.int64)), use_cache=False).logits.numpy()


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


def make_case(case: Case, folder: Path) -> None:
    """Writes the whole folder of one case."""
    save_checkpoint(case, folder)
    auto = AutoModelForCausalLM if case.kind in ("gemma3_text", "olmo3", "qwen3") else Gemma3ForConditionalGeneration
    model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    rng = np.random.default_rng([case.seed, 1])
    tokens = rng.integers(0, SHARED["vocab_size"], (case.batch, sum(case.calls)), dtype=np.int32)
    prompt = rng.integers(0, SHARED["vocab_size"], PROMPT_LENGTH, dtype=np.int32)
    reference = {
        "tokens": tokens,
        "logits": np.ascontiguousarray(logits_of(model, tokens)),
        "greedy_prompt": prompt,
        "greedy_tokens": greedy_tokens(model, prompt, case.name),
    }
    save_file(reference, folder / "reference.safetensors")
    write_description(
        folder,
        case.name,
        "model",
        "xtask/python/make_sliding_transformers.py",
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
