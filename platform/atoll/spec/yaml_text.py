"""YAML in and out: the few types that a spec needs, read the same way as they are written.

YAML 1.1, which PyYAML follows, reads `1e-3` as text, `no` as false, `1:30` as 90, `010` as 8 and `2024-01-01` as a
date. Here only null, true, false, decimal numbers and text exist (YAML 1.2's core schema with `_` between digits).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import yaml

from atoll.errors import Problem, SpecError

__all__ = ["read_yaml", "write_yaml"]

_DEEPEST = 40
_MOST = 100_000
_INT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*")
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_FLOAT = re.compile(
    rf"[-+]?(?:{_DIGITS}\.(?:{_DIGITS})?(?:[eE][-+]?[0-9]+)?|\.{_DIGITS}(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+)"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_RESOLVERS = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789.")),
    ("tag:yaml.org,2002:merge", re.compile(r"<<"), ["<"]),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema; duplicate keys and keys that are not text are refused."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[str | None, Callable[..., Any]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                raise _refusal("a key that is not text; put it in quotes", key_node)
            line = key_node.start_mark.line + 1
            if key_node.value in lines:
                first = lines[key_node.value]
                raise _refusal(f"the key {key_node.value} is there twice, first in line {first}", key_node)
            lines[key_node.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes round text which `_Loader` would read as something else; no aliases."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _refusal(why: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _number(convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = loader.construct_scalar(node).replace("_", "")
        try:
            return convert(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
        except ValueError as error:
            raise _refusal("not a number, or one of thousands of digits", node) from error

    return construct


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node).lower()
    if text not in ("true", "false"):
        raise _refusal("neither true nor false", node)
    return text == "true"


def _null(loader: _Loader, node: yaml.ScalarNode) -> None:
    loader.construct_scalar(node)


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    text = loader.construct_scalar(node)
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    try:  # JSON writes characters beyond 16 bits as two escapes; PyYAML leaves them apart
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise _refusal("half of a surrogate pair", node) from error


def _undefined(loader: _Loader, node: yaml.Node) -> None:
    del loader
    raise _refusal(f"the tag {node.tag} is not known here; write plain values", node)


for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _RESOLVERS:
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
for _name, _constructor in (
    ("int", _number(int)),
    ("float", _number(float)),
    ("bool", _bool),
    ("null", _null),
    ("str", _text),
    ("seq", yaml.SafeLoader.construct_yaml_seq),
    ("map", yaml.SafeLoader.construct_yaml_map),
):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_name}", _constructor)
_Loader.add_constructor(None, _undefined)


def read_yaml(text: str | bytes, place: str) -> Any:
    """One YAML document as plain values.

    Args:
        text: the document.
        place: what to call it in messages: a path, or the override.

    Raises:
        SpecError: not UTF-8, not YAML, several documents, a duplicate key, more than 40 levels or 100,000 values.

    Purity: pure.
    """
    loader = None
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise SpecError([_marked(error, place)]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = "A character is not UTF-8, or may not be in YAML"
        raise SpecError([Problem(place, "", "readable text", why)]) from error
    except RecursionError as error:
        raise SpecError([Problem(place, "", f"at most {_DEEPEST} levels")]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if rule := _too_much(value):
        raise SpecError([Problem(place, "", rule, "Aliases that contain each other never end")])
    return value


def _marked(error: yaml.MarkedYAMLError, place: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    where = f"{place}, line {mark.line + 1}, column {mark.column + 1}" if mark else place
    said = error.problem or error.context or "unreadable"
    if said == "but found another document":
        said = "a second document starts here; one file is one spec"
    hint = ""
    if "\\t" in said:
        hint = "Indent with spaces; YAML forbids tabs"
    elif "mapping values are not allowed" in said:
        hint = "Check the indentation, and put quotes round text that contains a colon and a space"
    elif "expected ',' or" in said:
        hint = "A bracket is not closed, or a comma is missing"
    return Problem(where, "", "valid YAML", said[:1].upper() + said[1:], hint)


def _too_much(value: Any) -> str:
    """The bound that the value breaks with its aliases written out, or nothing."""
    stack, visited = [(value, _DEEPEST)], 0
    while stack:
        item, left = stack.pop()
        visited += 1
        if left < 0:
            return f"at most {_DEEPEST} levels"
        if visited > _MOST:
            return f"at most {_MOST:,} values"
        stack.extend((deeper, left - 1) for deeper in _inner(item))
    return ""


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def write_yaml(value: Any) -> str:
    """Plain values as YAML that `read_yaml` reads back as equal values; keys keep their order.

    Purity: pure.
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
