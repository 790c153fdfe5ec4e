"""Every experiment that ships: it loads, it plans, and its first lines say how to start it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from atoll import spec as sp
from atoll.data import open_data
from atoll.errors import SpecError
from atoll.experiment import plan, plan_ensemble
from atoll.experiment.wiring import source_of

ROOT = Path(__file__).parents[2]
#: experiments alone: Ray clusters have a folder, and tests, of their own
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STEPS = 2


def ident(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


def test_there_are_some() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_it_plans(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the root of the repository, as its command says; for two server steps, arms of a comparison too."""
    monkeypatch.chdir(ROOT)
    spec = sp.load(path, [f"stop.server_steps={STEPS}"])
    if spec.data.kind == "movielens":
        try:
            open_data(source_of(spec))
        except SpecError as error:
            pytest.skip(f"MovieLens is not here, and may not be redistributed: {error.problems[0]}")
    if spec.ensemble is not None:
        planned = plan_ensemble(spec)
        assert {arm.seed for arm in planned.study.arms} == {seed for _, seed, _ in sp.arms(spec)}
        assert all(report.summary.client_updates > 0 for report in planned.reports.values())
        return
    digests = set()
    arms = sp.arms(spec)
    for arm, seed, one in arms:
        if seed != arms[0][1]:
            continue  # seeds differ in nothing that a plan could refuse
        report = plan(one, f"stop.server_steps={STEPS}")
        assert report.summary.server_steps == STEPS, arm
        assert report.summary.client_updates > 0
        digests.add((report.plan_digest, report.spec.stop, repr(report.spec.runtime)))
    assert len(digests) == len({arm for arm, _, _ in arms}), "two arms are one experiment"


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_its_first_lines_name_the_command(path: Path) -> None:
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    assert len(head) >= 2, "what it shows, and the command"
    commands = re.findall(r"(?:\./scripts/run|atoll (?:run|plan))\s+(\S+\.yaml)", "\n".join(head))
    assert f"configs/{ident(path)}" in commands
    assert all((ROOT / command).is_file() for command in commands)


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_names_are_the_files_own(path: Path) -> None:
    """One name per file: runs are found by it."""
    others = [yaml.safe_load(other.read_text())["name"] for other in CONFIGS if other != path]
    assert yaml.safe_load(path.read_text())["name"] not in others


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = sp.json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", CONFIGS, ids=ident)
def test_the_schema_accepts_it(path: Path, validator: Draft202012Validator) -> None:
    """An editor that checks files against `atoll schema` underlines nothing."""
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(yaml.safe_load(path.read_text()))]
    assert found == []


@pytest.mark.parametrize(
    "change",
    [{"speed": 3}, {"seed": "one"}, {"stop": {}}, {"schedule": {"kind": "asink"}}, {"client": {"lr": 0.1, "rate": 1}}],
    ids=lambda change: next(iter(change)),
)
def test_the_schema_refuses_what_is_wrong(change: dict, validator: Draft202012Validator) -> None:
    mapping = yaml.safe_load((ROOT / "configs" / "fedbuff_flights.yaml").read_text())
    assert validator.is_valid(mapping)
    assert not validator.is_valid(mapping | change)
