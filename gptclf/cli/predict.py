"""`gptclf predict`: rows with their answers, in constant memory."""

import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptclf.checks import is_missing
from gptclf.cli.datasets import rows_of
from gptclf.cli.labels import adjustments
from gptclf.cli.rows import Row, Rows, row_writer
from gptclf.cli.targets import check_target
from gptclf.files.atomic import write_file
from gptclf.gpt2.model import GPT2
from gptclf.inference.predict import Prediction, predict_stream
from gptclf.progress import Meter
from gptclf.saving.load_model import load_model
from gptclf.tasks import Task

_SUFFIXES = (".csv", ".tsv", ".jsonl")


def run(args: Namespace) -> int:
    """Classify the texts of a file or of standard input."""
    place = None if args.data in (None, "-") else args.data
    target = None
    if args.out not in (None, "-"):
        target = check_target("--out", args.out, folder=False, suffixes=_SUFFIXES, read=place)
    rows = rows_of(args, place, args.format)
    kind = rows.format.suffix if target is None else target.suffix.lower().lstrip(".")
    if target is None and (args.out is None or f".{kind}" not in _SUFFIXES):
        kind = "jsonl"
    model = load_model(args.model, base=args.base, device=args.device)
    answered = _Answered(model, rows, args)
    if taken := [name for name in answered.names if name in rows.names]:
        raise ValueError(f"{rows.source} has a column {taken[0]!r} already; rename it, so that answers can be added")
    names = [*rows.names, *answered.names]
    if target is None:
        write = row_writer(sys.stdout, kind, names, rows.format)
        for block in answered:
            write(block)
            sys.stdout.flush()
        return 0

    def write_answers(beside: Path) -> None:
        with beside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            write = row_writer(file, kind, names, rows.format)
            for block in answered:
                write(block)

    write_file(target, write_answers)
    return 0


class _Answered:
    """Rows with their answers, in blocks of rows that were computed together.

    Attributes:
        names: The names of the columns that are added.
    """

    def __init__(self, model: GPT2, rows: Rows, args: Namespace) -> None:
        self._rows, self._args = rows, args
        options = adjustments(args, model.task)
        self._task = model.task.adjusted(**options)
        # Rows whose answer is still being computed, and whether they get one.
        self._waiting: deque[tuple[Row, bool]] = deque()
        stream = {"reject_below": args.reject_below, "window": args.window, "precision": args.precision}
        self._stream = predict_stream(model, self._texts(), **options, **stream)
        self.names = list(_columns(self._task, [], probabilities=args.probabilities))

    def __iter__(self) -> Iterator[list[Row]]:
        shown = not self._args.quiet
        with Meter(self._rows.size, "predicting", unit="B", enabled=shown and sys.stderr.isatty()) as meter:
            while found := list(islice(self._stream, self._args.window)):
                yield self._complete(found)
                meter.update(self._rows.position() - meter.done)
            yield self._complete([])

    def _texts(self) -> Iterator[str]:
        column = self._args.text
        for number, row in self._rows.numbered:
            text: Any = row.get(column)
            if missing := is_missing(text):
                if not self._args.skip_missing:
                    problem = f"{self._where(number)}: {column!r} is missing; every text must be a str"
                    raise ValueError(f"{problem}. Fill it in, or give --skip-missing to leave its answer empty")
            elif not isinstance(text, str):
                raise TypeError(f"{self._where(number)}: {column!r} is {text!r:.100}; every text must be a str")
            self._waiting.append((row, not missing))
            if not missing:
                yield text

    def _where(self, number: int) -> str:
        return f"{self._rows.source}, {'row' if self._rows.format.suffix == 'parquet' else 'line'} {number}"

    def _complete(self, found: list[Prediction]) -> list[Row]:
        """Add the answers to the rows they belong to, and take those before and, at the end, after without one."""
        columns = _columns(self._task, found, probabilities=self._args.probabilities)
        answers = zip(*columns.values(), strict=True)
        none = dict.fromkeys(columns)
        block = []
        left = len(found)
        while self._waiting and (left or not self._waiting[0][1]):
            row, answered = self._waiting.popleft()
            row.update(zip(columns, next(answers), strict=True) if answered else none)
            left -= answered
            block.append(row)
        return block


def _columns(task: Task, found: list[Prediction], *, probabilities: bool) -> dict[str, list[Any]]:
    """Return the columns that are added to rows, by name."""
    stacked = np.stack([one.outputs for one in found]) if found else np.zeros((0, task.n_outputs), dtype=np.float32)
    outputs = torch.from_numpy(stacked)
    columns: dict[str, list[Any]] = {"prediction": [one.label for one in found]}
    with suppress(TypeError):  # a task without probabilities
        columns["confidence"] = _numbers(task.confidences(outputs))
    if probabilities:
        columns |= {name: _numbers(column) for name, column in task.columns(outputs).items()}
    return columns


def _numbers(column: Any) -> list[float]:
    """Return float32 numbers as the shortest Python floats that stand for them."""
    return column.astype(str).astype(np.float64).tolist()  # type: ignore[no-any-return]
