"""The names that the book and `transformers` give to the parts of a model, for the errors of those who use them."""

from typing import Any

from torch import Tensor, nn

_PARTS = {
    "trf_blocks": "trunk.blocks",
    "final_norm": "trunk.norm",
    "tok_emb": "trunk.embed.token",
    "pos_emb": "trunk.embed.position",
    "drop_emb": "trunk.embed.dropout",
    "out_head": "head",
    "transformer": "trunk",
    "lm_head": "head",
}


class Renamed(nn.Module):
    """A module that says what the book's names are called here, whether they are read or set.

    Setting one would otherwise succeed: torch accepts any name, and nothing would compute with the new part.
    """

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name in _PARTS:
            raise AttributeError(f"a {type(self).__name__} has no {name}; it is called {_PARTS[name]} here")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PARTS:
            remedy = "for a new head call add_classifier_head(model, classes=[...])"
            remedy = remedy if _PARTS[name] == "head" else "to choose what trains, call freeze(model, trainable=...)"
            problem = f"a {type(self).__name__} has no {name}, so setting it would change nothing"
            raise AttributeError(f"{problem}: it is called {_PARTS[name]} here; {remedy}")
        super().__setattr__(name, value)
