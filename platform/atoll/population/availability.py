"""When a client can take part: pure functions of (seed, client id, virtual time).

Windows are half-open, [start, end), in integer microseconds; windows that touch count as one. `NEVER` means "no end" or
"no next window". Every lookup is a closed form or one bisection, so the result does not depend on earlier lookups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from atoll import rng
from atoll.errors import Problem, SpecError
from atoll.population.normal import ndtri

__all__ = ["NEVER", "Always", "Availability", "Diurnal", "Intervals"]

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEVER = 2**62
"""Microseconds that no timeline reaches."""

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US


class Availability(Protocol):
    """Windows in which clients can take part; ids and t_us broadcast together."""

    def available(self, seed: int, ids: I64, t_us: I64) -> Bools:
        """Whether t_us lies in a window of the client."""

    def until_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """End of the window that holds t_us, NEVER where it has none; t_us itself where the client is unavailable."""

    def next_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """t_us where the client is available, otherwise the start of its next window, NEVER where there is none."""


@dataclass(frozen=True)
class Always:
    """Every client is available at all times."""

    def available(self, seed: int, ids: I64, t_us: I64) -> Bools:
        """True. Purity: pure."""
        del seed
        return np.ones(np.broadcast_shapes(np.shape(ids), np.shape(t_us)), dtype=np.bool_)

    def until_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """NEVER. Purity: pure."""
        del seed
        return np.full(np.broadcast_shapes(np.shape(ids), np.shape(t_us)), NEVER, dtype=np.int64)

    def next_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """t_us. Purity: pure."""
        del seed
        return np.broadcast_to(np.asarray(t_us, dtype=np.int64), np.broadcast_shapes(np.shape(ids), np.shape(t_us)))


@dataclass(frozen=True)
class Diurnal:
    """One window of `hours` per day; it starts at `start_hour_mean` plus the client's own normal offset.

    Attributes:
        start_hour_mean: hour of the (virtual) day, any finite number; virtual time 0 is midnight.
        hours: length of the window, > 0; 24 or more is always available.
        spread_hours: standard deviation of the client's offset, keyed by (seed, "diurnal", id); ≥ 0.

    Errors: SpecError.
    """

    start_hour_mean: float
    hours: float
    spread_hours: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not math.isfinite(self.start_hour_mean):
            problems.append(Problem("availability.start_hour_mean", repr(self.start_hour_mean), "a finite hour"))
        if not (math.isfinite(self.hours) and self.hours * _HOUR_US >= 1):
            problems.append(Problem("availability.hours", repr(self.hours), "hours > 0"))
        if not (math.isfinite(self.spread_hours) and self.spread_hours >= 0):
            problems.append(Problem("availability.spread_hours", repr(self.spread_hours), "a finite number ≥ 0"))
        if problems:
            raise SpecError(problems)

    def _since_start_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        start_hour = np.full(np.shape(ids), float(self.start_hour_mean))
        if self.spread_hours:
            start_hour += self.spread_hours * ndtri(rng.uniform(rng.key(seed, "diurnal"), ids))
        phase = np.rint(start_hour * _HOUR_US).astype(np.int64)
        return np.asarray((t_us - phase) % _DAY_US, dtype=np.int64)

    @property
    def _length_us(self) -> int:
        return min(round(self.hours * _HOUR_US), _DAY_US)

    def available(self, seed: int, ids: I64, t_us: I64) -> Bools:
        """Whether the client's daily window holds t_us. Purity: pure."""
        return np.asarray(self._since_start_us(seed, ids, t_us) < self._length_us, dtype=np.bool_)

    def until_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """End of today's window; NEVER for 24 hours; t_us where unavailable. Purity: pure."""
        since = self._since_start_us(seed, ids, t_us)
        if self._length_us == _DAY_US:
            return np.full(since.shape, NEVER, dtype=np.int64)
        return np.asarray(t_us + np.maximum(self._length_us - since, 0), dtype=np.int64)

    def next_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """t_us where available, otherwise the next start. Purity: pure."""
        since = self._since_start_us(seed, ids, t_us)
        return np.asarray(t_us + np.where(since < self._length_us, 0, _DAY_US - since), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Intervals:
    """A trace that repeats every `period_us`: client `id` follows trace row `id % rows`.

    Args:
        starts_us: int64 [total], window starts of row 0, then row 1, …
        ends_us: int64 [total], window ends; 0 ≤ start < end ≤ period; a row's windows ascend and do not overlap.
        offsets: int64 [rows + 1], row r owns windows offsets[r] … offsets[r + 1] − 1; a row may be empty.
        period_us: length of the trace, > 0. A window that ends at the period and one that starts at 0 are one window.

    Errors: SpecError.
    """

    starts_us: I64
    ends_us: I64
    offsets: I64
    period_us: int

    def __post_init__(self) -> None:
        starts, ends, offsets = (np.array(a, dtype=np.int64) for a in (self.starts_us, self.ends_us, self.offsets))
        self._check(starts, ends, offsets)
        starts, ends, offsets = _merge_touching(starts, ends, offsets)
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        for name, value in (
            ("starts_us", starts), ("ends_us", ends), ("offsets", offsets),
            # one ascending key over all rows: a single bisection finds the window of any row
            ("_keys", row * self.period_us + starts),
        ):  # fmt: skip
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    def _check(self, starts: I64, ends: I64, offsets: I64) -> None:
        rows, total = len(offsets) - 1, len(starts)
        place = "availability.intervals"
        if self.period_us < 1 or rows < 1 or rows * self.period_us >= 2**62:
            rule = "a period ≥ 1 µs, one row or more, rows · period below 2⁶² µs"
            raise SpecError([Problem(place, f"{rows} rows of {self.period_us} µs", rule)])
        if len(ends) != total or offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            raise SpecError([Problem(place, f"{total} starts, {len(ends)} ends", "offsets that partition the windows")])
        bad = (starts < 0) | (ends <= starts) | (ends > self.period_us)
        row = np.repeat(np.arange(rows), np.diff(offsets))
        bad[1:] |= (row[1:] == row[:-1]) & (starts[1:] < ends[:-1])
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            rule = "0 ≤ start < end ≤ period, ascending and disjoint within a row"
            raise SpecError([Problem(f"{place}[row {row[i]}]", f"[{starts[i]}, {ends[i]})", rule)])

    def _find(self, ids: I64, t_us: I64) -> tuple[I64, I64, I64, Bools]:
        """(row, phase, index of the last window with start ≤ phase or −1 past the row, whether it holds the phase)."""
        row = np.asarray(ids % (len(self.offsets) - 1), dtype=np.int64)
        phase = np.asarray(t_us % self.period_us, dtype=np.int64)
        keys: I64 = self.__dict__["_keys"]
        index = np.asarray(np.searchsorted(keys, row * self.period_us + phase, side="right") - 1, dtype=np.int64)
        inside = index >= self.offsets[row]
        if len(keys):
            inside &= phase < self.ends_us[np.maximum(index, 0)]
        return row, phase, index, np.asarray(inside, dtype=np.bool_)

    def available(self, seed: int, ids: I64, t_us: I64) -> Bools:
        """Whether a window of the client's row holds t_us. Purity: pure."""
        del seed
        return self._find(ids, t_us)[3]

    def until_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """End of the window, across the wrap; NEVER if it has no end; t_us where unavailable. Purity: pure."""
        del seed
        row, phase, index, inside = self._find(ids, t_us)
        end = np.asarray(t_us - phase, dtype=np.int64) + np.where(inside, 0, phase)
        if not len(self.ends_us):
            return end
        last = self.ends_us[np.maximum(index, 0)]
        first = np.minimum(self.offsets[row], len(self.starts_us) - 1)
        wraps = inside & (last == self.period_us) & (self.starts_us[first] == 0)
        end = end + np.where(inside, last, 0) + np.where(wraps, self.ends_us[first], 0)
        return np.asarray(np.where(wraps & (self.ends_us[first] == self.period_us), NEVER, end), dtype=np.int64)

    def next_us(self, seed: int, ids: I64, t_us: I64) -> I64:
        """t_us where available, otherwise the next start; NEVER for an empty row. Purity: pure."""
        del seed
        row, phase, index, inside = self._find(ids, t_us)
        t_us = np.asarray(t_us, dtype=np.int64)
        first, stop = self.offsets[row], self.offsets[row + 1]
        if not len(self.starts_us):
            return np.full(inside.shape, NEVER, dtype=np.int64)
        following = np.maximum(index + 1, first)
        wrapped = following >= stop
        start = self.starts_us[np.minimum(np.where(wrapped, first, following), len(self.starts_us) - 1)]
        start = t_us - phase + start + np.where(wrapped, self.period_us, 0)
        start = np.where(first == stop, NEVER, start)
        return np.asarray(np.where(inside, t_us, start), dtype=np.int64)


def _merge_touching(starts: I64, ends: I64, offsets: I64) -> tuple[I64, I64, I64]:
    """Joins windows of one row where one ends at the other's start."""
    if not len(starts):
        return starts, ends, offsets
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    joined = np.concatenate(([False], (row[1:] == row[:-1]) & (starts[1:] == ends[:-1])))
    keep_end = np.concatenate((~joined[1:], [True]))
    counts = np.bincount(row[~joined], minlength=len(offsets) - 1)
    return starts[~joined], ends[keep_end], np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
