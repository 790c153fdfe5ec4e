"""Plain datasets split over clients: .npz files and the idx files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np

from atoll.data.partition import partition_examples
from atoll.data.shape import Array, DataShape, HeldOut
from atoll.data.sources import ArraysSource
from atoll.data.table import ClientTable, arrange, content_digest
from atoll.errors import Problem, SpecError

__all__ = ["open_arrays", "read_idx"]

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_IDX_NAMES = {
    "x": "train-images-idx3-ubyte",
    "y": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def open_arrays(source: ArraysSource) -> ClientTable:
    """Read the arrays and split the training examples by `source.partition`.

    Images [rows, height, width] become [rows, 1, height, width]; uint8 is given out divided by 255. The test arrays,
    where present, are held out as "unseen": they belong to no client.

    Raises:
        SpecError: missing files or arrays, lengths that differ, labels that are not whole numbers from 0, values that
            are not finite, or a split that the data cannot carry.
    """
    arrays = _read(Path(source.path))
    _check(arrays, source.path)
    x, y = _features(arrays["x"]), arrays["y"].astype(np.int64)
    client = partition_examples(source.partition, y, source.num_clients, source.seed)
    plan = arrange(client, np.zeros(source.num_clients, dtype=np.bool_), 0.0)
    num_classes = max(2, int(max(part.max() for name, part in arrays.items() if name.startswith("y"))) + 1)
    shape = DataShape("binary" if num_classes == 2 else "multiclass", num_classes, tuple(x.shape[1:]))
    identity = content_digest(
        f"arrays {source.partition} {source.num_clients} {source.seed}",
        *(part for name in sorted(arrays) for part in (name, arrays[name])),
    )
    test = {}
    if "x_test" in arrays:
        test_x = _features(arrays["x_test"])
        if test_x.dtype == np.uint8:
            test_x = test_x.astype(np.float32) / np.float32(255)
        rows = len(test_x)
        nobody = np.full(rows, source.num_clients, dtype=np.int64)
        held = {"x": test_x, "y": arrays["y_test"].astype(np.int64)}
        test["unseen"] = HeldOut(held, nobody, np.zeros(rows, dtype=np.int64))
    return ClientTable(
        shape=shape,
        num_clients=source.num_clients,
        identity=identity,
        x=x[plan.order],
        y=y[plan.order],
        c=None,
        starts=plan.starts,
        ends=plan.ends,
        trains=plan.trains,
        test=test,
        about={"title": Path(source.path).name, "licence": "not recorded", "partition": str(source.partition)},
    )


def read_idx(path: Path) -> Array:
    """One idx file, .gz or not, as an array. Format: yann.lecun.com/exdb/mnist, "the IDX file format".

    Raises:
        SpecError: not an idx file, or shorter than its header says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, dims = int.from_bytes(data[:2], "big"), data[2], data[3]
        dtype = np.dtype(_IDX_TYPES[kind])
        shape = np.frombuffer(data, ">u4", dims, 4).astype(np.int64)
        if zeros:
            raise ValueError("the first two bytes are not zero")
        values = np.frombuffer(data, dtype, int(shape.prod()), 4 + 4 * dims)
    except (OSError, EOFError, IndexError, KeyError, ValueError) as error:
        raise SpecError([Problem("data.path", repr(str(path)), "a complete idx file", str(error))]) from error
    return values.reshape(shape).astype(dtype.newbyteorder("="))


def _read(path: Path) -> dict[str, Array]:
    if path.is_dir():
        found = {}
        problems = []
        for name, stem in _IDX_NAMES.items():
            candidates = [path / stem, path / f"{stem}.gz"]
            present = next((place for place in candidates if place.exists()), None)
            if present:
                found[name] = read_idx(present)
            elif not name.endswith("_test"):
                problems.append(Problem("data.path", repr(str(path)), f"a folder with {stem} or {stem}.gz"))
        if problems:
            raise SpecError(problems)
        return found
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("x", "y", "x_test", "y_test") if name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        rule = "an .npz file with x and y, or a folder of idx files"
        raise SpecError([Problem("data.path", repr(str(path)), rule, str(error).splitlines()[0])]) from error


def _check(arrays: dict[str, Array], path: str) -> None:
    problems = []
    for suffix in ("", "_test"):
        x, y = arrays.get(f"x{suffix}"), arrays.get(f"y{suffix}")
        if x is None and y is None and suffix:
            continue
        if x is None or y is None or len(x) != len(y) or not len(x) or y.ndim != 1:
            got = (
                f"{path!r} with {', '.join(f'{name} {part.shape}' for name, part in arrays.items()) or 'none of them'}"
            )
            rule = f"arrays x{suffix} [rows, …] and y{suffix} [rows] of one length, at least 1"
            problems.append(Problem("data.path", got, rule))
            continue
        numbers = x.dtype.kind in "fiub"
        bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1) if numbers else np.ones(len(x), dtype=bool)
        if bad.any():
            got = f"x{suffix} with {bad.sum()} rows that are not finite numbers, first row {int(np.argmax(bad))}"
            problems.append(Problem("data.path", got, "finite values"))
        if y.dtype.kind not in "iub" or y.min() < 0:
            problems.append(Problem("data.path", f"y{suffix} of type {y.dtype}", "whole-number labels from 0"))
    if problems:
        raise SpecError(problems)
    shapes = {arrays[name].shape[1:] for name in ("x", "x_test") if name in arrays}
    if len(shapes) > 1:
        raise SpecError([Problem("data.path", f"x and x_test of shapes {shapes}", "one shape per example")])


def _features(x: Array) -> Array:
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[:, None]
    return x if x.dtype == np.uint8 else x.astype(np.float32)
