"""`GPT2Features`: `embed` as a transformer of scikit-learn, with vectors that are computed once and kept."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2

pytest.importorskip("sklearn")

from joblib import parallel_backend
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

from gptclf import (
    GPT2,
    Preparation,
    TextWindows,
    add_classifier_head,
    clear_features,
    embed,
    freeze,
    load_gpt2,
    train_lm,
)
from gptclf.features import cache
from gptclf.gpt2 import packed
from gptclf.sklearn import GPT2Features


class WordFeatures(GPT2Features):
    """Rows of numbers in, written as words: what scikit-learn's checks can be run on."""

    def __init__(self, model: Any = "nano", *, layer: int = -1, pooling: str = "mean") -> None:
        super().__init__(model, layer=layer, pooling=pooling)

    def _texts(self, X: Any, *, reset: bool) -> list[str]:
        rows = validate_data(self, X, reset=reset)
        return [" ".join(f"{value:.3g}" for value in row) for row in rows]

    def fit(self, X: Any, y: Any = None) -> "WordFeatures":
        return super().fit(self._texts(X, reset=True))

    def transform(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().transform(self._texts(X, reset=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, False, True
        return tags


CHECKS = list(estimator_checks_generator(WordFeatures(), legacy=True))


@pytest.mark.parametrize(
    "check", [check for _, check in CHECKS], ids=[getattr(check, "func", check).__name__ for _, check in CHECKS]
)
@pytest.mark.filterwarnings("error::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn_passes(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else a check is skipped
    check(WordFeatures())


TEXTS = ["free prize, text WIN now", "see you at six?", "claim your cash", "running late, sorry", "you won a phone"]
TEXTS += ["call me tomorrow", "urgent: your account", "ok, thanks", "winner! reply now", "lunch on friday?"]
LABELS = ["spam", "ham"] * 5


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that each call embeds."""
    tokens, real = list[int](), packed.embed

    def count(module: Any, ids: Any, *arguments: Any, **options: Any) -> Any:
        tokens.append(len(ids))
        return real(module, ids, *arguments, **options)

    monkeypatch.setattr(packed, "embed", count)
    return tokens


def n_tokens(texts: list[str]) -> int:
    tokenizer = byte_gpt2().tokenizer
    return sum(len(tokenizer.encode_ordinary(text)) for text in set(texts))


@pytest.mark.parametrize("options", [{}, {"layer": 1, "pooling": "last"}, {"layer": 0, "pooling": "first"}])
def test_two_steps_are_embed_and_logistic_regression_by_hand(options: dict[str, Any]) -> None:
    gpt2 = byte_gpt2()
    pipeline = make_pipeline(GPT2Features(gpt2, **options), LogisticRegression()).fit(TEXTS, LABELS)
    by_hand = LogisticRegression().fit(embed(gpt2, TEXTS, **options), LABELS)
    new = ["you won cash", "see you"]
    np.testing.assert_array_equal(pipeline.predict_proba(new), by_hand.predict_proba(embed(gpt2, new, **options)))


@pytest.mark.parametrize("threads", [None, 2])
def test_a_search_embeds_each_text_once(counted: list[int], threads: int | None) -> None:
    pipeline = make_pipeline(GPT2Features(byte_gpt2()), LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1, 10], "gpt2features__layer": [1, -1]}
    with parallel_backend("threading"):
        search = GridSearchCV(pipeline, grid, cv=5, n_jobs=threads).fit([*TEXTS, TEXTS[0]], [*LABELS, LABELS[0]])
    assert sum(counted) == 2 * n_tokens(TEXTS)
    search.predict(TEXTS)
    assert sum(counted) == 2 * n_tokens(TEXTS)
    search.predict(["something new"])
    assert sum(counted) == 2 * n_tokens(TEXTS) + n_tokens(["something new"])


def test_vectors_are_kept_by_everything_that_determines_them(counted: list[int]) -> None:
    gpt2 = byte_gpt2()
    cut = byte_gpt2()
    cut.preparation = Preparation(max_length=5)
    settings: list[tuple[GPT2, dict[str, Any]]] = [
        (gpt2, {}),
        (gpt2, {"layer": 1}),
        (gpt2, {"pooling": "last"}),
        (gpt2, {"precision": "bfloat16"}),
    ]
    settings += [(byte_gpt2(seed=1), {}), (cut, {})]
    found = [GPT2Features(model, **options).fit_transform(TEXTS) for model, options in settings]
    for (model, options), vectors in zip(settings, found, strict=True):
        np.testing.assert_array_equal(vectors, embed(model, TEXTS, **options))
    del counted[:]
    GPT2Features(byte_gpt2()).fit_transform(TEXTS[::-1])  # an equal model
    GPT2Features(add_classifier_head(gpt2, num_classes=2)).fit_transform(TEXTS)  # the same trunk
    assert not counted


def test_clear_features_releases_the_vectors(counted: list[int]) -> None:
    features = GPT2Features(byte_gpt2()).fit(TEXTS)
    assert not counted
    vectors = features.transform(TEXTS)
    assert clear_features() == vectors.nbytes
    np.testing.assert_array_equal(features.transform(TEXTS), vectors)
    assert len(counted) == 2


def test_the_memory_for_vectors_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    features = GPT2Features(byte_gpt2()).fit(TEXTS)
    allowed = 3 * 4 * features.model_.config.emb_dim  # three vectors
    monkeypatch.setattr(cache, "memory_for_features", lambda: allowed)
    whole = embed(features.model_, TEXTS)
    for texts in (TEXTS[:2], TEXTS[1:3], TEXTS[3:5], TEXTS):
        np.testing.assert_array_equal(features.transform(texts), whole[[TEXTS.index(text) for text in texts]])
    assert 0 < clear_features() <= allowed


def test_a_model_with_hooks_is_called_and_nothing_is_kept() -> None:
    gpt2 = byte_gpt2()
    gpt2.blocks[1].register_forward_hook(lambda module, args, output: output + 1)
    np.testing.assert_array_equal(GPT2Features(gpt2).fit_transform(TEXTS), embed(gpt2, TEXTS))
    assert clear_features() == 0


def test_a_given_model_is_shared_and_never_changed() -> None:
    gpt2 = byte_gpt2()
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    features = clone(make_pipeline(GPT2Features(gpt2), LogisticRegression())).fit(TEXTS, LABELS)[0]
    assert features.model is gpt2
    assert features.model_.trunk.embed.token.weight.data_ptr() == gpt2.trunk.embed.token.weight.data_ptr()
    vectors = features.transform(TEXTS)
    # Its owner trains it: what was fitted stays as it was.
    freeze(gpt2, trainable="all")
    train_lm(gpt2, TextWindows(" ".join(TEXTS), tokenizer=gpt2.tokenizer, length=16), epochs=1, lr=0.1)
    clear_features()
    np.testing.assert_array_equal(features.transform(TEXTS), vectors)
    assert not np.array_equal(clone(features).fit_transform(TEXTS), vectors)
    assert any(not torch.equal(before[name], tensor) for name, tensor in gpt2.state_dict().items())


def test_data_frames_come_out_with_their_rows_and_names() -> None:
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("polars")
    features = GPT2Features("nano", layer=0).set_output(transform="pandas")
    frame = features.fit_transform(pandas.Series(TEXTS[:3], index=[7, 8, 9]))
    assert list(frame.columns[:2]) == ["gpt2features0", "gpt2features1"]
    assert frame.shape == (3, 192) == (3, len(features.get_feature_names_out()))
    assert list(frame.index) == [7, 8, 9]
    assert features.set_output(transform="polars").transform(TEXTS).shape == (10, 192)
    table = pandas.DataFrame({"text": TEXTS, "stars": range(10)})
    columns = ColumnTransformer([("gpt2", GPT2Features("nano"), ["text"])], remainder="passthrough").fit(table)
    assert columns.get_feature_names_out()[[0, -1]].tolist() == ["gpt2__gpt2features0", "remainder__stars"]


def test_every_form_of_a_column_of_texts_gives_the_same_vectors() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    features = GPT2Features(byte_gpt2()).fit(TEXTS)
    expected = features.transform(TEXTS)
    forms: list[Any] = [tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, dtype=object), np.array(TEXTS)[:, None]]
    forms += [frames.Series(TEXTS) for frames in (pandas, polars)]
    forms += [frames.DataFrame({"text": TEXTS}) for frames in (pandas, polars)]
    for texts in forms:
        np.testing.assert_array_equal(features.transform(texts), expected)
    with pytest.raises(ValueError, match=r"X is a table of 10 x 2; give one text per row"):
        features.transform(pandas.DataFrame({"a": TEXTS, "b": TEXTS}))
    with pytest.raises(TypeError, match="single str"):
        features.fit("one text")
    with pytest.raises(TypeError, match=r"text 1 is None"):
        features.fit(["a", None])
    with pytest.raises(NotFittedError):
        GPT2Features("nano").transform(TEXTS)


def test_clusters_and_neighbours_are_those_of_the_vectors() -> None:
    gpt2 = byte_gpt2()
    vectors = embed(gpt2, TEXTS)
    clusters = make_pipeline(GPT2Features(gpt2), KMeans(3, random_state=0)).fit_predict(TEXTS)
    assert clusters.tolist() == KMeans(3, random_state=0).fit_predict(vectors).tolist()
    pipeline = make_pipeline(GPT2Features(gpt2), NearestNeighbors(n_neighbors=2)).fit(TEXTS)
    nearest = pipeline[-1].kneighbors(pipeline[:-1].transform(TEXTS), return_distance=False)
    distances = np.linalg.norm(vectors[:, None] - vectors, axis=2)
    assert nearest.tolist() == distances.argsort(axis=1)[:, :2].tolist()


def test_a_pickle_holds_the_name_of_what_is_found_again_and_else_the_model() -> None:
    by_name, small = pickle.dumps(GPT2Features("nano", layer=1).fit(TEXTS)), pickle.dumps(GPT2Features("nano"))
    given = pickle.dumps(GPT2Features(load_gpt2("nano"), layer=1).fit(TEXTS))
    own = pickle.dumps(GPT2Features(byte_gpt2(), layer=1).fit(TEXTS))
    weights = sum(parameter.nbytes for parameter in load_gpt2("nano").parameters())
    assert max(len(by_name), len(given), len(small)) < weights / 20
    for content, model in ((by_name, load_gpt2("nano")), (given, load_gpt2("nano")), (own, byte_gpt2())):
        np.testing.assert_array_equal(pickle.loads(content).transform(TEXTS), embed(model, TEXTS, layer=1))
