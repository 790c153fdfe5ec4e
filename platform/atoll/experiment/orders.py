"""What a job on a Ray cluster consists of: its spec, its code, its command, what its driver asks of a node."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atoll
from atoll import spec as sp
from atoll.errors import Problem, SpecError

if TYPE_CHECKING:
    from atoll.runtime.jobs import Node

__all__ = [
    "SPEC_FILE",
    "STOP_WAIT_S",
    "Driver",
    "check_portable",
    "entrypoint_of",
    "environment_for",
    "fingerprint",
    "notes_of",
    "packages_for",
    "waiting_story",
]

SPEC_FILE = "spec.yaml"
#: what a job gets between a stop and its end by force, in whole seconds: a run may take 90 to its step boundary
STOP_WAIT_S = 120
#: threads are pinned before torch is imported; Ray's 3 s would cut a stop short; tables in a log have room
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
    "COLUMNS": "120",
}
#: keys of a spec whose value is a file or a folder, for any process; the driver alone reads the others
_READ_BY_WORKERS = ("path", "init_from")
_FILES = (*_READ_BY_WORKERS, "profile", "store", "artifacts")
_MOST_NODES = 5


@dataclass(frozen=True, slots=True)
class Driver:
    """What a job's driver, which plans, aggregates and commits, asks of its node.

    Attributes:
        num_cpus: CPUs that it holds; a head that offers none gets no driver.
        resources: custom resources that it holds.
        labels: that the node has.
        environment: names of variables of this process that the job gets too.
    """

    num_cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    environment: Sequence[str] = ()


def waiting_story(driver: Driver, nodes: Sequence[Node]) -> str:
    """Why a job has not started: whether any node is large enough for its driver, and which there are.

    Purity: pure.
    """
    wanted = {"CPU": driver.num_cpus, **driver.resources}
    parts = [f"{name}: {value:g}" for name, value in wanted.items()]
    asked = ", ".join([*parts, *(f"{name}={value}" for name, value in driver.labels.items())])
    if not nodes:
        return f"waits for a node with {asked}"
    fits = any(
        all(node.resources.get(name, 0.0) >= value for name, value in wanted.items())
        and all(node.labels.get(name) == value for name, value in driver.labels.items())
        for node in nodes
    )
    there = "; ".join(_node_story(node, tuple(wanted)) for node in nodes[:_MOST_NODES])
    if len(nodes) > _MOST_NODES:
        there += f"; {len(nodes) - _MOST_NODES} more"
    if fits:
        return f"waits for {asked}: nodes that have it are busy, or still set up its code ({there})"
    hint = "unless the cluster grows, it never starts: stop it, and ask for less"
    return f"no node that fits: it asks for {asked}, there are {there}; {hint}"


def _node_story(node: Node, names: tuple[str, ...]) -> str:
    amounts = ", ".join(f"{name}: {node.resources.get(name, 0.0):g}" for name in names)
    return f"{'head' if node.is_head else 'node'} {node.address} with {amounts}"


# ---- the spec -------------------------------------------------------------------------------------------------------


def check_portable(spec: sp.Spec, here: Path | None) -> None:
    """Refuses what cannot work where the job runs.

    Args:
        spec: resolved.
        here: the folder that the job works in, where this machine is the whole cluster; None elsewhere.

    Raises:
        SpecError: a tracking store in a file, which would end with its node; a path that means nothing there.

    Purity: pure.
    """
    problems = []
    if here is None and spec.tracking.uri.partition(":")[0].partition("+")[0] == "sqlite":
        why = "the file would lie on whatever node the job runs, and end with it"
        hint = "Start a server that the cluster reaches (mlflow server), and add tracking.uri=http://HOST:5000"
        problems.append(Problem("tracking.uri", repr(spec.tracking.uri), "a server", why, hint))
    for path, text in _files_of(sp.to_dict(spec), _READ_BY_WORKERS if here else _FILES):
        if "://" not in text and not Path(text).is_absolute():
            rule = "an absolute path, or a URL, that every node of the cluster reaches"
            hint = "" if here is None else f"Write {here / text}"
            problems.append(Problem(path, repr(text), rule, "workers of a job have a folder of their own", hint))
    if problems:
        raise SpecError(problems)


def _files_of(plain: Any, names: Sequence[str], path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of everything in a spec that names a file or a folder."""
    if not isinstance(plain, dict):
        return
    for key, value in plain.items():
        inner = f"{path}.{key}" if path else key
        if key in names and isinstance(value, str):
            yield inner, value
        elif key != "arguments":
            yield from _files_of(value, names, inner)


def notes_of(spec: sp.Spec, here: Path | None) -> tuple[str, ...]:
    """What one should know before it is needed.

    Purity: pure.
    """
    if spec.runtime.store is not None or here is not None:
        return ()
    return (
        "runtime.store is null: the run keeps itself on its node's disk, and if that node is lost the next attempt "
        "begins anew; a shared folder, or s3://, gs://, az://, lets it go on.",
    )


def fingerprint(text: str) -> str:
    """Of a spec as it is sent.

    Purity: pure.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- code, command, environment -------------------------------------------------------------------------------------


def packages_for(spec: sp.Spec, search: Sequence[str]) -> list[Path]:
    """Code that travels with the job: this atoll, and the modules of the spec's factories that are not installed.

    Args:
        spec: names factories.
        search: folders to look for modules in, as sys.path.

    Purity: looks at folders.
    """
    found = [Path(atoll.__file__).parent]
    for name in dict.fromkeys(_factories_of(sp.to_dict(spec))):
        module = PathFinder.find_spec(name, list(search))
        if module is None:
            continue  # there may be one where the job runs
        place = next(iter(module.submodule_search_locations or [module.origin or ""]))
        path = Path(place)
        is_installed = {"site-packages", "dist-packages"} & set(path.parts)
        if not is_installed and (path.is_dir() or path.suffix == ".py"):
            found.append(path)
    return found


def _factories_of(plain: Any) -> Iterator[str]:
    """Top-level modules that a spec names in a `factory`."""
    for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain if isinstance(plain, list) else ()):
        if key == "factory" and isinstance(value, str):
            yield value.partition(":")[0].partition(".")[0]
        else:
            yield from _factories_of(value)


def environment_for(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables of the job's processes.

    Raises:
        SpecError: one of `names` is not set.

    Purity: pure.
    """
    rule, missing = "a variable that is set here", [name for name in names if name not in environment]
    if missing:
        raise SpecError([Problem("--env", name, rule, hint=f"export {name}=… first") for name in missing])
    return {**_ENVIRONMENT, **{name: environment[name] for name in names}}


def entrypoint_of(key: str, here: Path | None) -> str:
    """Shell command of a job.

    Args:
        key: of the run.
        here: where this machine is the whole cluster, the folder in which the job was submitted: it works there, so
            that its run lies under ./runs as any other. None: in the folder that Ray makes for the job.

    Purity: pure.
    """
    # exec: a stop sends its signal to the driver itself, not to a shell that ends before it
    run = f"exec python -m atoll run {{}} --key {shlex.quote(key)} --json"
    if here is None:
        return run.format(SPEC_FILE)
    return f"cd {shlex.quote(str(here))} && " + run.format(f'"$OLDPWD"/{SPEC_FILE}')
