"""Records the results of mlx-lm for the parity cases of transformers, and the reasons for differences.

What: for every `hf_*` case, mlx-lm loads the checkpoint and reads the same tokens in the same calls, in float32. Its logits
are compared with those of transformers, with the tolerance of the case. A JSON file gets one entry for each case:
`within`, `differs` or `raises`, with the largest difference or the error, and the reasons. `cargo xtask parity --document`
makes a table of it.

Why: it shows why a second reference is needed. If mlx-lm has no result or another result, transformers decides.

The reasons are checked in two ways. Some say that mlx-lm reads a config as if it were another one. `READS` has this other
config, and the script fails unless mlx-lm computes the same bits with it. With `--explained DIR` the script also writes
parity cases with this config and mlx-lm's logits. If `cargo xtask parity --cases DIR` passes, the reasons explain the whole
difference.

How to run, from the repository root, with the packages of `requirements.txt`:

    python xtask/python/mlx_lm_on_transformers_cases.py

"""

import copy
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from parity_cases import CASES_FOLDER, ROOT, argument_parser, demand_own_blas, finish, write_description

CASES = ROOT / CASES_FOLDER
FILE = "xtask/python/mlx_lm_on_transformers_cases.json"

# What mlx-lm does, with the place in its source.
REASONS = {
    "phi3_parameters": "ignores `rope_parameters`, the newer form of a config, and rotates plainly (`phi3.py`, `ModelArgs`)",
    "phi3_short": "always uses LongRoPE's long factors (`rope_utils.py`, `SuScaledRoPE`)",
    "phi3_window": "ignores `sliding_window` (`phi3.py` has no window)",
    "phi3_head_dim": "ignores `head_dim` and divides `hidden_size` by the heads (`phi3.py`, `Attention`)",
    "gemma2_window": "ignores windows (`gemma2.py` has none)",
    "gemma2_caps": "needs both caps as numbers (`gemma2.py`, `ModelArgs`)",
    "gemma3_parameters": "ignores `rope_parameters`, the newer form of a config, and does not scale (`gemma3_text.py`, `ModelArgs`)",
    "gemma3_types": "ignores `layer_types` and counts by `sliding_window_pattern`, 6 where it is missing (`gemma3_text.py`)",
    "gemma3_softcap": "ignores `final_logit_softcapping` (`gemma3_text.py`, `Model`)",
    "gemma3_fewer": "takes the mask of global layers from layer `sliding_window_pattern - 1`, which is not there (`Gemma3Model`)",
    "gemma3_vocab": "takes `vocab_size` from outside `text_config`, where there is none (`gemma3.py`, `ModelArgs`)",
    "gemma3_names": "knows weights below `language_model` only, not below `model.language_model` (`gemma3.py`, `sanitize`)",
    "bias": "has no biases in its attention (`{file}`, `Attention`)",
    "olmo3_theta": "needs `rope_theta` outside `rope_parameters`, so no config of the newer form loads (`olmo3.py`, `ModelArgs`)",
    "olmo3_full": "needs a layer of each kind (`olmo3.py`, `ga_idx`)",
    "attention_factor": "ignores `attention_factor` (`rope_utils.py`, `initialize_rope`)",
    "head_refused": "refuses a head of its own beside `tie_word_embeddings`",
    "qwen3_head": "drops a head of its own beside `tie_word_embeddings` (`qwen3.py`, `sanitize`)",
    "qwen3_window": "ignores windows (`qwen3.py` has none)",
    "qwen2_window": "ignores windows (`qwen2.py` has none)",
    "qwen2_parameters": "ignores `rope_parameters`, the newer form of a config, and rotates with a base of 1 000 000 (`qwen2.py`, `ModelArgs`)",
    "qwen2_head_dim": "ignores `head_dim` and divides `hidden_size` by the heads (`qwen2.py`, `Attention`)",
    "llama_parameters": "ignores `rope_parameters`, the newer form of a config, and rotates with a base of 10 000 (`llama.py`, `ModelArgs`)",
    "granite_theta": "needs `rope_theta` outside `rope_parameters`, so no config of the newer form loads (`granite.py`, `ModelArgs`)",
    "granite_head_dim": "ignores `head_dim` and divides `hidden_size` by the heads (`granite.py`, `Attention`)",
    "ministral3_old": "needs `rope_parameters`, so no config of the older form loads (`ministral3.py`, `Attention`)",
    "smollm3_head": "drops a head of its own beside `tie_word_embeddings` (`smollm3.py`, `sanitize`)",
    "olmo2_parameters": "ignores `rope_parameters`, the newer form of a config, and rotates with a base of 10 000 (`olmo2.py`, `ModelArgs`)",
    "llama_window": "ignores `sliding_window` without `layer_types` (`llama.py`, `ModelArgs`)",
}

DELETE = None
PHI3_PLAIN = {"rope_parameters": DELETE}
PHI3_LONG = {"rope_scaling.short_factor": "rope_scaling.long_factor"}
# mlx-lm ignores `rope_parameters` and uses these defaults.
GEMMA3_PLAIN = {"rope_parameters": DELETE, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
GEMMA3_TYPES = {"layer_types": DELETE}
LLAMA_PLAIN = {"rope_parameters": DELETE}
GEMMA2_NO_WINDOWS = {"layer_types": ["full_attention"] * 2, "sliding_window": DELETE}
DROPS_THE_HEAD = {"qwen3_head", "smollm3_head"}
NO_WINDOWS = {"use_sliding_window": False, "layer_types": DELETE, "max_window_layers": DELETE, "sliding_window": DELETE}

# For each case with another result: the reasons, and the changes that make the config the one that mlx-lm reads.
READS = {
    "hf_granite_factors": (["granite_theta"], {}),
    "hf_granite_head_dim_v4": (["granite_head_dim"], {}),
    "hf_llama_default_head": (["llama_parameters"], LLAMA_PLAIN),
    "hf_llama_llama3": (["llama_parameters"], LLAMA_PLAIN),
    "hf_ministral3_window_v4": (["ministral3_old"], {}),
    "hf_mistral_no_window": (["llama_parameters"], LLAMA_PLAIN),
    "hf_mistral_window": (["llama_parameters", "llama_window"], LLAMA_PLAIN | {"sliding_window": None}),
    "hf_mistral_window_v4": (["llama_window"], {"sliding_window": None}),
    "hf_phi3_linear": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_short": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_short_v4": (["phi3_short"], PHI3_LONG),
    "hf_phi3_longrope_long": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_crossing": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_crossing_v4": (["phi3_short"], PHI3_LONG),
    "hf_phi3_longrope_crossing_batch": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_su_v4": (["head_refused"], {}),
    "hf_phi3_longrope_partial": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_partial_v4": (["phi3_short"], PHI3_LONG),
    "hf_phi3_longrope_factor": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_attention_factor": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_longrope_tied": (["phi3_parameters"], PHI3_PLAIN),
    "hf_phi3_head_dim": (["phi3_head_dim"], {}),
    "hf_phi3_window": (["phi3_window"], {"sliding_window": DELETE}),
    "hf_phi3_window_singles": (["phi3_window"], {"sliding_window": DELETE}),
    "hf_phi3_window_longrope": (["phi3_window", "phi3_parameters"], PHI3_PLAIN | {"sliding_window": DELETE}),
    "hf_phi3_window_longrope_v4": (["phi3_window", "phi3_short"], PHI3_LONG | {"sliding_window": DELETE}),
    "hf_gemma2_window": (["gemma2_window"], GEMMA2_NO_WINDOWS),
    "hf_gemma2_window_v4": (["gemma2_window"], GEMMA2_NO_WINDOWS),
    "hf_gemma2_no_caps": (["gemma2_caps"], {}),
    "hf_gemma2_layer_types_bias_untied_v4": (["bias"], {}),
    "hf_gemma3_linear8": (["gemma3_parameters"], GEMMA3_PLAIN),
    "hf_gemma3_fewer_layers": (["gemma3_fewer"], {}),
    "hf_gemma3_fewer_layers_v4": (["gemma3_fewer"], {}),
    "hf_gemma3_layer_types": (["gemma3_types", "gemma3_parameters"], GEMMA3_TYPES | GEMMA3_PLAIN),
    "hf_gemma3_layer_types_v4": (["gemma3_types"], GEMMA3_TYPES),
    "hf_gemma3_all_global": (["gemma3_types"], GEMMA3_TYPES | GEMMA3_PLAIN | {"sliding_window": 512}),
    "hf_gemma3_softcap": (["gemma3_softcap"], {"final_logit_softcapping": DELETE}),
    "hf_gemma3_bias_untied": (["bias"], {}),
    "hf_gemma3_multimodal": (["gemma3_vocab"], {}),
    "hf_gemma3_multimodal_inner_keys": (["gemma3_names"], {}),
    "hf_olmo3_yarn": (["olmo3_theta"], {}),
    "hf_olmo3_yarn_batch": (["olmo3_theta"], {}),
    "hf_olmo3_yarn_attention_factor": (["olmo3_theta"], {}),
    "hf_olmo3_yarn_attention_factor_v4": (["attention_factor"], {"rope_scaling.attention_factor": DELETE}),
    "hf_olmo3_two_bases": (["olmo3_theta"], {}),
    "hf_olmo3_all_sliding": (["olmo3_theta"], {}),
    "hf_olmo3_all_full": (["olmo3_theta"], {}),
    "hf_olmo3_fewer_layers": (["olmo3_full"], {}),
    "hf_olmo3_bias_tied": (["olmo3_theta"], {}),
    "hf_qwen2_window": (["qwen2_window", "qwen2_parameters"], NO_WINDOWS | {"rope_parameters": DELETE, "rope_theta": 1000000.0}),
    "hf_qwen2_window_v4": (["qwen2_window"], NO_WINDOWS),
    "hf_qwen2_layer_types_head_dim": (["qwen2_head_dim"], {}),
    "hf_qwen3_window": (["qwen3_window"], NO_WINDOWS),
    "hf_qwen3_window_v4": (["qwen3_window"], NO_WINDOWS),
    "hf_qwen3_layer_types_yarn": (
        ["qwen3_window", "attention_factor", "qwen3_head"],
        NO_WINDOWS | {"rope_parameters.attention_factor": DELETE},
    ),
    "hf_qwen3_windows_off_bias_tied": (["bias"], {}),
    "hf_olmo2_head_dim": (["olmo2_parameters"], LLAMA_PLAIN),
    "hf_olmo2_yarn": (["olmo2_parameters"], LLAMA_PLAIN),
    "hf_smollm3_listed_bias_untied": (["llama_parameters", "smollm3_head"], LLAMA_PLAIN),
    "hf_smollm3_window": (["llama_parameters"], LLAMA_PLAIN),
    "hf_smollm3_window_v4": (["llama_window"], {"sliding_window": None}),
}


def changed(config: dict, changes: dict) -> dict:
    """A config with some changes: keys are deleted, set, or copied if the value is the path of another key."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *outer, key = path.split(".")
        place = config
        for name in outer:
            place = place[name]
        if value is DELETE:
            place.pop(key, None)
        elif isinstance(value, str):
            place[key] = place[value.rsplit(".", 1)[1]]
        else:
            place[key] = value
    return config


def logits_of(folder: Path, tokens: mx.array, calls: list[int]) -> mx.array:
    """mlx-lm's logits of the tokens, read in these calls with one cache."""
    model, _ = mlx_lm.utils.load_model(folder)
    cache, pieces, start = make_prompt_cache(model), [], 0
    for length in calls:
        pieces.append(model(tokens[:, start : start + length], cache=cache))
        mx.eval(pieces[-1])
        start += length
    return mx.concatenate(pieces, axis=1)


def with_config(folder: Path, config: dict, scratch: Path) -> Path:
    """A copy of a case with another config, and without its head if mlx-lm ignores the head."""
    shutil.copytree(folder, scratch)
    if DROPS_THE_HEAD & set(READS[folder.name][0]):
        weights = mx.load(str(scratch / "model.safetensors"))
        mx.eval(weights.pop("lm_head.weight"), weights)
        mx.save_safetensors(str(scratch / "model.safetensors"), weights)
    (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return scratch


def answer(folder: Path, explained: Path | None) -> dict:
    """The entry of one case."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    reference = mx.load(str(folder / "reference.safetensors"))
    why, changes = READS.get(folder.name, ([], {}))
    file = folder.name.split("_")[1].replace("gemma3", "gemma3_text") + ".py"
    reasons = [REASONS[name].format(file=file) for name in why]
    try:
        found = logits_of(folder, reference["tokens"], case["calls"])
    except Exception as error:  # any error is a result
        if not why or changes:
            raise SystemExit(f"{folder.name}: raises {error!r}, and no reason says so") from error
        first = str(error).strip().splitlines()[0].removesuffix(":").strip()
        return {"outcome": "raises", "error": f"{type(error).__name__}: {first}", "why": reasons}
    ours, theirs = np.array(found).astype(np.float64), np.array(reference["logits"]).astype(np.float64)
    differences, compare = np.abs(ours - theirs), case["compare"]
    within = bool((differences <= compare["atol"] + compare["rtol"] * np.abs(theirs)).all())
    if within == bool(why):
        raise SystemExit(f"{folder.name}: {'within' if within else 'beyond'} the tolerance, and the table says otherwise")
    if not within:
        explain(folder, case, found, reference["tokens"], changes, explained)
    worst = float(f"{differences.max():.1e}")
    return {"outcome": "within" if within else "differs", "worst": worst, "why": reasons}


def explain(folder: Path, case: dict, found: mx.array, tokens: mx.array, changes: dict, explained: Path | None) -> None:
    """Fails unless mlx-lm computes the same logits with the config that, by the reasons, it reads."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        other = with_config(folder, changed(config, changes), Path(scratch) / folder.name)
        if changed(config, changes) == config or not mx.array_equal(logits_of(other, tokens, case["calls"]), found):
            raise SystemExit(f"{folder.name}: mlx-lm does not read it as the table says")
        if explained:
            mx.save_safetensors(str(other / "reference.safetensors"), {"tokens": tokens, "logits": found})
            name = f"{folder.name}_as_mlx_lm_reads_it"
            write_description(other, name, "model", "xtask/python/mlx_lm_on_transformers_cases.py", calls=case["calls"])
            shutil.copytree(other, explained / folder.name, dirs_exist_ok=True)


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--explained", type=Path, help="also write parity cases that show that the reasons are enough")
    args = parser.parse_args()
    demand_own_blas(parser)

    def make(file: Path) -> None:
        cases = {folder.name: answer(folder, args.explained) for folder in sorted(CASES.glob("hf_*"))}
        if gone := READS.keys() - cases.keys():
            raise SystemExit(f"in the table and not among the cases: {', '.join(sorted(gone))}")
        result = {"mlx_lm": version("mlx-lm"), "mlx": version("mlx"), "cases": cases}
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    return finish({FILE: make}, args)


if __name__ == "__main__":
    sys.exit(main())
