"""Sizes of models, and what is refused with which words."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from atoll.errors import SpecError
from atoll.models import CharLstm, Cnn, Custom, Logistic, Mlp, ModelInputs, ModelSettings, init_version, shape_of

TEXT = ModelInputs("multiclass", 80, (20,), (), 80)
GREY = ModelInputs("multiclass", 10, (28, 28))
ROWS = ModelInputs("binary", 1, (5,), (10, 1000))


@pytest.mark.parametrize(
    ("settings", "inputs", "dense", "table"),
    [
        (Mlp((64,)), ModelInputs("multiclass", 10, (64,)), 64 * 64 + 64 + 64 * 10 + 10, 0),
        (Logistic(), ROWS, 5 + 1, 1010),
        (Mlp((4,), 3), ROWS, (5 + 6) * 4 + 4 + 4 + 1, 1010 * 3),
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


@pytest.mark.parametrize(
    ("settings", "inputs", "words"),
    [
        (Mlp(), TEXT, "char_lstm"),
        (Logistic(), TEXT, "char_lstm"),
        (Cnn(), TEXT, "images"),
        (Cnn(), ROWS, "images"),
        (Cnn((4, 4, 4)), ModelInputs("multiclass", 10, (6, 6)), "pixels"),
        (CharLstm(), GREY, "tokens"),
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


def test_shapes_start_without_torch() -> None:
    code = (
        "import sys; from atoll.models import Mlp, ModelInputs, shape_of; "
        "shape_of(Mlp(), ModelInputs('binary', 1, (3,))); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
