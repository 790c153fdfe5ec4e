"""Metrics as sums over rows, and their spread over clients."""

from atoll.evaluation.evaluator import METRICS, Evaluation, Evaluator, auc

__all__ = ["METRICS", "Evaluation", "Evaluator", "auc"]
