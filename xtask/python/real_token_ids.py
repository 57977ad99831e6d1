"""Prints the token ids of 500 texts, by llama.cpp or by transformers, for `cargo xtask real`.

What: prints one JSON object: `version`, `texts`, and `ids`, a list for each text, without the special tokens that are put
around a text. Special tokens in a text are special.

Why: our tokenizers of a GGUF file and of a checkpoint folder must give the same ids.

How to run: `cargo xtask real` runs it. By hand, from the repository root:

    $(cargo xtask python llama-cpp) xtask/python/real_token_ids.py --model FILE.gguf
    $(cargo xtask python transformers) xtask/python/real_token_ids.py --model DIR
"""

import argparse
import json
from pathlib import Path

from tokenizer_corpus import texts


def by_llama_cpp(file: Path) -> tuple[str, list[list[int]]]:
    import llama_cpp

    model = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts()]
    return f"llama.cpp of llama-cpp-python {llama_cpp.__version__}", ids


def by_transformers(folder: Path) -> tuple[str, list[list[int]]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return f"transformers {transformers.__version__}", [tokenizer.encode(text, add_special_tokens=False) for text in texts()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, metavar="PATH")
    model = parser.parse_args().model
    version, ids = by_transformers(model) if model.is_dir() else by_llama_cpp(model)
    print(json.dumps({"version": version, "texts": texts(), "ids": ids}))


if __name__ == "__main__":
    main()
