"""Pictures are drawn from what there is, and are PNG files of a readable size."""

from __future__ import annotations

import struct
import warnings

import pytest

from atoll.tracking import RunSummary, Target, compare, comparison_plots, plots

EVERY = range(0, 101)
FULL = {
    "eval/auc": [(s, 0.5 + s / 400) for s in range(0, 101, 10)],
    "sim/hours": [(s, s / 10) for s in EVERY],
    "sim/client_updates": [(s, s * 20.0) for s in EVERY],
    "sim/uplink_bytes": [(s, s * 1e6) for s in EVERY],
    "sim/wasted_share": [(s, 0.1) for s in EVERY],
    "staleness/mean": [(s, 3.0) for s in EVERY],
    "staleness/p95": [(s, 9.0) for s in EVERY],
    **{f"eval/client_loss_p{p}": [(s, p / 100) for s in range(0, 101, 10)] for p in (10, 50, 90)},
    **{f"eval/volume_q{q}_loss": [(s, q / 10) for s in range(0, 101, 10)] for q in (1, 2, 3, 4)},
}
NAMES = {
    "quality_vs_hours",
    "quality_vs_client_updates",
    "quality_vs_uplink_bytes",
    "staleness",
    "activity",
    "client_percentiles",
    "volume_groups",
}


def size_of(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_a_full_history_gives_every_picture(tmp_path):
    found = plots(FULL, tmp_path / "new" / "folder", metric="eval/auc", target=0.7, title="run")
    assert set(found) == NAMES
    for name, path in found.items():
        assert path.name == f"{name}.png"
        assert min(size_of(path)) > 400


def test_pictures_without_data_are_left_out(tmp_path):
    assert plots({}, tmp_path) == {}
    found = plots({"sim/hours": FULL["sim/hours"], "eval/auc": FULL["eval/auc"]}, tmp_path, metric="eval/auc")
    assert set(found) == {"quality_vs_hours"}


def test_counts_and_active_clients_are_drawn_where_given(tmp_path):
    found = plots({}, tmp_path, staleness_counts={0: 5, 3: 1}, active=[(0.0, 10.0), (1.0, 12.0)])
    assert set(found) == {"staleness", "activity"}


def test_the_same_history_gives_the_same_bytes(tmp_path):
    first = plots(FULL, tmp_path / "a", metric="eval/auc")
    second = plots(FULL, tmp_path / "b", metric="eval/auc")
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in second.values()]


def test_the_axis_reaches_the_last_evaluation():
    from atoll.tracking.curves import AXES
    from atoll.tracking.plots import _quality

    for axis, largest in zip(AXES, (10.0, 2000.0, 100.0), strict=True):
        (axes,) = _quality(FULL, axis, "eval/auc", 0.7, "").axes
        low, high = axes.get_xlim()
        assert low == 0
        assert largest <= high <= 1.2 * largest


@pytest.mark.parametrize("num_arms", [1, 9])
def test_a_comparison_is_drawn_with_one_colour_per_arm(tmp_path, num_arms):
    history = FULL | {"sim/downlink_bytes": FULL["sim/uplink_bytes"]}
    runs = [
        RunSummary(f"{arm}-{seed}", "n", f"arm {arm}", seed, history, Target("auc", 0.7))
        for arm in range(num_arms)
        for seed in (1, 2)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = comparison_plots(compare(runs), tmp_path)
    assert set(found) == {"quality_vs_hours", "quality_vs_client_updates", "quality_vs_traffic_bytes"}
