"""`atoll tune`: which kernel and lane width train a model fastest on this machine, kept in a profile table.

Measurement never enters a plan by itself (design.md 9.1): a spec names the table, `runtime.profile`, and what the table
says of its model is then pinned in the resolved spec.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import SpecError
from atoll.experiment.building import build_learner
from atoll.experiment.modelling import first_version, kernel_of, kernel_problems, lanes_of, shape_of
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.planning import SpecLike, as_spec, make_planner
from atoll.experiment.profile import read_profile
from atoll.messages import Block, ModelVersion
from atoll.plan import Kernel
from atoll.runtime.store import LocalFiles

__all__ = ["Timing", "Tuned", "tune"]

_WIDTHS: Mapping[Kernel, tuple[int, ...]] = {
    "compiled": (32, 64, 128),
    "lanes": (8, 16, 32, 64, 128, 256),
    "single": (8, 32),
}
#: passes over the same blocks; the fastest counts: what is slower than that was somebody else's doing
_PASSES = 4
#: A kernel whose first width needs more seconds per client update than this many times the best is not tried further.
_HOPELESS = 3.0


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
        timings: all that was measured, fastest first.
        default: what `auto` takes without a table.
        path: the table.
    """

    model: str
    device_class: str
    timings: tuple[Timing, ...]
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
    """
    with opened_once():
        resolved = as_spec(spec, overrides)
        data = data_of(resolved)
        shape = shape_of(resolved, data.shape)
        entries = read_profile(path) if Path(path).is_file() else []
        timings: list[Timing] = []
        for kernel, widths in _choices(resolved):
            for lanes in widths:
                timing = _measure(resolved, data, kernel, lanes)
                timings.append(timing)
                if on_timing is not None:
                    on_timing(timing)
                if timing.client_updates_per_s * _HOPELESS < max(one.client_updates_per_s for one in timings):
                    break
        timings.sort(key=lambda one: -one.client_updates_per_s)
        device_class = resolved.runtime.device_class
        found = Tuned(
            shape.identity, device_class, tuple(timings), (kernel_of(resolved), lanes_of(resolved, shape)), Path(path)
        )
    kept = [one for one in entries if (one["model"], one["device_class"]) != (found.model, device_class)]
    entry = {"model": found.model, "name": resolved.model.kind, "device_class": device_class, **asdict(found.best)}
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
    chosen = sp.derived(spec, {"runtime.kernel": kernel, "runtime.lanes": lanes})
    planner, learner = make_planner(chosen, data, shape_of(chosen, data.shape)), build_learner(chosen, data.identity)
    first = first_version(chosen, data.shape)
    blocks: list[Block] = []
    while sum(block.num_lanes for block in blocks) < max(2 * lanes, 64):
        blocks += planner.advance().blocks
    versions = {
        int(version): ModelVersion(int(version), first.dense, first.tables)
        for block in blocks
        for version in block.start_version
    }
    learner.train_all(blocks[:1], versions)  # compiles, fills caches
    seconds = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        learner.train_all(blocks, versions)
        seconds.append(time.perf_counter() - started)
    return Timing(kernel, lanes, round(sum(block.num_lanes for block in blocks) / min(seconds), 1))
