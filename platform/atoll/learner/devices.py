"""What a device is called, and how its arithmetic is made repeatable.

torch is imported where a GPU is asked about, never by a process whose clients train in compiled kernels.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    import torch

__all__ = ["device_name", "make_repeatable"]

#: cuBLAS sums products in one order only with a workspace of fixed size; it reads this when a process first uses it
_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


def device_name(device_class: str) -> str:
    """The processor's or the GPU's name, as its maker has it; "unknown" where nobody says.

    Args:
        device_class: `cpu` or `cuda`.
    """
    if device_class == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return next(iter(names), "") or platform.processor() or "unknown"


def make_repeatable(device: torch.device) -> None:
    """Makes torch compute the same bits every time on this device, in the whole process; nothing to do on CPUs.

    On a GPU: only deterministic algorithms (an operation that has none raises), no choice by timing, no TF32 and no
    sums in reduced precision, a fixed cuBLAS workspace.

    Args:
        device: that learners of this process use.

    Raises:
        SpecError: CUBLAS_WORKSPACE_CONFIG has another value, with which products are not repeatable.
    """
    if device.type != "cuda":
        return
    found = os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if found not in _WORKSPACES:
        rule, why = " or ".join(_WORKSPACES), "cuBLAS would sum in another order each time"
        raise SpecError([Problem(f"environment {_WORKSPACE}", repr(found), rule, why, "unset it")])
    import torch

    torch.use_deterministic_algorithms(True)
    # Every uninitialised tensor would be filled with NaN first: no result depends on it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
