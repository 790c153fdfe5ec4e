#!/usr/bin/env python3
"""What size costs: population, cohort, concurrency, workers, parameters → client updates per second and memory.

W1's clients (32 examples of 64 features, batch 8, one epoch; made-up arrays of 512 clients that all others share), on
Ray with two workers where nothing else is said, with journal, snapshots, MLflow and exact sums. Every row is a run in a
fresh process; passes go through all rows, medians count. Flower's legacy interface, the one that stands a population of
10⁶, is asked once. Prints Markdown for README; JSON and history under .bench/. Exit code 1 when
a target is missed. One pass takes ten to fifteen minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from bench_report import Check, platform_facts, record
from bench_sides import CACHE, ROOT, Side, end_with_sides, run_side

GROUPS = ("population", "cohort", "cohort in-process", "concurrency", "workers", "parameters", "flower")
#: hidden layers of a network with 64 inputs and 10 outputs, by its number of parameters
HIDDEN = {10**3: (13,), 10**4: (133,), 10**5: (1333,), 10**6: (950, 950), 10**7: (3130, 3130)}
POWERS = {0: "1", 1: "10"} | {
    power: "10" + str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")) for power in range(2, 9)
}


@dataclass(frozen=True)
class Row:
    """One row of the table: the figure that varies, the other settings in words, the arguments of bench_atoll.py."""

    group: str
    label: str
    at: str
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.group} {self.label}"

    def side(self) -> Side:
        """What runs it."""
        scripts = ROOT / "scripts"
        if self.group == "flower":
            command = [str(scripts / "peers" / "flower_side.py"), "W1", *self.arguments]
            return Side(self.name, "peer", command, "flower")
        return Side(self.name, "atoll", [str(scripts / "bench_atoll.py"), "W1", *self.arguments])


def rows() -> Iterator[Row]:
    for power in range(3, 9):
        yield _row("population", POWERS[power], "cohort 1,000", "--population", 10**power, "--cohort", 1000)
    for power in range(1, 6):
        yield _row("cohort", POWERS[power], "population 10⁶", "--population", 10**6, "--cohort", 10**power)
    for power in range(1, 6):
        settings = ("--population", 10**6, "--cohort", 10**power, "--workers", 0)
        yield _row("cohort in-process", POWERS[power], "population 10⁶", *settings)
    for power in range(1, 6):
        goal = max(1, 10**power // 10)
        settings = ("--population", 10**6, "--concurrency", 10**power, "--cohort", goal)
        yield _row("concurrency", POWERS[power], f"FedBuff, K = {goal:,}", *settings)
    for workers, label in ((0, "in-process"), (1, "1"), (2, "2")):
        yield _row("workers", label, "cohort 10⁴", "--population", 10**6, "--cohort", 10**4, "--workers", workers)
    for count, hidden in HIDDEN.items():
        settings = ("--population", 10**6, "--cohort", 1000 if count < 10**6 else 10**8 // count, "--hidden", *hidden)
        words = f"cohort {settings[3]:,}, hidden {', '.join(map(str, hidden))}"
        yield _row("parameters", POWERS[len(str(count)) - 1], words, *settings)
    yield _row("flower", POWERS[6], "population; cohort 100, its legacy interface", "--population", 10**6)


def _row(group: str, label: str, at: str, *arguments: object) -> Row:
    return Row(group, label, at, tuple(map(str, arguments)))


def checks(medians: Mapping[str, Mapping[str, float]]) -> list[Check]:
    """What has to be flat, and what has to grow."""

    def rates(group: str, *labels: str) -> list[float]:
        named = [f"{group} {label}" for label in labels]
        return [medians[name]["clients_per_s"] for name in named if name in medians]

    def spread(found: list[float], wanted: int) -> float | None:
        return max(found) / min(found) - 1 if len(found) == wanted else None

    def per_cent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    population = spread(rates("population", *(POWERS[power] for power in range(3, 9))), 6)
    cohorts = [POWERS[power] for power in range(2, 6)]
    here, on_ray = spread(rates("cohort in-process", *cohorts), 4), spread(rates("cohort", *cohorts), 4)
    million, flower = rates("population", POWERS[6]), rates("flower", POWERS[6])
    one, two = rates("workers", "1"), rates("workers", "2")
    memory = [
        figures["peak_mb"]
        for name, figures in medians.items()
        if name.startswith("population ") and "peak_mb" in figures
    ]
    return [
        Check("cost per client update, population 10³ to 10⁸: spread", per_cent(population), 10, " %", is_least=False),
        Check("the same, in-process, cohort 10² to 10⁵", per_cent(here), 15, " %", is_least=False),
        Check("the same, on Ray, cohort 10² to 10⁵", per_cent(on_ray), 15, " %", is_least=False),
        Check("population 10⁶: atoll / Flower", million[0] / flower[0] if million and flower else None, 100),
        Check("two workers / one", two[0] / one[0] if one and two else None, 1.85),
        Check("memory, population 10³ to 10⁸: spread", per_cent(spread(memory, 6)), None, " %"),
    ]


def markdown(chosen: list[Row], medians: Mapping[str, Mapping[str, float]], judged: list[Check]) -> str:
    lines = [
        "| what varies | at | client updates/s | to the group's first | peak memory | not training |",
        "|---|---|---:|---:|---:|---:|",
    ]
    first: dict[str, float] = {}
    for row in chosen:
        figures = medians.get(row.name)
        if figures is None:
            lines.append(f"| {row.group} {row.label} | {row.at} | failed | | | |")
            continue
        rate = figures["clients_per_s"]
        ratio = rate / first.setdefault(row.group, rate)
        memory = f"{figures['peak_mb']:,.0f} MB" if "peak_mb" in figures else ""
        share = f"{100 * figures['overhead_share']:.0f} %" if "overhead_share" in figures else ""
        lines.append(f"| {row.group} {row.label} | {row.at} | {rate:,.0f} | {ratio:.3g}× | {memory} | {share} |")
    lines.append("")
    for one in judged:
        goal = "reported" if one.goal is None else f"target {'≥' if one.is_least else '≤'} {one.goal:g}{one.unit}"
        value = "not measured" if one.value is None else f"{one.value:.2f}{one.unit}"
        lines.append(f"- {one.title}: {value}, {goal}{ {True: ': met', False: ': MISSED', None: ''}[one.is_met] }")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all if none is named")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured in each row and pass")
    parser.add_argument("--json", action="store_true", help="print the JSON too")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    chosen = [row for row in rows() if not options.groups or row.group in options.groups]
    found: dict[str, dict[str, list[float]]] = {}
    begun = datetime.now(UTC)
    end_with_sides()
    for number in range(options.passes):
        for row in chosen:
            name = row.name
            if row.group == "flower" and number > 0:
                continue
            log = CACHE / "logs" / f"scale {name} {number}.log"
            values = run_side(row.side(), options.seconds, log=log, timeout_s=1800, looks=number == 0)
            for key, value in values.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
            told = f"{values['clients_per_s']:,.0f} clients/s" if values else f"FAILED, see {log}"
            print(f"pass {number}  {name}: {told}", file=sys.stderr, flush=True)
    medians = {name: {key: median(values) for key, values in figures.items()} for name, figures in found.items()}
    judged, facts = checks(medians), platform_facts()
    print(markdown(chosen, medians, judged))
    record("scale", medians, judged, facts)
    targets = [vars(one) | {"is_met": one.is_met} for one in judged]
    everything = {"facts": facts, "passes": found, "medians": medians, "targets": targets}
    (CACHE / f"scale-{begun:%Y%m%d-%H%M%S}.json").write_text(json.dumps(everything, indent=1))
    if options.json:
        print(json.dumps(everything))
    return int(any(one.is_met is False for one in judged))


if __name__ == "__main__":
    sys.exit(main())
