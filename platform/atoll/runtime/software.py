"""What decides bits of this installation: versions, the code itself, the kind of processor."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

import atoll

__all__ = ["code_digest", "software"]

#: what decides bits: a change elsewhere, in a table or a message, does not end a run
_ROOMS = ("aggregation", "data", "evaluation", "learner", "models", "plan", "population", "timeline")
_MODULES = ("messages.py", "rng.py", "schedules.py")
_PACKAGES = ("torch", "numpy", "pyarrow")


@functools.cache
def software() -> Mapping[str, str]:
    """Name → version or digest, the processor's features included."""
    found = {
        "atoll": atoll.__version__,
        "atoll's code": code_digest(),
        "python": ".".join(map(str, sys.version_info[:2])),
    }
    found |= {name: metadata.version(name) for name in _PACKAGES}
    # Kernels are chosen by what the processor can do: the same build has other bits on another kind.
    found["processor"] = " ".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))
    return found


def code_digest() -> str:
    """Digest of the modules that decide bits."""
    sha = hashlib.sha256()
    package = Path(atoll.__file__).parent
    files = [package / name for name in _MODULES]
    files += [path for room in _ROOMS for path in (package / room).rglob("*.py")]
    for path in sorted(files):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
