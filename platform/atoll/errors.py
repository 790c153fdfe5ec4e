"""What can go wrong, as one tree. Every message names the place, the value, the rule and what to do.

AtollError                     exit code
├─ SpecError                   2  a wrong YAML file, override or environment; holds ALL problems found
├─ PlanError                   2  a valid spec that cannot be run: versions do not fit, a buffer never fills
├─ ClientWorkError             3  client code raised: task, client, start version and the original traceback
├─ AggregationError            3  overflow, a conflicting duplicate, a step out of order
├─ MembersFailed               3  some of several runs did not finish; the others did
└─ InfrastructureError         3  workers or stores lost for good
   └─ FencedError              3  another process has taken this run over

Interrupted, a KeyboardInterrupt: 130, stopped at a step boundary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AggregationError",
    "AtollError",
    "ClientWorkError",
    "FencedError",
    "InfrastructureError",
    "Interrupted",
    "MembersFailed",
    "PlanError",
    "Problem",
    "SpecError",
]


class AtollError(Exception):
    """Base of every error that atoll raises on purpose; `exit_code` is what the command returns."""

    exit_code = 3


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the input.

    Attributes:
        path: dotted place, such as `schedule.buffer_goal`, or a file path.
        value: what was found there, as Python prints it (already shortened where long).
        rule: what would have been right.
        why: one clause on the reason; may be empty.
        hint: what to do, or the nearest valid name; may be empty.
    """

    path: str
    value: str
    rule: str
    why: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """Read as `path: got value; need rule. Why. Hint.`, without the empty parts."""
        got = f"got {self.value}; " if self.value else ""
        text = f"{self.path}: {got}need {self.rule}."
        for part in (self.why, self.hint):
            if part:
                text += f" {part.rstrip('.')}."
        return text


class _ProblemList(AtollError):
    """An error that carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.problems,))


class SpecError(_ProblemList):
    """The spec, an override or the environment is wrong; refused before anything starts."""


class PlanError(_ProblemList):
    """The spec is valid, but this experiment cannot be run as planned; refused before anything starts."""


class ClientWorkError(AtollError):
    """A client's own work raised.

    Attributes:
        message: the original exception, one line.
        story: place of the failure: block, task, client, start versions; and the worker's traceback.
        task_id: the task whose client raises when it is trained alone; None where none does, or in an evaluation.
        is_out_of_memory: the work did not fit.
    """

    def __init__(
        self, message: str, story: str = "", task_id: int | None = None, is_out_of_memory: bool = False
    ) -> None:
        self.message, self.story = message, story
        self.task_id, self.is_out_of_memory = task_id, is_out_of_memory
        super().__init__(f"{message}\n{story}" if story else message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.story, self.task_id, self.is_out_of_memory))


class AggregationError(AtollError):
    """An exact sum would overflow, or a work unit was delivered twice with different bits."""


class MembersFailed(AtollError):
    """Some runs of an ensemble or a sweep did not finish, each for its own reason; the others did."""


class InfrastructureError(AtollError):
    """Workers or stores were lost more often than the run may recover from."""


class FencedError(InfrastructureError):
    """Another process has taken the run over; this one may write nothing more."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run stopped at a step boundary, with everything committed.

    Attributes:
        message: where it stopped and how to go on.
    """

    def __init__(self, message: str = "interrupted") -> None:
        self.message = message
        super().__init__(message)
