"""The code blocks of the README and the guides run, in order, as a reader would run them."""

import builtins
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "docs/getting-started.md",
    "docs/answers.md",
    "docs/explanations.md",
    "docs/extending.md",
    "docs/serving.md",
    "docs/adapters.md",
    "docs/chapter-5.md",
    "docs/chapter-6.md",
    "docs/export.md",
    "docs/from-the-book.md",
    "docs/when-something-goes-wrong.md",
]
# The first line of a block that ends in an error, "# ValueError: its beginning", or that says something,
# "# warning: its beginning". Three dots stand for any text.
ENDS_IN = re.compile(r"# (\w+Error|warning): (.+)\n")
# What the code of a page needs beside the package.
EXTRAS = {"docs/export.md": ["onnxscript", "onnxruntime"]}


def code_blocks(page: str) -> list[tuple[int, str]]:
    """(line number, code) of each Python block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match.group(1)) for match in found]


def run(code: Any, namespace: dict[str, object], ending: re.Match[str] | None, log: pytest.LogCaptureFixture) -> None:
    """Run a block, and check that it ends in the error that it names, or that something said so."""
    if ending is None:
        exec(code, namespace)
        return
    kind, message = ending.groups()
    pattern = ".*".join(map(re.escape, message.split("...")))
    if kind != "warning":
        with pytest.raises(getattr(builtins, kind)) as error:
            exec(code, namespace)
        message_of = re.sub(r"^\[Errno \d+\] ", "", str(error.value))
        assert re.match(pattern, message_of, re.DOTALL), f"{kind}: {error.value} does not begin with {message}"
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, namespace)
    heard = [*log.messages, *(str(warning.message) for warning in caught)]
    assert any(re.match(pattern, line, re.DOTALL) for line in heard), f"nothing said {message}: {heard}"


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_of_the_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in EXTRAS.get(page, []):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    blocks = code_blocks(page)
    assert blocks, f"{page} has no Python code"
    namespace: dict[str, object] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line, code in blocks:
            # Pages show the 124M model; nano replaces it here, so nothing is downloaded.
            offline = code.replace('load_gpt2("gpt2")', 'load_gpt2("nano")')
            # Blank lines in front make tracebacks name the page's own lines.
            caplog.clear()
            compiled = compile("\n" * line + offline, str(ROOT / page), "exec")
            run(compiled, namespace, ENDS_IN.match(code), caplog)


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


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_local_links_of_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, "docs/benchmarks.md", "docs/design.md", "docs/changelog.md"]:
        path = ROOT / page
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
            found = path.parent / target if target else path
            assert found.exists(), f"{page} links to {target}, which does not exist"
            if anchor:
                headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in map(slug, headings), f"{page} links to {target}#{anchor}, which has no such heading"


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
