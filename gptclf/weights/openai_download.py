"""Downloading OpenAI's GPT-2 checkpoints from OpenAI or a mirror, into the layout of the book's `gpt2` folder."""

import base64
import binascii
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path

from gptclf import checks
from gptclf.files.leveldb_table import MAGIC
from gptclf.files.tensorbundle import open_bundle
from gptclf.gpt2.config import ALIASES, BOOK_NAMES, PRESETS, GPT2Config, published_name
from gptclf.hub.cache import cache_home, is_on, timeout_seconds
from gptclf.hub.http import CutError, Source, announced_size, raise_for_status, retry, send
from gptclf.hub.transfer import DamagedError, fetch, is_intact
from gptclf.tokenizer.find import TIKTOKEN_FILES
from gptclf.weights.openai import parameter_count
from gptclf.weights.openai_folder import config_from_settings

# OpenAI's own address, and the backup that the book's repository names. Each has one folder per size.
ADDRESSES = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
_DATA = "model.ckpt.data-00000-of-00001"
# The large file last, so that errors show early.
FILES = ("hparams.json", "checkpoint", "encoder.json", "vocab.bpe", "model.ckpt.index", "model.ckpt.meta", _DATA)

_logger = logging.getLogger(__name__)


def download_openai_checkpoint(
    size: str = "124M", folder: str | Path | None = None, *, addresses: Iterable[str] = ADDRESSES
) -> Path:
    """Download OpenAI's TensorFlow checkpoint of one size (book section 5.5). Intact files in the folder are kept.

    Each file is checked against the server's announcement (length, Content-MD5) and against the published values: the
    hashes of the tokenizer's files, the numbers in hparams.json, the checksum of every tensor. Interrupted downloads
    resume on the next call. If an address fails or gives wrong content, a warning is logged and the next one is tried.

    Args:
        size: "124M", "355M", "774M" or "1558M"; or "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl", or the book's
            "gpt2-small (124M)" and so on, for the same.
        folder: The files go into `<folder>/<size>`; None means gptclf/openai in the user's cache folder.
        addresses: The addresses to try, in this order; the files are at `<address>/<size>/<file>`.

    Returns:
        The folder that holds checkpoint, encoder.json, hparams.json, model.ckpt.data-00000-of-00001,
        model.ckpt.index, model.ckpt.meta and vocab.bpe.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: There is no such size, or `addresses` is empty.
        FileNotFoundError: A file is missing and HF_HUB_OFFLINE forbids network access.
        ConnectionError: No address gave the right file; the message has the reason for each.
        OSError: The folder cannot be written, or the disk is full.

    Example:
        >>> download_openai_checkpoint("125M")
        Traceback (most recent call last):
        ValueError: size is '125M'; it must be one of 124M, 355M, 774M, 1558M, gpt2, gpt2-medium, ...
    """
    preset = published_name(checks.choice("size", size, [*ALIASES, *ALIASES.values(), *BOOK_NAMES]))
    size = next(alias for alias, name in ALIASES.items() if name == preset)
    if not isinstance(addresses, Iterable):
        raise TypeError(f"addresses is {addresses!r}; it must be a list of addresses")
    asked = [addresses] if isinstance(addresses, str) else list(addresses)
    if not all(isinstance(address, str) for address in asked):
        raise TypeError(f"addresses is {asked!r}; each must be a str")
    if not asked:
        raise ValueError("addresses is empty; give at least one, or omit it to use OpenAI's and the book's")
    target = (cache_home() / "gptclf" / "openai" if folder is None else checks.path("folder", folder)) / size
    for name in FILES:
        source = _expected(name, size, target)
        if is_intact(source, target / name):
            continue
        if is_on("HF_HUB_OFFLINE"):
            raise FileNotFoundError(
                f"{source.what} is missing from {target} or damaged, and HF_HUB_OFFLINE forbids the network. "
                f"Unset it to download. {source.advice}"
            )
        _fetch_from_any(asked, f"{size}/{name}", source, target / name)
    try:
        open_bundle(target / "model.ckpt")  # compares every tensor with its checksum in the index
    except ValueError as error:
        for name in (_DATA, "model.ckpt.index"):
            (target / name).unlink(missing_ok=True)
        remedy = "Both files were removed; call again to download them anew, or pass other addresses="
        raise DamagedError(f"{error}. {remedy}") from error
    return target


def _expected(name: str, size: str, folder: Path) -> Source:
    """Return a `Source` with the facts about a file of one size that hold for any address; its `url` is empty."""
    config = PRESETS[ALIASES[size]]
    return Source(
        url="",
        what=f"{name!r} of OpenAI's {size} checkpoint",
        advice=f"By hand: put {', '.join(FILES)} into {folder}, or pass addresses= with a mirror that has them.",
        elsewhere="pass another folder=.",
        timeout=timeout_seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
        size=4 * parameter_count(config) if name == _DATA else None,
        digest=TIKTOKEN_FILES.get(name),
        check=functools.partial(_check_content, name=name, config=config),
        progress=not is_on("HF_HUB_DISABLE_PROGRESS_BARS"),
    )


def _check_content(path: Path, name: str, config: GPT2Config) -> None:
    """Raise a ValueError if a file cannot be the one of this name in the checkpoint of this size."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if name == "hparams.json":
        try:
            found = json.loads(path.read_bytes())
            right = config_from_settings(found) == config
        except (ValueError, TypeError) as error:
            raise ValueError(f"it does not describe this size ({error})") from error
        if not right:
            raise ValueError(f"its numbers are those of another size: {str(found)[:200]}")
    elif name == "checkpoint" and not start.startswith(b"model_checkpoint_path:"):
        raise ValueError("it does not start with model_checkpoint_path:")
    elif name == "model.ckpt.index" and not path.read_bytes().endswith(MAGIC.to_bytes(8, "little")):
        raise ValueError("it does not end like the index of a TensorFlow checkpoint")
    elif not start or start.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError("it is a web page, as a proxy or a sign-in page returns" if start else "it is empty")


def _fetch_from_any(addresses: list[str], path: str, expected: Source, target: Path) -> None:
    """Download from the first address that gives the right file; addresses that fail go to the end of the list."""
    reasons = []
    for address in list(addresses):
        source = dataclasses.replace(expected, url=f"{address.rstrip('/')}/{path}")
        try:
            source, version = retry(functools.partial(_announced, source), on=CutError)
            fetch(source, target, version=version)
        except OSError as error:
            if error.errno is not None:
                raise  # a problem of this machine, which no other address can solve
            reasons.append(f"{address}: {error}")
            _logger.warning("%s did not give %s: %s", address, expected.what, error)
            addresses.append(addresses.pop(addresses.index(address)))
            continue
        for part in target.parent.glob(f"{target.name}.{'?' * 8}.incomplete"):
            part.unlink(missing_ok=True)
        return
    # Each reason ends with the same advice; give it once.
    told = "\n".join(reason.replace(f" {expected.advice}", "") for reason in reasons)
    raise ConnectionError(f"No address gave {expected.what}:\n{told}\n{expected.advice}")


def _announced(source: Source) -> tuple[Source, str]:
    """Return the source with the size, hash and ETag that its server announces, and a short id of that version."""
    with send("HEAD", source) as response:
        raise_for_status(response, source)
        size, etag = announced_size(response), response.headers.get("ETag")
        try:
            md5 = base64.b64decode(response.headers.get("Content-MD5", ""), validate=True).hex()
        except binascii.Error:
            md5 = ""
    if source.size is not None and size not in (None, source.size):
        raise DamagedError(f"{source.what} has {size} bytes at {source.url} instead of {source.size}.")
    # Published values take precedence over what the server says.
    digest = source.digest or (md5 if len(md5) == 32 else None)
    source = dataclasses.replace(source, size=source.size or size, digest=digest, etag=etag)
    return source, "." + hashlib.sha256(repr((source.url, size, md5, etag)).encode()).hexdigest()[:8]
