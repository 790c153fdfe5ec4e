"""Which parts of a GPU a worker may have: whole ones, and exact 1/n."""

from __future__ import annotations

import pytest

from atoll import spec as sp
from atoll.errors import SpecError
from tiny_kit import tiny


def on_gpus(share: float) -> dict:
    return tiny(runtime={"kind": "ray", "workers": 2, "device_class": "cuda", "gpus_per_worker": share})


@pytest.mark.parametrize("share", [1, 0.5, 0.3333, 1 / 3, 0.25, 0.2, 0.125, 0.1, 0.0625])
def test_exact_parts_pass(share: float) -> None:
    assert sp.parse(on_gpus(share)).runtime.gpus_per_worker == share


@pytest.mark.parametrize("share", [0.3, 0.18, 0.4, 0.6, 0.75, 0.9, 1.5, 2, 3.7])
def test_others_are_refused_with_the_nearest_that_passes(share: float) -> None:
    with pytest.raises(SpecError, match=r"runtime\.gpus_per_worker: got .*exactly 1/n") as caught:
        sp.parse(on_gpus(share))
    (problem,) = caught.value.problems
    assert sp.parse(on_gpus(float(problem.hint.removeprefix("Set "))))
