"""The profile table that `atoll tune` writes, as plans read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.modelling import shape_of
from atoll.experiment.opened import data_of

__all__ = ["read_profile", "with_profile"]

_FIELDS = {"model": str, "device_class": str, "kernel": str, "lanes": int}


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
