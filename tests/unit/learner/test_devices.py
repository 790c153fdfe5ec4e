"""Repeatable arithmetic: which switches are set where a GPU is used. Switches can be set without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from atoll.errors import SpecError
from atoll.learner.devices import device_name, make_repeatable

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def _switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As torch has them at first; put back at the end."""
    names = [
        (torch.backends.cudnn, "deterministic"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    ]
    before = [(place, name, getattr(place, name)) for place, name in names]
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    for place, name, value in before:
        setattr(place, name, value)
    torch.use_deterministic_algorithms(False)
    os.environ.pop(WORKSPACE, None)


@pytest.mark.usefixtures("_switches")
def test_a_gpu_computes_the_same_bits_every_time() -> None:
    torch.backends.cudnn.benchmark = torch.backends.cuda.matmul.allow_tf32 = True
    make_repeatable(torch.device("cuda"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "what has no such algorithm must raise"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ[WORKSPACE] == ":4096:8"


@pytest.mark.usefixtures("_switches")
def test_a_workspace_that_is_set_stands_or_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    make_repeatable(torch.device("cuda"))
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(SpecError, match=f"{WORKSPACE}: got ':0:0'"):
        make_repeatable(torch.device("cuda"))


@pytest.mark.usefixtures("_switches")
def test_cpus_are_left_as_they_are() -> None:
    make_repeatable(torch.device("cpu"))
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ


def test_this_machine_has_a_name() -> None:
    assert device_name("cpu")
