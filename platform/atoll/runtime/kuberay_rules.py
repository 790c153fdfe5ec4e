"""Rules for RayCluster resources of KubeRay: their shape, as its schema has it, and what the schema lets pass."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from atoll.errors import Problem
from atoll.runtime.cluster_files import (
    ClusterFile,
    NodeGroup,
    Versions,
    group_problems,
    shown,
    unknown_keys,
    version_problems,
)

__all__ = ["check"]

_BOOT = "fl/boot-seconds"
_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_OPEN_SERVICES = ("LoadBalancer", "NodePort")
#: node labels by which clouds and Karpenter mark spot nodes
_SPOT_NODES = {
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m?)")

# The shape: a type, a mapping of known keys (those with * are needed), or a list of one shape. Pods are Kubernetes' own
# matter: of them only what the rules read is looked at.
_Shape = Any
_RESOURCES: _Shape = {"requests": dict, "limits": dict, "claims": list}
_CONTAINER: _Shape = {
    "name*": str, "image*": str, "env": list, "envFrom": list, "ports": list, "resources*": _RESOURCES, "args": list,
    "command": list, "imagePullPolicy": str, "lifecycle": dict, "livenessProbe": dict, "readinessProbe": dict,
    "securityContext": dict, "startupProbe": dict, "volumeMounts": list, "volumeDevices": list, "workingDir": str,
}  # fmt: skip
_TEMPLATE: _Shape = {"metadata": dict, "spec*": dict}
_GROUP: _Shape = {"rayStartParams": dict, "template*": _TEMPLATE, "labels": dict, "resources": dict}
_CLUSTER: _Shape = {
    "apiVersion*": str, "kind*": str, "metadata*": dict, "status": dict,
    "spec*": {
        "rayVersion*": str, "enableInTreeAutoscaling": bool, "headServiceAnnotations": dict, "suspend": bool,
        "gcsFaultToleranceOptions": dict, "managedBy": str, "networkPolicy": dict, "tlsOptions": dict,
        "upgradeStrategy": dict, "historyServerOptions": dict,
        "authOptions": {"mode": str, "secretName": str, "enableK8sTokenAuth": bool},
        "autoscalerOptions": {
            "version": str, "upscalingMode": str, "idleTimeoutSeconds": int, "resources": _RESOURCES, "image": str,
            "imagePullPolicy": str, "env": list, "envFrom": list, "volumeMounts": list, "securityContext": dict,
            "command": list, "args": list,
        },
        "headGroupSpec*": {
            **_GROUP, "serviceType": str, "headService": dict, "enableIngress": bool, "ingressOptions": dict,
        },
        "workerGroupSpecs*": [
            {
                **_GROUP, "groupName*": str, "replicas": int, "minReplicas*": int, "maxReplicas*": int,
                "idleTimeoutSeconds": int, "numOfHosts": int, "priority": int, "scaleStrategy": dict, "suspend": bool,
            }
        ],
    },
}  # fmt: skip


def check(config: Mapping[str, Any], versions: Versions) -> tuple[ClusterFile | None, list[Problem]]:
    """(what the file describes, where that can be told; everything that is wrong with it)."""
    if config.get("kind") != "RayCluster" or config.get("apiVersion") != "ray.io/v1":
        found = f"{config.get('apiVersion')} {config.get('kind')}"
        return None, [Problem("kind", found, "ray.io/v1 RayCluster", "jobs and services make clusters of their own")]
    problems = list(_misshapen(config, _CLUSTER, ""))
    if not problems:
        problems += _container_shapes(config["spec"])
    if problems:
        return None, problems
    spec, boot_s = config["spec"], _boot_s(config["metadata"])
    if boot_s is None:
        found = shown((config["metadata"].get("annotations") or {}).get(_BOOT))
        rule, why = "seconds from the request for a pod until Ray has it", "the idle timeout must be longer"
        problems.append(Problem(f"metadata.annotations.{_BOOT}", found, rule, why))
    groups = [
        (f"spec.workerGroupSpecs[{number}]", _group(group, spec))
        for number, group in enumerate(spec["workerGroupSpecs"])
    ]
    problems += group_problems(groups, -math.inf if boot_s is None else boot_s)
    names = Counter(group.name for _, group in groups)
    problems += [
        Problem("spec.workerGroupSpecs", f"{count} groups {name}", "a name for each group")
        for name, count in names.items()
        if count > 1
    ]
    if not groups:
        problems.append(Problem("spec.workerGroupSpecs", "none", "a group of workers", "the head trains no clients"))
    problems += _head_problems(spec)
    problems += _auth_problems(spec)
    problems += _version_problems(spec, versions)
    return ClusterFile(
        "kuberay", str(config["metadata"].get("name", "")), tuple(group for _, group in groups)
    ), problems


# ---- shape ----------------------------------------------------------------------------------------------------------


def _misshapen(value: Any, shape: _Shape, path: str) -> Iterator[Problem]:
    place = path or "the file"
    if isinstance(shape, type):
        is_number_or_bool = isinstance(value, bool) and shape is int
        if not isinstance(value, shape) or is_number_or_bool:
            yield Problem(place, shown(value), f"a value of type {_TYPES[shape]}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield Problem(place, shown(value), "a list")
            return
        for index, inner in enumerate(value):
            yield from _misshapen(inner, shape[0], f"{path}[{index}]")
    elif not isinstance(value, Mapping):
        yield Problem(place, shown(value), "a mapping")
    else:
        shapes = {name.rstrip("*"): inner for name, inner in shape.items()}
        yield from unknown_keys(path, value, shapes, "Kubernetes would refuse it, or drop it")
        for name in shape:
            key = name.rstrip("*")
            if key in value:
                yield from _misshapen(value[key], shapes[key], f"{path}.{key}".removeprefix("."))
            elif name.endswith("*"):
                yield Problem(f"{path}.{key}".removeprefix("."), "nothing", "this key")


_TYPES = {str: "text", int: "number", bool: "true or false", dict: "mapping", list: "list"}


def _container_shapes(spec: Mapping[str, Any]) -> Iterator[Problem]:
    for path, group in _groups(spec):
        containers = group["template"]["spec"].get("containers")
        place = f"{path}.template.spec.containers"
        if not isinstance(containers, list) or not containers:
            yield Problem(place, shown(containers), "a list whose first container is Ray's")
            continue
        yield from _misshapen(containers[0], _CONTAINER, f"{place}[0]")
        for key in ("rayStartParams", "labels"):
            for name, value in (group.get(key) or {}).items():
                if not isinstance(value, str):
                    yield Problem(
                        f"{path}.{key}.{name}", shown(value), "text", "KubeRay takes nothing else", "quote it"
                    )


def _groups(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, group) of head and workers."""
    yield "spec.headGroupSpec", spec["headGroupSpec"]
    for number, group in enumerate(spec["workerGroupSpecs"]):
        yield f"spec.workerGroupSpecs[{number}]", group


def _container(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ray's container: the first of the pod."""
    found: Mapping[str, Any] = group["template"]["spec"]["containers"][0]
    return found


# ---- rules ----------------------------------------------------------------------------------------------------------


def _boot_s(metadata: Mapping[str, Any]) -> float | None:
    text = (metadata.get("annotations") or {}).get(_BOOT)
    return float(text) if isinstance(text, str) and re.fullmatch(r"[0-9]*[1-9][0-9]*", text) else None


def _quantity(value: Any) -> float:
    """Kubernetes' quantity of CPUs or GPUs; 0 where it is none."""
    match = _QUANTITY.fullmatch(str(value))
    return 0.0 if match is None else float(match[1]) / (1000 if match[2] else 1)


def _group(group: Mapping[str, Any], spec: Mapping[str, Any]) -> NodeGroup:
    found = _container(group)["resources"]
    amounts = {**(found.get("requests") or {}), **(found.get("limits") or {})}
    params = group.get("rayStartParams") or {}
    resources = {
        "CPU": _quantity(params.get("num-cpus", amounts.get("cpu", 0))),
        "GPU": _quantity(params.get("num-gpus", amounts.get("nvidia.com/gpu", 0))),
    }
    resources |= {name: _quantity(value) for name, value in (group.get("resources") or {}).items()}
    nodes = (group["template"]["spec"].get("nodeSelector") or {}).items()
    idle_s = group.get("idleTimeoutSeconds", (spec.get("autoscalerOptions") or {}).get("idleTimeoutSeconds", 60))
    return NodeGroup(
        group["groupName"],
        {name: amount for name, amount in resources.items() if amount},
        group["minReplicas"],
        group["maxReplicas"],
        group.get("labels") or {},
        bool(_SPOT_NODES & set(nodes)),
        float(idle_s),
    )


def _head_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    path, head = "spec.headGroupSpec", spec["headGroupSpec"]
    cpus = (head.get("resources") or {}).get("CPU", (head.get("rayStartParams") or {}).get("num-cpus"))
    if cpus != "0":
        why = "client pools and drivers of jobs would be put beside Ray's own books, and take them down"
        yield Problem(f"{path}.rayStartParams.num-cpus", shown(cpus), '"0" for the head', why)
    if spec.get("enableInTreeAutoscaling") is not True:
        found = shown(spec.get("enableInTreeAutoscaling"))
        yield Problem("spec.enableInTreeAutoscaling", found, "true", "without it no worker ever comes or goes")
    if head.get("serviceType", "ClusterIP") in _OPEN_SERVICES:
        why, hint = "whoever reaches it sees everything", "ClusterIP, and `kubectl port-forward`"
        yield Problem(f"{path}.serviceType", head["serviceType"], "a dashboard that is not open", why, hint)
    if head.get("enableIngress") is True:
        hint = "`kubectl port-forward`, or an Ingress of your own with authentication and TLS"
        yield Problem(f"{path}.enableIngress", "true", "a dashboard that is not open", "", hint)


def _auth_problems(spec: Mapping[str, Any]) -> Iterator[Problem]:
    options = spec.get("authOptions")
    if options is not None:
        if options.get("mode", "token") != "token":
            why = "without it whoever reaches a pod runs code on it"
            yield Problem("spec.authOptions.mode", shown(options["mode"]), "token", why)
        return
    for path, group in _groups(spec):
        given = {one.get("name"): one for one in _container(group).get("env") or () if isinstance(one, Mapping)}
        mode, token = (given.get(name, {}) for name in _AUTH)
        if mode.get("value") != "token" or "secretKeyRef" not in (token.get("valueFrom") or {}):
            hint = "spec.authOptions: {mode: token}; before KubeRay 1.6 RAY_AUTH_MODE, and RAY_AUTH_TOKEN from a Secret"
            yield Problem(f"{path}.template.spec.containers[0].env", "no token", "token authentication", "", hint)


def _version_problems(spec: Mapping[str, Any], versions: Versions) -> Iterator[Problem]:
    if spec["rayVersion"] != versions.ray:
        why = "the operator writes commands for that version, and drivers must be of the same"
        yield Problem("spec.rayVersion", spec["rayVersion"], versions.ray, why)
    for path, group in _groups(spec):
        container = _container(group)
        texts = [container["image"], *(str(one) for one in (*container.get("command", ()), *container.get("args", ())))]
        yield from version_problems(f"{path}.template.spec.containers[0].image", texts, versions)
