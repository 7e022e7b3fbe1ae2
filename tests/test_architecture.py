"""The package's own order: who may import whom, what is public, what an import costs, and examples that run."""

import ast
import doctest
import importlib
import inspect
import io
import os
import pkgutil
import subprocess
import sys
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gptclf

PACKAGE = Path(gptclf.__file__).parent
ROOT = PACKAGE.parent
LONGEST_FILE = 300
LONGEST_FUNCTION = 50  # lines after the docstring
# Lines without docstrings, comments and blank ones. Some 2,000 of them are LoRA, quantised matrices and PEFT's files;
# 2,000 more are sources of rows, foreign tokenizers, damaged files, saves at once, answers; 3,300 more are what people
# hold: estimators, the command line, results, explanations, the server.
MOST_CODE = 15_600
LARGEST_ROOM = 0.25  # of the package's code

# A module imports from its own room and from lower floors: never upward, never across a floor.
FLOORS = [
    {"book_names", "checks", "metrics", "next_token_loss", "plotting", "progress", "version"},
    {"files", "tasks", "preparation"},
    {"hub", "results"},
    {"tokenizer"},
    {"gpt2", "data"},
    {"weights", "features"},
    {"saving"},
    {"inference", "language"},
    {"training", "explanations"},
    {"sklearn", "serving"},
    {"public", "cli"},
    {"__main__"},
]
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Kinds of heads, tasks and models, and attributes that tell them apart.
KINDS = {"SingleLabel", "NextToken", "ClassifierHead", "LMHead", "Learner"}
TELLING = {"classes", "kind", "title", "pooling", "exported_as"}
OBJECTS = {"model", "gpt2", "learner", "head", "task", "clf"}
FOREIGN = {"dtype", "parameter"}  # have a `kind` of their own
# Functions outside gpt2/ and tasks/ that may ask all the same, with the reason.
BRANCHES: dict[str, str] = {}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


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
    assert {"gptclf", "gptclf.gpt2.model", "gptclf.data.dataset", "gptclf.saving.save_model"} <= set(MODULES)
    assert "gptclf.gpt2.config" in imports("gptclf.gpt2.model")
    assert {room(module) for module in MODULES} - {""} == set(FLOOR_OF)


@pytest.mark.parametrize("module", [name for name in MODULES if name != "gptclf"])
def test_a_module_imports_from_its_own_room_and_lower_floors(module: str) -> None:
    here = room(module)
    wrong = {name for name in imports(module) if room(name) != here and FLOOR_OF.get(room(name), 99) >= FLOOR_OF[here]}
    assert not wrong, f"{module} (floor {FLOOR_OF[here]}) imports {sorted(wrong)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Raises CycleError, which names the circle.
    list(TopologicalSorter({module: imports(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_read_in_one_go(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{module} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_catches_every_exception(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            named = [getattr(part, "id", "") for part in ast.walk(node.type)] if node.type else ["BaseException"]
            # What is caught to put something back, and raised again, is not swallowed.
            raises = any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(node))
            assert raises or not {"Exception", "BaseException"} & set(named), f"line {node.lineno}"


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: str) -> Iterator[tuple[str, Function]]:
    """Each function of a module with its dotted name."""

    def inside(node: ast.AST, name: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, Function | ast.ClassDef)
            below = f"{name}.{child.name}" if isinstance(child, Function | ast.ClassDef) else name
            if isinstance(child, Function):
                yield below, child
            yield from inside(child, below if named else name)

    return inside(ast.parse(MODULES[module].read_text(encoding="utf-8")), module)


def body_lines(node: Function) -> int:
    """Lines of a function's body after its docstring."""
    first = node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = first.end_lineno if documented else first.lineno - 1
    return (node.end_lineno or 0) - (start or 0)


@pytest.mark.parametrize("module", MODULES)
def test_a_function_fits_on_a_screen(module: str) -> None:
    long = {name: n for name, node in functions(module) if (n := body_lines(node)) > LONGEST_FUNCTION}
    assert not long


def test_fit_reads_like_the_loop() -> None:
    lines = {name: body_lines(node) for name, node in functions("gptclf.training.fit")}
    assert lines["gptclf.training.fit.fit"] <= 40


def code_lines(source: str) -> int:
    """Lines of code: no docstrings, comments and blank lines."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in silent]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - documented)


def test_the_package_is_small_and_no_room_is_most_of_it() -> None:
    sizes = Counter[str]()
    for module, path in MODULES.items():
        sizes[room(module)] += code_lines(path.read_text(encoding="utf-8"))
    assert sizes.total() <= MOST_CODE
    largest, lines = sizes.most_common(1)[0]
    assert lines <= LARGEST_ROOM * sizes.total(), f"{largest} has {lines} of {sizes.total()} lines"


def test_a_gpt2_is_a_network_and_little_else() -> None:
    assert code_lines(inspect.getsource(gptclf.GPT2)) <= 120


def test_nothing_is_passed_through_a_context_variable() -> None:
    assert [module for module, path in MODULES.items() if "contextvars" in path.read_text(encoding="utf-8")] == []


def test_the_formatter_is_never_told_to_look_away() -> None:
    files = [path for folder in ("gptclf", "tests", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert files
    assert [path.name for path in files if "fmt" + ": skip" in path.read_text(encoding="utf-8")] == []


def asks_for_a_kind(node: ast.AST) -> bool:
    """Whether an expression tells kinds of heads, tasks or models apart, however it is spelt."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name | ast.Attribute) and _name(part) in KINDS:
            return True
        if isinstance(part, ast.Compare) and any(
            isinstance(side, ast.Attribute) and side.attr in TELLING and _name(side.value) not in FOREIGN
            for side in [part.left, *part.comparators]
        ):
            return True
        if isinstance(part, ast.Call) and _name(part.func) == "hasattr" and _name(part.args[0]) in OBJECTS:
            return True
        if isinstance(part, ast.Attribute) and part.attr in {"__class__", "__name__", "__qualname__"}:
            return True
    # "if model.classes:", "not head.pooling", "task.classes and ..."
    operands = node.values if isinstance(node, ast.BoolOp) else [node]
    bare = [part.operand if isinstance(part, ast.UnaryOp) else part for part in operands]
    return any(isinstance(part, ast.Attribute) and part.attr in TELLING for part in bare)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def branches(node: Function) -> Iterator[ast.AST]:
    """Each condition in a function."""
    for part in ast.walk(node):
        if isinstance(part, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield part.test
        elif isinstance(part, ast.comprehension):
            yield from part.ifs
        elif isinstance(part, ast.match_case):
            yield part.pattern
        elif isinstance(part, ast.BoolOp):
            yield part
        elif isinstance(part, ast.Subscript) and isinstance(part.value, ast.Dict):  # {SingleLabel: ...}[type(task)]
            yield part.value


def test_only_gpt2_and_tasks_tell_kinds_of_heads_tasks_and_models_apart() -> None:
    found = set()
    for module in MODULES:
        if room(module) not in ("gpt2", "tasks"):
            found |= {name for name, node in functions(module) if any(map(asks_for_a_kind, branches(node)))}
    assert found == set(BRANCHES)
    assert len(BRANCHES) <= 5


@pytest.mark.parametrize(
    "branch",
    [
        "if isinstance(task, NextToken): pass",
        "if type(head) is heads.LMHead: pass",
        "x = 1 if model.classes is None else 2",
        "while not model.classes: pass",
        "assert model.task.kind == 'single_label'",
        "x = [y for y in z if y.head.pooling in ('last', 'first')]",
        "if hasattr(model.head, 'output'): pass",
        "x = model.classes or []",
        "match head:\n        case ClassifierHead(): pass",
        "x = {SingleLabel: 1}[type(task)]",
        "if type(task).__name__ == 'NextToken': pass",
    ],
)
def test_a_branch_on_a_kind_is_noticed_whatever_the_spelling(branch: str) -> None:
    function = ast.parse(f"def f():\n    {branch}").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert any(map(asks_for_a_kind, branches(function)))


def test_the_public_names_are_those_that_there_are() -> None:
    # Classes and functions that the list imports.
    public = [name for name in vars(gptclf.public) if not name.startswith("_")]
    assert sorted(gptclf.__all__) == sorted([*public, "__version__"])
    assert len(set(gptclf.__all__)) == len(gptclf.__all__)


@pytest.mark.parametrize("name", gptclf.__all__)
def test_a_public_name_says_what_it_does(name: str) -> None:
    assert (getattr(gptclf, name).__doc__ or "").strip()


def test_importing_the_package_loads_nothing_that_only_some_users_need() -> None:
    needless = ["requests", "pandas", "matplotlib", "sklearn", "tqdm", "transformers", "tiktoken", "datasets"]
    # torch itself loads some of these where they are installed; only what comes on top is ours.
    program = (
        "import sys, torch; before = set(sys.modules); import gptclf; gptclf.train; "
        f"print([name for name in {needless} if name in set(sys.modules) - before])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_loads_neither_torch_nor_numpy_before_a_name_is_asked_for() -> None:
    program = (
        "import sys, gptclf, gptclf.training.recipe, gptclf.preparation; "
        "print({'torch', 'numpy'} & set(sys.modules)); print(gptclf.train.__name__, gptclf.gpt2.model.__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "train gptclf.gpt2.model"]


def test_an_unknown_name_is_an_attribute_error_and_every_public_one_is_listed() -> None:
    with pytest.raises(AttributeError, match="'gptclf' has no attribute 'trian'"):
        _ = gptclf.trian  # type: ignore[attr-defined]
    assert set(gptclf.__all__) <= set(dir(gptclf))


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
