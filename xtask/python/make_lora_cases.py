"""Makes the parity cases of adapters: tiny checkpoints with adapters, and mlx-lm's results for them.

What: folders as `model_cases.py` describes them. Most are Gemma 3; some are OLMo 3, for biases, Phi-3, for fused
projections, and Qwen 3. Each has a folder `adapters`, as mlx-lm's training writes it. Some have folders `fused` and
`fused_dequantized` with the config and the weights that `mlx_lm fuse` writes.

Why: `cargo xtask parity` requires the same bits from this project's models with these adapters, and from the
checkpoints that this project fuses.

How to run, from the repository root:

    python xtask/python/make_lora_cases.py
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import make_gemma2_cases
import make_gemma3_cases
import make_granite_cases
import make_llama_cases
import make_ministral3_cases
import make_olmo2_cases
import make_olmo3_cases
import make_phi3_cases
import make_qwen2_cases
import make_qwen3_cases
import make_smollm3_cases
import mlx.core as mx
import mlx_lm.utils
import model_cases
import numpy as np
from load_adapters import adapted_model
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from model_cases import logits_by_calls, reference
from parity_cases import argument_parser, demand_own_blas, finish_cases, write_description

GEMMA3 = ["self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"]
EMBEDDING = "model.embed_tokens"
HEAD = ["self_attn.q_proj", "mlp.up_proj", "lm_head", "model.layers.0.mlp.down_proj"]
FUSED = ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj"]
QWEN3 = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
BIAS, BIASED = {"attention_bias": True}, ["self_attn.q_proj", "self_attn.o_proj"]
MADE_BY = "xtask/python/make_lora_cases.py"


@dataclass(frozen=True)
class Case:
    """One folder to make: a checkpoint as another script makes it, and its adapters."""

    name: str
    base: model_cases.Case
    calls: list[int]
    kind: str = "lora"
    num_layers: int = -1
    lora: dict = field(default_factory=dict)
    adapter_dtype: mx.Dtype = mx.float32
    fuse: bool = False


def gemma2(seed: int, **rest: object) -> model_cases.Case:
    config = make_gemma2_cases.CONFIG | {"num_hidden_layers": 1}
    return make_gemma2_cases.case("base", seed, [1], config, from_seed=False, **rest)


def gemma3(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    return make_gemma3_cases.case("base", seed, [1], {"num_hidden_layers": 3} | (config or {}), **rest)


def olmo3(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    return make_olmo3_cases.case("base", seed, [1], config, **rest)


def phi3(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    """A Phi-3, which has one weight for queries, keys and values, and one for gate and up."""
    config = make_phi3_cases.CONFIG | {"vocab_size": 64} | (config or {})
    return model_cases.Case("base", seed, [1], config, scale=make_qwen3_cases.scale, **rest)


def qwen3(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    config = {"tie_word_embeddings": True, "intermediate_size": 32} | (config or {})
    rest = {"scale": make_qwen3_cases.scale_tied, "tied": True} | rest
    return make_qwen3_cases.case("base", seed, [1], config, **rest)


def granite(seed: int, **rest: object) -> model_cases.Case:
    """A Granite, whose blocks are added to the stream with a factor."""
    rest = {"scale": make_granite_cases.scale_tied, "from_seed": False} | rest
    return make_granite_cases.case("base", seed, [1], make_granite_cases.TIED, **rest)


def qwen2(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    """A Qwen 2, whose projections of queries, keys and values have a bias."""
    config = {"tie_word_embeddings": True, "num_hidden_layers": 1, "intermediate_size": 32} | (config or {})
    rest = {"scale": make_qwen2_cases.scale_tied, "from_seed": False} | rest
    return make_qwen2_cases.case("base", seed, [1], config, **rest)


def llama(seed: int, config: dict | None = None, **rest: object) -> model_cases.Case:
    config = {"num_hidden_layers": 1, "intermediate_size": 32} | (config or {})
    return make_llama_cases.case("base", seed, [1], config, from_seed=False, **rest)


def ministral3(seed: int, **rest: object) -> model_cases.Case:
    """A Ministral 3 with a head of its own."""
    return make_ministral3_cases.case("base", seed, [1], from_seed=False, **rest)


def olmo2(seed: int, **rest: object) -> model_cases.Case:
    config = {"num_hidden_layers": 1, "intermediate_size": 32}
    return make_olmo2_cases.case("base", seed, [1], config, from_seed=False, **rest)


def smollm3(seed: int, **rest: object) -> model_cases.Case:
    config = {"num_hidden_layers": 1, "no_rope_layer_interval": 1, "intermediate_size": 32}
    return make_smollm3_cases.case("base", seed, [1], config, from_seed=False, **rest)


def parameters(keys: list[str] | None, rank: int = 4, scale: float = 10.0) -> dict:
    return {"rank": rank, "scale": scale, "dropout": 0.05} | ({} if keys is None else {"keys": keys})


ROWS = parameters([EMBEDDING], scale=2.0)
ROWS_AND_LAYERS = parameters([EMBEDDING, "mlp.up_proj"], scale=2.0)
Q4 = {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32}}
Q8 = {"dtype": mx.bfloat16, "quantize": {"bits": 8, "group_size": 32}}
MXFP4 = {"dtype": mx.bfloat16, "quantize": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}
CALLS = [9, 1, 1, 4]
CASES = [
    Case("lora_f32", gemma3(30), CALLS, lora=parameters(GEMMA3)),
    Case("lora_f16_last_layers", gemma3(32, dtype=mx.float16), CALLS, num_layers=2, lora=parameters(GEMMA3), fuse=True),
    Case("lora_every_layer_bf16", gemma3(15, dtype=mx.bfloat16), CALLS, lora=parameters(None, 8, 20.0)),
    Case("lora_bf16_adapters", gemma3(4), CALLS, lora=parameters(GEMMA3), adapter_dtype=mx.bfloat16),
    Case("lora_q4", gemma3(2, **Q4), CALLS, lora=parameters(GEMMA3), fuse=True),
    Case("lora_mxfp4", gemma3(23, **MXFP4), CALLS, lora=parameters(GEMMA3), fuse=True),
    Case("lora_bias_q4", olmo3(25, BIAS, **Q4), CALLS, num_layers=2, lora=parameters(BIASED), fuse=True),
    Case("lora_head_q8", gemma3(4, tied=False, **Q8), CALLS, num_layers=3, lora=parameters(HEAD)),
    Case("lora_embedding_f32", gemma3(51), CALLS, num_layers=1, lora=ROWS_AND_LAYERS),
    Case("lora_embedding_bf16", gemma3(10, dtype=mx.bfloat16), CALLS, lora=ROWS, fuse=True),
    Case("lora_embedding_q4", gemma3(38, **Q4), CALLS, lora=ROWS, fuse=True),
    Case("dora_f32", gemma3(51), CALLS, kind="dora", lora=parameters(GEMMA3)),
    Case("dora_bf16", gemma3(43, dtype=mx.bfloat16), CALLS, kind="dora", lora=parameters(None), fuse=True),
    Case("dora_q4", gemma3(12, **Q4), CALLS, kind="dora", lora=parameters(GEMMA3), fuse=True),
    Case("dora_mxfp4", gemma3(5, **MXFP4), CALLS, kind="dora", lora=parameters(GEMMA3)),
    Case("dora_bias", olmo3(65, BIAS), CALLS, kind="dora", num_layers=2, lora=parameters(BIASED), fuse=True),
    Case("dora_embedding_f32", gemma3(5), CALLS, kind="dora", lora=ROWS),
    Case("dora_embedding_bf16", gemma3(5, dtype=mx.bfloat16), CALLS, kind="dora", lora=ROWS, fuse=True),
    Case("lora_phi3_q4", phi3(20, {"num_hidden_layers": 1}, **Q4), CALLS, lora=parameters(FUSED), fuse=True),
    Case("dora_phi3_bf16", phi3(5, dtype=mx.bfloat16), CALLS, kind="dora", num_layers=1, lora=parameters(FUSED)),
    Case("lora_qwen3_bf16", qwen3(5, {"num_hidden_layers": 1}, dtype=mx.bfloat16), CALLS, lora=parameters(QWEN3), fuse=True),
    Case("dora_qwen3_q4", qwen3(1, **Q4), CALLS, kind="dora", lora=parameters(QWEN3)),
    Case("dora_qwen2_bf16", qwen2(4, dtype=mx.bfloat16), CALLS, kind="dora", lora=parameters(QWEN3, 2)),
    Case("dora_granite_q4", granite(9, **Q4), CALLS, kind="dora", lora=parameters(QWEN3)),
    Case("lora_llama_q4", llama(6, {"attention_bias": True}, **Q4), CALLS, lora=parameters(QWEN3), fuse=True),
    Case("dora_mistral_bf16", llama(4, make_llama_cases.MISTRAL, dtype=mx.bfloat16), CALLS, kind="dora", lora=parameters(QWEN3)),
    Case("lora_gemma2_q4", gemma2(5, **Q4), CALLS, lora=parameters(QWEN3, rank=2)),
    Case("lora_ministral3_q4", ministral3(8, **Q4), CALLS, lora=parameters(QWEN3, rank=2)),
    Case("lora_olmo2_q4", olmo2(20, **Q4), CALLS, lora=parameters(QWEN3, rank=2)),
    Case("dora_smollm3_bf16", smollm3(7, dtype=mx.bfloat16), CALLS, kind="dora", num_layers=1, lora=parameters(QWEN3, rank=2)),
    Case("full_last_layer_bf16", gemma3(13, dtype=mx.bfloat16), CALLS, kind="full", num_layers=1, fuse=True),
]


def save_adapters(case: Case, folder: Path, adapters: Path) -> None:
    """Writes adapters as `mlx_lm lora` does, with random instead of trained numbers."""
    model, _ = mlx_lm.utils.load_model(folder)
    model.freeze()
    if case.kind == "full":
        for layer in model.layers[-max(case.num_layers, 0) :]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, case.num_layers, case.lora, use_dora=case.kind == "dora")
    rng = np.random.default_rng([case.base.seed, 2])
    trained = []
    for name, weight in sorted(tree_flatten(model.trainable_parameters())):
        noise = mx.array(rng.standard_normal(weight.shape, dtype=np.float32))
        if name.endswith("lora_a"):
            new = noise / np.sqrt(weight.shape[0 if "embed_tokens" not in name else 1])
        elif name.endswith("lora_b"):
            new = 0.04 * noise
        else:
            new = weight.astype(mx.float32) * (1 + 0.05 * noise)
        dtype = weight.dtype if case.kind == "full" or name.endswith(".m") else case.adapter_dtype
        trained.append((name, new.astype(dtype)))
    model.update(tree_unflatten(trained))
    adapters.mkdir()
    config = {"fine_tune_type": case.kind, "num_layers": case.num_layers, "model": "base", "train": True}
    config["lora_parameters"] = None if case.kind == "full" else case.lora
    mlx_lm.utils.save_config(config, adapters / "adapter_config.json")
    mx.save_safetensors(str(adapters / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))


def save_fused(folder: Path, adapters: Path, out: Path, dequantize: bool) -> None:
    """Writes a fused checkpoint as `mlx_lm.fuse.main` does, without a tokenizer."""
    model, config = adapted_model(folder, adapters)
    if fused := [(n, m.fuse(dequantize=dequantize)) for n, m in model.named_modules() if hasattr(m, "fuse")]:
        model.update_modules(tree_unflatten(fused))
    if dequantize:
        model = mlx_lm.utils.dequantize_model(model)
        config.pop("quantization", None)
        config.pop("quantization_config", None)
    out.mkdir()
    mlx_lm.utils.save_model(out, model)
    (out / "model.safetensors.index.json").unlink()
    mlx_lm.utils.save_config(config, out / "config.json")


def make_case(case: Case, folder: Path) -> None:
    """Writes the folder of one case."""
    folder.mkdir()
    model_cases.save_checkpoint(case.base, folder)
    save_adapters(case, folder, folder / "adapters")
    names = ["fused", "fused_dequantized"] if case.fuse and case.base.quantize else ["fused"] if case.fuse else []
    fused = {name: name == "fused_dequantized" for name in names}
    for name, dequantize in fused.items():
        save_fused(folder, folder / "adapters", folder / name, dequantize)

    model, _ = adapted_model(folder, folder / "adapters")
    answers = reference(replace(case.base, name=case.name, calls=case.calls), model)
    without = logits_by_calls(mlx_lm.utils.load_model(folder)[0], answers["tokens"], case.calls)
    if not mx.abs(answers["logits"].astype(mx.float32) - without.astype(mx.float32)).max() > 0.5:
        raise SystemExit(f"{case.name}: the adapters hardly change the logits")
    mx.save_safetensors(str(folder / "reference.safetensors"), answers)
    write_description(
        folder,
        case.name,
        "model",
        MADE_BY,
        seed=case.base.seed,
        calls=case.calls,
        adapters="adapters",
        fused=[{"folder": name, "dequantize": dequantize} for name, dequantize in fused.items()],
    )


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    return finish_cases(CASES, make_case, args)


if __name__ == "__main__":
    sys.exit(main())
