"""Which held-out rows are measured on, and which are the server's: no row is both, and no client has rows in both."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll import spec as sp
from atoll.data import ClientData, HeldOut
from atoll.errors import Problem

__all__ = ["server_rows", "split_problems", "test_rows"]

_PURPOSE = "server_share"


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
    them. Without, test rows.

    Purity: pure.
    """
    held_out = data.held_out().get(spec.evaluation.split)
    if held_out is None or not held_out.num_rows:
        return []
    problems: list[Problem] = []
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


def _is_servers(spec: sp.Spec, held_out: HeldOut) -> npt.NDArray[np.bool_]:
    chance = rng.uniform(rng.key(spec.seed, _PURPOSE), held_out.client)
    return np.asarray(chance < spec.evaluation.server_share, dtype=np.bool_)


def _part(held_out: HeldOut, chosen: npt.NDArray[np.bool_]) -> HeldOut:
    arrays = {name: values[chosen] for name, values in held_out.arrays.items()}
    return HeldOut(arrays, held_out.client[chosen], held_out.train_examples[chosen])
