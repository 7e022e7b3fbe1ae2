"""A model is freed when its last name goes, without the garbage collector: no part of it refers back to the whole."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_process_settings import LABELS, QUICK, TEXTS, TOKENIZER, classifier, language_model, rows

from gptclf import (
    GPT2,
    Callback,
    KeepBest,
    TextDataset,
    TextWindows,
    add_classifier_head,
    apply_lora,
    clear_features,
    estimate,
    evaluate,
    freeze,
    generate,
    load_adapter,
    load_gpt2,
    load_model,
    merge_lora,
    perplexity,
    predict,
    predict_many,
    predict_stream,
    quantize,
    save_adapter,
    save_model,
    train,
    train_lm,
    zero_shot,
)

KEPT: list[Any] = []  # what a caller may keep longer than the model


class Fails(Callback):
    def on_step(self, run: Any, step: Any) -> None:
        raise RuntimeError("no")


def loaded() -> GPT2:
    save_model(classifier(), "classifier")
    return load_model("classifier")


def adapted() -> GPT2:
    save_adapter(apply_lora(classifier(), rank=2, seed=0), "adapter")
    return load_adapter(language_model(), "adapter")


def trains(**options: Any) -> Callable[[GPT2], Any]:
    def run(clf: GPT2) -> None:
        KEPT.append(train(clf, rows(), rows(), **{**QUICK, **options}))

    return run


def trains_all(clf: GPT2) -> None:
    freeze(clf, trainable="all")
    train(clf, rows(), **QUICK, recompute=True)


def trains_and_fails(clf: GPT2) -> None:
    with pytest.raises(RuntimeError, match="no"):
        train(clf, rows(), callbacks=[Fails()], **QUICK)


def trains_lm(gpt2: GPT2) -> None:
    freeze(gpt2, trainable="all")
    train_lm(gpt2, TextWindows("to be or not " * 20, tokenizer=TOKENIZER, length=16), **QUICK)


def streams_and_stops(clf: GPT2) -> None:
    answers = predict_stream(clf, iter(TEXTS), window=3)
    next(answers)


def is_refused(clf: GPT2) -> None:
    with pytest.raises(ValueError, match="eggs"):
        evaluate(clf, TextDataset(TEXTS, ["eggs", *LABELS[1:]], tokenizer=TOKENIZER))


def nothing(model: GPT2) -> None:
    """Only make the model."""


CASES: dict[str, tuple[Callable[[], GPT2], Callable[[GPT2], Any]]] = {
    "load_gpt2": (lambda: load_gpt2("nano"), nothing),
    "tokenizer": (lambda: load_gpt2("nano"), lambda gpt2: gpt2.tokenizer.encode("a")),
    "add_classifier_head": (classifier, nothing),
    "another head": (language_model, lambda gpt2: KEPT.append(add_classifier_head(gpt2, 3, seed=0))),
    "load_model": (loaded, lambda clf: predict(clf, TEXTS)),
    "save_model": (classifier, lambda clf: save_model(clf, "saved")),
    "forward": (classifier, lambda clf: clf(torch.tensor([[1, 2]])).sum().backward()),
    "predict": (classifier, lambda clf: KEPT.append(predict(clf, TEXTS))),
    "predict bfloat16": (classifier, lambda clf: predict(clf, TEXTS, precision="bfloat16")),
    "predict by mean": (lambda: classifier(classes=["a", "b"], pooling="mean"), lambda clf: predict(clf, TEXTS)),
    "predict_many": (classifier, lambda clf: predict_many([clf, classifier()], TEXTS)),
    "predict_stream": (classifier, lambda clf: KEPT.extend(predict_stream(clf, TEXTS))),
    "abandoned stream": (classifier, streams_and_stops),
    "in training mode": (lambda: classifier().train(), lambda clf: predict(clf, TEXTS)),
    "evaluate": (classifier, lambda clf: KEPT.append(evaluate(clf, rows()))),
    "train": (classifier, trains()),
    "train bfloat16": (classifier, trains(precision="bfloat16")),
    "train, shown": (classifier, trains(progress=True)),
    "train, kept": (classifier, trains(callbacks=[KeepBest()], checkpoint_dir="states", cache_dir="features")),
    "train all": (classifier, trains_all),
    "failed training": (classifier, trains_and_fails),
    "refused": (classifier, is_refused),
    "estimate": (classifier, lambda clf: estimate(clf, rows())),
    "apply_lora": (classifier, lambda clf: apply_lora(clf, rank=2, seed=0)),
    "trained lora": (lambda: apply_lora(classifier(), rank=2, seed=0), lambda m: (trains()(m), merge_lora(m))),
    "load_adapter": (adapted, lambda clf: predict(clf, TEXTS)),
    "quantize": (classifier, quantize),
    "quantised": (lambda: quantize(classifier()), lambda clf: predict(clf, TEXTS)),
    "generate": (language_model, lambda gpt2: generate(gpt2, "hello", max_new_tokens=3)),
    "train_lm": (language_model, trains_lm),
    "zero_shot": (language_model, lambda gpt2: KEPT.append(zero_shot(gpt2, ["a"], ["x", "y"]))),
    "perplexity": (language_model, lambda gpt2: perplexity(gpt2, TEXTS)),
}


@pytest.fixture(scope="module", autouse=True)
def _after_the_first_training() -> None:
    """The first optimizer of a process imports torch's compiler, whose import keeps its callers in a cycle."""
    trains()(classifier())


@pytest.fixture
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    KEPT.clear()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("case", CASES)
def test_a_model_is_freed_when_its_last_name_goes(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    make, use = CASES[case]
    model = make()
    alive = [weakref.ref(model), weakref.ref(model.head), *map(weakref.ref, model.head.parameters())]
    use(model)
    del model
    caplog.clear()
    if case == "another head":  # it shares the trunk, and nothing else
        assert alive[0]() is None
    else:
        assert [ref() for ref in alive] == [None] * len(alive)


@pytest.mark.usefixtures("_without_collector")
def test_what_a_history_or_a_stored_feature_keeps_is_not_the_model() -> None:
    clf = classifier()
    alive = [weakref.ref(parameter) for parameter in clf.parameters()]
    trains()(clf)
    evaluate(clf, rows())
    del clf
    assert not any(ref() is not None for ref in alive)
    clear_features()
