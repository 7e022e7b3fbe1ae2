"""`load_gpt2` and `load_model` on every source: OpenAI's folders and params, the book's files, hub repositories."""

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
from torch import Tensor
from transformers import GPT2Config as TheirConfig
from transformers import GPT2ForSequenceClassification

from gptclf import (
    GPT2,
    GPT2Config,
    add_classifier_head,
    freeze,
    load_gpt2,
    load_gpt2_params_from_tf_ckpt,
    load_model,
    predict_proba,
    save_model,
    trainable_report,
)
from gptclf.weights.book import to_book
from gptclf.weights.tokenizer import tokenizer_files

TF = Path(__file__).parent / "data" / "tf_gpt2"
BOOK = {
    "vocab_size": 257, "context_length": 40, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "drop_rate": 0.1,
    "qkv_bias": False,
}  # fmt: skip


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
        with pytest.raises(ValueError, match=r"tensor 'model/.*' is damaged, its checksum differs"):
            load_gpt2(tmp_path)
        load_gpt2(tmp_path, verify=False)

    def test_a_local_folder_wins_over_the_published_size_and_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(TF / "whole", tmp_path / "124M")
        monkeypatch.chdir(tmp_path)
        with caplog.at_level(logging.WARNING, logger="gptclf"):
            assert load_gpt2("124M").config.n_layers == 11
        assert "'124M' is a local folder here" in caplog.text

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
        ours = self.model(classes=["ham", "spam"])
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
        clf.max_length = 17
        put(hub, save_model(clf, tmp_path / "ours"))
        loaded = load_model("me/spam")
        assert_same(loaded, clf)
        assert (loaded.classes, loaded.max_length) == (clf.classes, 17)
        seen = {request.path.rpartition("/")[2] for request in hub.seen}
        assert ("model.safetensors" in seen) == (pooling == "last")

    def test_weights_as_pytorch_wrote_them(self, hub: Hub, tmp_path: Path) -> None:
        model = byte_gpt2()
        folder = save_model(model, tmp_path / "ours")
        tensors = load_gpt2(folder)
        put(hub, folder)
        from safetensors.torch import load_file

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
