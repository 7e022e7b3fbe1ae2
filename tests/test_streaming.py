"""Streams of texts: the answers of `predict`, in order, as they are asked for, in constant memory; and its progress."""

import itertools
import logging
import tracemalloc
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st

from gptclf import GPT2, GPT2Config, Prediction, add_classifier_head, predict, predict_proba, predict_stream
from gptclf.gpt2 import packed

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
CLASSES = ["spam", "ham", "eggs"]  # not in alphabetical order
TEXTS = ["you won a prize", "", "ok", "see you at six", "a" * 60, "é€😀", "ok"]


def classifier(pooling: str = "last") -> GPT2:
    gpt2 = randomised(GPT2(CONFIG, seed=7))
    gpt2.tokenizer = byte_tokenizer()
    clf = add_classifier_head(gpt2, classes=CLASSES, pooling=pooling, seed=3)
    clf.head.forget_fresh()
    return randomised(clf, seed=5)


CLASSIFIER = classifier()


class Source:
    """A stream that counts how much of it was read."""

    def __init__(self, end: int | None = None) -> None:
        self.read = 0
        self.end = end

    def __iter__(self) -> Iterator[str]:
        for i in itertools.count() if self.end is None else range(self.end):
            self.read += 1
            assert self.end is not None or i < 1000, "a stream without end was read without end"
            yield f"text {i}"


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.text(max_size=50), max_size=12), st.integers(1, 14))
def test_a_stream_gives_what_predict_gives_whatever_the_window(texts: list[str], window: int) -> None:
    answers = list(predict_stream(CLASSIFIER, iter(texts), window=window))
    expected = predict_proba(CLASSIFIER, texts)
    assert [answer.label for answer in answers] == [CLASSES[int(row.argmax())] for row in expected]
    assert len(answers) == len(texts)
    for answer, row in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.probabilities, row, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
def test_a_stream_keeps_the_order_of_its_texts(pooling: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    clf = classifier(pooling)
    assert len(set(predict(clf, TEXTS))) > 1
    for window in (1, 3, 100):
        assert [answer.label for answer in predict_stream(clf, TEXTS, window=window)] == predict(clf, TEXTS)


def test_an_answer_has_its_label_and_a_probability_for_each_class_in_the_models_order() -> None:
    [answer] = predict_stream(CLASSIFIER, ["hello"])
    assert isinstance(answer, Prediction)
    assert answer.probabilities.shape == (3,)
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert answer.label == CLASSIFIER.classes[int(answer.probabilities.argmax())]  # type: ignore[index]


def test_no_texts_have_no_answers() -> None:
    assert list(predict_stream(CLASSIFIER, [])) == []
    assert list(predict_stream(CLASSIFIER, iter([]), window=1)) == []


def test_a_stream_is_read_a_window_at_a_time_and_only_when_answers_are_taken() -> None:
    source = Source()
    stream = predict_stream(CLASSIFIER, source, window=4)
    assert source.read == 0
    next(stream)
    assert source.read == 4
    for _ in range(3):
        next(stream)
    assert source.read == 4
    next(stream)
    assert source.read == 8


def test_a_stream_without_end_can_be_asked_for_some_answers() -> None:
    first = list(itertools.islice(predict_stream(CLASSIFIER, Source(), window=3), 7))
    assert [answer.label for answer in first] == predict(CLASSIFIER, [f"text {i}" for i in range(7)])


def test_a_stream_goes_on_after_a_pause_and_ends_when_it_is_closed() -> None:
    source = Source(10)
    stream = predict_stream(CLASSIFIER, source, window=2)
    next(stream)
    predict(CLASSIFIER, ["something in between"])
    assert len(list(stream)) == 9
    assert next(stream, None) is None
    assert source.read == 10


def test_an_error_in_the_source_reaches_the_caller_after_the_answers_before_it() -> None:
    def failing() -> Iterator[str]:
        yield from ["a", "b"]
        raise ConnectionError("gone")

    stream = predict_stream(CLASSIFIER, failing(), window=2)
    assert len(list(itertools.islice(stream, 2))) == 2
    with pytest.raises(ConnectionError, match="gone"):
        next(stream)


def test_a_long_stream_takes_no_more_memory_than_a_short_one() -> None:
    def peak(n: int) -> int:
        tracemalloc.start()
        for _ in predict_stream(CLASSIFIER, Source(n), window=16):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(64)
    assert peak(1600) < peak(160) + 50_000  # the texts alone would be twice that


# Errors come with the call, not with the first answer


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "8", None])
def test_a_window_that_is_no_number_of_texts_is_refused_at_the_call(window: Any) -> None:
    with pytest.raises(ValueError if type(window) is int else TypeError, match="window is"):
        predict_stream(CLASSIFIER, ["a"], window=window)


def test_a_single_string_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="a single str"):
        predict_stream(CLASSIFIER, "you won")


def test_bytes_are_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="bytes"):
        predict_stream(CLASSIFIER, b"you won")  # type: ignore[arg-type]


@pytest.mark.parametrize("texts", [{"a", "b"}, {"text": ["a"]}], ids=["set", "table"])
def test_what_predict_refuses_is_refused_at_the_call(texts: Any) -> None:
    with pytest.raises(TypeError):
        predict_stream(CLASSIFIER, texts)


def test_what_cannot_be_iterated_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError):
        predict_stream(CLASSIFIER, 5)  # type: ignore[arg-type]


def test_an_unknown_precision_is_refused_at_the_call() -> None:
    with pytest.raises(ValueError, match="must be one of auto, float32, bfloat16"):
        predict_stream(CLASSIFIER, ["a"], precision="half")


def test_a_language_model_is_refused_at_the_call() -> None:
    with pytest.raises(TypeError, match="put a classifier head on it"):
        predict_stream(GPT2(CONFIG, seed=0), ["a"])


def test_what_is_no_text_is_refused_when_its_window_is_reached() -> None:
    stream = predict_stream(CLASSIFIER, ["a", "b", None], window=2)  # type: ignore[list-item]
    assert len(list(itertools.islice(stream, 2))) == 2
    with pytest.raises(TypeError, match="None"):
        next(stream)


def test_what_is_no_text_is_named_by_its_place_in_the_stream() -> None:
    with pytest.raises(TypeError, match="text 3 is None"):
        list(predict_stream(CLASSIFIER, ["a", "b", "c", None], window=2))  # type: ignore[list-item]


def test_a_new_head_warns_once_in_a_stream() -> None:
    gpt2 = GPT2(CONFIG, seed=0)
    gpt2.tokenizer = byte_tokenizer()
    clf = add_classifier_head(gpt2, classes=CLASSES, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(predict_stream(clf, Source(6), window=2))
    assert [warning.filename for warning in caught] == [__file__]


# predict beside it


@pytest.mark.parametrize("batch_size", [1, 7, np.int64(3), 10**9])
def test_the_batch_size_does_not_change_answers(batch_size: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    expected = predict_proba(CLASSIFIER, TEXTS * 3)
    found = predict_proba(CLASSIFIER, TEXTS * 3, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert predict(CLASSIFIER, TEXTS * 3, batch_size=batch_size) == predict(CLASSIFIER, TEXTS * 3)


@pytest.mark.parametrize("batch_size", [0, -3, 2.0, True, "8"])
@pytest.mark.parametrize("function", [predict, predict_proba])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(function: Any, batch_size: Any) -> None:
    error = ValueError if type(batch_size) is int else TypeError
    with pytest.raises(error, match=r"batch_size is .* integer of at least 1 or None"):
        function(CLASSIFIER, ["a"], batch_size=batch_size)


@pytest.mark.parametrize("function", [predict, predict_proba])
def test_progress_of_short_work_prints_nothing(function: Any, capsys: pytest.CaptureFixture[str]) -> None:
    function(CLASSIFIER, ["a", "bc"], progress=True)
    assert capsys.readouterr() == ("", "")


def test_progress_of_long_work_goes_to_standard_error_and_changes_no_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {i}" for i in range(10)]
    expected = predict_proba(CLASSIFIER, texts)
    clock = itertools.count(0, 6)
    monkeypatch.setattr("gptclf.progress.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(packed, "CHUNK_TOKENS", 6)
    found = predict_proba(CLASSIFIER, texts, progress=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "predicting: 20 %, 48 s left",
        "predicting: 40 %, 36 s left",
        "predicting: 60 %, 24 s left",
        "predicting: 80 %, 12 s left",
    ]
