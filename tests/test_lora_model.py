"""Models with LoRA factors: what is shared and what changes, merging, training, resuming, and what is refused."""

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, classifier_of, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

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
    apply_lora,
    evaluate,
    freeze,
    generate_ids,
    load_model,
    merge_lora,
    predict,
    predict_proba,
    save_model,
    train,
    train_lm,
    trainable_report,
)
from gptclf.features.frozen_prefix import FrozenPrefix
from gptclf.features.reuse import prefix_of
from gptclf.gpt2.arithmetic import FLOAT32
from gptclf.gpt2.freezing import policy_of
from gptclf.gpt2.layers import Linear
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.lora_linear import SCALES, LoRALinear, lora_layers
from gptclf.gpt2.trunk import can_pool

CONFIG = GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)
TEXTS = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you", "call now")]
LABELS = ["spam", "ham", "spam"] * 4
IDS = torch.randint(257, (3, 17), generator=torch.Generator().manual_seed(5))


def language_model(config: GPT2Config = CONFIG) -> GPT2:
    model = randomised(GPT2(config, seed=7)).requires_grad_(False)
    model.tokenizer = byte_tokenizer()
    return model


def classifier(base: GPT2 | None = None, seed: int = 3) -> GPT2:
    clf = add_classifier_head(base or language_model(), classes=["ham", "spam"], seed=seed)
    freeze(clf, trainable="head")
    return clf


def stirred(model: GPT2, seed: int = 1) -> GPT2:
    """The model with noise on its factors, so that they matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            for name in layer.factors():
                factor = layer.get_parameter(name)
                factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.1)
    return model


def adapted(seed: int = 1, base: GPT2 | None = None, **options: Any) -> GPT2:
    return stirred(apply_lora(base or classifier(), **{"rank": 4, "seed": seed, **options}), seed)


def rows() -> TextDataset:
    return TextDataset(TEXTS, LABELS, tokenizer=byte_tokenizer(), classes=["ham", "spam"])


def run(clf: GPT2, **options: Any) -> History:
    settings = {"epochs": 3, "batch_size": 4, "lr": 3e-3, "progress": False, "precision": "float32"}
    return train(clf, rows(), **{**settings, **options})


def state(model: GPT2) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in model.named_parameters()
    }


def answers(model: GPT2) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return predict_proba(model, TEXTS, precision="float32")


def first_layer(model: GPT2) -> LoRALinear:
    return next(layer for _, layer in lora_layers(model))


# --- the layer's algebra ---


@st.composite
def layers(draw: st.DrawFn) -> LoRALinear:
    K, parts, size = draw(st.integers(1, 40)), draw(st.sampled_from([1, 3])), 18 * draw(st.integers(1, 2))
    base = Linear(K, parts * size, bias=draw(st.booleans()))
    rank, alpha = draw(st.integers(1, 12)), draw(st.floats(0.1, 32))
    layer = LoRALinear(
        base, rank, alpha, scaling=draw(st.sampled_from(sorted(SCALES))), bias=draw(st.booleans()), parts=parts
    )
    layer.lora_A.to_empty(device="cpu")
    layer.lora_B.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.eval()


def error(found: Tensor, expected: Tensor, size: Tensor | None = None) -> float:
    """The norm of a difference, relative to the expected values, or to the size of what was added up to them."""
    size = expected if size is None else size
    return float((found.double() - expected.double()).norm() / size.double().norm())


def dense(layer: LoRALinear, size: bool = False) -> tuple[Tensor, Tensor]:
    """The matrix and the bias in float64, from the factors themselves; or the size of the terms of their sums."""

    def of(tensor: Tensor | None) -> Tensor:
        tensor = torch.zeros(layer.out_features) if tensor is None else tensor.detach()
        return tensor.double().abs() if size else tensor.double()

    each = zip(of(layer.lora_A.weight).chunk(layer.parts), of(layer.lora_B.weight).chunk(layer.parts), strict=True)
    weight = of(layer.base.weight) + layer.scale * torch.cat([b @ a for a, b in each])
    return weight, of(layer.base.bias) + layer.scale * of(layer.lora_B.bias)


@settings(max_examples=60, deadline=None)
@given(layer=layers(), shape=st.sampled_from([(1,), (7,), (3, 5), (2, 1, 4)]))
def test_a_layer_and_its_merged_matrix_compute_the_same(layer: LoRALinear, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, layer.in_features, generator=torch.Generator().manual_seed(1))
    weight, bias = dense(layer)
    sizes = dense(layer, size=True)
    before = state_of(layer)
    with torch.no_grad():
        expected, size = F.linear(x.double(), weight, bias), F.linear(x.double().abs(), *sizes)
        found, merged = layer(x), layer.merged()
        together = F.linear(x, *merged)
        assert error(merged[0], weight, sizes[0]) < 1e-6
        assert error(found, together, size) < 1e-6
        assert error(found, expected, size) < 1e-6
        prepared = layer.prepared(FLOAT32)(x.reshape(-1, layer.in_features))
        assert torch.equal(prepared, F.linear(x.reshape(-1, layer.in_features), *merged))
        a, b = layer.pair()
        assert error(layer.base.weight + layer.scale * b @ a, weight, sizes[0]) < 1e-6
        assert b.shape == (layer.out_features, len(a))
    assert state_of(layer) == before


def state_of(layer: torch.nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in layer.parameters()]


@settings(max_examples=60, deadline=None)
@given(layer=layers(), part=st.integers(0, 2), heads=st.sampled_from([1, 2, 3]), bias=st.booleans())
def test_parts_of_a_layer_are_those_of_its_matrix(layer: LoRALinear, part: int, heads: int, bias: bool) -> None:
    n = layer.out_features // 3
    chosen = slice(n * part, n * (part + 1))  # as query, key and value are taken
    generator = torch.Generator().manual_seed(2)
    shape = (5, layer.in_features) if heads == 1 else (heads, 5, layer.in_features)
    x, y = torch.randn(*shape, generator=generator), torch.randn(5, n, generator=generator)

    def parts(weight: Tensor, shift: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        each = weight[chosen].view(heads, -1, layer.in_features)
        outputs = torch.einsum("hmk,hnk->mhn", x.double().expand(heads, 5, -1), each).flatten(1)
        return outputs + shift[chosen] * bias, torch.einsum("mhn,hnk->hmk", y.double().view(5, heads, -1), each)

    outputs, inputs = parts(*dense(layer), x, y)
    size = parts(*dense(layer, size=True), x.abs(), y.abs())
    with torch.no_grad():
        assert error(layer.rows(x, chosen, heads, bias), outputs, size[0]) < 1e-6
        assert error(layer.onto(y, chosen, heads).view_as(inputs), inputs, size[1]) < 1e-6


# --- merging, and what is shared ---


@pytest.mark.parametrize("init", ["default", "book"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_merged_model_answers_as_the_model(scale: str, init: str) -> None:
    model = adapted(scale=scale, init=init, alpha=2, targets=["qkv", "out", "up", "down", "head"])
    merged = merge_lora(model)
    assert not any(isinstance(part, LoRALinear) for part in merged.modules())
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    with torch.no_grad():
        found, expected = merged(IDS), model(IDS)
        exact = model.double()(IDS)
    assert error(found, exact) < 1e-6
    assert error(found, expected) < 1e-6


def test_a_merged_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = adapted(blocks=2)
    merged = merge_lora(model)
    save_model(merged, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(IDS), merged(IDS))


@pytest.mark.parametrize("trainable", ["head", "last_block", "all"])
def test_the_model_beneath_never_changes(trainable: Any, tmp_path: Path) -> None:
    gpt2 = language_model()
    clf = classifier(gpt2)
    freeze(clf, trainable=trainable)
    before, flags = [state(model) for model in (gpt2, clf)], trainable_report(clf).names
    modules = [type(part) for part in clf.modules()]
    model = apply_lora(clf, rank=4, seed=1)
    assert [state(at) for at in (gpt2, clf)] == before
    run(model)
    assert any(layer.lora_B.weight.any() for _, layer in lora_layers(model))
    merge_lora(model)
    trained = state(model)
    assert [state(at) for at in (gpt2, clf)] == before
    assert trainable_report(clf).names == flags
    assert [type(part) for part in clf.modules()] == modules
    # And the other way: training the classifier leaves the adapted model as it was.
    run(clf)
    assert state(clf) != before[1]
    assert state(model) == trained
    assert state(gpt2) == before[0]


def test_adapters_over_one_classifier_own_their_factors_and_head_alone() -> None:
    clf = classifier()
    models = [apply_lora(clf, rank=4, blocks=blocks, seed=blocks) for blocks in (1, 2, 3)]
    for model in models:
        run(model, epochs=1)
    shared = {parameter.untyped_storage().data_ptr() for parameter in clf.parameters()}
    seen: set[int] = set()
    for model in models:
        memory = {name: parameter.untyped_storage().data_ptr() for name, parameter in model.named_parameters()}
        own = {name: at for name, at in memory.items() if at not in shared}
        assert set(own) == set(trainable_report(model).names)
        assert all("lora_" in name or name.startswith("head.") for name in own)
        assert not seen & set(own.values())
        seen |= set(own.values())


def test_a_new_model_first_answers_as_the_old_one() -> None:
    clf = classifier()
    with torch.no_grad():
        for init in ("default", "book"):
            assert torch.equal(apply_lora(clf, 4, init=init, seed=1)(IDS), clf(IDS))


def test_modes_are_kept() -> None:
    assert not apply_lora(classifier().eval(), seed=1).training
    model = apply_lora(classifier().train(), seed=1)
    assert all(part.training for part in model.modules())


def test_factors_are_determined_by_the_seed() -> None:
    torch.manual_seed(1)
    first, again = adapted(seed=4), adapted(seed=4)
    assert state(first) == state(again)
    assert state(first) != state(adapted(seed=5))
    drawn = [apply_lora(classifier(), rank=4) for _ in range(2)]
    assert state(drawn[0]) != state(drawn[1])


# --- training ---


def test_factors_on_the_last_blocks_keep_the_fast_paths() -> None:
    model = adapted(blocks=1)
    prefix = prefix_of(model, "float32")
    assert isinstance(prefix, FrozenPrefix)
    assert prefix.depth == 3
    assert can_pool(model.trunk.blocks[-1])
    learner = Learner(model, prefix.depth, training=True)
    assert can_pool(learner.blocks[-1])


def test_dropout_takes_the_general_path_and_is_drawn_from_the_seed() -> None:
    def trained(seed: int, rate: float = 0.4) -> dict[str, bytes]:
        model = adapted(blocks=1, dropout=rate)
        run(model, seed=seed)
        return state(model)

    model = adapted(blocks=1, dropout=0.4)
    assert can_pool(model.trunk.blocks[-1])  # answers draw nothing
    assert not can_pool(Learner(model, 3, training=True).blocks[-1])
    torch.manual_seed(1)
    first = trained(5)
    torch.manual_seed(2)
    assert trained(5) == first
    assert trained(5, 0.0) != first
    assert np.array_equal(answers(adapted(dropout=0.4)), answers(adapted()))


def test_everything_dropped_is_the_model_beneath() -> None:
    clf = classifier()
    model = adapted(base=clf, dropout=1.0).train()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), clf(IDS))


class Die(Callback):
    """Kills the process at a step, or stops the run."""

    def __init__(self, step: int, kill: bool) -> None:
        self.step, self.kill = step, kill

    def on_step(self, run: Run, step: Step) -> None:
        if step.step == self.step and self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        elif step.step == self.step:
            run.stop()


@pytest.mark.parametrize("options", [{"blocks": 1}, {"dropout": 0.3, "init": "book", "targets": ["qkv", "head"]}])
def test_a_run_that_was_cut_off_resumes_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    straight, resumed = adapted(**options), adapted(**options)
    whole = run(straight)
    kept = {"checkpoint_dir": tmp_path, "checkpoint_every": 2, "resume": True}
    if hasattr(os, "fork"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forking: the child only computes and dies
            child = os.fork()
        if child == 0:
            try:
                run(adapted(**options), callbacks=[Die(3, kill=True)], **kept)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert run(adapted(**options), callbacks=[Die(5, kill=False)], **kept).stopped == "stopped"
    history = run(resumed, **kept)
    assert [step.loss for step in history.steps] == [step.loss for step in whole.steps]
    assert state(resumed) == state(straight)


def test_a_language_model_generates_alike_with_and_without_the_cache() -> None:
    model = stirred(apply_lora(language_model(), rank=4, init="book", seed=2))
    without, with_cache = (generate_ids(model, IDS, 15, use_cache=cached) for cached in (False, True))
    assert torch.equal(without, with_cache)
    assert torch.equal(with_cache, generate_ids(merge_lora(model), IDS, 15))
    assert not torch.equal(with_cache, generate_ids(language_model(), IDS, 15))


def test_a_language_model_trains_its_factors_alone() -> None:
    gpt2 = language_model()
    model, before = apply_lora(gpt2, rank=4, seed=2), state(gpt2)
    windows = TextWindows(" ".join(TEXTS) * 3, tokenizer=byte_tokenizer(), length=16)
    history = train_lm(model, windows, epochs=2, lr=1e-2, progress=False)
    assert history.steps[-1].loss < history.steps[0].loss
    after = state(model)
    assert {name for name in before if before[name] != after.get(name, before[name])} == set()
    assert state(gpt2) == before


# --- stale features and answers ---


def changed_factor(model: GPT2) -> GPT2:
    with torch.no_grad():
        first_layer(model).lora_A.weight[0, 0] += 1.0
    return model


def changed_scale(model: GPT2) -> GPT2:
    first_layer(model).alpha *= 2
    return model


def replaced_layer(model: GPT2) -> GPT2:
    block: Any = model.trunk.blocks[0]
    weight, bias = block.attention.qkv.base.merged()
    block.attention.qkv = Linear(24, 72)
    with torch.no_grad():
        block.attention.qkv.weight.copy_(weight)
        block.attention.qkv.bias.copy_(bias)
    freeze(model, trainable="head")
    return model


def merged_head_trains(model: GPT2) -> GPT2:
    merged = merge_lora(model)
    freeze(merged, trainable="head")
    return merged


CHANGES: dict[str, Callable[[GPT2], GPT2]] = {
    "a factor": changed_factor,
    "alpha": changed_scale,
    "a layer": replaced_layer,
    "merged": merged_head_trains,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_features_behind_changed_factors_are_never_used(change: Callable[[GPT2], GPT2]) -> None:
    # Frozen factors beneath a trainable head: their features are kept.
    model = adapted(blocks=[0], targets="qkv")
    freeze(model, trainable="head")
    prefix = prefix_of(model, "float32")
    assert isinstance(prefix, FrozenPrefix)
    identity = prefix.identity()
    model.head.forget_fresh()
    evaluation, told = evaluate(model, rows(), precision="float32"), answers(model)
    np.testing.assert_allclose(evaluation.probabilities, told, rtol=1e-4, atol=1e-5)
    run(model, epochs=1, lr=0.0)
    changed = change(model)
    again = prefix_of(changed, "float32")
    assert isinstance(again, FrozenPrefix)
    assert again.identity() != identity
    after = evaluate(changed, rows(), precision="float32").probabilities
    np.testing.assert_allclose(after, answers(changed), rtol=1e-4, atol=1e-5)
    if change is not merged_head_trains:
        assert float(np.abs(after - evaluation.probabilities).max()) > 1e-4
    reused, plain = (run(changed, epochs=1, lr=0.0, reuse_frozen=reuse).steps for reuse in (True, False))
    np.testing.assert_allclose([step.loss for step in reused], [step.loss for step in plain], rtol=0, atol=1e-5)


def test_answers_follow_a_factor_at_once() -> None:
    model = adapted(blocks=2)
    before = answers(model)
    model = changed_factor(model)
    assert not np.array_equal(answers(model), before)
    np.testing.assert_allclose(answers(model), answers(merge_lora(model)), rtol=1e-4, atol=1e-6)


# --- trainable parameters ---


def test_factors_and_head_train() -> None:
    model = apply_lora(classifier(), rank=4, blocks=1, targets="qkv", seed=1)
    names = trainable_report(model).names
    path = "trunk.blocks.2.attention.qkv"
    assert names == [f"{path}.lora_A.weight", f"{path}.lora_B.weight", "head.output.weight", "head.output.bias"]
    assert policy_of(model) == "lora"
    assert str(trainable_report(model)).endswith("blocks.2, head")
    freeze(model, trainable="all")
    freeze(model, trainable="head")
    assert trainable_report(model).names == names[2:]
    freeze(model, trainable="lora")
    assert trainable_report(model).names == names
    freeze(model, trainable="blocks.*.lora_*")
    assert trainable_report(model).names == names[:2]


def test_a_language_models_matrix_stays_frozen() -> None:
    untied = CONFIG.replace(tied=False)
    for config in (CONFIG, untied):
        names = trainable_report(apply_lora(language_model(config), rank=2, seed=1)).names
        assert all("lora_" in name for name in names)
    names = trainable_report(apply_lora(language_model(untied), rank=2, targets="head", seed=1)).names
    assert names == ["head.output.lora_A.weight", "head.output.lora_B.weight"]


def test_a_new_head_keeps_the_factors() -> None:
    model = adapted(blocks=2, targets="qkv")
    before = state(model)
    other = add_classifier_head(model, num_classes=3, seed=1)
    assert [name for name, _ in lora_layers(other)] == [name for name, _ in lora_layers(model)]
    with torch.no_grad():
        assert torch.equal(other.hidden_states(IDS), model.hidden_states(IDS))
    freeze(other, trainable="lora")
    clf_rows = TextDataset(TEXTS, [i % 3 for i in range(12)], tokenizer=byte_tokenizer(), classes=[0, 1, 2])
    train(other, clf_rows, epochs=1, lr=1e-2, progress=False)
    assert state(model) == before
    assert len(predict(other, TEXTS)) == 12


# --- what is refused ---


def refused(kind: type[Exception], match: str, model: Any = None, **options: Any) -> None:
    model = classifier() if model is None else model
    before = state(model) if isinstance(model, GPT2) else None
    with pytest.raises(kind, match=match):
        apply_lora(model, **options)
    assert before is None or (state(model) == before and not list(lora_layers(model)))


def test_ranks_are_whole_numbers_that_fit() -> None:
    for rank in (0, -1):
        refused(ValueError, f"rank is {rank}; it must be an integer of at least 1", rank=rank)
    for wrong in (True, "8", 2.0, None):
        refused(TypeError, "it must be an integer of at least 1", rank=wrong)
    refused(
        ValueError, r"rank is 57, but trunk\.blocks\.0\.mlp\.up is only 56 wide; give 1 to 56", rank=57, targets="up"
    )
    refused(ValueError, "rank is 0", rank={"qkv": 0, "*": 2})
    refused(ValueError, r"rank has no key for trunk\.blocks\.0\.attention\.out; .*'\*'", rank={"qkv": 2})
    refused(ValueError, "alpha has no key", alpha={3: 2, "mlp": 4})
    # As in the book: more than the head has outputs.
    assert apply_lora(classifier(), rank=16, targets="head", seed=1).classes == ["ham", "spam"]


def test_other_numbers_are_within_their_bounds() -> None:
    for alpha in (0, -1, float("nan"), float("inf")):
        refused(ValueError, "alpha is .*; it must be a finite number above 0", alpha=alpha)
    refused(TypeError, "alpha is '16'", alpha="16")
    for dropout in (-0.1, 1.1, float("nan")):
        refused(ValueError, "dropout is", dropout=dropout)
    refused(ValueError, "scale is 'rank'; it must be one of alpha/rank", scale="rank")
    refused(ValueError, "init is 'pissa'; it must be one of default, book", init="pissa")
    refused(TypeError, "init is None", init=None)
    refused(ValueError, "seed is -1", seed=-1)


def test_targets_are_names_that_match() -> None:
    refused(ValueError, r"'key' matches no matrix of the model; there are blocks\.0\.attention\.qkv", targets="key")
    refused(ValueError, "targets: 'norm1' matches no matrix", targets=["qkv", "norm1"])
    refused(ValueError, r"'blocks\.0' matches no matrix of blocks 1", targets="blocks.0", blocks=1)
    for empty in ("", [], ["qkv", ""]):
        refused(ValueError, "give names or patterns of matrices", targets=empty)
    for wrong in ([3], None, 3):
        refused(TypeError, "give names or patterns of matrices", targets=wrong)
    tied = r"'head' matches no matrix.*a tied language model's head has no matrix of its own"
    refused(ValueError, tied, language_model(), targets="head")
    chosen = apply_lora(classifier(), rank=2, targets=("blocks.*.attention.out", "mlp", "blocks.0"), seed=1)
    assert len(list(lora_layers(chosen))) == 3 * 3 + 1


def test_blocks_are_numbers_of_blocks() -> None:
    for wrong in (True, "1", 1.5, b"1"):
        refused(TypeError, "blocks is", blocks=wrong)
    for outside in (0, 4, -1, [3], [-4], range(2, 5)):
        refused(ValueError, "it must be an integer of at least", blocks=outside)
    nothing: list[Any] = [[], range(0)]
    for empty in nothing:
        refused(ValueError, "which names no block; this model has blocks 0 to 2", blocks=empty)
    refused(TypeError, "blocks is", blocks=[0, True])

    def chosen(blocks: Any) -> set[int]:
        model = apply_lora(classifier(), rank=2, targets="qkv", blocks=blocks, seed=1)
        return {int(name.split(".")[2]) for name, _ in lora_layers(model)}

    assert chosen(None) == {0, 1, 2}
    assert chosen(2) == chosen(np.int64(2)) == chosen([-1, 1, 2]) == chosen(np.array([1, 2])) == {1, 2}
    assert chosen(range(2)) == chosen([-3, 1]) == {0, 1}


def test_models_without_factors_and_float32_are_asked_for() -> None:
    refused(TypeError, "model is a str", "gpt2")
    refused(TypeError, "model is a Linear", torch.nn.Linear(2, 2))
    refused(ValueError, r"weights are torch\.bfloat16", classifier().bfloat16())
    model = adapted()
    with pytest.raises(ValueError, match=r"has LoRA layers already, such as trunk.*merge_lora"):
        apply_lora(model)
    assert apply_lora(merge_lora(model), seed=1).classes == ["ham", "spam"]
    with pytest.raises(ValueError, match="has no LoRA layers, so there is nothing to merge"):
        merge_lora(classifier())
    with pytest.raises(TypeError, match="model is a str"):
        merge_lora("gpt2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs a model with LoRA layers.*apply_lora"):
        freeze(classifier_of(CONFIG, ["a", "b"]), trainable="lora")


def test_a_learner_follows_a_frozen_matrix_that_changes() -> None:
    """A learner's layers keep frozen matrices cast from step to step."""
    clf = stirred(adapted())
    learner = Learner(clf, training=True, keep_gradients=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        before = learner(IDS)
        clf.get_parameter("trunk.blocks.1.mlp.up.base.weight").mul_(2)
        after = learner(IDS)
        expected = Learner(clf, training=True, keep_gradients=True)(IDS)
    assert not torch.equal(before, after)
    assert torch.equal(after, expected)


def test_no_rows_give_no_answers() -> None:
    clf = adapted()
    assert clf(IDS[:0]).shape == (0, clf.task.n_outputs)
