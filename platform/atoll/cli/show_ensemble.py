"""What people see of ensembles: the models that a plan would train, and how the ensemble stands beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atoll.cli import show

if TYPE_CHECKING:
    from atoll.experiment.ensembling import EnsemblePlan
    from atoll.experiment.judging import Judgement

__all__ = ["judgement", "plan"]

_console = Console(highlight=False)


def judgement(found: Judgement) -> None:
    """The table of arms, the table of clusters, and what was measured on what."""
    from atoll.tracking.ensemble_report import cluster_table, report_table

    report = found.report()
    _console.print(report_table(report))
    clusters = cluster_table(report)
    if clusters is not None:
        _console.print(clusters)
    for note in report.notes:
        _console.print(escape(note))


def plan(planned: EnsemblePlan) -> None:
    """Every model that would be trained, what joins them, and the clusters of each ensemble."""
    table = Table(title="Plan of the ensemble: simulated, nothing trained yet", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("trained as")
    for head in ("server steps", "client updates", "virtual hours", "bytes", "plan digest"):
        table.add_column(head, justify="right", overflow="fold")
    for member in planned.study.members:
        report = planned.reports[member.name]
        summary = report.summary
        cells = [f"{member.spec.stop.server_steps:,}", f"{summary.client_updates:,}", f"{summary.virtual_hours:.2f}"]
        cells += [show.byte_text(report.model_bytes), report.plan_digest[:12]]
        table.add_row(escape(member.name), member.role.replace("_", " "), *cells)
    _console.print(table)
    arms = Table(title="What is joined and compared", title_justify="left")
    arms.add_column("arm", overflow="fold")
    for head in ("models", "bytes a device", "bytes in all", "client updates", "over-arch", "fitted on"):
        arms.add_column(head, justify="right")
    for arm in planned.study.arms:
        reports = [planned.reports[name] for name in arm.members]
        ensemble = arm.spec.ensemble
        joined = ("", "") if ensemble is None else (ensemble.over_arch.kind, ensemble.fit.kind)
        cells = [str(len(reports)), show.byte_text(max(report.model_bytes for report in reports))]
        cells += [show.byte_text(sum(report.model_bytes for report in reports))]
        cells += [f"{sum(report.summary.client_updates for report in reports):,}"]
        nothing = joined[0] in ("mean", "median")
        arms.add_row(escape(arm.name), *cells, joined[0].replace("_", " "), "nothing" if nothing else joined[1])
    _console.print(arms)
    told = set()
    for arm in planned.study.arms:
        sizes = planned.reports[arm.members[0]].clusters
        if arm.role == "ensemble" and sizes and sizes not in told:
            told.add(sizes)
            show.clusters(sizes, f"Clusters of {arm.label}")
