"""A Comparison as a terminal table, CSV, Markdown, and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
from typing import Any

from atoll.errors import Problem, SpecError
from atoll.tracking.compare import MEASURES, ArmOutcome, Comparison, Spread
from atoll.tracking.curves import byte_unit, metric_label
from atoll.tracking.plots import comparison_pictures

__all__ = ["STYLE", "insert_between", "to_csv", "to_html", "to_markdown", "to_table", "to_text"]

_HEADS = {
    "hours": "virtual hours",
    "client_updates": "client updates",
    "traffic_bytes": "traffic (up + down)",
    "server_steps": "server steps",
}


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _number(measure: str, value: float) -> str:
    """One value with its unit where the column head does not say it."""
    if math.isnan(value):
        return "not logged"
    if math.isinf(value):
        return "never"
    if measure == "traffic_bytes":
        divisor, unit = byte_unit(value)
        return f"{_three_digits(value / divisor)} {unit}"
    if measure in ("client_updates", "server_steps"):
        return f"{value:,.0f}"
    return f"{value:.4f}" if measure == "metric" else _three_digits(value)


def _range(measure: str, spread: Spread) -> str:
    """Lowest to highest; empty where both print the same."""
    low, high = _number(measure, spread.low), _number(measure, spread.high)
    if low == high:
        return ""
    value, _, unit = low.partition(" ")
    return f"({value if unit and high.endswith(f' {unit}') else low} – {high})"


def _ratio_text(ratio: float) -> str:
    return f"{ratio:.2f}×" if ratio >= 0.1 else f"{ratio:.2g}×"


def _heads(comparison: Comparison) -> list[str]:
    final = f"final {comparison.target.key.rpartition('/')[2]}"
    reached = [] if comparison.target.value is None else ["reached"]
    return ["arm", *reached, *_HEADS.values(), final]


def _cells(comparison: Comparison, arm: ArmOutcome) -> list[tuple[str, str, str]]:
    """(value, range over seeds, ratio to the baseline) per column; empty where there is nothing to say."""
    base = arm.name == comparison.baseline
    cells = [(arm.name, "", "baseline" if base else "")]
    if comparison.target.value is not None:
        cells.append((f"{arm.num_reached} of {len(arm.runs)}", "", ""))
    columns = [(measure, arm.costs[measure], arm.ratios[measure]) for measure in MEASURES]
    for measure, spread, ratio in [*columns, ("metric", arm.final, arm.final_ratio)]:
        shown = "" if base or math.isnan(ratio) else _ratio_text(ratio)
        cells.append((_number(measure, spread.median), _range(measure, spread), shown))
    return cells


def _caption(comparison: Comparison) -> str:
    target = comparison.target
    if target.value is None:
        until = "Costs of the whole runs (no target was set)"
    else:
        until = f"Costs until {target.key} first reaches {target.value:g} at an evaluation"
    several = any(len(arm.runs) > 1 for arm in comparison.arms)
    over = "; median over seeds (lowest – highest)" if several else ""
    return f"{until}{over}; × is relative to {comparison.baseline}."


def _missed(comparison: Comparison) -> str:
    def said(arm: ArmOutcome) -> str:
        missed = [outcome for outcome in arm.runs if outcome.reached_step is None]
        seeds = [str(outcome.run.seed) for outcome in missed if outcome.run.seed is not None]
        ends = [outcome.final for outcome in missed if not math.isnan(outcome.final)]
        facts = []
        if seeds and len(arm.runs) > 1:
            facts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}")
        texts = dict.fromkeys(f"{end:.4g}" for end in (min(ends), max(ends))) if ends else ()
        facts.append(f"ended at {' – '.join(texts)}" if ends else "never evaluated")
        return f"{arm.name} ({'; '.join(facts)})"

    if not comparison.missed:
        return ""
    arms = [arm for arm in comparison.arms if arm.num_reached < len(arm.runs)]
    return f"Never reached the target: {'; '.join(map(said, arms))}. They count as infinite in medians."


def to_table(comparison: Comparison) -> Any:
    """A rich Table, for `Console().print`."""
    from rich.markup import escape
    from rich.table import Table

    caption = " ".join(filter(None, (_caption(comparison), _missed(comparison))))
    table = Table(caption=escape(caption), caption_justify="left")
    for index, head in enumerate(_heads(comparison)):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for arm in comparison.arms:
        table.add_row(*(escape("\n".join(filter(None, cell))) for cell in _cells(comparison, arm)))
    return table


def to_text(comparison: Comparison, width: int = 120) -> str:
    """The table as plain text without colours, `width` characters wide."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False, color_system=None).print(to_table(comparison))
    return out.getvalue()


def to_csv(comparison: Comparison) -> str:
    """One line per run, full precision, for other programs: costs `inf` where never reached, `nan` where not logged."""
    digests = sorted({name for arm in comparison.arms for outcome in arm.runs for name in outcome.run.digests})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = ["arm", "name", "run_id", "seed", "metric", "target", "reached_step"]
    writer.writerow([*heads, *MEASURES, "final", *(f"digest_{name}" for name in digests)])
    for arm in comparison.arms:
        for outcome in arm.runs:
            run, target = outcome.run, comparison.target
            seed, reached = ("" if value is None else value for value in (run.seed, outcome.reached_step))
            goal = "" if target.value is None else target.value
            writer.writerow(
                [arm.name, run.name, run.run_id, seed, target.key, goal, reached]
                + [outcome.costs[measure] for measure in MEASURES]
                + [outcome.final, *(run.digests.get(name, "") for name in digests)]
            )
    return out.getvalue()


def to_markdown(comparison: Comparison) -> str:
    """A Markdown table with its caption under it; ends with a newline."""

    def safe(text: str) -> str:
        return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

    heads = _heads(comparison)
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for arm in comparison.arms:
        cells = [
            " ".join(filter(None, (safe(value), spread, ratio and f"**{ratio}**")))
            for value, spread, ratio in _cells(comparison, arm)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [note for note in (_caption(comparison), _missed(comparison)) if note]
    return "\n".join([*lines, "", *notes]) + "\n"


def insert_between(document: str, name: str, content: str) -> str:
    """`document` with the lines between `<!-- begin NAME -->` and `<!-- end NAME -->` replaced by `content`.

    Idempotent: doing it again with the same content changes nothing.

    Raises:
        SpecError: the markers are missing, double or in the wrong order.

    Purity: pure.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    once = document.count(begin) == document.count(end) == 1
    if not once or document.index(begin) > document.index(end):
        raise SpecError([Problem(name, "no such place", f"one `{begin}` before one `{end}`")])
    head, _, rest = document.partition(begin)
    tail = rest.partition(end)[2]
    return f"{head}{begin}\n{content.strip()}\n{end}{tail}"


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.caption { color: #555; margin-top: 0; } p.missed { border-left: 4px solid #D55E00; padding-left: .7rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .4rem .6rem; border-bottom: 1px solid #ddd; }
th { text-align: right; font-weight: 600; border-bottom: 2px solid #888; vertical-align: bottom; }
td { text-align: right; font-variant-numeric: tabular-nums; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td small { display: block; color: #666; white-space: nowrap; } td small.ratio { color: #0072B2; font-weight: 600; }
.runs td, .runs th { text-align: left; } tr.baseline { background: #f5f5f5; } code { font-size: .85em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
figure { margin: 0; } img { width: 100%; } figcaption { color: #555; font-size: .9em; }
"""


def to_html(comparison: Comparison, title: str = "Comparison of runs") -> str:
    """One page without any outside file: the table, the pictures (PNG, embedded), and every run with its digests."""
    rows = []
    for arm in comparison.arms:
        kind = ' class="baseline"' if arm.name == comparison.baseline else ""
        cells = "".join(
            f"<td>{html.escape(value)}<small>{html.escape(spread)}</small>"
            f'<small class="ratio">{html.escape(ratio)}</small></td>'
            for value, spread, ratio in _cells(comparison, arm)
        )
        rows.append(f"<tr{kind}>{cells}</tr>")
    heads = "".join(f"<th>{html.escape(head)}</th>" for head in _heads(comparison))
    missed = _missed(comparison)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="caption">{html.escape(_caption(comparison))}</p>',
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
        f'<p class="missed">{html.escape(missed)}</p>' if missed else "",
        f"<h2>Quality against cost</h2>{_html_plots(comparison)}",
        f"<h2>Runs</h2>{_html_runs(comparison)}",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _html_plots(comparison: Comparison) -> str:
    words = {
        "quality_vs_hours": "virtual hours",
        "quality_vs_client_updates": "client updates",
        "quality_vs_traffic_bytes": "traffic",
    }
    metric = metric_label(comparison.target.key)
    figures = []
    for name, png in comparison_pictures(comparison).items():
        text = html.escape(f"{metric} against {words[name]}")
        data = base64.b64encode(png).decode()
        figures.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
        )
    note = "<p>Thick: the run with the median virtual hours of its arm; thin: the other seeds.</p>"
    several = any(len(arm.runs) > 1 for arm in comparison.arms)
    return (note if several else "") + f'<div class="plots">{"".join(figures)}</div>'


def _html_runs(comparison: Comparison) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("run", "arm", "seed", "reached at step", "final", "digests"))
    rows = []
    for arm in comparison.arms:
        for outcome in arm.runs:
            run = outcome.run
            digests = " ".join(
                f'<code title="{html.escape(value)}">{html.escape(name)} {html.escape(value[:12])}</code>'
                for name, value in run.digests.items()
            )
            step = "never" if outcome.reached_step is None else f"{outcome.reached_step:,}"
            plain = (f"{run.name} ({run.run_id[:8]})", arm.name, "" if run.seed is None else str(run.seed))
            ends = ("–" if comparison.target.value is None else step, _number("metric", outcome.final))
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in (*plain, *ends))
            rows.append(f"<tr>{cells}<td>{digests}</td></tr>")
    return f'<div class="wide runs"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
