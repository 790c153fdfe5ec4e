"""Logits by NumPy, of the kinds of models that train without torch: what evaluates them need not load it either.

Equal to the torch side but for rounding. BLAS is held to one thread, as other numbers of threads sum in other orders:
one build of NumPy on one kind of processor says the same bits, whatever the process.

Shape legend: B rows of a batch, F numbers of "x", G categorical columns, D width of a table row, O outputs,
V vectors of an example.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.messages import ModelVersion
from atoll.models.shapes import Dlrm, Logistic, Mlp, ModelInputs, ModelSettings, WideDeep, shape_of

__all__ = ["PlainModel"]

F32 = npt.NDArray[np.float32]
#: name → weights in their shape
Weights = Mapping[str, F32]


class PlainModel:
    """Logistic, mlp, wide_deep, or dlrm without history.

    Args:
        settings: the model's.
        inputs: what one example looks like.

    Attributes:
        shape: names and shapes of the weights.

    Raises:
        ValueError: another kind.
    """

    def __init__(self, settings: ModelSettings, inputs: ModelInputs) -> None:
        if not isinstance(settings, Logistic | Mlp | WideDeep | Dlrm) or getattr(settings, "history", False):
            raise ValueError(f"no form without torch of {settings!r}")
        self.shape = shape_of(settings, inputs)
        self._settings, self._inputs = settings, inputs

    def at(self, version: ModelVersion) -> Callable[[Mapping[str, npt.NDArray[Any]]], F32]:
        """Weights → what they say of a batch: "x" [B, …] and, with a table, "rows" int64 [B, G] → float32 [B, O].

        Args:
            version: the weights; "rows" are rows of its table. NaN and infinities stay what they are.
        """
        weights, begin = {}, 0
        for parameter in self.shape.parameters:
            weights[parameter.name] = version.dense[begin : begin + parameter.size].reshape(parameter.shape)
            begin += parameter.size

        def says(batch: Mapping[str, npt.NDArray[Any]]) -> F32:
            x = batch["x"].reshape(len(batch["x"]), -1)
            found = version.tables[0][batch["rows"]] if version.tables else None
            with _blas().limit(limits=1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
                return self._logits(weights, x, found)

        return says

    def _logits(self, weights: Weights, x: F32, found: F32 | None) -> F32:
        """[B, O] from x [B, F] and the rows of its codes [B, G, D]."""
        match self._settings:
            case Logistic():
                logits = _chain(x, weights, "output.")
                return logits if found is None else logits + found.sum(1)
            case WideDeep(embedding_dim=dim) if found is not None:
                logits = _chain(_joined(x, found[..., :dim]), weights, "hidden.", "output.")
                logits += found[:, list(self._inputs.leads), dim:].sum(1)
                return logits + x @ weights["wide.weight"].T if "wide.weight" in weights else logits
            case Dlrm() if found is not None:
                dense = _rectified(_chain(x, weights, "bottom."))
                vectors = np.concatenate([dense[:, None], found], 1)
                dots = vectors @ vectors.transpose(0, 2, 1)
                lower = np.tril_indices(vectors.shape[1], -1)
                return _chain(np.concatenate([dense, dots[:, *lower]], 1), weights, "top.", "output.")
            case _:
                return _chain(x if found is None else _joined(x, found), weights, "hidden.", "output.")


def _chain(x: F32, weights: Weights, *prefixes: str) -> F32:
    """Linear layers whose names begin so, in order, with ReLU between them."""
    names = [name for name in weights if name.startswith(prefixes) and name.endswith(".weight")]
    for number, name in enumerate(names):
        x = (_rectified(x) if number else x) @ weights[name].T
        x += weights[name.removesuffix("weight") + "bias"]
    return x


def _rectified(x: F32) -> F32:
    """ReLU in place; NaN stays."""
    return np.maximum(x, 0, out=x)


def _joined(x: F32, found: F32) -> F32:
    """[B, F + G · D]."""
    return np.concatenate([x, found.reshape(len(found), -1)], 1)


@functools.cache
def _blas() -> Any:
    """To set BLAS's threads by: the libraries are searched for once, which takes a millisecond."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()
