"""What people see of ensembles: the models that a plan would train, and how the ensemble stands beside its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE
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
    """Every model that would be trained with the first seed, what joins them, and the clusters of each ensemble."""
    seeds = list(dict.fromkeys(arm.seed for arm in planned.study.arms))
    others = "" if len(seeds) == 1 else f"; as many with seed {', '.join(map(str, seeds[1:]))}"
    title = f"Plan of the ensemble, seed {seeds[0]}{others}: simulated, nothing trained yet"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("model", min_width=22, overflow="fold")
    for head in ("server\nsteps", "client\nupdates", "virtual\nhours", "bytes", "plan digest"):
        table.add_column(head, justify="right", no_wrap=True)
    for member in (member for member in planned.study.members if member.seed == seeds[0]):
        report = planned.reports[member.name]
        summary = report.summary
        cells = [f"{member.spec.stop.server_steps:,}", f"{summary.client_updates:,}", f"{summary.virtual_hours:.2f}"]
        table.add_row(escape(member.name), *cells, show.byte_text(report.model_bytes), report.plan_digest[:8])
    _console.print(table)
    arms = Table(title="What is joined and compared", title_justify="left", box=SIMPLE, pad_edge=False)
    arms.add_column("arm: models", min_width=22, overflow="fold")
    for head in ("client\nupdates", "on a\ndevice", "in all", "over-arch", "fitted on"):
        arms.add_column(head, justify="right", no_wrap=True)
    first = [arm for arm in planned.study.arms if arm.seed == seeds[0]]
    for arm in first:
        reports = [planned.reports[name] for name in arm.members]
        ensemble = arm.spec.ensemble
        kind, fit = ("", "") if ensemble is None else (ensemble.over_arch.kind, ensemble.fit.kind)
        cells = [f"{sum(report.summary.client_updates for report in reports):,}"]
        cells += [show.byte_text(max(report.model_bytes for report in reports))]
        cells += [show.byte_text(sum(report.model_bytes for report in reports)), kind.replace("_", " ")]
        cells.append("nothing" if kind in ("mean", "median") else {"server": "server rows"}.get(fit, fit))
        arms.add_row(escape(f"{arm.label}: {len(reports)}"), *cells)
    _console.print(arms)
    told = set()
    for arm in first:
        sizes = planned.reports[arm.members[0]].clusters
        if arm.role == "ensemble" and sizes and sizes not in told:
            told.add(sizes)
            show.clusters(sizes, f"Clusters of {arm.label}")
