"""The report's figures, legible without colour, each with the words for readers who do not see it.

Nothing here knows of runs or files; every function takes numbers and returns one image.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlpost.pages.images import Image

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "rlpost",  # same data, same bytes
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.88",
}
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "++")
GREYS = ("0.25", "0.75", "0.95", "0.55", "0.85", "0.65", "1.0", "0.45")
LINES = (("black", "-", "o"), ("0.45", "--", "s"))
# Of evaluations: white markers on grey lines, each kind with a shape and dashes of its own.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
DASHES = ("-", "--", "-.", ":")
SMOOTH = 5  # points of the trailing mean
SMOOTH_FROM = 12  # points from which on it is drawn


@dataclass(frozen=True)
class Series:
    label: str
    xs: Sequence[float]
    ys: Sequence[float]


def curve(title: str, series: Sequence[Series], x_label: str, percent: bool = False) -> Image:
    """Values over iterations; the first series solid, the second dashed. A long first one gets its trailing mean."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(3.9, 2.5)
        for line, style in zip(series, LINES, strict=False):
            _draw_line(axes, line, style)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if len(alone := {x for line in series for x in line.xs}) == 1:
            axes.set_xticks(list(alone))  # the axis is too short for other whole numbers
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_ylim(0.0, min(1.0, max(0.1, 1.15 * max(max(line.ys) for line in series))))
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
        return drawn(figure, f"{title}. " + " ".join(_said(line, percent) for line in series))


def evaluations(title: str, series: Sequence[Series], x_label: str) -> Image:
    """Shares at single points of a run, in percent; a series is known by its marker and dashes, not by a colour."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(3.9, 2.5 + 0.18 * len(series))
        draw_marked(axes, series)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        # Room for whole markers at 0% and 100%.
        axes.set_ylim(-0.03, min(1.05, max(0.1, 1.15 * max(max(line.ys) for line in series))))
        figure.legend(frameon=False, fontsize=8, loc="outside lower left", handlelength=3.2)
        return drawn(figure, f"{title}. " + " ".join(_told_by_point(line) for line in series))


def thinned(line: Series, most: int) -> Series:
    """At most `most` points: where there are more, means of equally many neighbours (the last group may be smaller)."""
    if len(line.ys) <= most:
        return line
    size = -(-len(line.ys) // most)
    groups = [slice(i, i + size) for i in range(0, len(line.ys), size)]
    xs, ys = ([sum(v[g]) / len(v[g]) for g in groups] for v in (line.xs, line.ys))
    return Series(line.label, xs, ys)


def stacked_bar(title: str, parts: Mapping[str, float], columns: int = 4) -> Image:
    """One bar, its parts side by side in the order given; values in seconds. `columns`, of the legend, set its width:
    4 fill a page, 2 are legible on a telephone."""
    total, rows = sum(parts.values()), -(-len(parts) // columns)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(2.05 * columns, 1.7 if rows <= 2 else 1.2 + 0.25 * rows)
        begun = 0.0
        for i, (label, value) in enumerate(parts.items()):
            look: dict[str, Any] = {"facecolor": GREYS[i % len(GREYS)], "hatch": HATCHES[i % len(HATCHES)]}
            text = f"{label} {value:,.0f} s ({value / total:.0%})"
            axes.barh(0, value, left=begun, edgecolor="black", linewidth=0.6, label=text, **look)
            begun += value
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlim(0, total)
        axes.set_xlabel("seconds")
        axes.legend(
            frameon=False,
            fontsize=8,
            ncol=columns,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            handleheight=1.4,
        )
        said = ", ".join(f"{label} {value:.1f} s" for label, value in parts.items())
        return drawn(figure, f"{title}: {said}.")


def paired_bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> Image:
    """Shares by label: `groups` maps a stage (one or two of them) to label -> share."""
    labels = sorted(
        set().union(*groups.values()), key=lambda label: max(g.get(label, 0.0) for g in groups.values())
    )
    looks: tuple[dict[str, Any], ...] = ({"facecolor": "white", "hatch": "////"}, {"facecolor": "0.3"})
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(6.2, 0.9 + 0.36 * len(labels))
        for i, ((stage, shares), look) in enumerate(zip(groups.items(), looks, strict=False)):
            places = [y + (0.2 if i == 0 else -0.2) for y in range(len(labels))]
            values = [shares.get(label, 0.0) for label in labels]
            bars = axes.barh(
                places, values, height=0.38, edgecolor="black", linewidth=0.6, label=stage, **look
            )
            axes.bar_label(bars, [f"{v:.1%}" for v in values], padding=3, fontsize=8)
        axes.set_yticks(range(len(labels)), labels)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.margins(x=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=10, loc="left")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        said = "; ".join(
            f"{s}: " + ", ".join(f"{k} {v:.1%}" for k, v in g.items()) for s, g in groups.items()
        )
        return drawn(figure, f"{title}. {said}.")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches. A figure of its own, not pyplot's: no global state, no screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def draw_marked(axes: Axes, series: Sequence[Series]) -> None:
    """Draw each series with a marker and dashes of its own, by which it is known."""
    for i, line in enumerate(series):
        look: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
        axes.plot(
            line.xs,
            line.ys,
            color="0.25",
            markerfacecolor="white",
            markersize=6,
            label=line.label,
            **look,
        )


def _draw_line(axes: Axes, line: Series, style: tuple[str, str, str]) -> None:
    color, dashes, marker = style
    smooth = len(line.ys) >= SMOOTH_FROM
    own: dict[str, Any] = (
        {"linewidth": 0.8, "markersize": 2.5} if smooth else {"linewidth": 1.4, "markersize": 4}
    )
    axes.plot(line.xs, line.ys, color="0.6" if smooth else color, linestyle=dashes, marker=marker, **own)
    if smooth:
        axes.plot(line.xs, trailing_mean(line.ys), color=color, linestyle=dashes, linewidth=1.8)
    axes.lines[-1].set_label(line.label)


def trailing_mean(values: Sequence[float]) -> list[float]:
    """Mean of each value and up to SMOOTH - 1 before it."""
    windows = [values[max(0, i + 1 - SMOOTH) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _said(line: Series, percent: bool) -> str:
    form = ".1%" if percent else ".4g"
    ends = f"{line.ys[0]:{form}} at {line.xs[0]:g} to {line.ys[-1]:{form}} at {line.xs[-1]:g}"
    return f"{line.label}: from {ends}, lowest {min(line.ys):{form}}, highest {max(line.ys):{form}}."


def _told_by_point(line: Series) -> str:
    points = ", ".join(f"{y:.1%} at {x:g}" for x, y in zip(line.xs, line.ys, strict=True))
    return f"{line.label}: {points}."


def drawn(figure: Figure, said: str) -> Image:
    """The figure without matplotlib's XML header; `said`: what it shows, in words."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    text = buffer.getvalue()
    return Image(text[text.index("<svg") :], said)
