"""Cutting a window of server steps into blocks of lanes, without looking at when the run stops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from atoll.messages import Block

__all__ = ["Weigh", "cut_blocks", "lookahead_steps"]

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


def cut_blocks(
    rows: npt.NDArray[np.void], lanes: int, lookahead: int, weigh: Weigh, first_block_id: int
) -> list[Block]:
    """Blocks of up to `lanes` tasks that cover `rows`, each task once.

    Guarantees:
        In every block max(start_version) ≤ min(step): all its start versions exist before the first step that needs
        it. So blocks never wait for one another in a circle.
        Lanes are sorted by num_examples, longest first (ties: step, then task id), so that neighbours in a block do
        similar work and the learner can shrink the active prefix.

    Tasks whose start version is a whole window old are cut first: they can train while the window before is still
    open, which keeps every worker busy. Then come those that may start on the window's first version, then those that
    need a later one: few groups, since most tasks of an asynchronous run start on old versions.

    Args:
        rows: structured array (timeline.ROW) of the tasks used by the window's steps, any order.
        lanes: W, > 0.
        lookahead: server steps per window.
        weigh: gives each task's weight and example weight.
        first_block_id: id of the first block; the others follow.

    Purity: pure; independent of everything after the window, so plans are prefix-stable.
    """
    first_step = int(rows["step"].min())
    is_early = rows["start_version"] <= first_step - lookahead
    groups, rest = [rows[is_early]], rows[~is_early]
    while rest.size:
        is_free = rest["start_version"] <= rest["step"].min()
        groups.append(rest[is_free])
        rest = rest[~is_free]
    blocks: list[Block] = []
    for group in groups:
        ordered = group[np.lexsort((group["task_id"], group["step"], -group["num_examples"].astype(np.int64)))]
        for begin in range(0, group.size, lanes):
            blocks.append(_block(first_block_id + len(blocks), ordered[begin : begin + lanes], weigh))
    return blocks


def _block(block_id: int, rows: npt.NDArray[np.void], weigh: Weigh) -> Block:
    staleness = rows["step"].astype(np.int64) - rows["start_version"]
    num_examples = rows["num_examples"].astype(np.int64)
    weight, example_weight = weigh(staleness, num_examples)
    return Block(
        block_id=block_id,
        task_id=np.ascontiguousarray(rows["task_id"]),
        client_id=np.ascontiguousarray(rows["client_id"]),
        start_version=np.ascontiguousarray(rows["start_version"]),
        step=np.ascontiguousarray(rows["step"]),
        num_examples=num_examples,
        weight=weight,
        example_weight=example_weight,
    )
