"""Lane width: a pure function of the model's size, device class, kernel and a table; nothing is measured here."""

from __future__ import annotations

import hashlib
from typing import Literal

__all__ = ["DeviceClass", "Kernel", "auto_lanes", "profile_digest"]

DeviceClass = Literal["cpu", "cuda"]
#: compiled: one client after another in compiled code; lanes: torch, all lanes of a block at once; single: torch, one
#: client after another.
Kernel = Literal["compiled", "lanes", "single"]

#: (device class, kernel) → (most dense parameters, W), first match. With lanes on CPUs, stacked weights and gradients
#: should stay near the second-level cache; on GPUs a block has to fill the device. The other kernels train one client
#: at a time: for them W is only how finely work is cut. CPU rows were measured with scripts/bench_learner.py.
_PROFILE: dict[tuple[DeviceClass, Kernel], tuple[tuple[int, int], ...]] = {
    ("cpu", "compiled"): ((80_000, 64), (500_000, 32), (2**62, 8)),
    ("cpu", "lanes"): ((20_000, 128), (80_000, 64), (500_000, 16), (2**62, 8)),
    ("cpu", "single"): ((80_000, 32), (2**62, 8)),
    ("cuda", "lanes"): ((100_000, 256), (1_000_000, 128), (2**62, 32)),
    ("cuda", "single"): ((2**62, 8),),
}


def auto_lanes(dense_size: int, device_class: DeviceClass, kernel: Kernel = "lanes") -> int:
    """W for `lanes: auto`.

    Args:
        dense_size: dense parameters of the model.
        device_class: where blocks run.
        kernel: what trains them.

    Example:
        >>> auto_lanes(4_810, "cpu"), auto_lanes(4_810, "cpu", "compiled")
        (128, 64)
    """
    return next(lanes for most, lanes in _PROFILE[device_class, kernel] if dense_size <= most)


def profile_digest() -> str:
    """SHA-256 (hex) of the profile table: part of every plan's identity."""
    return hashlib.sha256(repr(_PROFILE).encode()).hexdigest()
