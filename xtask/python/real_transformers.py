"""Asks transformers for logits, in float32, for `cargo xtask real`. `real_llama_cpp.py` describes requests and answers;
`model` is a checkpoint folder. It generates nothing.

Why: transformers' code is the model's authors' own. In float32 it says what a rounding costs, and it reads prompts that are
far longer than the window of a sliding layer. One number is as in bfloat16: the factor of Gemma's embeddings.

How to run: `cargo xtask real` runs it.
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def main() -> None:
    request = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(
        request["model"], dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    # The model was trained in bfloat16, in which its factor of embeddings, the square root of 640, is 25.25.
    table = model.get_input_embeddings()
    table.embed_scale = table.embed_scale.bfloat16().float()
    rows = []
    for prompt in request.get("prompts", []):
        tokens = torch.tensor([prompt])
        rows.append(model(tokens, logits_to_keep=1, use_cache=False).logits[0, -1].float().numpy())
    if "logits" in request:
        np.array(rows, np.float32).tofile(request["logits"])
    nll = []
    for piece in request.get("pieces", []):
        tokens = torch.tensor([piece])
        logits = model(tokens, use_cache=False).logits[0, :-1]
        nll.append(float(torch.nn.functional.cross_entropy(logits.double(), tokens[0, 1:], reduction="sum")))
    version = f"transformers {transformers.__version__} on PyTorch {torch.__version__}"
    print(json.dumps({"version": version, "tokens": [], "nll": nll}))


if __name__ == "__main__":
    main()
