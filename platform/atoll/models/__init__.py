"""Models with a lane dimension; torch is imported when a model is built, not when this room is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atoll.models.checkpoint import encode_version, load_version, save_version
from atoll.models.first import init_version
from atoll.models.plain import PlainModel
from atoll.models.shapes import (
    CharLstm,
    Cnn,
    Custom,
    Dlrm,
    Logistic,
    Mlp,
    ModelInputs,
    ModelSettings,
    ModelShape,
    ParameterShape,
    TableShape,
    WideDeep,
    shape_of,
)

if TYPE_CHECKING:
    from atoll.models.build import build_model, load_module
    from atoll.models.lanes import LaneModel, LocalRows, WithPenultimate

__all__ = [
    "CharLstm",
    "Cnn",
    "Custom",
    "Dlrm",
    "LaneModel",
    "LocalRows",
    "Logistic",
    "Mlp",
    "ModelInputs",
    "ModelSettings",
    "ModelShape",
    "ParameterShape",
    "PlainModel",
    "TableShape",
    "WideDeep",
    "WithPenultimate",
    "build_model",
    "encode_version",
    "init_version",
    "load_module",
    "load_version",
    "save_version",
    "shape_of",
]

_WITH_TORCH = dict.fromkeys(("LaneModel", "LocalRows", "WithPenultimate"), "lanes") | dict.fromkeys(
    ("build_model", "load_module"), "build"
)


def __getattr__(name: str) -> Any:
    """The torch side, imported when first asked for: `atoll plan` needs shapes only."""
    if name in _WITH_TORCH:
        import importlib

        return getattr(importlib.import_module(f"atoll.models.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'atoll.models' has no attribute {name!r}")
