"""Metric rows and run descriptions, and the rules they must keep before anything reaches a tracking store.

MLflow truncates long values silently, stores 1.5 as a step, turns inf into 1.8e308 and NaN into 0 with a flag. None of
that may happen to a result, so everything is checked here, once, for every tracker.
"""

from __future__ import annotations

import math
import posixpath
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import Problem, SpecError

__all__ = [
    "MAX_BATCH_ROWS",
    "MAX_PARAMS",
    "Row",
    "RunInfo",
    "check_run",
    "check_tags",
    "finite_rows",
    "flatten_params",
    "now_ms",
]

MAX_BATCH_ROWS = 1000
MAX_PARAMS = 100
_MAX_KEY_CHARS = 250
_MAX_PARAM_CHARS = 6000
_MAX_TAG_CHARS = 8000
_MAX_STEP = 2**63 - 1
_NAME = re.compile(r"[/\w.\- :]+", re.ASCII)
_NAME_RULE = "letters, digits and _ - . space : /, at most 250 characters, and a normal relative path"


@dataclass(frozen=True, slots=True)
class Row:
    """One metric value.

    Attributes:
        key: metric name, such as "eval/auc".
        step: server step, or the number of the version evaluated; ≥ 0.
        value: may be NaN or infinite here; such rows are left out, and counted, by `finite_rows`.
        timestamp_ms: real wall clock, milliseconds since 1970. It belongs to the row's identity in MLflow: a replay
            must carry the same one, which is why the outbox keeps it.
    """

    key: str
    step: int
    value: float
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What names and describes a run in a tracking store.

    Attributes:
        experiment: name of the experiment; created where missing.
        run_name: what people read.
        run_key: what machines find it by (tag `fl.run_key`): starting again with the same key reopens the same run.
        params: flat, at most 100; see `flatten_params`.
        tags: free text per name.
        parent_run_id: run id of the sweep that this run belongs to.
    """

    experiment: str
    run_name: str
    run_key: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    parent_run_id: str | None = None


def now_ms() -> int:
    """Wall clock in milliseconds since 1970: the one source of row timestamps. Not pure."""
    return time.time_ns() // 1_000_000


def _name_problem(place: str, name: object) -> Problem | None:
    if isinstance(name, str) and len(name) <= _MAX_KEY_CHARS and _NAME.fullmatch(name):
        # MLflow stores names as paths: "a//b" and "../a" would land elsewhere
        normal = posixpath.normpath(name) == name and not name.startswith(("..", "/")) and name != "."
        if normal:
            return None
    return Problem(place, repr(name)[:300], _NAME_RULE, "MLflow refuses other names")


def _integer_problem(place: str, value: object) -> Problem | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_STEP:
        return None
    return Problem(
        place, repr(value)[:300], "an integer from 0 to 2⁶³ − 1", "SQLite would store anything else as it is"
    )


def _is_plain(row: Row) -> bool:
    """Whether numbers are builtin and in range, as they nearly always are: the quick way, since rows are many."""
    return (
        type(row.value) is float
        and type(row.step) is int
        and type(row.timestamp_ms) is int
        and 0 <= row.step <= _MAX_STEP
        and 0 <= row.timestamp_ms <= _MAX_STEP
    )


def finite_rows(rows: Iterable[Row]) -> tuple[list[Row], int]:
    """Check names, steps and timestamps, and leave out NaN and infinite values.

    A value that is not finite does not stop a run (a diverged loss is a result), but it has no honest place in MLflow,
    which would store 0 or 1.8e308: the point is missing from the chart and counted instead.

    Returns:
        The finite rows with builtin floats, in the given order, and how many were left out.

    Raises:
        SpecError: every name, step, timestamp or value type that breaks a rule.

    Purity: pure.
    """
    kept: list[Row] = []
    problems: list[Problem] = []
    left_out = 0
    legal: set[str] = set()
    for row in rows:
        if _is_plain(row) and (row.key in legal or _name_problem("", row.key) is None):
            legal.add(row.key)
            if math.isfinite(row.value):
                kept.append(row)
            else:
                left_out += 1
            continue
        place = f"metric {row.key!s}"[:300]
        found = [
            _name_problem(place, row.key),
            _integer_problem(f"{place}, step", row.step),
            _integer_problem(f"{place}, timestamp_ms", row.timestamp_ms),
        ]
        try:
            value = float(row.value)
        except (TypeError, ValueError):
            found.append(Problem(place, repr(row.value)[:300], "a number"))
            value = math.nan
        bad = [problem for problem in found if problem]
        problems += bad
        if bad:
            continue
        if math.isfinite(value):
            kept.append(Row(row.key, row.step, value, row.timestamp_ms))
        else:
            left_out += 1
    if problems:
        raise SpecError(problems)
    return kept, left_out


def _text_problems(kind: str, values: Mapping[str, Any], limit: int) -> list[Problem]:
    problems = [found for name in values if (found := _name_problem(f"{kind} {name!s}"[:300], name))]
    for name, value in values.items():
        place = f"{kind} {name!s}"[:300]
        if not isinstance(value, str):
            problems.append(Problem(place, repr(value)[:300], "a string"))
        elif len(value) > limit:
            rule = f"at most {limit} characters"
            problems.append(Problem(place, f"{len(value)} characters", rule, "MLflow would cut it", "use an artifact"))
    return problems


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise SpecError with every tag whose name or length breaks a rule. Purity: pure."""
    problems = _text_problems("tag", tags, _MAX_TAG_CHARS)
    if problems:
        raise SpecError(problems)


def check_run(info: RunInfo) -> None:
    """Raise SpecError with every part of `info` that a tracking store would refuse or cut. Purity: pure."""
    problems = _text_problems("param", info.params, _MAX_PARAM_CHARS) + _text_problems("tag", info.tags, _MAX_TAG_CHARS)
    if len(info.params) > MAX_PARAMS:
        rule = f"at most {MAX_PARAMS}"
        problems.append(
            Problem("params", f"{len(info.params)} of them", rule, hint="put the whole spec in an artifact")
        )
    if not re.fullmatch(r"[\w.:\-]{1,250}", info.run_key, re.ASCII):
        problems.append(Problem("run_key", repr(info.run_key)[:300], "1 to 250 letters, digits and _ . : -"))
    if not info.experiment.strip() or len(info.experiment) > 500:
        problems.append(Problem("tracking.experiment", repr(info.experiment)[:300], "a name of 1 to 500 characters"))
    if not info.run_name.strip() or len(info.run_name) > 250:
        problems.append(Problem("name", repr(info.run_name)[:300], "a name of 1 to 250 characters"))
    if problems:
        raise SpecError(problems)


def flatten_params(nested: Mapping[str, Any], limit: int = MAX_PARAMS) -> dict[str, str]:
    """Nested settings as dotted names and strings that a tracking store takes.

    Mappings are opened; sequences of plain values become `[a, b]`; None is `null`. Beyond `limit` names, or 6,000
    characters in a value, the rest is left out here: the whole spec belongs in an artifact.

    Purity: pure; order of the input.

    Example:
        >>> flatten_params({"client": {"lr": 0.1, "hidden": [64, 32]}, "seed": 7})
        {'client.lr': '0.1', 'client.hidden': '[64, 32]', 'seed': '7'}
    """
    flat: dict[str, str] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                visit(f"{prefix}.{name}" if prefix else str(name), inner)
            return
        text = _plain(value)
        if len(flat) < limit and len(text) <= _MAX_PARAM_CHARS:
            flat[prefix] = text

    visit("", nested)
    return flat


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return str(value)
