"""Finding the tokenizer of a model: next to its weights, in a cache, or on the hub."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptclf.checks import path
from gptclf.hub.download import EntryNotFoundError, cached_file, hub_file
from gptclf.tokenizer.bpe import build_tokenizer
from gptclf.tokenizer.read import OLD_FILES, SETTINGS, WHOLE, read_tokenizer

if TYPE_CHECKING:
    import tiktoken

logger = logging.getLogger(__name__)

# All published sizes share one tokenizer, which is taken from the smallest one's repository.
_GPT2 = "openai-community/gpt2"
_PUBLISHED = (_GPT2, f"{_GPT2}-medium", f"{_GPT2}-large", f"{_GPT2}-xl")
_GPT2_VOCAB_SIZE = 50257

# The SHA-256 of each file. tiktoken names a cached file by the SHA-1 of its address.
TIKTOKEN_FILES = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
_TIKTOKEN_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def pin_tokenizer(
    folder: Path | None,
    repo: str | None,
    revision: str | None,
    cache_dir: str | Path | None,
    vocab_size: int,
    *,
    refused: str | None = None,
    **rules: bool,
) -> "Callable[[], tiktoken.Encoding]":
    """Return a function that returns the tokenizer of a model, the same whatever happens to files from now on.

    Local files are read now; if they are damaged, the function raises the error. A repository's files and GPT-2's are
    read on first use: their content is fixed by the commit, and by what OpenAI published.

    Args:
        folder: The folder of the weights; None if there is none.
        repo: The model's hub repository, if it has one; the folder is then its snapshot.
        revision: Branch, tag or commit of `repo`; None means "main".
        cache_dir: The folder of the Hugging Face cache; None means the default.
        vocab_size: The number of tokens in the model's vocabulary.
        refused: Why the model was saved without its tokenizer, if that is not GPT-2's, which would make other tokens.
        **rules: `ours` and `end_of_text`, as in `read_tokenizer`.
    """
    if cache_dir is not None:
        cache_dir = path("cache_dir", cache_dir).absolute()
    if repo is not None and refused is None:
        commit = revision if folder is None else folder.name
        return partial(find_tokenizer, repo, commit, cache_dir, vocab_size, **rules)
    found: tiktoken.Encoding | Exception | None
    try:
        found = None if folder is None else read_tokenizer(folder, vocab_size, **rules)
    except (OSError, ValueError) as error:
        found = error
    if found is None and refused is not None:
        said = "the model was saved without its tokenizer, which is not GPT-2's: "
        found = ValueError(said + refused.removeprefix(said))  # which a second save recorded with it
    # Not a function made here, as models are pickled.
    return partial(find_tokenizer, None, None, cache_dir, vocab_size) if found is None else partial(_settled, found)


def _settled(found: "tiktoken.Encoding | Exception") -> "tiktoken.Encoding":
    if isinstance(found, Exception):
        raise found
    return found


def find_tokenizer(
    repo: str | None, revision: str | None, cache_dir: str | Path | None, vocab_size: int, **rules: bool
) -> "tiktoken.Encoding":
    """Return the tokenizer of a model without local files, from the first place that has it.

    The places are, in this order: the model's own hub repository and, if the vocabulary is at least as large as
    GPT-2's, the Hugging Face cache, tiktoken's cache (`TIKTOKEN_CACHE_DIR`) and the hub. The arguments are those of
    `pin_tokenizer`.

    Raises:
        FileNotFoundError: No place has a tokenizer for this vocabulary.
        ValueError: The files of the tokenizer are damaged, or ask for other tokens than GPT-2's.
    """
    if repo is not None and repo not in _PUBLISHED:
        try:
            return _from_hub(repo, revision, cache_dir, vocab_size, **rules)
        except EntryNotFoundError:
            if vocab_size != _GPT2_VOCAB_SIZE:
                raise
            logger.warning("%s has no tokenizer files; taking GPT-2's", repo)
    if vocab_size < _GPT2_VOCAB_SIZE:
        lacking = "neither merges.txt nor vocab.bpe nor tokenizer.json lies beside the weights"
        problem = f"no tokenizer for a vocabulary of {vocab_size} tokens ({_GPT2_VOCAB_SIZE} are GPT-2's): {lacking}"
        raise FileNotFoundError(f"{problem}. Put the files there and load again, or set model.tokenizer")
    for known in dict.fromkeys((repo if repo in _PUBLISHED else _GPT2, _GPT2)):
        if merges := cached_file(known, "merges.txt", cache_dir=cache_dir):
            return build_tokenizer(merges, cached_file(known, "vocab.json", cache_dir=cache_dir))
    names = ("merges.txt", "vocab.json")
    return _from_tiktoken_cache() or build_tokenizer(*(hub_file(_GPT2, name, cache_dir=cache_dir) for name in names))


def _from_hub(
    repo: str, revision: str | None, cache_dir: str | Path | None, vocab_size: int, **rules: bool
) -> "tiktoken.Encoding":
    place: Any = {"revision": revision, "cache_dir": cache_dir}
    cached = cached_file(repo, WHOLE, **place) or cached_file(repo, "merges.txt", **place)
    # Without a network, what is cached has to do; transformers caches all of these files, or that they do not exist.
    lacking = EntryNotFoundError if cached is None else OSError
    for name in (SETTINGS, *OLD_FILES, WHOLE):
        with suppress(lacking):
            cached = hub_file(repo, name, **place)
    if cached is None or not cached.with_name(WHOLE).is_file():
        cached = hub_file(repo, "merges.txt", **place)
        hub_file(repo, "vocab.json", **place)
    found = read_tokenizer(cached.parent, vocab_size, **rules)
    assert found is not None
    return found


def _from_tiktoken_cache() -> "tiktoken.Encoding | None":
    default = os.environ.get("DATA_GYM_CACHE_DIR", str(Path(tempfile.gettempdir()) / "data-gym-cache"))
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", default)
    if not cache:  # to tiktoken, an empty value means no cache
        return None
    paths = []
    for name, digest in TIKTOKEN_FILES.items():
        path = Path(cache) / hashlib.sha1((_TIKTOKEN_ADDRESS + name).encode()).hexdigest()
        # A shared temporary folder is not trusted: only the published content is accepted.
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return None
        paths.append(path)
    return build_tokenizer(*paths)
