"""Files in the form of MovieLens 100K, whose own may not be redistributed; the digests are to be injected."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADS = ("user\titem\trating\ttime", "item\ttitle\tyear\tclass", "user\tage\tgender\toccupation\tzip")


def write(folder: Path, *tables: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    """Ratings (user, item, stars, second), items, users into `folder`; the files' digests by name."""
    digests = {}
    for ending, head, rows in zip(("inter", "item", "user"), HEADS, tables, strict=True):
        content = "\n".join([head, *("\t".join(map(str, row)) for row in rows)]) + "\n"
        (folder / f"ml-100k.{ending}").write_text(content, encoding="utf-8")
        digests[f"ml-100k.{ending}"] = hashlib.sha256(content.encode()).hexdigest()
    return digests


def write_some(folder: Path, users: int = 40, items: int = 25) -> dict[str, str]:
    """Generated ratings, 5 to 20 per user, always the same; the files' digests by name."""
    stream = np.random.default_rng(5)
    genres = ("Comedy", "Drama", "War")
    movies = [(item, f"title {item}", 1970 + item, genres[item % 3]) for item in range(1, items + 1)]
    people = [
        (user, 15 + user, "FM"[user % 2], ("artist", "writer")[user % 3 % 2], 10000) for user in range(1, users + 1)
    ]
    ratings = []
    for user in range(1, users + 1):
        for item in stream.permutation(items)[: stream.integers(5, 21)]:
            ratings.append((user, int(item) + 1, int(stream.integers(1, 6)), int(stream.integers(1, 100))))
    return write(folder, ratings, movies, people)
