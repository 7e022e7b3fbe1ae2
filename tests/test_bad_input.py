"""What goes wrong in practice: each has a defined result, or an error that says what to do."""

import json
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer

from gptclf import (
    GPT2,
    Batches,
    Recipe,
    TextDataset,
    add_classifier_head,
    dataset_accuracy,
    dataset_loss,
    evaluate,
    load_gpt2,
    load_model,
    predict,
    predict_proba,
    save_model,
    train,
)
from gptclf.tokenizer.bpe import END_OF_TEXT, build_tokenizer

BYTES = byte_tokenizer()


@pytest.fixture
def clf() -> GPT2:
    """A classifier with nano's shape that answers not by chance."""
    return randomised(add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1))


@pytest.fixture
def saved(clf: GPT2, tmp_path: Path) -> Path:
    return save_model(clf, tmp_path / "saved")


@pytest.fixture
def language_model(small_gpt2: GPT2, tmp_path: Path) -> Path:
    """A folder as `load_gpt2` reads it."""
    folder = save_model(small_gpt2, tmp_path / "lm")
    (folder / "gptclf.json").unlink()
    return folder


class TestTexts:
    def test_an_empty_text_has_the_answer_of_one_end_of_text(self, clf: GPT2) -> None:
        with torch.no_grad():
            want = clf(torch.tensor([[BYTES.eot_token]])).softmax(dim=1)
        got = torch.from_numpy(predict_proba(clf, [""], precision="float32"))
        torch.testing.assert_close(got, want)

    def test_an_empty_text_may_stand_among_others(self, clf: GPT2) -> None:
        alone = [predict_proba(clf, [text], precision="float32") for text in ("", "hello", "")]
        together = predict_proba(clf, ["", "hello", ""], precision="float32")
        np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)

    def test_no_texts_have_no_answers(self, clf: GPT2) -> None:
        assert predict(clf, []) == []
        assert predict_proba(clf, []).shape == (0, 2)

    def test_a_single_string_is_refused(self, clf: GPT2) -> None:
        with pytest.raises(TypeError, match="texts is a single str; give a list of strings"):
            predict(clf, "you won")

    def test_the_end_of_text_within_a_text_is_read_as_its_characters(self, clf: GPT2) -> None:
        data = TextDataset([f"a{END_OF_TEXT}b"], tokenizer=BYTES)
        assert BYTES.eot_token not in data.ids
        assert int(data.lengths[0]) == len(END_OF_TEXT) + 2
        assert len(predict(clf, [END_OF_TEXT, f"x{END_OF_TEXT}"])) == 2

    @given(texts=st.lists(st.text(st.characters(), max_size=8), min_size=1, max_size=4))
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @example(texts=["\ud800", "a\udfffb", "\x00", "\x00" * 5])
    def test_any_string_has_an_answer(self, texts: list[str], clf: GPT2) -> None:
        probabilities = predict_proba(clf, texts)
        assert np.isfinite(probabilities).all()
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)

    def test_a_lone_surrogate_is_the_replacement_character(self, clf: GPT2) -> None:
        first, second = predict_proba(clf, ["a\ud800b", "a\ufffdb"], precision="float32")
        np.testing.assert_allclose(first, second, atol=1e-6)

    @pytest.mark.parametrize(
        "text",
        ["a" * 1_000_000, " " * 1_000_000, " " * 999_999 + "a", "!" * 1_000_000, "ab 12\n" * 170_000],
        ids=["letters", "blanks", "blanks before a letter", "signs", "words"],
    )
    def test_a_megabyte_is_read_in_seconds_and_cut_to_the_context(
        self, text: str, clf: GPT2, caplog: pytest.LogCaptureFixture
    ) -> None:
        start = time.perf_counter()
        assert predict(clf, [text])[0] in ("ham", "spam")
        assert time.perf_counter() - start < 5
        assert "1 of 1 texts are longer than 512 tokens" in caplog.text

    @pytest.mark.parametrize("text", ["a" * 1_000_000, "ab" * 500_000, " " * 1_000_000, "!" * 1_000_000], ids=len)
    def test_a_megabyte_in_one_piece_does_not_slow_merging_down(self, text: str, tmp_path: Path) -> None:
        bpe = ByteLevelBPETokenizer()
        bpe.train_from_iterator([text[:2000]], vocab_size=270, min_frequency=1, show_progress=False)
        bpe.save_model(str(tmp_path))
        tokenizer = build_tokenizer(tmp_path / "merges.txt")
        start = time.perf_counter()
        ids = tokenizer.encode_ordinary(text)
        assert time.perf_counter() - start < 5
        assert len(ids) < 600_000
        assert tokenizer.decode(ids) == text


class TestDataSets:
    def test_an_empty_data_set_cannot_train_and_says_so(self, clf: GPT2) -> None:
        empty = TextDataset([], [], tokenizer=BYTES, classes=["ham", "spam"])
        with pytest.raises(ValueError, match=r"(?i)empty|no texts|no rows"):
            train(clf, empty, epochs=1, progress=False)

    def test_an_empty_data_set_cannot_be_measured_and_says_so(self, clf: GPT2) -> None:
        empty = TextDataset([], [], tokenizer=BYTES, classes=["ham", "spam"])
        for measure in (evaluate, dataset_loss, dataset_accuracy):
            with pytest.raises(ValueError, match=r"(?i)empty|no texts|no rows"):
                measure(clf, empty)

    def test_one_class_makes_no_classifier(self) -> None:
        data = TextDataset(["a", "b"], ["ham", "ham"], tokenizer=BYTES)
        with pytest.raises(ValueError, match=r"at least 2 classes.*nothing to learn"):
            add_classifier_head(byte_gpt2(), classes=data.classes)

    def test_a_label_never_seen_is_named_when_the_model_lacks_it(self, clf: GPT2) -> None:
        data = TextDataset(["a", "b"], ["ham", "egg"], tokenizer=BYTES)
        for use in (lambda: train(clf, data, epochs=1, progress=False), lambda: evaluate(clf, data)):
            with pytest.raises(ValueError, match=r"'egg' \(row 1\).*'ham', 'spam'"):
                use()

    def test_a_language_model_does_not_classify(self) -> None:
        with pytest.raises(TypeError, match="put a classifier head on it first: add_classifier_head"):
            predict(byte_gpt2(), ["a"])

    def test_a_head_that_never_learned_is_warned_of_once(self) -> None:
        clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
        with pytest.warns(UserWarning, match="never trained or loaded; its answers are random"):
            predict(clf, ["a"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict(clf, ["a"])


class TestIds:
    def test_a_row_beyond_the_context_says_what_to_do(self, small_gpt2: GPT2) -> None:
        with pytest.raises(ValueError, match=r"41 tokens but the model's context length is 40; truncate"):
            small_gpt2(torch.zeros(1, 41, dtype=torch.int64))

    @pytest.mark.parametrize("bad", [-1, 257])
    def test_an_id_outside_the_vocabulary_says_whose_fault_it_is(self, bad: int, small_gpt2: GPT2) -> None:
        with pytest.raises(ValueError, match="ids 0 to 256; use the tokenizer of this model"):
            small_gpt2(torch.tensor([[0, bad]]))

    def test_ids_need_two_dimensions(self, small_gpt2: GPT2) -> None:
        with pytest.raises(ValueError, match=r"shape \(3,\); it must be \(batch, tokens\)"):
            small_gpt2(torch.tensor([1, 2, 3]))

    @pytest.mark.parametrize("lengths", [[0, 2], [2, 4]])
    def test_a_length_outside_its_row_is_refused(self, lengths: list[int], clf: GPT2) -> None:
        with pytest.raises(ValueError, match="with 3 columns they must lie in 1 to 3"):
            clf(torch.zeros(2, 3, dtype=torch.int64), torch.tensor(lengths))


class TestWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers_are_named(self, value: float, clf: GPT2) -> None:
        with torch.no_grad():
            clf.get_parameter("trunk.blocks.1.mlp.up.weight")[3, 4] = value
        data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=BYTES)
        for use in (lambda: predict(clf, ["a"]), lambda: evaluate(clf, data)):
            with pytest.raises(FloatingPointError, match=r"trunk\.blocks\.1\.mlp\.up\.weight: load the weights again"):
                use()

    def test_training_on_weights_that_are_no_numbers_stops(self, clf: GPT2) -> None:
        with torch.no_grad():
            clf.trunk.embed.position.weight[0, 0] = float("nan")
        data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=BYTES)
        with pytest.raises(FloatingPointError, match=r"trunk\.embed\.position\.weight"):
            train(clf, data, epochs=1, progress=False)

    def test_a_model_with_such_weights_is_saved_as_it_is(self, clf: GPT2, tmp_path: Path) -> None:
        with torch.no_grad():
            clf.get_parameter("head.output.weight")[0, 0] = float("nan")
        again = load_model(save_model(clf, tmp_path / "nan"))
        assert again.get_parameter("head.output.weight").isnan().sum() == 1

    @pytest.mark.parametrize("kept", [0, 3, 8, 100, 0.5, -1])
    def test_a_file_that_was_cut_off_is_named(self, kept: float, language_model: Path, saved: Path) -> None:
        for folder, load in ((language_model, load_gpt2), (saved, load_model)):
            path = folder / "model.safetensors"
            whole = path.read_bytes()
            path.write_bytes(whole[: int(len(whole) * kept) if isinstance(kept, float) else kept])
            with pytest.raises(
                ValueError, match=r"model\.safetensors \([0-9,]+ bytes\) is not a complete.*download it again"
            ):
                load(folder)

    def test_a_pointer_in_place_of_the_file_is_known(self, language_model: Path) -> None:
        (language_model / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 548105171\n"
        )
        with pytest.raises(ValueError, match=r"model\.safetensors .* pointer to the real file; download it again"):
            load_gpt2(language_model)

    def test_another_models_file_is_recognised(self, language_model: Path) -> None:
        foreign = {
            "bert.embeddings.word_embeddings.weight": torch.zeros(5, 4),
            "bert.encoder.layer.0.attention.self.query.weight": torch.zeros(4, 4),
        }
        save_file(foreign, language_model / "model.safetensors")
        with pytest.raises(ValueError, match=r"missing: wte\.weight.*unexpected: bert\..*look like BERT's; .*GPT-2"):
            load_gpt2(language_model)

    def test_a_configuration_that_does_not_fit_lists_the_tensors(self, language_model: Path) -> None:
        values = json.loads((language_model / "config.json").read_text())
        (language_model / "config.json").write_text(json.dumps({**values, "n_inner": 48, "n_layer": 2}))
        with pytest.raises(ValueError) as caught:
            load_gpt2(language_model)
        message = str(caught.value)
        assert "12 unexpected: transformer.h.2." in message
        assert "transformer.h.0.mlp.c_fc.weight is torch.float32 (24, 56) instead of floats (24, 48)" in message

    def test_a_missing_tensor_is_named(self, language_model: Path) -> None:
        tensors = load_file(language_model / "model.safetensors")
        del tensors["transformer.h.1.mlp.c_proj.bias"]
        save_file(tensors, language_model / "model.safetensors")
        with pytest.raises(ValueError, match=r"1 missing: h\.1\.mlp\.c_proj\.bias"):
            load_gpt2(language_model)

    def test_whole_numbers_in_place_of_weights_are_refused(self, language_model: Path) -> None:
        tensors = load_file(language_model / "model.safetensors")
        tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].to(torch.int8)
        save_file(tensors, language_model / "model.safetensors")
        with pytest.raises(ValueError, match=r"transformer\.wpe\.weight is torch\.int8"):
            load_gpt2(language_model)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"model_type": "gpt2"}'])
    def test_a_configuration_that_is_none_is_named(self, content: str, language_model: Path) -> None:
        (language_model / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_gpt2(language_model)

    def test_a_device_that_is_not_there_is_answered_with_those_that_are(self, saved: Path) -> None:
        with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used here.*there is cpu"):
            load_model(saved, device="cuda:99")


class TestNoNetwork:
    @pytest.fixture
    def closed_port(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
            address = f"http://127.0.0.1:{listener.getsockname()[1]}"
            monkeypatch.setenv("HF_ENDPOINT", address)
            monkeypatch.setenv("HF_HUB_OFFLINE", "0")
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.setenv(name, "127.0.0.1")
            yield address

    def test_a_hub_that_does_not_answer_says_what_to_put_where(self, closed_port: str) -> None:
        start = time.perf_counter()
        with pytest.raises(ConnectionError) as caught:
            load_gpt2("gpt2")
        assert time.perf_counter() - start < 5
        for part in (closed_port, "HF_ENDPOINT", "config.json, model.safetensors", "pass its path to load_gpt2"):
            assert part in str(caught.value)

    def test_offline_mode_says_so_and_what_to_put_where(self) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            load_gpt2("gpt2-medium")
        for part in ("openai-community/gpt2-medium", "HF_HUB_OFFLINE", "pass its path to load_gpt2"):
            assert part in str(caught.value)


# What a damaged file may hold in any place: mostly values that are close to right.
scalars = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "a", "last", "tail"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier whose record is damaged and put back, example after example."""
    clf = add_classifier_head(byte_gpt2(), classes=["ham", ("a", 1)], seed=1)
    return save_model(clf, tmp_path_factory.mktemp("record"))


class TestDamagedRecords:
    """gptclf.json with anything in it: a model, or an error of a kind that a caller expects of a file."""

    @staticmethod
    def load(folder: Path, content: bytes) -> GPT2 | None:
        path = folder / "gptclf.json"
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            return load_model(folder, verify=False)  # the checks beneath the digest
        except (ValueError, OSError):
            return None
        finally:
            path.write_bytes(whole)

    @given(data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_a_record_that_was_cut_off_is_refused(self, data: st.DataObject, folder: Path) -> None:
        whole = (folder / "gptclf.json").read_bytes()
        kept = data.draw(st.integers(0, len(whole.rstrip()) - 1))
        assert self.load(folder, whole[:kept]) is None

    @given(content=st.binary(max_size=20) | values.map(lambda value: json.dumps(value).encode()))
    @settings(max_examples=80, deadline=None)
    def test_a_record_that_is_something_else_is_refused(self, content: bytes, folder: Path) -> None:
        assert self.load(folder, content) is None

    @given(data=st.data(), value=values)
    @settings(max_examples=120, deadline=None)
    def test_a_wrong_value_anywhere_is_a_model_or_an_error_of_the_file(
        self, data: st.DataObject, value: Any, folder: Path
    ) -> None:
        record = json.loads((folder / "gptclf.json").read_text())
        place = record
        keys: list[Any] = []
        while isinstance(place, dict | list) and place and (not keys or data.draw(st.booleans())):
            keys.append(data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place)))))
            place = place[keys[-1]]
        target = record
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value
        model = self.load(folder, json.dumps(record).encode())
        if model is not None:
            # What is loaded also works: no bad setting waits for its first use.
            assert len(predict(model, ["hello"])) == 1

    @pytest.mark.parametrize(
        "key", ["config", "head", "originals", "trainable", "max_length", "exported", "gptclf_save"]
    )
    def test_a_record_that_lacks_a_key_names_it(self, key: str, folder: Path) -> None:
        record = json.loads((folder / "gptclf.json").read_text())
        del record[key]
        whole = (folder / "gptclf.json").read_bytes()
        try:
            (folder / "gptclf.json").write_text(json.dumps(record))
            with pytest.raises(ValueError, match=rf"gptclf\.json: it lacks '{key}'; the file is damaged"):
                load_model(folder)
        finally:
            (folder / "gptclf.json").write_bytes(whole)


def test_a_batch_of_no_rows_is_a_batch() -> None:
    batch = Batches(TextDataset(["a"], tokenizer=BYTES)).take(np.zeros(0, dtype=np.int64))
    assert (tuple(batch.inputs.shape), len(batch)) == ((0, 0), 0)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_answers_of_weights_of_another_type_say_what_to_do(kind: torch.dtype, clf: GPT2) -> None:
    clf.to(kind)
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=BYTES, classes=clf.classes)
    for call in (lambda: predict(clf, ["a"]), lambda: predict_proba(clf, ["a"]), lambda: evaluate(clf, data)):
        with pytest.raises(ValueError, match=rf"the model's weights are {kind}; .* call model\.float\(\)"):
            call()


@pytest.mark.parametrize("seed", [2**64, -1])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    for call in (lambda: Recipe(seed=seed), lambda: add_classifier_head(byte_gpt2(), num_classes=2, seed=seed)):
        with pytest.raises(
            ValueError, match=f"seed is {seed}; it must be an integer of at least 0 and at most {2**64 - 1}"
        ):
            call()
    assert Recipe(seed=2**64 - 1).seed == 2**64 - 1
