"""What people see of predictions: tables with one column per cluster, and the assumptions under them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from atoll.cli.show import byte_text

if TYPE_CHECKING:
    from atoll.experiment import Forecast

__all__ = ["assumptions", "forecast"]

_console = Console(highlight=False)


def forecast(name: str, found: Forecast) -> None:
    """The table of one plan's predictions."""
    certainty = "" if found.is_measured else ", client work not measured"
    table = Table(title=f"{name}: predicted for pools of one {_pool(found)} each{certainty}", title_justify="left")
    table.add_column("client pools")
    for one in found.predictions:
        table.add_column(f"{one.pools:,}", justify="right")
    rows = [
        ("wall time", [duration(one.wall_s) for one in found.predictions]),
        (f"{_pool(found)} hours", [f"{found.gpu_hours(one) or one.pool_hours:,.3g}" for one in found.predictions]),
        ("pools at work", [f"{100 * one.occupancy:.0f} %" for one in found.predictions]),
        ("coordinator at work", [f"{100 * one.coordinator_share:.0f} %" for one in found.predictions]),
        ("bytes moved", [byte_text(one.bytes_moved) for one in found.predictions]),
    ]
    for label, cells in rows:
        table.add_row(label, *cells)
    _console.print(table)


def assumptions(forecasts: Mapping[str, Forecast]) -> None:
    """What the predictions of all plans rest on; what is not said of all of them, with the plans it is said of."""
    names: dict[str, list[str]] = {}
    for name, found in forecasts.items():
        for text in found.assumptions:
            names.setdefault(text, []).append(name)
    _console.print("Assumed:")
    for text, those in names.items():
        where = "" if len(those) == len(forecasts) else f" ({', '.join(those)})"
        _console.print(f"  - {text}{where}", soft_wrap=True, markup=False)


def _pool(found: Forecast) -> str:
    return "GPU" if found.gpus_per_pool else "core"


def duration(seconds: float) -> str:
    """As people say it.

    Example:
        >>> duration(12.34), duration(200), duration(9000)
        ('12.3 s', '3.3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"
