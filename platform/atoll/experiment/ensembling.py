"""Ensembles: leaves of disjoint clusters and their controls, run together, then joined and judged.

Every model is an ordinary run in a folder of its own below the ensemble's, so that a leaf has the bits that it has
alone, and whatever is killed goes on where it stopped. What is left is a pure function of their models.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atoll import spec as sp
from atoll.errors import Interrupted, Problem, SpecError
from atoll.experiment.comparing import check_comparable
from atoll.experiment.finishing import observing
from atoll.experiment.modelling import shape_of
from atoll.experiment.opened import data_of, opened_once
from atoll.experiment.parents import begin_parent, begun_folder, named_folder, not_all_finished
from atoll.experiment.places import check_places, only_one
from atoll.experiment.planning import PlanReport, SpecLike, as_spec, plan
from atoll.experiment.records import COMPARISON_FILE, ENSEMBLE_FILE, RUNS_FOLDER, Run
from atoll.experiment.running import Wanted, pinned, run_together
from atoll.experiment.sessions import session_for, store_bytes_of
from atoll.experiment.study import EnsembleArm, Member, Study, study_of
from atoll.experiment.working import Ended
from atoll.messages import ModelVersion
from atoll.models import load_version
from atoll.runtime.store import LocalFiles
from atoll.tracking import MlflowTracker, Row, RunInfo, flatten_params, summary_tags

if TYPE_CHECKING:
    from atoll.aggregation import OverArch
    from atoll.experiment.judging import Judgement

__all__ = ["EnsemblePlan", "EnsembleRun", "plan_ensemble", "resume_ensemble", "run_ensemble"]

_log = logging.getLogger(__name__)
_REPORT_FOLDER, _OVER_ARCH_FOLDER = "ensemble", "over-archs"
#: (what is run now, names of the runs) → a progress callback for them, or none
OnGroup = Callable[[str, Sequence[tuple[str, sp.Spec]]], Callable[[list[dict[str, float]]], None] | None]


@dataclass(frozen=True)
class EnsemblePlan:
    """What an ensemble and its controls would do.

    Attributes:
        study: members and arms.
        reports: member → its plan.
    """

    study: Study
    reports: Mapping[str, PlanReport]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        members = {
            one.name: {"role": one.role, "cluster": one.cluster, "seed": one.seed, **self.reports[one.name].as_dict()}
            for one in self.study.members
        }
        arms = {one.name: {"role": one.role, "seed": one.seed, "members": one.members} for one in self.study.arms}
        return {"members": members, "arms": arms}


@dataclass(frozen=True)
class EnsembleRun:
    """A finished ensemble.

    Attributes:
        folder: of the ensemble; every member's folder is inside.
        judgement: arms beside one another, with intervals.
        runs: member → its run.
        html, csv: the report's files.
        parent_run_id: the MLflow run that holds them all.
        tracking_uri, experiment: where it is logged.
    """

    folder: str
    judgement: Judgement
    runs: Mapping[str, Run]
    html: str
    csv: str
    parent_run_id: str
    tracking_uri: str
    experiment: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "folder": self.folder,
            "parent_run_id": self.parent_run_id,
            "html": self.html,
            "csv": self.csv,
            "runs": {name: one.as_dict() for name, one in self.runs.items()},
            **self.judgement.as_dict(),
        }


# ---- plan -----------------------------------------------------------------------------------------------------------


@opened_once()
def plan_ensemble(spec: SpecLike, *overrides: str) -> EnsemblePlan:
    """Plans every leaf and every control, without training anything.

    Args:
        spec: with an `ensemble`; with a `comparison` for all its arms and seeds.
        overrides: `dotted.key=value`.

    Raises:
        SpecError: what is wrong with any of them, once each.
    """
    resolved = as_spec(spec, overrides)
    study = study_of(resolved, data_of)
    problems: dict[str, Problem] = {}
    reports: dict[str, PlanReport] = {}
    for member in study.members:
        try:
            reports[member.name] = plan(member.spec)
        except SpecError as error:
            problems.update({str(problem): problem for problem in error.problems})
    if problems:
        raise SpecError(list(problems.values()))
    return EnsemblePlan(study, reports)


# ---- run ------------------------------------------------------------------------------------------------------------


@opened_once()
def run_ensemble(
    spec: SpecLike,
    *overrides: str,
    key: str | None = None,
    on_group: OnGroup | None = None,
    runs_folder: str | Path = RUNS_FOLDER,
) -> EnsembleRun:
    """Trains all leaves and controls, fits the over-archs, compares.

    The leaves of one ensemble train at the same time on shared workers; one that fails does not take the others down.

    Args:
        spec: with an `ensemble`; with a `comparison` for all its arms and seeds.
        overrides: `dotted.key=value`.
        key: names the ensemble: begun once under it, it goes on when it is started again.
        on_group: called before each group of runs with a label and (name, spec) of each; may return what is to be
            called with figures for a display.
        runs_folder: where the ensemble's folder is made.

    Raises:
        SpecError, PlanError: any of the runs is refused; nothing has started then.
        MembersFailed: some runs did not finish; the others did, and `resume_ensemble` goes on with these alone.
        Interrupted: stopped; everything up to a step boundary is kept.
    """
    resolved = pinned(as_spec(spec, overrides))
    check_places(resolved, runs_folder)
    folder, is_begun = named_folder(key, resolved, Path(runs_folder))
    if folder is not None and is_begun:
        return resume_ensemble(folder, on_group=on_group)
    planned = plan_ensemble(resolved)
    with begun_folder(folder, resolved, Path(runs_folder)) as place:
        return _run(place, resolved, planned, on_group)


@opened_once()
def resume_ensemble(folder: Path, *, on_group: OnGroup | None = None) -> EnsembleRun:
    """Goes on with an ensemble: runs that are finished stay, those that were stopped or failed go on."""
    resolved = sp.load(folder / "spec.yaml")
    with only_one(folder):
        return _run(folder, resolved, plan_ensemble(resolved), on_group)


def _run(folder: Path, spec: sp.Spec, planned: EnsemblePlan, on_group: OnGroup | None) -> EnsembleRun:
    tracker = MlflowTracker(spec.tracking.uri, spec.tracking.artifacts)
    parent_id = begin_parent(folder, spec, tracker, num_runs=len(planned.study.members))
    try:
        needs = {member: store_bytes_of(report) for member, report in planned.reports.items()}
        most = max(sum(needs[member.name] for member in group) for _, group in _groups(planned.study))
        with session_for(spec, most) as session:
            shop = _Workshop(folder, parent_id, session, on_group)
            runs = _train(shop, planned.study)
            models = _models(folder, planned.study)
            over_archs = _fit_by_fl(shop, planned.study, models)
        found = _join(folder, spec, planned.study, runs, models, over_archs, parent_id)
        stamp_ms = _keep(folder, found)
    except BaseException as error:
        with observing():
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    with observing():
        _tell(spec, planned.study, found, tracker, folder, stamp_ms)
        _keep(folder, found, is_told=True)
    return found


@dataclass(frozen=True)
class _Workshop:
    """Where the runs of an ensemble are worked on.

    Attributes:
        folder: of the ensemble.
        parent_id: MLflow run above them.
        session: shared workers.
        on_group: told before each group.
    """

    folder: Path
    parent_id: str
    session: Any
    on_group: OnGroup | None

    def work(self, label: str, runs: Sequence[tuple[str, str, sp.Spec]]) -> dict[str, Ended]:
        """(folder, arm, spec) of each, all at the same time; how each ended.

        Raises:
            Interrupted: stopped.
        """
        wanted = [
            Wanted(self.folder / name, spec, f"{self.folder.name}.{name}", arm, self.parent_id, self.folder, False)
            for name, arm, spec in runs
        ]
        note = None if self.on_group is None else self.on_group(label, [(name, spec) for name, _, spec in runs])
        found = run_together(wanted, on_progress=note, session=self.session, runs_folder=self.folder)
        if stopped := next((one for one in found if isinstance(one, Interrupted)), None):
            raise stopped
        return {name: one for (name, _, _), one in zip(runs, found, strict=True)}

    def finished(self, ended: Mapping[str, Ended]) -> dict[str, Run]:
        """All of them.

        Raises:
            MembersFailed: some did not finish.
            SpecError: one was resumed by force.
        """
        failed = {name: one for name, one in ended.items() if not isinstance(one, Run)}
        if failed:
            raise not_all_finished(self.folder, failed, len(ended))
        runs = {name: one for name, one in ended.items() if isinstance(one, Run)}
        for one in runs.values():
            check_comparable(one)
        return runs


def _train(shop: _Workshop, study: Study) -> dict[str, Run]:
    """Every member, group by group; one that fails does not keep the others from finishing."""
    ended: dict[str, Ended] = {}
    for label, group in _groups(study):
        ended |= shop.work(label, [(one.name, one.arm, one.spec) for one in group])
    return shop.finished(ended)


def _models(folder: Path, study: Study) -> dict[str, ModelVersion]:
    """Member → its final weights."""
    return {
        member.name: load_version(
            folder / member.name / "model.safetensors", shape_of(member.spec, data_of(member.spec).shape)
        )
        for member in study.members
    }


def _is_federated(arm: EnsembleArm) -> bool:
    return arm.spec.ensemble is not None and isinstance(arm.spec.ensemble.fit, sp.FederatedFit)


def _fit_by_fl(shop: _Workshop, study: Study, models: Mapping[str, ModelVersion]) -> dict[str, OverArch]:
    """Over-archs that clients fit, the leaves frozen: ordinary runs too, those of one seed at the same time.

    An arm of which a leaf has diverged gets none, and is left out of the judgement.
    """
    wanted = [arm for arm in study.arms if _is_federated(arm)]
    if not wanted:
        return {}
    from atoll.experiment.federated_fit import over_arch_from, over_arch_spec, write_leaf_outputs

    place = shop.folder / _OVER_ARCH_FOLDER
    sources = {}
    for arm in wanted:
        try:
            sources[arm.name] = write_leaf_outputs(arm, study.members, data_of(arm.spec), models, place)
        except SpecError as error:
            _log.warning("%s", error)
    arms = [arm for arm in wanted if arm.name in sources]
    specs = {f"over-arch-{arm.name}": over_arch_spec(arm, sources[arm.name]) for arm in arms}
    ended: dict[str, Ended] = {}
    for seed in dict.fromkeys(arm.seed for arm in arms):
        runs = [(name, arm.label, specs[name]) for arm, name in zip(arms, specs, strict=True) if arm.seed == seed]
        ended |= shop.work(f"over-archs, seed {seed}", runs)
    shop.finished(ended)
    found = {}
    for arm, (name, spec) in zip(arms, specs.items(), strict=True):
        version = load_version(shop.folder / name / "model.safetensors", shape_of(spec, data_of(spec).shape))
        found[arm.name] = over_arch_from(version, arm, sources[arm.name])
    return found


def _groups(study: Study) -> list[tuple[str, list[Member]]]:
    """What trains at the same time: the leaves of one ensemble; the models of one seed that stand alone."""
    members = {member.name: member for member in study.members}
    groups: dict[str, list[Member]] = {}
    for arm in study.arms:
        label = arm.name if len(arm.members) > 1 else f"single models, seed {arm.seed}"
        for name in arm.members:
            if name in members:
                groups.setdefault(label, []).append(members.pop(name))
    return list(groups.items())


# ---- join -----------------------------------------------------------------------------------------------------------


def _join(
    folder: Path,
    spec: sp.Spec,
    study: Study,
    runs: Mapping[str, Run],
    models: Mapping[str, ModelVersion],
    over_archs: Mapping[str, OverArch],
    parent_id: str,
) -> EnsembleRun:
    """Over-archs, metrics, intervals, report: a pure function of the members' models."""
    from atoll.experiment.judging import judge, write_report

    updates = {name: one.client_updates for name, one in runs.items()}
    judgement = judge(study, data_of, models, updates, over_archs)
    html, csv = write_report(judgement, folder / _REPORT_FOLDER, spec.name)
    uri, experiment = spec.tracking.uri, spec.tracking.experiment or spec.name
    return EnsembleRun(str(folder), judgement, dict(runs), str(html), str(csv), parent_id, uri, experiment)


def _keep(folder: Path, found: EnsembleRun, *, is_told: bool = False) -> int:
    """Writes the judgement into the folder; returns its timestamp in ms, the first one where it was there before.

    MLflow takes a row with another timestamp for another row.
    """
    path = folder / ENSEMBLE_FILE
    stamp_ms = time.time_ns() // 1_000_000
    if path.is_file():
        stamp_ms = json.loads(path.read_text())["timestamp_ms"]
    facts = {"timestamp_ms": stamp_ms, "is_told": is_told, "judgement": found.judgement.as_dict()}
    LocalFiles(folder).write(ENSEMBLE_FILE, json.dumps(facts, indent=2).encode())
    return int(stamp_ms)


# ---- tell -----------------------------------------------------------------------------------------------------------


def _tell(spec: sp.Spec, study: Study, found: EnsembleRun, tracker: MlflowTracker, folder: Path, stamp_ms: int) -> None:
    """An MLflow run per arm, and the report with the parent; may be done again."""
    run_key = json.loads((folder / COMPARISON_FILE).read_text())["run_key"]
    for arm in study.arms:
        own = MlflowTracker(spec.tracking.uri, spec.tracking.artifacts)
        own.start(_arm_info(spec, arm, f"{run_key}-{arm.name}", found.parent_run_id))
        metrics = found.judgement.metrics_of(arm.name)
        own.publish([Row(key, 0, value, stamp_ms) for key, value in sorted(metrics.items())])
        own.finish("FINISHED")
    tracker.artifact(folder / _REPORT_FOLDER)
    tracker.artifact(folder / "spec.yaml")
    tracker.finish("FINISHED")


def _arm_info(spec: sp.Spec, arm: EnsembleArm, run_key: str, parent_id: str) -> RunInfo:
    ensemble = sp.to_dict(arm.spec)["ensemble"]
    params = flatten_params({"over_arch": ensemble["over_arch"], "fit": {"kind": ensemble["fit"]["kind"]}})
    params |= {"members": ", ".join(arm.members)[:500], "models": str(len(arm.members))}
    tags = summary_tags(arm.label, arm.seed) | {"fl.role": arm.role}
    name = f"{spec.name}-{arm.name}-joined"
    return RunInfo(spec.tracking.experiment or spec.name, name[:250], run_key, params, tags, parent_id)
