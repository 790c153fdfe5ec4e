"""Reading, checking, writing and naming specs."""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from atoll.errors import Problem, SpecError
from atoll.spec.ensemble import FederatedFit
from atoll.spec.ensemble_rules import is_fixed
from atoll.spec.overrides import apply, parse_override
from atoll.spec.problems import shown, translate
from atoll.spec.rules import cross_problems
from atoll.spec.schema import dotted, locate
from atoll.spec.spec import Spec
from atoll.spec.yaml_text import read_yaml, write_yaml

__all__ = ["arms", "derived", "digest", "dump", "identity", "load", "parse", "read_file", "to_dict"]

#: what decides neither a bit of the model nor a row of evaluation (design.md 9.4)
_OUTSIDE_IDENTITY = ("name", "stop", "tracking", "comparison", "runtime")
_RUNTIME_IDENTITY = ("lanes", "device_class", "kernel")
#: fields that came later, with the value that means what specs meant without them: at it, the identity stays as it was
_ADDED: Mapping[str, Any] = {
    "data.attributes": [],
    "client.precision": "float32",
    "clusters.only": None,
    "evaluation.server_share": 0.0,
    "runtime.kernel": "lanes",
}
#: fields that only refuse: what they let pass has the same bits whatever their value
_ONLY_CHECKS = ("population.device_memory_bytes",)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a YAML file, with overrides.

    Args:
        path: YAML file.
        overrides: `dotted.key=value` each, applied in order.

    Raises:
        SpecError: everything that is wrong, at once; YAML errors with line and column.

    Purity: reads the file.
    """
    raw = read_file(path)
    if raw is None:
        raise SpecError([Problem(str(path), "an empty file", "sections such as name, data, model")])
    return parse(raw, overrides)


def read_file(path: str | Path) -> Any:
    """The YAML document in a file, as plain values.

    Raises:
        SpecError: it cannot be read, or is not YAML; with line and column.

    Purity: reads the file.
    """
    file = Path(path)
    try:
        text = file.read_bytes()
    except OSError as error:
        raise SpecError([_unreadable(file, error)]) from error
    return read_yaml(text, str(path))


def _unreadable(file: Path, error: OSError) -> Problem:
    folder = file.parent
    if file.is_dir():
        return Problem(str(file), "a folder", "a YAML file", "", _listing(file))
    if isinstance(error, FileNotFoundError):
        if not folder.is_dir():
            return Problem(str(file), "nothing", "an existing file", f"There is no folder {folder}")
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
        stems = {Path(name).stem: name for name in names}
        found = [stems[stem] for stem in difflib.get_close_matches(file.stem, stems, n=3, cutoff=0.6)]
        hint = f"Did you mean {' or '.join(str(folder / name) for name in found)}" if found else _listing(folder)
        return Problem(str(file), "nothing", "an existing file", "", hint)
    return Problem(str(file), "", "a file that can be read", error.strerror or str(error))


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))[:10]
    return f"In {folder}: {', '.join(names)}" if names else f"{folder} holds no YAML file"


def parse(mapping: Mapping[str, Any], overrides: Sequence[str] = ()) -> Spec:
    """The spec in a mapping, as YAML gives it, with overrides.

    Raises:
        SpecError: everything that is wrong, at once: overrides, fields, rules between fields, arms of a comparison.

    Purity: pure; `mapping` is not changed.
    """
    if not isinstance(mapping, Mapping):
        raise SpecError([Problem("the spec", shown(mapping), "sections such as name, data, model; each `section: …`")])
    pairs: list[tuple[str, Any]] = []
    problems: list[Problem] = []
    for text in overrides:
        try:
            pairs.append(parse_override(text))
        except SpecError as error:
            problems += error.problems
    raw, misplaced = apply(mapping, pairs)
    spec, found = _check(raw)
    found += _member_problems(raw, found)
    problems += [*misplaced, *found]
    problems += _arm_problems(raw, found)
    if spec is None or problems:
        raise SpecError(problems)
    return spec


def _check(raw: Mapping[str, Any]) -> tuple[Spec | None, list[Problem]]:
    """The spec, or all that is wrong with it: fields first, then rules between the fields that are right."""
    try:
        return Spec.model_validate(raw), []
    except SpecError as error:
        return None, list(error.problems)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        problems = translate(errors, raw)
        remains = copy.deepcopy(dict(raw))
        wrong = [locate(raw, detail["loc"]).keys for detail in errors]
        for keys in wrong:
            _remove(remains, keys)
        distrusted = {problem.path for problem in problems} | {_meant(problem) for problem in problems}
        distrusted |= {dotted(keys) for keys in wrong}
        return None, [*problems, *cross_problems(_valid_sections(remains), distrusted)]


def _meant(problem: Problem) -> str:
    """The path that a misspelt key stood for, so that rules do not speak about its default."""
    name = problem.hint.removeprefix("Did you mean ") if problem.hint.startswith("Did you mean ") else ""
    return f"{problem.path.rpartition('.')[0]}.{name}".removeprefix(".")


def _remove(raw: Any, keys: Sequence[str | int]) -> None:
    """Takes out what is wrong, so that the rest of a section can be looked at; a wrong item takes its whole list."""
    for index, key in enumerate(keys):
        is_last = index == len(keys) - 1 or isinstance(keys[index + 1], int)
        if not isinstance(raw, dict) or key not in raw:
            return
        if is_last:
            del raw[key]
            return
        raw = raw[key]


@functools.cache
def _adapter(section: str) -> TypeAdapter[Any]:
    info = Spec.model_fields[section]
    annotation: Any = Annotated[info.annotation, info]
    return TypeAdapter(annotation)


def _valid_sections(raw: Mapping[str, Any]) -> dict[str, Any]:
    sections = {}
    for name, info in Spec.model_fields.items():
        if name not in raw:
            sections[name] = None if info.is_required() else info.default
            continue
        try:
            sections[name] = _adapter(name).validate_python(raw[name])
        except ValidationError:
            sections[name] = None
    return sections


def _arm_problems(raw: Mapping[str, Any], known: Sequence[Problem]) -> list[Problem]:
    """What is wrong in the arms and not already wrong in the file without them."""
    comparison = raw.get("comparison")
    values_by_arm = comparison.get("arms") if isinstance(comparison, Mapping) else None
    if not isinstance(values_by_arm, Mapping):
        return []
    base = {**raw, "name": "arm", "comparison": None}
    problems = []
    for arm, values in values_by_arm.items():
        if isinstance(values, Mapping) and all(isinstance(key, str) and all(key.split(".")) for key in values):
            changed, misplaced = apply(base, values.items())
            found = [*misplaced, *_check(changed)[1]]
            found += _member_problems(changed, [*known, *found])
        elif isinstance(values, Mapping):
            found = [Problem("keys", shown(list(values)), "dotted keys, such as client.lr")]
        else:
            continue
        for problem in found:
            if problem not in known:
                path = f"comparison.arms.{arm}: {problem.path}"
                problems.append(Problem(path, problem.value, problem.rule, problem.why, problem.hint))
    return problems


def _member_problems(raw: Mapping[str, Any], known: Sequence[Problem]) -> list[Problem]:
    """What is wrong in leaves, controls and fit of an ensemble and not already wrong in the file without them."""
    ensemble = raw.get("ensemble")
    if not isinstance(ensemble, Mapping):
        return []
    base = {**raw, "name": "leaf", "clusters": {"kind": "single"}, "ensemble": None, "comparison": None}
    problems = []
    for place, values in _member_values(ensemble).items():
        problems += _placed(place, base, {key: value for key, value in values.items() if not is_fixed(key)}, known)
    try:
        fit = _adapter("ensemble").validate_python(ensemble).fit
    except ValidationError:
        return problems
    if isinstance(fit, FederatedFit):
        sections = {key: ensemble["fit"][key] for key in ("client", "schedule", "aggregation", "stop")}
        problems += _placed("ensemble.fit", base, sections, known)
    return problems


def _member_values(ensemble: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The overrides of leaves and controls by their place in the file; what has not their form is left out."""
    found = {}
    for section in ("leaves", "controls"):
        inner = ensemble.get(section)
        for name, values in inner.items() if isinstance(inner, Mapping) else ():
            if isinstance(values, Mapping) and all(isinstance(key, str) and all(key.split(".")) for key in values):
                found[f"ensemble.{section}.{name}"] = values
    return found


def _placed(place: str, base: Mapping[str, Any], values: Mapping[str, Any], known: Sequence[Problem]) -> list[Problem]:
    """What is wrong with the spec once the values are set and was not before, told at `place`."""
    changed, misplaced = apply(base, values.items())
    found = [problem for problem in [*misplaced, *_check(changed)[1]] if problem not in known]
    return [Problem(f"{place}: {one.path}", one.value, one.rule, one.why, one.hint) for one in found]


def to_dict(spec: Spec) -> dict[str, Any]:
    """The resolved spec as plain values, every default written; `parse` makes an equal spec of it.

    Purity: pure.
    """
    plain: dict[str, Any] = _kind_first(spec.model_dump(mode="json"))
    return plain


def _kind_first(value: Any) -> Any:
    if isinstance(value, dict):
        first = {"kind": value["kind"]} if "kind" in value else {}
        return first | {key: _kind_first(inner) for key, inner in value.items() if key != "kind"}
    return [_kind_first(inner) for inner in value] if isinstance(value, list) else value


def dump(spec: Spec) -> str:
    """The resolved spec as YAML, every default written; `load` makes an equal spec of it.

    Purity: pure.
    """
    return write_yaml(to_dict(spec))


def identity(spec: Spec) -> dict[str, Any]:
    """What decides the result, as plain values: what a run that is resumed must share with the run that was begun.

    Purity: pure.
    """
    found = {key: value for key, value in to_dict(spec).items() if key not in _OUTSIDE_IDENTITY}
    found["ensemble"] = None  # its members are runs of their own; what joins them changes none of their bits
    found["runtime"] = {key: getattr(spec.runtime, key) for key in _RUNTIME_IDENTITY}
    if spec.data.kind == "leaf_outputs":
        del found["data"]["path"]  # the content is the same wherever it lies
    for path, before in _ADDED.items():
        section, field = _section_of(found, path)
        if section.get(field, ...) == before:
            del section[field]
    for path in _ONLY_CHECKS:
        section, field = _section_of(found, path)
        section.pop(field, None)
    return found


def _section_of(plain: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section that a dotted path leads to, {} where there is none, and the field's name in it."""
    *sections, field = path.split(".")
    inner: Any = plain
    for key in sections:
        inner = inner.get(key) if isinstance(inner, dict) else None
    return (inner if isinstance(inner, dict) else {}), field


def digest(spec: Spec) -> str:
    """SHA-256, in hex, of what decides the result, as canonical JSON.

    Outside it: name, stop, ensemble, tracking, comparison, population.device_memory_bytes, and of runtime all but
    lanes, kernel and device_class, since Ray and inline, and any number of workers, end in the same bits (design.md
    9.1, 9.4).

    Purity: pure.
    """
    text = json.dumps(identity(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derived(spec: Spec, values: Mapping[str, Any], **sections: Any) -> Spec:
    """The spec with whole sections, name or seed given anew, and then dotted keys set, as in overrides.

    Args:
        spec: resolved.
        values: dotted key → plain value.
        sections: name → plain value, such as `clusters={"kind": "single"}`.

    Raises:
        SpecError: everything that is wrong with the spec that this makes.

    Purity: pure.
    """
    changed, problems = apply({**to_dict(spec), **sections}, values.items())
    if problems:
        raise SpecError(problems)
    return parse(changed)


def arms(spec: Spec) -> list[tuple[str, int, Spec]]:
    """(arm, seed, spec) of every run of a comparison, arm by arm; the baseline first.

    Each has its own name, `NAME-ARM-sSEED`, no comparison, and the comparison's MLflow experiment. Without a
    comparison: one entry, ("", spec.seed, spec).

    Raises:
        SpecError: a spec with a comparison that `parse` did not see.

    Purity: pure.
    """
    comparison = spec.comparison
    if comparison is None:
        return [("", spec.seed, spec)]
    base = to_dict(spec)
    base["comparison"] = None
    base["tracking"]["experiment"] = spec.tracking.experiment or spec.name
    order = sorted(comparison.arms, key=lambda arm: arm != comparison.baseline)
    runs = []
    for arm in order:
        changed, problems = apply(base, comparison.arms[arm].items())
        if problems:
            raise SpecError(problems)
        for seed in comparison.seeds:
            name = f"{spec.name}-{arm}-s{seed}"
            runs.append((arm, seed, parse({**changed, "name": name, "seed": seed})))
    return runs
