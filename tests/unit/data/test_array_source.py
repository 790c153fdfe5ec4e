"""Plain arrays: npz and idx files, scaling, refusals."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from atoll.data import ArraysSource, Shards, client_table, open_data
from atoll.data.arrays import read_idx
from atoll.errors import SpecError


def _idx(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, labels = np.arange(40 * 6).reshape(40, 3, 2) % 256, np.arange(40) % 10
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(_idx(images[:5]))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels[:5])))
    return tmp_path


def test_idx_images_become_one_channel_in_zero_to_one(folder: Path) -> None:
    data = open_data(ArraysSource(str(folder), num_clients=4))
    assert (data.shape.x_shape, data.shape.num_classes, data.shape.task) == ((1, 3, 2), 10, "multiclass")
    x = data.gather(np.arange(4), np.broadcast_to(np.arange(10), (4, 10)))["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(np.sort(x.ravel() * 255), np.arange(240))
    unseen = data.held_out()["unseen"]
    assert unseen.arrays["x"].shape == (5, 1, 3, 2)
    np.testing.assert_allclose(unseen.arrays["x"][1, 0], np.arange(6, 12).reshape(3, 2) / 255, rtol=1e-6)


def test_each_example_goes_to_one_client_with_its_label(tmp_path: Path) -> None:
    y = np.arange(60) % 5
    np.savez(tmp_path / "a.npz", x=np.arange(60.0)[:, None], y=y)
    data = open_data(ArraysSource(str(tmp_path / "a.npz"), Shards(1), num_clients=5))
    block = data.gather(np.arange(5), np.broadcast_to(np.arange(12), (5, 12)))
    rows = block["x"][..., 0].astype(int)
    assert sorted(rows.ravel().tolist()) == list(range(60))
    np.testing.assert_array_equal(block["y"], y[rows])
    assert (block["y"] == block["y"][:, :1]).all()
    assert data.held_out() == {}


@pytest.mark.parametrize("cut", [2, 10, 30])
def test_a_cut_idx_file_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a").write_bytes(_idx(np.zeros((4, 3, 2)))[:cut])
    with pytest.raises(SpecError, match="a complete idx file"):
        read_idx(tmp_path / "a")


def test_an_idx_folder_without_labels_is_refused(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(SpecError, match="train-labels-idx1-ubyte"):
        open_data(ArraysSource(str(folder)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2))}, "arrays x"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, "one length"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "at least 1"),
        ({"x": np.array([[0.0], [np.nan], [np.inf]]), "y": np.zeros(3, int)}, "2 rows .* first row 1"),
        ({"x": np.zeros((3, 2)), "y": np.array([0, -1, 1])}, "whole-number labels"),
        ({"x": np.zeros((3, 2)), "y": np.array([0.5, 1, 1])}, "whole-number labels"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3, int), "x_test": np.zeros((1, 2))}, "y_test"),
        (
            {"x": np.zeros((3, 2)), "y": np.zeros(3, int), "x_test": np.zeros((1, 4)), "y_test": np.zeros(1, int)},
            "one shape",
        ),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SpecError, match=message):
        open_data(ArraysSource(str(tmp_path / "a.npz"), num_clients=1))


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("absent.npz", "text.npz", "one.npy"):
        with pytest.raises(SpecError, match=r"an \.npz file with x and y"):
            open_data(ArraysSource(str(tmp_path / name)))


def test_client_table_takes_rows_in_any_order() -> None:
    x, client = np.arange(6.0)[:, None], np.array(["b", "a", "b", "c", "a", "b"])
    data = client_table(x, np.array([0, 1, 0, 1, 0, 1]), client, task="binary", unseen=["a"], holdout_fraction=0.4)
    assert (data.num_clients, data.counts().tolist()) == (2, [2, 1])
    np.testing.assert_array_equal(data.gather(np.array([0]), np.array([[0, 1]]))["x"][0, :, 0], [0, 2])
    held_out = data.held_out()
    assert held_out["seen"].arrays["x"][:, 0].tolist() == [5]
    assert held_out["unseen"].arrays["x"][:, 0].tolist() == [1, 4]


def test_client_table_knows_tokens_by_their_type() -> None:
    data = client_table(np.array([[3, 9]]), np.array([4]), np.array([0]), task="multiclass")
    assert (data.shape.x_dtype, data.shape.vocabulary, data.shape.num_classes) == ("int64", 10, 5)
