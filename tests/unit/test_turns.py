"""Engines and learner in turns on a GPU (rollout.sleep): their start, the learner's work, and the memory it frees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlpost.config.schema import Config
from rlpost.learner.actor import LearnerActor
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.learner import Learner
from rlpost.record.metrics import Clock
from rlpost.tasks import held_out, sft, turns


def noting(asked: list[str], **answers: Any) -> Any:
    """Notes the names of its methods as they are called; each gives its answer."""

    def method(name: str) -> Any:
        def call(*_: object) -> Any:
            asked.append(name)
            return answers[name]

        return call

    return SimpleNamespace(**{name: method(name) for name in answers})


def pool_of(asked: list[str]) -> Any:
    return noting(asked, wait_ready=None, sleep=None, wake=None)


def cfg_of(sleep: bool) -> Config:
    cfg = Config()
    cfg.rollout.sleep = sleep
    return cfg


@pytest.mark.parametrize(("sleep", "then"), [(True, ["wait_ready", "sleep"]), (False, [])])
def test_the_learner_starts_once_the_engines_sleep(sleep: bool, then: list[str]) -> None:
    asked: list[str] = []
    turns.before_the_learner(cfg_of(sleep), pool_of(asked))
    assert asked == then


def session_of(asked: list[str], **learner: Any) -> Any:
    def silent(*_: object, **__: object) -> None: ...

    return SimpleNamespace(
        cfg=cfg_of(sleep=True),
        pool=pool_of(asked),
        learner=noting(asked, **learner),
        clock=Clock(),
        run_dir=SimpleNamespace(append_examples=silent, append_metrics=silent),
        tracker=SimpleNamespace(log=silent),
        progress=SimpleNamespace(stage=silent, note=silent),
        book=silent,
    )


def test_a_supervised_step_comes_after_the_engines_sleep() -> None:
    asked: list[str] = []
    session = session_of(asked, sft_step={"loss": 1.0, "seconds_update": 0.1})
    data: Any = SimpleNamespace(batch=lambda step: ([], []))
    line = sft.train_step(session, data, 0)
    assert asked == ["sleep", "sft_step"]
    assert "seconds/sleep" in line


def test_the_loss_on_held_out_answers_is_the_learners_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    session = session_of(asked, sft_loss={"loss": 1.0, "tokens": 2.0})
    monkeypatch.setattr(held_out, "_examples", lambda session, variant: [])
    held_out.evaluate_stage(session, "before", "eval/steps", 0)
    assert asked == ["sleep", "sft_loss", "sft_loss"]


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty_cache"))
    return calls


def actor_on(device: str, sleep: bool) -> LearnerActor:
    actor = LearnerActor()
    actor.learner = Learner.__new__(Learner)
    actor.learner.cfg, backend = cfg_of(sleep), DeepSpeedBackend.__new__(DeepSpeedBackend)
    backend.device, actor.learner.backend = torch.device(device), backend
    actor.learner.rendezvous = SimpleNamespace(rank=0)  # type: ignore[assignment]
    actor.learner.keep_start = lambda: None  # type: ignore[method-assign]
    return actor


@pytest.mark.parametrize(
    ("device", "sleep", "times"), [("cuda", True, 1), ("cuda", False, 0), ("cpu", True, 0)]
)
def test_a_rank_gives_back_what_a_call_has_freed_on_a_gpu(
    device: str, sleep: bool, times: int, released: list[str]
) -> None:
    actor_on(device, sleep).call("keep_start")
    assert released == ["empty_cache"] * times
