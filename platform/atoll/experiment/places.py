"""What this machine must offer before a run starts: folders, a device, room for workers."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atoll import spec as sp
from atoll.errors import Problem, SpecError

__all__ = ["check_device", "check_places", "is_held", "only_one"]

#: workers that an embedded Ray accepts at most: per core, and on any machine
_WORKERS_PER_CORE, _LEAST_WORKERS = 4, 8
_LOCK_FILE = ".lock"
#: far more than a look at a lock takes
_LOOK_S = 0.05


def check_places(spec: sp.Spec, runs_folder: str | Path) -> None:
    """Refuses folders of results that cannot be made or written; creates nothing.

    Raises:
        SpecError: the folder of runs, or `tracking.artifacts` where that is a folder of this machine.
    """
    places = {"runs": str(runs_folder)}
    if spec.tracking.artifacts is not None and "://" not in spec.tracking.artifacts:
        places["tracking.artifacts"] = spec.tracking.artifacts
    problems = []
    for place, text in places.items():
        folder = Path(text).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = f"{there} is {'read-only' if there.is_dir() else 'not a folder'}"
            problems.append(Problem(place, repr(text), "a folder that may be written", why))
    if problems:
        raise SpecError(problems)


def check_device(spec: sp.Spec) -> None:
    """Refuses more workers than an embedded Ray can start here, and a device class that is not there.

    Raises:
        SpecError: either.
    """
    _check_workers(spec)
    if spec.runtime.device_class != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        problem = Problem("runtime.device_class", "'cuda'", "a CUDA device that torch can use", "none is visible here")
        raise SpecError([problem])


def _check_workers(spec: sp.Spec) -> None:
    """An embedded Ray starts every worker on this machine: each is a process with torch in memory."""
    if not isinstance(spec.runtime, sp.RayRuntime) or "RAY_ADDRESS" in os.environ:
        return
    most = max(_LEAST_WORKERS, _WORKERS_PER_CORE * (os.cpu_count() or 1))
    if spec.runtime.most_workers > most:
        why = "without RAY_ADDRESS all workers start on this machine, each a process of some 300 MB"
        hint = "one worker per core is best; set RAY_ADDRESS to use a Ray cluster"
        raise SpecError([Problem("runtime.workers", str(spec.runtime.most_workers), f"at most {most} here", why, hint)])


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One process of this machine at a time works on a run; the kernel lets go when it dies.

    Across machines the journal's epoch decides: whoever comes later fences whoever was there.

    Raises:
        SpecError: another process works on it, or the folder cannot be written.
    """
    try:
        file = (folder / _LOCK_FILE).open("a")
    except OSError as error:
        raise SpecError([Problem("run", str(folder), "a folder that may be written", str(error))]) from error
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_LOOK_S)  # somebody may only be looking, as `is_held` does
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            rule, hint = "a run that nobody works on", "wait for it, or end that process first"
            raise SpecError([Problem("run", str(folder), rule, "another process works on it now", hint)]) from error
        yield


def is_held(folder: Path) -> bool:
    """Whether a process of this machine works on the run. Looks only: no lock file is made."""
    try:
        with (folder / _LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
