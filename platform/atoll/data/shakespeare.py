"""The shipped Shakespeare data: each role's text is stored once; examples are windows cut on demand.

Shape legend: L lanes of a block, B positions per lane, T characters of the window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.data.flights import shipped_files, shipped_sources, to_numpy
from atoll.data.shape import I64, Array, DataShape, HeldOut
from atoll.data.sources import Shakespeare
from atoll.data.table import content_digest
from atoll.errors import Problem, SpecError

__all__ = ["TextWindows", "open_shakespeare"]

_LONGEST_WINDOW = 80
_TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class TextWindows:
    """Client data whose examples are windows over each client's own text: T characters, then the one to predict.

    Training example p of client i starts at character starts[i] + p · stride of `tokens`; held-out windows lie wholly
    after the client's training text (`train_ends`). Clients after num_clients never train.

    Attributes:
        shape: x is int64 [T] tokens, y the next token.
        num_clients: clients that train.
        identity: SHA-256 of content and window settings.
        tokens: uint8, all texts one after the other.
        starts: int64, first character of each client; ends: one past the last; train_ends: one past training text.
        trains: int64, training examples of each client.
        stride: characters between training examples; holdout_stride: between held-out ones.
        about: facts for reports.
    """

    shape: DataShape
    num_clients: int
    identity: str
    tokens: npt.NDArray[np.uint8]
    starts: I64
    ends: I64
    train_ends: I64
    trains: I64
    stride: int
    holdout_stride: int
    about: Mapping[str, Any] = field(default_factory=dict)

    def num_examples(self, client_ids: I64) -> I64:
        """Training windows of each client; same shape as client_ids. Pure."""
        return self.trains[np.asarray(client_ids) % self.num_clients]

    def counts(self) -> I64:
        """int64 [num_clients], training windows of every role. Pure."""
        return self.trains[: self.num_clients]

    def gather(self, client_ids: I64, positions: I64) -> dict[str, Array]:
        """Windows at positions [L, B] of clients [L]: "x" int64 [L, B, T], "y" int64 [L, B]. Pure."""
        client = np.asarray(client_ids) % self.num_clients
        padded = np.where(positions < self.trains[client][:, None], positions, 0)
        return self._windows(self.starts[client][:, None] + padded * self.stride)

    def held_out(self) -> dict[str, HeldOut]:
        """Rows by name: "seen", windows after each role's training text; "unseen", roles that never train. Pure."""
        parts = {}
        trained = np.arange(len(self.trains)) < self.num_clients
        span = self.shape.x_shape[0] + 1
        for name, clients in (("seen", np.flatnonzero(trained)), ("unseen", np.flatnonzero(~trained))):
            first = self.train_ends[clients]
            size = np.maximum((self.ends[clients] - first - span) // self.holdout_stride + 1, 0)
            client = np.repeat(clients, size)
            inside = np.arange(len(client)) - np.repeat(np.cumsum(size) - size, size)
            begin = np.repeat(first, size) + inside * self.holdout_stride
            parts[name] = HeldOut(self._windows(begin), client, self.trains[client])
        return parts

    def _windows(self, begin: I64) -> dict[str, Array]:
        length = self.shape.x_shape[0]
        x = self.tokens[begin[..., None] + np.arange(length)].astype(np.int64)
        return {"x": x, "y": self.tokens[begin + length].astype(np.int64)}


def open_shakespeare(source: Shakespeare) -> TextWindows:
    """Roles as clients; the next of LEAF's 80 characters from the `source.window` before it.

    Training text is the first 80 % of a role's characters, so that "seen" windows come later in the play.

    Raises:
        SpecError: window not in 1 … 80, or a stride below 1.
    """
    problems = [
        Problem(f"data.{name}", str(value), f"an integer from 1 to {most}" if most else "an integer of at least 1")
        for name, value, most in (
            ("window", source.window, _LONGEST_WINDOW),
            ("stride", source.stride, 0),
            ("holdout_stride", source.holdout_stride, 0),
        )
        if value < 1 or (most and value > most)
    ]
    if problems:
        raise SpecError(problems)
    import pyarrow.parquet as pq

    facts = shipped_sources()["shakespeare"]
    roles = pq.ParquetFile(shipped_files() / "shakespeare.parquet").read(columns=["split", "text"])
    unseen = to_numpy(roles["split"].combine_chunks()) != 0
    order = np.argsort(unseen, kind="stable")
    stored: list[str] = roles["text"].to_pylist()
    texts = [stored[row] for row in order]
    code = np.zeros(128, dtype=np.uint8)
    code[[ord(symbol) for symbol in facts["vocabulary"]]] = np.arange(len(facts["vocabulary"]))
    tokens = code[np.frombuffer("".join(texts).encode("ascii"), dtype=np.uint8)]

    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    train_length = np.where(unseen[order], 0, (_TRAIN_SHARE * lengths).astype(np.int64))
    trains = np.where(unseen[order], 0, (train_length - source.window - 1) // source.stride + 1)
    return TextWindows(
        shape=DataShape(
            "multiclass", len(facts["vocabulary"]), (source.window,), "int64", (), len(facts["vocabulary"])
        ),
        num_clients=int(np.count_nonzero(~unseen)),
        identity=content_digest("shakespeare", str(source), json.dumps(facts["files_sha256"], sort_keys=True)),
        tokens=tokens,
        starts=starts,
        ends=ends,
        train_ends=starts + train_length,
        trains=trains,
        stride=source.stride,
        holdout_stride=source.holdout_stride,
        about={name: facts[name] for name in ("title", "licence", "package", "version", "client", "label")},
    )
