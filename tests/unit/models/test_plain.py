"""Logits by NumPy are those of torch, and the same bits whatever BLAS is told about threads."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.evaluation import outputs
from atoll.learner.programs import has_program
from atoll.messages import ModelVersion
from atoll.models import Dlrm, Logistic, Mlp, ModelInputs, ModelSettings, PlainModel, WideDeep
from lane_kit import KINDS, Kind, by_name, gather_of

PLAIN = [kind for kind in KINDS if has_program(kind.settings)]
OTHERS = [kind for kind in KINDS if kind not in PLAIN]


def arrays_of(inputs: ModelInputs, rows: int) -> dict[str, np.ndarray]:
    found = gather_of(inputs)(np.arange(1), np.arange(rows)[None])
    return {name: array[0] for name, array in found.items()}


def plain(kind: Kind, version: ModelVersion, arrays: dict[str, np.ndarray]) -> np.ndarray:
    model = PlainModel(kind.settings, kind.inputs)
    assert model.shape == kind.model().shape
    batch = {"x": arrays["x"]}
    if model.shape.tables:
        batch["rows"] = arrays["c"] + np.array(model.shape.tables[0].offsets)
    return model.at(version)(batch)


def check(kind: Kind, rows: int) -> None:
    arrays, version = arrays_of(kind.inputs, rows), kind.version()
    found = plain(kind, version, arrays)
    want = outputs(kind.model(), version, arrays, kind="logits")
    assert (found.shape, found.dtype) == (want.shape, np.float32)
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_logits_are_torchs(kind: Kind) -> None:
    check(kind, 300)


@st.composite
def kinds(draw: st.DrawFn) -> Kind:
    """Any family on any inputs that it takes: with and without numbers and codes, tables of one column or several."""
    columns = draw(st.integers(0, 4))
    sizes = [draw(st.integers(2, 20)) for _ in range(columns)]
    owners = [draw(st.sampled_from([g, *range(g)])) for g in range(columns)]
    owners = [owner if owners[owner] == owner else g for g, owner in enumerate(owners)]
    sizes = [sizes[owner] for owner in owners]
    is_shared = owners != list(range(columns))
    x_shape = draw(st.sampled_from([(1,), (5,), (3, 2), (17,)] + [(0,)] * bool(columns)))
    outputs = draw(st.sampled_from([1, 2, 3, 17]))
    task = "binary" if outputs == 1 else "multiclass"
    inputs = ModelInputs(task, outputs, x_shape, tuple(sizes), 0, tuple(owners) if is_shared else ())
    widths = st.lists(st.integers(1, 20), max_size=3).map(tuple)
    dim = draw(st.integers(1, 6))
    families: list[ModelSettings] = [Logistic(), Mlp(draw(widths), dim)]
    if columns:
        families += [WideDeep(draw(widths), dim), Dlrm(dim, (*draw(widths), dim), draw(widths))]
    return Kind("drawn", draw(st.sampled_from(families)), inputs)


@settings(max_examples=80, deadline=None)
@given(kinds(), st.sampled_from([1, 2, 33]))
def test_logits_are_torchs_for_all_shapes(kind: Kind, rows: int) -> None:
    check(kind, rows)


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_there_is_none_of_what_has_no_compiled_form(kind: Kind) -> None:
    with pytest.raises(ValueError, match="no form without torch"):
        PlainModel(kind.settings, kind.inputs)


@pytest.mark.parametrize("name", ["mlp_binary", "wide_deep", "dlrm"])
def test_what_is_not_finite_shows(name: str) -> None:
    kind = by_name[name]
    arrays, version = arrays_of(kind.inputs, 9), kind.version()
    finite = plain(kind, version, arrays)
    arrays["x"][3], arrays["x"][5] = np.nan, np.inf
    found = plain(kind, version, arrays)
    assert np.isnan(found[3]).all()
    assert not np.isfinite(found[5]).any()
    others = [row for row in range(9) if row not in (3, 5)]
    np.testing.assert_array_equal(found[others], finite[others])


def test_the_number_of_threads_changes_no_bit() -> None:
    """Layers so wide that OpenBLAS sums them in another order where it may use several threads."""
    kind = Kind("wide", Mlp((256, 100)), ModelInputs("multiclass", 10, (784,)))
    arrays, version = arrays_of(kind.inputs, 1000), kind.version()
    found = []
    for threads in (1, 2, 5):
        with threadpoolctl.threadpool_limits(threads, "blas"):
            found.append(plain(kind, version, arrays))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_nothing_is_written_to() -> None:
    for kind in (by_name["logistic_sparse"], by_name["dlrm"]):
        arrays, version = arrays_of(kind.inputs, 20), kind.version()
        version.dense.flags.writeable = False
        for array in (*version.tables, *arrays.values()):
            array.flags.writeable = False
        np.testing.assert_array_equal(plain(kind, version, arrays), plain(kind, version, arrays))
