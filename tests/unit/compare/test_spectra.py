"""The report's section on spectra: means over seeds by hand, and what is said where a record has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.compare.agreement import agreements
from rlpost.compare.design.types import INIT, ArmsAgreement, Cell, Comparison
from rlpost.compare.report import spectra
from rlpost.compare.report.findings import findings
from rlpost.compare.report.page import write
from rlpost.compare.report.view import Section, View
from rlpost.compare.statistics.spectra import arm_spectra, seed_mean
from rlpost.record.spectrum import mean_agreement
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.spectrum import agreement
from tests.learner_data import write_small_model
from tests.unit.compare.comparisons import comparison, done, evaluation, failed
from tests.unit.pages import Page, assert_inert
from tests.unit.verbs import recorded

FIGURES = {"cosine": 0.5, "columns": 0.75, "columns_by_chance": 0.1, "rows": 0.25, "rows_by_chance": 0.2}


def cell(arm: str, seed: int, spectrum: dict[str, float] | None) -> Cell:
    share = 0.0 if arm == INIT else 1.0
    return replace(done(arm, seed, {share: {"a": evaluation([1, 0, 1, 0])}}), spectrum=spectrum)


def of(norm: float) -> dict[str, float]:
    return {
        "relative_norm": norm,
        "effective_rank": 100 * norm,
        "stable_rank": 2.0,
        "intruders": 3.0,
        "examined": 42,
        "principal_share": norm,
        "principal_by_chance": 0.25,
    }


def compared(*cells: Cell, pairs: tuple[ArmsAgreement, ...] = ()) -> Comparison:
    seeds = sorted({each.seed for each in cells})
    return comparison(cells, seeds, ("a",), agreements=pairs)


FULL = compared(
    *(cell(INIT, seed, None) for seed in (0, 1)),
    *(cell("sft", seed, of(norm)) for seed, norm in ((0, 0.02), (1, 0.04))),
    cell("ppo", 0, of(0.01)),
    cell("ppo", 1, None),
    pairs=(
        ArmsAgreement(0, "sft", "ppo", FIGURES),
        ArmsAgreement(1, "sft", "ppo", {**FIGURES, "cosine": 0.7}),
    ),
)


def section(found: Comparison) -> Section:
    made = spectra.section(View(found, findings(found)))
    assert made is not None
    return made


def test_a_mean_over_seeds_by_hand() -> None:
    """Of 1, 2 and 3: deviation 1, standard error 1 / sqrt(3), t of two degrees of freedom 4.3027."""
    found = seed_mean([1.0, 2.0, 3.0])
    assert found.interval is not None
    assert (found.value, found.seeds) == (2.0, 3)
    assert (found.interval.low, found.interval.high) == pytest.approx(
        (2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)
    )
    assert seed_mean([5.0]).interval is None


def test_the_tables_have_what_was_measured() -> None:
    assert [each.arm for each in arm_spectra(FULL)] == ["sft", "ppo"]
    made = section(FULL)
    arms, pairs = made.tables
    sft, ppo = arms.rows
    assert sft[0] == "sft"
    assert sft[1].startswith("3.00% [")
    assert sft[1].endswith("2 seeds")
    assert sft[2].startswith("3.0 [")
    assert sft[4] == "3.0 [3.0, 3.0]\n2 seeds"
    assert sft[5].startswith("3.00% [")
    assert sft[5].endswith("2 seeds\nby chance 25.00%")
    assert ppo[1] == "1.00%\n1 seed"
    [pair] = pairs.rows
    assert pair[0] == "sft and ppo"
    assert pair[1].startswith("+0.600 [")
    assert "by chance 0.100" in pair[2]
    assert "by chance 0.200" in pair[3]


def test_a_record_without_a_spectrum_is_named() -> None:
    assert made_without(section(FULL)) == "ppo with seed 1"
    older = section(compared(cell(INIT, 0, None), cell("sft", 0, None)))
    assert (made_without(older), older.tables) == ("sft with seed 0", ())


def made_without(made: Section) -> str:
    return made.reading.partition("Without a spectrum.json, and so not counted: ")[2].removesuffix(".")


def test_where_nothing_was_trained_there_is_no_section() -> None:
    found = compared(cell(INIT, 0, None), failed("sft", 0))
    assert spectra.section(View(found, findings(found))) is None


def test_the_pages_have_the_section(tmp_path: Path) -> None:
    html = write(FULL, tmp_path).read_text()
    page = Page(html)
    assert_inert(page, html)
    for text in (page.text, (tmp_path / "report.md").read_text()):
        assert "What the updates did to the weights" in text
        assert "sft and ppo" in text


def test_arms_are_compared_since_their_start_by_their_adapters(tmp_path: Path) -> None:
    small = write_small_model(tmp_path / "model")
    adapters = {arm: recorded.adapter_for(small, "x", seed=i) for i, arm in enumerate((INIT, "sft", "ppo"))}
    cells = [cell(arm, 0, None) for arm in adapters]
    for each in cells:
        adapters[each.arm].save(tmp_path / each.run_dir / "adapter")
    found = agreements(compared(*cells, failed("grpo", 0)), tmp_path, small, None)
    expected = mean_agreement(agreement(adapters["sft"], adapters["ppo"], BaseWeights(small), adapters[INIT]))
    assert found == (ArmsAgreement(0, "sft", "ppo", expected),)
    assert expected["cosine"] > 0.2, "both left the same start"
    recorded.adapter_for(small, "x", use_dora=True).save(tmp_path / cells[1].run_dir / "adapter")
    assert agreements(compared(*cells), tmp_path, small, None) == ()


def test_a_start_without_training_is_the_adapter_that_the_comparison_was_given(tmp_path: Path) -> None:
    small = write_small_model(tmp_path / "model")
    start, *trained = (recorded.adapter_for(small, "x", seed=i) for i in range(3))
    start.save(tmp_path / "given")
    cells = [cell(arm, 0, None) for arm in (INIT, "sft", "ppo")]
    for each, adapter in zip(cells[1:], trained, strict=True):
        adapter.save(tmp_path / each.run_dir / "adapter")
    found = agreements(compared(*cells), tmp_path, small, tmp_path / "given")
    expected = mean_agreement(agreement(*trained, BaseWeights(small), start))
    assert found == (ArmsAgreement(0, "sft", "ppo", expected),)
    assert agreements(compared(*cells), tmp_path, small, None) != found
