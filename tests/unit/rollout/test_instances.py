"""Evaluation plays different instances where an environment knows how many it has; elsewhere it draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlpost.config.schema import Config, Instances
from rlpost.envs import registry
from rlpost.errors import RolloutError
from rlpost.rollout import instances
from rlpost.rollout.episode import opened
from rlpost.rollout.instances import evaluation_episodes
from rlpost.rollout.specs import Instance, evaluation_env_seed, evaluation_specs


def data_set(path: Path, held_out: int, episodes: int, twice: int = 0) -> Config:
    rows = [{"prompt": f"p{n}", "answer": n, "kind": "train"} for n in range(9)]
    rows += [{"prompt": f"q{n % held_out}", "answer": n, "kind": "hard"} for n in range(held_out + twice)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"path": str(path / "rows.jsonl"), "score": "exact", "variant": "kind", "held_out": ["hard"]}
    cfg = Config(env="dataset", env_args=args, train_variant="train", eval_variants=["hard"])
    cfg.eval.episodes = episodes
    return cfg


def played(cfg: Config, variant: str) -> list[str]:
    env = registry.make(cfg.env, **cfg.env_args)
    specs = evaluation_specs(cfg, variant, evaluation_episodes(cfg, variant))
    assert all(spec.instance is None for spec in specs)
    options = {"variant": variant, "split": "eval"}
    return [env.reset(seed=spec.env_seed, options=options)[1]["instance"] for spec in specs]


def all_played(cfg: Config, variant: str) -> list[str]:
    """The instances of an evaluation with eval.instances=all, as rollouts reset them."""
    cfg.eval.instances = Instances.all
    env = registry.make(cfg.env, **cfg.env_args)
    specs = evaluation_specs(cfg, variant, evaluation_episodes(cfg, variant))
    return [opened(lambda: env, env, spec).instance for spec in specs]


@pytest.mark.parametrize(("held_out", "twice"), [(1, 0), (3, 0), (3, 3), (40, 5)])
def test_each_of_few_is_played_once(tmp_path: Path, held_out: int, twice: int) -> None:
    cfg = data_set(tmp_path, held_out, 40, twice)
    found = played(cfg, "hard")
    assert len(found) == len(set(found)) == held_out
    assert played(cfg, "hard") == found
    for spec in evaluation_specs(
        cfg, "hard", evaluation_episodes(cfg, "hard")
    ):  # so that a record is replayed
        assert spec.env_seed == evaluation_env_seed(cfg.eval.seed, "hard", spec.episode)


def test_of_more_than_are_asked_for_none_is_played_twice(tmp_path: Path) -> None:
    found = played(data_set(tmp_path, 41, 40), "hard")
    assert len(found) == len(set(found)) == 40


@pytest.mark.parametrize(("variant", "problems"), [("faces_10", 194), ("faces_7", 55)])
def test_of_generalpoints_different_problems_are_played(variant: str, problems: int) -> None:
    cfg = Config()
    cfg.eval.episodes = 60
    found = played(cfg, variant)
    assert len(found) == len(set(found)) == min(60, problems)


def test_navigation_draws(tmp_path: Path) -> None:
    cfg = Config(env="navigation")
    drawn = evaluation_episodes(cfg, registry.variants("navigation")[0].name)
    assert list(drawn) == [Instance(number) for number in range(256)]


def test_what_draws_do_not_show_is_not_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = data_set(tmp_path, 3, 40)
    instances._episodes.cache_clear()
    made = registry.make

    def counts_four(name: str, **args: Any) -> Any:
        env: Any = made(name, **args)
        env.instances = lambda variant, split: 4
        return env

    monkeypatch.setattr(registry, "make", counts_four)
    assert len(evaluation_episodes(cfg, "hard")) == 3
    cfg.eval.instances = Instances.all
    with pytest.raises(RolloutError, match=r"4 instances of hard, and draws showed 3; give it a method"):
        evaluation_episodes(cfg, "hard")
    instances._episodes.cache_clear()


@pytest.mark.parametrize(
    ("variant", "problems"), [("faces_10", 194), ("faces_7", 55), ("faces_10_mixed", 1424)]
)
def test_all_problems_of_generalpoints_are_played_once(variant: str, problems: int) -> None:
    cfg = Config()
    cfg.eval.episodes = 1  # not read
    found = all_played(cfg, variant)
    assert len(found) == problems
    assert sorted(found) == sorted(registry.make("generalpoints").unwrapped.instance_names(variant, "eval"))  # type: ignore[attr-defined]
    assert found != sorted(found)  # the first few are a sample, not the smallest cards
    assert all_played(cfg, variant) == found


def test_all_include_what_draws_show() -> None:
    """`drawn` finds at most 50 draws an instance; four equal cards are one deal in 28,561."""
    cfg = Config()
    cfg.eval.episodes = 10_000
    drawn, every = played(cfg, "faces_7"), all_played(cfg, "faces_7")
    assert set(drawn) <= set(every)
    assert len(every) == 55


@pytest.mark.parametrize(("held_out", "twice"), [(1, 0), (3, 3), (40, 5)])
def test_all_rows_of_a_data_set_are_played_once(tmp_path: Path, held_out: int, twice: int) -> None:
    cfg = data_set(tmp_path, held_out, 1, twice)
    assert len(played(cfg, "hard")) == 1
    found = all_played(cfg, "hard")
    assert len(found) == len(set(found)) == held_out


def test_another_eval_seed_orders_and_shows_the_cards_otherwise() -> None:
    cfg = Config()
    first = all_played(cfg, "faces_7")
    cfg.eval.seed += 1
    again = all_played(cfg, "faces_7")
    assert first != again
    assert sorted(first) == sorted(again)


def test_samples_of_all_are_groups_of_one_instance_each() -> None:
    cfg = Config()
    cfg.eval.instances = Instances.all
    specs = evaluation_specs(cfg, "faces_7", evaluation_episodes(cfg, "faces_7"), 3)
    assert len(specs) == len({spec.seed for spec in specs}) == 3 * 55
    assert len({(spec.group, spec.instance, spec.env_seed) for spec in specs}) == 55


def test_samples_of_an_instance_are_it_with_other_dice(tmp_path: Path) -> None:
    """Each instance stays one; its first sample has the dice that it has alone, whatever the number of samples."""
    cfg = data_set(tmp_path, 5, 40)
    numbers = evaluation_episodes(cfg, "hard")
    one, three, four = (evaluation_specs(cfg, "hard", numbers, samples) for samples in (1, 3, 4))
    env = registry.make(cfg.env, **cfg.env_args)
    options = {"variant": "hard", "split": "eval"}
    names = [env.reset(seed=spec.env_seed, options=options)[1]["instance"] for spec in three]
    assert [names.count(name) for name in dict.fromkeys(names)] == [3] * 5
    assert [spec.env_seed for spec in three[::3]] == [spec.env_seed for spec in one]
    assert [spec.seed for spec in three[::3]] == [spec.seed for spec in one]
    assert len({spec.seed for spec in three}) == len({spec.episode for spec in three}) == 15
    dice = {(spec.group, spec.episode - 4 * spec.group): spec.seed for spec in four}
    assert all(dice[spec.group, spec.episode - 3 * spec.group] == spec.seed for spec in three)
    for spec in three:  # so that a record is replayed
        assert spec.env_seed == evaluation_env_seed(cfg.eval.seed, "hard", spec.group)
