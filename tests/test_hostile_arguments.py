"""Every public function and class with values that nobody meant to give, made from the signatures.

For each callable there is a set of valid arguments. One argument at a time is replaced by something hostile. The call
may work; otherwise the error is one of ours, says which argument is at fault and shows what was given, and comes before
any work: no block has run, the model is as it was and no file was made.
"""

import inspect
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer

import gptclf
from gptclf import (
    GPT2,
    Batches,
    ClassifierHead,
    EarlyStopping,
    GPT2Config,
    KeepBest,
    MultiLabel,
    NextToken,
    Preparation,
    Recipe,
    Regression,
    SingleLabel,
    TextDataset,
    TextWindows,
    add_classifier_head,
    apply_lora,
    evaluate,
    load_gpt2,
    save_adapter,
    save_model,
    train,
)
from gptclf.checks import python_value
from gptclf.gpt2.trunk import Attention

PACKAGE = str(Path(gptclf.__file__).parent)
CONFIG = GPT2Config(vocab_size=257, context_length=32, emb_dim=8, n_heads=2, n_layers=2)
TEXTS, LABELS = ["win cash", "see you", "win now", "at six"], ["spam", "ham"] * 2


class Nothing:
    """An object that is good for nothing."""

    def __repr__(self) -> str:
        return "Nothing()"


# Arguments that messages call by another name.
ALIASES = {"dropout": "drop_rate", "indices": "row", "dataset": "data set", "classes": "class", "gpt2": "model"}
ALIASES |= {"text": "token", "name": "dictionary", "val_set": "validation set", "table": "column", "path": "suffix"}

# What is shown instead of the value: its number of tokens, or the whole template that it is a part of.
SHOWN_OTHERWISE = {("TextWindows", "texts"), ("generate_ids", "ids"), ("zero_shot", "template")}

# Values of the wrong type, out of every range, or empty.
HOSTILE: list[Any] = [None, Nothing(), int, len, True, b"x", 1j, Path("nowhere/at/all")]
HOSTILE += [0, -1, 2**63, 10**30, -(10**30), 1.5, -0.5, float("nan"), float("inf")]
HOSTILE += ["", "x", "\ud800", "a\0b", [], {}, set(), (), range(0), [None], [[]], ["x", 3], {"x": None}]
HOSTILE += [np.array([1.5, 2]), np.array("x"), np.float64("nan"), np.array(None), np.datetime64("NaT")]
HOSTILE += [torch.tensor([1.0, 2.0]), torch.zeros(0)]


def language_model() -> GPT2:
    return load_gpt2(CONFIG, weights="random", seed=1, tokenizer=byte_tokenizer())


def windows() -> TextWindows:
    return TextWindows("to be or not to be, that is the question", tokenizer=byte_tokenizer(), length=8)


class StopAtOnce(gptclf.Callback):
    """Ends a run after its first step, so that a million epochs are no problem."""

    def on_step(self, run: gptclf.Run, step: gptclf.Step) -> None:
        run.stop("enough")


class New:
    """A valid argument that each call gets anew, because a call may change it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def trainable_language_model() -> GPT2:
    gpt2 = language_model()
    gptclf.freeze(gpt2, trainable="all")
    return gpt2


class Case:
    """A callable and valid arguments by name, made anew for each call."""

    def __init__(self, call: Callable[..., Any], leave: str = "", **valid: Any) -> None:
        self.call, self.valid, self.leave = call, valid, leave.split()

    def names(self) -> list[str]:
        """The arguments to replace. `leave` names those that take anything, or for which huge values are right."""
        kinds = inspect.Parameter
        found = [
            name
            for name, parameter in inspect.signature(self.call).parameters.items()
            if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        ]
        return [name for name in found if name not in self.leave]


def classifier(**options: Any) -> GPT2:
    given: dict[str, Any] = {"classes": ["ham", "spam"], "seed": 1, **options}
    return add_classifier_head(language_model(), **given)


def cases(folder: Path) -> dict[str, Case]:
    """Valid calls of everything public, by name."""
    gpt2, clf = language_model(), classifier()
    other = classifier()
    tokenizer = clf.tokenizer
    data = TextDataset(TEXTS, LABELS, tokenizer=tokenizer, classes=clf.classes)
    adapted = apply_lora(clf, 2, 4)
    saved, adapter = save_model(clf, folder / "saved"), save_adapter(adapted, folder / "adapter", base="saved")
    book = folder / "book.pth"
    torch.save({}, book)
    table = folder / "table.csv"
    table.write_text("text,label,weight\nwin,spam,1\nsee,ham,2\n")
    history = train(classifier(), data, epochs=1, progress=False)
    batch = next(iter(Batches(data, 2, task=clf.task)))
    recipe = {"callbacks": [StopAtOnce()], "progress": False}
    found, [explained] = evaluate(clf, data), gptclf.explain(clf, TEXTS[:1])
    make = {
        "GPT2": Case(GPT2, config=CONFIG, device="meta"),
        "GPT2Config": Case(GPT2Config, **CONFIG.to_dict()),
        "load_gpt2": Case(load_gpt2, name=CONFIG, weights="random", seed=1, tokenizer=tokenizer),
        "load_model": Case(gptclf.load_model, folder=saved),
        "save_model": Case(save_model, model=clf, folder=folder / "again"),
        "save_adapter": Case(save_adapter, model=adapted, folder=folder / "adapter2"),
        "load_adapter": Case(gptclf.load_adapter, model=clf, folder=adapter),
        "load_gpt2_params_from_tf_ckpt": Case(gptclf.load_gpt2_params_from_tf_ckpt, "settings verify", folder=saved),
        "add_classifier_head": Case(add_classifier_head, "classes task", model=gpt2, num_classes=2),
        "add_classifier_head classes": Case(add_classifier_head, "num_classes task", model=gpt2, classes=[0, 1]),
        "add_classifier_head task": Case(
            add_classifier_head, "num_classes classes", model=gpt2, task=SingleLabel([0, 1])
        ),
        "freeze": Case(gptclf.freeze, model=New(classifier), trainable="head"),
        "frozen_depth": Case(gptclf.frozen_depth, model=clf),
        "trainable_report": Case(gptclf.trainable_report, model=clf),
        "apply_lora": Case(apply_lora, model=gpt2, rank=2),
        "merge_lora": Case(gptclf.merge_lora, model=adapted),
        "quantize": Case(gptclf.quantize, model=gpt2, bits="int8"),
        "ClassifierHead": Case(ClassifierHead, emb_dim=8, n_outputs=2),
        "SingleLabel": Case(SingleLabel, classes=["a", "b"]),
        "MultiLabel": Case(MultiLabel, classes=["a", "b"]),
        "Regression": Case(Regression, n_outputs=1),
        "NextToken": Case(NextToken, n_outputs=9),
        "Preparation": Case(Preparation, max_length=3),
        "Recipe": Case(Recipe),
        "TextDataset": Case(TextDataset, "task", texts=TEXTS, labels=LABELS, tokenizer=tokenizer),
        "TextDataset task": Case(
            TextDataset, "classes", texts=TEXTS, labels=LABELS, tokenizer=tokenizer, task=clf.task
        ),
        "from_file": Case(TextDataset.from_file, path=table),
        "from_table": Case(TextDataset.from_table, table={"text": TEXTS, "label": LABELS}),
        "subset": Case(data.subset, indices=[0]),
        "Batches": Case(Batches, dataset=data, batch_size=2),
        "TextWindows": Case(TextWindows, "", texts="to be or not to be", tokenizer=tokenizer, length=4),
        "split": Case(gptclf.split, dataset=data, fractions=(0.5, 0.5), seed=1),
        "shared_texts": Case(gptclf.shared_texts, first=data, second=data),
        "EarlyStopping": Case(EarlyStopping, patience=1),
        "KeepBest": Case(KeepBest),
        "train": Case(train, "callbacks on_step", model=New(classifier), train_set=data, val_set=data, **recipe),
        "estimate": Case(gptclf.estimate, model=clf, train_set=data),
        "train_lm": Case(
            gptclf.train_lm, "callbacks", model=New(trainable_language_model), train_set=windows(), **recipe
        ),
        "batch_loss": Case(gptclf.batch_loss, model=clf, batch=batch),
        "clear_features": Case(gptclf.clear_features),
        "evaluate": Case(evaluate, model=clf, dataset=data),
        "evaluate_many": Case(gptclf.evaluate_many, models=[clf, other], dataset=data),
        "compare": Case(gptclf.compare, evaluation_a=evaluate(clf, data), evaluation_b=evaluate(other, data)),
        "predict": Case(gptclf.predict, model=clf, texts=TEXTS),
        "predict_proba": Case(gptclf.predict_proba, model=clf, texts=TEXTS),
        "predict_logits": Case(gptclf.predict_logits, model=clf, texts=TEXTS),
        "embed": Case(gptclf.embed, model=clf, texts=TEXTS),
        "explain": Case(gptclf.explain, model=clf, texts=TEXTS),
        "explain leave_one_out": Case(gptclf.explain, model=clf, texts=TEXTS, method="leave_one_out"),
        "nearest": Case(gptclf.nearest, model=clf, texts=TEXTS, train_set=data, k=1),
        "plot": Case(explained.plot, path=folder / "e.png"),
        "calibrate": Case(gptclf.calibrate, model=clf, val_set=data),
        "plot_confusion": Case(found.plot_confusion, path=folder / "c.png"),
        "predict_stream": Case(gptclf.predict_stream, model=clf, texts=TEXTS),
        "predict_many": Case(gptclf.predict_many, models=[clf, other], texts=TEXTS),
        "predict_proba_many": Case(gptclf.predict_proba_many, models=[clf, other], texts=TEXTS),
        "dataset_loss": Case(gptclf.dataset_loss, model=clf, dataset=data),
        "dataset_accuracy": Case(gptclf.dataset_accuracy, model=clf, dataset=data),
        "generate": Case(gptclf.generate, "max_new_tokens", gpt2=gpt2, prompt="to", max_new_tokens=2),
        "generate_ids": Case(gptclf.generate_ids, "max_new_tokens", gpt2=gpt2, ids=[1, 2], max_new_tokens=2),
        "perplexity": Case(gptclf.perplexity, gpt2=gpt2, text="to be"),
        "token_log_probs": Case(gptclf.token_log_probs, gpt2=gpt2, text="to be"),
        "zero_shot": Case(gptclf.zero_shot, gpt2=gpt2, texts=TEXTS, labels=["a", "b"]),
        "text_to_token_ids": Case(gptclf.text_to_token_ids, text="to", tokenizer=tokenizer),
        "token_ids_to_text": Case(gptclf.token_ids_to_text, ids=[1, 2], tokenizer=tokenizer),
        "export_onnx": Case(gptclf.export_onnx, "external_data", model=clf, path=folder / "m.onnx"),
        "History.plot": Case(history.plot, path=folder / "h.png"),
        "to_frame": Case(found.to_frame),
        "most_confident_errors": Case(found.most_confident_errors),
        "plot_reliability": Case(found.plot_reliability, path=folder / "r.png"),
        "plot_risk_coverage": Case(found.plot_risk_coverage, path=folder / "o.png"),
        "plot_per_class": Case(found.plot_per_class, path=folder / "p.png"),
        "to_html": Case(found.to_html, path=folder / "e.html"),
        "tfidf_baseline": Case(gptclf.tfidf_baseline, train_set=data, test_set=data),
    }
    for name in ("from_file", "from_table"):
        make[name].valid["tokenizer"] = tokenizer
    return make


# Made by the library, or a base class: nobody calls them with values of their own.
MADE = {"Batch", "Callback", "Comparison", "Estimate", "Evaluation", "Explanation", "Head", "History", "Linear"}
MADE |= {"Neighbours", "Prediction", "Run", "Scores", "Step", "Task", "ZeroShot", "__version__"}
MADE |= {"download_openai_checkpoint", "ConfidentError", "ConfidentErrors", "Reliability", "RiskCoverage"}


def test_everything_public_has_a_case(tmp_path: Path) -> None:
    assert set(gptclf.__all__) - MADE == {name.split()[0] for name in cases(tmp_path)} & set(gptclf.__all__)


@contextmanager
def at_most(seconds: int, what: str) -> Iterator[None]:
    """Raise a TimeoutError of ours after some seconds."""

    def ring(number: int, frame: Any) -> None:
        raise AssertionError(f"{what} takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state_of(value: Any) -> Any:
    """What a call must leave as it was: a model's numbers and flags, and whether it trains."""
    if not isinstance(value, GPT2):
        return None
    flags = [(name, p.requires_grad, float(p.double().sum())) for name, p in value.named_parameters() if not p.is_meta]
    return flags, value.training, [m.training for m in value.modules()], value.preparation, value.task


def shown(value: Any) -> list[str]:
    """Pieces of text by which a message may show a value."""
    several = isinstance(value, list | tuple | set | dict) or np.ndim(value) > 0
    inside = [python_value(item) for item in value] if several else []
    pieces = [
        repr(value)[:20],
        repr(value)[1:-1] or "nothing",
        str(value)[:20],
        type(value).__name__,
        getattr(value, "__name__", ""),
    ]
    pieces += [piece for item in inside for piece in (repr(item), type(item).__name__)]
    plain = python_value(value)
    pieces += [f"{float(plain):g}", repr(float(plain))] if isinstance(plain, int | float) else []
    pieces += [repr(plain)[:20], type(plain).__name__]
    pieces += [str(value.dtype), str(tuple(value.shape))] if isinstance(value, torch.Tensor | np.ndarray) else []
    pieces += [str(len(value))] if hasattr(value, "__len__") and np.ndim(value) else []
    sized = (hasattr(plain, "__len__") and np.ndim(plain) > 0) or isinstance(plain, str | dict | set)
    nothing = value is None or (len(plain) == 0 if sized else np.ndim(plain) == 0 and plain == 0)
    empty = (
        ["empty", "no ", "at least", "lacks", "nothing", "exactly one", "[]", "tokens", "none", "no token"]
        if nothing
        else []
    )
    return [piece for piece in pieces if piece] + empty


def fault(title: str, case: Case, arguments: dict[str, Any], name: str, blocks: list[int], folder: Path) -> str:
    """Say what is wrong with the outcome of a call with one hostile argument; "" if nothing is."""
    value = arguments[name]
    arguments = {key: valid.make() if isinstance(valid, New) else valid for key, valid in arguments.items()}
    before = [state_of(valid) for valid in arguments.values()]
    files, began = set(folder.rglob("*")), len(blocks)
    try:
        outcome = case.call(**arguments)
        if isinstance(outcome, Iterator):
            list(outcome)
        return ""
    except (TypeError, ValueError, OSError, IndexError) as error:
        frames = inspect.getinnerframes(error.__traceback__)  # type: ignore[arg-type]
        if not frames[-1].filename.startswith(PACKAGE):
            return f"a raw {type(error).__name__} of {frames[-1].filename}: {error}"
        message = str(error)
        words = [ALIASES.get(name, name), name, name.rstrip("s"), name.split("_")[-1], *name.split("_")]
        if not any(word in message for word in words):
            return f"{name} is not named: {message}"
        # "name=" stands in messages about arguments that do not go together, whatever their values.
        seen = (title, name) in SHOWN_OTHERWISE or any(piece in message for piece in [f"{name}=", *shown(value)])
        if not seen:
            return f"the value is not shown: {message}"
        if len(blocks) > began and title != "predict_stream":  # which answers all texts before a bad one
            return f"the error comes after {len(blocks) - began} blocks: {message}"
        if before != [state_of(valid) for valid in arguments.values()]:
            return f"the model was changed: {message}"
        if set(folder.rglob("*")) - files:
            return f"files were left: {set(folder.rglob('*')) - files}"
        return ""
    except AssertionError as error:
        return str(error)
    except FloatingPointError as error:  # a run with a learning rate of 10^30 diverges, and says so
        return "" if title.startswith("train") else str(error)
    except BaseException as error:  # whatever a library raises
        return f"{type(error).__name__}: {error}"


def test_hostile_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks: list[int] = []
    mix = Attention.mix

    def counted(self: Attention, *arguments: Any) -> Any:
        blocks.append(1)
        return mix(self, *arguments)

    faults, calls = [], 0
    made = cases(tmp_path)
    monkeypatch.setattr(Attention, "mix", counted)
    only = os.environ.get("ONLY")
    for title, case in made.items():
        if only and only != title:
            continue
        for name in case.names():
            for value in HOSTILE:
                calls += 1
                what = f"{title}({name}={value!r:.60})"
                with at_most(5, what):
                    found = fault(title, case, case.valid | {name: value}, name, blocks, tmp_path)
                if found:
                    faults.append(f"{what}: {found[:300]}")
    assert calls
    assert not faults, f"{len(faults)} of {calls} calls:\n" + "\n".join(faults)


def alike(value: Any) -> list[Any]:
    """A number in the forms of numpy and torch."""
    if isinstance(value, bool):
        return [np.bool_(value), torch.tensor(value)]
    if isinstance(value, int):
        return [np.int64(value), np.int32(value), np.array(value), torch.tensor(value)]
    return [np.float64(value), np.array(value), torch.tensor(value, dtype=torch.float64)]


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faults, calls = [], 0
    for title, case in cases(tmp_path).items():
        for name in case.names():
            value = case.valid.get(name, inspect.signature(case.call).parameters[name].default)
            if not isinstance(value, bool | int | float):
                continue
            for same in alike(value):
                calls += 1
                arguments = {key: its.make() if isinstance(its, New) else its for key, its in case.valid.items()}
                try:
                    case.call(**(arguments | {name: same}))
                except (TypeError, ValueError, RuntimeError) as error:
                    faults.append(f"{title}({name}={same!r}): {error}")
    assert calls > 300
    assert not faults, "\n".join(faults)


def test_what_takes_an_iterable_takes_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faults, calls = [], 0
    for title, case in cases(tmp_path).items():
        for name in case.names():
            kind = str(inspect.signature(case.call).parameters[name].annotation)
            value = case.valid.get(name)
            if "Iterable" not in kind or not isinstance(value, list | tuple):
                continue
            calls += 1
            try:
                case.call(**(case.valid | {name: (item for item in value)}))
            except (TypeError, ValueError) as error:
                faults.append(f"{title}({name}): {error}")
    assert calls > 10
    assert not faults, "\n".join(faults)
