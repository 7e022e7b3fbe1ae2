"""A small Hugging Face hub on 127.0.0.1, with faults on request."""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import unquote

COMMIT = "a" * 40


@dataclass(frozen=True)
class Seen:
    """A request that the server received."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """A response sent instead of the usual one.

    Attributes:
        length: The Content-Length to announce instead of the body's own; with 0 none is announced, and the end of the
            connection ends the body.
        chunked: Whether the body is sent in chunks, without a length.
        late: Seconds before the first byte of the response.
        drip: Seconds between one hundredth of the body and the next.
        silent: Whether the connection is closed without an answer.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None
    chunked: bool = False
    late: float = 0.0
    drip: float = 0.0
    silent: bool = False


def pause(seconds: float) -> None:
    """Sleep, even if a test has replaced time.sleep."""
    if seconds:
        threading.Event().wait(seconds)


# Changes the usual response.
Change = Callable[[Answer], Answer]


class Hub:
    """The files of one repository, and the faults of the server.

    `faults` holds, per method, responses (or changes to the usual one) that are sent once each before the usual ones;
    `always` holds changes to every response;
    `cuts` holds the number of bytes after which each of the next GETs is cut.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.branches = {"main": COMMIT}
        self.gone: set[str] = set()
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Answer | Change]] = {"HEAD": [], "GET": []}
        self.always: dict[str, Change] = {}
        self.cuts: list[int] = []
        self.ranges = True
        self.announce_size = True
        self.extra: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.store: Hub | None = None
        self.gate: threading.Barrier | None = None
        self.url = ""

    def methods(self) -> list[str]:
        return [request.method for request in self.seen]

    def etag(self, filename: str) -> str:
        content = self.files[filename]
        if filename in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def answer(self, seen: Seen) -> Answer:
        change: Answer | Change = self.always.get(seen.method, lambda usual: usual)
        if self.faults[seen.method]:
            change = self.faults[seen.method].pop(0)
        return change if isinstance(change, Answer) else change(self.usual(seen))

    def usual(self, seen: Seen) -> Answer:
        """Return the response of a healthy hub."""
        repo, _, rest = seen.path.lstrip("/").partition("/resolve/")
        if repo in self.renamed:
            return Answer(307, {"Location": f"/{self.renamed[repo]}/resolve/{rest}"})
        revision, _, filename = rest.partition("/")
        revision, filename = unquote(revision), unquote(filename)
        commit = self.branches.get(revision, revision)
        if len(commit) != 40 or commit in self.gone:
            return Answer(404, {"X-Error-Code": "RevisionNotFound"})
        if filename not in self.files:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'W/"{self.etag(filename)}"', **self.extra}
        if self.store is not None:
            linked = {"X-Linked-Etag": f'"{self.etag(filename)}"', "X-Linked-Size": str(len(self.files[filename]))}
            return Answer(302, {**headers, "ETag": '"store"', **linked, "Location": self.store.url + seen.path})
        return self.content(seen, headers, self.files[filename])

    def content(self, seen: Seen, headers: dict[str, str], body: bytes) -> Answer:
        asked = seen.headers.get("range")
        if seen.headers.get("if-range") not in (None, headers.get("ETag")):
            asked = None
        if seen.method == "GET" and asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return Answer(416, headers)
            return Answer(206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:])
        return Answer(200, headers, body)


class Mirror(Hub):
    """A plain file server without repositories; `files` are by path."""

    def usual(self, seen: Seen) -> Answer:
        body = self.files.get(seen.path.lstrip("/"))
        if body is None:
            return Answer(404)
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        return self.content(seen, {"ETag": etag, "Content-MD5": md5, **self.extra}, body)


_HubOrMirror = TypeVar("_HubOrMirror", bound=Hub)


@contextmanager
def running(hub: _HubOrMirror, host: str = "127.0.0.1") -> Iterator[_HubOrMirror]:
    """Run a server; its `url` uses the name `host`, which must resolve to this machine."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            hub.seen.append(seen)
            if self.command == "GET" and hub.gate is not None:
                hub.gate.wait(timeout=10)
            answer = hub.answer(seen)
            if answer.silent:
                return
            pause(answer.late)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            length = len(answer.body) if answer.length is None else answer.length
            if answer.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif (hub.announce_size or self.command == "GET") and (length or not answer.body):
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "GET":
                cut = hub.cuts.pop(0) if hub.cuts and answer.status < 300 else None
                self.send_body(answer, answer.body[:cut], whole=cut is None)

        def send_body(self, answer: Answer, body: bytes, whole: bool) -> None:
            step = max(1, len(body) // 100) if answer.drip else max(1, len(body))
            for start in range(0, len(body), step):
                piece = body[start : start + step]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
                self.wfile.flush()
                pause(answer.drip)
            if answer.chunked and whole:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_HEAD = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that disconnected: some tests kill theirs

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Hub]:
    """A running hub."""
    with running(Hub(), host) as hub:
        yield hub
