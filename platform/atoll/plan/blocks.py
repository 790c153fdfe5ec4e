"""Cutting a window of server steps into blocks of lanes, without looking at when the run stops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from atoll.messages import Block
from atoll.plan.steps import Used

__all__ = ["Weigh", "cut_windows", "lookahead_steps"]

I64 = npt.NDArray[np.int64]

#: (staleness int64, num_examples int64) → (weight, example weight), float64, elementwise and pure.
Weigh = Callable[
    [npt.NDArray[np.int64], npt.NDArray[np.int64]], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
]


def lookahead_steps(lanes: int, tasks_per_step: int, *, is_async: bool) -> int:
    """How many consecutive server steps are cut together.

    One in synchronous mode, where a round's tasks all start on its own version. In asynchronous mode as many as hold
    one block of W tasks, which may share it across steps: longer windows send larger sums and wait more often for the
    versions inside them (measured on the quickstart, buffer goal 26, W = 64: windows of 1 to 3 steps cost the workers
    5 % of their time beside client work, of 10 steps 9 %).

    Args:
        lanes: W, > 0.
        tasks_per_step: buffer goal K, > 0.
        is_async: whether tasks of one step may start on several versions.

    Purity: pure.

    Example:
        >>> lookahead_steps(32, 20, is_async=True), lookahead_steps(32, 20, is_async=False)
        (2, 1)
    """
    if not is_async:
        return 1
    return max(1, -(-lanes // tasks_per_step))


def cut_windows(
    used: Used, first_step: int, num_windows: int, lookahead: int, lanes: int, first_block_id: int
) -> list[list[Block]]:
    """Blocks of up to `lanes` tasks that cover the used rows of consecutive windows, each task once; a list per window.

    Guarantees:
        A block's tasks are of one window, and in every block max(start_version) ≤ min(step): all its start versions
        exist before the first step that needs it. So blocks never wait for one another in a circle.
        Lanes are sorted by num_examples, longest first (ties: step, then task id), so that neighbours in a block do
        similar work and the learner can shrink the active prefix.

    Tasks whose start version is a whole window old are cut first: they can train while the window before is still
    open, which keeps every worker busy. Then come those that may start on the window's first version, then those that
    need a later one: few groups, since most tasks of an asynchronous run start on old versions.

    Args:
        used: tasks used by the windows' steps; at least one per window.
        first_step: of the first window.
        num_windows: how many windows.
        lookahead: server steps per window.
        lanes: W, > 0.
        first_block_id: id of the first block; the others follow.

    Purity: pure. A window's blocks do not depend on other windows, so plans are prefix-stable.
    """
    rows = used.rows
    step, version = rows["step"].astype(np.int64) - first_step, rows["start_version"].astype(np.int64) - first_step
    window = step // lookahead
    group = _groups(window, step, version, num_windows, lookahead)
    examples, task_id = rows["num_examples"].astype(np.int64), np.ascontiguousarray(rows["task_id"])
    run = window * (int(group.max()) + 1) + group
    order = _order(run, examples, step, task_id)
    run = run.take(order)
    lanes_in_order = Block(
        block_id=first_block_id,
        task_id=task_id.take(order),
        client_id=rows["client_id"].take(order),
        start_version=rows["start_version"].take(order),
        step=rows["step"].take(order),
        num_examples=examples.take(order),
        weight=used.weight.take(order),
        example_weight=used.example_weight.take(order),
    )
    windows = window.take(order)
    bounds = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    cut: list[list[Block]] = [[] for _ in range(num_windows)]
    block_id = first_block_id
    for begin, end in itertools.pairwise(bounds):
        blocks = cut[windows[begin]]
        for first in range(begin, end, lanes):
            own = slice(first, min(first + lanes, end))
            blocks.append(_part(lanes_in_order, block_id, own))
            block_id += 1
    return cut


def _part(block: Block, block_id: int, own: slice) -> Block:
    return Block(
        block_id, block.task_id[own], block.client_id[own], block.start_version[own], block.step[own],
        block.num_examples[own], block.weight[own], block.example_weight[own],
    )  # fmt: skip


def _groups(window: I64, step: I64, version: I64, num_windows: int, lookahead: int) -> I64:
    """The order in which a window's tasks are cut: 0 for start versions a window old, then as versions come to be."""
    group = np.zeros(len(window), dtype=np.int64)
    rest, number = np.flatnonzero(version > (window - 1) * lookahead), 0
    while rest.size:
        number += 1
        exists = np.full(num_windows, np.iinfo(np.int64).max)
        np.minimum.at(exists, window[rest], step[rest])
        group[rest] = number
        rest = rest[version[rest] > exists[window[rest]]]
    return group


def _order(run: I64, examples: I64, step: I64, task_id: I64) -> I64:
    """Indices that sort by run, then examples downwards, then step, then task id."""
    by_task = np.argsort(task_id)
    most = int(examples.max())
    keys = (run, most - examples, step, np.empty_like(by_task))
    keys[3][by_task] = np.arange(len(by_task))
    widths = [max(1, int(key.max()).bit_length()) for key in keys]
    if sum(widths) > 63:
        return np.lexsort((task_id, step, -examples, run))
    packed = np.zeros(len(run), dtype=np.int64)
    for key, width in zip(keys, widths, strict=True):
        packed = (packed << width) | key
    packed.sort()
    return by_task.take(packed & ((1 << widths[3]) - 1))
