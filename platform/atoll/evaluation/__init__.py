"""Metrics as sums over rows, and their spread over clients; torch is imported with `LaneForward` and `outputs` only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.evaluation.asking import Asked
from atoll.evaluation.evaluator import METRICS, Evaluation, Evaluator, auc, normalized_entropy

if TYPE_CHECKING:
    from atoll.evaluation.lane_forward import LaneForward, outputs

__all__ = ["METRICS", "Asked", "Evaluation", "Evaluator", "LaneForward", "auc", "normalized_entropy", "outputs"]


def __getattr__(name: str) -> Any:
    """The torch side, imported when first asked for: models of a compiled form are evaluated without."""
    if name in ("LaneForward", "outputs"):
        import importlib

        return getattr(importlib.import_module("atoll.evaluation.lane_forward"), name)
    raise AttributeError(f"module 'atoll.evaluation' has no attribute {name!r}")
