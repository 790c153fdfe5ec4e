"""Compiled client work: one client after another, its weights in the nearest cache, no Python and no allocation each.

What a program's numbers mean is said in `programs.py`. Nothing here mixes lanes: a lane's result is a function of that
lane alone, whatever else is in the call.

The compiler may reorder sums and fuse multiplications (`_FAST`), but not assume that values are finite: diverged lanes
must be noticed. Its disk cache notices changes of this file only, so all that is compiled together stands here.

Shape legend: L lanes, N most examples of a lane, F numbers of "x", G categorical columns, R table rows of all lanes,
D width of a row, P dense parameters, V start versions, S server steps, B local batch, I inputs and O outputs of layers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from atoll import kernel_cache

__all__ = ["CHAIN", "DLRM", "Examples", "Found", "Lanes", "Local", "Wiring", "add_units", "square_norm", "train_lanes"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_FAST = {"reassoc", "contract", "nsz", "arcp"}
kernel_cache.use()
_njit: Any = numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy", boundscheck=False)
#: without permission to reorder
_exact: Any = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)

CHAIN, DLRM = 0, 1
#: columns of a program's layer table
_INPUTS, _OUTPUTS, _WEIGHT, _BIAS, _IS_TURNED, _IN, _OUT, _HAS_RELU = range(8)
#: `partials.LOSS_BOUND`; written here too, since numba's cache would not notice a change there
_LOSS_BOUND = 1e6


class Wiring(NamedTuple):
    """A model; what the numbers mean is said in `programs.py`."""

    shape: I64
    layers: I64
    wide_columns: I64
    width: int


class Examples(NamedTuple):
    """x float32 [L, N, F], y int64 [L, N], rows int64 [L, N, G]: places among the R rows."""

    x: F32
    y: I64
    rows: I64


class Lanes(NamedTuple):
    """Per lane: task, number of examples, which start version, which sum: int64 [L]; rate float32 [L]; scale.

    row_offsets int64 [L + 1]: lane l has the rows row_offsets[l] … row_offsets[l + 1] − 1. scale float64 [L]: its
    weight in units of the grid.
    """

    task_id: I64
    num_examples: I64
    version: I64
    slot: I64
    row_offsets: I64
    rate: F32
    scale: F64


class Local(NamedTuple):
    """Local SGD; stream keys the example order; is_short_scaled: short batches have smaller rates; bound: of norms."""

    stream: np.uint64
    epochs: int
    batch_size: int
    is_short_scaled: bool
    momentum: float
    decay: float
    mu: float
    bound: float


class Found(NamedTuple):
    """What comes out: sums int64 [S, P] are added to; loss, norm float64 [L], steps int64 [L], is_healthy bool [L]."""

    sums: I64
    loss: F64
    norm: F64
    steps: I64
    is_healthy: npt.NDArray[np.bool_]


class _Scratch(NamedTuple):
    """Memory of the client at work: its weights, and everything of one batch."""

    params: F32
    gradient: F32
    velocity: F32
    arena: F32
    backs: F32
    vectors: F32
    vector_backs: F32
    labels: I64
    picked: I64
    keys: npt.NDArray[np.uint64]
    order: I64
    spare: I64


# ---- products of small matrices -----------------------------------------------------------------------------------


@_njit
def _times(a, w, out):
    """out [B, O] += a [B, I] @ w [I, O], four examples by four rows of w at a time, vectorised over O."""
    batch, (inputs, outputs) = a.shape[0], w.shape
    n = 0
    while n + 4 <= batch:
        i = 0
        while i + 4 <= inputs:
            a0, a1, a2, a3 = a[n, i], a[n, i + 1], a[n, i + 2], a[n, i + 3]
            b0, b1, b2, b3 = a[n + 1, i], a[n + 1, i + 1], a[n + 1, i + 2], a[n + 1, i + 3]
            c0, c1, c2, c3 = a[n + 2, i], a[n + 2, i + 1], a[n + 2, i + 2], a[n + 2, i + 3]
            d0, d1, d2, d3 = a[n + 3, i], a[n + 3, i + 1], a[n + 3, i + 2], a[n + 3, i + 3]
            for o in range(outputs):
                w0, w1, w2, w3 = w[i, o], w[i + 1, o], w[i + 2, o], w[i + 3, o]
                out[n, o] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                out[n + 1, o] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                out[n + 2, o] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
                out[n + 3, o] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
            i += 4
        while i < inputs:
            a0, b0, c0, d0 = a[n, i], a[n + 1, i], a[n + 2, i], a[n + 3, i]
            for o in range(outputs):
                w0 = w[i, o]
                out[n, o] += a0 * w0
                out[n + 1, o] += b0 * w0
                out[n + 2, o] += c0 * w0
                out[n + 3, o] += d0 * w0
            i += 1
        n += 4
    while n < batch:
        i = 0
        while i + 4 <= inputs:
            a0, a1, a2, a3 = a[n, i], a[n, i + 1], a[n, i + 2], a[n, i + 3]
            for o in range(outputs):
                out[n, o] += a0 * w[i, o] + a1 * w[i + 1, o] + a2 * w[i + 2, o] + a3 * w[i + 3, o]
            i += 4
        while i < inputs:
            a0 = a[n, i]
            for o in range(outputs):
                out[n, o] += a0 * w[i, o]
            i += 1
        n += 1


@_njit
def _times_turned(a, w, out):
    """out [B, O] += a [B, I] @ w [O, I] transposed, four rows of w at a time, vectorised over I."""
    outputs, inputs = w.shape
    for n in range(a.shape[0]):
        o = 0
        while o + 4 <= outputs:
            s0 = s1 = s2 = s3 = np.float32(0)
            for i in range(inputs):
                value = a[n, i]
                s0 += value * w[o, i]
                s1 += value * w[o + 1, i]
                s2 += value * w[o + 2, i]
                s3 += value * w[o + 3, i]
            out[n, o] += s0
            out[n, o + 1] += s1
            out[n, o + 2] += s2
            out[n, o + 3] += s3
            o += 4
        while o < outputs:
            s0 = np.float32(0)
            for i in range(inputs):
                s0 += a[n, i] * w[o, i]
            out[n, o] += s0
            o += 1


@_njit
def _add_outer(a, g, alpha, target):
    """target [I, O] += alpha · a [B, I] transposed @ g [B, O], eight examples at a time, vectorised over O."""
    batch, outputs = g.shape
    n = 0
    while n + 8 <= batch:
        for i in range(target.shape[0]):
            a0, a1, a2, a3 = alpha * a[n, i], alpha * a[n + 1, i], alpha * a[n + 2, i], alpha * a[n + 3, i]
            a4, a5, a6, a7 = alpha * a[n + 4, i], alpha * a[n + 5, i], alpha * a[n + 6, i], alpha * a[n + 7, i]
            for o in range(outputs):
                target[i, o] += (
                    a0 * g[n, o] + a1 * g[n + 1, o] + a2 * g[n + 2, o] + a3 * g[n + 3, o]
                    + a4 * g[n + 4, o] + a5 * g[n + 5, o] + a6 * g[n + 6, o] + a7 * g[n + 7, o]
                )  # fmt: skip
        n += 8
    while n + 2 <= batch:
        for i in range(target.shape[0]):
            a0, a1 = alpha * a[n, i], alpha * a[n + 1, i]
            for o in range(outputs):
                target[i, o] += a0 * g[n, o] + a1 * g[n + 1, o]
        n += 2
    if n < batch:
        for i in range(target.shape[0]):
            a0 = alpha * a[n, i]
            for o in range(outputs):
                target[i, o] += a0 * g[n, o]


# ---- layers -------------------------------------------------------------------------------------------------------


@_njit
def _forward(layer, params, arena, most, batch):
    """One linear layer of the arena's activations, with ReLU where it has one."""
    inputs, outputs = layer[_INPUTS], layer[_OUTPUTS]
    a = arena[layer[_IN] * most : layer[_IN] * most + batch * inputs].reshape((batch, inputs))
    out = arena[layer[_OUT] * most : layer[_OUT] * most + batch * outputs].reshape((batch, outputs))
    weight = params[layer[_WEIGHT] : layer[_WEIGHT] + inputs * outputs]
    if layer[_BIAS] >= 0:
        bias = params[layer[_BIAS] : layer[_BIAS] + outputs]
        for n in range(batch):
            for o in range(outputs):
                out[n, o] = bias[o]
    else:
        out[:, :] = np.float32(0)
    if layer[_IS_TURNED]:
        _times(a, weight.reshape((inputs, outputs)), out)
    else:
        _times_turned(a, weight.reshape((outputs, inputs)), out)
    if layer[_HAS_RELU]:
        for n in range(batch):
            for o in range(outputs):
                # NaN stays NaN: a diverged lane must show
                if out[n, o] < np.float32(0):
                    out[n, o] = np.float32(0)


@_njit
def _backward(layer, params, arena, backs, most, batch, to_input, alpha, target):
    """target += alpha · gradient of this layer; with `to_input` also the gradient by its input."""
    inputs, outputs = layer[_INPUTS], layer[_OUTPUTS]
    a = arena[layer[_IN] * most : layer[_IN] * most + batch * inputs].reshape((batch, inputs))
    out = arena[layer[_OUT] * most : layer[_OUT] * most + batch * outputs].reshape((batch, outputs))
    g = backs[layer[_OUT] * most : layer[_OUT] * most + batch * outputs].reshape((batch, outputs))
    if layer[_HAS_RELU]:
        for n in range(batch):
            for o in range(outputs):
                if out[n, o] <= np.float32(0):
                    g[n, o] = np.float32(0)
    begin, end = layer[_WEIGHT], layer[_WEIGHT] + inputs * outputs
    if to_input:
        back = backs[layer[_IN] * most : layer[_IN] * most + batch * inputs].reshape((batch, inputs))
        back[:, :] = np.float32(0)
        # before the weights move: with plain SGD `target` is `params`
        if layer[_IS_TURNED]:
            _times_turned(g, params[begin:end].reshape((inputs, outputs)), back)
        else:
            _times(g, params[begin:end].reshape((outputs, inputs)), back)
    if layer[_IS_TURNED]:
        _add_outer(a, g, alpha, target[begin:end].reshape((inputs, outputs)))
    else:
        _add_outer(g, a, alpha, target[begin:end].reshape((outputs, inputs)))
    if layer[_BIAS] >= 0:
        bias = target[layer[_BIAS] : layer[_BIAS] + outputs]
        for n in range(batch):
            for o in range(outputs):
                bias[o] += alpha * g[n, o]


@_njit
def _losses(logits, labels, back, is_binary):
    """Mean cross-entropy of a batch; `back` [B, O] becomes its gradient by the logits [B, O]."""
    batch, outputs = logits.shape
    share = np.float32(1.0 / batch)
    total = 0.0
    for n in range(batch):
        if is_binary:
            score, label = float(logits[n, 0]), float(labels[n])
            small = math.exp(-abs(score))
            chance = 1.0 / (1.0 + small) if score >= 0 else small / (1.0 + small)
            total += max(score, 0.0) - score * label + math.log1p(small) if score == score else math.nan
            back[n, 0] = share * np.float32(chance - label)
        else:
            highest = logits[n, 0]
            for o in range(1, outputs):
                highest = max(highest, logits[n, o])
            norm = np.float32(0)
            for o in range(outputs):
                back[n, o] = _exp(logits[n, o] - highest)
            for o in range(outputs):
                norm += back[n, o]
            total += math.log(float(norm)) - float(logits[n, labels[n]] - highest)
            factor = share / norm
            for o in range(outputs):
                back[n, o] *= factor
            back[n, labels[n]] -= share
    return total / batch


@_exact
def _exp(x):
    """exp for float32 x ≤ 0, within 2 units in the last place; NaN stays. Vectorises, unlike the C library's.

    Cody and Waite's reduction by log 2 in two parts, then a polynomial of degree 6.
    """
    x = max(x, np.float32(-87.0)) if x == x else x
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = (x - whole * np.float32(0.693359375)) - whole * np.float32(-2.12194440e-4)
    value = np.float32(1.0 / 720)
    value = value * rest + np.float32(1.0 / 120)
    value = value * rest + np.float32(1.0 / 24)
    value = value * rest + np.float32(1.0 / 6)
    value = value * rest + np.float32(0.5)
    value = value * rest + np.float32(1.0)
    value = value * rest + np.float32(1.0)
    return value * np.float32(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32))


# ---- models: a batch's loss and gradients -------------------------------------------------------------------------


@_njit
def _chain_batch(wiring, scratch, rows, labels, alpha, target, row_target):
    """One batch of logistic, mlp or wide_deep: moves `target` and `row_target` by alpha · gradient; returns the loss.

    The arena holds "x" at 0 and, where there are embeddings, "x" and them at the first layer's input.
    """
    shape, layers, wide_columns = wiring.shape, wiring.layers, wiring.wide_columns
    params, arena, backs, index = scratch.params, scratch.arena, scratch.backs, scratch.picked
    features, columns, dim, outputs, has_wide = shape[1], shape[2], shape[3], shape[4], shape[5]
    batch, first, most = len(labels), layers[has_wide], len(index)
    if columns and dim:
        width = first[_INPUTS]
        joined = arena[first[_IN] * most : first[_IN] * most + batch * width].reshape((batch, width))
        x = arena[: batch * features].reshape((batch, features))
        for n in range(batch):
            for f in range(features):
                joined[n, f] = x[n, f]
            for g in range(columns):
                row = index[n, g]
                for d in range(dim):
                    joined[n, features + g * dim + d] = rows[row, d]
    for number in range(has_wide, len(layers)):
        _forward(layers[number], params, arena, most, batch)
    last = layers[len(layers) - 1]
    logits = arena[last[_OUT] * most : last[_OUT] * most + batch * outputs].reshape((batch, outputs))
    if has_wide:
        _forward(layers[0], params, arena, most, batch)
        wide = arena[layers[0][_OUT] * most : layers[0][_OUT] * most + batch * outputs].reshape((batch, outputs))
        for n in range(batch):
            for o in range(outputs):
                logits[n, o] += wide[n, o]
    for g in wide_columns:
        for n in range(batch):
            for o in range(outputs):
                logits[n, o] += rows[index[n, g], dim + o]
    back = backs[last[_OUT] * most : last[_OUT] * most + batch * outputs].reshape((batch, outputs))
    loss = _losses(logits, labels, back, shape[6])
    for g in wide_columns:
        for n in range(batch):
            for o in range(outputs):
                row_target[index[n, g], dim + o] += alpha * back[n, o]
    if has_wide:
        begin = layers[0][_OUT] * most
        for place in range(batch * outputs):
            backs[begin + place] = backs[last[_OUT] * most + place]
        _backward(layers[0], params, arena, backs, most, batch, False, alpha, target)
    for number in range(len(layers) - 1, has_wide - 1, -1):
        to_input = number > has_wide or (columns > 0 and dim > 0)
        _backward(layers[number], params, arena, backs, most, batch, to_input, alpha, target)
    if columns and dim:
        width = first[_INPUTS]
        joined = backs[first[_IN] * most : first[_IN] * most + batch * width].reshape((batch, width))
        for n in range(batch):
            for g in range(columns):
                row = index[n, g]
                for d in range(dim):
                    row_target[row, d] += alpha * joined[n, features + g * dim + d]
    return loss


@_njit
def _dlrm_batch(wiring, scratch, rows, labels, alpha, target, row_target):
    """As `_chain_batch`, for dlrm. `vectors` [B, 1 + G, D]: the bottom layers' output, then the categories' rows."""
    shape, layers = wiring.shape, wiring.layers
    params, arena, backs, index = scratch.params, scratch.arena, scratch.backs, scratch.picked
    vectors, vector_backs, most = scratch.vectors, scratch.vector_backs, len(scratch.picked)
    columns, dim, outputs, bottom = shape[2], shape[3], shape[4], shape[5]
    batch, first, low = len(labels), layers[bottom], layers[bottom - 1]
    for number in range(bottom):
        _forward(layers[number], params, arena, most, batch)
    width = first[_INPUTS]
    dense = arena[low[_OUT] * most : low[_OUT] * most + batch * dim].reshape((batch, dim))
    joined = arena[first[_IN] * most : first[_IN] * most + batch * width].reshape((batch, width))
    for n in range(batch):
        for d in range(dim):
            vectors[n, 0, d] = joined[n, d] = dense[n, d]
        for g in range(columns):
            row = index[n, g]
            for d in range(dim):
                vectors[n, g + 1, d] = rows[row, d]
        pair = dim
        for one in range(1, columns + 1):
            for other in range(one):
                total = np.float32(0)
                for d in range(dim):
                    total += vectors[n, one, d] * vectors[n, other, d]
                joined[n, pair] = total
                pair += 1
    for number in range(bottom, len(layers)):
        _forward(layers[number], params, arena, most, batch)
    last = layers[len(layers) - 1]
    logits = arena[last[_OUT] * most : last[_OUT] * most + batch * outputs].reshape((batch, outputs))
    back = backs[last[_OUT] * most : last[_OUT] * most + batch * outputs].reshape((batch, outputs))
    loss = _losses(logits, labels, back, shape[6])
    for number in range(len(layers) - 1, bottom - 1, -1):
        _backward(layers[number], params, arena, backs, most, batch, True, alpha, target)
    joined_back = backs[first[_IN] * most : first[_IN] * most + batch * width].reshape((batch, width))
    dense_back = backs[low[_OUT] * most : low[_OUT] * most + batch * dim].reshape((batch, dim))
    for n in range(batch):
        vector_backs[n, :, :] = np.float32(0)
        for d in range(dim):
            vector_backs[n, 0, d] = joined_back[n, d]
        pair = dim
        for one in range(1, columns + 1):
            for other in range(one):
                factor = joined_back[n, pair]
                for d in range(dim):
                    vector_backs[n, one, d] += factor * vectors[n, other, d]
                    vector_backs[n, other, d] += factor * vectors[n, one, d]
                pair += 1
        for d in range(dim):
            dense_back[n, d] = vector_backs[n, 0, d]
        for g in range(columns):
            row = index[n, g]
            for d in range(dim):
                row_target[row, d] += alpha * vector_backs[n, g + 1, d]
    for number in range(bottom - 1, -1, -1):
        _backward(layers[number], params, arena, backs, most, batch, number > 0, alpha, target)
    return loss


# ---- a block ------------------------------------------------------------------------------------------------------


@_exact
def _bits(state, word):
    """One word more of `rng.bits`."""
    x = state + (np.uint64(word) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_exact
def _shuffle(stream, task, epoch, count, keys, order, spare):
    """order[:count] as `work.example_order` gives it: positions by key, ties by position; a merge sort."""
    state = _bits(_bits(stream, task), epoch)
    for position in range(count):
        keys[position] = _bits(state, position) >> np.uint64(1)
    run = 16
    for low in range(0, count, run):
        for place in range(low, min(low + run, count)):
            here = place
            while here > low and keys[order[here - 1]] > keys[place]:
                order[here] = order[here - 1]
                here -= 1
            order[here] = place
    while run < count:
        for low in range(0, count, 2 * run):
            middle, high = min(low + run, count), min(low + 2 * run, count)
            left, right = low, middle
            for place in range(low, high):
                if left < middle and (right >= high or keys[order[left]] <= keys[order[right]]):
                    spare[place] = order[left]
                    left += 1
                else:
                    spare[place] = order[right]
                    right += 1
        for place in range(count):
            order[place] = spare[place]
        run *= 2


@_njit
def _descend(values, gradient, velocity, start, lr, local):
    """SGD with momentum, weight decay and the proximal pull, elementwise over flat arrays; empties the gradient."""
    momentum, decay, mu = np.float32(local.momentum), np.float32(local.decay), np.float32(local.mu)
    for p in range(len(values)):
        g = gradient[p] + decay * values[p] + mu * (values[p] - start[p])
        if momentum != np.float32(0):
            g += momentum * velocity[p]
            velocity[p] = g
        values[p] -= lr * g
        gradient[p] = np.float32(0)


@_njit
def square_norm(start, values):
    """Σ (start − values)² over flat arrays, in float64."""
    total = 0.0
    for p in range(len(values)):
        change = float(start[p] - values[p])
        total += change * change
    return total


@_exact
def add_units(start, values, scale, total):
    """total += scale · (start − values), each coordinate rounded once to a whole number."""
    for p in range(len(values)):
        total[p] += np.int64(np.floor(scale * float(start[p] - values[p]) + 0.5))


@_njit
def _scratch(wiring, local, most_examples, size):
    most = min(local.batch_size, most_examples)
    params = np.empty(size, dtype=np.float32)
    arena = np.zeros(wiring.width * most, dtype=np.float32)
    vectors = np.zeros((most, 1 + wiring.shape[2], wiring.shape[3]), dtype=np.float32)
    order = np.empty(most_examples, dtype=np.int64)
    return _Scratch(
        params, np.zeros_like(params), np.zeros_like(params), arena, np.zeros_like(arena), vectors,
        np.zeros_like(vectors), np.empty(most, dtype=np.int64), np.zeros((most, wiring.shape[2]), dtype=np.int64),
        np.empty(most_examples, dtype=np.uint64), order, np.zeros_like(order),
    )  # fmt: skip


@_njit
def _pick(examples, lane, chosen, first_row, scratch):
    """Copies the examples of a batch into the arena, their labels and their rows."""
    features = examples.x.shape[2]
    for n in range(len(chosen)):
        example = chosen[n]
        scratch.labels[n] = examples.y[lane, example]
        for f in range(features):
            scratch.arena[n * features + f] = examples.x[lane, example, f]
        for g in range(examples.rows.shape[2]):
            scratch.picked[n, g] = examples.rows[lane, example, g] - first_row


@_njit
def _client(wiring, scratch, examples, lane, lanes, local, first, rows_start, rows):
    """Local SGD of one lane: leaves its weights in scratch.params and rows; returns (sum of losses, steps)."""
    params, total, done = scratch.params, 0.0, 0
    params[:] = first
    flat, first_row = rows.size, lanes.row_offsets[lane]
    is_plain = local.momentum == 0.0 and local.decay == 0.0 and local.mu == 0.0
    row_gradient = rows if is_plain else np.zeros_like(rows)
    row_velocity = rows if is_plain else np.zeros_like(rows)
    if not is_plain:
        scratch.gradient[:] = np.float32(0)
        scratch.velocity[:] = np.float32(0)
    target = params if is_plain else scratch.gradient
    count, rate = lanes.num_examples[lane], lanes.rate[lane]
    for epoch in range(local.epochs):
        _shuffle(local.stream, lanes.task_id[lane], epoch, count, scratch.keys, scratch.order, scratch.spare)
        for begin in range(0, count, local.batch_size):
            batch = min(local.batch_size, count - begin)
            _pick(examples, lane, scratch.order[begin : begin + batch], first_row, scratch)
            lr = rate * np.float32(batch / local.batch_size) if local.is_short_scaled else rate
            alpha = -lr if is_plain else np.float32(1)
            labels = scratch.labels[:batch]
            if wiring.shape[0] == CHAIN:
                total += _chain_batch(wiring, scratch, rows, labels, alpha, target, row_gradient)
            else:
                total += _dlrm_batch(wiring, scratch, rows, labels, alpha, target, row_gradient)
            done += 1
            if not is_plain:
                _descend(params, scratch.gradient, scratch.velocity, first, lr, local)
                _descend(
                    rows.reshape(flat), row_gradient.reshape(flat), row_velocity.reshape(flat),
                    rows_start.reshape(flat), lr, local,
                )  # fmt: skip
    return total, done


@_njit
def train_lanes(wiring, examples, lanes, local, start, rows_start, rows, found):
    """Trains L lanes one after another and adds their deltas to the sums.

    Args:
        wiring: a Wiring, the model.
        examples: an Examples.
        lanes: a Lanes.
        local: a Local.
        start: float32 [V, P], start versions in the wiring's layout.
        rows_start: float32 [R, D], table rows in their lanes' start versions.
        rows: the same values, to be trained, and replaced by start − local.
        found: a Found, written to.
    """
    scratch = _scratch(wiring, local, examples.x.shape[1], start.shape[1])
    for lane in range(len(lanes.task_id)):
        first, low, high = start[lanes.version[lane]], lanes.row_offsets[lane], lanes.row_offsets[lane + 1]
        own, own_start = rows[low:high], rows_start[low:high]
        total, done = _client(wiring, scratch, examples, lane, lanes, local, first, own_start, own)
        flat, flat_start = own.reshape(own.size), own_start.reshape(own.size)
        found.loss[lane], found.steps[lane] = total / done, done
        norm = math.sqrt(square_norm(first, scratch.params) + square_norm(flat_start, flat))
        found.norm[lane] = norm
        found.is_healthy[lane] = norm <= local.bound and abs(found.loss[lane]) <= _LOSS_BOUND
        if found.is_healthy[lane]:
            add_units(first, scratch.params, lanes.scale[lane], found.sums[lanes.slot[lane]])
        for p in range(len(flat)):
            flat[p] = flat_start[p] - flat[p]
