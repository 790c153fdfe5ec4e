"""`atoll submit`, `jobs`, `logs` and `stop`: what people type and read, and the code that scripts see."""

from __future__ import annotations

import json

import pytest

from job_kit import Server
from terminal_kit import Terminal, last_object


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server()
    monkeypatch.setattr("atoll.experiment.submitting.job_server", lambda address=None: found)
    monkeypatch.setattr("atoll.experiment.submitting._PAUSE_S", 0.0)
    return found


@pytest.mark.parametrize("command", ["submit", "jobs", "logs", "stop"])
def test_help(atoll: Terminal, command: str) -> None:
    code, out, err = atoll(command, "--help")
    assert (code, err) == (0, "")
    assert "--address" in out
    assert len(out.splitlines()) < 45
    assert max(map(len, out.splitlines())) <= 120


def test_submit_and_leave(atoll: Terminal, server: Server) -> None:
    config = atoll.write()
    code, out, err = atoll(
        "submit", config, "seed=5", "--no-follow", "--num-cpus", "0.5", "--resource", "disk=2", "--label", "zone=a",
        "--env", "COLUMNS", "--json",
    )  # fmt: skip
    found = last_object(out)
    assert code == 0
    assert found["is_new"] is True
    assert f"{found['job_id']} submitted" in err
    assert f"atoll stop {found['job_id']}" in err
    order = server.orders[found["job_id"]]
    assert (order.num_cpus, order.resources, order.labels) == (0.5, {"disk": 2.0}, {"zone": "a"})
    assert order.environment["COLUMNS"] == "120"
    assert "seed: 5" in order.files["spec.yaml"]
    code, _, err = atoll("submit", config, "seed=5", "--no-follow")
    assert code == 0
    assert "is there already" in err


def test_submit_and_stay(atoll: Terminal, server: Server) -> None:
    config = atoll.write()
    result = {"model_digest": "ab"}

    def ends(name):
        return server.end(name, "SUCCEEDED", exit_code=0)

    server.ends = [lambda name: server.end(name, "FAILED", exit_code=-9), ends]
    assert atoll("submit", config, "--no-follow", "--key", "k")[0] == 0
    server.texts = {"k-a1": "one\ntwo\n", "k-a2": f"three\n{json.dumps(result)}\n"}
    code, out, err = atoll("submit", config, "--key", "k", "--retries", "1", "--json")
    assert code == 0
    assert out.startswith("one\ntwo\nthree\n")
    assert "k-a1 was lost" in err
    assert "k-a2 SUCCEEDED" in err
    found = last_object(out)
    assert (found["job_id"], found["attempt"], found["exit_code"], found["result"]) == ("k-a2", 2, 0, result)


@pytest.mark.parametrize(("facts", "code"), [({"exit_code": 2}, 2), ({"exit_code": 130}, 130), ({}, 3)])
def test_the_code_is_the_jobs(atoll: Terminal, server: Server, facts: dict[str, int], code: int) -> None:
    server.ends = [lambda name: server.end(name, "FAILED", message="x\natoll: no such data\n", **facts)]
    found = atoll("submit", atoll.write(), "--json")
    assert found[0] == code
    assert "FAILED: no such data" in found[2]
    assert last_object(found[1])["result"] is None
    job = last_object(found[1])["job_id"]
    assert atoll("logs", job, "--follow")[0] == code
    assert atoll("logs", job)[0] == 0


def test_ctrl_c_leaves_the_job_alone(atoll: Terminal, server: Server) -> None:
    def interrupted(name):
        raise KeyboardInterrupt

    server.ends = [interrupted]
    code, _, err = atoll("submit", atoll.write(), "--key", "k")
    assert code == 130
    assert "k-a1 goes on" in err
    assert "atoll logs k-a1 --follow --address http://head:8265" in err
    assert not server.stopped


def test_wrong_words_are_refused(atoll: Terminal, server: Server) -> None:
    config = atoll.write()
    for words, says in (
        (("--retries", "1", "--no-follow"), "--retries: got 1"),
        (("--resource", "disk"), "NAME=VALUE"),
        (("--resource", "disk=much"), "NAME=NUMBER"),
        (("--label", "=x"), "NAME=VALUE"),
        (("--env", "ATOLL_NO_SUCH_VARIABLE"), "ATOLL_NO_SUCH_VARIABLE"),
        (("client.lr=-1",), "client.lr"),
    ):
        code, _, err = atoll("submit", config, *words)
        assert code == 2
        assert says in err
    assert not server.known
    code, _, err = atoll("logs", "nobody")
    assert (code, "none yet" in err) == (2, True)


def test_the_table_and_a_stop(atoll: Terminal, server: Server) -> None:
    code, out, _ = atoll("jobs", "--json")
    assert (code, last_object(out)) == (0, {"jobs": []})
    assert "atoll submit" in out
    config = atoll.write()
    for number in range(22):
        atoll("submit", config, "--no-follow", "--key", f"k{number:02d}")
    server.end("k21-a1", "RUNNING", message="Job is currently running.")
    server.texts["k21-a1"] = "tiny: step 3 of 7 · x\n"
    code, out, err = atoll("stop", "k21")
    assert (code, err) == (0, "")
    assert "k21-a1 is STOPPED: step 3 of 7" in out
    code, out, _ = atoll("jobs", "--json")
    rows = out.splitlines()
    assert sum(row.startswith("k") for row in rows) == 20
    assert "2 older ones: atoll jobs --all" in out
    row = next(row for row in rows if row.startswith("k21-a1"))
    assert row.split()[1:4] == ["k21", "1", "STOPPED"]
    assert " 130 " in row
    assert last_object(out)["jobs"][-1]["attempt"] == 1
    assert sum(row.startswith("k") for row in atoll("jobs", "--all")[1].splitlines()) == 22


def test_a_log_gets_a_line_now_and_then(atoll: Terminal, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people follow: on no terminal the bar would show itself at the end only."""
    monkeypatch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
    config = atoll.write(tracking={"uri": mlflow_uri}, stop={"server_steps": 300})
    monkeypatch.setattr("atoll.cli.show._LOG_EVERY_S", (1e9, 0.0))
    assert "tiny: step" not in atoll("run", config)[1], "not before the first seconds have passed"
    monkeypatch.setattr("atoll.cli.show._LOG_EVERY_S", (0.0, 0.0))
    code, out, _ = atoll("run", config)
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith("tiny: step ") and " of 300 · " in line]
