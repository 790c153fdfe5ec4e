"""atoll: a Ray-based distributed experiment platform for federated learning.

>>> import atoll
>>> report = atoll.plan("configs/fedbuff_flights.yaml")        # doctest: +SKIP
>>> run = atoll.run("configs/fedbuff_flights.yaml", "seed=3")  # doctest: +SKIP
>>> again = atoll.load(run.run_id)                             # doctest: +SKIP
>>> longer = atoll.resume(run.run_id, "stop.server_steps=900")  # doctest: +SKIP
>>> again = atoll.replay(run.run_id, 4294967297)               # doctest: +SKIP
>>> exported = atoll.export(run.run_id)                        # doctest: +SKIP
>>> best = atoll.sweep("configs/fedbuff_flights.yaml", "client.lr=0.1,0.3").best  # doctest: +SKIP
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.experiment import export, load, plan, replay, resume, run, run_comparison, run_ensemble, sweep, tune

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "export",
    "load",
    "plan",
    "replay",
    "resume",
    "run",
    "run_comparison",
    "run_ensemble",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for: `import atoll` in a worker stays cheap."""
    if name in __all__:
        import atoll.experiment as experiment

        return getattr(experiment, name)
    raise AttributeError(f"module 'atoll' has no attribute {name!r}")


class _Atoll(ModuleType):
    """`atoll.plan` is the function, also once the room of that name is imported, which would put itself there."""

    @property
    def plan(self) -> Any:
        return __getattr__("plan")

    @plan.setter
    def plan(self, room: ModuleType) -> None:
        """The import system sets it; `from atoll.plan import …` does not read it."""


sys.modules[__name__].__class__ = _Atoll
