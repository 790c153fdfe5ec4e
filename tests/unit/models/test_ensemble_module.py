"""Leaves and over-arch as one module: the over-arch's own probabilities, before and after it is a program."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.special import expit

from atoll.errors import SpecError
from atoll.evaluation import outputs as outputs_of
from atoll.messages import ModelVersion
from atoll.models import (
    Dlrm,
    Logistic,
    Mlp,
    ModelInputs,
    ModelSettings,
    WideDeep,
    build_model,
    init_version,
    load_module,
)
from atoll.models.ensemble_module import EnsembleModule, Penultimate, Probabilities, RawColumns, save_program

INPUTS = ModelInputs("binary", 1, (3,), (5, 4))
SETTINGS = Mlp((6,), 4)
MODEL = build_model(SETTINGS, INPUTS)
MEANS, STDS = [1.0, -2.0, 0.5], [2.0, 0.5, 3.0]


def rows(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    stream = np.random.default_rng(4)
    numbers = stream.standard_normal((count, 3)) * STDS + MEANS
    codes = np.stack([stream.integers(0, 5, count), stream.integers(0, 4, count)], axis=1)
    return torch.from_numpy(numbers), torch.from_numpy(codes)


def leaves(count: int) -> list[torch.nn.Module]:
    return [load_module(MODEL.module(), MODEL, init_version(SETTINGS, INPUTS, seed)) for seed in range(count)]


def outputs(modules: list[torch.nn.Module]) -> np.ndarray[Any, Any]:
    """[R, n, k], as the modules say."""
    numbers, codes = rows()
    x = ((numbers - torch.tensor(MEANS)) / torch.tensor(STDS)).float()
    with torch.inference_mode():
        return np.stack([module(x, codes).numpy() for module in modules], axis=1).astype(np.float64)


def program_says(module: torch.nn.Module, tmp_path: Path) -> np.ndarray[Any, Any]:
    front = RawColumns(Probabilities(module), MEANS, STDS, has_categories=True)
    save_program(tmp_path / "program.pt2", front, 2)
    program = torch.export.load(tmp_path / "program.pt2").module()
    with torch.inference_mode():
        found = program(*rows()).numpy()
        np.testing.assert_allclose(found, front(*rows()).numpy(), atol=1e-9)
        # a row does not depend on its company
        one = program(*(part[:1] for part in rows())).numpy()
    np.testing.assert_allclose(one, found[:1], atol=1e-6)
    assert found.shape == (40, 1)
    return found[:, 0]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["mean", "median"])
def test_mean_and_median(kind: Literal["mean", "median"], count: int, tmp_path: Path) -> None:
    modules = leaves(count)
    expected = expit({"mean": np.mean, "median": np.median}[kind](outputs(modules)[:, :, 0], axis=1))
    np.testing.assert_allclose(program_says(EnsembleModule(modules, kind), tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (5,), (7, 4)])
def test_layers_over_logits(hidden: tuple[int, ...], tmp_path: Path) -> None:
    stream, modules = np.random.default_rng(9), leaves(3)
    widths = (3, *hidden, 1)
    layers = tuple(
        (stream.standard_normal((after, before)), stream.standard_normal(after)) for before, after in pairwise(widths)
    )
    values = outputs(modules)[:, :, 0]
    for weight, bias in layers[:-1]:
        values = np.maximum(values @ weight.T + bias, 0.0)
    expected = expit((values @ layers[-1][0].T + layers[-1][1])[:, 0])
    assert expected.std() > 0.01
    found = program_says(EnsembleModule(modules, "layers", layers), tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_layers_over_penultimate_vectors(tmp_path: Path) -> None:
    versions = [init_version(SETTINGS, INPUTS, seed) for seed in range(2)]
    modules: list[torch.nn.Module] = [Penultimate(MODEL, version) for version in versions]
    vectors = outputs(modules)
    assert vectors.shape == (40, 2, 6)
    # each leaf's own last layer, put beside the other's, gives the sum of the leaves' logits
    last = [load_module(MODEL.module(), MODEL, version).output for version in versions]
    weight = np.concatenate([layer.weight.detach().numpy() for layer in last], axis=1)
    bias = np.sum([layer.bias.detach().numpy() for layer in last], axis=0)
    expected = expit(outputs(leaves(2)).sum(axis=(1, 2)))
    found = program_says(EnsembleModule(modules, "layers", [(weight, bias)]), tmp_path)
    np.testing.assert_allclose(found, expected, atol=1e-6)


#: item, two columns of its history, and one more category
HISTORY = ModelInputs("binary", 1, (3,), (5, 5, 5, 4), shared_rows=(0, 0, 0, 3))


@pytest.mark.parametrize(
    "settings", [Logistic(), WideDeep((6,), 4), Dlrm(4, (4,), (6,)), Dlrm(4, (4,), (6,), history=True)], ids=repr
)
def test_every_model_for_such_data_becomes_a_program(settings: ModelSettings, tmp_path: Path) -> None:
    model, stream = build_model(settings, HISTORY), np.random.default_rng(3)
    version = init_version(settings, HISTORY, 5)
    filled = ModelVersion(
        0,
        stream.standard_normal(version.dense.shape).astype(np.float32) / 4,
        tuple(stream.standard_normal(table.shape).astype(np.float32) for table in version.tables),
    )
    numbers = torch.from_numpy(stream.standard_normal((20, 3)))
    codes = torch.from_numpy(np.stack([stream.integers(0, size, 20) for size in HISTORY.category_sizes], axis=1))
    arrays = {"x": numbers.float().numpy(), "c": codes.numpy()}
    leaf = load_module(model.module(), model, filled)
    front = RawColumns(Probabilities(leaf), [0.0] * 3, [1.0] * 3, has_categories=True)
    save_program(tmp_path / "leaf.pt2", front, 4)
    last = (np.ones((1, outputs_of(model, filled, arrays, kind="penultimate").shape[1])), np.zeros(1))
    joined = EnsembleModule([Penultimate(model, filled)], "layers", [last])
    save_program(tmp_path / "joined.pt2", RawColumns(joined, [0.0] * 3, [1.0] * 3, has_categories=True), 4)
    with torch.inference_mode():
        alone = torch.export.load(tmp_path / "leaf.pt2").module()(numbers, codes).numpy()
        summed = torch.export.load(tmp_path / "joined.pt2").module()(numbers, codes).numpy()
    np.testing.assert_allclose(alone, expit(outputs_of(model, filled, arrays, kind="logits")), atol=1e-6)
    vectors = outputs_of(model, filled, arrays, kind="penultimate")
    np.testing.assert_allclose(summed[:, 0], vectors.sum(axis=1), atol=1e-5)


def test_a_module_that_torch_export_cannot_follow_is_refused(tmp_path: Path) -> None:
    class Fickle(torch.nn.Module):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return x[:, :1] if bool(x.sum() > 0) else x[:, 1:2]

    front = RawColumns(Fickle(), MEANS, STDS, has_categories=True)
    with pytest.raises(SpecError, match=r"a model that torch\.export can follow"):
        save_program(tmp_path / "program.pt2", front, 2)
    assert not list(tmp_path.iterdir())
