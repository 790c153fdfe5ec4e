"""Weights of versions that a run has passed: from its snapshot, else computed again in memory, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from atoll.aggregation import AggregatorState
from atoll.errors import InfrastructureError
from atoll.experiment.building import build_aggregator, build_learner, build_planner
from atoll.experiment.records import JOURNAL_FILE
from atoll.experiment.storing import store_in
from atoll.messages import ModelVersion
from atoll.plan import Window
from atoll.runtime.store import SnapshotRecord, Snapshots, SqliteJournal
from atoll.runtime.work import train_blocks
from atoll.spec import Spec

__all__ = ["weights_of"]

Say = Callable[[str], None]


def weights_of(folder: Path, spec: Spec, identity: str, versions: Collection[int], say: Say) -> dict[int, ModelVersion]:
    """The weights of `versions`, bit for bit those of the run. Nothing is written.

    Args:
        folder: of the run.
        spec: of the run.
        identity: of its data.
        versions: ascending or not; each is one that a block of the plan starts from.
        say: told what is computed again, and what is odd about it.

    Raises:
        ClientWorkError: a client of an earlier server step raises.
    """
    with SqliteJournal(folder / JOURNAL_FILE, is_readonly=True) as journal:
        records = journal.snapshots()
        last = max(versions)
        begun = _begin_at(folder, records, versions, say)
        first = 0 if begun is None else begun.version
        found = {} if begun is None else {v: model for v, model in begun.models.items() if v in versions}
        if found.keys() >= set(versions):
            return found
        if last > first:
            busy_s, done = float(journal.get("busy_s") or 0.0), journal.last_step + 1
            about = f", some {busy_s * (last - first) / done:.0f} s" if done else ""
            steps = "1 server step" if last == first + 1 else f"{last - first} server steps"
            say(f"version {last} is in no snapshot: computing {steps}, from version {first} on, in memory{about}")
        is_told = False
        for step, sum_sha, models in _compute(spec, identity, begun, last):
            found |= {version: model for version, model in models.items() if version in versions}
            known = journal.step(step) if step >= 0 else None
            if known is not None and known.sum_sha != sum_sha and not is_told:
                is_told = True
                say(f"server step {step} came out otherwise than in the run: the software or machine is another one")
    return found


def _begin_at(
    folder: Path, records: Iterable[SnapshotRecord], versions: Collection[int], say: Say
) -> AggregatorState | None:
    """The newest snapshot that holds every one of `versions` that is not newer than itself; None: the beginning."""
    for record in records:
        if all(version > record.version or version in record.version_files for version in versions):
            try:
                return Snapshots(store_in(folder).snapshots(), 0).read(record)
            except InfrastructureError as error:
                say(f"snapshot of version {record.version}: {error}; it is passed over")
    return None


def _compute(
    spec: Spec, identity: str, begun: AggregatorState | None, last: int
) -> Iterable[tuple[int, str, dict[int, ModelVersion]]]:
    """Server steps up to version `last`: (step, hash of its exact sum, {version: weights}); −1 for what was there.

    Only blocks that a step before `last` needs are trained, each window's in turn: a block never waits for one of a
    later window, and within a window for none that waits for it.
    """
    learner, planner = build_learner(spec, identity), build_planner(spec, identity)
    aggregator = build_aggregator(spec, identity, begun)
    models = {aggregator.model.version: aggregator.model} if begun is None else dict(begun.models)
    yield -1, "", dict(models)
    for _ in range(max(0, aggregator.model.version - 1) // planner.settings.lookahead_steps):
        planner.advance()
    while aggregator.model.version < last:
        window: Window = planner.advance()
        aggregator.expect(window.steps)
        first = aggregator.model.version
        waiting = [block for block in window.blocks if block.step.max() >= first and block.step.min() < last]
        while waiting:
            ready = next(block for block in waiting if block.start_version.max() <= aggregator.model.version)
            waiting = [block for block in waiting if block is not ready]
            (result,) = train_blocks(learner, [ready], models)
            for step in aggregator.handle(result):
                models[step.model.version] = step.model
                yield step.plan.step, step.sum_sha, {step.model.version: step.model}
        live = {*window.live_versions.tolist(), aggregator.model.version}
        models = {version: model for version, model in models.items() if version in live}
        aggregator.forget(sorted(live))
