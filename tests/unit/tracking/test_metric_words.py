"""How metrics are called, and which way is up."""

from __future__ import annotations

import pytest

from atoll.tracking.curves import lower_is_better, metric_label


@pytest.mark.parametrize(
    ("metric", "falls", "label"),
    [
        ("eval/loss", True, "loss on held-out data"),
        ("eval/auc", False, "AUC on held-out data"),
        ("normalized_entropy", True, "normalized entropy"),
        ("eval/normalized_entropy", True, "normalized entropy on held-out data"),
        ("eval/cluster/boeing/auc", False, "AUC on held-out data of boeing"),
        ("eval/cluster/glossy/accuracy", False, "accuracy on held-out data of glossy"),
    ],
)
def test_words_and_directions(metric: str, falls: bool, label: str) -> None:
    assert lower_is_better(metric) == falls
    assert metric_label(metric) == label
