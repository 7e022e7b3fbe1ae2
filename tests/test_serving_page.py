"""The served page in a real browser, and a real server under load and at its end."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from conftest import byte_tokenizer

import gptclf
from gptclf import (
    GPT2,
    GPT2Config,
    MultiLabel,
    Preparation,
    Regression,
    add_classifier_head,
    load_gpt2,
    predict,
    predict_proba,
    save_model,
)
from gptclf.serving import create_app

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def clf() -> GPT2:
    config = GPT2Config(vocab_size=257, context_length=512, emb_dim=32, n_layers=1, n_heads=2)
    gpt2 = load_gpt2(config, weights="random", seed=0, tokenizer=byte_tokenizer())
    clf = add_classifier_head(gpt2, classes=["ham", "spam", f"odd {HOSTILE}"], seed=1)
    clf.head.forget_fresh()
    clf.preparation = Preparation()
    return clf


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of a server of an application, while it runs."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `holds`, which is tried again and again."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def address(clf: GPT2) -> Iterator[str]:
    with running(create_app(clf, name=f"model {HOSTILE}", max_characters=20_000)) as found:
        yield found


class Page:
    """The page in a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, name: str) -> None:
        """Go there, and wait until the page knows its model and the first field has the focus."""
        self.driver.get(address)
        until(lambda: self.text("model") == name)
        until(lambda: self.driver.switch_to.active_element.get_attribute("id") == "text")

    def find(self, id_: str) -> Any:
        return self.driver.find_element("id", id_)

    def text(self, id_: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", id_))

    def says(self, id_: str, text: str) -> bool:
        return self.text(id_) == text

    def shown(self, id_: str) -> bool:
        return bool(self.find(id_).is_displayed())

    def paste(self, id_: str, text: str) -> None:
        self.find(id_).click()
        self.find(id_).clear()
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    def has_lines(self) -> bool:
        return bool(self.driver.execute_script("return document.getElementById('lines').value.length > 0"))

    def table(self) -> list[list[str]]:
        rows = "return [...document.querySelectorAll('#rows tr')].map((r) => [...r.cells].map((c) => c.textContent))"
        return list(self.driver.execute_script(rows))

    def complaints(self) -> list[Any]:
        return list(self.driver.get_log("browser"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, controller = which("chromium") or which("google-chrome"), which("chromedriver")
    if browser is None or controller is None:
        pytest.skip("needs a browser: chromium (or google-chrome) and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(controller))
    yield found
    found.quit()


@pytest.fixture
def page(driver: Any, address: str, tmp_path: Path) -> Page:
    """The page as it opens, with downloads into the test's folder."""
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get_log("browser")
    found = Page(driver)
    found.open(address, f"model {HOSTILE}")
    return found


CONTROL, ENTER, TAB, RIGHT = "\ue009", "\ue007", "\ue004", "\ue014"


def test_a_typed_text_is_classified_and_explained_by_keyboard_alone(page: Page, clf: GPT2) -> None:
    page.press("win cash", CONTROL, ENTER)  # the field has the focus when the page opens
    until(lambda: page.shown("legend"))
    assert page.text("answer") == predict(clf, ["win cash"])[0]
    order = np.argsort(-predict_proba(clf, ["win cash"])[0])
    shares = [f"{100 * share:.1f} %" for share in predict_proba(clf, ["win cash"])[0][order]]
    bars = page.driver.find_elements("css selector", "#bars .share")
    assert [bar.text for bar in bars] == shares
    assert page.text("said") == f"{page.text('answer')}, {shares[0]}"
    assert page.text("tokens") == "win cash"
    assert len(page.driver.find_elements("css selector", "#tokens span")) == 8  # a token per byte
    page.press(TAB, TAB, TAB, ENTER)  # the button, the first bar, the second
    other = str(clf.classes[order[1]])  # type: ignore[index]
    until(lambda: page.text("why-title") == f"What speaks for {other}" and page.shown("legend"))
    assert page.complaints() == []


def test_pasted_lines_become_a_table_and_a_csv_that_no_spreadsheet_runs(page: Page, clf: GPT2, tmp_path: Path) -> None:
    lines = ["win cash", 'say "hi", friend', "=1+2", "@home", "-5", "+49 30", "naïve 漢字 🎉", HOSTILE]
    page.find("tab-one").click()
    page.press(RIGHT)
    page.paste("lines", "\n".join(lines[:4]) + "\n\n  \n" + "\n".join(lines[4:]))
    page.press(CONTROL, ENTER)
    until(lambda: page.text("many-said") == "8 texts classified.")
    labels, probabilities = predict(clf, lines), predict_proba(clf, lines)
    shares = [f"{100 * share:.1f} %" for share in probabilities.max(axis=1)]
    numbers = ["1", "2", "3", "4", "7", "8", "9", "10"]
    assert page.table() == [list(row) for row in zip(numbers, lines, labels, shares, strict=True)]
    page.find("download").click()
    until((tmp_path / "answers.csv").exists)
    with (tmp_path / "answers.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "answer", *(f"p({label})" for label in clf.classes or [])]
    safe = [f"'{line}" if line[0] in "=+-@" else line for line in lines]
    assert [row[:2] for row in rows] == [list(row) for row in zip(safe, labels, strict=True)]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], dtype=np.float64), probabilities)
    assert page.complaints() == []


def test_markup_in_texts_labels_and_names_is_shown_as_text(page: Page) -> None:
    page.paste("text", HOSTILE)
    page.press(CONTROL, ENTER)
    until(lambda: page.shown("legend"))
    assert page.text("model") == f"model {HOSTILE}"
    assert page.text("tokens") == HOSTILE
    assert any(HOSTILE in bar.text for bar in page.driver.find_elements("css selector", "#bars .name"))
    assert page.driver.title == f"model {HOSTILE}"
    for script in ("document.images.length", "document.scripts.length - 1"):
        assert page.driver.execute_script(f"return {script}") == 0
    assert page.complaints() == []


def test_what_is_too_much_or_is_not_text_is_refused_with_the_reason(page: Page, clf: GPT2, tmp_path: Path) -> None:
    page.driver.execute_script("document.getElementById('text').value = 'a'.repeat(1e6)")
    page.find("text").send_keys(CONTROL, ENTER)
    until(lambda: page.text("text-alert") == "input[0] has 1,000,000 characters; a text may have 20,000")
    page.find("tab-many").click()
    page.find("go").click()
    until(lambda: page.text("many-alert") == "There is nothing to classify: paste texts, one per line.")
    for name, content in (("photo.jpg", b"\xff\xd8\xff" * 1000), ("numbers.bin", b"\0\1\2" * 1000)):
        (tmp_path / name).write_bytes(content)
        page.find("file").send_keys(str(tmp_path / name))
        until(partial(page.says, "many-alert", f"{name} is not a text file in UTF-8."))
    (tmp_path / "mails.csv").write_text("id,body,label\n1,you won,spam\n")
    page.find("file").send_keys(str(tmp_path / "mails.csv"))
    until(
        lambda: page.text("many-alert").startswith(
            "mails.csv is a table. Paste its column of texts, or run: gptclf predict"
        )
    )
    page.find("tab-one").click()
    page.driver.execute_script("document.getElementById('text').value = '  '")
    page.find("text").send_keys(CONTROL, ENTER)
    until(lambda: page.text("text-alert") == "There is nothing to classify: type a text.")
    page.find("tab-many").click()
    (tmp_path / "long.txt").write_text("short\n" + "a" * 1_000_000, encoding="utf-8")
    page.find("file").send_keys(str(tmp_path / "long.txt"))
    until(page.has_lines)
    page.find("go").click()
    until(lambda: page.text("many-alert") == "Line 2 is too long; a text may have 20,000 characters.")


DROP = """
const dataTransfer = new DataTransfer();
dataTransfer.items.add(new File([arguments[0]], "lines.txt"));
document.getElementById("lines").dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
"""


def test_ten_thousand_lines_of_a_dropped_file_are_answered(page: Page, clf: GPT2, tmp_path: Path) -> None:
    lines = [f"message {i}" for i in range(10_000)]
    page.find("tab-many").click()
    page.driver.execute_script(DROP, "\r\n".join(lines))
    until(page.has_lines)
    page.find("go").click()
    until(lambda: page.text("many-said") == "10,000 texts classified; the first 500 are shown, the CSV has all.", 60)
    assert len(page.table()) == 500
    page.find("download").click()
    until((tmp_path / "answers.csv").exists)
    with (tmp_path / "answers.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == predict(clf, lines)


def test_many_classes_are_shown_on_demand_and_numbers_have_no_bars(page: Page, clf: GPT2) -> None:
    several = MultiLabel([f"topic {i}" for i in range(20)], thresholds=0.5)
    for task, bars in ((several, 8), (Regression(2), 0)):
        other = add_classifier_head(clf, task=task, seed=2)
        other.head.forget_fresh()
        other.preparation = clf.preparation
        with running(create_app(other, name="another model")) as address:
            page.open(address, "another model")
            page.press("win cash", CONTROL, ENTER)
            until(lambda: page.shown("legend"))
            assert len(page.driver.find_elements("css selector", "#bars li")) == bars
            (answer,) = predict(other, ["win cash"])
            if bars:
                assert page.text("answer") == ", ".join(answer)
                page.find("all").click()
                assert len(page.driver.find_elements("css selector", "#bars li")) == 20
            else:
                assert [float(x) for x in page.text("answer").split(", ")] == pytest.approx(answer, rel=1e-3)
                assert page.text("why-title") == "What speaks for output 0"
    assert page.complaints() == []


def test_the_page_fits_a_small_screen_and_follows_the_wish_for_a_dark_one(page: Page) -> None:
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.paste("text", "see you at six " * 5 + "x" * 300)
    page.press(CONTROL, ENTER)
    until(lambda: page.shown("legend"))
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 360
    colors = []
    for scheme in ("light", "dark"):
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
        style = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        colors.append(page.driver.execute_script(style))
    assert colors[0] != colors[1]
    assert [max(map(int, back[4:-1].split(","))) > 128 for _, back in colors] == [True, False]


def test_every_field_has_a_label(page: Page) -> None:
    nameless = page.driver.execute_script(
        "return [...document.querySelectorAll('textarea, input, progress, button')]"
        ".filter((e) => !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent && e.id !== 'all')"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_two_hundred_requests_at_once_are_all_answered_as_predict_answers(clf: GPT2, address: str) -> None:
    asked = [[f"request {i}, text {j}" for j in range(i % 7 + 1)] for i in range(200)]

    async def ask() -> list[Any]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60, trust_env=False) as client:
            return await asyncio.gather(*(client.post("/classify", json={"input": texts}) for texts in asked))

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200] * 200
    texts, data = (
        [text for some in asked for text in some],
        [row for answer in answers for row in answer.json()["data"]],
    )
    assert [row["label"] for row in data] == predict(clf, texts)
    # The last bits depend on the texts computed with it, in predict as well.
    np.testing.assert_allclose([row["probs"] for row in data], predict_proba(clf, texts), rtol=1e-5)


def test_an_interrupted_server_answers_what_came_before(clf: GPT2, tmp_path: Path) -> None:
    texts = ["too long for a single breath " * 10 + str(i) for i in range(300)]
    save_model(clf, tmp_path / "mails")
    program = "import sys; from gptclf.serving import serve; serve(sys.argv[1], port=0)"
    environment = {**os.environ, "PYTHONPATH": str(Path(gptclf.__file__).parents[1])}
    command = [sys.executable, "-c", program, str(tmp_path / "mails")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = line.split()[4]
        assert line == f"gptclf serves mails at {address} (Ctrl-C ends)\n"
        sent = threading.Event()

        def body() -> Iterator[bytes]:
            yield json.dumps({"input": texts}).encode()
            sent.set()

        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client, ThreadPoolExecutor() as threads:
            assert client.get("/health").is_success
            headers = {"content-type": "application/json"}
            asking = threads.submit(client.post, "/classify", content=body(), headers=headers)
            sent.wait(20)
            process.send_signal(signal.SIGINT)
            answer = asking.result()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    assert [row["label"] for row in answer.json()["data"]] == predict(clf, texts)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health", trust_env=False)


# Each batch takes a while, and what waits behind it is never reached in the test.
SLOW = """
import sys, time
import gptclf.serving.app as app
from gptclf.cli.main import main
app.classify = lambda model, texts, precision: time.sleep(0.5) or [{"label": "ham", "tokens": 1}] * len(texts)
sys.exit(main(["serve", sys.argv[1], "--port", "0"]))
"""


def test_a_second_interrupt_ends_at_once_with_a_line_and_answers_in_json(clf: GPT2, tmp_path: Path) -> None:
    save_model(clf, tmp_path / "mails")
    environment = {**os.environ, "PYTHONPATH": str(Path(gptclf.__file__).parents[1])}
    command = [sys.executable, "-c", SLOW, str(tmp_path / "mails")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split("at ")[1].split()[0]
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client, ThreadPoolExecutor() as threads:
            asking = threads.submit(client.post, "/classify", json={"input": ["x"] * 1000})
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)  # two at once are one
            process.send_signal(signal.SIGINT)
            answer = asking.result()
        assert process.wait(20) == 130
        assert process.stderr.read() == "gptclf: interrupted\n"
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "ServiceUnavailableError"
