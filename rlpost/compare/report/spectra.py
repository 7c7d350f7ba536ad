"""The report's section on what the arms did to the spectrum of the weights."""

from __future__ import annotations

from rlpost.compare.report.view import Section, Table, View, told
from rlpost.compare.statistics.spectra import ArmSpectrum, arm_spectra, lacking, pair_agreements

_READING = (
    "Each arm's update of the weights at its end, as a mean over seeds with its 95% t interval (none of one seed). The"
    " norm is a share of the base weights' norm, the ranks are means of the modules, and intruders are counted among"
    " the leading singular vectors of the modules that were searched. The principal share is that of the update's"
    " squared norm in the span of the base weights' leading singular vectors, with what chance gives in brackets."
    " docs/adapters.md says how to read each figure."
)
_PAIRS = (
    " Agreement of two arms with one seed, since their common start: the cosine of their updates, and the mean squared"
    " cosine of the principal angles between their leading column and row spaces, with what chance gives in brackets."
)
_FORMS = {"relative_norm": ".2%", "effective_rank": ".1f", "stable_rank": ".2f", "intruders": ".1f"}


def section(view: View) -> Section | None:
    """None unless some cell has a spectrum, or should have one."""
    spectra, without = arm_spectra(view.comparison), lacking(view.comparison)
    if not spectra and not without:
        return None
    pairs = pair_agreements(view.comparison.agreements)
    reading = _READING + (_PAIRS if pairs else "")
    if without:
        names = ", ".join(f"{cell.arm} with seed {cell.seed}" for cell in without)
        reading += f" Without a spectrum.json, and so not counted: {names}."
    arms = tuple(
        (each.arm, *(told(each.figures.get(name), form) for name, form in _FORMS.items()), _principal(each))
        for each in spectra
    )
    agreeing = tuple(
        (
            f"{first} and {second}",
            told(means["cosine"], "+.3f"),
            *(
                f"{told(means[s], '.3f')}\nby chance {means[f'{s}_by_chance'].value:.3f}"
                for s in ("columns", "rows")
            ),
        )
        for (first, second), means in pairs.items()
    )
    tables = (
        [Table(("arm", "norm", "effective rank", "stable rank", "intruders", "principal share"), arms, 5)]
        if arms
        else []
    )
    tables += [Table(("arms", "cosine", "columns", "rows"), agreeing, 3)] if agreeing else []
    return Section("What the updates did to the weights", reading, tables=tuple(tables))


def _principal(arm: ArmSpectrum) -> str:
    share, by_chance = (arm.figures.get(f"principal_{name}") for name in ("share", "by_chance"))
    return told(share, ".2%") + ("" if by_chance is None else f"\nby chance {by_chance.value:.2%}")
