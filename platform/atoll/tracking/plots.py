"""Pictures of one run, and of a comparison, as PNG files. matplotlib is imported when the first picture is drawn.

Figures are built without pyplot: no global state, no display, safe in any thread.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll.tracking.curves import AXES, Axis, History, against, byte_unit, metric_label

if TYPE_CHECKING:
    from atoll.tracking.compare import Comparison

__all__ = ["ReportPoint", "comparison_pictures", "comparison_plots", "gain_picture", "plots"]

# Okabe and Ito's colours, told apart by colour-blind readers as well; yellow left out: it vanishes on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_INK = "#333333"
_TRACED_POINTS = 60


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, color=_INK, loc="left")
    axes.set_xlabel(x_label, fontsize=10, color=_INK)
    axes.set_ylabel(y_label, fontsize=10, color=_INK)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _scale_x(axes: Any, axis: Axis, largest: float) -> float:
    """Label the x axis; returns what costs are divided by. Counts are printed as 20k, bytes in their own unit."""
    from matplotlib.ticker import EngFormatter

    if axis.name.endswith("bytes"):
        divisor, unit = byte_unit(largest)
        axes.set_xlabel(f"{axis.label} ({unit})", fontsize=10, color=_INK)
        return divisor
    axes.set_xlabel(axis.label, fontsize=10, color=_INK)
    if axis.name == "client_updates":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return 1.0


def _target_line(axes: Any, target: float | None) -> None:
    if target is not None:
        axes.axhline(target, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)), label=f"target {target:g}")


def plots(
    history: History,
    folder: Path,
    *,
    metric: str = "eval/loss",
    target: float | None = None,
    title: str = "",
    staleness_counts: Mapping[int, int] | None = None,
    active: Sequence[tuple[float, float]] | None = None,
) -> dict[str, Path]:
    """Draw the pictures of one run into `folder` (created where missing).

    Args:
        history: (step, value) per metric key, steps ascending.
        folder: where NAME.png files go; existing ones are overwritten.
        metric: key of the quality metric.
        target: drawn as a dashed line on the quality pictures.
        title: of the run; stands over each picture.
        staleness_counts: client updates per staleness, for the histogram; without it mean and p95 are drawn by step.
        active: (virtual hours, active clients) points.

    Returns:
        File per picture that the data allows: quality_vs_hours, quality_vs_client_updates, quality_vs_uplink_bytes,
        staleness, activity, client_percentiles, volume_groups.
    """
    figures: dict[str, Any] = {}
    for axis in AXES:
        figures[f"quality_vs_{axis.name}"] = _quality(history, axis, metric, target, title)
    figures["staleness"] = _staleness(history, staleness_counts, title)
    figures["activity"] = _activity(history, active, title)
    figures["client_percentiles"] = _percentiles(history, metric, title)
    figures["volume_groups"] = _volume_groups(history, title)
    return _write({name: _png(figure) for name, figure in figures.items() if figure is not None}, folder)


def _write(pictures: Mapping[str, bytes], folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in pictures}
    for name, path in paths.items():
        path.write_bytes(pictures[name])
    return paths


def _quality(history: History, axis: Axis, metric: str, target: float | None, title: str) -> Any:
    costs, values = against(history, metric, axis.keys)
    if not values:
        return None
    figure, axes = _figure(title, axis.label, metric_label(metric))
    divisor = _scale_x(axes, axis, max(costs))
    marker = "o" if len(values) <= _TRACED_POINTS else None
    axes.plot([cost / divisor for cost in costs], values, color=_COLOURS[0], linewidth=1.6, marker=marker, markersize=3)
    axes.set_xlim(left=0)
    _target_line(axes, target)
    if target is not None:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _staleness(history: History, counts: Mapping[int, int] | None, title: str) -> Any:
    if counts:
        from matplotlib.ticker import MaxNLocator

        total = sum(counts.values())
        mean = sum(key * count for key, count in counts.items()) / total
        figure, axes = _figure(title, "staleness (server steps)", "share of client updates (%)")
        keys = sorted(counts)
        axes.bar(keys, [100 * counts[key] / total for key in keys], width=0.9, color=_COLOURS[0])
        axes.axvline(mean, color=_COLOURS[1], linewidth=1.4, label=f"mean {mean:.3g}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
        return figure
    found = [
        (key, label)
        for key, label in (("staleness/mean", "mean"), ("staleness/p95", "95th percentile"))
        if history.get(key)
    ]
    if not found:
        return None
    figure, axes = _figure(title, "server step", "staleness (server steps)")
    for colour, (key, label) in zip(_COLOURS, found, strict=False):
        steps, values = zip(*history[key], strict=True)
        axes.plot(steps, values, color=colour, linewidth=1.3, label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _activity(history: History, active: Sequence[tuple[float, float]] | None, title: str) -> Any:
    hours, shares = against(history, "sim/wasted_share", ("sim/hours",))
    if not active and not shares:
        return None
    figure, axes = _figure(title, "virtual hours (simulated)", "active clients" if active else "")
    if active:
        times, clients = zip(*active, strict=True)
        axes.step(times, clients, where="post", color=_COLOURS[0], linewidth=1.4, label="active clients")
        axes.set_ylim(0, 1.1 * max(clients))
    if shares:
        right = axes.twinx() if active else axes
        right.plot(hours, [100 * share for share in shares], color=_COLOURS[1], linewidth=1.4, label="wasted compute")
        right.set_ylabel("wasted client compute (%)", fontsize=10, color=_INK)
        right.set_ylim(0, max(1.0, 110 * max(shares)))
        right.tick_params(labelsize=9, colors=_INK)
        right.spines["top"].set_visible(False)
    axes.set_xlim(left=0)
    if active and shares:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _percentiles(history: History, metric: str, title: str) -> Any:
    name = metric.rpartition("/")[2]
    if not history.get(f"eval/client_{name}_p50"):
        name = "loss"
    lines = {p: against(history, f"eval/client_{name}_p{p}", ("sim/hours",)) for p in (10, 50, 90)}
    if not all(values for _, values in lines.values()):
        return None
    figure, axes = _figure(title, "virtual hours (simulated)", f"{name.replace('_', ' ')} of a client on held-out data")
    lowest, highest = lines[10], lines[90]
    if lowest[0] == highest[0]:
        axes.fill_between(lowest[0], lowest[1], highest[1], color=_COLOURS[0], alpha=0.15, linewidth=0)
    for percent, style in ((90, ":"), (50, "-"), (10, "--")):
        label = "median client" if percent == 50 else f"{percent}th percentile"
        axes.plot(*lines[percent], color=_COLOURS[0], linestyle=style, linewidth=1.5, label=label)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _volume_groups(history: History, title: str) -> Any:
    lines = {group: against(history, f"eval/volume_q{group}_loss", ("sim/hours",)) for group in (1, 2, 3, 4)}
    if not any(values for _, values in lines.values()):
        return None
    figure, axes = _figure(title, "virtual hours (simulated)", "loss on held-out data")
    words = {1: "least data (first quarter)", 2: "second quarter", 3: "third quarter", 4: "most data (last quarter)"}
    for colour, (group, (hours, values)) in zip(_COLOURS, lines.items(), strict=False):
        if values:
            axes.plot(hours, values, color=colour, linewidth=1.5, label=words[group])
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=9, title="clients by data volume", title_fontsize=9)
    return figure


def comparison_pictures(comparison: Comparison) -> dict[str, bytes]:
    """PNG bytes of quality against virtual hours, client updates and traffic: one colour per arm, seeds thin.

    The thick line of an arm with several seeds is the run with its (lower) median virtual hours to the target: a real
    run, never an average of runs that stopped at different times.
    """
    target = comparison.target
    traffic = Axis(("sim/uplink_bytes", "sim/downlink_bytes"), "traffic_bytes", "uplink + downlink")
    pictures = {}
    for axis in (*AXES[:2], traffic):
        curves = []
        for index, arm in enumerate(comparison.arms):
            for outcome in arm.runs:
                costs, values = against(outcome.run.history, target.key, axis.keys)
                if values:
                    curves.append((index, arm.name, outcome is arm.typical, costs, values))
        if not curves:
            continue
        figure, axes = _figure("", axis.label, metric_label(target.key))
        divisor = _scale_x(axes, axis, max(max(costs) for *_, costs, _ in curves))
        for index, name, thick, costs, values in curves:
            colour = _COLOURS[index % len(_COLOURS)]
            width, alpha = (2.0, 1.0) if thick else (0.8, 0.45)
            scaled = [cost / divisor for cost in costs]
            style = "-" if index < len(_COLOURS) else "--"
            axes.plot(scaled, values, style, color=colour, linewidth=width, alpha=alpha, label=name if thick else None)
        axes.set_xlim(left=0)
        _target_line(axes, target.value)
        axes.legend(frameon=False, fontsize=9)
        pictures[f"quality_vs_{axis.name}"] = _png(figure)
    return pictures


def comparison_plots(comparison: Comparison, folder: Path) -> dict[str, Path]:
    """Write `comparison_pictures` into `folder` as NAME.png; returns the paths."""
    return _write(comparison_pictures(comparison), folder)


@dataclass(frozen=True, slots=True)
class ReportPoint:
    """One line of a picture of gains: shares, not percent; low and high NaN where there is no interval."""

    label: str
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...] = ()


def gain_picture(points: Sequence[ReportPoint], x_label: str, mark: str) -> bytes:
    """PNG bytes of gains with intervals, the first point on top; a line at 0; `mark` stands over the picture."""
    figure, axes = _figure(mark, x_label, "")
    figure.set_figheight(1.2 + 0.42 * len(points))
    for place, point in enumerate(points):
        height = len(points) - 1 - place
        if point.low == point.low:  # NaN is not itself
            axes.plot([100 * point.low, 100 * point.high], [height, height], color=_COLOURS[0], linewidth=2.0)
        axes.plot([100 * point.value], [height], "o", color=_COLOURS[0], markersize=6)
        several = point.by_seed if len(point.by_seed) > 1 else ()
        axes.plot([100 * value for value in several], [height] * len(several), "|", color=_COLOURS[1], markersize=9)
    axes.axvline(0.0, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(points)), [point.label for point in reversed(points)], fontsize=8)
    axes.set_ylim(-0.6, len(points) - 0.4)
    return _png(figure)
