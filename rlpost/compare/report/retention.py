"""The report's section on what the arms lost: other abilities, against the KL to the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlpost.compare.design.types import Cell, Comparison
from rlpost.compare.report.pictures import LOOKS, points
from rlpost.compare.report.view import Section, Table, View, told
from rlpost.compare.statistics import retention as statistics
from rlpost.compare.statistics.estimates import Difference, differences
from rlpost.compare.statistics.retention import TEXT, Way, elsewhere, final, text_lost, ways
from rlpost.pages.figures import STYLE, canvas, drawn
from rlpost.pages.images import Image
from rlpost.record.retention import DIRECTIONS

_READING = (
    "What each arm lost between its start and the end of its budget: success on another environment (retention.env),"
    " on the run's own held-out rules, and nats per token on a text (retention.text). The KL divergence to the start is"
    " measured on evaluation episodes of the trained variant, in nats per token (k3). Text and KL are means over seeds"
    " with 95% t intervals (none of one seed). Differences in success are paired over seeds and instances, and their"
    " intervals hold for all variants at once. A point of a picture is a mean over seeds at a point of the budget."
    " docs/retention.md defines each number."
)


def section(view: View) -> Section | None:
    """None unless some arm measured what it retained."""
    comparison = view.comparison
    if not any(cell.retention for cell in comparison.cells):
        return None
    tables = [_arms(comparison)]
    there = elsewhere(comparison)
    if there is not None and (rows := _differences(there)):
        tables.append(Table(("success elsewhere", "variant", "difference", "pairs won, lost"), rows, 2))
    return Section("What was lost", _READING, tuple(_pictures(comparison)), tuple(tables), grid=True)


def _arms(comparison: Comparison) -> Table:
    rows = tuple(
        (
            arm,
            *(told(final(comparison, arm, partial(_distance, key)), ".4f") for key in DIRECTIONS),
            told(final(comparison, arm, text_lost), "+.4f"),
        )
        for arm in comparison.arms
    )
    return Table(("arm", *DIRECTIONS.values(), "lost on the text, nats per token"), rows, 3)


def _distance(direction: str, cell: Cell) -> float | None:
    return statistics.distance(cell.retention[-1], direction)


def _differences(there: Comparison) -> tuple[tuple[str, ...], ...]:
    """The contrasts of the arms at the end of the budget."""
    found = differences(there)
    last = max((each.share for each in found), default=0.0)
    return tuple(_row(each) for each in found if each.share == last)


def _row(each: Difference) -> tuple[str, ...]:
    shown = f"{points(each.simultaneous, each.estimate.value)} points"
    return f"{each.arm} - {each.baseline}", each.variant, shown, f"{each.wins}, {each.losses}"


def _pictures(comparison: Comparison) -> Iterator[Image]:
    for direction, name in DIRECTIONS.items():
        for measure, found in ways(comparison, direction).items():
            yield _picture(measure, found, comparison.arms, f"{name}, nats per token")


def _picture(measure: str, found: Sequence[Way], arms: Sequence[str], x_label: str) -> Image:
    """What was lost over the KL, a curve an arm, with the interval of each end."""
    title = "Lost on the text, nats per token" if measure == TEXT else f"Success lost, {measure}"
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(4.3, 2.9)
        axes.axhline(0.0, color="0.4", linewidth=0.8)
        for way in found:
            color, dashes, marker = LOOKS[arms.index(way.arm) % len(LOOKS)]
            xs, ys = ([mean.value for mean in means] for means in (way.kl, way.lost))
            look: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4.5}
            axes.plot(xs, ys, label=way.arm, **look)
            if (interval := way.lost[-1].interval) is not None:
                axes.plot([xs[-1]] * 2, [interval.low, interval.high], color=color, linewidth=0.8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if measure != TEXT:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(frameon=False, fontsize=8, handlelength=3.2)
        form = ".4f" if measure == TEXT else ".1%"
        return drawn(figure, f"{title}, against {x_label}. {' '.join(_curve(way, form) for way in found)}")


def _curve(way: Way, form: str) -> str:
    pairs = zip(way.kl, way.lost, strict=True)
    return f"{way.arm}: {', '.join(f'{y.value:{form}} at {x.value:.4f}' for x, y in pairs)}."
