"""Asks an address over HTTP and says what its answer means: redirects, the token's bounds, errors, patience."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

if TYPE_CHECKING:
    import requests

RETRY_WAITS_SECONDS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
MAX_RETRY_AFTER_SECONDS = 60.0
MAX_REDIRECTS = 10

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class CutError(ConnectionError):
    """The server broke off or kept silent; asking again may help."""


class BusyError(CutError):
    """The server asks for patience, for `retry_after_seconds` at least."""

    retry_after_seconds = 0.0


@dataclass(frozen=True)
class Source:
    """One address, and what is known of the file there.

    Attributes:
        url: The address, http or https.
        what: The file, as messages name it.
        advice: What to do where it cannot be had: whole sentences.
        elsewhere: What to do where it cannot be written: the end of a sentence.
        timeout: Seconds without a connection or a byte after which it counts as cut.
        token: Sent to the address's own scheme, host and port alone.
        size: Its bytes; None if not known.
        digest: A hash in hexadecimal: of 64 digits sha256, of 40 git's blob sha1, of 32 md5; None if not known.
        etag: What this very address gives as the content's ETag, for resuming.
        check: Called with the file before it gets its name; raises ValueError for a wrong one.
        refuse: Called with an answer before its status is judged here; may raise what a protocol makes of it.
        progress: Whether to show how far a big file is.
    """

    url: str
    what: str
    advice: str
    elsewhere: str
    timeout: float = 10.0
    token: str | None = None
    size: int | None = None
    digest: str | None = None
    etag: str | None = None
    check: Callable[[Path], None] | None = None
    refuse: Callable[[requests.Response], None] | None = None
    progress: bool = True


def send(
    method: str,
    source: Source,
    *,
    headers: Mapping[str, str] | None = None,
    follow: Callable[[requests.Response, str], bool] = lambda response, target: True,
) -> requests.Response:
    """Ask for a source's address, and for where it redirects to if `follow(response, target)` says so."""
    import requests
    import urllib3

    url = _joined(source.url, "", source)
    for _ in range(MAX_REDIRECTS):
        if urlsplit(url).scheme not in ("http", "https"):
            raise OSError(f"Could not get {source.what}: {url!r} is no http or https address. {source.advice}")
        token = source.token if origin(url) == origin(source.url) else None
        try:
            response = requests.request(
                method,
                url,
                headers={"Accept-Encoding": "identity", **(headers or {})},
                # As `auth`, for requests would put a password from ~/.netrc in place of a plain header.
                auth=_bearer(token) if token else None,
                timeout=source.timeout,
                stream=True,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # A connection that was made may do better next time; one that was not is most likely not to be had.
            made = isinstance(error, requests.ReadTimeout) or isinstance(
                next(iter(error.args), None), urllib3.exceptions.ProtocolError
            )
            raise (CutError if made else ConnectionError)(
                f"Could not get {source.what} from {url}: {error}. Check the network and its proxy. {source.advice}"
            ) from error
        except ValueError as error:
            # requests looks at where a redirect leads, though it is not to follow.
            raise OSError(
                f"Could not get {source.what}: {url} leads to no address ({error}). {source.advice}"
            ) from error
        target = _joined(url, response.headers.get("Location", ""), source)
        if not response.is_redirect or not follow(response, target):
            return response
        response.close()
        url = target
    raise ConnectionError(f"Could not get {source.what}: more than {MAX_REDIRECTS} redirects, the last to {url}.")


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what a token is for."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _joined(base: str, location: str, source: Source) -> str:
    try:
        url = urljoin(base, location)
        origin(url)
    except ValueError as error:
        raise OSError(
            f"Could not get {source.what}: {location or base!r} is no address ({error}). {source.advice}"
        ) from error
    return url


def _bearer(token: str) -> Callable[[requests.PreparedRequest], requests.PreparedRequest]:
    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def announced_size(response: requests.Response) -> int | None:
    """The length that an answer gives; None if it is not that of the file (a redirect's, a compressed body's)."""
    length = response.headers.get("Content-Length", "")
    plain = not response.is_redirect and not is_encoded(response)
    return int(length) if plain and re.fullmatch(r"[0-9]{1,18}", length) else None


def is_encoded(response: requests.Response) -> bool:
    """Whether the body is compressed, though it was asked for as it is."""
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def raise_for_status(response: requests.Response, source: Source) -> None:
    """Raise what an answer that brings no file means."""
    if source.refuse is not None:
        source.refuse(response)
    status = response.status_code
    said = f"{response.url} answered {status} ({response.reason})"
    if status in (401, 403):
        raise PermissionError(f"No access to {source.what}: {said}. {source.advice}")
    if status in (404, 410):
        raise FileNotFoundError(f"There is no {source.what}: {said}. {source.advice}")
    if status in (408, 429) or status >= 500:
        busy = BusyError(f"The server has no time for {source.what}: {said}. Try later. {source.advice}")
        busy.retry_after_seconds = _retry_after(response)
        raise busy
    if status not in (200, 206):
        raise OSError(f"Could not get {source.what}: {said}. {source.advice}")


def _retry_after(response: requests.Response) -> float:
    """Seconds from the Retry-After header, a number or a date (RFC 9110, section 10.2.3)."""
    asked = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,18}", asked):
        return float(asked)
    try:
        # By the server's own clock, where it says what that shows.
        now = response.headers.get("Date")
        start = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(asked) - start).total_seconds())
    except (ValueError, TypeError):  # no date; or one of the two is without a time zone
        return 0.0


def retry(attempt: Callable[[], _T], on: type[ConnectionError]) -> _T:
    """The attempt's result; after an error of that kind it is made again, with growing pauses between."""
    for wait in RETRY_WAITS_SECONDS:
        try:
            return attempt()
        except on as error:
            asked = error.retry_after_seconds if isinstance(error, BusyError) else 0.0
            seconds = max(wait, min(asked, MAX_RETRY_AFTER_SECONDS))
            _logger.info("%s Trying again in %g s.", error, seconds)
            time.sleep(seconds)
    return attempt()
