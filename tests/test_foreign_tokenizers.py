"""Tokenizers that `transformers` wrote: encoded as it encodes them, written again alike, or refused by name."""

import copy
import json
import pickle
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AddedToken,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
)

from gptclf import GPT2Config as GPT2Sizes
from gptclf import TextDataset, add_classifier_head, load_gpt2, load_model, predict_proba, save_model
from gptclf.tokenizer.bpe import END_OF_TEXT
from gptclf.tokenizer.read import read_tokenizer
from gptclf.tokenizer.tokens import PIECE, check_same_tokenizer, encode
from gptclf.tokenizer.write import tokenizer_files

SIZE = 308  # with the end of text
PIECES = [
    END_OF_TEXT,
    "<USER>",
    "<US",
    "[PAD]",
    "end",
    "the ",
    "nd",
    " ",
    "  ",
    "\n",
    "the",
    "don't",
    "é",
    "\u00a0",
    "<|",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def quoted(change: Callable[[Any], object], **options: Any) -> tuple[Callable[[Any], object], dict[str, Any]]:
    return change, options


# How a tokenizer is changed before it is saved, and the options that it is made with.
CHANGES: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "plain": quoted(lambda _: None),
    "an added token": quoted(lambda tok: tok.add_tokens(["<USER>"])),
    "a special token": quoted(lambda tok: tok.add_special_tokens({"pad_token": "[PAD]"})),
    "several": quoted(
        lambda tok: (tok.add_tokens(["<USER>", "the ", "end"]), tok.add_special_tokens({"sep_token": "nd"}))
    ),
    "extra special tokens": quoted(lambda tok: tok.add_special_tokens({"extra_special_tokens": ["<USER>", "<US"]})),
    "one of the vocabulary": quoted(lambda tok: tok.add_tokens(["the", "e"])),
    "one not normalized": quoted(lambda tok: tok.add_tokens([AddedToken("nd", normalized=False), "end"])),
    "special tokens split": quoted(
        lambda tok: (tok.add_tokens(["<USER>", "end"]), tok.add_special_tokens({"pad_token": "[PAD]"})),
        split_special_tokens=True,
    ),
    "a prefix space": quoted(lambda _: None, add_prefix_space=True),
    "a prefix space and added tokens": quoted(lambda tok: tok.add_tokens(["<USER>", " "]), add_prefix_space=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of a small BPE, with the end of text last."""
    folder = tmp_path_factory.mktemp("trained")
    rng = random.Random(3)
    words = ["the", "they're", "don't", "happier", "1984", "naïve", "end", "", "tail", "\n\n", "you'll", "<USER>"]
    bpe = ByteLevelBPETokenizer()
    lines = [" ".join(rng.choices(words, k=20)) for _ in range(50)]
    bpe.train_from_iterator(lines, vocab_size=400, min_frequency=2, special_tokens=[], show_progress=False)
    bpe.save_model(str(folder))
    table = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    table[END_OF_TEXT] = len(table)
    assert len(table) == SIZE
    (folder / "vocab.json").write_text(json.dumps(table), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


@pytest.fixture
def their(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a tokenizer of transformers, changed."""

    def save(change: Callable[[Any], object] = lambda _: None, **options: Any) -> Path:
        tokenizer = GPT2Tokenizer.from_pretrained(trained, **options)
        change(tokenizer)
        tokenizer.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs"

    return save


def edited(folder: Path, name: str, **changes: Any) -> None:
    values = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps({**values, **changes}), encoding="utf-8")


def same_as_transformers(folder: Path, tmp_path: Path, examples: int = 60) -> Any:
    """The tokenizer of a folder, after comparing it, and what is written of it, with AutoTokenizer's."""
    theirs, ours = AutoTokenizer.from_pretrained(folder), read_tokenizer(folder, end_of_text=True)
    assert ours is not None
    written = tmp_path / "written"
    written.mkdir()
    for name, text in tokenizer_files(ours, 40).items():
        (written / name).write_text(text, encoding="utf-8")
    again, ours_again = AutoTokenizer.from_pretrained(written), read_tokenizer(written, ours=True, end_of_text=True)

    @settings(max_examples=examples, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        expected = theirs(text)["input_ids"]
        assert encode(text, ours) == expected
        assert again(text)["input_ids"] == expected
        assert ours_again is not None
        assert encode(text, ours_again) == expected

    check()
    return ours


class TestFollowed:
    @pytest.mark.parametrize("name", CHANGES)
    def test_ids_are_those_of_transformers_and_are_written_alike(
        self, their: Callable[..., Path], name: str, tmp_path: Path
    ) -> None:
        change, options = CHANGES[name]
        same_as_transformers(their(change, **options), tmp_path)

    def test_tokenizer_json_comes_before_the_merges_beside_it(
        self, their: Callable[..., Path], trained: Path, tmp_path: Path
    ) -> None:
        folder = their()
        lines = (trained / "merges.txt").read_text(encoding="utf-8").splitlines()
        (folder / "merges.txt").write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
        (folder / "vocab.json").write_text("{}", encoding="utf-8")
        same_as_transformers(folder, tmp_path)

    @pytest.mark.parametrize("prefix", [False, True])
    def test_the_class_of_any_fast_tokenizer(self, their: Callable[..., Path], prefix: bool, tmp_path: Path) -> None:
        made = GPT2Tokenizer.from_pretrained(their(), add_prefix_space=prefix)
        made.add_tokens(["<USER>"])
        general = PreTrainedTokenizerFast(
            tokenizer_object=made.backend_tokenizer, eos_token=END_OF_TEXT, pad_token="[PAD]"
        )
        shutil.rmtree(tmp_path / "theirs")
        general.save_pretrained(tmp_path / "theirs")
        same_as_transformers(tmp_path / "theirs", tmp_path)

    def test_the_files_of_older_releases(self, trained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "old"
        shutil.copytree(trained, folder)
        edited(folder, "added_tokens.json", **{"<USER>": SIZE, "[PAD]": SIZE + 1})
        edited(folder, "special_tokens_map.json", pad_token="[PAD]", cls_token={"content": "the", "lstrip": False})
        edited(folder, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", split_special_tokens=False)
        same_as_transformers(folder, tmp_path)

    def test_a_decoder_table_in_the_settings(self, trained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "old"
        shutil.copytree(trained, folder)
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        table = {str(SIZE): {**token, "content": "<USER>"}, str(SIZE - 1): {**token, "content": END_OF_TEXT}}
        edited(folder, "tokenizer_config.json", added_tokens_decoder=table, pad_token="[PAD]", add_prefix_space=True)
        same_as_transformers(folder, tmp_path)

    def test_a_special_token_that_the_trainer_put_into_the_vocabulary(
        self, their: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = their(lambda tok: tok.add_special_tokens({"pad_token": "[PAD]"}))
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        whole["model"]["vocab"]["[PAD]"] = SIZE
        edited(folder, "tokenizer.json", **whole)
        same_as_transformers(folder, tmp_path)

    def test_a_long_text_is_not_cut_within_an_added_token(self, their: Callable[..., Path], tmp_path: Path) -> None:
        folder = their(lambda tok: tok.add_tokens(["b c"]), add_prefix_space=True)
        ours, theirs = read_tokenizer(folder, end_of_text=True), AutoTokenizer.from_pretrained(folder)
        assert ours is not None
        text = "a" * (PIECE - 1) + "b c" + "a" * 10
        assert encode(text, ours) == theirs(text)["input_ids"]

    def test_pickles_and_copies_encode_alike(self, their: Callable[..., Path], tmp_path: Path) -> None:
        ours = read_tokenizer(their(lambda tok: tok.add_tokens(["<USER>"]), add_prefix_space=True))
        assert ours is not None
        for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
            assert other.encode_ordinary("a <USER> b") == ours.encode_ordinary("a <USER> b")
            check_same_tokenizer(ours, other)

    def test_a_tokenizer_without_the_tokens_is_another(self, their: Callable[..., Path], trained: Path) -> None:
        plain = read_tokenizer(trained)
        spaced = read_tokenizer(their(add_prefix_space=True))
        assert plain is not None
        assert spaced is not None
        assert plain.n_vocab == spaced.n_vocab
        for ours, other in ((plain, spaced), (spaced, plain)):
            with pytest.raises(ValueError, match="encoded with another tokenizer"):
                check_same_tokenizer(ours, other)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another class": ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer_class 'BertTokenizer'"),
    "lower case": ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "normalizer {'type': 'Lowercase'}"),
    "other splitting": (
        "tokenizer.json",
        {"pre_tokenizer": {"type": "Whitespace"}},
        "pre_tokenizer {'type': 'Whitespace'}",
    ),
    "no splitting": ("tokenizer.json", {"pre_tokenizer": None}, "pre_tokenizer None"),
    "no pattern": (
        "tokenizer.json",
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        "pre_tokenizer .*'use_regex': False",
    ),
    "a prefix space in one file": (
        "tokenizer.json",
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        "pre_tokenizer .*'add_prefix_space': True",
    ),
    "a beginning": (
        "tokenizer.json",
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {},
            }
        },
        "post_processor .*SpecialToken",
    ),
    "RoBERTa's ends": ("tokenizer.json", {"post_processor": {"type": "RobertaProcessing"}}, "post_processor .*Roberta"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_what_makes_other_tokens_is_named_with_its_value(self, their: Callable[..., Path], name: str) -> None:
        file, change, said = REFUSED[name]
        folder = their()
        edited(folder, file, **change)
        with pytest.raises(ValueError, match=rf"theirs/{re.escape(file)} has {said}.*model\.tokenizer"):
            read_tokenizer(folder)

    @pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token"])
    def test_ends_in_the_settings_of_merges(self, trained: Path, key: str, tmp_path: Path) -> None:
        folder = tmp_path / "old"
        shutil.copytree(trained, folder)
        edited(folder, "tokenizer_config.json", **{key: True})
        assert len(AutoTokenizer.from_pretrained(folder)("the")["input_ids"]) == 2  # it matters
        with pytest.raises(ValueError, match=rf"tokenizer_config\.json has {key} True"):
            read_tokenizer(folder)

    @pytest.mark.parametrize("option", ["dropout", "continuing_subword_prefix", "end_of_word_suffix"])
    def test_options_of_the_merges(self, their: Callable[..., Path], option: str) -> None:
        folder = their()
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        whole["model"][option] = 0.1 if option == "dropout" else "##"
        edited(folder, "tokenizer.json", **whole)
        with pytest.raises(ValueError, match=rf"tokenizer\.json has {option} "):
            read_tokenizer(folder)

    @pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
    def test_added_tokens_that_take_their_surroundings_along(self, their: Callable[..., Path], flag: str) -> None:
        folder = their(lambda tok: tok.add_tokens([AddedToken("<USER>", **{flag: True})]))
        with pytest.raises(ValueError, match=rf"'<USER>' with {flag} True"):
            read_tokenizer(folder)

    def test_an_added_token_whose_id_is_not_its_place(self, trained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "old"
        shutil.copytree(trained, folder)
        edited(folder, "added_tokens.json", **{"<USER>": SIZE + 7})
        with pytest.raises(ValueError, match=rf"'<USER>' the id {SIZE + 7}, but its place is {SIZE}"):
            read_tokenizer(folder)

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("tokenizer.json", {"added_tokens": 5}),
            ("tokenizer.json", {"added_tokens": [5]}),
            ("tokenizer.json", {"added_tokens": [{"id": "a", "content": "b"}]}),
            ("tokenizer.json", {"pre_tokenizer": [1]}),
            ("tokenizer.json", {"post_processor": "x"}),
            ("tokenizer.json", {"model": {"merges": [], "vocab": None}}),
            ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
            ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "<U>"}}}),
            ("tokenizer_config.json", {"extra_special_tokens": 7}),
            ("added_tokens.json", {"a": None}),
        ],
    )
    def test_values_of_another_kind_are_damage(
        self, their: Callable[..., Path], file: str, change: dict[str, Any]
    ) -> None:
        folder = their()
        edited(folder, file, **change)
        with pytest.raises(ValueError, match="theirs"):
            read_tokenizer(folder)


@pytest.fixture
def saved(trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a model of transformers with a tokenizer that has tokens of its own."""

    def save(kind: Any = GPT2ForSequenceClassification, rows: int = SIZE + 2) -> Path:
        tokenizer = GPT2Tokenizer.from_pretrained(trained)
        tokenizer.add_tokens(["<USER>"])
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=rows, n_embd=24, n_layer=2, n_head=2, n_positions=64, num_labels=2, pad_token_id=SIZE + 1
        )
        kind(config).save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


TEXTS = ["hi <USER>", f"a{END_OF_TEXT}b", "the [PAD] end", "they're"]


class TestModels:
    def test_a_foreign_classifier_keeps_its_tokens_when_used_and_saved(
        self, saved: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = saved()
        clf, theirs = load_model(folder), AutoTokenizer.from_pretrained(folder)
        model = GPT2ForSequenceClassification.from_pretrained(folder).eval()
        again = save_model(clf, tmp_path / "again")
        for text in TEXTS:
            ids = theirs(text, return_tensors="pt")["input_ids"]
            assert TextDataset([text], tokenizer=clf.tokenizer).ids.tolist() == ids[0].tolist()
            assert AutoTokenizer.from_pretrained(again)(text)["input_ids"] == ids[0].tolist()
            assert encode(text, load_model(again).tokenizer) == ids[0].tolist()
            with torch.no_grad():
                expected = model(ids).logits.softmax(-1).numpy()
            np.testing.assert_allclose(predict_proba(clf, [text], precision="float32"), expected, rtol=0, atol=1e-5)

    def test_in_a_language_model_the_end_of_text_is_characters_and_the_others_are_tokens(
        self, saved: Callable[..., Path], tmp_path: Path
    ) -> None:
        gpt2 = load_gpt2(saved(GPT2LMHeadModel))
        ids = [encode(text, gpt2.tokenizer) for text in TEXTS]
        assert SIZE - 1 not in ids[1]
        assert gpt2.tokenizer.decode(ids[1]) == TEXTS[1]
        assert (SIZE in ids[0], SIZE + 1 in ids[2]) == (True, True)
        folder = save_model(add_classifier_head(gpt2, classes=["a", "b"], seed=1), tmp_path / "clf")
        theirs = AutoTokenizer.from_pretrained(folder)
        assert [theirs(text)["input_ids"] for text in TEXTS] == ids
        assert [encode(text, load_model(folder).tokenizer) for text in TEXTS] == ids

    def test_tokens_without_an_embedding_are_left_out_and_named(
        self, saved: Callable[..., Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        clf = load_model(saved(rows=SIZE + 1))  # the embedding was not made larger for [PAD]
        assert "['[PAD]'] have no embedding" in caplog.text
        ids = encode("the [PAD] <USER>", clf.tokenizer)
        assert max(ids) == SIZE
        assert clf.tokenizer.decode(ids) == "the [PAD] <USER>"


class TestPinned:
    @pytest.mark.parametrize("kind", [GPT2ForSequenceClassification, GPT2LMHeadModel])
    @pytest.mark.parametrize("event", ["moved", "deleted", "changed", "other folder"])
    def test_nothing_that_happens_later_changes_tokens(
        self, saved: Callable[..., Path], kind: Any, event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = saved(kind)
        monkeypatch.chdir(tmp_path)
        load = load_model if kind is GPT2ForSequenceClassification else load_gpt2
        expected, model = encode(TEXTS[0], load("model").tokenizer), load("model")
        if event == "moved":
            folder.rename(tmp_path / "moved")
        elif event == "deleted":
            shutil.rmtree(folder)
        elif event == "changed":
            edited(folder, "tokenizer_config.json", add_prefix_space=True)
        else:
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
        assert encode(TEXTS[0], model.tokenizer) == expected

    def test_a_loaded_model_can_be_pickled(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        folder = saved(GPT2LMHeadModel)
        expected = encode(TEXTS[0], load_gpt2(folder).tokenizer)
        nameless = load_gpt2(
            GPT2Sizes(vocab_size=9, context_length=4, emb_dim=4, n_heads=1, n_layers=1), weights="random"
        )
        content = pickle.dumps((load_gpt2(folder), nameless))
        shutil.rmtree(folder)
        again, nameless = pickle.loads(content)
        assert encode(TEXTS[0], again.tokenizer) == expected
        with pytest.raises(FileNotFoundError, match="no tokenizer for a vocabulary of 9 tokens"):
            _ = nameless.tokenizer

    def test_an_error_is_the_same_later_and_never_another_tokenizer(self, saved: Callable[..., Path]) -> None:
        folder = saved(GPT2LMHeadModel)
        edited(folder, "tokenizer.json", normalizer={"type": "Lowercase"})
        model = load_gpt2(folder)
        shutil.rmtree(folder)
        for _ in range(2):
            with pytest.raises(ValueError, match="has normalizer"):
                _ = model.tokenizer


def test_a_refused_tokenizer_is_not_replaced_by_gpt2s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=1)
    save_model(model, tmp_path / "first")
    file = tmp_path / "first/tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": {"type": "Lowercase"}}))
    refused = load_model(tmp_path / "first", verify=False)
    # As for a vocabulary of GPT-2's size, for which its tokenizer is taken if a folder has none.
    monkeypatch.setattr("gptclf.tokenizer.find._GPT2_VOCAB_SIZE", 1)
    monkeypatch.setattr("gptclf.tokenizer.find._from_tiktoken_cache", lambda: model.tokenizer)
    monkeypatch.setattr("gptclf.tokenizer.find.cached_file", lambda *_, **__: None)
    loaded = refused
    for folder in ("again", "once more"):
        loaded = load_model(save_model(loaded, tmp_path / folder))
        with pytest.raises(ValueError, match=r"saved without its tokenizer, which is not GPT-2's.*Lowercase"):
            predict_proba(loaded, ["Hi"])
    loaded.tokenizer = model.tokenizer
    assert load_model(save_model(loaded, tmp_path / "own")).tokenizer.encode("hi") == model.tokenizer.encode("hi")
