"""A spec that runs in a second, for every test above the rooms."""

from __future__ import annotations

from typing import Any

__all__ = ["tiny"]


def tiny(**sections: Any) -> dict[str, Any]:
    """The mapping of a tiny spec; sections given replace the ones here, None removes one."""
    mapping: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "data": {
            "kind": "synthetic",
            "features": 4,
            "examples": {"kind": "log_normal", "median": 8.0, "sigma": 0.5, "max": 20},
        },
        "population": {"size": 60, "devices": {"kind": "half_normal", "scale_s": 60.0, "dropout": 0.1}},
        "model": {"kind": "mlp", "hidden": [8]},
        "client": {"lr": 0.1, "batch_size": 4},
        "schedule": {"kind": "async", "concurrency": 8, "buffer_goal": 2},
        "aggregation": {"kind": "fedbuff"},
        "evaluation": {"every_steps": 3, "metrics": ["loss", "auc"]},
        "stop": {"server_steps": 7},
        "tracking": {"uri": "sqlite:///mlflow.db"},
        "runtime": {"kind": "inline", "lanes": 4},
    }
    merged = mapping | sections
    return {name: value for name, value in merged.items() if value is not None}
