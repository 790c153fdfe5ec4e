"""The aggregator with its snapshots: takes up what is durable, makes durable what it is told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from atoll.aggregation import Aggregator, AggregatorState, Step
from atoll.errors import InfrastructureError
from atoll.messages import BlockResult, ModelVersion
from atoll.plan import StepPlan
from atoll.runtime.store import Files, SnapshotRecord, Snapshots

__all__ = ["DurableAggregator"]

_log = logging.getLogger(__name__)


class DurableAggregator:
    """One cluster's Aggregator, from the newest snapshot that can be read.

    A snapshot that cannot be read is passed over for the one before it; without any, the run begins at version 0
    again. Either way the bits are the same, only more is computed again.

    Args:
        make_aggregator: at its beginning, or from a state.
        make_files: where snapshots lie.
        records: snapshots in the journal, newest first.
        epoch: of the coordinator that asks.
        beginning: the state at version 0, where it is known; built here if needed and not known.
    """

    def __init__(
        self,
        make_aggregator: Callable[[AggregatorState | None], Aggregator],
        make_files: Callable[[], Files],
        records: Sequence[SnapshotRecord],
        epoch: int,
        beginning: AggregatorState | None = None,
    ) -> None:
        self._snapshots = Snapshots(make_files(), epoch)
        #: the snapshot taken up; None: none
        self.taken: SnapshotRecord | None = None
        state: AggregatorState | None = None
        for record in records:
            try:
                state = self._snapshots.read(record)
            except InfrastructureError as error:
                _log.warning("snapshot of version %d: %s; an older one is taken", record.version, error)
                continue
            self.taken = record
            break
        self._saved = self.taken
        state = state or beginning
        self._aggregator = make_aggregator(state)
        # the aggregator's own: later versions share memory with them
        self._models = [model for _, model in sorted(self._aggregator.state().models.items())]
        self._aggregator.saved(self._snapshots.saved_versions)

    def take_models(self) -> list[ModelVersion]:
        """Versions that were there at the start, ascending; once."""
        models, self._models = self._models, []
        return models

    def expect(self, steps: Iterable[StepPlan]) -> None:
        """As Aggregator."""
        self._aggregator.expect(steps)

    def forget(self, live_versions: Sequence[int]) -> None:
        """As Aggregator."""
        self._aggregator.forget(live_versions)

    def hold_after(self, version: int) -> list[Step]:
        """Moves the limit and closes what is full."""
        self._aggregator.hold_after(version)
        return self._aggregator.close_full()

    def add(self, result: BlockResult) -> list[Step]:
        """Adds partial sums; order and repetition do not matter."""
        return self._aggregator.handle(result)

    def save(self, live_versions: Sequence[int]) -> tuple[SnapshotRecord, float]:
        """Makes the newest version durable; returns what the journal is to commit, and the wall seconds it took.

        Args:
            live_versions: what the coordinator knows to be needed; versions that it has not heard of are kept too.
        """
        started = time.perf_counter()
        state = self._aggregator.state()
        if self._saved is not None and self._saved.version == state.version:
            return self._saved, 0.0
        newest_known = max(live_versions, default=-1)
        live = {*live_versions, state.version, *(v for v in state.models if v > newest_known)}
        self._saved = record = self._snapshots.write(state, live)
        self._aggregator.saved(record.version_files.keys())
        return record, time.perf_counter() - started
