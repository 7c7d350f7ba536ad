"""The bundled model's corpus: right answers only are learnt, and no registered rule is ever stated."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace

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


@pytest.mark.parametrize("style", PromptStyle)
@pytest.mark.parametrize("faces", [(11, 12, 13), (5, 5, 5)])
def test_the_guard_sees_a_reserved_rule(style: PromptStyle, faces: tuple[int, int, int]) -> None:
    rule = replace(VARIANTS["faces_10"], faces=faces)
    assert corpus.states_reserved_rule((Message(prompt(style, rule, ("A",) * 4), ""),))


@pytest.mark.parametrize("style", PromptStyle)
@pytest.mark.parametrize("faces", [(5, 1, 13), (5, 5, 50), (11, 12, 1)])
def test_the_guard_tells_a_rule_from_one_that_begins_like_it(
    style: PromptStyle, faces: tuple[int, int, int]
) -> None:
    rule = replace(VARIANTS["faces_10"], faces=faces)
    assert not corpus.states_reserved_rule((Message(prompt(style, rule, ("A",) * 4), ""),))


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


# The wordings of the rule, written down once more: those of training, and those for evaluation alone.
VARIED = ("F=N", "F: N", "F is N", "F counts as N", "count F as N", "the value of F is N")
PARAPHRASED = (
    *("F stands for N", "take F to be N", "F has N points"),
    *("read F as the number N", "F equals N", "each F scores N"),
)


def wordings_in(texts: list[str], wordings: tuple[str, ...]) -> set[str]:
    """The wordings of which some text states a fact."""
    patterns = {each: each.replace("F", "[JQK]").replace("N", r"\d+") for each in wordings}
    return {
        each
        for each, pattern in patterns.items()
        if any(re.search(rf"(Rule: |, |that ){pattern}[.,]", t) for t in texts)
    }


@pytest.fixture(scope="module")
def card_prompts() -> list[str]:
    rng = random.Random(12)
    return [message.user for _ in range(600) for message in draw(cards.MIXTURE, rng)]


def test_rules_are_stated_in_every_wording_of_training_and_in_none_of_evaluation(
    card_prompts: list[str],
) -> None:
    assert wordings_in(card_prompts, VARIED) == set(VARIED)
    assert wordings_in(card_prompts, PARAPHRASED) == set()


def test_the_paraphrased_variants_have_words_of_their_own() -> None:
    """Those of evaluation occur in no training text, with wording=varied and without, of any trained variant."""
    told: dict[tuple[str, str], list[str]] = {}
    for wording in ("fixed", "varied"):
        env = registry.make("generalpoints", wording=wording)
        for variant, split in (
            *((each, "train") for each in ("faces_10", "faces_10_mixed", "faces_11_12_13")),
            *((f"{each}_paraphrased", "eval") for each in ("faces_10", "faces_11_12_13")),
        ):
            options = {"variant": variant, "split": split}
            told.setdefault((split, variant), []).extend(
                env.reset(seed=n, options=options)[0] for n in range(60)
            )
    for (split, _), texts in told.items():
        assert wordings_in(texts, PARAPHRASED) == (set(PARAPHRASED) if split == "eval" else set())
        assert wordings_in(texts, VARIED) == (set(VARIED) if split == "train" else set())


def test_no_cards_are_combined_to_a_registered_target(card_prompts: list[str]) -> None:
    targets = {int(match[1]) for text in card_prompts if (match := re.match(r"Make (\d+)\.", text))}
    assert len(targets) > 40
    assert not targets & {12, 18, 20, 24, 28, 30, 32, 36}
    assert not any("evaluates to 24 " in text for text in card_prompts)


@pytest.mark.parametrize("variant", [each for each in VARIANTS if VARIANTS[each].faces != (10, 10, 10)])
@pytest.mark.parametrize("wording", [*VARIED, *PARAPHRASED])
def test_the_guard_sees_a_reserved_rule_in_any_words(variant: str, wording: str) -> None:
    faces = zip("JQK", VARIANTS[variant].faces, strict=True)
    facts = [wording.replace("F", face).replace("N", str(value)) for face, value in faces]
    stated = f"Make 24. Rule: {', '.join(reversed(facts))}. Cards: A, 2."
    assert corpus.states_reserved_rule((Message(stated, ""),))


def landmarks(observation: str) -> set[str]:
    return set(re.findall(r"[A-Z][a-z]+ [A-Z][a-z]+", observation))


def test_many_walks_pass_a_landmark_that_is_not_the_one_to_go_to() -> None:
    """Who stops, or ends a leg, at the first landmark there is fails on these walks: the base did, on 62 of 75."""
    rng, passed, alike = random.Random(4), 0, 0
    for _ in range(120):
        for message in streets.walk(rng):
            answer = json.loads(message.assistant)
            goal, seen = landmarks(answer["instruction"]), landmarks(answer["observation"])
            if message.learn and goal and seen and goal != seen:
                passed += answer["action"] == "forward()"
                alike += answer["action"] == "forward()" and bool(
                    set(" ".join(goal).split()) & set(" ".join(seen).split())
                )
    assert passed > 60
    assert alike > 10


def test_names_are_compared_in_pairs_of_both_kinds() -> None:
    rng, told = random.Random(6), {"stop()": 0, "forward()": 0}
    for _ in range(400):
        (message,) = streets.compare_names(rng)
        answer = json.loads(message.assistant)
        (goal,), (seen,) = landmarks(answer["instruction"]), landmarks(answer["observation"])
        assert answer["action"] == ("stop()" if goal == seen else "forward()")
        assert answer["steps"] == ("there" if goal == seen else "go on")
        assert answer["observation"] in message.user
        assert answer["instruction"] in message.user
        told[answer["action"]] += 1
    assert min(told.values()) > 150


def test_names_that_are_alike_share_one_word_and_differ_in_the_other() -> None:
    for seed in range(20):
        names = [name.split() for name in streets._alike_names(random.Random(seed))]
        assert sorted((len({first for first, _ in names}), len({kind for _, kind in names}))) == [1, 16]


def test_a_renamed_walk_keeps_which_landmarks_are_the_same() -> None:
    talk = (Message("Red Cafe, Blue Bank", "Blue Bank, Red Cafe, Red Bank"),)
    (renamed,) = streets._renamed(talk, iter(["A B", "C D", "E F"]))
    assert (renamed.user, renamed.assistant) == ("A B, C D", "C D, A B, E F")


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
