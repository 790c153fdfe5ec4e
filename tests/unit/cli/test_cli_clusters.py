"""`atoll plan` and `atoll run` of one cluster's leaf: the table of sizes, and refusals before anything starts."""

from __future__ import annotations

import pytest

from atoll.experiment.clustering import ClusterSize
from terminal_kit import Terminal, last_object

RANDOM = {"kind": "random", "sizes": [10, 30, 20], "only": "r1"}


def test_a_plan_shows_the_sizes_of_all_clusters(atoll: Terminal) -> None:
    config = atoll.write(clusters=RANDOM)
    code, out, err = atoll("plan", config, "--json")
    assert code == 0, err
    for line in (("r0", "10", "16.7 %"), ("r1", "30", "50.0 %"), ("r2", "20", "33.3 %")):
        assert any(all(part in shown for part in line) for shown in out.splitlines()), line
    told = last_object(out)["clusters"]
    assert [(one["name"], one["clients"]) for one in told] == [("r0", 10), ("r1", 30), ("r2", 20)]
    assert all(one["train_examples"] > one["clients"] for one in told)


def test_arms_with_the_same_clusters_share_a_table(atoll: Terminal) -> None:
    arms = {"a": {}, "b": {"clusters": RANDOM | {"only": "r2"}}, "c": {"clusters": {"kind": "single"}}}
    config = atoll.write(clusters=RANDOM, comparison={"seeds": [1], "arms": arms, "baseline": "a"})
    code, out, err = atoll("plan", config)
    assert code == 0, err
    assert out.count("training examples") == 1
    assert "Clusters of a seed 1, b seed 1" in out


def test_sizes_that_nobody_counted(capsys: pytest.CaptureFixture[str]) -> None:
    from atoll.cli import show

    show.clusters((ClusterSize("r0", 10**8, None),))
    assert "not counted" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_cluster_that_is_too_small_is_refused_before_the_start(atoll: Terminal, command: str) -> None:
    config = atoll.write(
        clusters=RANDOM | {"only": "r0"}, schedule={"kind": "async", "concurrency": 11, "buffer_goal": 2}
    )
    code, _, err = atoll(command, config)
    assert code == 2
    assert "11 in cluster r0 of 10 clients" in err
    assert not (atoll.folder / "runs").exists()
    code, _, err = atoll(command, config, "clusters.only=rr")
    assert code == 2
    assert "clusters.only" in err
    code, _, err = atoll(command, config, "clusters.only=null")
    assert code == 2
    assert "an ensemble, or clusters.only" in err
