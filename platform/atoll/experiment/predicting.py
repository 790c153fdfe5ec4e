"""`atoll plan --pools`: how long a plan takes on so many pools, and every assumption that goes into the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import Problem, SpecError
from atoll.experiment.modelling import kernel_of, shape_of
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.profile import entry_of, with_profile
from atoll.models import ModelShape
from atoll.plan import ClusterCosts, Ending, Prediction, Predictor, Traffic, WorkCosts

__all__ = ["Forecast", "predict"]

#: Where nothing was measured: operations per weight and example (two forward, four backward), operations per second of
#: one pool, and seconds of a block whatever is in it (on a GPU, the launches of its kernels).
_TRAIN_OPERATIONS, _EVALUATION_OPERATIONS = 6, 2
_OPERATIONS_PER_S = {"cpu": 3e10, "cuda": 2e12}
_BLOCK_S = {"cpu": 1e-4, "cuda": 1e-2}
_MOST_POOLS = 100_000


@dataclass(frozen=True)
class Forecast:
    """What a run takes on clusters that nobody has at hand.

    Attributes:
        report: the plan.
        predictions: one per number of pools, in the order asked for.
        assumptions: sentences: what was measured where, what is a default, what is left out.
        is_measured: whether the cost of client work comes from a profile table.
        gpus_per_pool: 0 where pools are cores.
    """

    report: PlanReport
    predictions: tuple[Prediction, ...]
    assumptions: tuple[str, ...]
    is_measured: bool
    gpus_per_pool: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.report.as_dict(),
            "predictions": [{**one.as_dict(), "gpu_hours": self.gpu_hours(one)} for one in self.predictions],
            "assumptions": list(self.assumptions),
            "is_measured": self.is_measured,
        }

    def gpu_hours(self, prediction: Prediction) -> float:
        """GPU hours of a prediction; 0 where pools are cores."""
        return prediction.pool_hours * self.gpus_per_pool


def predict(spec: SpecLike, *overrides: str, pools: Sequence[int], cluster: ClusterCosts | None = None) -> Forecast:
    """Plans an experiment and says how long it takes on each number of pools; nothing is trained.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file. Its `runtime.profile` names the table of `atoll tune` that
            says what client work costs; without one, that is a stated assumption.
        overrides: `dotted.key=value`.
        pools: numbers of client pools, one per core or GPU.
        cluster: what Ray and the network cost; measured defaults if None.

    Raises:
        SpecError, PlanError: as `plan`; a number of pools that is none.

    Example:
        >>> found = predict("configs/fedbuff_flights.yaml", pools=(1, 8))  # doctest: +SKIP
        >>> found.predictions[1].wall_s  # doctest: +SKIP
    """
    wrong = [number for number in pools if not 1 <= number <= _MOST_POOLS]
    if wrong or not pools:
        found, rule = ", ".join(map(str, wrong)) or "none", f"numbers of client pools, 1 to {_MOST_POOLS:,}"
        raise SpecError([Problem("pools", found, rule, hint="such as --pools 1,8,64")])
    with opened_once():
        resolved = with_profile(as_spec(spec, overrides))
        data = data_of(resolved)
        shape = shape_of(resolved, data.shape)
        cluster = cluster or ClusterCosts()
        work, is_measured, told = _work(resolved, data, shape)
        traffic, ending = _traffic(resolved, shape), _ending(resolved)
        predictor = Predictor(pools, work, cluster, traffic, ending)
        report = plan(resolved, on_window=predictor.add)
    runtime = resolved.runtime
    is_gpu = runtime.device_class == "cuda"
    share = runtime.gpus_per_worker if isinstance(runtime, sp.RayRuntime) and is_gpu else float(is_gpu)
    assumptions = (told, *_assumptions(resolved, work, cluster, "GPU" if is_gpu else "core"))
    return Forecast(report, predictor.build(), assumptions, is_measured, share)


def _work(spec: sp.Spec, data: ClientData, shape: ModelShape) -> tuple[WorkCosts, bool, str]:
    """What client work costs, whether that was measured, and the sentence that says so."""
    epochs, entry = spec.client.epochs, entry_of(spec)
    if entry is not None and entry.costs is not None:
        costs = entry.costs
        work = WorkCosts(costs.block_s, costs.update_s, costs.example_s * epochs, costs.evaluation_s)
        where = f"measured by atoll tune on {entry.machine}, in {spec.runtime.profile}"
        return work, True, f"Client work: {_cost_text(work, epochs)}; {where}."
    device_class = spec.runtime.device_class
    rate = _OPERATIONS_PER_S[device_class]
    if entry is not None:
        work = WorkCosts(0.0, 1 / entry.client_updates_per_s, 0.0, _evaluation_s(spec, data, shape, rate))
        where = f"as {spec.runtime.profile} has it; atoll tune of this version tells more"
        return work, False, f"Client work: {_cost_text(work, epochs)}; {where}."
    uses = _uses(data, shape)
    work = WorkCosts(
        block_s=_BLOCK_S[device_class],
        update_s=0.0,
        example_s=_TRAIN_OPERATIONS * uses * epochs / rate,
        evaluation_s=_evaluation_s(spec, data, shape, rate),
    )
    how = (
        f"NOT MEASURED: {_TRAIN_OPERATIONS} operations per weight and example at {rate:.0e} per second and pool, which "
        "may be several times off; atoll tune measures it, runtime.profile names its table"
    )
    return work, False, f"Client work: {_cost_text(work, epochs)}; {how}."


def _cost_text(work: WorkCosts, epochs: int) -> str:
    parts = [(work.block_s, "block"), (work.update_s, "client update"), (work.example_s / epochs, "example and epoch")]
    return " + ".join(f"{_seconds(value)} per {what}" for value, what in parts if value) or "nothing"


def _seconds(value: float) -> str:
    """In the unit that reads best.

    Example:
        >>> _seconds(0.00012), _seconds(2.5)
        ('120 µs', '2.5 s')
    """
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def _evaluation_s(spec: sp.Spec, data: ClientData, shape: ModelShape, rate: float) -> float:
    held_out = data.held_out().get(spec.evaluation.split)  # a split that is not there is refused by the plan
    return 0.0 if held_out is None else _EVALUATION_OPERATIONS * _uses(data, shape) * held_out.num_rows / rate


def _uses(data: ClientData, shape: ModelShape) -> int:
    """How often one example uses a weight, over all weights: once, but at every place or character of its input."""
    inputs = data.shape.x_shape
    if data.shape.vocabulary:
        return shape.dense_size * (inputs[0] if inputs else 1)
    places = inputs[-1] * inputs[-2] if len(inputs) > 1 else 1
    return sum(one.size * (places if len(one.shape) == 4 else 1) for one in shape.parameters)


def _traffic(spec: sp.Spec, shape: ModelShape) -> Traffic:
    optimizer = spec.aggregation.server_optimizer
    return Traffic(
        dense_bytes=4 * shape.dense_size,
        table_bytes=shape.bytes - 4 * shape.dense_size,
        row_bytes=sum(4 * table.dim * len(table.offsets) for table in shape.tables),
        is_sparse=isinstance(optimizer, sp.SgdOptimizer) and not optimizer.momentum,
    )


def _ending(spec: sp.Spec) -> Ending:
    return Ending(spec.stop.server_steps, spec.evaluation.every_steps, spec.stop.target is not None)


def _assumptions(spec: sp.Spec, work: WorkCosts, cluster: ClusterCosts, pool: str) -> list[str]:
    """What is taken for granted besides the cost of client work; kernel and W are in the plan."""
    found = [
        f"Kernel {kernel_of(spec)}; an evaluation takes one pool {_seconds(work.evaluation_s)}.",
        f"Every pool has a {pool} of its own, as fast as that one, and the coordinator a core; nothing dies.",
        f"A call costs its pool {_seconds(cluster.call_s)} and the coordinator {_seconds(cluster.answer_s)} + "
        f"{_seconds(cluster.answer_byte_s * 1e6)} per MB of sums; a server step {_seconds(cluster.step_s)} + "
        f"{_seconds(cluster.parameter_s * 1e6)} per million weights.",
        f"The coordinator's node sends and receives {cluster.bytes_per_s / 1e9:g} GB/s; {cluster.pools_per_node} pools "
        "share a node, which gets each model version once.",
        f"Before the first block {_seconds(cluster.start_s)} pass: not in the wall time, but in the hours.",
    ]
    if spec.stop.target is not None:
        found.append(
            f"The run goes to stop.server_steps = {spec.stop.server_steps:,}: when it reaches stop.target is not known."
        )
    return found
