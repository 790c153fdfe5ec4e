"""`atoll.replay`: the client of one task trains again, alone, in this process and thread, to be looked at."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll import spec as sp
from atoll.data import open_data
from atoll.errors import AggregationError, InfrastructureError, PlanError, Problem, SpecError
from atoll.experiment.birth import Birth, born, differences
from atoll.experiment.places import check_device
from atoll.experiment.records import JOURNAL_FILE, RUNS_FOLDER, STORE_FILE, find_folder
from atoll.experiment.wiring import source_of
from atoll.messages import Block, ModelVersion, PartialSum
from atoll.plan import METRIC_EXPONENT, Planner
from atoll.population import Outcome
from atoll.runtime.store import SqliteJournal

if TYPE_CHECKING:
    from atoll.learner import Trainer

__all__ = ["Replay", "ReplayCase", "prepare_replay", "replay"]

Say = Callable[[str], None]
#: of a delta that the exact grid of metrics can still square
_LARGEST_NORM = 2.0**19
_WHY = {
    Outcome.DROPPED: "the client failed while working (population.devices.dropout)",
    Outcome.TIMED_OUT: "it was cut at its time limit",
    Outcome.INTERRUPTED: "the client's time of availability ended first",
    Outcome.ABORTED: "its round closed while it was running",
    Outcome.STALE: "its staleness passed the maximum while it was running",
}


@dataclass(frozen=True)
class Replay:
    """What one task did when it trained alone.

    Attributes:
        folder: of the run.
        task_id, client_id: which task, and whose.
        block_id, lane, block_lanes: where the plan trains it: lane `lane` of so many.
        start_version: what it downloaded.
        step: server step that it contributes to.
        staleness: server steps in between.
        num_examples: that the client holds.
        seed: of the run.
        local_steps: of local SGD.
        loss: mean training loss over its local steps; None where that is not finite or unknown.
        delta_norm: L2 norm of its delta; None likewise.
        is_diverged: its delta or loss was not finite or over `delta_bound`, and counted as zero.
        delta_bound: `aggregation.delta_bound`.
        wall_s: that the client took alone.
        block_wall_s: that its block took as planned.
        block_diverged: lanes of its block that diverged.
    """

    folder: str
    task_id: int
    client_id: int
    block_id: int
    lane: int
    block_lanes: int
    start_version: int
    step: int
    staleness: int
    num_examples: int
    seed: int
    local_steps: int
    loss: float | None
    delta_norm: float | None
    is_diverged: bool
    delta_bound: float
    wall_s: float
    block_wall_s: float
    block_diverged: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ReplayCase:
    """A task with everything that it needs to train.

    Attributes:
        folder: of the run.
        spec: of the run.
        block: that the plan trains the task in.
        lane: its place there.
        learner: the run's.
        make_loose: the same with the widest bound on deltas that can be measured, to measure what is over its own.
        versions: weights of every start version of the block.
    """

    folder: Path
    spec: sp.Spec
    block: Block
    lane: int
    learner: Trainer
    make_loose: Callable[[], Trainer]
    versions: Mapping[int, ModelVersion]

    def train(self) -> Replay:
        """Trains the client alone, then its whole block as planned.

        Whatever the client's code raises comes out as it is, with its own traceback, in this thread.
        """
        alone = self.block.lane(self.lane)
        started = time.perf_counter()
        partial = self.learner.train(alone, self.versions).partials[0]
        wall_s = time.perf_counter() - started
        started = time.perf_counter()
        whole = self.learner.train(self.block, self.versions)
        block_wall_s = time.perf_counter() - started
        measured = self._measured(alone) if partial.num_diverged else partial
        return Replay(
            folder=str(self.folder),
            task_id=int(alone.task_id[0]),
            client_id=int(alone.client_id[0]),
            block_id=alone.block_id,
            lane=self.lane,
            block_lanes=self.block.num_lanes,
            start_version=int(alone.start_version[0]),
            step=int(alone.step[0]),
            staleness=int(alone.step[0] - alone.start_version[0]),
            num_examples=int(alone.num_examples[0]),
            seed=self.spec.seed,
            local_steps=_local_steps(self.spec, int(alone.num_examples[0])),
            loss=_metric(measured, 0),
            delta_norm=_metric(measured, 1),
            is_diverged=bool(partial.num_diverged),
            delta_bound=self.spec.aggregation.delta_bound,
            wall_s=wall_s,
            block_wall_s=block_wall_s,
            block_diverged=sum(one.num_diverged for one in whole.partials),
        )

    def _measured(self, alone: Block) -> PartialSum | None:
        """The sums of a client whose delta is over the bound; None where they are not finite or beyond all grids."""
        with suppress(AggregationError, PlanError):
            found = self.make_loose().train(alone, self.versions).partials[0]
            return None if found.num_diverged else found
        return None


def replay(run: str | Path, task_id: int, *, runs_folder: str | Path = RUNS_FOLDER, say: Say | None = None) -> Replay:
    """Trains the client of task `task_id` of a run again: alone, then its whole block as planned. Without Ray.

    What the client's code raises comes out as it is, with its own traceback: `python -m pdb` lands in it. Nothing of
    the run changes, and it may be worked on meanwhile. The start weights come from the run's newest snapshot that has
    them, else the steps up to there are computed again in memory.

    Args:
        run: folder, folder's name, run id or name.
        task_id: as the failure of a run names it.
        runs_folder: where runs lie.
        say: told what takes long or is odd; prints on stderr if None.

    Raises:
        SpecError: the run is not there, its data have changed, or the task never trained.
        ClientWorkError: a client of an earlier server step raises, where those are computed again.

    Example:
        >>> replay("fedbuff-flights", 4294967297).delta_norm  # doctest: +SKIP
    """
    return prepare_replay(run, task_id, runs_folder=runs_folder, say=say).train()


def prepare_replay(
    run: str | Path, task_id: int, *, runs_folder: str | Path = RUNS_FOLDER, say: Say | None = None
) -> ReplayCase:
    """Finds the task in the run's plan and its start weights. See `replay`."""
    say = _to_stderr if say is None else say
    folder = find_folder(run, runs_folder)
    spec, birth = _what_ran(folder)
    check_device(spec)
    identity = _check_same(spec, birth, say)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    from atoll.experiment.building import build_learner, build_planner
    from atoll.experiment.recomputing import weights_of

    torch.set_num_threads(1)
    block, lane = _find(build_planner(spec, identity), spec.stop.server_steps, task_id)
    versions = weights_of(folder, spec, identity, np.unique(block.start_version).tolist(), say)
    bound = max(_LARGEST_NORM, spec.aggregation.delta_bound)
    loose = spec.model_copy(update={"aggregation": spec.aggregation.model_copy(update={"delta_bound": bound})})
    make_loose = partial(build_learner, loose, identity)
    return ReplayCase(folder, spec, block, lane, build_learner(spec, identity), make_loose, versions)


def _to_stderr(text: str) -> None:
    print(f"atoll: {text}", file=sys.stderr, flush=True)


def _what_ran(folder: Path) -> tuple[sp.Spec, Birth]:
    rule = "one run"
    if (folder / STORE_FILE).is_file() and not (folder / JOURNAL_FILE).is_file():
        why, hint = (
            "it keeps itself in a shared store",
            "copy journal.db from the machine that ran it, or resume it here",
        )
        raise SpecError([Problem("run", repr(str(folder)), "a run with a copy of its journal here", why, hint)])
    if not (folder / JOURNAL_FILE).is_file():
        runs = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{JOURNAL_FILE}"))) or "none yet"
        raise SpecError([Problem("run", repr(str(folder)), rule, "this is a comparison", f"its runs: {runs}")])
    try:
        with SqliteJournal(folder / JOURNAL_FILE, is_readonly=True) as journal:
            birth, spec = journal.get("birth"), journal.get("spec")
    except InfrastructureError as error:
        raise SpecError([Problem(str(folder / JOURNAL_FILE), "", "a journal that is whole", str(error))]) from error
    if birth is None or spec is None:
        raise SpecError([Problem("run", repr(str(folder)), "a run that was begun", "its journal is empty")])
    return sp.parse(json.loads(spec)), Birth.from_json(birth)


def _check_same(spec: sp.Spec, birth: Birth, say: Say) -> str:
    """The data's identity, where it is what the run had; tells where the software is another one."""
    data = open_data(source_of(spec))
    now = born(spec, data, birth.run_key, birth.arm, birth.parent_run_id)
    fatal, odd = differences(birth, now, spec, spec)
    if fatal:
        raise SpecError(fatal)
    for problem in odd:
        say(f"{problem.path}: {problem.value} here, {problem.rule}; bits may differ from the run's")
    return data.identity


# ---- finding the task -----------------------------------------------------------------------------------------------


def _find(planner: Planner, stop_steps: int, task_id: int) -> tuple[Block, int]:
    """The block and the lane of a task that the run trains.

    Raises:
        SpecError: it trains no such task.
    """
    trained = []
    while planner.num_steps < stop_steps:
        window = planner.advance()
        for block in window.blocks:
            if block.step.min() >= stop_steps:
                continue
            where = np.flatnonzero(block.task_id == task_id)
            if where.size:
                return block, int(where[0])
            trained.append(block.task_id)
        row = window.rows[window.rows["task_id"] == task_id]
        if row.size:
            raise SpecError([_never_trained(row[0], stop_steps)])
    known = np.sort(np.concatenate(trained))
    at = int(np.searchsorted(known, task_id))
    near = ", ".join(map(str, known[max(0, at - 2) : at + 2].tolist()))
    rule = f"a task of its {stop_steps} server steps"
    why = f"their {known.size} tasks that train have ids from {known[0]} to {known[-1]}"
    raise SpecError([Problem("task", str(task_id), rule, why, f"the nearest: {near}")])


def _never_trained(row: np.void, stop_steps: int) -> Problem:
    found = f"{int(row['task_id'])} (client {int(row['client_id'])}, start version {int(row['start_version'])})"
    outcome = Outcome(int(row["outcome"]))
    if outcome is Outcome.USED:
        why = f"its block serves server step {int(row['step'])} and later, and the run stops after {stop_steps}"
    else:
        why = f"it ended without effect and never trained: {_WHY[outcome]}"
    return Problem("task", found, "a task that trains", why)


# ---- numbers --------------------------------------------------------------------------------------------------------


def _metric(partial: PartialSum | None, index: int) -> float | None:
    """One of `learner.METRICS` of a single client."""
    return None if partial is None else float(partial.metrics[index]) * 2.0**-METRIC_EXPONENT


def _local_steps(spec: sp.Spec, num_examples: int) -> int:
    return spec.client.epochs * -(-num_examples // spec.client.batch_size)
