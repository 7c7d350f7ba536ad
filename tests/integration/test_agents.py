"""An agent over HTTP against an ordinary environment in the same engine: real vLLM, the bundled model, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from rlpost.envs import registry
from rlpost.envs.texts import AnyText
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.seeds import derive
from rlpost.types import EpisodeSpec, Trajectory
from rlpost.weights.models import TINY
from tests import agent_programs

pytestmark = pytest.mark.integration

CARDS = "Cards: 3, 8, 3, 8. Make 24."
THEN = ("You failed this trial. Try again.", "Once more, please.")
SPEC = EpisodeSpec("default", "train", 0, 0, 0, 5, derive("dice of the agent"))


class Plain(gymnasium.Env[str, str]):
    """Says what the agent says."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = AnyText(10**6), AnyText(10**6)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._left = list(THEN)
        return CARDS, {"instance": "x"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        over = not self._left
        return "" if over else self._left.pop(0), 1.0, over, False, {"outcome": "X", "success": over}


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    engine = VllmEngine(EngineSettings(TINY, max_model_len=512, max_num_seqs=4, kv_cache_gib=0.1))
    yield engine
    engine._engine.engine_core.shutdown()  # a run ends the process instead


def play(
    engine: VllmEngine,
    sampling: Sampling,
    make: Callable[[], gymnasium.Env[str, str]],
    spec: EpisodeSpec = SPEC,
) -> Trajectory:
    engine._engine.reset_prefix_cache()  # cached or computed, keys and values may differ in the last bit
    collector = Collector(engine, "agent", make, Chat.load(TINY), 1, 60.0)
    (played,) = collector.collect([spec], sampling, 0)
    assert collector.close() == []
    assert played.error is None
    return played


def exact(played: Trajectory) -> list[tuple[Any, ...]]:
    return [(turn.context_ids, turn.answer_ids, turn.logprobs, turn.finish) for turn in played.turns]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("agent", ["converses", "converses_by_stream"])
def test_an_agents_tokens_and_log_probs_are_a_direct_rollouts(
    engine: VllmEngine, tmp_path: Path, agent: str, temperature: float
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({"prompt": CARDS}) + "\n")
    sampling = Sampling(temperature, 24)
    args = {"path": str(tasks), "eval_share": 0, "agent": f"tests.agent_programs:{agent}"}
    agent_programs.SEEN.clear()
    agent_programs.MORE["then"] = THEN
    direct = play(engine, sampling, Plain)
    asked = play(engine, sampling, lambda: registry.make("agent", **args))
    assert len(direct.turns) == 3
    assert exact(asked) == exact(direct)
    assert len(asked.samples) == 1
    whole = asked.token_ids
    for seen, turn in zip(agent_programs.SEEN, asked.turns, strict=True):
        choice = seen.choices[0]
        assert choice.token_ids == list(turn.answer_ids)
        assert [each.logprob for each in choice.logprobs.content] == list(turn.logprobs)
        assert whole[: len(choice.prompt_token_ids)] == choice.prompt_token_ids
    if temperature > 0:
        other = EpisodeSpec(**{**vars(SPEC), "seed": SPEC.seed + 1})
        assert exact(play(engine, sampling, Plain, other)) != exact(direct), "the dice matter"
