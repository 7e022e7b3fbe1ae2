"""Finding the tokenizer of a model: next to its weights, in a cache, or on the hub."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptclf.hub.download import cached_file, hub_file
from gptclf.tokenizer.bpe import build_from_json, build_tokenizer, read_tokenizer

if TYPE_CHECKING:
    import tiktoken

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


def find_tokenizer(
    folder: Path | None, repo: str | None, revision: str | None, cache_dir: str | Path | None, vocab_size: int
) -> "tiktoken.Encoding":
    """Return the tokenizer of a model, from the first place that has it.

    The places are, in this order: the folder of the weights, the model's own hub repository and, if the vocabulary is
    at least as large as GPT-2's, the Hugging Face cache, tiktoken's cache (`TIKTOKEN_CACHE_DIR`) and the hub.

    Args:
        folder: The folder of the weights; None if they are not in a local folder.
        repo: The model's hub repository, if it has one.
        revision: Branch, tag or commit of `repo`; None means "main".
        cache_dir: The folder of the Hugging Face cache; None means the default.
        vocab_size: The number of tokens in the model's vocabulary.

    Raises:
        FileNotFoundError: No place has a tokenizer for this vocabulary.
        ValueError: The files of the tokenizer are damaged.
    """
    if folder is not None and (beside := read_tokenizer(folder)) is not None:
        return beside
    if repo is not None and repo not in _PUBLISHED:
        try:
            return _from_hub(repo, revision, cache_dir)
        except FileNotFoundError:
            if vocab_size != _GPT2_VOCAB_SIZE:
                raise
    if vocab_size < _GPT2_VOCAB_SIZE:
        lacking = f"{folder or 'the folder of the weights'} has no merges.txt, vocab.bpe or tokenizer.json"
        problem = f"no tokenizer for a vocabulary of {vocab_size} tokens ({_GPT2_VOCAB_SIZE} are GPT-2's): {lacking}"
        raise FileNotFoundError(f"{problem}. Put the files there, or pass tokenizer= to load_gpt2")
    merges = cached_file(_GPT2, "merges.txt", cache_dir=cache_dir)
    if merges is not None:
        return build_tokenizer(merges, cached_file(_GPT2, "vocab.json", cache_dir=cache_dir))
    return _from_tiktoken_cache() or _from_hub(_GPT2, None, cache_dir)


def _from_hub(repo: str, revision: str | None, cache_dir: str | Path | None) -> "tiktoken.Encoding":
    try:
        merges = hub_file(repo, "merges.txt", revision=revision, cache_dir=cache_dir)
    except FileNotFoundError as error:
        try:  # the only file that transformers 5 writes
            return build_from_json(hub_file(repo, "tokenizer.json", revision=revision, cache_dir=cache_dir))
        except FileNotFoundError:
            raise error from None
    return build_tokenizer(merges, hub_file(repo, "vocab.json", revision=revision, cache_dir=cache_dir))


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
