"""The sections of the report, as titled pictures and tables, from which both the HTML and the Markdown page are made.

    Comparison, Findings ─▶ View ─▶ results, set_up ─▶ Section (title, how to read it, pictures, tables)

The sections show the findings; they compute nothing except means of the compute spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean

from rlpost.compare.design.types import UNITS, Cell, Evaluation, Status
from rlpost.compare.report import pictures, retention, spectra
from rlpost.compare.report.pictures import Bar, Contrast, Line, points, short
from rlpost.compare.report.view import Section, Table, View, percent
from rlpost.compare.statistics.causes import Causes, measures_memorization
from rlpost.compare.statistics.directions import ContrastResult, Direction
from rlpost.compare.statistics.estimates import Difference, Success, rate_of
from rlpost.envs.causes import ORDER, RULE_MISREAD
from rlpost.pages.images import Image
from rlpost.record.summary import MISSING

TURNS = (1, 2, 3, 5, 10)  # turns shown for long episodes, besides the last


def results(view: View) -> Iterator[Section]:
    """The sections of results, in the order of the page; none if nothing was evaluated."""
    if not view.findings.successes:
        return
    yield _success(view)
    if view.findings.contrasts:
        yield _differences(view)
        if (along := _along_the_budget(view)) is not None:
            yield along
    yield _causes(view)
    if any(len(success.by_turn) > 1 for success in view.findings.successes):
        yield _turns(view)
    if (updates := spectra.section(view)) is not None:
        yield updates
    if (lost := retention.section(view)) is not None:
        yield lost
    for unit, name in UNITS.items():
        if unit == view.comparison.matched_on or not view.counts(unit):
            continue
        if curves := tuple(_curves(view, unit)):
            reading = f"The same success against {name}, on which the arms were not matched."
            yield Section(f"Success against {name}", reading, curves, grid=True, folded=True)


def set_up(view: View) -> Iterator[Section]:
    """The sections on what was run, which follow the results."""
    yield _cells(view)
    yield _notes(view)


def _success(view: View) -> Section:
    unit = view.comparison.matched_on
    reading = (
        "Share of instances solved, with its 95% interval over seeds and instances. In the pictures an arm is a heavy"
        " line in the band of its intervals, each of its seeds a faint line; all arms start from init, where compute"
        f" is 0, and may spend the same {UNITS[unit]}. Every picture has its own scale."
    )
    if view.has_steps:
        reading += (
            " Right steps: answers that earned a reward above 0, further attempts included, of all answers."
        )
    return Section("Success", reading, tuple(_curves(view, unit)), (_success_table(view),), grid=True)


def _success_table(view: View) -> Table:
    base, rows = view.comparison.base, []
    for variant in view.variants:
        summary = view.comparison.variants[variant].summary
        rates = [_rate(view, view.last(arm, variant)) for arm in view.arms]
        bare = [_bare(base.get(variant))] if base is not None else []
        rows.append((f"{variant}\n{summary}", view.role(variant), *bare, *rates))
    columns = (*(["bare model"] if base is not None else []), *view.arms)
    return Table(("rule", "in training", *columns), tuple(rows), len(columns))


def _bare(evaluation: Evaluation | None) -> str:
    """The success of the model before training. It is one policy, so the interval covers the instances alone."""
    return MISSING if evaluation is None else percent(rate_of({0: evaluation}))


def _rate(view: View, success: Success | None) -> str:
    if success is None:
        return MISSING
    said = f"{percent(success.rate)}\n{len(success.seeds)} {'seed' if len(success.seeds) == 1 else 'seeds'}"
    if success.missing:
        said += f", {len(success.missing)} missing"
    steps = view.step_accuracies(success)
    return f"{said}\nright steps {fmean(steps):.1%}" if steps and view.has_steps else said


def _curves(view: View, unit: str) -> Iterator[Image]:
    common = view.comparison.starts[0] if len(view.comparison.starts) == 1 else None
    for variant in view.variants:
        start = None if common is None else view.last(common, variant)
        if arms := [arm for arm in view.comparison.arms if view.shares(arm, variant)]:
            yield pictures.lines(
                view.heading(variant),
                [_line(view, arm, variant, unit) for arm in arms],
                start.rate if start is not None else None,
                f"{UNITS[unit]} since init",
            )


def _line(view: View, arm: str, variant: str, unit: str) -> Line:
    """An arm's curve. It begins at its start, which is evaluated once for all arms."""
    start = view.last(view.comparison.start_of(arm), variant)
    way = [] if start is None or 0.0 in view.shares(arm, variant) else [(0.0, start)]
    for share in view.shares(arm, variant):
        way.append((fmean(view.spent(arm, share, unit)), view.at(arm, variant, share)))
    seeds = sorted({seed for _, success in way for seed in success.seeds})
    faint = [[(x, s.per_seed[s.seeds.index(seed)]) for x, s in way if seed in s.seeds] for seed in seeds]
    return Line(arm, [x for x, _ in way], [s.rate for _, s in way], faint)


def _differences(view: View) -> Section:
    reading = (
        "Each arm against its start (init), against SFT, against the arm that it varies, and against itself under the"
        " first settings, then the differences of compare.contrasts, at the end of the budget, paired over seeds and"
        " instances. The heavy bar is the 95% interval of"
        " that difference alone; the thin one, and the brackets beside it, hold for all rules at once: where it does"
        " not touch the line at zero, the difference is clear. An arrow: the interval goes on outside the picture. p is"
        " corrected for the number of rules likewise (Bonferroni)."
        " Won and lost: pairs that only the one or only the other solved."
    )
    sides = {
        "Trained rule": [v for v in view.variants if v == view.comparison.train_variant],
        "Other rules": [v for v in view.variants if v != view.comparison.train_variant],
    }
    drawn = [
        pictures.forest(f"{side}: differences in success", groups)
        for side, variants in sides.items()
        if (groups := {view.heading(v): c for v in variants if (c := _contrasts(view, v))})
    ]
    return Section("Differences", reading, tuple(drawn), (_difference_table(view),))


def _contrasts(view: View, variant: str) -> list[Contrast]:
    return [
        Contrast(
            row.contrast,
            row.difference.estimate if row.difference is not None else None,
            row.difference.simultaneous if row.difference is not None else None,
        )
        for row in view.rows(variant)
    ]


def _difference_table(view: View) -> Table:
    head = (
        "rule",
        "difference",
        "direction",
        "points [all rules]",
        "[alone]",
        "p",
        "won / lost",
        "seeds",
    )
    rows = tuple(
        (view.heading(variant) if number == 0 else "", row.contrast, _direction(row), *_numbers(row))
        for variant in view.variants
        for number, row in enumerate(view.rows(variant))
    )
    return Table(head, rows, 5)


def _along_the_budget(view: View) -> Section | None:
    """The differences at every point of the budget; None if there is only its end."""
    found = {(d.variant, d.arm, d.baseline, d.share): d for d in view.findings.differences}
    shares = sorted({share for *_, share in found})
    if len(shares) < 2:
        return None
    rows = tuple(
        (
            view.heading(variant) if number == 0 else "",
            row.contrast,
            *(_points(found.get((variant, row.arm, row.baseline, share))) for share in shares),
        )
        for variant in view.variants
        for number, row in enumerate(view.rows(variant))
    )
    head = ("rule", "difference", *(f"{share:.0%} of the budget" for share in shares))
    reading = (
        "The same differences, in points, when an arm had spent the given share of its budget. The intervals hold for"
        " all rules at once, and not for all shares at once."
    )
    return Section(
        "Differences along the budget", reading, tables=(Table(head, rows, len(shares)),), folded=True
    )


def _points(difference: Difference | None) -> str:
    return MISSING if difference is None else points(difference.simultaneous, difference.estimate.value)


def _direction(row: ContrastResult) -> str:
    return "no pair" if row.direction is Direction.UNKNOWN else row.direction.value


def _numbers(row: ContrastResult) -> tuple[str, ...]:
    difference = row.difference
    if difference is None:
        return (MISSING,) * 5
    left_out = f"\nleft out: {', '.join(map(str, difference.left_out))}" if difference.left_out else ""
    return (
        _points(difference),
        points(difference.estimate),
        f"{difference.p_corrected:.2g}",
        f"{difference.wins} / {difference.losses}",
        f"{len(difference.seeds)}{left_out}",
    )


def _causes(view: View) -> Section:
    measured = measures_memorization(view.comparison)
    reading = "How the episodes ended, by their last answer, at the end of the budget and over all seeds."
    if measured:
        reading += (
            " Black is the old rule applied: what the trained rule's reading would have made right; its share of all"
            " episodes stands beside the bar. The table has its share of the failures, which on a held-out rule is the"
            " memorization figure."
        )
    # The budget's points come in order, so the last one is kept.
    causes = {(each.arm, each.variant): each for each in sorted(view.findings.causes, key=lambda c: c.share)}
    order = _ordered(cause for each in causes.values() for cause in each.shares)
    groups = {
        view.heading(variant): [
            Bar(arm, {cause: causes[arm, variant].shares.get(cause, 0.0) for cause in order})
            for arm in view.arms
            if (arm, variant) in causes
        ]
        for variant in view.variants
    }
    drawn = pictures.stacked_bars(
        "Share of all episodes",
        {g: bars for g, bars in groups.items() if bars},
        RULE_MISREAD if measured else None,
    )
    tables = (_memorization_table(view, causes),) if measured else ()
    return Section("What went wrong", reading, (drawn,), tables)


def _ordered(causes: Iterable[str]) -> list[str]:
    """The causes, known ones first in their fixed order."""
    present = dict.fromkeys(causes)
    return [c for c in ORDER if c in present] + sorted(c for c in present if c not in ORDER)


def _memorization_table(view: View, causes: Mapping[tuple[str, str], Causes]) -> Table:
    rows = [
        (view.heading(variant), *(_memorized(causes.get((arm, variant))) for arm in view.arms))
        for variant in view.variants
    ]
    return Table(("old rule applied, of the failures", *view.arms), tuple(rows), len(view.arms))


def _memorized(causes: Causes | None) -> str:
    if causes is None:
        return MISSING
    if causes.memorization is None:
        return "no failures"
    return f"{percent(causes.memorization)}\nof {causes.failures} failures"


def _turns(view: View) -> Section:
    reading = (
        "Share of instances solved with at most so many attempts, each after the first made with the feedback on the"
        " one before (where an episode has several steps: attempts at one step). The gain is the last share less the"
        " first."
    )
    most = max(len(success.by_turn) for success in view.findings.successes)
    shown = sorted({turn for turn in (*TURNS, most) if turn <= most})
    rows, drawn = [], list[Image]()
    for variant in view.variants:
        ends = {arm: success for arm in view.arms if (success := view.last(arm, variant)) is not None}
        for number, (arm, success) in enumerate(ends.items()):
            rows.append((view.heading(variant) if number == 0 else "", arm, *_by_turn(success, shown)))
        shares = {arm: success.by_turn for arm, success in ends.items()}
        if shares:
            drawn.append(pictures.turns(view.heading(variant), shares))
    table = Table(
        ("rule", "arm", *(f"within {n}" for n in shown), "gain, points"), tuple(rows), len(shown) + 1
    )
    return Section("Gain per verification turn", reading, tuple(drawn), (table,), grid=True)


def _by_turn(success: Success, turns: list[int]) -> list[str]:
    """Success by turn. After its longest episode an arm solves no more."""
    shares = [success.by_turn[min(turn, len(success.by_turn)) - 1] for turn in turns]
    return [*(f"{share:.1%}" for share in shares), f"{100 * (shares[-1] - shares[0]):+.1f}"]


def _cells(view: View) -> Section:
    reading = (
        "One run for each arm and seed, failed and missing ones first, with what it spent since init (init: since the"
        " bare model), evaluations not counted. FLOPs: 6ND for training and 2ND for inference, N parameters, D"
        " measured tokens (arXiv 2501.17161, appendix)."
    )
    worst = (Status.FAILED, Status.MISSING, Status.DONE)
    ordered = sorted(view.comparison.cells, key=lambda cell: worst.index(cell.status))
    head = ("arm", "seed", "status", "run directory", *UNITS.values())
    return Section("Cells", reading, tables=(Table(head, tuple(map(_cell, ordered)), len(UNITS)),))


def _cell(cell: Cell) -> tuple[str, ...]:
    status = f"{cell.status.value}\n{cell.error}" if cell.error else cell.status.value
    last = max(cell.points, key=lambda point: point.share, default=None)
    spent = [None if last is None else getattr(last.compute, unit) for unit in UNITS]
    return (
        cell.arm,
        str(cell.seed),
        status,
        cell.run_dir,
        *(MISSING if x is None else short(x) for x in spent),
    )


def _notes(view: View) -> Section:
    comparison = view.comparison
    facts = {
        "environment": comparison.env,
        "model": comparison.model,
        "arms": ", ".join(comparison.arms),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "matched on": UNITS[comparison.matched_on],
        **comparison.notes,
    }
    return Section("Set-up", "What was run, and on what.", tables=(Table(("", ""), tuple(facts.items())),))
