"""Columns of small tables that people bring: measured speeds, availability traces."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from atoll.data.shape import Array
from atoll.errors import Problem, SpecError

__all__ = ["read_columns"]


def read_columns(path: str, names: tuple[str, ...], place: str) -> dict[str, Array]:
    """Named columns of a Parquet or CSV file, each as one NumPy array.

    Args:
        path: file; `.csv` is read as CSV, everything else as Parquet.
        names: columns wanted.
        place: dotted path of the spec for error messages.

    Raises:
        SpecError: no such file, not a table, a column is absent, or holds nothing, nulls or NaN; all problems found.

    Purity: reads a file.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    file = Path(path)
    if not file.is_file():
        raise SpecError([Problem(f"{place}.path", repr(path), "a file that exists", hint="check the path")])
    try:
        table = pyarrow.csv.read_csv(file) if file.suffix == ".csv" else pyarrow.parquet.read_table(file)
    except pa.ArrowException as error:
        raise SpecError([Problem(f"{place}.path", repr(path), "a CSV or Parquet file", str(error))]) from error
    problems, found = [], {}
    for name in names:
        if name not in table.column_names:
            near = difflib.get_close_matches(name, table.column_names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(table.column_names[:10])}"
            problems.append(Problem(f"{place}.column", repr(name), f"a column of {path}", hint=hint))
            continue
        values = table.column(name).to_numpy()
        is_bad = values.dtype.kind == "f" and not np.isfinite(values).all()
        if not len(values) or table.column(name).null_count or is_bad:
            problems.append(Problem(f"{place}.column", repr(name), "at least one row, no nulls, no NaN"))
        found[name] = values
    if problems:
        raise SpecError(problems)
    return found
