"""Laws of a client's execution time, each given by its inverse cumulative distribution function.

Sampling by inversion keeps a client's speed a pure function of one uniform number, so laws can be swapped while the
clients keep their ranks, and a copula can correlate speed with data volume.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from atoll.errors import Problem, SpecError
from atoll.population.normal import ndtri

__all__ = ["Constant", "Exponential", "HalfNormal", "Law", "LogNormal", "PapayaHistogram", "Table"]

F64 = npt.NDArray[np.float64]


@runtime_checkable
class Law(Protocol):
    """A distribution of seconds; implementations are frozen records, pure and vectorised."""

    def quantile(self, u: F64) -> F64:
        """Seconds, ≥ 0 and finite, for each u in the open interval (0, 1); non-decreasing in u; shape of u."""


def _require(ok: bool, place: str, value: object, rule: str) -> None:
    if not ok:
        raise SpecError([Problem(place, repr(value), rule)])


def _at_least(place: str, value: float, low: float) -> None:
    _require(math.isfinite(value) and value >= low, place, value, f"a finite number ≥ {low:g}")


def _positive(place: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, place, value, "a finite number > 0")


@dataclass(frozen=True)
class Constant:
    """Every client takes `value_s` seconds (≥ 0). Errors: SpecError."""

    value_s: float

    def __post_init__(self) -> None:
        _at_least("devices.value_s", self.value_s, 0)

    def quantile(self, u: F64) -> F64:
        """`value_s`, in the shape of u. Purity: pure."""
        return np.full(np.shape(u), float(self.value_s))


@dataclass(frozen=True)
class HalfNormal:
    """`min_s + |N(0, scale_s²)|` seconds, FedBuff's law; mean min_s + 0.798 · scale_s. Errors: SpecError."""

    scale_s: float
    min_s: float = 0.0

    def __post_init__(self) -> None:
        _positive("devices.scale_s", self.scale_s)
        _at_least("devices.min_s", self.min_s, 0)

    def quantile(self, u: F64) -> F64:
        """Inverse CDF in seconds. Purity: pure."""
        # −ndtri of the small upper tail keeps its digits where (1 + u) / 2 would round to 1
        return np.asarray(self.min_s - self.scale_s * ndtri((1.0 - u) * 0.5), dtype=np.float64)


@dataclass(frozen=True)
class Exponential:
    """Exponential with mean `mean_s` seconds (> 0). Errors: SpecError."""

    mean_s: float

    def __post_init__(self) -> None:
        _positive("devices.mean_s", self.mean_s)

    def quantile(self, u: F64) -> F64:
        """Inverse CDF in seconds. Purity: pure."""
        return np.asarray(-self.mean_s * np.log1p(-u), dtype=np.float64)


@dataclass(frozen=True)
class LogNormal:
    """Log-normal: exp(N(ln median_s, sigma²)) seconds. Errors: SpecError."""

    median_s: float
    sigma: float

    def __post_init__(self) -> None:
        _positive("devices.median_s", self.median_s)
        _at_least("devices.sigma", self.sigma, 0)

    def quantile(self, u: F64) -> F64:
        """Inverse CDF in seconds. Purity: pure."""
        return np.asarray(self.median_s * np.exp(self.sigma * ndtri(u)), dtype=np.float64)


@functools.cache
def _papaya_table() -> tuple[F64, F64]:
    """(cumulative probability at each bin edge, ln seconds at each bin edge), 145 edges."""
    text = resources.files("atoll.population").joinpath("papaya_execution_time.json").read_text(encoding="utf-8")
    bins = np.array(json.loads(text)["bins"], dtype=np.float64)
    edges = np.append(bins[:, 0], bins[-1, 1])
    mass = bins[:, 2] * np.diff(edges)
    cumulative = np.concatenate(([0.0], np.cumsum(mass / mass.sum())))
    cumulative[-1] = 1.0
    return cumulative, edges * math.log(10.0)


@dataclass(frozen=True)
class PapayaHistogram:
    """Execution times measured by Papaya (Huba et al., MLSys 2022, Fig. 2): mean 15.8 s, median 4.05 s, p99 236 s.

    144 bins, equally wide in log10(seconds), log-uniform inside a bin; times are multiplied by `scale`.

    Errors: SpecError.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive("devices.scale", self.scale)

    def quantile(self, u: F64) -> F64:
        """Inverse CDF in seconds. Purity: pure (the table is read once)."""
        cumulative, log_edges = _papaya_table()
        return np.asarray(self.scale * np.exp(np.interp(u, cumulative, log_edges)), dtype=np.float64)


@dataclass(frozen=True)
class Table:
    """Measured seconds: a client takes one of `values`, each equally likely. Errors: SpecError."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        column = np.asarray(self.values, dtype=np.float64)
        _require(column.ndim == 1 and column.size > 0, "devices.values", column.size, "at least one number of seconds")
        ok = bool(np.isfinite(column).all() and (column >= 0).all())
        _require(ok, "devices.values", f"{column.size} values", "finite seconds ≥ 0, all of them")
        object.__setattr__(self, "_sorted", np.sort(column))

    def quantile(self, u: F64) -> F64:
        """The value of rank floor(u · n). Purity: pure."""
        column: F64 = self.__dict__["_sorted"]
        rank = np.minimum((np.asarray(u) * column.size).astype(np.int64), column.size - 1)
        return np.asarray(column[rank], dtype=np.float64)
