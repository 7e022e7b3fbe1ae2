"""Settings of the process or thread belong to whoever made them: no answer depends on one, and none is changed."""

import ast
import contextlib
import csv
import functools
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from torch import Tensor, nn

import gptclf
from gptclf import (
    GPT2,
    GPT2Config,
    KeepBest,
    MultiLabel,
    Regression,
    SingleLabel,
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
    predict_proba,
    predict_stream,
    quantize,
    save_adapter,
    save_model,
    token_log_probs,
    train,
    train_lm,
    trainable_report,
    zero_shot,
)

CONFIG = GPT2Config(vocab_size=257, context_length=64, emb_dim=32, n_layers=2, n_heads=2, drop_rate=0.1)
TOKENIZER = byte_tokenizer()
TEXTS = [f"text number {i} {'ab ' * (i % 4)}" for i in range(12)]
LABELS = ["ham", "spam", "ham"] * 4
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 4, "progress": False}


def language_model() -> GPT2:
    return load_gpt2(CONFIG, weights="random", seed=0, tokenizer=TOKENIZER)


def classifier(**options: Any) -> GPT2:
    clf = add_classifier_head(language_model(), seed=1, **(options or {"classes": ["ham", "spam"]}))
    clf.head.forget_fresh()
    return clf


def rows(labels: Any = LABELS, **options: Any) -> TextDataset:
    return TextDataset(TEXTS, labels, tokenizer=TOKENIZER, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def ran(clf: GPT2, data: TextDataset, **options: Any) -> Any:
    clear_features()
    history = train(clf, data, data, **{**QUICK, **options})
    return [vars(step) for step in history.steps], history.epochs[-1].val, weights(clf)


def trained() -> Any:
    return ran(classifier(task=SingleLabel(["ham", "spam"], class_weight="balanced")), rows(), callbacks=[KeepBest()])


def trained_whole() -> Any:
    clf = classifier(classes=["ham", "spam"], pooling="mean")
    freeze(clf, trainable="all")
    return ran(clf, rows(), recompute=True, clip=1.0, accumulate=2)


def trained_head() -> Any:
    clf = add_classifier_head(language_model(), 2, pooling="max", bias=False, seed=1)
    freeze(clf, trainable="head")
    return ran(clf, rows([0, 1, 0] * 4))


def trained_on_labels() -> Any:
    task = MultiLabel(["ham", "spam"])
    return ran(classifier(task=task), rows([["ham"], [], ["ham", "spam"]] * 4, task=task))


def trained_on_numbers() -> Any:
    return ran(classifier(task=Regression()), rows([0.5, 1.5, -1.0] * 4, task=Regression()))


def trained_lora() -> Any:
    return ran(apply_lora(classifier(), rank=2, seed=0), rows())


def trained_quantised() -> Any:
    return ran(apply_lora(quantize(classifier(), bits="int8"), rank=2, seed=0), rows())


def resumed() -> Any:
    for epochs in (1, 2):
        kept: Any = {"checkpoint_dir": "states", "resume": epochs == 2, "cache_dir": "kept"}
        found = ran(classifier(), rows(), epochs=epochs, callbacks=[KeepBest()], **kept)
    return found


def trained_lm() -> Any:
    gpt2 = language_model()
    freeze(gpt2, trainable="all")
    windows = TextWindows("to be or not to be " * 20, tokenizer=TOKENIZER, length=16)
    return [vars(step) for step in train_lm(gpt2, windows, windows, **QUICK).steps], weights(gpt2)


def evaluated() -> Any:
    clear_features()
    found = evaluate(classifier(), rows())
    return found.measures, found.details, found.outputs, str(found)


def estimated() -> Any:
    found = estimate(classifier(), rows(), epochs=2)
    return found.steps, found.feature_bytes, str(trainable_report(classifier()))


def loaded() -> Any:
    save_model(classifier(), "classifier")
    save_model(language_model(), "gpt2")
    read = {path.name: path.read_bytes() for path in Path("classifier").iterdir() if path.suffix == ".safetensors"}
    return read, predict_proba(load_model("classifier"), TEXTS), weights(load_gpt2("gpt2"))


def adapted() -> Any:
    save_adapter(apply_lora(classifier(), rank=2, seed=0), "adapter")
    model = load_adapter(language_model(), "adapter")
    return weights(merge_lora(model)), predict_proba(model, TEXTS)


def quantised() -> Any:
    nf4 = quantize(classifier())
    save_model(nf4, "quantised")
    return (
        weights(nf4),
        predict_proba(load_model("quantised"), TEXTS),
        predict_proba(quantize(classifier(), bits="int8"), TEXTS),
    )


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "predict": lambda: predict(classifier(), TEXTS),
    "predict_proba": lambda: predict_proba(classifier(classes=["ham", "spam"], pooling="mean"), TEXTS),
    "bfloat16": lambda: predict_proba(classifier(), TEXTS, precision="bfloat16"),
    "predict_stream": lambda: [answer.probabilities for answer in predict_stream(classifier(), TEXTS, window=5)],
    "predict_many": lambda: predict_many([classifier(), classifier()], TEXTS),
    "evaluate": evaluated,
    "train": trained,
    "train all": trained_whole,
    "train head": trained_head,
    "train multi-label": trained_on_labels,
    "train regression": trained_on_numbers,
    "train lora": trained_lora,
    "train quantised": trained_quantised,
    "resume": resumed,
    "train_lm": trained_lm,
    "generate": lambda: generate(language_model(), "hello", max_new_tokens=4, temperature=0.9, top_k=5, seed=3),
    "zero_shot": lambda: vars(zero_shot(language_model(), ["a b"], {"x": "yes", "y": "no"}, normalize=True)),
    "perplexity": lambda: perplexity(language_model(), TEXTS),
    "token_log_probs": lambda: token_log_probs(language_model(), [1, 2, 3]),
    "estimate": estimated,
    "add_classifier_head": lambda: weights(classifier()),
    "load_gpt2": lambda: weights(load_gpt2("nano")),
    "save and load": loaded,
    "adapters": adapted,
    "quantize": quantised,
}


@contextmanager
def set_to(set_: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    set_(value)
    try:
        yield
    finally:
        set_(before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: set_to(torch.set_default_dtype, torch.float64, torch.float32),
    "default bfloat16": lambda: set_to(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: set_to(torch.set_default_device, "meta", None),
    "with device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad off": lambda: set_to(torch.set_grad_enabled, False, True),
    "deterministic": lambda: set_to(torch.use_deterministic_algorithms, True, False),
    "numpy raises": lambda: np.errstate(all="raise"),
    "seeds": lambda: set_to(lambda n: (torch.manual_seed(n), np.random.seed(n), random.seed(n)), 7, 8),  # noqa: NPY002
    "recursion": lambda: set_to(sys.setrecursionlimit, 500, sys.getrecursionlimit()),
}
# Nothing trains in inference mode, whose tensors have no gradients; what is said instead.
REFUSED = {("inference_mode", name) for name in FUNCTIONS if name.startswith("train") or name in ("resume", "estimate")}


def settings() -> dict[str, Any]:
    """What a process, or the current thread of it, has set."""
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.empty(0).device,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch generator": torch.default_generator.get_state().numpy().tobytes(),
        "numpy generator": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"]),
        "numpy errors": np.geterr(),
        "random": random.getstate(),
        "csv": csv.field_size_limit(),
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "signal": signal.getsignal(signal.SIGINT),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": list(warnings.filters),
        "folder": Path.cwd(),
        "environment": dict(os.environ),
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert a.device == b.device
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What each function returns in a process where nothing was set."""

    @functools.cache
    def of(name: str) -> Any:
        with contextlib.chdir(tmp_path_factory.mktemp("plain")):
            return FUNCTIONS[name]()

    return of


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_process_is_neither_obeyed_nor_changed(
    setting: str, function: str, plain: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(function)
    monkeypatch.chdir(tmp_path)
    with SETTINGS[setting]():
        before = settings()
        if (setting, function) in REFUSED:
            with pytest.raises(ValueError, match=r"nothing trains in torch.inference_mode\(\)"):
                FUNCTIONS[function]()
        else:
            assert_same(FUNCTIONS[function](), expected)
        assert settings() == before


# Functions of torch that take their device, and their type if they make floats, from the process where none is given.
FACTORIES = {"tensor", "as_tensor", "asarray", "scalar_tensor", "arange", "randint", "randperm", "eye"}
FLOATS = {"zeros", "ones", "empty", "full", "linspace", "rand", "randn"}


def test_every_tensor_that_the_package_makes_names_its_device_and_type() -> None:
    found, wrong = 0, []
    for path in sorted(Path(gptclf.__file__).parent.rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        for call in calls:
            module, _, name = ast.unparse(call.func).rpartition(".")
            given = {keyword.arg for keyword in call.keywords}
            if module == "torch" and name in FACTORIES | FLOATS and None not in given:
                found += 1
                needs = {"device", "dtype"} if name in FLOATS - {"full"} else {"device"}
                wrong += [f"{path.name}:{call.lineno} {name}"] * bool(needs - given)
    assert found > 30
    assert wrong == []


def test_what_was_loaded_in_inference_mode_predicts_anywhere_and_is_refused_by_training() -> None:
    expected = predict_proba(classifier(), TEXTS)
    with torch.inference_mode():
        clf = classifier()
    np.testing.assert_array_equal(predict_proba(clf, TEXTS), expected)
    with pytest.raises(ValueError, match="nothing trains"):
        train(clf, rows(), **QUICK)
