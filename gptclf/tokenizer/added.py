"""`AddedTokens`: an encoding that also finds the tokens added to GPT-2's vocabulary, as `transformers` does.

This module is imported where it is needed, as `import gptclf` does not load tiktoken.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tiktoken

from gptclf.tokenizer.bpe import END_OF_TEXT, PATTERN
from gptclf.tokenizer.tokens import pieces


class AddedToken(NamedTuple):
    """A token that is not made by merges.

    Attributes:
        content: Its characters.
        id: Its number; a token added twice may have that of a token of the vocabulary.
        special: Whether it is one of the special tokens, which decoding may leave out.
        normalized: Whether it is looked for after all the tokens that are not.
        found: Whether its characters in a text become this token; otherwise they are ordinary characters.
    """

    content: str
    id: int
    special: bool
    normalized: bool
    found: bool


class AddedTokens(tiktoken.Encoding):
    """GPT-2's encoding with added tokens: `encode_ordinary` gives the ids that `transformers` gives.

    Args:
        ranks: The ids of the tokens that merges make, by their bytes.
        added: The added tokens, among them the end of text.
        prefix_space: Whether each stretch of text between added tokens starts with a space, if need be a new one.
    """

    cuts_texts = True  # long ones too: a piece of a text could begin within an added token

    def __init__(self, ranks: dict[bytes, int], added: Sequence[AddedToken], *, prefix_space: bool = False) -> None:
        new = {token.content: token.id for token in added if token.id >= len(ranks)}
        name, special = f"gpt2-{len(ranks) + len(new)}", {END_OF_TEXT: len(ranks), **new}
        super().__init__(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self.added, self.prefix_space = tuple(added), prefix_space

    def __getstate__(self) -> object:
        return {"ranks": self._mergeable_ranks, "added": self.added, "prefix_space": self.prefix_space}

    def __setstate__(self, value: Any) -> None:
        self.__init__(**value)  # type: ignore[misc]

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text, with the added tokens that are to be found in it."""
        parts: list[str | int] = [text]
        for normalized in (False, True):
            of_pass = {token.content: token for token in self.added if token.normalized is normalized}
            if of_pass:
                parts = [piece for part in parts for piece in _split(part, of_pass)]
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
                continue
            prefix = " " if self.prefix_space and not part.startswith(" ") else ""
            for piece in pieces(prefix + part):
                ids += super().encode_ordinary(piece)
        return ids


def _split(part: str | int, tokens: dict[str, AddedToken]) -> Iterator[str | int]:
    """Split a text at the tokens that are to be found; what is a token already stays one."""
    if isinstance(part, int):
        yield part
        return
    start = 0
    # The longest first, as the one at the left wins. A token that is not to be found hides those that begin within it.
    for match in re.finditer("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))), part):
        if (token := tokens[match[0]]).found:
            if match.start() > start:
                yield part[start : match.start()]
            yield token.id
            start = match.end()
    if start < len(part):
        yield part[start:]
