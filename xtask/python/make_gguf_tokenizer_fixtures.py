"""Makes the fixtures for tokenizers from GGUF files: small vocabularies, 500 texts, and llama.cpp's tokens of them.

What: `corpus.json` has the texts of `tokenizer_corpus.py`. For each small vocabulary there are a GGUF file without tensors and
the `tokenizer.json` that a model with this vocabulary has: `llama` (SentencePiece, as Llama 2 has it), `gemma` (SentencePiece, as
Gemma has it) and `bytes` (bytes of words). The tokens were learned from the texts. `llama_cpp.json` has a short sum of llama.cpp's
tokens for each text; for `bytes`, with each way of cutting texts into words (`tokenizer.ggml.pre`).

Why: `cargo test -p mlx-tokenizer` requires the same tokens.

How to run, from the repository root:

    cargo xtask fixtures --only make_gguf_tokenizer
"""

import functools
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import llama_cpp
from gguf import GGUFWriter, TokenType
from parity_cases import argument_parser, finish
from tokenizer_corpus import SPECIAL, checksum, texts

FOLDER = "crates/mlx-tokenizer/tests/fixtures/gguf"

# How many pairs are learned.
MERGES = 400

# The names in `tokenizer.ggml.pre`.
SPLITS = [
    "llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "qwen2", "deepseek-r1-qwen", "gpt-4o", "tekken", "smollm", "refact",
    "starcoder", "gpt-2", "phi-2", "default",
]  # fmt: skip

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Vocabulary:
    """Tokens with their kinds, and what else a file says of them."""

    def __init__(self, name: str, model: str) -> None:
        self.name, self.model = name, model
        self.tokens: list[str] = []
        self.kinds: list[TokenType] = []
        self.scores: list[float] | None = None
        self.merges: list[tuple[str, str]] = []
        self.keys: dict[str, int | bool] = {}

    def add(self, token: str, kind: TokenType) -> None:
        if token not in self.tokens:
            self.tokens.append(token)
            self.kinds.append(kind)

    def write(self, path: Path, pre: str) -> None:
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        else:
            writer.add_token_merges([" ".join(merge) for merge in self.merges])
        for key, value in self.keys.items():
            (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(f"tokenizer.ggml.{key}", value)
        writer.add_chat_template("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}")
        # llama.cpp needs these for a file without tensors, too.
        for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
            writer.add_uint32(f"llama.{key}", 1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()


def training_text() -> str:
    """The texts without special tokens: llama.cpp takes a learned token for a special one if it has the name of one."""
    return "\n".join(text for text in texts() if not any(token in text for token in SPECIAL))


def learned(words: Counter[str], pair_fits: str = r".*") -> list[tuple[str, str]]:
    """The pairs that occur most often, one after another. `pair_fits` is what a token must look like."""
    symbols = {word: list(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(symbols[word], symbols[word][1:], strict=False):
                pairs[pair] += count
        fitting = [(-count, pair) for pair, count in pairs.items() if re.fullmatch(pair_fits, "".join(pair), re.DOTALL)]
        pair = min(fitting)[1]
        merges.append(pair)
        for word, old in symbols.items():
            if pair[1] in old and pair[0] in old:
                symbols[word] = joined(old, pair)
    return merges


def joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with each occurrence of the pair joined."""
    new: list[str] = []
    place = 0
    while place < len(symbols):
        step = 2 if tuple(symbols[place : place + 2]) == pair else 1
        new.append("".join(symbols[place : place + step]))
        place += step
    return new


def sentence_piece(name: str, *, space_before_text: bool) -> Vocabulary:
    """A vocabulary of SentencePiece: control tokens, tokens of bytes, learned pieces, single characters."""
    vocabulary = Vocabulary(name, "llama")
    gemma = not space_before_text
    vocabulary.add("<unk>", TokenType.UNKNOWN)
    for token in ("<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|end|>"):
        vocabulary.add(token, TokenType.CONTROL)
    # The converter marks tokens as control tokens that look like one, and writes spaces into tokens of the user.
    vocabulary.add("<unused0>", TokenType.CONTROL)
    runs = ["\n" * count for count in range(2, 9)] + [" " * count for count in range(2, 9)] + ["\t\t", "<h1>", "[multimodal]"]
    for token in runs if gemma else ["<tool>"]:
        vocabulary.add(token, TokenType.USER_DEFINED)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", TokenType.BYTE)
    words = Counter(re.findall(r" ?[^ ]+| +", training_text().replace("▁", "")))
    words = Counter({word.replace(" ", "▁"): count for word, count in words.items()})
    pairs = learned(words, r"▁?[^▁\n\t]+" if gemma else r"▁?[^▁\n\t]+|▁+")
    learned_tokens = [left + right for left, right in pairs]
    for token in learned_tokens:
        vocabulary.add(token, TokenType.NORMAL)
    characters = Counter("".join(word * count for word, count in words.items()))
    for character, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        # SentencePiece has each character of its pieces.
        if count >= 8 and character != "\0" or any(character in token for token in learned_tokens):
            vocabulary.add(character, TokenType.NORMAL)
    first = vocabulary.kinds.index(TokenType.NORMAL)
    vocabulary.scores = [
        float(first - id_) if kind == TokenType.NORMAL else 0.0 if kind == TokenType.BYTE else -1000.0
        for id_, kind in enumerate(vocabulary.kinds)
    ]
    vocabulary.add("[PAD]", TokenType.NORMAL)
    vocabulary.scores.append(-10000.0)
    # A token that fills the vocabulary up, as the converter names it.
    vocabulary.add(f"[PAD{len(vocabulary.tokens)}]", TokenType.UNUSED)
    vocabulary.scores.append(-10000.0)
    vocabulary.keys = {
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True, "add_eos_token": False,
        "add_space_prefix": space_before_text,
    }  # fmt: skip
    return vocabulary


def alphabet() -> list[str]:
    """The character of each byte in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def byte_pairs() -> Vocabulary:
    """A vocabulary of bytes and their pairs, with special tokens behind them."""
    vocabulary = Vocabulary("bytes", "gpt2")
    letters = alphabet()
    for letter in letters:
        vocabulary.add(letter, TokenType.NORMAL)
    words: Counter[str] = Counter()
    for word in re.findall(r"\s?\w+|\s?[^\w\s]+|\s+", training_text()):
        words["".join(letters[byte] for byte in word.encode())] += 1
    vocabulary.merges = learned(words)
    for left, right in vocabulary.merges:
        vocabulary.add(left + right, TokenType.NORMAL)
    # A word that no pairs lead to: whether it is used depends on the way of cutting.
    vocabulary.add("ĠAngström", TokenType.NORMAL)
    vocabulary.add("Hello", TokenType.NORMAL)
    for token in ("<|begin_of_text|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>"):
        vocabulary.add(token, TokenType.CONTROL)
    for token in ("<think>", "</think>", "  <tool>"):
        vocabulary.add(token, TokenType.USER_DEFINED)
    vocabulary.add(f"[PAD{len(vocabulary.tokens)}]", TokenType.UNUSED)
    bos, eos = vocabulary.tokens.index("<|begin_of_text|>"), vocabulary.tokens.index("<|im_end|>")
    vocabulary.keys = {"bos_token_id": bos, "eos_token_id": eos, "add_bos_token": True}
    return vocabulary


def scored_merges(vocabulary: Vocabulary, tokens: list[str], *, longest_first: bool) -> list[tuple[str, str]]:
    """The pairs of a vocabulary of SentencePiece, as transformers orders them: today (`longest_first`), or when the files of Llama 2
    and Phi-3 were written."""
    ids = {token: id_ for id_, token in enumerate(tokens)}
    found = []
    for id_, token in enumerate(tokens):
        kind = vocabulary.kinds[id_]
        score = 0.0 if kind == TokenType.USER_DEFINED else vocabulary.scores[id_]
        if kind not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                order = (-len(left), -len(right), id_) if longest_first else (id_, ids[left], ids[right])
                found.append((-score, *order, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def added(vocabulary: Vocabulary, tokens: list[str]) -> list[dict]:
    """The tokens that are found in a text before anything else."""
    kinds = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    return [
        {
            "id": id_, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": vocabulary.kinds[id_] != TokenType.USER_DEFINED and token != "<unused0>",
        }
        for id_, token in enumerate(tokens)
        if vocabulary.kinds[id_] in kinds
    ]  # fmt: skip


def tokenizer_json(vocabulary: Vocabulary) -> dict:
    """The `tokenizer.json` of a model with this vocabulary."""
    scored = vocabulary.scores is not None
    tokens = [
        token.replace(" ", "▁") if scored and kind == TokenType.USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]
    bos = tokens[vocabulary.keys["bos_token_id"]]
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    template = [{"SpecialToken": {"id": bos, "type_id": 0}}, sequence]
    made = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added(vocabulary, tokens), "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing", "single": template, "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.keys["bos_token_id"]], "tokens": [bos]}},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": scored, "byte_fallback": scored, "ignore_merges": not scored,
            "vocab": {t: i for i, t in enumerate(tokens) if vocabulary.kinds[i] != TokenType.UNUSED},
            "merges": vocabulary.merges,
        },
    }  # fmt: skip
    if not scored:
        split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        made["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
        return made
    space_first = vocabulary.keys["add_space_prefix"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if space_first else []
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    made["normalizer"] = prepend if space_first else replace
    made["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}
    made["model"]["unk_token"] = "<unk>"
    made["model"]["merges"] = scored_merges(vocabulary, tokens, longest_first=not space_first)
    return made


def llama_cpp_sums(vocabulary: Vocabulary, pre: str) -> str:
    """For each text four hexadecimal digits of llama.cpp's tokens, without a beginning-of-text token."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        vocabulary.write(path, pre)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert model, f"llama.cpp does not load {vocabulary.name} with {pre}"
        known = llama_cpp.llama_model_get_vocab(model)
        sums = []
        for text in texts():
            encoded = text.encode()
            room = len(encoded) + 16
            ids = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(known, encoded, len(encoded), ids, room, False, True)
            assert count >= 0
            sums.append(f"{checksum(list(ids[:count])) & 0xFFFF:04x}")
        llama_cpp.llama_model_free(model)
    return "".join(sums)


@functools.cache
def vocabularies() -> list[Vocabulary]:
    return [
        sentence_piece("llama", space_before_text=True),
        sentence_piece("gemma", space_before_text=False),
        byte_pairs(),
    ]


def write_sums(path: Path) -> None:
    sums = {
        vocabulary.name: {pre: llama_cpp_sums(vocabulary, pre) for pre in (["default"] if vocabulary.scores else SPLITS)}
        for vocabulary in vocabularies()
    }
    path.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def write_corpus(path: Path) -> None:
    path.write_text(json.dumps(texts(), indent=0) + "\n", encoding="utf-8")


def main() -> int:
    args = argument_parser(__doc__).parse_args()
    made = {f"{FOLDER}/corpus.json": write_corpus, f"{FOLDER}/llama_cpp.json": write_sums}
    for vocabulary in vocabularies():
        pre = "default" if vocabulary.scores else SPLITS[0]
        made[f"{FOLDER}/{vocabulary.name}.gguf"] = functools.partial(vocabulary.write, pre=pre)
        made[f"{FOLDER}/{vocabulary.name}.json"] = functools.partial(
            lambda path, vocabulary: path.write_text(
                json.dumps(tokenizer_json(vocabulary), ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8"
            ),
            vocabulary=vocabulary,
        )
    return finish(made, args)


if __name__ == "__main__":
    sys.exit(main())
