"""The code blocks of the README and the guides run, in order, as a reader would run them."""

import builtins
import io
import re
import sys
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    # test_imbalanced_page.py runs the other one, half a minute of training, and compares its numbers.
    if "```python\n" in path.read_text(encoding="utf-8") and path.name != "imbalanced.md"
]
# The first line of a block that ends in an error, "# ValueError: its beginning", or that says something,
# "# warning: its beginning". Three dots stand for any text.
ENDS_IN = re.compile(r"# (\w+Error|warning): (.+)\n")
# What the code of a page needs beside the package.
EXTRAS = {
    "docs/adapters.md": ["peft"],
    "docs/answers.md": ["sklearn"],
    "docs/export.md": ["onnxscript", "onnxruntime"],
    "docs/from-transformers.md": ["accelerate", "datasets", "peft", "transformers"],
    "docs/saving-and-sharing.md": ["transformers"],
    "docs/scikit-learn.md": ["sklearn", "pandas"],
    "docs/serving.md": ["starlette", "httpx"],
}


def code_blocks(page: str) -> list[tuple[int, str, str | None]]:
    """(line number, code, what it prints) of each Python block of a page.

    A block of text that directly follows is what the code prints. Three dots in it stand for any text.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    found = re.finditer(blocks, text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1), match.group(2)) for match in found]


def pattern_of(shown: str) -> re.Pattern[str]:
    """The pattern of a text in which three dots stand for any text."""
    return re.compile(".*".join(map(re.escape, shown.split("..."))), re.DOTALL)


def check_printed(shown: str | None, printed: str) -> None:
    """Check what a block printed, if the page shows it."""
    matches = shown is None or pattern_of(shown).fullmatch(printed)
    assert matches, f"printed:\n{printed}\nbut the page shows:\n{shown}"


def run(code: Any, namespace: dict[str, object], ending: re.Match[str] | None, log: pytest.LogCaptureFixture) -> None:
    """Run a block, and check that it ends in the error that it names, or that something said so."""
    if ending is None:
        exec(code, namespace)
        return
    kind, message = ending.groups()
    if kind != "warning":
        with pytest.raises(getattr(builtins, kind)) as error:
            exec(code, namespace)
        message_of = re.sub(r"^\[Errno \d+\] ", "", str(error.value))
        assert pattern_of(message).match(message_of), f"{kind}: {error.value} does not begin with {message}"
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, namespace)
    heard = [*log.messages, *(str(warning.message) for warning in caught)]
    assert any(pattern_of(message).match(line) for line in heard), f"nothing said {message}: {heard}"


def test_there_are_pages_with_code() -> None:
    assert {"README.md", "docs/getting-started.md"} <= {*PAGES}


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in EXTRAS.get(page, []):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    namespace: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, code, shown in code_blocks(page):
            # Pages show the 124M model; nano replaces it here, so nothing is downloaded.
            offline = code.replace('load_gpt2("gpt2")', 'load_gpt2("nano")')
            # Blank lines in front make tracebacks name the page's own lines.
            caplog.clear()
            compiled = compile("\n" * line + offline, str(ROOT / page), "exec")
            with redirect_stdout(io.StringIO()) as printed:
                run(compiled, namespace, ENDS_IN.match(code), caplog)
            check_printed(shown, printed.getvalue())


@pytest.mark.parametrize("block", ["# ValueError: no ... x", "# warning: no"])
@pytest.mark.parametrize(
    "code", ["1", "raise ValueError('yes')", "raise TypeError('no y x')", "raise ValueError('a no b x')"]
)
def test_a_block_that_ends_otherwise_than_it_says_is_noticed(
    block: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = f"{block}\n{code}\n"
    run("raise ValueError('no y x')", {}, ENDS_IN.match("# ValueError: no ... x\n"), caplog)
    with pytest.raises(BaseException):  # noqa: B017
        run(whole, {}, ENDS_IN.match(whole), caplog)


@pytest.mark.parametrize("printed", ["b 12 c\n", "a 12 c\nd\n", "a 12\n", ""])
def test_what_a_page_does_not_show_is_noticed(printed: str) -> None:
    check_printed("a ... c\n", "a 12 c\n")
    check_printed(None, printed)
    with pytest.raises(AssertionError, match="printed"):
        check_printed("a ... c\n", printed)


def test_the_reference_has_each_public_name_once() -> None:
    directive = re.compile(r"^\.\. (?:currentmodule:: (\S+)|auto(?:function|class):: (\w+))$", re.MULTILINE)
    documented: dict[str, list[str]] = {}
    for page in (ROOT / "docs" / "reference").glob("*.rst"):
        module = ""
        for changed, name in directive.findall(page.read_text(encoding="utf-8")):
            module = changed or module
            documented.setdefault(module, []).extend([name] if name else [])
    for module, names in documented.items():
        assert sorted(names) == sorted({*import_module(module).__all__} - {"__version__"}), module


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_local_links_of_the_pages_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
            found = path.parent / target if target else path
            assert found.exists(), f"{path.name} links to {target}, which does not exist"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in map(slug, headings), f"{path.name} links to {target}#{anchor}: no such heading"


def test_the_readme_holds_the_commands_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- test -->\n```bash\n(.+)\n```\n", readme)
    assert match is not None
    assert "pytest" in match.group(1)


def test_pages_and_examples_are_in_plain_english() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    # The templates of messages.py are meant to sound like people.
    scripts = [path for path in (ROOT / "examples").glob("*.py") if path.name != "messages.py"]
    for path in [*pages, *scripts]:
        found = re.search(r"\b(shall|gone on|goes on with|passed over)\b|, too\b", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name} says {found.group() if found else ''!r}"
