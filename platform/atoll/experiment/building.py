"""What each process builds for itself from the spec; module-level functions, so that they pickle.

Coordinator and aggregator load this without torch: a run that is resumed works the sooner.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from atoll import spec as sp
from atoll.aggregation import Aggregator, AggregatorState
from atoll.data import ClientData, open_data
from atoll.data.shape import I64
from atoll.errors import InfrastructureError
from atoll.experiment.clustering import clustering_of
from atoll.experiment.facts import TimelineParquet, TrackerPublisher
from atoll.experiment.modelling import (
    asked_of,
    client_work_of,
    first_version,
    inputs_of,
    kernel_of,
    lane_model_of,
    settings_of,
    shape_of,
)
from atoll.experiment.opened import data_of
from atoll.experiment.planning import make_planner
from atoll.experiment.splitting import test_rows
from atoll.experiment.storing import RunStore
from atoll.experiment.wiring import grid_of, rule_of, source_of
from atoll.learner import METRICS
from atoll.messages import ModelVersion
from atoll.models import ModelShape, encode_version
from atoll.plan import Planner
from atoll.runtime import CoordinatorSettings, Parts, Target
from atoll.runtime.parts import Durability
from atoll.tracking import RunInfo, lower_is_better

if TYPE_CHECKING:
    from atoll.evaluation import Evaluator
    from atoll.learner import Trainer

__all__ = ["parts_of"]

_COMMIT_EVERY_S = 0.5


#: the data opened last in this process, by source: the arms and seeds of a comparison share it
_OPENED: dict[str, ClientData] = {}


def _data_of(spec: sp.Spec, identity: str) -> ClientData:
    """The data that the run was planned on: opened again where this process holds an older content.

    Raises:
        InfrastructureError: this process finds other data than the driver did.
    """
    source = source_of(spec)
    name = repr(source)
    if name not in _OPENED or _OPENED[name].identity != identity:
        _OPENED.clear()
        _OPENED[name] = open_data(source)
    data = _OPENED[name]
    if data.identity != identity:
        raise InfrastructureError(
            f"data {name}: this worker finds content {data.identity[:12]}, the run was planned on {identity[:12]}. "
            "Every node must see the same files, and they must not change during a run."
        )
    return data


def build_planner(spec: sp.Spec, identity: str) -> Planner:
    """For the coordinator."""
    data = _data_of(spec, identity)
    return make_planner(spec, data, shape_of(spec, data.shape))


def build_learner(spec: sp.Spec, identity: str) -> Trainer:
    """For a client pool."""
    from atoll import learner as le

    data, kernel = _data_of(spec, identity), kernel_of(spec)
    gather, work, grid = data.gather, client_work_of(spec), grid_of(spec, data)
    if kernel == "compiled":
        return le.CompiledLearner(
            settings=settings_of(spec),
            inputs=inputs_of(data.shape),
            gather=gather,
            work=work,
            grid=grid,
            seed=spec.seed,
        )
    import torch

    from atoll.learner.resident import resident_examples

    make = le.Learner if kernel == "lanes" else le.SingleLearner
    return make(
        model=lane_model_of(spec, data.shape),
        gather=resident_examples(data, torch.device(spec.runtime.device_class)) or gather,
        work=work,
        grid=grid,
        seed=spec.seed,
        device=spec.runtime.device_class,
    )


def build_evaluator(spec: sp.Spec, identity: str) -> Evaluator:
    """For a client pool."""
    from atoll.evaluation import Evaluator

    data = _data_of(spec, identity)
    held_out = test_rows(spec, data)
    groups, names = _groups_of(spec, data, held_out.client)
    return Evaluator(
        asked_of(spec, data.shape),
        held_out.arrays,
        held_out.client,
        held_out.train_examples,
        spec.evaluation.metrics,
        per_client=spec.evaluation.per_client,
        groups=groups,
        group_names=names,
    )


def _groups_of(spec: sp.Spec, data: ClientData, client: I64) -> tuple[I64 | None, tuple[str, ...]]:
    """The cluster of each row of these clients, and the clusters' names; none where clusters know no data clients."""
    clustering = clustering_of(spec, data)
    if clustering.of_client is None or len(clustering.names) < 2:
        return None, ()
    return clustering.of_client[client], clustering.names


def build_aggregator(spec: sp.Spec, identity: str, state: AggregatorState | None) -> Aggregator:
    """For the aggregator: at version 0, or from a snapshot."""
    data = _data_of(spec, identity)
    start = first_version(spec, data.shape) if state is None else state
    return Aggregator(start, rule_of(spec), grid_of(spec, data), spec.stop.server_steps)


def encode_model(shape: ModelShape, model: ModelVersion) -> bytes:
    """For checkpoints: names and shapes of the ordinary torch module."""
    return encode_version(model, shape)


def durability_of(spec: sp.Spec) -> Durability:
    """How often to save; a shared log grows by one file a commit, so it gets fewer."""
    runtime = spec.runtime
    commit_every_s = _COMMIT_EVERY_S if runtime.store is None else max(_COMMIT_EVERY_S, runtime.snapshot_every_s)
    return Durability(runtime.snapshot_every_s, runtime.hang_s, commit_every_s)


def parts_of(spec: sp.Spec, store: RunStore, uri: str, artifacts: str | None, info: RunInfo) -> Parts:
    """Everything that an executor needs for one run.

    Args:
        spec: resolved.
        store: of the run.
        uri: tracking store, absolute.
        artifacts: root of artifacts, or None.
        info: names the run in the store.
    """
    data = data_of(spec)
    _OPENED.clear()
    _OPENED[repr(source_of(spec))] = data
    shape = shape_of(spec, data.shape)
    target = spec.stop.target
    settings = CoordinatorSettings(
        stop_steps=spec.stop.server_steps,
        evaluate_every_steps=spec.evaluation.every_steps,
        checkpoint_every_steps=spec.tracking.checkpoint_every_steps,
        target=None if target is None else Target(target.metric, target.value, lower_is_better(target.metric)),
        model_bytes=shape.bytes,
        metric_names=METRICS,
        max_failures=spec.runtime.max_failures,
    )
    return Parts(
        settings=settings,
        durability=durability_of(spec),
        make_planner=partial(build_planner, spec, data.identity),
        make_aggregator=partial(build_aggregator, spec, data.identity),
        make_learner=partial(build_learner, spec, data.identity),
        make_evaluator=partial(build_evaluator, spec, data.identity),
        make_journal=store.journal,
        make_snapshot_files=store.snapshots,
        make_artifact_files=store.checkpoints,
        make_timeline=partial(TimelineParquet, store.folder),
        make_publisher=partial(TrackerPublisher, uri, artifacts, info),
        encode_model=partial(encode_model, shape),
        name=info.run_key,
    )
