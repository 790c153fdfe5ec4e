"""What a model is made of, as plain records: settings of the built-in kinds and the shape that follows from them.

No torch here: `atoll plan` sizes models without loading it. Shape legend: F input features, G categorical columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from atoll.errors import Problem, SpecError

__all__ = [
    "CharLstm",
    "Cnn",
    "Custom",
    "InputShape",
    "Logistic",
    "Mlp",
    "ModelSettings",
    "ModelShape",
    "ParameterShape",
    "TableShape",
    "shape_of",
]

#: Input features of one example must fit in an index, and a model in memory: a guard against swapped arguments.
_GROUP_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class ParameterShape:
    """One dense parameter: its name in a state dict, and its shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TableShape:
    """One embedding table, [rows, dim], looked up by column `column` of the batch's "c"."""

    name: str
    rows: int
    dim: int
    column: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Names and sizes of everything that is learnt.

    Attributes:
        parameters: dense parameters, in the order of `ModelVersion.dense`.
        tables: embedding tables, in the order of `ModelVersion.tables`.
        num_outputs: logits per example; 1 for a binary task.
        task: `binary` or `multiclass`.
    """

    parameters: tuple[ParameterShape, ...]
    tables: tuple[TableShape, ...]
    num_outputs: int
    task: Literal["binary", "multiclass"]

    @property
    def dense_size(self) -> int:
        """Elements of all dense parameters, P."""
        return sum(parameter.size for parameter in self.parameters)

    @property
    def size(self) -> int:
        """Elements of everything, tables included."""
        return self.dense_size + sum(table.rows * table.dim for table in self.tables)

    @property
    def bytes(self) -> int:
        """Size of one version, float32."""
        return 4 * self.size

    def slices(self) -> tuple[tuple[ParameterShape, slice], ...]:
        """Each dense parameter with its place in `ModelVersion.dense`."""
        found, begin = [], 0
        for parameter in self.parameters:
            found.append((parameter, slice(begin, begin + parameter.size)))
            begin += parameter.size
        return tuple(found)


@dataclass(frozen=True, slots=True)
class InputShape:
    """What the data gives to a model, as plain values.

    Attributes:
        task: `binary` or `multiclass`.
        num_outputs: logits wanted, 1 for binary.
        x_shape: shape of "x" of one example; (0,) when there are only categories.
        categories: (name, number of codes) of each column of "c".
        vocabulary: number of token codes when "x" holds tokens (int64), else 0.
    """

    task: Literal["binary", "multiclass"]
    num_outputs: int
    x_shape: tuple[int, ...]
    categories: tuple[tuple[str, int], ...] = ()
    vocabulary: int = 0

    @property
    def num_features(self) -> int:
        """Elements of "x" of one example, F."""
        return math.prod(self.x_shape)


@dataclass(frozen=True, slots=True)
class Logistic:
    """One linear layer; each categorical column through a table of weights, one row per code."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """Fully connected layers with ReLU over "x" and the embeddings of the categorical columns."""

    hidden: tuple[int, ...] = (64,)
    embedding_dim: int = 8


@dataclass(frozen=True, slots=True)
class Cnn:
    """Blocks of 3×3 convolution, GroupNorm, ReLU and 2×2 max-pooling, then a linear layer."""

    channels: tuple[int, ...] = (32, 64)


@dataclass(frozen=True, slots=True)
class CharLstm:
    """Character embedding, LSTM layers, a linear layer on the last output: the next character."""

    embedding: int = 8
    hidden: int = 128
    layers: int = 2


@dataclass(frozen=True, slots=True)
class Custom:
    """A torch module of the user's own: `factory` is "package.module:function", called with `arguments`.

    The module's forward takes "x" [B, ...], and "c" [B, G] too where the data has categories; it returns
    [B, num_outputs].
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


ModelSettings = Logistic | Mlp | Cnn | CharLstm | Custom


def shape_of(settings: ModelSettings, inputs: InputShape) -> ModelShape:
    """The shape of the model that `settings` describe on data like `inputs`.

    Purity: pure; loads torch for `Custom` alone, which has to be built to be measured.

    Raises:
        SpecError: the model cannot take such data, or a custom factory cannot be used.

    Example:
        >>> shape_of(Mlp((64,)), InputShape("multiclass", 10, (64,))).dense_size
        4810
    """
    match settings:
        case Logistic():
            return _logistic(inputs)
        case Mlp():
            return _mlp(settings, inputs)
        case Cnn():
            return _cnn(settings, inputs)
        case CharLstm():
            return _char_lstm(settings, inputs)
        case Custom():
            from atoll.models.custom import custom_shape

            return custom_shape(settings, inputs)


def _table_name(column: str) -> str:
    return f"table_{column.replace('.', '_')}.weight"


def _tables(inputs: InputShape, dim: int) -> tuple[TableShape, ...]:
    return tuple(
        TableShape(_table_name(name), rows, dim, column) for column, (name, rows) in enumerate(inputs.categories)
    )


def _linear(name: str, num_inputs: int, num_outputs: int) -> list[ParameterShape]:
    bias = ParameterShape(f"{name}.bias", (num_outputs,))
    return [ParameterShape(f"{name}.weight", (num_outputs, num_inputs)), bias] if num_inputs else [bias]


def _refuse(kind: str, found: str, rule: str, hint: str) -> SpecError:
    return SpecError([Problem("model.kind", kind, rule, f"the data gives {found}", hint)])


def _check_numbers(kind: str, inputs: InputShape) -> None:
    if inputs.vocabulary:
        raise _refuse(kind, "tokens", "data with numeric features", "use char_lstm, or custom")


def _logistic(inputs: InputShape) -> ModelShape:
    _check_numbers("logistic", inputs)
    parameters = _linear("linear", inputs.num_features, inputs.num_outputs)
    return ModelShape(tuple(parameters), _tables(inputs, inputs.num_outputs), inputs.num_outputs, inputs.task)


def _mlp(settings: Mlp, inputs: InputShape) -> ModelShape:
    _check_numbers("mlp", inputs)
    tables = _tables(inputs, settings.embedding_dim)
    widths = [inputs.num_features + settings.embedding_dim * len(tables), *settings.hidden, inputs.num_outputs]
    parameters = []
    for index, (num_inputs, num_outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        parameters += _linear(f"layers.{index}", num_inputs, num_outputs)
    return ModelShape(tuple(parameters), tables, inputs.num_outputs, inputs.task)


def image_shape(inputs: InputShape) -> tuple[int, int, int]:
    """(channels, height, width) of "x": [H, W] is one channel, [C, H, W] is taken as it is.

    Raises:
        SpecError: "x" is no picture.
    """
    if len(inputs.x_shape) == 2:
        return (1, *inputs.x_shape)  # type: ignore[return-value]
    if len(inputs.x_shape) == 3:
        return inputs.x_shape  # type: ignore[return-value]
    raise _refuse("cnn", f'"x" of shape {inputs.x_shape}', '"x" of shape [H, W] or [C, H, W]', "use mlp")


def group_count(channels: int) -> int:
    """Groups of a GroupNorm over `channels`: about eight channels each, and a divisor."""
    return next(g for g in range(max(1, channels // _GROUP_CHANNELS), 0, -1) if channels % g == 0)


def _cnn(settings: Cnn, inputs: InputShape) -> ModelShape:
    _check_numbers("cnn", inputs)
    if inputs.categories:
        raise _refuse("cnn", "categorical columns", "pictures alone", "use mlp, logistic, or custom")
    channels, height, width = image_shape(inputs)
    if min(height, width) < 2 ** len(settings.channels):
        hint = "give fewer model.channels: each block halves the picture"
        raise _refuse("cnn", f"{height}×{width} pictures", f"at least {2 ** len(settings.channels)} pixels a side", hint)
    parameters = []
    for index, width_out in enumerate(settings.channels):
        parameters += [
            ParameterShape(f"blocks.{index}.conv.weight", (width_out, channels, 3, 3)),
            ParameterShape(f"blocks.{index}.conv.bias", (width_out,)),
            ParameterShape(f"blocks.{index}.norm.weight", (width_out,)),
            ParameterShape(f"blocks.{index}.norm.bias", (width_out,)),
        ]
        channels, height, width = width_out, height // 2, width // 2
    parameters += _linear("head", channels * height * width, inputs.num_outputs)
    return ModelShape(tuple(parameters), (), inputs.num_outputs, inputs.task)


def _char_lstm(settings: CharLstm, inputs: InputShape) -> ModelShape:
    if not inputs.vocabulary or len(inputs.x_shape) != 1:
        found = f'"x" of shape {inputs.x_shape}, vocabulary {inputs.vocabulary}'
        raise _refuse("char_lstm", found, "sequences of tokens", "use mlp or cnn for numeric data")
    parameters = [ParameterShape("embedding.weight", (inputs.vocabulary, settings.embedding))]
    width = settings.embedding
    for layer in range(settings.layers):
        parameters += [
            ParameterShape(f"lstm.weight_ih_l{layer}", (4 * settings.hidden, width)),
            ParameterShape(f"lstm.weight_hh_l{layer}", (4 * settings.hidden, settings.hidden)),
            ParameterShape(f"lstm.bias_ih_l{layer}", (4 * settings.hidden,)),
            ParameterShape(f"lstm.bias_hh_l{layer}", (4 * settings.hidden,)),
        ]
        width = settings.hidden
    parameters += _linear("head", width, inputs.num_outputs)
    return ModelShape(tuple(parameters), (), inputs.num_outputs, inputs.task)
