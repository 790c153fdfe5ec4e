"""Files of Ray clusters: those that ship are good, and every rule refuses the one file that breaks it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atoll import spec as sp
from atoll.cli.main import app
from atoll.errors import SpecError
from atoll.experiment import check_cluster_file
from atoll.runtime.cluster_files import Versions, here
from atoll.runtime.cluster_files import check_cluster_file as check

ROOT = Path(__file__).parents[3]
AWS, GCP, KUBERAY = ROOT / "cluster.yaml", ROOT / "configs/cluster/gcp.yaml", ROOT / "configs/cluster/kuberay.yaml"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def contents() -> dict[Path, Any]:
    return {path: sp.read_file(path) for path in (AWS, GCP, KUBERAY)}


# ---- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [AWS, GCP, KUBERAY], ids=lambda path: path.name)
def test_what_ships_is_good_and_of_these_versions(path: Path) -> None:
    """A release that forgets the versions in these files fails here: the check compares with what is installed."""
    found = check_cluster_file(path)
    groups = {group.name: group for group in found.groups}
    assert set(groups) == {"steady", "cpu", "gpu"}
    assert all(group.least == 0 for group in groups.values()), "from zero"
    assert groups["gpu"].resources["GPU"] == 1
    assert [group.is_spot for group in groups.values()] == [False, True, True]
    assert any("mage" in place or "project" in place for place in found.to_fill_in)
    assert json.dumps(found.as_dict())


def test_the_same_groups_everywhere(contents: dict[Path, Any]) -> None:
    labels = [[dict(group.labels) for group in check(content).groups] for content in contents.values()]
    assert labels[0] == labels[1] == labels[2]


def test_its_comments_name_commands_that_exist() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    for path in (AWS, GCP, KUBERAY):
        for name in re.findall(r"\batoll ([a-z]+) ", path.read_text()):
            assert name in names, f"{path.name}: atoll {name}"


def test_other_versions_are_refused(contents: dict[Path, Any]) -> None:
    """The very file that is good here, on a machine with another atoll and another Ray."""
    for content in contents.values():
        with pytest.raises(SpecError) as caught:
            check(content, Versions("9.9.9", "8.8.8"))
        text = str(caught.value)
        assert "need atoll 9.9.9" in text
        assert "need ray 8.8.8" in text


# ---- one rule, one broken file --------------------------------------------------------------------------------------


def put(*keys: Any, to: Any) -> Change:
    """Sets one place of the file."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to

    return change


def drop(*keys: Any) -> Change:
    """Takes one place out."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def swap(*keys: Any, old: str, new: str) -> Change:
    """Replaces text in one place."""

    def change(content: dict[str, Any]) -> None:
        inner: Any = content
        for key in keys[:-1]:
            inner = inner[key]
        assert old in inner[keys[-1]]
        inner[keys[-1]] = inner[keys[-1]].replace(old, new)

    return change


HEAD_START, WORKER_START = ("head_start_ray_commands", 1), ("worker_start_ray_commands", 1)
GROUPS = "available_node_types"

#: what is changed, the place that the message names, words of the message
LAUNCHER: dict[str, tuple[Change, str, str]] = {
    # Ray's own
    "unknown key": (put("idle_minutes", to=3), "the file", "idle_minutes; need keys that Ray knows"),
    "unknown key of a group": (put(GROUPS, "cpu", "max_worker", to=3), f"{GROUPS}.cpu", "Did you mean max_workers"),
    "part of a GPU": (put(GROUPS, "gpu", "resources", "GPU", to=0.5), f"{GROUPS}.gpu.resources.GPU", "integer"),
    "no resources": (drop(GROUPS, "cpu", "resources"), f"{GROUPS}.cpu", "'resources' is a required property"),
    "resources to be asked for": (put(GROUPS, "cpu", "resources", to={}), f"{GROUPS}.cpu.resources", "stated"),
    "no such head": (put("head_node_type", to="chief"), "the file", "head_node_type"),
    "more at least than at most": (put(GROUPS, "cpu", "min_workers", to=99), "the file", "min_workers"),
    "a label that is a number": (put(GROUPS, "cpu", "labels", "fl/pool", to=3), f"{GROUPS}.cpu.labels", "string"),
    "speed as text": (put("upscaling_speed", to="fast"), "upscaling_speed", "number"),
    "an unknown provider": (put("provider", "type", to="cloud9"), "the file", "cloud9"),
    # ours
    "no provider": (drop("provider"), "provider", "type: aws"),
    "no groups": (drop(GROUPS), GROUPS, "groups of nodes by name"),
    "head alone": (put(GROUPS, to={"head": {"resources": {"CPU": 0}, "node_config": {}}}), GROUPS, "group of workers"),
    "head trains": (put(GROUPS, "head", "resources", "CPU", to=8), f"{GROUPS}.head.resources.CPU", "CPU: 0"),
    "head unsaid": (put(GROUPS, "head", "resources", to={"memory": 1}), f"{GROUPS}.head.resources.CPU", "CPU: 0"),
    "head with a GPU": (put(GROUPS, "head", "resources", "GPU", to=1), f"{GROUPS}.head.resources.GPU", "GPU: 0"),
    "two heads": (put(GROUPS, "head", "max_workers", to=1), f"{GROUPS}.head.max_workers", "there is one head"),
    "boot unsaid": (drop("metadata"), "metadata.boot_minutes", "minutes from the request"),
    "boot of no time": (put("metadata", "boot_minutes", to=0), "metadata.boot_minutes", "minutes from the request"),
    "idle too short": (put("idle_timeout_minutes", to=8), f"{GROUPS}.cpu: idle timeout", "longer than the 480 s"),
    "idle of a group": (put(GROUPS, "gpu", "idle_timeout_s", to=60), f"{GROUPS}.gpu: idle timeout", "60 s"),
    "fewest above most": (put(GROUPS, "gpu", "min_workers", to=9), f"{GROUPS}.gpu: fewest nodes", "at most 8"),
    "a group of none": (put(GROUPS, "gpu", "max_workers", to=0), f"{GROUPS}.gpu: most nodes", "1 to 250"),
    "far too many": (put("max_workers", to=100_000), "max_workers", "1 to 250"),
    "more than the whole": (put("max_workers", to=16), f"{GROUPS}.cpu.max_workers", "at most 16"),
    "no CPU for a pool": (drop(GROUPS, "gpu", "resources", "CPU"), f"{GROUPS}.gpu: CPUs", "at least 1"),
    "no label": (drop(GROUPS, "cpu", "labels", "fl/pool"), f"{GROUPS}.cpu.labels", "the label fl/pool"),
    "a label with a space": (put(GROUPS, "cpu", "labels", "team", to="a b"), f"{GROUPS}.cpu.labels", "prefix/name"),
    "GPUs labelled cpu": (put(GROUPS, "gpu", "labels", "fl/pool", to="cpu"), f"{GROUPS}.gpu.labels", "exactly where"),
    "spot unsaid": (drop(GROUPS, "cpu", "labels", "ray.io/market-type"), f"{GROUPS}.cpu.labels", "market-type: spot"),
    "no token at the head": (
        swap(*HEAD_START, old="RAY_AUTH_MODE=token ", new=""),
        "head_start_ray_commands[1]",
        "export RAY_AUTH_MODE",
    ),
    "no token at workers": (
        swap(*WORKER_START, old="RAY_AUTH_MODE=token", new="A=b"),
        "worker_start_ray_commands[1]",
        "export RAY_AUTH_MODE",
    ),
    "token switched off": (
        swap(*HEAD_START, old="MODE=token", new="MODE=disabled"),
        "head_start_ray_commands[1]",
        "export RAY_AUTH_MODE",
    ),
    "token set too late": (
        put(*WORKER_START, to="ray start --address=$RAY_HEAD_IP:6379; export RAY_AUTH_MODE=token"),
        "worker_start_ray_commands[1]",
        "before `ray start`",
    ),
    "no token file": (
        drop("file_mounts", "~/.ray/auth_token"),
        "head_start_ray_commands[1]",
        "a token that reaches the node",
    ),
    "open dashboard": (swap(*HEAD_START, old="127.0.0.1", new="0.0.0.0"), "head_start_ray_commands[1]", "not open"),
    "Ray's own commands": (drop("head_start_ray_commands"), "head_start_ray_commands[1]", "not open"),
    "open in two words": (
        swap(*HEAD_START, old="=127.0.0.1", new=" 0.0.0.0"),
        "head_start_ray_commands[1]",
        "not open",
    ),
    "no autoscaler": (
        swap(*HEAD_START, old="--autoscaling-config=~/ray_bootstrap_config.yaml", new=""),
        "head_start_ray_commands[1]",
        "no worker ever comes",
    ),
    "misspelt option": (
        swap(*HEAD_START, old="--metrics-export-port", new="--metric-export-port"),
        "head_start_ray_commands[1].--metric-export-port",
        "Did you mean --metrics-export-port",
    ),
    "a quote left open": (
        swap(*HEAD_START, old="--port=6379", new="--port='6379"),
        "head_start_ray_commands[1]",
        "a shell reads",
    ),
    "no worker start": (
        put("worker_start_ray_commands", to=["ray stop"]),
        "worker_start_ray_commands",
        "one `ray start --address",
    ),
    "stopped machines stay": (drop("provider", "cache_stopped_nodes"), "provider.cache_stopped_nodes", "need false"),
    "unknown provider key": (put("provider", "zone", to="a"), "provider.zone", "passes over"),
    "credentials": (
        put("provider", "aws_credentials", to={"aws_access_key_id": "x"}),
        "provider.aws_credentials",
        "none in the file",
    ),
    "unknown node key": (
        put(GROUPS, "cpu", "node_config", "InstanceTyp", to="x"),
        f"{GROUPS}.cpu.node_config.InstanceTyp",
        "Did you mean InstanceType",
    ),
    "Ray's image": (drop(GROUPS, "cpu", "node_config", "ImageId"), f"{GROUPS}.cpu.node_config.ImageId", "years old"),
    "head on spot": (
        put(GROUPS, "head", "node_config", "InstanceMarketOptions", to={"MarketType": "spot"}),
        f"{GROUPS}.head.node_config",
        "stays",
    ),
    "another Ray": (swap("docker", "image", old="2.60.0", new="2.58.1"), f"{GROUPS}.cpu: image", "ray 2.58.1"),
    "another atoll": (
        swap("setup_commands", 0, old="atoll-0.1.0", new="atoll-0.0.9"),
        f"{GROUPS}.head: image",
        "atoll 0.0.9",
    ),
    "GPU group of another Ray": (
        swap(GROUPS, "gpu", "docker", "worker_image", old="2.60.0", new="2.61.0"),
        f"{GROUPS}.gpu: image",
        "ray 2.61.0",
    ),
    "nothing installed": (put("setup_commands", to=[]), f"{GROUPS}.head: image", "atoll without a version"),
    "another Python": (swap("docker", "image", old="py311", new="py39"), f"{GROUPS}.head: image", "Python 3.9"),
    "a tag that moves": (put("docker", "image", to="rayproject/ray:latest"), f"{GROUPS}.head: image", "fixed tag"),
    "an AWS key": (put("metadata", "note", to="AKIAABCDEFGHIJKLMNOP"), "metadata.note", "an AWS access key"),
    "a token in a command": (
        swap(*HEAD_START, old="RAY_AUTH_MODE=token", new="RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123abc"),
        "head_start_ray_commands[1]",
        "a secret as a value",
    ),
    "a private key": (put("metadata", "note", to="-----BEGIN RSA PRIVATE KEY-----"), "metadata.note", "a private key"),
    "a password in an address": (put("metadata", "note", to="https://me:pw@host/x"), "metadata.note", "a password"),
    "a key called password": (put("metadata", "db_password", to="hunter2"), "metadata.db_password", "secret"),
}

WORKER = ("spec", "workerGroupSpecs", 1)
BOX = (*WORKER, "template", "spec", "containers", 0)
CPU = "spec.workerGroupSpecs[1]"
RESOURCE: dict[str, tuple[Change, str, str]] = {
    "another kind": (put("kind", to="RayJob"), "kind", "RayCluster"),
    "an old version of the resource": (put("apiVersion", to="ray.io/v1alpha1"), "kind", "ray.io/v1"),
    "unknown key": (put("spec", "enableAutoscaling", to=True), "spec.enableAutoscaling", "Kubernetes would refuse"),
    "unknown key of a group": (put(*WORKER, "maxReplica", to=3), f"{CPU}.maxReplica", "Did you mean maxReplicas"),
    "no group name": (drop(*WORKER, "groupName"), f"{CPU}.groupName", "this key"),
    "text for a number": (put(*WORKER, "maxReplicas", to="3"), f"{CPU}.maxReplicas", "number"),
    "a list for a mapping": (put(*WORKER, "template", to=[]), f"{CPU}.template", "a mapping"),
    "a mapping for a list": (put("spec", "workerGroupSpecs", to={}), "spec.workerGroupSpecs", "a list"),
    "no containers": (put(*WORKER, "template", "spec", to={}), f"{CPU}.template.spec.containers", "a list whose first"),
    "unknown key of the container": (
        put(*BOX, "imge", to="x"),
        f"{CPU}.template.spec.containers[0].imge",
        "Did you mean image",
    ),
    "no resources": (drop(*BOX, "resources"), f"{CPU}.template.spec.containers[0].resources", "this key"),
    "a number for Ray": (
        put("spec", "headGroupSpec", "rayStartParams", "num-cpus", to=0),
        "spec.headGroupSpec.rayStartParams.num-cpus",
        "quote it",
    ),
    "a label that is a number": (put(*WORKER, "labels", "team", to=3), f"{CPU}.labels.team", "quote it"),
    "head trains": (
        put("spec", "headGroupSpec", "rayStartParams", "num-cpus", to="4"),
        "spec.headGroupSpec.rayStartParams.num-cpus",
        '"0" for the head',
    ),
    "no autoscaler": (drop("spec", "enableInTreeAutoscaling"), "spec.enableInTreeAutoscaling", "no worker ever"),
    "open service": (
        put("spec", "headGroupSpec", "serviceType", to="LoadBalancer"),
        "spec.headGroupSpec.serviceType",
        "not open",
    ),
    "ingress": (put("spec", "headGroupSpec", "enableIngress", to=True), "spec.headGroupSpec.enableIngress", "not open"),
    "no token": (put("spec", "authOptions", "mode", to="disabled"), "spec.authOptions.mode", "need token"),
    "no authentication": (
        drop("spec", "authOptions"),
        f"{CPU}.template.spec.containers[0].env",
        "token authentication",
    ),
    "boot unsaid": (drop("metadata", "annotations"), "metadata.annotations.fl/boot-seconds", "seconds from"),
    "boot no number": (
        put("metadata", "annotations", "fl/boot-seconds", to="soon"),
        "metadata.annotations.fl/boot-seconds",
        "seconds from",
    ),
    "idle too short": (
        put("spec", "autoscalerOptions", "idleTimeoutSeconds", to=60),
        f"{CPU}: idle timeout",
        "longer than the 300 s",
    ),
    "idle unsaid": (drop("spec", "autoscalerOptions", "idleTimeoutSeconds"), f"{CPU}: idle timeout", "60 s"),
    "idle of a group": (put(*WORKER, "idleTimeoutSeconds", to=30), f"{CPU}: idle timeout", "30 s"),
    "fewest above most": (put(*WORKER, "minReplicas", to=40), f"{CPU}: fewest nodes", "at most 32"),
    "far too many": (put(*WORKER, "maxReplicas", to=10_000), f"{CPU}: most nodes", "1 to 250"),
    "two of one name": (put(*WORKER, "groupName", to="gpu"), "spec.workerGroupSpecs", "a name for each"),
    "no groups": (put("spec", "workerGroupSpecs", to=[]), "spec.workerGroupSpecs", "a group of workers"),
    "half a CPU": (put(*BOX, "resources", to={"limits": {"cpu": "500m"}}), f"{CPU}: CPUs", "at least 1"),
    "GPUs labelled cpu": (put(*BOX, "resources", "limits", "nvidia.com/gpu", to="1"), f"{CPU}.labels", "exactly where"),
    "no label": (drop(*WORKER, "labels"), f"{CPU}.labels", "the label fl/pool"),
    "spot unsaid": (put(*WORKER, "labels", "ray.io/market-type", to="on-demand"), f"{CPU}.labels", "market-type: spot"),
    "another Ray": (put("spec", "rayVersion", to="2.46.0"), "spec.rayVersion", "need 2.60.0"),
    "another image": (
        put(*BOX, "image", to="rayproject/ray:2.46.0"),
        f"{CPU}.template.spec.containers[0].image",
        "ray 2.46.0",
    ),
    "a secret as a value": (
        put(*BOX, "env", to=[{"name": "DB_PASSWORD", "value": "x"}]),
        f"{CPU}.template.spec.containers[0].env[0]",
        "secretKeyRef",
    ),
}


def refused(content: Any) -> list[Any]:
    with pytest.raises(SpecError) as caught:
        check(content)
    return list(caught.value.problems)


def told(problems: list[Any], place: str, words: str) -> bool:
    return any(str(problem).startswith(place) and words in str(problem) for problem in problems)


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_broken_launcher_file_is_refused(name: str, contents: dict[Path, Any]) -> None:
    change, place, words = LAUNCHER[name]
    content = copy.deepcopy(contents[AWS])
    change(content)
    problems = refused(content)
    assert told(problems, place, words), [str(problem) for problem in problems]


@pytest.mark.parametrize("name", RESOURCE)
def test_a_broken_resource_is_refused(name: str, contents: dict[Path, Any]) -> None:
    change, place, words = RESOURCE[name]
    content = copy.deepcopy(contents[KUBERAY])
    change(content)
    problems = refused(content)
    assert told(problems, place, words), [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (
            put(GROUPS, "cpu", "node_config", "machinType", to="x"),
            f"{GROUPS}.cpu.node_config",
            "Did you mean machineType",
        ),
        (put(GROUPS, "cpu", "node_config", "scheduling", to=[{"preemptible": True}]), "", ""),
        (put("provider", "gcp_credentials", to={"type": "service_account"}), "provider.gcp_credentials", "none in"),
        (put("provider", "cache_stopped_nodes", to=True), "provider.cache_stopped_nodes", "need false"),
        (drop(GROUPS, "cpu", "node_config", "scheduling"), f"{GROUPS}.cpu.labels", "market-type: on-demand"),
    ],
)
def test_google_cloud(change: Change, place: str, words: str, contents: dict[Path, Any]) -> None:
    content = copy.deepcopy(contents[GCP])
    change(content)
    if not words:  # the other way to write it, which Ray's examples have
        assert {group.name: group.is_spot for group in check(content).groups}["cpu"]
        return
    assert told(refused(content), place, words)


def test_everything_is_told_at_once(contents: dict[Path, Any]) -> None:
    content = copy.deepcopy(contents[AWS])
    names = ("head trains", "idle too short", "open dashboard", "stopped machines stay", "no label", "an AWS key")
    for name in names:
        LAUNCHER[name][0](content)
    problems = refused(content)
    for name in names:
        assert told(problems, *LAUNCHER[name][1:]), name


@pytest.mark.parametrize("content", [None, [], "text", {}, {"provider": 3}, {"provider": {"type": "aws"}}])
def test_what_is_no_such_file(content: Any) -> None:
    assert refused(content)


def test_a_token_from_a_secret_store_will_do(contents: dict[Path, Any]) -> None:
    content = copy.deepcopy(contents[AWS])
    del content["file_mounts"]["~/.ray/auth_token"]
    for key, number in (HEAD_START, WORKER_START):
        fetched = 'export RAY_AUTH_TOKEN="$(aws secretsmanager get-secret-value --secret-id ray)"; '
        content[key][number] = fetched + content[key][number]
    assert check(content).kind == "aws"


def test_an_image_that_has_everything_needs_no_commands(contents: dict[Path, Any]) -> None:
    content, found = copy.deepcopy(contents[AWS]), here()
    image = f"registry.example/atoll:{found.atoll}-ray{found.ray}"
    content["docker"]["image"], content["setup_commands"] = image + "-cpu", []
    content[GROUPS]["gpu"]["docker"]["worker_image"] = image + "-gpu"
    del content[GROUPS]["gpu"]["worker_setup_commands"]
    assert check(content).kind == "aws"


def test_token_by_environment_before_kuberay_had_options(contents: dict[Path, Any]) -> None:
    content = copy.deepcopy(contents[KUBERAY])
    del content["spec"]["authOptions"]
    secret = {"secretKeyRef": {"name": "atoll", "key": "auth_token"}}
    env = [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": secret}]
    for group in (content["spec"]["headGroupSpec"], *content["spec"]["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["env"] = env
    assert check(content).kind == "kuberay"
