"""Draws the pictures of a comparison: each function turns numbers into one image with a caption. Nothing is computed.

Arms differ in colour, line style and marker at once, so a black-and-white print can be read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from rlpost.compare.design.types import INIT
from rlpost.compare.statistics.intervals import Interval
from rlpost.pages.figures import GREYS, HATCHES, STYLE, canvas, drawn
from rlpost.pages.images import Image

# Colours from the palette of Okabe and Ito, which colour-blind readers can tell apart; the first four also differ in
# lightness.
LOOKS = (
    *(("#D55E00", "--", "s"), ("#000000", "-", "o"), ("#0072B2", "-.", "^"), ("#E69F00", ":", "D")),
    *(("#009E73", "--", "v"), ("#CC79A7", "-", "P"), ("#56B4E9", "-.", "X"), ("#666666", ":", "<")),
)
INIT_LOOK = ("0.4", (0, (1, 2)), "*")
POINT_ROWS = 0.27  # inches per row of the forest plot
BAR_ROWS = 0.3  # inches per row of the picture of causes
WIDTH = 8.2


@dataclass(frozen=True)
class Line:
    """One arm's success over x, with its interval at each x. `seeds` holds the same as one line per seed."""

    label: str
    xs: Sequence[float]
    ys: Sequence[Interval]
    seeds: Sequence[Sequence[tuple[float, float]]] = ()


@dataclass(frozen=True)
class Contrast:
    """A row of the forest plot. Both intervals are None if there was nothing to compare."""

    label: str
    estimate: Interval | None
    simultaneous: Interval | None


@dataclass(frozen=True)
class Bar:
    label: str
    shares: Mapping[str, float]  # by cause, of all episodes; every bar has every cause, in one order


def lines(title: str, arms: Sequence[Line], start: Interval | None, x_label: str) -> Image:
    """Success rates over x: an arm is a heavy line in its band, its seeds faint lines, `start` (of all arms) dotted."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(4.3, 2.9)
        if start is not None:
            axes.axhline(start.value, color=INIT_LOOK[0], linestyle=INIT_LOOK[1], linewidth=1.2, label="init")
        for i, arm in enumerate(arms):
            _draw_arm(axes, arm, LOOKS[i % len(LOOKS)])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
        _name_axes(axes, title, x_label, _top(arms, start))
        said = [f"init: {_percent(start)}."] if start is not None else []
        return drawn(figure, f"{title}, against {x_label}. {' '.join(said + [_told(a) for a in arms])}")


def _name_axes(axes: Axes, title: str, x_label: str, top: float) -> None:
    """Label the axes of success rates over x; y ends at `top`."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0.0, top)
    axes.legend(frameon=False, fontsize=8, handlelength=3.2)


def _top(arms: Sequence[Line], start: Interval | None) -> float:
    """The upper end of y: every line fits; bands that are much wider, as with few seeds, are cut off."""
    reached = [start.value] if start is not None else []
    reached += [y.value for arm in arms for y in arm.ys]
    reached += [y for arm in arms for seed in arm.seeds for _, y in seed]
    highs = [y.high for arm in arms for y in arm.ys]
    return min(1.0, max(0.02, 1.3 * max(reached), min(1.05 * max(highs), 2 * max(reached))))


def _draw_arm(axes: Axes, arm: Line, look: tuple[str, str, str]) -> None:
    color, dashes, marker = look
    for seed in arm.seeds:
        axes.plot(*zip(*seed, strict=True), color=color, linestyle=dashes, linewidth=0.6, alpha=0.45)
    lows, highs = [y.low for y in arm.ys], [y.high for y in arm.ys]
    axes.fill_between(arm.xs, lows, highs, color=color, alpha=0.13, linewidth=0)
    values = [y.value for y in arm.ys]
    axes.plot(
        arm.xs,
        values,
        color=color,
        linestyle=dashes,
        marker=marker,
        markersize=4.5,
        linewidth=1.8,
        label=arm.label,
    )


def _told(arm: Line) -> str:
    return f"{arm.label}: from {_percent(arm.ys[0])} to {_percent(arm.ys[-1])}."


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} (interval {interval.low:.1%} to {interval.high:.1%})"


def turns(title: str, arms: Mapping[str, Sequence[float]]) -> Image:
    """Share solved within 1, 2, ... attempts; each arm is a line, and so is init."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(4.3, 2.6)
        looks = iter(LOOKS * len(arms))
        for arm, shares in arms.items():
            color, dashes, marker = INIT_LOOK if arm == INIT else next(looks)
            attempts = range(1, len(shares) + 1)
            axes.plot(attempts, shares, color=color, linestyle=dashes, marker=marker, label=arm)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _name_axes(axes, title, "attempts", min(1.0, max(0.02, 1.3 * max(map(max, arms.values())))))
        told = [f"{arm}: {', '.join(f'{share:.1%}' for share in shares)}." for arm, shares in arms.items()]
        return drawn(figure, f"{title}, within so many attempts. {' '.join(told)}")


def short(x: float) -> str:
    """A large number for an axis or a table: 1.5M, 20k."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{letter}"
    return f"{x:.3g}"


def forest(title: str, groups: Mapping[str, Sequence[Contrast]]) -> Image:
    """Differences in points by variant. Heavy bars hold for one difference alone, thin bars for all of them at once."""
    rows = [(group, contrast) for group, contrasts in groups.items() for contrast in contrasts]
    labels = list(dict.fromkeys(contrast.label for _, contrast in rows))
    places = _spaced([group for group, _ in rows])
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(WIDTH, 1.0 + POINT_ROWS * (1 + places[-1]))
        axes.axvline(0.0, color="black", linewidth=1.0)
        reach = _reach([contrast for _, contrast in rows])
        for place, (_, contrast) in zip(places, rows, strict=True):
            _draw_contrast(axes, place, contrast, LOOKS[labels.index(contrast.label) % len(LOOKS)], reach)
        axes.set_xlim(-1.03 * reach, 1.03 * reach)
        axes.set_yticks(places, [contrast.label for _, contrast in rows])
        axes.set_ylim(places[-1] + 0.8, -1.3)
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("percentage points")
        _name_groups(axes, [group for group, _ in rows], places)
        return drawn(figure, f"{title}. " + " ".join(_contrasted(g, c) for g, c in rows))


def _spaced(groups: Sequence[str]) -> list[float]:
    """Row positions, with space for a heading before each group."""
    breaks, places = 0, []
    for i, group in enumerate(groups):
        breaks += i > 0 and group != groups[i - 1]
        places.append(i + 1.3 * breaks)
    return places


def _name_groups(axes: Axes, groups: Sequence[str], places: Sequence[float]) -> None:
    for i, (group, place) in enumerate(zip(groups, places, strict=True)):
        if i == 0 or group != groups[i - 1]:
            left = axes.get_yaxis_transform()
            axes.text(0.005, place - 0.85, group, transform=left, fontsize=9, fontweight="bold", va="center")


def _reach(contrasts: Sequence[Contrast]) -> float:
    """Points shown to either side of zero: every estimate fits; intervals that are much wider are cut off."""
    estimates = [c.estimate for c in contrasts if c.estimate is not None]
    wide = [c.simultaneous for c in contrasts if c.simultaneous is not None]
    needed = max((abs(e.value) for e in estimates), default=0.05)
    widest = max((max(-w.low, w.high) for w in wide), default=0.05)
    return 100 * min(widest, 2 * needed + 0.05)


def _draw_contrast(
    axes: Axes, place: float, contrast: Contrast, look: tuple[str, str, str], reach: float
) -> None:
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
    if contrast.estimate is None or contrast.simultaneous is None:
        axes.text(1.01, place, "no pair to compare", **beside)
        return
    estimate, wide = contrast.estimate, contrast.simultaneous
    for interval, width in ((wide, 1.0), (estimate, 3.4)):
        ends = [max(-reach, min(reach, 100 * end)) for end in (interval.low, interval.high)]
        axes.plot(ends, [place, place], color=look[0], linewidth=width, solid_capstyle="butt")
    for end, inside, outside in ((wide.low, "|", "<"), (wide.high, "|", ">")):
        marker = inside if abs(100 * end) <= reach else outside
        axes.plot(max(-reach, min(reach, 100 * end)), place, marker, color=look[0], markersize=5)
    axes.plot(
        100 * estimate.value, place, look[2], color=look[0], markersize=7.5, markeredgecolor="white", zorder=3
    )
    axes.text(1.01, place, points(wide, estimate.value), **beside)


def points(interval: Interval, value: float | None = None) -> str:
    """A difference in percentage points: +3.5 [-1.0, +8.1]."""
    middle = interval.value if value is None else value
    return f"{100 * middle:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def _contrasted(group: str, contrast: Contrast) -> str:
    if contrast.estimate is None or contrast.simultaneous is None:
        return f"{group}, {contrast.label}: no pair to compare."
    return f"{group}, {contrast.label}: {points(contrast.simultaneous, contrast.estimate.value)} points."


def stacked_bars(title: str, groups: Mapping[str, Sequence[Bar]], highlight: str | None) -> Image:
    """Shares of all episodes by cause, one bar per arm. `highlight`, if given, is black with its share written out."""
    bars = [(group, bar) for group, members in groups.items() for bar in members]
    places, looks = (
        _spaced([group for group, _ in bars]),
        _cause_looks([b.shares for _, b in bars], highlight),
    )
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(WIDTH, 1.4 + BAR_ROWS * (1 + places[-1]))
        for place, (_, bar) in zip(places, bars, strict=True):
            _draw_bar(axes, place, bar, looks, highlight)
        axes.set_yticks(places, [bar.label for _, bar in bars])
        axes.set_ylim(places[-1] + 0.6, -1.2)
        axes.set_xlim(0.0, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False)
        axes.set_title(title, fontsize=10, loc="left")
        _name_groups(axes, [group for group, _ in bars], places)
        if highlight is not None:
            axes.text(1.01, -0.85, highlight, va="center", fontsize=8, transform=axes.get_yaxis_transform())
        handles = [
            Patch(edgecolor="black", linewidth=0.6, label=cause, **look) for cause, look in looks.items()
        ]
        figure.legend(
            handles=handles, frameon=False, fontsize=8, loc="outside lower center", ncols=5, handleheight=1.4
        )
        return drawn(figure, f"{title}. " + " ".join(_cause_words(g, b) for g, b in bars))


def _cause_looks(shares: Sequence[Mapping[str, float]], highlight: str | None) -> dict[str, dict[str, Any]]:
    """The first cause (solved) is white, the highlighted one black, the others grey with hatches."""
    causes = list(dict.fromkeys(cause for each in shares for cause in each))
    looks: dict[str, dict[str, Any]] = {}
    for i, cause in enumerate(causes):
        hatched = {"facecolor": GREYS[i % len(GREYS)], "hatch": HATCHES[i % len(HATCHES)]}
        looks[cause] = {"facecolor": "white"} if i == 0 else hatched
    return {
        **looks,
        **({highlight: {"facecolor": "black"}} if highlight is not None and highlight in looks else {}),
    }


def _draw_bar(
    axes: Axes, place: float, bar: Bar, looks: Mapping[str, dict[str, Any]], highlight: str | None
) -> None:
    begun = 0.0
    for cause, look in looks.items():
        share = bar.shares[cause]
        axes.barh(place, share, left=begun, height=0.72, edgecolor="black", linewidth=0.6, **look)
        if cause == highlight and share > 0:
            axes.text(
                1.01, place, f"{share:.1%}", va="center", fontsize=8, transform=axes.get_yaxis_transform()
            )
        begun += share


def _cause_words(group: str, bar: Bar) -> str:
    return (
        f"{group}, {bar.label}: "
        + ", ".join(f"{cause} {share:.1%}" for cause, share in bar.shares.items())
        + "."
    )
