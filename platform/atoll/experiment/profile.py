"""The profile table that `atoll tune` writes, as plans read it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.modelling import kernel_of, shape_of
from atoll.experiment.opened import data_of
from atoll.plan import WorkCosts

__all__ = ["COSTS", "ProfileEntry", "entry_of", "read_profile", "with_profile"]

_FIELDS = {"model": str, "device_class": str, "kernel": str, "lanes": int}
#: fields of an entry that say what work costs, as WorkCosts has them; `example_s` is of one epoch
COSTS = ("block_s", "update_s", "example_s", "evaluation_s")


@dataclass(frozen=True, slots=True)
class ProfileEntry:
    """What a profile table says of the speed of a spec's model.

    Attributes:
        machine: where it was measured.
        client_updates_per_s: of one pool, on the clients of the spec that was measured.
        costs: seconds of one pool, `example_s` of one epoch; None: the table is older than they are.
    """

    machine: str
    client_updates_per_s: float
    costs: WorkCosts | None


def entry_of(spec: sp.Spec) -> ProfileEntry | None:
    """The entry for the spec's model, device class and kernel; None where the spec names no table, or it has none.

    Raises:
        SpecError: a table that cannot be read; figures that are no seconds.
    """
    path = spec.runtime.profile
    if path is None:
        return None
    wanted = (shape_of(spec, data_of(spec).shape).identity, spec.runtime.device_class, kernel_of(spec))
    for entry in read_profile(path):
        if (entry["model"], entry["device_class"], entry["kernel"]) == wanted:
            figures = {name: entry[name] for name in ("client_updates_per_s", *COSTS) if name in entry}
            bad = {name: value for name, value in figures.items() if not _is_measure(value)}
            if bad or not figures.get("client_updates_per_s"):
                found = f"{path!r} with {bad or 'no client_updates_per_s'}"
                raise SpecError([Problem("runtime.profile", found, "measured seconds, as atoll tune writes them")])
            costs = WorkCosts(*(float(entry[name]) for name in COSTS)) if all(name in entry for name in COSTS) else None
            return ProfileEntry(str(entry.get("machine", "?")), float(entry["client_updates_per_s"]), costs)
    return None


def _is_measure(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def with_profile(spec: sp.Spec) -> sp.Spec:
    """The spec with the kernel and lane width that its profile table has for its model, where it leaves them at auto.

    Raises:
        SpecError: a table that cannot be read, or that does not know the model.
    """
    runtime = spec.runtime
    if runtime.profile is None or "auto" not in (runtime.kernel, runtime.lanes):
        return spec
    wanted = (shape_of(spec, data_of(spec).shape).identity, runtime.device_class)
    for entry in read_profile(runtime.profile):
        if (entry["model"], entry["device_class"]) == wanted:
            found = {f"runtime.{name}": entry[name] for name in ("kernel", "lanes") if getattr(runtime, name) == "auto"}
            return sp.derived(spec, found)
    rule = f"a table with this model ({wanted[0][:12]}) on {wanted[1]}"
    hint = f"Measure it: atoll tune YOUR.yaml --profile {runtime.profile}"
    raise SpecError([Problem("runtime.profile", repr(runtime.profile), rule, hint=hint)])


def read_profile(path: str | Path) -> list[Mapping[str, Any]]:
    """The table's entries.

    Raises:
        SpecError: no such file, or not a profile table.
    """
    try:
        entries = json.loads(Path(path).read_bytes())["profile"]
        bad = [entry for entry in entries if any(type(entry[name]) is not kind for name, kind in _FIELDS.items())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule, why = "a profile table, as atoll tune writes it", f"{type(error).__name__}: {error}"
        raise SpecError([Problem("runtime.profile", repr(str(path)), rule, why)]) from error
    if bad:
        rule = "entries with model, device_class, kernel and lanes"
        raise SpecError([Problem("runtime.profile", f"{str(path)!r} with {bad[0]}", rule)])
    return list(entries)
