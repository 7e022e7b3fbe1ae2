"""`load_gpt2` and `load_model` on every source: OpenAI's folders and params, the book's files, hub repositories."""

import copy
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from hub_server import Hub, serving
from safetensors.torch import load_file
from stand_ins import borrowed_names
from torch import Tensor
from transformers import GPT2Config as TheirConfig
from transformers import GPT2ForSequenceClassification

from gptclf import (
    GPT2,
    Callback,
    GPT2Config,
    History,
    Run,
    Step,
    TextDataset,
    TextWindows,
    add_classifier_head,
    freeze,
    load_gpt2,
    load_gpt2_params_from_tf_ckpt,
    load_model,
    predict_proba,
    save_model,
    train,
    train_lm,
    trainable_report,
)
from gptclf.gpt2.trunk import Block
from gptclf.hub.download import hub_file
from gptclf.preparation import Preparation
from gptclf.tasks import SingleLabel
from gptclf.tokenizer.read import read_tokenizer
from gptclf.tokenizer.write import tokenizer_files
from gptclf.weights.book import to_book

TF = Path(__file__).parent / "data" / "tf_gpt2"
BOOK = {
    "vocab_size": 257,
    "context_length": 40,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


def parameters(model: GPT2) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same(first: GPT2, second: GPT2) -> None:
    assert first.config == second.config
    pairs = zip(parameters(first).items(), parameters(second).items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


class TestTensorFlow:
    @pytest.mark.parametrize("below", ["", "124M", "124M/124M"])
    @pytest.mark.parametrize("kind", ["whole", "sharded"])
    def test_a_folder_is_loaded_wherever_the_files_lie_in_it(self, kind: str, below: str, tmp_path: Path) -> None:
        shutil.copytree(TF / kind, tmp_path / below, dirs_exist_ok=True)
        model = load_gpt2(tmp_path)
        values = np.load(TF / "values.npz")
        np.testing.assert_array_equal(parameters(model)["trunk.embed.token.weight"], values["model/wte"])
        np.testing.assert_array_equal(
            parameters(model)["trunk.blocks.10.mlp.up.weight"], values["model/h10/mlp/c_fc/w"][0].T
        )
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_params_and_settings_give_the_same_model(self) -> None:
        settings, params = load_gpt2_params_from_tf_ckpt(TF / "whole")
        assert_same(load_gpt2(params=params, settings=settings), load_gpt2(TF / "whole"))
        config = load_gpt2(TF / "whole").config
        assert_same(load_gpt2(params=params, settings=config), load_gpt2(TF / "whole"))

    def test_training_it_changes_no_file(self, tmp_path: Path) -> None:
        shutil.copytree(TF / "whole", tmp_path, dirs_exist_ok=True)
        data = tmp_path / "model.ckpt.data-00000-of-00001"
        before = data.read_bytes()
        model = load_gpt2(tmp_path)
        freeze(model, trainable="all")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert data.read_bytes() == before

    def test_damage_is_noticed_unless_nobody_wants_to_know(self, tmp_path: Path) -> None:
        shutil.copytree(TF / "whole", tmp_path, dirs_exist_ok=True)
        data = tmp_path / "model.ckpt.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        content[1000] ^= 1
        data.write_bytes(content)
        with pytest.raises(ValueError, match=r"tensor 'model/.*' is damaged: its checksum does not match"):
            load_gpt2(tmp_path)
        load_gpt2(tmp_path, verify=False)

    def test_a_local_folder_wins_over_the_published_size_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(TF / "whole", tmp_path / "124M")
        monkeypatch.chdir(tmp_path)
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            assert load_gpt2("124M").config.n_layers == 11
        assert "'124M' is a local folder;" in caplog.text

    def test_only_its_shape_is_read_for_random_weights(self, tmp_path: Path) -> None:
        shutil.copy(TF / "whole" / "hparams.json", tmp_path)
        (tmp_path / "model.ckpt.index").write_bytes(b"not looked at")
        (tmp_path / "model.ckpt.data-00000-of-00001").write_bytes(b"")
        assert load_gpt2(tmp_path, weights="random", seed=1).config.n_layers == 11

    def test_the_tokenizer_beside_it_is_found(self, tmp_path: Path) -> None:
        shutil.copytree(TF / "whole", tmp_path / "124M")
        files = tokenizer_files(byte_tokenizer(), 16)
        (tmp_path / "124M" / "vocab.bpe").write_text(files["merges.txt"])
        (tmp_path / "124M" / "encoder.json").write_text(files["vocab.json"])
        assert load_gpt2(tmp_path).tokenizer.n_vocab == 257

    def test_it_leaves_in_hugging_faces_layout(self, tmp_path: Path) -> None:
        model = load_gpt2(TF / "whole", tokenizer=byte_tokenizer())
        assert_same(load_gpt2(save_model(model, tmp_path)), model)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"params": {}}, "params= goes with settings="),
            ({"params": {}, "settings": {}, "name": "gpt2-xl"}, "neither a name"),
            ({"params": {}, "settings": {}, "weights": "random"}, "nor weights='random'"),
            ({"params": {}, "settings": {"n_embd": 4}}, "settings lacks n_vocab"),
            ({"name": "nano", "settings": BOOK}, "'nano' brings its own configuration"),
        ],
    )
    def test_params_without_what_goes_with_them(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_gpt2(**arguments)


class TestTheBooksFiles:
    def model(self, **options: Any) -> GPT2:
        return randomised(GPT2(GPT2Config.from_book(BOOK), seed=3, **options)).requires_grad_(False)

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_a_language_model(self, wrapped: bool, tmp_path: Path) -> None:
        ours = self.model()
        state = to_book(parameters(ours), ours.config)
        path = tmp_path / "model.pth"
        torch.save({"model_state_dict": state, "optimizer_state_dict": {"state": {}}} if wrapped else state, path)
        loaded = load_gpt2(path, settings=BOOK)
        assert_same(loaded, ours)
        assert load_gpt2(path, settings={"n_heads": 3}, dropout=0.3).config.drop_rate == 0.3
        with pytest.raises(ValueError, match="n_heads"):
            load_gpt2(path)
        with pytest.raises(ValueError, match="holds a language model; load it with load_gpt2"):
            load_model(path, settings=BOOK)

    def test_a_classifier(self, tmp_path: Path) -> None:
        ours = self.model(task=SingleLabel(["ham", "spam"]))
        path = tmp_path / "review_classifier.pth"
        torch.save(to_book(parameters(ours), ours.config), path)
        loaded = load_model(path, classes=["ham", "spam"], settings=BOOK)
        loaded.tokenizer = ours.tokenizer = byte_tokenizer()
        assert loaded.classes == ["ham", "spam"]
        texts = ["you won", "see you at six", ""]
        np.testing.assert_allclose(predict_proba(loaded, texts), predict_proba(ours, texts), atol=1e-6)
        assert trainable_report(loaded).names[-1] == "head.output.bias"
        assert load_model(path, settings=BOOK).classes == [0, 1]
        with pytest.raises(ValueError, match=r"classes has 3 labels, but the head in .* has 2 rows"):
            load_model(path, classes=["a", "b", "c"], settings=BOOK)
        with pytest.raises(ValueError, match="holds a classifier of 2 classes; load it with load_model"):
            load_gpt2(path, settings=BOOK)

    def test_a_file_of_a_hugging_face_folder_takes_the_configuration_beside_it(self, tmp_path: Path) -> None:
        model = byte_gpt2()
        save_model(model, tmp_path)
        assert_same(load_gpt2(tmp_path / "model.safetensors"), model)
        (tmp_path / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
            load_gpt2(tmp_path / "model.safetensors")
        assert_same(load_gpt2(tmp_path / "model.safetensors", settings=model.config), model)

    def test_labels_are_not_given_twice(self, tmp_path: Path) -> None:
        save_model(add_classifier_head(byte_gpt2(), num_classes=2, seed=1), tmp_path)
        with pytest.raises(ValueError, match="classes= and settings= are for a file of tensors alone"):
            load_model(tmp_path, classes=["a", "b"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def put(hub: Hub, folder: Path) -> None:
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.large = {name for name in hub.files if name.endswith((".safetensors", ".bin"))}


def their_classifier(folder: Path) -> Any:
    torch.manual_seed(0)
    config = TheirConfig(vocab_size=257, n_positions=40, n_embd=24, n_head=3, n_layer=2, num_labels=3, pad_token_id=256)
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    for name, text in tokenizer_files(byte_tokenizer(), 40).items():
        (folder / name).write_text(text)
    return model


class TestHub:
    def test_a_classifier_of_transformers(self, hub: Hub, tmp_path: Path) -> None:
        theirs = their_classifier(tmp_path / "theirs")
        put(hub, tmp_path / "theirs")
        clf = load_model("somebody/reviews")
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(clf(ids), theirs(ids).logits, atol=1e-5, rtol=0)
        assert clf.classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert clf.tokenizer.n_vocab == 257

    @pytest.mark.parametrize("pooling", ["last", "mean"])
    def test_a_classifier_of_ours_comes_back_bit_for_bit(self, hub: Hub, pooling: str, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", ("a", 1)], pooling=pooling, seed=1)
        clf.preparation = Preparation(max_length=17)
        put(hub, save_model(clf, tmp_path / "ours"))
        loaded = load_model("me/spam")
        assert_same(loaded, clf)
        assert (loaded.classes, loaded.preparation) == (clf.classes, Preparation(max_length=17))
        seen = {request.path.rpartition("/")[2] for request in hub.seen}
        assert ("model.safetensors" in seen) == (pooling == "last")

    def test_weights_as_pytorch_wrote_them(self, hub: Hub, tmp_path: Path) -> None:
        model = byte_gpt2()
        folder = save_model(model, tmp_path / "ours")
        tensors = load_gpt2(folder)
        put(hub, folder)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        put(hub, folder)
        assert_same(load_gpt2("somebody/old"), tensors)

    def test_another_architecture_is_named_before_its_weights_are_fetched(self, hub: Hub) -> None:
        hub.files = {"config.json": b'{"model_type": "bert", "hidden_size": 768}', "model.safetensors": b"big"}
        with pytest.raises(ValueError, match=r"'bert' model; gptclf loads GPT-2.*BERT"):
            load_gpt2("google/bert")
        assert not any("model.safetensors" in request.path for request in hub.seen)

    def test_an_adapter_is_named(self, hub: Hub) -> None:
        hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
        with pytest.raises(FileNotFoundError, match="LoRA adapter"):
            load_gpt2("somebody/adapter")

    def test_a_repository_without_weights_says_which_file_is_missing(self, hub: Hub, tmp_path: Path) -> None:
        folder = save_model(byte_gpt2(), tmp_path / "ours")
        (folder / "model.safetensors").unlink()
        put(hub, folder)
        with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
            load_gpt2("somebody/empty")


class TestWhereItCameFrom:
    def test_the_card_names_the_published_weights(self, tmp_path: Path) -> None:
        clf = add_classifier_head(load_gpt2("nano"), num_classes=2, seed=1)
        assert clf.base == "nano"
        card = (save_model(clf, tmp_path / "first") / "README.md").read_text()
        assert "fine-tuned from `nano`" in card
        again = load_model(tmp_path / "first")
        assert again.base == "nano"
        assert (save_model(again, tmp_path / "second") / "README.md").read_text() == card

    def test_random_weights_come_from_nowhere(self, tmp_path: Path) -> None:
        assert load_gpt2("nano", weights="random", seed=1).base is None
        assert load_gpt2(save_model(byte_gpt2(), tmp_path)).base is None

    def test_the_card_says_what_it_is_told(self, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
        save_model(clf, tmp_path, data="My messages.", metrics={"accuracy": 0.5}, measured_on="others", license="mit")
        card = (tmp_path / "README.md").read_text()
        for said in ("My messages.", "| `accuracy` | 0.5 |", "Measured on others.", 'license: "mit"', "`ham`"):
            assert said in card

    def test_a_card_that_somebody_took_over_stays(self, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=1)
        save_model(clf, tmp_path)
        (tmp_path / "README.md").write_text("mine")
        save_model(clf, tmp_path)
        assert (tmp_path / "README.md").read_text() == "mine"


def some_windows(model: GPT2) -> TextWindows:
    text = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 6
    return TextWindows(text, tokenizer=model.tokenizer, length=16)


class TestWhoseTensorsTheyAre:
    def test_training_a_loaded_model_changes_neither_params_nor_another_model_of_them(self) -> None:
        settings, params = load_gpt2_params_from_tf_ckpt(TF / "whole")
        before = params["wte"].copy()
        first, second = (load_gpt2(params=params, settings=settings, tokenizer=byte_tokenizer()) for _ in range(2))
        kept = {name: tensor.clone() for name, tensor in parameters(second).items()}
        freeze(first, trainable="all")
        train_lm(first, some_windows(first), lr=1e-2, progress=False)
        np.testing.assert_array_equal(params["wte"], before)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in parameters(second).items())

    def test_what_trains_lies_in_memory_as_fresh_weights_do(self) -> None:
        model = load_gpt2("nano")
        freeze(model, trainable="all")
        assert all(parameter.is_contiguous() for parameter in model.parameters())

    @pytest.mark.parametrize("kind", ["language model", "classifier"])
    def test_a_loaded_model_resumes_bit_for_bit(self, kind: str, tmp_path: Path) -> None:
        save_model(byte_gpt2() if kind == "language model" else self.classifier(), tmp_path / "saved")

        def start() -> GPT2:
            model = (load_gpt2 if kind == "language model" else load_model)(tmp_path / "saved")
            freeze(model, trainable="all")
            return model

        def run(model: GPT2, **options: Any) -> None:
            fixed: dict[str, Any] = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "progress": False}
            if kind == "language model":
                train_lm(model, some_windows(model), **fixed, **options)
            else:
                data = TextDataset(["win", "hi", "free", "ok"] * 3, ["s", "h", "s", "h"] * 3, tokenizer=model.tokenizer)
                train(model, data, **fixed, **options)

        whole, resumed = start(), start()
        run(whole)
        with pytest.raises(KeyboardInterrupt):
            run(start(), checkpoint_dir=tmp_path / "state", callbacks=[StopAfterOne()])
        run(resumed, checkpoint_dir=tmp_path / "state", resume=True)
        assert_same(resumed, whole)

    def classifier(self) -> GPT2:
        return add_classifier_head(byte_gpt2(), classes=["h", "s"], seed=1)


class StopAfterOne(Callback):
    def on_step(self, run: Run, step: Step) -> None:
        if step.epoch == 2:
            raise KeyboardInterrupt


class TestContradictions:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": GPT2Config(n_heads=2), "weights": "random", "settings": BOOK}, "a configuration is complete"),
            ({"name": "nano", "revision": "main"}, "revision='main' belongs to a hub repository"),
        ],
    )
    def test_arguments_that_would_be_passed_over(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_gpt2(**arguments)

    def test_settings_that_params_cannot_have(self) -> None:
        _, params = load_gpt2_params_from_tf_ckpt(TF / "whole")
        config = load_gpt2(TF / "whole").config
        assert load_gpt2(params=params, settings=config.replace(drop_rate=0.1)).config.drop_rate == 0.1
        assert load_gpt2(params=params, settings=config.replace(activation="gelu")).config.activation == "gelu"
        for wrong in ({"qkv_bias": False}, {"tied": False}):
            with pytest.raises(ValueError, match="OpenAI's parameters have biases for query, key and value"):
                load_gpt2(params=params, settings=config.replace(**wrong))

    def test_settings_against_the_configuration_beside_a_file(self, tmp_path: Path) -> None:
        model = byte_gpt2()
        save_model(model, tmp_path)
        path = tmp_path / "model.safetensors"
        assert_same(load_gpt2(path, settings=model.config), model)
        with pytest.raises(ValueError, match=r"settings= and .*config\.json disagree"):
            load_gpt2(path, settings=model.config.replace(n_heads=2))

    def test_the_books_folder_of_sizes_gives_the_size_that_is_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for size in ("124M", "355M"):
            shutil.copytree(TF / "whole", tmp_path / "gpt2" / size)
        monkeypatch.chdir(tmp_path)
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            assert load_gpt2("gpt2").config.n_layers == 11
        assert "'gpt2/124M' is a local folder;" in caplog.text.replace("\\\\", "/")
        shutil.rmtree(tmp_path / "gpt2" / "124M")
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE"):  # the published model is loaded
            load_gpt2("gpt2")

    def test_a_model_of_ours_alone_is_pointed_to_load_model(self, tmp_path: Path) -> None:
        save_model(add_classifier_head(byte_gpt2(), num_classes=2, pooling="mean", seed=1), tmp_path)
        with pytest.raises(ValueError, match="in gptclf's own layout only; load it with load_model"):
            load_gpt2(tmp_path)

    @pytest.mark.parametrize("name", ["models/missing.pth", "124M/model.ckpt"])
    def test_a_file_that_is_not_there_is_not_asked_of_a_hub(self, name: str) -> None:
        with pytest.raises(FileNotFoundError, match="is not a folder, a file or a known model"):
            load_gpt2(name)
        with pytest.raises(FileNotFoundError, match="is not a folder, a file or a known model"):
            load_model(name)

    def test_a_known_model_without_a_classifier_is_called_that(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="'nano' is a GPT-2 without a classifier, and "):
            load_model("nano")
        with pytest.raises(FileNotFoundError, match=f"^.*{tmp_path / 'config.json'} does not exist; a folder"):
            load_model(".")

    @pytest.mark.parametrize("folder", ["", None, 3])
    def test_what_is_no_path(self, folder: Any) -> None:
        error = ValueError if isinstance(folder, str) else TypeError
        with pytest.raises(error, match="folder is"):
            load_model(folder)
        with pytest.raises(error, match="folder is"):
            save_model(byte_gpt2(), folder)


class TestOtherPeoplesFiles:
    @pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "vocab.bpe", "model.ckpt.index", "config.json"])
    def test_a_save_neither_mixes_with_them_nor_deletes_them(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text("theirs")
        for model in (byte_gpt2(), byte_gpt2(tokenizer=None)):
            with pytest.raises(FileExistsError, match="that gptclf did not write"):
                save_model(model, tmp_path)
        assert (tmp_path / name).read_text() == "theirs"
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_folder_in_the_cards_place_stays(self, tmp_path: Path) -> None:
        (tmp_path / "README.md").mkdir()
        save_model(byte_gpt2(), tmp_path)
        assert (tmp_path / "README.md").is_dir()

    @pytest.mark.parametrize(
        "said", [{"datasets": "imdb"}, {"metrics": {"accuracy": None}}, {"metrics": {"a": "0.9"}}, {"data": 5}]
    )
    def test_a_card_is_told_things_of_the_right_kind_before_anything_is_written(
        self, said: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(TypeError, match=next(iter(said))):
            save_model(byte_gpt2(), tmp_path / "new", **said)
        assert not (tmp_path / "new").exists()

    def test_the_card_names_the_policy(self, tmp_path: Path) -> None:
        clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
        for policy in ("head", "last_block", "last_two_blocks", "all"):
            freeze(clf, trainable=policy)
            assert f"(policy `{policy}`)" in (save_model(clf, tmp_path) / "README.md").read_text()
        freeze(clf, trainable=["norm"])
        assert "(policy" not in (save_model(clf, tmp_path) / "README.md").read_text()


class TestHubTokenizersAndCaches:
    def test_a_tokenizer_json_alone_is_found(self, hub: Hub, tmp_path: Path) -> None:
        folder = save_model(byte_gpt2(), tmp_path / "ours")
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink()
        put(hub, folder)
        assert load_gpt2("somebody/new").tokenizer.n_vocab == 257

    def test_added_tokens_and_settings_come_along_and_stay_those_of_the_commit(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        their_classifier(tmp_path / "theirs")
        settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
        (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(settings))
        put(hub, tmp_path / "theirs")
        expected = load_model(tmp_path / "theirs").tokenizer.encode_ordinary("a<|endoftext|>b")
        clf, later = load_model("somebody/reviews"), load_model("somebody/reviews")
        assert clf.tokenizer.encode_ordinary("a<|endoftext|>b") == expected
        assert 256 in expected
        asked = len(hub.seen)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert later.tokenizer.encode_ordinary("a<|endoftext|>b") == expected
        assert len(hub.seen) == asked

    def test_a_tokenizer_that_cannot_be_fetched_is_never_replaced_by_gpt2s(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = GPT2Config(vocab_size=50257, context_length=8, emb_dim=2, n_heads=1, n_layers=1)
        put(hub, save_model(load_gpt2(config, weights="random", seed=1, tokenizer=byte_tokenizer()), tmp_path / "ours"))
        model = load_gpt2("somebody/new")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(FileNotFoundError, match=r"'somebody/new'.*HF_HUB_OFFLINE"):
            _ = model.tokenizer
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert model.tokenizer.n_vocab == 257

    def test_a_vocabulary_that_is_not_gpt2s_never_gets_its_tokenizer(self, hub: Hub, tmp_path: Path) -> None:
        config = GPT2Config(vocab_size=50300, context_length=8, emb_dim=2, n_heads=1, n_layers=1)
        folder = save_model(load_gpt2(config, weights="random", seed=1, tokenizer=byte_tokenizer()), tmp_path / "ours")
        for name in ("vocab.json", "merges.txt", "tokenizer.json"):
            (folder / name).unlink()
        put(hub, folder)
        with pytest.raises(FileNotFoundError, match=r"merges\.txt"):
            _ = load_gpt2("somebody/other").tokenizer

    def test_another_way_of_splitting_is_refused(self, tmp_path: Path) -> None:
        text = tokenizer_files(byte_tokenizer(), 8)["tokenizer.json"]
        for old, new in (('"add_prefix_space": false', '"add_prefix_space": true'), ('"ByteLevel"', '"Whitespace"')):
            (tmp_path / "tokenizer.json").write_text(text.replace(old, new))
            with pytest.raises(ValueError, match=r"pre_tokenizer.*ByteLevel splitting"):
                read_tokenizer(tmp_path)

    @pytest.mark.parametrize("offline", [True, False])
    def test_what_is_in_the_cache_is_asked_of_nobody(
        self, hub: Hub, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        their_classifier(tmp_path / "theirs")
        put(hub, tmp_path / "theirs")
        weights = load_file(tmp_path / "theirs" / "model.safetensors")
        torch.save(weights, tmp_path / "pytorch_model.bin")
        hub.files["pytorch_model.bin"] = (tmp_path / "pytorch_model.bin").read_bytes()
        del hub.files["model.safetensors"]
        for name in (
            "config.json",
            "pytorch_model.bin",
        ):  # as transformers leaves it: files it did not request are unknown
            hub_file("somebody/reviews", name)
        asked = len(hub.seen)
        if offline:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert load_model("somebody/reviews").classes == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert len(hub.seen) == asked


class TestChangedModels:
    def test_a_model_whose_modules_were_moved_or_wrapped_still_owns_before_it_trains(self) -> None:
        source = load_gpt2("nano")
        clf = add_classifier_head(source, num_classes=2, seed=1)
        kept = parameters(source)["trunk.blocks.0.mlp.up.weight"].clone()
        clf.trunk.blocks = clf.trunk.blocks[:2]
        block = clf.trunk.blocks[0]
        assert isinstance(block, Block)
        block.mlp.up = torch.nn.Sequential(block.mlp.up)  # type: ignore[assignment]
        assert "trunk.blocks.0.mlp.up.0.weight" in borrowed_names(clf)
        ids = torch.tensor([[1, 2, 3]])
        clf(ids)
        clf.requires_grad_(True)
        with pytest.raises(ValueError, match="is also another model's, or a file's"):
            clf(ids)
        freeze(clf, trainable="all")
        clf(ids).sum().backward()
        torch.optim.SGD(clf.parameters(), lr=1.0).step()
        assert torch.equal(parameters(source)["trunk.blocks.0.mlp.up.weight"], kept)
        clf.load_state_dict(clf.state_dict())

    def test_a_deep_copy_is_its_own(self) -> None:
        copied = copy.deepcopy(load_gpt2("nano"))
        assert not borrowed_names(copied)
        copied.requires_grad_(True)
        copied(torch.tensor([[1, 2, 3]])).sum().backward()

    def test_what_could_not_be_loaded_is_not_saved_over_what_can(self, tmp_path: Path) -> None:
        model = byte_gpt2()
        save_model(model, tmp_path)
        model.trunk.blocks = model.trunk.blocks[:2]
        with pytest.raises(ValueError, match=r"not the one that its configuration describes: trunk\.blocks\.2"):
            save_model(model, tmp_path)
        assert load_gpt2(tmp_path).config.n_layers == 3

    def test_the_tokenizer_is_there_when_the_folder_is_gone(self, tmp_path: Path) -> None:
        save_model(add_classifier_head(byte_gpt2(), num_classes=2, seed=1), tmp_path / "model")
        clf = load_model(tmp_path / "model")
        shutil.rmtree(tmp_path / "model")
        assert clf.tokenizer.n_vocab == 257

    def test_a_record_of_another_save_is_noticed_though_the_weights_are_equal(self, tmp_path: Path) -> None:
        for name, labels in (("first", ["ham", "spam"]), ("second", ["spam", "ham"])):
            save_model(add_classifier_head(byte_gpt2(), classes=labels, seed=1), tmp_path / name)
        shutil.copy(tmp_path / "second" / "gptclf.json", tmp_path / "first")
        with pytest.raises(ValueError, match="different saves"):
            load_model(tmp_path / "first")

    def test_a_resumed_runs_clock_goes_on(self, tmp_path: Path) -> None:
        def run(**options: Any) -> History:
            model = byte_gpt2()
            freeze(model, trainable="all")
            return train_lm(model, some_windows(model), epochs=3, progress=False, checkpoint_dir=tmp_path, **options)

        with pytest.raises(KeyboardInterrupt):
            run(callbacks=[StopAfterOne()])
        seconds = [scores.seconds for scores in run(resume=True).epochs]
        assert seconds == sorted(seconds)
        assert run(resume=True).seconds == pytest.approx(seconds[-1])
