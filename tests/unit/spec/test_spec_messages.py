"""Each kind of wrong input shows its whole message, and all of them come at once."""

import textwrap

import pytest

from atoll.errors import SpecError
from atoll.spec import Spec, load, parse

BASE = {
    "name": "fedbuff-flights",
    "data": {"kind": "flights"},
    "model": {"kind": "mlp", "hidden": [64, 32]},
    "client": {"lr": 0.1},
    "schedule": {"kind": "async", "concurrency": 200, "buffer_goal": 20},
    "aggregation": {"kind": "fedbuff"},
    "evaluation": {"metrics": ["loss", "auc"]},
    "stop": {"server_steps": 100},
}
SYNC = ["schedule={kind: sync, cohort: 100, over_selection: 0.1}", "aggregation={kind: fedavg}"]
SYNTHETIC = ["data={kind: synthetic, classes: 3}", "evaluation.metrics=[loss]"]
SECTIONS = (
    "name, seed, data, population, clusters, model, client, schedule, aggregation, ensemble, privacy, evaluation, "
    "stop, tracking, runtime, comparison"
)


def messages(*overrides, base=BASE):
    with pytest.raises(SpecError) as caught:
        parse(base, overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # types
        (["client.lr='0.1'"], "client.lr: got '0.1'; need a number > 0. Write it without quotes."),
        (["client.epochs=1.5"], "client.epochs: got 1.5; need a whole number ≥ 1."),
        (["client.epochs=true"], "client.epochs: got true; need a whole number ≥ 1."),
        (["client.lr=null"], "client.lr: got null; need a number > 0."),
        (["seed=null"], "seed: got null; need a whole number ≥ 0. Remove seed to use its default."),
        (
            ["evaluation.per_client=yes"],
            "evaluation.per_client: got 'yes'; need true or false. Write true or false.",
        ),
        (
            ["evaluation.metrics=loss"],
            "evaluation.metrics: got 'loss'; need a list of at least one, each one of loss, accuracy, auc, "
            "normalized_entropy. Write a list: ['loss'].",
        ),
        (["model.hidden=[64, x]"], "model.hidden[1]: got 'x'; need a whole number ≥ 1."),
        (["model.hidden=[]"], "model.hidden: got []; need a list of at least one, each a whole number ≥ 1."),
        (
            ["population=3"],
            "population: got 3; need a section with fields size, devices, availability, device_memory_bytes.",
        ),
        (["schedule=null"], "schedule: got null; need a section with kind: one of async, sync."),
        (["client.lr=.nan"], "client.lr: got nan; need a number > 0."),
        (["stop.server_steps=1e400"], "stop.server_steps: got inf; need a whole number ≥ 1 and ≤ 2,147,483,647."),
        # ranges
        (["client.momentum=1"], "client.momentum: got 1; need a number ≥ 0 and < 1."),
        (["client.lr=-1e-3"], "client.lr: got -0.001; need a number > 0."),
        (["runtime.lanes=2000"], "runtime.lanes: got 2000; need a whole number ≥ 1 and ≤ 1,024 or auto."),
        (
            ["population.size=100000001"],
            "population.size: got 100000001; need a whole number ≥ 1 and ≤ 100,000,000 or data.",
        ),
        (
            ["stop.server_steps=9999999999"],
            "stop.server_steps: got 9999999999; need a whole number ≥ 1 and ≤ 2,147,483,647.",
        ),
        # words
        (
            ["evaluation.metrics=[loss, acuracy]"],
            "evaluation.metrics[1]: got 'acuracy'; need one of loss, accuracy, auc, normalized_entropy. "
            "Did you mean accuracy.",
        ),
        (
            ["data.kind=flight"],
            "data.kind: got 'flight'; need one of arrays, custom, flights, leaf_outputs, movielens, parquet, "
            "shakespeare, synthetic. Did you mean flights.",
        ),
        (
            ["clusters={kind: rnadom}"],
            "clusters.kind: got 'rnadom'; need one of attribute, data_volume, file, kmeans, random, single. "
            "Did you mean random.",
        ),
        (["clusters={kind: data_volume, count: 0}"], "clusters.count: got 0; need a whole number ≥ 1 and ≤ 1,000."),
        (
            ["clusters={kind: kmeans, count: 2, on: label, only: c0}"],
            "clusters.on: got 'label'; need one of labels, features. Did you mean labels.",
        ),
        (
            ["clusters={kind: attribute, column: age, bins: 1, only: lt_5}"],
            "clusters.bins: got 1; need a whole number ≥ 2 and ≤ 1,000 or a list of at least one, each a number or "
            "null.",
        ),
        (
            ["name=a@b"],
            "name: got 'a@b'; need text of at most 250 characters such as my-run. "
            "Name of the run: letters, digits, _ - . space : and /, as MLflow allows.",
        ),
        (
            ["model={kind: custom, factory: my.module}"],
            "model.factory: got 'my.module'; need text such as package.module:function. "
            "Callable that returns a torch.nn.Module.",
        ),
        # missing and extra
        (
            ["schedule={kind: async, concurrency: 5}"],
            "schedule.buffer_goal: got nothing; need a whole number ≥ 1. Updates needed for a server step, K.",
        ),
        (
            ["schedule={concurrency: 5}"],
            "schedule.kind: got nothing; need one of async, sync. Who starts when, and what closes a server step.",
        ),
        (
            ["schedule.max_stalenes=3"],
            "schedule.max_stalenes: got 3; need one of its fields kind, concurrency, buffer_goal, max_staleness, "
            "sampling. max_stalenes is not a field of schedule (kind async). Did you mean max_staleness.",
        ),
        (
            ["schedule.cohort=3"],
            "schedule.cohort: got 3; need one of its fields kind, concurrency, buffer_goal, max_staleness, sampling. "
            "cohort is not a field of schedule (kind async); kind sync has it.",
        ),
        (
            ["lr=0.1"],
            f"lr: got 0.1; need one of the sections {SECTIONS}. No section has this name. "
            "Did you mean client.lr or aggregation.server_optimizer.lr.",
        ),
        (
            ["cleint.lr=0.1"],
            f"cleint: got {{lr: 0.1}}; need one of the sections {SECTIONS}. No section has this name. "
            "Did you mean client.",
        ),
        (
            ["privacy={client_level: 3}"],
            "privacy: got {client_level: 3}; need null. Privacy is not available in this version. "
            "Remove privacy, or set it to null.",
        ),
        # overrides
        (
            ["client.lr"],
            "override 'client.lr': need dotted.key=value, such as client.lr=0.1. Write client.lr=VALUE.",
        ),
        (
            ["client..lr=1"],
            "override 'client..lr=1': need dotted.key=value, such as client.lr=0.1. Write a full key before =.",
        ),
        (
            ["model.hidden=[1"],
            "override 'model.hidden=[1', line 1, column 3: need valid YAML. "
            "Expected ',' or ']', but got '<stream end>'. A bracket is not closed, or a comma is missing.",
        ),
        (
            ["model.hidden.0=5"],
            "model.hidden.0: got 5; need a key that exists (a list of at least one, each a whole number ≥ 1). "
            "model.hidden is [64, 32], which has no fields. Set model.hidden as a whole.",
        ),
        (
            ["schedule.kind=sync"],
            "schedule.kind: got 'sync'; need the whole section when its kind changes. It is async so far; "
            "sync has no concurrency, buffer_goal; sync needs cohort. Write schedule={kind: sync, cohort: …}.",
        ),
        (
            ["aggregation.server_optimizer.kind=adam"],
            "aggregation.server_optimizer.kind: got 'adam'; need the whole section when its kind changes. "
            "It is sgd so far. Write aggregation.server_optimizer={kind: adam}.",
        ),
        # rules between fields
        (
            ["schedule.buffer_goal=500"],
            "schedule.buffer_goal: got 500; need ≤ schedule.concurrency (200). Fewer tasks run than one step needs, so "
            "every step would wait for several generations of them. Lower buffer_goal or raise concurrency.",
        ),
        (
            [*SYNC, "population.size=109"],
            "schedule.cohort: got 100, 110 with over_selection; need ≤ population.size (109) when sampling is "
            "without_replacement. There are not that many different clients. Lower cohort, raise population.size or "
            "set schedule.sampling to with_replacement.",
        ),
        (
            ["schedule.sampling=without_replacement", "population.size=150"],
            "schedule.concurrency: got 200; need ≤ population.size (150) when sampling is without_replacement. There "
            "are not that many different clients. Lower concurrency, raise population.size or set schedule.sampling "
            "to with_replacement.",
        ),
        (
            ["clusters={kind: random, count: 4}"],
            "clusters.kind: got random without an ensemble; need an ensemble, or clusters.only. Every cluster has a "
            "leaf model of its own. Add the section ensemble, or set clusters.only to the cluster whose leaf is "
            "trained.",
        ),
        (
            ["clusters={kind: random, only: r0}"],
            "clusters.count: got nothing; need a number of clusters, or their sizes.",
        ),
        (
            ["clusters={kind: random, count: 2, sizes: [1, 2, 3], only: r0}"],
            "clusters.count: got 2; need 3, as many as clusters.sizes has, or null.",
        ),
        (
            ["clusters={kind: random, sizes: [100, 200], only: r0}", "population.size=301"],
            "clusters.sizes: got sizes that sum to 300; need sizes that sum to population.size (301). Every client is "
            "in one cluster.",
        ),
        (
            ["clusters={kind: random, count: 302, only: r0}", "population.size=301"],
            "clusters.count: got 302; need at most population.size (301). No cluster may be empty.",
        ),
        (
            ["clusters={kind: attribute, column: age, bins: [5, 10, 10], only: lt_5}"],
            "clusters.bins: got [5, 10, 10]; need edges in ascending order, each once.",
        ),
        (
            ["aggregation={kind: fedavg}"],
            "aggregation.kind: got fedavg with schedule.kind async; need schedule.kind sync for fedavg. FedAvg "
            "averages one cohort that started together; over arrivals it is FedBuff without staleness. Use "
            "aggregation.kind fedbuff with staleness {kind: constant}, or a sync schedule.",
        ),
        (
            SYNC[:1],
            "aggregation.kind: got fedbuff with schedule.kind sync; need schedule.kind async for fedbuff. In rounds "
            "nothing is stale, so it would be FedAvg under another name. Use aggregation.kind fedavg, or an async "
            "schedule.",
        ),
        (
            ["aggregation={kind: fedasync}"],
            "schedule.buffer_goal: got 20; need 1 for aggregation.kind fedasync. FedAsync steps at every arrival. "
            "Set buffer_goal to 1, or use aggregation.kind fedbuff.",
        ),
        (
            ["stop.target={metric: accuracy, value: 0.7}"],
            "stop.target.metric: got 'accuracy'; need one of evaluation.metrics (loss, auc). What is not measured is "
            "never reached. Add accuracy to evaluation.metrics.",
        ),
        (
            ["data={kind: shakespeare}", "model={kind: char_lstm}"],
            "evaluation.metrics: got auc; need loss or accuracy; data.kind shakespeare here has more than two "
            "classes. The area under the ROC curve is defined for two classes.",
        ),
        (
            ["model={kind: cnn}"],
            "model.kind: got cnn with data.kind flights; need data.kind arrays or custom for cnn. The model cannot "
            "read the shape of these examples.",
        ),
        (
            ["data={kind: shakespeare}", "evaluation.metrics=[loss]"],
            "model.kind: got mlp with data.kind shakespeare; need model.kind char_lstm or custom for shakespeare. "
            "The model cannot read the shape of these examples.",
        ),
        (
            SYNTHETIC,
            "population.size: got 'data'; need a number when data.kind is synthetic. Generated clients have no count "
            "of their own. Set population.size, such as 1000.",
        ),
        (
            ["data={kind: parquet, path: x, client_column: c, label_column: y, categories: [c]}"],
            "data.categories: got 'c'; need a column that is not already data.client_column.",
        ),
        (
            ["runtime.gpus_per_worker=0.5"],
            "runtime.gpus_per_worker: got 0.5; need 0 when runtime.device_class is cpu. The GPUs would be reserved "
            "and stay idle. Set runtime.device_class to cuda.",
        ),
        (
            ["runtime.device_class=cuda"],
            "runtime.gpus_per_worker: got 0; need a number > 0 when runtime.device_class is cuda. Ray hides the GPUs "
            "from a worker without any. Set runtime.gpus_per_worker, such as 1 or 0.5.",
        ),
        (
            ["runtime.device_class=cuda", "runtime.gpus_per_worker=0.3"],
            "runtime.gpus_per_worker: got 0.3; need 1, or exactly 1/n of a GPU: 0.5, 0.25, 0.2, 0.125 …. Other parts "
            "leave a rest that no worker fits into, and it waits. Set 0.3333.",
        ),
        (
            ["runtime.device_class=cuda", "runtime.gpus_per_worker=2"],
            "runtime.gpus_per_worker: got 2; need 1, or exactly 1/n of a GPU: 0.5, 0.25, 0.2, 0.125 …. A worker trains "
            "on one GPU, and n share it. Set 1.",
        ),
        (
            ["runtime.kernel=compiled", "model={kind: custom, factory: 'm:f'}"],
            "runtime.kernel: got compiled for custom on cpu; need a kernel that there is: compiled for logistic, mlp, "
            "wide_deep, dlrm without history, on cpu. Leave it at auto.",
        ),
        (
            ["runtime.kernel=compiled", "runtime.device_class=cuda", "runtime.gpus_per_worker=1"],
            "runtime.kernel: got compiled for mlp on cuda; need a kernel that there is: compiled for logistic, mlp, "
            "wide_deep, dlrm without history, on cpu. Leave it at auto.",
        ),
        (
            ["runtime.kernel=compiled", "client.precision=bfloat16"],
            "runtime.kernel: got compiled with client.precision bfloat16; need auto, lanes or single with "
            "client.precision bfloat16. Compiled kernels compute in float32. Leave it at auto, or client.precision at "
            "float32.",
        ),
        (
            ["runtime.kernel=single"],
            "runtime.kernel: got single for mlp; need a kernel that there is: single for cnn, char_lstm, custom. "
            "Leave it at auto.",
        ),
        (
            ["model={kind: custom, factory: 'm:f', arguments: {a: [1, .nan]}}"],
            "model.arguments.a[1]: got nan; need a plain value: null, true, false, a finite number, text, a list, a "
            "mapping.",
        ),
        (["evaluation.metrics=[loss, loss]"], "evaluation.metrics: got loss more than once; need each value once."),
    ],
)
def test_one_mistake_is_one_whole_message(overrides, expected):
    assert messages(*overrides) == [expected]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (
            "{seeds: [1, 1], arms: {a: {}}, baseline: a}",
            "comparison.seeds: got 1 more than once; need each value once.",
        ),
        (
            "{seeds: [1], arms: {a b: {}}, baseline: a b}",
            "comparison.arms.a b: got 'a b'; need an arm name of letters, digits, _ and -. It becomes a run name.",
        ),
        ("{seeds: [1], arms: {a: {}}, baseline: b}", "comparison.baseline: got 'b'; need one of the arms: a."),
        (
            "{seeds: [1], arms: {a: {seed: 3}}, baseline: a}",
            "comparison.arms.a: got seed; need a key outside name, seed, tracking, runtime and comparison. Arms share "
            "these, and comparison.seeds sets the seeds.",
        ),
        (
            "{seeds: [1], arms: {a: {}, b: {client.lr: 0}}, baseline: a}",
            "comparison.arms.b: client.lr: got 0; need a number > 0.",
        ),
        (
            "{seeds: [1], arms: {b: {schedule.buffer_goal: 500}}, baseline: b}",
            "comparison.arms.b: schedule.buffer_goal: got 500; need ≤ schedule.concurrency (200). Fewer tasks run than "
            "one step needs, so every step would wait for several generations of them. Lower buffer_goal or raise "
            "concurrency.",
        ),
        ("{seeds: [1], arms: {b: 3}, baseline: b}", "comparison.arms.b: got 3; need a mapping."),
        (
            "{seeds: [], arms: {b: {}}, baseline: b}",
            "comparison.seeds: got []; need a list of at least one, each a whole number ≥ 0.",
        ),
    ],
)
def test_a_wrong_comparison_is_told_with_its_arm(comparison, expected):
    assert messages(f"comparison={comparison}") == [expected]


def test_all_problems_come_at_once_fields_and_rules_and_overrides():
    found = messages(
        "nonsense",
        "client.lr=-1",
        "modle={kind: mlp}",
        "schedule={kind: async, concurrency: 10, buffer_goal: 50, max_staleness: -1}",
        "stop.target={metric: accuracy, value: 0.5}",
        "runtime.kind=inline",
    )
    places = [line.split(":")[0] for line in found]
    assert places == [
        "override 'nonsense'",
        "runtime.kind",
        "client.lr",
        "schedule.max_staleness",
        "modle",
        "schedule.buffer_goal",
        "stop.target.metric",
    ]


def test_a_mistake_does_not_cause_a_second_message():
    # the misspelt or wrong value's default would break a rule between fields
    assert len(messages(*SYNTHETIC, "population=3")) == 1
    assert len(messages(*SYNC, "population.size=100", "schedule.over_selection=x")) == 1
    assert len(messages(*SYNC, "population.size=10", "schedule.samplng=with_replacement")) == 1
    assert len(messages("stop.target={metric: accuracy, value: 1}", "evaluation.metrics=[loss, acuracy]")) == 1


def test_an_empty_mapping_names_every_missing_section():
    found = messages(base={})
    assert [line.split(":")[0] for line in found] == [
        *("name", "data", "model", "client", "schedule", "aggregation", "stop")
    ]
    assert found[4] == (
        "schedule: got nothing; need a section with kind: one of async, sync. "
        "Who starts when, and what closes a server step."
    )


@pytest.mark.parametrize("top", [3, None, [1], "text"])
def test_a_spec_that_is_no_mapping_is_refused(top):
    with pytest.raises(SpecError, match="need sections such as name, data, model"):
        parse(top)


def test_long_values_are_shortened():
    (line,) = messages(f"client.lr={'x' * 500}")
    assert line == f"client.lr: got '{'x' * 58}…; need a number > 0."


def test_keys_that_are_not_text_do_not_crash():
    with pytest.raises(SpecError):
        parse({**BASE, 1: 2, "client": {3: 4, "lr": 1}})


def test_problems_are_values_too():
    with pytest.raises(SpecError) as caught:
        parse(BASE, ["client.lr=0", "client.epochs=0"])
    assert [(problem.path, problem.value) for problem in caught.value.problems] == [
        ("client.lr", "0"),
        ("client.epochs", "0"),
    ]
    assert caught.value.exit_code == 2


def test_rules_between_fields_hold_for_specs_built_in_python():
    spec = parse(BASE)
    with pytest.raises(SpecError, match="buffer_goal"):
        Spec(**{**dict(spec), "schedule": spec.schedule.model_copy(update={"buffer_goal": 1000})})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "name: a\nname: b\n",
            "{file}, line 2, column 1: need valid YAML. The key name is there twice, first in line 1.",
        ),
        (
            "data: {kind: flights, kind: parquet}\n",
            "{file}, line 1, column 23: need valid YAML. The key kind is there twice, first in line 1.",
        ),
        (
            "data:\n\tkind: flights\n",
            "{file}, line 2, column 1: need valid YAML. Found character '\\t' that cannot start any token. "
            "Indent with spaces; YAML forbids tabs.",
        ),
        (
            "name: a: b\n",
            "{file}, line 1, column 8: need valid YAML. Mapping values are not allowed here. Check the indentation, "
            "and put quotes round text that contains a colon and a space.",
        ),
        (
            "client: {lr: 0.1\nseed: 3\n",
            "{file}, line 2, column 5: need valid YAML. Expected ',' or '}}', but got ':'. "
            "A bracket is not closed, or a comma is missing.",
        ),
        ("1: a\n", "{file}, line 1, column 1: need valid YAML. A key that is not text; put it in quotes."),
        (
            "a: 1\n---\nb: 2\n",
            "{file}, line 2, column 1: need valid YAML. A second document starts here; one file is one spec.",
        ),
        ("a: &a [*a]\n", "{file}: need at most 40 levels. Aliases that contain each other never end."),
        ("", "{file}: got an empty file; need sections such as name, data, model."),
        (
            "a: !!python/object:os.system x\n",
            "{file}, line 1, column 4: need valid YAML. The tag tag:yaml.org,2002:python/object:os.system is not known "
            "here; write plain values.",
        ),
        (
            "a: !!timestamp 2024-01-01\n",
            "{file}, line 1, column 4: need valid YAML. The tag tag:yaml.org,2002:timestamp is not known here; write "
            "plain values.",
        ),
    ],
)
def test_a_file_that_is_not_good_yaml_is_told_with_line_and_column(tmp_path, text, expected):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        load(file)
    assert str(caught.value) == expected.format(file=file)
    assert len(caught.value.problems) == 1


def test_aliases_that_multiply_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    file = tmp_path / "x.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(SpecError, match="need at most 100,000 values"):
        load(file)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_bytes(b"name: \xff\xfe\xfa")
    with pytest.raises(SpecError, match="need readable text"):
        load(file)


def test_a_missing_file_names_its_neighbours(tmp_path):
    for name in ("quickstart.yaml", "flights.yaml", "notes.txt"):
        (tmp_path / name).write_text(textwrap.dedent("a: 1"))
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "quikstart.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/quikstart.yaml: got nothing; need an existing file. Did you mean {tmp_path}/quickstart.yaml."
    )
    with pytest.raises(SpecError, match=r"Did you mean .*flights\.yaml"):
        load(tmp_path / "flights")
    with pytest.raises(SpecError, match=r"In .*: flights\.yaml, quickstart\.yaml\."):
        load(tmp_path / "zzzzzz")
    with pytest.raises(SpecError, match="got a folder; need a YAML file"):
        load(tmp_path)
    with pytest.raises(SpecError, match="There is no folder"):
        load(tmp_path / "none" / "x.yaml")
