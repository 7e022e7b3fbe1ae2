"""`Preparation`: the settings by which texts become rows of token ids, kept by data sets and models."""

from dataclasses import dataclass, field, fields

from gptclf.checks import choice, integer

_LONGEST = 1_000_000  # far above every context: more would only fill the memory with padding
TRUNCATIONS = ("tail", "head", "middle")


@dataclass(frozen=True)
class Preparation:
    """The settings by which texts become rows of token ids.

    Args:
        max_length: Longest row in tokens; None leaves the limit to the model's context length.
        truncation: The part that a longer text loses: its "tail", its "head" or its "middle".
        pad_to: Fill every row with `<|endoftext|>` up to this many tokens; None adds no tokens. If `max_length` is
            None, it becomes `pad_to`.

    Raises:
        TypeError: If a setting has the wrong type.
        ValueError: If a setting is out of range, or `max_length` exceeds `pad_to`.

    Example:
        >>> Preparation(pad_to=120)
        Preparation(max_length=120, truncation='tail', pad_to=120)
    """

    max_length: int | None = None
    truncation: str = field(default="tail", metadata={"choices": TRUNCATIONS})
    pad_to: int | None = None

    def __post_init__(self) -> None:
        max_length = integer("max_length", self.max_length, 1, most=_LONGEST, optional=True)
        pad_to = integer("pad_to", self.pad_to, 1, most=_LONGEST, optional=True)
        if pad_to is not None and max_length is not None and max_length > pad_to:
            raise ValueError(f"max_length {max_length} is more than pad_to {pad_to}; padded rows cannot be longer")
        # A frozen dataclass sets its own fields this way.
        object.__setattr__(self, "max_length", pad_to if max_length is None else max_length)
        object.__setattr__(self, "truncation", choice("truncation", self.truncation, TRUNCATIONS))
        object.__setattr__(self, "pad_to", pad_to)

    def kept(self, length: int, limit: int) -> tuple[slice, slice]:
        """Return the parts of a row of `length` tokens that are left if it may have `limit`.

        Example:
            >>> Preparation(truncation="middle").kept(length=9, limit=4)
            (slice(0, 2, None), slice(7, 9, None))
        """
        head = limit - {"tail": 0, "head": limit, "middle": limit // 2}[self.truncation]
        return slice(0, head), slice(max(length - limit + head, head), length)

    def export_problem(self) -> str:
        """Say why a pipeline of `transformers` cannot prepare texts like this; "" if it can.

        Example:
            >>> Preparation(pad_to=120).export_problem()
            'its pipeline cannot pad texts to 120 tokens that count as text'
        """
        if self.pad_to is not None:
            return f"its pipeline cannot pad texts to {self.pad_to} tokens that count as text"
        return "its pipeline cannot cut out the middle of a long text" if self.truncation == "middle" else ""

    def difference(self, other: "Preparation") -> str:
        """Describe how this preparation of a data set differs from the one a model was trained with; "" if equal.

        Example:
            >>> Preparation(max_length=8).difference(Preparation(max_length=16))
            'max_length=8 (the model was trained with 16)'
        """
        pairs = ((its.name, getattr(self, its.name), getattr(other, its.name)) for its in fields(self))
        changed = [pair for pair in pairs if pair[1] != pair[2]]
        return ", ".join(f"{name}={ours!r} (the model was trained with {theirs!r})" for name, ours, theirs in changed)
