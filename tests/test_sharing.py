"""A second model over the same tensors: everything in it comes along, and neither changes the other."""

import copy
import functools
import gc
import types
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import byte_gpt2, byte_tokenizer, randomised
from stand_ins import Doubled, EightBit, LowRank, borrowed_names
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config, Head, TextDataset, add_classifier_head, evaluate, freeze, predict_proba, train
from gptclf.gpt2.heads import pool
from gptclf.gpt2.learner import Learner
from gptclf.gpt2.sharing import borrow, is_borrowed, mark_borrowed, own_parameters, set_parameter, twin, twins
from gptclf.gpt2.trunk import Block

IDS = torch.randint(257, (2, 9), generator=torch.Generator().manual_seed(0))


def block_of(model: GPT2, number: int) -> Block:
    block = model.trunk.blocks[number]
    assert isinstance(block, Block)
    return block


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def take_steps(model: GPT2, n: int = 2) -> None:
    """Train a language model or a classifier in a plain loop, with a rate that changes every parameter."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(n):
        outputs = model(IDS)
        targets = IDS if model.classes is None else torch.tensor([0, 1])
        optimizer.zero_grad()
        F.cross_entropy(outputs.flatten(0, -2), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


class Scaled(nn.Module):
    """A foreign block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.factor = block, nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.register_buffer("shift", torch.tensor(0.25))

    def forward(self, x: Tensor, *given: Any) -> Tensor:
        return self.block(x, *given) * self.factor + self.shift  # type: ignore[no-any-return]


def with_foreign_parts(model: GPT2) -> GPT2:
    """Adapters, an 8-bit layer, a layer and a block of another class, a longer norm, and two hooks."""
    block = block_of(model, 0)
    block.mlp.up = LowRank(block.mlp.up).requires_grad_(False)
    block.mlp.down = EightBit(block.mlp.down)
    block_of(model, 1).attention.qkv = Doubled.of(block_of(model, 1).attention.qkv)
    model.trunk.blocks[2] = Scaled(model.trunk.blocks[2])
    model.trunk.norm = nn.Sequential(model.trunk.norm, nn.LayerNorm(64, eps=0.5)).requires_grad_(False)  # type: ignore[assignment]
    block_of(model, 1).mlp.register_forward_hook(lambda module, given, y: y * 1.5)
    block_of(model, 0).attention.register_forward_pre_hook(lambda module, given: (given[0] + 0.1, *given[1:]))
    return model


# What comes along


def test_layers_that_were_replaced_come_along_under_a_new_head() -> None:
    gpt2 = with_foreign_parts(randomised(byte_gpt2()))
    clf = add_classifier_head(gpt2, classes=["a", "b"], seed=1)
    with torch.no_grad():
        assert torch.equal(clf.trunk(IDS), gpt2.trunk(IDS))
        assert torch.equal(clf.hidden_states(IDS), gpt2.hidden_states(IDS))
    assert [type(part) for part in clf.trunk.modules()] == [type(part) for part in gpt2.trunk.modules()]
    second = add_classifier_head(clf, classes=["x", "y", "z"], seed=2)
    with torch.no_grad():
        assert torch.equal(second.trunk(IDS), gpt2.trunk(IDS))
    assert not {id(part) for part in clf.modules()} & {id(part) for part in gpt2.modules()}


def test_adapters_of_a_classifier_are_used_under_its_second_head() -> None:
    gpt2 = byte_gpt2()
    first = add_classifier_head(gpt2, classes=["a", "b"], seed=1)
    plain = add_classifier_head(first, classes=["x", "y"], seed=2)
    block_of(first, 1).mlp.up = LowRank(block_of(first, 1).mlp.up)
    second = add_classifier_head(first, classes=["x", "y"], seed=2)
    for clf in (plain, second):
        clf.head.forget_fresh()
    assert {"trunk.blocks.1.mlp.up.down.weight", "trunk.blocks.1.mlp.up.up.weight"} <= second.state_dict().keys()
    texts = ["one", "", "three of them"]
    with torch.no_grad():
        expected = [second.head(first.trunk(ids[None]), None).softmax(-1)[0] for ids in map(encode, texts)]
    found = torch.from_numpy(predict_proba(second, texts, precision="float32"))
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)
    assert (found - torch.from_numpy(predict_proba(plain, texts, precision="float32"))).abs().max() > 1e-5


def encode(text: str) -> Tensor:
    encoding = byte_tokenizer()
    return torch.tensor(encoding.encode(text) or [encoding.eot_token])


def test_a_borrowed_module_has_the_same_memory_its_own_flags_and_is_frozen() -> None:
    gpt2 = randomised(byte_gpt2())
    copied = borrow(gpt2)
    for name, theirs in gpt2.named_parameters():
        ours = copied.get_parameter(name)
        assert ours is not theirs
        assert ours.data_ptr() == theirs.data_ptr()
        assert not ours.requires_grad
    assert borrowed_names(copied) == {name for name, _ in copied.named_parameters()}
    copied.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in gpt2.parameters())
    copied.train()
    assert not any(part.training for part in gpt2.modules())
    handle = gpt2.trunk.register_forward_hook(lambda *_: None)
    assert not copied.trunk._forward_hooks
    handle.remove()
    copied.trunk.blocks[0] = nn.Identity()
    assert isinstance(gpt2.trunk.blocks[0], Block)
    assert (copied.config, copied.task, copied.tokenizer) == (gpt2.config, gpt2.task, gpt2.tokenizer)


def test_what_the_source_trains_is_copied_at_once() -> None:
    gpt2 = byte_gpt2()
    freeze(gpt2, trainable="norm")
    copied = borrow(gpt2)
    trained = {"trunk.norm.weight", "trunk.norm.bias"}
    assert borrowed_names(copied) == {name for name, _ in gpt2.named_parameters()} - trained
    for name in trained:
        assert copied.get_parameter(name).data_ptr() != gpt2.get_parameter(name).data_ptr()
        assert torch.equal(copied.get_parameter(name), gpt2.get_parameter(name))


@pytest.mark.parametrize("make", [borrow, twin])
def test_a_tied_matrix_stays_tied(make: Callable[[GPT2], GPT2]) -> None:
    gpt2 = randomised(byte_gpt2())
    copied = make(gpt2)
    assert copied.head.weight is copied.trunk.embed.token.weight
    assert (copied.head.weight is gpt2.head.weight) == (make is twin)
    with torch.no_grad():
        assert torch.equal(copied(IDS), gpt2(IDS))


# References inside the tree


class Neighbour(nn.Module):
    """Refers to other modules and parameters of its tree in many ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.shared = self.layer.weight  # one Parameter under two names
        self.tuple = (self.layer, [self.other, {"deep": self.layer.bias}])
        self.dictionary: dict[Any, Any] = {"layer": self.layer, self.other: "as a key"}
        self.ordered = OrderedDict(layer=self.layer)
        self.set = {self.layer, self.other}
        self.named = Pair(self.layer, 5)
        self.method = self.other.forward
        self.partial = functools.partial(F.linear, weight=self.layer.weight)
        self.bound_partial = functools.partial(self.other.forward)
        self.weak = weakref.ref(self.layer)
        self.proxy = weakref.proxy(self.layer)
        layer = self.layer
        self.closure = functools.wraps(F.linear)(lambda x: layer(x))
        self.default = lambda x, other=self.other, *, more=self.layer: more(other(x))
        self.numbers = {"n": [1, 2]}
        self.layer.register_forward_hook(self.hook)
        self.calls: list[int] = []

    def hook(self, module: nn.Module, given: Any, y: Tensor) -> Tensor:
        self.calls.append(1)
        return self.other(y)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.partial(x) + self.method(x)  # type: ignore[no-any-return]


Pair = namedtuple("Pair", ["layer", "number"])


@pytest.mark.parametrize("make", [borrow, twin])
def test_every_reference_inside_the_tree_leads_to_the_copys_own(make: Callable[[nn.Module], nn.Module]) -> None:
    source: Any = Neighbour().requires_grad_(False)
    copied: Any = make(source)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copied(x), source(x))
    assert source.layer is not copied.layer
    assert copied.shared is copied.layer.weight
    assert copied.tuple[0] is copied.layer
    assert copied.tuple[1][0] is copied.other
    assert copied.tuple[1][1]["deep"] is copied.layer.bias
    assert copied.dictionary == {"layer": copied.layer, copied.other: "as a key"}
    assert type(copied.ordered) is OrderedDict
    assert copied.ordered["layer"] is copied.layer
    assert copied.set == {copied.layer, copied.other}
    assert copied.named == Pair(copied.layer, 5)
    assert type(copied.named) is Pair
    assert copied.method.__self__ is copied.other
    assert copied.partial.keywords["weight"] is copied.layer.weight
    assert copied.bound_partial.func.__self__ is copied.other
    assert copied.weak() is copied.layer
    assert copied.proxy.weight is copied.layer.weight
    assert copied.proxy.forward.__self__ is copied.layer
    assert gc.get_referents(*copied.closure.__closure__) == [copied.layer]
    assert copied.closure.__wrapped__ is F.linear
    assert copied.default.__defaults__ == (copied.other,)
    assert copied.default.__kwdefaults__ == {"more": copied.layer}
    assert torch.equal(copied.default(x), source.default(x))
    (hook,) = copied.layer._forward_hooks.values()
    assert hook.__self__ is copied
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in source.named_parameters()]


def test_what_the_copy_computes_is_its_own_after_it_changed() -> None:
    source = Neighbour().requires_grad_(False)
    copied = borrow(source)
    own_parameters(copied)
    x = torch.randn(2, 3)
    before = source(x)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(source(x), before)
    assert not copied(x).any()


def test_a_sibling_in_several_modules_is_one_copy() -> None:
    layer = nn.Linear(3, 3)
    one, two = nn.Sequential(layer), nn.Sequential(layer, nn.ReLU())
    first, second = twins([one, two])
    assert first[0] is second[0]  # type: ignore[index]
    assert first[0] is not layer  # type: ignore[index]
    assert first[0].weight is layer.weight  # type: ignore[index]


class Opaque:
    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def refer_by_object(module: Any) -> None:
    module.opaque = Opaque(module.layer)


def refer_by_method_of_an_object(module: Any) -> None:
    def call(self: Opaque) -> nn.Module:
        return self.layer

    module.call = types.MethodType(call, Opaque(module.layer))


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *given: Any) -> Any:
        return self.layer(given[-1])


def refer_by_slot(module: Any) -> None:
    module.slotted = Slotted(module.layer)


def refer_by_hook_with_a_slot(module: Any) -> None:
    module.layer.register_forward_hook(Slotted(module.other))


def refer_by_deque(module: Any) -> None:
    module.many = deque([module.layer])


def refer_by_weak_set(module: Any) -> None:
    module.weak = weakref.WeakSet([module.layer])


def refer_by_weak_values(module: Any) -> None:
    module.weak = weakref.WeakValueDictionary(layer=module.layer)


def refer_by_mapping_proxy(module: Any) -> None:
    module.table = types.MappingProxyType({"layer": module.layer})


def refer_by_values(module: Any) -> None:
    module.table = {"layer": module.layer}.values()


def refer_by_iterator(module: Any) -> None:
    module.many = iter([module.layer])


def refer_by_generator(module: Any) -> None:
    module.many = (layer for layer in [module.layer])


def refer_by_deep_objects(module: Any) -> None:
    deep = module.layer
    for _ in range(9):
        deep = types.SimpleNamespace(inner=deep)
    module.deep = deep


def refer_by_view(module: Any) -> None:
    module.view = module.layer.weight.detach()[0]


def refer_by_data(module: Any) -> None:
    module.view = [module.layer.weight.data]


def refer_by_object_in_a_list(module: Any) -> None:
    module.many = [1, Opaque(module.layer.weight)]


def refer_by_a_list_in_itself(module: Any) -> None:
    module.many = [module.layer]
    module.many.append(module.many)


def refer_by_outer_module(module: Any) -> None:
    module.around = (nn.Sequential(module.layer),)


class Pointing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("refer", "attribute"),
    [
        (refer_by_object, "opaque"),
        (refer_by_method_of_an_object, "call"),
        (refer_by_slot, "slotted"),
        (refer_by_hook_with_a_slot, "layer._forward_hooks"),
        (refer_by_deque, "many"),
        (refer_by_weak_set, "weak"),
        (refer_by_weak_values, "weak"),
        (refer_by_mapping_proxy, "table"),
        (refer_by_values, "table"),
        (refer_by_iterator, "many"),
        (refer_by_generator, "many"),
        (refer_by_deep_objects, "deep"),
        (refer_by_view, "view"),
        (refer_by_data, "view"),
        (refer_by_object_in_a_list, "many"),
        (refer_by_a_list_in_itself, "many"),
        (refer_by_outer_module, "around"),
    ],
)
def test_a_reference_that_cannot_be_followed_is_refused_by_name(refer: Callable[[Any], None], attribute: str) -> None:
    module = Pointing()
    refer(module)
    with pytest.raises(TypeError, match=rf"{attribute} refers to another part of the model through .*keep the"):
        borrow(module)
    twin(module)  # over the same parameters a reference to the other's module computes the same


def test_a_classifier_over_a_model_with_such_a_reference_is_refused_by_name() -> None:
    gpt2 = byte_gpt2()
    gpt2.trunk.blocks[2].register_forward_hook(Slotted(gpt2.trunk.blocks[0]))
    with pytest.raises(TypeError, match=r"trunk\.blocks\.2\._forward_hooks refers to another part of the model"):
        add_classifier_head(gpt2, num_classes=2, seed=1)


def test_a_closure_keeps_the_variables_that_refer_to_nothing_inside() -> None:
    module: Any = Pointing()
    calls, layer = 0, module.layer

    def call(x: Tensor) -> Any:
        nonlocal calls
        calls += 1
        return layer(x)

    module.call = call
    borrow(module).call(torch.zeros(1, 3))
    module.call(torch.zeros(1, 3))
    assert calls == 2


class InSlots(nn.Module):
    __slots__ = ("__hidden", "layer_again", "unset")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        object.__setattr__(self, "layer_again", self.layer)
        self.__hidden = 5

    def hidden(self) -> int:
        return self.__hidden


@pytest.mark.parametrize("make", [borrow, twin])
def test_slots_come_along(make: Callable[[nn.Module], nn.Module]) -> None:
    copied: Any = make(InSlots())
    assert copied.layer_again is copied.layer
    assert copied.hidden() == 5
    assert not hasattr(copied, "unset")


@pytest.mark.parametrize("make", [borrow, twin])
def test_a_parametrised_copy_has_a_class_of_its_own(make: Callable[[nn.Module], nn.Module]) -> None:
    source = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    x = torch.randn(2, 3)
    expected = source(x)
    copied = make(source)
    nn.utils.parametrize.remove_parametrizations(copied, "weight")
    assert torch.equal(source(x), expected)
    torch.testing.assert_close(copied(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_is_refused_by_name_where_it_would_be_lent() -> None:
    model: Any = byte_gpt2()
    model.head.extra = torch.jit.script(nn.Linear(3, 3))
    for copied in (lambda: borrow(model), lambda: add_classifier_head(model, num_classes=2)):
        with pytest.raises(TypeError, match="extra is scripted"):
            copied()
    learner: Any = Learner(model)  # over the same parameters, the scripted module itself serves
    assert learner.head.extra is model.head.extra
    with torch.no_grad():
        torch.testing.assert_close(learner(IDS), model(IDS))


def test_functions_and_objects_that_refer_to_nothing_inside_stay() -> None:
    module: Any = Pointing()
    factor, outside = 2.0, Opaque(nn.Linear(2, 2))
    module.call, module.outside, module.kind = lambda x: factor * x, outside, nn.Linear
    module.around_itself = {"n": 1}
    module.around_itself["me"] = module.around_itself
    copied: Any = borrow(module)
    assert copied.call is module.call
    assert copied.outside is outside
    assert copied.kind is nn.Linear
    assert copied.around_itself is module.around_itself


# Neither changes the other


def test_training_all_of_a_borrowed_language_model_keeps_its_tie_and_the_sources_bits() -> None:
    gpt2 = randomised(byte_gpt2())
    before, answered = snapshot(gpt2), gpt2(IDS)
    copied = borrow(gpt2)
    freeze(copied, trainable="all")
    assert not borrowed_names(copied)
    take_steps(copied)
    assert changed(copied, before) == set(before)
    assert copied.head.weight is copied.trunk.embed.token.weight
    hidden = copied.hidden_states(IDS)
    torch.testing.assert_close(copied(IDS), hidden @ copied.trunk.embed.token.weight.mT)
    assert not changed(gpt2, before)
    assert torch.equal(gpt2(IDS), answered)


def test_the_source_trains_and_what_was_borrowed_of_it_stays() -> None:
    gpt2 = randomised(GPT2(byte_gpt2().config, seed=0)).requires_grad_(False)
    copied = borrow(gpt2)
    before = snapshot(copied)
    for trainable in ("head", "norm", "all"):
        if trainable != "head":  # a tied head has nothing to train
            freeze(gpt2, trainable=trainable)
            take_steps(gpt2)
            assert not changed(copied, before)
    assert changed(gpt2, before) == set(before)


def test_a_chain_of_borrowed_models_is_free_at_every_link() -> None:
    first = randomised(byte_gpt2())
    second = borrow(first)
    third = borrow(second)
    before = snapshot(first)
    freeze(second, trainable="all")
    take_steps(second)
    assert not changed(first, before)
    assert not changed(third, before)
    freeze(first, trainable="all")
    take_steps(first)
    assert not changed(third, before)


def zeros(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        lambda model: model,
        lambda model: model.trunk,
        lambda model: model.trunk.blocks[1],
        lambda model: model.trunk.embed.token,
        lambda model: nn.Sequential(model),
        lambda model: nn.ModuleDict({"inner": nn.Sequential(model.trunk)}),
    ],
    ids=["model", "trunk", "block", "layer", "wrapper", "deep wrapper"],
)
@pytest.mark.parametrize("into", ["copy", "source"])
def test_a_state_dict_loaded_into_one_leaves_the_other_alone(
    into: str, part: Callable[[GPT2], nn.Module], assign: bool
) -> None:
    gpt2 = randomised(GPT2(byte_gpt2().config, seed=0)).requires_grad_(False)
    copied = borrow(gpt2)
    before = snapshot(gpt2)
    ours, other = (copied, gpt2) if into == "copy" else (gpt2, copied)
    module = part(ours)
    module.load_state_dict(zeros(module), assign=assign)
    assert not any(tensor.any() for tensor in module.state_dict().values())
    assert not changed(other, before)


def test_a_state_dict_loaded_into_a_classifier_leaves_its_language_model_alone() -> None:
    gpt2 = with_foreign_parts(randomised(byte_gpt2()))
    before = snapshot(gpt2)
    clf = add_classifier_head(gpt2, num_classes=2, seed=1)
    clf.load_state_dict({name: tensor for name, tensor in zeros(clf).items() if "quantised" not in name}, strict=False)
    assert not changed(gpt2, before)


@pytest.mark.parametrize(
    "part",
    [
        lambda model: model,
        lambda model: model.trunk,
        lambda model: model.trunk.blocks[2],
        lambda model: model.trunk.blocks[2].mlp,
        lambda model: model.trunk.norm,
        lambda model: nn.Sequential(model),
    ],
    ids=["model", "trunk", "block", "foreign", "norm", "wrapper"],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_assigned_tensors_stay_the_givers_alone(part: Callable[[GPT2], Any], fresh: bool) -> None:
    def with_layers(model: GPT2) -> GPT2:
        block_of(model, 2).mlp = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(9))  # type: ignore[assignment]
        return model.requires_grad_(False)

    gpt2 = with_layers(randomised(byte_gpt2()))
    taker = with_layers(GPT2(byte_gpt2().config, seed=1)) if fresh else borrow(gpt2)
    before = snapshot(gpt2)
    if fresh and part(taker) is block_of(taker, 2).mlp:
        return  # a module that the model has not seen yet is torch's
    part(taker).load_state_dict(part(gpt2).state_dict(), assign=True)
    assert not changed(part(taker), snapshot(part(gpt2)))
    freeze(taker, trainable="all")
    with torch.no_grad():
        for tensor in taker.state_dict(keep_vars=True).values():
            tensor.zero_()
    assert not changed(gpt2, before)


@pytest.mark.parametrize(
    "compute",
    [
        lambda model: model.trunk(IDS),
        lambda model: model.trunk.blocks[0](model.trunk.embed(IDS)),
        lambda model: model(IDS),
        lambda model: model.token_logits(IDS),
    ],
    ids=["trunk", "block", "model", "token_logits"],
)
@pytest.mark.parametrize("which", ["copy", "source"])
def test_no_gradient_is_computed_for_a_tensor_of_another_model(compute: Callable[[GPT2], Tensor], which: str) -> None:
    gpt2 = byte_gpt2()
    clf = add_classifier_head(gpt2, num_classes=2, seed=1)
    model = clf if which == "copy" else gpt2
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"is set to train, but its tensor .*freeze"):
        compute(model)
    with torch.no_grad():
        compute(model)
    freeze(model, trainable="all")
    compute(model).sum().backward()  # type: ignore[no-untyped-call]


def test_a_mark_survives_conversions_that_make_new_parameters() -> None:
    gpt2 = randomised(byte_gpt2())
    clf = add_classifier_head(gpt2, num_classes=2, seed=1)
    before = snapshot(gpt2)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        clf.trunk.float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert "trunk.blocks.0.mlp.up.weight" in borrowed_names(clf)
    freeze(clf, trainable="all")
    take_steps(clf)
    assert not changed(gpt2, before)


def test_a_parameter_that_still_holds_a_gradient_is_copied_at_once() -> None:
    gpt2 = randomised(byte_gpt2())
    freeze(gpt2, trainable="all")
    optimizer = torch.optim.SGD(gpt2.parameters(), lr=1.0)
    gpt2(IDS).sum().backward()
    gpt2.requires_grad_(False)
    clf = add_classifier_head(gpt2, num_classes=2, seed=1)
    before = snapshot(clf)
    optimizer.step()
    assert not changed(clf, before)


@pytest.mark.parametrize("trains", [False, True])
def test_one_head_in_two_models_is_two_heads(trains: bool) -> None:
    head = OwnHead().requires_grad_(trains)
    gpt2 = byte_gpt2()
    first = add_classifier_head(gpt2, num_classes=2, head=head)
    second, third = (add_classifier_head(gpt2, num_classes=2, head=given) for given in (head, first.head))
    before = snapshot(first), snapshot(third), snapshot(head)
    take_steps(second)
    assert not changed(first, before[0])
    assert not changed(third, before[1])
    assert not changed(head, before[2])


class OwnHead(Head):
    mean: Tensor

    def __init__(self, *_: int) -> None:
        super().__init__()
        self.dropout, self.output, self.calls = nn.Dropout(0.5), nn.Linear(64, 2), 0
        self.register_buffer("mean", torch.zeros(64))
        self.scales: list[Any] = []

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.dropout(pool(hidden, lengths, "mean"))
        if self.training:
            self.calls, self.last = self.calls + 1, x
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(dim=0)
        return self.output(x - self.mean)  # type: ignore[no-any-return]


def test_flags_are_independent_and_copies_come_once() -> None:
    gpt2 = byte_gpt2()
    one, two = borrow(gpt2), borrow(gpt2)
    freeze(one, trainable="blocks.1")
    assert not any(p.requires_grad for model in (gpt2, two) for p in model.parameters())
    place = one.get_parameter("trunk.blocks.1.mlp.up.weight").data_ptr()
    assert place != two.get_parameter("trunk.blocks.1.mlp.up.weight").data_ptr()
    freeze(one, trainable="all")
    assert one.get_parameter("trunk.blocks.1.mlp.up.weight").data_ptr() == place


def test_a_trained_classifier_over_foreign_layers_leaves_the_language_model_alone() -> None:
    gpt2 = with_foreign_parts(randomised(byte_gpt2()))
    before = snapshot(gpt2)
    clf = add_classifier_head(gpt2, classes=["a", "b"], seed=1)
    rows = TextDataset(["one", "two", "three!"], ["a", "b", "a"], tokenizer=byte_tokenizer(), classes=["a", "b"])
    of_clf = snapshot(clf)
    train(clf, rows, epochs=2, lr=1e-2, progress=False)
    moved = changed(clf, of_clf)
    assert "trunk.blocks.2.factor" in moved
    assert all(name.startswith(("trunk.blocks.2.", "trunk.norm.", "head.")) for name in moved)
    assert not changed(gpt2, before)
    evaluate(clf, rows)


# Marks


def test_a_deep_copy_owns_its_memory_and_has_no_mark() -> None:
    gpt2 = byte_gpt2()
    copied = copy.deepcopy(borrow(gpt2))
    assert not borrowed_names(copied)
    places = {parameter.data_ptr() for parameter in gpt2.parameters()}
    assert not places & {parameter.data_ptr() for parameter in copied.parameters()}


def test_a_mark_is_the_parameters_and_survives_what_wraps_the_module() -> None:
    layer = nn.Linear(2, 2)
    mark_borrowed(layer.get_parameter("weight"))
    assert borrowed_names(nn.Sequential(nn.Sequential(layer))) == {"0.0.weight"}
    assert is_borrowed(layer.to("cpu").weight)
    place = layer.weight.data_ptr()
    own_parameters(layer, {"bias"})
    assert layer.weight.data_ptr() == place
    own_parameters(layer, {"weight"})
    assert layer.weight.data_ptr() != place
    assert not is_borrowed(layer.weight)


@pytest.mark.parametrize("name", ["", "weigth", "trunk.blocks.9.mlp.up.weight", "trunk.embed.token.A", "trunk.embed"])
def test_a_parameter_that_the_model_lacks_cannot_be_set(name: str, odd_config: GPT2Config) -> None:
    model = GPT2(odd_config, device="meta")
    before = set(model.state_dict())
    with pytest.raises(KeyError, match=r"has no parameter .*; it has trunk\.embed\.token\.weight"):
        set_parameter(model, name, torch.zeros(2))
    assert set(model.state_dict()) == before


def test_a_parameter_that_is_set_is_frozen_borrowed_and_the_tensor_itself(odd_config: GPT2Config) -> None:
    model, tensor = GPT2(odd_config, device="meta"), torch.ones(24)
    parameter = set_parameter(model, "trunk.norm.weight", tensor)
    assert model.trunk.norm.weight is parameter
    assert parameter.data_ptr() == tensor.data_ptr()
    assert is_borrowed(parameter)
    assert not parameter.requires_grad


# Learners


def test_a_learner_is_a_tree_of_its_own_over_the_same_parameters() -> None:
    clf = add_classifier_head(randomised(byte_gpt2()), num_classes=2, seed=1)
    for depth in range(6):
        learner = Learner(clf, depth, training=True)
        assert all(part.training for part in learner.modules())
        assert not any(part.training for part in clf.modules())
        assert not {id(part) for part in learner.modules()} & {id(part) for part in clf.modules()}
        for name, parameter in learner.named_parameters():
            assert parameter is clf.get_parameter(name)
    whole = Learner(clf)
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in clf.named_parameters()]
    with torch.no_grad():
        assert torch.equal(whole(IDS), clf(IDS))


@pytest.mark.parametrize("depth", [0, 1])
def test_a_learner_is_stopped_before_it_changes_another_model(depth: int) -> None:
    clf = add_classifier_head(byte_gpt2(), num_classes=2, seed=1)
    block_of(clf, 1).requires_grad_(True)  # by hand, without freeze
    learner = Learner(clf, depth, training=True)
    inputs = torch.randn(2, 9, 64) if depth else IDS
    for compute in (learner, learner.hidden_states):
        with pytest.raises(ValueError, match=r"blocks\.1.*freeze"):
            compute(inputs)
        with torch.no_grad():
            compute(inputs)
    freeze(clf, trainable=2)
    learner(inputs).sum().backward()


@pytest.mark.parametrize("depth", [0, 2])
def test_a_buffer_that_training_replaces_is_the_models(depth: int) -> None:
    clf: Any = add_classifier_head(byte_gpt2(), num_classes=2, head=OwnHead)
    learner: Any = Learner(clf, depth, training=True, seed=1)
    for _ in range(3):
        learner(torch.randn(2, 9, 64) if depth else IDS)
        assert clf.head.mean is learner.head.mean
    assert clf.head.mean.any()
    assert dict(clf.named_buffers())["head.mean"] is learner.head.mean
    clf.head.mean = torch.ones(64)
    assert learner.head.mean.all()


@pytest.mark.parametrize("depth", [0, 2])
def test_plain_attributes_that_training_assigns_are_given_back(depth: int) -> None:
    clf: Any = add_classifier_head(byte_gpt2(), num_classes=2, head=OwnHead)
    clf.head.note = "theirs"
    learner: Any = Learner(clf, depth, training=True, seed=1)
    for _ in range(3):
        learner(torch.randn(2, 9, 64) if depth else IDS)
    clf.head.note = "changed meanwhile"
    learner.head.scales = [learner.head.output]
    learner.eval()
    learner.head.dropout.p = 0.1  # of a standard class: the learner's own
    learner.give_back()
    assert clf.head.calls == 3
    assert clf.head.note == "changed meanwhile"
    assert clf.head.scales == []
    assert not hasattr(clf.head, "last")
    assert clf.head.dropout.p == 0.5
    copy.deepcopy(clf)


def by_patched_forward(clf: GPT2) -> None:
    mlp: Any = block_of(clf, 1).mlp
    mlp.forward = lambda x, forward=mlp.forward: forward(x)


def by_closure_of_a_hook(clf: GPT2) -> None:
    dropout = nn.Dropout(0.5).eval()
    clf.head.dropout = dropout
    clf.head.register_forward_pre_hook(lambda module, given: (dropout(given[0]), *given[1:]))


def by_compiled_block(clf: GPT2) -> None:
    block_of(clf, 1).compile(backend="eager")


@pytest.mark.parametrize("change", [by_patched_forward, by_closure_of_a_hook, by_compiled_block])
def test_a_learner_trains_with_dropout_whatever_refers_to_its_modules(change: Callable[[GPT2], None]) -> None:
    gpt2 = randomised(byte_gpt2())
    if change is not by_closure_of_a_hook:
        block_of(gpt2, 1).mlp.dropout.p = 0.5
    clf = add_classifier_head(gpt2, num_classes=2, seed=1).eval()
    change(clf)
    learner = Learner(clf, training=True, seed=1)
    with torch.no_grad():
        expected = clf(IDS)
        assert not torch.equal(learner(IDS), learner(IDS))
        torch.testing.assert_close(learner.eval()(IDS), expected)
        torch.testing.assert_close(clf(IDS), expected)
    assert not any(part.training for part in clf.modules())


@pytest.mark.parametrize(("p", "warned"), [(0.5, True), (0.0, False)])
def test_a_learner_that_uses_the_models_dropout_says_so_by_name(
    p: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clf: Any = add_classifier_head(byte_gpt2(), num_classes=2, head=OwnHead)
    clf.head.dropout.p = p
    clf.head.opaque = Slotted(clf.head.dropout)
    Learner(clf)
    assert ("head.opaque refers to another part of the model through a Slotted" in caplog.text) == warned


class Recorder:
    """Holds the model and counts the calls of a block."""

    def __init__(self, model: GPT2) -> None:
        self.model, self.calls = model, 0
        model.trunk.blocks[0].register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1


def test_a_recorder_that_holds_the_model_sees_training() -> None:
    gpt2 = byte_gpt2(dropout=0.1)
    clf = add_classifier_head(gpt2, num_classes=2, seed=1)
    recorder = Recorder(clf)
    learner = Learner(clf, training=True, seed=1)
    learner(IDS)
    assert recorder.calls == 1
    with pytest.raises(TypeError, match="or remove the hook"):
        add_classifier_head(clf, num_classes=3, seed=1)


def test_a_learner_of_a_language_model_keeps_the_tie() -> None:
    gpt2 = randomised(byte_gpt2())
    learner = Learner(gpt2)
    assert learner.output_matrix is gpt2.trunk.embed.token.weight
    assert len(list(learner.parameters())) == len(list(gpt2.parameters()))
    with torch.no_grad():
        assert torch.equal(learner(IDS), gpt2(IDS))
