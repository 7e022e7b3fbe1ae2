"""OpenAI's own GPT-2 checkpoints, from OpenAI's address or a mirror, in the layout of the book's `gpt2` folder."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from gptclf.files.leveldb_table import MAGIC
from gptclf.files.tensorbundle import open_bundle
from gptclf.gpt2.config import ALIASES, PRESETS, GPT2Config
from gptclf.hub.cache import cache_home, is_on, timeout_seconds
from gptclf.hub.http import CutError, Source, announced_size, raise_for_status, retry, send
from gptclf.hub.transfer import DamagedError, fetch, verify
from gptclf.tokenizer.find import TIKTOKEN_FILES
from gptclf.weights.openai import parameter_count
from gptclf.weights.openai_folder import config_from_settings

# A size's folder is below each: OpenAI's own, and what the book's repository names as its backup.
ADDRESSES = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
_DATA = "model.ckpt.data-00000-of-00001"
# The big one last, so that what is wrong shows early.
FILES = ("hparams.json", "checkpoint", "encoder.json", "vocab.bpe", "model.ckpt.index", "model.ckpt.meta", _DATA)

_logger = logging.getLogger(__name__)


def download_openai_checkpoint(
    size: str = "124M",
    folder: str | Path | None = None,
    *,
    addresses: Iterable[str] = ADDRESSES,
) -> Path:
    """Download OpenAI's TensorFlow checkpoint of a size (book section 5.5); what is there and right is kept.

    Each file is compared with what the server announces (length, Content-MD5) and with what is known of it: the
    tokenizer's hashes, the numbers in hparams.json, the checksum of every tensor. What was cut off is gone on with by
    the next call. An address that fails or gives wrong bytes is passed over with a warning.

    Args:
        size: "124M", "355M", "774M" or "1558M", or the same as "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl".
        folder: The files go into `<folder>/<size>`; None means gptclf/openai in the user's folder of caches.
        addresses: Where to ask, in this order; the files are at `<address>/<size>/<file>`.

    Returns:
        The folder that holds checkpoint, encoder.json, hparams.json, model.ckpt.data-00000-of-00001,
        model.ckpt.index, model.ckpt.meta and vocab.bpe.

    Raises:
        ValueError: No such size, or no address.
        FileNotFoundError: A file is missing and HF_HUB_OFFLINE forbids the network.
        ConnectionError: No address gave the right file; the message has each one's reason.
        OSError: The folder cannot be written, or the disk is full.

    Example:
        >>> download_openai_checkpoint("125M")
        Traceback (most recent call last):
        ValueError: size is '125M'; OpenAI published 124M, 355M, 774M, 1558M
    """
    preset = ALIASES.get(str(size), str(size))
    published = {name: alias for alias, name in ALIASES.items()}
    if preset not in published:
        raise ValueError(f"size is {size!r}; OpenAI published {', '.join(ALIASES)}")
    if not isinstance(addresses, Iterable):
        raise TypeError(f"addresses is {addresses!r}; give a list of addresses")
    asked = [addresses] if isinstance(addresses, str) else list(addresses)
    if not all(isinstance(address, str) for address in asked):
        raise TypeError(f"addresses is {asked!r}; each must be a str")
    if not asked:
        raise ValueError("addresses is empty; give at least one, or leave it out for OpenAI's and the book's")
    size = published[preset]
    target = (cache_home() / "gptclf" / "openai" if folder is None else Path(folder)) / size
    for name in FILES:
        source = _expected(name, size, target)
        if (target / name).is_file():
            try:
                verify(source, target / name)
                continue
            except DamagedError as error:
                _logger.warning("%s It was there already and is replaced.", error)
        if is_on("HF_HUB_OFFLINE"):
            raise FileNotFoundError(
                f"{source.what} is not in {target}, or is not right there, and HF_HUB_OFFLINE forbids the network. "
                f"Unset it to download. {source.advice}"
            )
        _fetch_from_any(asked, f"{size}/{name}", source, target / name)
    _verify_tensors(target)
    return target


def _verify_tensors(folder: Path) -> None:
    """Compare every tensor with its checksum in the index; what does not fit together is removed."""
    try:
        open_bundle(folder / "model.ckpt")
    except ValueError as error:
        for name in (_DATA, "model.ckpt.index"):
            (folder / name).unlink(missing_ok=True)
        raise DamagedError(
            f"{error}. Both files were removed; call again to fetch them anew, or with other addresses="
        ) from error


def _expected(name: str, size: str, folder: Path) -> Source:
    """What is known of a file of a size, wherever it comes from; the address is still missing."""
    config = PRESETS[ALIASES[size]]
    own: dict[str, Callable[[Path], None]] = {
        "hparams.json": functools.partial(_check_hparams, config=config),
        "checkpoint": _check_state,
        "model.ckpt.index": _check_table,
    }

    return Source(
        url="",
        what=f"{name!r} of OpenAI's {size} checkpoint",
        advice=f"By hand: put {', '.join(FILES)} into {folder}, or pass addresses= with a mirror that has them.",
        elsewhere="pass another folder=.",
        timeout=timeout_seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
        size=4 * parameter_count(config) if name == _DATA else None,
        digest=TIKTOKEN_FILES.get(name),
        check=own.get(name, _check_no_page),
        progress=not is_on("HF_HUB_DISABLE_PROGRESS_BARS"),
    )


def _check_hparams(path: Path, config: GPT2Config) -> None:
    try:
        found = json.loads(path.read_bytes())
        right = config_from_settings(found) == config
    except (ValueError, TypeError) as error:
        raise ValueError(f"it does not describe this size ({error})") from error
    if not right:
        raise ValueError(f"its numbers are {str(found)[:200]}, which are another size's")


def _check_state(path: Path) -> None:
    if not path.read_bytes().lstrip().startswith(b"model_checkpoint_path:"):
        raise ValueError("it does not name a model_checkpoint_path")


def _check_table(path: Path) -> None:
    """Look for the number that ends a table of TensorFlow's (tensorflow/core/lib/io/format.h), so a cut one is seen."""
    if not path.read_bytes().endswith(MAGIC.to_bytes(8, "little")):
        raise ValueError("it does not end as an index of a TensorFlow checkpoint does")


def _check_no_page(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    if not start or start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError("it is a web page, as a proxy or a sign-in page gives" if start else "it is empty")


def _fetch_from_any(addresses: list[str], path: str, expected: Source, target: Path) -> None:
    """Fetch from the first address that gives the right file; those that fail go to the end of the list."""
    reasons = []
    for address in list(addresses):
        source = dataclasses.replace(expected, url=f"{address.rstrip('/')}/{path}")
        try:
            source, version = retry(functools.partial(_announced, source), on=CutError)
            fetch(source, target, version=version)
        except OSError as error:
            if error.errno is not None:
                raise  # the trouble is here, and no other address mends it
            reasons.append(f"{address}: {error}")
            _logger.warning("%s did not give %s: %s", address, expected.what, error)
            addresses.append(addresses.pop(addresses.index(address)))
            continue
        for part in target.parent.glob(f"{target.name}.{'?' * 8}.incomplete"):
            part.unlink(missing_ok=True)
        return
    # Each reason ends with the same advice, which is said once.
    told = "\n".join(reason.replace(f" {expected.advice}", "") for reason in reasons)
    raise ConnectionError(f"No address gave {expected.what}:\n{told}\n{expected.advice}")


def _announced(source: Source) -> tuple[Source, str]:
    """The source with what its server says of the file, and a short name of that version of it."""
    with send("HEAD", source) as response:
        raise_for_status(response, source)
        size, etag = announced_size(response), response.headers.get("ETag")
        try:
            md5: str | None = base64.b64decode(response.headers.get("Content-MD5", ""), validate=True).hex()
        except binascii.Error:
            md5 = None
    if source.size is not None and size not in (None, source.size):
        raise DamagedError(f"{source.what} has {size} bytes at {source.url}, where {source.size} are right.")
    # What is published is known better than what a server says.
    source = dataclasses.replace(
        source,
        size=size if source.size is None else source.size,
        digest=(md5 if md5 is not None and len(md5) == 32 else None) if source.digest is None else source.digest,
        etag=etag,
    )
    return source, "." + hashlib.sha256(repr((source.url, size, md5, etag)).encode()).hexdigest()[:8]
