"""scripts/check_gpu's own checks, on the CPU: they pass where all is well, and fail where bits differ."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(scope="module")
def checks() -> Iterator[ModuleType]:
    """The script as a module, under the name by which specs find its factories."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "")
        patch.syspath_prepend(str(SCRIPTS))
        spec = importlib.util.spec_from_file_location("check_gpu", SCRIPTS / "check_gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "check_gpu", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("name", ["mlp, momentum and pull", "dlrm", "cnn"])
def test_sound_models_pass(checks: ModuleType, name: str) -> None:
    spec = checks.spec_of("cpu", checks.MODELS[name])
    assert "kernel lanes" in checks.twice(spec)
    assert "relative error at most" in checks.reference(spec)


def test_dropout_is_trained_one_by_one(checks: ModuleType) -> None:
    assert "kernel single" in checks.twice(checks.spec_of("cpu", checks.MODELS["dropout"]))


def test_other_bits_are_found(checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter([["a", "b"], ["a", "c"]])
    monkeypatch.setattr(checks.Work, "digests", lambda self: next(drawn))
    with pytest.raises(checks.Wrong, match=r"blocks \[1\] differ"):
        checks.twice(checks.spec_of("cpu", {}))


def test_other_figures_are_found(checks: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    train = checks.LoopClient.train

    def off(self, *arguments):
        found = train(self, *arguments)
        return checks.ModelVersion(0, found.dense * np.float32(1.01), found.tables)

    monkeypatch.setattr(checks.LoopClient, "train", off)
    with pytest.raises(checks.Wrong, match="relative error"):
        checks.reference(checks.spec_of("cpu", {}))


def test_where_there_is_no_gpu_that_is_said(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert checks.main([]) == 0
    assert "SKIPPED" in capsys.readouterr().out


def test_one_that_fails_does_not_keep_others_from_being_told(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> str:
        raise checks.Wrong("other bits")

    monkeypatch.setattr(checks, "checks", lambda *_: iter([("one", fails), ("two", lambda: "well")]))
    assert checks.main(["--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "FAILED one: Wrong: other bits" in out
    assert "ok     two: well" in out
