"""A key that no section has stays a refusal, however often it is set."""

from __future__ import annotations

import pytest

from atoll.errors import SpecError
from atoll.spec import parse
from tiny_kit import tiny


def test_kind_at_the_top_is_an_unknown_key() -> None:
    with pytest.raises(SpecError, match="kind"):
        parse(tiny(), ["kind=null", "kind=[]"])
