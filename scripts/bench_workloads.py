#!/usr/bin/env python3
"""atoll against the plain PyTorch loop, kernels written by hand and peers: medians and ratios, sides taking turns.

    scripts/bench workloads [W1 W2 W3 flights shakespeare] [--peers pfl flower fedjax flsim | none] [--passes 5]

W1  MLP 64-64-10, 4,810 parameters, 32 examples, batch 8: cohorts of 100 and 1,000, and FedBuff (C 1,000, K 100)
W2  two convolutions and two dense layers, 1,626,442 parameters, 50 examples, batch 10, cohort 50
W3  DLRM, tables of 10,000 and 100 codes, 163,249 parameters, 20 examples, batch 10, cohort 200 and 1,000; 10⁶ codes
flights, shakespeare: atoll's own configs/fedbuff_*.yaml beside the plain loop

All sides do the same client work: plain SGD, FedAvg, a population of 10,000 (Flower: 1,000), no evaluation; what
happens before the end of the second round (atoll: of the first step) is start, told apart. Peers run at the smaller
cohort, where they are no slower. Each pass runs every side once, one after another, so that a slow moment of the
machine falls on all. Memory is the whole side's (PSS), looked at in the first pass; atoll's is that of one run alone.
Environments of peers, data, logs and the history, runs of the MLflow experiment `bench`, lie under .bench/. Exit code 1
when a target is missed. All of it takes an hour and a half.

Not here: ragged sizes (scripts/bench learner), the timeline (timeline), population and other sizes (scale).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median

from bench_report import checks, platform_facts, record, show
from bench_sides import CACHE, ROOT, Side, end_with_sides, run_side

SCRIPTS = ROOT / "scripts"
PEERS = ("pfl", "flower", "fedjax", "flsim")
ALL = ("W1", "W2", "W3", "flights", "shakespeare")
KERNELS = {"W1": ("numpy", "compiled"), "W2": ("shared", "shared-bf16"), "W3": ("compiled",)}
#: what atoll runs beside each workload: name → arguments
OURS = {
    "W1": {
        "ray 1000": ["W1", "--cohort", "1000"],
        "inline 1000": ["W1", "--cohort", "1000", "--workers", "0"],
        "ray 100": ["W1", "--cohort", "100"],
        "inline 100": ["W1", "--cohort", "100", "--workers", "0"],
        "ray FedBuff": ["W1", "--cohort", "100", "--concurrency", "1000"],
        "inline FedBuff": ["W1", "--cohort", "100", "--concurrency", "1000", "--workers", "0"],
        "ray 1000, any module": ["W1", "--cohort", "1000", "--as-module"],
    },
    "W2": {
        "ray 50": ["W2"],
        "inline 50": ["W2", "--workers", "0"],
        "ray 50, bfloat16": ["W2", "--set", "client.precision=bfloat16"],
    },
    "W3": {
        "ray 1000": ["W3", "--cohort", "1000"],
        "inline 1000": ["W3", "--cohort", "1000", "--workers", "0"],
        "ray 200": ["W3", "--cohort", "200"],
        "inline 200": ["W3", "--cohort", "200", "--workers", "0"],
        "ray 1000, 10⁶ codes": ["W3-million", "--cohort", "1000"],
    },
}


#: sides whose start and memory are asked of one run alone, of so many steps
ALONE = {"atoll ray 1000": 300, "atoll inline 1000": 300, "atoll ray 50": 10, "atoll inline 50": 10}


def sides_of(workload: str, peers: list[str]) -> list[Side]:
    """All sides of a workload, in the order in which a pass runs them."""
    if workload not in KERNELS:
        ours = [str(SCRIPTS / "bench_atoll.py"), "W1", "--config", workload]
        return [
            Side("loop", "loop", [str(SCRIPTS / "bench_kernels.py"), "W1", "--config", workload]),
            Side("ray", "atoll", ours),
            Side("inline", "atoll", [*ours, "--workers", "0"]),
        ]
    kernel = [str(SCRIPTS / "bench_kernels.py"), workload, "--kernel"]
    found = [Side("loop", "loop", [*kernel, "loop"])]
    found += [Side(f"kernel {name}", "kernel", [*kernel, name]) for name in KERNELS[workload]]
    found += [
        Side(f"atoll {name}", "atoll", [str(SCRIPTS / "bench_atoll.py"), *arguments])
        for name, arguments in OURS[workload].items()
    ]
    by = {name: [str(SCRIPTS / "peers" / f"{name}_side.py"), workload] for name in PEERS}
    thousand = ["--population", "1000"]
    known = {
        "pfl": [
            Side("pfl, 1 process", "peer", by["pfl"], "pfl"),
            Side("pfl, 2 processes", "peer", by["pfl"], "pfl", processes=2),
        ],
        "flower": [
            Side("Flower, legacy", "peer", [*by["flower"], *thousand], "flower"),
            Side("Flower, messages", "peer", [*by["flower"], *thousand, "--api", "messages"], "flower"),
        ],
        "fedjax": [Side("FedJAX", "peer", by["fedjax"], "fedjax")],
        # asynchronous; its simulator has been measured on W1 alone
        "flsim": [Side("FLSim FedBuff", "peer", by["flsim"], "flsim")] if workload == "W1" else [],
    }
    return found + [side for name in peers for side in known[name]]


def measure(workload: str, sides: list[Side], passes: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Side → figure → one value per pass; a side that failed twice is not asked again."""
    found: dict[str, dict[str, list[float]]] = {side.name: {} for side in sides}
    failures = dict.fromkeys(found, 0)
    for number in range(passes):
        for side in sides:
            if failures[side.name] > 1:
                continue
            log = CACHE / "logs" / f"{workload} {side.name} {number}.log"
            values = run_side(side, seconds, log=log, looks=number == 0 and side.name not in ALONE)
            if values and side.name in ALONE:
                alone = replace(side, command=[*side.command, "--once", str(ALONE[side.name])])
                values |= run_side(alone, seconds, log=log.with_suffix(".alone.log"), looks=number == 0)
            failures[side.name] += not values
            for name, value in values.items():
                found[side.name].setdefault(name, []).append(value)
            told = f"{values['clients_per_s']:,.1f} clients/s" if values else f"FAILED, see {log}"
            print(f"{workload}  pass {number}  {side.name}: {told}", file=sys.stderr, flush=True)
    return found


def summary(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians per side; the best pass beside the median rate; memory is of the one pass that looked."""
    return {
        side: {name: median(values) for name, values in figures.items()}
        | {"best_clients_per_s": max(figures["clients_per_s"])}
        for side, figures in found.items()
        if figures
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(ALL)}; all if none is named")
    parser.add_argument("--peers", nargs="+", choices=[*PEERS, "none"], default=list(PEERS))
    parser.add_argument("--only", nargs="+", choices=["loop", "kernel", "atoll", "peer"], help="groups of sides")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured in each side and pass")
    parser.add_argument("--json", action="store_true", help="print the JSON too")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(ALL):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    peers = [] if "none" in options.peers else options.peers
    facts, begun = platform_facts(), datetime.now(UTC)
    end_with_sides()
    everything: dict[str, object] = {"facts": facts, "passes": options.passes, "seconds": options.seconds}
    are_met = True
    for workload in options.workloads or ALL:
        sides = [one for one in sides_of(workload, peers) if not options.only or one.group in options.only]
        found = measure(workload, sides, options.passes, options.seconds)
        medians = summary(found)
        judged = checks(workload, medians, {side.name: side.group for side in sides})
        show(workload, medians, judged)
        record(workload, medians, judged, facts)
        everything[workload] = {
            "passes": found,
            "medians": medians,
            "targets": [vars(one) | {"is_met": one.is_met} for one in judged],
        }
        are_met &= all(one.is_met is not False for one in judged)
    path = CACHE / f"workloads-{begun:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(everything, indent=1))
    print(f"all figures: {path.relative_to(ROOT)}; history: atoll ui sqlite:///{CACHE / 'mlflow.db'}, experiment bench")
    if options.json:
        print(json.dumps(everything))
    return int(not are_met)


if __name__ == "__main__":
    sys.exit(main())
