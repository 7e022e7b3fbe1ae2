"""`tfidf_baseline` is scikit-learn's own pipeline on the same rows, and its evaluation stands beside a model's."""

import sys
from typing import Any

import numpy as np
import pytest
from conftest import byte_tokenizer
from numpy.typing import NDArray

import gptclf
from gptclf import MultiLabel, TextDataset, tfidf_baseline

pytest.importorskip("sklearn")
TOKENIZER = byte_tokenizer()
WORDS = {
    "ham": ["see", "you", "at", "home", "for", "dinner", "tonight", "mum"],
    "spam": ["win", "cash", "prize", "now", "call", "free", "£", "!"],
}


def dataset(n: int, seed: int, classes: list[str] | None = None, **options: Any) -> TextDataset:
    """Texts of six words, four of them of the class's own; every third is spam."""
    rng = np.random.default_rng(seed)
    labels = ["spam" if i % 3 == 0 else "ham" for i in range(n)]
    both = WORDS["ham"] + WORDS["spam"]
    texts = [" ".join([*rng.choice(WORDS[label], 4), *rng.choice(both, 6)]) for label in labels]
    return TextDataset(texts, labels, tokenizer=TOKENIZER, classes=classes, **options)


def by_hand(train_set: TextDataset, test_set: TextDataset, weights: NDArray[Any] | None, C: float = 10) -> NDArray[Any]:
    """Probabilities of the documented features and model, with columns by label in alphabetical order."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    parts = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True)
    rows = hstack([words.fit_transform(train_set.texts), parts.fit_transform(train_set.texts)])
    model = LogisticRegression(C=C, max_iter=1000).fit(rows, train_set.given, sample_weight=weights)
    found = model.predict_proba(hstack([words.transform(test_set.texts), parts.transform(test_set.texts)]))
    return np.asarray(found)


def test_it_is_the_pipeline_that_it_says() -> None:
    train_set, test_set = dataset(90, 0, ["spam", "ham"]), dataset(60, 1)
    found = tfidf_baseline(train_set, test_set, C=3)
    assert found.classes == ["spam", "ham"]
    expected = by_hand(train_set, test_set, None, C=3)[:, ::-1]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    right = np.array(["spam", "ham"])[expected.argmax(axis=1)] == np.array(test_set.given)
    assert found.accuracy == right.mean() > 0.8
    assert found.loss == pytest.approx(
        -np.log([p[["spam", "ham"].index(y)] for p, y in zip(expected, test_set.given, strict=True)]).mean(), abs=1e-4
    )
    assert (found.targets, found.texts) == (test_set.given, test_set.texts)


def test_weights_of_rows_and_classes_count() -> None:
    weights = np.random.default_rng(2).uniform(0.1, 5, 90)
    train_set, test_set = dataset(90, 0, weights=weights), dataset(60, 1)
    given = np.array(train_set.given)
    for class_weight, factor in (
        ({"spam": 4.0}, np.where(given == "spam", 4.0, 1.0)),
        ("balanced", np.where(given == "spam", 1.5, 0.75)),
    ):
        found = tfidf_baseline(train_set, test_set, class_weight=class_weight)
        expected = by_hand(train_set, test_set, train_set.weights * factor)
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)
    assert abs(by_hand(train_set, test_set, None) - expected).max() > 0.01


def test_a_class_without_training_rows_is_never_the_answer_and_its_loss_is_finite() -> None:
    train_set = dataset(30, 0, ["eggs", "ham", "spam"])
    test_set = TextDataset(["win cash", "see you"], ["eggs", "ham"], tokenizer=TOKENIZER)
    found = tfidf_baseline(train_set, test_set)
    assert found.predictions == ["spam", "ham"]
    assert found.probabilities.shape == (2, 3)
    assert 0 < found.probabilities[:, 0].max() < 1e-6
    assert 5 < found.loss < 20


def test_texts_of_short_words_or_emojis_alone_are_texts() -> None:
    data = TextDataset(["a", "😀", "b", "!"] * 3, [0, 1, 0, 1] * 3, tokenizer=TOKENIZER)
    assert tfidf_baseline(data, data).accuracy == 1


def test_what_cannot_be_a_floor_is_refused() -> None:
    data, labels = dataset(9, 0), [["ham"], [], ["spam", "ham"]] * 3
    many = TextDataset(data.texts, labels, tokenizer=TOKENIZER, task=MultiLabel(["ham", "spam"]))
    plain = TextDataset(data.texts, tokenizer=TOKENIZER)
    one = data.subset([0, 3, 6])
    other = TextDataset(["x"], ["eggs"], tokenizer=TOKENIZER)
    for given, error, message in (
        ((many, data), TypeError, "train_set is of the task MultiLabel.* needs texts with one class each"),
        ((data, many), TypeError, "test_set: label 0 is .'ham'."),
        ((plain, data), ValueError, "train_set: this data set has no labels"),
        ((data, plain), ValueError, "test_set: this data set has no labels"),
        ((one, data), ValueError, "train_set: every row of the training set has the same label"),
        ((data, other), ValueError, "test_set: .*'eggs'"),
        ((data, data.subset([])), ValueError, "test_set is empty"),
        ((data.texts, data), TypeError, "train_set is .* must be a TextDataset"),
    ):
        with pytest.raises(error, match=message):
            tfidf_baseline(*given)
    with pytest.raises(ValueError, match="C is 0; it must be a finite number above 0"):
        tfidf_baseline(data, data, C=0)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r"tfidf_baseline needs scikit-learn: pip install 'gptclf\[sklearn\]'"):
        gptclf.tfidf_baseline(dataset(9, 0), dataset(9, 1))
