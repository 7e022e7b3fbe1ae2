"""Answers: independent of batching, order and padding, finite for any text, and scored as scikit-learn scores."""

import logging
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torch import Tensor

from gptclf import (
    GPT2,
    Batches,
    GPT2Config,
    Preparation,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    dataset_accuracy,
    dataset_loss,
    evaluate,
    load_model,
    predict,
    predict_proba,
    save_model,
    train,
)
from gptclf.gpt2.heads import POOLINGS, ClassifierHead
from gptclf.inference.outputs import compute_outputs

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TOKENIZER = byte_tokenizer()
TEXTS = ["you won a prize, call now", "ok", "", "see you at six", "a" * 60, "é€😀", "x", "call me later then"]

# Shuffled texts in a batch size.
SHUFFLES = st.tuples(st.lists(st.text(max_size=50), min_size=1, max_size=12), st.integers(1, 14), st.randoms())


def classifier(classes: Sequence[Any] = ("ham", "spam", "eggs"), *, pooling: str = "last", seed: int = 1) -> GPT2:
    """A small classifier whose head is as if trained, in eval mode."""
    head = ClassifierHead(CONFIG.emb_dim, len(classes), pooling=pooling)
    model = randomised(GPT2(CONFIG, task=SingleLabel(classes), head=head, seed=seed))
    model.tokenizer = TOKENIZER
    return model


def new_classifier() -> GPT2:
    model = GPT2(CONFIG, task=SingleLabel(["ham", "spam"]), seed=1)
    model.tokenizer = TOKENIZER
    return model


def alone(model: GPT2, text: str) -> Tensor:
    """Probabilities (C,) of one text computed by itself, without any of the code that batches."""
    ids = (TOKENIZER.encode_ordinary(text) or [256])[: CONFIG.context_length]
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids]))
    return logits.softmax(dim=1)[0]


def labelled(classes: Sequence[Any], n: int = 40, seed: int = 0) -> TextDataset:
    rng = np.random.default_rng(seed)
    texts = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 30)))) for _ in range(n)]
    labels = [classes[i] for i in rng.integers(0, len(classes), n)]
    return TextDataset(texts, labels, tokenizer=TOKENIZER, classes=list(classes))


# Batching, order, padding


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_text_gets_the_answer_it_gets_alone(pooling: str) -> None:
    model = classifier(pooling=pooling)
    probabilities = predict_proba(model, TEXTS, batch_size=3, precision="float32")
    expected = torch.stack([alone(model, text) for text in TEXTS])
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert probabilities.std(axis=0).min() > 0.01  # the texts do get different answers


@pytest.mark.parametrize("pooling", POOLINGS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(SHUFFLES)
def test_answers_depend_on_neither_batch_size_nor_order(pooling: str, shuffle: tuple[list[str], int, Any]) -> None:
    texts, batch_size, random = shuffle
    model = classifier(pooling=pooling)
    order = random.sample(range(len(texts)), len(texts))
    together = predict_proba(model, texts, batch_size=len(texts), precision="float32")
    shuffled = predict_proba(model, [texts[i] for i in order], batch_size=batch_size, precision="float32")
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(SHUFFLES)
def test_in_bfloat16_they_hardly_depend_on_them(shuffle: tuple[list[str], int, Any]) -> None:
    texts, batch_size, random = shuffle
    model = classifier()
    order = random.sample(range(len(texts)), len(texts))
    together = predict_proba(model, texts, batch_size=len(texts), precision="bfloat16")
    shuffled = predict_proba(model, [texts[i] for i in order], batch_size=batch_size, precision="bfloat16")
    np.testing.assert_allclose(shuffled, together[order], atol=5e-3)


def test_bfloat16_answers_are_close_to_float32_and_not_the_same() -> None:
    model = classifier()
    exact, rounded = (predict_proba(model, TEXTS, precision=precision) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.03)
    assert rounded.dtype == np.float32


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_padding_is_not_seen(lengths: list[int], seed: int, extra: int) -> None:
    model = classifier()
    generator = torch.Generator().manual_seed(seed)
    width = min(40, max(lengths) + extra)
    ids = torch.randint(257, (len(lengths), width), generator=generator)  # the padding is random, too
    with torch.inference_mode():
        together = model(ids, torch.tensor(lengths))
        single = torch.cat([model(row[None, :n]) for row, n in zip(ids, lengths, strict=True)])
    torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)


def test_logits_come_in_the_order_of_the_rows() -> None:
    model = classifier()
    data = TextDataset(TEXTS, tokenizer=TOKENIZER, max_length=CONFIG.context_length)
    logits = compute_outputs(model, data, batch_size=2, precision="float32")
    for i, text in enumerate(TEXTS):
        torch.testing.assert_close(logits[i].softmax(0), alone(model, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_that_is_no_number_of_rows_is_refused(batch_size: Any) -> None:
    error = ValueError if type(batch_size) is int else TypeError
    with pytest.raises(error, match=r"batch_size is .*; it must be an integer of at least 1"):
        predict_proba(classifier(), TEXTS, batch_size=batch_size)


# What predict takes and gives


def test_predictions_are_the_labels_of_the_most_probable_columns() -> None:
    model = classifier(["ham", 1, ("a", 2)])
    probabilities = predict_proba(model, TEXTS)
    assert probabilities.shape == (8, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert predict(model, TEXTS) == [["ham", 1, ("a", 2)][i] for i in probabilities.argmax(axis=1)]


def test_columns_are_in_the_order_of_classes() -> None:
    model = classifier(["ham", "spam"])
    with torch.no_grad():
        model.get_parameter("head.output.bias")[:] = torch.tensor([-50.0, 50.0])
    np.testing.assert_allclose(predict_proba(model, ["a"]), [[0.0, 1.0]], atol=1e-6)
    assert predict(model, ["a"]) == ["spam"]


def test_a_generator_of_texts_is_read_once() -> None:
    model = classifier()
    assert predict(model, (text for text in TEXTS)) == predict(model, TEXTS)


@pytest.mark.parametrize("texts", ["you won", b"you won"])
@pytest.mark.parametrize("function", [predict, predict_proba])
def test_a_bare_string_is_refused(function: Any, texts: Any) -> None:
    with pytest.raises(TypeError, match=r"texts is a single (str|bytes); give a list of strings"):
        function(classifier(), texts)


@pytest.mark.parametrize("texts", [["a", None], ["a", math.nan], ["a", 3], ["a", b"b"]])
def test_what_is_no_text_is_refused_by_its_place(texts: Any) -> None:
    with pytest.raises(TypeError, match=r"text 1 is .*; every text must be a str"):
        predict(classifier(), texts)


def test_no_texts_have_no_answers() -> None:
    model = classifier()
    assert predict(model, []) == []
    assert predict_proba(model, []).shape == (0, 3)
    assert predict_proba(model, []).dtype == np.float32


@pytest.mark.parametrize("function", [predict, predict_proba])
def test_a_language_model_is_refused(function: Any, small_gpt2: GPT2) -> None:
    with pytest.raises(TypeError, match="this is a language model; put a classifier head on it first"):
        function(small_gpt2, ["a"])
    with pytest.raises(TypeError, match="model is a str; it must be a gptclf GPT2"):
        function("gpt2", ["a"])


@pytest.mark.parametrize("training", [True, False])
def test_answering_leaves_each_modules_mode_and_knows_no_dropout(training: bool) -> None:
    model = randomised(GPT2(CONFIG.replace(drop_rate=0.5), task=SingleLabel(["a", "b"]), seed=1)).train(training)
    model.tokenizer = TOKENIZER
    model.trunk.embed.train(not training)
    modes = [module.training for module in model.modules()]
    first, second = predict_proba(model, TEXTS), predict_proba(model, TEXTS)
    np.testing.assert_array_equal(first, second)
    assert [module.training for module in model.modules()] == modes


def test_the_mode_is_put_back_after_an_error() -> None:
    model = classifier().train()
    with torch.no_grad():
        model.trunk.norm.bias[0] = math.nan
    with pytest.raises(FloatingPointError):
        predict(model, ["a"])
    assert all(module.training for module in model.modules())


def test_answers_carry_no_gradient_and_flags_stay() -> None:
    model = classifier()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert not compute_outputs(model, labelled(["ham", "spam"]), batch_size=4, precision="float32").requires_grad
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


# The recorded preparation


@pytest.mark.parametrize("truncation", ["tail", "head", "middle"])
def test_texts_are_cut_as_the_model_records(truncation: str, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    model.preparation = Preparation(max_length=4, truncation=truncation)
    kept = {"tail": "abcd", "head": "ghij", "middle": "abij"}[truncation]
    probabilities = predict_proba(model, ["abcdefghij", "k"])
    np.testing.assert_allclose(probabilities[0], alone(model, kept), atol=1e-5)
    np.testing.assert_allclose(probabilities[1], alone(model, "k"), atol=1e-5)
    assert f"1 of 2 texts are longer than 4 tokens (longest: 10) and lost their {truncation}" in caplog.text


def test_texts_are_padded_as_the_model_records() -> None:
    model = classifier()
    model.preparation = Preparation(pad_to=6)
    with torch.inference_mode():
        expected = model(torch.tensor([[*TOKENIZER.encode_ordinary("abc"), 256, 256, 256]])).softmax(dim=1)
    np.testing.assert_allclose(predict_proba(model, ["abc"]), expected, atol=1e-5)
    assert not np.allclose(predict_proba(model, ["abc"])[0], alone(model, "abc"), atol=1e-3)


@pytest.mark.parametrize("truncation", ["tail", "head", "middle"])
def test_texts_longer_than_the_context_are_cut_and_counted(truncation: str, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier()
    model.preparation = Preparation(truncation=truncation)
    text = "abcdefghij" * 5
    kept = {"tail": text[:40], "head": text[-40:], "middle": text[:20] + text[-20:]}[truncation]
    with caplog.at_level(logging.WARNING, logger="gptclf"):
        probabilities = predict_proba(model, ["short", text, text + "!", "x" * 40])
    np.testing.assert_allclose(probabilities[1], alone(model, kept), atol=1e-5)
    expected = f"2 of 4 texts are longer than 40 tokens (longest: 51) and lost their {truncation}"
    assert caplog.messages == [expected]


# A new head warns


@pytest.mark.parametrize("first", [predict, predict_proba, evaluate])
def test_a_new_head_warns_exactly_once(first: Any) -> None:
    model, data = new_classifier(), labelled(["ham", "spam"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first(model, data if first is evaluate else TEXTS)
        for _ in range(2):
            predict(model, TEXTS)
            predict_proba(model, TEXTS)
            evaluate(model, data)
    assert [str(warning.message) for warning in caught] == [
        "this classifier's head was never trained or loaded; its answers are random. Call train first"
    ]


@pytest.mark.parametrize("answer", [predict, predict_proba, evaluate])
def test_the_warning_points_at_the_callers_line(answer: Any) -> None:
    # Python shows a warning once per line: pointing into the library would silence it for the next model.
    with pytest.warns(UserWarning, match="never trained or loaded") as caught:
        answer(new_classifier(), labelled(["ham", "spam"]) if answer is evaluate else ["a"])
    assert [warning.filename for warning in caught] == [__file__]


def test_every_new_head_warns_for_itself() -> None:
    for _ in range(2):
        with pytest.warns(UserWarning, match="never trained or loaded"):
            predict(new_classifier(), ["a"])


def test_measuring_a_loss_before_training_is_no_prediction_and_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset_loss(new_classifier(), labelled(["ham", "spam"]))
        dataset_accuracy(new_classifier(), labelled(["ham", "spam"]))


def test_a_trained_head_does_not_warn(small_gpt2: GPT2) -> None:
    small_gpt2.tokenizer = TOKENIZER
    model = add_classifier_head(small_gpt2, classes=["ham", "spam"], seed=1)
    data = labelled(["ham", "spam"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, data, data, epochs=1, progress=False)
        predict(model, TEXTS)
        evaluate(model, data)


def test_a_loaded_head_does_not_warn(tmp_path: Any) -> None:
    folder = save_model(new_classifier(), tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predict(load_model(folder), TEXTS)


# Weights and texts that spoil everything


@pytest.mark.parametrize("name", ["trunk.blocks.1.mlp.up.bias", "head.output.weight", "trunk.norm.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("answer", ["predict", "evaluate", "dataset_loss"])
def test_weights_that_are_no_numbers_are_named(name: str, value: float, answer: str) -> None:
    model = classifier(["ham", "spam"])
    with torch.no_grad():
        model.get_parameter(name).view(-1)[2] = value
    functions: dict[str, Any] = {"predict": predict, "evaluate": evaluate, "dataset_loss": dataset_loss}
    with pytest.raises(FloatingPointError, match=rf"logits are not finite. There is NaN or infinity in {name}: load"):
        functions[answer](model, ["a"] if answer == "predict" else labelled(["ham", "spam"]))


def test_many_bad_weights_are_counted() -> None:
    model = classifier()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    count = len(list(model.parameters()))
    with pytest.raises(FloatingPointError, match=rf"trunk.embed.token.weight, .* and {count - 3} more: load"):
        predict(model, ["a"])


def test_an_overflow_of_finite_weights_is_told_apart() -> None:
    model = classifier()
    with torch.no_grad():
        model.get_parameter("head.output.weight").fill_(3e38)
    with pytest.raises(FloatingPointError, match="All weights are finite: the computation overflowed"):
        predict(model, ["a"])


STRANGE = {
    "end of text": "<|endoftext|>",
    "end of text inside": "win <|endoftext|> now",
    "lone surrogate": "a\ud800b",
    "NUL": "a\x00b",
    "empty": "",
    "spaces": " \t\n\u3000\u200b",
    "a million letters": "a" * 1_000_000,
    "a million words": "ab " * 350_000,
    "a million emoji": "😀" * 250_000,
    "combining marks": "e" + "\u0301" * 500,
}


@pytest.mark.parametrize("text", list(STRANGE.values()), ids=list(STRANGE))
def test_any_text_gets_probabilities(text: str) -> None:
    probabilities = predict_proba(classifier(), [text, "ok"])
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.text(st.characters(), max_size=80), max_size=4))
def test_any_unicode_at_all_gets_probabilities(texts: list[str]) -> None:
    assert np.isfinite(predict_proba(classifier(), texts)).all()


def test_an_end_of_text_in_a_text_is_ordinary_characters() -> None:
    model = classifier()
    probabilities = predict_proba(model, ["<|endoftext|>", ""])
    np.testing.assert_allclose(probabilities[0], alone(model, "<|endoftext|>"), atol=1e-5)
    with torch.inference_mode():
        end_of_text = model(torch.tensor([[256]])).softmax(dim=1)[0]
    np.testing.assert_allclose(probabilities[1], end_of_text, atol=1e-5)
    assert not np.allclose(probabilities[0], probabilities[1], atol=1e-3)


# Evaluation


@pytest.mark.parametrize("classes", [["ham", "spam"], ["a", "b", "c", "d", "never"], [3, 1, 2]])
def test_scores_are_scikit_learns(classes: list[Any]) -> None:
    model, data = classifier(classes), labelled([label for label in classes if label != "never"], n=60)
    assert data.classes is not None
    assert data.labels is not None
    result = evaluate(model, data, batch_size=7, precision="float32")
    targets = [data.classes[i] for i in data.labels]
    assert result.targets == targets
    assert result.classes == classes
    assert result.texts == data.texts
    probabilities = predict_proba(model, data.texts, precision="float32")
    np.testing.assert_allclose(result.probabilities, probabilities, atol=1e-5)
    assert result.predictions == predict(model, data.texts, precision="float32")
    assert result.accuracy == pytest.approx(accuracy_score(targets, result.predictions))
    # scikit-learn wants its columns in the sorted order of labels.
    columns = np.argsort(np.array(classes))
    exact = probabilities[:, columns].astype(np.float64)
    expected_loss = log_loss(targets, exact / exact.sum(axis=1, keepdims=True), labels=sorted(classes))
    assert result.loss == pytest.approx(expected_loss, rel=1e-5)
    np.testing.assert_array_equal(result.confusion, confusion_matrix(targets, result.predictions, labels=classes))
    assert result.macro_f1 == pytest.approx(f1_score(targets, result.predictions, average="macro"))
    scores = precision_recall_fscore_support(targets, result.predictions, labels=classes, zero_division=0)
    for name, expected in zip(("precision", "recall", "f1", "support"), scores, strict=True):
        np.testing.assert_allclose(result.per_class[name], expected, rtol=1e-12)


def test_evaluate_agrees_with_the_data_sets_loss_and_accuracy() -> None:
    model, data = classifier(), labelled(["ham", "spam"])
    result = evaluate(model, data, precision="float32")
    assert result.loss == pytest.approx(dataset_loss(model, data, precision="float32"), rel=1e-6)
    assert result.accuracy == dataset_accuracy(model, data, precision="float32")


def test_a_loss_is_finite_where_a_probability_is_zero() -> None:
    model = classifier(["ham", "spam"])
    with torch.no_grad():
        model.get_parameter("head.output.bias")[:] = torch.tensor([0.0, 1000.0])
    data = TextDataset(["a"], ["ham"], tokenizer=TOKENIZER)
    result = evaluate(model, data, precision="float32")
    assert result.probabilities[0, 0] == 0.0
    assert result.loss == pytest.approx(1000.0, rel=0.05)


def test_labels_of_several_types_come_back_as_they_were() -> None:
    classes: list[Any] = ["1", 1, ("a", 2), 2.5]
    model, data = classifier(classes), labelled(classes)
    result = evaluate(model, data)
    assert result.classes == classes
    for label in [*result.targets, *result.predictions, *predict(model, TEXTS)]:
        assert any(label == known and type(label) is type(known) for known in classes)
    assert len(set(result.targets)) == 4


def test_evaluation_matches_labels_by_name() -> None:
    model, data = classifier(["ham", "spam", "eggs"]), labelled(["eggs", "ham", "spam"])
    assert data.classes is not None
    assert data.labels is not None
    turned = TextDataset(
        data.texts, [data.classes[i] for i in data.labels], tokenizer=TOKENIZER, classes=["spam", "eggs", "ham"]
    )
    first, second = evaluate(model, data), evaluate(model, turned)
    assert (first.loss, first.accuracy, first.targets) == (second.loss, second.accuracy, second.targets)
    assert first.targets == [data.classes[i] for i in data.labels]


def test_a_frame_has_a_row_per_text_and_a_column_per_class() -> None:
    model, data = classifier(), labelled(["ham", "spam"], n=9)
    result = evaluate(model, data)
    frame = result.to_frame()
    assert list(frame.columns) == ["text", "target", "prediction", "p(ham)", "p(spam)", "p(eggs)"]
    assert list(frame["text"]) == data.texts
    assert list(frame["target"]) == result.targets
    assert list(frame["prediction"]) == result.predictions
    np.testing.assert_array_equal(frame[["p(ham)", "p(spam)", "p(eggs)"]].to_numpy(), result.probabilities)


def test_an_evaluation_in_words_has_its_numbers() -> None:
    result = evaluate(classifier(), labelled(["ham", "spam"], n=9))
    lines = str(result).splitlines()
    assert lines[0] == (
        f"accuracy {100 * result.accuracy:.2f} %, macro-F1 {100 * result.macro_f1:.2f} %, loss {result.loss:.4f} "
        "on 9 texts"
    )
    assert [line.split()[0] for line in lines[1:]] == ["ham", "spam", "eggs"]
    assert lines[1].endswith(f"n {result.targets.count('ham')}")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (["a"], TypeError, "is a list; it must be a TextDataset with labels"),
        (TextDataset([], [], tokenizer=TOKENIZER), ValueError, "is empty"),
        (TextDataset(["a"], tokenizer=TOKENIZER), ValueError, "this data set has no labels"),
        (TextDataset(["a"], ["bacon"], tokenizer=TOKENIZER), ValueError, "1 label not among the classes: 'bacon'"),
    ],
)
@pytest.mark.parametrize("function", [evaluate, dataset_loss, dataset_accuracy])
def test_what_cannot_be_scored_is_refused(function: Any, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(classifier(), data)


def test_a_data_set_prepared_otherwise_than_training_is_told(caplog: pytest.LogCaptureFixture) -> None:
    model = classifier(["ham", "spam"])
    model.preparation = Preparation(max_length=12)
    evaluate(model, labelled(["ham", "spam"]))
    assert "max_length=None (the model was trained with 12)" in caplog.text
    caplog.clear()
    data = labelled(["ham", "spam"])
    evaluate(model, TextDataset(data.texts, ["ham"] * 40, tokenizer=TOKENIZER, max_length=12))
    assert "predict would prepare it differently" not in caplog.text


def test_scoring_draws_nothing_at_random() -> None:
    model, data = classifier(), labelled(["ham", "spam"])
    before = torch.get_rng_state()
    evaluate(model, data)
    predict(model, TEXTS)
    next(iter(Batches(data, seed=3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_texts_of_another_tokenizer_are_refused() -> None:
    from gptclf.tokenizer.bpe import byte_characters, make_encoding

    model = classifier()
    _ = model.tokenizer
    ranks = {bytes([byte]): 255 - i for i, byte in enumerate(byte_characters())}
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=make_encoding(ranks))
    with pytest.raises(ValueError, match="another tokenizer"):
        evaluate(model, data)


def test_a_frame_has_a_column_for_each_class_even_where_two_look_alike() -> None:
    clf = add_classifier_head(byte_gpt2(), classes=[1, "1"], seed=1)
    data = TextDataset(["a", "b"], [1, "1"], tokenizer=clf.tokenizer, classes=clf.classes)
    with pytest.warns(UserWarning, match="never trained"):
        assert {"p(1)", "p('1')"} <= set(evaluate(clf, data).to_frame().columns)
