"""Episodes for tests: one written by hand, and a strategy for any."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from rlpost.types import Ending, Finish, Trajectory, Turn

# Any text but two halves of a surrogate pair side by side, which JSON reads as the character they spell.
texts = st.text(st.characters(), max_size=20).filter(
    lambda s: not any("\ud800" <= a < "\udc00" <= b <= "\udfff" for a, b in pairwise(s))
)
numbers = st.floats(allow_nan=False)
ids = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)


def turn(
    outcome: str = "WRONG_VALUE",
    reward: float = -1.0,
    tokens: int = 2,
    finish: Finish = Finish.STOP,
    observation: str = "cards",
    answer: str = "an answer",
    parts: tuple[tuple[str, float], ...] = (),
) -> Turn:
    answer_ids, logprobs = tuple(range(tokens)), tuple(-0.5 for _ in range(tokens))
    return Turn((7, 8, 9), answer_ids, logprobs, observation, answer, finish, reward, outcome, 4, parts=parts)


def episode(
    *turns: Turn,
    success: bool = False,
    ending: Ending = Ending.TERMINATED,
    index: int = 0,
    variant: str = "faces_10",
    error: str | None = None,
) -> Trajectory:
    return Trajectory(
        env="generalpoints",
        variant=variant,
        split="eval",
        instance=f"deal {index}",
        iteration=3,
        episode=index,
        group=index,
        seed=1000 + index,
        turns=turns,
        ending=ending,
        success=success,
        error=error,
    )


turns = st.builds(
    Turn,
    context_ids=ids,
    answer_ids=ids,
    logprobs=st.lists(numbers, max_size=4).map(tuple),
    observation=texts,
    answer=texts,
    finish=st.sampled_from(Finish),
    reward=numbers,
    outcome=texts,
    opens_sample=st.booleans(),
    policy_version=st.integers(),
    env_reward=st.none() | numbers,
    parts=st.dictionaries(texts, numbers, max_size=2).map(lambda parts: tuple(parts.items())),
)
trajectories = st.builds(
    Trajectory,
    env=texts,
    variant=texts,
    split=texts,
    instance=texts,
    iteration=st.integers(),
    episode=st.integers(),
    group=st.integers(),
    seed=st.integers(0, 2**64),
    turns=st.lists(turns, max_size=3).map(tuple),
    ending=st.sampled_from(Ending),
    success=st.booleans(),
    error=st.none() | texts,
    difficulty=st.none() | texts,
    final_answer=st.none() | texts,
)
