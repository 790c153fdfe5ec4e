"""scripts/build_data.py: the parts that decide what is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "build_data.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_data_script", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAY = """# A Play

## ACT I

_Enter ANN
and BOB_

**ANN**  
Good  day, _\\[Aside]_ Bob's\\--friend.
*Exit.*

_Re-enter
Ghost_

I stay.

**Bob**  
[To ANN] Ay—ay.

### SCENE II. Elsewhere.

Not speech.

**ANN**  
Again.
"""  # noqa: W291


def test_speeches_are_by_role_without_headings_and_directions(script: ModuleType) -> None:
    assert script.speeches(PLAY) == {"ANN": ["Good day, Bob's--friend.\nI stay.", "Again."], "BOB": ["Ay--ay."]}


def test_one_name_in_ten_is_never_trained_on(script: ModuleType) -> None:
    share = np.mean([script.is_unseen(f"N{i}") for i in range(5000)])
    assert 0.08 < share < 0.12


def test_rows_are_split_by_position_inside_a_client(script: ModuleType) -> None:
    import pandas as pd

    trained, never = (next(f"N{i}" for i in range(100) if script.is_unseen(f"N{i}") is flag) for flag in (False, True))
    split = script.split_rows(pd.Series([trained] * 10 + [never] * 2))
    assert split.tolist() == [0] * 8 + [1] * 2 + [2] * 2
    assert script.split_rows(pd.Series([trained])).tolist() == [0]


def test_an_archive_with_other_bytes_is_refused(script: ModuleType, tmp_path: Path) -> None:
    for file_name, _ in script.PACKAGES.values():
        (tmp_path / file_name).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="do not use this archive"):
        script.fetch(tmp_path)
