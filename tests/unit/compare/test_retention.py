"""What the arms lost: means over seeds and pictures by hand, paired differences, and what a cell's record gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.compare import results
from rlpost.compare.design.types import INIT, Cell, Comparison, Evaluation, Retained
from rlpost.compare.reading import evaluation_of
from rlpost.compare.report import retention
from rlpost.compare.report.findings import findings
from rlpost.compare.report.page import write
from rlpost.compare.report.view import Section, View
from rlpost.compare.retained import retained
from rlpost.compare.statistics.estimates import differences
from rlpost.compare.statistics.retention import ELSEWHERE, RULES, TEXT, elsewhere, ways
from rlpost.record import retention as record
from rlpost.record.run_dir import RunDir, read_trajectories
from tests.unit.compare.comparisons import comparison, done, evaluation
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page, assert_inert


def kept(share: float, solved: Sequence[int], text: float, forward: float) -> Retained:
    kl = {"forward/k3_token": forward, "reverse/k3_token": forward / 2}
    return Retained(share, {"faces_10": evaluation(solved)}, text, kl)


def cell(arm: str, seed: int, *stages: Retained, rules: Mapping[float, Sequence[int]]) -> Cell:
    points = {
        share: {"absolute": evaluation([1, 1, 0, 0]), "relative": evaluation(solved)}
        for share, solved in rules.items()
    }
    return replace(done(arm, seed, points), retention=stages)


START = kept(0.0, [1, 1, 1, 0], 0.10, 0.0)
INITS = [cell(INIT, seed, rules={0.0: [1, 1, 0, 0]}) for seed in (0, 1)]
SFT = [
    cell(
        "sft",
        seed,
        START,
        kept(0.5, [1, 1, 0, 0], 0.20, 0.1 + 0.1 * seed),
        kept(1.0, [0, 0, 0, 0], 0.40 + 0.2 * seed, 0.4),
        rules={0.5: [1, 0, 0, 0], 1.0: [0, 0, 0, 0]},
    )
    for seed in (0, 1)
]
PPO = [
    cell(
        "ppo",
        seed,
        START,
        kept(0.5, [1, 1, 1, 0], 0.10, 0.01),
        kept(1.0, [1, 1, 0, 0], 0.11, 0.02),
        rules={0.5: [1, 1, 0, 0], 1.0: [1, 1, 1, 0]},
    )
    for seed in (0, 1)
]


def compared(*cells: Cell) -> Comparison:
    return comparison(cells, (0, 1), ("absolute", "relative"))


FULL = compared(*INITS, *SFT, *PPO)


def section(found: Comparison) -> Section:
    made = retention.section(View(found, findings(found)))
    assert made is not None
    return made


def test_the_ways_by_hand() -> None:
    found = ways(FULL, "forward")
    assert list(found) == [ELSEWHERE, RULES, TEXT]
    sft, ppo = found[ELSEWHERE]
    assert (sft.arm, ppo.arm) == ("sft", "ppo")
    assert [each.value for each in sft.kl] == pytest.approx([0.0, 0.15, 0.4])
    assert [each.value for each in sft.lost] == pytest.approx([0.0, 0.25, 0.75])
    assert [each.value for each in ppo.lost] == pytest.approx([0.0, 0.0, 0.25])
    assert [each.value for each in found[RULES][0].lost] == pytest.approx([0.0, 0.25, 0.5])
    assert [each.value for each in found[RULES][1].lost] == pytest.approx([0.0, 0.0, -0.25])
    assert [each.value for each in found[TEXT][0].lost] == pytest.approx([0.0, 0.1, 0.4])
    assert [each.value for each in ways(FULL, "reverse")[TEXT][0].kl] == pytest.approx([0.0, 0.075, 0.2])


def test_differences_elsewhere_are_those_of_the_existing_statistics() -> None:
    there = elsewhere(FULL)
    assert there is not None
    last = {(each.arm, each.baseline): each for each in differences(there) if each.share == 1.0}
    assert last["sft", INIT].estimate.value == pytest.approx(-0.75)
    assert last["ppo", "sft"].estimate.value == pytest.approx(0.5)
    assert (last["ppo", "sft"].wins, last["ppo", "sft"].losses) == (4, 0)
    assert last["sft", INIT].seeds == (0, 1)


def test_the_section_has_tables_and_pictures() -> None:
    made = section(FULL)
    arms, there = made.tables
    sft, ppo = arms.rows
    assert sft[0] == "sft"
    assert sft[1].startswith("0.4000 [0.4000")
    assert sft[3].startswith("+0.4000 [-")  # 0.3 and 0.5: the t interval of two seeds is wide
    assert ppo[3] == "+0.0100 [+0.0100, +0.0100]\n2 seeds"
    assert [row[0] for row in there.rows] == ["sft - init", "ppo - init", "ppo - sft"]
    assert there.rows[0][2].startswith("-75.0 [")
    assert len(made.pictures) == 6
    assert made.pictures[0].alt == (
        "Success lost, other environment, against KL(start ‖ policy), nats per token."
        " sft: 0.0% at 0.0000, 25.0% at 0.1500, 75.0% at 0.4000."
        " ppo: 0.0% at 0.0000, 0.0% at 0.0100, 25.0% at 0.0200."
    )


def test_a_seed_that_failed_and_a_text_alone() -> None:
    alone = [
        replace(each, retention=tuple(replace(r, evaluations={}) for r in each.retention)) for each in SFT[:1]
    ]
    made = section(compared(*INITS, *alone))
    assert [table.head[0] for table in made.tables] == ["arm"]
    assert made.tables[0].rows[0][3] == "+0.3000\n1 seed"
    assert {TEXT, RULES} == set(ways(compared(*INITS, *alone), "forward"))


def test_without_a_measure_there_is_no_section() -> None:
    plain = compared(*INITS, *(replace(each, retention=()) for each in SFT))
    assert retention.section(View(plain, findings(plain))) is None
    assert elsewhere(plain) is None


def test_pages_and_results_have_it(tmp_path: Path) -> None:
    html = write(FULL, tmp_path).read_text()
    page = Page(html)
    assert_inert(page, html)
    for text in (page.text, (tmp_path / "report.md").read_text()):
        assert "What was lost" in text
        assert "ppo - sft" in text
    assert results.read(results.write(FULL, tmp_path)) == FULL


def test_a_cells_record_is_read_by_share(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "")
    for stage, solved in (("before", 4), ("warm", 3), ("iteration-000001", 2), ("after", 1)):
        played = [episode(turn(), success=i < solved, index=i) for i in range(4)]
        run_dir.write_trajectories(record.episodes_name(stage, "faces_10"), played)
        line = {f"{record.ENV}faces_10/success": solved / 4, f"{record.TEXT}loss": 1.0 / solved}
        kl = {} if stage == "before" else {f"{record.KL}forward/k3_token": 4.0 - solved}
        run_dir.append_metrics({"stage": stage, **line, **kl})

    def evaluation(path: Path) -> Evaluation:
        return evaluation_of(read_trajectories(path))

    found = retained(run_dir, {"iteration-000001": 0.5, "after": 1.0}, evaluation)
    assert [each.share for each in found] == [0.0, 0.5, 1.0]
    assert [sum(each.evaluations["faces_10"].successes) for each in found] == [3, 2, 1]
    assert [each.text for each in found] == [1 / 3, 1 / 2, 1.0]
    assert found[0].kl == {"forward/k3_token": 1.0}
    assert retained(RunDir.create(tmp_path / "other", "name", 0, ""), {"after": 1.0}, evaluation) == ()
