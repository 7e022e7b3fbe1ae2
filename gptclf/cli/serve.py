"""`gptclf serve`: a classifier as a local page and as JSON."""

from argparse import Namespace

from gptclf.serving.server import serve


def run(args: Namespace) -> int:
    """Serve until Ctrl-C."""
    serve(args.model, host=args.host, port=args.port)
    return 0
