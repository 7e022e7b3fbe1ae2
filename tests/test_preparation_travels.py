"""What a model learned on goes where it goes: into the files that `transformers` reads, and into every answer."""

import json
import logging
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptclf import (
    GPT2,
    MultiLabel,
    Preparation,
    Regression,
    Task,
    TextDataset,
    add_classifier_head,
    apply_lora,
    load_gpt2,
    load_model,
    predict,
    predict_proba,
    save_adapter,
    save_model,
    train,
)
from gptclf.tokenizer.bpe import END_OF_TEXT

WORDS = ["win", "cash", "now", "see", "you", "at", "six", "lunch", "free", "prize", "home", "call", "ok", "£5", "!!"]
PREPARATIONS = [Preparation(), Preparation(20), Preparation(20, "head"), Preparation(1)]


def generated(n: int = 32, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(n)]
    return texts, ["spam" if "cash" in text else "ham" for text in texts]


def trained(texts: list[str], labels: list[Any], preparation: Preparation, task: Task | None = None) -> GPT2:
    """A classifier of nano after a few steps, so that its answers depend on the text."""
    gpt2 = load_gpt2("nano")
    clf = add_classifier_head(gpt2, classes=["ham", "spam"] if task is None else None, task=task, seed=1)
    data = TextDataset(texts, labels, tokenizer=clf.tokenizer, task=clf.task, **vars(preparation))
    train(clf, data, epochs=4, lr=2e-3, progress=False)
    return clf


def snippet(folder: Path) -> Any:
    """The pipeline that the card's code for `transformers` makes."""
    pytest.importorskip("transformers")
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[-1]
    scope: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), scope)
    return next(scope[name] for name in ("classify", "measure") if name in scope)


def same_answers(clf: GPT2, texts: list[str], folder: Path) -> None:
    classify, expected = snippet(save_model(clf, folder)), predict_proba(clf, texts, precision="float32")
    answers = classify(texts)
    assert [answer["label"] for answer in answers] == predict(clf, texts, precision="float32")
    np.testing.assert_allclose([answer["score"] for answer in answers], expected.max(1), rtol=0, atol=1e-5)
    assert len(set(expected.argmax(1))) == 2
    assert expected.max(1).std() > 1e-3


def hard(texts: list[str]) -> list[str]:
    """The texts, and some with the name of the end of text, or longer than nano's context of 512 tokens."""
    marked = [f"{text[:20]}{END_OF_TEXT}{text[20:]}" for text in texts[:20]] + [END_OF_TEXT, f"free {END_OF_TEXT}"]
    return [*texts, *marked, " ".join(texts[:60])[:6000], "lunch at noon? " * 300 + "win cash", "!" * 3000]


@pytest.mark.parametrize("preparation", PREPARATIONS, ids=str)
def test_the_cards_snippet_answers_as_predict_does(preparation: Preparation, tmp_path: Path) -> None:
    texts, labels = generated()
    same_answers(trained(texts, labels, preparation), hard(texts), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preparation", [Preparation(20), Preparation(20, "head"), Preparation()], ids=str)
def test_the_cards_snippet_answers_as_predict_does_on_300_messages(
    shared_data: Path, preparation: Preparation, tmp_path: Path
) -> None:
    rows = TextDataset.from_file(
        shared_data / "sms_spam.tsv", text=1, label=0, tokenizer=load_gpt2("nano").tokenizer, classes=["ham", "spam"]
    )
    order = np.random.default_rng(0).permutation(len(rows))
    texts, labels = [[values[i] for i in order[:364]] for values in (rows.texts, rows.given)]
    same_answers(trained(texts[:64], labels[:64], preparation), hard(texts[64:]), tmp_path)


class TestWhatTransformersCannotDo:
    @pytest.mark.parametrize(
        "preparation", [Preparation(pad_to=60), Preparation(20, "middle"), Preparation(20, pad_to=60)]
    )
    def test_is_kept_in_our_files_and_said(
        self, preparation: Preparation, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        texts, labels = generated()
        clf = trained(texts, labels, preparation)
        save_model(clf, tmp_path)
        reason = preparation.export_problem()
        assert re.search("pad texts to 60 tokens|cut out the middle", reason)
        assert f"transformers cannot load this model ({reason})" in caplog.text
        assert reason in (tmp_path / "README.md").read_text(encoding="utf-8")
        assert not {"config.json", "model.safetensors"} & {path.name for path in tmp_path.iterdir()}
        again = load_model(tmp_path)
        assert again.preparation == preparation
        np.testing.assert_array_equal(predict_proba(again, hard(texts)), predict_proba(clf, hard(texts)))

    def test_a_model_that_could_be_exported_before_leaves_no_old_files(self, tmp_path: Path) -> None:
        texts, labels = generated()
        clf = trained(texts, labels, Preparation(20))
        save_model(clf, tmp_path)
        clf.preparation = Preparation(pad_to=20)
        save_model(clf, tmp_path)
        assert not {"config.json", "model.safetensors"} & {path.name for path in tmp_path.iterdir()}


def test_the_settings_are_those_of_training(tmp_path: Path) -> None:
    texts, labels = generated(8)
    for preparation, length, side in (
        (Preparation(), 512, "right"),
        (Preparation(20, "head"), 20, "left"),
        (Preparation(9000), 512, "right"),  # the model's context is shorter
    ):
        save_model(trained(texts, labels, preparation), tmp_path)
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert (settings["model_max_length"], settings["truncation_side"]) == (length, side)
        assert settings["split_special_tokens"] is True


@pytest.mark.parametrize("task", [MultiLabel(["a", "b"]), Regression()], ids=["labels", "numbers"])
def test_the_snippets_of_other_tasks_take_long_texts(task: Task, tmp_path: Path) -> None:
    texts = hard(generated(8)[0])
    labels: list[Any] = [["a"], ["b"]] * 4 if task.classes else [0.5, 1.5] * 4
    clf = trained(texts[:8], labels, Preparation(20, "head"), task)
    answers = snippet(save_model(clf, tmp_path))(texts)
    scores = [{row["label"]: row["score"] for row in rows} for rows in answers]
    answer = predict_proba if task.classes else predict
    found = [[row[name] for name in "ab"] if task.classes else next(iter(row.values())) for row in scores]
    np.testing.assert_allclose(found, answer(clf, texts, precision="float32"), rtol=0, atol=1e-5)


class TestALoopOfOnesOwn:
    @staticmethod
    def changed(**head: Any) -> GPT2:
        """A classifier whose weights somebody changed, as a loop of one's own does."""
        clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1, **head)
        with torch.no_grad():
            clf.get_parameter("head.output.weight").add_(0.1)
        return clf

    def test_predict_and_save_model_say_that_the_preparation_is_not_known_once(self, tmp_path: Path) -> None:
        clf = self.changed()
        with pytest.warns(UserWarning, match=r"clf\.preparation = train_set\.preparation") as caught:
            predict(clf, ["a"])
        assert [warning.filename for warning in caught] == [__file__]
        with pytest.warns(UserWarning, match=r"clf\.preparation = train_set\.preparation") as caught:
            save_model(self.changed(), tmp_path)
        assert [warning.filename for warning in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(clf, ["a"])
            save_model(clf, tmp_path / "again")
            predict(load_model(tmp_path), ["a"])

    def test_what_is_noted_travels_without_a_warning(self, tmp_path: Path) -> None:
        clf = self.changed()
        data = TextDataset(["a"], ["ham"], tokenizer=clf.tokenizer, max_length=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clf.preparation = data.preparation
            predict(clf, ["a"])
            again = load_model(save_model(clf, tmp_path))
        assert again.preparation == Preparation(7)

    def test_a_new_head_has_a_preparation_of_its_own(self) -> None:
        clf = self.changed()
        clf.preparation = Preparation(7)
        assert add_classifier_head(clf, classes=["a", "b"], seed=1).preparation == Preparation()
        assert clf.preparation == Preparation(7)

    def test_an_adapter_says_so_too(self, tmp_path: Path) -> None:
        clf = apply_lora(self.changed(), seed=1)
        with pytest.warns(UserWarning, match=r"clf\.preparation = train_set\.preparation"):
            save_adapter(clf, tmp_path)

    def test_a_fresh_head_and_a_language_model_are_not_asked_for_it(self, tmp_path: Path) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predict(add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1), ["a"])
            save_model(load_gpt2("nano"), tmp_path)
        assert [str(warning.message)[:40] for warning in caught] == ["this classifier's head was never trained"]

    @pytest.mark.parametrize("wrong", [None, {"max_length": 3}, 120, Preparation])
    def test_what_a_model_is_told_is_checked_when_it_is_told(self, wrong: Any) -> None:
        clf = self.changed()
        with pytest.raises(TypeError, match=r"preparation is .*; give a gptclf\.Preparation"):
            clf.preparation = wrong
        assert clf.preparation == Preparation()


class TestTheBooksFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        from gptclf.weights.book import to_book

        clf = TestALoopOfOnesOwn.changed()
        torch.save(to_book(dict(clf.named_parameters()), clf.config), tmp_path / "review_classifier.pth")
        return tmp_path / "review_classifier.pth"

    def test_it_answers_as_on_the_rows_that_it_learned_on(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        nano = load_gpt2("nano")
        clf = load_model(file, settings={"n_heads": nano.config.n_heads}, pad_to=40)
        assert (clf.preparation, "pad_to" in caplog.text) == (Preparation(pad_to=40), False)
        clf.tokenizer = nano.tokenizer
        texts = ["win cash now", "lunch at noon? " * 40]
        ids = [nano.tokenizer.encode_ordinary(text)[:40] for text in texts]
        rows = torch.tensor([row + [nano.tokenizer.eot_token] * (40 - len(row)) for row in ids])
        with torch.no_grad():
            expected = clf.token_logits(rows)[:, -1].softmax(-1)
        np.testing.assert_allclose(predict_proba(clf, texts, precision="float32"), expected, rtol=0, atol=1e-5)

    def test_without_the_length_it_says_that_answers_are_chance(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = {"n_heads": load_gpt2("nano").config.n_heads}
        assert load_model(file, settings=settings).preparation == Preparation()
        assert re.search(r"review_classifier\.pth: .*by chance.*pad_to=", caplog.text)

    @pytest.mark.parametrize(
        ("wrong", "kind"), [(0, ValueError), (513, ValueError), ("120", TypeError), (True, TypeError)]
    )
    def test_a_length_is_checked(self, file: Path, wrong: Any, kind: type[Exception]) -> None:
        with pytest.raises(kind, match="pad_to is"):
            load_model(file, settings={"n_heads": load_gpt2("nano").config.n_heads}, pad_to=wrong)

    def test_a_folder_brings_its_own(self, tmp_path: Path) -> None:
        clf = TestALoopOfOnesOwn.changed()
        clf.preparation = Preparation(7)
        with pytest.raises(ValueError, match="pad_to=40 is for a file of the book's classifier"):
            load_model(save_model(clf, tmp_path), pad_to=40)


class TestAFolderOfOursInParts:
    @pytest.mark.parametrize("also", ["config.json", "README.md", "gptclf.safetensors"])
    @pytest.mark.parametrize("preparation", [Preparation(7), Preparation(pad_to=7)], ids=["exported", "ours only"])
    def test_without_its_record_it_is_refused(self, preparation: Preparation, also: str, tmp_path: Path) -> None:
        clf = TestALoopOfOnesOwn.changed()
        clf.preparation = preparation
        save_model(clf, tmp_path)
        for name in ("gptclf.json", also):
            (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match=r"written by save_model, but its gptclf\.json is missing"):
            load_model(tmp_path)

    def test_a_folder_that_transformers_wrote_of_it_is_transformers_own(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        clf = TestALoopOfOnesOwn.changed()
        clf.preparation = Preparation(7)
        save_model(clf, tmp_path / "ours")
        model = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "ours")
        model.save_pretrained(tmp_path / "theirs")
        transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
        again = load_model(tmp_path / "theirs")
        again.preparation = clf.preparation
        texts = ["win cash", f"a{END_OF_TEXT}b"]
        np.testing.assert_allclose(predict_proba(again, texts), predict_proba(clf, texts), rtol=0, atol=1e-5)


class TestValidationSets:
    def test_one_prepared_otherwise_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
        texts, labels = generated(8)
        rows = [
            TextDataset(texts, labels, tokenizer=clf.tokenizer, classes=clf.classes, **options)
            for options in ({"pad_to": 60}, {}, {"pad_to": 60, "truncation": "head"}, {"pad_to": 60})
        ]
        for val_set, said in zip(rows[1:], ["pad_to=None (", "truncation='head' (", None], strict=True):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                train(clf, rows[0], val_set, epochs=1, progress=False)
            assert ("val_set was prepared with" in caplog.text) == (said is not None)
            assert said is None or said in caplog.text
