"""What can be exported: a finished run, or an arm of a finished ensemble, as one torch module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from atoll import models as mo
from atoll import spec as sp
from atoll.aggregation import OverArch
from atoll.data import ClientData, open_data
from atoll.errors import Problem, SpecError
from atoll.experiment.modelling import lane_model_of, shape_of
from atoll.experiment.records import COMPARISON_FILE, ENSEMBLE_FILE, RESULT_FILE, load, short
from atoll.experiment.wiring import source_of
from atoll.messages import ModelVersion, model_digest

if TYPE_CHECKING:
    import torch

__all__ = ["Exportable", "exportable"]


@dataclass(frozen=True)
class Exportable:
    """A trained model and where it comes from.

    Attributes:
        name: of the run, or of the ensemble and its arm.
        module: from (x) or (x, c) to probabilities.
        data: what it was trained on.
        kind: of data, as the spec says.
        digests: of each model inside, and of the over-arch.
        num_leaves: models inside.
        server_steps: of an ordinary run; 0 for an ensemble, whose models differ.
        uri, experiment: where it is logged.
        run_id: in MLflow; None: to be found by `run_key`.
        run_key: of the arm's MLflow run; empty for an ordinary run.
    """

    name: str
    module: torch.nn.Module
    data: ClientData
    kind: str
    digests: tuple[str, ...]
    num_leaves: int
    server_steps: int
    uri: str
    experiment: str
    run_id: str | None
    run_key: str = ""


def exportable(folder: Path, arm: str | None, runs_folder: str | Path) -> Exportable:
    """Loads what lies in the folder of a finished run or ensemble.

    Args:
        folder: of either.
        arm: of an ensemble, by name; None: its only ensemble.
        runs_folder: where runs lie.

    Raises:
        SpecError: it is not finished, is a comparison, or does not say which arm.
    """
    if (folder / ENSEMBLE_FILE).is_file():
        return _joined(folder, arm)
    if arm is not None:
        raise SpecError([Problem("arm", repr(arm), "no arm for one run", "arms are those of an ensemble")])
    if not (folder / COMPARISON_FILE).is_file():
        return _single(folder, runs_folder)
    if sp.load(folder / "spec.yaml").ensemble is not None:
        why, hint = "this one is not", f"atoll resume {short(folder)} goes on with it"
        raise SpecError([Problem("run", repr(short(folder)), "a finished ensemble", why, hint)])
    hint = f"such as {', '.join(short(path.parent) for path in sorted(folder.glob(f'*/{RESULT_FILE}'))[:3])}"
    raise SpecError([Problem("run", repr(short(folder)), "one run", "this is a comparison of several", hint)])


def _single(folder: Path, runs_folder: str | Path) -> Exportable:
    from atoll.models.ensemble_module import Probabilities

    finished = load(folder, runs_folder)
    spec = sp.load(folder / "spec.yaml")
    data, version = open_data(source_of(spec)), finished.model()
    return Exportable(
        name=finished.name,
        module=Probabilities(_leaf(spec, data, version, is_penultimate=False)),
        data=data,
        kind=spec.data.kind,
        digests=(model_digest(version),),
        num_leaves=1,
        server_steps=finished.server_steps,
        uri=finished.tracking_uri,
        experiment=finished.experiment,
        run_id=finished.run_id,
    )


def _joined(folder: Path, wanted: str | None) -> Exportable:
    from atoll.models.ensemble_module import Probabilities

    spec = sp.load(folder / "spec.yaml")
    arm = _arm(folder, wanted)
    specs = [sp.load(folder / name / "spec.yaml") for name in arm["members"]]
    data = open_data(source_of(specs[0]))
    paths = (folder / name / "model.safetensors" for name in arm["members"])
    versions = [mo.load_version(path, shape_of(one, data.shape)) for path, one in zip(paths, specs, strict=True)]
    over_arch, plain = _over_arch(arm["over_arch"]), arm["over_arch"]
    is_penultimate = plain.get("inputs") == "penultimate"
    leaves = [
        _leaf(*one, is_penultimate=is_penultimate) for one in zip(specs, [data] * len(specs), versions, strict=True)
    ]
    parent = json.loads((folder / COMPARISON_FILE).read_text())
    return Exportable(
        name=f"{spec.name}-{arm['name']}",
        module=Probabilities(_module(leaves, over_arch)),
        data=data,
        kind=specs[0].data.kind,
        digests=(*map(model_digest, versions), over_arch.digest),
        num_leaves=len(leaves),
        server_steps=0,
        uri=spec.tracking.uri,
        experiment=spec.tracking.experiment or spec.name,
        run_id=None,
        run_key=f"{parent['run_key']}-{arm['name']}",
    )


def _arm(folder: Path, wanted: str | None) -> Mapping[str, Any]:
    """The arm of that name; without a name, the only one that is an ensemble."""
    judgement: dict[str, Any] = json.loads((folder / ENSEMBLE_FILE).read_text())["judgement"]
    arms: dict[str, dict[str, Any]] = judgement["arms"]
    found = [name for name, arm in arms.items() if (name == wanted if wanted else arm["role"] == "ensemble")]
    if len(found) != 1:
        got = repr(wanted) if wanted else f"none of {len(found)} ensembles"
        why = judgement["left_out"].get(wanted, "")
        hint = f"one of {', '.join(arms)}"
        raise SpecError([Problem("arm", got, f"the name of an arm of {short(folder)}", why, hint)])
    return arms[found[0]]


def _over_arch(plain: Mapping[str, Any]) -> OverArch:
    arrays = {name: np.array(values, dtype=np.float64) for name, values in plain["arrays"].items()}
    return OverArch.from_arrays(plain["kind"], arrays)


def _leaf(spec: sp.Spec, data: ClientData, version: ModelVersion, *, is_penultimate: bool) -> torch.nn.Module:
    from atoll.models.ensemble_module import Penultimate

    model = lane_model_of(spec, data.shape)
    return Penultimate(model, version) if is_penultimate else mo.load_module(model.module(), model, version)


def _module(leaves: list[torch.nn.Module], over_arch: OverArch) -> torch.nn.Module:
    from atoll.models.ensemble_module import EnsembleModule

    if over_arch.kind == "mean" or over_arch.kind == "median":
        return EnsembleModule(leaves, over_arch.kind)
    if over_arch.kind == "weighted_mean":
        return EnsembleModule(leaves, "layers", [(over_arch.weights[None], np.zeros(1))])
    return EnsembleModule(leaves, "layers", over_arch.layers)
