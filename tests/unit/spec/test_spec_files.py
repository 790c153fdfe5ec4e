"""Reading, writing and naming of specs that are right."""

import itertools
import json
import subprocess
import sys
import typing

import pytest
from pydantic import BaseModel

from atoll.errors import SpecError
from atoll.spec import Spec, arms, digest, dump, json_schema, load, parse, parse_override, to_dict
from atoll.spec.yaml_text import read_yaml, write_yaml

# the example of the design, section 6
DESIGN = """
name: fedbuff-flights
seed: 7
data: {kind: flights}                     # shakespeare | parquet | arrays | synthetic | custom
population:
  size: data                              # as many as the data has, or a number: ids map onto the data's clients
  devices: {kind: half_normal, scale_s: 60, per_example_s: 0.5, overhead_s: 39, dropout: 0.05}
  availability: {kind: always}            # diurnal | intervals
clusters: {kind: single}
model: {kind: mlp, hidden: [64, 32]}
client: {lr: 0.1, epochs: 1, batch_size: 32, momentum: 0.0, proximal_mu: 0.0}
schedule: {kind: async, concurrency: 200, buffer_goal: 20, max_staleness: null}
aggregation:
  kind: fedbuff                           # fedavg | fedasync
  staleness: {kind: polynomial, exponent: 0.5}
  weighting: {kind: equal}
  server_optimizer: {kind: sgd, lr: 1.0, momentum: 0.9}
ensemble: null
privacy: null
evaluation: {every_steps: 10, metrics: [loss, auc]}
stop: {server_steps: 2000, target: {metric: auc, value: 0.70}}
tracking: {uri: "sqlite:///mlflow.db", experiment: fedbuff-flights, checkpoint_every_steps: 50}
runtime: {kind: ray, workers: 2, lanes: auto}     # kind: inline runs the same bits without Ray
"""


@pytest.fixture
def design(tmp_path):
    file = tmp_path / "design.yaml"
    file.write_text(DESIGN)
    return file


def sections(model=Spec, seen=None):
    """Every section class that can be reached from Spec."""
    seen = {} if seen is None else seen
    if model.__name__ not in seen:
        seen[model.__name__] = model
        for field in model.model_fields.values():
            for part in parts(field.annotation):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    sections(part, seen)
    return seen


def parts(annotation):
    yield annotation
    for inner in typing.get_args(annotation):
        yield from parts(inner)


def test_the_example_of_the_design_is_a_spec(design):
    spec = load(design)
    assert (spec.seed, spec.data.kind, spec.data.weather) == (7, "flights", True)
    assert spec.model.hidden == (64, 32)
    assert (spec.schedule.kind, spec.schedule.sampling) == ("async", "with_replacement")
    assert spec.aggregation.staleness.exponent == 0.5
    assert spec.stop.target.value == 0.7
    assert spec.runtime.lanes == "auto"
    assert isinstance(spec.population.devices.scale_s, float)  # 60 in the file


def test_a_resolved_spec_is_complete_and_equal(design, tmp_path):
    spec = load(design)
    copy = tmp_path / "resolved.yaml"
    copy.write_text(dump(spec))
    assert load(copy) == spec
    assert dump(load(copy)) == dump(spec)
    assert digest(load(copy)) == digest(spec)
    assert "delta_bound: 1000.0" in dump(spec)
    for line in ("data: {kind: flights, weather: true}", "clusters: {kind: single, only: null}"):
        assert line in dump(spec).splitlines()


def test_every_section_is_frozen_and_closed_and_every_field_is_described():
    found = sections()
    assert len(found) > 45
    for model in found.values():
        assert model.model_config["frozen"]
        assert model.model_config["extra"] == "forbid"
        for name, field in model.model_fields.items():
            if name != "kind":
                assert field.description, f"{model.__name__}.{name}"
    with pytest.raises(ValueError, match="frozen"):
        found["Client"](lr=0.1).lr = 0.2


def test_a_default_section_is_its_kind_alone():
    # overrides start a section that the file leaves out from its kind; so the classes must know all the rest
    for model in sections().values():
        for name, field in model.model_fields.items():
            if isinstance(field.default, BaseModel):
                kind = {"kind": field.default.kind} if hasattr(field.default, "kind") else {}
                assert type(field.default)(**kind) == field.default, f"{model.__name__}.{name}"


def test_overrides_replace_values_lists_nulls_and_sections(design):
    spec = load(
        design,
        [
            "client.lr=1e-3",
            "model.hidden=[8]",
            "stop.target=null",
            "schedule={kind: sync, cohort: 10}",
            "aggregation={kind: fedavg, weighting: {kind: examples}}",
            "name=a b",
            "tracking.experiment=",
            "client.schedule={kind: cosine, total_steps: 5}",
        ],
    )
    assert spec.client.lr == 0.001
    assert spec.model.hidden == (8,)
    assert spec.stop.target is None
    assert (spec.schedule.kind, spec.schedule.cohort, spec.schedule.sampling) == ("sync", 10, "without_replacement")
    assert spec.aggregation.weighting.kind == "examples"
    assert (spec.name, spec.tracking.experiment) == ("a b", None)
    assert spec.client.schedule.final == 0.0


def test_overrides_reach_sections_that_the_file_leaves_out(design):
    raw = read_yaml(DESIGN, "design")
    del raw["population"], raw["runtime"], raw["aggregation"]["staleness"]
    spec = parse(
        raw, ["population.devices.dropout=0.5", "aggregation.staleness.exponent=1", "runtime.workers=3", "seed=1"]
    )
    assert (spec.population.devices.kind, spec.population.devices.dropout) == ("half_normal", 0.5)
    assert spec.aggregation.staleness.exponent == 1.0
    assert spec.runtime.workers == 3
    assert "population" not in raw  # the input is not changed


def test_the_last_override_wins_and_an_unchanged_kind_is_no_change(design):
    spec = load(design, ["seed=1", "seed=2", "schedule.kind=async"])
    assert spec.seed == 2
    assert spec.schedule == load(design).schedule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1e-3", ("a.b", 0.001)),
        ("a=[1, x, null]", ("a", [1, "x", None])),
        ("a=", ("a", None)),
        ("a=b=c", ("a", "b=c")),
        ("a=sqlite:///x.db", ("a", "sqlite:///x.db")),
        ("a='1'", ("a", "1")),
    ],
)
def test_an_override_is_a_key_and_a_yaml_value(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("1_000", 1000),
        ("1_000.5", 1000.5),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("True", True),
        ("null", None),
        ("~", None),
        ("0x10", "0x10"),
        ("_1", "_1"),
        ("1__0", "1__0"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("'1e-3'", "1e-3"),
        ("=", "="),
    ],
)
def test_yaml_values_mean_what_they_look_like_and_are_written_back(text, value):
    read = read_yaml(f"a: {text}", "text")["a"]
    assert (type(read), read) == (type(value), value)
    assert read_yaml(write_yaml({"a": value}), "text") == {"a": value}


def test_anchors_and_merge_keys_work():
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n"
    assert read_yaml(text, "text")["more"] == {"x": 1, "y": 3}


def test_the_digest_holds_what_decides_the_result(design):
    spec = load(design)
    same = [
        "name=other",
        "stop={server_steps: 1}",
        "tracking.uri=x",
        "runtime.workers=9",
        "runtime={kind: inline}",
        "comparison={seeds: [1], arms: {a: {}}, baseline: a}",
        "runtime.memory_bytes=1_000_000",
        "population.device_memory_bytes=1_000_000",
    ]
    other = [
        "seed=8",
        "client.lr=0.2",
        "runtime.lanes=4",
        "data.weather=false",
        "evaluation.every_steps=11",
        "population.devices.dropout=0",
        "runtime={kind: inline, device_class: cuda}",
        "aggregation.delta_bound=10",
    ]
    assert {digest(load(design, [text])) for text in same} == {digest(spec)}
    others = [digest(load(design, [text])) for text in other]
    assert len({*others, digest(spec)}) == len(other) + 1
    # integers where numbers are meant, and the order of keys, do not matter
    assert digest(load(design, ["client.momentum=0"])) == digest(spec)
    assert digest(parse(dict(reversed(to_dict(spec).items())))) == digest(spec)


def test_the_schema_is_plain_json_with_descriptions():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"] == "atoll spec"
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "data", "model", "client", "schedule", "aggregation", "stop"]
    assert all("description" in node for node in schema["properties"].values())
    assert all("description" in definition for definition in schema["$defs"].values())
    changed = json_schema()
    changed["title"] = "x"
    assert json_schema()["title"] == "atoll spec"


def test_arms_are_every_arm_with_every_seed_the_baseline_first(design):
    comparison = {
        "seeds": [1, 2],
        "arms": {"sync": {}, "fast": {"client.lr": 1.0, "schedule.buffer_goal": 5}, "avg": {}},
        "baseline": "fast",
    }
    whole = {"schedule": {"kind": "sync", "cohort": 10}, "aggregation": {"kind": "fedavg"}}
    comparison["arms"]["sync"] = whole
    spec = parse({**read_yaml(DESIGN, "x"), "comparison": comparison}, ["tracking.experiment=null"])
    runs = arms(spec)
    assert [(arm, seed) for arm, seed, _ in runs] == list(itertools.product(["fast", "sync", "avg"], [1, 2]))
    by_run = {(arm, seed): run for arm, seed, run in runs}
    assert by_run["fast", 2].name == "fedbuff-flights-fast-s2"
    assert by_run["fast", 2].seed == 2
    assert by_run["fast", 2].schedule.buffer_goal == 5
    assert by_run["sync", 1].schedule.cohort == 10
    assert by_run["avg", 1].schedule == spec.schedule
    assert {run.tracking.experiment for _, _, run in runs} == {"fedbuff-flights"}
    assert all(run.comparison is None for _, _, run in runs)
    # the resolved file makes the same arms
    assert arms(parse(read_yaml(dump(spec), "x"))) == runs
    assert arms(load(design)) == [("", 7, load(design))]


def test_run_names_of_a_comparison_must_fit(design):
    comparison = f"comparison={{seeds: [1], arms: {{{'a' * 240}: {{}}}}, baseline: {'a' * 240}}}"
    with pytest.raises(SpecError, match="at most 250 characters"):
        load(design, [comparison])


def test_the_room_imports_neither_torch_nor_numpy_nor_ray():
    code = (
        "import sys, atoll.spec; print([m for m in ('torch', 'ray', 'numpy', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
