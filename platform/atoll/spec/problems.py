"""pydantic's errors, in the words of the house: place, value, rule, why, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from atoll.errors import Problem
from atoll.spec.schema import Place, describe, dotted, field_paths, fields_of, kinds_of, locate

__all__ = ["nearest", "shown", "translate"]

_LONGEST = 60


def shown(value: Any) -> str:
    """A value as one reads it in a message: YAML's null, true, false; text in quotes; shortened to 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif isinstance(value, int) and abs(value) >= 10**_LONGEST:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def nearest(name: object, candidates: Iterable[str]) -> str:
    """`Did you mean X`, or nothing when no candidate is near."""
    close = difflib.get_close_matches(str(name).lower(), list(candidates), n=1, cutoff=0.6)
    return f"Did you mean {close[0]}" if close else ""


def translate(errors: Sequence[ErrorDetails], raw: Any) -> list[Problem]:
    """One problem per place, in pydantic's order.

    Args:
        errors: of a failed validation of `raw` by Spec.
        raw: the whole spec as it was read.

    Purity: pure.
    """
    problems: dict[tuple[str, str], Problem] = {}
    for error in errors:
        place = locate(raw, error["loc"])
        problem = _problem(error["type"], place)
        problems.setdefault((problem.path, "" if place.is_present else "missing"), problem)
    return list(problems.values())


def _problem(kind: str, place: Place) -> Problem:
    path = dotted(place.keys)
    if not path:
        return Problem("the spec", shown(place.value), "sections such as name, data, model; each `section: …`")
    if kind == "extra_forbidden" or place.node is None:
        return _extra(path, place)
    variants = kinds_of(place.node)
    if variants and kind.startswith("union_tag"):
        return _wrong_kind(path, place, list(variants))
    rule = describe(place.node, place.value)
    description = str(place.node.get("description", ""))
    if not place.is_present:
        return Problem(path, "nothing", rule, description)
    if kind == "none_required":
        return Problem(path, shown(place.value), rule, description, f"Remove {path}, or set it to null")
    why = description if kind == "string_pattern_mismatch" else ""
    return Problem(path, shown(place.value), rule, why, _hint(kind, place))


def _wrong_kind(path: str, place: Place, kinds: list[str]) -> Problem:
    rule = f"one of {', '.join(kinds)}"
    if not (isinstance(place.value, Mapping) and "kind" in place.value):
        return Problem(f"{path}.kind", "nothing", rule, str((place.node or {}).get("description", "")))
    value = place.value["kind"]
    hint = nearest(value, kinds) if isinstance(value, str) else ""
    return Problem(f"{path}.kind", shown(value), rule, "", hint)


def _extra(path: str, place: Place) -> Problem:
    name = str(place.keys[-1])
    variants = kinds_of(place.parent)
    fields = list(fields_of(place.parent, place.kind))
    owner = dotted(place.keys[:-1])
    if not owner:
        rule = f"one of the sections {', '.join(fields)}"
        hint = nearest(name, fields)
        if not hint and (elsewhere := field_paths(name)):
            hint = f"Did you mean {' or '.join(elsewhere[:3])}"
        return Problem(path, shown(place.value), rule, "No section has this name", hint)
    where = f"{owner} (kind {place.kind})" if variants else owner
    others = [kind for kind in variants if kind != place.kind and name in fields_of(place.parent, kind)]
    why = f"{name} is not a field of {where}"
    if others:
        why += f"; kind {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
    rule = f"one of its fields {', '.join(fields)}"
    return Problem(path, shown(place.value), rule, why, nearest(name, [field for field in fields if field != "kind"]))


def _hint(kind: str, place: Place) -> str:
    node, value = place.node or {}, place.value
    types = {option.get("type") for option in node.get("anyOf", [node])}
    if isinstance(value, str) and types & {"integer", "number"} and _is_number(value):
        return "Write it without quotes"
    if isinstance(value, str) and "boolean" in types and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return "Write true or false"
    if kind == "tuple_type" and isinstance(value, str | int | float):
        return f"Write a list: [{shown(value)}]"
    choices = [choice for option in node.get("anyOf", [node]) for choice in option.get("enum", [option.get("const")])]
    if isinstance(value, str):
        return nearest(value, [choice for choice in choices if isinstance(choice, str)])
    if value is None:
        return f"Remove {dotted(place.keys)} to use its default" if "default" in node else ""
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
