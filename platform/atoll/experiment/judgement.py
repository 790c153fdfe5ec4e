"""What an ensemble and its controls came to: every number, and the tables made of them. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.aggregation import OverArch
from atoll.evaluation.bootstrap import QUALITIES, Gain
from atoll.tracking import Spread
from atoll.tracking.ensemble_report import PROTOCOL, ClusterRow, EnsembleReport, ReportGain, ReportRow

__all__ = ["ArmQuality", "ClusterFacts", "Judgement", "LeafQuality"]

#: metric → value; NaN where it is not defined
Quality = Mapping[str, float]
_WAYS = {"mean": "mean", "median": "median"}


@dataclass(frozen=True)
class LeafQuality:
    """One model of an arm alone, as it was trained.

    Attributes:
        member: its name.
        cluster: whose clients it was trained on; empty for all.
        updates: client updates.
        bytes: of its weights.
        everywhere: on all test rows.
        at_home: on the test rows of its cluster; empty where test clients belong to none.
    """

    member: str
    cluster: str
    updates: int
    bytes: int
    everywhere: Quality
    at_home: Quality = field(default_factory=dict)


@dataclass(frozen=True)
class ClusterFacts:
    """One cluster of an ensemble: its clients in the population, and the test rows of its clients."""

    name: str
    clients: int
    test_rows: int


@dataclass(frozen=True)
class ArmQuality:
    """An ensemble, or a control, of one seed.

    Attributes:
        name, label, role, seed, baseline: as in the study; `baseline` None where it was left out or is none.
        updates: client updates of all members.
        device_bytes: weights of the largest member: what a device holds.
        capacity_bytes: weights of all members: what the server holds.
        over_arch: what joins the members.
        inputs: logits or penultimate.
        fitted_on: what the over-arch was fitted on, in words.
        test_rows, test_clients: what everything is measured on.
        joined: by the over-arch.
        mean, median: of the members' logits, as they are.
        spread: client_loss_p10, _p50, _p90 of `joined`.
        in_clusters: cluster → `joined` on its rows. Of a control: of every ensemble of its seed, the ensemble's label
            before the cluster's name where there are several.
        leaves: the members alone.
        clusters: of an ensemble.
        gain: of `joined` over the baseline's `joined`, within this seed.
    """

    name: str
    label: str
    role: str
    seed: int
    baseline: str | None
    updates: int
    device_bytes: int
    capacity_bytes: int
    over_arch: OverArch
    inputs: str
    fitted_on: str
    test_rows: int
    test_clients: int
    joined: Quality
    mean: Quality
    median: Quality
    spread: Quality
    in_clusters: Mapping[str, Quality]
    leaves: tuple[LeafQuality, ...]
    clusters: tuple[ClusterFacts, ...]
    gain: Quality

    def metrics(self) -> dict[str, float]:
        """Flat and finite, for MLflow: ens/auc, ens/mean/auc, ens/cluster/NAME/auc, leaf/NAME/auc, gain/auc."""
        found: dict[str, float] = {
            "ens/models": len(self.leaves),
            "ens/client_updates": self.updates,
            "ens/device_bytes": self.device_bytes,
            "ens/capacity_bytes": self.capacity_bytes,
        }
        groups: dict[str, Quality] = {"ens": {**self.joined, **self.spread}, "gain": self.gain}
        groups |= {"ens/mean": self.mean, "ens/median": self.median}
        groups |= {f"ens/cluster/{name}": quality for name, quality in self.in_clusters.items()}
        for leaf in self.leaves:
            groups[f"leaf/{leaf.cluster or 'all'}"] = leaf.everywhere
            groups[f"leaf/{leaf.cluster or 'all'}/home"] = leaf.at_home
        for group, quality in groups.items():
            found |= {f"{group}/{name}": value for name, value in quality.items() if math.isfinite(value)}
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; None for what is not defined. `OverArch.from_arrays` reads the over-arch back."""
        plain = {key: value for key, value in vars(self).items() if key not in ("over_arch", "leaves", "clusters")}
        arrays = {name: array.tolist() for name, array in self.over_arch.arrays().items()}
        over_arch = {
            "kind": self.over_arch.kind,
            "inputs": self.inputs,
            "digest": self.over_arch.digest,
            "arrays": arrays,
        }
        plain["members"] = [leaf.member for leaf in self.leaves]
        leaves, clusters = [vars(leaf) for leaf in self.leaves], [vars(one) for one in self.clusters]
        found: dict[str, Any] = _plain({**plain, "over_arch": over_arch, "leaves": leaves, "clusters": clusters})
        return found


@dataclass(frozen=True)
class Judgement:
    """An ensemble beside its controls, over all arms and seeds.

    Attributes:
        arms: those whose members are all there, in the study's order.
        gains: label → joined, mean or median → metric → gain over the baseline of each seed, all seeds together.
        left_out: arm → why it is not here.
        notes: what was measured on what, one line per ensemble.
    """

    arms: tuple[ArmQuality, ...]
    gains: Mapping[str, Mapping[str, Mapping[str, Gain]]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def over_archs(self) -> dict[str, OverArch]:
        """Arm → what joins its members."""
        return {arm.name: arm.over_arch for arm in self.arms}

    @property
    def rows(self) -> tuple[ReportRow, ...]:
        """The table: the baseline first, then label by label, the over-arch before mean and median."""
        by_label = self._by_label()
        bases = {arm.baseline for arm in self.arms}
        order = sorted(by_label, key=lambda label: not any(arm.name in bases for arm in by_label[label]))
        rows: list[ReportRow] = []
        for label in order:
            arms = by_label[label]
            is_baseline = any(arm.name in bases for arm in arms)
            kind = arms[0].over_arch.kind.replace("_", " ")
            ways = {"joined": kind}
            if len(arms[0].leaves) > 1:
                ways |= {way: word for way, word in _WAYS.items() if way != arms[0].over_arch.kind}
            elif is_baseline and kind not in _WAYS:
                ways["mean"] = "as trained"
            rows += [self._row(label, arms, way, word, is_baseline and way == "joined") for way, word in ways.items()]
        return tuple(rows)

    def report(self) -> EnsembleReport:
        """What is shown and written."""
        return EnsembleReport(self.rows, tuple(self._cluster_rows()), self.notes, self.left_out)

    def metrics_of(self, name: str) -> dict[str, float]:
        """Flat metrics of an arm; {} for one that was left out."""
        return next((arm.metrics() for arm in self.arms if arm.name == name), {})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; None for what is not defined."""
        gains = {
            label: {way: {name: _gain_dict(gain) for name, gain in found.items()} for way, found in ways.items()}
            for label, ways in self.gains.items()
        }
        arms = {arm.name: arm.as_dict() for arm in self.arms}
        return {
            "protocol": PROTOCOL,
            "arms": arms,
            "gains": _plain(gains),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }

    def _by_label(self) -> dict[str, list[ArmQuality]]:
        found: dict[str, list[ArmQuality]] = {}
        for arm in self.arms:
            found.setdefault(arm.label, []).append(arm)
        return found

    def _row(self, label: str, arms: Sequence[ArmQuality], way: str, word: str, is_baseline: bool) -> ReportRow:
        gains = self.gains.get(label, {}).get(way, {})
        return ReportRow(
            label=label,
            joined=word,
            models=len(arms[0].leaves),
            client_updates=statistics.median(arm.updates for arm in arms),
            device_bytes=arms[0].device_bytes,
            capacity_bytes=arms[0].capacity_bytes,
            quality={name: _spread([getattr(arm, way)[name] for arm in arms]) for name in QUALITIES},
            gain={name: ReportGain(one.value, one.low, one.high, one.by_seed) for name, one in gains.items()},
            num_seeds=len(arms),
            is_baseline=is_baseline,
        )

    def _cluster_rows(self) -> list[ClusterRow]:
        arms = {arm.name: arm for arm in self.arms}
        rows = []
        for label, found in self._by_label().items():
            for place, cluster in enumerate(found[0].clusters):
                # One ensemble of several may have been left out: how a control names its rows is the study's choice.
                key = f"{label}/{cluster.name}"
                bases = [arms[arm.baseline].in_clusters for arm in found if arm.baseline in arms]
                rows.append(
                    ClusterRow(
                        label=label,
                        cluster=cluster.name,
                        clients=cluster.clients,
                        rows=statistics.median(arm.clusters[place].test_rows for arm in found),
                        leaf=_medians([arm.leaves[place].everywhere for arm in found]),
                        leaf_at_home=_medians([arm.leaves[place].at_home for arm in found]),
                        single=_medians([base.get(key, base.get(cluster.name, {})) for base in bases]),
                        joined=_medians([arm.in_clusters.get(cluster.name, {}) for arm in found]),
                    )
                )
        return rows


def _medians(found: Sequence[Quality]) -> dict[str, float]:
    names = dict.fromkeys(name for quality in found for name in quality)
    return {name: _spread([quality.get(name, math.nan) for quality in found]).median for name in names}


def _spread(values: Sequence[float]) -> Spread:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(statistics.median(known), min(known), max(known))


def _gain_dict(gain: Gain) -> dict[str, Any]:
    known = {"value": gain.value, "low": gain.low, "high": gain.high, "by_seed": list(gain.by_seed)}
    return {**known, "left_out": gain.left_out}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
