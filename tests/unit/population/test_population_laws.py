import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.population import Constant, Exponential, HalfNormal, LogNormal, PapayaHistogram, Table, identity


def test_papaya_has_the_papers_quantiles():
    law = PapayaHistogram()
    q = np.array([0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999])
    published = [0.81, 1.01, 1.17, 1.74, 4.05, 11.4, 35, 70, 236, 373]
    assert law.quantile(q) == pytest.approx(published, rel=0.01)
    assert PapayaHistogram(scale=2.0).quantile(q) == pytest.approx(2.0 * law.quantile(q))


def test_papaya_order_statistics_of_sync_rounds():
    # derived in the literature notes: E[1000th of 1300] = 12.6 s, E[max of 1000] = 376 s
    u = np.random.Generator(np.random.Philox(3)).random((400, 1300))
    seconds = np.sort(PapayaHistogram().quantile(u), axis=1)
    assert seconds[:, 999].mean() == pytest.approx(12.6, rel=0.02)
    assert PapayaHistogram().quantile(u[:, :1000]).max(axis=1).mean() == pytest.approx(376, rel=0.01)


def test_closed_forms():
    u = np.array([0.5])
    assert HalfNormal(1.0).quantile(u)[0] == pytest.approx(0.6744897501960817)
    assert Exponential(2.0).quantile(u)[0] == pytest.approx(2.0 * np.log(2.0))
    assert LogNormal(5.0, 1.3).quantile(u)[0] == pytest.approx(5.0)


def test_table_takes_each_value_equally_often():
    values = Table((5.0, 1.0, 3.0)).quantile((np.arange(300) + 0.5) / 300)
    assert np.unique(values, return_counts=True)[1].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1),
        lambda: Constant(float("inf")),
        lambda: HalfNormal(0),
        lambda: HalfNormal(1, float("nan")),
        lambda: Exponential(0),
        lambda: LogNormal(0, 1),
        lambda: LogNormal(1, -1),
        lambda: PapayaHistogram(0),
        lambda: Table(()),
        lambda: Table((1.0, float("nan"))),
    ],
)
def test_wrong_laws_are_refused(make):
    with pytest.raises(SpecError, match=r"devices\."):
        make()


def test_identity_refuses_what_it_cannot_name():
    with pytest.raises(TypeError, match="no identity"):
        identity(object())


def test_identity_tells_types_and_array_contents_apart():
    assert identity((1,)) != identity((1.0,)) != identity((True,))
    assert identity((np.arange(3),)) != identity((np.arange(3)[::-1],))
    assert identity((np.arange(3),)) != identity((np.arange(3).astype(np.int32),))
