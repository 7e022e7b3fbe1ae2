"""Fine-tune GPT-2 to classify text.

Load the weights, put a classifier head where the vocabulary head was, freeze most blocks, train the rest with
cross-entropy on the last token, measure, predict, save, load.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gptclf.version import __version__ as __version__

if TYPE_CHECKING:
    from gptclf.public import *  # noqa: F403 - the names are listed there
    from gptclf.public import __all__ as __all__

else:  # type checkers take the names from there, and notice those that it does not have

    def __getattr__(name: str) -> Any:
        # torch takes seconds to load: it waits for the first use, so that the command line shows its help at once.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        public = import_module("gptclf.public")
        if not hasattr(public, name):
            ours = import_module("gptclf.book_names").FUNCTIONS.get(name)
            hint = "" if ours is None else f"; the book's {name} is here {ours}"
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
        globals().update({each: getattr(public, each) for each in public.__all__}, __all__=public.__all__)
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("gptclf.public").__all__})
