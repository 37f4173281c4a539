"""A prediction, and its text: to be read, for a spreadsheet, or as a line of JSON.

Class names are shown twice where they differ: the net's own, which scripts compare with, and the readable one.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from resnet_jax.pretrained.class_names import readable

_CSV_COLUMNS = ("path", "rank", "class", "name", "probability", "error")


@dataclass(frozen=True)
class Prediction:
    """What a net makes of one image file.

    Attributes:
      path: of the file, as it was named, or as it was found in a folder.
      classes: the most probable classes by the net's own names, each with its probability, highest first; empty for a
        file that could not be read.
      error: why the file could not be read; None if it was.
    """

    path: str
    classes: tuple[tuple[str, float], ...]
    error: str | None = None


class Format(NamedTuple):
    """A form of predictions.

    Attributes:
      header: what comes before the first; None for nothing.
      text: from a prediction to its lines, without a line feed at the end.
    """

    header: str | None
    text: Callable[[Prediction], str]


def as_text(prediction: Prediction) -> str:
    """The path, and below it a line for each class, with percent and readable name, or one with the error."""
    if prediction.error is not None:
        return f"{prediction.path}\n  error: {prediction.error}"
    lines = (f"  {f'{100 * probability:.2f} %':>8}  {readable(name)}" for name, probability in prediction.classes)
    return "\n".join((prediction.path, *lines))


def as_csv(prediction: Prediction) -> str:
    """A row for each class: path, rank from 1, class, readable name, probability (a fraction); or one with the error.

    Not one row an image with a column for each rank: a table of long form has the same columns whatever `top` is, is
    filtered by rank, and with `top=1` has one row an image.
    """
    if prediction.error is not None:
        return _csv_row((prediction.path, "", "", "", "", prediction.error))
    rows = enumerate(prediction.classes, start=1)
    return "\n".join(
        _csv_row((prediction.path, rank, name, readable(name), probability, "")) for rank, (name, probability) in rows
    )


def as_json(prediction: Prediction) -> str:
    """One line of JSON: {"path", "classes": [{"class", "name", "probability"}, ...], "error": null or why}."""
    classes = [
        {"class": name, "name": readable(name), "probability": probability} for name, probability in prediction.classes
    ]
    return json.dumps({"path": prediction.path, "classes": classes, "error": prediction.error})


def _csv_row(values: tuple) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(values)
    return row.getvalue()


FORMATS = {
    "text": Format(None, as_text),
    "csv": Format(_csv_row(_CSV_COLUMNS), as_csv),
    "json": Format(None, as_json),
}
