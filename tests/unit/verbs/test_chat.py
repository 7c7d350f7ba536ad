"""The terminal chat, with a scripted engine and lines from a list or a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rlpost.command.main import main
from rlpost.envs.base import PlainVariant
from rlpost.envs.texts import AnyText
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.types import Finish
from rlpost.verbs import chat as verb
from rlpost.verbs import policy
from rlpost.verbs.conversation import ContextFull, Conversation
from rlpost.weights.models import TINY
from tests.unit.verbs import recorded


class Counting(gymnasium.Env[str, str]):
    """Solved at the second answer; says what it was told."""

    observation_space = action_space = AnyText(10_000)
    variants = (PlainVariant("only", False, "two answers"),)
    broken = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self.answers: list[str] = []
        return "count", {"instance": f"seed {seed}"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self.broken:
            raise ValueError("no such move")
        self.answers.append(action)
        over = len(self.answers) == 2
        info = {"outcome": "DONE" if over else "MORE", "success": over}
        return f"you said {action}", float(over), over, False, info


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.load(TINY)


def lines(*typed: str) -> Callable[[str], str]:
    """What a person types, then Ctrl-D."""
    left = iter(typed)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def talked(
    chat: Chat, tmp_path: Path, *typed: str, env: str | None = None, script: Any = None, context: int = 1024
) -> tuple[str, list[str]]:
    """What was shown, and the conversation as text at each of the model's turns."""
    seen: list[str] = []
    shown: list[str] = []

    def scripted(conversation: str, seed: int) -> str:
        seen.append(conversation)
        return script if script is not None else f"answer {len(seen)}"

    config = policy.settings_of(recorded.run(tmp_path / "run"))
    if env is not None:
        config.env, config.env_args, config.train_variant = env, {}, "only"
    engine = ScriptedEngine(scripted, chat, max_model_len=context)
    talk = verb.Talk(config, engine, chat, Sampling(1.0, 60), 0, lines(*typed), shown.append)
    verb.talk(talk, env is not None)
    return "\n".join(shown), seen


ENV = f"{__name__}:Counting"


def test_a_conversation_goes_on_and_an_empty_line_begins_anew(chat: Chat, tmp_path: Path) -> None:
    shown, seen = talked(chat, tmp_path, "first", "second", "", "third")
    assert [chunk.split("answer")[0].strip() for chunk in (seen[0], seen[2])] == ["first", "third"]
    assert seen[1].startswith(seen[0])
    assert seen[1].index("answer 1") < seen[1].index("second")
    assert "answer 3" in shown
    assert "(a new conversation)" in shown


def test_history_is_appended_to_token_by_token(chat: Chat) -> None:
    conversation = Conversation(ScriptedEngine(lambda *_: "yes", chat), chat, Sampling(1.0, 60), 0)
    conversation.say("one")
    before = conversation.token_ids
    conversation.say("two")
    added = (*chat.feedback_ids("two", Finish.STOP), *chat.answer_ids("yes"))
    assert conversation.token_ids == (*before, *added)


def test_a_message_that_does_not_fit_changes_nothing(chat: Chat, tmp_path: Path) -> None:
    conversation = Conversation(ScriptedEngine(lambda *_: "yes", chat, 40), chat, Sampling(1.0, 60), 0)
    conversation.say("one")
    before = conversation.token_ids
    with pytest.raises(ContextFull, match="max_model_len=40"):
        conversation.say("x y z " * 40)
    assert (conversation.token_ids, conversation.turns) == (before, 1)
    shown, seen = talked(chat, tmp_path, "x y z " * 40, "short", context=40)
    assert "the context is full" in shown
    assert len(seen) == 1


def test_the_environment_asks_and_judges_turn_by_turn(chat: Chat, tmp_path: Path) -> None:
    shown, seen = talked(chat, tmp_path, "", "", env=ENV)
    first = shown.index("count")
    assert (
        first < shown.index("answer 1") < shown.index("MORE, reward +0, not solved") < shown.index("answer 2")
    )
    assert (
        shown.index("answer 2") < shown.index("DONE, reward +1, solved") < shown.index("the episode is over")
    )
    assert "you said answer 1" in seen[1], "Enter says the feedback to the model"
    assert len(seen) == 3, "and once it is over the next instance begins"
    assert shown.count("only, instance seed") == 2
    assert "you said" not in seen[2]


def test_an_own_message_takes_the_place_of_the_feedback(chat: Chat, tmp_path: Path) -> None:
    shown, seen = talked(chat, tmp_path, "try harder", "well done", env=ENV)
    assert "try harder" in seen[1]
    assert "you said answer 1" not in seen[1]
    assert "DONE, reward +1, solved" in shown
    assert "well done" in seen[2]
    assert "no verdict: the episode is over" in shown


def test_a_full_context_ends_the_episode_and_is_said(chat: Chat, tmp_path: Path) -> None:
    shown, seen = talked(chat, tmp_path, "x y z " * 60, "", env=ENV, context=60)
    assert "the context is full" in shown
    assert shown.count("only, instance seed") == 2
    assert len(seen) == 2


def test_an_environment_that_fails_is_named(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "broken", True)
    with pytest.raises(verb.RolloutError, match="failed in step: ValueError: no such move"):
        talked(chat, tmp_path, env=ENV)


def test_nothing_that_a_terminal_obeys_is_printed(chat: Chat, tmp_path: Path) -> None:
    shown, _ = talked(chat, tmp_path, "first", script="\x1b[2Jgone\x07")
    assert "\x1b" not in shown
    assert "[2Jgone" in shown


def test_ctrl_c_ends_it_well(chat: Chat, tmp_path: Path) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    config = policy.settings_of(recorded.run(tmp_path / "run"))
    engine = ScriptedEngine(interrupted, chat)
    talk = verb.Talk(config, engine, chat, Sampling(1.0, 60), 0, lines("hello"), print)
    verb.talk(talk, False)


def test_piped_lines(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole verb, all but vLLM; a line that is not UTF-8 is not said."""
    run_dir = recorded.run(tmp_path / "run")
    recorded.adapter_for(TINY, str(TINY)).save(run_dir.adapter)
    monkeypatch.setattr(verb, "_engine", lambda *_: ScriptedEngine(lambda *_: "24", chat))
    typed = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nhello\n"), "utf-8", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", typed)
    assert main(["chat", str(run_dir.path), "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert "not said: the line is not UTF-8" in said
    assert said.count("24\n  (") == 1


def refused(capsys: pytest.CaptureFixture[str], code: int, *argv: str | Path) -> str:
    assert main(["chat", *map(str, argv)]) == code
    return capsys.readouterr().err


def test_what_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "it is no run" in refused(capsys, 1, tmp_path)
    run_dir = recorded.run(tmp_path / "run")
    assert "the run has no adapter/" in refused(capsys, 1, run_dir.path)
    recorded.adapter_for(TINY, str(TINY)).save(run_dir.adapter)
    assert "it is no temperature" in refused(capsys, 2, run_dir.path, "--temperature", "nan")
    assert "only an environment has variants" in refused(capsys, 2, run_dir.path, "--variant", "faces_10")
    assert "choose of faces_10" in refused(capsys, 2, run_dir.path, "--env", "--variant", "faces_99")
    run_dir.config.write_text(run_dir.config.read_text().replace("env: generalpoints", "env: no_such:Env"))
    assert "a record may come from anybody" in refused(capsys, 2, run_dir.path, "--env")
    assert "no_such" in refused(capsys, 2, run_dir.path, "--env", "--own-code")


def test_help_needs_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["chat", "--help"])
    assert ended.value.code == 0
    assert "--temperature" in capsys.readouterr().out
