#!/usr/bin/env python3
"""How much faster the kernels train clients than a plain loop, and whether a table's size costs anything.

    OMP_NUM_THREADS=1 python scripts/bench_learner.py [--passes 7] [--json]

One process, one thread. Every figure is a ratio of medians over passes that alternate between the two sides, so that a
slow moment of the machine falls on both. Exit code 1 when a ratio misses its target. Takes a minute.

    compiled   64-64-10 MLP, 32 examples a client, batch 8, one epoch: compiled code against the loop; target 40
    lanes      the same by torch lanes, at several W; target 20 at the best W
    ragged     compiled, log-normal sizes (mean 32) against equal ones, per local step; target 0.8
    sparse     20 examples a client, tables of 10³ against 10⁶ rows, compiled; target 0.8
    field      wide_deep and dlrm on the columns of flights compiled, dlrm with attention to ten earlier items on those
               of MovieLens by 64 lanes: against the loop; no target
    single     a convolutional network, one client at a time over flat weights, against a plain loop that is written
               the same way by hand; target 0.95
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from atoll import rng
from atoll.learner import ClientWork, CompiledLearner, Learner, LoopClient, SingleLearner, Trainer
from atoll.messages import Block, ModelVersion
from atoll.models import Cnn, Dlrm, Mlp, ModelInputs, ModelSettings, WideDeep, build_model, init_version
from atoll.plan import Grid

GRID = Grid.for_plan(1000.0, 1024.0)
WIDTHS = (32, 64, 128, 256, 512)
MLP, DENSE_INPUTS = Mlp((64,)), ModelInputs("multiclass", 10, (64,))
WORK = ClientWork(lr=0.05, batch_size=8)
FLIGHTS = ModelInputs("binary", 1, (28,), (16, 3, 104, 223, 19, 12, 7, 10, 7))
MOVIES = ModelInputs("binary", 1, (21,), (1683,) * 11 + (2, 21), 0, (0,) * 11 + (11, 12))
FIELD: dict[str, tuple[str, ModelSettings, ModelInputs]] = {
    "wide_deep": ("compiled", WideDeep((64,), 8), FLIGHTS),
    "dlrm": ("compiled", Dlrm(), FLIGHTS),
    "dlrm_history": ("lanes", Dlrm(history=True), MOVIES),
}
IMAGES = ModelInputs("multiclass", 10, (3, 32, 32))


def columns(inputs: ModelInputs, rows: int = 1 << 16) -> Callable[..., dict[str, np.ndarray]]:
    """A gather over columns in memory, as a file of clients would give it."""
    draw = rng.generator(1, "bench")
    x = draw.standard_normal((rows, *inputs.x_shape), dtype=np.float32)
    y = draw.integers(0, 2 if inputs.task == "binary" else inputs.num_outputs, rows)
    c = np.stack([draw.integers(0, size, rows) for size in inputs.category_sizes] or [y], axis=1)

    def gather(clients: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
        index = (clients[:, None] * 37 + positions) % rows
        found = {"x": x[index], "y": y[index]}
        return found | {"c": c[index]} if inputs.category_sizes else found

    return gather


def block_of(sizes: np.ndarray) -> Block:
    lanes = len(sizes)
    index = np.arange(lanes, dtype=np.int64)
    zeros, ones = np.zeros(lanes, dtype=np.int32), np.ones(lanes)
    return Block(0, index << 32, index, zeros, zeros, np.sort(sizes)[::-1].astype(np.int64), ones, ones)


def medians(passes: int, *sides: Callable[[], object]) -> list[float]:
    """Median seconds of each side; the sides take turns, after one warm-up each."""
    found: list[list[float]] = [[] for _ in sides]
    for number in range(passes + 1):
        for times, side in zip(found, sides, strict=True):
            begin = time.perf_counter()
            side()
            if number:
                times.append(time.perf_counter() - begin)
    return [float(np.median(times)) for times in found]


def learner_of(
    kernel: str, settings: ModelSettings, inputs: ModelInputs
) -> tuple[Trainer, ModelVersion, Callable[..., dict]]:
    gather, version = columns(inputs), init_version(settings, inputs, 1)
    if kernel == "compiled":
        learner: Trainer = CompiledLearner(
            settings=settings, inputs=inputs, gather=gather, work=WORK, grid=GRID, seed=1
        )
        return learner, version, gather
    make = Learner if kernel == "lanes" else SingleLearner
    return make(model=build_model(settings, inputs), gather=gather, work=WORK, grid=GRID, seed=1), version, gather


def against_loop(
    passes: int, name: str, kernel: str, settings: ModelSettings, inputs: ModelInputs, widths: tuple[int, ...]
) -> dict[str, float]:
    learner, version, gather = learner_of(kernel, settings, inputs)
    loop = LoopClient(model=build_model(settings, inputs), gather=gather, work=WORK, seed=1)
    found = {}
    for lanes in widths:
        block, repeats = block_of(np.full(lanes, 32)), max(1, 256 // lanes)

        def by_lanes(block: Block = block, repeats: int = repeats) -> None:
            for _ in range(repeats):
                learner.train(block, {0: version})

        def by_loop() -> None:
            for task in range(64):
                loop.train(task, task, 32, version)

        lanes_s, loop_s = medians(passes, by_lanes, by_loop)
        found[f"{name}_{lanes}_per_s"] = lanes * repeats / lanes_s
        found[f"loop_per_s_beside_{name}_{lanes}"] = 64 / loop_s
        found[f"{name}_{lanes}_over_loop"] = found[f"{name}_{lanes}_per_s"] * loop_s / 64
    return found


def single_against_flat_loop(passes: int) -> dict[str, float]:
    """Both over flat weights; the loop neither gathers by client, nor measures norms, nor sums exactly."""
    settings = Cnn((16, 32))
    learner, version, gather = learner_of("single", settings, IMAGES)
    module = build_model(settings, IMAGES).module().train()
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    gradient, begin = torch.zeros_like(weights), 0
    for p in module.parameters():
        here = slice(begin, begin + p.numel())
        p.data, p.grad = weights[here].view(p.shape), gradient[here].view(p.shape)
        begin += p.numel()
    start, total = torch.tensor(version.dense), torch.zeros_like(weights)
    arrays = gather(np.arange(8), np.broadcast_to(np.arange(32), (8, 32)))
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])

    def by_loop() -> None:
        for client in range(8):
            weights.copy_(start)
            order = torch.randperm(32)
            for first in range(0, 32, 8):
                chosen = order[first : first + 8]
                gradient.zero_()
                torch.nn.functional.cross_entropy(module(x[client, chosen]), y[client, chosen]).backward()
                weights.add_(gradient, alpha=-WORK.lr)
            total.add_(start - weights)

    block = block_of(np.full(8, 32))
    single_s, loop_s = medians(passes, lambda: learner.train(block, {0: version}), by_loop)
    return {"single_per_s": 8 / single_s, "single_over_flat_loop": loop_s / single_s}


def ragged_against_equal(passes: int) -> dict[str, float]:
    """One server step's worth of clients, cut into blocks of 64 as the plan does: longest first."""
    learner, version, _ = learner_of("compiled", MLP, DENSE_INPUTS)
    drawn = np.exp(rng.generator(2, "sizes").standard_normal(1024))
    sizes = np.sort(np.clip(np.rint(drawn * 32 / drawn.mean()), 1, None).astype(np.int64))[::-1]
    ragged = [block_of(sizes[begin : begin + 64]) for begin in range(0, 1024, 64)]
    equal = [block_of(np.full(64, 32))] * 16
    steps = [sum(int((-(-b.num_examples // 8)).sum()) for b in blocks) for blocks in (ragged, equal)]

    def run(blocks: list[Block]) -> Callable[[], None]:
        return lambda: [learner.train(block, {0: version}) for block in blocks] and None

    ragged_s, equal_s = medians(passes, run(ragged), run(equal))
    return {"ragged_over_equal": (steps[0] / ragged_s) / (steps[1] / equal_s), "ragged_clients_per_s": 1024 / ragged_s}


def small_against_large_tables(passes: int) -> dict[str, float]:
    sides, block = [], block_of(np.full(64, 20))
    for rows in (10**3, 10**6):
        inputs = ModelInputs("binary", 1, (8,), (rows, 50))
        learner, version, _ = learner_of("compiled", Mlp((32,), 8), inputs)
        sides.append(lambda learner=learner, version=version: [learner.train(block, {0: version}) for _ in range(4)])
    small_s, large_s = medians(passes, *sides)
    return {
        "table_1e3_clients_per_s": 256 / small_s,
        "table_1e6_clients_per_s": 256 / large_s,
        "table_1e6_over_1e3": small_s / large_s,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=7, help="timed passes per side; medians are reported")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    passes = arguments.passes
    found = against_loop(passes, "compiled", "compiled", MLP, DENSE_INPUTS, (64, 256))
    found |= against_loop(passes, "lanes", "lanes", MLP, DENSE_INPUTS, WIDTHS)
    found |= ragged_against_equal(passes) | small_against_large_tables(passes)
    for name, (kernel, settings, inputs) in FIELD.items():
        found |= against_loop(passes, name, kernel, settings, inputs, (64,))
    found |= single_against_flat_loop(passes)
    best = max(found[f"lanes_{lanes}_over_loop"] for lanes in WIDTHS)
    goals = [
        ("compiled over loop, W 64", found["compiled_64_over_loop"], 40.0),
        ("lanes over loop, best W", best, 20.0),
        ("ragged over equal", found["ragged_over_equal"], 0.8),
        ("table 10⁶ over 10³", found["table_1e6_over_1e3"], 0.8),
        ("single over flat loop", found["single_over_flat_loop"], 0.95),
    ]
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:32} {value:12,.2f}")
        for name, value, goal in goals:
            print(f"{name:32} {value:12.2f}  target {goal}  {'met' if value >= goal else 'MISSED'}")
    return int(any(value < goal for _, value, goal in goals))


if __name__ == "__main__":
    sys.exit(main())
