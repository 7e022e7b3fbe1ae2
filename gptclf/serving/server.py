"""`serve` and `create_app`: a classifier on a small page and behind JSON endpoints."""

import errno
import logging
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypedDict, Unpack

from gptclf.checks import choice, instance, integer, is_iterable, path
from gptclf.gpt2.model import GPT2
from gptclf.inference.predict import predict
from gptclf.progress import write_line
from gptclf.saving.load_model import load_model

logger = logging.getLogger(__name__)

# Names by which only programs of this machine reach a server.
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# Connections beyond these are turned away. Seconds for which idle ones are kept, longer than by most proxies.
_CONNECTIONS, _IDLE = 1000, 75


class AppOptions(TypedDict, total=False):
    """The options of `create_app` as keyword arguments of `serve` (PEP 692)."""

    name: str | None
    allowed_hosts: Iterable[str] | None
    precision: str
    max_texts: int
    max_characters: int
    max_bytes: int
    max_waiting: int


def create_app(
    model: GPT2 | str | Path,
    *,
    name: str | None = None,
    allowed_hosts: Iterable[str] | None = LOOPBACK,
    precision: str = "float32",
    max_texts: int = 1000,
    max_characters: int = 100_000,
    max_bytes: int = 8_000_000,
    max_waiting: int = 10_000,
) -> Any:
    """Return an ASGI application that answers with a classifier, for uvicorn or another server.

    `GET /` is a page to try the model on; `POST /classify` answers in the shape of vLLM's server, `GET /health` says
    that the server runs, and `GET /v1/models` what it serves. Needs `pip install 'gptclf[serve]'`.

    Requests that arrive together are computed together, in one thread. Every answer is that of `predict` with the same
    `precision`; as there, the last digit of a probability may depend on the texts computed with it.

    Args:
        model: A classifier, or what `load_model` takes: a folder or a hub repository.
        name: What the model is called in answers; None takes the folder's name.
        allowed_hosts: The host names in requests that are answered, without ports, such as "spam.example.com"; by
            default those of this machine. None answers any, for a network whose members you trust.
        precision: "float32", or "bfloat16", which is faster for many texts on processors that multiply it in hardware.
        max_texts: The most texts in a request.
        max_characters: The most characters in a text.
        max_bytes: The most bytes in a request.
        max_waiting: The most texts of all requests that may wait; those beyond get status 503.

    Raises:
        ImportError: Starlette is not installed.
        TypeError: The model is not a classifier, or an argument has a wrong type.

    Example:
        >>> from gptclf import add_classifier_head, load_gpt2
        >>> import warnings; warnings.simplefilter("ignore")  # the head is untrained, and create_app says so
        >>> clf = add_classifier_head(load_gpt2("nano"), classes=["ham", "spam"], seed=0)
        >>> app = create_app(clf, allowed_hosts=["spam.example.com"])  # uvicorn my_module:app
    """
    try:
        from gptclf.serving.app import Service, application
        from gptclf.serving.reading import Limits
    except ImportError as error:
        raise ImportError("serving needs Starlette and uvicorn: pip install 'gptclf[serve]'") from error
    hosts = None if allowed_hosts is None else _hosts(allowed_hosts)
    precision = choice("precision", precision, ("float32", "bfloat16"))
    max_texts = integer("max_texts", max_texts, 1)
    max_waiting = integer("max_waiting", max_waiting, 1)
    if max_waiting < max_texts:
        raise ValueError(f"max_waiting is {max_waiting}; it must be at least max_texts, which is {max_texts}")
    limits = Limits(
        max_texts, integer("max_characters", max_characters, 1), integer("max_bytes", max_bytes, 1), max_waiting
    )
    if name is not None:
        instance("name", name, str, "a str or None")
    if not isinstance(model, GPT2):
        name = name or _name(model)
        model = load_model(model)
    # Reads the tokenizer and the weights, so that no request waits for them.
    predict(model, ["a first text"], precision=precision)
    return application(Service(model, name or _name(model), limits, precision), hosts)


def _name(model: GPT2 | str | Path) -> str:
    return "gptclf" if isinstance(model, GPT2) else path("model", model).absolute().name


def _hosts(given: Iterable[str]) -> frozenset[str]:
    several = is_iterable(given) and not isinstance(given, str | bytes)
    instance("allowed_hosts", list(given) if several else given, list, "a list of host names or None")
    hosts = list(given)
    for i, host in enumerate(hosts):
        instance(f"allowed_hosts[{i}]", host, str, "a host name, such as 'spam.example.com'")
    return frozenset(host.lower().strip("[]") for host in hosts)


def serve(
    model: GPT2 | str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    timeout_graceful_shutdown: int = 25,
    **options: Unpack[AppOptions],
) -> None:
    """Serve a classifier until Ctrl-C: a page in the browser, and JSON for programs.

    By default only programs of this machine reach it. Whoever reaches it may ask it anything: there are no passwords,
    and no encryption. For a network, put a proxy in front that has both (see the page on serving).

    Ctrl-C, or SIGTERM, takes no more requests and answers those that came before; those left after
    `timeout_graceful_shutdown` seconds get status 503, and so do all at a second Ctrl-C.

    Args:
        model: A classifier, or what `load_model` takes: a folder or a hub repository.
        host: The address to listen at: "127.0.0.1" for this machine alone, "0.0.0.0" for all networks that it is in.
        port: The port to listen at; 0 takes any that is free.
        timeout_graceful_shutdown: Seconds for which requests may be finished when the server is told to end; the
            default is shorter than what most give a process.
        options: The options of `create_app`. `allowed_hosts` is any host unless `host` is an address of this machine
            alone.

    Raises:
        ImportError: Starlette or uvicorn is not installed.
        TypeError: The model is not a classifier, or an argument has a wrong type.
        OSError: The address cannot be listened at, such as a port that another program uses.
        KeyboardInterrupt: Ctrl-C came a second time.

    Example:
        >>> from gptclf.serving import serve
        >>> serve("spam-model")  # doctest: +SKIP
        gptclf serves spam-model at http://127.0.0.1:8000 (Ctrl-C ends)
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError("serving needs Starlette and uvicorn: pip install 'gptclf[serve]'") from error
    instance("host", host, str, "an address, such as '127.0.0.1'")
    grace = integer("timeout_graceful_shutdown", timeout_graceful_shutdown, 1)
    with _listening(host, integer("port", port, 0, most=65535)) as listener:
        if not _is_loopback(host) and options.get("allowed_hosts") is None:
            options["allowed_hosts"] = None
            logger.warning("%s is reached from other machines, by any name: allowed_hosts= names those to answer", host)
        app = create_app(model, **options)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=_IDLE,
            timeout_graceful_shutdown=grace,
            lifespan="off",  # the application has none, and a second Ctrl-C would show a traceback of its end
        )
        server = uvicorn.Server(config)
        shown = f"[{host}]" if ":" in host else host
        name = options.get("name") or _name(model)
        write_line(f"gptclf serves {name} at http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends)")
        with suppress(KeyboardInterrupt):  # which uvicorn raises again, when all requests are answered
            server.run(sockets=[listener])
        if server.force_exit:
            raise KeyboardInterrupt


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before the model is loaded: an address in use is found at once."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # what follows repeats the address
        problem = f"cannot listen at host {host!r}, port {port}: {reason}"
        remedy = "give another port, or 0 for any that is free"
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            remedy = "give an address of this machine"
        raise OSError(error.errno, f"{problem}; {remedy}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK
