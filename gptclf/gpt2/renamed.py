"""The names that the book and `transformers` give to the parts of a model, for the errors of those who use them."""

from typing import Any

from torch import Tensor, nn

from gptclf.book_names import PARTS


class Renamed(nn.Module):
    """A module that says what the book's names are called here, whether they are read or set.

    Setting one would otherwise succeed: torch accepts any name, and nothing would compute with the new part.
    """

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name in PARTS:
            raise AttributeError(f"a {type(self).__name__} has no {name}; it is called {PARTS[name]} here")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in PARTS:
            remedy = "for a new head call add_classifier_head(model, classes=[...])"
            remedy = remedy if PARTS[name] == "head" else "to choose what trains, call freeze(model, trainable=...)"
            problem = f"a {type(self).__name__} has no {name}, so setting it would change nothing"
            raise AttributeError(f"{problem}: it is called {PARTS[name]} here; {remedy}")
        super().__setattr__(name, value)
