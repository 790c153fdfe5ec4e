"""Metrics as sums over rows, and their spread over clients."""

from atoll.evaluation.evaluator import METRICS, Evaluation, Evaluator, auc, normalized_entropy
from atoll.evaluation.outputs import outputs

__all__ = ["METRICS", "Evaluation", "Evaluator", "auc", "normalized_entropy", "outputs"]
