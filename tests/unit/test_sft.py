"""Which examples a supervised step learns from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.tasks.sft import ExpertData
from rlpost.types import Example


class CharacterChat:
    """A token a character, so that equal examples are equal conversations."""

    def example(self, conversation: Sequence[tuple[str, str, bool]], tools: Sequence[Any] = ()) -> Example:
        text = "".join(f"{observation}|{answer}|" for observation, answer, _ in conversation)
        return Example(tuple(map(ord, text)), (1,) * len(text))


def data(**sft: Any) -> ExpertData:
    cfg = Config()
    cfg.sft.batch_size = 4
    for name, value in sft.items():
        setattr(cfg.sft, name, value)
    return ExpertData(cfg, CharacterChat())  # type: ignore[arg-type]


def tokens(of: ExpertData, step: int) -> list[tuple[int, ...]]:
    return [example.token_ids for example in of.batch(step)[0]]


def test_a_steps_examples_depend_on_its_number_alone() -> None:
    one, other = data(), data()
    tokens(one, 0)
    assert tokens(one, 5) == tokens(other, 5)
    assert tokens(one, 5) != tokens(one, 6)


def test_each_example_comes_with_its_instance() -> None:
    examples, instances = data().batch(0)
    assert len(examples) == len(instances) == 4
    assert all(instance.startswith("24:") for instance in instances)


@pytest.mark.parametrize("examples", [0, 100])
def test_a_later_run_can_go_on_where_an_earlier_one_ended(examples: int) -> None:
    assert tokens(data(skip=3, examples=examples), 2) == tokens(data(examples=examples), 5)


def test_a_data_set_is_gone_through_whole_before_any_example_comes_again() -> None:
    small = data(examples=6)
    drawn = [example for step in range(6) for example in tokens(small, step)]  # 24 examples: 4 times 6
    epochs = [drawn[k : k + 6] for k in range(0, 24, 6)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 6
    assert epochs[0] != epochs[1], "in another order"


def test_the_environment_is_made_asked_and_closed_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()

    class Watched(GeneralPoints):
        def __init__(self) -> None:
            super().__init__()
            seen.append(threading.get_ident())

        def reset(self, **given: Any) -> Any:
            seen.append(threading.get_ident())
            return super().reset(**given)

        def close(self) -> None:
            seen.append(threading.get_ident())

    monkeypatch.setattr(registry, "make", lambda name, **args: Watched())
    with closing(data()) as examples:
        examples.batch(0)
        examples.batch(1)
    assert len(seen) == 1 + 8 + 1
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen
