"""What every section shares: frozen, nothing extra, no silent conversion, no NaN or infinity."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Count", "Factory", "LongCount", "NonNegative", "Positive", "Section", "Share", "Text"]

#: a whole number from 1 to 2³¹ − 1: the width of counts in the timeline's rows
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: a whole number of bytes
LongCount = Annotated[int, Field(ge=1, le=2**63 - 1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: a number in [0, 1)
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
#: a dotted path to a callable that people bring themselves
Factory = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", examples=["package.module:function"])]


class Section(BaseModel):
    """Base of all sections. Numbers in quotes, unknown keys, NaN and infinity are refused, never converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
