"""Trained models as one torch module that takes raw columns, and as a program that runs without atoll.

Shape legend: B rows, F numeric columns, G categorical columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from atoll.errors import Problem, SpecError

__all__ = ["Probabilities", "RawColumns", "save_program"]


class Probabilities(torch.nn.Module):
    """A model's logits as probabilities: [B, 1], of class 1, for a binary task; else [B, num_classes]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """Probabilities from x [B, F] and codes c [B, G], None without categories."""
        logits: Tensor = self.model(x) if c is None else self.model(x, c)
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


class RawColumns(torch.nn.Module):
    """What turns raw columns into "x" and "c", in front of a module that takes those.

    Args:
        inner: takes (x) or (x, c).
        means, stds: of each numeric column; x = (raw − mean) / std, in double precision until it is x.
        has_categories: whether `inner` takes c.
    """

    means: Tensor
    stds: Tensor

    def __init__(
        self, inner: torch.nn.Module, means: Sequence[float], stds: Sequence[float], *, has_categories: bool
    ) -> None:
        super().__init__()
        self.inner, self.has_categories = inner, has_categories
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64))
        self.register_buffer("stds", torch.tensor(stds, dtype=torch.float64))

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """What `inner` gives, from raw numbers [B, F] float64 and codes [B, G] int64."""
        x = ((numbers - self.means) / self.stds).to(torch.float32)
        found: Tensor = self.inner(x, codes) if self.has_categories else self.inner(x)
        return found


def save_program(path: Path, module: RawColumns, num_categories: int) -> None:
    """Writes `module` as a program of torch.export, for any number of rows.

    Raises:
        SpecError: the module does what torch.export cannot follow; only code of one's own does.

    Purity: writes a file.
    """
    # two rows: torch.export takes sizes 0 and 1 for constants
    example = (
        torch.zeros(2, len(module.means), dtype=torch.float64),
        torch.zeros(2, num_categories, dtype=torch.int64),
    )
    rows = {0: torch.export.Dim("rows", min=1)}
    try:
        program = torch.export.export(module.eval(), example, dynamic_shapes=(rows, rows))
    except Exception as error:
        # torch.export raises whatever the module's own code makes it raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        rule = "a model that torch.export can follow"
        raise SpecError([Problem("model", type(module.inner).__name__, rule, why)]) from error
    torch.export.save(program, path)
