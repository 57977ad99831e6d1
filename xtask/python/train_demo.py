"""Makes a demo checkpoint of an architecture: a model with about a million parameters that writes small stories.

What: writes stories with `stories.py`, trains a byte-level BPE tokenizer on them, trains mlx-lm's model in float32,
converts it to bfloat16, and saves a checkpoint folder that mlx-lm and this project can load. The folder also has a model
card (README.md) and `greedy.json`, the tokens that mlx-lm generates with the checkpoint; this project's tests require the
same tokens. `DEMOS` lists the models.

Why: the program's demos and the tests of the whole program need trained weights that are tiny, that nobody else has rights
to, and that one command can make again.

How to run, from the repository root:

    OPENBLAS_NUM_THREADS=2 LD_PRELOAD=libopenblas.so.0 python xtask/python/train_demo.py --model lille-130m

It writes `crates/mlx-models-cli/demo/MODEL`, or the folder given as `--out`.

`LD_PRELOAD` replaces the slow BLAS of MLX's Linux package by OpenBLAS. Training is then ten times as fast, but results have
other bits, so `greedy.json` is always made in a process without it. Two options do not train: `--fixture-only` writes
`greedy.json` again for the existing checkpoint, and `--check-only` fails if it would change.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler
from stories import stories
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 1024
CONTEXT = 512  # tokens
DEMO_FOLDERS = Path(__file__).parents[2] / "crates/mlx-models-cli/demo"


@dataclass(frozen=True)
class Demo:
    """The demo of one architecture: its training and the texts of its model card.

    `first_weights` has factors for MLX's initial weights, see `new_model`. Its keys are parts of parameter names, and the
    first one that fits applies. `about` is a part of the card's first sentence. `shape` has the rows of its last table, in
    which keys of the config stand in braces.
    """

    config: dict
    first_weights: dict[str, float]
    about: str
    shape: dict[str, str]
    steps: int
    tokens_per_step: int = 2048
    peak_rate: float = 2.5e-3


# Keys of the configs that follow transformers.
TRANSFORMERS_CONFIG = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
GROUPED_WIDTH = (
    "{hidden_size}, with {num_attention_heads} query heads and {num_key_value_heads} key-value heads of 32"
)
TRANSFORMERS_SHAPE = {
    "inner width of the MLP": "{intermediate_size}",
    "context": "{max_position_embeddings} tokens",
}

DEMOS = {
    "lille-130m": Demo(
        config={
            "model_type": "lille-130m",
            "block_size": CONTEXT,
            "layer_norm_eps": 1e-5,
            "n_embd": 128,
            "n_head": 4,
            "n_kv_heads": 2,
            "n_layer": 6,
            "rope_theta": 10000.0,
            "vocab_size": VOCABULARY,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        },
        first_weights={"tok_embeddings": 2.0, "out_proj": 0.1, "down_proj": 0.1},
        about="in the architecture `lille-130m`",
        shape={
            "layers": "{n_layer}",
            "width": "{n_embd}, with {n_head} query heads and {n_kv_heads} key-value heads of 32",
            "inner width of the MLP": "256",
            "context": "{block_size} tokens",
        },
        steps=1100,
    ),
    "phi3": Demo(
        config=TRANSFORMERS_CONFIG
        | {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_attention_heads": 4,
            "num_hidden_layers": 5,
            "num_key_value_heads": 2,
            "original_max_position_embeddings": CONTEXT,
            "partial_rotary_factor": 0.75,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        first_weights={"embed_tokens": 2.0, "o_proj": 0.1, "down_proj": 0.1},
        about="in the architecture of Phi-3",
        shape={
            "layers": "{num_hidden_layers}",
            "width": GROUPED_WIDTH,
            "rotary embedding": "of the first {partial_rotary_factor:.0%} of each head, as in Phi-4-mini, "
            "with base {rope_theta:,.0f}",
            **TRANSFORMERS_SHAPE,
        },
        steps=1200,
    ),
    "olmo3": Demo(
        config=TRANSFORMERS_CONFIG
        | {
            "architectures": ["Olmo3ForCausalLM"],
            "model_type": "olmo3",
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 384,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            # For full layers only. The attention factor is 0.1 ln 8 + 1, which mlx-lm always uses.
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "rope_type": "yarn",
            },
            # As in the real models. With a `rope_scaling`, transformers 5 always uses this base for sliding layers.
            "rope_theta": 500000.0,
            "sliding_window": 32,
            "tie_word_embeddings": False,
        },
        first_weights={
            "embed_tokens": 4.0,
            "post_attention_layernorm": 0.1,
            "post_feedforward_layernorm": 0.1,
        },
        about="in the architecture of OLMo 3",
        shape={
            "layers": "{num_hidden_layers}: three that see a window of {sliding_window} tokens, then one that sees all",
            "width": GROUPED_WIDTH,
            "rotary embedding": "with base {rope_theta:,.0f}; in the last layer as YaRN stretches it, "
            "from 64 to 512 tokens",
            **TRANSFORMERS_SHAPE,
        },
        steps=1200,
    ),
    "gemma3": Demo(
        config=TRANSFORMERS_CONFIG
        | {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 48,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 128,
            "intermediate_size": 224,
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 32,
            "rms_norm_eps": 1e-6,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "sliding_window": 32,
            "sliding_window_pattern": 3,
            "tie_word_embeddings": True,
        },
        # MLX initializes the weights of norms with 1, but Gemma's norms add 1 to their weights. With these values norms
        # begin with a factor of 1, and the norms after attention and after the MLP with a factor of 0.1.
        first_weights={
            "embed_tokens": 0.3,
            "post_attention_layernorm": -0.9,
            "post_feedforward_layernorm": -0.9,
            "norm": 0.0,
        },
        about="in the architecture of Gemma 3's text models",
        shape={
            "layers": "{num_hidden_layers}; the third and the last see all, the others a window of {sliding_window} tokens",
            "width": "{hidden_size}, with {num_attention_heads} query heads and {num_key_value_heads} key-value head "
            "of {head_dim}",
            "rotary embedding": "with base {rope_theta:,.0f} in the layers that see all "
            "and {rope_local_base_freq:,.0f} in the others",
            **TRANSFORMERS_SHAPE,
        },
        steps=1200,
    ),
    "gemma2": Demo(
        config=TRANSFORMERS_CONFIG
        | {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "attn_logit_softcapping": 8.0,
            "final_logit_softcapping": 15.0,
            "head_dim": 32,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            # mlx-lm does not apply windows, so no layer has one that is shorter than the context.
            "sliding_window": CONTEXT,
            "tie_word_embeddings": True,
        },
        # As those of Gemma 3.
        first_weights={
            "embed_tokens": 0.3,
            "post_attention_layernorm": -0.9,
            "post_feedforward_layernorm": -0.9,
            "norm": 0.0,
        },
        about="in the architecture of Gemma 2",
        shape={
            "layers": "{num_hidden_layers}",
            "width": "{hidden_size}, with {num_attention_heads} query heads and {num_key_value_heads} key-value heads of {head_dim}",
            "soft caps": "{attn_logit_softcapping:.0f} for scores and {final_logit_softcapping:.0f} for logits",
            "rotary embedding": "with base {rope_theta:,.0f}",
            **TRANSFORMERS_SHAPE,
        },
        steps=900,
    ),
    "smollm3": Demo(
        config=TRANSFORMERS_CONFIG
        | {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "hidden_act": "silu",
            "hidden_size": 128,
            "intermediate_size": 320,
            "mlp_bias": False,
            "no_rope_layer_interval": 3,
            "no_rope_layers": [1, 1, 0, 1, 1, 0],
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        },
        first_weights={"embed_tokens": 2.0, "o_proj": 0.1, "down_proj": 0.1},
        about="in the architecture of SmolLM3",
        shape={
            "layers": "{num_hidden_layers}; the third and the last have no rotary embedding",
            "width": GROUPED_WIDTH,
            "rotary embedding": "with base {rope_theta:,.0f} in the other layers",
            **TRANSFORMERS_SHAPE,
        },
        steps=900,
    ),
}

TOKENIZER_STORIES = 8_000
STORY_TOKENS = 210  # approximately; there are enough stories that training sees each about once
HELD_OUT_STORIES = 400
# Rows become longer during training: (share of the steps, tokens of a row until then). Short rows cost less and teach
# words, names and sentences; the last ones teach positions up to the whole context.
ROW_LENGTHS = [(0.5, 128), (0.85, 256), (1.0, 512)]
HELD_OUT_ROW = 256
LAST_RATE, WARMUP_STEPS = 1e-4, 60
REPORT_EVERY = 50

GREEDY_PROMPTS = [
    "Once upon a time",
    "In a little cottage by the sea lived a brave girl named Zoe.",
    "Long ago, in a hollow tree near the river, there lived a shy squirrel named Otto. He wanted to see the",
]
GREEDY_TOKENS = 200
SAMPLED = [
    {"prompt": "Once upon a time", "temp": 0.8, "seed": 7},
    {"prompt": "One windy afternoon, Luna", "temp": 0.8, "seed": 7},
]
SAMPLED_TOKENS = 64


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def train_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer: 256 bytes, merges, and the end-of-text token as the last id."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(stories(f"{seed}-tokenizer"), TOKENIZER_STORIES), trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    assert tokenizer.get_vocab_size() == VOCABULARY, "the stories are too plain for a vocabulary of this size"
    return tokenizer


class Corpus:
    """The token ids of many stories, one after another, each with the end-of-text token at its end."""

    def __init__(self, tokenizer: Tokenizer, seed: str, story_count: int):
        end = tokenizer.token_to_id(END_OF_TEXT)
        texts = list(islice(stories(seed), story_count))
        documents = [encoding.ids + [end] for encoding in tokenizer.encode_batch(texts)]
        self.tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids in documents])
        self.starts = np.cumsum([0] + [len(ids) for ids in documents[:-1]])

    def rows(self, rng: np.random.Generator, count: int, length: int) -> mx.array:
        """`count` rows of `length + 1` tokens: half of them begin with a story, the others anywhere."""
        last = len(self.tokens) - length - 1
        story_starts = rng.choice(self.starts[self.starts <= last], count)
        anywhere = rng.integers(0, last + 1, count)
        starts = np.where(np.arange(count) % 2 == 0, story_starts, anywhere)
        return mx.array(self.tokens[starts[:, None] + np.arange(length + 1)])


def new_model(demo: Demo) -> nn.Module:
    """mlx-lm's model with its initial weights.

    With MLX's initial weights, the outputs of the blocks are much larger than the embeddings that they are added to, and
    the model is slow to learn to copy names from the text. So embeddings are made larger, and the outputs of blocks
    smaller, with the last matrix of attention and MLP or with the norm after it.
    """
    module = importlib.import_module(f"mlx_lm.models.{demo.config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(demo.config))
    if demo.config["tie_word_embeddings"] and hasattr(model, "sanitize"):
        model.sanitize({})  # mlx-lm's Gemma 3 ties its head if the checkpoint has none
    weights = [
        (name, next((scale for part, scale in demo.first_weights.items() if part in name), 1.0) * weight)
        for name, weight in tree_flatten(model.parameters())
    ]
    return model.load_weights(weights)


def loss_of(model: nn.Module, rows: mx.array) -> mx.array:
    """The mean cross entropy of the tokens, each predicted from those before it in its row."""
    logits = model(rows[:, :-1]).astype(mx.float32)
    return nn.losses.cross_entropy(logits, rows[:, 1:], reduction="mean")


def train(model: nn.Module, demo: Demo, corpus: Corpus, held_out: mx.array, steps: int, seed: int) -> float:
    """Trains `model`. Returns the mean training loss of the last steps."""
    schedule = optim.join_schedules(
        [
            optim.linear_schedule(0.0, demo.peak_rate, WARMUP_STEPS),
            optim.cosine_decay(demo.peak_rate, max(steps - WARMUP_STEPS, 1), LAST_RATE),
        ],
        [WARMUP_STEPS],
    )
    optimizer = optim.AdamW(learning_rate=schedule, betas=[0.9, 0.95], weight_decay=0.05)
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    rng = np.random.default_rng(seed)
    recent: list[float] = []
    began = time.perf_counter()
    for step in range(steps):
        length = next(length for share, length in ROW_LENGTHS if step < share * steps)
        loss, gradients = loss_and_gradients(model, corpus.rows(rng, demo.tokens_per_step // length, length))
        gradients, _ = optim.clip_grad_norm(gradients, max_norm=1.0)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        recent = [*recent[-REPORT_EVERY + 1 :], loss.item()]
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.perf_counter() - began
            log(
                f"step {step + 1}/{steps}  train loss {np.mean(recent):.4f}  "
                f"held-out loss {loss_of(model, held_out).item():.4f}  {seconds:.0f} s"
            )
    return float(np.mean(recent))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_checkpoint(folder: Path, demo: Demo, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Writes the weights, the configs and the tokenizer."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    write_json(folder / "config.json", dict(sorted((demo.config | {"eos_token_id": end}).items())))
    write_json(folder / "generation_config.json", {"eos_token_id": end})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "clean_up_tokenization_spaces": False,
            "eos_token": END_OF_TEXT,
            "model_max_length": CONTEXT,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def generated(model: nn.Module, tokenizer, prompt: str, count: int, sampler=None) -> dict:
    """`count` tokens that mlx-lm generates after `prompt`; the end of a story does not stop it."""
    prompt_tokens = tokenizer.encode(prompt)
    tokens, smallest_margin = [], float("inf")
    for token, logprobs in generate_step(mx.array(prompt_tokens), model, max_tokens=count, sampler=sampler):
        tokens.append(token)
        second, first = mx.topk(logprobs.astype(mx.float32), 2).tolist()
        smallest_margin = min(smallest_margin, abs(first - second))
    case = {"prompt": prompt, "prompt_tokens": prompt_tokens, "tokens": tokens, "text": tokenizer.decode(tokens)}
    return case if sampler else case | {"smallest_margin": smallest_margin}


def fixture(folder: Path) -> dict:
    """The contents of `greedy.json` for the checkpoint in `folder`."""
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    name = next(name for name, demo in DEMOS.items() if demo.config["model_type"] == model_type)
    model, tokenizer = load(str(folder))
    greedy = [generated(model, tokenizer, prompt, GREEDY_TOKENS) for prompt in GREEDY_PROMPTS]
    sampled = []
    for case in SAMPLED:
        mx.random.seed(case["seed"])
        sampler = make_sampler(case["temp"])
        sampled.append(case | generated(model, tokenizer, case["prompt"], SAMPLED_TOKENS, sampler))
    return {
        "oracle": {
            "program": "mlx-lm",
            "version": version("mlx-lm"),
            "mlx": version("mlx"),
            "device": f"cpu-{platform.system().lower()}-{platform.machine()}",
            "command": f"python xtask/python/train_demo.py --fixture-only --out crates/mlx-models-cli/demo/{name}",
        },
        "cases": greedy,
        "sampled": sampled,
    }


def run_with_stock_blas(mode: str, folder: Path) -> int:
    """Runs this script again in `mode`, in a process that uses MLX's own BLAS."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run([sys.executable, __file__, mode, "--out", str(folder)], env=environment).returncode


def write_fixture(folder: Path) -> int:
    partial = folder / "greedy.json.partial"
    write_json(partial, fixture(folder))
    partial.replace(folder / "greedy.json")
    return 0


def check_fixture(folder: Path) -> int:
    if json.loads((folder / "greedy.json").read_text(encoding="utf-8")) == fixture(folder):
        log("greedy.json is what mlx-lm generates")
        return 0
    log("greedy.json differs from what mlx-lm generates")
    return 1


CARD = """\
# Demo checkpoint {name}

A language model of {parameters:,} parameters that writes stories for small children, {about}.
It gives this project's program and its end-to-end tests real weights to run. It is small enough for the repository, and no
outside text or model went into it. It can only write stories of its own kind.

## How it was made

All text comes from `xtask/python/stories.py`, a grammar written for this project.
`xtask/python/train_demo.py` generates the stories, trains the tokenizer and the model, and writes this folder:

```
OPENBLAS_NUM_THREADS={threads} LD_PRELOAD=libopenblas.so.0 python xtask/python/train_demo.py \\
    --model {name} --steps {steps} --seed {seed}
```

| | |
|---|---|
| programs | {programs} |
| seed | {seed} |
| steps | {steps}, each of {tokens_per_step:,} tokens; {tokens:,} tokens in all, from {stories:,} stories |
| rows | {rows} |
| optimizer | AdamW in float32, {warmup} steps of warm-up to {peak:g}, then a cosine to {last:g} |
| time | {minutes:.0f} minutes with {threads} thread{s} for BLAS |
| last training loss | {train_loss:.4f} nats a token |
| held-out loss | {held_out_loss:.4f} in float32, {held_out_loss_bf16:.4f} in bfloat16, on {held_out} stories outside the training data |

The stories and the tokenizer are the same on every machine. On another processor or with another BLAS, the weights differ
slightly.

## Contents

| | |
|---|---|
{shape}
| vocabulary | {vocabulary} byte-level BPE tokens: 256 bytes, {merges} merges, `{end}` |
| parameters | {parameters:,}, bfloat16, {head} |

`greedy.json` holds what mlx-lm {mlx_lm} generates from this folder with MLX's own BLAS: {greedy_cases} prompts with {greedy_tokens} tokens each,
always the most probable token, and {sampled_cases} prompts with {sampled_tokens} tokens each, sampled at a temperature after `mx.random.seed(seed)`.
Generation continues after the end of a story. `smallest_margin` is the smallest difference between the two largest
log-probabilities of a step: rounding on another device changes a token if it is larger.

## Use

Use it to try the program, in tests, and to learn how such a model is loaded and run. Begin a prompt like a story: "Once upon
a time", "Long ago, in a hollow tree". It knows nothing about the world, cannot answer questions, writes
English only, and repeats itself beyond {context} tokens. Other prompts give meaningless text.

## Licence

MIT OR Apache-2.0, like the rest of this project.
"""


def write_card(folder: Path, name: str, parameters: int, **figures) -> None:
    demo = DEMOS[name]
    programs = ", ".join(f"{name} {version(name)}" for name in ("mlx-lm", "mlx", "tokenizers", "numpy"))
    threads = os.environ.get("OPENBLAS_NUM_THREADS", str(os.cpu_count()))
    tied = demo.config["tie_word_embeddings"]
    text = CARD.format(
        **figures,
        name=name,
        about=demo.about,
        shape="\n".join(f"| {what} | {text.format(**demo.config)} |" for what, text in demo.shape.items()),
        vocabulary=VOCABULARY,
        context=CONTEXT,
        head="output tied to the embedding" if tied else "output not tied to the embedding",
        parameters=parameters,
        programs=f"Python {platform.python_version()}, {programs}",
        tokens_per_step=demo.tokens_per_step,
        rows=", ".join(f"{length} tokens up to {share:.0%} of the steps" for share, length in ROW_LENGTHS),
        warmup=WARMUP_STEPS,
        peak=demo.peak_rate,
        last=LAST_RATE,
        threads=threads,
        s="" if threads == "1" else "s",
        held_out=HELD_OUT_STORIES,
        merges=VOCABULARY - 257,
        end=END_OF_TEXT,
        mlx_lm=version("mlx-lm"),
        greedy_cases=len(GREEDY_PROMPTS),
        greedy_tokens=GREEDY_TOKENS,
        sampled_cases=len(SAMPLED),
        sampled_tokens=SAMPLED_TOKENS,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def make_checkpoint(folder: Path, name: str, steps: int, seed: int) -> None:
    """Makes a checkpoint folder: stories, tokenizer, training, files."""
    demo = DEMOS[name]
    began = time.perf_counter()
    tokenizer = train_tokenizer(seed)
    # A story has about 190 tokens, so training sees each about once.
    story_count = max(1_000, steps * demo.tokens_per_step // 190)
    corpus = Corpus(tokenizer, f"{seed}-train", story_count)
    held_out_corpus = Corpus(tokenizer, f"{seed}-held-out", HELD_OUT_STORIES)
    held_out = held_out_corpus.rows(np.random.default_rng(seed), 32, HELD_OUT_ROW)

    mx.random.seed(seed)
    model = new_model(demo)
    parameters = sum(weight.size for _, weight in tree_flatten(model.parameters()))
    log(f"{story_count} stories, {len(corpus.tokens)} tokens, {parameters} parameters")

    train_loss = train(model, demo, corpus, held_out, steps, seed)
    held_out_loss = loss_of(model, held_out).item()
    model.set_dtype(mx.bfloat16)
    held_out_loss_bf16 = loss_of(model, held_out).item()
    log(f"held-out loss {held_out_loss:.4f}, {held_out_loss_bf16:.4f} in bfloat16")

    save_checkpoint(folder, demo, model, tokenizer)
    write_card(
        folder,
        name,
        parameters,
        steps=steps,
        seed=seed,
        stories=story_count,
        tokens=steps * demo.tokens_per_step,
        minutes=(time.perf_counter() - began) / 60,
        train_loss=train_loss,
        held_out_loss=held_out_loss,
        held_out_loss_bf16=held_out_loss_bf16,
    )


def replace_folder(new: Path, old: Path) -> None:
    """Replaces the folder `old` by `new` in one step, so that nobody reads an incomplete folder."""
    if old.exists():
        aside = Path(tempfile.mkdtemp(dir=old.parent, prefix=f".{old.name}-old-"))
        old.replace(aside)
        new.replace(old)
        shutil.rmtree(aside)
    else:
        new.replace(old)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=DEMOS, default="lille-130m")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the checkpoint folder; the default is the demo's own")
    parser.add_argument("--steps", type=int, help="the default is the number that the demo was trained with")
    parser.add_argument("--seed", type=int, default=1)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--fixture-only", action="store_true", help="write only greedy.json again")
    mode.add_argument("--check-only", action="store_true", help="only compare greedy.json with a new one")
    args = parser.parse_args()
    out = args.out or DEMO_FOLDERS / args.model

    if args.fixture_only or args.check_only:
        if "LD_PRELOAD" in os.environ:
            return run_with_stock_blas("--fixture-only" if args.fixture_only else "--check-only", out)
        return write_fixture(out) if args.fixture_only else check_fixture(out)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-new-") as scratch:
        folder = Path(scratch) / out.name
        folder.mkdir()
        make_checkpoint(folder, args.model, args.steps or DEMOS[args.model].steps, args.seed)
        if status := run_with_stock_blas("--fixture-only", folder):
            return status
        replace_folder(folder, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
