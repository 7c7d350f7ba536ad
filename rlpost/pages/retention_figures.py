"""What training cost elsewhere, over training and against the KL to the start, as pictures and in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rlpost.pages.evaluation_curve import finished_before, success_of
from rlpost.pages.figures import STYLE, Series, canvas, draw_marked, drawn
from rlpost.pages.images import Image
from rlpost.record import retention as record
from rlpost.record.retention import DIRECTIONS, Measured
from rlpost.record.run_dir import RunDir
from rlpost.record.summary import main_decoding

Line = Mapping[str, Any]
Figure = Callable[[Measured], float | None]
FINISHED = "finished iterations or steps"


@dataclass(frozen=True)
class Panel:
    said: str
    pictures: tuple[Image, ...]


@dataclass(frozen=True)
class _Axes:
    title: str
    x_label: str
    percent: bool


def of_run(run_dir: RunDir, lines: Sequence[Line], trained: str) -> Panel | None:
    """The panel of a run, whose metrics.jsonl has `lines`; None if they have less than two stages to compare.

    Its own evaluations of other variants than the `trained` one are shown beside the other environment. Raises
    OutputError if one of their files is damaged.
    """
    found = record.measured(lines)
    said = record.told(found)
    if said is None:
        return None
    shown = _with_rules(found, run_dir, trained)
    return Panel(f"{said[0].upper()}{said[1:]}.", tuple(pictures(shown, lines)))


def _with_rules(found: Sequence[Measured], run_dir: RunDir, trained: str) -> list[Measured]:
    """Each stage with the success of its own evaluation too, by the headline decoding."""
    files = run_dir.evaluations()
    decoding = main_decoding({decoding for _, _, decoding in files}) if files else ""
    rules: dict[str, dict[str, dict[str, float]]] = {}
    stages = {each.stage for each in found}
    for (stage, variant, how), path in files.items():
        chosen = stage in stages and variant != trained and how == decoding
        if chosen and (share := success_of(path)) is not None:
            rules.setdefault(stage, {})[variant] = {"success": share}
    return [replace(each, success={**each.success, **rules.get(each.stage, {})}) for each in found]


def pictures(found: Sequence[Measured], lines: Sequence[Line]) -> Iterator[Image]:
    """Each measure over training, then what was lost against each KL; only what was measured."""
    way = record.since_start(found)
    over = [float(finished_before(each.stage, lines)) for each in found]
    yield from _picture(
        _Axes("Success on what is not trained", FINISHED, True), _successes(found, over, lambda _, now: now)
    )
    yield from _picture(
        _Axes("Loss on the text, nats per token", FINISHED, False),
        [_line("text", found, over, lambda each: each.text)],
    )
    yield from _picture(
        _Axes("KL to the start, nats per token", FINISHED, False),
        [_line(name, found, over, _distance(key)) for key, name in DIRECTIONS.items()],
    )
    for key, name in DIRECTIONS.items():
        yield from _against(way, key, f"{name}, nats per token")


def _against(way: Sequence[Measured], direction: str, x_label: str) -> Iterator[Image]:
    """What was lost since the start, against the KL of a direction."""
    known = [(each, x) for each in way if (x := each.distance(direction)) is not None]
    if not known:
        return
    each, xs = [one for one, _ in known], [x for _, x in known]
    start = way[0]
    yield from _picture(
        _Axes("Success lost on what is not trained", x_label, True),
        _successes(each, xs, lambda then, now: then - now, start),
    )
    if (text := start.text) is not None:
        lost: Figure = lambda one: None if one.text is None else one.text - text  # noqa: E731
        yield from _picture(
            _Axes("Lost on the text, nats per token", x_label, False), [_line("text", each, xs, lost)]
        )


def _successes(
    found: Sequence[Measured],
    xs: Sequence[float],
    shown: Callable[[float, float], float],
    start: Measured | None = None,
) -> list[Series]:
    """A line a variant of the other environment: `shown` of its success at the start and now."""
    variants = dict.fromkeys(variant for each in found for variant in each.success)

    def figure(variant: str) -> Figure:
        def value(each: Measured) -> float | None:
            then = (start or each).success.get(variant)
            now = each.success.get(variant)
            return None if then is None or now is None else shown(then["success"], now["success"])

        return value

    return [_line(variant, found, xs, figure(variant)) for variant in variants]


def _distance(direction: str) -> Figure:
    return lambda each: each.distance(direction)


def _line(label: str, found: Sequence[Measured], xs: Sequence[float], figure: Figure) -> Series:
    points = [(x, y) for x, each in zip(xs, found, strict=True) if (y := figure(each)) is not None]
    return Series(label, [x for x, _ in points], [y for _, y in points])


def _picture(about: _Axes, lines: Sequence[Series]) -> Iterator[Image]:
    """One picture of the lines that have points; none without any."""
    if not (lines := [line for line in lines if line.ys]):
        return
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(3.9, 2.5 + 0.18 * len(lines))
        draw_marked(axes, lines)
        axes.set_title(about.title, fontsize=10, loc="left")
        axes.set_xlabel(about.x_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=about.x_label == FINISHED))
        if about.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.margins(y=0.12)
        figure.legend(frameon=False, fontsize=8, loc="outside lower left", handlelength=3.2)
        form = ".1%" if about.percent else ".4f"
        said = " ".join(f"{line.label}: {_points(line, form)}." for line in lines)
        yield drawn(figure, f"{about.title}, against {about.x_label}. {said}")


def _points(line: Series, form: str) -> str:
    return ", ".join(f"{y:{form}} at {x:.4g}" for x, y in zip(line.xs, line.ys, strict=True))
