"""What each rule of clusters says of whom, what is refused, and what a leaf's plan is made of."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import population as po
from atoll import spec as sp
from atoll.data import ClientTable, SyntheticSource, open_data
from atoll.errors import SpecError
from atoll.experiment import plan, resume, run
from atoll.experiment.birth import born, differences
from atoll.experiment.clustering import Clustering, cluster_problems, cluster_sizes, clustering_of
from atoll.experiment.modelling import shape_of
from atoll.experiment.planning import make_planner
from atoll.experiment.wiring import population_of
from cluster_kit import UNSEEN, divided, factory, people
from tiny_kit import tiny

DATA = people()
D, CLIENTS = DATA.num_clients, 60


def of(clusters: dict[str, Any], data: ClientTable = DATA, **sections: Any) -> Clustering:
    return clustering_of(divided(clusters, **sections), data)


def refused(clusters: dict[str, Any], data: ClientTable = DATA) -> list[str]:
    with pytest.raises(SpecError) as caught:
        of(clusters, data)
    return [str(problem) for problem in caught.value.problems]


def attribute(column: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "attribute", "column": column, **fields}


def given(values: list[Any] | dict[int, Any]) -> ClientTable:
    """60 clients with the attribute `given`."""
    return people(given=values if isinstance(values, dict) else (values * CLIENTS)[:CLIENTS])


def who(data: ClientTable = DATA) -> np.ndarray:
    """The client of `people` behind every data client."""
    return np.array([int(code[1:]) for code in data.attributes()["code"]])


# attribute


def test_values_are_clusters_in_their_order_and_strangers_follow_the_same_rule() -> None:
    found = of(attribute("maker"))
    assert found.names == ("Airbus", "Boeing", "Cessna_Co")
    assert found.of_client is not None
    wanted = [("Airbus", "Boeing", "Cessna & Co.").index(maker) for maker in DATA.attributes()["maker"]]
    assert found.of_client.tolist() == wanted
    assert set(who()[D:]) == set(UNSEEN)


def test_a_value_that_only_strangers_have_is_no_cluster() -> None:
    found = of(attribute("given"), given({number: "rare" if number == 17 else "common" for number in range(CLIENTS)}))
    assert found.names == ("common",)
    assert found.of_client is not None
    assert found.of_client[who() == 17].tolist() == [-1]
    assert found.members(0) == po.Everyone()
    # a stranger of whom nothing is known is in no cluster, and that is no mistake
    found = of(attribute("given"), given({number: "common" for number in range(CLIENTS) if number != 17}))
    assert found.of_client is not None
    assert found.of_client[who() == 17].tolist() == [-1]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["A/B", "A B", "a_b"], ("A_B", "A_B_2", "a_b_3")),
        (["Ünïted", "日本"], ("United", "given_")),
        ([5, 7], ("given_5", "given_7")),
        ([-1.5, 2.0], ("given_-1.5", "given_2")),
        ([True, False], ("given_False", "given_True")),
        (["yes", "no", "None"], ("None", "given_no", "given_yes")),
        (["1e3", "..", "x" * 99], ("given_", "given_1e3", "x" * 60)),
    ],
)
def test_names_are_told_apart(values: list[Any], names: tuple[str, ...]) -> None:
    assert of(attribute("given"), given(values)).names == names


def test_small_values_are_joined() -> None:
    values = ["a"] * 30 + ["b"] * 15 + ["c"] * 10 + ["d"] * 5
    found = of(attribute("given", min_clients=12), given(values))
    assert found.names == ("a", "b", "other")
    assert sum(found.sizes) == D
    # a value of that name takes them in
    values = ["a"] * 20 + ["other"] * 20 + ["z"] * 15 + ["d"] * 5
    found = of(attribute("given", min_clients=12), given(values))
    assert found.names == ("a", "z", "other")
    assert found.sizes[2] == len({number for number in range(CLIENTS) if values[number] in ("other", "d")} - {*UNSEEN})


def test_bins_by_edges_are_half_open_and_named() -> None:
    found = of(attribute("age", bins=[5, 10.5]))
    assert found.names == ("lt_5", "5-10.5", "ge_10.5")
    age = DATA.attributes()["age"]
    assert found.of_client is not None
    assert found.of_client.tolist() == np.digitize(age, [5, 10.5]).tolist()
    assert of(attribute("given", bins=[-2, 3]), given([-5, -2, 3])).names == ("lt_-2", "from_-2_to_3", "ge_3")
    # an edge beyond all values makes an empty cluster, which joining drops
    assert "1 of 2 clusters without a client that trains: ge_99" in refused(attribute("age", bins=[99]))[0]
    assert of(attribute("age", bins=[5, 99], min_clients=1)).names == ("lt_5", "5-99")


def test_quantile_bins_share_the_clients_that_train() -> None:
    found = of(attribute("given", bins=4), given(list(range(CLIENTS))))
    assert max(found.sizes) - min(found.sizes) <= 1
    values = [0] * 30 + [1] * 15 + [2] * 15
    assert of(attribute("given", bins=3), given(values)).names == ("lt_1", "1-2", "ge_2")
    (told,) = refused(attribute("given", bins=4), given(values))
    assert told == (
        "clusters.bins: got 4 quantile bins of 'given'; need at most 3. Too many clients share a value. "
        "Write edges, such as bins: [1, 2]."
    )


def test_an_attribute_that_cannot_divide_is_refused_with_counts() -> None:
    (told,) = refused(attribute("makr"))
    assert told == (
        "clusters.column: got 'makr'; need an attribute of the data's clients. Did you mean maker? It has maker, age, "
        "code, one."
    )
    nulls: list[Any] = [None if number in (3, 5, 6) else "x" for number in range(CLIENTS)]
    (told,) = refused(attribute("given"), given(nulls))
    assert "'given' without a value for 2 of 56 clients" in told
    numbers = [float("nan") if number % 4 == 0 else float(number) for number in range(CLIENTS)]
    (told,) = refused(attribute("given", bins=2), given(numbers))
    assert "without a value for 14 of 56 clients" in told
    (told,) = refused(attribute("maker", bins=2))
    assert told.startswith("clusters.bins: got bins of 'maker', which is text")
    plain = open_data(SyntheticSource(num_clients=5))
    with pytest.raises(SpecError, match="This data says nothing about its clients"):
        clustering_of(divided(attribute("age")), plain)


def test_all_problems_come_at_once() -> None:
    nulls: list[Any] = [None if number == 5 else ("x", "y")[number % 2] for number in range(CLIENTS)]
    data = given(nulls)
    found = cluster_problems(divided(attribute("given", only="z"), **concurrency(50)), data)
    assert [problem.path for problem in found] == ["clusters.column", "clusters.only"]
    found = cluster_problems(divided(attribute("given", only="x"), **concurrency(50)), data)
    assert [problem.path for problem in found] == ["clusters.column", "schedule.concurrency"]


# data volume


@pytest.mark.parametrize("count", [1, 2, 5, 55, 56])
def test_volumes_are_equal_parts_fewest_examples_first(count: int) -> None:
    found = of({"kind": "data_volume", "count": count})
    assert max(found.sizes) - min(found.sizes) <= 1
    assert found.names == tuple(f"q{index}" for index in range(count))
    assert found.of_client is not None
    counts, cluster = DATA.counts(), found.of_client[:D]
    for index in range(count - 1):
        assert counts[cluster == index].max() <= counts[cluster == index + 1].min()


def test_ties_of_volume_are_drawn_by_the_seed() -> None:
    clusters = {"kind": "data_volume", "count": 2}
    source = SyntheticSource(num_clients=101)
    even = open_data(source)  # everybody has as many examples
    found = [clustering_of(divided(clusters, seed=seed), even).of_client for seed in (1, 2)]
    assert (found[0] != found[1]).any()  # type: ignore[union-attr]
    assert clustering_of(divided(clusters), even).sizes == (51, 50)


def test_strangers_have_the_volume_of_their_rows() -> None:
    found = of({"kind": "data_volume", "count": 3}).of_client
    assert found is not None
    rows = (DATA.ends - DATA.starts)[D:]
    counts = DATA.counts()
    for number, cluster in zip(rows, found[D:], strict=True):
        least, most = counts[found[:D] == cluster].min(), counts[found[:D] == cluster].max()
        assert cluster == 0 or number >= least
        assert cluster == 2 or number <= most


def test_test_rows_of_nobody_have_no_volume(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    x, y = np.zeros((40, 3), np.float32), np.arange(40) % 2
    np.savez(file, x=x, y=y, x_test=x, y_test=y)
    spec = divided({"kind": "data_volume", "count": 2}, data={"kind": "arrays", "path": str(file), "clients": 8})
    from atoll.experiment.wiring import source_of

    assert clustering_of(spec, open_data(source_of(spec))).of_client.tolist()[8:] == [-1]  # type: ignore[union-attr]


def test_a_huge_population_of_generated_clients_is_not_put_into_a_table() -> None:
    data = open_data(SyntheticSource(num_clients=10**8))
    for clusters in ({"kind": "data_volume", "count": 2}, {"kind": "kmeans", "count": 2}):
        with pytest.raises(SpecError, match="100,000,000 clients that are generated on demand"):
            clustering_of(divided(clusters), data)
    found = clustering_of(divided({"kind": "random", "count": 3}), data)
    assert sum(found.sizes) == 10**8
    assert [one.train_examples for one in cluster_sizes(divided({"kind": "random", "count": 3}), data)] == [None] * 3


# k-means


def test_kmeans_on_labels_finds_who_leans_alike_and_leaves_strangers_out() -> None:
    found = of({"kind": "kmeans", "count": 2})
    assert found.names == ("c0", "c1")
    assert found.sizes[0] >= found.sizes[1]
    assert found.of_client is not None
    assert found.of_client[D:].tolist() == [-1] * len(UNSEEN)
    low, high = found.of_client[:D][who()[:D] % 3 == 0], found.of_client[:D][who()[:D] % 3 == 2]
    assert np.bincount(low).argmax() != np.bincount(high).argmax()


def test_kmeans_on_features_finds_groups_and_the_strangers_own() -> None:
    found = of({"kind": "kmeans", "count": 3, "on": "features"})
    assert found.of_client is not None
    # the means and categories of the three kinds of clients lie apart, but for a client of few rows
    most = [int(np.bincount(found.of_client[who() % 3 == kind]).argmax()) for kind in range(3)]
    assert sorted(most) == [0, 1, 2]
    for stranger in range(D, len(found.of_client)):
        assert found.of_client[stranger] == most[who()[stranger] % 3]


def test_kmeans_over_chunks_is_kmeans_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.experiment import cluster_kmeans as km

    columns, everyone = km._feature_columns(DATA.shape, 1), np.arange(D)
    whole = km._means(km._training_rows(DATA, everyone, 11), columns, D)
    monkeypatch.setattr(km, "_CHUNK_NUMBERS", 1)
    chunks = list(km._training_rows(DATA, everyone, 11))
    assert len(chunks) > 1
    np.testing.assert_allclose(km._means(iter(chunks), columns, D), whole, atol=1e-12)
    few = km._means(km._training_rows(DATA, everyone[5::7], 11), columns, len(everyone[5::7]))
    np.testing.assert_allclose(few, whole[5::7], atol=1e-12)
    # by hand, client by client
    for client in range(D):
        rows = DATA.gather(np.array([client]), np.arange(DATA.counts()[client])[None])
        np.testing.assert_allclose(whole[client, :2], rows["x"][0].mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(
            whole[client, 2:], np.bincount(rows["c"][0, :, 0], minlength=9) / rows["c"].shape[1], atol=1e-12
        )


def test_wide_features_and_large_vocabularies_are_folded() -> None:
    source = SyntheticSource(num_clients=30, num_features=2000, num_classes=2, categories=(10**6,))
    found = clustering_of(divided({"kind": "kmeans", "count": 3, "on": "features"}), open_data(source))
    assert sum(found.sizes) == 30


def test_more_clusters_than_clients_that_differ() -> None:
    assert "need at most 56" in refused({"kind": "kmeans", "count": 57})[0]
    stream = np.ones(40, np.float32)
    from atoll.data import client_table

    same = client_table(stream[:, None], np.ones(40, np.int64), np.arange(40) // 4, task="binary")
    (told,) = refused({"kind": "kmeans", "count": 3}, same)
    assert told == ("clusters.count: got 3 clusters of clients of 1 kinds; need at most 1. No cluster may be empty.")


def test_kmeans_of_many_clients_is_fitted_on_some_and_places_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from atoll.experiment import cluster_kmeans as km

    clusters = sp.KmeansClusters(kind="kmeans", count=3, on="features")
    whole, _ = km.by_kmeans(clusters, 3, DATA, has_strangers=True)
    monkeypatch.setattr(km, "_MOST_FITTED", 25)
    monkeypatch.setattr(km, "_CHUNK_NUMBERS", 100)
    some, problems = km.by_kmeans(clusters, 3, DATA, has_strangers=True)
    assert problems == []
    assert whole is not None
    assert some is not None
    agree = max(np.mean(np.array(order)[some.of_client] == whole.of_client) for order in permutations(range(3)))
    assert agree > 0.9


# file


def file_of(tmp_path: Path, text: str, **fields: Any) -> dict[str, Any]:
    path = tmp_path / "clusters.csv"
    path.write_text(text)
    return {"kind": "file", "path": str(path), "client_column": "client", "cluster_column": "part", **fields}


def rows(numbers: Any = range(CLIENTS), part: Any = lambda number: f"p{number % 2}") -> list[str]:
    return [f"{number},{part(number)}" for number in numbers]


def csv(lines: list[str]) -> str:
    return "\n".join(["client,part", *lines])


def test_a_file_names_clients_by_number_or_by_an_attribute(tmp_path: Path) -> None:
    found = of(file_of(tmp_path, csv(rows())))
    assert found.names == ("p0", "p1")
    assert found.of_client is not None
    assert found.of_client.tolist() == [number % 2 for number in range(CLIENTS)]
    # rows need not be sorted, may be repeated, and may leave out strangers
    shuffled = csv([*rows(reversed(range(D))), "0,p0"])
    assert of(file_of(tmp_path, shuffled)).of_client.tolist()[D:] == [-1] * 4  # type: ignore[union-attr]
    by_code = "code,part\n" + "\n".join(f"N{number:03d},{number % 2}" for number in range(CLIENTS))
    found = of(file_of(tmp_path, by_code, client_column="code"))
    assert found.names == ("part_0", "part_1")
    assert found.of_client.tolist() == (who() % 2).tolist()  # type: ignore[union-attr]


def test_wrong_files_are_refused_with_counts(tmp_path: Path) -> None:
    wrong = csv([*rows(range(7, CLIENTS)), "9,p0", "11,p0", "12,p0", "60,p0", "-1,p1"])
    told = refused(file_of(tmp_path, wrong))
    assert [line.split(":")[0] for line in told] == [
        "clusters.client_column", "clusters.cluster_column", "clusters.client_column",
    ]  # fmt: skip
    assert "got 2 clients that the data does not have: -1, 60; need the data's clients, of which 56 train" in told[0]
    assert "got 2 clients in more than one cluster: 9, 11; need one cluster per client. Clusters are disj" in told[1]
    assert "got no row for 7 of 56 clients: 0, 1, 2 …; need a row for every client that trains" in told[2]
    told = refused(file_of(tmp_path, csv(rows()), client_column="who", cluster_column="prt"))
    assert [line.split(":")[0] for line in told] == ["clusters.client_column", "clusters.cluster_column"]
    assert "did you mean 'part'" in told[1]
    assert "need a file that exists" in refused({**file_of(tmp_path, ""), "path": str(tmp_path / "no.csv")})[0]
    assert "no nulls" in refused(file_of(tmp_path, "client,part\n0,a\n,b\n"))[0]
    text = "client,part\nx,a\ny,b\n"
    assert "client numbers 0, 1 …" in refused(file_of(tmp_path, text))[0]
    text = "maker,part\nAirbus,a\n"
    assert "an attribute that is another for every client" in refused(file_of(tmp_path, text, client_column="maker"))[0]


def test_a_cluster_of_strangers_alone_is_none(tmp_path: Path) -> None:
    found = of(file_of(tmp_path, csv(rows(part=lambda number: "out" if number >= D else "in"))))
    assert found.names == ("in",)
    assert found.of_client.tolist() == [0] * D + [-1] * len(UNSEEN)  # type: ignore[union-attr]


# sizes against schedules


def concurrency(number: int, **fields: Any) -> dict[str, Any]:
    return {"schedule": {"kind": "async", "concurrency": number, "buffer_goal": 2, **fields}}


SYNC = {
    "schedule": {"kind": "sync", "cohort": 20, "over_selection": 0.3, "sampling": "with_replacement"},
    "aggregation": {"kind": "fedavg"},
}


def test_a_cluster_smaller_than_its_schedule_is_refused_with_both_numbers() -> None:
    makers = of(attribute("maker"))
    assert makers.sizes == (17, 23, 16)
    fits = divided(attribute("maker", only="Airbus"), **concurrency(17))
    assert cluster_problems(fits, DATA) == []
    (told,) = cluster_problems(divided(attribute("maker", only="Airbus"), **concurrency(18)), DATA)
    assert str(told) == (
        "schedule.concurrency: got 18 in cluster Airbus of 17 clients; need at most 17. So many of its clients would "
        "have to train at once. Lower it, or make larger clusters."
    )
    assert cluster_problems(divided(attribute("maker", only="Boeing"), **concurrency(18)), DATA) == []
    (told,) = cluster_problems(divided(attribute("maker", only="Boeing"), **SYNC), DATA)
    assert told.path == "schedule.cohort"
    assert told.value == "20, 26 with over_selection, in cluster Boeing of 23 clients"


def with_leaves(clusters: dict[str, Any], leaves: dict[str, Any] | None = None, **sections: Any) -> sp.Spec:
    """An ensemble of all clusters, some of whose leaves have values of their own."""
    joined = {"over_arch": {"kind": "mean"}, "leaves": leaves or {}}
    return sp.derived(divided(clusters | {"only": "all"}, **sections), {}, ensemble=joined, clusters=clusters)


def test_every_leaf_of_an_ensemble_is_checked_against_its_own_schedule() -> None:
    makers = attribute("maker")
    spec = with_leaves(makers, {"Airbus": {"schedule.concurrency": 10}}, **concurrency(17))
    (told,) = cluster_problems(spec, DATA)
    assert told.value == "17 in cluster Cessna_Co of 16 clients"
    assert "ensemble.leaves.Cessna_Co" in told.hint
    (told,) = cluster_problems(with_leaves(makers, {"Boeing": concurrency(25)}), DATA)
    assert (told.path, told.rule) == ("ensemble.leaves.Boeing.schedule.concurrency", "at most 23")
    (told,) = cluster_problems(with_leaves(makers, {"Boing": {}}), DATA)
    assert (told.path, told.hint) == ("ensemble.leaves.Boing", "Did you mean Boeing")


def test_an_ensemble_of_one_cluster_is_checked_too() -> None:
    (told,) = cluster_problems(with_leaves({"kind": "single"}, **concurrency(57)), DATA)
    assert told.value == "57 in cluster all of 56 clients"
    assert cluster_problems(with_leaves({"kind": "single"}, **concurrency(56)), DATA) == []


def test_a_plain_run_has_no_clusters_to_check() -> None:
    assert cluster_problems(divided({"kind": "single", "only": "all"}, **concurrency(1000)), DATA) != []
    plain = sp.parse(tiny(population={"size": "data"}, data={"kind": "flights"}, **concurrency(10**5)))
    assert cluster_problems(plain, DATA) == []


def test_many_small_clusters_are_told_in_a_few_lines() -> None:
    found = cluster_problems(with_leaves(attribute("code")), DATA)
    assert len(found) == 21
    assert found[-1].value == "36 more clusters that are too small"


def test_clusters_that_a_small_population_leaves_empty() -> None:
    with pytest.raises(SpecError, match=r"clusters without a client that trains.*The population has 3 clients"):
        of({"kind": "data_volume", "count": 5}, population={"size": 3})
    with pytest.raises(SpecError, match="need sizes that sum to the population's 56 clients"):
        of({"kind": "random", "sizes": [3, 4]})
    with pytest.raises(SpecError, match=r"got 'r7'; need one of r0, r1, r2"):
        of({"kind": "random", "count": 3, "only": "r7"})


# plans


def test_a_leaf_trains_its_own_clients_on_a_timeline_of_its_own() -> None:
    spec = divided(attribute("maker", only="Boeing"))
    found = clustering_of(spec, DATA)
    planner = make_planner(spec, DATA, shape_of(spec, DATA.shape))
    window = planner.advance()
    clients = np.concatenate([block.client_id for block in window.blocks])
    assert (found.of_client[clients] == 1).all()  # type: ignore[index]
    assert population_of(spec, DATA).num_members == 23
    digests = set()
    for only in ("Airbus", "Boeing", "Cessna_Co"):
        one = divided(attribute("maker", only=only))
        window = make_planner(one, DATA, shape_of(one, DATA.shape)).advance()
        digests.add((window.plan_digest, window.timeline_digest(2)))
    assert len(digests) == 3


def test_a_plan_refuses_everything_at_once_and_shows_the_sizes() -> None:
    evaluation = {"split": "seen", "metrics": ["loss"]}
    with factory(lambda: people(holdout=0.0)), pytest.raises(SpecError) as caught:
        plan(divided(attribute("maker", only="Airbs"), evaluation=evaluation, **concurrency(17)))
    assert [problem.path for problem in caught.value.problems] == ["evaluation.split", "clusters.only"]
    with factory():
        report = plan(divided(attribute("maker", only="Airbus"), evaluation=evaluation))
        assert [one["name"] for one in report.as_dict()["clusters"]] == ["Airbus", "Boeing", "Cessna_Co"]
        assert [one.clients for one in report.clusters] == [17, 23, 16]
        assert sum(one.train_examples or 0 for one in report.clusters) == int(DATA.counts().sum())
        assert plan(divided({"kind": "single"}, evaluation=evaluation)).as_dict()["clusters"] == []


def test_a_cluster_file_that_changed_is_noticed(tmp_path: Path) -> None:
    spec = divided(file_of(tmp_path, csv(rows()), only="p0"))

    def planned() -> str:
        return make_planner(spec, DATA, shape_of(spec, DATA.shape)).advance().plan_digest

    before, digest = born(spec, DATA, "key", "", None), planned()
    file_of(tmp_path, csv([*rows(), "0,p0"]))  # the same clusters in other words
    assert planned() != digest
    fatal, _ = differences(before, born(spec, DATA, "key", "", None), spec, spec)
    assert [(problem.path, problem.hint) for problem in fatal] == [("clusters.path", "bring the old file back")]
    assert "clusters.path" not in born(divided({"kind": "single"}), DATA, "key", "", None).inputs


def test_an_attribute_that_changed_is_noticed() -> None:
    spec = divided(attribute("given", only="a"))
    first, second = given(["a", "b"]), given(["a", "b", "b"])
    assert first.identity == second.identity, "attributes are not among the rows"
    assert clustering_of(spec, first).sizes != clustering_of(spec, second).sizes
    fatal, _ = differences(born(spec, first, "k", "", None), born(spec, second, "k", "", None), spec, spec)
    assert [problem.path for problem in fatal] == ["attribute given"]


def test_a_leaf_goes_on_with_its_file_and_with_no_other(mlflow_uri: str, tmp_path: Path) -> None:
    spec = divided(
        file_of(tmp_path, csv(rows()), only="p1"),
        tracking={"uri": mlflow_uri}, evaluation={"metrics": ["auc"], "split": "seen", "every_steps": 2},
        stop={"server_steps": 3},
    )  # fmt: skip
    runs = tmp_path / "runs"
    with factory():
        begun = run(spec, runs_folder=runs)
        assert {"eval/cluster/p0/auc", "eval/cluster/p1/auc"} <= set(begun.metrics)
        file_of(tmp_path, csv(rows(part=lambda number: f"p{number % 3}")))
        with pytest.raises(SpecError, match=r"clusters\.path: got content .* bring the old file back"):
            resume(begun.folder, "stop.server_steps=5", runs_folder=runs)
        file_of(tmp_path, csv(rows()))
        longer = resume(begun.folder, "stop.server_steps=5", runs_folder=runs)
        at_once = run(spec, "stop.server_steps=5", runs_folder=runs)
    assert (longer.model_digest, longer.plan_digest) == (at_once.model_digest, at_once.plan_digest)
