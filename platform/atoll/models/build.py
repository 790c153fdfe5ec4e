"""From settings to a lane model, and from a version to an ordinary module."""

from __future__ import annotations

import numpy as np
import torch

from atoll.messages import ModelVersion
from atoll.models.char_lstm import CharLstmLanes
from atoll.models.cnn import CnnLanes
from atoll.models.custom import CustomLanes
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
    WideDeep,
)
from atoll.models.wide_deep import WideDeepLanes

__all__ = ["build_model", "load_module"]


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
