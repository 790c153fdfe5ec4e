"""The data of a spec, opened once for everything that is done with it at one time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from atoll import spec as sp
from atoll.data import ClientData, open_data
from atoll.experiment.wiring import source_of

__all__ = ["data_of", "opened_once"]

_OPENED: ContextVar[dict[str, ClientData] | None] = ContextVar("opened", default=None)


def data_of(spec: sp.Spec) -> ClientData:
    """The data that `spec` names; inside `opened_once`, what was opened there before."""
    source, opened = source_of(spec), _OPENED.get()
    if opened is None:
        return open_data(source)
    name = repr(source)
    if name not in opened:
        opened[name] = open_data(source)
    return opened[name]


@contextmanager
def opened_once() -> Iterator[None]:
    """Files are read once inside: a run that plans, trains and ends sees one content. May be nested."""
    if _OPENED.get() is not None:
        yield
        return
    token = _OPENED.set({})
    try:
        yield
    finally:
        _OPENED.reset(token)
