"""`atoll cluster check` as a command; and `atoll ui` of a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from terminal_kit import Terminal, last_object

ROOT = Path(__file__).parents[3]


def test_a_good_file(atoll: Terminal) -> None:
    code, out, err = atoll("cluster", "check", str(ROOT / "cluster.yaml"), "--json")
    assert (code, err) == (0, "")
    assert "nothing wrong" in out
    assert "0 to 32" in out
    assert "to fill in: available_node_types.head.node_config.ImageId" in out
    found = last_object(out)
    assert (found["kind"], found["name"]) == ("aws", "atoll")
    assert [group["name"] for group in found["groups"]] == ["steady", "cpu", "gpu"]


def test_a_bad_file_is_told_in_full(atoll: Terminal) -> None:
    text = (ROOT / "cluster.yaml").read_text()
    text = text.replace("resources: {CPU: 0}", "resources: {CPU: 8}").replace(
        "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"
    )
    (atoll.folder / "mine.yaml").write_text(text)
    code, out, err = atoll("cluster", "check", "mine.yaml")
    assert code == 2
    assert out == ""
    assert err.startswith("atoll: 2 problems:")
    assert "available_node_types.head.resources.CPU: got 8" in err
    assert "a dashboard that is not open" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "an existing file"),
        ("a: [", "valid YAML"),
        ("", "the sections of a Ray cluster"),
        ("name: x", "provider"),
    ],
)
def test_what_is_no_such_file(atoll: Terminal, text: str | None, words: str) -> None:
    if text is not None:
        (atoll.folder / "mine.yaml").write_text(text)
    code, _, err = atoll("cluster", "check", "mine.yaml")
    assert code == 2
    assert words in err
    assert "Traceback" not in err


def test_help(atoll: Terminal) -> None:
    code, out, _ = atoll("cluster", "check", "--help")
    assert code == 0
    assert "Usage: " in out


def test_ui_of_a_server_says_where_it_is(atoll: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started: the server has a page of its own."""
    monkeypatch.setattr("atoll.tracking.preflight", lambda uri: None)
    code, out, err = atoll("ui", "--uri", "https://mlflow.example")
    assert (code, err) == (0, "")
    assert out.startswith("MLflow: https://mlflow.example ")
