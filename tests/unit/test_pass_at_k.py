"""pass@k and majority@k against every subset counted one by one, and their intervals against simulation."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from rlpost.record.metrics import evaluation, exact_interval, wilson
from rlpost.record.pass_at_k import by_instance, final_answer, majority_at_k, pass_at_k
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, turn


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_solved_one(solved: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(solved)))
    drawn = list(combinations(solved, k))
    counted = sum(map(any, drawn)) / len(drawn)
    assert pass_at_k(len(solved), sum(solved), k) == pytest.approx(counted, abs=1e-12)


def elected(answers: Sequence[str], right: Sequence[float], k: int) -> float:
    """majority@k by looking at every subset of k."""
    total, subsets = 0.0, list(combinations(range(len(answers)), k))
    for subset in subsets:
        votes = Counter(answers[i] for i in subset)
        most = max(votes.values())
        first = [answer for answer, count in votes.items() if count == most]
        each = [
            sum(r for a, r in zip(answers, right, strict=True) if a == answer) / answers.count(answer)
            for answer in first
        ]
        total += sum(each) / len(each)
    return total / len(subsets)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), min_size=1, max_size=9))
def test_majority_at_k_is_that_of_every_subset(given_answers: list[tuple[str, bool]]) -> None:
    """Also where an environment judges equal answers differently."""
    answers, right = [a for a, _ in given_answers], [float(r) for _, r in given_answers]
    counted = [elected(answers, right, k) for k in range(1, len(answers) + 1)]
    assert majority_at_k(answers, right) == pytest.approx(counted, abs=1e-12)


def test_majority_by_hand() -> None:
    """Of a a b: one draw elects b a third of the time; two draw a a, or a tie in two of three; all elect a."""
    assert majority_at_k(["a", "a", "b"], [1, 1, 0]) == pytest.approx([2 / 3, 1 / 3 + 2 / 3 / 2, 1.0])


def test_many_samples_are_quick_and_stay_chances() -> None:
    rng = random.Random(0)
    answers = [str(rng.randrange(40)) for _ in range(256)]
    shares = majority_at_k(answers, [float(a == "7") for a in answers])
    assert len(shares) == 256
    assert shares[0] == pytest.approx(answers.count("7") / 256)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares)
    everything = majority_at_k(answers, [1.0] * 256)
    assert everything == pytest.approx([1.0] * 256)


def test_the_estimate_does_not_depend_on_how_many_are_drawn() -> None:
    """Unbiased: the mean over runs of n = 4 and of n = 12 samples is the same pass@3 of a policy that solves 30%."""
    rng = random.Random(1)

    def mean(n: int) -> float:
        runs = 20_000
        return sum(pass_at_k(n, sum(rng.random() < 0.3 for _ in range(n)), 3) for _ in range(runs)) / runs

    exact = 1 - 0.7**3
    assert mean(4) == pytest.approx(exact, abs=0.01)
    assert mean(12) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("instances", "samples", "k"), [(20, 4, 1), (20, 4, 4), (60, 8, 3), (200, 4, 2)])
@pytest.mark.parametrize("shape", [(0.2, 0.6), (2.0, 2.0), (0.1, 3.0)])
def test_the_interval_covers(instances: int, samples: int, k: int, shape: tuple[float, float]) -> None:
    """Instances of different difficulty, their chances drawn from a beta distribution: the truth is its mean."""
    rng = random.Random(f"{instances} {samples} {k} {shape}")
    a, b = shape
    truth = 1 - math.prod((b + i) / (a + b + i) for i in range(k))  # E[1 - (1 - p)^k]
    covered, runs = 0, 400
    for _ in range(runs):
        shares = []
        for _ in range(instances):
            p = rng.betavariate(a, b)
            shares.append(pass_at_k(samples, sum(rng.random() < p for _ in range(samples)), k))
        low, high = exact_interval(sum(shares), instances)
        covered += low <= truth <= high
    assert covered / runs >= 0.95


def played(answers: Sequence[tuple[str, bool]], index: int = 0) -> list[Trajectory]:
    """Samples of one instance, each of one turn."""
    return [
        replace(episode(turn(answer=text), success=right, index=index), episode=10 * index + i)
        for i, (text, right) in enumerate(answers)
    ]


def test_an_evaluation_of_samples_by_hand() -> None:
    first = played([("it is 7", True), ("so 7", True), ("so 8", False)])
    second = played([("is 1", False), ("is 2", False), ("is 3", True)], index=1)
    found = evaluation([*first, *second], answer_marker="i")
    assert (found["n"], found["instances"], found["success"]) == (6, 2, 0.5)
    assert [found["pass_at"][k]["value"] for k in "123"] == pytest.approx([0.5, (1 + 2 / 3) / 2, 1.0])
    assert (found["pass_at"]["3"]["low"], found["pass_at"]["3"]["high"]) == exact_interval(2, 2)

    same = evaluation([*first, *second], answer_marker=" ")["majority_at"]
    assert same["3"]["value"] == pytest.approx((1 + 1 / 3) / 2), "7 7 8 elects 7; of 1 2 3 each in turn"


def test_without_samples_nothing_is_said_of_them() -> None:
    assert not {"pass_at", "majority_at", "by_difficulty"} & evaluation(played([("7", True)])).keys()


def test_two_groups_that_drew_one_instance_are_one_trial_of_all_their_samples() -> None:
    twice = [replace(t, group=9) for t in played([("a", False), ("b", False)])]
    both = [*played([("a", True), ("b", False)]), *twice]
    assert evaluation(both)["instances"] == 1
    assert evaluation(both)["pass_at"]["2"]["value"] == pytest.approx(pass_at_k(4, 1, 2))


def test_a_sample_that_broke_before_it_had_a_name_is_of_its_group() -> None:
    broken = replace(episode(ending=Ending.ENV_ERROR, error="no"), instance="")
    samples = [*played([("a", True)]), broken]
    assert [len(each) for each in by_instance(samples)] == [2]
    found = evaluation(samples)
    assert found["pass_at"]["1"]["value"] == 0.5
    assert found["majority_at"]["2"]["value"] == pytest.approx(0.5), "no answer votes for itself alone"


def test_what_votes() -> None:
    one = episode(turn(answer=" think 3 so #### 7 "))
    assert final_answer(one, None) == "think 3 so #### 7"
    assert final_answer(one, "####") == "7"
    assert final_answer(one, "absent") == "think 3 so #### 7"
    assert final_answer(replace(one, final_answer="7.0"), "####") == "7.0"
    assert final_answer(episode(ending=Ending.CONTEXT_FULL), None) is None


def test_several_turns_have_no_majority_unless_the_environment_names_the_final_answer() -> None:
    two = [episode(turn(), turn(answer="7"), success=True) for _ in range(2)]
    assert evaluation(two)["majority_at"] is None
    assert evaluation(two)["pass_at"]["2"]["value"] == 1.0
    named = [replace(each, final_answer="7") for each in two]
    assert evaluation(named)["majority_at"]["2"]["value"] == 1.0


def test_success_by_difficulty_in_the_order_of_its_numbers() -> None:
    of = {"legs: 10": [True], "legs: 2": [True, False], "none": [False]}
    episodes = [
        replace(episode(turn(), success=success, index=10 * i + j), difficulty=name)
        for i, (name, all_of) in enumerate(of.items())
        for j, success in enumerate(all_of)
    ]
    found = evaluation([*episodes, episode(turn(), index=99)])["by_difficulty"]
    assert list(found) == ["legs: 2", "legs: 10", "none"]
    low, high = wilson(1, 2)
    assert found["legs: 2"] == {"n": 2, "instances": 2, "success": 0.5, "low": low, "high": high}


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 7), (20, 20)])
def test_the_exact_interval_is_scipys(successes: int, n: int) -> None:
    other = binomtest(successes, n).proportion_ci(method="exact")
    assert exact_interval(successes, n) == pytest.approx((other.low, other.high))
