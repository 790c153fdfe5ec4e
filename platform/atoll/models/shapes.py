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
    "Dlrm",
    "Logistic",
    "Mlp",
    "ModelInputs",
    "ModelSettings",
    "ModelShape",
    "ParameterShape",
    "TableShape",
    "WideDeep",
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
        shared_rows: of each column of "c", the first column that has the same table; () means one table each.
            Embeddings of such columns are the same rows; weights of a linear part never are. The last code of a table
            that several columns share means nothing: it pads columns of a history.
    """

    task: Literal["binary", "multiclass"]
    num_outputs: int
    x_shape: tuple[int, ...]
    category_sizes: tuple[int, ...] = ()
    vocabulary: int = 0
    shared_rows: tuple[int, ...] = ()

    @property
    def leads(self) -> tuple[int, ...]:
        """Columns of "c" that are the first of their table: all, where none is shared."""
        return tuple(sorted(set(self.shared_rows or range(len(self.category_sizes)))))

    @property
    def histories(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(first column of a shared table, the further ones): a target item, and the items that came before it."""
        found = ((lead, tuple(g for g, first in enumerate(self.shared_rows) if first == lead)) for lead in self.leads)
        return tuple((lead, columns[1:]) for lead, columns in found if len(columns) > 1)


@dataclass(frozen=True, slots=True)
class Logistic:
    """One linear layer over "x", plus one weight row per category code."""


@dataclass(frozen=True, slots=True)
class Mlp:
    """Linear layers with ReLU over "x" and the embeddings of the categories."""

    hidden: tuple[int, ...] = (64,)
    embedding_dim: int = 8


@dataclass(frozen=True, slots=True)
class WideDeep:
    """A linear part over "x" and the codes, plus an `Mlp` over "x" and the embeddings (Cheng et al. 2016).

    The linear part has one weight per code of each table's first column.
    """

    hidden: tuple[int, ...] = (64,)
    embedding_dim: int = 8


@dataclass(frozen=True, slots=True)
class Dlrm:
    """Dot products of embeddings and of the bottom layers' output on "x", read by the top layers (Naumov et al. 2019).

    Attributes:
        embedding_dim: width of all vectors.
        bottom: widths of the bottom layers, the last of which is embedding_dim; ReLU after each.
        top: widths of the hidden top layers.
        history: columns that share a table with an earlier one are pooled by attention to it (Zhou et al. 2018).
    """

    embedding_dim: int = 16
    bottom: tuple[int, ...] = (16,)
    top: tuple[int, ...] = (256,)
    history: bool = False


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


ModelSettings = Logistic | Mlp | WideDeep | Dlrm | Cnn | CharLstm | Custom


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
    """One embedding table that serves all categorical columns: column g's code c is row offsets[g] + c.

    Columns with one offset share their rows.
    """

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
            parameters = _chain("hidden", width, hidden, inputs.num_outputs)
            tables = _table(inputs, embedding_dim, inputs.shared_rows)
        case WideDeep():
            parameters, tables = _wide_deep(settings, inputs)
        case Dlrm():
            parameters, tables = _dlrm(settings, inputs)
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


def _chain(name: str, width: int, hidden: tuple[int, ...], num_outputs: int) -> list[ParameterShape]:
    parameters = []
    for index, units in enumerate(hidden):
        parameters += _linear(f"{name}.{index}", width, units)
        width = units
    return parameters + _linear("output", width, num_outputs)


def _table(inputs: ModelInputs, dim: int, shared_rows: tuple[int, ...] = ()) -> tuple[TableShape, ...]:
    if not inputs.category_sizes:
        return ()
    offsets: list[int] = []
    rows = 0
    for column, size in enumerate(inputs.category_sizes):
        is_first = not shared_rows or shared_rows[column] == column
        offsets.append(rows if is_first else offsets[shared_rows[column]])
        rows += size if is_first else 0
    return (TableShape("embedding.weight", rows, dim, tuple(offsets)),)


def _wide_deep(settings: WideDeep, inputs: ModelInputs) -> tuple[list[ParameterShape], tuple[TableShape, ...]]:
    _check_columns("wide_deep", inputs)
    numbers, outputs = prod(inputs.x_shape), inputs.num_outputs
    width = numbers + settings.embedding_dim * len(inputs.category_sizes)
    wide = [ParameterShape("wide.weight", (outputs, numbers))] if numbers else []
    # a row holds a code's embedding, then its weights in the linear part
    table = _table(inputs, settings.embedding_dim + outputs, inputs.shared_rows)
    return wide + _chain("hidden", width, settings.hidden, outputs), table


def _dlrm(settings: Dlrm, inputs: ModelInputs) -> tuple[list[ParameterShape], tuple[TableShape, ...]]:
    _check_columns("dlrm", inputs)
    dim, histories = settings.embedding_dim, inputs.histories if settings.history else ()
    if settings.bottom[-1:] != (dim,):
        rule = f"a last layer as wide as model.embedding_dim ({dim})"
        why = "The bottom layers' output is multiplied with embeddings"
        raise SpecError([Problem("model.bottom", repr(list(settings.bottom)), rule, why)])
    if settings.history and not histories:
        rule = "data with several columns of one table: a target item and the items before it"
        hint = "Set model.history to false, or use data with a history, such as movielens with data.history 10"
        raise SpecError([Problem("model.history", "true", rule, "Every column of this data has its own table", hint)])
    parameters, width = [], prod(inputs.x_shape)
    for index, units in enumerate(settings.bottom):
        parameters += _linear(f"bottom.{index}", width, units)
        width = units
    for index in range(len(histories)):
        parameters += _linear(f"attention.{index}.hidden", 3 * dim, dim) + _linear(f"attention.{index}.output", dim, 1)
    columns = len(inputs.leads) + len(histories) if settings.history else len(inputs.category_sizes)
    parameters += _chain("top", dim + (columns + 1) * columns // 2, settings.top, inputs.num_outputs)
    return parameters, _table(inputs, dim, inputs.shared_rows)


def _check_columns(kind: str, inputs: ModelInputs) -> None:
    if inputs.vocabulary:
        raise _refuse(kind, inputs, "numeric features and categories", "use char_lstm for text")
    if not inputs.category_sizes:
        rule, why = "data with categorical columns", "Its embeddings are those of categories"
        raise SpecError([Problem("model.kind", f"{kind} on data without categories", rule, why, "Use mlp or logistic")])


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
