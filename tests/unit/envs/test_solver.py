from __future__ import annotations

import random
from collections import Counter

import pytest

from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.solvability import solvable
from rlpost.envs.generalpoints.solver import solve
from tests.unit.envs import brute_force
from tests.unit.envs.brute_force import Tree


def _tree(expression: Expression) -> Tree:
    if expression.left is None or expression.right is None:
        return int(expression.value)
    return expression.op, _tree(expression.left), _tree(expression.right)


def _sampled_hands() -> list[brute_force.Hand]:
    return [
        (3, 3, 8, 8),
        (1, 1, 1, 1),
        (6, 6, 6, 6),
        (2, 2, 4, 10),
        (1, 2, 11, 13),
        (4, 4, 11, 13),
        *random.Random(0).sample(brute_force.hands(13), 8),
    ]


@pytest.mark.parametrize("hand", _sampled_hands(), ids=str)
def test_solutions_are_those_of_brute_force(hand: brute_force.Hand) -> None:
    found = {brute_force.canonical(_tree(expression)) for expression in solve(hand, 24)}
    assert found == {brute_force.canonical(tree) for tree in brute_force.solutions(hand, 24)}


def test_every_formula_uses_each_number_once_and_is_exact() -> None:
    for expression in solve((2, 3, 10, 10), 24):
        assert Counter(expression.leaves()) == Counter((2, 3, 10, 10))
        assert brute_force.value(_tree(expression)) == 24


def test_the_larger_operand_of_sums_and_products_comes_first() -> None:
    """One spelling of each: models are trained on it. Negative divisors and fractions occur on the way."""
    nodes = [node for target in (5, 24) for e in solve((1, 3, 11, 12), target) for node in e.nodes()]
    assert "11+12/(1-3)" in {e.formula() for e in solve((1, 3, 11, 12), 5)}
    for node in nodes:
        assert node.left is not None
        assert node.right is not None
        assert node.op not in "+*" or node.left.value >= node.right.value


def test_order_of_the_numbers_does_not_matter_and_results_are_sorted() -> None:
    assert solve((10, 2, 3, 10), 24) == solve((2, 3, 10, 10), 24)
    formulas = [expression.formula() for expression in solve((1, 2, 3, 4), 24)]
    assert formulas == sorted(set(formulas))


@pytest.mark.parametrize("seed", range(6))
def test_five_numbers_solvable_if_and_only_if_solved(seed: int) -> None:
    rng = random.Random(seed)
    hand = tuple(rng.choice((1, 7, 11, 13, 10)) for _ in range(5))
    target = rng.choice((24, 97, 191))
    assert solvable(hand, target) == bool(solve(hand, target))


@pytest.mark.parametrize("target", [0, 7, 24])
def test_zeros_and_small_hands(target: int) -> None:
    for hand in [(0, 0, 0, 0), (0, 5, 5, 7), (0, 24), (7,), (0, 3, 8), (0, 0, 1, 23), (1, 2, 3, 18)]:
        assert solvable(hand, target) == bool(solve(hand, target))
