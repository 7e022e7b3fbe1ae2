"""Downloading one file: resumed after a cut, verified, and renamed into place once it is complete and correct.

Requests are made in http.py, partial files managed in partial.py; nothing here is specific to a hub.
"""

import errno
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from gptclf.hub.http import CutError, Source, announced_size, is_encoded, raise_for_status, retry, send
from gptclf.hub.partial import claimed, replace, size_of, writing
from gptclf.progress import Meter

if TYPE_CHECKING:
    import requests

PROGRESS_FROM_BYTES = 5_000_000
# A read that times out loses its unfinished chunk; with small chunks a connection that often stalls still advances.
CHUNK_BYTES = 1 << 16

_logger = logging.getLogger(__name__)


class DamagedError(OSError):
    """The downloaded file is not the announced or published one."""


def fetch(source: Source, target: Path, *, version: str = "") -> None:
    """Download the file at `source` to `target`, replacing an existing file.

    Args:
        source: The address of the file and what is known about it.
        target: Where to put the file; its folder is created if necessary.
        version: Identifies the file version; a partial download is resumed only if its version matches.

    Raises:
        PermissionError: The server denied access; with an errno, the operating system did.
        FileNotFoundError: The server does not have the file.
        ConnectionError: The server could not be reached, stayed busy, or kept cutting the connection.
        DamagedError: The downloaded file is wrong; it was deleted.
        OSError: Any other response; with an errno, the target cannot be written or the disk is full.
    """
    with writing(source.what, target.parent, source.elsewhere, source.size):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        with claimed(target, version) as partial:
            _Transfer(source, partial).run()
            replace(partial, target)


def verify(source: Source, path: Path) -> None:
    """Raise DamagedError if the file does not have the expected size, hash or content."""
    size = size_of(path)
    if source.size not in (None, size):
        raise _damaged(source, source.size, size, path)
    if source.digest is not None:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, lambda: _hasher(len(source.digest or ""), size)).hexdigest()
        if got != source.digest:
            raise _damaged(source, source.digest, got, path)
    if source.check is not None:
        try:
            source.check(path)
        except ValueError as error:
            raise DamagedError(f"{source.what} is not the expected file: {error}.") from error


def is_intact(source: Source, path: Path) -> bool:
    """Return True if the file is there and passes `verify`; otherwise log what is wrong with it."""
    try:
        if path.is_file():
            verify(source, path)
            return True
    except DamagedError as error:
        _logger.warning("%s Downloading it again.", error)
    return False


def _hasher(digits: int, size: int) -> Any:
    if digits == 40:
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hashlib.sha256() if digits == 64 else hashlib.md5(usedforsecurity=False)


def _damaged(source: Source, expected: object, got: object, path: Path) -> DamagedError:
    with path.open("rb") as file:
        page = file.read(64).lstrip().startswith(b"<")
    advice = "It starts like a web page; a proxy or a sign-in page may have answered." if page else "Try again."
    return DamagedError(f"{source.what} arrived damaged: expected size or hash {expected}, got {got}. {advice}")


class _Transfer:
    """The download of one partial file until it is complete.

    Attributes:
        source: The address of the file.
        partial: The partial file.
        etag: The ETag of the content in the partial file; None if not known.
        pieced: Whether the partial file comes from more than one response.
    """

    def __init__(self, source: Source, partial: Path) -> None:
        self.source, self.partial = source, partial
        self.etag = source.etag
        self.pieced = size_of(partial) > 0

    def run(self) -> None:
        """Complete the file and verify it; if it was assembled from pieces and is wrong, download it once more."""
        try:
            self._fill()
        except DamagedError as error:
            if not self.pieced:
                raise
            _logger.warning("%s It was assembled from several pieces; downloading it anew.", error)
            self._fill()

    def _fill(self) -> None:
        try:
            while True:
                before = size_of(self.partial)
                try:
                    retry(self._append, on=ConnectionError)
                    break
                except ConnectionError:
                    # On a poor connection, continue as long as something arrives.
                    if size_of(self.partial) <= before:
                        raise
            verify(self.source, self.partial)
        except DamagedError:
            self._empty()
            raise

    def _append(self) -> None:
        """Request the missing bytes and append them. After a ConnectionError, the bytes that arrived are kept."""
        source, have = self.source, size_of(self.partial)
        if have and source.digest is None and self.etag is None:
            # Without a hash or an ETag, nothing could tell whether the next piece belongs to the same content.
            self._empty()
            have = 0
        if have and have == source.size:
            return
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and self.etag is not None and self.etag.startswith('"'):  # weak ETags are not allowed here
            headers["If-Range"] = self.etag
        with send("GET", source, headers=headers) as response:
            if have and response.status_code == 416:
                raise self._start_anew(f"has nothing from byte {have} on")
            raise_for_status(response, source)
            resumed = response.status_code == 206
            total = self._total_of_rest(response, have) if resumed else self._total(response)
            self.etag = response.headers.get("ETag")
            self.pieced = resumed and have > 0
            self._write(response, "ab" if resumed else "wb", total)
        # Some versions of urllib3 do not notice an early end.
        if size_of(self.partial) < (total or 0):
            raise CutError(f"The connection ended at byte {size_of(self.partial)} of {total} of {source.what}.")

    def _total(self, response: "requests.Response") -> int | None:
        """Return the size of the file, after checking that a 200 response can be the file."""
        source, announced = self.source, announced_size(response)
        if source.digest is None and source.etag not in (None, response.headers.get("ETag")):
            raise CutError(f"{source.url} does not have the version of {source.what} looked up. {source.advice}")
        if source.size is not None and announced is not None and announced < source.size:
            raise CutError(f"{source.url} announces an end at byte {announced} of {source.size} of {source.what}.")
        framed = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        if source.size is None and source.digest is None and not framed:
            lacking = f"{response.url} gives neither a length nor a hash, so a truncated download would go unnoticed"
            raise OSError(source.problem(lacking))
        return announced if source.size is None else source.size

    def _total_of_rest(self, response: "requests.Response", have: int) -> int | None:
        """Return the size of the file, after checking that a 206 response continues it at byte `have`."""
        said, etag = response.headers.get("Content-Range", ""), response.headers.get("ETag")
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", said)
        if match is None or int(match[1]) != have or is_encoded(response):
            raise self._start_anew(f"returned {said or 'another range'!r} instead of the bytes from {have} on")
        total = self.source.size if match[2] == "*" else int(match[2])
        # If a hash is known it decides at the end, so the response does not need an ETag.
        same = self.source.digest is not None if None in (etag, self.etag) else etag == self.etag
        if self.source.size not in (None, total) or (have and not same):
            raise self._start_anew("has changed since the first part was downloaded")
        return total

    def _start_anew(self, reason: str) -> CutError:
        self._empty()
        self.etag = None
        return CutError(f"{self.source.url} {reason}. Starting {self.source.what} anew.")

    def _empty(self) -> None:
        # Truncated rather than deleted: our lock is on this very file.
        os.truncate(self.partial, 0)

    def _write(self, response: "requests.Response", mode: str, total: int | None) -> None:
        import requests

        with self.partial.open(mode) as file, _progress(self.source, total or 0, file.tell()) as tell:
            try:
                for chunk in response.iter_content(CHUNK_BYTES):
                    file.write(chunk)
                    tell(file.tell())
                    # A server that sends without end must not fill the disk.
                    if total is not None and file.tell() > total:
                        break
            except requests.RequestException as error:
                raise CutError(f"The connection was cut while getting {self.source.what}: {error}.") from error
            file.flush()
            os.fsync(file.fileno())
        if total is not None and size_of(self.partial) > total:
            raise _damaged(self.source, total, f"{size_of(self.partial)} or more", self.partial)


@contextmanager
def _progress(source: Source, total: int, done: int) -> Iterator[Callable[[int], object]]:
    """Yield a function that is told how many bytes are done, and shows it unless the file is small."""
    name = unquote(source.url.rpartition("/")[2])
    shown = total >= PROGRESS_FROM_BYTES and source.progress
    with Meter(total, name, unit="B", enabled=shown, done=done) as meter:
        yield lambda done: meter.update(done - meter.done)
