"""The compiled part of the event loop: a winner tree over the slots, and what happens at one instant.

numba takes a third of a second to import, so `heap` imports this module when a timeline needs it. All that is compiled
together stands here, since numba's cache looks only at the file of the function it compiled.

Arrays are passed one by one: taken out of a record, each would be counted, and that costs more than the work.
table   [slots + 1, columns], the columns below: where every slot is and what its current task is
tree    [2 · leaves], time of the next event: tree[leaves + slot] is the slot's own, tree[1] the earliest
busy    clients in flight, open addressing, −1 is free; of one element where clients may be in flight twice
now     the counters below
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from atoll import kernel_cache
from atoll.population import Outcome

__all__ = [
    "ALWAYS_COLUMNS",
    "BUSY",
    "COLUMNS",
    "NEED",
    "Slots",
    "advance",
    "are_busy",
    "new_slots",
    "next_slot",
    "start_next",
]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
kernel_cache.use()
_njit: Any = numba.njit(cache=True, error_model="numpy", boundscheck=False)

#: why `advance` came back, 0 where the batch is full: the slot's next task is not drawn, or its clients are in flight
NEED, BUSY = 1, 2

#: of a drawn task: client; end, or duration where nobody comes or goes; outcome + num_examples << 8; and where clients
#: come and go when the task is asked for, and its start
ALWAYS_COLUMNS, COLUMNS = 3, 5

# Columns of the table.
# ORDINAL: of the slot's next task. READY: when that is asked for, as far as known: the end of the current one.
# VERSION: −1 while no task runs. BEFORE, AFTER: where staleness is limited, running slots form a list in the order of
# their starts; the row after the last slot is its head. FREED: queue, from the first row on, of the slots that select
# at this instant, ascending. WAITED: queue of the slots whose client checks in at this instant.
ORDINAL, READY, CLIENT, START, FINISH, OUTCOME, EXAMPLES, VERSION, _BEFORE, _AFTER, _FREED, _WAITED = range(12)
# Counters: the instant; arrivals; next and end of the queue FREED; end of WAITED; rows and steps in this batch. Then
# what does not change: arrivals per step, largest staleness or −1. Last, up to which time `_touch` has read ahead, and
# a sum that keeps its reads from being dropped by the compiler.
_NOW, _ARRIVED, _NEXT, _NUM_FREED, _NUM_WAITED, _ROWS, _STEPS, _GOAL, _LIMIT, _HORIZON, _SUM = range(11)

_FAR = 2**63 - 1  # the key of a slot without an event
_MANY = 4096  # from so many slots on their state is beyond the first caches
_AHEAD = 128  # most events to read ahead for; about 20 are, by this rank among the earliest events of 64 parts
_PARTS, _RANK = 64, 16
_USED, _STALE = int(Outcome.USED), int(Outcome.STALE)
_SHIFT = 32  # selection.SLOT_SHIFT


class Slots(NamedTuple):
    """The state of a loop; see the module's text."""

    table: I64
    tree: I64
    busy: I64
    now: I64


def new_slots(count: int, goal: int, limit: int, *, distinct: bool) -> Slots:
    """All slots at virtual time 0, each about to select its first task.

    Args:
        count: C.
        goal: arrivals per step.
        limit: largest staleness, −1 for none.
        distinct: whether no client may be in flight twice.
    """
    table = np.zeros((count + 1, 12), dtype=np.int64)
    table[:, _BEFORE] = table[:, _AFTER] = count
    table[:, VERSION] = -1
    table[:, _FREED] = np.arange(count + 1)
    now = np.zeros(11, dtype=np.int64)
    now[_NUM_FREED], now[_GOAL], now[_LIMIT] = count, goal, limit
    tree = np.full(2 << max(1, (count - 1).bit_length()), _FAR, dtype=np.int64)
    # odd, and four times as long as it can be full
    return Slots(table, tree, np.full(4 * count + 1 if distinct else 1, -1, dtype=np.int64), now)


def next_slot(slots: Slots) -> tuple[int, int]:
    """(slot that is next to select, virtual time)."""
    return int(slots.table[slots.now[_NEXT], _FREED]), int(slots.now[_NOW])


def take_counts(slots: Slots) -> tuple[int, int]:
    """(rows, steps) written to the batch; the next one starts from zero."""
    counts = int(slots.now[_ROWS]), int(slots.now[_STEPS])
    slots.now[_ROWS] = slots.now[_STEPS] = 0
    return counts


@_njit
def _set(tree, slot, time):
    node = (len(tree) >> 1) + slot
    tree[node] = time
    while node > 1:
        other = tree[node ^ 1]
        node >>= 1
        time = min(time, other)
        tree[node] = time


@_njit
def _first(tree):
    """The lowest slot among those with the earliest event."""
    node, leaves, time = 1, len(tree) >> 1, tree[1]
    while node < leaves:
        node *= 2
        if tree[node] != time:
            node += 1
    return node - leaves


@_njit
def _find(busy, client):
    """Place of the client, or the free place where it belongs."""
    place = client % len(busy)
    while busy[place] >= 0 and busy[place] != client:
        place += 1
        if place == len(busy):
            place = 0
    return place


@_njit
def _forget(busy, client):
    size, hole = len(busy), _find(busy, client)
    place = hole
    while busy[hole] >= 0:
        busy[hole] = -1
        while True:  # the next entry that a search would not find beyond the hole
            place += 1
            if place == size:
                place = 0
            if busy[place] < 0:
                return
            if (place - busy[place] % size) % size >= (place - hole) % size:
                break
        busy[hole] = busy[place]
        hole = place


@_njit
def _begin(table, tree, now, slot):
    table[slot, VERSION] = now[_ARRIVED] // now[_GOAL]
    if now[_LIMIT] >= 0:
        head = len(table) - 1
        last = table[head, _BEFORE]
        table[slot, _BEFORE], table[slot, _AFTER] = last, head
        table[last, _AFTER], table[head, _BEFORE] = slot, slot
    _set(tree, slot, table[slot, FINISH])


@_njit
def _emit(table, busy, now, slot, step, outcome, wide, narrow):
    """Writes the row of the slot's task, which ends now; the slot is free then. Layout of records.ROW."""
    row = now[_ROWS]
    now[_ROWS] = row + 1
    wide[row, 0] = (slot << _SHIFT) + table[slot, ORDINAL] - 1
    wide[row, 1] = table[slot, CLIENT]
    wide[row, 2] = table[slot, START]
    wide[row, 3] = now[_NOW]
    narrow[row, 8] = table[slot, VERSION]
    narrow[row, 9] = step
    narrow[row, 10] = table[slot, EXAMPLES]
    narrow[row, 11] = outcome
    table[slot, VERSION] = -1
    table[slot, READY] = now[_NOW]
    if now[_LIMIT] >= 0:
        before, after = table[slot, _BEFORE], table[slot, _AFTER]
        table[before, _AFTER], table[after, _BEFORE] = after, before
    if len(busy) > 1:
        _forget(busy, table[slot, CLIENT])
    table[now[_NUM_FREED], _FREED] = slot
    now[_NUM_FREED] += 1


@_njit
def _arrivals(table, tree, busy, now, wide, narrow, ends, closed):
    """Everything that ends now, by slot; each `goal`-th arrival closes a step."""
    time, goal, limit = now[_NOW], now[_GOAL], now[_LIMIT]
    while tree[1] == time:
        slot = _first(tree)
        _set(tree, slot, _FAR)
        if table[slot, VERSION] < 0:
            table[now[_NUM_WAITED], _WAITED] = slot
            now[_NUM_WAITED] += 1
            continue
        if table[slot, OUTCOME] != _USED:
            _emit(table, busy, now, slot, -1, table[slot, OUTCOME], wide, narrow)
            continue
        version = now[_ARRIVED] // goal
        if limit >= 0 and version - table[slot, VERSION] > limit:
            continue  # a step of this very instant made it too stale: `_aborts` finds it
        _emit(table, busy, now, slot, version, _USED, wide, narrow)
        now[_ARRIVED] += 1
        if now[_ARRIVED] % goal == 0:
            ends[now[_STEPS]] = now[_ROWS]
            closed[now[_STEPS]] = time
            now[_STEPS] += 1


@_njit
def _aborts(table, tree, busy, now, wide, narrow):
    """What the steps of this instant made too stale, by slot."""
    head, begin = len(table) - 1, now[_NUM_FREED]
    oldest = now[_ARRIVED] // now[_GOAL] - now[_LIMIT]
    slot, count = table[head, _AFTER], 0
    while slot != head and table[slot, VERSION] < oldest:
        table[begin + count, _FREED] = slot
        count += 1
        slot = table[slot, _AFTER]
    if not count:
        return
    stale = np.sort(table[begin : begin + count, _FREED])
    for i in range(count):
        _set(tree, stale[i], _FAR)
        _emit(table, busy, now, stale[i], -1, _STALE, wide, narrow)
    freed = np.sort(table[: now[_NUM_FREED], _FREED])
    table[: now[_NUM_FREED], _FREED] = freed


@_njit
def _start(table, tree, busy, now, slot, client, start, finish, outcome, examples):
    if len(busy) > 1:
        busy[_find(busy, client)] = client
    table[slot, CLIENT] = client
    table[slot, START] = start
    table[slot, FINISH] = finish
    table[slot, OUTCOME] = outcome
    table[slot, EXAMPLES] = examples
    table[slot, ORDINAL] += 1
    table[slot, READY] = finish
    if start == now[_NOW]:
        _begin(table, tree, now, slot)
    else:
        _set(tree, slot, start)


@_njit
def _select(table, tree, busy, now, first, drawn, always, slot):
    """Starts the slot's next task, or says why it cannot."""
    time, place = now[_NOW], table[slot, ORDINAL] - first[slot]
    if place >= drawn.shape[1] or not (always or drawn[slot, place, 0, 3] == time):
        return NEED
    for attempt in range(drawn.shape[2]):
        client = drawn[slot, place, attempt, 0]
        if len(busy) > 1 and busy[_find(busy, client)] == client:
            continue
        start, finish, both = time, drawn[slot, place, attempt, 1], drawn[slot, place, attempt, 2]
        if always:
            finish += time
        else:
            start = drawn[slot, place, attempt, 4]
        outcome, examples = both & 255, both >> 8
        _start(table, tree, busy, now, slot, client, start, finish, outcome, examples)
        return 0
    return BUSY


@_njit
def _touch(table, tree, busy, now, first, drawn):
    """Reads what the next events will need: together, since one event after another waits for memory several times.

    Changes nothing but how fast it goes.
    """
    horizon, leaves = np.sort(tree[_PARTS : 2 * _PARTS])[_RANK], len(tree) >> 1
    nodes, below, count = np.empty(_AHEAD, dtype=np.int64), np.empty(_AHEAD, dtype=np.int64), 0
    for node in range(_PARTS, 2 * _PARTS):
        nodes[count] = node
        count += tree[node] <= horizon
    while count and nodes[0] < leaves:
        found = 0
        for i in range(min(count, _AHEAD // 2 - 1)):
            node = 2 * nodes[i]
            below[found] = node
            found += tree[node] <= horizon
            below[found] = node + 1
            found += tree[node + 1] <= horizon
        nodes, below, count = below, nodes, found
    total = 0
    for i in range(count):
        slot = nodes[i] - leaves
        total += first[slot] ^ table[slot, ORDINAL] ^ table[slot, _AFTER]
    for i in range(count):
        slot = nodes[i] - leaves
        place = min(table[slot, ORDINAL] - first[slot], drawn.shape[1] - 1)
        total += drawn[slot, place, 0, 0] ^ drawn[slot, place, 0, 2] ^ busy[table[slot, CLIENT] % len(busy)]
        total += table[table[slot, _BEFORE], _AFTER] ^ table[table[slot, _AFTER], _BEFORE]
    for i in range(count):
        slot = nodes[i] - leaves
        place = min(table[slot, ORDINAL] - first[slot], drawn.shape[1] - 1)
        total += busy[max(0, drawn[slot, place, 0, 0]) % len(busy)]
    now[_HORIZON], now[_SUM] = horizon, total


@_njit
def advance(
    table, tree, busy, now, first, drawn, always, wanted, wide, narrow, ends, closed
):  # fmt: skip
    """Instant after instant, until `wanted` rows are there: then 0; or until a slot cannot select: NEED or BUSY.

    To go on, draw what is missing, or start it with `start_next`, and call again.

    Args:
        table, tree, busy, now: the state (`Slots`), changed.
        first: [slots], ordinal of the task that stands at place 0 of `drawn`.
        drawn: [slots, places, attempts, columns], the coming tasks of each slot. Attempts are tried in order until a
            client is free. Where clients come and go a task holds only if it is asked for then.
        always: whether nobody ever comes or goes.
        wanted: rows of the batch; an instant is never cut, so it may have as many more as there are slots.
        wide: the batch's rows seen as int64 [rows, 6].
        narrow: the same rows seen as int32 [rows, 12].
        ends: rows at which each step closes.
        closed: when it does.
    """
    while True:
        while now[_NEXT] < now[_NUM_FREED]:
            why = _select(table, tree, busy, now, first, drawn, always, table[now[_NEXT], _FREED])
            if why:
                return why
            now[_NEXT] += 1
        for i in range(now[_NUM_WAITED]):
            _begin(table, tree, now, table[i, _WAITED])
        now[_NEXT] = now[_NUM_FREED] = now[_NUM_WAITED] = 0
        if now[_ROWS] >= wanted:
            return 0
        now[_NOW] = tree[1]
        if len(table) > _MANY and tree[1] > now[_HORIZON]:
            _touch(table, tree, busy, now, first, drawn)
        _arrivals(table, tree, busy, now, wide, narrow, ends, closed)
        if now[_LIMIT] >= 0:
            _aborts(table, tree, busy, now, wide, narrow)


@_njit
def start_next(table, tree, busy, now, client, start, finish, outcome, examples):
    """Starts the task of the slot that is next to select."""
    _start(table, tree, busy, now, table[now[_NEXT], _FREED], client, start, finish, outcome, examples)
    now[_NEXT] += 1


@_njit
def are_busy(busy, clients):
    """Which of the clients [n] are in flight."""
    found = np.zeros(len(clients), dtype=np.bool_)
    for i in range(len(clients)):
        found[i] = len(busy) > 1 and busy[_find(busy, clients[i])] == clients[i]
    return found
