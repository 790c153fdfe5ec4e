"""What each workload is held to, the tables, and the history in MLflow."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench_sides import CACHE, ROOT
from rich.console import Console
from rich.table import Table

__all__ = ["Check", "checks", "platform_facts", "record", "show"]

Medians = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Check:
    """One target.

    Attributes:
        title: what is asked.
        value: what was measured; None: one of its sides is not there.
        goal: None: reported only.
        unit: behind both; × is a ratio of medians of one run.
        is_least: whether the goal is the least or the most.
    """

    title: str
    value: float | None
    goal: float | None
    unit: str = "×"
    is_least: bool = True

    @property
    def is_met(self) -> bool | None:
        """None where nothing is to be met, or nothing was measured."""
        if self.value is None or self.goal is None:
            return None
        return self.value >= self.goal if self.is_least else self.value <= self.goal


class _Sides:
    """Rates and other figures of sides by name; None where a side is not there."""

    def __init__(self, medians: Medians, groups: Mapping[str, str]) -> None:
        self._medians, self._groups = medians, groups

    def rate(self, *names: str) -> float | None:
        """Of the fastest of these sides."""
        rates = [self._medians[name]["clients_per_s"] for name in names if name in self._medians]
        return max(rates, default=None)

    def best(self, group: str, is_ours: Callable[[str], bool] = lambda _: True) -> float | None:
        """Of the fastest side of a group."""
        return self.rate(*(name for name, its in self._groups.items() if its == group and is_ours(name)))

    def figure(self, name: str, side: str) -> float | None:
        """One figure of one side."""
        return self._medians.get(side, {}).get(name)


def _over(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or not lower else upper / lower


def checks(workload: str, medians: Medians, groups: Mapping[str, str]) -> list[Check]:
    """Every row of the targets that this workload's sides speak of."""
    sides = _Sides(medians, groups)
    return {"W1": _w1, "W2": _w2, "W3": _w3}.get(workload, _own)(sides)


def _w1(sides: _Sides) -> list[Check]:
    pfl, peer, kernel = sides.rate("pfl, 2 processes"), sides.best("peer"), sides.best("kernel")
    large, fedbuff = sides.rate("atoll ray 1000"), sides.rate("atoll ray FedBuff", "atoll inline FedBuff")
    small = sides.rate("atoll ray 100", "atoll inline 100")
    return [
        Check("cohort 1000 / pfl, 2 processes", _over(large, pfl), 40),
        Check("cohort 1000 / best peer", _over(large, peer), 20),
        Check("cohort 1000 / best kernel by hand", _over(large, kernel), 0.5),
        Check("cohort 100, the faster runtime / best peer", _over(small, peer), 10),
        Check("cohort 100 on Ray / best kernel by hand", _over(sides.rate("atoll ray 100"), kernel), None),
        Check("FedBuff, the faster runtime / FLSim FedBuff", _over(fedbuff, sides.rate("FLSim FedBuff")), 300),
        Check("FedBuff, the faster runtime / best kernel by hand", _over(fedbuff, kernel), 0.4),
        Check("FedBuff on Ray / best kernel by hand", _over(sides.rate("atoll ray FedBuff"), kernel), None),
        Check(
            "any torch module / plain loop", _over(sides.rate("atoll ray 1000, any module"), sides.rate("loop")), 0.95
        ),
        *_both(sides, "atoll ray 1000", "atoll inline 1000", 1024),
    ]


def _w2(sides: _Sides) -> list[Check]:
    ours, pfl, peer = sides.rate("atoll ray 50"), sides.rate("pfl, 2 processes"), sides.best("peer")
    exact, half = sides.rate("loop", "kernel shared"), sides.rate("atoll ray 50, bfloat16")
    gain = _over(sides.rate("kernel shared-bf16"), exact)
    return [
        Check("float32 / pfl, 2 processes", _over(ours, pfl), 1.1),
        Check("float32 / best peer", _over(ours, peer), 1.1),
        Check("float32 / best float32 kernel by hand", _over(ours, exact), 0.88),
        Check("bfloat16 / pfl, 2 processes", _over(half, pfl), 1.8),
        Check("bfloat16 / best peer", _over(half, peer), 1.8),
        Check("bfloat16 / bfloat16 kernel by hand", _over(half, sides.rate("kernel shared-bf16")), 0.85),
        Check("best float32 kernel by hand / best peer: the limit here", _over(exact, peer), None),
        Check("bfloat16 kernel by hand / float32: the limit here", gain, None),
        *_both(sides, "atoll ray 50", "atoll inline 50", 1536),
    ]


def _w3(sides: _Sides) -> list[Check]:
    pfl, peer, kernel = sides.rate("pfl, 2 processes"), sides.best("peer"), sides.best("kernel")
    large, million = sides.rate("atoll ray 1000"), sides.rate("atoll ray 1000, 10⁶ codes")
    small = sides.rate("atoll ray 200", "atoll inline 200")
    return [
        Check("cohort 1000 / pfl, 2 processes", _over(large, pfl), 60),
        Check("cohort 1000 / best peer", _over(large, peer), 60),
        Check("cohort 1000 / best kernel by hand", _over(large, kernel), 0.47),
        Check("cohort 200, the faster runtime / best peer", _over(small, peer), 20),
        Check("10⁶ codes / 10⁴ codes", _over(million, large), 0.8),
        *_both(sides, "atoll ray 1000", "atoll inline 1000", 1024),
    ]


def _own(sides: _Sides) -> list[Check]:
    loop = sides.rate("loop")
    return [
        Check("Ray / plain loop", _over(sides.rate("ray"), loop), None),
        Check("in-process / plain loop", _over(sides.rate("inline"), loop), None),
    ]


def _both(sides: _Sides, ray: str, inline: str, most_mb: float) -> list[Check]:
    with_end = _over(sides.figure("with_end_per_s", ray), sides.rate(ray))
    share = sides.figure("overhead_share", ray)
    return [
        Check("first round, Ray", sides.figure("start_s", ray), 8, " s", is_least=False),
        Check("first round, in-process", sides.figure("start_s", inline), 4, " s", is_least=False),
        Check("peak memory, two workers", sides.figure("peak_mb", ray), most_mb, " MB", is_least=False),
        Check("rate with the end of the run counted / rate of its steps", with_end, None),
        Check("workers' time not in training", share and 100 * share, None, " %"),
    ]


def show(workload: str, medians: Medians, judged: list[Check]) -> None:
    """Two tables: sides, and targets."""
    # wide enough for every title, whatever the output goes to
    console = Console(highlight=False, width=110)
    table = Table(title=f"{workload}: client updates per second, medians", title_justify="left")
    table.add_column("side")
    columns = ("clients/s", "best pass", "/ plain loop", "first round, s", "peak MB")
    for name in columns:
        table.add_column(name, justify="right")
    loop = medians.get("loop", {}).get("clients_per_s")
    for side, figures in medians.items():
        rate = figures["clients_per_s"]
        table.add_row(
            side, f"{rate:,.1f}", f"{figures['best_clients_per_s']:,.1f}", f"{rate / loop:.2f}" if loop else "",
            f"{figures.get('start_s', float('nan')):.1f}",
            f"{figures['peak_mb']:,.0f}" if "peak_mb" in figures else "",
        )  # fmt: skip
    console.print(table)
    table = Table(title=f"{workload}: targets", title_justify="left")
    for name in ("", "measured", "target", ""):
        table.add_column(name, justify="left" if not name else "right")
    for one in judged:
        sign = "≥" if one.is_least else "≤"
        table.add_row(
            one.title,
            "not measured" if one.value is None else f"{one.value:,.2f}{one.unit}",
            "reported" if one.goal is None else f"{sign} {one.goal:g}{one.unit}",
            {True: "met", False: "MISSED", None: ""}[one.is_met],
        )
    console.print(table)


def platform_facts() -> dict[str, str]:
    """What the figures belong to: commit, processor, cores, releases."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    import numpy
    import torch

    return {
        "commit": commit.strip() + (" and changes" if dirty else ""),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = [re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE) for name in ("model name", "model", "stepping")]
    name, model, stepping = (one[1] if one else "?" for one in found)
    return f"{name} (model {model}, stepping {stepping})"


def record(workload: str, medians: Medians, judged: list[Check], facts: Mapping[str, str]) -> None:
    """One run in the MLflow experiment `bench`: figures of every side, values of every target."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(f"sqlite:///{CACHE / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bench")
    place = (
        client.create_experiment("bench", artifact_location=(CACHE / "mlartifacts").as_uri())
        if experiment is None
        else experiment.experiment_id
    )
    run = client.create_run(place, run_name=workload, tags={"workload": workload, **facts})
    stamp = run.info.start_time
    metrics = [
        Metric(_key(f"{side}/{name}"), value, stamp, 0)
        for side, figures in medians.items()
        for name, value in figures.items()
    ]
    metrics += [Metric(_key(f"target/{one.title}"), one.value, stamp, 0) for one in judged if one.value is not None]
    client.log_batch(run.info.run_id, metrics=metrics, params=[Param(name, value) for name, value in facts.items()])
    client.set_terminated(run.info.run_id)


def _key(text: str) -> str:
    """As MLflow allows."""
    return re.sub(r"[^\w\-. /]", " ", text)
