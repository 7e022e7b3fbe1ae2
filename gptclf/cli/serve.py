"""`gptclf serve`: a classifier as a local page and as JSON."""

from argparse import Namespace
from dataclasses import fields

from gptclf.cli.flags import UsageError
from gptclf.cli.options import Serve
from gptclf.serving.server import serve


def run(args: Namespace) -> int:
    """Serve until Ctrl-C."""
    given = {field.name: getattr(args, field.name) for field in fields(Serve)}
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}; it must be from 0 to 65535")
    hosts = given.pop("allowed_hosts")
    serve(**given, **({} if hosts is None else {"allowed_hosts": hosts.split(",")}))
    return 0
