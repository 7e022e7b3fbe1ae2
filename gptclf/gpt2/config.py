"""The numbers that determine a GPT-2's computation, and the published sizes as data.

Letters used in every docstring of this project: B batch, T tokens, D width (`emb_dim`), H heads, V vocabulary,
C classes, L blocks.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptclf.checks import boolean, choice, integer, number

ACTIVATIONS = ("gelu_tanh", "gelu", "relu", "silu")


@dataclass(frozen=True)
class GPT2Config:
    """A GPT-2's shape and the choices that change what it computes; the defaults are GPT-2 124M.

    The first seven fields have the names of the book's configuration dictionaries (Raschka, "Build a Large Language
    Model (From Scratch)", section 4.1), so `GPT2Config(**GPT_CONFIG_124M)` works.

    Attributes:
        vocab_size: Number of token ids (V).
        context_length: Longest row in tokens; the number of learned positions.
        emb_dim: Width of the residual stream (D).
        n_heads: Attention heads (H); divides `emb_dim`.
        n_layers: Transformer blocks (L).
        drop_rate: Dropout probability after the embeddings, on attention weights and on both residual branches.
        qkv_bias: Whether the query, key and value projections have a bias (OpenAI's weights do).
        mlp_dim: Width inside the MLP; None means 4 * `emb_dim`.
        activation: The MLP's non-linearity: "gelu_tanh" (GPT-2's), "gelu", "relu" or "silu".
        norm_eps: The epsilon under the square root of every layer norm.
        scale_attention: Divide attention scores by the square root of the head width.
        scale_attention_by_layer: Also divide block i's scores by i + 1.
        tied: Whether the language-model head uses the token embedding's matrix.
        init_std: Standard deviation of freshly drawn weights.

    Example:
        >>> GPT2Config(n_layers=24, n_heads=16, emb_dim=1024) == PRESETS["gpt2-medium"]
        True
    """

    vocab_size: int = 50257
    context_length: int = 1024
    emb_dim: int = 768
    n_heads: int = 12
    n_layers: int = 12
    drop_rate: float = 0.0
    qkv_bias: bool = True
    mlp_dim: int | None = None
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-5
    scale_attention: bool = True
    scale_attention_by_layer: bool = False
    tied: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = f"GPT2Config.{field.name}", getattr(self, field.name)
            match field.default:
                case bool():
                    value = boolean(name, value)
                case str():
                    value = choice(name, value, ACTIVATIONS)
                case float() as default:
                    value = number(name, value, above=0.0) if default else number(name, value)
                case default:
                    value = integer(name, value, 1, optional=default is None)
            object.__setattr__(self, field.name, value)
        if self.drop_rate >= 1:
            raise ValueError(f"GPT2Config.drop_rate is {self.drop_rate}; it must be a number of at least 0 and below 1")
        width, heads = self.emb_dim, self.n_heads
        if width % heads:
            raise ValueError(f"GPT2Config: emb_dim {width} is not divisible by n_heads {heads}; give a multiple of it")

    @property
    def hidden_dim(self) -> int:
        """Width inside the MLP."""
        return 4 * self.emb_dim if self.mlp_dim is None else self.mlp_dim

    @classmethod
    def from_book(cls, base: Mapping[str, Any], size: Mapping[str, Any] | None = None) -> "GPT2Config":
        """Return the configuration of the book's own `GPTModel`: a base dictionary updated by that of a size.

        The book's class has an output layer of its own, so the result is untied. Write
        `GPT2Config(**{**base, **size})` for the same shape with GPT-2's tied head.

        Args:
            base: For example the book's `BASE_CONFIG` or `GPT_CONFIG_124M`; it is not changed.
            size: For example `model_configs["gpt2-medium (355M)"]`; its values take precedence.

        Raises:
            TypeError: `base` or `size` is not a dictionary.
            ValueError: A value that the book's class reads is missing, as in `BASE_CONFIG` without a size; or a key is
                unknown.

        Example:
            >>> base = {"vocab_size": 50257, "context_length": 256, "drop_rate": 0.1, "qkv_bias": False}
            >>> GPT2Config.from_book(base, {"emb_dim": 768, "n_layers": 12, "n_heads": 12}).tied
            False
        """
        given = {"tied": False, **_mapping("base", base), **_mapping("size", {} if size is None else size)}
        missing = [field.name for field in dataclasses.fields(cls)[:7] if field.name not in given]
        if missing:
            remedy = 'add the size\'s values, as model_configs["gpt2-small (124M)"] has them'
            raise ValueError(f"the book's dictionary lacks {', '.join(missing)}; {remedy}")
        return cls.from_dict(given)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPT2Config":
        """Return the configuration with these fields. An unknown key is an error that names it."""
        fields = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(_mapping("values", values)) - set(fields), key=str)
        if unknown:
            named = f"key{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"
            raise ValueError(f"unknown configuration {named}; GPT2Config has {', '.join(fields)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary, as `GPT2Config.from_dict` takes it."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> "GPT2Config":
        """Return a copy with some fields changed."""
        return GPT2Config.from_dict({**self.to_dict(), **changes})


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a dictionary with the keys of GPT2Config")
    return value


# Widths, layers and heads as OpenAI published them with each checkpoint (hparams.json).
PRESETS: dict[str, GPT2Config] = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(emb_dim=1024, n_layers=24, n_heads=16),
    "gpt2-large": GPT2Config(emb_dim=1280, n_layers=36, n_heads=20),
    "gpt2-xl": GPT2Config(emb_dim=1600, n_layers=48, n_heads=25),
    # Ships with the package (gptclf/nano), with a vocabulary of its own.
    "nano": GPT2Config(vocab_size=4096, context_length=512, emb_dim=192, n_layers=4, n_heads=6),
}

ALIASES: dict[str, str] = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}

# The keys of the book's `model_configs`, such as "gpt2-small (124M)".
BOOK_NAMES = {f"{'gpt2-small' if name == 'gpt2' else name} ({size})": name for size, name in ALIASES.items()}


def published_name(name: str) -> str:
    """Return the preset that a name means: the name itself, unless it is a size or a key of the book's `model_configs`.

    Example:
        >>> [published_name(name) for name in ("355M", "gpt2-small (124M)", "nano", "owner/name")]
        ['gpt2-medium', 'gpt2', 'nano', 'owner/name']
    """
    return (ALIASES | BOOK_NAMES).get(name, name)
