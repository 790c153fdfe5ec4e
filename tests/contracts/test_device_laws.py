"""Every execution-time law keeps the same contract."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.population import Constant, Exponential, HalfNormal, Law, LogNormal, PapayaHistogram, Table, identity

LAWS = {
    "constant": (Constant(3.0), 3.0),
    "half_normal": (HalfNormal(2.0, 1.0), 1.0 + 2.0 * np.sqrt(2.0 / np.pi)),
    "exponential": (Exponential(4.0), 4.0),
    "log_normal": (LogNormal(2.0, 0.8), 2.0 * np.exp(0.32)),
    "papaya": (PapayaHistogram(), 15.87),
    "table": (Table((9.0, 1.0, 2.0, 4.0)), 4.0),
}
EDGES = np.array([2.0**-54, 1e-12, 0.25, 0.5, 0.75, 1 - 1e-12, 1 - 2.0**-53])

laws = pytest.mark.parametrize(("law", "mean"), LAWS.values(), ids=LAWS)


@laws
def test_is_a_law(law, mean):
    assert isinstance(law, Law)
    assert pickle.loads(pickle.dumps(law)).quantile(EDGES).tolist() == law.quantile(EDGES).tolist()
    assert identity(law) == identity(pickle.loads(pickle.dumps(law)))


@laws
def test_seconds_are_finite_and_not_negative_up_to_the_edges_and_ascend(law, mean):
    seconds = law.quantile(EDGES)
    assert seconds.dtype == np.float64
    assert np.isfinite(seconds).all()
    assert (seconds >= 0).all()
    assert (np.diff(seconds) >= 0).all()


@laws
def test_mean_is_the_laws_own(law, mean):
    u = (np.arange(200_000) + 0.5) / 200_000
    assert law.quantile(u).mean() == pytest.approx(mean, rel=2e-3)


@laws
@given(u=st.lists(st.floats(1e-9, 1 - 1e-9), min_size=1, max_size=8))
def test_elements_do_not_see_each_other(law, mean, u):
    together = law.quantile(np.array(u))
    assert [law.quantile(np.array([x]))[0] for x in u] == together.tolist()


def test_identities_differ():
    assert len({identity(law) for law, _ in LAWS.values()} | {identity(Constant(4.0))}) == len(LAWS) + 1
