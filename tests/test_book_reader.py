"""The habits of the book's reader: its names, dictionaries, calls and draws are understood, or an error says ours."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_gpt2, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from test_book import SMALL, Reference, as_ours, small
from torch import Tensor, nn

import gptclf
from gptclf import (
    GPT2,
    GPT2Config,
    History,
    Scores,
    TextDataset,
    add_classifier_head,
    download_openai_checkpoint,
    freeze,
    generate,
    generate_ids,
    load_gpt2,
    load_gpt2_params_from_tf_ckpt,
    load_model,
    predict,
    save_model,
    train,
    trainable_report,
)
from gptclf.book_names import CURVES, FUNCTIONS
from gptclf.gpt2.config import BOOK_NAMES, PRESETS, published_name
from gptclf.gpt2.sharing import borrow, twin
from gptclf.weights.locate import locate
from gptclf.weights.openai import tensors_from_params

CHECKPOINT = Path(__file__).parent / "data" / "tf_gpt2" / "whole"
BASE_CONFIG = {"vocab_size": 257, "context_length": 40, "drop_rate": 0.1, "qkv_bias": True}
SIZE = {"emb_dim": 24, "n_layers": 2, "n_heads": 3}


# Names of sizes and configuration dictionaries.


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("gpt2-small (124M)", "gpt2"),
        ("gpt2-medium (355M)", "gpt2-medium"),
        ("gpt2-large (774M)", "gpt2-large"),
        ("gpt2-xl (1558M)", "gpt2-xl"),
    ],
)
def test_the_books_names_of_sizes_mean_the_published_models(name: str, preset: str, tmp_path: Path) -> None:
    assert published_name(name) == preset
    assert locate(name) == f"openai-community/{preset}"
    assert published_name(preset) == preset
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(name[-5:-1])}/? .*HF_HUB_OFFLINE"):
        download_openai_checkpoint(name, tmp_path)


def test_the_books_name_gives_the_shape_of_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "gpt2-medium", GPT2Config(**SMALL))  # type: ignore[arg-type]
    assert load_gpt2("gpt2-medium (355M)", weights="random", seed=0).config.emb_dim == SMALL["emb_dim"]


@pytest.mark.parametrize("name", ["gpt2-small (125M)", "gpt2-small", "gpt2 (124M)", "gpt2-small(124M)"])
def test_other_names_stay_unknown(name: str) -> None:
    assert name not in BOOK_NAMES
    with pytest.raises(FileNotFoundError, match=r"is not a folder, a file or a known model.*124M"):
        load_gpt2(name)


def test_load_gpt2_takes_the_books_dictionary() -> None:
    given = {**BASE_CONFIG, **SIZE}
    before = dict(given)
    gpt2 = load_gpt2(given, weights="random", seed=5)
    expected = load_gpt2(GPT2Config.from_book(given), weights="random", seed=5)
    assert given == before
    assert gpt2.config == expected.config
    assert not gpt2.config.tied
    assert gpt2.config.drop_rate == 0.1
    assert load_gpt2(given, weights="random", seed=5, dropout=0.0).config.drop_rate == 0
    assert all(torch.equal(a, b) for a, b in zip(gpt2.parameters(), expected.parameters(), strict=True))
    # The book's class has as many parameters, of the same shapes but for query, key and value.
    theirs = Reference(given)
    assert sum(p.numel() for p in gpt2.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_dictionary_needs_weights_random() -> None:
    with pytest.raises(ValueError, match="a configuration has no pretrained weights; give weights='random', or a name"):
        load_gpt2({**BASE_CONFIG, **SIZE})


@pytest.mark.parametrize("call", [lambda d: load_gpt2(d, weights="random"), GPT2Config.from_book])
def test_a_dictionary_without_a_size_is_an_error(call: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"dictionary lacks emb_dim, n_heads, n_layers; .*model_configs"):
        call(BASE_CONFIG)
    with pytest.raises(ValueError, match="unknown configuration key 'n_blocks'"):
        call({**BASE_CONFIG, **SIZE, "n_blocks": 2})
    with pytest.raises(ValueError, match="unknown configuration keys 1, 'n_blocks'"):
        call({**BASE_CONFIG, **SIZE, "n_blocks": 2, 1: 2})
    with pytest.raises(ValueError, match=r"GPT2Config\.n_heads is 0"):
        call({**BASE_CONFIG, **SIZE, "n_heads": 0})


@pytest.mark.parametrize("wrong", [3, ["emb_dim"], "emb_dim", None], ids=str)
def test_what_is_not_a_dictionary_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"base is a {type(wrong).__name__}; it must be a dictionary"):
        GPT2Config.from_book(wrong)
    with pytest.raises(TypeError, match=rf"values is a {type(wrong).__name__}; it must be a dictionary"):
        GPT2Config.from_dict(wrong)


@pytest.mark.parametrize("config", [{**BASE_CONFIG, **SIZE}, "gpt2", None], ids=["dict", "str", "None"])
def test_the_class_itself_says_how_to_give_a_dictionary(config: Any) -> None:
    with pytest.raises(TypeError, match=r"config is a .*must be a GPT2Config: .*load_gpt2\(config, weights='random'\)"):
        GPT2(config)


# OpenAI's checkpoint, read as the book does.


@pytest.mark.parametrize("path", [CHECKPOINT, CHECKPOINT / "model.ckpt", str(CHECKPOINT / "model.ckpt")], ids=str)
def test_the_books_call_of_the_reader_returns_params_alone(path: str | Path) -> None:
    settings, expected = load_gpt2_params_from_tf_ckpt(path)
    params = load_gpt2_params_from_tf_ckpt(path, settings)
    assert set(params) == {"wte", "wpe", "blocks", "g", "b"}
    (config, ours), (again, theirs) = tensors_from_params(params, settings), tensors_from_params(expected, settings)
    assert config == again
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_given_settings_replace_those_in_the_folder(tmp_path: Path) -> None:
    settings, _ = load_gpt2_params_from_tf_ckpt(CHECKPOINT)
    folder = shutil.copytree(CHECKPOINT, tmp_path / "copy")
    (folder / "hparams.json").unlink()
    with pytest.raises(ValueError, match="does not exist"):
        load_gpt2_params_from_tf_ckpt(folder)
    params = load_gpt2_params_from_tf_ckpt(folder, settings)
    assert np.shape(params["wte"]) == (settings["n_vocab"], settings["n_embd"])
    with pytest.raises(ValueError, match=r"settings lacks n_vocab"):
        load_gpt2_params_from_tf_ckpt(folder, {"n_layer": 2})
    with pytest.raises(TypeError, match="settings is a int"):
        load_gpt2_params_from_tf_ckpt(folder, 3)  # type: ignore[call-overload]


# The parts of a model.

BOOKS_PARTS = ["trf_blocks", "final_norm", "tok_emb", "pos_emb", "drop_emb", "out_head", "transformer", "lm_head"]


@pytest.fixture
def clf() -> GPT2:
    return add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)


@pytest.mark.parametrize("name", BOOKS_PARTS)
def test_reading_a_part_by_the_books_name_says_what_it_is_called(clf: GPT2, name: str) -> None:
    for model in (clf, byte_gpt2()):
        with pytest.raises(AttributeError, match=rf"a GPT2 has no {name}; it is called ([\w.]+) here") as error:
            getattr(model, name)
        called = str(error.value).split("called ")[1].split()[0]
        assert isinstance(model.get_submodule(called), nn.Module)
        assert not hasattr(model, name)
        assert getattr(model, name, 7) == 7


@pytest.mark.parametrize("name", BOOKS_PARTS)
def test_setting_a_part_by_the_books_name_is_an_error_that_changes_nothing(clf: GPT2, name: str) -> None:
    before, state = set(dict(clf.named_modules())), {key: value.clone() for key, value in clf.state_dict().items()}
    call = r"add_classifier_head\(" if name in ("out_head", "lm_head") else r"freeze\("
    for value in (nn.Linear(64, 2), nn.Parameter(torch.zeros(2)), None, 3):
        with pytest.raises(AttributeError, match=rf"no {name}, so setting it would change nothing: .*{call}"):
            setattr(clf, name, value)
    assert set(dict(clf.named_modules())) == before
    assert all(torch.equal(value, state[key]) for key, value in clf.state_dict().items())


def test_the_parts_that_the_guide_names_exist_and_the_books_are_errors() -> None:
    page = (Path(__file__).parents[1] / "docs" / "from-the-book.md").read_text(encoding="utf-8")
    rows = page.split("| the book's `model` | here |\n| --- | --- |\n")[1].split("\n\n")[0].splitlines()
    assert len(rows) == 8
    model, seen = load_gpt2("nano"), set()
    for row in rows:
        theirs, ours = (set(re.findall(r"`model\.([\w.\[\]]+)`", column)) for column in row.split("|")[1:3])
        for name in theirs:
            with pytest.raises(AttributeError):
                eval(f"model.{name}", {"model": model, "i": 0})
        for name in ours - {"head.output"}:
            assert isinstance(eval(f"model.{name}", {"model": model, "i": 0}), nn.Module)
        seen |= ours
    assert {"trunk.norm", "head", "trunk.blocks[i].attention.qkv", "trunk.embed.token"} <= seen


def test_every_other_attribute_works_as_on_any_module(clf: GPT2, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="'GPT2' object has no attribute 'nothing'"):
        clf.nothing  # noqa: B018
    clf.note = "mine"
    clf.extra = nn.Linear(2, 2)
    assert clf.note == "mine"
    assert "extra" in dict(clf.named_children())
    del clf.extra
    clf.head = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=9).head
    ids = torch.tensor([[1, 2, 3]])
    expected = clf(ids)
    for copied in (copy.deepcopy(clf), borrow(clf), twin(clf), load_model(save_model(clf, tmp_path / "model"))):
        torch.testing.assert_close(copied(ids), expected)


def test_a_layer_set_to_train_by_hand_says_what_to_call() -> None:
    clf = add_classifier_head(load_gpt2("nano"), num_classes=2, seed=0)
    for parameter in clf.trunk.blocks[0].parameters():
        parameter.requires_grad = True
    with pytest.raises(ValueError, match=r"set to train, .*call freeze\(model, trainable=\.\.\.\)"):
        clf(torch.tensor([[1, 2]]))


def test_the_books_index_of_the_last_token_belongs_to_token_logits(clf: GPT2) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        with pytest.raises(IndexError):
            clf(ids)[:, -1, :]
        torch.testing.assert_close(clf.token_logits(ids)[:, -1, :], clf(ids))


def test_last_layer_is_the_head(clf: GPT2) -> None:
    freeze(clf, trainable="last_layer")
    report = trainable_report(clf)
    assert report.names == ["head.output.weight", "head.output.bias"]


# Training.


@pytest.mark.parametrize(
    ("argument", "ours"),
    [
        ("num_epochs", "epochs="),
        ("eval_freq", "eval_every="),
        ("eval_iter", "eval_batches="),
        ("optimizer", "lr="),
        ("shuffle", "seed="),
        ("device", r"model\.to\(device\)"),
        ("tokenizer", "the data set"),
        ("accumulation_steps", "accumulate="),
        ("trainable_token_pos", "pooling="),
        ("average_embeddings", "pooling='mean'"),
        ("peak_lr", "lr="),
        ("min_lr", "schedule='cosine'"),
        ("initial_lr", "warmup_steps="),
        ("max_steps", r"run\.stop\(\)"),
        ("start_context", "generate"),
    ],
)
def test_the_books_arguments_of_training_name_ours(clf: GPT2, argument: str, ours: str) -> None:
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=clf.tokenizer, classes=clf.classes)
    with pytest.raises(TypeError, match=f"there is no option '{argument}'; .*{ours}"):
        train(clf, data, **{argument: 1})  # type: ignore[arg-type]


def test_a_single_text_says_how_to_give_a_list(clf: GPT2) -> None:
    with pytest.raises(TypeError, match=r"texts is a single str; give a list of strings: \['text'\]"):
        predict(clf, "text")


# Generation.


def book_generate(model: nn.Module, ids: Tensor, n: int, context: int, temperature: float, top_k: int | None) -> Tensor:
    """The algorithm of the book's section 5.3, one token after the other, drawing from torch's global generator."""
    with torch.no_grad():
        for _ in range(n):
            scores = model(ids[:, -context:])[:, -1]
            if top_k is not None:
                least = scores.sort(dim=-1, descending=True).values[:, top_k - 1 : top_k]
                scores = scores.masked_fill(scores < least, -torch.inf)
            if temperature:
                chosen = torch.multinomial((scores / temperature).softmax(dim=-1), num_samples=1)
            else:
                chosen = scores.argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, chosen], dim=1)
    return ids


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 60),
    rows=st.integers(1, 3),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 1.4, 5.0]),
    top_k=st.sampled_from([None, 1, 3, 25, 257]),
)
def test_without_a_seed_the_tokens_are_the_books(
    seed: int, length: int, rows: int, temperature: float, top_k: int | None
) -> None:
    theirs = small()
    ours = as_ours(theirs.state_dict(), SMALL)
    ids = torch.randint(257, (rows, length), generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    expected = book_generate(theirs, ids, 30, 40, temperature, top_k)
    after = torch.rand(())
    for cached in (True, False):
        torch.manual_seed(seed)
        drawn = generate_ids(ours, ids, 30, temperature=temperature, top_k=top_k, use_cache=cached)
        assert drawn.tolist() == expected.tolist()
        assert torch.rand(()) == after  # nothing else was drawn


def test_generate_itself_draws_as_the_book_does() -> None:
    gpt2 = load_gpt2("nano")
    ids = torch.tensor([gpt2.tokenizer.encode_ordinary("Every effort moves you")])
    torch.manual_seed(123)
    expected = book_generate(gpt2, ids, 15, gpt2.config.context_length, 1.4, 25)
    torch.manual_seed(123)
    text = generate(gpt2, "Every effort moves you", 15, temperature=1.4, top_k=25)
    assert text == gpt2.tokenizer.decode(expected[0].tolist()).partition("<|endoftext|>")[0]


def test_a_seed_draws_what_it_always_drew_and_leaves_the_global_generator_alone() -> None:
    gpt2 = randomised(byte_gpt2()).requires_grad_(False)
    ids = torch.tensor([[1, 2, 3]])
    state = torch.get_rng_state()
    drawn = generate_ids(gpt2, ids, 12, temperature=1.2, seed=123)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(int(np.random.SeedSequence(123).generate_state(1, np.uint64)[0]))
    assert drawn.tolist() == book_generate(gpt2, ids, 12, 512, 1.2, None).tolist()


def test_greedy_tokens_draw_nothing() -> None:
    state = torch.get_rng_state()
    generate_ids(byte_gpt2(), [[1, 2, 3]], 5)
    assert torch.equal(torch.get_rng_state(), state)


# Names that the package does not have.


def test_the_books_functions_are_errors_that_name_ours_and_stand_on_the_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "from-the-book.md").read_text(encoding="utf-8")
    for name, ours in FUNCTIONS.items():
        assert f"`{name}" in page, name
        assert hasattr(gptclf, re.split(r"\W", ours)[0]), ours
        with pytest.raises(AttributeError, match=re.escape(f"the book's {name} is here {ours}")):
            getattr(gptclf, name)
    assert not hasattr(gptclf, "SpamDataset")


def test_the_books_lists_of_measurements_are_errors_that_give_ours() -> None:
    history = History([], [], [Scores(1, 1, 8, {"loss": 0.5, "accuracy": 1.0}, None, 0.0)])
    for name in CURVES:
        with pytest.raises(AttributeError, match=f"a History has no {name}: ") as error:
            getattr(history, name)
        assert len(eval(str(error.value).split(": ")[1], {"history": history})) == 1
    assert copy.deepcopy(history) == history


def test_freezing_by_the_books_names_gives_ours(clf: GPT2) -> None:
    last = len(clf.blocks) - 1
    with pytest.raises(ValueError, match=f"trf_blocks.{last} is called blocks.{last} here; final_norm is called norm"):
        freeze(clf, trainable=[f"trf_blocks.{last}", "final_norm", "out_head"])
    with pytest.raises(ValueError, match=r"parameters: [^;]*$"):
        freeze(clf, trainable="blocks.99")


def test_all_unknown_options_are_named_and_none_is_guessed_far_off(clf: GPT2) -> None:
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=clf.tokenizer, classes=clf.classes)
    with pytest.raises(TypeError, match=r"num_epochs'; give epochs=\nthere is no option 'eval_freq'; give eval_every="):
        train(clf, data, num_epochs=1, eval_freq=2)  # type: ignore[call-arg]
    for name in ("val_loader", "dropout", "max_lr", "learning_rate", "train_loader", "patience", "trainable", "xlabel"):
        with pytest.raises(TypeError, match=rf"^there is no option '{name}'; (?!did you mean)"):
            train(clf, data, **{name: 1})  # type: ignore[arg-type]


def test_a_fresh_head_that_does_not_train_is_warned_of_once(clf: GPT2, caplog: pytest.LogCaptureFixture) -> None:
    data = TextDataset(["a", "b"], ["ham", "spam"], tokenizer=clf.tokenizer, classes=clf.classes)
    train(clf, data, epochs=1, progress=False)
    assert "the head does not train" not in caplog.text
    clf = add_classifier_head(byte_gpt2(), classes=["ham", "spam"], seed=3)
    freeze(clf, trainable="norm")
    train(clf, data, epochs=2, progress=False)
    assert caplog.text.count("the head does not train") == 1


def test_a_folder_that_is_called_like_a_file_is_mentioned(
    clf: GPT2, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(clf, tmp_path / "review")
    assert "becomes a folder" not in caplog.text
    assert load_model(save_model(clf, tmp_path / "review.pth")).classes == clf.classes
    assert "review.pth becomes a folder, not a file" in caplog.text
