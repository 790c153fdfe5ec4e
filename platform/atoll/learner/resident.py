"""What stays on a GPU between blocks: the weights of model versions, and the clients' examples where they fit.

On CPUs nothing is kept: tensors and arrays share memory there.

Shape legend: L lanes, B positions per lane, V versions, P dense parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atoll.messages import ModelVersion

__all__ = ["ResidentExamples", "ResidentVersions", "Rows", "on_device", "resident_examples"]

#: parts of the device's free memory, when a learner is made, that versions and examples may take
_VERSIONS_SHARE, _EXAMPLES_SHARE = 0.1, 0.3


def on_device(value: npt.NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The values as a tensor there; one that is there already is returned as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    return torch.from_numpy(np.ascontiguousarray(value)).to(device)


class ResidentVersions:
    """Dense weights of model versions on a device, each copied there once; the least recently used go first.

    A version is known by its array, not by its number: two runs may give one number to different weights.

    Args:
        device: where they are kept.
        budget_bytes: what all of them may take; those that one block needs are there whatever they take. Measured on
            the device if None.
    """

    def __init__(self, device: torch.device, budget_bytes: int | None = None) -> None:
        self._device = device
        self._budget = _part_of(device, _VERSIONS_SHARE) if budget_bytes is None else budget_bytes
        #: version → (its array, kept so that no other gets its address; its copy)
        self._held: OrderedDict[int, tuple[npt.NDArray[np.float32], Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def dense(self, model: ModelVersion) -> Tensor:
        """float32 [P], never to be written to."""
        known = self._held.get(model.version)
        if known is None or known[0] is not model.dense:
            known = model.dense, torch.tensor(model.dense, device=self._device)
            self._held[model.version] = known
        self._held.move_to_end(model.version)
        return known[1]

    def stacked(self, models: Sequence[ModelVersion]) -> Tensor:
        """float32 [V, P], in the order given; the caller's own."""
        if self._device.type == "cpu":
            return torch.from_numpy(np.stack([model.dense for model in models]))
        found = torch.stack([self.dense(model) for model in models])
        self.trim()
        return found

    def trim(self) -> None:
        """Lets the least recently used go until the budget is kept; to be called when a block has its versions."""
        size = sum(tensor.nbytes for _, tensor in self._held.values())
        while size > self._budget and self._held:
            _, (_, tensor) = self._held.popitem(last=False)
            size -= tensor.nbytes


class Rows(Protocol):
    """Data that lie in arrays, one row per example, such as `data.ClientTable`.

    Attributes:
        x, y, c: as in ClientTable.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    c: npt.NDArray[Any] | None

    def rows_of(self, client_ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The row of each position, int64 [L, B]."""
        ...


class ResidentExamples:
    """`ClientData.gather` of data that lie on a device: per block only row numbers travel.

    Codes of categories stay arrays: which rows of a table they touch is worked out on the host.

    Args:
        data: its arrays are copied.
        device: where "x" and "y" of every block are then.
    """

    def __init__(self, data: Rows, device: torch.device) -> None:
        self._data, self._device = data, device
        # copied, since the arrays may be read-only: memory-mapped files
        self._x = torch.tensor(np.asarray(data.x), device=device)
        self._y = torch.tensor(np.asarray(data.y).astype(np.int64), device=device)

    def __call__(
        self, client_ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
    ) -> Mapping[str, npt.NDArray[Any] | Tensor]:
        """As `ClientData.gather`, with "x" and "y" on the device, bit for bit the same values."""
        rows = self._data.rows_of(client_ids, positions)
        there = on_device(rows.reshape(-1), self._device)
        x = self._x.index_select(0, there)
        if x.dtype == torch.uint8:
            x = x.float() / 255
        found: dict[str, Any] = {
            "x": x.view(*rows.shape, *x.shape[1:]),
            "y": self._y.index_select(0, there).view(rows.shape),
        }
        if self._data.c is not None:
            found["c"] = self._data.c[rows].astype(np.int64)
        return found


def resident_examples(data: object, device: torch.device, budget_bytes: int | None = None) -> ResidentExamples | None:
    """The clients' examples on the device; None on CPUs, for data that are generated, and where they do not fit.

    Args:
        data: any client data.
        device: of the learner.
        budget_bytes: what they may take; measured on the device if None.
    """
    if not hasattr(data, "rows_of") or (device.type == "cpu" and budget_bytes is None):
        return None
    rows: Any = data
    budget = _part_of(device, _EXAMPLES_SHARE) if budget_bytes is None else budget_bytes
    return ResidentExamples(rows, device) if rows.x.nbytes + 8 * len(rows.y) <= budget else None


def _part_of(device: torch.device, share: float) -> int:
    """Bytes: a part of what is free on the device now."""
    return int(share * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0
