"""The network and its training against transformers' GPT-2 on the same random weights, in float32.

Weights reach us as users' do: their `save_pretrained`, then our `load_gpt2` or `load_model`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config as TheirConfig
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from gptclf import GPT2, Batches, TextDataset, freeze, load_gpt2, load_model, train
from gptclf.gpt2.learner import Learner
from gptclf.training.loop import training_steps
from gptclf.training.objective import Objective
from gptclf.training.optim import make_optimizer
from gptclf.training.recipe import Recipe
from gptclf.weights.hugging_face import trunk_names

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

# No two sizes of one shape are equal; between them they take every choice that changes the computation.
SMALL: dict[str, dict[str, Any]] = {
    "plain": {"vocab_size": 257, "n_positions": 40, "n_embd": 24, "n_head": 3, "n_layer": 3, "n_inner": 56},
    "untied, relu, unscaled": {
        "vocab_size": 131,
        "n_positions": 33,
        "n_embd": 30,
        "n_head": 5,
        "n_layer": 2,
        "n_inner": 17,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-2,
        "scale_attn_weights": False,
        "tie_word_embeddings": False,
    },
    "exact gelu, scaled by layer": {
        "vocab_size": 257,
        "n_positions": 21,
        "n_embd": 36,
        "n_head": 4,
        "n_layer": 3,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-3,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "silu, scaled by layer alone": {
        "vocab_size": 101,
        "n_positions": 27,
        "n_embd": 28,
        "n_head": 7,
        "n_layer": 4,
        "n_inner": 31,
        "activation_function": "silu",
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
    },
}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def their_config(**values: Any) -> Any:
    """A configuration without dropout whose last token is the padding and stands in no row."""
    pad = values.get("vocab_size", 50257) - 1
    return TheirConfig(**{**NO_DROPOUT, "pad_token_id": pad, "attn_implementation": "eager", **values})


def make(kind: Any, config: Any, *, noise: float = 0.1, seed: int = 3) -> Any:
    """Their model in eval mode with noise on every parameter: norms and biases start out trivial."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn_like(parameter)
    return model


def padded_rows(config: Any, lengths: list[int], seed: int = 5) -> tuple[Tensor, Tensor]:
    """Ids (B, T) padded on the right with the padding token, and lengths (B,)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), config.pad_token_id)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(config.pad_token_id, (length,), generator=generator)
    return ids, torch.tensor(lengths)


def real(values: Tensor, lengths: Tensor) -> Tensor:
    """What belongs to real tokens (sum of lengths, ...) of values (B, T, ...)."""
    return values[torch.arange(values.shape[1]) < lengths[:, None]]


def gradients_as_theirs(model: GPT2) -> dict[str, Tensor]:
    """Our gradients under their names and in their layout."""
    table = trunk_names(model.config.n_layers)
    names = {ours: ("transformer." + theirs, flip) for ours, (theirs, flip) in table.items()}
    names["head.output.weight"] = ("lm_head.weight" if model.classes is None else "score.weight", False)
    grads = {}
    for ours, parameter in model.named_parameters():
        assert parameter.grad is not None, ours
        theirs, flip = names[ours]
        grads[theirs] = parameter.grad.t() if flip else parameter.grad
    return grads


def largest_gradient_error(model: GPT2, theirs: Any) -> float:
    ours = gradients_as_theirs(model)
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert ours.keys() == expected.keys()
    return max(relative_error(ours[name], expected[name]) for name in expected)


@pytest.fixture(params=list(SMALL.values()), ids=list(SMALL))
def config(request: pytest.FixtureRequest) -> Any:
    return their_config(**request.param)


def lengths_of(config: Any) -> list[int]:
    return list(range(1, config.n_positions + 1))


def test_hidden_states_are_those_of_their_base_model(config: Any, tmp_path: Path) -> None:
    config.tie_word_embeddings = True  # a base model's folder holds no output matrix
    theirs = make(GPT2Model, config)
    theirs.save_pretrained(tmp_path)
    ids, lengths = padded_rows(config, lengths_of(config))
    with torch.no_grad():
        expected = theirs(ids, attention_mask=(ids != config.pad_token_id).long()).last_hidden_state
        hidden = load_gpt2(tmp_path).trunk(ids)
    assert relative_error(real(hidden, lengths), real(expected, lengths)) < 1e-5


def test_logits_are_those_of_their_language_model(config: Any, tmp_path: Path) -> None:
    theirs = make(GPT2LMHeadModel, config)
    theirs.save_pretrained(tmp_path)
    ids, lengths = padded_rows(config, lengths_of(config))
    with torch.no_grad():
        expected = theirs(ids).logits
        logits = load_gpt2(tmp_path)(ids, lengths)
    assert relative_error(real(logits, lengths), real(expected, lengths)) < 1e-5


def test_logits_are_those_of_their_classifier(config: Any, tmp_path: Path) -> None:
    config.num_labels = 5
    theirs = make(GPT2ForSequenceClassification, config)
    theirs.save_pretrained(tmp_path)
    ids, lengths = padded_rows(config, lengths_of(config))
    with torch.no_grad():
        expected = theirs(ids).logits
        logits = load_model(tmp_path)(ids, lengths)
    assert relative_error(logits, expected) < 1e-5


def test_a_huge_dimension_in_the_residual_stream_changes_nothing(tmp_path: Path) -> None:
    # Trained GPT-2s have a few dimensions of some hundreds; random weights have none.
    config = their_config(**SMALL["plain"])
    theirs = make(GPT2LMHeadModel, config)
    with torch.no_grad():
        theirs.transformer.wpe.weight[:, 7] = 1000.0
    theirs.save_pretrained(tmp_path)
    ids, lengths = padded_rows(config, lengths_of(config))
    with torch.no_grad():
        logits, expected = load_gpt2(tmp_path)(ids), theirs(ids).logits
    assert relative_error(real(logits, lengths), real(expected, lengths)) < 1e-5


def test_a_training_step_has_the_loss_and_gradients_of_their_classifier(config: Any, tmp_path: Path) -> None:
    config.num_labels = 3
    theirs = make(GPT2ForSequenceClassification, config)
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    freeze(model, trainable="all")
    ids, lengths = padded_rows(config, [1, 2, 9, 14, config.n_positions])
    labels = torch.tensor([0, 2, 1, 1, 2])
    expected = theirs(ids, labels=labels).loss
    loss = F.cross_entropy(model(ids, lengths), labels)
    expected.backward()
    loss.backward()  # type: ignore[no-untyped-call]
    assert relative_error(loss.detach(), expected.detach()) < 1e-5
    assert largest_gradient_error(model, theirs) < 1e-4


def test_a_language_model_has_their_gradients_too(config: Any, tmp_path: Path) -> None:
    # A tied matrix collects them from both its uses.
    theirs = make(GPT2LMHeadModel, config)
    theirs.save_pretrained(tmp_path)
    model = load_gpt2(tmp_path)
    freeze(model, trainable="all")
    ids, _ = padded_rows(config, [config.n_positions] * 3)
    expected = theirs(ids, labels=ids).loss
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected.backward()
    loss.backward()  # type: ignore[no-untyped-call]
    assert relative_error(loss.detach(), expected.detach()) < 1e-5
    assert largest_gradient_error(model, theirs) < 1e-4


def byte_texts(n: int, longest: int, seed: int = 11) -> tuple[list[str], list[str]]:
    """Random ASCII texts of 1 to `longest` characters, one byte token each, with random labels."""
    rng = np.random.default_rng(seed)
    texts = ["".join(map(chr, rng.integers(32, 127, rng.integers(1, longest + 1)))) for _ in range(n)]
    return texts, [f"LABEL_{i}" for i in rng.integers(0, 2, n)]


def their_six_steps(theirs: Any, batches: Batches, *, lr: float, weight_decay: float) -> list[float]:
    """Losses of six steps of a plain loop that trains their last block, final norm and head."""
    last = f"transformer.h.{theirs.config.n_layer - 1}."
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(name.startswith((last, "transformer.ln_f.", "score.")))
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)
    theirs.train()
    losses: list[float] = []
    for epoch in range(6):
        for batch in batches.epoch(epoch):
            pad = torch.arange(batch.inputs.shape[1]) >= batch.lengths[:, None]
            ids = batch.inputs.masked_fill(pad, theirs.config.pad_token_id)
            loss = theirs(ids, labels=batch.targets).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == 6:
                return losses
    raise AssertionError("six epochs hold at least six batches")


@pytest.mark.parametrize("lr", [5e-5, 2e-3])  # at the larger one, six steps move a small model visibly
@pytest.mark.parametrize("reuse", [True, False])
def test_six_steps_of_the_default_recipe_give_their_losses(lr: float, reuse: bool, tmp_path: Path) -> None:
    theirs = make(GPT2ForSequenceClassification, their_config(**SMALL["plain"], num_labels=2))
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    texts, labels = byte_texts(20, longest=40)
    rows = TextDataset(texts, labels, tokenizer=byte_tokenizer())
    # 20 rows make batches of 8, 8 and 4: two epochs are six steps.
    history = train(model, rows, epochs=2, lr=lr, precision="float32", reuse_frozen=reuse, progress=False)
    expected = their_six_steps(theirs, Batches(rows, 8, 123), lr=lr, weight_decay=0.1)
    assert len(history.steps) == 6
    np.testing.assert_allclose([step.loss for step in history.steps], expected, rtol=1e-5)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path, Path]]:
    """Their language model and classifier of 124M on one trunk, and the folders they were saved to."""
    lm_folder, clf_folder = tmp_path_factory.mktemp("lm"), tmp_path_factory.mktemp("classifier")
    lm = make(GPT2LMHeadModel, their_config(), noise=0.02)
    lm.save_pretrained(lm_folder)
    with torch.device("meta"):
        clf = GPT2ForSequenceClassification(their_config(num_labels=2)).eval()
    clf.transformer = lm.transformer
    clf.score = torch.nn.Linear(768, 2, bias=False)
    clf.save_pretrained(clf_folder)
    yield lm, clf, lm_folder, clf_folder
    shutil.rmtree(lm_folder)
    shutil.rmtree(clf_folder)


# The longest row stands alone: padding others to it would triple the time.
FULL_LENGTHS = [[1024], [1, 2, 37, 300]]


@pytest.mark.slow
def test_the_full_size_gives_their_hidden_states_and_logits(full: tuple[Any, Any, Path, Path]) -> None:
    theirs, their_classifier, lm_folder, clf_folder = full
    model, classifier = load_gpt2(lm_folder), load_model(clf_folder)
    hidden_error = logit_error = class_error = 0.0
    for lengths_wanted in FULL_LENGTHS:
        ids, lengths = padded_rows(theirs.config, lengths_wanted)
        with torch.inference_mode():
            output = theirs.transformer(ids, use_cache=False).last_hidden_state
            hidden = model.trunk(ids)
            expected = real(output, lengths)
            hidden_error = max(hidden_error, relative_error(real(hidden, lengths), expected))
            logits = model.head(real(hidden, lengths)[None], None)[0]
            logit_error = max(logit_error, relative_error(logits, theirs.lm_head(expected)))
            class_logits = their_classifier(ids, use_cache=False).logits
            class_error = max(class_error, relative_error(classifier(ids, lengths), class_logits))
    print(f"\n124M, relative: hidden {hidden_error:.1e}, LM logits {logit_error:.1e}, class logits {class_error:.1e}")
    assert max(hidden_error, logit_error, class_error) < 1e-5


@pytest.mark.slow
def test_the_full_size_gives_their_loss_and_gradients(full: tuple[Any, Any, Path, Path]) -> None:
    _, theirs, _, folder = full
    model = load_model(folder)
    freeze(model, trainable="all")
    ids, lengths = padded_rows(theirs.config, [1, 60, 120, 17])
    labels = torch.tensor([0, 1, 1, 0])
    expected = theirs(ids, labels=labels).loss
    loss = F.cross_entropy(model(ids, lengths), labels)
    expected.backward()
    loss.backward()  # type: ignore[no-untyped-call]
    loss_error, gradient_error = relative_error(loss.detach(), expected.detach()), largest_gradient_error(model, theirs)
    theirs.zero_grad(set_to_none=True)
    print(f"\n124M, one training step, relative: loss {loss_error:.1e}, gradients {gradient_error:.1e}")
    assert loss_error < 1e-5
    assert gradient_error < 1e-4


@pytest.mark.slow
def test_six_steps_at_full_size_give_their_losses(full: tuple[Any, Any, Path, Path]) -> None:
    _, theirs, _, folder = full
    model = load_model(folder)
    texts, labels = byte_texts(24, longest=60)
    rows = TextDataset(texts, labels, tokenizer=byte_tokenizer())
    batches = Batches(rows, 8, 123)
    optimizer = make_optimizer(model, Recipe(lr=5e-5, weight_decay=0.1))
    objective = Objective(Learner(model, training=True, keep_gradients=True), model.task)
    losses = [step.loss for step in training_steps(objective, batches, optimizer, epochs=2)]
    # Theirs last: it changes the trunk that the fixture's models share.
    expected = their_six_steps(theirs, batches, lr=5e-5, weight_decay=0.1)
    error = float(np.max(np.abs(np.array(losses) / np.array(expected) - 1)))
    print(f"\n124M, six AdamW steps, relative: losses {error:.1e} ({losses[0]:.4f} to {losses[-1]:.4f})")
    assert len(losses) == 6
    assert error < 1e-5
