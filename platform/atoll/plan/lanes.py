"""Lane width: a pure function of the model's size, the device class and a profile table; nothing is measured here."""

from __future__ import annotations

import hashlib
from typing import Literal

__all__ = ["DeviceClass", "auto_lanes", "profile_digest"]

DeviceClass = Literal["cpu", "cuda"]

#: Device class → (most dense parameters, W), first match. On CPUs stacked weights and gradients should stay near the
#: second-level cache; on GPUs a block has to fill the device. The CPU rows were measured with scripts/bench_learner.py.
_PROFILE: dict[DeviceClass, tuple[tuple[int, int], ...]] = {
    "cpu": ((20_000, 128), (80_000, 64), (500_000, 16), (2**62, 8)),
    "cuda": ((100_000, 256), (1_000_000, 128), (2**62, 32)),
}


def auto_lanes(dense_size: int, device_class: DeviceClass) -> int:
    """W for `lanes: auto`.

    Args:
        dense_size: dense parameters of the model.
        device_class: where blocks run.

    Example:
        >>> auto_lanes(4_810, "cpu"), auto_lanes(1_600_000, "cpu")
        (128, 8)
    """
    return next(lanes for most, lanes in _PROFILE[device_class] if dense_size <= most)


def profile_digest() -> str:
    """SHA-256 (hex) of the profile table: part of every plan's identity."""
    return hashlib.sha256(repr(_PROFILE).encode()).hexdigest()
