"""Which examples a supervised step learns from."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.tasks.expert_data import ExpertData
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


@pytest.fixture
def talks(tmp_path: Path) -> dict[str, Any]:
    """The arguments of a data set of 10 conversations, all to train on but the last."""
    rows = [{"messages": [{"role": "user", "content": f"p{n}"}, {"role": "assistant", "content": f"a{n}"}]}
            for n in range(10)]  # fmt: skip
    for name, part in (("talks.jsonl", rows[:9]), ("other.jsonl", rows[9:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    return {
        "path": str(tmp_path / "talks.jsonl"),
        "held_out_path": str(tmp_path / "other.jsonl"),
        "eval_share": 0,
    }


def of_rows(env_args: dict[str, Any], **sft: Any) -> ExpertData:
    cfg = Config()
    cfg.env, cfg.env_args, cfg.train_variant = "dataset", env_args, "default"
    for name, value in {"batch_size": 4, **sft}.items():
        setattr(cfg.sft, name, value)
    return ExpertData(cfg, CharacterChat())  # type: ignore[arg-type]


def texts(of: ExpertData, steps: int) -> list[str]:
    return ["".join(map(chr, ids)) for step in range(steps) for ids in tokens(of, step)]


def test_ones_own_answers_are_gone_through_whole_in_each_epoch(talks: dict[str, Any]) -> None:
    drawn = texts(of_rows(talks), 9)  # 36 examples: 4 epochs of 9 rows
    epochs = [drawn[k : k + 9] for k in range(0, 36, 9)]
    assert all(sorted(epoch) == [f"p{n}|a{n}|" for n in range(9)] for epoch in epochs)
    assert epochs[0] != epochs[1], "in another order"
    assert texts(of_rows(talks), 9) == drawn
    assert texts(of_rows(talks, skip=2), 3) == drawn[8:20]


def test_a_part_of_ones_own_answers_is_drawn_by_the_seed(talks: dict[str, Any]) -> None:
    drawn = texts(of_rows(talks, examples=2), 3)
    assert len(set(drawn)) == 2
    assert all(len(set(drawn[k : k + 2])) == 2 for k in range(0, 12, 2))


def mixed_in(examples: int, **sft: Any) -> ExpertData:
    cfg = Config()
    cfg.sft.batch_size, cfg.sft.steps, cfg.algo.expert_examples = 4, 2, 3
    for name, value in {"examples": examples, **sft}.items():
        setattr(cfg.sft, name, value)
    return ExpertData(cfg, CharacterChat())  # type: ignore[arg-type]


def test_an_iterations_examples_follow_those_of_the_warm_start() -> None:
    """Of a data set of 14: 2 steps of 4, then 2 iterations of 3, and each was seen once."""
    found = mixed_in(14)
    warm = [example for step in range(2) for example in tokens(found, step)]
    later = [e.token_ids for iteration in range(2) for e in found.of_iteration(iteration)[0]]
    assert len({*warm, *later}) == 14
    assert [e.token_ids for e in mixed_in(14).of_iteration(1)[0]] == later[3:], "whatever was drawn before"
    continued = mixed_in(14, steps=0, skip=2)
    assert [e.token_ids for e in continued.of_iteration(0)[0]] == later[:3], (
        "after a warm start elsewhere too"
    )


@pytest.mark.parametrize("skip", [0, 3])
def test_new_examples_of_an_iteration_are_those_of_the_next_steps(skip: int) -> None:
    examples, instances = mixed_in(0, skip=skip).of_iteration(1)
    assert [e.token_ids for e in examples] == tokens(data(skip=skip), 3)[:3]
    assert len(instances) == 3
