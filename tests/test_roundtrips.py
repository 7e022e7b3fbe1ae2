"""In by any format, out by save_model, through transformers and back: what promises to be equal is equal."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import randomised
from safetensors.torch import load_file
from torch import Tensor

from gptclf import GPT2, GPT2Config, add_classifier_head, load_gpt2, load_model, predict, predict_proba, save_model
from gptclf.files.torch_file import read_torch_file
from gptclf.gpt2.config import PRESETS
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.sharing import fill
from gptclf.tasks import NextToken, SingleLabel
from gptclf.tokenizer.bpe import byte_characters, make_encoding
from gptclf.weights.book import read_book, to_book
from gptclf.weights.hugging_face import config_to_hugging_face, from_hugging_face, to_hugging_face

IDS = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(5))
SIZES = ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]


@pytest.fixture
def source(odd_config: GPT2Config) -> GPT2:
    """A language model with noise everywhere, of a shape that the book's class has as well."""
    return randomised(GPT2(odd_config.replace(mlp_dim=None, tied=False), seed=7)).requires_grad_(False)


def classifier(source: GPT2, *, bias: bool) -> GPT2:
    return randomised(add_classifier_head(source, classes=["ham", "spam", "egg"], bias=bias, seed=2))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, Tensor) else found.logits


def assert_equal(first: GPT2, second: GPT2) -> None:
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert set(ours) == set(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def theirs_of(model: GPT2) -> Any:
    """transformers' class for such a model."""
    lm, classifier = transformers.AutoModelForCausalLM, transformers.AutoModelForSequenceClassification
    return lm if isinstance(model.task, NextToken) else classifier


def back(model: GPT2, folder: Path) -> GPT2:
    return (load_gpt2 if isinstance(model.task, NextToken) else load_model)(folder)


def through_safetensors(model: GPT2, folder: Path, **settings: Any) -> GPT2:
    """Saved by us, read and saved by transformers, read by us."""
    save_model(model, folder / "ours")
    theirs_of(model).from_pretrained(folder / "ours").save_pretrained(folder / "theirs", **settings)
    return back(model, folder / "theirs")


def through_shards(model: GPT2, folder: Path) -> GPT2:
    again = through_safetensors(model, folder, max_shard_size="30KB")
    assert not (folder / "theirs" / "model.safetensors").exists()
    return again


def through_bin(model: GPT2, folder: Path) -> GPT2:
    """As transformers' older releases wrote it."""
    through_safetensors(model, folder)
    tensors = load_file(folder / "theirs" / "model.safetensors")
    (folder / "theirs" / "model.safetensors").unlink()
    torch.save(tensors, folder / "theirs" / "pytorch_model.bin")
    return back(model, folder / "theirs")


def through_the_book(model: GPT2, folder: Path) -> GPT2:
    torch.save({"model_state_dict": to_book(dict(model.named_parameters()), model.config)}, folder / "book.pth")
    config, tensors, classes = read_book(read_torch_file(folder / "book.pth"), {"n_heads": 3}, source="book.pth")
    head = None if classes is None else ClassifierHead(config.emb_dim, classes, bias="head.output.bias" in tensors)
    again = GPT2(config, task=model.task, head=head, device="meta")
    fill(again, tensors)
    return again


Way = Callable[[GPT2, Path], GPT2]
ways = pytest.mark.parametrize("way", [through_safetensors, through_shards, through_bin, through_the_book])


class TestThereAndBack:
    @ways
    def test_a_language_model_comes_back_bit_for_bit(self, way: Way, source: GPT2, tmp_path: Path) -> None:
        again = way(source, tmp_path)
        assert_equal(again, source)
        # Saved once more and read by transformers, it still says the same.
        save_model(again, tmp_path / "again")
        assert_equal(load_gpt2(tmp_path / "again"), source)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
        torch.testing.assert_close(logits(theirs), logits(source), atol=1e-5, rtol=1e-5)

    @ways
    def test_a_classifier_without_a_bias_comes_back_bit_for_bit(self, way: Way, source: GPT2, tmp_path: Path) -> None:
        clf = classifier(source, bias=False)
        again = way(clf, tmp_path)
        if way is through_the_book:  # whose head always has one
            assert not again.get_parameter("head.output.bias").any()
            torch.testing.assert_close(logits(again), logits(clf), atol=1e-6, rtol=1e-6)
            return
        assert_equal(again, clf)
        assert again.classes == clf.classes
        assert torch.equal(logits(again), logits(clf))

    @ways
    def test_a_biased_head_comes_back_with_its_answers(self, way: Way, source: GPT2, tmp_path: Path) -> None:
        """In Hugging Face's layout the bias is part of the final norm; everywhere else it is itself."""
        clf = classifier(source, bias=True)
        again = way(clf, tmp_path)
        torch.testing.assert_close(logits(again), logits(clf), atol=1e-5, rtol=1e-5)
        if way is through_the_book:
            assert_equal(again, clf)
        else:
            assert "head.output.bias" not in dict(again.named_parameters())
            assert_equal(load_model(tmp_path / "ours"), clf)

    def test_half_precision_survives_as_the_same_numbers(self, source: GPT2, tmp_path: Path) -> None:
        for dtype in (torch.float16, torch.bfloat16):
            clf = classifier(source, bias=False)
            with torch.no_grad():
                for parameter in clf.parameters():
                    parameter.copy_(parameter.to(dtype))
            save_model(clf, tmp_path / f"ours {dtype}")
            theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
                tmp_path / f"ours {dtype}", dtype=dtype
            )
            theirs.save_pretrained(tmp_path / f"theirs {dtype}")
            assert load_file(tmp_path / f"theirs {dtype}" / "model.safetensors")["score.weight"].dtype == dtype
            assert_equal(load_model(tmp_path / f"theirs {dtype}"), clf)

    @pytest.mark.parametrize("bias", [True, False])
    def test_a_second_trip_changes_nothing_more(self, bias: bool, source: GPT2, tmp_path: Path) -> None:
        first = through_safetensors(classifier(source, bias=bias), tmp_path / "1")
        second = through_safetensors(first, tmp_path / "2")
        assert_equal(first, second)
        assert torch.equal(logits(first), logits(second))


def meta(kind: str, preset: str, **settings: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one of transformers' models, built from the configuration that we write."""
    values = config_to_hugging_face(PRESETS[preset], 50256)
    with torch.device("meta"):
        model = getattr(transformers, kind)(transformers.GPT2Config(**{**values, **settings}))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("preset", SIZES)
class TestPublishedSizes:
    """No data: the four sizes' names and shapes alone, against what transformers itself would have."""

    def zeros(self, model: GPT2) -> dict[str, Tensor]:
        """Parameters that take the memory of one number each."""
        return {name: torch.zeros(()).expand(tuple(p.shape)) for name, p in model.named_parameters()}

    def table(self, preset: str, model: GPT2, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
        # What is written is laid out anew, which for the largest size is 6 GB.
        monkeypatch.setattr(Tensor, "contiguous", lambda tensor: tensor)
        return to_hugging_face(self.zeros(model), PRESETS[preset])

    def test_a_language_models_are_theirs(self, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        ours = shapes(self.table(preset, GPT2(PRESETS[preset], device="meta"), monkeypatch))
        theirs = meta("GPT2LMHeadModel", preset)
        assert ours == {name: shape for name, shape in theirs.items() if name != "lm_head.weight"}
        assert theirs["lm_head.weight"] == ours["transformer.wte.weight"]  # the tied one, once more

    def test_an_untied_language_models_are_theirs(self, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        config = PRESETS[preset].replace(tied=False)
        model = GPT2(config, device="meta")
        ours = shapes(self.table(preset, model, monkeypatch))
        ours["lm_head.weight"] = tuple(model.get_parameter("head.output.weight").shape)
        assert ours == meta("GPT2LMHeadModel", preset, tie_word_embeddings=False)

    def test_a_classifiers_are_theirs(self, preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
        head = ClassifierHead(PRESETS[preset].emb_dim, 7, bias=False)
        model = GPT2(PRESETS[preset], task=SingleLabel(range(7)), head=head, device="meta")
        ours = shapes(self.table(preset, model, monkeypatch))
        ours["score.weight"] = tuple(model.get_parameter("head.output.weight").shape)
        assert ours == meta("GPT2ForSequenceClassification", preset, num_labels=7)

    @pytest.mark.parametrize("kind", ["GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification"])
    def test_theirs_are_read_as_ours(self, kind: str, preset: str) -> None:
        config = PRESETS[preset]
        theirs = {name: torch.zeros(()).expand(shape) for name, shape in meta(kind, preset, num_labels=7).items()}
        theirs.pop("lm_head.weight", None)
        classifies = "score.weight" in theirs
        task, head = SingleLabel(range(7)), ClassifierHead(config.emb_dim, 7, bias=False)
        model = GPT2(config, task=task, head=head, device="meta") if classifies else GPT2(config, device="meta")
        want = shapes(dict(model.named_parameters()))
        assert shapes(from_hugging_face(theirs, want, config.n_layers, source="here")) == want

    def test_the_books_are_read_as_ours_and_back(self, preset: str) -> None:
        config = PRESETS[preset].replace(tied=False)
        ours = dict(GPT2(config, device="meta").named_parameters())
        there = to_book(self.zeros(GPT2(config, device="meta")), config)
        there = {name: tensor for name, tensor in there.items() if not name.endswith("mask")}
        tensors = {name: tensor.to("meta") for name, tensor in there.items()}
        found, back, classes = read_book(tensors, source="here")
        assert (found, classes) == (config, None)
        assert shapes(back) == shapes(ours)


class TestServedByTransformers:
    """A biased head in text-classification, with a vocabulary of its own in GPT-2's formats."""

    # No empty one: that is one end of text here and no token at all there.
    TEXTS = ("you won a prize", "see you at six", "x", "naïve 東京 👍", "win  win\n\nwin", "it's 3 o'clock!", " prize ")

    def model(self, odd_config: GPT2Config) -> GPT2:
        ranks = {bytes([byte]): i for i, byte in enumerate(byte_characters())}
        for token in (b" w", b"wi", b"in", b" win", b"ri", b"pri", b"ze", b"prize", b" p", b"yo", b"you", b" a"):
            ranks[token] = len(ranks)
        tokenizer = make_encoding(ranks)
        source = GPT2(odd_config.replace(vocab_size=tokenizer.n_vocab), seed=7)
        clf = randomised(add_classifier_head(source, classes=["ham", "spam: yes", "egg"], seed=2))
        clf.tokenizer = tokenizer
        return clf

    def test_its_labels_and_scores_are_ours(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        clf = self.model(odd_config)
        assert bool(clf.get_parameter("head.output.bias").any())
        save_model(clf, tmp_path)
        texts = list(self.TEXTS)
        serve = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
        assert [answer["label"] for answer in serve(texts)] == predict(clf, texts, precision="float32")
        assert len({answer["label"] for answer in serve(texts)}) > 1
        probabilities = predict_proba(clf, texts, precision="float32")
        for size in (1, 3):
            for answers, row in zip(serve(texts, top_k=None, batch_size=size), probabilities, strict=True):
                scores = {answer["label"]: answer["score"] for answer in answers}
                want = dict(zip(["ham", "spam: yes", "egg"], map(float, row), strict=True))
                assert scores == pytest.approx(want, abs=1e-5)

    def test_a_fresh_process_of_theirs_needs_nothing_of_ours(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        """Nothing in the folder asks for code of another package."""
        save_model(self.model(odd_config), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["architectures"] == ["GPT2ForSequenceClassification"]
        assert "auto_map" not in config
        assert transformers.AutoTokenizer.from_pretrained(tmp_path)("you won")["input_ids"] == self.model(
            odd_config
        ).tokenizer.encode_ordinary("you won")

    def test_what_transformers_fine_tuned_further_comes_back(self, odd_config: GPT2Config, tmp_path: Path) -> None:
        clf = self.model(odd_config)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(save_model(clf, tmp_path / "ours"))
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
        theirs.train(False)(IDS, labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
        theirs.save_pretrained(tmp_path / "theirs")
        again = load_model(tmp_path / "theirs")
        assert again.classes == clf.classes
        assert (logits(again) - logits(clf)).abs().max() > 1e-3
        torch.testing.assert_close(logits(again), logits(theirs), atol=1e-5, rtol=1e-5)
