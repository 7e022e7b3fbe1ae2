"""`gptclf serve`: a classifier as a local page and as JSON."""

from argparse import Namespace

from gptclf.serving.server import serve


def run(args: Namespace) -> int:
    """Serve until Ctrl-C."""
    hosts = {} if args.allowed_hosts is None else {"allowed_hosts": args.allowed_hosts.split(",")}
    limits = {name: getattr(args, name) for name in ("name", "precision", "max_texts", "max_characters", "max_waiting")}
    serve(args.model, args.host, args.port, **hosts, **limits)
    return 0
