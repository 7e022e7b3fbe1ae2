"""GPT-2's byte-level BPE tokenizer as a `tiktoken.Encoding`: reading and writing its files.

Formats: OpenAI's `vocab.bpe` and `encoder.json`, Hugging Face's `merges.txt` and `vocab.json` (the same tables), and
Hugging Face's `tokenizer.json`. The id of every token follows from the order of the merges.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptclf.files.access import readable_size
from gptclf.files.json_file import read_json

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"

# GPT-2's splitting pattern (encoder.py of openai/gpt-2) with possessive quantifiers, which match the same pieces but
# cannot backtrack: a megabyte without a space takes a fraction of a second.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# The names of the merges file and of the file with the token ids, as OpenAI and Hugging Face call them.
_MERGES_FILES = ("vocab.bpe", "merges.txt")
_IDS_FILES = ("encoder.json", "vocab.json")


@cache
def byte_characters() -> dict[int, str]:
    """Return the printable character that represents each byte in GPT-2's files (openai/gpt-2, `bytes_to_unicode`).

    The order of the dictionary is the order of the first 256 token ids.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def read_tokenizer(folder: Path) -> "tiktoken.Encoding | None":
    """Return the tokenizer whose files are in `folder`; None if there are none.

    `transformers` 5 writes only `tokenizer.json`; older releases and OpenAI write the merges and the id table.
    """
    paths = [[folder / name for name in names] for names in (_MERGES_FILES, _IDS_FILES)]
    merges, ids = (next(filter(Path.exists, alternatives), None) for alternatives in paths)
    if merges is not None:
        return build_tokenizer(merges, ids)
    whole = folder / "tokenizer.json"
    return build_from_json(whole) if whole.exists() else None


def build_tokenizer(merges_file: Path, ids_file: Path | None = None) -> "tiktoken.Encoding":
    """Build an encoding from a merges file, checked against the id table if one is given.

    Raises:
        ValueError: A line is not a merge, or the id table disagrees with the merges.
    """
    readable_size(merges_file)
    try:
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{merges_file} is not UTF-8 text ({error}); the file is damaged") from error
    merges = {
        f"{merges_file}, line {number}": line.rstrip("\r").split(" ")
        for number, line in enumerate(lines, start=1)
        if line and not (number == 1 and line.startswith("#version"))
    }
    ranks = _ranks_from_merges(merges)
    return make_encoding(ranks if ids_file is None else _check_ids(ranks, read_json(ids_file), ids_file))


def build_from_json(path: Path) -> "tiktoken.Encoding":
    """Build an encoding from a `tokenizer.json`.

    Raises:
        ValueError: The file is damaged, or its tokenizer splits or normalises texts differently from GPT-2's.
    """
    whole = read_json(path)
    splitter, normalizer = whole.get("pre_tokenizer"), whole.get("normalizer")
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    usual = isinstance(splitter, dict) and all(splitter.get(key, value) == value for key, value in plain.items())
    if not usual or normalizer is not None:
        problem = f"{path} has the pre-tokenizer {splitter!r} and the normalizer {normalizer!r}"
        allowed = "GPT-2's: plain ByteLevel without a prefix space, and no normalizer"
        raise ValueError(f"{problem}; gptclf supports only {allowed}. Pass tokenizer= to load_gpt2")
    model = whole.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{path} holds no merges; GPT-2's tokenizer is byte-level BPE")
    merges = {
        f"{path}, merge {number}": pair.split(" ") if isinstance(pair, str) else pair
        for number, pair in enumerate(model["merges"], start=1)
    }
    return make_encoding(_check_ids(_ranks_from_merges(merges), model.get("vocab"), path))


def _ranks_from_merges(merges: Mapping[str, Any]) -> dict[bytes, int]:
    """Return the id of each token by its bytes.

    Args:
        merges: Pairs of token strings in order, keyed by their place in the file (for messages).
    """
    ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
    to_byte = {char: byte for byte, char in byte_characters().items()}
    for place, pair in merges.items():
        try:
            first, second = (bytes(to_byte[char] for char in part) for part in pair)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{place}: {pair!r} is not a merge of two tokens") from None
        if first not in ranks or second not in ranks:
            raise ValueError(f"{place}: {pair!r} merges a token that does not exist at this point")
        if first + second in ranks:
            raise ValueError(f"{place}: {pair!r} produces a token that already exists")
        ranks[first + second] = len(ranks)
    return ranks


def make_encoding(ranks: dict[bytes, int]) -> "tiktoken.Encoding":
    """Build an encoding from token bytes and ids; the end-of-text token gets the next id."""
    import tiktoken

    name, special = f"gpt2-{len(ranks) + 1}", {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding(name, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _check_ids(ranks: dict[bytes, int], table: Any, source: Path) -> dict[bytes, int]:
    """Return `ranks` if a table of ids from a file agrees with them."""
    if not isinstance(table, dict):
        raise ValueError(f"{source} has no table of token ids; the file is damaged")
    expected = _id_table(ranks)
    for token, index in expected.items():
        if table.get(token) != index:
            problem = f"{source} gives {token!r} the id {table.get(token)}, but the order of the merges gives {index}"
            reason = "the tokenizer is not laid out like GPT-2's, or its files do not belong together"
            raise ValueError(f"{problem}; {reason}")
    # Other tokens were added after training; this tokenizer could never produce them from text.
    if len(table) > len(expected):
        extra = sorted(set(table) - set(expected))
        raise ValueError(f"{source} has {len(extra)} tokens that no merge produces, such as {extra[:3]}")
    return ranks


def _id_table(ranks: Mapping[bytes, int]) -> dict[str, int]:
    char = byte_characters()
    table = {"".join(char[byte] for byte in token): i for token, i in ranks.items()}
    return {**table, END_OF_TEXT: len(ranks)}


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the two tokens from which each token of several bytes is merged, in the order of ids.

    An encoding keeps only the tokens. Running BPE on the bytes of a token with the merges before it leaves the pair.
    """
    merges = []
    for rank, token in sorted((rank, token) for token, rank in ranks.items() if len(token) > 1):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            best, i = min((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts)))
            if best >= rank:
                raise ValueError(f"token {token!r} cannot be reached by merging two earlier tokens")
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append((parts[0], parts[1]))
    return merges


def tokenizer_files(tokenizer: "tiktoken.Encoding", context_length: int) -> dict[str, str]:
    """Return the tokenizer's files in Hugging Face's formats, as file names and contents.

    The files are `vocab.json`, `merges.txt`, `tokenizer.json` (the format of the `tokenizers` library) and
    `tokenizer_config.json`.
    """
    count = tokenizer.n_vocab - 1
    if tokenizer.eot_token != count:
        problem = f"its end-of-text token has id {tokenizer.eot_token} instead of the last, {count}"
        raise ValueError(f"tokenizer {tokenizer.name!r} is not laid out like GPT-2's, as its files must be: {problem}")
    ranks = {tokenizer.decode_single_token_bytes(i): i for i in range(count)}
    char, table = byte_characters(), _id_table(ranks)
    merges = [["".join(char[byte] for byte in part) for part in pair] for pair in merges_of(ranks)]
    config = {
        "add_prefix_space": False,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT),
        "model_max_length": context_length,
        "padding_side": "right",
        "tokenizer_class": "GPT2Tokenizer",
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {
        "vocab.json": json.dumps(table, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        "tokenizer.json": json.dumps(_tokenizer_json(table, merges), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _tokenizer_json(table: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` with this vocabulary and these merges."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token")),
        **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), ""),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": table,
        "merges": merges,
    }
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding")),
        "added_tokens": [{"id": table[END_OF_TEXT], "content": END_OF_TEXT, **off, "special": True}],
        "normalizer": None,
        **dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), byte_level),
        "model": model,
    }
