"""The reward of an agent's episode: by a scoring function, by what the program posted, or by what it returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlpost.envs.agent.conversation import Reward
from rlpost.envs.agent.requests import Refused, reward_of
from rlpost.envs.agent.settings import Settings
from rlpost.envs.dataset.rewards import outcome_of
from rlpost.envs.dataset.rewards import returned as read
from rlpost.envs.one_turn import Verdict


def earned(
    settings: Settings,
    score: Callable[[str], Verdict] | None,
    returned: object,
    posted: Reward | None,
    last_answer: str,
) -> Verdict:
    """The verdict, from exactly one source. Raises ValueError for none or several, and what the scorer raises.

    A returned text is not a reward, but the input of `score`. If none is returned, the input is the model's last
    answer.
    """
    text = returned if isinstance(returned, str) else None
    said = [posted] if posted is not None else []
    own = [] if returned is None or text is not None else [returned]
    if len(said) + len(own) + (score is not None) != 1:
        raise ValueError(_count_told(score is not None, bool(said), bool(own)))
    if score is not None:
        return score(last_answer if text is None else text)
    if posted is not None:
        return _verdict(posted, None, settings)
    if isinstance(returned, Mapping):
        return _verdict(_from_mapping(returned), None, settings)
    value = read(returned, "the agent")
    if value.reward is None:
        raise ValueError("the agent returned None as its reward")
    return _verdict(Reward(value.reward), value.outcome, settings)


def _count_told(scored: bool, posted: bool, returned: bool) -> str:
    if not (posted or returned):
        return "the agent ended without a reward: return one, POST it to {base_url}/reward, or give env_args.score"
    sources = {"env_args.score": scored, "the POST to /reward": posted, "the agent's return value": returned}
    return f"the episode has two rewards, by {' and by '.join(name for name, by in sources.items() if by)}"


def _from_mapping(returned: Mapping[Any, Any]) -> Reward:
    try:
        return Reward(*reward_of({str(key): value for key, value in returned.items()}))
    except Refused as refused:
        raise ValueError(f"the agent returned {returned!r}"[:200] + f": {refused}") from refused


def _verdict(said: Reward, named: str | None, settings: Settings) -> Verdict:
    if said.success is not None:
        return Verdict(said.reward, "CORRECT" if said.success else "WRONG", said.success)
    return Verdict(said.reward, *outcome_of(said.reward, named, settings.tasks.success_at))
