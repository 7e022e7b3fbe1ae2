"""The package's own order: who may import whom, what is public, what an import costs, and examples that run."""

import ast
import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
import warnings
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import gptclf

PACKAGE = Path(gptclf.__file__).parent
LONGEST = 400  # lines of a module that can still be read in one go

# A module imports only from its own floor and those below; what is not listed stands on the top floor.
FLOORS = {
    "gptclf.gpt2": 1,
    "gptclf.data": 1,
    "gptclf.metrics": 1,
    "gptclf.plotting": 1,
    "gptclf.progress": 1,
    "gptclf.weights": 2,
    "gptclf.features": 2,
    "gptclf.inference": 3,
    "gptclf.training": 4,
}
TOP = 5


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module: str) -> int:
    return next((level for room, level in FLOORS.items() if module == room or module.startswith(room + ".")), TOP)


def imports(module: str) -> set[str]:
    """The package's modules that a module imports anywhere, within functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name.split(".")[0] == "gptclf"}


def test_the_package_was_found() -> None:
    assert {"gptclf", "gptclf.gpt2.model", "gptclf.data.dataset", "gptclf.weights.save_model"} <= set(MODULES)
    assert "gptclf.gpt2.config" in imports("gptclf.gpt2.model")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "gptclf"])
def test_a_module_imports_from_its_own_floor_and_below(module: str) -> None:
    above = {name for name in imports(module) if floor(name) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports {sorted(above)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Raises CycleError, which names the circle.
    list(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_go(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{module} has {lines} lines"


def test_the_public_names_are_sorted_and_are_those_that_there_are() -> None:
    # Classes and functions that stand in the package's own namespace, in the order in which ruff sorts __all__.
    public = [
        name for name, value in vars(gptclf).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert sorted(gptclf.__all__) == sorted(public)
    kinds = [(0 if name.isupper() else 1 if name[0].isupper() else 2, name) for name in gptclf.__all__]
    assert kinds == sorted(kinds)
    assert len(set(gptclf.__all__)) == len(gptclf.__all__)


@pytest.mark.parametrize("name", gptclf.__all__)
def test_a_public_name_says_what_it_does(name: str) -> None:
    assert (getattr(gptclf, name).__doc__ or "").strip()


def test_importing_the_package_loads_nothing_that_only_some_users_need() -> None:
    needless = ["requests", "pandas", "matplotlib", "sklearn", "tqdm", "transformers", "tiktoken", "datasets"]
    # torch itself loads some of these where they are installed; only what comes on top is ours.
    program = (
        "import sys, torch; before = set(sys.modules); import gptclf; "
        f"print([name for name in {needless} if name in set(sys.modules) - before])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert not result.failed


def test_most_public_names_show_an_example() -> None:
    shown = [name for name in gptclf.__all__ if ">>> " in (getattr(gptclf, name).__doc__ or "")]
    assert len(shown) >= len(gptclf.__all__) // 2


def test_every_folder_of_modules_is_a_package_and_ships() -> None:
    found = {module.name for module in pkgutil.walk_packages(gptclf.__path__, "gptclf.")}
    assert found == set(MODULES) - {"gptclf"}
