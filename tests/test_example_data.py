import hashlib
import io
import re
import socket
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import sources
from messages import make_messages

Serve = Callable[[dict[str, bytes]], str]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a web server on this machine that holds the given paths, and returns its address."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    servers: list[ThreadingHTTPServer] = []

    def start(files: dict[str, bytes]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address at which nobody listens."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def zipped(**members: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_messages_depend_on_n_and_seed_alone() -> None:
    assert make_messages(50, 7) == make_messages(50, 7)
    assert make_messages() == make_messages(1200, 123)
    assert set(make_messages(50, 7)[0]).isdisjoint(make_messages(50, 8)[0])


@pytest.mark.parametrize(("n", "ham", "spam"), [(2, 1, 1), (7, 4, 3), (100, 50, 50)])
def test_messages_are_balanced(n: int, ham: int, spam: int) -> None:
    texts, labels = make_messages(n)
    assert len(texts) == n
    assert Counter(labels) == {"ham": ham, "spam": spam}


def test_messages_are_shuffled() -> None:
    labels = make_messages(1200)[1]
    assert 240 < labels[:600].count("spam") < 360


@pytest.mark.parametrize("n", [1, 0, -3])
def test_too_few_messages_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=rf"n is {n}; .* 2 or more"):
        make_messages(n)


def test_messages_are_short_single_lines_with_nothing_left_to_fill_in() -> None:
    for text in make_messages(3000)[0]:
        assert 40 <= len(text) <= 140
        assert not re.search(r"[\[\]{}|#@\n\t]|^\s|\s$|  ", text)


@pytest.mark.parametrize("seed", [123, 0, 1])
def test_few_messages_repeat(seed: int) -> None:
    texts = make_messages(1200, seed)[0]
    assert len(set(texts)) > 0.99 * len(texts)


@pytest.mark.parametrize("seed", [123, 0, 1])
def test_no_single_word_mark_or_length_tells_spam_from_ham(seed: int) -> None:
    texts, labels = make_messages(1200, seed)
    spam, ham = Counter[str](), Counter[str]()
    for text, label in zip(texts, labels, strict=True):
        traits = {*re.findall(r"\w+|[^\w\s]", text.lower())}
        traits |= {f"over {n} characters" for n in range(40, 140, 5) if len(text) > n}
        traits |= {"a digit"} if re.search(r"\d", text) else set()
        traits |= {"a link"} if re.search(r"\.(example|test)", text.lower()) else set()
        (spam if label == "spam" else ham).update(traits)
    best = max(spam | ham, key=lambda trait: abs(spam[trait] - ham[trait]))
    accuracy = 0.5 + abs(spam[best] - ham[best]) / 1200
    assert accuracy <= 0.75, best


def test_word_counts_classify_most_messages_but_not_all() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    right = 0
    for seed in range(4):
        texts, labels = make_messages(1200, seed)
        model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts[:840], labels[:840])
        right += sum(model.predict(texts[960:]) == labels[960:])
    assert 0.90 < right / 960 < 0.98


def test_read_sms_takes_quotation_marks_as_text(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv"
    path.write_bytes(b'ham\t"Are you in?\nspam\tWin "it"\nham\t at six" \n')
    assert sources.read_sms(path) == (['"Are you in?', 'Win "it"', ' at six" '], ["ham", "spam", "ham"])


@pytest.mark.parametrize("line", ["label\ttext", "ham", "ham\ta\tb", "Ham\ta", ""])
def test_read_sms_names_the_line_that_is_not_a_message(tmp_path: Path, line: str) -> None:
    path = tmp_path / "sms.tsv"
    path.write_text(f"ham\tfine\n{line}\nspam\tfine\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"sms\.tsv, line 2: got .* expected 'ham' or 'spam', one tab"):
        sources.read_sms(path)


def test_book_split_balances_and_keeps_each_message_once(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv"
    lines = [f"{'spam' if i % 4 == 0 else 'ham'}\ttext {i}" for i in range(80)]
    path.write_text("\n".join(lines), encoding="utf-8")
    split = sources.book_split(path)
    assert [len(texts) for texts, _ in split] == [28, 4, 8]
    texts = [text for part, _ in split for text in part]
    labels = [label for _, part in split for label in part]
    assert len(set(texts)) == 40
    assert Counter(labels) == {"ham": 20, "spam": 20}
    assert {f"{label}\t{text}" for text, label in zip(texts, labels, strict=True)} <= set(lines)
    assert sources.book_split(path) == split


def test_book_split_reads_quotes_as_the_book_does(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv"
    path.write_text('ham\t"one\nham\ttwo"\nham\tthree\nspam\tfour\nspam\tfive\n', encoding="utf-8")
    split = sources.book_split(path)
    assert {text for part, _ in split for text in part} == {"one\nham\ttwo", "three", "four", "five"}


def test_book_split_refuses_more_spam_than_ham(tmp_path: Path) -> None:
    path = tmp_path / "sms.tsv"
    path.write_text("ham\ta\nspam\tb\nspam\tc\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 ham and 2 spam"):
        sources.book_split(path)


def test_find_sms_downloads_once(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, nowhere: str) -> None:
    content = b"ham\thello\n"
    monkeypatch.setattr(sources, "SMS_SHA256", sha256(content))
    url = serve({"/sms.zip": zipped(SMSSpamCollection=content, readme=b"about")}) + "/sms.zip"
    folder = tmp_path / "new" / "folder"
    path = sources.find_sms(folder, url=url)
    assert path.read_bytes() == content
    assert list(folder.iterdir()) == [path]
    assert sources.find_sms(folder, url=nowhere) == path


def test_find_sms_keeps_nothing_whose_hash_is_wrong(tmp_path: Path, serve: Serve) -> None:
    url = serve({"/sms.zip": zipped(SMSSpamCollection=b"ham\tchanged\n")}) + "/sms.zip"
    with pytest.raises(ValueError, match=f"not the known {sources.SMS_SHA256}.*save the original file as"):
        sources.find_sms(tmp_path, url=url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"<html>moved</html>", zipped(other=b"x")])
def test_find_sms_refuses_another_archive(tmp_path: Path, serve: Serve, content: bytes) -> None:
    url = serve({"/sms.zip": content}) + "/sms.zip"
    with pytest.raises(ValueError, match="not a zip archive with a member SMSSpamCollection"):
        sources.find_sms(tmp_path, url=url)
    assert list(tmp_path.iterdir()) == []


def test_find_sms_refuses_a_stored_file_that_was_changed(tmp_path: Path, nowhere: str) -> None:
    (tmp_path / "sms_spam.tsv").write_bytes(b"ham\tcut sho")
    with pytest.raises(ValueError, match="changed or cut short; delete it"):
        sources.find_sms(tmp_path, url=nowhere)


def test_find_sms_without_a_network_says_what_to_put_where(tmp_path: Path, nowhere: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        sources.find_sms(tmp_path, url=nowhere)
    for part in (nowhere, "SMSSpamCollection", str(tmp_path / "sms_spam.tsv"), sources.SMS_SHA256):
        assert part in str(caught.value)


def test_find_sms_reports_an_address_that_is_gone(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(FileNotFoundError, match="404"):
        sources.find_sms(tmp_path, url=serve({}) + "/sms.zip")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_folder_honours_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sources.cache_folder() == tmp_path / "gptclf" / "data"
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert sources.cache_folder() == Path.home() / ".cache" / "gptclf" / "data"


def test_find_sms_stores_in_the_cache_folder_by_default(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"ham\thello\n"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "SMS_SHA256", sha256(content))
    url = serve({"/sms.zip": zipped(SMSSpamCollection=content)}) + "/sms.zip"
    assert sources.find_sms(url=url) == tmp_path / "gptclf" / "data" / "sms_spam.tsv"


TRAIN = b'text,category\r\n"Hello, where is it?\nI wait",card_arrival\r\nA ""top"" up,top_up\r\n'
TEST = b'text,category\r\n"Say ""yes""",top_up\r\n'


@pytest.mark.parametrize("prefix", ["", "banking77_"])
def test_read_banking77_reads_quoted_newlines_and_commas(tmp_path: Path, prefix: str) -> None:
    (tmp_path / f"{prefix}train.csv").write_bytes(TRAIN)
    (tmp_path / f"{prefix}test.csv").write_bytes(TEST)
    train, test = sources.read_banking77(tmp_path)
    assert train == (["Hello, where is it?\nI wait", 'A ""top"" up'], ["card_arrival", "top_up"])
    assert test == (['Say "yes"'], ["top_up"])


def test_read_banking77_says_what_to_put_where(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(TRAIN)
    with pytest.raises(FileNotFoundError, match=r"put test\.csv there, from github\.com/PolyAI-LDN.*CC BY 4\.0"):
        sources.read_banking77(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"begins with \[\]"),
        (b"a,b\r\n", "begins with .*'a'.*expected the columns"),
        (b"text,category\r\nyes, please,top_up\r\n", "line 2: 3 fields"),
    ],
)
def test_read_banking77_refuses_another_form(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    (tmp_path / "test.csv").write_bytes(TEST)
    with pytest.raises(ValueError, match=message):
        sources.read_banking77(tmp_path)


def test_find_banking77_downloads_both_parts_once(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    monkeypatch.setattr(sources, "BANKING77_SHA256", {"train": sha256(TRAIN), "test": sha256(TEST)})
    url = serve({"/data/train.csv": TRAIN, "/data/test.csv": TEST}) + "/data"
    assert sources.find_banking77(tmp_path, url=url) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"banking77_train.csv", "banking77_test.csv"}
    assert sources.find_banking77(tmp_path, url=nowhere) == tmp_path
    assert sources.read_banking77(tmp_path)[1] == (['Say "yes"'], ["top_up"])


def test_find_banking77_refuses_changed_files_and_no_network(tmp_path: Path, serve: Serve, nowhere: str) -> None:
    url = serve({"/train.csv": TRAIN, "/test.csv": TEST})
    with pytest.raises(ValueError, match=r"train\.csv has sha256 .* not the known"):
        sources.find_banking77(tmp_path, url=url)
    with pytest.raises(FileNotFoundError, match=r"get train\.csv from .*banking77_train\.csv"):
        sources.find_banking77(tmp_path, url=nowhere)
    assert list(tmp_path.iterdir()) == []


def test_the_sms_collection_has_5574_messages(shared_data: Path, nowhere: str) -> None:
    texts, labels = sources.read_sms(sources.find_sms(shared_data, url=nowhere))
    assert len(texts) == 5574
    assert Counter(labels) == {"ham": 4827, "spam": 747}
    assert len(set(texts)) == 5171


def test_the_sms_collection_splits_as_in_the_book(shared_data: Path, nowhere: str) -> None:
    split = sources.book_split(sources.find_sms(shared_data, url=nowhere))
    assert [len(texts) for texts, _ in split] == [1045, 149, 300]
    assert sum((Counter(labels) for _, labels in split), Counter()) == {"ham": 747, "spam": 747}
    assert all(isinstance(text, str) for part, _ in split for text in part)
    in_training = set(split.train[0])
    assert sum(text in in_training for text in split.test[0]) == 37


def test_banking77_has_77_intents(shared_data: Path, nowhere: str) -> None:
    train, test = sources.read_banking77(sources.find_banking77(shared_data, url=nowhere))
    assert (len(train[0]), len(test[0])) == (10003, 3080)
    assert set(Counter(test[1]).values()) == {40}
    assert set(train[1]) == set(test[1])
    assert sum("\n" in text for text in train[0]) == 10
