"""The first version of a model's weights, drawn by NumPy; torch is loaded for a custom module only."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.messages import ModelVersion
from atoll.models.shapes import (
    CharLstm,
    Custom,
    Dlrm,
    Logistic,
    ModelInputs,
    ModelSettings,
    ParameterShape,
    TableShape,
    WideDeep,
    shape_of,
)

__all__ = ["init_version"]

_EMBEDDING_STD = 1.0


def init_version(settings: ModelSettings, inputs: ModelInputs, seed: int) -> ModelVersion:
    """Version 0, keyed by (seed, "init", name): the laws that torch's own layers use, drawn by NumPy.

    Linear, convolution and LSTM weights and biases are uniform within 1/√(fan in); norms are 1 and 0; embeddings normal
    with standard deviation 1, those of wide_deep and dlrm uniform within 1/√(rows of the column's table); logistic
    regression and the linear part of wide_deep start at zero. A custom module initialises itself under a forked torch
    generator.
    """
    shape = shape_of(settings, inputs)
    if isinstance(settings, Custom):
        import torch

        from atoll.models.custom import custom_module

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
