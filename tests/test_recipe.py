"""Options as one value: written once, checked once, and the same wherever they are given."""

import inspect
import math
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from conftest import byte_gpt2

from gptclf import GPT2, TextDataset, add_classifier_head, estimate, freeze, train, train_lm
from gptclf.training.optim import Schedule, make_optimizer
from gptclf.training.recipe import BOOK, LANGUAGE_MODEL, Recipe, RecipeChanges
from gptclf.training.run import RunOptions
from gptclf.training.train import TrainOptions


def classifier(trainable: str = "all") -> GPT2:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)
    freeze(clf, trainable=trainable)
    return clf


def data(clf: GPT2) -> TextDataset:
    return TextDataset(["win", "see you", "call", "ok"], ["spam", "ham"] * 2, tokenizer=clf.tokenizer)


def test_the_keyword_arguments_are_the_fields() -> None:
    assert get_type_hints(RecipeChanges) == {field.name: field.type for field in fields(Recipe)}


def test_the_other_options_are_the_fields_of_the_runs_options() -> None:
    others = {field.name: field.type for field in fields(RunOptions)}
    assert get_type_hints(TrainOptions) == get_type_hints(RecipeChanges) | others


@pytest.mark.parametrize(("function", "recipe"), [(train, BOOK), (train_lm, LANGUAGE_MODEL), (estimate, BOOK)])
def test_a_signature_lists_every_option_with_its_default(function: Any, recipe: Recipe) -> None:
    parameters = inspect.signature(function).parameters
    for field in fields(Recipe):
        assert parameters[field.name].default == getattr(recipe, field.name)
        assert parameters[field.name].annotation == field.type
    assert list(parameters)[:4] == ["model", "train_set", "val_set", "epochs"]
    assert all(parameter.kind != parameter.VAR_KEYWORD for parameter in parameters.values())
    if function is not estimate:
        assert parameters["keep_checkpoints"].default == 2
        assert parameters["callbacks"].default == ()


def test_every_option_of_train_is_documented() -> None:
    documented = train.__doc__ or ""
    for name in inspect.signature(train).parameters:
        assert f"\n        {name}: " in documented
    for field in fields(Recipe):
        assert f"\n        {field.name}: " in (Recipe.__doc__ or "")


def test_the_books_recipe_is_the_default() -> None:
    assert (BOOK.epochs, BOOK.batch_size, BOOK.lr, BOOK.weight_decay, BOOK.seed) == (5, 8, 5e-5, 0.1, 123)
    assert replace(LANGUAGE_MODEL, epochs=5, lr=5e-5, eval_batches=None) == BOOK


def test_a_recipe_does_not_change_and_shows_what_differs_from_the_default() -> None:
    with pytest.raises(FrozenInstanceError):
        BOOK.lr = 1.0  # type: ignore[misc]
    assert repr(Recipe()) == "Recipe()"
    assert repr(Recipe(epochs=3, head_lr=1e-3)) == "Recipe(epochs=3, head_lr=0.001)"
    assert hash(Recipe()) == hash(Recipe(epochs=5))


def test_numbers_of_numpy_and_torch_become_pythons() -> None:
    recipe = Recipe(epochs=np.int64(3), lr=np.float32(0.5), seed=torch.tensor(7), drop_last=np.bool_(True))  # type: ignore[arg-type]
    assert recipe == Recipe(epochs=3, lr=0.5, seed=7, drop_last=True)
    assert [type(value) for value in (recipe.epochs, recipe.lr, recipe.seed, recipe.drop_last)] == [
        int,
        float,
        int,
        bool,
    ]


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_a_wrong_type_is_a_type_error_and_a_wrong_value_a_value_error(name: str) -> None:
    wrong: dict[str, Any] = dict.fromkeys(("decay", "schedule", "precision"), "x")
    wrong |= dict.fromkeys(("lr", "weight_decay", "clip", "layer_decay", "head_lr"), math.nan)
    with pytest.raises(TypeError, match=rf"{name} is \[\]; it must be"):
        Recipe(**{name: []})  # type: ignore[arg-type]
    if name not in ("drop_last", "reuse_frozen"):
        value = wrong.get(name, -1)
        with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be"):
            Recipe(**{name: value})


def test_a_recipe_and_its_options_give_the_same_run() -> None:
    first, second, third = (classifier() for _ in range(3))
    recipe = Recipe(epochs=2, batch_size=2, lr=1e-3)
    one = train(first, data(first), recipe=recipe, progress=False)
    other = train(second, data(second), epochs=2, batch_size=2, lr=1e-3, progress=False)
    changed = train(third, data(third), recipe=replace(recipe, epochs=7), epochs=2, progress=False)
    assert [s.loss for s in one.steps] == [s.loss for s in other.steps] == [s.loss for s in changed.steps]


@pytest.mark.parametrize("function", [train, estimate])
def test_a_misspelt_option_is_named_with_its_nearest(function: Any) -> None:
    clf = classifier()
    with pytest.raises(TypeError, match="there is no option 'batchsize'; did you mean 'batch_size'"):
        function(clf, data(clf), batchsize=2)
    with pytest.raises(TypeError, match="there is no option 'zzz'; the options are epochs, "):
        function(clf, data(clf), zzz=2)


# Rates per layer


def rates(clf: GPT2, recipe: Recipe) -> dict[str, float]:
    optimizer = make_optimizer(clf, recipe)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    held = sum(len(group["params"]) for group in optimizer.param_groups)
    assert held == len(of) == sum(p.requires_grad for p in clf.parameters())
    return {name: of[id(p)] for name, p in clf.named_parameters() if id(p) in of}


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_the_rate_falls_with_the_distance_from_the_top_block(decay: str) -> None:
    found = rates(classifier(), Recipe(lr=1.0, layer_decay=0.5, decay=decay))
    expected = {"embed": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "blocks.2": 1.0, "norm": 1.0, "head": 1.0}
    for name, rate in found.items():
        stage = next(stage for stage in expected if name.removeprefix("trunk.").startswith(stage))
        assert rate == expected[stage], name


def test_the_head_has_a_rate_of_its_own() -> None:
    found = rates(classifier(), Recipe(lr=1.0, head_lr=3.0, layer_decay=0.5))
    assert {rate for name, rate in found.items() if name.startswith("head.")} == {3.0}
    assert {rate for name, rate in found.items() if not name.startswith("head.")} == {1.0, 0.5, 0.25, 0.125}


def test_without_either_there_is_one_group_as_ever() -> None:
    clf = classifier()
    optimizer = make_optimizer(clf, Recipe())
    assert [group["params"] for group in optimizer.param_groups] == [list(clf.parameters())]
    assert optimizer.defaults["fused"]


def test_the_schedule_multiplies_every_groups_own_rate() -> None:
    clf = classifier()
    recipe = Recipe(lr=1.0, layer_decay=0.5, schedule="linear", warmup_steps=2)
    optimizer = make_optimizer(clf, recipe)
    schedule = Schedule(optimizer, recipe, 6)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        schedule.step()
    factors = [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert seen == [[rate * factor for rate in (1.0, 0.5, 0.25, 0.125)] for factor in factors]
    schedule.move_to(3)
    schedule.rescale(0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.075, 0.0375, 0.01875, 0.009375])


def test_a_recipe_with_rates_per_layer_trains() -> None:
    plain, layered = classifier(), classifier()
    one = train(plain, data(plain), epochs=2, lr=1e-3, progress=False)
    other = train(layered, data(layered), epochs=2, lr=1e-3, layer_decay=0.5, head_lr=1e-2, progress=False)
    assert one.steps[0].loss == other.steps[0].loss
    assert one.steps[1].loss != other.steps[1].loss
    assert [step.lr for step in other.steps] == [1e-3, 1e-3]


def test_a_seed_beyond_64_bits_is_refused() -> None:
    assert Recipe(seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(
        ValueError,
        match="seed is 18446744073709551616; it must be an integer of at least 0 and at most 18446744073709551615",
    ):
        Recipe(seed=2**64)
