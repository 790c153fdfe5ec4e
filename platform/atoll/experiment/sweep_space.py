"""What a sweep tries: `KEY=A,B,C` is a list of values, `KEY=low..high` a range; anything else is an override."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll import spec as sp
from atoll.errors import Problem, SpecError

__all__ = ["Choice", "Dimension", "Range", "corners", "dimension_from", "read_space"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::[a-z]*)*)")
#: what means to be a range: something before the dots and behind them, neither a path nor text in quotes
_LIKE_A_RANGE = re.compile(r"[^\s./'\"\[{][^\s/'\"\[{]*\.\.[^\s/]+")
_WORDS = ("log", "int")
#: sections that are no matter of choice: what is measured and for how long is the same for every trial
_FIXED = ("name", "seed", "stop", "evaluation", "tracking", "runtime", "comparison", "ensemble")
#: corners that are looked at all; of more, those that differ from the first in one key
_MOST_CORNERS = 256
_SYNTAX = "KEY=A,B,C, KEY=low..high, KEY=low..high:log or KEY=low..high:int"


@dataclass(frozen=True, slots=True)
class Choice:
    """A key and the values that it may take, in the order given; no order among them is made use of."""

    key: str
    values: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        """Every value: each may be wrong for itself."""
        return self.values

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"key": self.key, "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Range:
    """A key and the range of numbers that it may take, both ends included.

    Attributes:
        key: dotted.
        low, high: low < high; > 0 where `is_log`; whole numbers where `is_int`.
        is_log: whether equal ratios, not equal differences, are equally likely.
        is_int: whether only whole numbers are meant.
    """

    key: str
    low: float
    high: float
    is_log: bool = False
    is_int: bool = False

    def ends(self) -> tuple[Any, ...]:
        """Lowest and highest value."""
        return (int(self.low), int(self.high)) if self.is_int else (self.low, self.high)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"key": self.key, "low": self.low, "high": self.high, "log": self.is_log, "int": self.is_int}


Dimension = Choice | Range


def dimension_from(plain: Mapping[str, Any]) -> Dimension:
    """What `as_dict` made plain."""
    if "values" in plain:
        return Choice(plain["key"], tuple(plain["values"]))
    return Range(plain["key"], plain["low"], plain["high"], plain["log"], plain["int"])


def read_space(arguments: Sequence[str]) -> tuple[tuple[Dimension, ...], tuple[str, ...]]:
    """(what is to be varied, plain overrides), each in the order given.

    A comma inside brackets or quotes belongs to a value: `model.hidden=[64],[64, 32]` are two.

    Raises:
        SpecError: every argument that is wrong, at once; or nothing is to be varied.

    Purity: pure.

    Example:
        >>> read_space(["client.lr=0.01..1:log", "seed=3"])
        ((Range(key='client.lr', low=0.01, high=1.0, is_log=True, is_int=False),), ('seed=3',))
    """
    found: dict[str, Dimension] = {}
    plain: list[str] = []
    problems: list[Problem] = []
    for argument in arguments:
        try:
            one = _dimension(argument)
        except SpecError as error:
            problems += error.problems
            continue
        if one is None:
            plain.append(argument)
        elif one.key in found:
            problems.append(Problem(one.key, argument, "each key once", "it is varied already"))
        else:
            found[one.key] = one
            problems += _fixed_problems(one.key)
    if not found and not problems:
        problems.append(Problem("sweep", "no key with several values", _SYNTAX, "a sweep varies something"))
    if problems:
        raise SpecError(problems)
    return tuple(found.values()), tuple(plain)


def _fixed_problems(key: str) -> list[Problem]:
    section = key.split(".")[0]
    if section not in _FIXED:
        return []
    hint = {"seed": "--seeds 3 runs every trial with three", "stop": "--rungs stops poor trials early"}.get(section, "")
    return [Problem(key, "several values", "one value", "trials are compared under the same conditions", hint)]


def _dimension(argument: str) -> Dimension | None:
    """What an argument varies; None where it is an override."""
    key, equals, text = argument.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key:
        return None  # told by whoever reads overrides
    parts = _parts(text)
    if len(parts) > 1:
        values = tuple(sp.parse_override(f"{key}={part}")[1] for part in parts)
        twice = [part for index, part in enumerate(parts) if values[index] in values[:index]]
        if twice or not all(parts):
            value, rule = (twice[0], "each value once") if all(parts) else (text, "a value between commas")
            raise SpecError([Problem(key, value, rule, "", "text that contains a comma is put in quotes")])
        return Choice(key, values)
    return _range(key, text) if _LIKE_A_RANGE.fullmatch(text) else None


def _parts(text: str) -> list[str]:
    """The text at its commas, but for those inside brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and parts[-1].strip()[-1:] in ("", "[", "{", ",", ":"):
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _range(key: str, text: str) -> Range:
    match = _RANGE.fullmatch(text)
    if match is None:
        hint = "text with two dots in it is put in quotes"
        raise SpecError([Problem(key, text, "a range of numbers, low..high, low..high:log or low..high:int", "", hint)])
    low, high, words = float(match[1]), float(match[2]), match[3].split(":")[1:]
    is_log, is_int = "log" in words, "int" in words
    rule = ""
    if not set(words) <= set(_WORDS) or len(set(words)) < len(words):
        rule = "after the range :log, :int or both"
    elif not (math.isfinite(low) and math.isfinite(high) and low < high):
        rule = "low below high"
    elif is_log and low <= 0:
        rule = "low above 0, since :log means equal ratios"
    elif is_int and not (low.is_integer() and high.is_integer()):
        rule = "whole numbers, since :int is there"
    if rule:
        raise SpecError([Problem(key, text, rule)])
    return Range(key, low, high, is_log, is_int)


def corners(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Combinations of ends: all of them, or where these are many, those that differ from the first in one key.

    Purity: pure.
    """
    ends = [one.ends() for one in dimensions]
    keys = [one.key for one in dimensions]
    if math.prod(map(len, ends)) <= _MOST_CORNERS:
        return [dict(zip(keys, values, strict=True)) for values in itertools.product(*ends)]
    first = dict(zip(keys, (values[0] for values in ends), strict=True))
    others = [first | {key: value} for key, values in zip(keys, ends, strict=True) for value in values[1:]]
    return [first, *others]
