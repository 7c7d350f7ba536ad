"""One's own environments by module:class: with variants of their own, or plain Gymnasium ones, adapted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rlpost.envs import adapter, check, registry
from rlpost.envs.adapter import Adapted
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message, Text, readable
from rlpost.envs.splits import Split, split_of
from rlpost.envs.texts import AnySaid
from rlpost.errors import ConfigError
from rlpost.rollout.episode import opened, replied
from rlpost.run import prepare
from rlpost.types import EpisodeSpec

SPEC = EpisodeSpec("default", "train", 0, 0, 0, 0, 0)

PLAIN = """
import gymnasium
from gymnasium.spaces import Discrete, Text


class Sum(gymnasium.Env):
    def __init__(self, largest=99, names=()):
        self.observation_space, self.action_space = Text(50), Text(50, min_length=0)
        self.largest = largest

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.a, self.b = (int(self.np_random.integers(self.largest)) for _ in range(2))
        self.left = 2
        return f"{self.a} plus {self.b}", {}

    def step(self, action):
        self.left -= 1
        right = action == str(self.a + self.b)
        return "no", float(right), right, not right and not self.left, {}


class Declared(Sum):
    variants = [VARIANT]

    def reset(self, *, seed=None, options=None):
        self.options = options
        return super().reset(seed=seed)


class Numbers(Sum):
    def __init__(self):
        super().__init__()
        self.action_space = Discrete(3)


class Stubborn(Sum):
    def __init__(self):
        raise KeyError("no key to the door")


class Misdeclared(Sum):
    variants = ["mine"]


class NoEnvironment:
    pass


class Bare(gymnasium.Env):
    action_space = Text(50)


class BareAction(gymnasium.Env):
    observation_space = Text(50)


class NoMetadata(Sum):
    metadata = None


class Returning(Sum):
    def __init__(self, opening=None, reply=None):
        super().__init__()
        self.opening, self.reply = opening, reply

    def reset(self, *, seed=None, options=None):
        return self.opening

    def step(self, action):
        return self.reply


class DeclaredReturning(Returning):
    variants = [VARIANT]
"""
VARIANT = "__import__('rlpost.envs.base').envs.base.PlainVariant('mine', False, 'my rule')"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    text = PLAIN.replace("[VARIANT]", f"[{VARIANT}]")
    (tmp_path / "own_module.py").write_text(text.replace('Text(50)', 'Text(50, charset=CHARACTERS)').replace(
        "class Sum", "CHARACTERS = frozenset(map(chr, range(32, 127)))\n\n\nclass Sum"))  # fmt: skip
    (tmp_path / "own_broken.py").write_text("import json\n1 / 0\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    return "own_module"


def test_a_plain_environment_gets_instances_splits_and_outcomes(own: str) -> None:
    env = registry.make(f"{own}:Sum", largest=1000)
    assert isinstance(env, Adapted)
    assert [each.name for each in registry.variants(f"{own}:Sum")] == ["default"]
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}
    for split, instances in seen.items():
        for seed in range(20):
            observation, info = env.reset(seed=seed, options={"variant": "default", "split": split})
            assert (observation, info) == env.reset(seed=seed, options={"split": split})
            assert split_of(info["instance"]) is Split(split)
            instances.add(info["instance"])
    registry.refuse_overlap(*seen.values())
    a, b = map(int, observation.split(" plus "))
    _, reward, *over, info = env.step("1x")
    assert (reward, over, info) == (0.0, [False, False], {"success": False, "outcome": "CONTINUED"})
    *_, info = env.step(str(a + b))
    assert info == {"success": True, "outcome": "SUCCESS"}
    env.reset(seed=0)
    env.step("x")
    *_, truncated, info = env.step("x")
    assert (truncated, info["outcome"]) == (True, "FAILURE")


def test_variants_of_ones_own_are_passed_on(own: str) -> None:
    listed: Sequence[Any] = registry.variants(f"{own}:Declared")
    assert [(each.name, each.held_out) for each in listed] == [("mine", False)]
    env = registry.make(f"{own}:Declared")
    assert not isinstance(env, Adapted)
    env.reset(options={"variant": "mine"})
    assert env.unwrapped.options == {"variant": "mine"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no_such_module:Env", "cannot be imported"),
        ("own_module:Missing", "cannot be imported"),
        ("own_module:NoEnvironment", "is no subclass of gymnasium.Env"),
        ("own_module:Numbers", r"its action space is Discrete\(3\), but must be gymnasium.spaces.Text"),
        (
            "own_module:Bare",
            r"own_module:Bare: it has no observation_space; define self.observation_space = gymnasium.spaces.Text",
        ),
        ("own_module:BareAction", "it has no action_space; define self.action_space"),
        ("own_module:NoMetadata", "its metadata is None, not a mapping; leave it out"),
        ("own_module:Stubborn", r"cannot be made: KeyError: 'no key to the door' \(own_module.py:\d+\)"),
        ("own_module:Misdeclared", "its variants hold 'mine', which has not name, held_out and summary"),
        ("own_broken:Env", r"cannot be imported: ZeroDivisionError: division by zero \(own_broken.py:2\)"),
        ("own_script:Env", r"cannot be imported: it calls sys.exit\(2\); put what the file does .*__main__"),
        (":", "cannot be imported"),
        ("own_module:", "cannot be imported"),
    ],
)
def test_what_is_no_environment_is_refused(own: str, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        registry.make(name)


OPENINGS = [
    (None, "reset returned NoneType"),
    ("ab", "reset returned str"),
    (("a", "b"), r"reset returned \(str, str\)"),
]
REPLIES = [
    (None, "step returned NoneType"),
    (("no", 0.0, True, {}), r"step returned \(str, float, bool, dict\)"),  # Gym before 0.26
    (("no", 0.0, True, False, None), r"step returned \(str, float, bool, bool, NoneType\)"),
]


@pytest.mark.parametrize("name", ["Returning", "DeclaredReturning"])
@pytest.mark.parametrize(("returned", "told"), OPENINGS)
def test_a_reset_of_another_shape_is_refused(own: str, name: str, returned: object, told: str) -> None:
    with pytest.raises(Refused, match=f"{told}; return"):
        opened(lambda: registry.make(f"{own}:{name}", opening=returned), None, SPEC)


@pytest.mark.parametrize("name", ["Returning", "DeclaredReturning"])
@pytest.mark.parametrize(("returned", "told"), REPLIES)
def test_a_step_of_another_shape_is_refused(own: str, name: str, returned: object, told: str) -> None:
    with pytest.raises(Refused, match=f"{told}; return"):
        replied(registry.make(f"{own}:{name}", reply=returned), "x")


@pytest.mark.parametrize(("value", "text"), [("hard", "hard"), (3, "3"), (0.5, "0.5"), (None, None)])
def test_difficulty_and_final_answer_are_words_or_numbers(own: str, value: object, text: str | None) -> None:
    env = registry.make(
        f"{own}:DeclaredReturning",
        opening=("a", {"instance": "i", "difficulty": value}),
        reply=("no", 0.0, True, False, {"outcome": "O", "success": True, "answer": value}),
    )
    assert opened(lambda: env, None, SPEC).difficulty == text
    assert replied(env, "x").final_answer == text


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}])
def test_other_difficulties_and_final_answers_are_refused(own: str, value: object) -> None:
    env = registry.make(
        f"{own}:DeclaredReturning",
        opening=("a", {"instance": "i", "difficulty": value}),
        reply=("no", 0.0, True, False, {"outcome": "O", "success": True, "answer": value}),
    )
    with pytest.raises(TypeError, match=r"info\['difficulty'\] is no word"):
        opened(lambda: env, None, SPEC)
    with pytest.raises(TypeError, match=r"info\['answer'\] is no word"):
        replied(env, "x")


def test_a_declared_environment_that_leaves_out_what_it_owes_is_refused(own: str) -> None:
    env = registry.make(f"{own}:DeclaredReturning", opening=("a", {}), reply=("no", 0.0, True, False, {}))
    with pytest.raises(Refused, match="the info of reset has no 'instance'"):
        opened(lambda: env, None, SPEC)
    with pytest.raises(Refused, match="the info of step has no 'outcome'"):
        replied(env, "x")


@pytest.mark.parametrize(
    ("opening", "told"),
    [
        ("[a, b]", "reset returned list"),
        ("word", "reset returned str"),
        ("7", "reset returned int"),
    ],
)
def test_a_run_on_such_an_environment_stops_at_its_start(own: str, opening: str, told: str) -> None:
    named = [f"env={own}:DeclaredReturning", f"env_args={{opening: {opening}}}"]
    with pytest.raises(ConfigError, match=told):
        prepare(["experiment=own_ppo", *named, "train_variant=mine", "eval_variants=[mine]"])


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        (7, TypeError, "the observation is no text but int"),
        (b"text", TypeError, "an observation of several messages holds int, which is no Message"),
        (["a"], TypeError, "an observation of several messages holds str"),
        ((), Refused, "the observation holds no message"),
    ],
)
def test_what_is_neither_text_nor_messages_is_told(said: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        adapter.opened((said, {}))
    with pytest.raises(error, match=told):
        adapter.stepped((said, 0.0, True, False, {}))
    assert said not in AnySaid(100)


def test_messages_are_taken_and_read_by_a_person() -> None:
    said = [Message.of("system", "Add."), Message.of("user", "1+1")]
    assert adapter.opened((said, {}))[0] is said
    assert said in AnySaid(7)
    assert said not in AnySaid(6)
    assert readable(said) == "[system]\nAdd.\n[user]\n1+1"
    assert readable("1+1") == readable(Message.of("user", "1+1")) == "1+1"
    assert readable(Message.of("tool", "2")) == "[tool]\n2"


@pytest.mark.parametrize(
    ("role", "parts", "told"),
    [
        ("developer", (Text("x"),), "the role 'developer'"),
        ("user", "x", "parts of a message are 'x'"),
        ("user", ("x",), "parts of a message are"),
    ],
)
def test_a_message_of_another_role_or_without_parts_is_refused(role: Any, parts: Any, told: str) -> None:
    with pytest.raises(Refused, match=told):
        Message(role, parts)


class Tooled(gymnasium.Env[str, str]):
    def __init__(self, *tools: Any) -> None:
        self.tools = tools


def test_tools_are_named_functions_as_json() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    assert adapter.tools_of(Tooled(tool)) == (tool,)
    assert adapter.tools_of(gymnasium.make("Taxi-v4")) == ()
    function = {"name": "add"}
    for wrong in (
        function,
        {"type": "function", "function": {"name": ""}},
        {"type": "tool", "function": function},
        {"type": "function", "function": {**function, "parameters": {1, 2}}},
        {"type": "function", "function": {**function, "maximum": float("nan")}},
        {"type": "function", "function": {**function, "description": "\ud800"}},
        "add",
    ):
        with pytest.raises(Refused, match="the environment declares the tool"):
            adapter.tools_of(Tooled(tool, wrong))


def test_an_adapted_environment_whose_observation_is_no_text_is_told(own: str) -> None:
    with pytest.raises(TypeError, match="the observation is no text but int"):
        registry.make(f"{own}:Returning", opening=(7, {})).reset(seed=0)


def test_unknown_arguments_options_and_too_few_instances_are_refused(own: str) -> None:
    with pytest.raises(ValueError, match="unknown argument most; there are: largest, names"):
        registry.make(f"{own}:Sum", most=3)
    env = registry.make(f"{own}:Sum", largest=1)
    with pytest.raises(ValueError, match="this environment has only 'default'"):
        env.reset(options={"variant": "other"})
    other = "eval" if split_of(env.reset(seed=0)[1]["instance"]) is Split.TRAIN else "train"
    with pytest.raises(ValueError, match=f"none of 1000 instances is of split '{other}'"):
        env.reset(options={"split": other})


def test_the_authors_check_takes_it(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([f"{own}:Sum", "--instances", "5", "--arg", "largest=500"]) == 0
    assert "there is none" in capsys.readouterr().out  # no expert
