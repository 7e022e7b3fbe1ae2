"""`Columns`: texts, labels and weights as a source gave them, and the checks that are the same for all sources."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptclf.checks import is_missing
from gptclf.data.rows import check_source, check_text, check_weight
from gptclf.tasks.labels import as_number, check_column, column_values

logger = logging.getLogger(__name__)

_RULES = {"text": "every text must be a str", "label": "every text needs a label"}


@dataclass(frozen=True)
class Columns:
    """The columns of one source, with one value for each row.

    Attributes:
        texts: The texts.
        labels: The labels, or None.
        weights: The weights, or None.
        classes: The classes that the source declares, in order, or None.
        source: The name of the source in errors; "" for columns given one by one.
        lines: The line of the file on which each row begins, or None.
        cells: Whether labels and weights are the text of cells, as in a .csv file.
    """

    texts: Any
    labels: Any = None
    weights: Any = None
    classes: list[Any] | None = None
    source: str = ""
    lines: Sequence[int] | None = None
    cells: bool = False

    def checked(self, *, drop_missing: bool) -> "Columns":
        """Return the same columns as lists of strings, of Python values and of floats.

        Args:
            drop_missing: Leave out rows without a text or a label, and log how many. Otherwise they are an error.

        Raises:
            TypeError: A column or a value has the wrong type; the error names the row.
            ValueError: A label is missing or a weight is out of range, or the columns differ in length.
        """
        check_source(self.texts)
        texts = column_values(self.texts)
        labels = None if self.labels is None else check_column(self.labels, "label", len(texts))
        weights = None if self.weights is None else check_column(self.weights, "weight", len(texts))
        columns = replace(self, texts=texts, labels=labels, weights=weights)
        without_text = [row for row, text in enumerate(texts) if is_missing(text)]
        # An empty cell is a text, the empty one, but not a label.
        empty = self.cells
        without_label = [row for row, label in enumerate(labels or ()) if is_missing(label) or (empty and label == "")]
        if drop_missing:
            columns = columns._without({*without_text, *without_label})
        elif without_text:
            raise TypeError(columns._problem("text", without_text, texts))
        elif without_label:
            raise ValueError(columns._problem("label", without_label, labels))
        for row, text in enumerate(columns.texts):
            check_text(text, columns._name("text", row))
        if columns.weights is None:
            return columns
        numbers = [as_number(weight) for weight in columns.weights] if self.cells else columns.weights
        checked = [check_weight(weight, columns._name("weight", row)) for row, weight in enumerate(numbers)]
        return replace(columns, weights=checked)

    def _problem(self, name: str, rows: Sequence[int], values: Any) -> str:
        others = f", as are rows {', '.join(map(str, rows[1:6]))}" + ", ..." * (len(rows) > 6)
        problem = f"{self._name(name, rows[0])} is missing ({values[rows[0]]!r}){others * (len(rows) > 1)}"
        remedy = "Leave such rows out (a TextDataset does with drop_missing=True), or fill them in"
        return f"{problem}; {_RULES[name]}. {remedy}"

    def _name(self, column: str, row: int) -> str:
        """Return how an error names a value, such as "label 3 (line 5)"."""
        return f"{column} {row}" + ("" if self.lines is None else f" (line {self.lines[row]})")

    def _without(self, rows: set[int]) -> "Columns":
        """Return the columns without some rows, whose number is logged."""
        if not rows:
            return self
        message = "%s%d of %d rows have no text or no label and are left out"
        logger.warning(message, self.source and f"{self.source}: ", len(rows), len(self.texts))
        kept = [row for row in range(len(self.texts)) if row not in rows]
        parts = {name: getattr(self, name) for name in ("texts", "labels", "weights", "lines")}
        shorter: dict[str, Any] = {name: part and [part[row] for row in kept] for name, part in parts.items()}
        return replace(self, **shorter)
