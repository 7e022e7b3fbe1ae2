"""`Results`: one result per text, shown together."""

from typing import Any, Protocol, TypeVar

import numpy as np

from gptclf.plotting import data_frame
from gptclf.tasks.labels import label_to_json


class Result(Protocol):
    """What was found out about one text."""

    def columns(self) -> dict[str, Any]:
        """Return the columns of a table."""

    def _repr_html_(self) -> str: ...


R = TypeVar("R", bound=Result)


class Results(list[R]):
    """A list of results, one per text, that a notebook shows and pandas reads."""

    def to_frame(self) -> Any:
        """Return the frames of all results as one, with the number of the text in the column "text"."""
        tables = [result.columns() for result in self]
        numbers = np.repeat(np.arange(len(tables)), [len(next(iter(table.values()))) for table in tables])
        names = tables[0] if tables else {}
        joined = {name: [value for table in tables for value in table[name]] for name in names}
        return data_frame({"text": numbers, **joined})

    def _repr_html_(self) -> str:
        return "".join(result._repr_html_() for result in self)


def json_label(label: Any) -> Any:
    """Return a label or an answer, which may be a list, as a value that JSON has."""
    return list(map(label_to_json, label)) if isinstance(label, list) else label_to_json(label)
