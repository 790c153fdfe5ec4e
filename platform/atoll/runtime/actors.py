"""Ray actors: thin shells round pure objects. They hold state in memory only; whatever dies is made again.

Every actor has `max_task_retries=0`: Ray's own retries duplicate and reorder side effects; ours are idempotent by
block.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from atoll.aggregation import Aggregator, AggregatorState, merge_results
from atoll.errors import ClientWorkError, FencedError
from atoll.messages import BlockResult, ModelVersion
from atoll.runtime.changes import Change, apply_change, newer
from atoll.runtime.packing import Packed, unpacked
from atoll.runtime.parts import Publisher
from atoll.runtime.places import Place
from atoll.runtime.publishing import Batch, Sending
from atoll.runtime.work import evaluate_version, one_thread, train_blocks

if TYPE_CHECKING:
    from atoll.evaluation import Evaluator
    from atoll.learner import Trainer

__all__ = ["ClientPool", "TrackerShell"]


@dataclasses.dataclass
class _Tenant:
    """What a pool holds for one run."""

    epoch: int
    learner: Trainer
    make_evaluator: Callable[[], Evaluator]
    evaluator: Evaluator | None = None
    versions: dict[int, ModelVersion] = dataclasses.field(default_factory=dict)
    #: what changes refer to
    base: ModelVersion | None = None

    def take(self, wanted: set[int], forget: Sequence[int], bundles: Sequence[Sequence[ModelVersion | Change]]) -> None:
        """Keeps what is wanted of the bundles."""
        for version in forget:
            self.versions.pop(version, None)
        # Of a bundle only what was asked for: nobody would ever tell this pool to forget the rest.
        for sent in (sent for bundle in bundles for sent in bundle):
            model = apply_change(self.base, sent) if isinstance(sent, Change) else sent
            self.base = newer(self.base, model)
            if model.version in wanted:
                self.versions[model.version] = model


class ClientPool:
    """Trains blocks and evaluates versions; caches data and versions; owns nothing.

    One per core or GPU. Serves the runs of one coordinator side by side, and those of the next one after them: `open`
    tells how to build a run's learner.
    """

    def __init__(self) -> None:
        self._tenants: dict[int, _Tenant] = {}
        self._place: Place | None = None

    def where(self, has_gpu: bool) -> Place:
        """Where this pool runs, and on what. Asked first: it takes no data and no torch, unless there is a GPU."""
        self._place = Place.here(has_gpu=has_gpu)
        return self._place

    def open(
        self, run: int, make_learner: Callable[[], Trainer], make_evaluator: Callable[[], Evaluator], epoch: int
    ) -> Place | None:
        """Prepares run number `run` for the coordinator of this epoch, forgetting what had the number before.

        Returns:
            As `where` has said.
        """
        self._tenants.pop(run, None)
        self._tenants[run] = _Tenant(epoch, make_learner(), make_evaluator)
        one_thread()
        return self._place

    def beginning(self, make_aggregator: Callable[[AggregatorState | None], Aggregator]) -> AggregatorState:
        """A run's state at version 0: a custom module makes its weights with torch, which the coordinator lacks."""
        return make_aggregator(None).state()

    def close(self, run: int) -> None:
        """Forgets a run."""
        self._tenants.pop(run, None)

    def train(
        self, run: int, packed: Packed, forget: Sequence[int], *bundles: Sequence[ModelVersion | Change], epoch: int
    ) -> tuple[float | ClientWorkError, BlockResult | None]:
        """Trains blocks; returns (busy seconds, their exact partial sums merged).

        Args:
            run: its number.
            packed: blocks.
            forget: versions that nobody asks for any more.
            bundles: versions that this pool lacks.
            epoch: of the coordinator that asks.

        Where client code raised, or the work did not fit into memory, the error comes in the place of the seconds:
        the pool is fine, and what is to be done is the coordinator's decision.
        """
        started = time.perf_counter()
        tenant = self._tenant(run, epoch)
        blocks = unpacked(packed)
        tenant.take(set().union(*(block.start_version.tolist() for block in blocks)), forget, bundles)
        try:
            merged = merge_results(train_blocks(tenant.learner, blocks, tenant.versions))
        except ClientWorkError as error:
            _release_memory(error)
            return error, None
        return time.perf_counter() - started, merged

    def evaluate(
        self, run: int, version: int, forget: Sequence[int], *bundles: Sequence[ModelVersion | Change], epoch: int
    ) -> tuple[float, dict[str, float] | ClientWorkError]:
        """(busy seconds, metrics of one version, or what went wrong)."""
        started = time.perf_counter()
        tenant = self._tenant(run, epoch)
        tenant.take({version}, forget, bundles)
        if tenant.evaluator is None:
            tenant.evaluator = tenant.make_evaluator()
            one_thread()
        try:
            metrics = evaluate_version(tenant.evaluator, tenant.versions[version])
        except ClientWorkError as error:
            _release_memory(error)
            return time.perf_counter() - started, error
        return time.perf_counter() - started, metrics

    def _tenant(self, run: int, epoch: int) -> _Tenant:
        # One coordinator only: what another one has sent, or made this pool forget, is not what this one believes.
        tenant = self._tenants.get(run)
        if tenant is None or tenant.epoch != epoch:
            of = "no epoch" if tenant is None else f"epoch {tenant.epoch}"
            raise FencedError(f"a client pool works for {of} of run {run}; epoch {epoch} is over")
        return tenant


def _release_memory(error: ClientWorkError) -> None:
    """Gives a GPU's cached memory back, so that the next try has all of it."""
    if error.is_out_of_memory:
        import torch

        error.__cause__ = error.__traceback__ = None  # they hold the tensors that did not fit
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class TrackerShell:
    """Rows and files → tracking service, off the training path.

    Args:
        environment: variables of the driver that name the service's user.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._sending: dict[int, Sending] = {}

    def open(self, run: int, make_publisher: Callable[[], Publisher]) -> Place:
        """Takes up run number `run`; returns where it runs. The service is contacted with the first batch."""
        self._sending[run] = Sending(make_publisher)
        return Place.here()

    def send(self, run: int, batch: Batch) -> str:
        """Sends; returns the service's id of the run; raises where the service does not take it."""
        return self._sending[run].send(batch)
