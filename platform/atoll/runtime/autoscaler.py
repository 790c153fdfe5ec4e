"""What a Ray cluster's autoscaler is about to do. Ray has no public way to ask; where there is no answer, nothing."""

from __future__ import annotations

import json
from typing import Any

import ray

__all__ = ["is_growing"]

_TIMEOUT_S = 5
#: where the first autoscaler leaves its report
_STATUS_KEY = b"__autoscaling_status"


def is_growing() -> bool:
    """Whether nodes are on their way."""
    try:
        return _second() or _first()
    except Exception:  # private interfaces: an answer that is not understood is none
        return False


def _second() -> bool:
    """As the autoscaler says that Ray has by default since 2.50."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply.ParseFromString(client.get_cluster_status(timeout_s=_TIMEOUT_S))
    state = reply.autoscaling_state
    return bool(state.pending_instances or state.pending_instance_requests)


def _first() -> bool:
    """As the one before it says."""
    from ray.experimental.internal_kv import _internal_kv_get

    found: Any = _internal_kv_get(_STATUS_KEY)
    report = json.loads(found)["autoscaler_report"] if found else {}
    return bool(report.get("pending_nodes") or report.get("pending_launches"))
