"""Writing a tokenizer's files in Hugging Face's formats, such that `transformers` encodes texts as gptclf does."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptclf.tokenizer.bpe import END_OF_TEXT, byte_characters, id_table, merges_of
from gptclf.tokenizer.read import SETTINGS, WHOLE

if TYPE_CHECKING:
    import tiktoken

# What transformers calls the side on which a text loses its tail or its head; it cannot cut out the middle.
SIDES = {"tail": "right", "head": "left"}


def tokenizer_files(tokenizer: "tiktoken.Encoding", max_length: int, *, truncation: str = "tail") -> dict[str, str]:
    """Return the tokenizer's files in Hugging Face's formats, as file names and contents.

    The files are `vocab.json`, `merges.txt`, `tokenizer.json` (the format of the `tokenizers` library) and
    `tokenizer_config.json`.

    Args:
        tokenizer: An encoding that is laid out like GPT-2's.
        max_length: The number of tokens to which `transformers` shortens texts with `truncation=True`.
        truncation: The part that a longer text loses.
    """
    added, count = getattr(tokenizer, "added", ()), tokenizer.eot_token
    last = max([count, *(token.id for token in added)])
    if tokenizer.n_vocab - 1 != last:
        problem = f"its end-of-text token has id {count} instead of the last, {tokenizer.n_vocab - 1}"
        raise ValueError(f"tokenizer {tokenizer.name!r} is not laid out like GPT-2's, as its files must be: {problem}")
    ranks = {tokenizer.decode_single_token_bytes(i): i for i in range(count)}
    char, table = byte_characters(), id_table(ranks)
    merges = [["".join(char[byte] for byte in part) for part in pair] for pair in merges_of(ranks)]
    # Unless special tokens are found in texts, those to be found are written as ordinary added tokens.
    split = not any(token.content == END_OF_TEXT and token.found for token in added)
    listed = [
        {
            "id": token.id,
            "content": token.content,
            "normalized": token.normalized,
            "special": not token.found if split else token.special,
        }
        for token in added
    ] or [{"id": count, "content": END_OF_TEXT, "normalized": False, "special": True}]
    settings = {
        "add_prefix_space": getattr(tokenizer, "prefix_space", False),
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END_OF_TEXT),
        "model_max_length": max_length,
        "padding_side": "right",
        "split_special_tokens": split,
        "tokenizer_class": "GPT2Tokenizer",
        "truncation_side": SIDES.get(truncation, "right"),
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    whole = _tokenizer_json(table, merges, listed, prefix_space=settings["add_prefix_space"])
    return {
        "vocab.json": json.dumps(table, ensure_ascii=False),
        "merges.txt": "\n".join(lines) + "\n",
        WHOLE: json.dumps(whole, ensure_ascii=False),
        SETTINGS: json.dumps(settings, indent=2) + "\n",
    }


def _tokenizer_json(
    table: Mapping[str, int], merges: Sequence[Sequence[str]], added: Sequence[Mapping[str, Any]], *, prefix_space: Any
) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` with this vocabulary, these merges and these added tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token")),
        **dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), ""),
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": table,
        "merges": merges,
    }
    off = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding")),
        "added_tokens": [{**token, **off} for token in sorted(added, key=lambda token: token["id"])],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": prefix_space},
        **dict.fromkeys(("post_processor", "decoder"), byte_level),
        "model": model,
    }
