"""Jobs of experiments: names, attempts, ends, what is sent; against a job server that is no Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import atoll as package
from atoll import spec as sp
from atoll.errors import InfrastructureError, SpecError
from atoll.experiment import orders, submitting
from atoll.experiment.attempts import (
    attempts_of,
    exit_code_of,
    find_job,
    key_of,
    may_go_on,
    reached,
    run_key,
    split_id,
    story_of,
)  # fmt: skip
from atoll.experiment.orders import Driver, waiting_story
from atoll.experiment.submitting import see_through, stop_job, submit
from atoll.runtime.connecting import Software
from atoll.runtime.jobs import Job, Node
from job_kit import Server
from tiny_kit import tiny

PORTABLE = {"tracking": {"uri": "http://mlflow:5000"}}


# ---- names ----------------------------------------------------------------------------------------------------------


def test_a_key_is_a_name_and_a_digest() -> None:
    spec = sp.parse(tiny())
    assert key_of(spec) == f"tiny-{sp.digest(spec)[:8]}"
    longer = {"stop": {"server_steps": 99}, "tracking": {"uri": "http://m:5"}, "runtime": {"kind": "ray", "lanes": 4}}
    assert key_of(sp.parse(tiny(**longer))) == key_of(spec), "the same experiment goes on"
    assert key_of(sp.parse(tiny(seed=4))) != key_of(spec)
    assert key_of(sp.parse(tiny(name="a b/c"))).startswith("a-b-")


def test_several_runs_have_a_key_of_their_own() -> None:
    arms = {"seeds": [1, 2], "baseline": "a", "arms": {"a": {}, "b": {"client.lr": 0.2}}}
    keys = [key_of(sp.parse(tiny()))]
    keys += [key_of(sp.parse(tiny(comparison=arms))), key_of(sp.parse(tiny(comparison=arms | {"seeds": [1, 3]})))]
    assert len(set(keys)) == 3


@given(st.text("ab-1.", min_size=1), st.integers(0, 10**6))
def test_an_id_says_key_and_attempt(key: str, attempt: int) -> None:
    assert split_id(f"{key}-a{attempt}") == (key, attempt)


def test_ids_of_others() -> None:
    assert [split_id(name) for name in ("raysubmit_x", "-a1", "a1", "x-a", "x-a1b")] == [None] * 5


def test_the_key_inside_a_job() -> None:
    job = '{"metadata": {"job_submission_id": "nightly-a12"}}'
    assert run_key({"RAY_JOB_CONFIG_JSON_ENV_VAR": job}) == "nightly"
    assert run_key({"RAY_JOB_CONFIG_JSON_ENV_VAR": job, "ATOLL_RUN_KEY": "mine"}) == "mine"
    assert run_key({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": {"job_submission_id": "raysubmit_x"}}'}) is None
    assert run_key({"RAY_JOB_CONFIG_JSON_ENV_VAR": '{"metadata": null}'}) is None
    assert run_key({}) is None


def test_attempts_are_counted_not_spelt() -> None:
    jobs = [Job(name, "FAILED") for name in ("k-a10", "k-a9", "k-a-a1", "other-a3", "raysubmit_1")]
    assert [number for number, _ in attempts_of(jobs, "k")] == [9, 10]
    assert find_job(jobs, "k").id == "k-a10"
    assert find_job(jobs, "k-a9").id == "k-a9"
    with pytest.raises(SpecError, match="other-a3, raysubmit_1"):
        find_job(jobs, "nobody")
    with pytest.raises(SpecError, match="none yet"):
        find_job([], "nobody")


# ---- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "error", "exit_code", "goes_on"),
    [
        ("SUCCEEDED", 0, "", 0, False),
        ("STOPPED", None, "", 130, False),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", 2, False),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", 1, False),
        ("FAILED", 3, "JOB_ENTRYPOINT_COMMAND_ERROR", 3, True),
        ("FAILED", 130, "JOB_ENTRYPOINT_COMMAND_ERROR", 130, True),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", 3, True),
        ("FAILED", 137, "JOB_ENTRYPOINT_COMMAND_ERROR", 3, True),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", 3, True),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", 3, False),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", 3, False),
    ],
)
def test_what_an_end_means(status: str, code: int | None, error: str, exit_code: int, goes_on: bool) -> None:
    job = Job("k-a1", status, exit_code=code, error_type=error)
    assert exit_code_of(job) == exit_code
    assert may_go_on(job) is goes_on


def test_what_a_log_says() -> None:
    assert reached("") == ""
    assert reached("tiny: step 40 of 1,000 · 0.1 h\ntiny: step 1,000 of 1,000 · x\n") == "step 1,000 of 1,000"
    log = "tiny: step 40 of 100\natoll: stopped at server step 57; everything up to there is kept."
    assert reached(log) == "stopped at server step 57"
    message = "Job entrypoint command failed with exit code 3, last available logs …:\nx\natoll: disk full\n  more\n"
    assert story_of(Job("k", "FAILED", message)) == "disk full"
    assert story_of(Job("k", "RUNNING", "\n Job is running.\n")) == "Job is running."
    assert story_of(Job("k", "RUNNING")) == ""


def test_why_a_job_waits() -> None:
    nodes = [Node("h", True, {"CPU": 0.0}, {}), Node("w", False, {"CPU": 4.0, "disk": 1.0}, {"zone": "a"})]
    assert "no node that fits: it asks for CPU: 8, there are head h with CPU: 0; node w with CPU: 4" in waiting_story(
        Driver(8), nodes
    )
    assert waiting_story(Driver(1), nodes).startswith("waits for CPU: 1: nodes that have it are busy")
    assert waiting_story(Driver(1, {"disk": 1}), nodes).startswith("waits")
    assert waiting_story(Driver(1, {"disk": 2}), nodes).startswith("no node")
    assert waiting_story(Driver(1, labels={"zone": "b"}), nodes).startswith(
        "no node that fits: it asks for CPU: 1, zone=b"
    )
    assert waiting_story(Driver(1), []) == "waits for a node with CPU: 1"
    assert "; 7 more" in waiting_story(Driver(9), [nodes[1]] * 12)


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_elsewhere_is_told_at_once() -> None:
    mapping = tiny(
        data={"kind": "parquet", "path": "mine.parquet", "client_column": "c", "label_column": "l", "task": "binary"},
        population={"size": "data", "devices": {"kind": "constant", "value_s": 1.0}},
        runtime={"kind": "inline", "store": "here"},
    )
    with pytest.raises(SpecError) as refused:
        orders.check_portable(sp.parse(mapping), None)
    assert [problem.path for problem in refused.value.problems] == ["tracking.uri", "data.path", "runtime.store"]
    assert "mlflow server" in str(refused.value)
    with pytest.raises(SpecError) as refused:
        orders.check_portable(sp.parse(mapping), Path("/here"))
    assert [problem.path for problem in refused.value.problems] == ["data.path"], "the rest is the driver's"
    assert "Write /here/mine.parquet" in str(refused.value)
    mapping["data"]["path"], mapping["runtime"]["store"] = "s3://bucket/mine.parquet", "/shared/runs"
    orders.check_portable(sp.parse(mapping | PORTABLE), None)


def test_arguments_of_factories_are_nobodys_paths() -> None:
    model = {"kind": "custom", "factory": "mine:make", "arguments": {"path": "x"}}
    orders.check_portable(sp.parse(tiny(model=model, **PORTABLE)), None)


def test_code_that_travels(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "__init__.py").write_text("")
    home = Path(package.__file__).parent
    spec = sp.parse(tiny())
    assert orders.packages_for(spec, [str(tmp_path)]) == [home]
    for factory, expected in (
        ("mine:make", [tmp_path / "mine.py"]),
        ("ours.models:make", [tmp_path / "ours"]),
        ("torch.nn:Linear", []),
        ("nowhere:make", []),
    ):
        spec = sp.parse(tiny(model={"kind": "custom", "factory": factory}))
        assert orders.packages_for(spec, [str(tmp_path), *sys.path]) == [home, *expected]


def test_variables_for_the_job() -> None:
    found = orders.environment_for(["TOKEN"], {"TOKEN": "t", "OTHER": "o"})
    assert found["TOKEN"] == "t"
    assert "OTHER" not in found
    assert found["OMP_NUM_THREADS"] == "1"
    assert int(found["RAY_JOB_STOP_WAIT_TIME_S"]) > 90, "a run may take so long to its step boundary"
    with pytest.raises(SpecError, match=r"A.*\n.*B"):
        orders.environment_for(["A", "B"], {})


def test_the_command_finds_spec_and_folder(tmp_path: Path) -> None:
    """Run by a shell, with a python that only says what it was told."""
    bin_, here, job = tmp_path / "bin", tmp_path / "a folder's", tmp_path / "job"
    for folder in (bin_, here, job):
        folder.mkdir()
    (bin_ / "python").write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\necho $$ $PPID\n')
    (bin_ / "python").chmod(0o755)
    environment = {"PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}

    def typed(command: str) -> list[str]:
        shell = ["sh", "-c", command]
        return subprocess.run(shell, cwd=job, env=environment, capture_output=True, text=True, check=True).stdout.split(
            "\n"
        )

    arguments = ["-m", "atoll", "run"]
    assert typed(orders.entrypoint_of("k", None))[:7] == [str(job), *arguments, "spec.yaml", "--key", "k"]
    assert typed(orders.entrypoint_of("k", here))[:7] == [str(here), *arguments, f"{job}/spec.yaml", "--key", "k"]
    pids = typed(orders.entrypoint_of("k", here))[-2].split()
    assert int(pids[1]) == os.getpid(), "the driver itself gets the signal of a stop"


# ---- submitting -----------------------------------------------------------------------------------------------------


def test_the_first_time_and_the_second() -> None:
    server = Server()
    first = submit(tiny(), server=server)
    assert (first.attempt, first.is_new, first.notes) == (1, True, ())
    order = server.orders[first.job_id]
    assert sp.parse(tiny()) == _sent(order.files["spec.yaml"])
    assert (order.num_cpus, dict(order.resources), dict(order.labels)) == (1.0, {}, {})
    assert str(Path.cwd()) in order.entrypoint
    again = submit(tiny(), server=server)
    assert (again.job_id, again.is_new) == (first.job_id, False)
    server.end(first.job_id, "RUNNING")
    assert submit(tiny(), server=server).is_new is False
    assert len(server.orders) == 1


def _sent(text: str) -> sp.Spec:
    import yaml

    return sp.parse(yaml.safe_load(text))


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_dead_job_has_a_next_attempt(status: str) -> None:
    server = Server()
    first = submit(tiny(), server=server)
    server.end(first.job_id, status)
    second = submit(tiny(), server=server)
    assert second.job_id == f"{first.key}-a2"
    server.end(second.job_id, "RUNNING")
    assert submit(tiny(), server=server).job_id == second.job_id


def test_what_is_finished_is_found_and_made_longer() -> None:
    server = Server()
    first = submit(tiny(), server=server)
    server.end(first.job_id, "SUCCEEDED", exit_code=0)
    assert submit(tiny(), server=server) == first.__class__(first.job_id, first.key, 1, False)
    longer = submit(tiny(), "stop.server_steps=9", server=server)
    assert (longer.key, longer.attempt, longer.is_new) == (first.key, 2, True)
    with pytest.raises(SpecError, match=f"{first.key}-a2 runs there.*--key"):
        submit(tiny(), "stop.server_steps=11", server=server)
    assert submit(tiny(), "stop.server_steps=11", server=server, key="other").job_id == "other-a1"


def test_two_in_the_same_moment_are_one_job() -> None:
    server = Server()

    def another(order) -> None:
        server.before = lambda order: None
        submit(tiny(), server=server)

    server.before = another
    assert submit(tiny(), server=server).is_new is False
    assert len(server.known) == 1


def test_a_server_that_takes_nothing_is_told() -> None:
    server = Server()

    def refuse(order) -> None:
        raise InfrastructureError("no room")

    server.before = refuse
    with pytest.raises(InfrastructureError, match="no room"):
        submit(tiny(), server=server)


def test_nothing_is_sent_that_is_wrong() -> None:
    for server, spec, options in (
        (Server(), tiny(client={"lr": -1.0, "batch_size": 0}), {}),
        (Server(here=False), tiny(), {}),
        (Server(), tiny(), {"key": "a/b"}),
        (Server(), tiny(), {"driver": Driver(environment=("ATOLL_NO_SUCH_VARIABLE",))}),
    ):
        with pytest.raises(SpecError):
            submit(spec, server=server, **options)
        assert not server.known


def test_a_cluster_elsewhere() -> None:
    server = Server(here=False)
    server.software = Software("2.57.0", "3.12.1")
    found = submit(tiny(**PORTABLE), server=server)
    order = server.orders[found.job_id]
    assert order.entrypoint == f"exec python -m atoll run spec.yaml --key {found.key} --json"
    assert "runtime.store is null" in found.notes[0]
    assert "Ray 2.57.0 and Python 3.12.1" in found.notes[1]
    stored = tiny(runtime={"kind": "ray", "workers": 2, "store": "s3://b/p"}, **PORTABLE)
    assert len(submit(stored, server=server, key="kept").notes) == 1


def test_a_cluster_that_is_too_old() -> None:
    server = Server()
    server.software = Software("2.9.3", "3.10.14")
    with pytest.raises(SpecError) as refused:
        submit(tiny(), server=server)
    assert not server.known
    assert [problem.rule for problem in refused.value.problems] == ["ray 2.56 or newer", "python 3.11 or newer"]
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'"ray[default]>={submitting._LEAST["ray"]},' in text
    assert f'requires-python = ">={submitting._LEAST["python"]}"' in text


def test_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpecError, match="RAY_API_SERVER_ADDRESS"):
        submitting.job_server()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    with pytest.raises(SpecError, match="RAY_API_SERVER_ADDRESS"):
        submitting.job_server()


# ---- seeing through -------------------------------------------------------------------------------------------------


def test_retries_of_what_was_lost() -> None:
    server, told, slept = Server(), [], []
    server.ends = [
        lambda name: server.end(name, "FAILED", exit_code=-9, message="killed"),
        lambda name: server.end(name, "FAILED", exit_code=3),
        lambda name: server.end(name, "SUCCEEDED", exit_code=0),
    ]
    found, job = see_through(
        lambda: submit(tiny(), server=server),
        lambda one: server.follow(one.job_id, lambda text: None),
        5, told.append, slept.append,
    )  # fmt: skip
    assert (found.attempt, job.status) == (3, "SUCCEEDED")
    assert slept == [5.0, 10.0]
    assert "a1 was lost (killed)" in told[0]


def test_no_retries_of_what_was_refused_or_of_more_than_asked() -> None:
    for code, retries, attempts in ((2, 5, 1), (3, 0, 1), (3, 2, 3)):
        server = Server()
        server.ends = [lambda name, s=server, c=code: s.end(name, "FAILED", exit_code=c)] * 9
        found, job = see_through(
            lambda s=server: submit(tiny(), server=s),
            lambda one, s=server: s.follow(one.job_id, lambda text: None),
            retries, lambda text: None, lambda seconds: None,
        )  # fmt: skip
        assert (found.attempt, job.exit_code) == (attempts, code)


# ---- stopping -------------------------------------------------------------------------------------------------------


def test_stopping() -> None:
    server = Server()
    first = submit(tiny(), server=server)
    server.end(first.job_id, "RUNNING")
    server.texts[first.job_id] = "atoll: stopped at server step 5; everything up to there is kept."
    job, where = stop_job(server, first.key)
    assert (job.id, job.status, where) == (first.job_id, "STOPPED", "stopped at server step 5")
    assert stop_job(server, first.job_id)[0].status == "STOPPED"
    assert server.stopped == [first.job_id], "what is over is left alone"


def test_stopping_what_has_not_started_or_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(submitting, "_POLL_S", 0.0)
    server = Server()
    first = submit(tiny(), server=server)
    with pytest.raises(InfrastructureError, match="has not started"):
        stop_job(server, first.job_id)
    server.end(first.job_id, "RUNNING")
    monkeypatch.setattr(Server, "stop", lambda self, name: None)
    with pytest.raises(InfrastructureError, match="has not ended 0 s"):
        stop_job(server, first.job_id, 0.0)
