"""Runs a reference program on a checkpoint folder, and records its logits and intermediate outputs.

What: the logits of a prompt that is read in one call; N greedy tokens after it, with the logits that they are chosen from;
and for one of these calls the output of every layer, rotation, attention and block. `cargo xtask parity --model` compares
them with our own outputs, and shows where they begin to differ. The checkpoint is not changed, and no tokenizer is needed.

Why: different logits alone do not show where two programs begin to differ.

How to run, from the repository root (`--reference transformers` needs the packages of `requirements-transformers.txt`):

    python xtask/python/trace_reference.py --model crates/mlx-models-cli/demo/gemma3 --tokens 1,2,3 --out trace.safetensors

The file has `prompt_logits` [1, T, V], `greedy_logits` [N, V], `greedy_tokens` int32 [N], and `on_the_way/BLOCK/NAME` for
each intermediate output. BLOCK is the number of the block, or `-` outside of blocks. NAME is the layer's key below the
block, or one of `embeddings`, `rotated queries`, `rotated keys`, `attention`, `gated`, `output`. `--at K` chooses the call
for these outputs: 0 is the prompt, K > 0 is the call that reads greedy token K - 1. The metadata has the versions and the device.

mlx-lm runs in the dtype of the checkpoint, with its cache, and on the device that `--device` names if its MLX has it.
transformers runs on the CPU, in float32 without a cache, in one pass over
all tokens for each new token: with LongRoPE, cached keys could be rotated for another length.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

# The results of a reference program: prompt logits, greedy logits, greedy tokens, and intermediate outputs by name.
Answer = tuple[object, object, list[int], dict[str, object]]


class Recorder:
    """Records the outputs of one call, by block and name, while `is_open` is true."""

    def __init__(self):
        self.is_open = False
        self.block: int | None = None
        self.rotations = 0
        self.outputs: dict[str, object] = {}

    def enter(self, block: int, x) -> None:
        if block == 0:
            self.keep("embeddings", x)
        self.block, self.rotations = block, 0

    def leave(self, x) -> None:
        self.keep("output", x)
        self.block = None

    def keep(self, name: str, output) -> None:
        if self.is_open:
            self.outputs[f"{'-' if self.block is None else self.block}/{name}"] = output

    def align(self, heads, transposed: Callable, equal: Callable) -> None:
        """Transposes a recorded norm of `heads` [B, H, L, d] if the model computed it as [B, L, H, d]."""
        for name, output in self.outputs.items():
            if output.ndim == 4 and equal(transposed(output), heads):
                self.outputs[name] = transposed(output)

    def rotated(self, output) -> None:
        """Records a rotation. In each block queries are rotated first, then keys."""
        if self.block is not None and self.rotations < 2:
            self.keep(("rotated queries", "rotated keys")[self.rotations], output)
            self.rotations += 1


def mlx_lm_answer(folder: Path, tokens: list[int], count: int, at: int) -> Answer:
    import mlx.core as mx
    import mlx_lm.models
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    recorder = Recorder()
    listen_to_mlx(model, recorder)

    def call(ids: list[int], cache, number: int):
        recorder.is_open = number == at
        logits = model(mx.array([ids]), cache=cache)
        recorder.keep("logits", logits)
        mx.eval(logits, recorder.outputs)
        recorder.is_open = False
        return logits

    cache = make_prompt_cache(model)
    prompt_logits = call(tokens, cache, 0)
    rows, greedy = [prompt_logits[0, -1]], []
    for number in range(1, count + 1):
        greedy.append(mx.argmax(rows[-1]).item())
        if number < count or at == number:
            rows.append(call(greedy[-1:], cache, number)[0, -1])
    greedy_logits = mx.stack(rows[:count]) if count else mx.zeros((0, prompt_logits.shape[-1]), prompt_logits.dtype)
    return prompt_logits, greedy_logits, greedy, recorder.outputs


def listen_to_mlx(model, recorder: Recorder) -> None:
    """Makes every block, layer and rotation of the model, and attention, report its output to the recorder.

    Python looks up `__call__` in the class, so the functions of the classes are replaced.
    """
    import mlx.core as mx

    attend = "scaled_dot_product_attention"
    # Gemma 2 has no function for attention, so the input of the layer after it is recorded.
    written_out = not hasattr(sys.modules[type(model).__module__], attend)
    blocks = {id(block): number for number, block in enumerate(model.layers)}
    layers: dict[int, str] = {}
    rotations: set[int] = set()
    inside = set()
    for block in model.layers:
        for name, module in block.named_modules():
            inside.add(id(module))
            if name.rsplit(".", 1)[-1] == "rope":
                if type(module).__name__ != "NoPE":  # a layer without a rotation
                    rotations.add(id(module))
            elif "weight" in module:
                layers[id(module)] = name
    modules = [module for _, module in model.named_modules()]
    for name, module in model.named_modules():
        # The embedding is recorded as the input of the first block, because models may scale it before.
        if id(module) not in inside and "weight" in module and not hasattr(module, "as_linear"):
            layers[id(module)] = name.rsplit(".", 1)[-1]

    def listening(original: Callable) -> Callable:
        def call(self, *arguments, **keys):
            if not recorder.is_open:
                return original(self, *arguments, **keys)
            number, name = blocks.get(id(self)), layers.get(id(self), "")
            if number is not None:
                recorder.enter(number, arguments[0])
            if name.rsplit(".", 1)[-1] == "down_proj":
                recorder.keep("gated", arguments[0])
            if written_out and name.rsplit(".", 1)[-1] == "o_proj":
                batch, length, _ = arguments[0].shape
                heads = arguments[0].reshape(batch, length, model.args.num_attention_heads, -1)
                recorder.keep("attention", heads.swapaxes(1, 2))
            if id(self) in rotations:
                recorder.align(arguments[0], lambda output: output.swapaxes(1, 2), mx.array_equal)
            output = original(self, *arguments, **keys)
            if number is not None:
                recorder.leave(output)
            elif name:
                recorder.keep(name, output)
            elif id(self) in rotations:
                recorder.rotated(output)
            return output

        return call

    heard = [module for module in modules if id(module) in blocks.keys() | layers.keys() | rotations]
    definers = {next(kind for kind in type(module).__mro__ if "__call__" in vars(kind)) for module in heard}
    for kind in definers:
        kind.__call__ = listening(kind.__call__)

    def attention(original: Callable) -> Callable:
        def call(*arguments, **keys):
            output = original(*arguments, **keys)
            recorder.keep("attention", output)
            return output

        return call

    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and name != "mlx_lm.models.base" and hasattr(module, attend):
            setattr(module, attend, attention(getattr(module, attend)))


def transformers_answer(folder: Path, tokens: list[int], count: int, at: int) -> Answer:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if wrong := {what: sorted(loaded[what]) for what in ("missing_keys", "mismatched_keys") if loaded[what]}:
        raise ValueError(f"transformers did not find all weights: {wrong}")
    embedding = model.get_input_embeddings()
    if hasattr(embedding, "embed_scale") and model.config.model_type != "gemma2":
        # Gemma 3 was trained with a factor in bfloat16. mlx-lm always rounds it, transformers does not in float32.
        embedding.embed_scale = embedding.embed_scale.to(torch.bfloat16).to(torch.float32)
    recorder = Recorder()
    listen_to_torch(model.eval(), recorder)

    def call(ids: list[int], number: int):
        recorder.is_open = number == at
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        recorder.keep("logits", logits)
        recorder.is_open = False
        return logits

    prompt_logits = call(tokens, 0)
    rows, greedy = [prompt_logits[0, -1]], []
    for number in range(1, count + 1):
        greedy.append(rows[-1].argmax().item())
        if number < count or at == number:
            rows.append(call(tokens + greedy, number)[0, -1])
    # Tokens are the last axis but one. Of these, the last token is the one that the call is about.
    last = {
        name: output if at == 0 else output.narrow(output.ndim - 2, output.shape[-2] - 1, 1)
        for name, output in recorder.outputs.items()
    }
    greedy_logits = torch.stack(rows[:count]) if count else torch.zeros((0, prompt_logits.shape[-1]))
    return prompt_logits, greedy_logits, greedy, last


def listen_to_torch(model, recorder: Recorder) -> None:
    """Adds hooks to all blocks and layers, and replaces the functions for rotation and attention."""
    import torch

    decoder = model.get_decoder()
    code = set()

    def hear(module, name: str) -> None:
        def hook(_module, arguments, output) -> None:
            if name.rsplit(".", 1)[-1] == "down_proj":
                recorder.keep("gated", arguments[0])
            recorder.keep(name, output)

        module.register_forward_hook(hook)

    for number, block in enumerate(decoder.layers):
        code.add(sys.modules[type(block).__module__])
        block.register_forward_pre_hook(
            lambda _module, arguments, keys, number=number: recorder.enter(
                number, arguments[0] if arguments else keys["hidden_states"]
            ),
            with_kwargs=True,
        )
        block.register_forward_hook(
            lambda _module, _arguments, output: recorder.leave(output[0] if isinstance(output, tuple) else output)
        )
        for name, module in block.named_modules():
            if getattr(module, "weight", None) is not None:
                hear(module, name)
    hear(decoder.norm, "norm")
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        hear(head, "lm_head")

    for module in code:
        rotate, attend = module.apply_rotary_pos_emb, module.eager_attention_forward

        def rotating(queries, keys, *arguments, rotate=rotate, **options):
            for heads in (queries, keys):
                recorder.align(heads, lambda output: output.transpose(1, 2), torch.equal)
            queries, keys = rotate(queries, keys, *arguments, **options)
            recorder.rotated(queries)
            recorder.rotated(keys)
            return queries, keys

        def attending(*arguments, attend=attend, **keys):
            output = attend(*arguments, **keys)
            recorder.keep("attention", output[0].transpose(1, 2))
            return output

        module.apply_rotary_pos_emb, module.eager_attention_forward = rotating, attending


def choose(device: str) -> str:
    """Chooses MLX's device, and returns which one is used: the CPU where there is no GPU."""
    import mlx.core as mx

    if device == "gpu" and not (mx.metal.is_available() or mx.cuda.is_available()):
        device = "cpu"
    mx.set_default_device(mx.gpu if device == "gpu" else mx.cpu)
    return device


def save(file: Path, answer: Answer, programs: dict[str, str]) -> None:
    prompt_logits, greedy_logits, greedy, on_the_way = answer
    tensors = {f"on_the_way/{name}": output for name, output in on_the_way.items()}
    tensors |= {"prompt_logits": prompt_logits, "greedy_logits": greedy_logits}
    if "torch" in programs:
        import torch
        from safetensors.torch import save_file

        tensors["greedy_tokens"] = torch.tensor(greedy, dtype=torch.int32)
        # Copies, because several names may be views of the same numbers.
        save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, file, programs)
    else:
        import mlx.core as mx

        tensors["greedy_tokens"] = mx.array(greedy, dtype=mx.int32)
        mx.save_safetensors(str(file), tensors, programs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--tokens", required=True, help="the ids of the prompt, separated by commas")
    parser.add_argument("--greedy", type=int, default=64, help="how many tokens to generate")
    parser.add_argument("--at", type=int, default=0, help="the call whose intermediate outputs are recorded")
    parser.add_argument("--reference", choices=["mlx-lm", "transformers"], default="mlx-lm")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu", help="where mlx-lm runs")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    args = parser.parse_args()
    tokens = [int(token) for token in args.tokens.split(",")]

    answer, packages = {
        "mlx-lm": (mlx_lm_answer, ["mlx-lm", "mlx"]),
        "transformers": (transformers_answer, ["transformers", "torch"]),
    }[args.reference]
    about = {package: version(package) for package in packages}
    try:
        about["device"] = choose(args.device) if args.reference == "mlx-lm" else "cpu"
        answer = answer(args.model, tokens, args.greedy, args.at)
    except Exception as error:  # The caller shows the message to its user, without a traceback.
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:6] if line.strip())
        print(f"{args.reference} cannot run {args.model}: {type(error).__name__}: {reason}", file=sys.stderr)
        return 1
    save(args.out, answer, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
