"""Quality of one model version on held-out clients: sums over rows, and how clients are spread around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atoll.errors import Problem, SpecError
from atoll.messages import ModelVersion
from atoll.models import LaneModel, LocalRows

__all__ = ["METRICS", "Evaluation", "Evaluator", "auc"]

METRICS = ("loss", "accuracy", "auc")
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
    from scipy.stats import rankdata

    positive = labels == 1
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return float("nan")
    rank_sum = float(rankdata(scores)[positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


class Evaluator:
    """Evaluates model versions on one held-out split, in fixed batches on one device, so bits never depend on workers.

    Args:
        model: the model.
        arrays: held-out examples, "x", optionally "c", and "y", rows first.
        client: int64 [rows], the client of each row.
        train_examples: int64 [rows], training examples of the row's client, 0 where it never trains; where any is
            positive, clients are also grouped by data volume (over-selection hurts those with much data).
        metrics: names out of METRICS to report.
        per_client: whether to add percentiles over clients and data-volume groups.
        device: torch device.
        batch_rows: rows per forward pass.

    Raises:
        SpecError: a metric is unknown, or AUC is asked of a task with more than two classes.
    """

    def __init__(
        self,
        model: LaneModel,
        arrays: Mapping[str, npt.NDArray[Any]],
        client: npt.NDArray[np.int64],
        train_examples: npt.NDArray[np.int64],
        metrics: Sequence[str],
        *,
        per_client: bool = True,
        device: str = "cpu",
        batch_rows: int = 4096,
    ) -> None:
        if "auc" in metrics and model.shape.task != "binary":
            problem = Problem("evaluation.metrics", "auc", "a binary task", "AUC compares two classes", "use accuracy")
            raise SpecError([problem])
        self._model, self._arrays, self._metrics = model, arrays, tuple(metrics)
        self._device, self._batch_rows = device, batch_rows
        self._clients, self._client_index = np.unique(client, return_inverse=True)
        self._per_client = per_client
        self._volume_group = _volume_groups(self._clients.size, self._client_index, client, train_examples)

    def evaluate(self, version: ModelVersion) -> Evaluation:
        """Metrics of `version`: eval/loss, eval/accuracy, eval/auc as asked, and the spread over clients."""
        losses, correct, scores = self._forward(version)
        labels = self._arrays["y"]
        found = {}
        if "loss" in self._metrics:
            found["eval/loss"] = float(losses.mean())
        if "accuracy" in self._metrics:
            found["eval/accuracy"] = float(correct.mean())
        if "auc" in self._metrics:
            found["eval/auc"] = auc(labels, scores) if np.isfinite(scores).all() else 0.5
        if self._per_client:
            found |= self._client_metrics(losses, correct)
        return Evaluation(version.version, found)

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
        parameters = self._parameters(version)
        tables = [torch.tensor(table).to(self._device) for table in version.tables]
        rows = len(self._arrays["y"])
        losses, correct, scores = np.empty(rows), np.empty(rows), np.zeros(rows)
        for begin in range(0, rows, self._batch_rows):
            part = slice(begin, begin + self._batch_rows)
            batch = {name: torch.as_tensor(array[part]).to(self._device) for name, array in self._arrays.items()}
            labels = batch["y"].long()
            with torch.no_grad():
                lane_batch = {name: value[None] for name, value in batch.items()}
                logits = self._model.logits(parameters, self._local_rows(tables, lane_batch), lane_batch)[0].double()
                if self._model.shape.task == "binary":
                    score = logits[:, 0]
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(
                        score, labels.double(), reduction="none"
                    )
                    right = (score > 0) == (labels == 1)
                    scores[part] = score.cpu().numpy()
                else:
                    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
                    right = logits.argmax(1) == labels
            # A model that says NaN has not guessed class 0.
            right &= ~logits.isnan().any(1)
            losses[part], correct[part] = loss.cpu().numpy(), right.double().cpu().numpy()
        return np.nan_to_num(losses, nan=1e6, posinf=1e6), correct, scores

    def _local_rows(self, tables: list[torch.Tensor], batch: Mapping[str, torch.Tensor]) -> LocalRows | None:
        if not tables:
            return None
        offsets = torch.tensor(self._model.shape.tables[0].offsets, device=self._device)
        return LocalRows(tables[0], batch["c"] + offsets)

    def _parameters(self, version: ModelVersion) -> dict[str, torch.Tensor]:
        parameters, begin = {}, 0
        for parameter in self._model.shape.parameters:
            flat = torch.tensor(version.dense[begin : begin + parameter.size]).to(self._device)
            parameters[parameter.name] = flat.reshape(1, *parameter.shape)
            begin += parameter.size
        return parameters


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
