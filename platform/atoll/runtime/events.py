"""What the coordinator is told and what it asks for: small frozen records, no handles, no clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.aggregation import Step
from atoll.errors import ClientWorkError
from atoll.messages import Block
from atoll.plan import StepPlan
from atoll.runtime.store import StepRecord

__all__ = [
    "Checkpoint",
    "Evaluate",
    "Evaluated",
    "Event",
    "Expect",
    "Finish",
    "Forget",
    "HoldAfter",
    "Instruction",
    "OutOfMemory",
    "PoolLost",
    "PoolReady",
    "PoolRetired",
    "RecordEvaluation",
    "RecordStep",
    "StepsClosed",
    "SumsLost",
    "Train",
    "Trained",
    "WorkFailed",
    "failed_call",
]


# ---- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trained:
    """A pool has returned a call; its sums are on their way to the aggregator. `busy_s` is wall time."""

    call: int
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StepsClosed:
    """The aggregator has closed these server steps, in order."""

    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A pool has evaluated a version. `busy_s` is wall time."""

    call: int
    version: int
    metrics: Mapping[str, float]
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolLost:
    """A pool died or hung. Whatever it held is to be done again, by others until `PoolReady` tells of a fresh one.

    Attributes:
        pool: its number.
        is_out_of_memory: the node ended it for lack of memory.
        is_work_to_blame: False where only the way to it was lost.
    """

    pool: int
    is_out_of_memory: bool = False
    is_work_to_blame: bool = True


@dataclass(frozen=True, slots=True)
class PoolReady:
    """A fresh pool has this number and can take work."""

    pool: int


@dataclass(frozen=True, slots=True)
class PoolRetired:
    """This pool gets no more work; what it has it will return."""

    pool: int


@dataclass(frozen=True, slots=True)
class SumsLost:
    """These blocks were trained, but their sums never reached the aggregator."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A call did not fit into its pool's memory; the pool is alive."""

    call: int


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work of a call raised, for its own sake: client code, not infrastructure."""

    call: int
    error: ClientWorkError


Event = Trained | StepsClosed | Evaluated | PoolLost | PoolReady | PoolRetired | SumsLost | OutOfMemory | WorkFailed


def failed_call(call: int, error: ClientWorkError) -> Event:
    """What a call that raised means: too little memory, or work that fails for its own sake."""
    return OutOfMemory(call) if error.is_out_of_memory else WorkFailed(call, error)


# ---- instructions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Pool `pool` trains these blocks from these versions and sends its sums to the aggregator."""

    pool: int
    call: int
    blocks: tuple[Block, ...]
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Pool `pool` evaluates `version`."""

    pool: int
    call: int
    version: int


@dataclass(frozen=True, slots=True)
class Expect:
    """The aggregator learns which steps come."""

    steps: tuple[StepPlan, ...]


@dataclass(frozen=True, slots=True)
class HoldAfter:
    """The aggregator may close steps up to version `version` and no further."""

    version: int


@dataclass(frozen=True, slots=True)
class Forget:
    """These versions are never needed again; `live` are all that still are."""

    versions: tuple[int, ...]
    live: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecordStep:
    """A server step and its metrics, for the journal; MLflow's step is the version that it made."""

    record: StepRecord
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RecordEvaluation:
    """Metrics of an evaluated version, for the journal."""

    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Version `version` is to be kept as an artifact."""

    version: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over: `version` is its model; the digests cover the steps up to it."""

    version: int
    reason: str
    timeline_digest: str
    plan_digest: str


Instruction = Train | Evaluate | Expect | HoldAfter | Forget | RecordStep | RecordEvaluation | Checkpoint | Finish
