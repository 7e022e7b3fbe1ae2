"""Downloading a saved model from the hub: the files that its own record or Hugging Face's layout names."""

from pathlib import Path

from gptclf.hub.download import cached_file, hub_file
from gptclf.saving.adapter_files import fetch_adapter
from gptclf.saving.record import read_record
from gptclf.weights.folders import CONFIG, OURS
from gptclf.weights.locate import fetch, fetch_optional, is_cached


def fetch_model(repo: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """Return the cache folder with a repository's classifier, saved by gptclf or by transformers."""
    ours = cached_file(repo, OURS, revision=revision, cache_dir=cache_dir)
    if ours is None and not is_cached(repo, revision, cache_dir):
        ours = fetch_optional(repo, OURS, revision, cache_dir)
    if ours is None:
        try:
            return fetch(repo, revision, cache_dir)
        except FileNotFoundError:  # offline, this is not known to be a missing file
            adapter = fetch_adapter(repo, revision, cache_dir)
            if adapter is None:
                raise
            return adapter
    record = read_record(ours, verify=False)
    for name in [CONFIG] * record.exported + record.tensor_files:
        hub_file(repo, name, revision=ours.parent.name, cache_dir=cache_dir)
    for name in record.files:
        fetch_optional(repo, name, ours.parent.name, cache_dir)
    return ours.parent
