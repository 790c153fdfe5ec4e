"""`atoll doctor` without Ray: what one process sees, and what is said of several that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.experiment import NodeHealth, doctor, examining
from atoll.runtime.software import software
from tiny_kit import tiny

FINE = {"data": "ok", "block": "ok"}


def health(node: str, **changes) -> NodeHealth:
    usual = NodeHealth(node, "", "abacus", dict(software()), {"ray": "2"}, 10.0, "a" * 64, FINE)
    return replace(usual, **changes)


def told(*nodes: NodeHealth) -> str:
    return "\n".join(str(problem) for problem in examining._problems_of(nodes))


def test_a_sound_machine(tmp_path: Path) -> None:
    found = doctor(tiny(tracking={"uri": f"sqlite:///{tmp_path / 'm.db'}"}))
    assert found.problems == ()
    (here,) = found.nodes
    assert here.node == "here"
    assert here.checks == {"data": "ok", "block": "ok", "mlflow": "ok"}
    assert here.client_updates_per_s > 0
    assert len(here.block_digest) == 64
    assert here.packages["numpy"] == np.__version__
    assert here.device
    assert found.as_dict()["nodes"][0]["software"] == dict(software())


def test_the_digest_tells_blocks_apart(tmp_path: Path) -> None:
    uri = {"uri": f"sqlite:///{tmp_path / 'm.db'}"}
    (one,), (again,), (other,) = (doctor(tiny(tracking=uri, seed=seed)).nodes for seed in (3, 3, 4))
    assert one.block_digest == again.block_digest != other.block_digest


def test_a_tracking_store_that_refuses_is_a_problem_and_not_the_end() -> None:
    found = doctor(tiny(tracking={"uri": "file:///nowhere"}))
    assert found.nodes[0].checks["data"] == "ok"
    assert any("tracking.uri" in str(problem) for problem in found.problems)


def test_a_store_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    runtime = {"kind": "inline", "lanes": 4, "store": str(store)}
    found = doctor(tiny(runtime=runtime, tracking={"uri": f"sqlite:///{tmp_path / 'm.db'}"}))
    assert found.nodes[0].checks["store"] == "ok"
    assert found.problems == ()
    assert list(store.iterdir()) == []


def test_a_node_that_sees_another_folder_of_that_name_is_told(tmp_path: Path) -> None:
    from atoll.experiment import as_spec

    spec = as_spec(tiny(runtime={"kind": "inline", "lanes": 4, "store": str(tmp_path)}))
    with pytest.raises(SpecError, match="the same on every node"):
        examining._see_mark(spec, "doctor-1")


def test_other_data_on_a_node_is_told(tmp_path: Path) -> None:
    from atoll.experiment import as_spec

    found = examining.examine(as_spec(tiny()), "0" * 64, None, is_alone=False)
    assert "this worker finds content" in found.checks["data"]
    assert "block" not in found.checks
    assert "node here" in told(found)


def test_a_wrong_spec_is_refused() -> None:
    with pytest.raises(SpecError, match=r"client\.lr"):
        doctor(tiny(), "client.lr=-1")


def test_equal_nodes_are_fine() -> None:
    assert told(health("a"), health("b")) == ""


def test_nodes_that_end_in_other_bits_are_named() -> None:
    text = told(health("a"), health("b"), health("c", block_digest="b" * 64, device="sand"))
    assert "aaaaaaaaaaaa on a (abacus), b (abacus)" in text
    assert "bbbbbbbbbbbb on c (sand)" in text
    assert "runtime.labels" in text


def test_nodes_with_other_software_are_named() -> None:
    other = {**software(), "torch": "0.1"}
    text = told(health("a"), health("b", software=other), health("c", software=other))
    assert "torch on b, c: got '0.1'" in text


def test_a_node_that_does_not_answer_is_named() -> None:
    text = told(health("a"), NodeHealth("10.0.0.9", checks={"node": "no answer in 60 s"}))
    assert "10.0.0.9" in text
    assert "no answer in 60 s" in text


def test_every_check_that_failed_is_told() -> None:
    text = told(health("a", checks={"data": "not there", "store": "ok", "mlflow": "refused"}))
    assert "not there" in text
    assert "refused" in text
    assert "store" not in text
