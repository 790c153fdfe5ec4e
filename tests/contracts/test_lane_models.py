"""What every model kind owes the learner, the evaluator and a checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from atoll.messages import ModelVersion, model_digest
from atoll.models import LocalRows, init_version, load_module, load_version, save_version, shape_of
from atoll.models.lanes import autograd_gradients, example_losses
from lane_kit import KINDS, SEED, Kind, gather_of

LANES, BATCH = 3, 4


def parts(kind: Kind, lanes: int = LANES) -> tuple[dict, LocalRows | None, dict, list[ModelVersion]]:
    """Lanes on versions of their own: params, rows (whole tables, lane after lane), batch."""
    model = kind.model()
    versions = [kind.version(number) for number in range(lanes)]
    dense = torch.tensor(np.stack([version.dense for version in versions]))
    params, begin = {}, 0
    for parameter in model.shape.parameters:
        params[parameter.name] = dense[:, begin : begin + parameter.size].reshape(lanes, *parameter.shape)
        begin += parameter.size
    positions = np.broadcast_to(np.arange(BATCH), (lanes, BATCH))
    arrays = gather_of(kind.inputs)(np.arange(lanes), positions)
    batch = {name: torch.tensor(array) for name, array in arrays.items()}
    rows = None
    if model.shape.tables:
        (table,) = model.shape.tables
        values = torch.tensor(np.concatenate([version.tables[0] for version in versions]))
        shift = table.rows * torch.arange(lanes).view(-1, 1, 1)
        rows = LocalRows(values, batch["c"] + torch.tensor(table.offsets) + shift)
    return params, rows, batch, versions


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def test_lanes_say_what_the_ordinary_module_says(kind: Kind) -> None:
    params, rows, batch, versions = parts(kind)
    model = kind.model()
    logits = model.logits(params, rows, batch)
    assert logits.shape == (LANES, BATCH, kind.inputs.num_outputs)
    for lane, version in enumerate(versions):
        module = load_module(model.module(), model, version)
        inputs = [batch[name][lane] for name in ("x", "c") if name in batch]
        with torch.no_grad():
            torch.testing.assert_close(logits[lane].detach(), module(*inputs), atol=1e-5, rtol=1e-5)


def test_names_and_shapes_are_the_modules(kind: Kind) -> None:
    shape = shape_of(kind.settings, kind.inputs)
    assert shape == kind.model().shape
    state = {name: tuple(value.shape) for name, value in kind.model().module().state_dict().items()}
    stated = {p.name: p.shape for p in shape.parameters} | {t.name: (t.rows, t.dim) for t in shape.tables}
    assert stated == state
    assert shape.bytes == 4 * sum(int(np.prod(size)) for size in state.values())


def test_gradients_are_autograds(kind: Kind) -> None:
    params, rows, batch, _ = parts(kind)
    share = torch.tensor([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    found = kind.model().gradients(params, rows, batch, share)
    want = autograd_gradients(kind.model(), params, rows, batch, share)
    torch.testing.assert_close(found.loss, want.loss)
    for name, got, right in zip(params, found.parameters, want.parameters, strict=True):
        torch.testing.assert_close(got, right, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert (found.rows is None) == (rows is None)
    if rows is not None:
        torch.testing.assert_close(found.rows, want.rows, atol=1e-6, rtol=1e-4)
    losses = example_losses(kind.model().logits(params, rows, batch), batch["y"], kind.inputs.task)
    torch.testing.assert_close(found.loss, (losses * share).sum(1).detach())


def test_lanes_never_mix(kind: Kind) -> None:
    params, rows, batch, _ = parts(kind)
    share = torch.full((LANES, BATCH), 1 / BATCH)
    before = kind.model().gradients(params, rows, batch, share)
    for value in params.values():
        value[1] = torch.nan
    after = kind.model().gradients(params, rows, batch, share)
    assert after.loss[1].isnan()
    for lane in (0, 2):
        assert torch.equal(after.loss[lane], before.loss[lane])
        for got, want in zip(after.parameters, before.parameters, strict=True):
            torch.testing.assert_close(got[lane], want[lane], atol=1e-7, rtol=1e-6)


def test_gradients_leave_their_arguments_alone(kind: Kind) -> None:
    params, rows, batch, _ = parts(kind)
    kept = {name: value.clone() for name, value in params.items()}
    kind.model().gradients(params, rows, batch, torch.full((LANES, BATCH), 1 / BATCH))
    for name, value in params.items():
        assert torch.equal(value, kept[name])
        assert not value.requires_grad


def test_the_first_version_is_a_function_of_the_seed(kind: Kind) -> None:
    state = torch.random.get_rng_state()
    first, again = (init_version(kind.settings, kind.inputs, SEED) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state), "initialising moved torch's global generator"
    assert model_digest(first) == model_digest(again)
    assert first.version == 0
    assert first.dense.dtype == np.float32
    assert first.dense.size == kind.model().shape.dense_size
    assert all(table.dtype == np.float32 for table in first.tables)
    if "logistic" not in kind.name:
        assert model_digest(first) != model_digest(init_version(kind.settings, kind.inputs, SEED + 1))


def test_a_checkpoint_returns_the_same_bits(kind: Kind, tmp_path: Path) -> None:
    version = kind.version(3)
    save_version(tmp_path / "model.safetensors", version, kind.model().shape)
    found = load_version(tmp_path / "model.safetensors", kind.model().shape)
    assert found.version == 3
    assert model_digest(found) == model_digest(version)


def test_settings_travel_between_processes(kind: Kind) -> None:
    again = pickle.loads(pickle.dumps((kind.settings, kind.inputs, kind.model().shape)))
    assert again == (kind.settings, kind.inputs, kind.model().shape)
