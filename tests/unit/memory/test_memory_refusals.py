"""A run that cannot fit this machine is refused before Ray; one that may fit is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from rlpost.config.schema import AdapterKind, Config, Dtype, Task
from rlpost.errors import ConfigError
from rlpost.memory.limit import group_limits, memory_limit
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.plan import memory_plan
from rlpost.tasks.session import open_session
from rlpost.validate import memory
from rlpost.validate.memory import MARGIN, check_memory
from rlpost.weights.models import TINY


@pytest.fixture
def cfg() -> Config:
    cfg = Config(task=Task.rl, model="tiny", dtype=Dtype.float32)
    cfg.lora.kind, cfg.learner.workers = AdapterKind.full, 2
    return cfg


def give(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: size)


def least(cfg: Config) -> int:
    return memory_plan(cfg, ModelShape.read(TINY)).size(certain_only=True)


def test_what_cannot_fit_is_refused_with_what_helps(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 2**30)
    with pytest.raises(ConfigError) as refused:
        check_memory(cfg, TINY)
    text = str(refused.value)
    assert text.startswith("model=tiny\n  reason: the run takes at least ")
    assert "this machine has 1.0 GiB: 1 x driver" in text
    assert "2 x learner rank" in text
    assert "learner.workers=1 saves" in text.partition("remedy: ")[2]
    assert "kv_cache" not in text  # what is left out of the sum cannot help it


def test_the_margin_is_given_to_the_run(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = int(least(cfg) * (1 - MARGIN)) + 1
    give(monkeypatch, edge)
    check_memory(cfg, TINY)
    give(monkeypatch, edge - 2)
    with pytest.raises(ConfigError):
        check_memory(cfg, TINY)


def test_activations_and_cache_refuse_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, least(cfg))
    cfg.rollout.kv_cache_gib, cfg.learner.micro_batch_tokens = 1000.0, 10**6
    cfg.rollout.max_model_len = 10**5
    check_memory(cfg, TINY)


@pytest.mark.parametrize("task", [Task.dry_run, Task.tiny_base])
def test_tasks_without_engines_are_not_judged(
    cfg: Config, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 1)
    cfg.task = task
    check_memory(cfg, TINY)


def test_a_joined_cluster_is_not_judged_by_this_machine(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, 1)
    cfg.ray.address = "auto"
    check_memory(cfg, TINY)


def test_a_session_is_refused_before_ray_and_before_its_folder(
    cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 2**20)
    cfg.output_dir = str(tmp_path / "run")
    with pytest.raises(ConfigError, match="at least"), open_session(cfg, with_learner=True):
        pass
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []


def group(folder: Path, name: str, limit: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(limit)
    return folder


def test_the_limits_of_all_groups_above_count(tmp_path: Path) -> None:
    group(tmp_path / "a" / "b", "memory.max", "max\n")
    group(tmp_path / "a", "memory.max", "3000\n")
    group(tmp_path / "memory" / "c", "memory.limit_in_bytes", "2000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,memory:/c\n2:devices:/d\n0::/a/b\n")
    assert group_limits(tmp_path, membership) == [2000, 3000]
    membership.write_text("0::/elsewhere\n")
    assert group_limits(tmp_path, membership) == []
    assert group_limits(tmp_path, tmp_path / "gone") == []


def test_a_groups_limit_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlpost.memory import limit

    whole = memory_limit()
    assert whole > 2**28
    monkeypatch.setattr(limit, "group_limits", lambda: [2**28])
    assert memory_limit() - 2**28 == limit.psutil.swap_memory().total
