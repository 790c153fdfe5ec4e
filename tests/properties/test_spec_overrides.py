"""Laws of the spec: written and read back it is the same; overrides are what they say; nonsense never crashes."""

import contextlib
import copy
import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.errors import SpecError
from atoll.spec import Spec, digest, dump, parse, to_dict
from atoll.spec.yaml_text import read_yaml, write_yaml

BASE = {
    "name": "laws",
    "data": {"kind": "arrays", "path": "x.npz"},
    "model": {"kind": "logistic"},
    "client": {"lr": 0.1},
    "schedule": {"kind": "async", "concurrency": 200, "buffer_goal": 20},
    "aggregation": {"kind": "fedbuff"},
    "stop": {"server_steps": 100},
}
positive = st.floats(min_value=1e-12, max_value=1e12)
share = st.floats(min_value=0, max_value=1, exclude_max=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=20)
rates = st.one_of(
    st.just({"kind": "constant"}),
    st.builds(lambda n, f: {"kind": "step", "every_steps": n, "factor": f}, st.integers(1, 10**6), st.just(0.5)),
    st.builds(lambda n: {"kind": "inverse_sqrt", "warmup_steps": n}, st.integers(1, 10**6)),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
#: dotted key → values that are right whatever the other overrides are
RIGHT = {
    "seed": st.integers(0, 2**63 - 1),
    "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_. :/-]{0,30}", fullmatch=True),
    "data.path": texts,
    "data.partition": st.sampled_from([{"kind": "iid"}, {"kind": "dirichlet", "alpha": 1}, {"kind": "shards"}]),
    "population.size": st.just("data") | st.integers(1, 10**8),
    "population.devices.dropout": share,
    "population.devices.size_correlation": st.floats(-1, 1),
    "population.availability": st.sampled_from([{"kind": "always"}, {"kind": "diurnal", "hours": 3}]),
    "clusters": st.sampled_from(
        [
            {"kind": "data_volume", "count": 3, "only": "q0"},
            {"kind": "attribute", "column": "age", "bins": [1, 2.5], "only": "lt_1"},
        ]
    ),
    "model": st.builds(lambda h: {"kind": "mlp", "hidden": h}, st.lists(st.integers(1, 512), min_size=1, max_size=4)),
    "client.lr": positive,
    "client.schedule": rates,
    "client.short_batch_scaling": st.booleans(),
    "schedule.max_staleness": st.none() | st.integers(0, 100),
    "aggregation.server_optimizer": st.builds(
        lambda kind, lr, rate: {"kind": kind, "lr": lr, "schedule": rate},
        st.sampled_from(["sgd", "adam", "adagrad", "yogi"]),
        positive,
        rates,
    ),
    "aggregation.staleness.exponent": share,
    "stop.target": st.none() | st.just({"metric": "loss", "value": -1e-7}),
    "tracking.experiment": st.none() | texts,
    "tracking.artifacts": texts
    | st.sampled_from(["1e-3", "no", "null", "2024-01-01", "~", "1_0", "<<", "=", "-", "# x"]),
    "runtime.lanes": st.just("auto") | st.integers(1, 1024),
    "runtime.memory_bytes": st.none() | st.integers(1, 2**40),
}
right = st.lists(
    st.sampled_from(sorted(RIGHT)).flatmap(lambda key: st.tuples(st.just(key), RIGHT[key])),
    max_size=6,
    unique_by=lambda p: p[0],
)


def as_texts(pairs):
    return [f"{key}={json.dumps(value)}" for key, value in pairs]


def get(plain_spec, key):
    for part in key.split("."):
        plain_spec = plain_spec[part]
    return plain_spec


def holds(got, wanted):
    """Whether `got` has at least what `wanted` says."""
    if isinstance(wanted, dict):
        return all(holds(got[key], value) for key, value in wanted.items())
    return got == wanted


@settings(max_examples=60, deadline=None)
@given(right)
def test_a_spec_written_and_read_is_the_same(pairs):
    spec = parse(BASE, as_texts(pairs))
    again = parse(read_yaml(dump(spec), "dump"))
    assert again == spec
    assert to_dict(again) == to_dict(spec)
    assert digest(again) == digest(spec)


@settings(max_examples=60, deadline=None)
@given(right, st.randoms(use_true_random=False))
def test_overrides_are_kept_and_their_order_is_free(pairs, shuffler):
    untouched = copy.deepcopy(BASE)
    spec = parse(BASE, as_texts(pairs))
    assert untouched == BASE
    resolved = to_dict(spec)
    for key, value in pairs:
        assert holds(get(resolved, key), value)
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert parse(BASE, as_texts(shuffled)) == spec
    # overriding a resolved spec is the same as overriding the short one
    assert parse(to_dict(parse(BASE)), as_texts(pairs)) == spec


@settings(max_examples=60, deadline=None)
@given(plain)
@example({"a": ["1e-3", "no", "1:30", "", " x", "2024-01-01", "0o7", "<<", "é", "a\n b", -0.0, 1e300]})
def test_plain_values_written_and_read_are_the_same(value):
    read = read_yaml(write_yaml(value), "text")
    assert read == value
    assert json.dumps(read) == json.dumps(value)


names = st.sampled_from(
    sorted({*Spec.model_fields, "kind", "lr", "hidden", "arms", "seeds", "target", "metrics", "devices", "x y", "0"})
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(names, min_size=1, max_size=4).map(".".join), plain), max_size=4))
@example([("comparison", {"arms": {"a": {"": 1}}}), ("comparison.seeds", [None])])
@example([("schedule", {"kind": ["async"]}), ("clusters.kind", None)])
def test_nonsense_is_a_spec_error_or_a_spec_never_a_crash(pairs):
    problems = ()
    try:
        parse(BASE, as_texts(pairs))
    except SpecError as error:
        problems = error.problems
    for problem in problems:
        assert problem.path
        assert problem.rule
        assert len(str(problem)) < 1500


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
@example("? [a]: b")
@example("- !!int x")
@example("9" * 5000)
@example("[" * 1500)
@example("a: !!float x")
@example("%YAML 9.9\n---\na")
@example("{a: *b}")
@example("<<: 3")
@example("a: !!timestamp 2024-99-99")
@example("a: !!bool maybe")
@example("a: !!set {x}")
@example('"\\ud800"')
@example("!!int {a: b}")
def test_any_text_is_yaml_or_a_spec_error(text):
    with contextlib.suppress(SpecError):
        read_yaml(text, "text")
