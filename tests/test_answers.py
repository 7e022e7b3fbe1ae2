"""Answers that people can use: outputs, embeddings, streams, cut texts, small samples, pictures, and what is shown."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import byte_gpt2, byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gptclf import (
    GPT2,
    Batches,
    EarlyStopping,
    GPT2Config,
    Preparation,
    SingleLabel,
    TextDataset,
    TextWindows,
    add_classifier_head,
    dataset_accuracy,
    dataset_loss,
    embed,
    estimate,
    evaluate,
    freeze,
    predict,
    predict_logits,
    predict_proba,
    predict_stream,
    save_model,
    split,
    train,
    train_lm,
    zero_shot,
)
from gptclf.plotting import plot_confusion

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TOKENIZER = byte_tokenizer()
TEXTS = ["you won a prize, call now", "ok", "", "see you at six", "a" * 60, "é€😀", "x", "ok"]
SECRET = "Jane Roe, 12 High Street"


def language_model() -> GPT2:
    gpt2 = randomised(GPT2(CONFIG, seed=7)).requires_grad_(False)
    gpt2.tokenizer = TOKENIZER
    return gpt2


GPT = language_model()


def classifier(classes: Any = ("ham", "spam", "eggs"), **options: Any) -> GPT2:
    clf = add_classifier_head(GPT, classes=classes, seed=3, **options)
    clf.head.forget_fresh()
    return randomised(clf, seed=5)


CLASSIFIER = classifier()


# Outputs


def test_logits_are_the_models_outputs_in_the_order_of_the_texts() -> None:
    found = predict_logits(CLASSIFIER, TEXTS, batch_size=2, precision="float32")
    assert (str(found.dtype), found.shape) == ("float32", (8, 3))
    for text, row in zip(TEXTS, found, strict=True):
        ids = (TOKENIZER.encode_ordinary(text) or [256])[:40]
        with torch.no_grad():
            expected = CLASSIFIER(torch.tensor([ids]))[0]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(torch.from_numpy(found).softmax(dim=1), predict_proba(CLASSIFIER, TEXTS), atol=1e-6)
    assert predict_logits(CLASSIFIER, []).shape == (0, 3)
    with pytest.raises(TypeError, match="put a classifier head on it"):
        predict_logits(GPT, ["a"])


# Embeddings


POOLED: dict[str, Callable[[Any], Any]] = {
    "mean": lambda h: h.mean(0),
    "last": lambda h: h[-1],
    "first": lambda h: h[0],
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("gpt2")
    save_model(GPT, folder)
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("pooling", POOLED)
@pytest.mark.parametrize("model", [GPT, CLASSIFIER], ids=["language model", "classifier"])
def test_embeddings_are_the_pooled_hidden_states_of_transformers(pooling: str, model: GPT2, theirs: Any) -> None:
    if model is CLASSIFIER:  # has other weights in its last block
        theirs = transformers.GPT2Model(theirs.config).eval()
        theirs.load_state_dict({k: v for k, v in hugging_face(model).items() if k in theirs.state_dict()})
    found = [embed(model, TEXTS, layer=layer, pooling=pooling, precision="float32") for layer in range(4)]
    assert all((str(each.dtype), each.shape) == ("float32", (8, 24)) for each in found)
    for i, text in enumerate(TEXTS):
        ids = (TOKENIZER.encode_ordinary(text) or [256])[:40]
        with torch.no_grad():
            states = theirs(torch.tensor([ids]), output_hidden_states=True).hidden_states
        assert len(states) == 4
        for layer, each in enumerate(states):
            np.testing.assert_allclose(found[layer][i], POOLED[pooling](each[0]), atol=2e-5)
    for layer in range(4):
        np.testing.assert_array_equal(embed(model, TEXTS, layer=layer - 4, pooling=pooling), found[layer])


def hugging_face(model: GPT2) -> dict[str, Any]:
    from gptclf.weights.hugging_face import to_hugging_face

    tensors = to_hugging_face(dict(model.named_parameters()), model.config)
    return {name.removeprefix("transformer."): tensor.detach() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layer", [0, 2, -1])
@pytest.mark.parametrize("pooling", POOLED)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(st.lists(st.text(max_size=50), min_size=1, max_size=12), st.integers(1, 9), st.randoms())
def test_an_embedding_depends_on_its_text_alone_bit_for_bit(
    layer: int, pooling: str, texts: list[str], batch_size: int, random: Any
) -> None:
    together = embed(GPT, texts, layer=layer, pooling=pooling)
    order = random.sample(range(len(texts)), len(texts))
    shuffled = embed(GPT, [texts[i] for i in order], layer=layer, pooling=pooling, batch_size=batch_size)
    np.testing.assert_array_equal(shuffled, together[order])
    i = order[0]
    np.testing.assert_array_equal(embed(GPT, [texts[i]], layer=layer, pooling=pooling)[0], together[i])


def test_in_bfloat16_as_well() -> None:
    texts = [f"text {i}" * (i % 5 + 1) for i in range(200)]
    together = embed(GPT, texts, precision="bfloat16")
    assert not np.array_equal(together, embed(GPT, texts, precision="float32"))
    for i in (0, 3, 199):
        np.testing.assert_array_equal(embed(GPT, [texts[i]], precision="bfloat16")[0], together[i])


def test_the_arithmetic_of_embeddings_does_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a processor with bfloat16 units, with a model that is wide enough to gain.
    monkeypatch.setattr("gptclf.gpt2.arithmetic._multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr("gptclf.gpt2.arithmetic._WORTH_CASTING", 1)
    texts = [f"text {i}" for i in range(200)]
    together = embed(GPT, texts)
    np.testing.assert_array_equal(together, embed(GPT, texts, precision="bfloat16"))
    np.testing.assert_array_equal(embed(GPT, texts[:1])[0], together[0])


def test_embeddings_prepare_texts_as_predict_does(caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    clf.preparation = Preparation(max_length=4, truncation="head")
    np.testing.assert_array_equal(embed(clf, ["abcdefgh"]), embed(clf, ["efgh"]))
    assert caplog.messages.count("1 of 1 texts are longer than 4 tokens (longest: 8) and lost their head") == 1


def test_hooked_parts_are_called() -> None:
    gpt2 = language_model()
    doubled = lambda module, given, found: 2 * found  # noqa: E731
    with torch.no_grad():
        gpt2.get_submodule("trunk.blocks.1.mlp").register_forward_hook(doubled)
    ids = torch.tensor([TOKENIZER.encode_ordinary("hello")])
    expected = gpt2.hidden_states(ids)[0].mean(dim=0)
    np.testing.assert_allclose(embed(gpt2, ["hello"])[0], expected, atol=1e-5)
    assert not np.allclose(embed(gpt2, ["hello"]), embed(GPT, ["hello"]), atol=1e-3)
    gpt2.trunk.register_forward_hook(doubled)
    np.testing.assert_allclose(embed(gpt2, ["hello", "ok"])[0], 2 * expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"layer is 1, but the model or its trunk has hooks .*; take layer=-1"):
        embed(gpt2, ["hello"], layer=1)


def test_embedding_knows_no_dropout_and_leaves_the_mode() -> None:
    gpt2 = byte_gpt2(dropout=0.5)
    gpt2.train()
    np.testing.assert_array_equal(embed(gpt2, ["hello"]), embed(gpt2, ["hello"]))
    assert all(module.training for module in gpt2.modules() if not isinstance(module, nn.Dropout))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": 4}, ValueError, "layer is 4; it must be an integer of at least -4 and at most 3"),
        ({"layer": -5}, ValueError, "layer is -5"),
        ({"layer": 1.0}, TypeError, "layer is 1.0"),
        ({"layer": True}, TypeError, "layer is True"),
        ({"pooling": "max"}, ValueError, "pooling is 'max'; it must be one of mean, last, first"),
        ({"pooling": None}, TypeError, "pooling is None"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"precision": "half"}, ValueError, "precision is 'half'"),
        ({"texts": "hello"}, TypeError, "texts is a single str"),
        ({"texts": ["a", None]}, TypeError, "text 1 is "),
        ({"model": "gpt2"}, TypeError, "model is a str"),
    ],
)
def test_wrong_arguments_of_embed_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embed(**{"model": GPT, "texts": ["a"], **options})
    assert embed(GPT, []).shape == (0, 24)


# An error in a stream comes after the answers to all texts before it


def failing(n: int, error: BaseException) -> Iterator[str]:
    yield from (f"text {i}" for i in range(n))
    raise error


@pytest.mark.parametrize("window", [1, 3, 4, 2048])
@pytest.mark.parametrize("n", [0, 1, 3, 7])
@pytest.mark.parametrize("bad", [None, 3, b"bytes", math.nan, ["list"]])
def test_a_value_that_is_not_a_text_comes_after_the_answers_before_it(window: int, n: int, bad: Any) -> None:
    texts = [f"text {i}" for i in range(n)]
    stream = predict_stream(CLASSIFIER, [*texts, bad, "later"], window=window)
    assert [next(stream).label for _ in range(n)] == predict(CLASSIFIER, texts)
    with pytest.raises(TypeError, match=f"text {n} is .*; every text must be a str"):
        next(stream)


@pytest.mark.parametrize("window", [1, 3, 2048])
@pytest.mark.parametrize("error", [ConnectionError("gone"), KeyError("x"), KeyboardInterrupt(), UnicodeError("bad")])
def test_an_error_of_the_source_comes_after_the_answers_before_it(window: int, error: BaseException) -> None:
    stream = predict_stream(CLASSIFIER, failing(5, error), window=window)
    assert [next(stream).label for _ in range(5)] == predict(CLASSIFIER, [f"text {i}" for i in range(5)])
    with pytest.raises(type(error)) as caught:
        next(stream)
    assert caught.value is error
    assert list(stream) == []


def test_a_stream_is_closed_anywhere() -> None:
    for taken in range(5):
        stream = predict_stream(CLASSIFIER, failing(4, ConnectionError("gone")), window=3)
        assert len(list(itertools.islice(stream, taken))) == taken
        stream.close()  # type: ignore[attr-defined]
        assert next(stream, None) is None


# Texts that were cut


@pytest.mark.parametrize("window", [1, 2, 2048])
def test_cut_texts_are_marked_and_logged_once_a_call(window: int, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a" * 41, "short", "b" * 50, "c" * 40, "a" * 41, "", "d"]
    stream = predict_stream(CLASSIFIER, iter(texts), window=window)
    assert [answer.truncated for answer in stream] == [True, False, True, False, True, False, False]
    message = "3 of 7 texts are longer than 40 tokens (longest: 50) and lost their tail"
    assert caplog.messages == [message]
    predict(CLASSIFIER, texts)
    predict_logits(CLASSIFIER, texts)
    embed(GPT, texts)
    assert caplog.messages == [message] * 4


def test_a_stream_that_is_left_early_has_logged_what_it_cut(caplog: pytest.LogCaptureFixture) -> None:
    stream = predict_stream(CLASSIFIER, ("a" * 50 for _ in range(9)), window=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert caplog.messages == ["2 of 2 texts are longer than 40 tokens (longest: 50) and lost their tail"]


def test_a_recorded_length_and_the_context_are_one_message(caplog: pytest.LogCaptureFixture) -> None:
    clf = classifier()
    clf.preparation = Preparation(max_length=45)
    predict(clf, ["a" * 42, "a" * 60, "b"])
    assert caplog.messages[-1:] == ["2 of 3 texts are longer than 40 tokens (longest: 60) and lost their tail"]
    assert len([message for message in caplog.messages if "longer than" in message]) == 1


# Measuring on a few batches


def sorted_rows(n: int = 64) -> TextDataset:
    """All of one class first, as files often are."""
    texts = [f"text {i}" for i in range(n)]
    return TextDataset(texts, ["ham"] * (n // 2) + ["spam"] * (n // 2), tokenizer=TOKENIZER)


def test_a_few_batches_are_spread_over_the_data_set_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    subset = TextDataset.subset

    def watched(self: TextDataset, rows: Any) -> TextDataset:
        asked.append(np.asarray(rows).tolist())
        return subset(self, rows)

    monkeypatch.setattr(TextDataset, "subset", watched)
    clf, data = classifier(["ham", "spam"]), sorted_rows()
    found = [dataset_loss(clf, data, num_batches=2), dataset_loss(clf, data, num_batches=2)]
    dataset_accuracy(clf, data, num_batches=2)
    first, second, third = asked
    assert first == second == third
    assert found[0] == found[1]
    assert len(set(first)) == 16
    assert {sum(row < 32 for row in first), sum(row >= 32 for row in first)} <= set(range(4, 13))
    dataset_loss(clf, data, num_batches=4)
    assert set(first) < set(asked[-1])


def test_a_run_measures_its_few_batches_on_the_same_rows_of_both_classes() -> None:
    clf, data = classifier(["ham", "spam"]), sorted_rows()
    with torch.no_grad():  # always "ham"
        clf.get_parameter("head.output.bias").copy_(torch.tensor([50.0, 0.0]))
    history = train(clf, data, data, epochs=2, lr=1e-9, eval_batches=1, batch_size=16, progress=False)
    assert {scores.train_accuracy for scores in history.epochs} == {
        dataset_accuracy(clf, data, num_batches=1, batch_size=16)
    }
    assert 0.2 < history.epochs[0].train_accuracy < 0.8  # 1 on the first rows
    assert history.epochs[0].val_accuracy == history.epochs[0].train_accuracy


# What is shown


def shown(value: Any) -> list[str]:
    """All that a notebook shows of a value."""
    ways = ("_repr_markdown_", "_repr_pretty_", "_repr_latex_", "_repr_mimebundle_")
    return [repr(value), str(value), *(getattr(value, way)() for way in ways if hasattr(value, way))]


def results() -> Iterator[tuple[str, Any]]:
    texts = [f"{SECRET} {i}" for i in range(3000)]
    labels = [f"class {i % 500}" for i in range(3000)]
    clf = classifier([f"class {i}" for i in range(500)])
    data = TextDataset(texts, labels, tokenizer=TOKENIZER, task=clf.task)
    yield "TextDataset", data
    yield "a part", split(data, (0.5, 0.5), seed=1, stratify=False)[0]
    yield "without labels", TextDataset(texts, tokenizer=TOKENIZER)
    yield "Batch", next(iter(Batches(data, 1000)))
    result = evaluate(clf, data)
    yield "Evaluation", result
    yield (
        "Evaluation of two",
        evaluate(classifier(["a", "b"]), TextDataset(texts, ["a", "b"] * 1500, tokenizer=TOKENIZER)),
    )
    yield "Prediction", next(predict_stream(clf, texts[:10]))
    yield "Prediction of a cut text", next(predict_stream(clf, [SECRET * 5]))
    stop = EarlyStopping(3)
    history = train(
        clf, data, data.subset(range(10)), epochs=2, batch_size=100, eval_batches=1, progress=False, callbacks=[stop]
    )
    yield "History", history
    yield "Scores", history.epochs[0]
    yield "Step", history.steps[0]
    yield "EarlyStopping", stop
    yield "estimate", estimate(clf, data)
    gpt2 = language_model()
    yield "zero_shot", zero_shot(GPT, texts[:200], ["a", "b"], template="{text}")
    windows = TextWindows(texts, tokenizer=TOKENIZER, length=16)
    yield "TextWindows", windows
    freeze(gpt2, trainable="all")
    yield "train_lm", train_lm(gpt2, windows.subset(range(64)), batch_size=16, progress=False)
    yield "task", clf.task
    yield (
        "task with all",
        SingleLabel(clf.task.classes or (), dict.fromkeys(clf.classes or (), 2.0), 0.1, 2.0, {"class 3": 0.2}),
    )
    yield "Preparation", clf.preparation
    yield "embeddings", embed(gpt2, texts[:50])


@pytest.mark.filterwarnings("ignore")
def test_what_a_notebook_shows_of_a_result_is_a_screenful_without_texts() -> None:
    for name, value in results():
        for text in shown(value):
            assert len(text) <= 2000, f"{name}: {len(text)} characters"
            assert text.count("\n") <= 25, f"{name}: {text}"
            assert SECRET[:8] not in text, f"{name}: {text}"
        page = value._repr_html_() if hasattr(value, "_repr_html_") else ""  # its tables scroll
        assert len(page) <= 60_000, f"{name}: {len(page)} characters"
        assert SECRET[:8] not in page, f"{name}: {page}"


def test_what_is_shown_says_what_it_is() -> None:
    [answer] = predict_stream(classifier(range(20)), ["a" * 50], reject_below=1)
    assert repr(answer).startswith("Prediction(label=None, outputs=[")
    assert "..." in repr(answer)
    assert repr(answer).endswith("], truncated=True)")
    found = zero_shot(GPT, ["a", "b", "c"], ["x", "y"])
    assert repr(found) == "ZeroShot(3 texts, 2 labels)"
    data = TextDataset(["a", "bc"], [0, 1], tokenizer=TOKENIZER)
    assert repr(next(iter(Batches(data)))) == "Batch(inputs (2, 2), lengths (2,), targets (2,), rows (2,))"
    many = SingleLabel(range(100))
    assert len(repr(many)) < 200
    assert "..." in repr(many)


# Pictures


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


@pytest.mark.parametrize("classes", [["ham", "spam"], [f"${i}_x$ long label {i} of these" for i in range(40)]])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_confusion_matrix_is_plotted(classes: list[str], normalize: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    clf = classifier(classes)
    data = TextDataset([f"text {i}" for i in range(80)], classes * (80 // len(classes)), tokenizer=TOKENIZER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as matplotlib gives for a label that it takes for a formula
        path = evaluate(clf, data).plot_confusion(tmp_path / "new" / "confusion", normalize=normalize)
    assert path == tmp_path / "new" / "confusion.png"
    assert [file.name for file in path.parent.iterdir()] == ["confusion.png"]
    width, height = png_size(path)
    assert 300 < height < width < 2500


def drawn(monkeypatch: pytest.MonkeyPatch, *given: Any, **options: Any) -> Any:
    """The figure that a call of plot_confusion would save."""
    figures: list[Any] = []
    monkeypatch.setattr("gptclf.plotting.save_figure", lambda figure, path: figures.append(figure))
    plot_confusion(Path("unused"), *given, **options)
    return figures[0]


def test_the_picture_has_counts_in_rows_of_true_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    counts = np.array([[5, 1, 0], [0, 0, 0], [2, 0, 6000]])
    labels = ["ham", "a\nb", "x" * 50]
    panel = drawn(monkeypatch, counts, labels).axes[0]
    np.testing.assert_array_equal(panel.images[0].get_array(), counts)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("predicted class", "true class")
    names = [label.get_text() for label in panel.get_yticklabels()]
    assert not any(label.get_parse_math() for label in [*panel.get_xticklabels(), *panel.get_yticklabels()])
    assert (
        names == ["ham", "a b", "x" * 11 + "..." + "x" * 10] == [label.get_text() for label in panel.get_xticklabels()]
    )
    assert {(*text.get_position(), text.get_text()) for text in panel.texts} == {
        (0, 0, "5"),
        (1, 0, "1"),
        (0, 2, "2"),
        (2, 2, "6,000"),
    }
    shares = drawn(monkeypatch, counts, labels, normalize=True).axes[0]
    found = np.asarray(shares.images[0].get_array().filled(np.nan))
    np.testing.assert_allclose(found[[0, 2]], (counts / counts.sum(axis=1, keepdims=True).clip(1))[[0, 2]])
    assert np.isnan(found[1]).all()
    assert shares.images[0].get_clim() == (0, 1)
    assert "0.83" in {text.get_text() for text in shares.texts}


def test_many_classes_have_colors_alone_and_then_not_every_label(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for n, labels, texts in ((25, 25, 25), (26, 26, 0), (60, 60, 0), (61, 31, 0), (500, 56, 0)):
        panel = drawn(monkeypatch, np.eye(n, dtype=int), list(range(n))).axes[0]
        assert (len(panel.get_xticklabels()), len(panel.texts)) == (labels, texts)
        assert panel.get_yticklabels()[-1].get_text() == str(panel.get_yticks()[-1])


def test_what_has_no_confusion_matrix_says_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clf = classifier(["ham", "spam"])
    result = evaluate(clf, sorted_rows(4))
    for value, error, message in ((5, TypeError, "path is 5"), ("", ValueError, "path is ''")):
        with pytest.raises(error, match=message):
            result.plot_confusion(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="normalize is 1; it must be True or False"):
        result.plot_confusion(tmp_path / "x", normalize=1)  # type: ignore[arg-type]
    monkeypatch.setenv("HOME", str(tmp_path))
    pytest.importorskip("matplotlib")
    assert result.plot_confusion("~/matrix.svg") == tmp_path / "matrix.svg"
    result.details.clear()
    with pytest.raises(TypeError, match=r"there is nothing to plot: the task .* has no confusion matrix"):
        result.plot_confusion(tmp_path / "x")
