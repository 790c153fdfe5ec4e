"""The file of a Ray cluster, read and checked without a cloud."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from atoll import spec as sp

if TYPE_CHECKING:
    from atoll.runtime.cluster_files import ClusterFile

__all__ = ["check_cluster_file"]


def check_cluster_file(path: str | Path) -> ClusterFile:
    """What the file at `path` describes: one for `ray up`, or a RayCluster of KubeRay. Loads Ray, asks no cloud.

    Raises:
        SpecError: it cannot be read, or everything that is wrong with it.
    """
    from atoll.runtime import cluster_files

    return cluster_files.check_cluster_file(sp.read_file(path))
