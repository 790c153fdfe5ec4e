"""`atoll doctor`: one block on every node: device, software, speed, data, store, MLflow, and equal bits everywhere."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from typing import Any
from uuid import uuid4

from atoll import spec as sp
from atoll.errors import AtollError, Problem, SpecError
from atoll.experiment.modelling import first_version, kernel_problems
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.places import check_device
from atoll.experiment.planning import SpecLike, as_spec
from atoll.experiment.profile import with_profile
from atoll.experiment.running import pinned
from atoll.experiment.storing import check_store
from atoll.messages import BlockResult, ModelVersion
from atoll.runtime.software import software
from atoll.runtime.store import open_files
from atoll.tracking import preflight

__all__ = ["Diagnosis", "NodeHealth", "doctor"]

#: what runs where nobody names an experiment: two seconds on one core
_EXAMPLE: Mapping[str, Any] = {
    "name": "doctor",
    "data": {"kind": "synthetic", "features": 32, "examples": {"kind": "constant", "count": 32}},
    "population": {"size": 1000, "devices": {"kind": "constant", "value_s": 60}},
    "model": {"kind": "mlp", "hidden": [64]},
    "client": {"lr": 0.1, "batch_size": 8},
    "schedule": {"kind": "sync", "cohort": 64},
    "aggregation": {"kind": "fedavg"},
    "evaluation": {"metrics": ["loss"]},
    "stop": {"server_steps": 1},
    "runtime": {"kind": "ray", "workers": 1},
}
_PACKAGES = ("ray", "torch", "numpy")
#: passes over the block; the fastest counts
_PASSES = 3
_FINE = "ok"


@dataclass(frozen=True)
class NodeHealth:
    """What was seen on one node.

    Attributes:
        node: its address, with the beginning of `node_id` where several have it; "here" without Ray.
        node_id: Ray's; "" without Ray.
        device: processor or GPU.
        software: what decides bits there: name → version or digest.
        packages: versions of ray, torch and numpy.
        client_updates_per_s: of one pool, on the block; 0 where it did not run.
        block_digest: SHA-256 (hex) of the block's exact sums; "" where it did not run.
        checks: block, data, store, mlflow → "ok", or what is wrong.
    """

    node: str
    node_id: str = ""
    device: str = ""
    software: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    client_updates_per_s: float = 0.0
    block_digest: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """All nodes, and everything that is wrong."""

    nodes: tuple[NodeHealth, ...]
    problems: tuple[Problem, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"nodes": [one.as_dict() for one in self.nodes], "problems": [str(one) for one in self.problems]}


def doctor(spec: SpecLike | None = None, *overrides: str, timeout_s: float = 120.0) -> Diagnosis:
    """Runs one block of an experiment on every node of the cluster that RAY_ADDRESS names, or here, and looks round.

    Args:
        spec: a Spec, a mapping, or the path of a YAML file; a small one of its own if None. With runtime.kind inline
            only this process is looked at.
        overrides: `dotted.key=value`.
        timeout_s: wall seconds that nodes have to answer; the first use of compiled kernels takes half a minute.

    Returns:
        What was seen. Nothing wrong on a node is raised; it is among the problems.

    Raises:
        SpecError: the spec is wrong, or the cluster cannot be reached.
    """
    with opened_once():
        _, _, resolved = sp.arms(as_spec(_EXAMPLE if spec is None else spec, overrides))[0]
        resolved = with_profile(pinned(resolved))
        if problems := kernel_problems(resolved):
            raise SpecError(problems)
        is_ray = isinstance(resolved.runtime, sp.RayRuntime)
        if not is_ray:
            check_device(resolved)
        with _mark(resolved) as mark:
            question = partial(examine, resolved, data_of(resolved).identity, mark, is_alone=not is_ray)
            nodes = _ask(resolved, question, timeout_s) if is_ray else [question()]
    problems = [*_problems_here(resolved, is_ray), *_problems_of(nodes)]
    return Diagnosis(tuple(nodes), tuple(problems))


def _ask(spec: sp.Spec, question: partial[NodeHealth], timeout_s: float) -> list[NodeHealth]:
    from atoll.runtime.session import RaySession  # first of all: it settles how Ray authenticates

    session = RaySession(1)
    from atoll.runtime.nodes import ask_nodes, connected

    gpus = spec.runtime.gpus_per_worker if isinstance(spec.runtime, sp.RayRuntime) else 0.0
    with connected(session):
        answers = ask_nodes(question, gpus=gpus, timeout_s=timeout_s)
    addresses = [answer.address for answer in answers]
    found = []
    for answer in answers:
        seen = answer.found or NodeHealth("", checks={"node": answer.error})
        # nodes of one machine have one address
        name = answer.address if addresses.count(answer.address) == 1 else f"{answer.address} {answer.node_id[:8]}"
        found.append(replace(seen, node=name, node_id=answer.node_id))
    return found


# ---- on the node ----------------------------------------------------------------------------------------------------


def examine(spec: sp.Spec, identity: str, mark: str | None, *, is_alone: bool) -> NodeHealth:
    """Looks round in this process.

    Args:
        spec: resolved.
        identity: of the data that the driver sees.
        mark: name of a file in `runtime.store` that the driver has made; None: the run keeps itself in its folder.
        is_alone: whether this is the only process of the run, which tracks too.
    """
    from atoll.learner.devices import device_name

    checks: dict[str, str] = {}
    rate, digest = 0.0, ""
    try:
        rate, digest = _train(spec, identity)
        checks |= {"data": _FINE, "block": _FINE}
    except Exception as error:  # whatever a node lacks is what is asked for
        what = "data" if isinstance(error, OSError) or "data" in str(error).lower() else "block"
        checks[what] = _line(error)
    if mark is not None:
        checks["store"] = _outcome(partial(_see_mark, spec, mark))
    if is_alone or spec.tracking.uri.startswith(("http://", "https://")):
        checks["mlflow"] = _outcome(partial(preflight, spec.tracking.uri))
    packages = {name: metadata.version(name) for name in _PACKAGES}
    device = _outcome(partial(device_name, spec.runtime.device_class), keeps=True)
    return NodeHealth("here", "", device, dict(software()), packages, rate, digest, checks)


def _outcome(check: partial[Any], keeps: bool = False) -> str:
    """What was raised, in one line; else what was found, if it is to be kept, or "ok"."""
    try:
        found = check()
    except Exception as error:
        return _line(error)
    return str(found) if keeps else _FINE


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, AtollError) else f"{type(error).__name__}: {text}"


def _train(spec: sp.Spec, identity: str) -> tuple[float, str]:
    """(client updates per second, digest) of the plan's first block, from version 0."""
    from atoll.experiment.building import build_learner, build_planner
    from atoll.runtime.work import one_thread, train_blocks

    block = build_planner(spec, identity).advance().blocks[0]
    learner = build_learner(spec, identity)
    one_thread()
    first = first_version(spec, data_of(spec).shape)
    versions = {int(v): ModelVersion(int(v), first.dense, first.tables) for v in block.start_version}
    (result,) = train_blocks(learner, [block], versions)  # compiles, fills caches
    seconds = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        (again,) = train_blocks(learner, [block], versions)
        seconds.append(time.perf_counter() - started)
        if result_digest(again) != result_digest(result):
            raise AtollError("the same block came out with other bits the second time")
    return block.num_lanes / min(seconds), result_digest(result)


def result_digest(result: BlockResult) -> str:
    """SHA-256 (hex) of a block's exact sums."""
    sha = hashlib.sha256()
    for one in result.partials:
        sha.update(f"{one.step} {one.num_lanes} {one.num_diverged} {one.lost_weight}".encode())
        for array in (one.dense, one.metrics, *(part for rows in one.tables for part in (rows.rows, rows.values))):
            sha.update(array.tobytes())
    return sha.hexdigest()


class _Mark:
    """Inside, a file in the run's store that every node must see: a folder of the same name need not be the same."""

    def __init__(self, spec: sp.Spec) -> None:
        check_store(spec)
        self._files = open_files(str(spec.runtime.store))
        self._name = f"doctor-{uuid4().hex}"

    def __enter__(self) -> str:
        self._files.create(self._name, b"")
        return self._name

    def __exit__(self, *_: object) -> None:
        self._files.delete(self._name)


def _mark(spec: sp.Spec) -> Any:
    return nullcontext() if spec.runtime.store is None else _Mark(spec)


def _see_mark(spec: sp.Spec, mark: str) -> None:
    if mark not in open_files(str(spec.runtime.store)).names():
        rule, why = "a folder or object store that is the same on every node", "what the driver wrote is not there"
        raise SpecError([Problem("runtime.store", repr(spec.runtime.store), rule, why)])


# ---- what is wrong --------------------------------------------------------------------------------------------------


def _problems_here(spec: sp.Spec, is_ray: bool) -> Iterable[Problem]:
    """Of the driver: the tracker is beside it."""
    if not is_ray:
        return
    try:
        preflight(spec.tracking.uri)
    except SpecError as error:
        yield from error.problems


def _problems_of(nodes: Sequence[NodeHealth]) -> Iterable[Problem]:
    """Of the nodes, each alone and beside one another."""
    for one in nodes:
        for name, said in one.checks.items():
            if said != _FINE:
                yield Problem(f"node {one.node}", "", f"{name} in order", said)
    here = software()
    for name in here:
        for value, where in _groups(nodes, lambda one, name=name: one.software.get(name)).items():
            if value != here[name]:
                why = "bits are equal per software build and kind of processor, not across them"
                hint = "install the same everywhere; runtime.labels keeps workers on nodes of one kind"
                rule = f"{here[name]!r}, as here"
                yield Problem(f"{name} on {', '.join(where)}", repr(value), rule, why, hint)
    digests = _groups(nodes, lambda one: one.block_digest or None)
    if len(digests) > 1:
        named = {one.node: f"{one.node} ({one.device})" for one in nodes}
        parts = [f"{digest[:12]} on {', '.join(named[node] for node in where)}" for digest, where in digests.items()]
        why = "a run's result would depend on where its blocks are trained"
        hint = "keep workers to nodes of one kind: runtime.labels"
        yield Problem("block", "; ".join(parts), "the same bits on every node", why, hint)


def _groups(nodes: Sequence[NodeHealth], of: Any) -> dict[str, list[str]]:
    """Value → nodes that have it; nodes without one are left out."""
    found: dict[str, list[str]] = {}
    for one in nodes:
        value = of(one)
        if value is not None and one.software:
            found.setdefault(value, []).append(one.node)
    return found
