"""One metric of several runs in one figure: runs differ in colour, dashes and marker at the same time."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlpost.pages.figures import SMOOTH_FROM, STYLE, Series, canvas, drawn, trailing_mean
from rlpost.pages.images import Image

# Colours of Okabe and Ito's palette, which colour-blind people can tell apart.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")  # 7, 4 and 9 have no common factor: 252 combinations


def overlay(title: str, runs: Sequence[Series], x_label: str, percent: bool = False) -> Image:
    """Plot values over x, one line per run. A run without values is only in the text. Long lines are trailing means."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(4.3, 2.9)
        for i, run in enumerate(runs):
            if not run.ys:
                continue
            smooth = len(run.ys) >= SMOOTH_FROM
            axes.plot(
                run.xs,
                trailing_mean(run.ys) if smooth else run.ys,
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                markevery=max(1, len(run.ys) // 8),
                markersize=4,
                linewidth=1.5,
                label=run.label,
            )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_ylim(0.0, min(1.0, max(0.1, 1.15 * max(y for run in runs for y in run.ys))))
        axes.legend(frameon=False, fontsize=8, handlelength=3.2)
        return drawn(figure, f"{title}. " + " ".join(_said(run, percent) for run in runs))


def _said(run: Series, percent: bool) -> str:
    if not run.ys:
        return f"{run.label}: not measured."
    form = ".1%" if percent else ".4g"
    return f"{run.label}: from {run.ys[0]:{form}} at {run.xs[0]:g} to {run.ys[-1]:{form}} at {run.xs[-1]:g}."
