"""What a model is made of, without torch: settings, and the names and shapes of its weights.

`atoll plan` works from these records alone; the torch side (`models.build`) is built from the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from atoll.errors import Problem, SpecError

__all__ = [
    "CharLstm",
    "Cnn",
    "Custom",
    "Logistic",
    "Mlp",
    "ModelInputs",
    "ModelSettings",
    "ModelShape",
    "ParameterShape",
    "TableShape",
    "shape_of",
]


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What one example looks like to a model.

    Attributes:
        task: `binary` (one logit) or `multiclass`.
        num_outputs: logits per example.
        x_shape: shape of "x" of one example; (0,) where there are only categories.
        category_sizes: number of codes of each column of "c".
        vocabulary: number of token codes where "x" holds tokens, else 0.
    """

    task: Literal["binary", "multiclass"]
    num_outputs: int
    x_shape: tuple[int, ...]
    category_sizes: tuple[int, ...] = ()
    vocabulary: int = 0


@dataclass(frozen=True, slots=True)
class Logistic:
    """One linear layer over "x", plus one weight row per category code."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """Linear layers with ReLU over "x" and the embeddings of the categories."""

    hidden: tuple[int, ...] = (64,)
    embedding_dim: int = 8


@dataclass(frozen=True, slots=True)
class Cnn:
    """Blocks of 3×3 convolution, GroupNorm, ReLU, 2×2 max-pooling; then a linear layer."""

    channels: tuple[int, ...] = (32, 64)


@dataclass(frozen=True, slots=True)
class CharLstm:
    """Character embedding, LSTM, linear layer on the last output."""

    embedding: int = 8
    hidden: int = 128
    layers: int = 2


@dataclass(frozen=True)
class Custom:
    """A torch module from `factory`, "package.module:function", called with `arguments`."""

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


ModelSettings = Logistic | Mlp | Cnn | CharLstm | Custom


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """One dense parameter: the name it has in the ordinary torch module, and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class TableShape:
    """One embedding table that serves all categorical columns: column g's code c is row offsets[g] + c."""

    name: str
    rows: int
    dim: int
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Names and shapes of all weights, in the order in which a ModelVersion holds them.

    Attributes:
        parameters: dense parameters, flattened one after another into `ModelVersion.dense`.
        tables: embedding tables, `ModelVersion.tables`.
        num_outputs: logits per example.
        task: `binary` or `multiclass`.
    """

    parameters: tuple[ParameterShape, ...]
    tables: tuple[TableShape, ...]
    num_outputs: int
    task: Literal["binary", "multiclass"]

    @property
    def dense_size(self) -> int:
        """P, number of dense weights."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def bytes(self) -> int:
        """One version, float32."""
        return 4 * (self.dense_size + sum(table.rows * table.dim for table in self.tables))

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of all names and shapes."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def shape_of(settings: ModelSettings, inputs: ModelInputs) -> ModelShape:
    """The shape of the model that `settings` makes for `inputs`; loads torch for a custom model only.

    Raises:
        SpecError: the model does not take such inputs.
    """
    match settings:
        case Logistic():
            parameters = _linear("output", _width(settings, inputs), inputs.num_outputs)
            tables = _table(inputs, inputs.num_outputs)
        case Mlp(hidden, embedding_dim):
            width = _width(settings, inputs) + embedding_dim * len(inputs.category_sizes)
            parameters = []
            for index, units in enumerate(hidden):
                parameters += _linear(f"hidden.{index}", width, units)
                width = units
            parameters += _linear("output", width, inputs.num_outputs)
            tables = _table(inputs, embedding_dim)
        case Cnn(channels):
            parameters, tables = _cnn(channels, inputs), ()
        case CharLstm():
            parameters, tables = _char_lstm(settings, inputs), ()
        case Custom():
            from atoll.models.custom import custom_parameters

            parameters, tables = custom_parameters(settings, inputs), ()
    return ModelShape(tuple(parameters), tables, inputs.num_outputs, inputs.task)


def _linear(name: str, inputs: int, outputs: int) -> list[ParameterShape]:
    return [ParameterShape(f"{name}.weight", (outputs, inputs)), ParameterShape(f"{name}.bias", (outputs,))]


def _table(inputs: ModelInputs, dim: int) -> tuple[TableShape, ...]:
    if not inputs.category_sizes:
        return ()
    offsets = [0]
    for size in inputs.category_sizes:
        offsets.append(offsets[-1] + size)
    return (TableShape("embedding.weight", offsets[-1], dim, tuple(offsets[:-1])),)


def _refuse(kind: str, inputs: ModelInputs, rule: str, hint: str) -> SpecError:
    tokens = f", tokens out of {inputs.vocabulary}" if inputs.vocabulary else ""
    return SpecError([Problem("model.kind", f"{kind!r} on examples of shape {inputs.x_shape}{tokens}", rule, "", hint)])


def _width(settings: ModelSettings, inputs: ModelInputs) -> int:
    if inputs.vocabulary:
        kind = "logistic" if isinstance(settings, Logistic) else "mlp"
        raise _refuse(kind, inputs, "numeric features", "use char_lstm for text")
    return prod(inputs.x_shape)


def _cnn(channels: tuple[int, ...], inputs: ModelInputs) -> list[ParameterShape]:
    if inputs.vocabulary or len(inputs.x_shape) not in (2, 3) or inputs.category_sizes:
        raise _refuse("cnn", inputs, "images of shape [height, width] or [channels, height, width]", "use mlp")
    previous, *sides = inputs.x_shape if len(inputs.x_shape) == 3 else (1, *inputs.x_shape)
    parameters = []
    for index, count in enumerate(channels):
        if min(sides) < 2:
            raise _refuse("cnn", inputs, f"at least {2 ** len(channels)} pixels a side", "use fewer model.channels")
        parameters += [
            ParameterShape(f"blocks.{index}.conv.weight", (count, previous, 3, 3)),
            ParameterShape(f"blocks.{index}.conv.bias", (count,)),
            ParameterShape(f"blocks.{index}.norm.weight", (count,)),
            ParameterShape(f"blocks.{index}.norm.bias", (count,)),
        ]
        previous, sides = count, [side // 2 for side in sides]
    return parameters + _linear("output", previous * prod(sides), inputs.num_outputs)


def _char_lstm(settings: CharLstm, inputs: ModelInputs) -> list[ParameterShape]:
    if not inputs.vocabulary or len(inputs.x_shape) != 1:
        raise _refuse("char_lstm", inputs, "sequences of tokens", "use mlp or logistic for numeric features")
    parameters = [ParameterShape("embedding.weight", (inputs.vocabulary, settings.embedding))]
    width, gates = settings.embedding, 4 * settings.hidden
    for layer in range(settings.layers):
        parameters += [
            ParameterShape(f"lstm.weight_ih_l{layer}", (gates, width)),
            ParameterShape(f"lstm.weight_hh_l{layer}", (gates, settings.hidden)),
            ParameterShape(f"lstm.bias_ih_l{layer}", (gates,)),
            ParameterShape(f"lstm.bias_hh_l{layer}", (gates,)),
        ]
        width = settings.hidden
    return parameters + _linear("output", width, inputs.num_outputs)
