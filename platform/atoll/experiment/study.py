"""What an ensemble trains and what it is compared with: from one spec to the specs of ordinary runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import Problem, SpecError
from atoll.experiment.clustering import Clustering, cluster_problems, clustering_of
from atoll.experiment.modelling import memory_problems, shape_of
from atoll.experiment.splitting import split_problems
from atoll.experiment.wiring import tasks_per_step

__all__ = ["EnsembleArm", "Member", "Role", "Study", "study_of"]

Role = Literal["leaf", "single", "equal_updates", "random", "large"]
#: what the table says of a control
_LABELS: Mapping[str, str] = {
    "single": "single",
    "equal_updates": "single, equal updates",
    "random": "random clusters",
    "large": "single, large",
}
#: widths that grow together, by kind of model
_WIDTHS: Mapping[str, Sequence[str]] = {
    "mlp": ("embedding_dim", "hidden"),
    "wide_deep": ("embedding_dim", "hidden"),
    "dlrm": ("embedding_dim", "bottom", "top"),
    "cnn": ("channels",),
    "char_lstm": ("embedding", "hidden"),
}
#: the factor by which widths grow is found to this fraction
_FACTOR_PARTS = 64
_SINGLE = {"kind": "single"}
#: characters of a run's name
_MOST_NAME = 250


@dataclass(frozen=True)
class Member:
    """One model to train: an ordinary run.

    Attributes:
        name: of its folder; unique in the study.
        role: what it is trained for; that of the first arm that asks for it.
        spec: without ensemble and comparison.
        cluster: whose clients it trains on; empty for all of them.
        seed: of the spec.
        arm: of the comparison, for the first that asks for it; empty without one.
    """

    name: str
    role: Role
    spec: sp.Spec
    cluster: str
    seed: int
    arm: str


@dataclass(frozen=True)
class EnsembleArm:
    """Models that are joined and judged: the ensemble, or a control, with one seed.

    Attributes:
        name: unique in the study; its label and seed, fit for names of runs.
        label: the same with every seed; a row of the table.
        role: `ensemble` or a control's name.
        seed: of all its members.
        members: their names, in the order of the clusters.
        clusters: the cluster of each member, by name; empty names where a member trains on all clients.
        spec: the ensemble's spec with this arm's and seed's values, comparison null: evaluation, over-arch, fit.
        baseline: name of the arm with one model on all clients that it is compared with; None without one.
    """

    name: str
    label: str
    role: str
    seed: int
    members: tuple[str, ...]
    clusters: tuple[str, ...]
    spec: sp.Spec
    baseline: str | None


@dataclass(frozen=True)
class Study:
    """Every model to train, once, and how they are joined.

    Attributes:
        members: in the order in which they are asked for.
        arms: ensembles before their controls.
        clusterings: name of an ensemble's arm → its clusters.
    """

    members: tuple[Member, ...]
    arms: tuple[EnsembleArm, ...]
    clusterings: Mapping[str, Clustering] = field(default_factory=dict)


def study_of(spec: sp.Spec, data_of: Callable[[sp.Spec], ClientData]) -> Study:
    """The members and arms of an ensemble, for every arm and seed of its comparison if it has one.

    Models that are equal in everything that decides their bits occur once: the single model of one seed serves all
    cluster rules. A leaf has the clusters' `only` and nothing else that a run alone would not have.

    Args:
        spec: with an ensemble.
        data_of: opens the data of a spec.

    Raises:
        SpecError: clusters that cannot be trained, models that cannot grow; all of it, once each.

    Purity: as `data_of` and `clustering_of`.
    """
    building, problems = _Building(spec.name), dict[str, Problem]()
    for arm, seed, one in sp.arms(spec):
        try:
            data = data_of(one)
            found = [*cluster_problems(one, data), *split_problems(one, data), *memory_problems(one, data.shape)]
            if found:
                raise SpecError(found)
            building.add(arm, seed, one, data)
        except SpecError as error:
            problems.update({str(problem): problem for problem in error.problems})
    if problems or (long := _long_names(building.members.values())):
        raise SpecError([*problems.values()] or long)
    return Study(tuple(building.members.values()), tuple(building.arms.values()), building.clusterings)


def _long_names(members: Iterable[Member]) -> list[Problem]:
    """A run whose name no spec may have could not be resumed."""
    longest = max((member.spec.name for member in members), key=len)
    if len(longest) <= _MOST_NAME:
        return []
    rule, hint = f"run names NAME-ARM-CLUSTER-sSEED of at most {_MOST_NAME} characters", "Shorten it, arms or clusters"
    return [Problem("name", f"{len(longest)} characters: {longest[:60]}…", rule, hint=hint)]


class _Building:
    """A study that grows, arm by arm."""

    def __init__(self, name: str) -> None:
        self._name = name
        #: content → member
        self.members: dict[str, Member] = {}
        #: content → arm
        self.arms: dict[str, EnsembleArm] = {}
        self.clusterings: dict[str, Clustering] = {}

    def add(self, arm: str, seed: int, one: sp.Spec, data: ClientData) -> None:
        """The ensemble of this arm and seed, and its controls."""
        ensemble = one.ensemble
        if ensemble is None:
            raise SpecError([Problem("ensemble", "null", "a section ensemble", f"arm {arm} has none")])
        clustering = clustering_of(one, data)
        leaves = [
            self._member("leaf", _leaf(one, name, ensemble.leaves.get(name, {})), name, seed, arm)
            for name in clustering.names
        ]
        updates = sum(member.spec.stop.server_steps * tasks_per_step(member.spec) for member in leaves)
        capacity = sum(shape_of(member.spec, data.shape).bytes for member in leaves)
        alone: dict[Role, sp.Spec] = {}
        controls = ensemble.controls
        if controls.single is not None:
            alone["single"] = _single(one, controls.single)
        if controls.equal_updates is not None:
            alone["equal_updates"] = _longer(_single(one, controls.equal_updates), controls.equal_updates, updates)
        if controls.large is not None and len(leaves) > 1:
            grown = _grown(_single(one, controls.large), controls.large, data, capacity)
            alone["large"] = _longer(grown, controls.large, updates)
        members: dict[Role, Member] = {}
        for role, made in alone.items():
            members[role] = self._member(role, made, "", seed, arm)
        baseline = None
        if "single" in members:
            baseline = self._arm("single", arm, seed, [members["single"]], one, None).name
        label = arm or "ensemble"
        joined = self._arm("ensemble", label, seed, leaves, one, baseline)
        self.clusterings[joined.name] = clustering
        if controls.random is not None and len(leaves) > 1 and one.clusters.kind != "random":
            drawn = [
                self._member("random", leaf, f"r{number}", seed, arm)
                for number, leaf in enumerate(_drawn(one, clustering, ensemble.leaves, controls.random))
            ]
            self._arm("random", label, seed, drawn, one, baseline)
        for role, member in members.items():
            if role != "single":
                self._arm(role, arm, seed, [member], one, baseline)

    def _member(self, role: Role, spec: sp.Spec, cluster: str, seed: int, arm: str) -> Member:
        content = json.dumps([sp.digest(spec), sp.to_dict(spec)["stop"]], sort_keys=True)
        if content not in self.members:
            taken = {member.name for member in self.members.values()}
            parts = [role.replace("_", "-")] if role not in ("leaf", "random") else []
            parts += [cluster] if role == "leaf" else [f"random-{cluster}"] if role == "random" else []
            plain, full = "-".join(parts), "-".join([*([arm] if arm else []), *parts])
            names = [full] if role in ("leaf", "random") else [plain, full]
            name = _free([f"{name}-s{seed}" for name in names], taken)
            named = spec.model_copy(update={"name": f"{self._name}-{name}"})
            self.members[content] = Member(name, role, named, cluster, seed, arm)
        return self.members[content]

    def _arm(
        self, role: str, label: str, seed: int, members: Sequence[Member], one: sp.Spec, baseline: str | None
    ) -> EnsembleArm:
        ensemble = sp.to_dict(one)["ensemble"]
        joined = [ensemble["over_arch"], ensemble["fit"], ensemble["resamples"]]
        content = json.dumps([role, [member.name for member in members], joined, baseline], sort_keys=True)
        if content not in self.arms:
            labels = [label, f"{label} ensemble"]
            if role != "ensemble":
                labels = [*([] if role == "random" else [_LABELS[role]]), f"{label}: {_LABELS[role]}"]
            # By name, not by label: an arm called single-equal-updates has the name of a control.
            taken = {arm.name for arm in self.arms.values()}
            shown = next(one for one in _numbered(labels) if _arm_name(one, seed) not in taken)
            clusters = tuple(member.cluster for member in members)
            if role == "ensemble" and len(members) == 1:
                clusters = ("",)
            names = tuple(member.name for member in members)
            self.arms[content] = EnsembleArm(_arm_name(shown, seed), shown, role, seed, names, clusters, one, baseline)
        return self.arms[content]


def _arm_name(label: str, seed: int) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", label) + f"-s{seed}"


def _free(names: Sequence[str], taken: set[str]) -> str:
    """The first name that nobody has; a number is added where all are taken."""
    return next(name for name in _numbered(names) if name not in taken)


def _numbered(names: Sequence[str]) -> Iterator[str]:
    yield from names
    number = 2
    while True:
        yield f"{names[-1]}-{number}"
        number += 1


# ---- the specs ------------------------------------------------------------------------------------------------------


def _leaf(one: sp.Spec, cluster: str, overrides: Mapping[str, Any]) -> sp.Spec:
    clusters = sp.to_dict(one)["clusters"]
    only = {} if clusters["kind"] == "single" else {"only": cluster}  # one cluster: plain federated learning
    return sp.derived(one, overrides, ensemble=None, comparison=None, clusters={**clusters, **only})


def _single(one: sp.Spec, overrides: Mapping[str, Any]) -> sp.Spec:
    return sp.derived(one, overrides, ensemble=None, comparison=None, clusters=_SINGLE)


def _longer(control: sp.Spec, overrides: Mapping[str, Any], updates: int) -> sp.Spec:
    """As many server steps as give these client updates, unless the control says how many."""
    if "stop.server_steps" in overrides or "stop" in overrides:
        return control
    return sp.derived(control, {"stop.server_steps": math.ceil(updates / tasks_per_step(control))})


def _drawn(
    one: sp.Spec, clustering: Clustering, leaves: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Any]
) -> Iterator[sp.Spec]:
    """Leaves of clusters drawn by lot, each with the size and the values of the leaf whose place it takes."""
    for number, name in enumerate(clustering.names):
        clusters = {"kind": "random", "sizes": list(clustering.sizes), "only": f"r{number}"}
        values = {**leaves.get(name, {}), **overrides}
        yield sp.derived(one, values, ensemble=None, comparison=None, clusters=clusters)


def _grown(control: sp.Spec, overrides: Mapping[str, Any], data: ClientData, capacity: int) -> sp.Spec:
    """The model with all widths grown by one factor, the least that gives it as many bytes as all leaves together."""
    population = {**sp.to_dict(control)["population"], "device_memory_bytes": None}
    free = sp.derived(control, {}, population=population)
    if any(key == "model" or key.startswith("model.") for key in overrides):
        return free
    widths = _WIDTHS.get(control.model.kind, ())
    if not widths:
        rule, why = "null, or a model of its own", f"a {control.model.kind} model has no widths that could grow"
        hint = "Set ensemble.controls.large to null, or give it keys of model"
        raise SpecError([Problem("ensemble.controls.large", "a model of the ensemble's capacity", rule, why, hint)])

    def at(parts: int) -> sp.Spec:
        model = sp.to_dict(free)["model"]
        for key in widths:
            value = model[key]
            if value is None:
                continue  # follows another width
            model[key] = [_times(w, parts) for w in value] if isinstance(value, list) else _times(value, parts)
        return sp.derived(free, {}, model=model)

    low, high = _FACTOR_PARTS, _FACTOR_PARTS
    while shape_of(at(high), data.shape).bytes < capacity:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if shape_of(at(middle), data.shape).bytes < capacity:
            low = middle + 1
        else:
            high = middle
    return at(high)


def _times(width: int, parts: int) -> int:
    return math.ceil(width * parts / _FACTOR_PARTS)
