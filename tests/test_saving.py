"""Saving: bit-equal reload, folders that transformers reads, and saves that are interrupted."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import byte_gpt2, byte_tokenizer, randomised
from safetensors.torch import load_file, save_file

import gptclf
from gptclf import (
    GPT2,
    GPT2Config,
    Preparation,
    TextDataset,
    add_classifier_head,
    freeze,
    load_gpt2,
    load_model,
    predict,
    save_model,
)

WIDTH = 24  # of odd_config
IDS = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(5))
ROOT = Path(gptclf.__file__).parents[1]


def classifier(model: GPT2, classes: Any, **settings: Any) -> GPT2:
    """A classifier with noise in every parameter, its head's bias included."""
    clf = randomised(add_classifier_head(model, classes=classes, seed=2, **settings))
    clf.tokenizer = byte_tokenizer()
    return clf


def our_logits(model: GPT2) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)  # type: ignore[no-any-return]


def their_logits(folder: Path) -> torch.Tensor:
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return theirs(IDS).logits  # type: ignore[no-any-return]


def weight_of(model: GPT2) -> torch.Tensor:
    return model.get_parameter("head.output.weight")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_equal_models(first: GPT2, second: GPT2) -> None:
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].requires_grad == theirs[name].requires_grad, name


class TestReload:
    @pytest.mark.parametrize("pooling", ["last", "first", "mean", "max"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_it_is_equal_bit_for_bit(self, pooling: str, bias: bool, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, ["a", "b", "c"], pooling=pooling, bias=bias)
        again = load_model(save_model(clf, tmp_path / "saved"))
        assert_equal_models(clf, again)
        assert torch.equal(our_logits(clf), our_logits(again))
        assert not again.training

    @pytest.mark.parametrize("trainable", ["head", "last_block", "all", 2, ["blocks.0.mlp", "norm"]], ids=str)
    def test_what_trained_is_trainable_again(self, trainable: Any, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, ["a", "b"])
        freeze(clf, trainable=trainable)
        assert_equal_models(clf, load_model(save_model(clf, tmp_path)))

    @pytest.mark.parametrize(
        "classes",
        [
            ["spam", "ham"],
            [1, 0],
            [-3, 10, 7],
            [True, False],
            [0.5, 0.25],
            [("b", 1), ("a", (2, None is None))],
            ["1", 1],
            ["naïve", "東京", "👍", "a\nb", ""],
            [1e300, 5e-324, 0.1],
        ],
        ids=str,
    )
    def test_labels_come_back_in_order_with_their_types(
        self, classes: list[Any], small_gpt2: GPT2, tmp_path: Path
    ) -> None:
        again = load_model(save_model(classifier(small_gpt2, classes), tmp_path))
        assert again.classes == classes
        assert list(map(repr, again.classes or [])) == list(map(repr, classes))

    def test_a_label_of_another_kind_becomes_its_text_and_that_is_said(
        self, small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_model(classifier(small_gpt2, [frozenset({1}), "b"]), tmp_path)
        assert "is saved as the text 'frozenset({1})'" in caplog.text
        assert load_model(tmp_path).classes == ["frozenset({1})", "b"]

    def test_labels_that_would_become_one_are_refused_before_anything_is_written(
        self, small_gpt2: GPT2, tmp_path: Path
    ) -> None:
        clf = classifier(small_gpt2, [b"x", "b'x'"])
        with pytest.raises(ValueError, match="b'x'"):
            save_model(clf, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_how_texts_were_prepared_is_kept(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, ["a", "b"])
        clf.preparation = Preparation(max_length=5, truncation="head", pad_to=7)
        again = load_model(save_model(clf, tmp_path))
        assert again.preparation == Preparation(max_length=5, truncation="head", pad_to=7)
        texts = ["a long enough text", "b"]
        assert predict(again, texts) == predict(clf, texts)

    def test_the_tokenizer_comes_with_it(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        again = load_model(save_model(classifier(small_gpt2, ["a", "b"]), tmp_path))
        assert again.tokenizer.token_byte_values() == byte_tokenizer().token_byte_values()

    def test_a_model_without_a_tokenizer_is_saved_and_that_is_said(
        self, small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = add_classifier_head(small_gpt2, classes=["a", "b"], seed=1)
        assert_equal_models(clf, load_model(save_model(clf, tmp_path)))
        assert "saved without its tokenizer" in caplog.text

    @pytest.mark.parametrize("tied", [True, False])
    def test_a_language_model_makes_the_round_trip(self, tied: bool, odd_config: GPT2Config, tmp_path: Path) -> None:
        model = randomised(GPT2(odd_config.replace(tied=tied), seed=3))
        save_model(model, tmp_path)
        assert_equal_models(model, load_model(tmp_path))
        assert torch.equal(our_logits(load_gpt2(tmp_path)), our_logits(model))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(IDS).logits, our_logits(model), atol=1e-5, rtol=1e-5)

    def test_a_model_without_query_biases_makes_the_round_trip(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        clf = classifier(GPT2(odd_config.replace(qkv_bias=False), seed=3), ["a", "b"])
        assert_equal_models(clf, load_model(save_model(clf, tmp_path)))
        torch.testing.assert_close(their_logits(tmp_path), our_logits(clf), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(
        "changes",
        [
            {"activation": "gelu"},
            {"activation": "relu"},
            {"activation": "silu"},
            {"norm_eps": 0.3},
            {"mlp_dim": None},
            {"scale_attention": False},
            {"scale_attention_by_layer": True},
            {"init_std": 0.5},
            {"drop_rate": 0.25},
        ],
        ids=str,
    )
    def test_every_choice_of_the_configuration_is_kept_for_both_readers(
        self, changes: dict[str, Any], odd_config: GPT2Config, tmp_path: Path
    ) -> None:
        clf = classifier(GPT2(odd_config.replace(**changes), seed=3), ["a", "b"])
        assert load_model(save_model(clf, tmp_path)).config == clf.config
        torch.testing.assert_close(their_logits(tmp_path), our_logits(clf), atol=2e-5, rtol=1e-5)

    def test_a_loaded_model_may_be_saved_over_itself(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        loaded = load_model(tmp_path)
        before = our_logits(loaded)
        # Its weights are mapped from the very file that is replaced.
        save_model(loaded, tmp_path)
        assert torch.equal(our_logits(loaded), before)
        assert torch.equal(our_logits(load_model(tmp_path)), before)

    def test_half_precision_models_are_saved_or_refused_in_words(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, ["a", "b"]).bfloat16()
        try:
            save_model(clf, tmp_path / "half")
        except (TypeError, ValueError) as error:
            said = str(error)
        else:
            torch.testing.assert_close(our_logits(load_model(tmp_path / "half")), our_logits(clf.float()))
            said = "float32"
        assert "float32" in said


class TestTransformersReadsIt:
    @pytest.mark.parametrize("n", [2, 5, WIDTH])
    def test_a_heads_bias_is_folded_into_the_final_norm(self, n: int, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, list(range(n)))
        save_model(clf, tmp_path)
        torch.testing.assert_close(their_logits(tmp_path), our_logits(clf), atol=1e-5, rtol=1e-5)
        theirs = load_file(tmp_path / "model.safetensors")["transformer.ln_f.bias"]
        assert not torch.equal(theirs, clf.trunk.norm.bias)
        assert "score.bias" not in load_file(tmp_path / "model.safetensors")

    def test_without_a_bias_nothing_is_folded_and_no_second_file_written(
        self, small_gpt2: GPT2, tmp_path: Path
    ) -> None:
        clf = classifier(small_gpt2, list(range(WIDTH + 3)), bias=False)
        save_model(clf, tmp_path)
        assert not (tmp_path / "gptclf.safetensors").exists()
        torch.testing.assert_close(their_logits(tmp_path), our_logits(clf), atol=1e-5, rtol=1e-5)

    def _refused(self, clf: GPT2, folder: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
        save_model(clf, folder)
        assert f"transformers cannot load this model ({reason}" in caplog.text
        assert not (folder / "model.safetensors").exists()
        assert not (folder / "config.json").exists()
        with pytest.raises((OSError, ValueError)):
            transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        assert_equal_models(clf, load_model(folder))
        assert torch.equal(our_logits(load_model(folder)), our_logits(clf))

    def test_more_classes_than_width_with_a_bias_are_refused_there_and_kept_here(
        self, small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = classifier(small_gpt2, list(range(WIDTH + 1)))
        self._refused(clf, tmp_path, caplog, "its head's bias cannot be folded into the final norm")

    def test_a_head_of_equal_rows_with_unequal_biases_is_refused_there_and_kept_here(
        self, small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = classifier(small_gpt2, ["a", "b"])
        with torch.no_grad():
            weight = clf.get_parameter("head.output.weight")
            weight[1] = weight[0]
        self._refused(clf, tmp_path, caplog, "its head's bias cannot be folded into the final norm")

    def test_a_head_of_equal_rows_with_equal_biases_is_folded(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        clf = classifier(small_gpt2, ["a", "b", "c"])
        with torch.no_grad():
            for parameter in clf.head.parameters():
                parameter[1] = parameter[0]
        save_model(clf, tmp_path)
        torch.testing.assert_close(their_logits(tmp_path), our_logits(clf), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("pooling", ["first", "mean", "max"])
    def test_another_pooling_is_refused_there_and_kept_here(
        self, pooling: str, small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = classifier(small_gpt2, ["a", "b"], pooling=pooling)
        self._refused(clf, tmp_path, caplog, f"it pools '{pooling}'")

    def test_labels_reach_its_configuration_as_text(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, [3, "x", 1.5]), tmp_path)
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        assert config.id2label == {0: "3", 1: "x", 2: "1.5"}
        assert config.label2id == {"3": 0, "x": 1, "1.5": 2}
        assert (config.num_labels, config.problem_type) == (3, "single_label_classification")

    def test_labels_of_one_text_are_told_apart(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, [1, "1"]), tmp_path)
        assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == {0: "1", 1: "'1'"}

    def test_its_pipeline_gives_our_answers(self, tmp_path: Path) -> None:
        clf = classifier(byte_gpt2(), ["ham", "spam", "egg"])
        save_model(clf, tmp_path)
        texts = ["you won a prize", "see you at six", "x"]
        pipeline = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
        probabilities = gptclf.predict_proba(clf, texts, precision="float32")
        for answers, row in zip(pipeline(texts, batch_size=3), probabilities, strict=True):
            scores = {answer["label"]: answer["score"] for answer in answers}
            assert scores == pytest.approx(dict(zip(["ham", "spam", "egg"], map(float, row), strict=True)), abs=1e-5)


class TestFoldersOfTransformers:
    def theirs(self, folder: Path, **changes: Any) -> torch.Tensor:
        """Save one of transformers' classifiers and give its logits."""
        torch.manual_seed(1)
        config = transformers.GPT2Config(
            vocab_size=257,
            n_positions=40,
            n_embd=24,
            n_head=3,
            n_layer=3,
            **{"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256, **changes},
        )
        model = transformers.GPT2ForSequenceClassification(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            return model(IDS).logits  # type: ignore[no-any-return]

    def test_its_labels_and_logits_are_taken_over(self, tmp_path: Path) -> None:
        names = {0: "neg", 1: "neutral", 2: "pos", 3: "other"}
        logits = self.theirs(tmp_path, id2label=names, label2id={name: i for i, name in names.items()})
        ours = load_model(tmp_path)
        assert ours.classes == ["neg", "neutral", "pos", "other"]
        torch.testing.assert_close(our_logits(ours), logits, atol=1e-5, rtol=1e-5)
        assert not ours.head.is_fresh

    def test_more_than_ten_labels_keep_their_order(self, tmp_path: Path) -> None:
        logits = self.theirs(tmp_path, num_labels=12)
        ours = load_model(tmp_path)
        assert ours.classes == [f"LABEL_{i}" for i in range(12)]
        torch.testing.assert_close(our_logits(ours), logits, atol=1e-5, rtol=1e-5)

    def test_two_labels_that_it_never_named_have_its_default_names(self, tmp_path: Path) -> None:
        logits = self.theirs(tmp_path)
        assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
        ours = load_model(tmp_path)
        assert ours.classes == ["LABEL_0", "LABEL_1"]
        torch.testing.assert_close(our_logits(ours), logits, atol=1e-5, rtol=1e-5)

    def test_it_is_set_to_train_its_last_block(self, tmp_path: Path) -> None:
        self.theirs(tmp_path)
        ours = load_model(tmp_path)
        before = [name for name, p in ours.named_parameters() if p.requires_grad]
        freeze(ours, trainable="last_block")
        assert before == [name for name, p in ours.named_parameters() if p.requires_grad]

    def test_it_may_be_saved_as_ours_elsewhere(self, tmp_path: Path) -> None:
        logits = self.theirs(tmp_path / "theirs", num_labels=3)
        save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
        torch.testing.assert_close(our_logits(load_model(tmp_path / "ours")), logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(their_logits(tmp_path / "ours"), logits, atol=1e-5, rtol=1e-5)

    def test_a_problem_that_is_none_of_theirs_is_refused(self, tmp_path: Path) -> None:
        self.theirs(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(values | {"problem_type": "ranking"}))
        with pytest.raises(ValueError, match=r"config\.json: problem_type is 'ranking'; it must be"):
            load_model(tmp_path)

    def test_a_single_output_is_no_classifier(self, tmp_path: Path) -> None:
        self.theirs(tmp_path, num_labels=1)
        values = json.loads((tmp_path / "config.json").read_text()) | {"problem_type": "single_label_classification"}
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match="at least 2 classes"):
            load_model(tmp_path)

    def test_names_and_rows_that_disagree_are_refused(self, tmp_path: Path) -> None:
        self.theirs(tmp_path, num_labels=3)
        values = json.loads((tmp_path / "config.json").read_text())
        values["id2label"].pop("1")
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"id2label is .*'2': 'LABEL_2'}, but score.weight has 3 rows"):
            load_model(tmp_path)

    def test_a_language_model_is_pointed_to_load_gpt2(self, tmp_path: Path) -> None:
        config = transformers.GPT2Config(vocab_size=257, n_positions=40, n_embd=24, n_head=3, n_layer=1)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"no score\.weight.*load_gpt2"):
            load_model(tmp_path)

    def test_it_is_not_overwritten(self, tmp_path: Path, small_gpt2: GPT2) -> None:
        self.theirs(tmp_path)
        before = content(tmp_path)
        with pytest.raises(FileExistsError, match=r"config\.json, model\.safetensors that gptclf did not write"):
            save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        assert content(tmp_path) == before


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files, which only Unix has")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


class TestTheFolder:
    def test_two_equal_models_save_equal_bytes(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        for name in ("first", "second"):
            save_model(classifier(randomised(GPT2(odd_config, seed=7)), ["a", "b"]), tmp_path / name)
        assert content(tmp_path / "first") == content(tmp_path / "second")

    def test_a_second_save_replaces_the_first(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        second = randomised(classifier(small_gpt2, ["x", "y", "z"]), seed=9)
        save_model(second, tmp_path)
        assert_equal_models(second, load_model(tmp_path))
        assert load_model(tmp_path).classes == ["x", "y", "z"]

    @pytest.mark.parametrize("second", ["mean", "no bias", "language model", "no tokenizer"])
    def test_files_of_an_earlier_save_that_are_not_of_this_one_are_removed(
        self, second: str, small_gpt2: GPT2, tmp_path: Path
    ) -> None:
        models = {
            "mean": classifier(small_gpt2, ["a", "b"], pooling="mean"),
            "no bias": classifier(small_gpt2, ["a", "b"], bias=False),
            "language model": small_gpt2,
            "no tokenizer": add_classifier_head(small_gpt2, classes=["a", "b"], seed=1),
        }
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path / "used")
        (tmp_path / "used" / "README.md").write_text("mine")
        save_model(models[second], tmp_path / "used")
        assert (tmp_path / "used" / "README.md").read_text() == "mine"
        (tmp_path / "used" / "README.md").unlink()
        save_model(models[second], tmp_path / "used")
        save_model(models[second], tmp_path / "fresh")
        assert content(tmp_path / "used") == content(tmp_path / "fresh")

    def test_folders_above_it_are_made(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        assert save_model(small_gpt2, str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        assert (tmp_path / "a" / "b" / "gptclf.json").exists()

    def test_a_file_in_its_place_is_refused(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(FileExistsError, match="is a file; give a folder"):
            save_model(small_gpt2, tmp_path / "file")

    def test_a_folder_that_is_not_there_is_said_to_be_none(self, tmp_path: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"not a folder, a file or a known model.* Give the folder that save_model"
        ):
            load_model(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["model.safetensors", "gptclf.safetensors", "gptclf.json"])
    def test_a_file_of_another_save_is_noticed(self, name: str, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path / "first")
        save_model(randomised(classifier(small_gpt2, ["a", "b"]), seed=9), tmp_path / "second")
        (tmp_path / "first" / name).write_bytes((tmp_path / "second" / name).read_bytes())
        with pytest.raises(ValueError, match=r"different saves; .*Save the model again"):
            load_model(tmp_path / "first")

    @pytest.mark.parametrize("name", ["model.safetensors", "gptclf.safetensors", "config.json"])
    def test_a_missing_file_is_named(self, name: str, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        (tmp_path / name).unlink()
        if name == "config.json":
            # transformers needs it; our own record says the same.
            assert load_model(tmp_path).classes == ["a", "b"]
            return
        with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
            load_model(tmp_path)

    def test_a_file_with_a_parameter_of_another_shape_is_refused(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        mark = json.loads((tmp_path / "gptclf.json").read_text())["gptclf_save"]
        save_file({"head.output.bias": torch.zeros(3)}, tmp_path / "gptclf.safetensors", {"gptclf_save": mark})
        with pytest.raises(ValueError, match=r"head\.output\.bias, trunk\.norm\.bias"):
            load_model(tmp_path)

    def test_a_later_format_asks_for_an_upgrade(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(small_gpt2, tmp_path)
        values = json.loads((tmp_path / "gptclf.json").read_text())
        (tmp_path / "gptclf.json").write_text(json.dumps({**values, "format": 2}))
        with pytest.raises(ValueError, match=r"format 2; .* reads format 1.*upgrade"):
            load_model(tmp_path)


def stopping(rename: Callable[[Path, Path], Path], left: list[int]) -> Callable[[Path, Path], Path]:
    """A renaming after which the process is stopped once `left` are done."""

    def renamed(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return rename(path, target)

    return renamed


class TestInterruptedSaves:
    @pytest.mark.parametrize("size", [0, 100, 5_000, 50_000])
    def test_a_full_disk_leaves_the_folder_as_it_was(self, size: int, small_gpt2: GPT2, tmp_path: Path) -> None:
        save_model(classifier(small_gpt2, ["a", "b"]), tmp_path)
        before = content(tmp_path)
        second = randomised(classifier(small_gpt2, ["x", "y"]), seed=9)
        with small_disk(size), pytest.raises(OSError, match=r"could not save to .*[Ff]ile too large.*Free some space"):
            save_model(second, tmp_path)
        assert content(tmp_path) == before

    def test_a_full_disk_leaves_no_half_of_a_new_folder(self, small_gpt2: GPT2, tmp_path: Path) -> None:
        with small_disk(50_000), pytest.raises(OSError, match="could not save"):
            save_model(small_gpt2, tmp_path / "new")
        assert not (tmp_path / "new").exists() or content(tmp_path / "new") == {}

    def test_a_folder_that_may_not_be_written_says_so(
        self, small_gpt2: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "write_text", refuse)
        with pytest.raises(OSError, match=r"could not save to .*Permission denied") as caught:
            save_model(small_gpt2, tmp_path)
        assert caught.value.errno == 13

    def test_wherever_the_renaming_stops_the_folder_is_old_or_new(
        self, small_gpt2: GPT2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process killed between any two renames; what it left is loaded."""
        outcomes = []
        first = classifier(small_gpt2, ["a", "b"])
        for second in (
            randomised(classifier(small_gpt2, ["x", "y", "z"]), seed=9),
            randomised(classifier(small_gpt2, ["x", "y"], pooling="mean"), seed=9),
            classifier(small_gpt2, ["x", "y"]),
        ):
            for stop in range(9):
                folder = tmp_path / str(len(list(tmp_path.iterdir())))
                save_model(first, folder)
                left = [stop]
                with monkeypatch.context() as patch:
                    for name in ("rename", "replace"):
                        patch.setattr(Path, name, stopping(getattr(Path, name), left))
                    with suppress(KeyboardInterrupt):
                        save_model(second, folder)
                found = load_model(folder)
                kept = first if found.classes == first.classes else second
                assert_equal_models(found, kept)
                assert torch.equal(our_logits(found), our_logits(kept))
                assert not list(folder.glob(".*"))
                outcomes.append("old" if kept is first else "new")
        assert outcomes == (["old"] + ["new"] * 8) * 3

    @pytest.mark.slow
    def test_a_killed_process_leaves_a_folder_that_loads(self, tmp_path: Path) -> None:
        program = """
import sys, torch
torch.set_num_threads(1)
from conftest import byte_gpt2
from gptclf import add_classifier_head, save_model
models = [add_classifier_head(byte_gpt2(), classes=["a", "b"], seed=seed) for seed in (1, 2)]
with torch.no_grad():
    for model in models:
        model.head.output.bias += model.head.output.weight[0, 0]
save_model(models[0], sys.argv[1])
print("ready", flush=True)
while True:
    for model in models:
        save_model(model, sys.argv[1])
"""
        known = [add_classifier_head(byte_gpt2(), classes=["a", "b"], seed=seed) for seed in (1, 2)]
        for i in range(8):
            folder = tmp_path / str(i)
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
            with subprocess.Popen(
                [sys.executable, "-c", program, str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                time.sleep(0.05 + 0.037 * (i % 4))
                process.kill()
            found = load_model(folder)
            assert any(torch.equal(weight_of(found), weight_of(model)) for model in known)
            # What the killed process left beside does not stop the next save.
            save_model(known[0], folder)
            assert torch.equal(weight_of(load_model(folder)), weight_of(known[0]))


def test_a_classifier_that_was_trained_answers_alike_after_a_reload(tmp_path: Path) -> None:
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
    texts = ["you won", "see you", "win now", "at six"] * 4
    data = TextDataset(texts, ["spam", "ham"] * 8, tokenizer=clf.tokenizer, classes=clf.classes, max_length=6)
    gptclf.train(clf, data, epochs=1, batch_size=8, lr=1e-3, seed=1, progress=False)
    again = load_model(save_model(clf, tmp_path))
    assert predict(again, texts) == predict(clf, texts)
    assert again.preparation == Preparation(max_length=6)
    assert not again.head.is_fresh


def test_saving_says_nothing_where_all_is_well(
    small_gpt2: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clf = classifier(small_gpt2, ["a", "b"])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        save_model(clf, tmp_path)
    assert not caplog.messages


def test_what_a_killed_save_left_long_ago_is_swept(small_gpt2: GPT2, tmp_path: Path) -> None:
    save_model(small_gpt2, tmp_path)
    old, young = tmp_path / ".gptclf-save.1.tmp", tmp_path / ".gptclf-save.2.tmp"
    for path in (old, young):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    os.utime(old, (1, 1))
    save_model(small_gpt2, tmp_path)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_label_may_hold_a_lone_surrogate(small_gpt2: GPT2, tmp_path: Path) -> None:
    clf = add_classifier_head(small_gpt2, classes=["\ud800", "z"], seed=1)
    assert load_model(save_model(clf, tmp_path)).classes == ["\ud800", "z"]
