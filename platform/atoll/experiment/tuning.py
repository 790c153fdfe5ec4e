"""`atoll tune`: which kernel and lane width train a model fastest on this machine, kept in a profile table.

Measurement never enters a plan by itself (design.md 9.1): a spec names the table, `runtime.profile`, and what the table
says of its model is then pinned in the resolved spec. What blocks and evaluations cost with the fastest choice is
measured too: `atoll plan --pools` predicts wall times from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import ClientWorkError, SpecError
from atoll.experiment.building import build_evaluator, build_learner
from atoll.experiment.modelling import first_version, kernel_of, kernel_problems, lanes_of, shape_of
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.planning import SpecLike, as_spec, make_planner
from atoll.experiment.profile import COSTS, read_profile
from atoll.learner.devices import device_name
from atoll.messages import Block, ModelVersion
from atoll.plan import Kernel, WorkCosts
from atoll.runtime.store import LocalFiles
from atoll.runtime.work import one_thread, train_blocks

__all__ = ["Timing", "Tuned", "tune"]

_WIDTHS: Mapping[Kernel, tuple[int, ...]] = {
    "compiled": (32, 64, 128),
    "lanes": (8, 16, 32, 64, 128, 256, 512),
    "single": (8, 32),
}
#: passes over the same blocks; the fastest counts: what is slower than that was somebody else's doing
_PASSES = 4
#: A kernel whose first width needs more seconds per client update than this many times the best is not tried further.
_HOPELESS = 3.0
#: seconds after which no further pass begins
_LONG_S = 5.0
#: blocks that are timed one by one for what a block costs
_FITTED_BLOCKS = 6
#: seconds of blocks that are trained once each, and most bytes of the versions that they start from
_SPREAD_S, _SPREAD_BYTES = 2.0, 64 * 2**20


@dataclass(frozen=True)
class Timing:
    """How fast one choice is: client updates per second of one worker."""

    kernel: str
    lanes: int
    client_updates_per_s: float


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        model: identity of the model's shape, which the table is looked up by.
        device_class: where it was measured.
        machine: its processor or GPU.
        timings: all that was measured, fastest first.
        costs: seconds of one pool with the fastest choice; `example_s` is of one epoch.
        default: what `auto` takes without a table.
        path: the table.
    """

    model: str
    device_class: str
    machine: str
    timings: tuple[Timing, ...]
    costs: WorkCosts
    default: tuple[str, int]
    path: Path

    @property
    def best(self) -> Timing:
        """The fastest."""
        return self.timings[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "best": asdict(self.best), "path": str(self.path)}


def tune(
    spec: SpecLike,
    *overrides: str,
    path: str | Path = "profile.json",
    on_timing: Callable[[Timing], None] | None = None,
) -> Tuned:
    """Measures every kernel that trains the spec's model, at several lane widths, on the spec's own clients.

    Blocks of the plan's first server steps are trained in this process, from version 0. The entry for this model
    and device class is replaced, the others stay.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file.
        overrides: `dotted.key=value`; runtime.kernel or runtime.lanes leave only that choice to be measured.
        path: the table, JSON; made where there is none.
        on_timing: called with each measurement.

    Raises:
        SpecError: wrong input; a table that cannot be read.
        ClientWorkError: a custom model raises, or not even the narrowest block fits into memory.
    """
    with opened_once():
        resolved = as_spec(spec, overrides)
        data = data_of(resolved)
        shape = shape_of(resolved, data.shape)
        entries = read_profile(path) if Path(path).is_file() else []
        timings: list[Timing] = []
        for kernel, widths in _choices(resolved):
            for lanes in widths:
                try:
                    timing = _measure(resolved, data, kernel, lanes)
                except ClientWorkError as error:
                    if timings and error.is_out_of_memory:
                        break  # wider blocks need more still
                    raise
                timings.append(timing)
                if on_timing is not None:
                    on_timing(timing)
                if timing.client_updates_per_s * _HOPELESS < max(one.client_updates_per_s for one in timings):
                    break
        timings.sort(key=lambda one: -one.client_updates_per_s)
        device_class = resolved.runtime.device_class
        found = Tuned(
            model=shape.identity,
            device_class=device_class,
            machine=device_name(device_class),
            timings=tuple(timings),
            costs=_costs(resolved, data, timings[0]),
            default=(kernel_of(resolved), lanes_of(resolved, shape)),
            path=Path(path),
        )
    kept = [one for one in entries if (one["model"], one["device_class"]) != (found.model, device_class)]
    entry = {"model": found.model, "name": resolved.model.kind, "device_class": device_class, **asdict(found.best)}
    entry |= {"machine": found.machine} | {name: getattr(found.costs, name) for name in COSTS}
    text = json.dumps({"profile": [*kept, entry]}, indent=1) + "\n"
    LocalFiles(found.path.parent).write(found.path.name, text.encode())
    return found


def _choices(spec: sp.Spec) -> Iterator[tuple[Kernel, tuple[int, ...]]]:
    """Kernels that can train the model, with the widths to try."""
    for kernel in get_args(Kernel):
        if spec.runtime.kernel not in ("auto", kernel):
            continue
        try:
            if kernel_problems(sp.derived(spec, {"runtime.kernel": kernel})):
                continue
        except SpecError:
            continue
        yield kernel, _WIDTHS[kernel] if spec.runtime.lanes == "auto" else (spec.runtime.lanes,)


def _measure(spec: sp.Spec, data: ClientData, kernel: Kernel, lanes: int) -> Timing:
    bench = _Bench(_chosen(spec, kernel, lanes), data)
    return Timing(kernel, lanes, round(bench.num_lanes / bench.seconds(bench.blocks), 1))


def _chosen(spec: sp.Spec, kernel: str, lanes: int) -> sp.Spec:
    return sp.derived(spec, {"runtime.kernel": kernel, "runtime.lanes": lanes})


class _Bench:
    """Blocks of a spec's first server steps, all from version 0, and what trains them in this process."""

    def __init__(self, spec: sp.Spec, data: ClientData) -> None:
        self._planner = planner = make_planner(spec, data, shape_of(spec, data.shape))
        self._learner = build_learner(spec, data.identity)
        one_thread()  # as in a pool
        self.first = first_version(spec, data.shape)
        self.blocks: list[Block] = []
        while self.num_lanes < max(2 * planner.settings.lanes, 64):
            self.blocks += planner.advance().blocks
        self._versions = {
            version: ModelVersion(version, self.first.dense, self.first.tables)
            for version in sorted(set().union(*(block.start_version.tolist() for block in self.blocks)))
        }
        train_blocks(self._learner, self.blocks[:1], self._versions)  # compiles, fills caches

    @property
    def num_lanes(self) -> int:
        """Client updates."""
        return sum(block.num_lanes for block in self.blocks)

    def spread(self) -> tuple[list[Block], float]:
        """Blocks of the steps that follow, each trained once, from versions that differ in memory; and the seconds.

        Passes over the same blocks find data and weights in the processor's caches. A run does not.
        """
        first, blocks, seconds = self.first, list[Block](), 0.0
        size = first.dense.nbytes + sum(table.nbytes for table in first.tables)
        copies = [first.dense.copy() for _ in range(max(1, min(64, _SPREAD_BYTES // size)))]
        while seconds < _SPREAD_S:
            found = self._planner.advance().blocks
            needed = set().union(*(block.start_version.tolist() for block in found))
            versions = {one: ModelVersion(one, copies[one % len(copies)], first.tables) for one in sorted(needed)}
            started = time.perf_counter()
            train_blocks(self._learner, found, versions)
            seconds += time.perf_counter() - started
            blocks += found
        return blocks, seconds

    def seconds(self, blocks: Sequence[Block]) -> float:
        """To train them, at best."""
        return _best(lambda: train_blocks(self._learner, blocks, self._versions))


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several passes; of one or two where these take long."""
    seconds: list[float] = []
    while len(seconds) < _PASSES and sum(seconds) < _LONG_S:
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _costs(spec: sp.Spec, data: ClientData, best: Timing) -> WorkCosts:
    """What a block costs by its lanes and examples: the plan's own blocks and parts of them, fitted without negatives.

    Scaled to what blocks cost that are trained once, as in a run.
    """
    from scipy.optimize import nnls

    chosen = _chosen(spec, best.kernel, best.lanes)
    bench = _Bench(chosen, data)
    few = bench.blocks[:_FITTED_BLOCKS]
    samples = [*few, *(block.lane(0) for block in few), *(block.lane(block.num_lanes - 1) for block in few)]
    measured = np.array([bench.seconds([block]) for block in samples])
    epochs = chosen.client.epochs
    features = np.array([(1.0, block.num_lanes, epochs * int(block.num_examples.sum())) for block in samples])
    # relative errors: a long block is no more important than a short one
    found, _ = nnls(features / measured[:, None], np.ones(len(samples)))
    once, seconds = bench.spread()
    examples = epochs * sum(int(block.num_examples.sum()) for block in once)
    together = np.array([len(once), sum(block.num_lanes for block in once), examples])
    found *= seconds / float(together @ found)
    evaluator = build_evaluator(chosen, data.identity)
    block_s, update_s, example_s = found.tolist()
    return WorkCosts(block_s, update_s, example_s, _best(lambda: evaluator.evaluate(bench.first)))
