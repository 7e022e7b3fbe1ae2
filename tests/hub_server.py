"""A small Hugging Face hub on 127.0.0.1, with faults on request."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "a" * 40


@dataclass(frozen=True)
class Seen:
    """A request the server got."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """An answer given in place of the usual one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Hub:
    """The files of one repository, and what goes wrong when they are asked for.

    `faults` holds, per method, answers that are given once each before the usual ones; `cuts` the number of bytes
    after which each of the next GETs breaks off.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.branches = {"main": COMMIT}
        self.gone: set[str] = set()
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Answer]] = {"HEAD": [], "GET": []}
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
        if self.faults[seen.method]:
            return self.faults[seen.method].pop(0)
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
        if seen.method == "GET" and asked and self.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return Answer(416, headers)
            return Answer(206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[start:])
        return Answer(200, headers, body)


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Hub]:
    """A running hub; its `url` names it by `host`, which must mean this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            hub.seen.append(seen)
            if self.command == "GET" and hub.gate is not None:
                hub.gate.wait(timeout=10)
            answer = hub.answer(seen)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if hub.announce_size or self.command == "GET":
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "GET":
                cut = hub.cuts.pop(0) if hub.cuts and answer.status < 300 else None
                self.wfile.write(answer.body[:cut])

        do_GET = do_HEAD = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
