"""`gptclf evaluate`: measures on a file of labelled texts."""

import json
from argparse import Namespace

from gptclf.cli.datasets import read_dataset
from gptclf.cli.labels import thresholds_of
from gptclf.cli.targets import check_page
from gptclf.gpt2.sharing import borrow
from gptclf.inference.evaluate import evaluate
from gptclf.saving.load_model import load_model


def run(args: Namespace) -> int:
    """Print the measures of a model with their intervals."""
    page = check_page(args.html, args.data)
    model = load_model(args.model, base=args.base, device=args.device)
    rows = read_dataset(args, args.data, tokenizer=model.tokenizer, task=model.task, **vars(model.preparation))
    adjusted = borrow(model)
    adjusted.task = model.task.adjusted(
        temperature=args.temperature, thresholds=thresholds_of(args.thresholds, model.task)
    )
    found = evaluate(adjusted, rows, precision=args.precision)
    if page is not None:
        found.to_html(page)
    if args.json:
        print(json.dumps({"rows": len(found.targets), **found.metrics, "intervals": found.intervals()}))
    else:
        print(found.report())
    return 0
