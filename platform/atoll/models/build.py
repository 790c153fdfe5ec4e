"""From settings to a lane model and to its first version."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from atoll import rng
from atoll.messages import ModelVersion
from atoll.models.char_lstm import CharLstmLanes
from atoll.models.cnn import CnnLanes
from atoll.models.custom import CustomLanes, custom_module
from atoll.models.dlrm import DlrmLanes
from atoll.models.lanes import LaneModel
from atoll.models.mlp import MlpLanes
from atoll.models.shapes import (
    CharLstm,
    Cnn,
    Custom,
    Dlrm,
    Logistic,
    Mlp,
    ModelInputs,
    ModelSettings,
    ParameterShape,
    TableShape,
    WideDeep,
    shape_of,
)
from atoll.models.wide_deep import WideDeepLanes

__all__ = ["build_model", "init_version", "load_module"]

_EMBEDDING_STD = 1.0


def build_model(settings: ModelSettings, inputs: ModelInputs) -> LaneModel:
    """The lane form of the model.

    Raises:
        SpecError: the model does not take such inputs.
    """
    match settings:
        case Logistic() | Mlp():
            return MlpLanes(settings, inputs)
        case WideDeep():
            return WideDeepLanes(settings, inputs)
        case Dlrm():
            return DlrmLanes(settings, inputs)
        case Cnn():
            return CnnLanes(settings, inputs)
        case CharLstm():
            return CharLstmLanes(settings, inputs)
        case Custom():
            return CustomLanes(settings, inputs)


def init_version(settings: ModelSettings, inputs: ModelInputs, seed: int) -> ModelVersion:
    """Version 0, keyed by (seed, "init", name): the laws that torch's own layers use, drawn by NumPy.

    Linear, convolution and LSTM weights and biases are uniform within 1/√(fan in); norms are 1 and 0; embeddings normal
    with standard deviation 1, those of wide_deep and dlrm uniform within 1/√(rows of the column's table); logistic
    regression and the linear part of wide_deep start at zero. A custom module initialises itself under a forked torch
    generator.
    """
    shape = shape_of(settings, inputs)
    if isinstance(settings, Custom):
        with torch.random.fork_rng():
            torch.random.manual_seed(rng.key(seed, "init") % 2**63)
            module = custom_module(settings)
        flat = [p.detach().numpy().reshape(-1) for p in module.parameters()]
        return ModelVersion(0, np.concatenate(flat).astype(np.float32))
    is_zero = isinstance(settings, Logistic)
    parts, previous = [], 1
    for parameter in shape.parameters:
        if not parameter.name.endswith("bias"):
            previous = math.prod(parameter.shape[1:]) or 1
        if isinstance(settings, CharLstm) and parameter.name.startswith("lstm."):
            previous = settings.hidden
        is_linear = is_zero or parameter.name.startswith("wide.")
        parts.append(np.zeros(parameter.size) if is_linear else _draw(parameter, previous, seed))
    tables = tuple(_first_rows(settings, inputs, table, seed).astype(np.float32) for table in shape.tables)
    return ModelVersion(0, np.concatenate(parts).astype(np.float32), tables)


def _draw(parameter: ParameterShape, fan_in: int, seed: int) -> npt.NDArray[np.float64]:
    if ".norm." in parameter.name:
        return np.full(parameter.size, 1.0 if parameter.name.endswith("weight") else 0.0)
    if parameter.name == "embedding.weight":
        return _normal(parameter.name, parameter.shape, seed).reshape(-1)
    bound = 1.0 / math.sqrt(fan_in)
    return (rng.generator(seed, "init", parameter.name).random(parameter.size) * 2.0 - 1.0) * bound


def _first_rows(settings: ModelSettings, inputs: ModelInputs, table: TableShape, seed: int) -> npt.NDArray[np.float64]:
    size = (table.rows, table.dim)
    if isinstance(settings, Logistic):
        return np.zeros(size)
    if not isinstance(settings, WideDeep | Dlrm):
        return _normal(table.name, size, seed)
    bound = np.empty((table.rows, 1))
    for offset, rows in zip(table.offsets, inputs.category_sizes, strict=True):
        bound[offset : offset + rows] = 1.0 / math.sqrt(rows)
    found = (rng.generator(seed, "init", table.name).random(size) * 2.0 - 1.0) * bound
    found[:, settings.embedding_dim :] = 0.0  # the weights of wide_deep's linear part
    return found


def _normal(name: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float64]:
    return _EMBEDDING_STD * rng.generator(seed, "init", name).standard_normal(shape)


def load_module(module: torch.nn.Module, model: LaneModel, version: ModelVersion) -> torch.nn.Module:
    """Copies a version's weights into the model's ordinary module; returns it."""
    state, begin = {}, 0
    for parameter in model.shape.parameters:
        flat = version.dense[begin : begin + parameter.size]
        state[parameter.name] = torch.tensor(flat).reshape(parameter.shape)
        begin += parameter.size
    state |= {t.name: torch.tensor(np.asarray(w)) for t, w in zip(model.shape.tables, version.tables, strict=True)}
    module.load_state_dict(state)
    return module
