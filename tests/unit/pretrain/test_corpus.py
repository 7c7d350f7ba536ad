"""The bundled model's corpus: right answers only are learnt, and no registered rule is ever stated."""

from __future__ import annotations

import json
import random
import re

import pytest

from envs.generalpoints.expression import Expression
from envs.generalpoints.prompts import PromptStyle, prompt
from envs.generalpoints.variants import VARIANTS
from rlpost.errors import ModelError
from rlpost.models import resolve
from rlpost.pretrain import corpus
from rlpost.pretrain.train import IGNORE, encode, learning_rate_at
from rlpost.rollout.chat import Chat


@pytest.fixture(scope="module")
def talks() -> list[corpus.Conversation]:
    rng = random.Random(7)
    return [corpus.conversation(rng) for _ in range(400)]


def test_no_registered_rule_is_stated(talks: list[corpus.Conversation]) -> None:
    sentences = [
        part
        for variant in VARIANTS.values()
        for style in PromptStyle
        for part in re.findall(r"Rule: .*?\. |Note that .*?'\.", prompt(style, variant, ("A",) * 4))
    ]
    assert len(sentences) == 2 * len(VARIANTS)
    assert not any(s in message.user for talk in talks for message in talk for s in sentences)
    assert not any(corpus.states_reserved_rule(talk) for talk in talks)


def test_the_guard_sees_a_reserved_rule() -> None:
    stated = prompt(PromptStyle.SHORT, VARIANTS["faces_11_12_13"], ("A",) * 4)
    assert corpus.states_reserved_rule((corpus.Message(stated, ""),))


def test_learnt_combinations_reach_their_targets(talks: list[corpus.Conversation]) -> None:
    checked = 0
    for talk in talks:
        target = re.match(r"Make (\d+)\.", talk[0].user)
        if target is None:
            continue
        answer = json.loads(talk[-1].assistant)
        assert talk[-1].learn
        assert eval_exactly(answer["formula"]) == int(target[1])
        assert sorted(map(int, re.findall(r"\d+", answer["formula"]))) == sorted(answer["number"])
        checked += 1
    assert checked > 150


def eval_exactly(formula: str) -> int:
    """The witness, on texts this project wrote itself: Python's own arithmetic; `/` is exact in simple solutions."""
    assert re.fullmatch(r"[0-9+*/()-]+", formula)
    value = eval(formula)  # noqa: S307
    assert value == int(value)
    return int(value)


def test_wrong_attempts_are_context_only() -> None:
    rng = random.Random(3)
    for _ in range(50):
        talk = corpus.revise(rng)
        assert [m.learn for m in talk] == [False] * (len(talk) - 1) + [True]


def test_random_combinations_stay_natural() -> None:
    rng = random.Random(1)
    for _ in range(300):
        tree = corpus.random_combination(tuple(rng.randint(1, 13) for _ in range(4)), rng)
        assert isinstance(tree, Expression)
        assert tree.is_simple()


def test_rows_are_laid_out_as_rollouts_are(talks: list[corpus.Conversation]) -> None:
    """The trainer's own encoding equals the chat template's, which rollouts use."""
    try:
        folder = resolve("tiny")
    except ModelError as error:
        pytest.fail(f"the bundled model is missing: {error}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for talk in talks[:40]:
        row = encode(talk, tokenizer)
        example = Chat(tokenizer).example([(m.user, m.assistant, m.learn) for m in talk])
        assert row.token_ids == list(example.token_ids)
        assert [int(label != IGNORE) for label in row.labels] == list(example.loss_mask)


def test_schedule_ends_at_zero() -> None:
    assert learning_rate_at(0.01, 1.0) == 0.5
    assert learning_rate_at(0.5, 1.0) == 1.0
    assert learning_rate_at(5 / 6, 1.0) == pytest.approx(0.5)
    assert learning_rate_at(1.0, 1.0) == 0.0
