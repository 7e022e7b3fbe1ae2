"""Reading the tokenizer files of a folder, with the settings and added tokens that change tokens.

Formats: OpenAI's `vocab.bpe` and `encoder.json`, Hugging Face's `merges.txt` and `vocab.json` (the same tables) and
`tokenizer.json`, which comes first, as in `transformers`. Whatever changes tokens is followed, or refused by name.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptclf.files.json_file import read_json
from gptclf.tokenizer.bpe import END_OF_TEXT, check_ids, id_table, make_encoding, ranks_from_merges, read_merges

if TYPE_CHECKING:
    import tiktoken

    from gptclf.tokenizer.added import AddedToken

logger = logging.getLogger(__name__)

SETTINGS = "tokenizer_config.json"
WHOLE = "tokenizer.json"
# Files of older releases of transformers.
OLD_FILES = ("added_tokens.json", "special_tokens_map.json")
# The names of the merges file and of the file with the token ids, as OpenAI and Hugging Face call them.
_MERGES_FILES = ("vocab.bpe", "merges.txt")
_IDS_FILES = ("encoder.json", "vocab.json")

# Classes that take the pre-tokenizer from tokenizer.json, and all that are known; the others make GPT-2's.
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", *_GENERAL)
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REMEDY = "change it if the model was trained without, or set model.tokenizer to an encoding of your own"


def read_tokenizer(
    folder: Path, vocab_size: int | None = None, *, ours: bool = False, end_of_text: bool = False
) -> "tiktoken.Encoding | None":
    """Return the tokenizer whose files are in `folder`, encoding as `transformers` would; None if there are none.

    Args:
        folder: Where the files are.
        vocab_size: The model's number of tokens. Added tokens beyond it have no embedding and are left out.
        ours: Whether special tokens in texts are ordinary characters if the settings do not say.
        end_of_text: Whether `<|endoftext|>` in a text is that token, if the settings allow special tokens.

    Raises:
        ValueError: The files are damaged, or a setting makes other tokens than GPT-2's; the message names both.
    """
    merges, ids = (
        next(filter(Path.exists, (folder / name for name in names)), None) for names in (_MERGES_FILES, _IDS_FILES)
    )
    whole = _optional(folder / WHOLE)
    if not whole and merges is None:
        return None
    settings = _optional(folder / SETTINGS)
    if "added_tokens_decoder" not in settings:
        settings |= _optional(folder / "special_tokens_map.json")
    try:
        prefix_space = _check_settings(folder, settings, whole)
        declared = _declared(folder, settings, whole)
        if whole:
            ranks, known = _read_whole(whole, folder / WHOLE, declared)
        else:
            assert merges is not None
            ranks = read_merges(merges, ids)
            known = id_table(ranks)
        split = settings.get("split_special_tokens", ours)
        added = [
            token._replace(found=not (token.special and split) and (token.content != END_OF_TEXT or end_of_text))
            for token in _added(folder, known, declared, settings)
        ]
    except (AttributeError, KeyError, TypeError) as error:  # a value of another kind
        raise ValueError(f"the tokenizer files in {folder} are damaged ({error!r})") from error
    lacking = [token.content for token in added if vocab_size is not None and token.id >= max(vocab_size, len(known))]
    if lacking:
        logger.warning("%s: %s have no embedding in the model; in texts they are characters", folder, lacking)
    kept = [token for token in added if token.content not in lacking]
    if not prefix_space and not any(token.found or token.content != END_OF_TEXT for token in kept):
        return make_encoding(ranks)
    from gptclf.tokenizer.added import AddedTokens

    return AddedTokens(ranks, kept, prefix_space=prefix_space)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _check_settings(folder: Path, settings: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    """Return whether texts get a prefix space; raise if a setting makes tokens that an encoding cannot make."""
    general = settings.get("tokenizer_class") in _GENERAL
    its = (whole.get("pre_tokenizer") or {}) if whole else {}
    prefix = bool(its.get("add_prefix_space") if general else settings.get("add_prefix_space"))
    for name, key, value in _problems(settings, whole, prefix):
        allowed = "gptclf encodes as GPT-2 does: ByteLevel splitting, no normalizer, no token before or after a text"
        raise ValueError(f"{folder / name} has {key} {value!r}; {allowed}. To go on, {_REMEDY}")
    return prefix


def _problems(settings: Mapping[str, Any], whole: Mapping[str, Any], prefix: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield the settings that cannot be followed: their file, their name and their value."""
    if settings.get("tokenizer_class") not in _CLASSES:
        yield SETTINGS, "tokenizer_class", settings["tokenizer_class"]
    if not whole:
        yield from ((SETTINGS, key, True) for key in ("add_bos_token", "add_eos_token") if settings.get(key))
        return
    splitter, processor = whole.get("pre_tokenizer") or {}, whole.get("post_processor") or {"type": "ByteLevel"}
    usual = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    alone = processor.get("type") == "TemplateProcessing" and "SpecialToken" not in repr(processor.get("single"))
    fine = {
        "pre_tokenizer": usual and (prefix or not splitter.get("add_prefix_space")),
        "normalizer": whole.get("normalizer") is None,
        "post_processor": processor.get("type") == "ByteLevel" or alone,
    }
    yield from ((WHOLE, key, whole.get(key)) for key in fine if not fine[key])
    model, options = whole.get("model") or {}, ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    yield from ((WHOLE, key, model[key]) for key in options if model.get(key))


def _declared(folder: Path, settings: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the added tokens of all files by their characters, in the order of their ids."""
    listed = [{"content": content, "id": index} for content, index in _optional(folder / OLD_FILES[0]).items()]
    listed += whole.get("added_tokens") or []
    decoder = settings.get("added_tokens_decoder") or {}
    listed += [{**token, "id": int(index) if index.isdecimal() else index} for index, token in decoder.items()]
    named = [_content(settings.get(role)) for role in _ROLES]
    found: dict[str, dict[str, Any]] = {}
    for token in listed:
        content = _content(token)
        if content is None or type(token["id"]) is not int:
            raise ValueError(f"{folder} lists the added token {token!r}; it needs a content and an id")
        for flag in ("single_word", "lstrip", "rstrip"):
            if token.get(flag):
                problem = f"{folder} lists the added token {content!r} with {flag} {token[flag]!r}"
                raise ValueError(f"{problem}; gptclf finds such tokens everywhere and as they are. To go on, {_REMEDY}")
        special = bool(token.get("special")) or content in named
        found[content] = {"normalized": not special, **token, "special": special}
    return dict(sorted(found.items(), key=lambda item: item[1]["id"]))


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _read_whole(
    whole: Mapping[str, Any], source: Path, declared: Mapping[str, Any]
) -> tuple[dict[bytes, int], dict[str, int]]:
    """Return the ids of the merged tokens and the table of ids in a `tokenizer.json`."""
    model = whole.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{source} holds no merges; GPT-2's tokenizer is byte-level BPE")
    merges = {
        f"{source}, merge {number}": pair.split(" ") if isinstance(pair, str) else pair
        for number, pair in enumerate(model["merges"], start=1)
    }
    table, ranks = model["vocab"], ranks_from_merges(merges)
    merged = {token: index for token, index in table.items() if token not in declared or index < len(ranks)}
    end = table.get(END_OF_TEXT, declared.get(END_OF_TEXT, {}).get("id"))
    return check_ids(ranks, {**merged, END_OF_TEXT: end}, source), table


def _added(
    folder: Path, known: Mapping[str, int], declared: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> "Iterator[AddedToken]":
    """Yield all added tokens, the end of text among them, with the ids that `transformers` gives them."""
    from gptclf.tokenizer.added import AddedToken

    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    roles = [*map(settings.get, _ROLES), *(extra.values() if isinstance(extra, dict) else extra)]
    free = len(known)
    for content in dict.fromkeys([*declared, END_OF_TEXT, *filter(None, map(_content, roles))]):
        token = declared.get(content, {"special": True, "normalized": False})
        index = known.get(content, free)
        if token.get("id", index) != index:
            problem = f"{folder} gives the added token {content!r} the id {token['id']}, but its place is {index}"
            raise ValueError(f"{problem}; the files do not belong together")
        free = max(free, index + 1)
        yield AddedToken(content, index, token["special"], bool(token["normalized"]), found=True)
