"""How much object store an embedded Ray is given."""

from __future__ import annotations

from typing import Any

from atoll import spec as sp
from atoll.experiment import plan
from atoll.experiment.sessions import session_for, store_bytes_of
from tiny_kit import tiny


def test_many_small_runs_share_one_least_store() -> None:
    """Ray refuses to start with more than the machine has: 21 leaves of a few kilobytes need no 10 GiB."""
    spec = sp.parse(tiny(runtime={"kind": "ray", "workers": 1}))
    needed = store_bytes_of(plan(spec))
    session: Any = session_for(spec, 21 * needed)
    assert 0 < 21 * needed < session.object_store_bytes == 512 * 2**20
    more: Any = session_for(spec, 2**30)
    assert more.object_store_bytes == 2**30
