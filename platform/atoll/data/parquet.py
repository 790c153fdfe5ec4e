"""Parquet files as client data: converted once to columns sorted by client, then memory-mapped by every process.

The cache folder holds one subfolder per version of the input. Its name is a digest of the files' names, sizes and
modification times and of the source's settings, so that a changed file is converted anew. The dataset's identity is a
digest of the files' bytes, taken during conversion: it does not depend on where or when the files were stored.
Conversion streams: memory grows by 16 bytes per row, never with the number of columns.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from atoll.data.client_columns import read_client_columns
from atoll.data.shape import I64, Array, Category, CategoryColumn, DataShape, Encoding, NumericColumn
from atoll.data.sources import ParquetSource
from atoll.data.table import Arrangement, ClientTable, arrange, content_digest, unseen_draw
from atoll.errors import Problem, SpecError

__all__ = ["open_parquet"]

#: in identities: never changed, or equal rows would have another identity than in earlier runs
_FORMAT = "atoll parquet cache 1"
#: of the cache's files, in the name of its folder alone
_LAYOUT = "2: attributes, vocabulary"
_BATCH_ROWS = 1 << 16


def open_parquet(source: ParquetSource) -> ClientTable:
    """Open Parquet data, converting it first when the cache has no current copy.

    Several processes may open at once: each converts into a scratch folder, the first to finish wins.

    Raises:
        SpecError: file, column or value problems, all that one reading finds.
    """
    files = _files(source)
    settings = str(replace(source, path="", cache=None))
    if source.attributes:
        # they are no default features, so rows may depend on them
        settings += f" attributes={source.attributes}"
    stats = [(name.name, name.stat().st_size, name.stat().st_mtime_ns) for name in files]
    root = Path(source.cache) if source.cache else Path(f"{Path(source.path)}.atoll-cache")
    place = root / content_digest(_FORMAT, _LAYOUT, settings, json.dumps(stats))[:32]
    if not (place / "about.json").exists():
        _convert(source, files, settings, root, place)
    about: dict[str, Any] = json.loads((place / "about.json").read_text())
    categories = tuple(Category(name, size) for name, size in about["categories"])
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in about["arrays"]}
    return ClientTable(
        shape=DataShape(source.task, about["num_classes"], tuple(about["x_shape"]), categories=categories),
        num_clients=about["num_clients"],
        identity=about["identity"],
        x=arrays["x"],
        y=arrays["y"],
        c=arrays.get("c"),
        starts=np.array(arrays["starts"]),
        ends=np.array(arrays["ends"]),
        trains=np.array(arrays["trains"]),
        about={"title": Path(source.path).name, "licence": "not recorded", "labels": about["labels"]},
        public={name: np.load(place / f"attribute_{at}.npy") for at, name in enumerate(source.attributes)},
        encoder=partial(_encoding, place),
    )


def _encoding(place: Path) -> Encoding:
    features: list[str] = json.loads((place / "about.json").read_text())["features"]
    values: dict[str, list[str]] = json.loads((place / "vocabulary.json").read_text())
    categories = (CategoryColumn(name, tuple(texts)) for name, texts in values.items())
    return Encoding(tuple(map(NumericColumn, features)), tuple(categories))


def _files(source: ParquetSource) -> list[Path]:
    path = Path(source.path)
    problems = []
    if not 0 <= source.holdout_fraction < 1:
        problems.append(Problem("data.holdout", str(source.holdout_fraction), "a fraction in [0, 1)"))
    if not 0 <= source.unseen_fraction < 1:
        problems.append(Problem("data.unseen", str(source.unseen_fraction), "a fraction in [0, 1)"))
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists():
        problems.append(Problem("data.path", repr(source.path), "an existing Parquet file or folder"))
    elif not files:
        problems.append(Problem("data.path", repr(source.path), "a folder with at least one *.parquet file"))
    if problems:
        raise SpecError(problems)
    return files


def _convert(source: ParquetSource, files: list[Path], settings: str, root: Path, place: Path) -> None:
    columns = _checked_columns(source, files)
    reader = _Reader(source, files, columns)
    reader.scan()
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    except OSError as error:
        hint = "move the data to a folder that can be written, or name one as ParquetSource.cache"
        raise SpecError([Problem("data.path", repr(str(root)), "a writable cache folder", str(error), hint)]) from error
    try:
        digest = hashlib.sha256(f"{_FORMAT} {settings}".encode())
        for name in files:
            with name.open("rb") as handle:
                digest.update(f" {name.name} ".encode())
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        about = reader.write(scratch)
        about["identity"] = digest.hexdigest()
        (scratch / "about.json").write_text(json.dumps(about, indent=1) + "\n")
        try:
            os.rename(scratch, place)
        except OSError:
            if not (place / "about.json").exists():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _checked_columns(source: ParquetSource, files: list[Path]) -> tuple[str, ...]:
    """Names of the feature columns, after every check that needs only the files' schemas."""
    problems = []
    schemas = []
    for name in files:
        try:
            schemas.append(pq.read_schema(name))
        except (pa.ArrowInvalid, OSError) as error:
            problems.append(Problem("data.path", repr(str(name)), "a Parquet file", str(error).splitlines()[0]))
    if problems:
        raise SpecError(problems)
    schema = schemas[0]
    for name, other in zip(files, schemas, strict=True):
        if not other.equals(schema):
            rule = f"the columns and types of {files[0].name} in every file"
            problems.append(Problem("data.path", repr(str(name)), rule))
    coded = (source.client_column, source.label_column, *source.categories)
    features = source.features
    if features is None:
        features = tuple(name for name in schema.names if name not in coded + source.attributes)
    wanted = [("data.client_column", source.client_column), ("data.label_column", source.label_column)]
    wanted += [("data.categories", name) for name in source.categories]
    wanted += [("data.features", name) for name in features]
    wanted += [("data.attributes", name) for name in source.attributes]
    for place, column in wanted:
        if column not in schema.names:
            near = difflib.get_close_matches(column, schema.names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"columns: {', '.join(schema.names[:20])}"
            problems.append(Problem(place, repr(column), "a column of the data", "", hint))
        elif place != "data.label_column" and column == source.label_column:
            problems.append(Problem(place, repr(column), "a column other than the label"))
        elif place == "data.features" and not _is_number(schema.field(column).type):
            kind = f"{column!r} of type {schema.field(column).type}"
            problems.append(Problem(place, kind, "numeric columns", "", "add it to data.categories, or leave it out"))
        elif column in coded and not _is_code(schema.field(column).type, column == source.label_column):
            kind = f"{column!r} of type {schema.field(column).type}"
            problems.append(Problem(place, kind, "a column of text, bool or integers"))
        elif place == "data.attributes" and not _is_code(schema.field(column).type, or_float=True):
            kind = f"{column!r} of type {schema.field(column).type}"
            problems.append(Problem(place, kind, "a column of text, bool or numbers"))
    if problems:
        raise SpecError(problems)
    return features


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _is_code(kind: pa.DataType, or_float: bool) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or (or_float and _is_number(kind)))


def _plain(column: Any) -> Any:
    """Codes as int64 or string arrays, whatever they were stored as; a fractional label stays what it is."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    if pa.types.is_floating(column.type):
        whole = pc.all(pc.equal(column, pc.floor(column))).as_py()
        return column.cast(pa.int64()) if whole else column.cast(pa.float64())
    return column.cast(pa.int64())


class _Reader:
    """Two passes over the files: `scan` finds values and problems, `write` fills the sorted arrays."""

    def __init__(self, source: ParquetSource, files: list[Path], features: tuple[str, ...]) -> None:
        self.source, self.files, self.features = source, files, features
        self.coded = tuple(dict.fromkeys((source.client_column, source.label_column, *source.categories)))
        self.values: dict[str, Any] = {}
        self.num_rows = 0

    def _batches(self, columns: tuple[str, ...]) -> Iterator[tuple[Path, int, Any]]:
        for name in self.files:
            first = 0
            with pq.ParquetFile(name) as file:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                    yield name, first, batch
                    first += batch.num_rows

    def scan(self) -> None:
        """Collect the distinct values of client, label and categories; raise SpecError on missing or bad values."""
        found: dict[str, set[Any]] = {name: set() for name in self.coded}
        missing: dict[str, tuple[int, str]] = {}
        for file, first, batch in self._batches(self.coded + self.features):
            self.num_rows += batch.num_rows
            for name in batch.schema.names:
                if name in self.features:
                    bad = ~np.isfinite(_floats(batch[name]))
                else:
                    bad = pc.is_null(batch[name], nan_is_null=True).to_numpy(zero_copy_only=False)
                if bad.any():
                    count, where = missing.get(name, (0, f"row {first + int(np.argmax(bad))} of {file.name}"))
                    missing[name] = (count + int(bad.sum()), where)
                elif name in found:
                    found[name].update(pc.unique(_plain(batch[name])).to_pylist())
        problems = [
            Problem(f"data column {name!r}", f"{count} missing or infinite values, first in {where}", "finite values",
                    "", "fill or drop these rows before the run")
            for name, (count, where) in missing.items()
        ]  # fmt: skip
        if self.num_rows == 0:
            problems.append(Problem("data.path", repr(self.source.path), "at least one row"))
        if not problems:
            problems += self._label_problems(found[self.source.label_column])
        if problems:
            raise SpecError(problems)
        self.values = {name: sorted(found[name]) for name in self.coded}

    def _label_problems(self, labels: set[Any]) -> list[Problem]:
        place = "data.label_column"
        if any(isinstance(value, float) for value in labels):
            return [Problem(place, "fractional labels", "classes: text, bool or whole numbers")]
        if self.source.task == "binary" and len(labels) != 2:
            shown = ", ".join(map(repr, sorted(labels)[:5]))
            hint = "use task: multiclass" if len(labels) > 2 else ""
            return [Problem(place, f"{len(labels)} distinct labels ({shown})", "2 for a binary task", "", hint)]
        return []

    def _codes(self, name: str, column: Any) -> I64:
        column = _plain(column)
        kind = pa.string() if pa.types.is_string(column.type) else pa.int64()
        return np.asarray(pc.index_in(column, value_set=pa.array(self.values[name], kind)), dtype=np.int64)

    def _attributes(self) -> dict[str, Array]:
        """By name, one value per client, in the order of the clients' names."""
        names, client = self.source.attributes, self.source.client_column
        rows = ((self._codes(client, batch[client]), batch) for _, _, batch in self._batches((client, *names)))
        return read_client_columns(names, rows, self.values[client]) if names else {}

    def _arrangement(self) -> Arrangement:
        client = self.source.client_column
        parts = [self._codes(client, batch[client]) for _, _, batch in self._batches((client,))]
        unseen = np.array([unseen_draw(str(value)) for value in self.values[client]]) < self.source.unseen_fraction
        if unseen.all():
            unseen[0] = False
        return arrange(np.concatenate(parts), unseen, self.source.holdout_fraction)

    def write(self, folder: Path) -> dict[str, Any]:
        """Fill x, c, y, starts, ends, trains, attributes in `folder`; return what is worth knowing about them."""
        attributes, plan = self._attributes(), self._arrangement()
        place = np.empty_like(plan.order)
        place[plan.order] = np.arange(len(place))
        categories = self.source.categories
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "x": ((self.num_rows, len(self.features)), np.float32),
            "y": ((self.num_rows,), np.int32),
        }
        if categories:
            layout["c"] = ((self.num_rows, len(categories)), np.int32)
        out = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in layout.items()
        }
        done = 0
        for _, _, batch in self._batches(self.coded + self.features):
            rows = place[done : done + batch.num_rows]
            done += batch.num_rows
            x = [_floats(batch[name]) for name in self.features]
            out["x"][rows] = np.stack(x, axis=1) if x else np.empty((len(rows), 0), np.float32)
            out["y"][rows] = self._codes(self.source.label_column, batch[self.source.label_column])
            if categories:
                out["c"][rows] = np.stack([self._codes(name, batch[name]) for name in categories], axis=1)
        for array in out.values():
            array.flush()
        for name in ("starts", "ends", "trains"):
            np.save(folder / f"{name}.npy", asdict(plan)[name])
        for at, values in enumerate(attributes.values()):
            np.save(folder / f"attribute_{at}.npy", values[plan.clients])
        vocabulary = {name: list(map(str, self.values[name])) for name in categories}
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary))
        return {
            "arrays": [*layout, "starts", "ends", "trains"],
            "num_clients": plan.num_clients,
            "num_classes": max(2, len(self.values[self.source.label_column])),
            "x_shape": [len(self.features)],
            "features": list(self.features),
            "labels": self.values[self.source.label_column][:1000],
            "categories": [[name, len(self.values[name])] for name in categories],
        }


def _floats(column: Any) -> Array:
    kind = pa.int8() if pa.types.is_boolean(column.type) else pa.float64()
    values = column.cast(kind, safe=False)
    with np.errstate(over="ignore"):
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64).astype(np.float32)
