"""Which held-out rows are measured on, and which are the server's: no row is both, and no client has rows in both."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll import spec as sp
from atoll.data import ClientData, HeldOut
from atoll.errors import Problem

__all__ = ["server_rows", "split_problems", "test_rows"]

_PURPOSE = "server_share"
#: training rows of all clients together that leaves are asked about
_MOST_ROWS = 50_000_000
#: generated clients are counted one by one
_MOST_GENERATED = 1_000_000


def test_rows(spec: sp.Spec, data: ClientData) -> HeldOut:
    """The rows of `evaluation.split` that models and ensembles are measured on: all but the server's.

    Guarantees: with `server_rows` they are the whole split, each row once, in the split's order; the rows of one client
    are all on one side, which depends on (spec.seed, client) alone, and a larger share only adds clients to the server.

    Purity: pure.
    """
    held_out = data.held_out()[spec.evaluation.split]
    return held_out if not spec.evaluation.server_share else _part(held_out, ~_is_servers(spec, held_out))


def server_rows(spec: sp.Spec, data: ClientData) -> HeldOut:
    """The rows that an over-arch is fitted on: those of the clients of `evaluation.server_share`.

    Guarantees: see `test_rows`.

    Purity: pure.
    """
    held_out = data.held_out()[spec.evaluation.split]
    return _part(held_out, _is_servers(spec, held_out))


def split_problems(spec: sp.Spec, data: ClientData) -> list[Problem]:
    """What keeps the split from serving, with counts; a split that is not there at all is told elsewhere.

    With an ensemble, test rows of both classes are needed, and server rows of both where the over-arch is fitted on
    them; where it is fitted by federated learning, clients that are enough and not too many. Without, test rows.

    Purity: pure.
    """
    held_out = data.held_out().get(spec.evaluation.split)
    problems = _fit_problems(spec, data)
    if held_out is None or not held_out.num_rows:
        return problems
    ensemble = spec.ensemble
    if ensemble is not None and data.shape.task != "binary":
        got, why = f"{data.shape.num_classes} classes", "The over-arch joins one logit per leaf"
        return [Problem("ensemble", got, "a binary task", why)]
    is_fitted_here = (
        ensemble is not None and ensemble.fit.kind == "server" and ensemble.over_arch.kind not in ("mean", "median")
    )
    clients = len(np.unique(held_out.client))
    sides = {"test": (test_rows(spec, data), ensemble is not None)}
    if is_fitted_here:
        sides["the server"] = (server_rows(spec, data), True)
    for name, (part, needs_both) in sides.items():
        labels = np.bincount(part.arrays["y"], minlength=2)
        if part.num_rows and not (needs_both and len(np.flatnonzero(labels)) < 2):
            continue
        got = f"{spec.evaluation.server_share:g}, which leaves {name} {part.num_rows} rows of "
        got += f"{len(np.unique(part.client))} of {clients} clients"
        if part.num_rows:
            got += f", all of class {int(labels.argmax())}"
        rule = "rows of both classes for test and for the server" if needs_both else "rows for test"
        why = "An over-arch is fitted on the server's rows and measured on the others" if needs_both else ""
        hint = f"Set another share, or another split; {spec.evaluation.split} has {held_out.num_rows} rows"
        problems.append(Problem("evaluation.server_share", got, rule, why, hint))
    return problems


def _fit_problems(spec: sp.Spec, data: ClientData) -> list[Problem]:
    """What keeps an over-arch from being fitted by federated learning."""
    if spec.ensemble is None or not isinstance(spec.ensemble.fit, sp.FederatedFit):
        return []
    counts, problems = data.counts(), []
    why = "What the leaves say of every row is computed before"
    if counts is None and data.num_clients > _MOST_GENERATED:
        got, rule = f"federated over {data.num_clients:,} generated clients", f"at most {_MOST_GENERATED:,}"
        problems.append(Problem("ensemble.fit", got, rule, why, "Lower population.size, or fit on the server"))
    elif counts is not None and int(counts.sum()) > _MOST_ROWS:
        got, rule = f"federated over {int(counts.sum()):,} training rows", f"at most {_MOST_ROWS:,}"
        problems.append(Problem("ensemble.fit", got, rule, why, "Fit on the server"))
    schedule = spec.ensemble.fit.schedule
    if isinstance(schedule, sp.AsyncSchedule):
        name, needed = "concurrency", schedule.concurrency
    else:
        # 1e-9: 100 · 1.1 is 110.00000000000001 in floating point, and that is 110 tasks
        name, needed = "cohort", math.ceil(schedule.cohort * (1 + schedule.over_selection) - 1e-9)
    size = data.num_clients if spec.population.size == "data" else spec.population.size
    if needed > size:
        path, rule = f"ensemble.fit.schedule.{name}", f"at most the population's {size} clients"
        problems.append(Problem(path, f"{needed} tasks at once", rule, "There are not that many different clients"))
    return problems


def _is_servers(spec: sp.Spec, held_out: HeldOut) -> npt.NDArray[np.bool_]:
    chance = rng.uniform(rng.key(spec.seed, _PURPOSE), held_out.client)
    return np.asarray(chance < spec.evaluation.server_share, dtype=np.bool_)


def _part(held_out: HeldOut, chosen: npt.NDArray[np.bool_]) -> HeldOut:
    arrays = {name: values[chosen] for name, values in held_out.arrays.items()}
    return HeldOut(arrays, held_out.client[chosen], held_out.train_examples[chosen])
