"""Fixtures that several test files use."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptclf import GPT2, ClassifierHead, GPT2Config, SingleLabel, clear_features, load_gpt2
from gptclf.tokenizer.bpe import byte_characters, make_encoding

# Nothing in the tests may reach a network: caches are empty and the hub is switched off unless a test says otherwise.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_TELEMETRY": "1"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "no_hub_cache"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "TIKTOKEN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for small tests: two threads on tiny tensors mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("slow") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """No test finds features that another one computed."""
    yield
    clear_features()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data that lies beside a checkout where the project is developed."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared (data that the project does not ship), which this checkout does not have")
    return folder


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The SMS Spam and Banking77 files."""
    return shared / "data"


def byte_tokenizer() -> Any:
    """One token per byte, 257 in all with the end of text, in GPT-2's order of bytes."""
    return make_encoding({bytes([byte]): i for i, byte in enumerate(byte_characters())})


def byte_gpt2(**options: Any) -> GPT2:
    """A language model small enough to train in a test: one token per byte, random weights, the same each time."""
    config = GPT2Config(vocab_size=257, context_length=512, emb_dim=64, n_layers=3, n_heads=4)
    return load_gpt2(config, **{"weights": "random", "seed": 0, "tokenizer": byte_tokenizer(), **options})


@pytest.fixture
def odd_config() -> GPT2Config:
    """A small shape in which no two sizes are equal, so that a transposed matrix cannot go unnoticed."""
    return GPT2Config(vocab_size=257, context_length=40, emb_dim=24, n_heads=3, n_layers=3, mlp_dim=56)


@pytest.fixture
def small_gpt2(odd_config: GPT2Config) -> GPT2:
    """A language model of `odd_config` whose biases and norms are not trivial either, frozen as load_gpt2's are."""
    return randomised(GPT2(odd_config, seed=7)).requires_grad_(False)


def classifier_of(
    config: GPT2Config,
    classes: Iterable[Any],
    *,
    pooling: str = "last",
    bias: bool = True,
    seed: int | None = None,
    device: str | None = None,
) -> GPT2:
    """A classifier with random weights, in which every parameter is set to train."""
    task = SingleLabel(classes)
    head = ClassifierHead(config.emb_dim, task.n_outputs, pooling=pooling, bias=bias)
    return GPT2(config, task=task, head=head, seed=seed, device=device)


def randomised(model: GPT2, seed: int = 1) -> GPT2:
    """Add noise to every parameter: at initialisation biases are 0 and norms the identity, which hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model
