"""The file that a sweep leaves in its folder: what it is, what it tried and what came out; a check for a repetition."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError
from atoll.experiment.records import COMPARISON_FILE, SWEEP_FILE, short
from atoll.experiment.storing import store_of
from atoll.experiment.sweep_settings import identity_of
from atoll.experiment.sweep_study import Settings, agreed, sampler_version
from atoll.experiment.sweep_trials import Trial
from atoll.runtime.store import Files, LocalFiles, open_files
from atoll.tracking import now_ms

__all__ = ["SweepRecord"]


class SweepRecord:
    """What the sweep's file says, whole or not there; with a shared store a copy lies there, for other machines.

    Nothing is decided by it: trials follow from the settings and the scores of runs. It refuses to go on where it and
    they differ.

    Args:
        folder: of the sweep.
        spec: without what is varied.
        settings: of the sweep.
        at_once: trials at the same time.

    Raises:
        SpecError: the folder, or the store, holds another sweep.
    """

    def __init__(self, folder: Path, spec: sp.Spec, settings: Settings, at_once: int) -> None:
        self._folder, self._here, self._spec = folder, LocalFiles(folder), spec
        place = store_of(spec, folder, folder.name).place
        self._there: Files | None = None if place in (None, str(folder)) else open_files(str(place))
        self._sampler = sampler_version(settings)
        self._new: dict[str, Any] = {
            "sweep": identity_of(spec, settings),
            "settings": settings.as_dict(),
            "at_once": at_once,
            "sampler": self._sampler,
            "told_ms": None,
            "trials": [],
        }
        self._facts = self._read()

    def _read(self) -> dict[str, Any]:
        """What is known of the sweep: from the folder, else from the store, else what it is to be."""
        text = None
        if (self._folder / SWEEP_FILE).is_file():
            text = self._here.read(SWEEP_FILE)
        elif self._there is not None:
            text = self._there.read_many([SWEEP_FILE]).get(SWEEP_FILE)
        if text is None:
            return dict(self._new)
        found: dict[str, Any] = json.loads(text)
        before, now = found["sweep"], self._new["sweep"]
        other = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if other:
            rule = f"the {', '.join(other)} that it was begun with"
            why = "a sweep is of one file and one set of trials"
            raise SpecError([Problem("key", repr(self._folder.name), rule, why, "take another --key")])
        return {**found, "at_once": self._new["at_once"]}

    def begin(self) -> None:
        """Writes the file, and the spec, into the folder, which is this process's alone now.

        On a machine that is new to the sweep, brings what names the parent run from the store.
        """
        self._facts = self._read()
        if self._there is not None and not (self._folder / COMPARISON_FILE).is_file():
            for name, data in self._there.read_many([COMPARISON_FILE]).items():
                self._here.write(name, data)
        self._here.write("spec.yaml", sp.dump(self._spec).encode())
        self._write()

    def share(self) -> None:
        """Puts what names the parent run into the store."""
        if self._there is not None:
            self._there.write(COMPARISON_FILE, self._here.read(COMPARISON_FILE))

    def note(self, trials: Sequence[Trial]) -> None:
        """Keeps values and scores of the first trials, up to where the sweep is.

        Raises:
            SpecError: they are not those that the file has.
        """
        found = [
            {"values": dict(one.values), "scores": {str(rung): score for rung, score in one.scores.items()}}
            for one in trials
        ]
        place = short(self._folder / SWEEP_FILE)
        versions = (str(self._facts["sampler"]), self._sampler)
        self._facts["trials"] = agreed(self._facts["trials"], json.loads(json.dumps(found)), place, versions)
        self._write()

    def stamp_ms(self) -> int:
        """Wall clock of the first time that the end was told: MLflow takes a row with another one for another row."""
        if self._facts["told_ms"] is None:
            self._facts["told_ms"] = now_ms()
            self._write()
        return int(self._facts["told_ms"])

    def _write(self) -> None:
        data = json.dumps(self._facts, indent=1).encode()
        for files in filter(None, (self._here, self._there)):
            files.write(SWEEP_FILE, data)
