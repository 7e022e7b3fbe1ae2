"""The book's `GPTModel`: its published figure, its names both ways, its classifiers, its variants."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomised
from torch import Tensor, nn
from torch.nn import functional as F

from gptclf import GPT2, GPT2Config
from gptclf.files.torch_file import read_torch_file
from gptclf.gpt2.heads import ClassifierHead
from gptclf.gpt2.sharing import fill
from gptclf.tasks import SingleLabel
from gptclf.weights.book import is_book, read_book, to_book

IDS = torch.randint(257, (3, 17), generator=torch.Generator().manual_seed(5))
SMALL = {
    "vocab_size": 257,
    "context_length": 40,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": False,
}
BOOK_124M = {
    "vocab_size": 50257,
    "context_length": 256,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}

Settings = dict[str, Any]


class ReferenceNorm(nn.Module):
    """Layer norm with the book's names for gain and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.scale + self.shift


class ReferenceAttention(nn.Module):
    mask: Tensor

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width, length = settings["emb_dim"], settings["context_length"]
        self.heads = settings["n_heads"]
        for name in ("W_query", "W_key", "W_value"):
            setattr(self, name, nn.Linear(width, width, bias=settings["qkv_bias"]))
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(length, length).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        tokens, width = x.shape[1:]
        q, k, v = (
            getattr(self, name)(x).unflatten(2, (self.heads, -1)).movedim(2, 1)
            for name in ("W_query", "W_key", "W_value")
        )
        scores = q @ k.mT / (width // self.heads) ** 0.5 + self.mask[:tokens, :tokens].mul(-1e9)
        return self.out_proj((scores.softmax(-1) @ v).movedim(1, 2).flatten(2))  # type: ignore[no-any-return]


class ReferenceBlock(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings["emb_dim"]
        self.att = ReferenceAttention(settings)
        self.ff = nn.Module()
        self.ff.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.norm1, self.norm2 = ReferenceNorm(width), ReferenceNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))  # type: ignore[no-any-return,operator]


class Reference(nn.Module):
    """A network with the parameter names of the book's `GPTModel`, drawn in the same order by torch's defaults."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings["emb_dim"]
        self.tok_emb = nn.Embedding(settings["vocab_size"], width)
        self.pos_emb = nn.Embedding(settings["context_length"], width)
        self.trf_blocks = nn.Sequential(*(ReferenceBlock(settings) for _ in range(settings["n_layers"])))
        self.final_norm = ReferenceNorm(width)
        self.out_head = nn.Linear(width, settings["vocab_size"], bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))  # type: ignore[no-any-return]


class Product(nn.Module):
    """The book's low-rank product: its scale is alpha in early editions of the class, alpha / rank in later ones."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, by_rank: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(layer.in_features, rank))
        self.B = nn.Parameter(torch.zeros(rank, layer.out_features))
        self.alpha, self.divisor = alpha, rank if by_rank else 1

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A @ self.B * self.alpha / self.divisor


class WithFactors(nn.Module):
    def __init__(self, layer: nn.Linear, **options: Any) -> None:
        super().__init__()
        self.linear, self.lora = layer, Product(layer, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora(x)  # type: ignore[no-any-return]


def the_books_own(settings: Settings) -> nn.Module:
    chapter = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
    return chapter.GPTModel(settings)  # type: ignore[no-any-return]


Build = Callable[[Settings], nn.Module]
both = pytest.mark.parametrize("build", [Reference, the_books_own], ids=["reference", "package"])


def small(build: Build = Reference, **changes: Any) -> nn.Module:
    """A small model with noise everywhere, so that no shift is 0 and no scale 1."""
    torch.manual_seed(3)
    return randomised(build({**SMALL, **changes}).eval())  # type: ignore[arg-type]


def classifier(config: GPT2Config, classes: int, *, bias: bool, **options: Any) -> GPT2:
    head = ClassifierHead(config.emb_dim, classes, bias=bias)
    return GPT2(config, task=SingleLabel(range(classes)), head=head, **options)


def as_ours(tensors: dict[str, Tensor], config: Any = None) -> GPT2:
    complete, ours, classes = read_book(tensors, config, source="model.pth")
    model = GPT2(complete, device="meta")
    if classes is not None:
        model = classifier(complete, classes, bias="head.output.bias" in ours, device="meta")
    fill(model, ours)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids)  # type: ignore[no-any-return]


class TestPublishedFigure:
    """Book section 5.1.2 prints the loss of an untrained model, which depends only on the seed."""

    INPUTS = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    TARGETS = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])

    def figures(self, model: nn.Module) -> tuple[str, str]:
        # In float64: one float32 rounding step of this loss is 0.05 of perplexity.
        loss = F.cross_entropy(logits(model, self.INPUTS).double().flatten(0, 1), self.TARGETS.flatten())
        return f"{float(loss):.4f}", f"{float(loss.exp()):,.2f}"

    @pytest.mark.slow
    @both
    def test_it_is_the_same_from_a_file(self, build: Build, tmp_path: Path) -> None:
        torch.manual_seed(123)
        model = build(BOOK_124M).eval()
        assert sum(parameter.numel() for parameter in model.parameters()) == 162_419_712
        assert self.figures(model) == ("10.7940", "48,725.82")
        optimizer = torch.optim.AdamW(model.parameters())
        contents: list[Any] = [
            model.state_dict(),
            {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
        ]
        for i, content in enumerate(contents):
            path = tmp_path / f"{i}.pth"
            torch.save(content, path)
            for config in (BOOK_124M, None):  # the published width tells the number of heads
                ours = as_ours(read_torch_file(path), config)
                assert sum(parameter.numel() for parameter in ours.parameters()) == 162_419_712
                assert self.figures(ours) == ("10.7940", "48,725.82")


class TestLanguageModels:
    @both
    @pytest.mark.parametrize("changes", [{}, {"qkv_bias": True}, {"n_heads": 6}], ids=str)
    def test_logits_are_the_books(self, changes: Settings, build: Build) -> None:
        theirs = small(build, **changes)
        ours = as_ours(theirs.state_dict(), {**SMALL, **changes})
        torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)
        assert ours.config == GPT2Config.from_book({**SMALL, **changes})

    @both
    @pytest.mark.parametrize("bias", [True, False])
    def test_the_way_out_and_back_is_bit_for_bit(self, bias: bool, build: Build) -> None:
        theirs = small(build, qkv_bias=bias)
        ours = as_ours(theirs.state_dict(), {"n_heads": 3})
        back = to_book(dict(ours.named_parameters()), ours.config)
        want = theirs.state_dict()
        assert set(back) == set(want)
        assert all(torch.equal(back[name], want[name]) for name in want)
        build({**SMALL, "qkv_bias": bias}).load_state_dict(back, strict=True)

    @both
    def test_one_of_ours_answers_alike_there(self, build: Build, odd_config: GPT2Config) -> None:
        for tied in (True, False):
            ours = randomised(GPT2(odd_config.replace(mlp_dim=None, tied=tied), seed=7))
            theirs = build({**SMALL, "qkv_bias": True}).eval()
            theirs.load_state_dict(to_book(dict(ours.named_parameters()), ours.config), strict=True)
            torch.testing.assert_close(logits(theirs), logits(ours), atol=1e-5, rtol=1e-5)

    def test_the_faster_variant_is_read_too(self) -> None:
        chapter = pytest.importorskip("llms_from_scratch.ch04", reason="pip install --no-deps llms-from-scratch")
        for bias in (True, False):
            theirs = small(chapter.GPTModelFast, qkv_bias=bias)
            assert "trf_blocks.0.att.qkv.weight" in theirs.state_dict()
            ours = as_ours(theirs.state_dict(), {"n_heads": 3})
            torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)

    def test_names_of_the_faster_variant_are_read_without_the_package(self) -> None:
        want = small(qkv_bias=True).state_dict()
        fast = {}
        for name, tensor in want.items():
            plain = name.replace("scale", "weight").replace("shift", "bias").replace("att.out_proj", "att.proj")
            if "W_query" in name:
                parts = [want[name.replace("W_query", part)] for part in ("W_query", "W_key", "W_value")]
                fast[name.replace("W_query", "qkv")] = torch.cat(parts)
            elif not any(part in name for part in ("W_key", "W_value", "mask")):
                fast[plain] = tensor
        first, second = (as_ours(tensors, {"n_heads": 3}).state_dict() for tensors in (want, fast))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_masks_may_be_missing(self) -> None:
        """Later editions of the class build the masks anew or have none."""
        theirs = small()
        tensors = {name: tensor for name, tensor in theirs.state_dict().items() if "mask" not in name}
        assert torch.equal(logits(as_ours(tensors, SMALL)), logits(as_ours(theirs.state_dict(), SMALL)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
    def test_another_precision_becomes_float32(self, dtype: torch.dtype) -> None:
        theirs = small().to(dtype)
        ours = as_ours(theirs.state_dict(), SMALL)
        assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
        torch.testing.assert_close(logits(ours), logits(theirs.float()), atol=1e-5, rtol=1e-5)

    def test_compiled_models_are_read(self, tmp_path: Path) -> None:
        theirs = small()
        torch.save({f"_orig_mod.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "a.pth")
        assert is_book(read_torch_file(tmp_path / "a.pth"))
        ours = as_ours(read_torch_file(tmp_path / "a.pth"), SMALL)
        assert torch.equal(logits(ours), logits(as_ours(theirs.state_dict(), SMALL)))


class TestTiedOutput:
    """OpenAI's weights in the book's class: two matrices, equal until one of them is trained."""

    def equal(self) -> dict[str, Tensor]:
        tensors = dict(small().state_dict())
        return {**tensors, "out_head.weight": tensors["tok_emb.weight"].clone()}

    def test_equal_matrices_stay_two_as_in_the_book(self) -> None:
        ours = as_ours(self.equal(), SMALL)
        assert not ours.config.tied
        assert torch.equal(ours.get_parameter("head.output.weight"), ours.trunk.embed.token.weight)

    def test_they_are_one_where_the_configuration_says_so(self) -> None:
        ours = as_ours(self.equal(), {**SMALL, "tied": True})
        assert ours.config.tied
        assert "head.output.weight" not in dict(ours.named_parameters())
        assert torch.equal(logits(ours), logits(as_ours(self.equal(), SMALL)))

    @pytest.mark.parametrize("config", [{**SMALL, "tied": True}, GPT2Config(**SMALL)], ids=["keys", "GPT2Config"])  # type: ignore[arg-type]
    def test_different_matrices_are_never_made_one(self, config: Any) -> None:
        ours = as_ours(small().state_dict(), config)
        assert not ours.config.tied
        torch.testing.assert_close(logits(ours), logits(small()), atol=1e-5, rtol=1e-5)


class TestClassifiers:
    def theirs(self, build: Build = Reference, classes: int = 4, bias: bool = True) -> nn.Module:
        model = small(build)
        model.out_head = nn.Linear(24, classes, bias=bias)
        return model

    @both
    @pytest.mark.parametrize("bias", [True, False])
    def test_a_replaced_head_is_a_classifier_of_the_last_column(self, bias: bool, build: Build) -> None:
        theirs = self.theirs(build, bias=bias)
        ours = as_ours(theirs.state_dict(), SMALL)
        assert ours.classes == [0, 1, 2, 3]
        torch.testing.assert_close(logits(ours), logits(theirs)[:, -1], atol=1e-5, rtol=1e-5)

    @both
    @pytest.mark.parametrize("bias", [True, False])
    def test_it_goes_back(self, bias: bool, build: Build, odd_config: GPT2Config) -> None:
        config = odd_config.replace(mlp_dim=None)
        ours = randomised(classifier(config, 2, bias=bias, seed=1))
        theirs = build({**SMALL, "qkv_bias": True}).eval()
        theirs.out_head = nn.Linear(24, 2)
        theirs.load_state_dict(to_book(dict(ours.named_parameters()), config), strict=True)
        torch.testing.assert_close(logits(theirs)[:, -1], logits(ours), atol=1e-5, rtol=1e-5)

    def test_one_output_is_no_classifier(self) -> None:
        with pytest.raises(ValueError, match="out_head has 1 rows; a classifier needs"):
            read_book(self.theirs(classes=1).state_dict(), SMALL, source="a.pth")

    def test_a_bias_over_the_vocabulary_is_refused(self) -> None:
        with pytest.raises(ValueError, match="257 rows and a bias"):
            read_book(self.theirs(classes=257).state_dict(), SMALL, source="a.pth")


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (None, r"a\.pth: the tensors do not tell the number of attention heads.*24 wide; pass it in settings="),
            ({}, "the tensors do not tell the number of attention heads"),
            ({**SMALL, "n_layers": 4}, "does not match the given configuration: n_layers = 4, but the tensors have 3"),
            ({**SMALL, "emb_dim": 768, "qkv_bias": True}, "emb_dim = 768, but the tensors have 24; qkv_bias = True"),
            ({**SMALL, "context_length": 1024}, "context_length = 1024, but the tensors have 40"),
            ({**SMALL, "vocab_size": 9}, "vocab_size = 9"),
            ({**SMALL, "mlp_dim": 9}, "mlp_dim = 9"),
            ({"n_heads": 5}, r"a\.pth: .*24 is not divisible by n_heads 5"),
            ({"n_heads": 3, "n_head": 3}, r"a\.pth: unknown configuration key 'n_head'"),
        ],
        ids=str,
    )
    def test_a_configuration_that_does_not_fit(self, config: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_book(small().state_dict(), config, source="a.pth")

    @pytest.mark.parametrize("config", [3, "gpt2", ["n_heads"]], ids=str)
    def test_a_configuration_that_is_none(self, config: Any) -> None:
        with pytest.raises(TypeError, match="give a GPT2Config or the book's dictionary"):
            read_book(small().state_dict(), config, source="a.pth")

    def test_the_mlps_width_may_be_said_in_two_ways(self) -> None:
        assert read_book(small().state_dict(), {**SMALL, "mlp_dim": 96}, source="a.pth")[0].hidden_dim == 96

    @pytest.mark.parametrize("name", sorted(small().state_dict()))
    def test_every_tensor_is_needed_in_its_shape_and_type(self, name: str) -> None:
        whole = dict(small().state_dict())
        tensor = whole.pop(name)
        if not name.endswith("mask"):
            with pytest.raises(ValueError, match=rf"1 missing: {name}"):
                read_book(whole, SMALL, source="a.pth")
            with pytest.raises(ValueError, match=rf"misshapen: {name} is torch\.int64"):
                read_book({**whole, name: tensor.long()}, SMALL, source="a.pth")
        with pytest.raises(ValueError, match=r"misshapen: |does not match|not the causal mask|a bias"):
            read_book({**whole, name: torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1)}, SMALL, source="a.pth")

    @pytest.mark.parametrize("name", ["trf_blocks.1.extra", "trf_blocks.0.att.W_gate.weight", "lm_head.weight"])
    def test_a_tensor_too_many(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"1 unexpected: {name}"):
            read_book({**small().state_dict(), name: torch.ones(24)}, SMALL, source="a.pth")

    def test_a_bias_on_some_of_query_key_and_value(self) -> None:
        tensors = dict(small(qkv_bias=True).state_dict())
        del tensors["trf_blocks.1.att.W_key.bias"]
        with pytest.raises(ValueError, match=r"1 missing: trf_blocks\.1\.att\.W_key\.bias"):
            read_book(tensors, {"n_heads": 3}, source="a.pth")

    def test_a_hole_among_the_blocks(self) -> None:
        tensors = {
            name.replace("trf_blocks.2.", "trf_blocks.999999999."): tensor
            for name, tensor in small().state_dict().items()
        }
        with pytest.raises(ValueError, match=r"missing: trf_blocks\.2\..*unexpected: trf_blocks\.999999999\."):
            read_book(tensors, SMALL, source="a.pth")

    def test_a_mask_that_lets_tokens_look_ahead(self) -> None:
        tensors = {**small().state_dict(), "trf_blocks.1.att.mask": torch.zeros(40, 40)}
        with pytest.raises(ValueError, match=r"trf_blocks\.1\.att\.mask .*is not the causal mask"):
            read_book(tensors, SMALL, source="a.pth")

    def test_masks_may_be_booleans(self) -> None:
        tensors = {n: t.bool() if n.endswith("mask") else t for n, t in small().state_dict().items()}
        assert read_book(tensors, SMALL, source="a.pth")[0].context_length == 40

    @pytest.mark.parametrize("by_rank", [False, True], ids=["alpha", "alpha/rank"])
    def test_lora_layers_say_how_to_merge_them(self, by_rank: bool) -> None:
        """Following the advice gives a file that loads, whichever scale the edition of the book's class has."""
        model = small()
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, WithFactors(layer, rank=4, alpha=8, by_rank=by_rank))
        randomised(model)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"appendix E .*but not their scale") as error:
            read_book(model.state_dict(), SMALL, source="a.pth")
        (advice,) = re.findall(r"layer\.linear\.weight \+= \S+", str(error.value))
        want = logits(model)
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, WithFactors):
                    with torch.no_grad():
                        exec(advice.rstrip(","), {"torch": torch, "layer": layer})
                    setattr(parent, name, layer.linear)
        torch.testing.assert_close(logits(as_ours(model.state_dict(), SMALL)), want, atol=1e-4, rtol=1e-4)

    def test_the_advice_fits_the_books_own_layers(self) -> None:
        appendix = pytest.importorskip("llms_from_scratch.appendix_e", reason="pip install --no-deps llms-from-scratch")
        layer = appendix.LinearWithLoRA(nn.Linear(5, 3), rank=2, alpha=8)
        with torch.no_grad():
            layer.lora.B.normal_()
            x, weight = torch.randn(4, 5), layer.linear.weight.clone()
            want = layer(x)
            layer.linear.weight += layer.lora(torch.eye(layer.linear.in_features)).T
            torch.testing.assert_close(layer.linear(x), want)
            assert not torch.equal(layer.linear.weight, weight)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"activation": "relu"}, "activation = 'relu'"),
            ({"norm_eps": 1e-6}, "norm_eps = 1e-06"),
            ({"scale_attention": False, "mlp_dim": 56}, "scale_attention = False, mlp_dim = 56"),
            ({"scale_attention_by_layer": True}, "scale_attention_by_layer = True"),
        ],
        ids=str,
    )
    def test_what_the_book_cannot_compute_does_not_leave(
        self, changes: Settings, message: str, odd_config: GPT2Config
    ) -> None:
        config = odd_config.replace(**{"mlp_dim": None, **changes})
        with pytest.raises(ValueError, match=f"GPTModel cannot compute this model: it has no {message}"):
            to_book(dict(GPT2(config, seed=1).named_parameters()), config)


def test_the_published_widths_tell_the_heads() -> None:
    for width, heads in ((768, 12), (1024, 16), (1280, 20), (1600, 25)):
        settings = {**SMALL, "emb_dim": width, "n_layers": 1, "n_heads": heads}
        with torch.device("meta"):
            tensors = Reference(settings).state_dict()
        tensors = {name: tensor for name, tensor in tensors.items() if "mask" not in name}
        assert read_book(tensors, source="a.pth")[0].n_heads == heads


def test_names_are_recognised() -> None:
    assert is_book(small().state_dict())
    assert not is_book(GPT2(GPT2Config(**{**SMALL, "tied": True}), device="meta").state_dict())  # type: ignore[arg-type]
    assert not is_book([])


def test_giving_tensors_away_changes_nothing_here(odd_config: GPT2Config) -> None:
    config = odd_config.replace(mlp_dim=None)
    ours = randomised(GPT2(config, seed=7))
    before = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
    theirs = Reference({**SMALL, "qkv_bias": True})
    theirs.load_state_dict(to_book(dict(ours.named_parameters()), config))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert all(torch.equal(parameter, before[name]) for name, parameter in ours.named_parameters())
