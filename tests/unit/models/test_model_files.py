"""Weights as files: `model.init_from`, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from atoll.errors import SpecError
from atoll.models import load_version, save_version
from lane_kit import by_name

KIND = by_name["mlp_sparse"]
SHAPE = KIND.model().shape


def saved(path: Path, **changes: np.ndarray | None) -> Path:
    """A good file with tensors replaced, added, or (None) left out; dots in names are written as two underscores."""
    save_version(path, KIND.version(3), SHAPE)
    tensors = load_file(path)
    for name, value in changes.items():
        if value is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, path)
    return path


def test_weights_of_an_ordinary_module_are_taken(tmp_path: Path) -> None:
    module = KIND.model().module()
    save_torch(module.state_dict(), tmp_path / "mine.safetensors")
    found = load_version(tmp_path / "mine.safetensors", SHAPE)
    assert found.version == 0
    np.testing.assert_array_equal(found.tables[0], module.embedding.weight.detach().numpy())
    want = torch.cat([module.get_parameter(p.name).detach().reshape(-1) for p in SHAPE.parameters])
    np.testing.assert_array_equal(found.dense, want.numpy())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    save_torch({n: v.half() for n, v in KIND.model().module().state_dict().items()}, tmp_path / "half.safetensors")
    assert load_version(tmp_path / "half.safetensors", SHAPE).dense.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output__bias": None}, ["no tensor 'output.bias'", "shape (1,)"]),
        ({"output__bias": np.zeros(2, np.float32)}, ["output.bias of shape (2,)", "shape (1,)"]),
        ({"extra": np.zeros(2, np.float32)}, ["'extra'", "embedding.weight"]),
        ({"output__bias": np.full(1, np.nan, np.float32)}, ["NaN"]),
        ({"output__bias": None, "extra": np.zeros(2, np.float32)}, ["no tensor 'output.bias'", "'extra'"]),
        ({"embedding__weight": np.zeros((5, 3), np.float32)}, ["embedding.weight of shape (5, 3)"]),
    ],
)
def test_wrong_files_are_refused_in_words(tmp_path: Path, changes: dict, words: list[str]) -> None:
    path = saved(tmp_path / "model.safetensors", **changes)
    with pytest.raises(SpecError) as caught:
        load_version(path, SHAPE)
    for word in words:
        assert word in str(caught.value)
    assert "model.init_from" in str(caught.value)


def test_no_file_and_no_safetensors(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="exists"):
        load_version(tmp_path / "missing.safetensors", SHAPE)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(SpecError, match="safetensors"):
        load_version(tmp_path / "text.safetensors", SHAPE)
