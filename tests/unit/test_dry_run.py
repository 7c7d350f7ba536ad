"""A dry run finds what an hour of training would have found out: lengths, raising environments, an unfit expert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.errors import RolloutError
from rlpost.rollout.chat import Chat
from rlpost.rollout.specs import training_specs
from rlpost.tasks.dry_run import ask_expert, play_silently, run
from rlpost.types import Ending


@pytest.fixture
def cfg(random_model: Path) -> Config:
    cfg = Config(model=str(random_model), env_args={"verify_iter": 2}, eval_variants=["faces_7"])
    cfg.rollout.episodes = 8
    cfg.eval.episodes = 8
    return cfg


def test_a_silent_player_sees_every_attempt(cfg: Config, random_model: Path) -> None:
    played = play_silently(cfg, Chat.load(random_model), training_specs(cfg, 0))
    assert [len(t.turns) for t in played] == [2] * 8
    assert all(
        "Rule: J=10" in t.turns[0].observation and "You failed" in t.turns[1].observation for t in played
    )


def test_the_expert_solves_and_its_longest_answer_is_told(cfg: Config, random_model: Path) -> None:
    chat, specs = Chat.load(random_model), training_specs(cfg, 0)
    found = ask_expert(cfg, chat, specs)
    assert found is not None
    assert found.solved == 1.0
    assert found.longest > len(chat.answer_ids('{"formula": "1+2+3+4"}'))


def test_limits_that_are_too_small_show(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    cfg.rollout.max_new_tokens = 5
    run(cfg)
    shown = capsys.readouterr().out
    assert "Rule: J=10" in shown
    assert shown.count("100%") == 2
    assert "faces_7" in shown
    assert "rollout.max_new_tokens=5" in shown


def test_an_environment_that_raises_is_counted(
    cfg: Config, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(GeneralPoints):
        def step(self, action: str) -> Any:
            raise RuntimeError("out of cards")

    monkeypatch.setattr(registry, "make", lambda name, **args: Broken(**args))
    played = play_silently(cfg, Chat.load(random_model), training_specs(cfg, 0))
    assert {t.ending for t in played} == {Ending.ENV_ERROR}
    assert "out of cards" in str(played[0].error)
    told = r"dry run of faces_10 \(train\): not one .*\n  reason: 8 of 8 .*out of cards.*\n  remedy: mend the env"
    with pytest.raises(RolloutError, match=told):
        run(cfg)


def test_what_fails_under_the_experts_answers_alone_is_told(
    cfg: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(GeneralPoints):
        def step(self, action: str) -> Any:
            if action:
                raise RuntimeError("out of cards")
            return super().step(action)

    monkeypatch.setattr(registry, "make", lambda name, **args: Broken(**args))
    told = r"by its expert, .*variant faces_10, episode 0\)\n  reason: RuntimeError: out of cards \(test_dry_run.py:"
    with pytest.raises(RolloutError, match=told):
        run(cfg)


def test_prompts_that_do_not_fit_are_counted_and_told(cfg: Config) -> None:
    cfg.rollout.max_model_len = 20
    told = r"reason: 8 of 8 episodes \(100%\) unfit: the prompt does not fit rollout.max_model_len"
    with pytest.raises(RolloutError, match=told):
        run(cfg)


def test_the_expert_is_cut_at_a_stop_string_as_a_model_would_be(cfg: Config, random_model: Path) -> None:
    cfg.rollout.stop = ['"formula"']
    found = ask_expert(cfg, Chat.load(random_model, cfg.rollout), training_specs(cfg, 0))
    assert found is not None
    assert found.solved == 0.0
