"""GPT-2's byte-level BPE as a `tiktoken.Encoding`; the id of every token follows from the order of the merges."""

from collections.abc import Mapping
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
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@cache
def byte_characters() -> dict[int, str]:
    """Return the printable character that represents each byte in GPT-2's files (openai/gpt-2, `bytes_to_unicode`).

    The order of the dictionary is the order of the first 256 token ids.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def build_tokenizer(merges_file: Path, ids_file: Path | None = None) -> "tiktoken.Encoding":
    """Build an encoding from a merges file, checked against the id table if one is given."""
    return make_encoding(read_merges(merges_file, ids_file))


def read_merges(merges_file: Path, ids_file: Path | None = None) -> dict[bytes, int]:
    """Return the id of each token by its bytes, from a merges file and, if one is given, its id table.

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
    ranks = ranks_from_merges(merges)
    return ranks if ids_file is None else check_ids(ranks, read_json(ids_file), ids_file)


def ranks_from_merges(merges: Mapping[str, Any]) -> dict[bytes, int]:
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
    return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def check_ids(ranks: dict[bytes, int], table: Any, source: Path) -> dict[bytes, int]:
    """Return `ranks` if a table of ids from a file agrees with them."""
    if not isinstance(table, dict):
        raise ValueError(f"{source} has no table of token ids; the file is damaged")
    expected = id_table(ranks)
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


def id_table(ranks: Mapping[bytes, int]) -> dict[str, int]:
    """Return the ids by the names that the tokens have in files, the end of text included."""
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
