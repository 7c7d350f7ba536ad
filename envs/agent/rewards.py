"""What an episode of an agent earned: by a scoring function, by what the program posted, or by what it returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlpost.envs.agent.conversation import Reward
from rlpost.envs.agent.requests import Refused, reward_of
from rlpost.envs.agent.settings import Settings
from rlpost.envs.dataset.scoring import Score, verdict
from rlpost.envs.one_turn import Verdict


def earned(
    settings: Settings,
    score: Score | None,
    row: Mapping[str, Any],
    returned: object,
    posted: Reward | None,
    last_answer: str,
) -> Verdict:
    """Exactly one of the three says it. ValueError where none or several do; raises what the scorer raises.

    A returned text is no reward but what `score` is asked of. Without it, that is the model's last answer.
    """
    text = returned if isinstance(returned, str) else None
    said = [posted] if posted is not None else []
    own = [] if returned is None or text is not None else [returned]
    if len(said) + len(own) + (score is not None) != 1:
        raise ValueError(_count_told(score is not None, bool(said), bool(own)))
    if score is not None:
        return verdict(score(last_answer if text is None else text, dict(row)), settings.tasks)
    if posted is not None:
        return _verdict(posted, settings)
    if isinstance(returned, Mapping):
        return _verdict(_from_mapping(returned), settings)
    return verdict(returned, settings.tasks)


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


def _verdict(said: Reward, settings: Settings) -> Verdict:
    whole = verdict(said.reward, settings.tasks)
    if said.success is None:
        return whole
    return Verdict(whole.reward, "CORRECT" if said.success else "WRONG", said.success)
