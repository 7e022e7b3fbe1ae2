"""A fuzzer of every kind of file that gptclf reads: `python tests/fuzz_files.py --mutations 20000 --seed 1`.

Each mutation damages one file of a small example and reads the example again. What must hold:

- another content is never accepted where a checksum or digest can tell;
- every refusal is a ValueError, TypeError or OSError that gptclf raised and that names the file or its folder;
- nothing hangs, and memory stays within the file's size plus 50 MB.

A failure is printed with its kind and number: `--only KIND:NUMBER`, with the same seed, repeats it alone.
"""

import argparse
import json
import logging
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import bundle_writer
import torch
from conftest import byte_tokenizer
from hub_server import serving

import gptclf
from gptclf import (
    GPT2,
    GPT2Config,
    TextDataset,
    add_classifier_head,
    apply_lora,
    clear_features,
    freeze,
    load_adapter,
    load_gpt2,
    load_model,
    predict_proba,
    save_adapter,
    save_model,
    train,
)
from gptclf.hub.http import Source
from gptclf.hub.transfer import fetch
from gptclf.tokenizer.write import tokenizer_files
from gptclf.weights.book import to_book
from gptclf.weights.openai import _parameters, _variable  # the names of TensorFlow's variables

PACKAGE = str(Path(gptclf.__file__).parent)
CONFIG = GPT2Config(vocab_size=257, context_length=32, emb_dim=16, n_heads=2, n_layers=2)
TEXTS = ["win a prize", "see you"]
ROOM = 50 << 20  # bytes beside the file's own
PATIENCE = 30  # seconds for one reading


@dataclass
class Kind:
    """An example of a kind of file.

    Attributes:
        make: Writes the example into a folder.
        read: Reads it; returns something that equal contents make equal.
        files: Patterns of the names of the files to mutate.
        sealed: Patterns of those among them whose content a checksum or digest covers.
        fresh: Whether reading changes the folder, which is then copied for each mutation.
        named: Whether a refusal names the file; rows of tables may be named by their number alone.
    """

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    files: str
    sealed: str = r"(?!)"
    fresh: bool = False
    named: bool = True


def language_model(seed: int = 1) -> GPT2:
    return load_gpt2(CONFIG, weights="random", seed=seed, tokenizer=byte_tokenizer())


def classifier(seed: int = 1) -> GPT2:
    model = add_classifier_head(language_model(seed), classes=["ham", "spam"], seed=seed)
    with torch.no_grad():
        model.head.output.bias.add_(torch.tensor([0.25, -0.25]))  # type: ignore[union-attr, operator]
    return model


def answers(model: GPT2) -> Any:
    if model.classes is not None:
        try:
            return repr(model.classes), predict_proba(model, TEXTS).tobytes()
        except FloatingPointError as error:  # the weights hold NaN, and the error says so
            return str(error)
    ids = torch.tensor([model.tokenizer.encode_ordinary(TEXTS[0])])
    with torch.no_grad():
        return model(ids[:, : model.config.context_length]).numpy().tobytes()


def write_theirs(folder: Path) -> None:
    """Hugging Face's layout, not written by gptclf."""
    save_model(language_model(), folder)
    (folder / "gptclf.json").unlink()
    (folder / "tokenizer.json").unlink()


def write_tokenizer_json(folder: Path) -> None:
    write_theirs(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text(tokenizer_files(byte_tokenizer(), 32)["tokenizer.json"])


def write_bins(folder: Path) -> None:
    """The same with two files of PyTorch's and their index."""
    from safetensors.torch import load_file

    write_theirs(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index: dict[str, str] = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-{i}.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def write_book(folder: Path) -> None:
    model = language_model()
    torch.save(to_book(dict(model.named_parameters()), CONFIG), folder / "model.pth")
    (folder / "vocab.json").write_text(tokenizer_files(byte_tokenizer(), 32)["vocab.json"])
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_tensorflow(folder: Path) -> None:
    parameters = dict(language_model().named_parameters())
    arrays = {}
    for ours, parameter in _parameters(CONFIG).items():
        tensor = parameters[ours].detach()
        arrays[_variable(parameter.place)] = (tensor.t() if parameter.flip else tensor).contiguous().numpy()
    bundle_writer.write(folder, arrays)
    values = {"n_vocab": 257, "n_ctx": 32, "n_embd": 16, "n_head": 2, "n_layer": 2}
    (folder / "hparams.json").write_text(json.dumps(values))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    files = tokenizer_files(byte_tokenizer(), 32)
    (folder / "encoder.json").write_text(files["vocab.json"])
    (folder / "vocab.bpe").write_text(files["merges.txt"])


def write_adapter(folder: Path) -> None:
    save_model(language_model(), folder / "base")
    model = apply_lora(add_classifier_head(load_gpt2(folder / "base"), classes=["ham", "spam"], seed=1), rank=2, seed=1)
    save_adapter(model, folder, base=folder / "base")


def write_pefts_adapter(folder: Path) -> None:
    write_adapter(folder)
    for name in ("gptclf_adapter.json", "gptclf_adapter.safetensors"):
        (folder / name).unlink(missing_ok=True)


def rows(model: GPT2) -> TextDataset:
    texts = [f"{word} {i}" for i in range(4) for word in ("win a prize", "see you")]
    return TextDataset(texts, ["spam", "ham"] * 4, tokenizer=model.tokenizer, classes=["ham", "spam"])


def trained(folder: Path, **options: Any) -> Any:
    model = classifier()
    freeze(model, trainable="last_block")
    clear_features()
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "seed": 1, "progress": False, **options}
    history = train(model, rows(model), **settings)
    return [step.loss for step in history.steps], answers(model)


def write_states(folder: Path) -> None:
    trained(folder, checkpoint_dir=folder, keep_checkpoints=2)


def write_partial(folder: Path) -> None:
    (folder / "weights.bin.incomplete").write_bytes(PARTS[:3000])


PARTS = random.Random(5).randbytes(6000)


@contextmanager
def hub() -> Iterator[Callable[[Path], bytes]]:
    """A function that completes a partial download from a hub on this machine."""
    import hashlib

    with serving() as server:
        server.files["weights.bin"] = PARTS

        def complete(folder: Path) -> bytes:
            digest = hashlib.sha256(PARTS).hexdigest()
            url = f"{server.url}/owner/name/resolve/main/weights.bin"
            source = Source(url=url, what="weights.bin", advice="", elsewhere="", timeout=5, digest=digest, size=6000)
            fetch(source, folder / "weights.bin")
            return (folder / "weights.bin").read_bytes()

        yield complete


def write_table(folder: Path, name: str) -> None:
    lines = {
        "rows.csv": 'text,label\nhello,ham\n"win, now",spam\n"a ""b"" c",ham\n',
        "rows.tsv": "text\tlabel\nhello\tham\nwin now\tspam\nso so\tham\n",
        "rows.jsonl": '{"text": "hello", "label": "ham"}\n{"text": "win", "label": "spam"}\n{"text": "a", "label": 1}',
    }
    (folder / name).write_text(lines[name])


def read_table(folder: Path, name: str) -> Any:
    data = TextDataset.from_file(folder / name, tokenizer=byte_tokenizer())
    return data.texts, data.labels if data.labels is None else data.labels.tolist()


def kinds(complete: Callable[[Path], bytes]) -> dict[str, Kind]:
    """Every kind of file that is read."""
    tables = {
        name: Kind(partial(write_table, name=name), partial(read_table, name=name), re.escape(name), named=False)
        for name in ("rows.csv", "rows.tsv", "rows.jsonl")
    }
    return {
        "saved folder": Kind(
            lambda f: save_model(classifier(), f), lambda f: answers(load_model(f)), r"(?!README).*", ".*"
        ),
        "saved folder, verify=False": Kind(
            lambda f: save_model(classifier(), f), lambda f: answers(load_model(f, verify=False)), r"(?!README).*"
        ),
        "Hugging Face": Kind(write_theirs, lambda f: answers(load_gpt2(f)), r"(?!README).*"),
        "tokenizer.json": Kind(write_tokenizer_json, lambda f: answers(load_gpt2(f)), "tokenizer.*json"),
        "pytorch_model.bin": Kind(write_bins, lambda f: answers(load_gpt2(f)), "pytorch.*|config.*", r".*\.bin"),
        "the book's .pth": Kind(
            write_book, lambda f: answers(load_gpt2(f / "model.pth", settings={"n_heads": 2})), r".*\.pth", ".*"
        ),
        "TensorFlow": Kind(write_tensorflow, lambda f: answers(load_gpt2(f)), ".*", r".*\.(index|data.*)"),
        "adapter": Kind(
            write_adapter, lambda f: answers(load_model(f)), r".*adapter.*", r"gptclf_adapter.*|.*\.safetensors"
        ),
        "PEFT's adapter": Kind(
            write_pefts_adapter, lambda f: answers(load_adapter(load_gpt2(f / "base"), f)), r".*adapter.*"
        ),
        "training state": Kind(
            write_states, lambda f: trained(f, checkpoint_dir=f, resume=True), r"step-.*", ".*", fresh=True
        ),
        "features": Kind(
            lambda f: trained(f, cache_dir=f), lambda f: trained(f, cache_dir=f), r".*\.safetensors", ".*", fresh=True
        ),
        "partial download": Kind(write_partial, complete, ".*", ".*", fresh=True),
        **tables,
    }


VALUES = (
    "null",
    "true",
    "{}",
    "[]",
    '"x"',
    "-1",
    "0",
    "1e999",
    "NaN",
    "1000000000",
    "9" * 30,
    "1.5",
    '"\\ud800"',
    "[[1]]",
)


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Another content: one to three changes, drawn at random."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(MUTATIONS)(data, others, draw)
    return data


def _span(data: bytes, draw: random.Random) -> slice:
    start = draw.randrange(len(data) + 1)
    return slice(start, start + int(draw.expovariate(1 / max(4, len(data) / 20))) + 1)


def flip(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8) if data else 0):
        # Headers are short, and are where most can go wrong.
        changed[draw.randrange(min(len(data), draw.choice((16, 300, len(data)))))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_at_the_end(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    changed = bytearray(data)
    if data:
        changed[-draw.randint(1, min(len(data), 200))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def insert(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.randbytes(draw.randint(1, 40)) + data[at:]


def delete(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    span = _span(data, draw)
    return data[: span.start] + data[span.stop :]


def fill(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    span = _span(data, draw)
    return data[: span.start] + draw.choice((b"\0", b"\xff", b" ", b"9")) * len(data[span]) + data[span.stop :]


def swap(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    a, b, c, d = sorted(draw.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def splice(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    source = draw.choice(others)
    at = draw.randrange(len(data) + 1)
    return data[:at] + source[_span(source, draw)] + data[at:]


def replace(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    pool: tuple[bytes, ...] = (*others, b"", b"{}", b"[]", b"version https://git-lfs", b"<html>", b"\x80\x02}.")
    return draw.choice(pool)


def repeat(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    span = _span(data, draw)
    times = min(draw.choice((2, 10, 1000)), (1 << 20) // (len(data[span]) + 1) + 1)
    return data[: span.start] + data[span] * times + data[span.stop :]


def number(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Put something else where a number or a word of text is."""
    places = [
        found.span()
        for found in re.finditer(rb'(?<![\w."])-?\d+(\.\d+)?|true|false|null|"[^"]{0,60}"', data[: 1 << 16])
    ]
    if not places:
        return insert(data, others, draw)
    start, end = draw.choice(places)
    return data[:start] + draw.choice(VALUES).encode() + data[end:]


def nest(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    at, deep = draw.randrange(len(data) + 1), draw.choice((20, 1000, 100_000))
    opening = draw.choice((b"[", b'{"a":', b"("))
    return data[:at] + opening * deep + data[at:]


def large(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Put a huge binary number somewhere."""
    at = draw.randrange(min(len(data), draw.choice((16, 300, len(data)))) + 1) if data else 0
    wide = draw.choice((2, 4, 8))
    most = (1 << 8 * wide) - 1
    value = draw.choice((most, most >> 1, min(most, 10**9)))
    return data[:at] + value.to_bytes(wide, draw.choice(("little", "big"))) + data[at + wide :]


MUTATIONS = (
    *(flip, flip, flip_at_the_end, truncate, insert, delete, fill, swap, splice, replace, repeat, number, number, nest),
    large,
)


class Hang(BaseException):
    """A reading that took too long."""


def stop(*_: object) -> None:
    raise Hang


@dataclass
class Result:
    """What came of the mutations of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def peak_memory(*, reset: bool = False) -> int:
    """The most memory that this process has had since the last reset, in bytes; 0 where that is not known."""
    with suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) << 10 if found else 0
    return 0


def outcome(kind: Kind, folder: Path, name: str, original: Any) -> tuple[str, str]:
    """Read a folder whose file `name` was mutated; return what came of it, and what is wrong with that, or ""."""
    before, size = peak_memory(reset=True), (folder / name).stat().st_size
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        found = kind.read(folder)
        result, wrong = "same" if found == original else "other", ""
        if result == "other" and re.fullmatch(kind.sealed, Path(name).name):
            wrong = "another content was accepted"
    except Hang:
        result, wrong = "hang", f"took more than {PATIENCE} seconds"
    except (ValueError, TypeError, OSError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        named = any(part in str(error) for part in (folder.name, Path(name).name))
        ours = place.filename.startswith(PACKAGE)
        result = "refused"
        wrong = (
            ""
            if ours and (named or not kind.named)
            else f"{type(error).__name__} {error} at {place.filename}:{place.lineno}"
        )
    except Exception as error:
        result, wrong = "raw", "".join(traceback.format_exception(error)[-3:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (grown := peak_memory() - before) > size + ROOM:
        wrong = wrong or f"took {grown >> 20} MB for a file of {size:,} bytes"
    return result, wrong[:1000]


def run(n: int, seed: int, only: str = "") -> dict[str, Result]:
    """Read `n` mutations, shared evenly among the kinds, or the one named `only`."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    previous = signal.signal(signal.SIGALRM, stop)
    results: dict[str, Result] = {}
    try:
        with hub() as complete, tempfile.TemporaryDirectory() as place:
            chosen = kinds(complete)
            for label, kind in chosen.items():
                results[label] = Result()
                numbers = range(n // len(chosen))
                if only:
                    wanted, _, number = only.rpartition(":")
                    numbers = range(int(number), int(number) + 1) if wanted == label else range(0)
                if numbers:
                    _run_kind(label, kind, numbers, seed, Path(place), results[label])
    finally:
        signal.signal(signal.SIGALRM, previous)
        logging.disable(logging.NOTSET)
    return results


def _run_kind(label: str, kind: Kind, numbers: range, seed: int, place: Path, result: Result) -> None:
    whole = place / f"whole-{len(list(place.iterdir()))}"
    whole.mkdir()
    kind.make(whole)
    files = sorted(
        str(path.relative_to(whole))
        for path in whole.rglob("*")
        if path.is_file() and re.fullmatch(kind.files, path.name) and "base" not in path.parts
    )
    contents = {name: (whole / name).read_bytes() for name in files}
    original = kind.read(_copy(whole, place) if kind.fresh else whole)
    for i in numbers:
        draw = random.Random(f"{seed}/{label}/{i}")
        name = files[i % len(files)]
        folder = _copy(whole, place) if kind.fresh else whole
        # A new file, not the old one overwritten: models may still map that.
        (folder / name).unlink()
        (folder / name).write_bytes(mutated(contents[name], list(contents.values()), draw))
        found, wrong = outcome(kind, folder, name, original)
        result.outcomes[found] += 1
        if wrong:
            result.failures.append(f"{label}:{i} ({name}): {wrong}")
        if not kind.fresh:
            (folder / name).unlink()
            (folder / name).write_bytes(contents[name])


def _copy(whole: Path, place: Path) -> Path:
    copy = place / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree(whole, copy))


def main() -> int:
    """Run the fuzzer and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="KIND:NUMBER, one mutation")
    arguments = parser.parse_args()
    results = run(arguments.mutations, arguments.seed, arguments.only)
    columns = ("refused", "same", "other", "raw", "hang")
    print(f"{'kind':28}", *(f"{column:>9}" for column in (*columns, "failures")))
    for label, result in results.items():
        print(f"{label:28}", *(f"{result.outcomes[column]:9,}" for column in columns), f"{len(result.failures):9,}")
    failures = [failure for result in results.values() for failure in result.failures]
    print(*failures[:200], sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
