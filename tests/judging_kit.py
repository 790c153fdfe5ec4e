"""Clients of two groups, for ensembles that are judged without being trained."""

from __future__ import annotations

import numpy as np

from atoll.data.table import ClientTable, client_table

__all__ = ["grouped"]


def grouped(clients: int = 60, rows: int = 8) -> ClientTable:
    """Clients 0, 2, 4 … are red, the others blue; a third of them never trains."""
    draw = np.random.default_rng(0)
    client = np.repeat(np.arange(clients), rows)
    x = draw.normal(size=(clients * rows, 4)).astype(np.float32)
    sign = np.where(client % 2 == 0, 1.0, -1.0)
    y = (draw.random(len(x)) < 1 / (1 + np.exp(-2 * x[:, 0] - sign * x[:, 1]))).astype(np.int64)
    return client_table(
        x,
        y,
        client,
        task="binary",
        unseen=list(range(0, clients, 3)),
        holdout_fraction=0.25,
        attributes={"group": {number: "red" if number % 2 == 0 else "blue" for number in range(clients)}},
    )
