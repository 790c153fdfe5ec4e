"""`atoll.export`: the model that leaves the house says what it said inside, and needs nothing of the house."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from atoll import spec as sp
from atoll.aggregation import OverArch
from atoll.data import ClientData, Encoding, encoding_of, open_data
from atoll.errors import SpecError
from atoll.evaluation import outputs
from atoll.experiment import Exported, Run, export, run
from atoll.experiment.modelling import lane_model_of
from atoll.experiment.wiring import source_of
from atoll.tracking import MlflowTracker, RunInfo
from atoll.tracking.mlflow_tracker import client as mlflow_client
from tiny_kit import tiny

pytestmark = pytest.mark.usefixtures("finished", "_no_plots")
DATA = {"kind": "synthetic", "features": 3, "categories": [5, 4]}

FRESH = """
import sys
sys.modules["atoll"] = None  # whatever would import it fails
import mlflow.pyfunc, pandas as pd
frame = pd.read_json(sys.argv[1], dtype={"category_0": str, "category_1": str}, orient="split", precise_float=True)
for place in sys.argv[2:]:
    model = mlflow.pyfunc.load_model(place)
    assert len(model.predict(model.input_example)) == 2
    print(model.predict(frame).to_json(orient="split", double_precision=15))
"""


@pytest.fixture(scope="module")
def uri(_mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(_mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def tiny_run(uri: str, folder: Path, name: str, **sections: object) -> Run:
    tracking = {"uri": uri, "experiment": "exporting"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atoll.experiment.finishing.plots", lambda *args, **options: {})
        return run(tiny(name=name, tracking=tracking, **sections), runs_folder=folder)


@pytest.fixture(scope="module")
def finished(uri: str, folder: Path) -> Run:
    return tiny_run(uri, folder, "tiny", data=DATA)


@pytest.fixture(scope="module")
def exported(finished: Run, folder: Path) -> Exported:
    return export(finished.folder, runs_folder=folder)


def data_of(finished: Run) -> tuple[sp.Spec, ClientData, Encoding]:
    spec = sp.load(Path(finished.folder) / "spec.yaml")
    data = open_data(source_of(spec))
    encoding = encoding_of(data)
    assert encoding is not None
    return spec, data, encoding


def raw_rows(finished: Run, rows: int = 50) -> tuple[pd.DataFrame, np.ndarray]:
    """Held-out rows as raw columns, and the logits of the ordinary module for them."""
    _, data, encoding = data_of(finished)
    arrays = {name: values[:rows] for name, values in data.held_out()["unseen"].arrays.items()}
    frame = pd.DataFrame(
        {c.name: arrays["x"][:, at].astype(float) * c.std + c.mean for at, c in enumerate(encoding.features)}
        | {c.name: np.array(c.values)[arrays["c"][:, at]] for at, c in enumerate(encoding.categories)}
    )
    return frame, says(finished, arrays, "logits")


def says(finished: Run, arrays: dict[str, np.ndarray], kind: Literal["logits", "penultimate"]) -> np.ndarray:
    """[rows, k], as leaves are judged."""
    spec, data, _ = data_of(finished)
    return outputs(lane_model_of(spec, data.shape), finished.model(), arrays, kind=kind)


def predict(place: str, frame: pd.DataFrame) -> pd.DataFrame:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(place).predict(frame)


def test_probabilities_are_the_models_own(finished: Run, exported: Exported) -> None:
    frame, logits = raw_rows(finished)
    answer = predict(exported.folder, frame)
    assert list(answer.columns) == ["probability"]
    np.testing.assert_allclose(answer["probability"], 1 / (1 + np.exp(-logits[:, 0])), atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_any_number_of_rows(finished: Run, exported: Exported, rows: int) -> None:
    frame, _ = raw_rows(finished)
    answer = predict(exported.folder, frame)
    few = predict(exported.folder, frame.iloc[:rows])
    np.testing.assert_allclose(few.to_numpy(), answer.to_numpy()[:rows], atol=1e-6)


def test_a_fresh_process_needs_neither_atoll_nor_its_folder(
    finished: Run, exported: Exported, uri: str, tmp_path: Path
) -> None:
    """From the folder and from the store."""
    frame, _ = raw_rows(finished)
    frame.to_json(tmp_path / "rows.json", orient="split", double_precision=15)
    (tmp_path / "empty").mkdir()
    # with pickles forbidden: nothing in the model is one
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-I", "-c", FRESH, str(tmp_path / "rows.json")]
    command += [exported.folder, f"models:/{exported.model_id}"]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = predict(exported.folder, frame)
    for line in done.stdout.splitlines()[-2:]:
        answer = json.loads(line)
        assert answer["columns"] == ["probability"]
        np.testing.assert_allclose(answer["data"], expected.to_numpy(), atol=1e-9)


def test_wrong_columns_and_values_are_refused(finished: Run, exported: Exported) -> None:
    import mlflow

    frame, _ = raw_rows(finished)
    with pytest.raises(mlflow.MlflowException, match=r"missing inputs \['feature_1'\]"):
        predict(exported.folder, frame.drop(columns="feature_1"))
    with pytest.raises(mlflow.MlflowException, match="category_0"):
        predict(exported.folder, frame.assign(category_0=1))
    wrong = frame.assign(category_0=["7", "8", *frame["category_0"][2:]], feature_0=[np.nan, *frame["feature_0"][1:]])
    with pytest.raises(ValueError, match="column 'feature_0': 1 values") as caught:
        predict(exported.folder, wrong)
    assert "column 'category_0': 2 unknown values ('7', '8')" in str(caught.value)


def test_it_is_logged_once(finished: Run, exported: Exported, uri: str, folder: Path) -> None:
    again = export(finished.folder, runs_folder=folder)
    assert again == exported
    store = mlflow_client(uri)
    experiment = store.get_experiment_by_name("exporting")
    found = store.search_logged_models([experiment.experiment_id], f"source_run_id = '{finished.run_id}'")
    assert [(model.model_id, str(model.status)) for model in found] == [(exported.model_id, "READY")]
    outputs = store.get_run(finished.run_id).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(exported.model_id, 7)]


def test_an_upload_that_was_cut_off_is_completed(
    finished: Run, uri: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_run(uri, tmp_path, "cut off", data=DATA, seed=8)
    store = type(mlflow_client(uri))
    with monkeypatch.context() as patch:

        def fail(*arguments: object) -> None:
            raise OSError("no room")

        patch.setattr(store, "log_model_artifacts", fail)
        first = export(other.folder, runs_folder=tmp_path)
    assert first.model_id == ""
    second = export(other.folder, runs_folder=tmp_path)
    experiment = mlflow_client(uri).get_experiment_by_name("exporting")
    found = mlflow_client(uri).search_logged_models([experiment.experiment_id], f"source_run_id = '{other.run_id}'")
    assert [(model.model_id, str(model.status)) for model in found] == [(second.model_id, "READY")]
    frame, _ = raw_rows(other)
    assert predict(second.folder, frame).shape == (50, 1)


def test_several_classes(uri: str, tmp_path: Path) -> None:
    evaluation = {"every_steps": 3, "metrics": ["loss"]}
    other = tiny_run(uri, tmp_path, "classes", data={**DATA, "classes": 3}, evaluation=evaluation)
    found = export(other.folder, tmp_path / "elsewhere", runs_folder=tmp_path)
    assert found.outputs == ("probability_0", "probability_1", "probability_2")
    frame, logits = raw_rows(other)
    answer = predict(str(tmp_path / "elsewhere"), frame).to_numpy()
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answer, shifted / shifted.sum(axis=1, keepdims=True), atol=1e-6)


def test_only_numbers(uri: str, tmp_path: Path) -> None:
    other = tiny_run(uri, tmp_path, "numbers", data={"kind": "synthetic", "features": 2}, model={"kind": "logistic"})
    found = export(other.folder, runs_folder=tmp_path)
    assert (found.features, found.categories) == (("feature_0", "feature_1"), ())
    answer = predict(found.folder, pd.DataFrame({"feature_0": [0.0, 1.0], "feature_1": [0.5, -1.0]}))
    assert answer.shape == (2, 1)


def test_no_row_of_the_data_is_in_an_export(exported: Exported) -> None:
    example = json.loads((Path(exported.folder) / "input_example.json").read_text())
    assert example["data"] == [[0.0, 0.0, 0.0, "0", "0"], [1.0, 1.0, 1.0, "4", "3"]]


def refused(run: str | Path, out: Path | None, runs_folder: Path, arm: str | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        export(run, out, arm=arm, runs_folder=runs_folder)
    return str(caught.value)


def test_a_folder_of_something_else_is_left_alone(finished: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "out: " in refused(finished.folder, tmp_path, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_data_without_an_encoding_is_refused(uri: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(1)
    x, y = rows.standard_normal((80, 2)).astype(np.float32), np.arange(80) % 2
    np.savez(tmp_path / "rows.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    data = {"kind": "arrays", "path": str(tmp_path / "rows.npz"), "clients": 10}
    other = tiny_run(uri, tmp_path, "arrays", data=data, population=None)
    assert "data.kind: got arrays; need data that says how raw columns become features" in refused(
        other.folder, None, tmp_path
    )


def test_runs_that_are_not_there_or_not_one_are_refused(tmp_path: Path) -> None:
    assert "a run under" in refused("nothing", None, tmp_path)
    (tmp_path / "compared").mkdir()
    (tmp_path / "compared" / "comparison.json").write_text("{}")
    (tmp_path / "compared" / "spec.yaml").write_text(sp.dump(sp.parse(tiny())))
    assert "a comparison of several" in refused(tmp_path / "compared", None, tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.db").write_text("")
    assert "a finished run" in refused(tmp_path / "begun", None, tmp_path)


def test_one_run_has_no_arms(finished: Run, folder: Path) -> None:
    assert "no arm for one run" in refused(finished.folder, None, folder, "s1")


# ---- ensembles ------------------------------------------------------------------------------------------------------


def over_archs() -> dict[str, tuple[OverArch, str]]:
    """Every kind over two leaves with 8 hidden units, with what it reads."""
    stream = np.random.default_rng(2)
    layer = (stream.standard_normal((4, 16)), stream.standard_normal(4))
    last = (stream.standard_normal((1, 4)), stream.standard_normal(1))
    return {
        "mean": (OverArch("mean"), "logits"),
        "median": (OverArch("median"), "logits"),
        "weighted": (OverArch("weighted_mean", weights=np.array([0.25, 0.75])), "logits"),
        "logistic": (OverArch("logistic", ((stream.standard_normal((1, 2)), np.array([0.5])),)), "logits"),
        "vectors": (OverArch("mlp", (layer, last)), "penultimate"),
    }


@pytest.fixture(scope="module")
def ensemble(uri: str, folder: Path) -> tuple[Path, list[Run]]:
    """A finished ensemble's folder: two leaves, one arm per over-arch, of which one has the role `ensemble`."""
    place = folder / "joined"
    leaves = [tiny_run(uri, folder, f"leaf {seed}", data=DATA, seed=seed) for seed in (11, 12)]
    for name, leaf in zip(("a", "b"), leaves, strict=True):
        shutil.copytree(leaf.folder, place / name)
    tracking = {"uri": uri, "experiment": "exporting"}
    mapping = tiny(name="joined", data=DATA, tracking=tracking, clusters={"kind": "random", "count": 2}, ensemble={})
    mapping["evaluation"] = {"metrics": ["loss", "auc"], "server_share": 0.5}
    (place / "spec.yaml").write_text(sp.dump(sp.parse(mapping)))
    (place / "comparison.json").write_text(json.dumps({"name": "joined", "run_key": "j1", "parent_run_id": "p"}))
    arms = {}
    for name, (over_arch, inputs) in over_archs().items():
        MlflowTracker(uri).start(RunInfo("exporting", f"joined-{name}", f"j1-{name}"))
        arrays = {key: values.tolist() for key, values in over_arch.arrays().items()}
        plain = {"kind": over_arch.kind, "inputs": inputs, "arrays": arrays}
        role = "ensemble" if name == "logistic" else "single"
        arms[name] = {"name": name, "role": role, "seed": 1, "members": ["a", "b"], "over_arch": plain}
    (place / "ensemble.json").write_text(json.dumps({"judgement": {"arms": arms, "left_out": {"s9": "no model of c"}}}))
    return place, leaves


@pytest.mark.parametrize("name", ["mean", "median", "weighted", "logistic", "vectors"])
def test_an_ensemble_says_what_its_over_arch_says_of_its_leaves(
    ensemble: tuple[Path, list[Run]], folder: Path, uri: str, name: str
) -> None:
    place, leaves = ensemble
    found = export(place, arm=name, runs_folder=folder)
    assert (found.num_leaves, found.name, Path(found.folder).name) == (2, f"joined-{name}", f"export-{name}")
    frame, _ = raw_rows(leaves[0])
    arrays = {name: values[:50] for name, values in data_of(leaves[0])[1].held_out()["unseen"].arrays.items()}
    over_arch, inputs = over_archs()[name]
    kind: Any = inputs
    z = np.stack([says(leaf, arrays, kind) for leaf in leaves], axis=1)
    answer = predict(found.folder, frame)["probability"]
    np.testing.assert_allclose(answer, expit(over_arch.apply(z)), atol=1e-6)
    store = mlflow_client(uri)
    assert store.get_run(found.run_id).data.tags["fl.run_key"] == f"j1-{name}"
    assert store.get_logged_model(found.model_id).source_run_id == found.run_id


def test_the_only_ensemble_is_meant(ensemble: tuple[Path, list[Run]], folder: Path, tmp_path: Path) -> None:
    found = export("joined", tmp_path / "out", runs_folder=folder)
    assert found.name == "joined-logistic"


def test_arms_that_are_not_there_are_told_what_there_is(ensemble: tuple[Path, list[Run]], folder: Path) -> None:
    text = refused(ensemble[0], None, folder, "s9")
    assert "no model of c" in text
    assert "one of mean, median, weighted, logistic, vectors" in text


def test_an_ensemble_that_is_not_finished(ensemble: tuple[Path, list[Run]], folder: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("spec.yaml", "comparison.json"):
        shutil.copy(ensemble[0] / name, begun / name)
    assert "a finished ensemble" in refused(begun, None, tmp_path)
