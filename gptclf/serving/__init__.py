"""A classifier on a small page and behind JSON endpoints: `serve`, and `create_app` for a server of one's own."""

from gptclf.serving.server import create_app, serve

__all__ = ["create_app", "serve"]
