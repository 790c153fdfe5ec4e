"""Who exists: N virtual clients, nothing stored per client."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from atoll.errors import Problem, SpecError
from atoll.population.availability import NEVER, Always, Availability
from atoll.population.devices import Devices, Draw, Outcome
from atoll.population.identity import identity
from atoll.population.members import Everyone, Members
from atoll.population.sizes import DrawnSizes, Sizes

__all__ = ["Participation", "Population"]

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Participation:
    """How participations end; one element each.

    Attributes:
        finish_us: int64, > the start.
        outcome: uint8, USED, DROPPED, TIMED_OUT or INTERRUPTED.
        num_examples: int64.
    """

    finish_us: I64
    outcome: U8
    num_examples: I64


@dataclass(frozen=True)
class Population:
    """All clients that exist, as pure functions of (seed, id); memory does not grow with `size`.

    Attributes:
        seed: of all lasting and per-participation attributes.
        size: N, ids are 0 … N − 1.
        devices: speed and reliability.
        sizes: training examples per client.
        availability: when clients can take part.
        members: which of the N clients belong to this part of the population (a cluster); everyone by default.

    Errors: SpecError where size < 1 or the part has no members.
    """

    seed: int
    size: int
    devices: Devices
    sizes: Sizes = field(default_factory=DrawnSizes)
    availability: Availability = field(default_factory=Always)
    members: Members = field(default_factory=Everyone)

    def __post_init__(self) -> None:
        if not 1 <= self.size < 2**53:
            raise SpecError([Problem("population.size", repr(self.size), "1 … 2⁵³ clients")])
        if self.num_members < 1:
            raise SpecError([Problem("clusters", "0 members", "a cluster with at least one client")])

    @property
    def num_members(self) -> int:
        """Number of clients that can be selected here."""
        return self.members.count(self.size)

    @property
    def always_available(self) -> bool:
        """Whether durations do not depend on the start, which lets timelines draw ahead."""
        return isinstance(self.availability, Always)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over every field."""
        parts = (self.devices, self.sizes, self.availability, self.members)
        return identity((self.seed, self.size, *parts))

    def client(self, index: I64) -> I64:
        """Client id of the index-th member, index in [0, num_members); a bijection. Purity: pure."""
        return self.members.client(index, self.size)

    def num_examples(self, ids: I64) -> I64:
        """Training examples of each client. Purity: pure."""
        return self.sizes.num_examples(self.seed, ids)

    def available(self, ids: I64, t_us: I64) -> Bools:
        """Whether each client can start at t_us. Purity: pure."""
        return self.availability.available(self.seed, ids, t_us)

    def until_us(self, ids: I64, t_us: I64) -> I64:
        """End of each client's window at t_us, NEVER where it has none, t_us where unavailable. Purity: pure."""
        return self.availability.until_us(self.seed, ids, t_us)

    def next_us(self, ids: I64, t_us: I64) -> I64:
        """First instant ≥ t_us at which each client can start; NEVER where there is none. Purity: pure."""
        return self.availability.next_us(self.seed, ids, t_us)

    def draw(self, ids: I64, task_ids: I64, cluster: int = 0) -> Draw:
        """Durations and outcomes as if the clients never went away. Purity: pure."""
        return self.devices.draw(self.seed, ids, task_ids, cluster, self.sizes)

    def participation(self, ids: I64, task_ids: I64, start_us: I64, cluster: int = 0) -> Participation:
        """How each participation that starts at start_us ends, the availability window included.

        A participation that would outlive the window ends at the window's end as INTERRUPTED. The clients have to be
        available at start_us.

        Purity: pure.
        """
        draw = self.draw(ids, task_ids, cluster)
        return self.within_window(draw, ids, start_us)

    def within_window(self, draw: Draw, ids: I64, start_us: I64) -> Participation:
        """`draw` started at start_us and cut at the end of each client's availability window. Purity: pure."""
        finish = start_us + draw.duration_us
        if self.always_available:
            return Participation(finish, draw.outcome, draw.num_examples)
        until = np.maximum(self.until_us(ids, start_us), start_us + 1)
        cut = finish > until
        outcome = np.where(cut, np.uint8(Outcome.INTERRUPTED), draw.outcome)
        return Participation(np.minimum(finish, np.minimum(until, NEVER)), outcome, draw.num_examples)
