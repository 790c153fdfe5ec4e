"""Rules of the `ensemble` section with the others; yields problems as `rules` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from atoll.errors import Problem
from atoll.spec.ensemble import Ensemble, FederatedFit, LogisticOverArch, MlpOverArch
from atoll.spec.execution import Evaluation

__all__ = ["ensemble_findings", "is_fixed"]

#: (paths that the rule reads, the problem)
Finding = tuple[tuple[str, ...], Problem]

#: what all members of an ensemble share
_FIXED = ("name", "seed", "data", "evaluation", "tracking", "runtime", "clusters", "ensemble", "comparison", "privacy")
_OFFERS_PENULTIMATE = ("logistic", "mlp", "wide_deep", "dlrm")


def is_fixed(key: str) -> bool:
    """Whether a dotted key is one that the members of an ensemble share, so that none may override it."""
    return key.split(".")[0] in _FIXED or key in ("population", "population.size")


def ensemble_findings(
    ensemble: Ensemble, evaluation: Evaluation | None, model: Any, is_binary: bool | None
) -> Iterator[Finding]:
    """What the ensemble needs of the other sections; None for a section that is wrong in itself.

    Args:
        ensemble: the section.
        evaluation: the section.
        model: the section.
        is_binary: whether the task is; None where the spec does not say.
    """
    if is_binary is False:
        rule, why = "null for a task of more than two classes", "The over-arch joins one logit per leaf"
        yield (
            ("ensemble", "data.kind", "data.task", "data.classes"),
            Problem("ensemble", f"over_arch {ensemble.over_arch.kind}", rule, why, "Use data with labels 0 and 1"),
        )
    yield from _fit(ensemble, evaluation)
    inputs = getattr(ensemble.over_arch, "inputs", "logits")
    if inputs == "penultimate" and model is not None and model.kind not in _OFFERS_PENULTIMATE:
        rule = f"logits with model.kind {model.kind}; penultimate with {', '.join(_OFFERS_PENULTIMATE)}"
        yield (
            ("ensemble.over_arch.inputs", "model.kind"),
            Problem("ensemble.over_arch.inputs", "penultimate", rule, "The model does not offer these vectors"),
        )
    for name, values in ensemble.leaves.items():
        yield from _keys(f"ensemble.leaves.{name}", values, may_change_model=False)
    for name in ("single", "equal_updates", "random", "large"):
        if values := getattr(ensemble.controls, name):
            yield from _keys(f"ensemble.controls.{name}", values, may_change_model=name == "large")


def _fit(ensemble: Ensemble, evaluation: Evaluation | None) -> Iterator[Finding]:
    over_arch, place = ensemble.over_arch, "ensemble.over_arch.kind"
    if isinstance(ensemble.fit, FederatedFit):
        if not isinstance(over_arch, LogisticOverArch | MlpOverArch):
            rule = "logistic or mlp when ensemble.fit.kind is federated"
            hint = "Set ensemble.fit to {kind: server}, or ensemble.over_arch to {kind: logistic}"
            why = f"{over_arch.kind} has no weights that clients could train"
            yield (place, "ensemble.fit.kind"), Problem(place, over_arch.kind, rule, why, hint)
    elif over_arch.kind not in ("mean", "median") and evaluation is not None and not evaluation.server_share:
        hint = "Set evaluation.server_share, such as 0.2"
        if over_arch.kind != "weighted_mean":
            hint += ", or ensemble.fit to {kind: federated, …}"
        yield (
            (place, "ensemble.fit.kind", "evaluation.server_share"),
            Problem(
                "evaluation.server_share",
                "0",
                f"a share above 0 for over_arch {over_arch.kind} with fit server",
                "The over-arch has no rows to be fitted on: it is never fitted on rows that it is measured on",
                hint,
            ),
        )


def _keys(place: str, values: Mapping[str, Any], *, may_change_model: bool) -> Iterator[Finding]:
    for key in values:
        if is_fixed(key):
            rule = f"a key outside {', '.join(_FIXED)} and population.size"
            yield (place,), Problem(place, key, rule, "Leaves and controls share these, or they could not be compared")
        elif key.split(".")[0] == "model" and not may_change_model:
            rule, hint = "a key outside model", "ensemble.controls.large may change it"
            yield (place,), Problem(place, key, rule, "Leaves and controls have one architecture and size", hint)
