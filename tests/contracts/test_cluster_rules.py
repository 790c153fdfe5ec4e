"""Every rule of clusters keeps the promises of `Clustering`: one suite, each kind one row."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import population as po
from atoll import spec as sp
from atoll.experiment import clustering as cl
from atoll.experiment.clustering import cluster_sizes, clustering_of
from cluster_kit import divided, people

ROWS: dict[str, dict[str, Any]] = {
    "single": {"kind": "single"},
    "random": {"kind": "random", "count": 4},
    "random one": {"kind": "random", "count": 1},
    "random of sizes": {"kind": "random", "sizes": [10, 40, 6]},
    "attribute of text": {"kind": "attribute", "column": "maker"},
    "attribute of numbers": {"kind": "attribute", "column": "age", "min_clients": 2},
    "attribute in quantile bins": {"kind": "attribute", "column": "age", "bins": 4},
    "attribute in bins": {"kind": "attribute", "column": "age", "bins": [5, 12.5, 20]},
    "data volume": {"kind": "data_volume", "count": 5},
    "k-means on labels": {"kind": "kmeans", "count": 3},
    "k-means on features": {"kind": "kmeans", "count": 3, "on": "features"},
    "file": {"kind": "file", "path": "clusters.csv", "client_column": "client", "cluster_column": "part"},
    "file of names": {"kind": "file", "path": "clusters.csv", "client_column": "code", "cluster_column": "part"},
}
#: kinds that are about ids, not data clients
WITHOUT_TABLE = ("single", "random")
DATA = people()
#: data clients in the order of the data: the ones that never train come last
CODES = DATA.attributes()["code"]


@dataclass
class Row:
    clusters: dict[str, Any]
    population: dict[str, Any] = field(default_factory=lambda: {"size": "data"})

    def spec(self, seed: int = 3) -> sp.Spec:
        return divided(self.clusters, population=self.population, seed=seed)


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest, tmp_path: Path) -> Row:
    cl._DIVISIONS.clear()
    clusters = dict(ROWS[request.param])
    if "path" in clusters:
        clusters["path"] = str(tmp_path / clusters["path"])
        lines = [f"{number},{code},part {number % 3}" for number, code in enumerate(CODES)]
        Path(clusters["path"]).write_text("client,code,part\n" + "\n".join(lines))
    return Row(clusters)


def ids_of(spec: sp.Spec, size: int) -> list[np.ndarray]:
    clustering = clustering_of(spec, DATA)
    parts = [clustering.members(index) for index in range(len(clustering.names))]
    return [part.client(np.arange(part.count(size)), size) for part in parts]


@pytest.mark.parametrize("size", ["data", 500])
def test_disjoint_and_complete(row: Row, size: int | str) -> None:
    if size != "data" and "sizes" in row.clusters:
        row.clusters["sizes"] = [100, 399, 1]
    row.population = {"size": size}
    number = DATA.num_clients if isinstance(size, str) else size
    clustering = clustering_of(row.spec(), DATA)
    ids = ids_of(row.spec(), number)
    assert sorted(np.concatenate(ids).tolist()) == list(range(number))
    assert [len(part) for part in ids] == list(clustering.sizes)
    assert min(clustering.sizes) >= 1


def test_the_table_says_what_the_members_are(row: Row) -> None:
    clustering = clustering_of(row.spec(), DATA)
    if row.clusters["kind"] in WITHOUT_TABLE:
        assert clustering.of_client is None
        return
    table = clustering.of_client
    assert table is not None
    assert table.dtype == np.int64
    assert len(table) == DATA.num_clients + 4
    assert not table.flags.writeable
    assert -1 <= table.min() <= table.max() < len(clustering.names)
    for index, ids in enumerate(ids_of(row.spec(), DATA.num_clients)):
        assert set(ids.tolist()) == set(np.flatnonzero(table[: DATA.num_clients] == index).tolist())
    # a client of data and the ids that map onto it are in one cluster
    row.population = {"size": 500}
    for index, ids in enumerate(ids_of(row.spec(), 500)):
        assert (table[ids % DATA.num_clients] == index).all()


def test_names_are_slugs_that_yaml_reads_as_text(row: Row) -> None:
    names = clustering_of(row.spec(), DATA).names
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", name)
        assert sp.parse_override(f"clusters.only={name}") == ("clusters.only", name)


def test_one_cluster_is_everyone(row: Row) -> None:
    clustering = clustering_of(row.spec(), DATA)
    if len(clustering.names) == 1:
        assert clustering.members(0) == po.Everyone()


def test_the_same_again_and_with_data_opened_again(row: Row) -> None:
    first = clustering_of(row.spec(), DATA)
    cl._DIVISIONS.clear()
    again = clustering_of(row.spec(), people())
    assert (first.names, first.sizes) == (again.names, again.sizes)
    np.testing.assert_array_equal(first.of_client, again.of_client)
    for index in range(len(first.names)):
        assert po.identity((first.members(index),)) == po.identity((again.members(index),))


def test_the_same_whatever_comes_before(row: Row) -> None:
    spec = row.spec()
    cold = clustering_of(spec, DATA)
    cl._DIVISIONS.clear()
    clustering_of(row.spec(seed=8), DATA)
    clustering_of(divided({"kind": "kmeans", "count": 2}), DATA)
    warm = clustering_of(spec, DATA)
    assert cold.sizes == warm.sizes
    np.testing.assert_array_equal(cold.of_client, warm.of_client)


def test_sizes_are_told_with_their_examples(row: Row) -> None:
    told = cluster_sizes(row.spec(), DATA)
    if row.clusters["kind"] == "single":
        assert told == ()
        return
    clustering = clustering_of(row.spec(), DATA)
    assert [(one.name, one.clients) for one in told] == list(zip(clustering.names, clustering.sizes, strict=True))
    counts = DATA.counts()
    assert [one.train_examples for one in told] == [
        int(counts[ids].sum()) for ids in ids_of(row.spec(), DATA.num_clients)
    ]
    row.population = {"size": 500}
    if "sizes" not in row.clusters:
        told = cluster_sizes(row.spec(), DATA)
        assert [one.train_examples for one in told] == [
            int(DATA.num_examples(ids).sum()) for ids in ids_of(row.spec(), 500)
        ]


def test_another_process_with_more_threads_divides_the_same() -> None:
    names = [name for name in ROWS if not name.startswith("file")]
    code = (
        "import json, sys; from cluster_kit import divided, people; "
        "from atoll.experiment.clustering import clustering_of; "
        "found = [clustering_of(divided(row), people()) for row in json.loads(sys.argv[1])]; "
        "print(json.dumps([[c.names, c.sizes, None if c.of_client is None else c.of_client.tolist()] for c in found]))"
    )
    rows = [ROWS[name] for name in names]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(rows)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "77"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = [clustering_of(divided(row), DATA) for row in rows]
    assert json.loads(done.stdout) == [
        [list(one.names), list(one.sizes), None if one.of_client is None else one.of_client.tolist()] for one in here
    ]
