"""Makes the parity cases of PEFT's adapters, with PEFT's results in float32.

What: folders as `transformers_cases.py` describes them, with a folder `adapters` that `PeftModel.save_pretrained` wrote
(`adapter_config.json`, `adapter_model.safetensors`). Some have a folder `fused` with the config and the weights after
`merge_and_unload`. The logits are computed with adapters that were loaded from the folder.

Why: most adapters on the Hub are PEFT's, and mlx-lm does not read them.

How to run, from the repository root, with the packages of `requirements-transformers.txt`:

    python xtask/python/make_peft_cases.py
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers_cases
from parity_cases import argument_parser, finish_cases, write_description
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from transformers import (
    AutoModelForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging
from transformers_cases import greedy_tokens, logits_of, save_checkpoint

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 8}
PROMPT_LENGTH = transformers_cases.PROMPT_LENGTH
CALLS = [9, 1, 1, 4]
MADE_BY = "xtask/python/make_peft_cases.py"


def phi3(**keys: object) -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**SIZES | keys, dtype="float32"))


def qwen3(**keys: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES | HEADS | keys, dtype="float32"))


def olmo3(**keys: object) -> PreTrainedModel:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
    return Olmo3ForCausalLM(Olmo3Config(**SIZES | kinds | keys, dtype="float32"))


@dataclass(frozen=True)
class Case:
    """One folder to make. `rewrite` has keys of `adapter_config.json` that are changed after PEFT wrote it."""

    name: str
    seed: int
    base: Callable[..., PreTrainedModel]
    lora: dict
    keys: dict = field(default_factory=dict)
    rewrite: dict = field(default_factory=dict)
    fuse: bool = False


FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
# The first pattern that fits a layer applies. These two are not in alphabetical order, so that the order matters.
ALPHAS = {r"layers\.0\.self_attn\.q_proj": 32, "(q|v)_proj": 3}
PATTERNS = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": ALPHAS}
CASES = [
    Case("peft_lora_phi3", 3, phi3, {"r": 4, "lora_alpha": 8, "target_modules": FUSED}, fuse=True),
    Case("peft_dora_phi3", 1, phi3, {"r": 4, "lora_alpha": 8, "target_modules": FUSED, "use_dora": True}, fuse=True),
    Case(
        "peft_rslora_qwen3",
        7,
        qwen3,
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": r".*\.self_attn\.(q|v|o)_proj"} | PATTERNS,
        rewrite={"alpha_pattern": ALPHAS},  # because PEFT sorts them
    ),
    Case(
        "peft_dora_qwen3",
        1,
        qwen3,
        {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "use_dora": True},
        rewrite={"target_modules": "all-linear"},
    ),
    Case(
        "peft_lora_qwen3_one_layer",
        1,
        qwen3,
        {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "mlp.up_proj"], "layers_to_transform": [1]},
        keys={"tie_word_embeddings": True},
        fuse=True,
    ),
    Case(
        "peft_lora_olmo3_saved",
        10,
        olmo3,
        {
            "r": 4,
            "lora_alpha": 4,
            "target_modules": ["embed_tokens", "q_proj"],
            "modules_to_save": ["lm_head"],
            "bias": "all",
        },
        keys={"attention_bias": True},
    ),
]


def scale(name: str, values: np.ndarray) -> np.ndarray:
    """Scales random weights so that logits differ clearly and depend on the tokens before."""
    if values.ndim == 1:
        return 0.2 * values if name.endswith("bias") else 1 + 0.2 * values
    if "embed_tokens" in name:
        return 0.4 * values  # may also be the head; with larger numbers each token would predict itself
    return (4.0 if "lm_head" in name else 1.8) * values / np.sqrt(values.shape[-1])


def save_adapters(case: Case, folder: Path, adapters: Path) -> None:
    """Writes adapters with `PeftModel.save_pretrained`, with random instead of trained numbers."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **case.lora))
    rng = np.random.default_rng([case.seed, 2])
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if not weight.requires_grad:
                continue
            noise = torch.from_numpy(rng.standard_normal(weight.shape, dtype=np.float32))
            if "lora_embedding_A" in name:
                weight.copy_(noise)
            elif "lora_A" in name:
                weight.copy_(noise / np.sqrt(weight.shape[1]))
            elif "lora_B" in name or "lora_embedding_B" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.add_(0.2 * noise * weight.abs().mean())
    model.save_pretrained(adapters)
    (adapters / "README.md").unlink()  # a model card without content
    file = adapters / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": "base"} | case.rewrite
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT writes a set, whose order changes
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def adapted(folder: Path, adapters: Path) -> PreTrainedModel:
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return PeftModel.from_pretrained(base, adapters).eval()


def make_case(case: Case, folder: Path) -> None:
    """Writes the folder of one case."""
    torch.manual_seed(case.seed)
    folder.mkdir()
    save_checkpoint(case.base(**case.keys), case.seed, scale, dict, folder)
    adapters = folder / "adapters"
    save_adapters(case, folder, adapters)
    model = adapted(folder, adapters)

    rng = np.random.default_rng([case.seed, 1])
    tokens = rng.integers(0, SIZES["vocab_size"], (2, sum(CALLS)), dtype=np.int32)
    prompt = rng.integers(0, SIZES["vocab_size"], PROMPT_LENGTH, dtype=np.int32)
    logits = logits_of(model, tokens)
    without = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    if not np.abs(logits - logits_of(without, tokens)).max() > 0.5:
        raise SystemExit(f"{case.name}: the adapters hardly change the logits")
    answers = {
        "tokens": tokens,
        "logits": logits,
        "greedy_prompt": prompt,
        "greedy_tokens": greedy_tokens(model, prompt, case.name),
    }
    save_file(answers, folder / "reference.safetensors")
    if case.fuse:
        model.merge_and_unload().save_pretrained(folder / "fused")
        (folder / "fused" / "generation_config.json").unlink(missing_ok=True)
    write_description(
        folder,
        case.name,
        "model",
        MADE_BY,
        oracle=f"peft {version('peft')}",
        close=transformers_cases.CLOSE,
        seed=case.seed,
        calls=CALLS,
        adapters="adapters",
        fused=[{"folder": "fused", "dequantize": False}] if case.fuse else [],
    )


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    return finish_cases(CASES, make_case, args)


if __name__ == "__main__":
    sys.exit(main())
