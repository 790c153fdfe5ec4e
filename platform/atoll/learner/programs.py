"""A model as numbers that the compiled kernels read: its layers, where their weights and activations lie.

Shape legend: P dense parameters, I inputs and O outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from atoll.models import Dlrm, Logistic, Mlp, ModelInputs, ModelSettings, ModelShape, WideDeep, shape_of

if TYPE_CHECKING:
    from atoll.learner.kernels import Wiring

__all__ = ["Program", "has_program", "program_of"]

I64 = npt.NDArray[np.int64]
#: From so many outputs on a weight is held as [I, O]: vectors run over outputs, else over inputs.
_TURN_FROM = 16
_CHAIN, _DLRM = 0, 1


@dataclass(frozen=True)
class Program:
    """What `kernels.train_lanes` is told of a model.

    Attributes:
        model: names and shapes of the weights.
        shape: int64 [7]: which batch function (0 chain, 1 dlrm); numbers of "x"; categorical columns; width of an
            embedding in a table row; logits; chain: whether layer 0 is the wide part, dlrm: bottom layers; whether the
            task is binary.
        layers: int64 [layers, 8]: I, O, where its weight and its bias (−1: none) begin among P, whether the weight is
            held as [I, O], where its input and its output begin in the arena (in units of one example), whether ReLU
            follows.
        wide_columns: int64, categorical columns whose rows add to the logits, behind the embedding.
        arena_width: float32 values that the activations of one example take.
    """

    model: ModelShape
    shape: I64
    layers: I64
    wide_columns: I64
    arena_width: int

    @property
    def wiring(self) -> Wiring:
        """For the kernels."""
        from atoll.learner.kernels import Wiring

        return Wiring(self.shape, self.layers, self.wide_columns, self.arena_width)

    def into(self, dense: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Weights from the model's order into the kernels': a copy, [P]."""
        found = dense.copy()
        for inputs, outputs, begin in self._turned():
            part = dense[begin : begin + inputs * outputs].reshape(outputs, inputs)
            found[begin : begin + inputs * outputs] = part.T.reshape(-1)
        return found

    def back(self, sums: I64) -> I64:
        """Sums [S, P] from the kernels' order into the model's, in place; returns them."""
        for inputs, outputs, begin in self._turned():
            part = sums[:, begin : begin + inputs * outputs].reshape(-1, inputs, outputs)
            sums[:, begin : begin + inputs * outputs] = part.transpose(0, 2, 1).reshape(len(sums), -1)
        return sums

    def _turned(self) -> list[tuple[int, int, int]]:
        return [(int(row[0]), int(row[1]), int(row[2])) for row in self.layers if row[4]]


def has_program(settings: ModelSettings) -> bool:
    """Whether `program_of` takes such a model."""
    return isinstance(settings, Logistic | Mlp | WideDeep) or (isinstance(settings, Dlrm) and not settings.history)


def program_of(settings: ModelSettings, inputs: ModelInputs) -> Program:
    """The program of a model for which `has_program` holds.

    Raises:
        ValueError: there is none.
    """
    shape = shape_of(settings, inputs)
    layers = _Layers(shape)
    features, columns, outputs = prod(inputs.x_shape), len(inputs.category_sizes), inputs.num_outputs
    row_width = shape.tables[0].dim if shape.tables else 0
    wide: tuple[int, ...] = ()
    match settings:
        case Logistic():
            dim, wide = 0, tuple(range(columns))
            layers.chain("output.", 0, features)
            head = [_CHAIN, features, columns, dim, outputs, 0]
        case Mlp() | WideDeep():
            has_wide = any(p.name == "wide.weight" for p in shape.parameters)
            dim = row_width - (outputs if isinstance(settings, WideDeep) else 0)
            if isinstance(settings, WideDeep):
                wide = inputs.leads
            start = features if columns else 0
            layers.reserve(features + (features + columns * dim if columns else 0))
            if has_wide:
                layers.add("wide.weight", None, 0, has_relu=False)
            layers.chain(("hidden.", "output."), start)
            head = [_CHAIN, features, columns, dim, outputs, int(has_wide)]
        case Dlrm(history=False):
            dim = row_width
            layers.reserve(features)
            bottom = layers.chain("bottom.", 0, ends_with_relu=True)
            top = layers.reserve(dim + (columns + 1) * columns // 2)
            layers.chain(("top.", "output."), top)
            head = [_DLRM, features, columns, dim, outputs, bottom]
        case _:
            raise ValueError(f"no compiled form of {settings!r}")
    head.append(int(inputs.task == "binary"))
    table = np.array(layers.rows, dtype=np.int64).reshape(-1, 8)
    return Program(shape, np.array(head, dtype=np.int64), table, np.array(wide, dtype=np.int64), layers.width)


class _Layers:
    """Collects rows of the layer table, and room in the arena."""

    def __init__(self, shape: ModelShape) -> None:
        self.rows: list[list[int]] = []
        self.width = 0
        self._places: Mapping[str, tuple[int, tuple[int, ...]]] = {}
        begin, places = 0, {}
        for parameter in shape.parameters:
            places[parameter.name] = (begin, parameter.shape)
            begin += parameter.size
        self._places = places

    def reserve(self, width: int) -> int:
        """Where `width` values of an example go."""
        begin, self.width = self.width, self.width + width
        return begin

    def add(self, weight: str, bias: str | None, begins: int, *, has_relu: bool) -> int:
        """One layer that reads at `begins`; returns where its output lies."""
        place, (outputs, inputs) = self._places[weight]
        out = self.reserve(outputs)
        is_turned = int(outputs >= _TURN_FROM)
        at = -1 if bias is None else self._places[bias][0]
        self.rows.append([inputs, outputs, place, at, is_turned, begins, out, int(has_relu)])
        return out

    def chain(
        self, prefixes: str | tuple[str, ...], begins: int, reserved: int = 0, *, ends_with_relu: bool = False
    ) -> int:
        """Layers whose names begin so, one behind the other; returns how many."""
        self.reserve(reserved)
        weights = [name for name in self._places if name.startswith(prefixes) and name.endswith(".weight")]
        for number, weight in enumerate(weights):
            has_relu = ends_with_relu or number + 1 < len(weights)
            begins = self.add(weight, weight.removesuffix("weight") + "bias", begins, has_relu=has_relu)
        return len(weights)
