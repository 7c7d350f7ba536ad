from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from rlpost.compare.design.types import INIT, ComparedVariant, Comparison, Role
from rlpost.compare.report import sentences
from rlpost.compare.report.findings import Findings, findings
from rlpost.compare.report.sentences import Answer, Question
from rlpost.compare.statistics.directions import Change, ContrastResult, Direction, held_out_change
from rlpost.errors import ComparisonError
from tests.unit.compare.comparisons import Table, comparison, done, evaluation, failed, missing, of_tables

N = 200
VARIANTS = ("trained", "faces", "target")


def _tables(chances: Mapping[str, tuple[float, ...]], seeds: int = 3) -> Comparison:
    """Success with these chances on VARIANTS, the same deals hard for every arm."""
    rng = np.random.default_rng(11)
    hard = {variant: rng.random(N) for variant in VARIANTS}
    return of_tables(
        {
            arm: {
                variant: [
                    (hard[variant] + 0.05 * rng.standard_normal(N) < chance).tolist() for _ in range(seeds)
                ]
                for variant, chance in zip(VARIANTS, each, strict=True)
            }
            for arm, each in chances.items()
        }
    )


def _found(sft: tuple[float, ...], ppo: tuple[float, ...], seeds: int = 3) -> Findings:
    return findings(_tables({INIT: (0.3, 0.3, 0.3), "sft": sft, "ppo": ppo}, seeds))


def test_the_papers_finding() -> None:
    found = _found(sft=(0.6, 0.1, 0.1), ppo=(0.5, 0.5, 0.5))
    directions = {(row.contrast, row.variant): row.direction for row in found.contrasts}
    assert directions == {
        ("sft - init", "trained"): Direction.UP,
        ("sft - init", "faces"): Direction.DOWN,
        ("sft - init", "target"): Direction.DOWN,
        **{("ppo - init", variant): Direction.UP for variant in VARIANTS},
        ("ppo - sft", "trained"): Direction.DOWN,
        ("ppo - sft", "faces"): Direction.UP,
        ("ppo - sft", "target"): Direction.UP,
    }
    assert found.problems == ()
    assert found.sentences[0].startswith(
        "Did SFT memorize? Yes: it gained on the trained rule and lost on held-out"
    )
    assert found.sentences[1].startswith("Did RL (PPO) generalize? Yes: it gained on every held-out rule.")
    assert found.sentences[2].startswith(
        "PPO against SFT, at equal FLOPs: PPO is ahead on every held-out rule"
    )
    assert "How sure: the brackets hold for all 3 variants" in found.sentences[3]
    assert "3 seeds and 200 distinct evaluation instances" in found.sentences[3]


@pytest.mark.parametrize(
    ("sft", "told"),
    [
        ((0.6, 0.1, 0.3), "In part: it gained"),
        ((0.6, 0.3, 0.3), "Unclear"),
        ((0.6, 0.5, 0.3), "No: it gained on held-out rules and clearly lost on none"),
        ((0.6, 0.5, 0.1), "Mixed"),
        ((0.3, 0.1, 0.1), "It lost on held-out rules, but without a clear gain on the trained one"),
    ],
)
def test_answers_about_sft(sft: tuple[float, ...], told: str) -> None:
    assert _found(sft, ppo=(0.3, 0.3, 0.3)).sentences[0].startswith(f"Did SFT memorize? {told}")


@pytest.mark.parametrize(
    ("ppo", "told"),
    [
        ((0.5, 0.5, 0.3), "In part: it gained on some held-out rules"),
        ((0.5, 0.3, 0.3), "Unclear"),
        ((0.5, 0.1, 0.3), "No: it lost on held-out rules and clearly gained on none"),
        ((0.5, 0.1, 0.5), "Mixed"),
    ],
)
def test_answers_about_rl(ppo: tuple[float, ...], told: str) -> None:
    assert _found((0.3, 0.3, 0.3), ppo).sentences[1].startswith(f"Did RL (PPO) generalize? {told}")


# What the held-out rules' directions say together, and what follows for each question. With it, `learned`: whether the
# trained rule went up, which counts for memorizing alone.
CHANGES = [
    ("up up", Change.UP, Answer.NO, Answer.YES),
    ("up unclear", Change.PARTLY_UP, Answer.NO, Answer.IN_PART),
    ("up unknown", Change.PARTLY_UP, Answer.NO, Answer.IN_PART),
    ("down down", Change.DOWN, Answer.YES, Answer.NO),
    ("down unknown", Change.PARTLY_DOWN, Answer.IN_PART, Answer.NO),
    ("up down", Change.MIXED, Answer.MIXED, Answer.MIXED),
    ("unclear unknown", Change.UNCLEAR, Answer.UNCLEAR, Answer.UNCLEAR),
    ("unknown unknown", Change.UNKNOWN, Answer.UNKNOWN, Answer.UNKNOWN),
]


@pytest.mark.parametrize(("directions", "change", "memorized", "gained"), CHANGES)
def test_one_decision_answers_all_three_questions(
    directions: str, change: Change, memorized: Answer, gained: Answer
) -> None:
    def rows(trained: Direction) -> list[ContrastResult]:
        held_out = [
            ContrastResult(f"h{i}", Role.HELD_OUT, "x", INIT, Direction(v), None)
            for i, v in enumerate(directions.split())
        ]
        elsewhere = ContrastResult(
            "e", Role.SAME_RULE, "x", INIT, Direction.DOWN, None
        )  # speaks for no held-out rule
        return [ContrastResult("t", Role.TRAINED, "x", INIT, trained, None), *held_out, elsewhere]

    assert held_out_change(rows(Direction.UP)) is change
    assert sentences._did_it_memorize("sft", rows(Direction.UP)).answer is memorized
    unlearned = Answer.NO if change in (Change.DOWN, Change.PARTLY_DOWN) else memorized
    assert sentences._did_it_memorize("sft", rows(Direction.UNCLEAR)).answer is unlearned
    assert sentences._did_it_generalize("ppo", rows(Direction.UP)).answer is gained
    assert sentences._who_is_ahead("ppo", "sft", rows(Direction.UP), "flops").answer is gained


def test_a_finding_is_data() -> None:
    found = _found(sft=(0.6, 0.1, 0.1), ppo=(0.5, 0.5, 0.5))
    assert [(each.question, each.answer) for each in found.answers if each.question] == [
        (Question.MEMORIZED, Answer.YES),
        (Question.GENERALIZED, Answer.YES),
        (Question.AHEAD, Answer.YES),
    ]
    assert found.sentences == tuple(map(str, found.answers))
    assert found.answers[0].headline.endswith("lost on held-out ones.")
    assert found.answers[0].details.startswith("trained (trained): +")


def test_brackets_are_those_of_the_differences() -> None:
    found = _found(sft=(0.6, 0.1, 0.1), ppo=(0.5, 0.5, 0.5))
    row = next(row for row in found.contrasts if (row.contrast, row.variant) == ("sft - init", "faces"))
    assert row.difference is not None
    ends = row.difference.simultaneous
    text = f"faces (held out): {100 * ends.value:+.1f} points [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]"
    assert text in found.sentences[0]


def test_one_seed_is_said_loudly() -> None:
    found = _found(sft=(0.6, 0.1, 0.1), ppo=(0.5, 0.5, 0.5), seeds=1)
    assert "in the one training seed that there is" in found.sentences[0]
    assert any(sentence.startswith("ONE SEED") for sentence in found.sentences)
    assert not any(s.startswith("ONE SEED") for s in _found((0.6, 0.1, 0.1), (0.5, 0.5, 0.5)).sentences)


def test_failed_and_missing_cells_come_first_and_are_named() -> None:
    start, end = evaluation([0, 1, 0, 1]), evaluation([1, 1, 1, 1])
    cells = [
        *(done(INIT, seed, {0.0: {"v": start, "h": start}}) for seed in range(3)),
        *(done("sft", seed, {1.0: {"v": end, "h": end}}) for seed in (0, 2)),
        failed("sft", 1),
        missing("ppo", 0),
        failed("ppo", 1),
    ]
    found = findings(comparison(cells, [0, 1, 2], ["v", "h"]))
    assert found.sentences[: len(found.problems)] == found.problems
    assert found.problems == (
        "FAILED: sft, seed 1; no number here has it. It ended with: LearnerError: loss not finite",
        "MISSING: ppo, seed 0 has not been run; no number here has it.",
        "FAILED: ppo, seed 1; no number here has it. It ended with: LearnerError: loss not finite",
        "MISSING: ppo, seed 2 has not been run; no number here has it.",
        "FEWER SEEDS: sft - init is of 2 seeds; left out, as one of the two is missing: 1.",
        "NOT COMPARED: ppo - init: no seed has both.",
        "NOT COMPARED: ppo - sft: no seed has both.",
    )
    assert {row.direction for row in found.contrasts if row.arm == "ppo"} == {Direction.UNKNOWN}
    assert any("generalize? Unknown: no seed has both PPO and its start" in s for s in found.sentences)


def test_the_whole_reason_of_a_failure_is_told() -> None:
    """Errors of the files that a cell left begin with a path; the reason stands in a line below."""
    cell = replace(failed("sft", 0), error="cells/sft-0/x.jsonl\n  reason: cut short\n  remedy: delete it")
    told = findings(comparison([cell], [0], ["v"])).problems
    assert any(
        t.endswith("ended with: cells/sft-0/x.jsonl reason: cut short remedy: delete it") for t in told
    )


def test_nothing_at_all() -> None:
    found = findings(comparison([], [0], ["v", "h"], arms=("sft", "ppo")))
    assert len(found.problems) == 6
    assert any("Did SFT memorize? Unknown" in sentence for sentence in found.sentences)


def test_no_held_out_variant() -> None:
    found = findings(of_tables({INIT: {"v": [[1, 0]]}, "sft": {"v": [[1, 1]]}}))
    assert found.sentences[0].startswith("No held-out rule was evaluated")


def test_other_cities_under_the_trained_rule_are_no_held_out_rule() -> None:
    """SFT gains in the trained rule, there and elsewhere, and loses the held-out one: it has memorized the rule."""
    tables: dict[str, Table] = {"v": [[0] * 60], "h": [[1] * 60], "elsewhere": [[0] * 60]}
    learnt: dict[str, Table] = {"v": [[1] * 60], "h": [[0] * 60], "elsewhere": [[1] * 60]}
    roles = {"v": Role.TRAINED, "h": Role.HELD_OUT, "elsewhere": Role.SAME_RULE}
    infos = {name: ComparedVariant(role, name) for name, role in roles.items()}
    told = findings(replace(of_tables({INIT: tables, "sft": learnt}), variants=infos)).sentences
    assert told[0].startswith(
        "Did SFT memorize? Yes: it gained on the trained rule and lost on held-out ones"
    )
    assert "elsewhere (trained rule elsewhere): +" in told[0]


def test_memorization_and_turns() -> None:
    misread = evaluation([0] * 9 + [1], outcomes=("RULE_MISREAD",) * 6 + ("SYNTAX",) * 3 + ("CORRECT",))
    late = evaluation([1] * 5 + [0] * 5, solved_at=(1, 2, 2, 2, 2, 0, 0, 0, 0, 0))
    cells = [
        done(INIT, 0, {0.0: {"v": misread, "h": late}}),
        done("sft", 0, {1.0: {"v": late, "h": misread}}),
    ]
    told = findings(comparison(cells, [0], ["v", "h"])).sentences
    assert any(
        s.startswith("Failures on h that are the trained rule applied: the start 0% [0%, 43%], SFT 67%")
        for s in told
    )
    assert (
        "Verification turns after the first add, in points, mean of the held-out rules: the start +40.0, SFT +0.0."
        in told
    )
    clean = findings(of_tables({INIT: {"v": [[1, 0]], "h": [[1, 0]]}}))
    assert "No failure on a held-out rule was the trained rule applied." in clean.sentences


@pytest.mark.parametrize("outcome", ["WRONG", "RULE_MISREAD"])
def test_what_was_not_measured_is_not_denied(outcome: str) -> None:
    """Of an environment that does not declare which outcome is the trained rule applied."""
    missed = evaluation([1, 0], outcomes=("RIGHT", outcome))
    cells = [
        done(INIT, 0, {0.0: {"v": missed, "h": missed}}),
        done("sft", 0, {1.0: {"v": missed, "h": missed}}),
    ]
    told = findings(comparison(cells, [0], ["v", "h"], env="mine:Env", causes={})).sentences
    assert not [sentence for sentence in told if "trained rule applied" in sentence]


def test_deals_that_were_drawn_twice_count_once() -> None:
    drawn = tuple(f"deal {i % 3}" for i in range(6))
    scored = evaluation([1, 0, 1, 1, 0, 1], instances=drawn)
    cells = [done(arm, 0, {share: {"t": scored}}) for arm, share in ((INIT, 0.0), ("ppo", 1.0))]
    told = findings(comparison(cells, [0], ["t"])).sentences
    assert any("one seed and 3 distinct evaluation instances" in sentence for sentence in told)


def test_episodes_that_the_environment_ended_are_told() -> None:
    scored = evaluation([1, 0, 0], outcomes=("CORRECT", "ENV_TIMEOUT", "ENV_ERROR"))
    cells = [done(INIT, 0, {0.0: {"t": evaluation([1, 0, 0])}}), done("ppo", 0, {1.0: {"t": scored}})]
    assert findings(comparison(cells, [0], ["t"])).problems == (
        "BROKEN: the environment ended 2 of 3 episodes of ppo, seed 0, on t; they count as not solved.",
    )


def test_settings_are_compared_within_and_across() -> None:
    chances = {
        INIT: (0.3, 0.3, 0.3),
        "sft.low": (0.6, 0.1, 0.1),
        "ppo.low": (0.5, 0.5, 0.5),
        "sft.high": (0.6, 0.1, 0.1),
        "ppo.high": (0.8, 0.5, 0.5),
    }
    found = findings(_tables(chances))
    assert list(dict.fromkeys(row.contrast for row in found.contrasts)) == [
        *("sft.low - init", "ppo.low - init", "sft.high - init", "ppo.high - init"),
        *("ppo.low - sft.low", "ppo.high - sft.high"),
        *("sft.high - sft.low", "ppo.high - ppo.low"),
    ]
    told = " | ".join(found.sentences)
    assert "Did SFT (low) memorize? Yes" in told
    assert "PPO (high) against SFT (high), at equal FLOPs: PPO (high) is ahead on every held-out rule" in told
    (across,) = [each for each in found.answers if str(each).startswith("PPO (high) against PPO (low)")]
    assert across.question is None, "a remark: the intervals say what changed"
    assert "trained (trained): +3" in str(across) or "trained (trained): +2" in str(across)


def test_an_arm_is_judged_by_its_own_start() -> None:
    """PPO ends where it began after the long warm start, which has lost what the short one had."""
    chances = {
        "init.short": (0.3, 0.8, 0.8),
        "init.long": (0.6, 0.1, 0.1),
        "ppo.short": (0.6, 0.8, 0.8),
        "ppo.long": (0.6, 0.6, 0.6),
    }
    found = findings(_tables(chances))
    told = " | ".join(found.sentences)
    assert "Did RL (PPO (long)) generalize? Yes" in told
    assert "Did RL (PPO (short)) generalize? Yes" not in told
    (starts,) = [str(each) for each in found.answers if str(each).startswith("the start (long) against")]
    assert starts.startswith("the start (long) against the start (short):")
    assert ": -" in starts


def test_a_control_is_compared_with_its_algorithm_and_not_with_sft() -> None:
    start, learned = (0.3, 0.3, 0.3), (0.6, 0.6, 0.6)
    found = findings(
        _tables({INIT: start, "sft": start, "grpo": learned, "grpo_no_kl": learned, "grpo_shuffled": start})
    )
    assert list(dict.fromkeys(row.contrast for row in found.contrasts if row.baseline != INIT)) == [
        *("grpo - sft", "grpo_no_kl - sft", "grpo_no_kl - grpo", "grpo_shuffled - grpo"),
    ]
    told = " | ".join(found.sentences)
    assert "Did RL (GRPO with shuffled rewards) generalize? Unclear" in told
    assert (
        "GRPO with shuffled rewards against GRPO, at equal FLOPs: GRPO is ahead on every held-out rule"
        in told
    )
    assert "GRPO without KL against SFT, at equal FLOPs: GRPO without KL is ahead" in told


def test_an_arm_of_another_version_is_named_with_the_nearest() -> None:
    with pytest.raises(ComparisonError, match=r"there is no arm grpo_shufled\. did you mean grpo_shuffled"):
        findings(_tables({INIT: (0.3, 0.3, 0.3), "grpo_shufled": (0.3, 0.3, 0.3)}))


def _with_fake_rule() -> Comparison:
    """SFT keeps to the trained rule in 3 of 4 instances, PPO in none."""
    solved = {INIT: [1, 1, 0, 0], "sft": [1, 1, 1, 0], "ppo": [0, 0, 0, 0]}
    made = of_tables(
        {arm: {"t": [[1, 1, 1, 1]], "h": [[0, 0, 0, 0]], "f": [each]} for arm, each in solved.items()}
    )
    return replace(made, variants={**made.variants, "f": ComparedVariant(Role.FAKE_RULE, "about f")})


def test_a_fake_rule_has_its_own_sentence_and_is_in_no_held_out_finding() -> None:
    found = findings(_with_fake_rule())
    (told,) = [each for each in found.answers if each.headline.startswith("Kept to the trained rule")]
    assert told.headline.startswith(
        "Kept to the trained rule on f, though the prompt states another: the start 50% ["
    )
    assert ", SFT 75% [" in told.headline
    assert ", PPO 0% [" in told.headline
    rows = [row for row in found.contrasts if row.variant == "f"]
    assert rows
    assert not any(row.held_out for row in rows)
    assert not any("Kept to" in each for each in findings(_tables({INIT: (0.3, 0.3, 0.3)})).sentences)
