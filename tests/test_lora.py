"""LoRA against PEFT on the same weights and factors: logits, losses and gradients, over twenty steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from test_parity import SMALL, byte_texts, make, padded_rows, relative_error, their_config
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from gptclf import GPT2, Batches, TextDataset, apply_lora, batch_loss, load_gpt2, load_model, merge_lora, train
from gptclf.gpt2.lora_linear import lora_layers
from gptclf.inference.predict import text_outputs

peft = pytest.importorskip("peft")

THEIRS = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
SUFFIXES = {name.split(".")[1]: theirs for name, theirs in THEIRS.items()}
ALL = ["qkv", "out", "up", "down"]
STEPS, BATCH = 20, 8


class Case(NamedTuple):
    """What `apply_lora` is given, and beside it what PEFT's LoraConfig is given."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    shape: str = "plain"


def targets(*names: str) -> dict[str, Any]:
    return {"target_modules": [SUFFIXES[name] for name in names]}


CASES = {
    **{name: Case({"targets": name}, targets(name)) for name in ALL},
    "all": Case({}, targets(*ALL)),
    "exact gelu": Case({}, targets(*ALL), "exact gelu, scaled by layer"),
    "silu": Case({"targets": ["qkv", "up"]}, targets("qkv", "up"), "silu, scaled by layer alone"),
    "last block": Case({"blocks": 1}, targets(*ALL) | {"layers_to_transform": [2]}),
    "last two blocks": Case({"blocks": 2, "targets": "qkv"}, targets("qkv") | {"layers_to_transform": [1, 2]}),
    "one block": Case({"blocks": [1]}, targets(*ALL) | {"layers_to_transform": [1]}),
    "rslora": Case({"scale": "alpha/sqrt(rank)"}, targets(*ALL) | {"use_rslora": True}),
    "alpha": Case({"scale": "alpha", "alpha": 2}, targets(*ALL) | {"lora_alpha": 2 * 4}),
    "patterns": Case(
        {"rank": {"qkv": 2, "mlp": 3, "*": 5}, "alpha": {"blocks.1.mlp.up": 9, "*": 4}, "blocks": 2},
        targets(*ALL)
        | {"layers_to_transform": [1, 2], "r": 5, "lora_alpha": 4}
        | {"rank_pattern": {"c_attn": 2, "c_fc": 3, "mlp.c_proj": 3}, "alpha_pattern": {"h.1.mlp.c_fc": 9}},
    ),
}


class Pair(NamedTuple):
    """Our model and PEFT's over the same weights and factors."""

    ours: GPT2
    theirs: Any
    config: Any
    rows: TextDataset


def their_layer(theirs: Any, path: str) -> Any:
    """PEFT's layer for one of ours."""
    _, _, block, rest = path.split(".", 3)
    return theirs.get_submodule(f"base_model.model.transformer.h.{block}.{THEIRS[rest]}")


def pairs(ours: GPT2, theirs: Any) -> Iterator[tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Our trainable parameters beside theirs."""
    for path, layer in lora_layers(ours):
        for name in ("lora_A", "lora_B"):
            yield getattr(layer, name).weight, getattr(their_layer(theirs, path), name)["default"].weight
    if ours.classes is not None:
        yield ours.get_parameter("head.output.weight"), theirs.base_model.model.score.modules_to_save.default.weight


def pair_of(case: Case, folder: Path, kind: Any = GPT2ForSequenceClassification) -> Pair:
    classifies = kind is GPT2ForSequenceClassification
    config = their_config(**{**SMALL[case.shape], "vocab_size": 257}, **({"num_labels": 2} if classifies else {}))
    theirs = make(kind, config)
    theirs.save_pretrained(folder)
    ours = apply_lora(
        (load_model if classifies else load_gpt2)(folder), **{"rank": 4, "alpha": 8, "seed": 5, **case.ours}
    )
    options = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": "SEQ_CLS" if classifies else "CAUSAL_LM"}
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**{**options, **case.theirs}))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for mine, its in pairs(ours, theirs):
            mine.add_(torch.randn(mine.shape, generator=generator), alpha=0.1)  # B is 0 at first
            its.copy_(mine)
    trained = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert trained == sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    texts, labels = byte_texts(STEPS // 4 * BATCH, longest=config.n_positions)
    return Pair(ours, theirs, config, TextDataset(texts, labels, tokenizer=byte_tokenizer()))


def steps_of(pair: Pair, lr: float) -> Iterator[tuple[Any, Tensor]]:
    """PEFT's loss on each batch of four epochs, its gradients being set, before a step of AdamW is taken."""
    trained = [parameter for parameter in pair.theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.1)
    batches = Batches(pair.rows, BATCH, 123)
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            pad = torch.arange(batch.inputs.shape[1]) >= batch.lengths[:, None]
            ids = batch.inputs.masked_fill(pad, pair.config.pad_token_id)
            optimizer.zero_grad()
            loss = pair.theirs(input_ids=ids, labels=batch.targets).loss
            loss.backward()
            yield batch, loss.detach()
            optimizer.step()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_logits_are_those_of_peft(case: Case, tmp_path: Path) -> None:
    ours, theirs, config, _ = pair_of(case, tmp_path)
    ids, lengths = padded_rows(config, list(range(1, config.n_positions + 1)))
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        assert relative_error(ours(ids, lengths), expected) < 1e-5
        assert relative_error(merge_lora(ours)(ids, lengths), expected) < 1e-5
        assert relative_error(load_model(tmp_path)(ids, lengths), expected) > 1e-2  # the factors matter


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_losses_and_gradients_of_twenty_steps_are_those_of_peft(case: Case, tmp_path: Path) -> None:
    pair = pair_of(case, tmp_path)
    trained = [mine for mine, _ in pairs(pair.ours, pair.theirs)]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1)
    taken = 0
    for batch, expected in steps_of(pair, lr=1e-3):
        optimizer.zero_grad()
        loss = batch_loss(pair.ours, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert float((loss.detach() - expected).abs()) < 1e-5 * float(expected)
        for mine, its in pairs(pair.ours, pair.theirs):
            assert mine.grad is not None
            assert its.grad is not None
            assert relative_error(mine.grad, its.grad) < 1e-5
        optimizer.step()
        taken += 1
    assert taken == STEPS


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", ["all", "qkv", "last block", "last two blocks", "rslora", "alpha", "patterns"])
def test_twenty_steps_of_train_are_those_of_peft(name: str, reuse: bool, tmp_path: Path) -> None:
    # Kept features, packed rows, the pooled last block and kept gradients on our side; a plain loop on theirs.
    pair = pair_of(CASES[name], tmp_path)
    history = train(
        pair.ours, pair.rows, epochs=4, lr=1e-3, precision="float32", reuse_frozen=reuse, progress=False, seed=123
    )
    expected = [float(loss) for _, loss in steps_of(pair, lr=1e-3)]
    np.testing.assert_allclose([step.loss for step in history.steps], expected, rtol=1e-5)
    ids, lengths = padded_rows(pair.config, [3, 9, 30, 40])
    with torch.no_grad():
        logits = pair.theirs(input_ids=ids).logits
    assert relative_error(pair.ours(ids, lengths).detach(), logits) < 1e-5
    for mine, its in pairs(pair.ours, pair.theirs):
        assert relative_error(mine.detach(), its.detach()) < 1e-4


def test_predictions_are_those_of_peft(tmp_path: Path) -> None:
    pair = pair_of(CASES["all"], tmp_path)
    pair.ours.tokenizer = byte_tokenizer()
    (found,) = text_outputs([pair.ours], pair.rows.texts, precision="float32")
    with torch.no_grad():
        for row, ids in zip(found, pair.rows.rows(), strict=True):
            expected = pair.theirs(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


def test_a_language_model_has_the_logits_and_gradients_of_peft(tmp_path: Path) -> None:
    ours, theirs, config, _ = pair_of(CASES["all"], tmp_path, GPT2LMHeadModel)
    ids, _ = padded_rows(config, [config.n_positions] * 3)
    output = theirs(input_ids=ids, labels=ids)
    logits = ours(ids)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    output.loss.backward()
    loss.backward()  # type: ignore[no-untyped-call]
    assert relative_error(logits.detach(), output.logits.detach()) < 1e-5
    for mine, its in pairs(ours, theirs):
        assert mine.grad is not None
        assert its.grad is not None
        assert relative_error(mine.grad, its.grad) < 1e-4


def test_the_default_draw_is_that_of_peft(tmp_path: Path) -> None:
    make(GPT2LMHeadModel, their_config(**SMALL["plain"])).save_pretrained(tmp_path)
    for _, layer in lora_layers(apply_lora(load_gpt2(tmp_path), rank=8, seed=1)):
        theirs = peft.tuners.lora.Linear(
            torch.nn.Linear(layer.in_features, layer.out_features), "x", peft.LoraConfig(r=8), r=8, lora_alpha=8
        )
        ours, expected = layer.lora_A.weight.detach(), theirs.lora_A["x"].weight.detach()
        assert relative_error(ours.std(), expected.std()) < 0.2
        assert relative_error(ours.abs().max(), expected.abs().max()) < 0.1
        assert not layer.lora_B.weight.any()
        assert not theirs.lora_B["x"].weight.any()
