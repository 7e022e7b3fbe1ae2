"""Reading the tokenizer files of a folder, with the settings and added tokens that change tokens.

Formats: OpenAI's `vocab.bpe` and `encoder.json`, Hugging Face's `merges.txt` and `vocab.json` (the same tables) and
`tokenizer.json`, which comes first, as in `transformers`. What is read is followed or refused by name, never left out.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptclf.files.json_file import read_json
from gptclf.tokenizer.bpe import END_OF_TEXT, check_ids, id_table, make_encoding, ranks_from_merges, read_merges

if TYPE_CHECKING:
    import tiktoken

    from gptclf.tokenizer.added import AddedToken

SETTINGS = "tokenizer_config.json"
WHOLE = "tokenizer.json"
# The names of the merges file and of the file with the token ids, as OpenAI and Hugging Face call them.
MERGES_FILES = ("vocab.bpe", "merges.txt")
IDS_FILES = ("encoder.json", "vocab.json")
# Older releases of transformers wrote added tokens to files of their own.
OLD_FILES = ("added_tokens.json", "special_tokens_map.json")

# Classes that take the pre-tokenizer from tokenizer.json, and those that build GPT-2's from the settings.
_GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")
_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", *_GENERAL)
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REMEDY = "change it if the model was trained without, or give an encoding of your own as model.tokenizer"


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
        next((folder / name for name in names if (folder / name).is_file()), None)
        for names in (MERGES_FILES, IDS_FILES)
    )
    source = folder / WHOLE
    whole = read_json(source) if source.is_file() else None
    if whole is None and merges is None:
        return None
    settings = _optional(folder / SETTINGS)
    if "added_tokens_decoder" not in settings:
        settings |= _optional(folder / "special_tokens_map.json")
    prefix_space = _check_settings(settings, whole, folder)
    declared = _declared(settings, whole, folder)
    if whole is None:
        assert merges is not None
        ranks = read_merges(merges, ids)
        known: Mapping[str, int] = id_table(ranks)
    else:
        ranks, known = _read_whole(whole, source, declared)
    split = settings.get("split_special_tokens", ours)
    found = [
        token._replace(found=not (token.special and split) and (token.content != END_OF_TEXT or end_of_text))
        for token in _numbered(known, declared, settings, folder)
        if vocab_size is None or token.id < max(vocab_size, len(ranks) + 1)
    ]
    if not prefix_space and not any(token.found or token.content != END_OF_TEXT for token in found):
        return make_encoding(ranks)
    from gptclf.tokenizer.added import AddedTokens

    return AddedTokens(ranks, found, prefix_space=prefix_space)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_settings(settings: Mapping[str, Any], whole: Mapping[str, Any] | None, folder: Path) -> bool:
    """Return whether texts get a prefix space; raise if a setting makes tokens that this package cannot."""
    kind, prefix = settings.get("tokenizer_class"), settings.get("add_prefix_space", False)
    problems: dict[str, Any] = {}
    if kind not in _CLASSES:
        problems[f"{folder / SETTINGS} has tokenizer_class"] = kind
    if whole is None:
        for key in ("add_bos_token", "add_eos_token"):
            if settings.get(key, False):
                problems[f"{folder / SETTINGS} has {key}"] = settings[key]
        return _refuse(problems, prefix)
    splitter, model = whole.get("pre_tokenizer"), whole.get("model")
    own_prefix = isinstance(splitter, dict) and splitter.get("add_prefix_space", False)
    prefix = own_prefix if kind in _GENERAL else prefix
    plain = {"type": "ByteLevel", "use_regex": True}
    if not isinstance(splitter, dict) or any(splitter.get(key, value) != value for key, value in plain.items()):
        problems[f"{folder / WHOLE} has pre_tokenizer"] = splitter
    elif own_prefix and not prefix:
        problems[f"{folder / SETTINGS} has no prefix space, but {folder / WHOLE} has pre_tokenizer"] = splitter
    if whole.get("normalizer") is not None:
        problems[f"{folder / WHOLE} has normalizer"] = whole["normalizer"]
    if not _adds_nothing(whole.get("post_processor")):
        problems[f"{folder / WHOLE} has post_processor"] = whole["post_processor"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(key):
            problems[f"{folder / WHOLE} has {key}"] = model[key]
    return _refuse(problems, prefix)


def _refuse(problems: Mapping[str, Any], prefix: Any) -> bool:
    """Return `prefix`, or raise an error that names the first problem."""
    for where, value in problems.items():
        allowed = "gptclf encodes as GPT-2 does: ByteLevel splitting, no normalizer, no token before or after a text"
        raise ValueError(f"{where} {value!r}; {allowed}. To go on, {_REMEDY}")
    return bool(prefix)


def _adds_nothing(processor: Any) -> bool:
    """Return True if a post-processor of tokenizer.json leaves the ids of a single text as they are."""
    if processor is None:
        return True
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence" and isinstance(processor.get("processors"), list):
        return all(map(_adds_nothing, processor["processors"]))
    single = processor.get("single")
    alone = isinstance(single, list) and len(single) == 1 and "Sequence" in single[0]
    return processor.get("type") == "ByteLevel" or (processor.get("type") == "TemplateProcessing" and alone)


def _declared(settings: Mapping[str, Any], whole: Mapping[str, Any] | None, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the added tokens of all files by their characters, in the order of their ids."""
    old = folder / OLD_FILES[0]
    listed: list[Any] = list(whole.get("added_tokens") or ()) if whole is not None else []
    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        listed = [{"content": content, "id": index} for content, index in _optional(old).items()] + listed
    elif isinstance(decoder, dict):
        listed += [
            {**token, "id": int(index) if index.isdecimal() else None} if isinstance(token, dict) else token
            for index, token in decoder.items()
        ]
    named = {_content(settings.get(role)) for role in _ROLES}
    found: dict[str, dict[str, Any]] = {}
    for token in listed:
        valid = isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        if not valid or not token["content"]:
            raise ValueError(f"{folder} lists the added token {token!r}; it needs a content and an id")
        uncommon = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
        if uncommon:
            problem = f"{folder} lists the added token {token['content']!r} with {uncommon[0]} {token[uncommon[0]]!r}"
            raise ValueError(f"{problem}; gptclf finds such tokens everywhere and as they are. To go on, {_REMEDY}")
        special = bool(token.get("special")) or token["content"] in named
        found[token["content"]] = {"normalized": not special, **token, "special": special}
    return dict(sorted(found.items(), key=lambda item: item[1]["id"]))


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def _read_whole(
    whole: Mapping[str, Any], source: Path, declared: Mapping[str, Any]
) -> tuple[dict[bytes, int], Mapping[str, int]]:
    """Return the ids of the merged tokens and the table of ids in a `tokenizer.json`."""
    model = whole.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise ValueError(f"{source} holds no merges; GPT-2's tokenizer is byte-level BPE")
    merges = {
        f"{source}, merge {number}": pair.split(" ") if isinstance(pair, str) else pair
        for number, pair in enumerate(model["merges"], start=1)
    }
    table, ranks = model.get("vocab"), ranks_from_merges(merges)
    if not isinstance(table, dict):
        raise ValueError(f"{source} has no table of token ids; the file is damaged")
    merged = {token: index for token, index in table.items() if token not in declared or index < len(ranks)}
    end = table.get(END_OF_TEXT, declared.get(END_OF_TEXT, {}).get("id"))
    return check_ids(ranks, {**merged, END_OF_TEXT: end}, source), table


def _numbered(
    known: Mapping[str, int], declared: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], folder: Path
) -> "Iterator[AddedToken]":
    """Yield all added tokens, the end of text among them, with the ids that `transformers` gives them."""
    from gptclf.tokenizer.added import AddedToken

    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    roles = [*map(settings.get, _ROLES), *(extra.values() if isinstance(extra, dict) else extra)]
    names = [END_OF_TEXT, *(name for token in roles if (name := _content(token)) is not None)]
    free = len(known)
    for content in dict.fromkeys([*declared, *names]):
        token = declared.get(content, {"special": True, "normalized": False})
        index = known.get(content, free)
        if token.get("id", index) != index:
            problem = (
                f"{folder} gives the added token {content!r} the id {token['id']}, but transformers counts {index}"
            )
            raise ValueError(f"{problem}; its files do not belong together")
        free = max(free, index + 1)
        yield AddedToken(content, index, token["special"], bool(token["normalized"]), found=True)
