"""Running totals by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atoll.aggregation import Step
from atoll.messages import ModelVersion
from atoll.plan import StepPlan
from atoll.runtime.ledger import Ledger

NAMES = ("loss_sum", "delta_norm_sum", "delta_norm_sq_sum", "examples", "local_steps")
WEIGHTS = np.zeros(1, np.float32)


def closed(step: int, *, lanes: int, failed: int = 0, diverged: int = 0, staleness: float = 0.0, sums=(0.0,) * 5):
    plan = StepPlan(
        step=step, closed_us=(step + 1) * 1_800_000_000, fill_us=2_500_000, num_lanes=lanes,
        divisor=float(lanes), staleness_mean=staleness, staleness_p95=2 * staleness, num_failed=failed,
        wasted_us=100 * failed, used_us=300 * lanes, start_versions=np.array([step], np.int32),
        start_weights=np.array([float(lanes)]),
    )  # fmt: skip
    metrics = np.array([round(value * 2**24) for value in sums], np.int64)
    return Step(plan, ModelVersion(step + 1, WEIGHTS), diverged, 0.25, metrics, "sha")


def test_one_step() -> None:
    ledger = Ledger(1000, NAMES)
    found = ledger.add(closed(0, lanes=4, failed=2, diverged=1, staleness=1.5, sums=(1.5, 6.0, 20.0, 96.0, 12.0)))
    assert found == {
        "train/loss": 0.5,  # over the three that did not diverge
        "train/diverged": 1.0,
        "update/norm": 0.25,
        "update/client_norm_mean": 2.0,
        "staleness/mean": 1.5,
        "staleness/p95": 3.0,
        "buffer/fill_s": 2.5,
        "sim/hours": 0.5,
        "sim/client_updates": 4.0,
        "sim/uplink_bytes": 4000.0,
        "sim/downlink_bytes": 6000.0,
        "sim/wasted_share": pytest.approx(200 / 1400),
    }


def test_totals_add_up_and_staleness_is_weighted_by_tasks() -> None:
    ledger = Ledger(10, NAMES)
    ledger.add(closed(0, lanes=1, staleness=4.0, failed=1))
    found = ledger.add(closed(1, lanes=3, staleness=0.0, diverged=2))
    assert (ledger.client_updates, ledger.totals()["participations"], ledger.num_diverged) == (4, 5, 2)
    assert ledger.mean_staleness == 1.0
    assert found["sim/client_updates"] == 4.0
    assert found["sim/downlink_bytes"] == 50.0
    assert found["sim/hours"] == 1.0
    assert found["sim/wasted_share"] == pytest.approx(100 / 1300)


def test_a_step_where_everybody_diverged_divides_by_nothing() -> None:
    found = Ledger(10, NAMES).add(closed(0, lanes=2, diverged=2))
    assert found["train/loss"] == 0.0
    assert found["train/diverged"] == 2.0


def test_nothing_yet() -> None:
    assert Ledger(10, NAMES).mean_staleness == 0.0


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 6])
def test_who_counts_on_from_written_totals_gets_the_same_metrics(cut: int) -> None:
    """A run that is resumed must not differ in the last digit: thirds and tenths would show a rounding."""
    steps = [
        closed(step, lanes=3 + step, failed=step % 3, diverged=step % 2, staleness=0.1 + step / 3) for step in range(6)
    ]
    whole = Ledger(1000, NAMES)
    expected = [whole.add(step) for step in steps]
    first = Ledger(1000, NAMES)
    found = [first.add(step) for step in steps[:cut]]
    second = Ledger(1000, NAMES, json.loads(json.dumps(first.totals())))
    found += [second.add(step) for step in steps[cut:]]
    assert found == expected
    assert second.totals() == whole.totals()
    assert (second.mean_staleness, second.virtual_hours) == (whole.mean_staleness, whole.virtual_hours)


def test_totals_that_were_given_out_do_not_change() -> None:
    ledger = Ledger(10, NAMES)
    before = ledger.totals()
    ledger.add(closed(0, lanes=2))
    assert before["client_updates"] == 0
