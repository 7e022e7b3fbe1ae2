"""`Recipe`: the options that determine a run's steps, written and checked once."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, TypeVar

from gptclf.book_names import OPTIONS
from gptclf.checks import LARGEST_SEED, PRECISIONS, boolean, choice, integer, number

DECAYS = ("all", "matrices")
_MOST = 10**12  # of steps and rows: more never end, and do not fit into the integers of the loop
SCHEDULES = ("constant", "linear", "cosine")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options that determine a run's steps: equal recipes, data and weights take equal steps.

    The defaults are those of the book's section 6.7. `train` takes a recipe, or its fields one by one:
    `train(model, data, epochs=3)`. The optimizer is AdamW with PyTorch's betas (0.9, 0.999) and epsilon 1e-8.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Rows per batch.
        lr: Learning rate.
        weight_decay: AdamW's decoupled weight decay.
        decay: "all" decays every parameter, as the book does; "matrices" leaves out biases and norms.
        schedule: Learning rate after the warm-up: "constant", or falling to 0 as "linear" or "cosine".
        warmup_steps: Optimizer steps over which the learning rate rises linearly.
        clip: Largest 2-norm of the gradient; None does not clip.
        accumulate: Batches per optimizer step; equal to one batch of `accumulate * batch_size` rows.
        drop_last: Leave out the last batch of an epoch if it is not full (the book's training loader does).
        seed: Determines the order of the rows and dropout.
        layer_decay: Factor on the learning rate for each block below the last one, in (0, 1]. The embedding counts as
            the block below the first (Clark et al., 2020, "ELECTRA").
        head_lr: Learning rate of the head; None means `lr`.
        reuse_frozen: Compute the frozen part of the model once per text and train the rest on the result: the same
            losses up to rounding, many times faster. The result is kept in this process's memory (at most a quarter of
            the machine's), so that another run on these texts does not compute it again; `clear_features` releases it.
            False computes everything at every step.
        precision: "auto", "float32" or "bfloat16" (autocast of matrix products; the weights stay float32). "auto" is
            bfloat16 if the processor multiplies it in hardware and the model is at least 256 wide, and float32
            otherwise. "float32" is the same everywhere up to rounding: use it for figures to publish.
        eval_every: Also measure every this many steps, in addition to once per epoch.
        eval_batches: Measure on this many batches of each set, always the same rows, drawn at random; None measures on
            all rows.

    Example:
        >>> from dataclasses import replace
        >>> replace(Recipe(epochs=3, lr=1e-4), epochs=2)
        Recipe(epochs=2, lr=0.0001)
    """

    epochs: int = 5
    batch_size: int = 8
    lr: float = 5e-5
    weight_decay: float = 0.1
    decay: str = field(default="all", metadata={"choices": DECAYS})
    schedule: str = field(default="constant", metadata={"choices": SCHEDULES})
    warmup_steps: int = 0
    clip: float | None = None
    accumulate: int = 1
    drop_last: bool = False
    seed: int = 123
    layer_decay: float = 1.0
    head_lr: float | None = None
    reuse_frozen: bool = True
    precision: str = field(default="auto", metadata={"choices": PRECISIONS})
    eval_every: int | None = None
    eval_batches: int | None = None

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 1, "accumulate": 1, "warmup_steps": 0}
        choices = {its.name: its.metadata["choices"] for its in fields(self) if its.metadata}
        checked = {
            **{name: integer(name, getattr(self, name), bound, most=_MOST) for name, bound in least.items()},
            **{name: integer(name, getattr(self, name), 1, optional=True) for name in ("eval_every", "eval_batches")},
            **{name: number(name, getattr(self, name)) for name in ("lr", "weight_decay")},
            **{name: boolean(name, getattr(self, name)) for name in ("drop_last", "reuse_frozen")},
            **{name: choice(name, getattr(self, name), allowed) for name, allowed in choices.items()},
            "seed": integer("seed", self.seed, most=LARGEST_SEED),
            "clip": number("clip", self.clip, above=0.0, optional=True),
            "layer_decay": number("layer_decay", self.layer_decay, above=0.0, most=1.0),
            "head_lr": number("head_lr", self.head_lr, optional=True),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        given = [(field.name, getattr(self, field.name), field.default) for field in fields(self)]
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value, default in given if value != default)})"


class RecipeChanges(TypedDict, total=False):
    """The fields of `Recipe` as keyword arguments (PEP 692)."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    decay: str
    schedule: str
    warmup_steps: int
    clip: float | None
    accumulate: int
    drop_last: bool
    seed: int
    layer_decay: float
    head_lr: float | None
    reuse_frozen: bool
    precision: str
    eval_every: int | None
    eval_batches: int | None


BOOK = Recipe()
LANGUAGE_MODEL = Recipe(epochs=1, lr=4e-4, eval_batches=5)


def recipe_of(recipe: Recipe, options: Mapping[str, Any], others: Collection[str]) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a call, with the fields that its options replace, and the call's other options.

    Args:
        recipe: The `recipe` argument of the call.
        options: The other keyword arguments of the call.
        others: Names of the options that are not in the recipe.

    Raises:
        TypeError: `recipe` is something else, or there is no such option.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"recipe is a {type(recipe).__name__}; it must be a gptclf.Recipe")
    names = [field.name for field in fields(Recipe)]
    refuse_unknown(options, [*names, *others])
    changes = {name: value for name, value in options.items() if name in names}
    return replace(recipe, **changes), {name: value for name, value in options.items() if name not in names}


def refuse_unknown(options: Collection[str], allowed: Collection[str]) -> None:
    """Raise a TypeError that names the options not among those allowed, and for each what may have been meant."""
    problems = []
    for name in [name for name in options if name not in allowed]:
        near = difflib.get_close_matches(name, allowed, 1, cutoff=0.75)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(allowed)}"
        problems.append(f"there is no option {name!r}; {OPTIONS.get(name, hint)}")
    if problems:
        raise TypeError("\n".join(problems))


def lists_options(of: type | None = None) -> Callable[[_Function], _Function]:
    """Make a decorator that lists each option, with its default, in the signature of a function of `**options`.

    Args:
        of: A class whose fields are options as well.
    """

    def listed(function: _Function) -> _Function:
        signature = inspect.signature(function)
        given, recipe = list(signature.parameters.values())[:-1], signature.parameters["recipe"]
        place = given.index(recipe)
        fields_of = inspect.signature(Recipe).parameters.values()
        given[place:place] = [field.replace(default=getattr(recipe.default, field.name)) for field in fields_of]
        given += [] if of is None else inspect.signature(of).parameters.values()
        function.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
        return function

    return listed
