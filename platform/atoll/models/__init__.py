"""Models: shapes without torch, and modules whose parameters have a lane dimension.

Names that need torch load on first use, so that `atoll.models.shapes` starts light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from atoll.models.shapes import (
    CharLstm,
    Cnn,
    Custom,
    InputShape,
    Logistic,
    Mlp,
    ModelSettings,
    ModelShape,
    ParameterShape,
    TableShape,
    shape_of,
)

if TYPE_CHECKING:
    from atoll.models.building import lane_model
    from atoll.models.checkpoint import load_initial, load_version, save_version
    from atoll.models.lane_model import LaneModel, lane_parameters

__all__ = [
    "CharLstm",
    "Cnn",
    "Custom",
    "InputShape",
    "LaneModel",
    "Logistic",
    "Mlp",
    "ModelSettings",
    "ModelShape",
    "ParameterShape",
    "TableShape",
    "lane_model",
    "lane_parameters",
    "load_initial",
    "load_version",
    "save_version",
    "shape_of",
]

_LAZY = {
    "LaneModel": "atoll.models.lane_model",
    "lane_parameters": "atoll.models.lane_model",
    "lane_model": "atoll.models.building",
    "load_initial": "atoll.models.checkpoint",
    "load_version": "atoll.models.checkpoint",
    "save_version": "atoll.models.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Loads a name that needs torch or safetensors on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A submodule of the same name (lane_model) would otherwise hide the function after its import.
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
