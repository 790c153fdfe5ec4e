"""Checks a Ray cluster's file without a cloud: by Ray's offline validation, and by rules for what Ray does not check.

A mistake in such a file shows up minutes after `ray up`, on machines that cost money, or never: a head that trains
clients, an open dashboard, stopped disks that stay. Two kinds: files of the Ray cluster launcher (`provider.type`), and
RayCluster resources of KubeRay, which Ray's launcher does not read.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from atoll import __version__
from atoll.errors import Problem, SpecError

__all__ = [
    "ClusterFile",
    "NodeGroup",
    "Versions",
    "check_cluster_file",
    "group_problems",
    "here",
    "secret_problems",
    "shown",
    "unknown_keys",
    "version_problems",
]

#: the label of node groups: what they are for
POOL_LABEL = "fl/pool"
#: Ray's own label, by which jobs and runs choose nodes that stay
MARKET_LABEL = "ray.io/market-type"
#: nodes for which Ray was tested
MOST_NODES = 250
#: stands where the person who uses the file puts a name of their own
PLACEHOLDER = "REPLACE"

_SECRET_TEXT = (
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"://[^/\s:@]+:[^/\s@]+@"), "a password in an address"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bglpat-[\w-]{20,}|\bhf_[A-Za-z0-9]{30,}"), "an access token"),
    (
        re.compile(r"\b\w*(?:TOKEN|PASSWORD|SECRET_ACCESS_KEY|API_KEY)=(?![\"']?[$<])[\"']?[^\s\"';]+"),
        "a secret as a value",
    ),
)
_SECRET_NAME = re.compile(r"(?:^|_|-)(?:password|passwd|token|secret|api_?key|secret_?access_?key|credentials?)$", re.I)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LABEL_NAME = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9.-]{{0,251}}/)?{_LABEL.pattern}")
_ATOLL = re.compile(r"\batoll(?:\.git)?(?:-|==|:|@v?)(\d+\.\d+\.\d+(?:\.?\w+\d+)?)")
_RAY = re.compile(r"\bray(?:\[[\w,-]+\])?(?:==|:|)(\d+\.\d+\.\d+)")
_PYTHON = re.compile(r"-py3(\d+)\b")


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of one kind.

    Attributes:
        name: of the group.
        resources: what Ray counts on each of them.
        least, most: how many there may be.
        labels: of its nodes.
        is_spot: whether the cloud may take them away.
        idle_s: seconds without work after which one goes.
    """

    name: str
    resources: Mapping[str, float]
    least: int
    most: int
    labels: Mapping[str, str]
    is_spot: bool
    idle_s: float


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What a file that was found good describes.

    Attributes:
        kind: aws, gcp …, or kuberay.
        name: of the Ray cluster.
        groups: of workers.
        to_fill_in: places that hold a placeholder.
    """

    kind: str
    name: str
    groups: tuple[NodeGroup, ...]
    to_fill_in: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Versions:
    """What the nodes must have: the same as the machine that submits."""

    atoll: str
    ray: str


def here() -> Versions:
    """What is installed here."""
    return Versions(__version__, version("ray"))


def check_cluster_file(config: Any, versions: Versions | None = None) -> ClusterFile:
    """What `config` describes, once nothing is wrong with it. Asks no cloud and needs no credentials.

    Args:
        config: the file's content, as YAML gives it.
        versions: that its nodes must install; those of this process if None.

    Raises:
        SpecError: everything that is wrong, at once.
    """
    from atoll.runtime import kuberay_rules, launcher_rules

    if not isinstance(config, Mapping):
        raise SpecError([Problem("the file", shown(config), "the sections of a Ray cluster, such as provider")])
    versions = versions or here()
    if "kind" in config or "apiVersion" in config:
        found, problems = kuberay_rules.check(config, versions)
    else:
        found, problems = launcher_rules.check(config, versions)
    problems = list(dict.fromkeys([*problems, *secret_problems(config)]))
    if problems or found is None:
        raise SpecError(problems)
    places = tuple(path for path, text in _texts(config) if PLACEHOLDER in text)
    return ClusterFile(found.kind, found.name, found.groups, places)


# ---- rules for both kinds ---------------------------------------------------------------------------------------


def group_problems(groups: Iterable[tuple[str, NodeGroup]], boot_s: float) -> Iterator[Problem]:
    """What is wrong with groups of workers, each given with its place in the file.

    Args:
        groups: (path, group).
        boot_s: seconds until a node that was asked for is there.
    """
    for path, group in groups:
        if not 1 <= group.most <= MOST_NODES:
            yield Problem(f"{path}: most nodes", str(group.most), f"1 to {MOST_NODES}", "Ray was tested up to there")
        if group.least > group.most:
            yield Problem(f"{path}: fewest nodes", str(group.least), f"at most {group.most}, the most of this group")
        if group.idle_s <= boot_s:
            why = "shorter, nodes go before the work comes for which they were asked"
            yield Problem(f"{path}: idle timeout", f"{group.idle_s:g} s", f"longer than the {boot_s:g} s of boot", why)
        if group.resources.get("CPU", 0) < 1:
            why = "every client pool asks for one"
            yield Problem(f"{path}: CPUs", f"{group.resources.get('CPU', 0):g}", "at least 1 CPU", why)
        yield from _label_problems(path, group)


def _label_problems(path: str, group: NodeGroup) -> Iterator[Problem]:
    for name, value in group.labels.items():
        if not (_LABEL_NAME.fullmatch(name) and _LABEL.fullmatch(value)):
            rule = "prefix/name: value, of letters, digits, - _ . and letters or digits at the ends"
            yield Problem(f"{path}.labels", f"{name}: {value}", rule, "the node would not start", "As in Kubernetes")
    place, pool = f"{path}.labels", group.labels.get(POOL_LABEL)
    has_gpus, market = group.resources.get("GPU", 0) > 0, "spot" if group.is_spot else "on-demand"
    if pool is None:
        hint = f"{POOL_LABEL}: gpu, cpu, or a word of your own"
        yield Problem(place, shown(dict(group.labels)), f"the label {POOL_LABEL}", "runs choose nodes by it", hint)
    elif (pool == "gpu") != has_gpus:
        rule = f"{POOL_LABEL}: gpu exactly where there are GPUs"
        yield Problem(place, f"{POOL_LABEL}: {pool} with {group.resources.get('GPU', 0):g} GPUs", rule)
    if group.labels.get(MARKET_LABEL) != market:
        why = "jobs put their drivers on nodes that stay by this label"
        found = f"{MARKET_LABEL}: {group.labels.get(MARKET_LABEL, 'none')}"
        yield Problem(place, found, f"{MARKET_LABEL}: {market}, as the nodes are", why)


def version_problems(path: str, texts: Iterable[str], versions: Versions) -> Iterator[Problem]:
    """What is wrong with the software of a node, which is named in `texts`: its image and its set-up commands."""
    text = "\n".join(texts)
    for name, pattern, wanted in (("atoll", _ATOLL, versions.atoll), ("ray", _RAY, versions.ray)):
        named = sorted(set(pattern.findall(text)))
        if named != [wanted]:
            example = f"atoll-{wanted}-py3-none-any.whl" if name == "atoll" else f"rayproject/ray:{wanted}-py311-cpu"
            rule = f"{name} {wanted}, named in the image's tag or in a set-up command"
            why = "a run has the same bits only on the same software; submitting machine and nodes must agree"
            yield Problem(path, f"{name} {', '.join(named) or 'without a version'}", rule, why, f"such as {example}")
    for minor in sorted(set(_PYTHON.findall(text))):
        if int(minor) != sys.version_info.minor:
            rule = f"Python 3.{sys.version_info.minor}, as here"
            yield Problem(path, f"an image of Python 3.{minor}", rule, "Ray refuses drivers of another Python")


def secret_problems(config: Any) -> Iterator[Problem]:
    """Secrets in the file: it goes into repositories, and to every node."""
    hint = "A file, a secret of the cloud, or the environment of the command holds it"
    for path, text in _texts(config):
        name = path.rpartition(".")[2]
        kinds = [kind for pattern, kind in _SECRET_TEXT if pattern.search(text)]
        is_path = text.startswith(("~", "/")) or path.startswith("file_mounts")
        if not kinds and _SECRET_NAME.search(name) and text and not is_path and PLACEHOLDER not in text:
            kinds = ["a secret as a value"]
        if kinds:
            yield Problem(path, kinds[0], "no secret in the file", "it is copied to repositories and nodes", hint)
    yield from _environment_problems(config, "", hint)


def _environment_problems(value: Any, path: str, hint: str) -> Iterator[Problem]:
    """Kubernetes' environment variables, {name, value}, that hold a secret themselves."""
    if isinstance(value, Mapping):
        name, text = value.get("name"), value.get("value")
        if isinstance(name, str) and isinstance(text, str) and text and _SECRET_NAME.search(name):
            rule, why = "valueFrom.secretKeyRef", "the file is copied to repositories"
            yield Problem(path, f"{name} as a value", rule, why, hint)
        for key, inner in value.items():
            yield from _environment_problems(inner, f"{path}.{key}".removeprefix("."), hint)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _environment_problems(inner, f"{path}[{index}]", hint)


# ---- helpers ------------------------------------------------------------------------------------------------------


def unknown_keys(path: str, found: Iterable[str], known: Iterable[str], why: str = "") -> Iterator[Problem]:
    """A problem for each key that is not known, with the nearest one that is."""
    names = sorted(known)
    for key in sorted(set(found) - set(names)):
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"Did you mean {near[0]}" if near else ""
        yield Problem(f"{path}.{key}".removeprefix("."), "", "a key that is known there", why, hint)


def shown(value: Any) -> str:
    """A value as messages show it, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text in the file; keys are text too, and belong to their mapping."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{index}]")
