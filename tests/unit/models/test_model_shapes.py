"""Sizes of models, and what is refused with which words."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.models import (
    CharLstm,
    Cnn,
    Custom,
    Dlrm,
    Logistic,
    Mlp,
    ModelInputs,
    ModelSettings,
    WideDeep,
    init_version,
    shape_of,
)

TEXT = ModelInputs("multiclass", 80, (20,), (), 80)
GREY = ModelInputs("multiclass", 10, (28, 28))
ROWS = ModelInputs("binary", 1, (5,), (10, 1000))
#: an item, something else, and two items before it
HISTORY = ModelInputs("binary", 1, (5,), (50, 4, 50, 50), 0, (0, 1, 0, 0))


@pytest.mark.parametrize(
    ("settings", "inputs", "dense", "table"),
    [
        (Mlp((64,)), ModelInputs("multiclass", 10, (64,)), 64 * 64 + 64 + 64 * 10 + 10, 0),
        (Logistic(), ROWS, 5 + 1, 1010),
        (Mlp((4,), 3), ROWS, (5 + 6) * 4 + 4 + 4 + 1, 1010 * 3),
        (WideDeep((4,), 3), ROWS, 5 + (5 + 6) * 4 + 4 + 4 + 1, 1010 * (3 + 1)),
        (WideDeep((4,), 3), HISTORY, 5 + (5 + 12) * 4 + 4 + 4 + 1, 54 * (3 + 1)),
        (Dlrm(), ROWS, 5 * 16 + 16 + (16 + 3) * 256 + 256 + 256 + 1, 1010 * 16),
        (Dlrm(4, (8, 4), (6,)), HISTORY, 5 * 8 + 8 + 8 * 4 + 4 + (4 + 10) * 6 + 6 + 6 + 1, 54 * 4),
        (Dlrm(4, (4,), (6,), True), HISTORY, 5 * 4 + 4 + (12 * 4 + 4 + 4 + 1) + (4 + 6) * 6 + 6 + 6 + 1, 54 * 4),
        (Cnn((32, 64)), GREY, 9 * 32 + 3 * 32 + 9 * 32 * 64 + 3 * 64 + 7 * 7 * 64 * 10 + 10, 0),
        (CharLstm(8, 256, 2), TEXT, 80 * 8 + 4 * 256 * (8 + 256 + 2) + 4 * 256 * (512 + 2) + 257 * 80, 0),
    ],
)
def test_sizes_counted_by_hand(settings: ModelSettings, inputs: ModelInputs, dense: int, table: int) -> None:
    shape = shape_of(settings, inputs)
    assert shape.dense_size == dense
    assert shape.bytes == 4 * (dense + table)


def test_columns_share_a_table_without_overlap() -> None:
    (table,) = shape_of(Mlp((4,), 3), ModelInputs("binary", 1, (5,), (10, 1000, 3))).tables
    assert (table.rows, table.offsets) == (1013, (0, 10, 1010))


def test_columns_of_one_table_share_embeddings_but_no_weights_of_a_linear_model() -> None:
    for settings in (Mlp((4,), 3), WideDeep((4,), 3), Dlrm(4, (4,)), Dlrm(4, (4,), history=True)):
        (table,) = shape_of(settings, HISTORY).tables
        assert (table.rows, table.offsets) == (54, (0, 50, 0, 0))
    (table,) = shape_of(Logistic(), HISTORY).tables
    assert (table.rows, table.offsets) == (154, (0, 50, 54, 104))
    assert (HISTORY.leads, HISTORY.histories) == ((0, 1), ((0, (2, 3)),))
    assert (ROWS.leads, ROWS.histories) == ((0, 1), ())


@pytest.mark.parametrize(
    ("settings", "inputs", "words"),
    [
        (Mlp(), TEXT, "char_lstm"),
        (Logistic(), TEXT, "char_lstm"),
        (Cnn(), TEXT, "images"),
        (Cnn(), ROWS, "images"),
        (Cnn((4, 4, 4)), ModelInputs("multiclass", 10, (6, 6)), "pixels"),
        (CharLstm(), GREY, "tokens"),
        (WideDeep(), GREY, "wide_deep on data without categories; need data with categorical columns"),
        (WideDeep(), TEXT, "char_lstm"),
        (Dlrm(), GREY, "dlrm on data without categories"),
        (Dlrm(), TEXT, "char_lstm"),
        (Dlrm(8, (16,)), ROWS, r"model.bottom: got \[16\]; need a last layer as wide as model.embedding_dim \(8\)"),
        (Dlrm(history=True), ROWS, "model.history: got true; need data with several columns of one table"),
        (Custom("no_such_package:f"), GREY, "no_such_package"),
        (Custom("lane_kit:no_such_function"), GREY, "no_such_function"),
        (Custom("math:sqrt", {"x": 2}), GREY, "sqrt"),
        (Custom("collections:OrderedDict"), GREY, "torch.nn.Module"),
        (Custom("torch.nn:ReLU"), GREY, "parameters"),
        (Custom("torch.nn:BatchNorm1d", {"num_features": 3}), GREY, "GroupNorm"),
    ],
)
def test_what_cannot_work_is_refused_in_words(settings: ModelSettings, inputs: ModelInputs, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        shape_of(settings, inputs)


@pytest.mark.parametrize(
    ("settings", "inputs", "name", "bound"),
    [
        (Mlp((64,)), ModelInputs("multiclass", 10, (64,)), "hidden.0.weight", 1 / 8),
        (Mlp((64,)), ModelInputs("multiclass", 10, (64,)), "output.bias", 1 / 8),
        (WideDeep((64,)), ROWS, "hidden.0.weight", 1 / math.sqrt(5 + 16)),
        (Dlrm(), ROWS, "top.0.weight", 1 / math.sqrt(16 + 3)),
        (Dlrm(history=True), HISTORY, "attention.0.hidden.weight", 1 / math.sqrt(48)),
        (Cnn((32, 64)), GREY, "blocks.1.conv.weight", 1 / math.sqrt(9 * 32)),
        (CharLstm(8, 256, 2), TEXT, "lstm.weight_ih_l0", 1 / 16),
        (CharLstm(8, 256, 2), TEXT, "lstm.bias_hh_l1", 1 / 16),
        (CharLstm(8, 256, 2), TEXT, "output.weight", 1 / 16),
    ],
)
def test_first_weights_fill_torchs_own_range(
    settings: ModelSettings, inputs: ModelInputs, name: str, bound: float
) -> None:
    dense, begin = init_version(settings, inputs, 1).dense, 0
    for parameter in shape_of(settings, inputs).parameters:
        if parameter.name == name:
            part = dense[begin : begin + parameter.size]
            assert np.abs(part).max() <= bound
            assert np.abs(part).max() > 0.6 * bound
            assert abs(part.mean()) < 5 * bound / math.sqrt(3 * part.size)
        begin += parameter.size


def test_logistic_regression_starts_at_zero() -> None:
    version = init_version(Logistic(), ROWS, 5)
    assert not version.dense.any()
    assert not version.tables[0].any()


@pytest.mark.parametrize("settings", [Dlrm(32, (32,)), WideDeep((4,), 32)], ids=["dlrm", "wide_deep"])
def test_first_embeddings_fill_the_range_of_their_own_columns_table(settings: ModelSettings) -> None:
    version = init_version(settings, ROWS, 3)
    for begin, rows in ((0, 10), (10, 1000)):
        part, bound = version.tables[0][begin : begin + rows, :32], 1 / math.sqrt(rows)
        assert 0.9 * bound < np.abs(part).max() <= bound
        assert abs(part.mean()) < 5 * bound / math.sqrt(3 * part.size)
        assert part.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_linear_part_starts_at_zero() -> None:
    version = init_version(WideDeep((4,), 3), ROWS, 3)
    assert not version.tables[0][:, 3:].any()
    assert version.tables[0][:, :3].all()
    assert not version.dense[:5].any()
    assert version.dense[5:].all()


def test_shapes_start_without_torch() -> None:
    code = (
        "import sys; from atoll.models import Dlrm, Mlp, ModelInputs, shape_of; "
        "shape_of(Mlp(), ModelInputs('binary', 1, (3,))); shape_of(Dlrm(), ModelInputs('binary', 1, (3,), (4,))); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
