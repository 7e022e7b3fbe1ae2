"""`gptclf evaluate`: measures on a file of labelled texts."""

import json
from argparse import Namespace
from typing import Any

from gptclf.cli.datasets import check_columns, read_dataset
from gptclf.cli.labels import adjustments
from gptclf.cli.targets import check_page
from gptclf.gpt2.sharing import borrow
from gptclf.inference.evaluate import evaluate
from gptclf.results.evaluation import Evaluation
from gptclf.saving.load_model import load_model


def run(args: Namespace) -> int:
    """Print the measures of a model with their intervals."""
    page = check_page(args.html, args.data)
    check_columns(args, args.data, ("text", "label"))
    model = load_model(args.model, base=args.base, device=args.device)
    rows = read_dataset(args, args.data, tokenizer=model.tokenizer, task=model.task, **vars(model.preparation))
    adjusted = borrow(model)
    adjusted.task = model.task.adjusted(**adjustments(args, model.task))
    found = evaluate(adjusted, rows, precision=args.precision)
    if page is not None:
        found.to_html(page)
    if args.json:
        classes = _of_classes(found) if "per_class" in found.details else {}
        measured = {"rows": len(found.targets), **found.metrics, "intervals": found.intervals()}
        print(json.dumps(measured | classes, ensure_ascii=False))
    else:
        print(found.report())
    return 0


def _of_classes(found: Evaluation) -> dict[str, Any]:
    """Return the measures of each class, null where they are not defined, and the confusion matrix if there is one."""
    names = found.task.output_names
    columns = {name: [None if x != x else x for x in column.tolist()] for name, column in found.per_class.items()}
    per_class = {label: {name: columns[name][i] for name in columns} for i, label in enumerate(names)}
    matrix = {"confusion": found.confusion.tolist()} if "confusion" in found.details else {}
    return {"classes": names, "per_class": per_class, **matrix}
