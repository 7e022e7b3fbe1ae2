"""The public data sets of the examples: finding and reading the SMS Spam Collection and BANKING77.

Formats, addresses and checksums are here; generated messages are in messages.py. `texts_from` reads files of your own.
"""

import csv
import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from messages import make_messages

from gptclf import TextDataset, load_gpt2

__all__ = [
    "BookSplit",
    "Texts",
    "book_split",
    "cache_folder",
    "find_banking77",
    "find_sms",
    "read_banking77",
    "read_sms",
    "texts_from",
]

Texts = tuple[list[str], list[str]]  # texts and their labels, in the same order

SMS_URL = "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip"
SMS_MEMBER = "SMSSpamCollection"
SMS_FILE = "sms_spam.tsv"
SMS_SHA256 = "7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d"

# A fixed commit, because the master branch may change.
BANKING77_URL = (
    "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/"
    "57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data"
)
BANKING77_HOME = "github.com/PolyAI-LDN/task-specific-datasets, folder banking_data, licence CC BY 4.0"
BANKING77_SHA256 = {
    "train": "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
    "test": "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d",
}

TIMEOUT = 30.0  # seconds without a byte


def texts_from(path: str | Path | None, n: int) -> Texts:
    """Read texts and labels from a file, or make `n` messages if no file is named.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file with the columns `text` and `label`, or None.
        n: Number of messages to make.
    """
    if path is None:
        return make_messages(n)
    data = TextDataset.from_file(path, tokenizer=load_gpt2("nano").tokenizer)
    return data.texts, data.given


class BookSplit(NamedTuple):
    """Three parts of one collection, each as texts and labels."""

    train: Texts
    validation: Texts
    test: Texts


def cache_folder() -> Path:
    """Return the folder for downloads: gptclf/data under $XDG_CACHE_HOME, else under ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG rules, an empty or relative value is ignored.
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "gptclf" / "data"


def read_sms(path: str | os.PathLike[str]) -> Texts:
    """Read the SMS Spam Collection: one `label<TAB>text` a line, with no quoting and no header.

    Quotation marks are text here. A reader that takes them as quotes joins lines, and finds two rows
    fewer in the original file; see `book_split`.

    Args:
        path: The file, as `find_sms` returns it.

    Returns:
        The texts and their labels, "ham" or "spam": 5,574 of them in the original file.

    Raises:
        ValueError: A line has another form; the error names it by number.
    """
    texts, labels = [], []
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        for row in rows:
            if len(row) != 2 or row[0] not in ("ham", "spam"):
                raise ValueError(
                    f"{path}, line {rows.line_num}: got {row!r}; expected 'ham' or 'spam', one tab and the text. "
                    "Remove a header line or further columns"
                )
            labels.append(row[0])
            texts.append(row[1])
    return texts, labels


def book_split(path: str | os.PathLike[str]) -> BookSplit:
    """Read and split the SMS Spam Collection as "Build a Large Language Model (From Scratch)" does.

    As in its chapter 6: pandas' default quoting, as many ham as spam messages by a sample with seed 123,
    ham before spam, a shuffle with seed 123, then 70 %, 10 % and 20 % in that order. The original file
    gives 1,045, 149 and 300 messages. Some test texts also occur in the training part, as in the book.

    Args:
        path: The file, as `find_sms` returns it.

    Returns:
        The three parts.

    Raises:
        ImportError: pandas is not installed.
        ValueError: There are fewer ham than spam messages.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("the book's split needs pandas: pip install 'gptclf[examples]'") from error
    frame = pandas.read_csv(path, sep="\t", header=None, names=["Label", "Text"])
    ham, spam = frame[frame["Label"] == "ham"], frame[frame["Label"] == "spam"]
    if len(ham) < len(spam):
        raise ValueError(
            f"{path} has {len(ham)} ham and {len(spam)} spam messages; the book's split keeps all spam and as many "
            "ham, so it needs no fewer ham than spam. Pass the original collection"
        )
    balanced = pandas.concat([ham.sample(len(spam), random_state=123), spam])
    balanced = balanced.sample(frac=1, random_state=123).reset_index(drop=True)
    texts, labels = balanced["Text"].tolist(), balanced["Label"].tolist()
    a = int(len(texts) * 0.7)
    b = a + int(len(texts) * 0.1)
    return BookSplit((texts[:a], labels[:a]), (texts[a:b], labels[a:b]), (texts[b:], labels[b:]))


def find_sms(folder: str | os.PathLike[str] | None = None, *, url: str = SMS_URL) -> Path:
    """Return the path of the SMS Spam Collection; download it first if it is missing.

    Args:
        folder: Where `sms_spam.tsv` is or should be; `cache_folder()` by default.
        url: The zip archive that holds it.

    Returns:
        The path of a file with the known checksum, for `read_sms` or `book_split`.

    Raises:
        FileNotFoundError: The file is missing and cannot be downloaded; the error says what to put where.
        ValueError: The file or the download is not the known one.
    """
    path = (cache_folder() if folder is None else Path(folder)) / SMS_FILE
    if path.exists():
        _check(path.read_bytes(), SMS_SHA256, str(path), f"delete it to download it from {url}")
        return path
    by_hand = f"download {url} in another way, take {SMS_MEMBER} out of it and save it as {path}"
    archive = _download(url, path, by_hand, SMS_SHA256)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            content = members.read(SMS_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{url} gave {len(archive)} bytes that are not a zip archive with a member {SMS_MEMBER} ({error}); "
            f"{by_hand} (sha256 {SMS_SHA256})"
        ) from error
    _check(content, SMS_SHA256, f"{SMS_MEMBER} from {url}", f"save the original file as {path}")
    _write(path, content)
    return path


def read_banking77(folder: str | os.PathLike[str]) -> tuple[Texts, Texts]:
    """Read BANKING77, customer questions to a bank with 77 intents, in its own split.

    Args:
        folder: Holds `banking77_train.csv` and `banking77_test.csv`, or `train.csv` and `test.csv`, each
            with the columns `text` and `category`.

    Returns:
        The training part and the test part, each as texts and labels: 10,003 and 3,080 originally.

    Raises:
        FileNotFoundError: A file is missing; the error says what to put where.
        ValueError: A file has another form.
    """
    train, test = (_read_csv(_banking77_file(Path(folder), part)) for part in ("train", "test"))
    return train, test


def find_banking77(folder: str | os.PathLike[str] | None = None, *, url: str = BANKING77_URL) -> Path:
    """Return the folder that holds BANKING77; download its two files first if they are missing.

    Args:
        folder: Where `banking77_train.csv` and `banking77_test.csv` are or should be; `cache_folder()` by default.
        url: The address under which `train.csv` and `test.csv` are found.

    Returns:
        The folder, for `read_banking77`; both files have the known checksums.

    Raises:
        FileNotFoundError: A file is missing and cannot be downloaded; the error says what to put where.
        ValueError: A file or a download is not the known one.
    """
    base = cache_folder() if folder is None else Path(folder)
    for part, sha256 in BANKING77_SHA256.items():
        path, source = base / f"banking77_{part}.csv", f"{url}/{part}.csv"
        if path.exists():
            _check(path.read_bytes(), sha256, str(path), f"delete it to download it from {source}")
            continue
        content = _download(source, path, f"get {part}.csv from {BANKING77_HOME}, and save it as {path}", sha256)
        _check(content, sha256, source, f"save the original file as {path}")
        _write(path, content)
    return base


def _banking77_file(folder: Path, part: str) -> Path:
    paths = [folder / f"banking77_{part}.csv", folder / f"{part}.csv"]
    for path in paths:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"neither {paths[0].name} nor {paths[1].name} is in {folder}; put {part}.csv there, from {BANKING77_HOME}"
    )


def _read_csv(path: Path) -> Texts:
    texts, labels = [], []
    # newline="": a quoted text may hold line breaks, which the csv module must see as they are.
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if header != ["text", "category"]:
            raise ValueError(
                f"{path} begins with {header!r}; expected the columns 'text' and 'category'. "
                f"The original file is at {BANKING77_HOME}"
            )
        for row in rows:
            if len(row) != 2:
                raise ValueError(
                    f"{path}, line {rows.line_num}: {len(row)} fields, {row!r}; expected a text and a category. "
                    "Quote a text that holds a comma"
                )
            texts.append(row[0])
            labels.append(row[1])
    return texts, labels


def _download(url: str, path: Path, by_hand: str, sha256: str) -> bytes:
    import requests

    try:
        reply = requests.get(url, timeout=TIMEOUT)
        reply.raise_for_status()
        return reply.content
    except requests.RequestException as error:
        raise FileNotFoundError(
            f"{path} is not there and could not be downloaded ({error}); {by_hand} (sha256 {sha256})"
        ) from error


def _check(content: bytes, sha256: str, what: str, remedy: str) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise ValueError(f"{what} has sha256 {got}, not the known {sha256}: it was changed or cut short; {remedy}")


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary file beside the path and rename it, so a file under its final name is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
