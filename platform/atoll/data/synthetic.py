"""Clients generated from their ids: any population, nothing stored, the same rows in every process and any block.

Shape legend: L lanes of a block, B positions per lane, F numeric features, G categorical columns, K logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, ndtri

from atoll import rng
from atoll.data.shape import I64, Array, Category, CategoryColumn, DataShape, Encoding, HeldOut, NumericColumn, Task
from atoll.data.sources import ConstantExamples, SyntheticSource
from atoll.data.table import content_digest
from atoll.errors import Problem, SpecError

__all__ = ["SyntheticClients", "open_synthetic"]

F64 = npt.NDArray[np.float64]


def open_synthetic(source: SyntheticSource) -> SyntheticClients:
    """Check the parameters and give the generator.

    Raises:
        SpecError: a parameter out of range; all problems at once.
    """
    law = source.examples
    law_rules: list[tuple[str, Any, bool, str]]
    if isinstance(law, ConstantExamples):
        law_rules = [("examples.count", law.value, law.value >= 1, "an integer of at least 1")]
    else:
        law_rules = [
            ("examples.median", law.median, 0 < law.median < np.inf, "a number above 0"),
            ("examples.sigma", law.sigma, 0 <= law.sigma < np.inf, "a number of at least 0"),
            ("examples.max", law.maximum, law.maximum >= 1, "an integer of at least 1"),
        ]
    rules: list[tuple[str, Any, bool, str]] = [
        ("clients", source.num_clients, source.num_clients >= 1, "an integer of at least 1"),
        ("features", source.num_features, source.num_features >= 1, "an integer of at least 1"),
        ("classes", source.num_classes, source.num_classes >= 2, "an integer of at least 2"),
        ("categories", source.categories, all(rows >= 1 for rows in source.categories), "rows of at least 1"),
        ("feature_heterogeneity", source.feature_heterogeneity, source.feature_heterogeneity >= 0, "at least 0"),
        ("label_heterogeneity", source.label_heterogeneity, source.label_heterogeneity >= 0, "at least 0"),
        ("scale", source.scale, source.scale >= 0, "a number of at least 0"),
        ("holdout_clients", source.holdout_clients, source.holdout_clients >= 1, "an integer of at least 1"),
        ("holdout_examples", source.holdout_examples, source.holdout_examples >= 1, "an integer of at least 1"),
        *law_rules,
    ]
    problems = [Problem(f"data.{name}", repr(value), rule) for name, value, holds, rule in rules if not holds]
    if problems:
        raise SpecError(problems)
    return SyntheticClients(source)


class SyntheticClients:
    """Client data as a pure function of (seed, client id, position). See `SyntheticSource` for the law.

    Attributes:
        shape, num_clients, identity, about: see `ClientData`; identity is a digest of the parameters.
        source: the parameters.
    """

    def __init__(self, source: SyntheticSource) -> None:
        self.source = source
        self.num_clients = source.num_clients
        categories = tuple(Category(f"category_{g}", rows) for g, rows in enumerate(source.categories))
        task: Task = "binary" if source.num_classes == 2 else "multiclass"
        self.shape = DataShape(task, source.num_classes, (source.num_features,), categories=categories)
        self.identity = content_digest("synthetic", str(source))
        self.about: Mapping[str, Any] = {"title": "synthetic linear teacher", "licence": "generated"}
        features, outputs = source.num_features, self.shape.num_outputs
        flat = self._normal("teacher", np.arange(features * outputs))
        self._teacher: F64 = flat.reshape(features, outputs) / np.sqrt(features)

    def num_examples(self, client_ids: I64) -> I64:
        """Training examples of each client, from (seed, "size") and its id; same shape as client_ids. Pure."""
        ids = np.asarray(client_ids) % self.num_clients
        law = self.source.examples
        if isinstance(law, ConstantExamples):
            return np.full(np.shape(ids), law.value, dtype=np.int64)
        drawn = law.median * np.exp(law.sigma * self._normal("size", ids))
        return np.asarray(np.clip(np.rint(drawn), 1, law.maximum), dtype=np.int64)

    def counts(self) -> None:
        """None: sizes are drawn on demand."""
        return

    def gather(self, client_ids: I64, positions: I64) -> dict[str, Array]:
        """Examples at positions [L, B] of clients [L]; see `ClientData.gather`. Pure."""
        ids = np.asarray(client_ids) % self.num_clients
        padded = np.where(positions < self.num_examples(ids)[:, None], positions, 0)
        return self._examples(ids, padded)

    def held_out(self) -> dict[str, HeldOut]:
        """Rows by name: "unseen", clients from num_clients on; "seen", further rows of training clients. Pure."""
        source = self.source
        inside = np.arange(source.holdout_examples)
        few = min(source.holdout_clients, source.num_clients)
        trained = np.arange(few) * (source.num_clients // few)
        counts = self.num_examples(trained)
        never = source.num_clients + np.arange(source.holdout_clients)
        parts = {
            "seen": (trained, counts[:, None] + inside, counts),
            "unseen": (never, np.broadcast_to(inside, (len(never), len(inside))), np.zeros_like(never)),
        }
        out = {}
        for name, (ids, positions, train_examples) in parts.items():
            arrays = {key: a.reshape(-1, *a.shape[2:]) for key, a in self._examples(ids, positions).items()}
            repeated = (np.repeat(values, len(inside)) for values in (ids, train_examples))
            out[name] = HeldOut(arrays, *repeated)
        return out

    def encoding(self) -> Encoding:
        """Raw columns are "x" and "c" themselves: feature_0 …, category_0 … with their codes as text. Pure."""
        codes = (tuple(map(str, range(category.size))) for category in self.shape.categories)
        categories = zip((category.name for category in self.shape.categories), codes, strict=True)
        features = (NumericColumn(f"feature_{column}") for column in range(self.source.num_features))
        return Encoding(tuple(features), tuple(CategoryColumn(*column) for column in categories))

    def _normal(self, purpose: str, *counters: I64) -> F64:
        values: F64 = ndtri(rng.uniform(rng.key(self.source.seed, purpose), *counters))
        return values

    def _examples(self, ids: I64, positions: I64) -> dict[str, Array]:
        """Rows of clients [L] at positions [L, B], whatever ids and positions are."""
        source = self.source
        features, outputs = source.num_features, self.shape.num_outputs
        lane, row = ids[:, None, None], positions[:, :, None]
        x = self._normal("x", lane, row, np.arange(features))
        if source.feature_heterogeneity:
            x += source.feature_heterogeneity * self._normal("mean", lane, np.arange(features))
        x = x.astype(np.float32)
        weights = np.broadcast_to(self._teacher, (len(ids), features, outputs))
        if source.label_heterogeneity:
            own = self._normal("own", lane, np.arange(features * outputs)).reshape(weights.shape)
            weights = weights + source.label_heterogeneity / np.sqrt(features) * own
        # feature by feature: the sum's order, and so its bits, do not depend on the block
        logits = np.zeros((*positions.shape, outputs))
        for feature in range(features):
            logits += x[:, :, feature, None] * weights[:, None, feature]
        codes = []
        for column, rows in enumerate(source.categories):
            u = rng.uniform(rng.key(source.seed, "code", column), ids[:, None], positions)
            code = np.minimum(np.exp(u * np.log(rows + 1.0)).astype(np.int64) - 1, rows - 1)
            logits += self._normal("effect", np.asarray(column), code[:, :, None], np.arange(outputs))
            codes.append(code)
        logits *= source.scale / np.sqrt(1 + len(codes))
        out: dict[str, Array] = {"x": x, "y": self._labels(logits, lane, row)}
        if codes:
            out["c"] = np.stack(codes, axis=-1)
        return out

    def _labels(self, logits: F64, lane: I64, row: I64) -> I64:
        u = rng.uniform(rng.key(self.source.seed, "y"), lane, row, np.arange(logits.shape[-1]))
        if logits.shape[-1] == 1:
            return np.asarray(u < expit(logits))[..., 0].astype(np.int64)
        # the largest of logits plus Gumbel noise is a draw from their softmax
        return np.asarray(np.argmax(logits - np.log(-np.log(u)), axis=-1), dtype=np.int64)
