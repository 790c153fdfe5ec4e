"""An ensemble beside its controls as a terminal table, CSV and one self-contained HTML page. Pure but `write_report`.

Whatever is shown carries the mark `PROTOCOL`: how leaves and over-arch are built is this platform's own reading of
federated ensemble learning, and no number here is one of the paper's.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.tracking.compare import Spread
from atoll.tracking.curves import byte_unit
from atoll.tracking.plots import ReportPoint, gain_picture
from atoll.tracking.render import STYLE

__all__ = [
    "PROTOCOL",
    "ClusterRow",
    "EnsembleReport",
    "ReportGain",
    "ReportRow",
    "cluster_table",
    "report_csv",
    "report_html",
    "report_table",
    "write_report",
]

PROTOCOL = "our protocol"
_WORDS = {"auc": "AUC", "normalized_entropy": "NE", "loss": "log loss", "accuracy": "accuracy"}
_LONG_WORDS = {**_WORDS, "normalized_entropy": "normalised entropy"}
#: qualities whose gains have columns of their own on a terminal
_SHOWN = ("auc", "normalized_entropy")


@dataclass(frozen=True, slots=True)
class ReportGain:
    """Relative gain over the baseline, positive is better: mean over seeds, 95 % interval (NaN: none), each seed's."""

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One way to join one set of models.

    Attributes:
        label: which models.
        joined: how they are joined.
        models: how many.
        client_updates: of all of them, median over seeds.
        device_bytes: of the largest one: what a device holds.
        capacity_bytes: of all together: what the server holds.
        quality: metric → median, lowest and highest over seeds.
        gain: metric → gain over the baseline; empty without one.
        num_seeds: seeds behind this row.
        is_baseline: whether gains are over this row.
    """

    label: str
    joined: str
    models: int
    client_updates: float
    device_bytes: int
    capacity_bytes: int
    quality: Mapping[str, Spread]
    gain: Mapping[str, ReportGain] = field(default_factory=dict)
    num_seeds: int = 1
    is_baseline: bool = False


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """One cluster of one ensemble; medians over seeds, NaN where not measured.

    Attributes:
        label: the ensemble.
        cluster: its name.
        clients: of the population.
        rows: test rows of its clients; 0 where test clients belong to no cluster.
        leaf: metric → its own leaf, as trained, on all test rows.
        leaf_at_home: the same on the cluster's rows.
        single: the baseline on the cluster's rows.
        joined: the ensemble on the cluster's rows.
    """

    label: str
    cluster: str
    clients: int
    rows: float
    leaf: Mapping[str, float]
    leaf_at_home: Mapping[str, float]
    single: Mapping[str, float]
    joined: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EnsembleReport:
    """Everything that a report shows.

    Attributes:
        rows: the baseline first.
        clusters: of all ensembles; may be empty.
        notes: what was measured on what: clusters, sizes, over-arch and its data, seeds.
        left_out: arm → why it is not there.
    """

    rows: tuple[ReportRow, ...]
    clusters: tuple[ClusterRow, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def _caption(report: EnsembleReport, *, with_spread: bool = True) -> str:
    seeds = max((row.num_seeds for row in report.rows), default=0)
    parts = [f"{PROTOCOL[0].upper()}{PROTOCOL[1:]}."]
    spread = " (lowest – highest)" if with_spread else ""
    parts.append(f"Medians over {seeds} seeds{spread}." if seeds > 1 else "One seed.")
    base = next((row for row in report.rows if row.is_baseline), None)
    if base is not None:
        parts.append(
            f"Gains are relative to {base.label} ({base.joined}), positive is better: mean over seeds, and a 95 % "
            "interval over resampled test clients, the same for all models."
        )
    return " ".join(parts)


def _left_out(report: EnsembleReport) -> str:
    return f"Left out: {'; '.join(f'{arm} ({why})' for arm, why in report.left_out.items())}" if report.left_out else ""


def _bytes(count: float) -> str:
    divisor, unit = byte_unit(count)
    return f"{count / divisor:.3g} {unit}"


def _value(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _heads(qualities: Sequence[str], gains: Sequence[str], words: Mapping[str, str]) -> list[str]:
    heads = ["models", "joined by", "n", "client updates", "on a device", "in all"]
    return heads + [words[name] for name in qualities] + [f"{words[name]} gain" for name in gains]


def _cells(row: ReportRow, qualities: Sequence[str], gains: Sequence[str]) -> list[tuple[str, str]]:
    """(value, spread or interval) per column."""
    cells = [(row.label, ""), (row.joined, ""), (str(row.models), ""), (f"{row.client_updates:,.0f}", "")]
    cells += [(_bytes(row.device_bytes), ""), (_bytes(row.capacity_bytes), "")]
    return cells + [_quality(row, name) for name in qualities] + [_gain_of(row, name) for name in gains]


def _quality(row: ReportRow, name: str, *, with_spread: bool = True) -> tuple[str, str]:
    spread = row.quality[name]
    low, high = _value(spread.low), _value(spread.high)
    return _value(spread.median), f"({low} – {high})" if with_spread and low != high else ""


def _gain_of(row: ReportRow, name: str) -> tuple[str, str]:
    if row.is_baseline or name not in row.gain:
        return "baseline" if row.is_baseline else "", ""
    gain = row.gain[name]
    if math.isnan(gain.value):
        return "–", ""
    interval = "" if math.isnan(gain.low) else f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    return f"{100 * gain.value:+.2f} %", interval


def report_table(report: EnsembleReport) -> Any:
    """A rich Table of AUC and normalised entropy with their gains, for `Console().print`; 80 characters suffice."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    caption = "\n".join(filter(None, (_caption(report, with_spread=False), _left_out(report))))
    table = Table(title=f"Ensemble and controls ({PROTOCOL})", title_justify="left", box=SIMPLE, pad_edge=False)
    table.caption, table.caption_justify = escape(caption), "left"
    table.add_column("models: how many\n  joined by", min_width=22, overflow="fold")
    for head in ("client\nupdates", "device\nin all", *(f"{_WORDS[name]} and gain\n95 %" for name in _SHOWN)):
        table.add_column(head, justify="right", no_wrap=True)
    for row in report.rows:
        cells = [f"{row.label}: {row.models}\n  {row.joined}", f"{row.client_updates:,.0f}"]
        cells.append(f"{_bytes(row.device_bytes)}\n{_bytes(row.capacity_bytes)}")
        for name in _SHOWN:
            (value, _), (gain, interval) = _quality(row, name, with_spread=False), _gain_of(row, name)
            cells.append(f"{value} {gain:>9}\n{interval}")
        table.add_row(*map(escape, cells))
    return table


_CLUSTER_HEADS = ("models", "cluster", "clients", "test rows")
_CLUSTER_PARTS = {"single": "single", "leaf_at_home": "own leaf", "joined": "joined", "leaf": "own leaf, all rows"}


def _cluster_cells(row: ClusterRow, qualities: Sequence[str]) -> list[str]:
    cells = [row.label, row.cluster, f"{row.clients:,}", f"{row.rows:,.0f}"]
    for name in qualities:
        cells += [_value(getattr(row, part).get(name, math.nan)) for part in _CLUSTER_PARTS]
    return cells


def _cluster_heads(qualities: Sequence[str]) -> list[str]:
    return [*_CLUSTER_HEADS, *(f"{_WORDS[name]}: {part}" for name in qualities for part in _CLUSTER_PARTS.values())]


def cluster_table(report: EnsembleReport) -> Any:
    """A rich Table of AUC cluster by cluster, or None where there are no clusters."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    if not report.clusters:
        return None
    table = Table(
        title=f"Clusters ({PROTOCOL}): AUC on the cluster's rows", title_justify="left", box=SIMPLE, pad_edge=False
    )
    for index, head in enumerate((*_CLUSTER_HEADS, *_CLUSTER_PARTS.values())):
        table.add_column(head.replace(", ", "\n"), justify="left" if index < 2 else "right", overflow="fold")
    for row in report.clusters:
        table.add_row(*map(escape, _cluster_cells(row, ("auc",))))
    return table


def report_csv(report: EnsembleReport) -> str:
    """One line per row of the table, full precision, for other programs; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ["protocol", "models", "joined_by", "n", "seeds", "client_updates", "device_bytes", "capacity_bytes"]
    for name in _WORDS:
        heads += [name, f"{name}_low", f"{name}_high"]
    for name in _WORDS:
        heads += [f"{name}_gain", f"{name}_gain_low", f"{name}_gain_high"]
    writer.writerow(heads)
    nothing = ReportGain(math.nan, math.nan, math.nan)
    for row in report.rows:
        numbers: list[float] = []
        for name in _WORDS:
            spread = row.quality[name]
            numbers += [spread.median, spread.low, spread.high]
        for name in _WORDS:
            gain = row.gain.get(name, nothing)
            numbers += [gain.value, gain.low, gain.high]
        plain = [PROTOCOL, row.label, row.joined, row.models, row.num_seeds, row.client_updates]
        plain += [row.device_bytes, row.capacity_bytes]
        writer.writerow([*plain, *("" if math.isnan(number) else repr(number) for number in numbers)])
    return out.getvalue()


def pictures(report: EnsembleReport) -> dict[str, bytes]:
    """PNG bytes per metric whose gains are known: gain_auc, gain_normalized_entropy."""
    found = {}
    for name in _SHOWN:
        points = [
            ReportPoint(f"{row.label}\n{row.joined}", gain.value, gain.low, gain.high, gain.by_seed)
            for row in report.rows
            if (gain := row.gain.get(name)) is not None and not row.is_baseline and not math.isnan(gain.value)
        ]
        if points:
            found[f"gain_{name}"] = gain_picture(points, f"relative gain in {_LONG_WORDS[name]} (%)", PROTOCOL)
    return found


def report_html(report: EnsembleReport, title: str) -> str:
    """One page without any outside file: the tables, the pictures (PNG, embedded), and what was measured on what."""
    names = list(_WORDS)
    body = [
        f"<h1>{html.escape(title)} <small>({PROTOCOL})</small></h1>",
        f'<p class="caption">{html.escape(_caption(report))}</p>',
        _html_table(_heads(names, names, _LONG_WORDS), [_html_row(row, names) for row in report.rows]),
        f'<p class="missed">{html.escape(_left_out(report))}</p>' if report.left_out else "",
        _html_pictures(report),
    ]
    if report.clusters:
        cells = ["<tr>" + _html_cells(_cluster_cells(row, _SHOWN)) + "</tr>" for row in report.clusters]
        body += [f"<h2>Clusters ({PROTOCOL})</h2>", _html_table(_cluster_heads(_SHOWN), cells)]
    if report.notes:
        items = "".join(f"<li>{html.escape(note)}</li>" for note in report.notes)
        body += ["<h2>What was measured</h2>", f"<ul>{items}</ul>"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _html_cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)


def _html_row(row: ReportRow, names: Sequence[str]) -> str:
    cells = "".join(
        f"<td>{html.escape(value)}<small>{html.escape(more)}</small></td>" for value, more in _cells(row, names, names)
    )
    kind = ' class="baseline"' if row.is_baseline else ""
    return f"<tr{kind}>{cells}</tr>"


def _html_table(heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _html_pictures(report: EnsembleReport) -> str:
    figures = []
    for name, png in pictures(report).items():
        text = f"Relative gain in {_LONG_WORDS[name.removeprefix('gain_')]} over the baseline ({PROTOCOL})"
        data = base64.b64encode(png).decode()
        caption = f"{text}; dot: mean, bar: 95 % interval, strokes: seeds"
        figures.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
        )
    return f'<h2>Gains</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def write_report(report: EnsembleReport, folder: Path, title: str) -> tuple[Path, Path]:
    """Writes ensemble.html, ensemble.csv and the pictures into `folder`, made where missing; returns the first two."""
    folder.mkdir(parents=True, exist_ok=True)
    page, table = folder / "ensemble.html", folder / "ensemble.csv"
    page.write_text(report_html(report, title))
    table.write_text(report_csv(report))
    for name, png in pictures(report).items():
        (folder / f"{name}.png").write_bytes(png)
    return page, table
