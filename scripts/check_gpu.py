#!/usr/bin/env python3
"""What only a GPU can show: equal bits, the reference's figures, memory that runs out, and speed.

    scripts/check_gpu [--device cuda | cpu] [--no-ray]

twice      every model's blocks, trained by two fresh learners, end in the same exact sums
reference  every client's delta against a plain PyTorch loop on the CPU, relative L2 error
memory     (GPU) a block that does not fit is told as such, and trained again it ends in the same bits
pools      a run in this process, on one pool, and on two pools that share the GPU: one model digest
too much   two pools whose blocks do not fit beside one another: fewer at once, the same digest
speed      client updates per second by kernel and W, as `atoll tune` measures them

Exit code 1 when a check fails; 0 with a line SKIPPED where there is no such device.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

SCRIPTS = str(Path(__file__).resolve().parent)
if SCRIPTS not in sys.path:
    sys.path.insert(0, SCRIPTS)
# workers import the modules of this file by its name
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SCRIPTS, os.environ.get("PYTHONPATH")]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import atoll  # noqa: E402
from atoll import spec as sp  # noqa: E402
from atoll.errors import ClientWorkError  # noqa: E402
from atoll.experiment import as_spec, session_for, tune  # noqa: E402
from atoll.experiment.building import build_learner, build_planner  # noqa: E402
from atoll.experiment.examining import result_digest  # noqa: E402
from atoll.experiment.modelling import client_work_of, first_version, kernel_of, lane_model_of  # noqa: E402
from atoll.experiment.opened import data_of, opened_once  # noqa: E402
from atoll.experiment.wiring import grid_of  # noqa: E402
from atoll.learner import LoopClient  # noqa: E402
from atoll.learner.devices import device_name  # noqa: E402
from atoll.messages import Block, ModelVersion  # noqa: E402
from atoll.runtime.work import one_thread, train_blocks  # noqa: E402

#: of a client's delta against the loop's: float32 sums in another order, carried through a few local steps
TOLERANCE = 1e-3
#: environment variable that names the folder of the seat
SEAT = "ATOLL_CHECK_SEAT"


# ---- what is trained ------------------------------------------------------------------------------------------------


def images() -> Any:
    """Data of small colour images, a few per client."""
    from atoll.data import client_table

    stream = np.random.default_rng(3)
    client = np.repeat(np.arange(40), 12)
    x = stream.integers(0, 256, (len(client), 3, 16, 16)).astype(np.uint8)
    y = stream.integers(0, 10, len(client))
    return client_table(x, y, client, task="multiclass", unseen=range(36, 40))


class Forgetful(torch.nn.Module):
    """With dropout, whose draws are keyed by the task."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = torch.nn.Linear(64, 32), torch.nn.Dropout(0.3), torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 10]."""
        return self.last(self.drop(torch.relu(self.first(x))))


class Seated(torch.nn.Module):
    """Runs out of memory where another process trains at the same time; computes what a linear layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, 10]."""
        if not torch.is_grad_enabled() or SEAT not in os.environ:
            return self.layer(x)
        with _seat(Path(os.environ[SEAT])):
            return self.layer(x)


@contextmanager
def _seat(folder: Path) -> Iterator[None]:
    try:
        os.close(os.open(folder / "seat", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        (folder / "was too much").touch()
        raise torch.OutOfMemoryError("two blocks at once do not fit") from None
    try:
        torch.mm(torch.ones(300, 300), torch.ones(300, 300))  # long enough to be met by another
        yield
    finally:
        with suppress(FileNotFoundError):
            (folder / "seat").unlink()


BASE: Mapping[str, Any] = {
    "name": "check-gpu",
    "seed": 5,
    "data": {"kind": "synthetic", "features": 64, "classes": 10, "examples": {"kind": "log_normal", "median": 24}},
    "population": {"size": 2000, "devices": {"kind": "half_normal", "scale_s": 60}},
    "model": {"kind": "mlp", "hidden": [128]},
    "client": {"lr": 0.1, "batch_size": 8, "epochs": 2},
    "schedule": {"kind": "async", "concurrency": 64, "buffer_goal": 16},
    "aggregation": {"kind": "fedbuff"},
    "evaluation": {"every_steps": 10, "metrics": ["loss"]},
    "stop": {"server_steps": 12},
}
_CODES = {"kind": "synthetic", "features": 16, "categories": [1000, 50], "examples": {"kind": "constant", "count": 20}}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {},
    "mlp, momentum and pull": {"client.momentum": 0.9, "client.proximal_mu": 0.1, "client.short_batch_scaling": True},
    "mlp, bfloat16": {"client.precision": "bfloat16"},
    "logistic": {"model": {"kind": "logistic"}},
    "dlrm": {"data": _CODES, "model": {"kind": "dlrm", "embedding_dim": 16, "top": [64]}},
    "wide_deep": {"data": _CODES, "model": {"kind": "wide_deep", "hidden": [64], "embedding_dim": 8}},
    "cnn": {"data": {"kind": "custom", "factory": "check_gpu:images"}, "model": {"kind": "cnn", "channels": [8, 16]}},
    "char_lstm": {
        "data": {"kind": "shakespeare", "stride": 80},
        "model": {"kind": "char_lstm", "embedding": 8, "hidden": 32, "layers": 1},
        "client": {"lr": 0.5, "batch_size": 8},
    },
    "dropout": {"model": {"kind": "custom", "factory": "check_gpu:Forgetful"}},
}
#: cannot be compared with the loop: it draws otherwise, or computes in another precision
NO_REFERENCE = ("dropout", "mlp, bfloat16")


def spec_of(device: str, changes: Mapping[str, Any], **runtime: Any) -> sp.Spec:
    """The spec with these changes, to be trained on the device in this process unless `runtime` says otherwise."""
    sections = {**BASE, "runtime": {"kind": "inline", "device_class": device, "lanes": 16, **runtime}}
    dotted = {}
    for key, value in changes.items():
        if "." in key:
            dotted[key] = value
        else:
            sections[key] = value
    if sections["data"]["kind"] != "synthetic":
        sections["population"] = {**sections["population"], "size": "data"}
    found = as_spec(sections)
    if found.runtime.kernel == "auto" and found.model.kind != "custom":  # on CPUs: what a GPU would do
        dotted["runtime.kernel"] = "lanes"
    return sp.derived(found, dotted) if dotted else found


class Work:
    """The first blocks of a spec, and a model version for each that they start from."""

    def __init__(self, spec: sp.Spec) -> None:
        data = data_of(spec)
        self.spec, self.identity = spec, data.identity
        planner = build_planner(spec, data.identity)
        self.blocks: list[Block] = []
        while len(self.blocks) < 4:
            self.blocks += planner.advance().blocks
        first = first_version(spec, data.shape)
        numbers = sorted(set().union(*(block.start_version.tolist() for block in self.blocks)))
        self.versions = {
            number: ModelVersion(number, first.dense * np.float32(1 + 0.01 * number), first.tables)
            for number in numbers
        }

    def digests(self) -> list[str]:
        """Of each block's sums, by a fresh learner."""
        learner = build_learner(self.spec, self.identity)
        one_thread()
        return [result_digest(one) for block in self.blocks for one in train_blocks(learner, [block], self.versions)]


# ---- checks: each says what it found --------------------------------------------------------------------------------


class Wrong(Exception):
    """A check that failed."""


def _need(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Wrong(otherwise)


def twice(spec: sp.Spec) -> str:
    """Two fresh learners, the same bits."""
    work = Work(spec)
    one, other = work.digests(), work.digests()
    differing = [number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
    _need(not differing, f"blocks {differing} differ")
    return f"{len(one)} blocks, kernel {kernel_of(spec)}, {one[0][:12]}"


def reference(spec: sp.Spec) -> str:
    """Every delta of a block against the plain loop on the CPU; returns the worst relative error."""
    work, data = Work(spec), data_of(spec)
    block, grid = work.blocks[0], grid_of(spec, data)
    lanes = block.num_lanes
    # a server step for every lane: its sum is one delta
    apart = replace(block, step=np.arange(lanes, dtype=np.int32) + int(block.step.max()), weight=np.ones(lanes))
    (result,) = build_learner(spec, work.identity).train_all([apart], work.versions)
    loop = LoopClient(
        model=lane_model_of(spec, data.shape), gather=data.gather, work=client_work_of(spec), seed=spec.seed
    )
    worst = 0.0
    for lane, partial in enumerate(result.partials):
        start = work.versions[int(block.start_version[lane])]
        ids = int(block.task_id[lane]), int(block.client_id[lane]), int(block.num_examples[lane])
        want = loop.train(*ids, start)
        error = np.linalg.norm(partial.dense / grid.scale - want.dense) / np.linalg.norm(want.dense)
        for rows, table in zip(partial.tables, want.tables, strict=True):
            full = np.zeros_like(table, dtype=np.float64)
            full[rows.rows] = rows.values / grid.scale
            error = max(error, np.linalg.norm(full - table) / max(np.linalg.norm(table), 1e-12))
        worst = max(worst, float(error))
    _need(worst <= TOLERANCE, f"relative error {worst:.1e} > {TOLERANCE:.0e}")
    return f"{lanes} clients, relative error at most {worst:.1e}"


def memory(device: str) -> str:
    """Real memory runs out, is told as such, and the block's bits are what they were."""
    spec = spec_of(device, {"model": {"kind": "mlp", "hidden": [4096, 1024]}}, lanes=64)
    work = Work(spec)
    before = work.digests()[0]
    learner = build_learner(spec, work.identity)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    balloon = torch.empty(max(free - 2**28, 0), dtype=torch.uint8, device=device)
    told: ClientWorkError | None = None
    try:
        train_blocks(learner, work.blocks[:1], work.versions)
    except ClientWorkError as error:
        told = error
        error.__cause__ = error.__traceback__ = None  # they hold the tensors that did not fit
    finally:
        del balloon
        torch.cuda.empty_cache()
    _need(told is not None, "64 lanes of 4.5 million weights fitted into 256 MiB")
    _need(told is not None and told.is_out_of_memory, f"told as another failure: {told}")
    (again,) = train_blocks(learner, work.blocks[:1], work.versions)
    _need(result_digest(again) == before, "after memory ran out, other bits")
    return f"told, and {before[:12]} before and after"


def pools(device: str, folder: Path) -> str:
    """One digest on no pool, one, and two that share the device."""
    tracking = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "artifacts": str(folder / "artifacts")}
    digests = {}
    for number in (0, 1, 2):
        changes = {"tracking": tracking, "name": f"check-gpu-{number}"}
        spec = spec_of(device, changes, **(_on_ray(device, number) if number else {}))
        digests[number] = atoll.run(spec, runs_folder=folder).model_digest
    _need(len(set(digests.values())) == 1, f"digests by number of pools: {digests}")
    return f"in process, 1 pool, 2 pools: {digests[0][:12]}"


def too_much(device: str, folder: Path) -> str:
    """Two pools, of which one at a time has room: it ends, and in the same bits."""
    seat = folder / "seats"
    seat.mkdir()
    tracking = {"uri": f"sqlite:///{folder / 'mlflow.db'}", "artifacts": str(folder / "artifacts")}
    model = {"kind": "custom", "factory": "check_gpu:Seated"}
    client = {"lr": 0.1, "batch_size": 2}
    changes = {"tracking": tracking, "model": model, "stop": {"server_steps": 40}, "client": client}
    alone = atoll.run(spec_of(device, changes, kernel="single"), runs_folder=folder)
    os.environ[SEAT] = str(seat)
    try:
        spec = spec_of(device, changes, kernel="single", **_on_ray(device, 2))
        with session_for(spec) as session:
            shared = atoll.run(spec, session=session, runs_folder=folder)
    finally:
        del os.environ[SEAT]
    _need((seat / "was too much").exists(), "memory never ran out: the check has shown nothing")
    _need(shared.model_digest == alone.model_digest, "other bits")
    return f"{shared.model_digest[:12]}, {shared.lost_pools} pools lost"


def _on_ray(device: str, workers: int) -> dict[str, Any]:
    return {"kind": "ray", "workers": workers, "gpus_per_worker": 1 / workers if device == "cuda" else 0}


def speed(device: str, folder: Path) -> str:
    """Prints the table."""
    rows = []
    for name in ("mlp", "dlrm", "cnn", "char_lstm"):
        spec = sp.derived(spec_of(device, MODELS[name]), {"runtime.kernel": "auto", "runtime.lanes": "auto"})
        found = tune(spec, path=folder / f"{name}.json")
        rows += [f"       {name:10} {one.kernel:9} W {one.lanes:4} {one.client_updates_per_s:12,.0f} client updates/s"
                 for one in found.timings]  # fmt: skip
    return "\n".join(["", *rows])


# ---- all of them ----------------------------------------------------------------------------------------------------


def checks(device: str, folder: Path, with_ray: bool) -> Iterator[tuple[str, Callable[[], str]]]:
    """(name, check)."""
    for name, changes in MODELS.items():
        spec = spec_of(device, changes)
        yield f"twice: {name}", lambda spec=spec: twice(spec)
        if name not in NO_REFERENCE:
            yield f"reference: {name}", lambda spec=spec: reference(spec)
    if device == "cuda":
        yield "memory", lambda: memory(device)
    if with_ray:
        yield "pools", lambda: pools(device, folder)
        yield "too much", lambda: too_much(device, folder)
    yield "speed", lambda: speed(device, folder)


def main(arguments: list[str] | None = None) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--no-ray", action="store_true", help="leave out what starts Ray")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("check_gpu: SKIPPED: no CUDA device is visible here, nothing was checked; --device cpu does it on CPUs")
        return 0
    print(f"check_gpu: {options.device}, {device_name(options.device)}, torch {torch.__version__}")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="atoll-check-") as folder, opened_once():
        for name, check in checks(options.device, Path(folder), not options.no_ray):
            try:
                print(f"ok     {name}: {check()}", flush=True)
            except Exception as error:  # the others are of interest too
                failed += 1
                print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    print(f"check_gpu: {failed} failed" if failed else "check_gpu: all is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
