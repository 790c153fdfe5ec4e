"""Overrides: `dotted.key=value`, the value in YAML, put into the spec before it is checked."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atoll.errors import Problem, SpecError
from atoll.spec.problems import nearest, shown
from atoll.spec.schema import child, describe, dotted, fields_of, json_schema, kinds_of
from atoll.spec.yaml_text import read_yaml

__all__ = ["apply", "parse_override"]


@functools.cache
def _schema() -> Mapping[str, Any]:
    return json_schema()


def parse_override(text: str) -> tuple[str, Any]:
    """`client.lr=0.1` → ("client.lr", 0.1); everything after the first `=` is YAML.

    Raises:
        SpecError: no `=`, no key, or a value that is not YAML.

    Purity: pure.

    Example:
        >>> parse_override("schedule={kind: sync, cohort: 10}")
        ('schedule', {'kind': 'sync', 'cohort': 10})
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or not all(key.split(".")):
        hint = "Write a full key before =" if equals else f"Write {text.strip() or 'key'}=VALUE"
        raise SpecError([Problem(f"override {text!r}", "", "dotted.key=value, such as client.lr=0.1", "", hint)])
    return key, read_yaml(value, f"override {text!r}")


def apply(raw: Mapping[str, Any], pairs: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[Problem]]:
    """The spec with the values set, one after the other, and what was wrong with the pairs.

    A section that the file leaves out starts from its defaults. A changed `kind` is refused: fields of the old kind
    would be lost, or would not belong, without anybody having said so; the whole section is given instead. Unknown
    keys are set all the same, since validation tells them with the nearest valid name.

    Purity: pure; `raw` is not changed.
    """
    result = copy.deepcopy(dict(raw))
    problems = []
    for key, value in pairs:
        problem = _set(result, key.split("."), copy.deepcopy(value))
        if problem is not None:
            problems.append(problem)
    return result, problems


def _set(top: dict[str, Any], keys: Sequence[str], value: Any) -> Problem | None:
    section: dict[str, Any] = top
    node: Mapping[str, Any] | None = _schema()
    for index, key in enumerate(keys[:-1]):
        below = None if node is None else child(node, key, section.get("kind"))
        if key not in section or section[key] is None:
            section[key] = _default(below, keys[index + 1])
        inner = section[key]
        if not isinstance(inner, dict):
            what = "a section" if below is None else describe(below)
            hint = f"Set {dotted(keys[: index + 1])} as a whole"
            why = f"{dotted(keys[: index + 1])} is {shown(inner)}, which has no fields"
            return Problem(dotted(keys), shown(value), f"a key that exists ({what})", why, hint)
        section, node = inner, below
    has_kind = node is not None and (kinds_of(node) or "kind" in fields_of(node))
    if keys[-1] == "kind" and node is not None and has_kind and section.get("kind", value) != value:
        return _changed_kind(keys, value, section, node)
    section[keys[-1]] = value
    return None


def _default(node: Mapping[str, Any] | None, next_key: str) -> dict[str, Any]:
    """A section that the file leaves out: its default kind, the classes know the rest."""
    default = None if node is None else node.get("default")
    return {"kind": default["kind"]} if isinstance(default, dict) and "kind" in default else {}


def _changed_kind(keys: Sequence[str], new: Any, section: Mapping[str, Any], node: Mapping[str, Any]) -> Problem | None:
    variants = kinds_of(node)
    path, owner, old = dotted(keys), dotted(keys[:-1]), section["kind"]
    if not isinstance(new, str) or new not in variants:
        rule = f"one of {', '.join(variants)}" if variants else describe(fields_of(node)["kind"])
        return Problem(path, shown(new), rule, "", nearest(new, variants))
    required = [name for name in variants[new].get("required", []) if name != "kind"]
    lost = [name for name in section if name not in variants[new]["properties"]]
    why = [f"it is {old} so far"]
    if lost:
        why.append(f"{new} has no {', '.join(lost)}")
    if required:
        why.append(f"{new} needs {', '.join(required)}")
    template = ", ".join([f"kind: {new}", *(f"{name}: …" for name in required)])
    text = "; ".join(why)
    return Problem(
        path,
        shown(new),
        "the whole section when its kind changes",
        text[:1].upper() + text[1:],
        f"Write {owner}={{{template}}}",
    )
