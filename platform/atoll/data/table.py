"""Rows stored once, contiguous per client: the form behind flights, Parquet, arrays and custom data.

Shape legend: L lanes of a block, B positions per lane, G categorical columns, D data clients,
U clients that never train.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.data.shape import I64, Array, Category, DataShape, Encoding, HeldOut, Task

__all__ = ["Arrangement", "ClientTable", "arrange", "client_table", "content_digest", "unseen_draw"]


@dataclass(frozen=True)
class ClientTable:
    """Client data whose rows lie in arrays sorted by client; the arrays may be memory-mapped.

    Client i's rows are starts[i] … ends[i]; the first `trains[i]` of them train, the rest are held out. Clients
    0 … num_clients − 1 train; those after them (trains = 0) never do.

    Attributes:
        shape: the form of one example.
        num_clients: clients that train.
        identity: SHA-256 of the content.
        x: [rows, *x_shape] float32, int64, or uint8 (given out as float32 value / 255).
        y: [rows] any integer type.
        c: [rows, G] any integer type, or None.
        starts: int64 [D + U], ends: the same, trains: the same.
        test: further held-out rows by name, for data that comes with its own.
        about: facts for reports.
        public: attributes of the clients by name, each [D + U]; see `attributes_of`.
        encoder: makes the encoding when it is asked for, since vocabularies may be long; None: there is none.
    """

    shape: DataShape
    num_clients: int
    identity: str
    x: Array
    y: Array
    c: Array | None
    starts: I64
    ends: I64
    trains: I64
    test: Mapping[str, HeldOut] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    public: Mapping[str, Array] = field(default_factory=dict)
    encoder: Callable[[], Encoding] | None = None

    def attributes(self) -> Mapping[str, Array]:
        """What is publicly known of each client, name → [D + U]; NaN and "" are null. Pure."""
        return self.public

    def encoding(self) -> Encoding | None:
        """How raw columns become "x" and "c"; None where that is not known."""
        return None if self.encoder is None else self.encoder()

    def num_examples(self, client_ids: I64) -> I64:
        """Training examples of each client; same shape as client_ids. Pure."""
        return self.trains[np.asarray(client_ids) % self.num_clients]

    def counts(self) -> I64:
        """int64 [num_clients], training examples of every data client. Pure."""
        return self.trains[: self.num_clients]

    def rows_of(self, client_ids: I64, positions: I64) -> I64:
        """The row of each position [L, B] of clients [L]; padding is the client's first one. Pure."""
        client = np.asarray(client_ids) % self.num_clients
        padded = np.where(positions < self.trains[client][:, None], positions, 0)
        return np.asarray(self.starts[client][:, None] + padded)

    def gather(self, client_ids: I64, positions: I64) -> dict[str, Array]:
        """Examples at positions [L, B] of clients [L]; see `ClientData.gather`. One indexing operation per array."""
        return self._rows(self.rows_of(client_ids, positions))

    def held_out(self) -> dict[str, HeldOut]:
        """The named test rows, "seen" and "unseen", as far as the data has them. Pure."""
        parts = dict(self.test)
        trained = np.arange(len(self.trains)) < self.num_clients
        for name, clients in (("seen", np.flatnonzero(trained)), ("unseen", np.flatnonzero(~trained))):
            first = self.starts[clients] + self.trains[clients]
            size = self.ends[clients] - first
            if size.sum() == 0:
                continue
            client = np.repeat(clients, size)
            inside = np.arange(len(client)) - np.repeat(np.cumsum(size) - size, size)
            rows = np.repeat(first, size) + inside
            parts[name] = HeldOut(self._rows(rows), client, self.trains[client])
        return parts

    def _rows(self, rows: I64) -> dict[str, Array]:
        x = self.x[rows]
        if x.dtype == np.uint8:
            x = x.astype(np.float32) / np.float32(255)
        out: dict[str, Array] = {"x": x, "y": self.y[rows].astype(np.int64)}
        if self.c is not None:
            out["c"] = self.c[rows].astype(np.int64)
        return out


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Where every row goes so that clients are contiguous and training clients come first.

    Attributes:
        num_clients: clients that train, D.
        order: int64 [rows]; row `order[i]` of the input is row i of the arranged arrays; stable inside a client.
        starts: int64 [D + U], ends: the same, trains: the same; see `ClientTable`.
        clients: int64 [D + U], the input's client code of every arranged client.
    """

    num_clients: int
    order: I64
    starts: I64
    ends: I64
    trains: I64
    clients: I64


def arrange(codes: I64, unseen: npt.NDArray[np.bool_], holdout_fraction: float) -> Arrangement:
    """Sort rows by client; the last ⌊holdout_fraction · rows⌋ of a client are held out, at least one row trains.

    Args:
        codes: int64 [rows], the client of every row, 0 … K − 1, each present.
        unseen: bool [K], clients that never train.
        holdout_fraction: in [0, 1).

    Purity: pure.
    """
    clients = np.argsort(unseen, kind="stable")
    place = np.empty_like(clients)
    place[clients] = np.arange(len(clients))
    sizes = np.bincount(codes, minlength=len(unseen))[clients]
    ends = np.cumsum(sizes)
    trains = np.where(unseen[clients], 0, np.maximum(sizes - np.floor(holdout_fraction * sizes).astype(np.int64), 1))
    num_clients = int(np.count_nonzero(~unseen))
    return Arrangement(num_clients, np.argsort(place[codes], kind="stable"), ends - sizes, ends, trains, clients)


def content_digest(*parts: Array | str) -> str:
    """SHA-256 (hex) over texts and arrays (dtype, shape, bytes), in order. Pure."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(f"text {len(part)} {part}".encode())
        else:
            digest.update(f"array {part.dtype.str} {part.shape} ".encode())
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def unseen_draw(name: str) -> float:
    """In [0, 1), by a keyed hash of the client's name alone: adding clients moves nobody. Pure."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=b"atoll-unseen").digest()
    return int.from_bytes(digest, "little") / 2**64


def client_table(
    x: Array,
    y: Array,
    client: Array,
    *,
    task: Task,
    c: Array | None = None,
    categories: Sequence[Category] = (),
    unseen: Sequence[Any] = (),
    holdout_fraction: float = 0.0,
    about: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Mapping[Any, Any]] | None = None,
    encoding: Encoding | None = None,
) -> ClientTable:
    """Client data from rows in memory: the short way for a `CustomSource` factory.

    Args:
        x: [rows, …] float32 (other floats are converted), int64 tokens, or uint8 pixels.
        y: [rows] labels 0 … num_classes − 1.
        client: [rows] who a row belongs to: text or integers; clients are numbered in sorted order.
        task: `binary` or `multiclass`.
        c: [rows, G] categorical codes, with `categories` naming their columns.
        categories: name and size of every column of c.
        unseen: values of `client` that never train.
        holdout_fraction: last part of every client's rows that is held out.
        about: facts for reports.
        attributes: what is publicly known of the clients: name → {value of `client`: number or text}; absent is null.
        encoding: how raw columns become x and c.

    Purity: pure.
    """
    names, codes = np.unique(client, return_inverse=True)
    plan = arrange(codes.astype(np.int64), np.isin(names, list(unseen)), holdout_fraction)
    if np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float32)
    tokens = np.issubdtype(x.dtype, np.integer) and x.dtype != np.uint8
    shape = DataShape(
        task=task,
        num_classes=max(2, int(y.max()) + 1),
        x_shape=tuple(x.shape[1:]),
        x_dtype="int64" if tokens else "float32",
        categories=tuple(categories),
        vocabulary=int(x.max()) + 1 if tokens else 0,
    )
    arrays = [x[plan.order], y[plan.order].astype(np.int64), plan.starts, plan.ends, plan.trains]
    sorted_c = None if c is None else c[plan.order]
    identity = content_digest(str(shape), *arrays, *([] if sorted_c is None else [sorted_c]))
    x, y, starts, ends, trains = arrays
    clients = names[plan.clients].tolist()
    public = {name: np.array([values.get(who) for who in clients]) for name, values in (attributes or {}).items()}
    encoder = None if encoding is None else partial(_given, encoding)
    return ClientTable(
        shape, plan.num_clients, identity, x, y, sorted_c, starts, ends, trains,
        about=about or {}, public=public, encoder=encoder,
    )  # fmt: skip


def _given(encoding: Encoding) -> Encoding:
    return encoding
