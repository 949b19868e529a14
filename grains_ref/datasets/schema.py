"""What the columns of a dataset must be, checked against what is there, type by type and value by value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from grains_ref.datasets.records import DatasetError, Row

TEXT, WHOLE, NUMBER, PICTURE = "text", "whole number", "number", "image"
TEXTS, LABELS = "list of texts", "list of labels"  # labels: 0 or 1 per choice
# A column's kind: one of the words above, the names of a label's values in order, or the columns of a struct.
Kind: TypeAlias = "str | tuple[str, ...] | Mapping[str, Kind]"


@dataclass(frozen=True)
class Schema:
    """Columns that must be there, and columns that are read if they are; all others are ignored.

    `id_column` names the rows; "" names them by split and number.
    """

    columns: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)
    id_column: str = ""


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
            others = [other for other in features if other not in schema.columns]
            lower = {other.lower(): other for other in others}
            close = difflib.get_close_matches(column.lower(), lower, n=1)
            hint = f" Was {lower[close[0]]!r} meant?" if close else ""
            raise DatasetError(f"{name}: column {column!r} is missing.{hint} The columns are: {', '.join(features)}.")
    present = {column: kind for column, kind in schema.optional.items() if column in features}
    kinds = {**schema.columns, **present}
    for column, kind in kinds.items():
        if column in present and _value_type(features[column]) == "null":
            continue
        if not _matches(features[column], kind):
            found = _describe(features[column])
            raise DatasetError(f"{name}: column {column!r} should be {_kind_name(kind)}, found {found}.")
    return kinds


def _matches(feature: Any, kind: Kind) -> bool:
    """Whether a feature of the `datasets` library holds values of this kind."""
    dtype = _value_type(feature)
    if isinstance(kind, Mapping):
        return isinstance(feature, Mapping) and all(
            name in feature and _matches(feature[name], inner) for name, inner in kind.items()
        )
    if isinstance(kind, tuple):
        names = getattr(feature, "names", None)
        return dtype.startswith(("int", "uint")) if names is None else tuple(names) == kind
    if kind in (TEXTS, LABELS):
        inner = getattr(feature, "feature", None)
        return inner is not None and (_value_type(inner) == "null" or _matches(inner, TEXT if kind == TEXTS else WHOLE))
    if kind == PICTURE:
        is_stored = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
        return type(feature).__name__ == "Image" or dtype == "string" or is_stored
    prefixes = {TEXT: ("string", "large_string"), WHOLE: ("int", "uint"), NUMBER: ("int", "uint", "float")}
    return dtype.startswith(prefixes[kind])


def _value_type(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else ""


def _describe(feature: Any) -> str:
    names = getattr(feature, "names", None)
    if names is not None:
        return f"a label with the values {', '.join(names)}"
    if type(feature).__name__ == "Json":
        return "values of several types"
    if isinstance(feature, Mapping):
        return "a struct of " + ", ".join(f"{name!r} ({_describe(inner)})" for name, inner in feature.items())
    if getattr(feature, "feature", None) is not None:
        return f"a list of {_describe(feature.feature)}"
    return {"null": "nothing but nulls"}.get(_value_type(feature)) or _value_type(feature) or type(feature).__name__


def _kind_name(kind: Kind) -> str:
    if isinstance(kind, Mapping):
        return "a struct of " + ", ".join(f"{name!r} ({_kind_name(inner)})" for name, inner in kind.items())
    return (
        f"a label with the values {', '.join(kind)}" if isinstance(kind, tuple) else f"a {kind}".replace("a i", "an i")
    )


def check_value(row: Row, value: Any, kind: Kind, column: str) -> None:
    """Check what a type cannot tell: that nothing is null, labels are known and numbers finite.

    Raises:
        RowError: with the row's place and the column.
    """
    if isinstance(kind, Mapping):
        if value is None:
            row.fail(column, "is null, but required.")
        for name, inner in kind.items():
            check_value(row, value[name], inner, f"{column}.{name}")
    elif value is None or (isinstance(value, list) and None in value):
        row.fail(
            column, "is null, but required." if value is None else "holds a null; expected a value in every place."
        )
    elif isinstance(kind, tuple) and not 0 <= value < len(kind):
        row.fail(column, f"unknown label {value}; expected 0 to {len(kind) - 1} ({', '.join(kind)}).")
    elif kind == LABELS and not set(value) <= {0, 1}:
        row.fail(column, f"unknown label {next(v for v in value if v not in (0, 1))}; expected 0 (wrong) or 1 (right).")
    elif kind == NUMBER and not math.isfinite(value):
        row.fail(column, f"is {value}; expected a finite number.")
