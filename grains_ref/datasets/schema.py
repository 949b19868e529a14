"""What the columns of a dataset must be, checked against what is there, type by type and value by value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from grains_ref.datasets.records import DatasetError, Row

TEXT, WHOLE, NUMBER, PICTURE = "text", "whole number", "number", "image"
TEXTS, LABELS = "list of texts", "list of labels"  # labels: 0 or 1 per choice
INDEX = "whole number, or a label whose names are in order"  # the place of the right choice, from 0
# A column's kind: one of the words above, the names of a label's values in order, or the columns of a struct.
Kind: TypeAlias = "str | tuple[str, ...] | Mapping[str, Kind]"

_DTYPES = {  # what the names of a column's type in the `datasets` library start with
    TEXT: ("string", "large_string"),
    WHOLE: ("int", "uint"),
    INDEX: ("int", "uint"),
    NUMBER: ("int", "uint", "float"),
}


@dataclass(frozen=True)
class Schema:
    """Columns that must be there, and columns that are read if they are; all others are ignored.

    `id_column` names the rows; "" names them by split and number.  `visible` are columns that hold something to see,
    where they are read.
    """

    columns: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    id_column: str = ""
    visible: tuple[str, ...] = ("question",)


def check_columns(features: Mapping[str, Any], name: str, schema: Schema) -> dict[str, Kind]:
    """The kinds of the columns to read, once all are there and of the right type.

    Args:
        features: of the `datasets` library.
        name: of the source, for messages.
        schema: what is expected.

    Raises:
        DatasetError: a column is missing, or of another type.
    """
    for column in schema.columns:
        if column not in features:
            hint = _closest(column, [other for other in features if other not in schema.columns])
            raise DatasetError(f"{name}: column {column!r} is missing.{hint} The columns are: {', '.join(features)}.")
    kinds = dict(schema.columns)
    for column, kind in schema.optional.items():
        if column in features:
            kinds[column] = kind
    for column, kind in kinds.items():
        if column in schema.optional and _dtype(features[column]) == "null":
            continue
        if not _matches(features[column], kind):
            actual = _describe(features[column])
            raise DatasetError(f"{name}: column {column!r} should be {_kind_name(kind)}, found {actual}.")
    return kinds


def _closest(column: str, others: Sequence[str]) -> str:
    """A hint at the column that was probably meant, or ""."""
    by_lower_case = {other.lower(): other for other in others}
    close = difflib.get_close_matches(column.lower(), by_lower_case, n=1)
    return f" Was {by_lower_case[close[0]]!r} meant?" if close else ""


def _matches(feature: Any, kind: Kind) -> bool:
    """Whether a feature of the `datasets` library holds values of this kind."""
    label_names = getattr(feature, "names", None)  # of a ClassLabel, whose values are whole numbers
    if isinstance(kind, Mapping):
        if not isinstance(feature, Mapping):
            return False
        return all(name in feature and _matches(feature[name], inner) for name, inner in kind.items())
    if isinstance(kind, tuple):
        return _matches(feature, WHOLE) if label_names is None else tuple(label_names) == kind
    if kind == INDEX and label_names is not None:
        return sorted(label_names) == list(label_names)  # ("1", "0") could mean either
    if kind in (TEXTS, LABELS):
        inner = getattr(feature, "feature", None)
        if inner is None:
            return False
        return _dtype(inner) == "null" or _matches(inner, TEXT if kind == TEXTS else INDEX)
    if kind == PICTURE:
        is_stored = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
        return type(feature).__name__ == "Image" or _dtype(feature) == "string" or is_stored
    return _dtype(feature).startswith(_DTYPES[kind])


def _dtype(feature: Any) -> str:
    """The type of a plain value ("int64", "string", ...), or "" for lists, structs, pictures and labels."""
    return str(feature.dtype) if type(feature).__name__ == "Value" else ""


def _describe(feature: Any) -> str:
    label_names = getattr(feature, "names", None)
    if label_names is not None:
        return f"a label with the values {', '.join(label_names)}"
    if type(feature).__name__ == "Json":
        return "values of several types"
    if isinstance(feature, Mapping):
        return "a struct of " + ", ".join(f"{name!r} ({_describe(inner)})" for name, inner in feature.items())
    if getattr(feature, "feature", None) is not None:
        return f"a list of {_describe(feature.feature)}"
    if _dtype(feature) == "null":
        return "nothing but nulls"
    return _dtype(feature) or type(feature).__name__


def _kind_name(kind: Kind) -> str:
    if isinstance(kind, Mapping):
        return "a struct of " + ", ".join(f"{name!r} ({_kind_name(inner)})" for name, inner in kind.items())
    if isinstance(kind, tuple):
        return f"a label with the values {', '.join(kind)}"
    return f"an {kind}" if kind == PICTURE else f"a {kind}"


def check_value(row: Row, value: Any, kind: Kind, column: str) -> None:
    """Check what a type cannot tell: that nothing is null, labels are known and numbers finite.

    Raises:
        RowError: with the row's place and the column.
    """
    if value is None:
        row.fail(column, "is null, but required.")
    if isinstance(kind, Mapping):
        for name, inner in kind.items():
            check_value(row, value[name], inner, f"{column}.{name}")
    elif isinstance(value, list) and None in value:
        row.fail(column, "holds a null; expected a value in every place.")
    elif isinstance(kind, tuple) and not 0 <= value < len(kind):
        row.fail(column, f"unknown label {value}; expected 0 to {len(kind) - 1} ({', '.join(kind)}).")
    elif kind == LABELS and not set(value) <= {0, 1}:
        unknown = next(label for label in value if label not in (0, 1))
        row.fail(column, f"unknown label {unknown}; expected 0 (wrong) or 1 (right).")
    elif kind == NUMBER and not math.isfinite(value):
        row.fail(column, f"is {value}; expected a finite number.")
