"""Rules for files of the Ray cluster launcher, `ray up`: the whole use of Ray's private validation is in here."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import logging
import math
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.errors import Problem
from atoll.runtime.cluster_files import (
    MOST_NODES,
    ClusterFile,
    NodeGroup,
    Versions,
    group_problems,
    shown,
    unknown_keys,
    version_problems,
)

__all__ = ["check"]

_EVERYWHERE = ("disable_launch_config_check", "disable_node_updaters", "foreground_node_launch", "type")
#: of clouds whose keys Ray passes on unchecked; of others they are not looked at
_PROVIDER_KEYS: Mapping[str, frozenset[str]] = {
    "aws": frozenset(
        {*_EVERYWHERE, "availability_zone", "cache_stopped_nodes", "cloudwatch", "key_pair", "region",
         "security_group", "use_external_head_ip", "use_internal_ips"}
    ),
    "gcp": frozenset(
        {*_EVERYWHERE, "availability_zone", "cache_stopped_nodes", "project_id", "region", "use_external_head_ip",
         "use_internal_ips"}
    ),
}  # fmt: skip
#: parameters of EC2's RunInstances; fields of Compute Engine's instances
_NODE_KEYS: Mapping[str, frozenset[str]] = {
    "aws": frozenset(
        {"BlockDeviceMappings", "CapacityReservationSpecification", "CpuOptions", "CreditSpecification",
         "DisableApiStop", "DisableApiTermination", "EbsOptimized", "EnablePrimaryIpv6", "EnclaveOptions",
         "HibernationOptions", "IamInstanceProfile", "ImageId", "InstanceInitiatedShutdownBehavior",
         "InstanceMarketOptions", "InstanceType", "Ipv6AddressCount", "Ipv6Addresses", "KernelId", "KeyName",
         "LaunchTemplate", "LicenseSpecifications", "MaintenanceOptions", "MetadataOptions", "Monitoring",
         "NetworkInterfaces", "NetworkPerformanceOptions", "Placement", "PrivateDnsNameOptions", "PrivateIpAddress",
         "RamdiskId", "SecurityGroupIds", "SecurityGroups", "SubnetId", "SubnetIds", "TagSpecifications", "UserData"}
    ),
    "gcp": frozenset(
        {"advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection", "description",
         "disks", "displayDevice", "guestAccelerators", "hostname", "instanceEncryptionKey", "keyRevocationActionType",
         "labels", "machineType", "metadata", "minCpuPlatform", "networkInterfaces", "networkPerformanceConfig",
         "params", "privateIpv6GoogleAccess", "reservationAffinity", "resourcePolicies", "scheduling",
         "serviceAccounts", "shieldedInstanceConfig", "sourceInstanceTemplate", "sourceMachineImage", "tags"}
    ),
}  # fmt: skip
_NEEDED: Mapping[str, tuple[str, ...]] = {"aws": ("ImageId", "InstanceType"), "gcp": ("disks", "machineType")}
_OPEN_HOSTS = ("0.0.0.0", "::", "[::]", "*")
_TOKEN_FILE = ".ray/auth_token"


def check(config: Mapping[str, Any], versions: Versions) -> tuple[ClusterFile | None, list[Problem]]:
    """(what the file describes, where that can be told; everything that is wrong with it)."""
    provider, types = config.get("provider"), config.get("available_node_types")
    kind = provider.get("type") if isinstance(provider, Mapping) else None
    if not isinstance(kind, str):
        rule = "the mapping with type: aws, gcp …"
        return None, [
            Problem("provider", shown(provider), rule, "", "a KubeRay file begins with apiVersion: ray.io/v1")
        ]
    if not (isinstance(types, Mapping) and types and all(isinstance(one, Mapping) for one in types.values())):
        return None, [Problem("available_node_types", shown(types), "groups of nodes by name, head included")]
    prepared, problems = _as_ray_sees_it(config)
    if prepared is None or problems:
        return None, problems
    head = prepared["head_node_type"]
    boot_minutes = (prepared.get("metadata") or {}).get("boot_minutes")
    if isinstance(boot_minutes, bool) or not isinstance(boot_minutes, int | float) or not boot_minutes > 0:
        rule, why = "minutes from the request for a node until Ray has it", "the idle timeout must be longer"
        problems.append(Problem("metadata.boot_minutes", shown(boot_minutes), rule, why))
        boot_minutes = -math.inf
    groups = {name: _group(name, prepared) for name in prepared["available_node_types"] if name != head}
    placed = [(f"available_node_types.{name}", group) for name, group in groups.items()]
    problems += group_problems(placed, 60.0 * boot_minutes)
    problems += _size_problems(prepared, groups)
    problems += _head_problems(prepared, head)
    problems += _provider_problems(prepared, kind)
    problems += _start_problems(prepared)
    problems += _software_problems(prepared, head, versions)
    return ClusterFile(kind, prepared["cluster_name"], tuple(groups.values())), problems


# ---- what Ray checks ----------------------------------------------------------------------------------------------


def _as_ray_sees_it(config: Mapping[str, Any]) -> tuple[dict[str, Any] | None, list[Problem]]:
    """The file with Ray's defaults, and what Ray would refuse: exactly what `ray up` does before it asks the cloud."""
    from jsonschema import Draft7Validator
    from ray.autoscaler._private.util import prepare_config, validate_config

    problems = [_of_schema(error) for error in Draft7Validator(_ray_schema()).iter_errors(dict(config))]
    problems += [
        Problem(
            f"available_node_types.{name}.resources", "none", "stated resources", "Ray would ask the cloud for them"
        )
        for name, group in config["available_node_types"].items()
        if group.get("resources") == {}
    ]
    if problems:
        return None, problems
    try:
        with _silent():
            prepared = prepare_config(copy.deepcopy(dict(config)))
            validate_config(prepared)
    except Exception as error:  # AssertionError, KeyError, ValueError, …: whatever it is, `ray up` would end with it
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return None, [Problem("the file", "", "one that Ray's own validation accepts", why)]
    return prepared, []


def _ray_schema() -> dict[str, Any]:
    import ray.autoscaler

    found: dict[str, Any] = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    return found


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Ray talks while it looks, in three ways: of legacy fields, of defaults, of mounts that are files."""
    log = logging.getLogger("ray")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _of_schema(error: Any) -> Problem:
    path = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties":
        unknown = set(error.instance) - set(error.schema.get("properties", ()))
        hints = [one.hint for one in unknown_keys("", unknown, error.schema.get("properties", ()))]
        hint = hints[0] or ("Keys of your own go under metadata" if path == "the file" else "")
        return Problem(path, ", ".join(sorted(unknown)), "keys that Ray knows", "", hint)
    rules = {"type": f"a value of type {error.validator_value}", "minimum": f"at least {error.validator_value}"}
    return Problem(path, shown(error.instance), rules.get(error.validator, error.message))


# ---- what Ray does not check ----------------------------------------------------------------------------------------


def _group(name: str, prepared: Mapping[str, Any]) -> NodeGroup:
    found = prepared["available_node_types"][name]
    idle_s = found.get("idle_timeout_s")
    return NodeGroup(
        name,
        found["resources"],
        found.get("min_workers", 0),
        found.get("max_workers", 0),
        found.get("labels", {}),
        _is_spot(found["node_config"]),
        60.0 * prepared["idle_timeout_minutes"] if idle_s is None else idle_s,
    )


def _is_spot(node: Mapping[str, Any]) -> bool:
    """Whether the cloud may take such a node away; Compute Engine takes `scheduling` as a mapping and as a list."""
    market, scheduling = node.get("InstanceMarketOptions") or {}, node.get("scheduling") or {}
    parts = scheduling if isinstance(scheduling, list) else [scheduling]
    return market.get("MarketType") == "spot" or any(
        part.get("preemptible") is True or part.get("provisioningModel") == "SPOT" for part in parts
    )


def _size_problems(prepared: Mapping[str, Any], groups: Mapping[str, NodeGroup]) -> Iterator[Problem]:
    most = prepared["max_workers"]
    if not 1 <= most <= MOST_NODES:
        yield Problem("max_workers", str(most), f"1 to {MOST_NODES} nodes", "Ray was tested up to there")
    if not groups:
        head = prepared["head_node_type"]
        yield Problem("available_node_types", f"{head} alone", "a group of workers", "the head trains no clients")
    for name, group in groups.items():
        if group.most > most:
            path, rule = f"available_node_types.{name}.max_workers", f"at most {most}, as max_workers of the whole"
            yield Problem(path, str(group.most), rule, "so many would never come")


def _head_problems(prepared: Mapping[str, Any], head: str) -> Iterator[Problem]:
    path, found = f"available_node_types.{head}", prepared["available_node_types"][head]
    for name in ("CPU", "GPU"):
        count = found["resources"].get(name, 0 if name == "GPU" else None)
        if count != 0:
            why = "client pools and drivers of jobs would be put beside Ray's own books, and take them down"
            yield Problem(f"{path}.resources.{name}", shown(count), f"{name}: 0 for the head", why)
    if found.get("max_workers", 0) != 0:
        yield Problem(f"{path}.max_workers", shown(found["max_workers"]), "0, or nothing", "there is one head")
    if _is_spot(found["node_config"]):
        yield Problem(f"{path}.node_config", "spot", "a machine that stays", "its loss ends the Ray cluster")


def _provider_problems(prepared: Mapping[str, Any], kind: str) -> Iterator[Problem]:
    provider, types = prepared["provider"], prepared["available_node_types"]
    if kind in _PROVIDER_KEYS:
        unchecked = "Ray does not check it, and passes over what it does not know"
        credentials = {"aws_credentials", "gcp_credentials"} & set(provider)
        yield from unknown_keys("provider", set(provider) - credentials, _PROVIDER_KEYS[kind], unchecked)
        for key in sorted(credentials):
            yield Problem(f"provider.{key}", "credentials", "none in the file", "", "`ray up` uses those of your shell")
        for name, group in types.items():
            path, node = f"available_node_types.{name}.node_config", group["node_config"]
            yield from unknown_keys(path, node, _NODE_KEYS[kind], "the cloud refuses it when a node is asked for")
            for key in _NEEDED[kind]:
                if not node.get(key):
                    yield Problem(f"{path}.{key}", "", f"the key {key}", "Ray's default is years old")
    has_spot = any(_is_spot(group["node_config"]) for group in types.values())
    if has_spot and provider.get("cache_stopped_nodes", kind == "aws") is not False:
        why = "Ray would stop machines instead of ending them; stopped ones, and their disks, are paid for"
        yield Problem("provider.cache_stopped_nodes", shown(provider.get("cache_stopped_nodes")), "false", why)


def _start_problems(prepared: Mapping[str, Any]) -> Iterator[Problem]:
    for role, wanted in (("head", "--head"), ("worker", "--address")):
        path = f"{role}_start_ray_commands"
        starts = [(number, text) for number, text in enumerate(prepared[path]) if "ray start" in text]
        if len(starts) != 1 or wanted not in starts[0][1]:
            yield Problem(path, f"{len(starts)} of ray start", f"one `ray start {wanted}…`")
        for number, text in starts:
            yield from _command_problems(f"{path}[{number}]", text, role, prepared.get("file_mounts") or {})


def _command_problems(path: str, text: str, role: str, mounts: Mapping[str, str]) -> Iterator[Problem]:
    before, _, after = text.partition("ray start")
    if not re.search(r"\bRAY_AUTH_MODE=[\"']?token\b", before):
        why = "without it whoever reaches the node runs code on it; every command is a shell of its own"
        yield Problem(path, "no token", "export RAY_AUTH_MODE=token before `ray start`", why)
    has_file = any(remote.endswith(_TOKEN_FILE) for remote in mounts)
    if not has_file and not re.search(r"\bRAY_AUTH_TOKEN(?:_PATH=\S|=[\"']?\$)", before):
        hint = f"file_mounts: {{~/{_TOKEN_FILE}: ~/{_TOKEN_FILE}}}, after `ray get-auth-token --generate`"
        yield Problem(path, "no token", "a token that reaches the node, as a file or from a secret store", "", hint)
    try:
        words = shlex.split(re.split(r"[;&|]", after)[0])
    except ValueError as error:
        yield Problem(path, "", "a command that a shell reads", str(error))
        return
    flags = dict(_flags(words))
    yield from unknown_keys(path, flags, _ray_start_flags(), "`ray start` has no such option")
    if flags.get("--dashboard-host") in _OPEN_HOSTS:
        why, hint = "whoever reaches it sees everything", "127.0.0.1, and `ray dashboard FILE` forwards it"
        yield Problem(path, f"--dashboard-host={flags['--dashboard-host']}", "a dashboard that is not open", why, hint)
    if role == "head" and "--autoscaling-config" not in flags:
        rule = "--autoscaling-config=~/ray_bootstrap_config.yaml"
        yield Problem(path, "no autoscaler", rule, "without it no worker ever comes")


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, word in enumerate(words):
        name, has_value, value = word.partition("=")
        if name.startswith("--"):
            follows = words[number + 1] if number + 1 < len(words) else ""
            yield name, value if has_value else follows


@functools.cache
def _ray_start_flags() -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own imports, at their first
        from ray.scripts.scripts import start

    return {name for option in start.params for name in (*option.opts, *option.secondary_opts)}


def _software_problems(prepared: Mapping[str, Any], head: str, versions: Versions) -> Iterator[Problem]:
    """Of each group the image, where there is one, and the commands that prepare its nodes."""
    docker = prepared.get("docker") or {}
    for name, group in prepared["available_node_types"].items():
        role = "head" if name == head else "worker"
        image = docker.get(f"{role}_image") or docker.get("image") or ""
        image = (group.get("docker") or {}).get("worker_image", image) if role == "worker" else image
        commands = prepared[f"{role}_setup_commands"]
        if role == "worker":
            commands = group.get("worker_setup_commands", commands)
        path = f"available_node_types.{name}: image and set-up commands"
        yield from version_problems(path, [image, *commands], versions)
        if image and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
            yield Problem(path, shown(image), "an image with a fixed tag", "what it is changes under a running cluster")
