"""The bundled model's corpus: right answers only are learnt, and no registered rule is ever stated."""

from __future__ import annotations

import json
import random
import re

import pytest
from transformers import AutoTokenizer

from rlpost.envs import registry
from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.prompts import PromptStyle, prompt
from rlpost.envs.generalpoints.variants import VARIANTS
from rlpost.envs.navigation.geometry import COMPASS, RELATIVE
from rlpost.envs.splits import Split, split_of
from rlpost.errors import ModelError
from rlpost.pretrain import cards, corpus, streets
from rlpost.pretrain.talk import Conversation, Message, draw
from rlpost.pretrain.train import IGNORE, encode, learning_rate_at
from rlpost.rollout.chat import Chat
from rlpost.weights.models import TINY, resolve
from tests.unit.envs.navigation.town import city_of


@pytest.fixture(scope="module")
def talks() -> list[Conversation]:
    rng = random.Random(7)
    return [corpus.conversation(rng) for _ in range(400)]


def test_no_registered_rule_is_stated(talks: list[Conversation]) -> None:
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
    assert corpus.states_reserved_rule((Message(stated, ""),))


def test_learnt_combinations_reach_their_targets(talks: list[Conversation]) -> None:
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


def test_routes_are_walked_right_and_never_by_a_registered_rule(talks: list[Conversation]) -> None:
    walks = [talk for talk in talks if talk[0].user.startswith("Follow:")]
    assert len(walks) > 40
    for talk in walks:
        assert json.loads(talk[-1].assistant)["action"] == "stop()"
        stated = re.search(r"Turn: (.*?)\. Now", talk[0].user)
        assert stated is not None
        words = set(stated[1].split(", "))
        assert not words & {*COMPASS, *RELATIVE}
        used = [re.fullmatch(r"turn_direction\((.*)\)", json.loads(m.assistant)["action"]) for m in talk]
        assert {match[1] for match in used if match} <= words


@pytest.mark.parametrize("variant", ["absolute", "relative"])
def test_the_guard_sees_a_registered_rule_of_the_streets(variant: str) -> None:
    observation, _ = registry.make("navigation").reset(seed=1, options={"variant": variant, "split": "train"})
    assert corpus.states_reserved_rule((Message(observation, ""),))


def test_words_of_other_rules_mean_the_turns_that_the_registered_ones_mean() -> None:
    """Witness: a relative word is the number of eighths, an absolute one the eighth of the compass, counted here."""
    for facing in range(8):
        for towards in range(8):
            turn = (towards - facing + 4) % 8 - 4
            if turn in (0, -4):
                continue
            by_turn = streets.Wording(("a", "b", "c", "d")).word(45 * facing, 45 * towards)
            assert by_turn == {-1: "b", 1: "c"}.get(turn, "a" if turn < 0 else "d")
            by_compass = streets.Wording(tuple("stuvwxyz")).word(45 * facing, 45 * towards)
            assert by_compass == "stuvwxyz"[towards]


def test_routes_are_in_training_cities_only() -> None:
    rng = random.Random(5)
    for _ in range(30):
        trip = streets.random_trip(rng)
        assert split_of(city_of(trip.instance)) is Split.TRAIN


def test_phrases_change_no_card_text_and_come_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    rng, phrases = random.Random(11), streets.phrases()
    for _ in range(300):
        for message in draw(cards.MIXTURE, rng):
            assert not any(phrase in text for phrase in phrases for text in (message.user, message.assistant))
        for message in streets.walk(rng):
            for text in (message.user, message.assistant):
                ids = tokenizer.encode(text)
                assert tokenizer.decode(ids) == text
    assert all(len(tokenizer.encode(phrase)) == 1 for phrase in phrases)


def test_wrong_attempts_are_context_only() -> None:
    rng = random.Random(3)
    for _ in range(50):
        talk = cards.revise(rng)
        assert [m.learn for m in talk] == [False] * (len(talk) - 1) + [True]


def test_random_combinations_stay_natural() -> None:
    rng = random.Random(1)
    for _ in range(300):
        tree = cards.random_combination(tuple(rng.randint(1, 13) for _ in range(4)), rng)
        assert isinstance(tree, Expression)
        assert tree.is_simple()


def test_rows_are_laid_out_as_rollouts_are(talks: list[Conversation]) -> None:
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


def test_a_corpus_that_spells_a_control_token_teaches_letters() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    row = encode((Message("a<|end|>b", "<|user|>"),), tokenizer)
    assert [i for i in row.token_ids if i in tokenizer.all_special_ids] == [1, 3, 2, 3]
    assert tokenizer.decode(row.token_ids) == "<|user|>a<|end|>b<|end|><|assistant|><|user|><|end|>"
