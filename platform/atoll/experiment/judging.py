"""Joins the members of every arm and measures them: all arms alike, controls too, on rows that nothing was fitted on.

Shape legend: R rows, N members of an arm, K outputs of a member (1: its logit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from atoll import aggregation as agg
from atoll import spec as sp
from atoll.data import ClientData, HeldOut
from atoll.errors import SpecError
from atoll.evaluation import outputs
from atoll.evaluation.bootstrap import QUALITIES, Gain, Scores, all_gains, qualities, relative_gain
from atoll.experiment.clustering import Clustering
from atoll.experiment.judgement import ArmQuality, ClusterFacts, Judgement, LeafQuality, Quality
from atoll.experiment.modelling import lane_model_of
from atoll.experiment.splitting import server_rows, test_rows
from atoll.experiment.study import EnsembleArm, Member, Study
from atoll.experiment.wiring import source_of
from atoll.messages import ModelVersion
from atoll.tracking import ensemble_report

__all__ = ["Judgement", "judge", "over_arch_settings", "write_report"]

F64 = npt.NDArray[np.float64]
Inputs = Literal["logits", "penultimate"]
_WAYS = ("joined", "mean", "median")
_PERCENTILES = (10, 50, 90)


def judge(
    study: Study,
    data_of: Callable[[sp.Spec], ClientData],
    models: Mapping[str, ModelVersion],
    updates: Mapping[str, int],
    over_archs: Mapping[str, agg.OverArch] | None = None,
) -> Judgement:
    """Fits over-archs, measures every arm, and relates it to its baseline.

    Args:
        study: what there is to judge.
        data_of: opens the data of a spec.
        models: member → its final weights; an arm that lacks one is left out and named.
        updates: member → client updates.
        over_archs: arm → an over-arch that was fitted elsewhere, by federated learning; the others are fitted here, on
            the server's rows.

    Guarantees: no over-arch is fitted here on a row, or a client, that it is measured on; equal arguments, equal bits.

    Raises:
        SpecError: penultimate vectors of models that do not offer them.

    Purity: as `data_of`.
    """
    desk = _Desk(study, data_of, models, updates, over_archs or {})
    found: dict[str, ArmQuality] = {}
    left_out: dict[str, str] = {}
    # baselines first: the others are related to them
    for arm in sorted(study.arms, key=lambda arm: arm.baseline is not None):
        why = desk.obstacle(arm)
        if not why:
            try:
                found[arm.name] = desk.judged(arm, found)
            except SpecError as error:
                why = "; ".join(map(str, error.problems))
        if why:
            left_out[arm.name] = why
    judged = tuple(found[arm.name] for arm in study.arms if arm.name in found)
    return Judgement(judged, desk.gains(found), left_out, tuple(desk.notes(found)))


def write_report(judgement: Judgement, folder: Path, title: str) -> tuple[Path, Path]:
    """Writes the report's page, table and pictures into `folder`; returns the page and the table."""
    return ensemble_report.write_report(judgement.report(), folder, title)


def over_arch_settings(over_arch: sp.OverArch) -> agg.OverArchSettings:
    """The spec's over-arch in the words of its room."""
    match over_arch:
        case sp.MeanOverArch():
            return agg.Mean()
        case sp.MedianOverArch():
            return agg.Median()
        case sp.WeightedMeanOverArch():
            return agg.WeightedMean()
        case sp.LogisticOverArch(l2=l2):
            return agg.Logistic(l2)
        case sp.MlpOverArch(hidden=hidden, l2=l2):
            return agg.MlpOver(hidden, l2)


def _ensemble_of(arm: EnsembleArm) -> sp.Ensemble:
    if arm.spec.ensemble is None:
        raise ValueError(f"arm {arm.name} has a spec without an ensemble")
    return arm.spec.ensemble


def _inputs_of(arm: EnsembleArm) -> Inputs:
    inputs: Inputs = getattr(_ensemble_of(arm).over_arch, "inputs", "logits")
    return inputs


@dataclass(frozen=True, eq=False)
class _Sides:
    """The rows of one spec."""

    test: HeldOut
    server: HeldOut


class _Desk:
    """One judgement on its way: what members say is computed once, whatever number of arms asks for it."""

    def __init__(
        self,
        study: Study,
        data_of: Callable[[sp.Spec], ClientData],
        models: Mapping[str, ModelVersion],
        updates: Mapping[str, int],
        over_archs: Mapping[str, agg.OverArch],
    ) -> None:
        self._study, self._data_of, self._models, self._updates = study, data_of, models, updates
        self._fitted = over_archs
        self._members: dict[str, Member] = {member.name: member for member in study.members}
        self._arms = {arm.name: arm for arm in study.arms}
        self._rows: dict[str, _Sides] = {}
        self._said: dict[tuple[str, Inputs], tuple[F64, F64]] = {}
        #: arm → joined, mean, median → logits on test rows
        self._logits: dict[str, dict[str, F64]] = {}

    def obstacle(self, arm: EnsembleArm) -> str:
        """Why the arm cannot be judged; empty if it can."""
        absent = [name for name in arm.members if name not in self._models]
        if absent:
            return f"no model of {', '.join(absent)}"
        if _ensemble_of(arm).fit.kind == "federated" and arm.name not in self._fitted:
            return "its over-arch was not fitted"
        return ""

    def judged(self, arm: EnsembleArm, before: Mapping[str, ArmQuality]) -> ArmQuality:
        """Everything about one arm."""
        sides = self._sides(arm.spec)
        labels = sides.test.arrays["y"]
        logits = self._stacked(arm, "logits", 0)
        over_arch = self._over_arch(arm, sides)
        joined = {
            "joined": over_arch.apply(self._stacked(arm, _inputs_of(arm), 0)),
            "mean": agg.OverArch("mean").apply(logits),
            "median": agg.OverArch("median").apply(logits),
        }
        self._logits[arm.name] = joined
        measured = {way: qualities(labels, values) for way, values in joined.items()}
        base = before.get(arm.baseline or "")
        gain = {name: relative_gain(name, measured["joined"][name], base.joined[name]) for name in QUALITIES if base}
        sizes = [self._bytes(name) for name in arm.members]
        own = self._study.clusterings.get(arm.name)
        return ArmQuality(
            name=arm.name,
            label=arm.label,
            role=arm.role,
            seed=arm.seed,
            baseline=base.name if base else None,
            updates=sum(self._updates.get(name, 0) for name in arm.members),
            device_bytes=max(sizes),
            capacity_bytes=sum(sizes),
            over_arch=over_arch,
            inputs=_inputs_of(arm),
            fitted_on=self._fitted_on(arm, sides),
            test_rows=sides.test.num_rows,
            test_clients=len(np.unique(sides.test.client)),
            joined=measured["joined"],
            mean=measured["mean"],
            median=measured["median"],
            spread=_spread(labels, joined["joined"], sides.test.client),
            in_clusters={
                name: qualities(labels[rows], joined["joined"][rows])
                for name, rows in self._cluster_rows(arm, sides.test).items()
                if rows.any()
            },
            leaves=tuple(self._leaf(arm, place, logits[:, place, 0], sides.test) for place in range(len(arm.members))),
            clusters=() if own is None or len(arm.members) < 2 else _facts(own, sides.test),
            gain=gain,
        )

    def gains(self, found: Mapping[str, ArmQuality]) -> dict[str, dict[str, dict[str, Gain]]]:
        """Every label against its baseline, all seeds together."""
        bases: dict[str, dict[str, list[ArmQuality]]] = {}
        for arm in found.values():
            base = arm if arm.baseline is None and arm.role == "single" else found.get(arm.baseline or "")
            if base is not None:
                bases.setdefault(base.label, {}).setdefault(base.name, []).append(arm)
        told: dict[str, dict[str, dict[str, Gain]]] = {}
        for label, by_seed in bases.items():
            seeds = []
            for base_name, arms in by_seed.items():
                test = self._sides(self._arms[base_name].spec).test
                logits = {
                    f"{arm.label}\n{way}": self._logits[arm.name][way]
                    for arm in arms
                    # of one model, the median is the mean
                    for way in (_WAYS if len(arm.leaves) > 1 else _WAYS[:2])
                }
                seeds.append(Scores(test.arrays["y"], test.client, logits))
            names = list(dict.fromkeys(name for one in seeds for name in one.logits))
            first = self._arms[next(iter(by_seed))].spec
            resamples = 0 if first.ensemble is None else first.ensemble.resamples
            for name, gain in all_gains(seeds, names, f"{label}\njoined", resamples, first.seed).items():
                model, way = name.split("\n")
                told.setdefault(model, {})[way] = gain
        return told

    def notes(self, found: Mapping[str, ArmQuality]) -> list[str]:
        """What every report on such an experiment has to say, label by label."""
        by_label: dict[str, list[ArmQuality]] = {}
        for one in found.values():
            if one.role == "ensemble":
                by_label.setdefault(one.label, []).append(one)
        return [self._note(label, arms) for label, arms in by_label.items()]

    def _note(self, label: str, arms: list[ArmQuality]) -> str:
        first = arms[0]
        arm = self._arms[first.name]
        clustering = self._study.clusterings.get(first.name)
        sizes = ""
        if clustering is not None:
            pairs = list(zip(clustering.names, clustering.sizes, strict=True))
            sizes = ", ".join(f"{name} {size:,}" for name, size in pairs[:20]) + (" …" if len(pairs) > 20 else "")
        seeds = ", ".join(str(one.seed) for one in arms)
        return (
            f"{label}: {len(first.leaves)} clusters by {_rule(arm.spec.clusters)} ({sizes} clients); leaves of kind "
            f"{arm.spec.model.kind} with {first.device_bytes:,} bytes; over-arch {first.over_arch.kind} over "
            f"{first.inputs}, {first.fitted_on}; measured on {first.test_rows:,} rows of {first.test_clients:,} "
            f"clients (seed {first.seed}), split {arm.spec.evaluation.split}; no differential privacy; seeds {seeds}."
        )

    def _sides(self, spec: sp.Spec) -> _Sides:
        key = f"{spec.seed} {spec.evaluation.split} {spec.evaluation.server_share} {source_of(spec)!r}"
        if key not in self._rows:
            data = self._data_of(spec)
            self._rows[key] = _Sides(test_rows(spec, data), server_rows(spec, data))
        return self._rows[key]

    def _stacked(self, arm: EnsembleArm, kind: Inputs, side: int) -> F64:
        """[R, N, K] on test rows (side 0) or server rows (side 1)."""
        return np.stack([self._says(name, kind)[side] for name in arm.members], axis=1)

    def _says(self, member: str, kind: Inputs) -> tuple[F64, F64]:
        key = (member, kind)
        if key not in self._said:
            spec = self._members[member].spec
            model = lane_model_of(spec, self._data_of(spec).shape)
            sides = self._sides(spec)
            test, server = (
                outputs(model, self._models[member], part.arrays, kind=kind) for part in (sides.test, sides.server)
            )
            self._said[key] = (test, server)
        return self._said[key]

    def _bytes(self, member: str) -> int:
        model = self._models[member]
        return int(model.dense.nbytes + sum(table.nbytes for table in model.tables))

    def _over_arch(self, arm: EnsembleArm, sides: _Sides) -> agg.OverArch:
        if arm.name in self._fitted:
            return self._fitted[arm.name]
        settings = over_arch_settings(_ensemble_of(arm).over_arch)
        if isinstance(settings, agg.Mean | agg.Median):
            return agg.fit(settings, np.empty((0, len(arm.members), 1)), np.empty(0, dtype=np.int64), arm.seed)
        return agg.fit(settings, self._stacked(arm, _inputs_of(arm), 1), sides.server.arrays["y"], arm.spec.seed)

    def _fitted_on(self, arm: EnsembleArm, sides: _Sides) -> str:
        if arm.name in self._fitted:
            return "fitted by federated learning"
        if _ensemble_of(arm).over_arch.kind in ("mean", "median"):
            return "not fitted"
        clients = len(np.unique(sides.server.client))
        return f"fitted on {sides.server.num_rows:,} server rows of {clients:,} other clients"

    def _cluster_rows(self, arm: EnsembleArm, test: HeldOut) -> dict[str, npt.NDArray[np.bool_]]:
        """Cluster → which test rows are its own: an ensemble's clusters; of a control, those of all ensembles."""
        own = self._study.clusterings.get(arm.name)
        if own is not None:
            return _rows_of(own, test)
        found = {}
        beside = {
            other.label: self._study.clusterings[other.name]
            for other in self._study.arms
            if other.seed == arm.seed and other.name in self._study.clusterings
        }
        several = len({other.label for other in self._study.arms if other.name in self._study.clusterings}) > 1
        for label, clustering in beside.items():
            for name, rows in _rows_of(clustering, test).items():
                found[f"{label}/{name}" if several else name] = rows
        return found

    def _leaf(self, arm: EnsembleArm, place: int, logits: F64, test: HeldOut) -> LeafQuality:
        name, labels = arm.members[place], test.arrays["y"]
        own = self._study.clusterings.get(arm.name)
        at_home: Quality = {}
        if own is not None and len(arm.members) > 1:
            rows = _rows_of(own, test).get(own.names[place])
            if rows is not None and rows.any():
                at_home = qualities(labels[rows], logits[rows])
        everywhere = qualities(labels, logits)
        updates = self._updates.get(name, 0)
        return LeafQuality(name, arm.clusters[place], updates, self._bytes(name), everywhere, at_home)


def _rows_of(clustering: Clustering, test: HeldOut) -> dict[str, npt.NDArray[np.bool_]]:
    """Nothing for clusters that are of ids, not of the data's clients, and for one cluster alone."""
    if clustering.of_client is None or len(clustering.names) < 2:
        return {}
    known = test.client < len(clustering.of_client)
    cluster = np.where(known, clustering.of_client[np.where(known, test.client, 0)], -1)
    return {name: cluster == number for number, name in enumerate(clustering.names)}


def _facts(clustering: Clustering, test: HeldOut) -> tuple[ClusterFacts, ...]:
    rows = _rows_of(clustering, test)
    return tuple(
        ClusterFacts(name, size, int(rows[name].sum()) if name in rows else 0)
        for name, size in zip(clustering.names, clustering.sizes, strict=True)
    )


def _spread(labels: npt.NDArray[np.int64], logits: F64, client: npt.NDArray[np.int64]) -> dict[str, float]:
    """Percentiles over clients of a client's mean loss."""
    if not len(labels) or not np.isfinite(logits).all():
        return {f"client_loss_p{percent}": math.nan for percent in _PERCENTILES}
    _, place = np.unique(client, return_inverse=True)
    losses = np.bincount(place, weights=np.logaddexp(0.0, logits) - labels * logits) / np.bincount(place)
    return {f"client_loss_p{percent}": float(np.percentile(losses, percent)) for percent in _PERCENTILES}


def _rule(clusters: sp.Clusters) -> str:
    """`attribute age`, `kmeans labels`, `random`."""
    detail = getattr(clusters, "column", None) or getattr(clusters, "on", None) or ""
    return f"{clusters.kind} {detail}".strip()
