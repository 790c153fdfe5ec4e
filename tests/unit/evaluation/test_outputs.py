"""What a model says of rows: the same in batches of any size, and logits are a linear function of the penultimate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atoll.errors import SpecError
from atoll.evaluation import outputs
from atoll.models import load_module
from lane_kit import KINDS, Kind, by_name, gather_of

OFFERS = [kind for kind in KINDS if kind.name.startswith(("logistic", "mlp", "wide_deep", "dlrm"))]
OTHERS = [kind for kind in KINDS if kind not in OFFERS]


def arrays_of(kind: Kind, rows: int = 50) -> dict[str, np.ndarray]:
    found = gather_of(kind.inputs)(np.arange(1), np.arange(rows)[None])
    return {name: array[0] for name, array in found.items()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_logits_are_the_ordinary_modules(kind: Kind) -> None:
    arrays, version = arrays_of(kind), kind.version()
    found = outputs(kind.model(), version, arrays, kind="logits", batch_rows=7)
    assert (found.shape, found.dtype) == ((50, kind.inputs.num_outputs), np.float64)
    module = load_module(kind.model().module(), kind.model(), version)
    with torch.no_grad():
        want = module(*(torch.tensor(arrays[name]) for name in ("x", "c") if name in arrays))
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", OFFERS, ids=lambda kind: kind.name)
def test_logits_are_a_linear_function_of_the_penultimate_vectors(kind: Kind) -> None:
    arrays, version = arrays_of(kind, 400), kind.version()
    logits = outputs(kind.model(), version, arrays, kind="logits")
    vectors = outputs(kind.model(), version, arrays, kind="penultimate")
    assert len(vectors) == len(logits)
    assert vectors.shape[1] < 50
    design = np.column_stack([vectors, np.ones(len(vectors))])
    fitted, *_ = np.linalg.lstsq(design, logits, rcond=None)
    np.testing.assert_allclose(design @ fitted, logits, atol=1e-4)


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_other_models_do_not_offer_them(kind: Kind) -> None:
    with pytest.raises(SpecError, match="penultimate; need a model that offers it"):
        outputs(kind.model(), kind.version(), arrays_of(kind), kind="penultimate")


def test_no_rows_and_no_labels() -> None:
    kind = by_name["mlp_sparse"]
    arrays = {name: array[:0] for name, array in arrays_of(kind).items() if name != "y"}
    assert outputs(kind.model(), kind.version(), arrays, kind="logits").shape == (0, 1)
