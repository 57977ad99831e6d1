"""Makes prompt caches of whole models with mlx-lm, for tests of which models can use a cache.

What: two tiny models of the parity cases, one with LongRoPE (original length 16) and one with a window of 6 tokens, which
mlx-lm ignores. Each reads a prompt that is shorter than this length and one that is longer. `NAME.safetensors` is written
by mlx-lm's `save_prompt_cache`. `NAME.next.safetensors` has `prompt`, the ids in the cache; `next`, the ids after them;
and `logits`, mlx-lm's logits for `next`.

Why: `cargo test -p mlx-models` reads these files. If mlx-lm computes the same keys and values as this project, the tests
continue from the file and require mlx-lm's logits. Otherwise this project must refuse the file.

How to run, from the repository root:

    python xtask/python/make_model_caches.py
"""

import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache
from mlx_lm.utils import load_model
from parity_cases import CASES_FOLDER, ROOT, argument_parser, demand_own_blas, finish, origin

FOLDER = "crates/mlx-models/tests/fixtures/mlx-lm-caches"
MADE_BY = "xtask/python/make_model_caches.py"
CASES = {"longrope": "phi3_longrope_mlx_lm", "window": "hf_phi3_window"}
LENGTHS = {"longrope": (9, 20), "window": (6, 20)}
NEXT = 4


def make_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, case in CASES.items():
        model, _ = load_model(ROOT / CASES_FOLDER / case, strict=False)
        for length in LENGTHS[name]:
            ids = [(i * i * 7 + i) % 128 for i in range(length + NEXT)]
            prompt, following = mx.array([ids[:length]]), mx.array([ids[length:]])
            cache = make_prompt_cache(model)
            mx.eval(model(prompt, cache=cache))
            file = folder / f"{name}_{length}.safetensors"
            save_prompt_cache(str(file), cache, {"model": case, "tokenizer_config": "{}"} | origin(MADE_BY))
            logits = mx.concatenate([model(following[:, i : i + 1], cache=cache) for i in range(NEXT)], axis=1)
            tensors = {"prompt": prompt, "next": following, "logits": logits}
            mx.save_safetensors(str(folder / f"{file.stem}.next.safetensors"), tensors, origin(MADE_BY))


def main() -> int:
    parser = argument_parser(__doc__)
    args = parser.parse_args()
    demand_own_blas(parser)
    mx.set_default_device(mx.cpu)
    return finish({FOLDER: make_folder}, args)


if __name__ == "__main__":
    sys.exit(main())
