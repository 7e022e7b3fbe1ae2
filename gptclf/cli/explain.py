"""`gptclf explain`: which words decided."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from gptclf.cli.datasets import rows_of
from gptclf.cli.targets import check_page
from gptclf.explanations.explain import explain
from gptclf.explanations.explanation import Explanation
from gptclf.files.atomic import text_writer, write_file
from gptclf.progress import write_line
from gptclf.saving.load_model import load_model

_PAGE = '<!doctype html>\n<meta charset="utf-8">\n<title>Explanations</title>\n{}\n'


def run(args: Namespace) -> int:
    """Explain texts that were given, or those of a file or of standard input."""
    page = check_page(args.html, args.file)
    for name in args.texts or ():
        if len(name) < 256 and Path(name).suffix and Path(name).is_file():
            write_line(f"gptclf: {name!r} is explained as a text; give --file {name} for the texts in that file")
    texts = args.texts or [row.get(args.text) for _, row in rows_of(args, args.file).numbered]
    model = load_model(args.model, base=args.base, device=args.device)
    (target,) = [None] if args.target is None else model.task.labels_of([args.target])
    found = explain(model, texts, target, method=args.method, progress=sys.stderr.isatty())
    if page is not None:
        write_file(page, text_writer(_PAGE.format(found._repr_html_())))
    for one in found if page is None else ():
        print(json.dumps(one.to_dict(), ensure_ascii=False) if args.json else "\n".join(_lines(one)))
    return 0


def _lines(found: Explanation) -> Iterator[str]:
    sure = "" if found.probability is None else f", probability {found.probability:.3f}"
    yield f"answer {found.prediction}; what speaks for {found.target}{sure}:"
    for word, number in zip(found.words, found.word_attributions, strict=True):
        yield f"  {number:+8.3f}  {word}"
