"""`GPT2Classifier` gives what gptclf gives by hand, alone and within scikit-learn, and computes each text once."""

import copy
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gptclf import (
    GPT2,
    EarlyStopping,
    GPT2Config,
    History,
    MultiLabel,
    Recipe,
    SingleLabel,
    TextDataset,
    add_classifier_head,
    apply_lora,
    clear_features,
    freeze,
    load_gpt2,
    predict,
    predict_logits,
    predict_proba,
    save_model,
    split,
    train,
)
from gptclf.files.digest import kept_digests, tensor_digests
from gptclf.gpt2.trunk import Attention

pytest.importorskip("sklearn")

import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import accuracy_score, f1_score, log_loss
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    StratifiedKFold,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from gptclf.sklearn import GPT2Classifier

joblib: Any = pytest.importorskip("joblib")  # scikit-learn brings it

WORDS = ["cash", "prize", "phone", "dinner", "meeting", "train", "winner", "call", "urgent", "tomorrow"]
PAIRS = [(a, b) for a in WORDS for b in WORDS if a < b][:40]
TEXTS = [f"{a} {b} {i % 3}" for i, (a, b) in enumerate(PAIRS)]
LABELS = ["spam" if {"cash", "prize", "winner"} & {a, b} else "ham" for a, b in PAIRS]
NEW = ["you won cash", "dinner at six?", "urgent call", "see you", "the train"]
RECIPE: Any = {"epochs": 2, "batch_size": 16, "lr": 1e-3}


def estimator(**params: Any) -> GPT2Classifier:
    return GPT2Classifier(**{"model": "nano", **RECIPE, **params})


def by_hand(texts: Any, labels: Any, *, seed: int = 123, classes: Any = None, **options: Any) -> GPT2:
    """The classifier that gptclf's functions train."""
    task = SingleLabel(sorted(set(labels)) if classes is None else classes)
    clf = add_classifier_head(load_gpt2("nano"), task=task, seed=seed)
    data = TextDataset(list(texts), list(labels), tokenizer=clf.tokenizer, task=clf.task)
    train(clf, data, progress=False, seed=seed, **{**RECIPE, **options})
    return clf


def rows(values: Any, chosen: NDArray[np.int64]) -> list[Any]:
    return [values[i] for i in chosen]


class Tokens:
    """Counts the tokens that go through the attention of nano's first block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen, real = 0, Attention.mix

        def mix(attention: Attention, qkv: torch.Tensor, *more: Any) -> torch.Tensor:
            if attention.qkv.weight.data_ptr() in self.first:
                self.seen += qkv.shape[:-1].numel()
            return real(attention, qkv, *more)

        fitted = estimator(epochs=1).fit(TEXTS, LABELS)
        self.first = {fitted.model_.get_parameter("trunk.blocks.0.attention.qkv.weight").data_ptr()}
        clear_features()
        monkeypatch.setattr(Attention, "mix", mix)


def tokens_of(texts: list[str]) -> int:
    return len(TextDataset(sorted(set(texts)), tokenizer=load_gpt2("nano").tokenizer).ids)


class TestByHand:
    def test_fit_is_add_classifier_head_and_train(self) -> None:
        ours, clf = estimator().fit(TEXTS, LABELS), by_hand(TEXTS, LABELS)
        assert ours.predict(NEW).tolist() == predict(clf, NEW)
        np.testing.assert_array_equal(ours.predict_proba(NEW), predict_proba(clf, NEW))
        logits = predict_logits(clf, NEW)
        np.testing.assert_array_equal(ours.decision_function(NEW), logits[:, 1] - logits[:, 0])
        np.testing.assert_array_equal(ours.predict_log_proba(NEW), np.log(predict_proba(clf, NEW)))
        assert ours.score(TEXTS, LABELS) == accuracy_score(LABELS, predict(clf, TEXTS))
        assert ours.n_iter_ == 2
        assert isinstance(ours.history_, History)

    def test_every_part_of_the_library_is_a_parameter(self) -> None:
        params: Any = {
            "trainable": "last_two_blocks",
            "pooling": "mean",
            "lora": {"rank": 4, "blocks": 2, "seed": 5},
            "class_weight": {"spam": 3.0},
            "label_smoothing": 0.1,
            "max_length": 4,
            "truncation": "head",
            "random_state": 7,
            "schedule": "linear",
            "weight_decay": 0.0,
        }
        ours = estimator(**params).fit(TEXTS, LABELS)
        task = SingleLabel(["ham", "spam"], {"spam": 3.0}, 0.1)
        clf = add_classifier_head(load_gpt2("nano"), task=task, pooling="mean", seed=7)
        clf = apply_lora(clf, rank=4, blocks=2, seed=5)
        freeze(clf, trainable="last_two_blocks")
        data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, task=task, max_length=4, truncation="head")
        train(clf, data, progress=False, seed=7, schedule="linear", weight_decay=0.0, **RECIPE)
        np.testing.assert_array_equal(ours.predict_proba(NEW), predict_proba(clf, NEW))

    def test_three_classes_have_a_column_each(self) -> None:
        labels = [i % 3 for i in range(len(TEXTS))]
        ours, clf = estimator().fit(TEXTS, labels), by_hand(TEXTS, labels)
        assert ours.classes_.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(ours.decision_function(NEW), predict_logits(clf, NEW))
        np.testing.assert_array_equal(ours.predict(NEW), predict(clf, NEW))

    def test_weights_are_those_of_a_data_set_and_0_is_absent_to_the_bit(self) -> None:
        weights = np.array([i % 3 for i in range(len(TEXTS))], dtype=float)
        kept = np.flatnonzero(weights)
        ours = estimator().fit(TEXTS, LABELS, sample_weight=weights)
        fewer = estimator().fit(rows(TEXTS, kept), rows(LABELS, kept), sample_weight=weights[kept])
        np.testing.assert_array_equal(ours.predict_proba(NEW), fewer.predict_proba(NEW))
        plain = estimator().fit(rows(TEXTS, kept), rows(LABELS, kept))
        assert not np.array_equal(plain.predict_proba(NEW), fewer.predict_proba(NEW))

    def test_partial_fit_is_an_epoch_on_each_part(self) -> None:
        ours = estimator(epochs=9)
        clf = by_hand(TEXTS[:25], LABELS[:25], epochs=1, classes=["ham", "maybe", "spam"])
        ours.partial_fit(TEXTS[:25], LABELS[:25], classes=["spam", "ham", "maybe"])
        np.testing.assert_array_equal(ours.predict_proba(NEW), predict_proba(clf, NEW))
        ours.partial_fit(TEXTS[25:], LABELS[25:])
        data = TextDataset(TEXTS[25:], LABELS[25:], tokenizer=clf.tokenizer, task=clf.task)
        train(clf, data, progress=False, **{**RECIPE, "epochs": 1, "seed": 124})
        np.testing.assert_array_equal(ours.predict_proba(NEW), predict_proba(clf, NEW))
        assert (ours.n_iter_, ours.classes_.tolist()) == (2, ["ham", "maybe", "spam"])

    def test_early_stopping_holds_texts_out_or_takes_the_eval_set(self) -> None:
        params: Any = {"early_stopping": True, "n_iter_no_change": 1, "epochs": 20, "lr": 3e-3}
        ours = estimator(validation_fraction=0.25, **params).fit(TEXTS, LABELS)
        clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=123)
        data = TextDataset(TEXTS, LABELS, tokenizer=clf.tokenizer, task=clf.task)
        parts = split(data, (0.75, 0.25), seed=123)
        history = train(clf, *parts, epochs=20, batch_size=16, lr=3e-3, progress=False, callbacks=[EarlyStopping(1)])
        np.testing.assert_array_equal(ours.predict_proba(NEW), predict_proba(clf, NEW))
        assert ours.n_iter_ == len(history.epochs) < 20
        given = estimator(**params).fit(TEXTS[:30], LABELS[:30], eval_set=(TEXTS[30:], LABELS[30:]))
        assert given.history_.epochs[0].examples == 30
        assert given.history_.epochs[0].val_loss is not None

    def test_a_task_of_ones_own(self) -> None:
        ours = estimator(task=lambda classes: SingleLabel(classes, thresholds={"spam": 0.999999})).fit(TEXTS, LABELS)
        assert set(ours.predict(TEXTS)) == {"ham"}
        topics = np.array([[i % 2, i % 3 == 0, 1] for i in range(len(TEXTS))], dtype=int)
        several = estimator(task=MultiLabel(["a", "b", "c"]), epochs=20).fit(TEXTS, topics)
        answers = several.predict(TEXTS)
        assert answers.shape == topics.shape
        assert set(np.unique(answers)) <= {0, 1}
        assert f1_score(topics, answers, average="micro") > 0.8
        assert several.score(TEXTS, topics) == np.mean((answers == topics).all(axis=1))
        with pytest.raises(ValueError, match=r"task has the classes \['spam', 'ham'\]; sort them"):
            estimator(task=SingleLabel(["spam", "ham"])).fit(TEXTS, LABELS)


class TestInputs:
    @pytest.mark.parametrize(
        "texts",
        [
            np.array(TEXTS),
            np.array(TEXTS, dtype=object),
            np.array(TEXTS)[:, None],
            [[text] for text in TEXTS],
            tuple(TEXTS),
        ],
        ids=["strings", "objects", "table", "lists", "tuple"],
    )
    def test_texts_in_any_form(self, texts: Any) -> None:
        np.testing.assert_array_equal(
            estimator().fit(texts, np.array(LABELS, dtype=object)).predict_proba(texts),
            estimator().fit(TEXTS, LABELS).predict_proba(TEXTS),
        )

    def test_columns_of_data_frames(self) -> None:
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame({"body": TEXTS, "folder": LABELS}, index=range(100, 140))
        expected = estimator().fit(TEXTS, LABELS).predict_proba(NEW)
        for texts in (table["body"], table[["body"]]):
            np.testing.assert_array_equal(estimator().fit(texts, table["folder"]).predict_proba(NEW), expected)
        with pytest.raises(ValueError, match="X is a table of 40 x 2; give one text per row"):
            estimator().fit(table, LABELS)

    @pytest.mark.parametrize("labels", [[True, False], [3, -1], ["b", "a"], [1.0, 2.0]])
    def test_labels_of_every_kind(self, labels: list[Any]) -> None:
        y = np.array([labels[label == "spam"] for label in LABELS])
        ours = estimator(epochs=1).fit(TEXTS, y)
        np.testing.assert_array_equal(ours.classes_, np.unique(y))
        assert ours.predict(NEW).dtype == y.dtype

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({"epochs": 0}, "epochs is 0"),
            ({"trainable": "frist_block"}, "trainable"),
            ({"random_state": -1}, "random_state is -1"),
            ({"validation_fraction": 1.5, "early_stopping": True}, "validation_fraction is 1.5"),
            ({"class_weight": {"maybe": 1.0}}, "class_weight names 'maybe'"),
            ({"head": 7}, "head is a int"),
        ],
        ids=str,
    )
    def test_a_wrong_parameter_is_an_error_in_fit(self, params: Any, message: str) -> None:
        ours = estimator(**params)
        with pytest.raises((ValueError, TypeError), match=message):
            ours.fit(TEXTS, LABELS)
        assert not hasattr(ours, "model_")

    def test_a_missing_label_in_a_list_is_named_by_its_row(self) -> None:
        for missing in (None, float("nan")):
            with pytest.raises(
                ValueError, match="Input y contains NaN or None: 1 labels, the first in row 2; drop them"
            ):
                estimator().fit(TEXTS, [*LABELS[:2], missing, *LABELS[3:]])

    def test_functions_of_the_library_say_where_the_model_is(self) -> None:
        with pytest.raises(TypeError, match=r"GPT2Classifier.*model.model_"):
            predict_proba(estimator(epochs=1).fit(TEXTS, LABELS), NEW)

    def test_a_folder_of_another_kind_says_what_reads_it(self, tmp_path: Path) -> None:
        save_model(estimator(epochs=1).fit(TEXTS, LABELS).model_, tmp_path)
        with pytest.raises(FileNotFoundError, match="load_model reads those of save_model"):
            GPT2Classifier.load(tmp_path)

    def test_the_parameters_are_those_of_a_recipe_and_more(self) -> None:
        params = GPT2Classifier("nano").get_params()
        recipe = asdict(Recipe())
        assert recipe.pop("seed") == params["random_state"]
        assert recipe.items() <= params.items()

    def test_an_eval_set_that_is_no_pair(self) -> None:
        with pytest.raises(ValueError, match="eval_set must be a pair of texts and labels"):
            estimator().fit(TEXTS, LABELS, eval_set=TEXTS)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"label.* not among the classes: 'maybe'"):
            estimator().fit(TEXTS, LABELS, eval_set=(["hm"], ["maybe"]))

    def test_a_first_part_that_cannot_be_learned_from_leaves_no_trace(self) -> None:
        ours = estimator(batch_size=0)
        with pytest.raises(ValueError, match="batch_size is 0"):
            ours.partial_fit(TEXTS, LABELS)
        assert not [name for name in vars(ours) if name.endswith("_")]
        np.testing.assert_array_equal(
            ours.set_params(batch_size=16).partial_fit(TEXTS, LABELS).predict_proba(NEW),
            estimator().partial_fit(TEXTS, LABELS).predict_proba(NEW),
        )

    def test_an_unknown_parameter_is_an_error_at_once(self) -> None:
        with pytest.raises(TypeError, match="there is no option 'epoch'; did you mean 'epochs'"):
            GPT2Classifier("nano", epoch=3)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="give random_state="):
            GPT2Classifier("nano", seed=3)

    def test_wrong_data_is_an_error_that_says_what_to_do(self) -> None:
        for fit in (estimator().fit, estimator().partial_fit):
            with pytest.raises(ValueError, match="y has 1 class"):
                fit(TEXTS, ["spam"] * 40)
        with pytest.raises(TypeError, match="texts is a single str"):
            estimator().fit("text", ["spam"])
        with pytest.raises(TypeError, match="a table of 0 and 1 give task=MultiLabel"):
            estimator().fit(TEXTS, np.ones((40, 2), dtype=int))
        with pytest.raises(ValueError, match="class_weight is 'balanced', but partial_fit sees only a part"):
            estimator(class_weight="balanced").partial_fit(TEXTS, LABELS)
        ours = estimator(epochs=1).partial_fit(TEXTS, LABELS)
        with pytest.raises(ValueError, match="the first call had"):
            ours.partial_fit(TEXTS, LABELS, classes=["ham", "spam", "maybe"])


class TestWithin:
    """Meta-estimators of scikit-learn: each answer is the one that gptclf gives by hand."""

    FOLDS = StratifiedKFold(2)

    def folds(self) -> Iterator[tuple[GPT2, NDArray[np.int64]]]:
        for train_rows, test_rows in self.FOLDS.split(TEXTS, LABELS):
            yield by_hand(rows(TEXTS, train_rows), rows(LABELS, train_rows)), test_rows

    def test_pipeline_and_cross_validation(self) -> None:
        steps = make_pipeline(FunctionTransformer(lambda texts: [text.lower() for text in texts]), estimator())
        found = cross_val_score(steps, TEXTS, LABELS, cv=self.FOLDS)
        probabilities = cross_val_predict(estimator(), TEXTS, LABELS, cv=self.FOLDS, method="predict_proba")
        for score, (clf, test) in zip(found, self.folds(), strict=True):
            assert score == accuracy_score(rows(LABELS, test), predict(clf, rows(TEXTS, test)))
            np.testing.assert_array_equal(probabilities[test], predict_proba(clf, rows(TEXTS, test)))

    def test_searches(self) -> None:
        grid = {"lr": [1e-4, 1e-3], "trainable": ["head", "last_block"]}
        found = GridSearchCV(estimator(), grid, cv=self.FOLDS, scoring="neg_log_loss").fit(TEXTS, LABELS)
        place = found.cv_results_["params"].index({"lr": 1e-3, "trainable": "last_block"})
        for fold, (clf, test) in enumerate(self.folds()):
            loss = log_loss(rows(LABELS, test), predict_proba(clf, rows(TEXTS, test)))
            assert found.cv_results_[f"split{fold}_test_score"][place] == pytest.approx(-loss, rel=1e-6)
        best = GPT2Classifier("nano", **RECIPE | found.best_params_).fit(TEXTS, LABELS)
        np.testing.assert_array_equal(found.predict_proba(NEW), best.predict_proba(NEW))
        halving = HalvingGridSearchCV(estimator(), {"lr": [1e-4, 1e-3]}, resource="epochs", max_resources=4, cv=2)
        assert halving.fit(TEXTS, LABELS).best_estimator_.epochs == 4

    def test_calibration_and_thresholds(self) -> None:
        calibrated = CalibratedClassifierCV(estimator(), cv=self.FOLDS).fit(TEXTS, LABELS)
        tuned = TunedThresholdClassifierCV(estimator(), cv=self.FOLDS, scoring="balanced_accuracy").fit(TEXTS, LABELS)
        sigmoids = []
        for part, (clf, _) in zip(calibrated.calibrated_classifiers_, self.folds(), strict=True):
            logits = predict_logits(clf, NEW)
            sigmoids.append(part.calibrators[0].predict(logits[:, 1] - logits[:, 0]))
        np.testing.assert_allclose(calibrated.predict_proba(NEW)[:, 1], np.mean(sigmoids, axis=0), rtol=1e-6)
        spam = predict_proba(by_hand(TEXTS, LABELS), NEW)[:, 1] >= tuned.best_threshold_
        assert tuned.predict(NEW).tolist() == ["spam" if each else "ham" for each in spam]

    def test_ensembles(self) -> None:
        members = [(str(seed), estimator(random_state=seed)) for seed in (1, 2)]
        voted = VotingClassifier(members, voting="soft").fit(TEXTS, LABELS)
        each = [predict_proba(by_hand(TEXTS, LABELS, seed=seed), NEW) for seed in (1, 2)]
        np.testing.assert_array_equal(voted.predict_proba(NEW), np.average(each, axis=0))
        bag = BaggingClassifier(estimator(), n_estimators=2, random_state=0).fit(np.array(TEXTS)[:, None], LABELS)
        each = []
        for member, chosen in zip(bag.estimators_, bag.estimators_samples_, strict=True):
            counts = np.bincount(chosen, minlength=len(TEXTS)).astype(float)
            again = clone(member).fit(TEXTS, np.array(LABELS) == "spam", sample_weight=counts)
            each.append(again.predict_proba(NEW))
        np.testing.assert_allclose(bag.predict_proba(np.array(NEW)[:, None]), np.mean(each, axis=0), rtol=1e-6)

    def test_metadata_routing(self) -> None:
        weights = np.linspace(0.5, 2, len(TEXTS))
        with sklearn.config_context(enable_metadata_routing=True):
            ours = estimator().set_score_request(sample_weight=False).set_fit_request(sample_weight=True)
            params = {"sample_weight": weights}
            found = cross_val_score(ours, TEXTS, LABELS, cv=self.FOLDS, params=params)
            steps = make_pipeline(ours).fit(TEXTS, LABELS, sample_weight=weights)
        for score, (train_rows, test) in zip(found, self.FOLDS.split(TEXTS, LABELS), strict=True):
            fold = estimator().fit(rows(TEXTS, train_rows), rows(LABELS, train_rows), sample_weight=weights[train_rows])
            assert score == fold.score(rows(TEXTS, test), rows(LABELS, test))
        direct = estimator().fit(TEXTS, LABELS, sample_weight=weights)
        np.testing.assert_array_equal(steps.predict_proba(NEW), direct.predict_proba(NEW))


class TestOnce:
    def test_a_search_sends_each_text_through_the_frozen_blocks_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = Tokens(monkeypatch)
        grid = {"lr": [1e-4, 1e-3], "random_state": [1, 2]}
        search = GridSearchCV(estimator(epochs=1), grid, cv=3, return_train_score=True, error_score="raise")
        search.fit(TEXTS, LABELS)
        assert tokens.seen == tokens_of(TEXTS)
        search.predict(TEXTS)
        assert tokens.seen == tokens_of(TEXTS)

    def test_a_loaded_estimator_keeps_nothing_of_the_texts_it_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = pickle.loads(pickle.dumps(estimator().fit(TEXTS, LABELS)))
        clear_features()
        ours.predict(TEXTS)
        assert clear_features() == 0

    def test_a_name_is_loaded_once_and_a_folder_again_when_it_changes(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from gptclf.sklearn import bases

        loaded: list[str] = []

        def noted(name: str) -> GPT2:
            loaded.append(name)
            return load_gpt2(name)

        monkeypatch.setattr(bases, "load_gpt2", noted)
        bases._load.cache_clear()
        folder = str(save_model(load_gpt2("nano"), tmp_path / "model"))
        for _ in range(2):
            estimator(epochs=1).fit(TEXTS, LABELS)
            estimator(model=folder, epochs=1).fit(TEXTS, LABELS)
        assert loaded == ["nano", folder]
        changed = load_gpt2("nano")
        with torch.no_grad():
            changed.trunk.norm.bias.add_(1.0)
        save_model(changed, folder)
        ours = estimator(model=folder, trainable="head").fit(TEXTS, LABELS)
        assert torch.equal(ours.model_.trunk.norm.bias, changed.trunk.norm.bias)
        bases._load.cache_clear()

    def test_weights_are_hashed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from gptclf.files import digest

        ours = estimator(epochs=1).fit(TEXTS, LABELS)
        hashed: list[torch.Size] = []
        real = digest._digest_of

        def noted(tensor: torch.Tensor, layouts: bool) -> str:
            hashed.append(tensor.shape)
            return real(tensor, layouts)

        monkeypatch.setattr(digest, "_digest_of", noted)
        clone(ours).fit(TEXTS, LABELS).predict(NEW)
        assert hashed == []

    @pytest.mark.parametrize(
        "change",
        [
            lambda weight: weight[3, 5].add_(1),
            lambda weight: weight.detach().mul_(2),
            lambda weight: weight.data.mul_(2),
            lambda weight: np.multiply(weight.numpy(), 2, out=weight.numpy()),
        ],
    )
    def test_weights_that_change_are_hashed_again(self, change: Any) -> None:
        for weight in (torch.rand(40, 30), torch.rand(40, 30).t(), torch.nn.Parameter(torch.rand(40, 30)).detach()):
            before = kept_digests([weight])
            assert kept_digests([weight]) == before == tensor_digests([weight])
            change(weight)
            assert kept_digests([weight]) == tensor_digests([weight]) != before

    @pytest.mark.parametrize("place", [0, 1, 700, 1199])
    def test_a_single_number_that_changes_past_torch_is_noticed(self, place: int) -> None:
        weight = torch.rand(40, 30)
        before = kept_digests([weight])
        weight.numpy().reshape(-1)[place] += 1
        assert kept_digests([weight]) == tensor_digests([weight]) != before

    def test_a_model_that_is_passed_never_changes_and_is_not_copied(self) -> None:
        gpt2 = load_gpt2("nano")
        before = tensor_digests(gpt2.state_dict().values())
        ours = estimator(model=gpt2, trainable="all")
        assert clone(ours).model is gpt2
        search = GridSearchCV(ours, {"lr": [1e-3, 1e-2]}, cv=2).fit(TEXTS, LABELS)
        assert search.best_estimator_.model is gpt2
        assert tensor_digests(gpt2.state_dict().values()) == before
        assert not any(parameter.requires_grad for parameter in gpt2.parameters())

    def test_random_states(self) -> None:
        def answers(state: Any) -> list[Any]:
            return estimator(epochs=1, random_state=state).fit(TEXTS, LABELS).decision_function(NEW).tolist()  # type: ignore[no-any-return]

        assert answers(np.random.RandomState(0)) == answers(np.random.RandomState(0)) != answers(1)
        assert answers(None) != answers(None)


class TestKept:
    @pytest.mark.parametrize(
        "params", [{}, {"lora": 2}, {"trainable": "head"}, {"quantized": "int8", "lora": {"rank": 2}}], ids=str
    )
    def test_a_pickle_holds_what_was_trained(self, params: Any) -> None:
        ours = estimator(**params).fit(TEXTS, LABELS)
        content = pickle.dumps(ours)
        trained = sum(p.numel() for p in ours.model_.parameters() if p.requires_grad)
        quantised = sum(p.nbytes for name, p in ours.model_.named_parameters() if name.endswith("codes"))
        assert len(content) < 4 * trained + quantised + 150_000 < 4 * sum(p.numel() for p in ours.model_.parameters())
        for again in (pickle.loads(content), copy.deepcopy(ours), pickle.loads(pickle.dumps(pickle.loads(content)))):
            np.testing.assert_array_equal(again.predict_proba(NEW), predict_proba(ours.model_, NEW))
            assert again.get_params() == ours.get_params()
            assert again.history_.steps == ours.history_.steps

    def test_a_passed_model_that_is_found_again_is_pickled_by_its_name(self) -> None:
        ours = estimator(model=load_gpt2("nano"), trainable="head").fit(TEXTS, LABELS)
        content = pickle.dumps(ours)
        assert len(content) < 200_000
        again = pickle.loads(content)
        np.testing.assert_array_equal(again.predict_proba(NEW), predict_proba(ours.model_, NEW))
        assert isinstance(again.model, GPT2)
        np.testing.assert_array_equal(clone(again).fit(TEXTS, LABELS).predict(NEW), ours.predict(NEW))

    def test_random_weights_are_pickled_whole(self) -> None:
        tokenizer = load_gpt2("nano").tokenizer
        config = GPT2Config(vocab_size=tokenizer.n_vocab, context_length=16, emb_dim=8, n_heads=2, n_layers=2)
        gpt2 = load_gpt2(config, weights="random", seed=1, tokenizer=tokenizer)
        ours = estimator(model=gpt2).fit(TEXTS, LABELS)
        again = pickle.loads(pickle.dumps(ours))
        np.testing.assert_array_equal(again.predict_proba(NEW), predict_proba(ours.model_, NEW))

    def test_weights_that_are_gone_or_differ_are_errors(self, tmp_path: Path) -> None:
        folder = save_model(load_gpt2("nano"), tmp_path / "model")
        gpt2 = load_gpt2(folder)
        gpt2.base = None  # else nano itself is found
        ours = estimator(model=gpt2, trainable="head").fit(TEXTS, LABELS)
        content = pickle.dumps(ours)
        assert len(content) < 200_000
        shutil.move(folder, tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match=r"holds what was trained; the other weights are those of .*model"):
            pickle.loads(content)
        other = load_gpt2(tmp_path / "elsewhere")
        with torch.no_grad():
            other.get_parameter("trunk.blocks.0.mlp.up.weight")[3, 5] += 1
        save_model(other, folder)
        with pytest.raises(ValueError, match="are not those that this pickle was made with"):
            pickle.loads(content)

    @pytest.mark.parametrize("backend", [pytest.param("loky", marks=pytest.mark.slow), "threading"])
    def test_joblib(self, backend: str) -> None:
        grid = {"lr": [1e-4, 1e-3]}
        alone = GridSearchCV(estimator(), grid, cv=2, scoring="neg_log_loss").fit(TEXTS, LABELS)
        with joblib.parallel_backend(backend, n_jobs=2):
            search = GridSearchCV(estimator(), grid, cv=2, scoring="neg_log_loss").fit(TEXTS, LABELS)
        # Another process may compute with another number of threads, which rounds otherwise.
        np.testing.assert_allclose(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], 1e-5)

    def test_joblib_dump(self, tmp_path: Path) -> None:
        ours = estimator().fit(TEXTS, LABELS)
        joblib.dump(ours, tmp_path / "ours.joblib")
        again = joblib.load(tmp_path / "ours.joblib")
        np.testing.assert_array_equal(again.predict_proba(NEW), ours.predict_proba(NEW))

    @pytest.mark.parametrize("params", [{}, {"lora": 2}, {"class_weight": {"spam": 2.0}, "max_length": 3}], ids=str)
    def test_folders(self, params: Any, tmp_path: Path) -> None:
        ours = estimator(**params).fit(TEXTS, LABELS)
        again = GPT2Classifier.load(ours.save(tmp_path / "folder"))
        np.testing.assert_array_equal(again.predict_proba(NEW), predict_proba(ours.model_, NEW))
        assert again.get_params() == ours.get_params()
        assert (again.n_iter_, again.history_.steps) == (ours.n_iter_, ours.history_.steps)
        np.testing.assert_array_equal(again.fit(TEXTS, LABELS).predict_proba(NEW), ours.predict_proba(NEW))

    def test_a_folder_says_which_parameters_it_cannot_hold(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours = estimator(callbacks=[], random_state=np.random.RandomState(0)).fit(TEXTS, LABELS)
        ours.save(tmp_path / "folder")
        assert "these parameters are not written, give them again to fit anew: random_state" in caplog.text


def test_without_scikit_learn_the_package_works_and_the_estimator_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import gptclf; gptclf.train\n"
        "try:\n    import gptclf.sklearn\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "gptclf.sklearn needs scikit-learn: pip install 'gptclf[sklearn]'\n"


def test_a_fit_says_nothing(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    estimator().fit(TEXTS, LABELS).predict(NEW)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
