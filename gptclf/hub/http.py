"""HTTP requests: redirects, the servers that a token may be sent to, errors with advice, and retries."""

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
    """The connection was cut or timed out; a retry may help."""


class BusyError(CutError):
    """The server is busy; retry after `retry_after_seconds` at the earliest."""

    retry_after_seconds = 0.0


@dataclass(frozen=True)
class Source:
    """An address, and what is known about the file there.

    Attributes:
        url: The http or https address.
        what: The name of the file in messages.
        advice: What to do if the file cannot be downloaded, as complete sentences.
        elsewhere: What to do if the file cannot be written, as the end of a sentence.
        timeout: Seconds without a connection or a byte after which the connection counts as cut.
        token: Sent only to the scheme, host and port of `url`.
        size: Size in bytes; None if not known.
        digest: Hash in hexadecimal: sha256 (64 digits), git's blob sha1 (40) or md5 (32); None if not known.
        etag: The ETag that this address gives for the content, for resuming.
        check: Called with the downloaded file before it is renamed into place; raises ValueError if it is wrong.
        refuse: Called with each response before its status is checked; may raise an error of its own.
        progress: Whether to show the progress of a large file.
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
    refuse: "Callable[[requests.Response], None] | None" = None
    progress: bool = True

    def problem(self, what: str) -> str:
        """Return a message about this file, with the advice."""
        return f"Could not get {self.what}: {what}. {self.advice}"


def send(
    method: str,
    source: Source,
    *,
    headers: Mapping[str, str] | None = None,
    follow: "Callable[[requests.Response, str], bool]" = lambda response, target: True,
) -> "requests.Response":
    """Request the address of a source, and follow its redirects as long as `follow(response, target)` is true."""
    import requests
    import urllib3

    url = _joined(source.url, "", source)
    for _ in range(MAX_REDIRECTS):
        if urlsplit(url).scheme not in ("http", "https"):
            raise OSError(source.problem(f"{url!r} is not an http or https address"))
        # Passed as `auth`, because requests would replace a plain header by a password from ~/.netrc.
        auth = _bearer(source.token) if source.token and origin(url) == origin(source.url) else None
        sent = {"Accept-Encoding": "identity", **(headers or {})}
        try:
            response = requests.request(
                method, url, headers=sent, auth=auth, timeout=source.timeout, stream=True, allow_redirects=False
            )
        except requests.RequestException as error:
            # An established connection that broke may work next time; one that was refused most likely will not.
            cause = next(iter(error.args), None)
            established = isinstance(error, requests.ReadTimeout) or isinstance(cause, urllib3.exceptions.ProtocolError)
            kind = CutError if established else ConnectionError
            raise kind(source.problem(f"{url}: {error}. Check the network and its proxy")) from error
        except ValueError as error:
            # requests parses the target of a redirect even if it does not follow it.
            raise OSError(source.problem(f"{url} redirects to an invalid address ({error})")) from error
        target = _joined(url, response.headers.get("Location", ""), source)
        if not response.is_redirect or not follow(response, target):
            return response
        response.close()
        url = target
    raise ConnectionError(f"Could not get {source.what}: more than {MAX_REDIRECTS} redirects, the last one to {url}.")


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Return the scheme, host and port of an address: a token is valid for one combination of these."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _joined(base: str, location: str, source: Source) -> str:
    try:
        url = urljoin(base, location)
        origin(url)
    except ValueError as error:
        raise OSError(source.problem(f"{location or base!r} is not a valid address ({error})")) from error
    return url


def _bearer(token: str) -> "Callable[[requests.PreparedRequest], requests.PreparedRequest]":
    def authorize(request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return authorize


def announced_size(response: "requests.Response") -> int | None:
    """Return the announced size of the file, or None if the length is that of a redirect or a compressed body."""
    length = response.headers.get("Content-Length", "")
    plain = not response.is_redirect and not is_encoded(response)
    return int(length) if plain and re.fullmatch(r"[0-9]{1,18}", length) else None


def is_encoded(response: "requests.Response") -> bool:
    """Return True if the body is compressed although the request asked for an uncompressed one."""
    return response.headers.get("Content-Encoding", "identity").lower() != "identity"


def raise_for_status(response: "requests.Response", source: Source) -> None:
    """Raise an error for a response without the file."""
    if source.refuse is not None:
        source.refuse(response)
    status = response.status_code
    said = f"{response.url} answered {status} ({response.reason})"
    if status in (401, 403):
        raise PermissionError(f"No access to {source.what}: {said}. {source.advice}")
    if status in (404, 410):
        raise FileNotFoundError(f"There is no {source.what}: {said}. {source.advice}")
    if status in (408, 429) or status >= 500:
        busy = BusyError(f"The server is too busy to send {source.what}: {said}. Try again later. {source.advice}")
        busy.retry_after_seconds = _retry_after(response)
        raise busy
    if status not in (200, 206):
        raise OSError(source.problem(said))


def _retry_after(response: "requests.Response") -> float:
    """Return the seconds to wait by the Retry-After header, a number or a date (RFC 9110, section 10.2.3)."""
    asked = response.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,18}", asked):
        return float(asked)
    try:
        # Relative to the server's own clock, if the response gives it.
        now = response.headers.get("Date")
        start = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(asked) - start).total_seconds())
    except (ValueError, TypeError):  # not a date, or only one of the two has a time zone
        return 0.0


def retry(attempt: Callable[[], _T], on: type[ConnectionError]) -> _T:
    """Return the result of `attempt`, retrying with increasing pauses after errors of type `on`."""
    for wait in RETRY_WAITS_SECONDS:
        try:
            return attempt()
        except on as error:
            asked = error.retry_after_seconds if isinstance(error, BusyError) else 0.0
            seconds = max(wait, min(asked, MAX_RETRY_AFTER_SECONDS))
            _logger.info("%s Trying again in %g s.", error, seconds)
            time.sleep(seconds)
    return attempt()
