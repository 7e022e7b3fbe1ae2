"""What a request may ask: its body read within limits, and the errors in the shape of OpenAI's and vLLM's servers."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

# Seconds that a client may take to send a body.
_PATIENCE = 30.0

_TYPES = {404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailableError"}


# Fields of vLLM's that would change answers, and the values by which they do not.
_UNSUPPORTED = {"activation": True, "use_activation": True, "truncate_prompt_tokens": None, "messages": None}


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Attributes:
        max_texts: Texts of a request.
        max_characters: Characters of a text.
        max_bytes: Bytes of a body.
        max_waiting: Texts of all requests that may wait.
    """

    max_texts: int = 1000
    max_characters: int = 100_000
    max_bytes: int = 8_000_000
    max_waiting: int = 10_000


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response; lone surrogates stay escaped, as UTF-8 has none."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(body, status, headers, media_type="application/json")


def as_error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as a JSON response."""
    error = {"message": message, "type": _TYPES.get(status, "BadRequestError"), "param": None, "code": status}
    return as_json({"error": error}, status, headers)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """Return the JSON object in a request's body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a page of another origin cannot send without asking first
        raise HTTPException(415, f"Content-Type is {kind or 'missing'}; it must be application/json")
    try:
        async with asyncio.timeout(_PATIENCE):
            body = await _read_body(request, limits.max_bytes)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {_PATIENCE:g} seconds") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the client went away before the body was complete") from error
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # Python's limits
        raise HTTPException(
            400, "the body is not JSON for this server: a number too long, or nested too deeply"
        ) from error
    if not isinstance(found, dict):
        raise HTTPException(400, f'the body is {_in_json(found)}; it must be an object, {{"input": ...}}')
    return found


def _in_json(value: Any) -> str:
    """Say what a value is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return kinds[type(value)]


async def _read_body(request: Request, most: int) -> bytes:
    body = bytearray()
    told = request.headers.get("content-length", "")
    if not told.isascii() or not told.isdigit() or int(told[:20]) <= most:  # else not a byte of it is read
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                break
        else:
            return bytes(body)
    # The rest is not read, so the connection cannot carry another request.
    raise HTTPException(
        413, f"the body has more than {most:,} bytes; send fewer texts at a time", {"connection": "close"}
    )


def check_model(body: dict[str, Any], name: str) -> None:
    """Raise if a request is for another model."""
    asked = body.get("model")
    if asked is not None and asked != name:
        raise HTTPException(404, f"the model {str(asked)[:100]!r} does not exist; this is {name!r}")


def texts_of(body: dict[str, Any], limits: Limits) -> list[str]:
    """Return the texts of a request, whose "input" is a text or a list of texts."""
    if "input" not in body:
        raise HTTPException(400, f'the body has no "input", a text or a list of texts; it has {list(body)[:10]}')
    for field, usual in _UNSUPPORTED.items():
        if body.get(field, usual) not in (usual, None):
            raise HTTPException(400, f"{field} is not supported here; leave it out")
    given = body["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise HTTPException(400, f"input is {_in_json(given)}; it must be a text or a list of texts")
    if len(texts) > limits.max_texts:
        raise HTTPException(413, f"input has {len(texts):,} texts; a request may have {limits.max_texts:,}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise HTTPException(400, f"input[{i}] is {_in_json(text)}; it must be a text")
        if len(text) > limits.max_characters:
            problem = f"input[{i}] has {len(text):,} characters; a text may have {limits.max_characters:,}"
            raise HTTPException(413, problem)
    return texts
