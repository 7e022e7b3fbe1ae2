"""Answers of several classifiers together: those each gives alone, bit for bit, with shared stages computed once."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Doubled, EightBit, Foreign, LastAndMean, LowRank, TwoLayersOverLast
from torch import Tensor, nn

from gptclf import (
    GPT2,
    GPT2Config,
    Preparation,
    TextDataset,
    add_classifier_head,
    apply_lora,
    evaluate,
    evaluate_many,
    freeze,
    load_gpt2,
    load_model,
    merge_lora,
    predict,
    predict_many,
    predict_proba,
    predict_proba_many,
    predict_stream,
    save_model,
)
from gptclf.gpt2.learner import Learner
from gptclf.inference import outputs as core
from gptclf.inference.outputs import compute_all, compute_outputs

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TOKENIZER = byte_tokenizer()
TEXTS = ["you won a prize, call now", "ok", "", "see you at six", "a" * 60, "é€😀", "ok", "x", "call me later then", ""]


def trunk(seed: int = 7) -> GPT2:
    model = randomised(GPT2(CONFIG, seed=seed), seed).requires_grad_(False)
    model.tokenizer = TOKENIZER
    return model


GPT = trunk()


def stirred(model: GPT2, seed: int) -> GPT2:
    """The model with noise on its trainable parameters, as if it had been trained, and a head that is not fresh."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    model.head.forget_fresh()
    return model


def head(seed: int, trainable: Any = "head", base: GPT2 | None = None, **options: Any) -> GPT2:
    options = options if "head" in options else {"seed": seed, **options}
    classes = ["ham", "spam", "eggs"] if seed % 2 else ["ham", "spam"]
    clf = add_classifier_head(base or GPT, classes=classes, **options)
    freeze(clf, trainable=trainable)
    return stirred(clf, seed)


def lora(seed: int, blocks: int, **options: Any) -> GPT2:
    return stirred(apply_lora(head(seed), rank=2, blocks=blocks, seed=seed, **options), seed)


def replaced(seed: int, path: str, make: Callable[[Any], nn.Module]) -> GPT2:
    clf = head(seed)
    owner, _, name = path.rpartition(".")
    setattr(clf.get_submodule(owner), name, make(clf.get_submodule(path)))
    return clf


def hooked(seed: int, path: str) -> GPT2:
    clf = head(seed)
    clf.get_submodule(path).register_forward_hook(lambda module, given, y: 1.5 * y)
    return clf


def prepared(seed: int, preparation: Preparation) -> GPT2:
    clf = head(seed)
    clf.preparation = preparation
    return clf


def training(seed: int) -> GPT2:
    clf = head(seed, 1, base=GPT2_WITH_DROPOUT)
    return clf.train()


class InPlace(Foreign):
    """A head that changes the hidden states it is given, as none should."""

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(hidden.mul_(2.0), lengths)


def in_place(seed: int) -> GPT2:
    clf = head(seed, head=Foreign)
    clf.head.__class__ = InPlace  # it would not pass the trial of a new head
    return clf


GPT2_WITH_DROPOUT = randomised(GPT2(CONFIG.replace(drop_rate=0.2), seed=7), 7).requires_grad_(False)
GPT2_WITH_DROPOUT.tokenizer = TOKENIZER

KINDS: dict[str, Callable[[int], GPT2]] = {
    "last": lambda seed: head(seed),
    "first": lambda seed: head(seed, pooling="first"),
    "mean": lambda seed: head(seed, pooling="mean"),
    "max, no bias": lambda seed: head(seed, pooling="max", bias=False),
    "final norm": lambda seed: head(seed, ["norm", "head"]),
    "last block": lambda seed: head(seed, 1),
    "last block, mean": lambda seed: head(seed, 1, pooling="mean"),
    "last two blocks": lambda seed: head(seed, 2),
    "all": lambda seed: head(seed, "all"),
    "one block": lambda seed: head(seed, ["blocks.1", "head"]),
    "lora 1": lambda seed: lora(seed, 1),
    "lora 2": lambda seed: lora(seed, 2),
    "lora 3": lambda seed: lora(seed, 3, targets=["qkv", "head"], init="book"),
    "merged": lambda seed: merge_lora(lora(seed, 1)),
    "low rank": lambda seed: replaced(seed, "trunk.blocks.2.mlp.up", LowRank),
    "eight bits": lambda seed: replaced(seed, "trunk.blocks.1.mlp.up", EightBit),
    "doubled": lambda seed: replaced(seed, "trunk.blocks.1.mlp.up", Doubled.of),
    "custom head": lambda seed: head(seed, head=Foreign),
    "custom head on one token": lambda seed: head(seed, head=TwoLayersOverLast),
    "subclassed head": lambda seed: head(seed, head=LastAndMean),
    "head in place": in_place,
    "hooked model": lambda seed: hooked(seed, ""),
    "hooked embedding": lambda seed: hooked(seed, "trunk.embed"),
    "hooked block": lambda seed: hooked(seed, "trunk.blocks.1"),
    "hooked last layer": lambda seed: hooked(seed, "trunk.blocks.2.mlp.down"),
    "hooked norm": lambda seed: hooked(seed, "trunk.norm"),
    "hooked head": lambda seed: hooked(seed, "head"),
    "training": training,
    "other trunk": lambda seed: head(seed, base=trunk(8)),
    "cut": lambda seed: prepared(seed, Preparation(max_length=6)),
    "filled": lambda seed: prepared(seed, Preparation(pad_to=12)),
}
CLASSIFIERS = {name: [make(seed) for seed in (1, 2)] for name, make in KINDS.items()}


def agree(models: list[GPT2], texts: list[str], **options: Any) -> bool:
    """Whether the models' probabilities together are those of each alone, bit for bit."""
    found = predict_proba_many(models, texts, **options)
    alone = [predict_proba(model, texts, **options) for model in models]
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(found, alone, strict=True))


def equal_answers(a: GPT2, b: GPT2) -> bool:
    first, second = predict_proba_many([a, b], TEXTS)
    return np.array_equal(first, second)


# --- equality ---


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_answers_as_each_alone(kind: str, precision: str) -> None:
    models = [CLASSIFIERS["last"][0], *CLASSIFIERS[kind], CLASSIFIERS["mean"][1]]
    assert agree(models, TEXTS, precision=precision)
    found = predict_proba_many(models, TEXTS, precision=precision)
    assert not np.array_equal(found[1], found[2])  # they are not one model


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_all_together_answer_as_each_alone(precision: str) -> None:
    models = [model for pair in CLASSIFIERS.values() for model in pair]
    assert agree(models, TEXTS, precision=precision)
    assert agree(models[::-1], TEXTS, precision=precision, batch_size=2)


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(0, 1)), min_size=1, max_size=6),
    texts=st.lists(st.text(max_size=50), max_size=8),
    batch_size=st.none() | st.integers(1, 5),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_mixture_answers_as_each_alone(
    names: list[tuple[str, int]], texts: list[str], batch_size: int | None, precision: str
) -> None:
    models = [CLASSIFIERS[name][i] for name, i in names]
    assert agree(models, texts, batch_size=batch_size, precision=precision)


def test_labels_are_those_of_predict() -> None:
    models = [CLASSIFIERS[name][i] for name in ("last", "lora 2", "mean") for i in (0, 1)]
    assert predict_many(models, TEXTS) == [predict(model, TEXTS) for model in models]
    assert predict_many(models, iter(TEXTS)) == [predict(model, TEXTS) for model in models]
    assert predict_many(iter(models), []) == [[] for _ in models]  # type: ignore[arg-type]
    assert [answer.label for answer in predict_stream(models[3], TEXTS, window=3)] == predict(models[3], TEXTS)


def test_evaluations_are_those_of_evaluate() -> None:
    data = TextDataset(TEXTS, ["ham", "spam"] * 5, tokenizer=TOKENIZER, classes=["ham", "spam"])
    models = [model for pair in CLASSIFIERS.values() for model in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, alone = evaluate_many(models, data), [evaluate(model, data) for model in models]
    for ours, theirs in zip(found, alone, strict=True):
        assert np.array_equal(ours.outputs, theirs.outputs)
        assert (ours.measures, ours.predictions, ours.texts) == (theirs.measures, theirs.predictions, theirs.texts)


# --- sharing ---


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each step is computed from now on."""
    calls: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(core, name)

        def call(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*given, **named)

        return call

    for name in ("embed", "advance", "before_norm"):
        monkeypatch.setattr(core, name, counted(name))
    return calls


def computed_by(computed: Counter[str], models: list[GPT2], texts: list[str] | None = None) -> tuple[int, int, int]:
    computed.clear()
    predict_many(models, TEXTS if texts is None else texts)
    return computed["embed"], computed["advance"], computed["before_norm"]


def test_shared_stages_are_computed_once(computed: Counter[str]) -> None:
    def many(*names: str) -> tuple[int, int, int]:
        return computed_by(computed, [model for name in names for model in CLASSIFIERS[name]])

    assert computed_by(computed, CLASSIFIERS["last"][:1]) == (1, 2, 1)
    assert many("last") == (1, 2, 1)
    assert many("last", "first", "mean", "max, no bias") == (1, 2, 3)  # two that pool one position, two that read all
    assert many("last", "custom head on one token") == (1, 2, 1)
    assert many("last", "final norm") == (1, 2, 1)
    assert many("last block") == (1, 2, 2)
    assert many("last", "last block", "last two blocks") == (1, 2 + 2, 1 + 2 + 2)
    assert many("last", "lora 1") == (1, 2, 1 + 2)
    assert many("last", "lora 2") == (1, 2 + 2, 1 + 2)
    assert many("last", "lora 3") == (1, 2 + 4, 1 + 2)
    assert many("last", "merged") == (1, 2, 1 + 2)
    assert many("last", "one block") == (1, 2 + 2, 1 + 2)
    assert many("all") == (2, 4, 2)
    assert many("last", "other trunk") == (2, 4, 2)
    assert many("last", "hooked model", "hooked embedding") == (1, 2, 1)  # these are called
    assert many("last", "hooked block") == (1, 2 + 2, 1 + 2)
    assert many("last", "cut") == (2, 4, 2)


def test_chunks_and_repeated_texts_count_once(computed: Counter[str]) -> None:
    models = CLASSIFIERS["last"] + CLASSIFIERS["lora 2"]
    assert computed_by(computed, models, TEXTS * 50) == (1, 4, 3)
    computed.clear()
    predict_many(models, TEXTS, batch_size=4)  # eight different texts
    assert (computed["embed"], computed["advance"], computed["before_norm"]) == (2, 8, 6)


def test_preparations_that_give_equal_rows_are_computed_together(computed: Counter[str]) -> None:
    assert computed_by(computed, [CLASSIFIERS["last"][0], CLASSIFIERS["cut"][0]], ["short", "ok"]) == (1, 2, 1)


def test_models_that_were_loaded_apart_share_by_value(tmp_path: Path, computed: Counter[str]) -> None:
    saved = [*CLASSIFIERS["last"], CLASSIFIERS["last block"][0]]
    models = [load_model(save_model(model, tmp_path / str(i))) for i, model in enumerate(saved)]
    assert len({id(model.tokenizer) for model in models}) == 3
    assert len({next(model.parameters()).data_ptr() for model in models}) == 3
    assert computed_by(computed, models) == (1, 2, 2)
    assert agree(models, TEXTS)


def test_equal_numbers_in_another_layout_are_another_computation(tmp_path: Path, computed: Counter[str]) -> None:
    save_model(CLASSIFIERS["last"][0], tmp_path)
    transposed, same, contiguous = (load_model(tmp_path) for _ in range(3))
    assert not transposed.get_parameter("trunk.blocks.0.mlp.up.weight").is_contiguous()  # as the file has it
    for parameter in contiguous.parameters():
        parameter.data = parameter.detach().contiguous()
    assert computed_by(computed, [transposed, same]) == (1, 2, 1)
    assert computed_by(computed, [transposed, contiguous]) == (1, 4, 2)
    assert agree([transposed, contiguous, same], TEXTS)


@pytest.mark.parametrize("path", ["trunk.norm", "trunk.blocks.1.norm1", "trunk.blocks.2.attention", "head.output"])
def test_an_attribute_that_a_result_depends_on_is_looked_at(path: str) -> None:
    a, b = head(1), head(1)
    assert equal_answers(a, b)
    part: Any = b.get_submodule(path)
    if path == "head.output":
        part.register_forward_hook(lambda module, given, y: -y)
    elif path.endswith("attention"):
        part.scale *= 2
    else:
        part.eps = 0.1
    assert not equal_answers(a, b)
    assert agree([a, b], TEXTS)


def test_a_changed_value_parts_models_at_once(computed: Counter[str]) -> None:
    a, b = head(1, 2), head(1, 2)
    assert computed_by(computed, [a, b]) == (1, 2, 1)
    with torch.no_grad():
        b.get_parameter("trunk.blocks.1.norm2.bias")[3] += 1e-3
    assert computed_by(computed, [a, b]) == (1, 3, 2)


def test_ends_of_models_share_what_is_left(computed: Counter[str]) -> None:
    data = TextDataset(TEXTS, ["ham", "spam"] * 5, tokenizer=TOKENIZER, classes=["ham", "spam"])
    evaluate_many([CLASSIFIERS["last block"][0], CLASSIFIERS["lora 1"][0], CLASSIFIERS["last two blocks"][0]], data)
    # Features after two blocks, shared by two; and after one.
    assert (computed["embed"], computed["advance"], computed["before_norm"]) == (0, 1, 3)


def test_learners_of_other_depths_are_kept_apart() -> None:
    class Same:
        """Rows whose features happen to be equal at two depths."""

        lengths = np.array([2, 3])

        def __len__(self) -> int:
            return 2

        def packed(self, indices: Any) -> Tensor:
            return torch.cat([torch.ones(int(n), CONFIG.emb_dim) for n in self.lengths[indices]])

    clf, rows = CLASSIFIERS["last"][0], Same()
    learners = [Learner(clf, depth) for depth in (2, 3)]
    found = compute_all(learners, [rows, rows], precision="float32")  # type: ignore[list-item]
    alone = [compute_outputs(learner, rows, precision="float32") for learner in learners]  # type: ignore[arg-type]
    assert all(map(torch.equal, found, alone))
    assert not torch.equal(*found)


def test_progress_counts_each_models_tokens() -> None:
    done: list[int] = []
    data = TextDataset(["ham", "spam!", "x"], tokenizer=TOKENIZER)
    models = [CLASSIFIERS[name][0] for name in ("last", "mean", "hooked model", "lora 2")]
    compute_all(models, [data] * 4, precision="float32", report=done.append)
    assert sum(done) == 4 * len(data.ids)


# --- what is refused, and what is said ---


@pytest.mark.parametrize("function", [predict_many, predict_proba_many, evaluate_many])
def test_models_must_be_a_list_of_classifiers(function: Any) -> None:
    clf, data = CLASSIFIERS["last"][0], TextDataset(["a"], ["ham"], tokenizer=TOKENIZER, classes=["ham", "spam"])
    texts = data if function is evaluate_many else ["a"]
    with pytest.raises(TypeError, match=r"models is a GPT2; give a list of classifiers, such as \[model\]"):
        function(clf, texts)
    with pytest.raises(TypeError, match="models is a NoneType"):
        function(None, texts)
    with pytest.raises(ValueError, match="models is empty; give at least one classifier"):
        function([], texts)
    with pytest.raises(TypeError, match=r"models\[1\]: this is a language model"):
        function([clf, GPT], texts)
    with pytest.raises(TypeError, match=r"models\[2\]: model is a str"):
        function([clf, clf, "clf"], texts)


def test_texts_must_be_a_list() -> None:
    models = CLASSIFIERS["last"]
    with pytest.raises(TypeError, match=r"give a list of strings: \['hello'\]"):
        predict_many(models, "hello")
    with pytest.raises(TypeError, match="text 1 is missing"):
        predict_many(models, ["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict_many(models, ["a"], batch_size=0)
    with pytest.raises(ValueError, match="precision is 'half'"):
        predict_many(models, ["a"], precision="half")


def test_weights_of_another_type_are_named() -> None:
    half = head(1).half()
    with pytest.raises(ValueError, match=r"the model's weights are torch\.float16"):
        predict_many([CLASSIFIERS["last"][0], half, CLASSIFIERS["mean"][0]], TEXTS)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    broken = head(1)
    with torch.no_grad():
        broken.get_parameter("head.output.weight")[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"head\.output\.weight"):
        predict_many([CLASSIFIERS["last"][0], broken], TEXTS)


@pytest.mark.parametrize("function", [predict_many, predict_proba_many])
def test_each_fresh_head_is_warned_of_at_the_users_line(function: Any) -> None:
    models = [add_classifier_head(GPT, num_classes=2, seed=seed) for seed in (0, 1)]
    with pytest.warns(UserWarning, match="never trained") as caught:
        function([*models, CLASSIFIERS["last"][0]], TEXTS)
    assert [warning.filename for warning in caught] == [__file__] * 2


def test_models_and_modes_are_as_they_were() -> None:
    models = [training(3), lora(4, 2, dropout=0.5).train(), CLASSIFIERS["lora 1"][0]]
    before = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    assert agree(models, TEXTS)
    assert [model.training for model in models] == [True, True, False]
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_models_of_other_sizes_and_tokenizers_go_together() -> None:
    nano = stirred(add_classifier_head(load_gpt2("nano"), classes=["a", "b"], seed=1), 1)
    wide = stirred(add_classifier_head(byte_gpt2(), classes=["a", "b"], seed=1), 1)
    models = [nano, CLASSIFIERS["last"][0], wide, stirred(apply_lora(nano, 2, blocks=1, seed=2), 2)]
    assert agree(models, TEXTS, precision="float32")
