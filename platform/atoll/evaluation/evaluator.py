"""Quality of one model version on held-out clients: sums over rows, and how clients are spread around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from atoll.errors import Problem, SpecError
from atoll.evaluation.asking import Asked, Examples
from atoll.messages import ModelVersion

__all__ = ["METRICS", "Evaluation", "Evaluator", "auc", "normalized_entropy"]

METRICS = ("loss", "accuracy", "auc", "normalized_entropy")
_BINARY = {"auc": "AUC compares two classes", "normalized_entropy": "The base rate is that of class 1"}
_ALL = slice(None)
_PERCENTILES = (10, 50, 90)
_VOLUME_GROUPS = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of one model version; keys start with `eval/`."""

    version: int
    metrics: dict[str, float]


def auc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Area under the ROC curve; NaN where only one class is present. Ties count half.

    Example:
        >>> auc(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.35]))
        0.5
    """
    positive = labels == 1
    above, below = scores[positive], np.sort(scores[~positive])
    if not above.size or not below.size:
        return float("nan")
    # for every row of class 1, rows of class 0 that it beats: twice, so that a tie counts once
    beaten = int(np.searchsorted(below, above, "left").sum()) + int(np.searchsorted(below, above, "right").sum())
    return float(beaten / 2 / (above.size * below.size))


def normalized_entropy(labels: npt.NDArray[Any], losses: npt.NDArray[np.float64]) -> float:
    """Mean log loss over the entropy of the rows' base rate (He et al. 2014); NaN where one class only is present.

    1 is what always saying the base rate gets; less is better.

    Example:
        >>> normalized_entropy(np.array([0, 1]), np.log([2.0, 2.0]))
        1.0
    """
    rate = float((labels == 1).mean()) if len(labels) else 0.0
    if not 0.0 < rate < 1.0:
        return float("nan")
    return float(losses.mean()) / -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


class Evaluator:
    """Evaluates model versions on one held-out split, in fixed batches, so bits never depend on workers.

    Args:
        model: says the logits of a batch, one for a binary task.
        arrays: held-out examples, "x", optionally "c", and "y", rows first.
        client: int64 [rows], the client of each row.
        train_examples: int64 [rows], training examples of the row's client, 0 where it never trains; where any is
            positive, clients are also grouped by data volume (over-selection hurts those with much data).
        metrics: names out of METRICS to report.
        per_client: whether to add percentiles over clients and data-volume groups.
        groups: int64 [rows], the cluster of each row's client, −1 for none; None: no clusters.
        group_names: of the clusters; the metrics over the rows of one are called eval/cluster/NAME/METRIC.
        batch_rows: rows per forward pass.

    Raises:
        SpecError: AUC or normalised entropy is asked of a task with more than two classes.
    """

    def __init__(
        self,
        model: Asked,
        arrays: Mapping[str, npt.NDArray[Any]],
        client: npt.NDArray[np.int64],
        train_examples: npt.NDArray[np.int64],
        metrics: Sequence[str],
        *,
        per_client: bool = True,
        groups: npt.NDArray[np.int64] | None = None,
        group_names: Sequence[str] = (),
        batch_rows: int = 4096,
    ) -> None:
        wrong = [name for name in metrics if name in _BINARY and model.shape.task != "binary"]
        if wrong:
            place, rule = "evaluation.metrics", "a binary task"
            raise SpecError([Problem(place, name, rule, _BINARY[name], "use accuracy") for name in wrong])
        self._model, self._labels, self._metrics = model, arrays["y"], tuple(metrics)
        self._examples = Examples(model.shape, arrays, batch_rows)
        self._clients, self._client_index = np.unique(client, return_inverse=True)
        self._per_client = per_client
        self._groups = _members(groups, group_names)
        self._volume_group = _volume_groups(self._clients.size, self._client_index, client, train_examples)

    def evaluate(self, version: ModelVersion) -> Evaluation:
        """Metrics of `version`: eval/loss and others as asked, the spread over clients, and every cluster's.

        A cluster's metric that its rows do not define, such as AUC where one class is present, is left out.
        """
        losses, correct, scores = self._forward(version)
        found = {f"eval/{name}": value for name, value in self._measure(losses, correct, scores).items()}
        if self._per_client:
            found |= self._client_metrics(losses, correct)
        for name, members in self._groups.items():
            measured = self._measure(losses, correct, scores, members)
            found |= {f"eval/cluster/{name}/{key}": value for key, value in measured.items() if not math.isnan(value)}
        return Evaluation(version.version, found)

    def _measure(
        self,
        losses: npt.NDArray[np.float64],
        correct: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64],
        rows: npt.NDArray[np.intp] | slice = _ALL,
    ) -> dict[str, float]:
        """The metrics that were asked for, over some rows."""
        labels, found = self._labels[rows], {}
        if "loss" in self._metrics:
            found["loss"] = float(losses[rows].mean())
        if "accuracy" in self._metrics:
            found["accuracy"] = float(correct[rows].mean())
        if "auc" in self._metrics:
            found["auc"] = auc(labels, scores[rows]) if np.isfinite(scores[rows]).all() else 0.5
        if "normalized_entropy" in self._metrics:
            found["normalized_entropy"] = normalized_entropy(labels, losses[rows])
        return found

    def _client_metrics(self, losses: npt.NDArray[np.float64], correct: npt.NDArray[np.float64]) -> dict[str, float]:
        count = np.bincount(self._client_index)
        client_loss = np.bincount(self._client_index, weights=losses) / count
        client_accuracy = np.bincount(self._client_index, weights=correct) / count
        found = {}
        for percent in _PERCENTILES:
            found[f"eval/client_loss_p{percent}"] = float(np.percentile(client_loss, percent))
            found[f"eval/client_accuracy_p{percent}"] = float(np.percentile(client_accuracy, percent))
        if self._volume_group is not None:
            for group in range(_VOLUME_GROUPS):
                members = self._volume_group == group
                if members.any():
                    found[f"eval/volume_q{group + 1}_loss"] = float(client_loss[members].mean())
        return found

    def _forward(
        self, version: ModelVersion
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Per row: loss, whether the guess is right, score of class 1 (binary) or zeros."""
        rows = len(self._labels)
        losses, correct, scores = np.empty(rows), np.empty(rows), np.zeros(rows)
        for part, said in self._examples.ask(self._model, version):
            logits, labels = said.astype(np.float64), self._labels[part]
            if self._model.shape.task == "binary":
                scores[part] = logits[:, 0]
                right = (logits[:, 0] > 0) == (labels == 1)
            else:
                right = logits.argmax(1) == labels
            losses[part] = _losses(logits, labels, self._model.shape.task)
            # A model that says NaN has not guessed class 0.
            correct[part] = right & ~np.isnan(logits).any(1)
        return np.nan_to_num(losses, nan=1e6, posinf=1e6), correct, scores


def _losses(
    logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], task: Literal["binary", "multiclass"]
) -> npt.NDArray[np.float64]:
    """Cross-entropy of every row [B]; infinite or NaN where the logits [B, O] leave no number."""
    with np.errstate(invalid="ignore"):
        if task == "binary":
            return np.asarray(np.logaddexp(0.0, np.where(labels == 1, -logits[:, 0], logits[:, 0])))
        shifted = logits - logits.max(1, keepdims=True)
        own = np.take_along_axis(shifted, labels[:, None], 1)[:, 0]
        return np.asarray(np.log(np.exp(shifted).sum(1)) - own)


def _members(groups: npt.NDArray[np.int64] | None, names: Sequence[str]) -> dict[str, npt.NDArray[np.intp]]:
    """Rows of every cluster that has any, by its name."""
    if groups is None:
        return {}
    members = {name: np.flatnonzero(groups == number) for number, name in enumerate(names)}
    return {name: rows for name, rows in members.items() if rows.size}


def _volume_groups(
    num_clients: int,
    client_index: npt.NDArray[np.intp],
    client: npt.NDArray[np.int64],
    train_examples: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64] | None:
    """Quartile of data volume per client; by held-out rows where no client of the split trains."""
    volume = np.zeros(num_clients, dtype=np.int64)
    volume[client_index] = train_examples
    if not volume.any():
        volume = np.bincount(client_index, minlength=num_clients).astype(np.int64)
    if num_clients < _VOLUME_GROUPS:
        return None
    edges = np.quantile(volume, [0.25, 0.5, 0.75])
    return np.searchsorted(edges, volume, side="left")
