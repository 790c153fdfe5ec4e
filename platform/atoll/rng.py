"""Keyed randomness: every random number is a function of (seed, purpose, ids), never of call order.

A stream is named by a 64-bit `key(seed, *path)`; its numbers are addressed by counters. Vectorised calls take arrays
of counters and are pure: any subset, in any order, on any worker, gives the same numbers. The mixer is SplitMix64's
finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", figure 15) applied once per
counter word; it is for simulation, never for secrets.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

__all__ = ["bits", "generator", "integers", "key", "permute", "uniform"]

IntArray = npt.NDArray[np.integer]
U64 = np.uint64
_GOLDEN = U64(0x9E3779B97F4A7C15)
_M1 = U64(0xBF58476D1CE4E5B9)
_M2 = U64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6


def key(seed: int, *path: str | int) -> int:
    """The 64-bit key of the stream named by `seed` and `path`, such as `key(7, "device")`.

    Purity: pure. Equal for equal arguments on every platform; `1` and `"1"` differ.

    Example:
        >>> key(7, "device") == key(7, "device"), key(7, "device") == key(8, "device")
        (True, False)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x ^ (x >> U64(30))
    x *= _M1
    x ^= x >> U64(27)
    x *= _M2
    x ^= x >> U64(31)
    return x


def bits(stream: int | npt.NDArray[np.uint64], *counters: IntArray | int) -> npt.NDArray[np.uint64]:
    """64 random bits per element of the broadcast `counters` (non-negative integers; order of the words matters).

    Args:
        stream: a key from `key`, or an array of keys.
        counters: one or more integer arrays or scalars; they and the streams broadcast together.

    Purity: pure.
    """
    state: npt.NDArray[np.uint64] = np.asarray(stream, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in counters:
            state = _mix(state + (np.asarray(word).astype(np.uint64) + U64(1)) * _GOLDEN)
    return state


def uniform(stream: int | npt.NDArray[np.uint64], *counters: IntArray | int) -> npt.NDArray[np.float64]:
    """Uniform float64 in the open interval (0, 1), one per element of the broadcast `counters`.

    Purity: pure.
    """
    values = (bits(stream, *counters) >> U64(11)).astype(np.float64)
    return (values + 0.5) * 2.0**-53


def integers(stream: int | npt.NDArray[np.uint64], bound: int, *counters: IntArray | int) -> npt.NDArray[np.int64]:
    """Uniform int64 in [0, bound), one per element of the broadcast `counters`; bias below bound / 2⁵³.

    Purity: pure.
    """
    drawn = (uniform(stream, *counters) * bound).astype(np.int64)
    return np.minimum(drawn, bound - 1)


def permute(stream: int | npt.NDArray[np.uint64], index: IntArray, size: int) -> npt.NDArray[np.int64]:
    """A keyed bijection of [0, size): element `index[i]` goes to the i-th result. No memory, O(1) each.

    A balanced Feistel network over the next power of four, walked until the value falls inside `size` (cycle walking;
    Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): expected at most four walks.

    Args:
        stream: a key from `key`; another key is another permutation. Or an array of keys that broadcasts to index.
        index: integers in [0, size), any shape.
        size: number of elements, > 0.

    Purity: pure.

    Example:
        >>> sorted(permute(3, np.arange(10), 10).tolist()) == list(range(10))
        True
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = U64((1 << half) - 1)
    out = np.array(index, dtype=np.uint64).reshape(-1)
    streams = np.broadcast_to(np.asarray(stream, dtype=np.uint64), np.shape(index)).reshape(-1)
    todo = np.arange(out.size)
    while todo.size:
        value, own = out[todo], streams[todo]
        left, right = value >> U64(half), value & mask
        for round_index in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (bits(own, round_index, right) & mask)
        value = (left << U64(half)) | right
        out[todo] = value
        todo = todo[value >= U64(size)]
    return out.astype(np.int64).reshape(np.shape(index))


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator (Philox 4×64) of its own for `seed` and `path`, where a sequential stream is wanted."""
    return np.random.Generator(np.random.Philox(key=key(seed, *path)))
