"""The report of an ensemble: what is not known is not made up, and every form carries the mark."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from atoll.tracking import Spread
from atoll.tracking.ensemble_report import (
    PROTOCOL,
    ClusterRow,
    EnsembleReport,
    ReportGain,
    ReportRow,
    cluster_table,
    report_csv,
    report_html,
    report_table,
    write_report,
)

NAMES = ("auc", "normalized_entropy", "loss", "accuracy")
QUALITY = {name: Spread(0.7, 0.6, 0.8) for name in NAMES}
GAIN = {name: ReportGain(0.0123, -0.001, 0.02, (0.01, 0.0146)) for name in NAMES}
BASE = ReportRow("single", "logistic", 1, 1000, 10_000, 10_000, QUALITY, {}, 2, True)
ROW = ReportRow("age <b>", "mean [x]", 4, 4000, 10_000, 40_000, QUALITY, GAIN, 2)
CLUSTER = ClusterRow("age <b>", "25_35", 120, 80.0, {"auc": 0.6}, {}, {"auc": math.nan}, {"auc": 0.65})
REPORT = EnsembleReport((BASE, ROW), (CLUSTER,), ("age: 4 clusters",), {"gender-s1": "no model of x"})


def shown(table: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_table_fits_80_characters_and_says_everything() -> None:
    text = shown(report_table(REPORT))
    for part in (
        "age <b>: 4",
        "mean [x]",
        "4,000",
        "10 kB",
        "40 kB",
        "0.7000",
        "+1.23 %",
        "[-0.10, +2.00]",
        "baseline",
    ):
        assert part in text, part
    assert PROTOCOL in text
    assert "gender-s1 (no model of x)" in " ".join(text.split())
    assert "…" not in text


def test_clusters_show_a_dash_for_what_is_not_known() -> None:
    text = shown(cluster_table(REPORT))
    assert text.count("–") == 2
    assert PROTOCOL in text
    assert cluster_table(EnsembleReport((BASE,))) is None


def test_csv_is_exact_and_empty_where_nothing_is_known() -> None:
    base, row = csv.DictReader(io.StringIO(report_csv(REPORT)))
    assert {line["protocol"] for line in (base, row)} == {PROTOCOL}
    assert base["auc_gain"] == ""
    assert float(row["auc_gain_low"]) == -0.001
    assert float(row["loss"]) == 0.7
    assert row["models"] == "age <b>"


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    text = report_html(REPORT, "A & B")
    assert "age &lt;b&gt;" in text
    assert "<b>" not in text
    assert "A &amp; B" in text
    assert 'src="data:image/png;base64,' in text
    assert "//" not in text.split("base64,")[0]
    page, table = write_report(REPORT, tmp_path / "new" / "folder", "A & B")
    assert (page.read_text(), table.read_text()) == (text, report_csv(REPORT))
    assert {path.name for path in page.parent.iterdir()} == {
        "ensemble.html",
        "ensemble.csv",
        "gain_auc.png",
        "gain_normalized_entropy.png",
    }


@pytest.mark.parametrize("rows", [(), (replace(BASE, is_baseline=False),)])
def test_without_a_baseline_there_are_no_gains_and_no_pictures(rows: tuple[ReportRow, ...]) -> None:
    report = EnsembleReport(rows)
    assert "Gains are" not in shown(report_table(report))
    assert "<img" not in report_html(report, "none")
    assert report_csv(report).count("\n") == 1 + len(rows)
