"""The spectrum of an update as pictures by layer, and in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlpost.pages.figures import DASHES, MARKERS, STYLE, Series, canvas, drawn
from rlpost.pages.images import Image
from rlpost.record import spectrum as record
from rlpost.record.spectrum import ModuleSpectrum, Spectrum, place_of

Figure = Callable[[ModuleSpectrum], float | None]
_PICTURES: tuple[tuple[str, Figure, bool], ...] = (
    ("Norm of the update, of the weight's", lambda module: module.relative_norm, True),
    ("Effective rank of the update", lambda module: module.effective_rank, False),
    ("Intruder dimensions", lambda module: module.intruders, False),
)


@dataclass(frozen=True)
class Panel:
    said: str
    pictures: tuple[Image, ...]


def of_record(folder: Path) -> Panel | None:
    """The panel of a run's spectrum.json; None if it has none. Raises OutputError for a broken file."""
    found = record.read(folder)
    return None if found is None else Panel(told(found), tuple(pictures(found)))


def told(spectrum: Spectrum) -> str:
    """The totals in words; what was not measured is not said."""
    totals = spectrum.totals()
    said = [
        f"The update's norm is {totals['relative_norm']:.2%} of that of the {len(spectrum.modules)} weights it changes."
    ]
    if "effective_rank" in totals:
        said.append(
            f"Its effective rank is {totals['effective_rank']:.1f} and its stable rank"
            f" {totals['stable_rank']:.1f}, means of the weights."
        )
    if "intruders" in totals:
        said.append(
            f"Intruder dimensions: {totals['intruders']:.0f} among the {spectrum.top} leading singular vectors of each"
            f" of {totals['examined']:.0f} weights (|cosine| below {spectrum.epsilon:g})."
        )
    if "principal_share" in totals:
        said.append(
            f"Of its squared norm, {totals['principal_share']:.2%} lies in the span of the {spectrum.top} leading"
            f" singular vectors of those weights on either side (by chance {totals['principal_by_chance']:.2%})."
        )
    if "rounding_loss" in totals:
        said.append(f"Rounding to {spectrum.dtype} loses {totals['rounding_loss']:.2%} of it.")
    return " ".join(said)


def pictures(spectrum: Spectrum) -> Iterator[Image]:
    """One picture a figure that was measured."""
    for title, figure, percent in _PICTURES:
        if lines := by_layer(spectrum, figure):
            yield _picture(title, lines, percent)


def by_layer(spectrum: Spectrum, figure: Figure) -> list[Series]:
    """One line a module type over the layers that have the figure; modules outside of layers are left out."""
    points: dict[str, list[tuple[int, float]]] = {}
    for module, each in spectrum.modules.items():
        kind, layer = place_of(module)
        value = figure(each)
        if layer is not None and value is not None:
            points.setdefault(kind, []).append((layer, value))
    return [
        Series(kind, *(list(side) for side in zip(*sorted(found), strict=True)))
        for kind, found in points.items()
    ]


def _picture(title: str, lines: list[Series], percent: bool) -> Image:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(3.9, 2.5 + 0.17 * -(-len(lines) // 2))
        for i, line in enumerate(lines):
            look: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "linestyle": DASHES[i % len(DASHES)]}
            axes.plot(
                line.xs,
                line.ys,
                color=("0.15", "0.5")[i % 2],
                markerfacecolor="white",
                markersize=5,
                label=line.label,
                **look,
            )
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=not percent))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(0.0, 1.15 * max(max(line.ys) for line in lines) or 1.0)
        figure.legend(frameon=False, fontsize=8, loc="outside lower left", handlelength=3.2, ncol=2)
        form = ".2%" if percent else ".3g"
        said = " ".join(
            f"{line.label}: from {line.ys[0]:{form}} in layer {line.xs[0]} to {line.ys[-1]:{form}} in layer"
            f" {line.xs[-1]}, highest {max(line.ys):{form}}."
            for line in lines
        )
        return drawn(figure, f"{title}, by layer. {said}")
