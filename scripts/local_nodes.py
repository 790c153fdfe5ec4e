"""Worker nodes of scripts/local_cluster.py, as Ray's autoscaler makes them in the head's process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import ray_constants
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

__all__ = ["LocalNodes"]

_FOLDER = "DEFAULT_RUNTIME_ENV_DIR_NAME"
_lock, _numbers = threading.Lock(), itertools.count(1)


class LocalNodes(FakeMultiNodeProvider):
    """The provider of Ray's own tests, with one difference: no two nodes keep jobs' files in the same folder.

    A node that starts unpacks those files anew, and would take them away from the other nodes' processes.
    """

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with _own_folder():
            super()._create_node_with_resources_and_labels(*arguments)


@contextmanager
def _own_folder() -> Iterator[None]:
    with _lock:
        before = getattr(ray_constants, _FOLDER)
        setattr(ray_constants, _FOLDER, f"{before}_{next(_numbers)}")
        try:
            yield
        finally:
            setattr(ray_constants, _FOLDER, before)
