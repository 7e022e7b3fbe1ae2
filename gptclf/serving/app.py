"""The application: a page, and JSON endpoints in the shape of vLLM's server."""

import asyncio
import base64
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Coroutine
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptclf.explanations.explain import explain
from gptclf.gpt2.model import GPT2
from gptclf.inference.outputs import compute_outputs
from gptclf.inference.texts import Cuts
from gptclf.serving.batching import Batcher, QueueFull
from gptclf.serving.reading import Limits, as_error, as_json, check_model, read_json, texts_of

# The longest text to explain, in characters, and the number of texts that may wait for it: it takes many times as long.
_EXPLAINED, _WAITING = 2_000, 50

logger = logging.getLogger(__name__)


def classify(model: GPT2, texts: list[str], precision: str) -> list[dict[str, Any]]:
    """Return the answer to each text as JSON values, and its number of tokens; the answers are those of `predict`."""
    prepared = Cuts().prepare(model, texts)
    outputs = compute_outputs(model, prepared.rows, precision=precision)[prepared.row_of]
    tokens = prepared.rows.lengths[prepared.row_of]
    answers = zip(model.task.json_answers(outputs), prepared.truncated.tolist(), tokens.tolist(), strict=True)
    return [{**answer, "truncated": cut, "tokens": n} for answer, cut, n in answers]


def explained(model: GPT2, text: str, target: Any) -> dict[str, Any]:
    """Return the explanation of one text as JSON values."""
    (found,) = explain(model, [text], target)
    return found.to_dict() | {"target": model.task.output_names[model.task.output_of(found.target)]}


class Service:
    """What the endpoints answer.

    Args:
        model: A classifier.
        name: What it is called.
        limits: What requests may ask.
        precision: "float32" or "bfloat16".
    """

    def __init__(self, model: GPT2, name: str, limits: Limits, precision: str) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.started = int(time.time())
        self.classifying = Batcher(lambda texts: classify(model, texts, precision), limits.max_waiting)
        self.explaining = Batcher(lambda asked: [explained(model, *asked[0])], _WAITING, most_texts=1)
        self.page = files("gptclf.serving").joinpath("page.html").read_text(encoding="utf-8")

    async def show_page(self, request: Request) -> Response:
        """Answer with the page."""
        return HTMLResponse(self.page)

    async def health(self, request: Request) -> Response:
        """Answer that the server runs: 200, with nothing in it, as vLLM's."""
        return Response()

    async def models(self, request: Request) -> Response:
        """Describe the model, in the shape of OpenAI's list of models, and what may be asked of it."""
        described = {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "gptclf",
            "max_model_len": self.model.config.context_length,
            "outputs": self.model.task.output_names,
            "max_texts": self.limits.max_texts,
            "max_characters": self.limits.max_characters,
        }
        return as_json({"object": "list", "data": [described]})

    async def explain(self, request: Request) -> Response:
        """Explain the answer to a text, or another class that the request names as its "target"."""
        body = await read_json(request, self.limits)
        check_model(body, self.name)
        names, name = self.model.task.output_names, body.get("target")
        if name is not None and name not in names:
            raise HTTPException(400, f"target is {str(name)[:100]!r}; it must be among the names of the outputs")
        target = None if name is None else self.model.task.target_of(names.index(name))
        texts = texts_of(body, self.limits)
        if len(texts) != 1 or len(texts[0]) > _EXPLAINED:
            raise HTTPException(413, f"one text of at most {_EXPLAINED:,} characters can be explained at a time")
        try:
            (found,) = await _unless_gone(request, self.explaining.answer([(texts[0], target)]))
        except ValueError as error:  # a target is needed, or the model has parts that cannot be explained
            raise HTTPException(400, str(error)) from error
        return as_json(found)

    async def classify(self, request: Request) -> Response:
        """Classify a text or a list of texts."""
        body = await read_json(request, self.limits)
        check_model(body, self.name)
        answers = await _unless_gone(request, self.classifying.answer(texts_of(body, self.limits)))
        tokens = sum(answer["tokens"] for answer in answers)
        return as_json(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self.name,
                "data": [_row(i, answer) for i, answer in enumerate(answers)],
                "usage": {
                    "prompt_tokens": tokens,
                    "total_tokens": tokens,
                    "completion_tokens": 0,
                    "prompt_tokens_details": None,
                },
            }
        )


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Return what is answered; if the client goes away before, give its texts up."""
    answering, leaving = asyncio.create_task(answer), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise HTTPException(400, "the client went away")  # which nobody reads
        return answering.result()
    finally:
        leaving.cancel()
        answering.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _row(index: int, answer: dict[str, Any]) -> dict[str, Any]:
    probabilities = answer.get("probs", [])
    shown = {key: value for key, value in answer.items() if key != "tokens"}
    return {"index": index, **shown, "probs": probabilities, "num_classes": len(probabilities)}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return as_error(error.status_code, error.detail, dict(error.headers or {}))


async def _full(request: Request, error: Exception) -> Response:
    assert isinstance(error, QueueFull)
    logger.warning("turned a request to %s away: %s", request.url.path, error)
    return as_error(503, str(error), {"retry-after": str(error.seconds)})


async def _failed(request: Request, error: Exception) -> Response:
    # What went wrong is the owner's to read, in the log.
    return as_error(500, "the model could not compute an answer; the server's log says why")


def application(service: Service, hosts: Collection[str] | None) -> ASGIApp:
    """Return the ASGI application; `hosts` are the names it answers to, None for any."""
    routes = [
        Route("/", service.show_page),
        Route("/health", service.health),
        Route("/v1/models", service.models),
        Route("/classify", service.classify, methods=["POST"]),
        Route("/explain", service.explain, methods=["POST"]),
    ]
    reactions: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        HTTPException: _refused,
        QueueFull: _full,
        Exception: _failed,
    }
    app = Starlette(routes=routes, exception_handlers=reactions)
    app.router.redirect_slashes = False  # behind a proxy the address would be wrong
    return _Guard(app, hosts, _headers(service.page))


def _headers(page: str) -> dict[str, str]:
    """Return the headers of every response: a browser runs the page's own script, and nothing from elsewhere."""
    script, style = (
        " ".join(f"'sha256-{_digest(code)}'" for code in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
        for tag in ("script", "style")
    )
    return {
        "content-security-policy": f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",  # answers tell of private texts
    }


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


class _Guard:
    """Passes requests for known hosts on to an application, and adds headers to all responses."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, headers: dict[str, str]) -> None:
        self.app, self.hosts, self.headers = app, hosts, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        app = self.app
        # Those who watch a server ask for its health by any address; there is nothing in it to read.
        if scope["type"] == "http" and self.hosts is not None and scope["path"] != "/health":
            # A page from elsewhere whose name was made to lead here (DNS rebinding) sends its own name.
            asked = Headers(scope=scope).get("host", "")
            if _hostname(asked) not in self.hosts:
                app = as_error(400, f"the host {asked[:100]!r} is not known here; name it in allowed_hosts")
        try:
            await app(scope, receive, send_guarded)
        except asyncio.CancelledError:  # the server ends, and waits no longer for this answer
            if scope["type"] == "http":
                await as_error(503, "the server ends; ask another, or later")(scope, receive, send_guarded)


def _hostname(asked: str) -> str | None:
    """Return a Host header without its port; None if it is none."""
    try:
        return urlsplit(f"//{asked}").hostname
    except ValueError:
        return None
