"""What a run was begun with, kept in its journal, and what differs when somebody wants to go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.data import ClientData
from atoll.errors import Problem, SpecError
from atoll.experiment.clustering import cluster_inputs
from atoll.plan import profile_digest
from atoll.runtime.software import software

__all__ = ["Birth", "born", "differences"]

#: sections whose change leaves the state in a snapshot usable, so that `--force` can go on
_FORCEABLE = ("client", "evaluation")


@dataclass(frozen=True, slots=True)
class Birth:
    """What decided the bits of a run when it was begun.

    Attributes:
        spec: the resolved spec, plain values.
        software: name → version or digest, the processor's features included.
        inputs: name → digest of the data's content, and of other files that the plan reads.
        run_key: names the run in the tracking store.
        arm: its arm in a comparison.
        parent_run_id: MLflow run that it belongs to.
    """

    spec: Mapping[str, Any]
    software: Mapping[str, str]
    inputs: Mapping[str, str]
    run_key: str
    arm: str = ""
    parent_run_id: str | None = None

    def to_json(self) -> str:
        """For the journal."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Birth:
        """From the journal."""
        return Birth(**json.loads(text))


def born(spec: sp.Spec, data: ClientData, run_key: str, arm: str, parent_run_id: str | None) -> Birth:
    """The facts of a run that begins now, here."""
    init = spec.model.init_from
    if init is not None and not Path(init).is_file():
        raise SpecError([Problem("model.init_from", repr(init), "a file that exists", hint="bring it back")])
    inputs = {
        "data": data.identity,
        "profile table": profile_digest(),
        "model.init_from": "none" if init is None else hashlib.sha256(Path(init).read_bytes()).hexdigest(),
        **cluster_inputs(spec, data),
    }
    return Birth(sp.to_dict(spec), dict(software()), inputs, run_key, arm, parent_run_id)


def differences(old: Birth, new: Birth, old_spec: sp.Spec, new_spec: sp.Spec) -> tuple[list[Problem], list[Problem]]:
    """(what forbids going on, what `--force` may pass over), everything that would change a bit.

    `stop` and `tracking` may change, and of `runtime` all but lanes and device_class.
    """
    fatal: list[Problem] = []
    forceable: list[Problem] = []
    before, after = (dict(_flat(sp.identity(spec))) for spec in (old_spec, new_spec))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) == after.get(key):
            continue
        was, now = (_shown(values, key) for values in (before, after))
        may_force = key.split(".")[0] in _FORCEABLE
        hint = "begin a new run"
        if may_force:
            hint += ", or --force goes on and marks the result as not comparable"
        problem = Problem(
            key, now, f"{was}, as the run was begun", "only stop, tracking and the rest of runtime may change", hint
        )
        (forceable if may_force else fatal).append(problem)
    # Where the spec itself asks for other data, their content needs no second problem.
    for name in () if fatal else sorted(old.inputs.keys() | new.inputs.keys()):
        was, now = old.inputs.get(name, "nothing"), new.inputs.get(name, "nothing")
        if was != now:
            why = "its content has changed since the run was begun"
            fatal.append(Problem(name, f"content {now[:12]}", f"content {was[:12]}", why, "bring the old file back"))
    for name in sorted(old.software.keys() | new.software.keys()):
        was, now = old.software.get(name, "nothing"), new.software.get(name, "nothing")
        if was != now:
            why = "bits are equal per software build and kind of processor, not across them"
            hint = "install what was there, or --force goes on and marks the result as not comparable"
            forceable.append(Problem(f"software: {name}", now, f"{was}, as the run was begun", why, hint))
    return fatal, forceable


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
