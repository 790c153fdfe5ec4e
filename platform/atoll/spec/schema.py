"""The JSON schema of a spec, and plain words made from it: one source for editors, messages and overrides."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.spec.spec import Spec

__all__ = ["Place", "child", "describe", "dotted", "field_paths", "fields_of", "json_schema", "kinds_of", "locate"]

Node = Mapping[str, Any]
Key = str | int


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a spec file; editors complete and check with it.

    Purity: pure; every call returns a new dict.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Spec.model_json_schema(mode="validation"),
        "title": "atoll spec",
    }


@functools.cache
def _root() -> Node:
    return json_schema()


def _resolve(node: Node) -> Node:
    while "$ref" in node:
        node = {**_root()["$defs"][node["$ref"].rsplit("/", 1)[1]], **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _options(node: Node) -> Iterator[Node]:
    """The alternatives of a node; a union with kinds counts as one."""
    node = _resolve(node)
    if "discriminator" in node:
        yield node
    elif "anyOf" in node:
        for option in node["anyOf"]:
            yield from _options(option)
    else:
        yield node


def kinds_of(node: Node) -> dict[str, Node]:
    """The variants of a node by kind; empty when it has none."""
    for option in _options(node):
        if "discriminator" in option:
            return {kind: _resolve({"$ref": ref}) for kind, ref in option["discriminator"]["mapping"].items()}
    return {}


def child(node: Node, key: Key, kind: object = None) -> Node | None:
    """The node under `key`, or None when nothing may be there; `kind` chooses the variant, any that fits if unknown."""
    for option in _options(node):
        variants = kinds_of(option)
        if variants:
            chosen = [variants[kind]] if isinstance(kind, str) and kind in variants else list(variants.values())
            for variant in chosen:
                if key in variant["properties"]:
                    return _resolve(variant["properties"][key])
        elif isinstance(key, str) and key in option.get("properties", {}):
            return _resolve(option["properties"][key])
        elif isinstance(key, str) and option.get("type") == "object" and "properties" not in option:
            extra = option.get("additionalProperties", True)
            return _resolve(extra) if isinstance(extra, dict) else {}
        elif isinstance(key, int) and option.get("type") == "array":
            return _resolve(option["items"])
    return None


def fields_of(node: Node, kind: object = None) -> dict[str, Node]:
    """The fields that a section may have, by name."""
    variants = kinds_of(node)
    if isinstance(kind, str) and kind in variants:
        return dict(variants[kind]["properties"])
    for option in _options(node):
        if "properties" in option:
            return dict(option["properties"])
    return {}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pydantic error is.

    Attributes:
        keys: the real keys from the top of the file.
        node: schema of what belongs there; None: nothing does.
        parent: schema of the section that holds it.
        kind: the parent's kind, if it has kinds.
        value: what the file has there; for missing things, None.
        is_present: whether the file has anything there.
    """

    keys: tuple[Key, ...]
    node: Node | None
    parent: Node
    kind: object
    value: Any
    is_present: bool


def locate(raw: Any, loc: Sequence[Key]) -> Place:
    """Turns pydantic's location, which names kinds and union members too, into a place in the file.

    Purity: pure.
    """
    node: Node | None = _root()
    parent: Node = _root()
    kind: object = None
    keys: list[Key] = []
    value, is_present = raw, True
    for index, piece in enumerate(loc):
        if node is None:
            break
        if kinds_of(node) and index + 1 < len(loc) and isinstance(value, Mapping) and value.get("kind") == piece:
            continue
        inner_kind = value.get("kind") if isinstance(value, Mapping) else None
        below = child(node, piece, inner_kind)
        if below is None and not (isinstance(value, Mapping) and piece in value):
            break  # the name of a union member, such as constrained-int
        parent, kind, node = node, inner_kind, below
        keys.append(piece)
        value, is_present = _below(value, piece)
    return Place(tuple(keys), node, parent, kind, value, is_present)


def _below(value: Any, key: Key) -> tuple[Any, bool]:
    if isinstance(value, Mapping) and key in value:
        return value[key], True
    if isinstance(value, Sequence) and not isinstance(value, str) and isinstance(key, int) and key < len(value):
        return value[key], True
    return None, False


def dotted(keys: Sequence[Key]) -> str:
    """`model.hidden[1]`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def field_paths(name: str) -> list[str]:
    """Dotted paths, one or two sections deep, of the fields called `name`, in the order of the sections."""
    found = []
    for section, node in fields_of(_root()).items():
        for variant in kinds_of(node).values() or [_resolve(node)]:
            for field, inner in fields_of(variant).items():
                if field == name:
                    found.append(f"{section}.{name}")
                variants = list(kinds_of(inner).values())
                if any(name in fields_of(deeper) for deeper in variants):
                    found.append(f"{section}.{field}.{name}")
    return list(dict.fromkeys(found))


def describe(node: Node, value: object = None) -> str:
    """What a node accepts, in plain words, such as `a whole number ≥ 1 or null`.

    Bounds of 2³¹ − 1 and more are told only where `value` breaks them.

    Purity: pure.
    """
    node = _resolve(node)
    if variants := kinds_of(node):
        nullable = " or null" if any(option.get("type") == "null" for option in _options(node)) else ""
        return f"a section with kind: {_one_of(list(variants))}{nullable}"
    if "anyOf" in node:
        parts = [describe(option, value) for option in node["anyOf"]]
        return " or ".join(dict.fromkeys(parts))
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return _one_of(node["enum"])
    kind = node.get("type")
    if kind in ("integer", "number"):
        return _number(node, value)
    if kind == "array":
        some = "a list" if not node.get("minItems") else "a list of at least one"
        return f"{some}, each {describe(node['items'])}"
    if kind == "string":
        long = f" of at most {node['maxLength']} characters" if "maxLength" in node else ""
        return f"text{long} such as {node['examples'][0]}" if "examples" in node else f"text{long}"
    if kind == "object":
        fields = node.get("properties")
        return f"a section with fields {', '.join(fields)}" if fields else "a mapping"
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "a value")


def _one_of(values: Sequence[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"one of {', '.join(map(str, values))}"


def _number(node: Node, value: object) -> str:
    what = "a whole number" if node["type"] == "integer" else "a number"
    bounds = []
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        is_huge = key == "maximum" and node.get(key, 0) >= 2**31 - 1
        if key in node and not (is_huge and not (isinstance(value, int | float) and value > node[key])):
            bounds.append(f"{sign} {node[key]:,}")
    return f"{what} {' and '.join(bounds)}".strip()
