"""The learner for real: Ray actors, DeepSpeed, ZeRO 0 to 3, one and two ranks."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from rlpost.config.schema import (
    AdapterKind,
    AdapterStart,
    AlgoName,
    BaseKind,
    Config,
    Dtype,
    KlPlace,
    Optimizer,
    Task,
)
from rlpost.errors import LearnerError
from rlpost.learner import group as group_module
from rlpost.learner.actor import LearnerActor
from rlpost.learner.group import LearnerGroup
from rlpost.learner.model.packing import Row
from rlpost.record.shares import check_ranks
from rlpost.types import Ending, Finish, Trajectory, Turn
from rlpost.weights.adapters import Adapter
from tests.adapter_kinds import small
from tests.learner_data import (
    VOCAB,
    examples_of,
    random_episodes,
    small_config,
    with_algorithm,
    write_small_model,
)

pytestmark = pytest.mark.integration

CANARY = tuple(range(1, 12))


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, Ray's spelling; as in rlpost.cluster.ray_cluster
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, handler)  # ray.init leaves one of its own
    yield
    ray.shutdown()


@pytest.fixture
def start(small_model: Path) -> Iterator[Callable[[Config], LearnerGroup]]:
    groups: list[LearnerGroup] = []

    def started(cfg: Config) -> LearnerGroup:
        examples = None if cfg.resume else examples_of(random_episodes(8, seed=2))
        groups.append(LearnerGroup(cfg, small_model, CANARY, examples))
        return groups[-1]

    yield started
    for group in groups:
        group.close()


def _config(workers: int, zero_stage: int) -> Config:
    cfg = small_config()
    cfg.learner.workers, cfg.learner.zero_stage, cfg.learner.cpus = workers, zero_stage, 0.5
    cfg.algo.epochs = 1
    cfg.algo.kl_target = 0.05  # so that the coefficient is state that a resumed learner must have
    return cfg


def _short_run(group: LearnerGroup) -> tuple[list[dict[str, float]], Adapter]:
    episodes = random_episodes(9)
    found = [group.sft_step(examples_of(episodes[:7]), 0)]
    group.set_reference()
    found.append(group.update_rl(episodes, 0))
    return found, group.export(1)[0]


def _without_seconds(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds")}


@pytest.fixture(scope="module")
def one_rank(small_model: Path) -> tuple[list[dict[str, float]], Adapter]:
    """What one rank without ZeRO and without accumulation makes of the same data."""
    cfg = _config(workers=1, zero_stage=0)
    cfg.learner.micro_batch_tokens = 1000
    group = LearnerGroup(cfg, small_model, CANARY)
    try:
        return _short_run(group)
    finally:
        group.close()


@pytest.mark.parametrize(
    "zero_stage",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        3,
    ],
)
def test_two_ranks_equal_one(
    start: Callable[[Config], LearnerGroup],
    one_rank: tuple[list[dict[str, float]], Adapter],
    zero_stage: int,
    tmp_path: Path,
) -> None:
    """Metrics and adapter after an SFT step and two PPO steps, with uneven micro-batches; and the state saved,
    taken up by the same ranks after more steps, gives the very same numbers again."""
    group = start(_config(workers=2, zero_stage=zero_stage))
    metrics, adapter = _short_run(group)
    for found, expected in zip(metrics, one_rank[0], strict=True):
        assert _without_seconds(found) == pytest.approx(_without_seconds(expected), rel=2e-3, abs=2e-5)
    assert set(adapter.tensors) == set(one_rank[1].tensors)
    for name, tensor in adapter.tensors.items():
        torch.testing.assert_close(tensor, one_rank[1].tensors[name], rtol=2e-3, atol=2e-5)
    _check_resume(group, tmp_path)


def _check_resume(group: LearnerGroup, folder: Path) -> None:
    group.save(folder)
    episodes = random_episodes(6, seed=5)
    first = _without_seconds(group.update_rl(episodes, 1))
    fingerprint = group.export(2)[0].fingerprint
    group.set_reference()  # spoils reference and optimizer, which `load` must mend
    group.load(folder)
    assert _without_seconds(group.update_rl(episodes, 1)) == first
    assert group.export(2)[0].fingerprint == fingerprint


class ActorWithItsOwnDisk(LearnerActor):
    """Rank 1 sees nothing at the path of the run's folder, as on a node that shares no file system."""

    def find(self, folder: Path, sign: str) -> bool:
        on_its_disk = folder.parent / "not here" / folder.name
        return super().find(on_its_disk if self.learner.rendezvous.rank == 1 else folder, sign)


@pytest.mark.parametrize("zero_stage", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3))])
def test_ranks_without_a_shared_disk_resume_exactly(
    start: Callable[[Config], LearnerGroup],
    zero_stage: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint has the files of both ranks, and gives the very same numbers to them and to new ones."""
    monkeypatch.setattr(group_module, "LearnerActor", ActorWithItsOwnDisk)
    cfg = _config(workers=2, zero_stage=zero_stage)
    group = start(cfg)
    _short_run(group)
    _check_resume(group, tmp_path / "run")
    check_ranks(tmp_path / "run", 2, divided=zero_stage > 0)
    group.load(tmp_path / "run")
    expected = group.export(3)
    group.close()
    fresh = start(cfg)
    fresh.load(tmp_path / "run")
    adapter, canary = fresh.export(3)
    assert (adapter.fingerprint, canary) == (expected[0].fingerprint, expected[1])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("zero_stage", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1, 2)), 3])
def test_measuring_the_distance_from_the_start_changes_nothing_and_resumes_exactly(
    start: Callable[[Config], LearnerGroup],
    one_rank: tuple[list[dict[str, float]], Adapter],
    zero_stage: int,
    tmp_path: Path,
) -> None:
    """The same run as `one_rank`, in which the distance is measured between the steps."""
    cfg = _config(workers=2, zero_stage=zero_stage)
    cfg.retention.text = "auto"  # so that a checkpoint must have the start
    group, episodes = start(cfg), random_episodes(9)
    own, of_start = random_episodes(5, seed=8), random_episodes(4, seed=9)
    group.sft_step(examples_of(episodes[:7]), 0)
    group.set_reference()
    group.keep_start()
    assert set(group.distance(own, of_start).values()) == {0.0}
    metrics = group.update_rl(episodes, 0)
    expected = _without_seconds(one_rank[0][1])
    assert _without_seconds(metrics) == pytest.approx(expected, rel=2e-3, abs=2e-5)
    found, adapter = group.distance(own, of_start), group.export(1)[0]
    assert min(found["reverse/k3_token"], found["forward/k3_token"]) > 0
    for name, tensor in adapter.tensors.items():
        torch.testing.assert_close(tensor, one_rank[1].tensors[name], rtol=2e-3, atol=2e-5)
    _check_resume(group, tmp_path)
    group.keep_start()  # spoils the start, which `load` must mend
    group.load(tmp_path)
    assert group.distance(own, of_start) == found
    assert group.export(3)[0].fingerprint == adapter.fingerprint


@pytest.mark.parametrize(
    "zero_stage",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(3, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_on_a_base_in_nf4(
    start: Callable[[Config], LearnerGroup], zero_stage: int, tmp_path: Path
) -> None:
    """As above; under ZeRO-3 each rank holds all codes."""
    alone, shared = _config(1, 0), _config(2, zero_stage)
    for cfg in (alone, shared):
        cfg.lora.base, cfg.lora.rank = BaseKind.nf4, 1
    _, expected = _short_run(start(alone))
    group = start(shared)
    _, adapter = _short_run(group)
    assert adapter.base is BaseKind.nf4
    for name, tensor in adapter.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=2e-3, atol=2e-5)
    _check_resume(group, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2])
@pytest.mark.parametrize("kind", [AdapterKind.oft, AdapterKind.vera, AdapterKind.ia3, AdapterKind.lokr])
def test_a_kind_on_two_ranks_equals_one_and_resumes_exactly(
    start: Callable[[Config], LearnerGroup], kind: AdapterKind, zero_stage: int, tmp_path: Path
) -> None:
    """Rotations, vectors between random matrices that all modules share, scales, and Kronecker products."""
    alone, shared = _config(1, 0), _config(2, zero_stage)
    alone.lora = shared.lora = small(kind)
    single = start(alone)
    expected, weights = _short_run(single)
    single.close()
    group = start(shared)
    metrics, found = _short_run(group)
    for mine, its in zip(metrics, expected, strict=True):
        assert _without_seconds(mine) == pytest.approx(_without_seconds(its), rel=2e-3, abs=2e-5)
    assert set(found.tensors) == set(weights.tensors)
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=2e-3, atol=1e-4)
    _check_resume(group, tmp_path)


def _full(cfg: Config) -> Config:
    cfg.lora.kind = AdapterKind.full
    cfg.sft.learning_rate = cfg.algo.learning_rate = cfg.algo.critic_learning_rate = 1e-3
    return cfg


@pytest.mark.parametrize(
    "zero_stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_full_fine_tuning_on_two_ranks_equals_one_and_resumes_exactly(
    start: Callable[[Config], LearnerGroup], zero_stage: int, tmp_path: Path
) -> None:
    alone = start(_full(_config(workers=1, zero_stage=0)))
    expected, weights = _short_run(alone)
    alone.close()
    group = start(_full(_config(workers=2, zero_stage=zero_stage)))
    metrics, found = _short_run(group)
    for mine, its in zip(metrics, expected, strict=True):
        assert _without_seconds(mine) == pytest.approx(_without_seconds(its), rel=2e-3, abs=2e-5)
    for name, tensor in weights.tensors.items():
        # Adam's first steps have the size of the rate, whatever the size of a gradient, also of one that rounding made.
        torch.testing.assert_close(found.tensors[name], tensor, rtol=2e-3, atol=1e-4)
    _check_resume(group, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20 * 4 * sum(
        t.numel() for t in weights.tensors.values()
    )


def test_two_full_sft_steps_equal_plain_adamw(
    start: Callable[[Config], LearnerGroup], small_model: Path
) -> None:
    """Of transformers and torch alone: row by row, the mean over all loss tokens, one norm, warm-up over two steps."""
    cfg = _full(_config(workers=1, zero_stage=0))
    cfg.task = Task.sft
    examples = examples_of(random_episodes(7))
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=tuple(cfg.learner.betas), weight_decay=cfg.learner.weight_decay
    )
    group = start(cfg)
    for step in range(2):
        losses = []
        for example in examples:
            ids = torch.tensor([example.token_ids])
            at = [t for t, counted in enumerate(example.loss_mask) if counted]
            table = torch.log_softmax(model(ids).logits[0], dim=-1)
            losses += [-table[t - 1, ids[0, t]] for t in at]
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.learner.max_grad_norm)
        optimizer.param_groups[0]["lr"] = cfg.sft.learning_rate * (step + 1) / 2
        optimizer.step()
        assert group.sft_step(examples, step)["loss"] == pytest.approx(loss.item(), rel=1e-4)
    found = group.export(1)[0].tensors
    expected = dict(model.named_parameters())
    assert set(found) == set(expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter.data, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("base", list(BaseKind))
def test_a_fresh_process_resumes_exactly(
    start: Callable[[Config], LearnerGroup], base: BaseKind, tmp_path: Path
) -> None:
    cfg = _config(workers=1, zero_stage=0)
    cfg.lora.base = base
    group = start(cfg)
    _short_run(group)
    group.save(tmp_path)
    episodes = random_episodes(6, seed=5)
    expected = _without_seconds(group.update_rl(episodes, 1))
    adapter, canary = group.export(2)
    group.close()
    fresh = start(cfg)
    fresh.load(tmp_path)
    assert _without_seconds(fresh.update_rl(episodes, 1)) == expected
    again, canary_again = fresh.export(2)
    assert (again.fingerprint, canary_again) == (adapter.fingerprint, canary)


@pytest.mark.parametrize("name", [Optimizer.muon, Optimizer.lora_pro])
def test_an_optimizer_of_matrices_steps_and_resumes_exactly(
    start: Callable[[Config], LearnerGroup], tmp_path: Path, name: Optimizer
) -> None:
    cfg = _config(workers=1, zero_stage=0)
    cfg.learner.optimizer = name
    group = start(cfg)
    (sft, rl), _ = _short_run(group)
    assert sft["learning_rate_policy"] == cfg.sft.learning_rate / 2, "the first of two steps of warm-up"
    assert sft["grad_norm_policy"] > 0.0
    assert rl["learning_rate_critic"] > 0.0
    _check_resume(group, tmp_path)


@pytest.mark.slow
def test_a_start_that_changes_the_base_is_the_same_on_two_ranks_and_resumes_exactly(
    start: Callable[[Config], LearnerGroup], tmp_path: Path
) -> None:
    """With its data pass, sharded by ZeRO-3 afterwards, and taken up by new processes that start nothing."""
    cfg = _config(workers=2, zero_stage=3)
    cfg.lora.start = AdapterStart.corda
    group, alone = start(cfg), start(replace(cfg, learner=replace(cfg.learner, workers=1, zero_stage=0)))
    first, expected = (each.export(0)[0] for each in (group, alone))
    assert first.config["r"] == 2 * cfg.lora.rank
    assert any(t.any() for t in first.tensors.values())
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, expected.tensors[name])
    alone.close()
    group.sft_step(examples_of(random_episodes(7)), 0)
    group.set_reference()
    group.save(tmp_path)
    episodes = random_episodes(6, seed=5)
    metrics = _without_seconds(group.update_rl(episodes, 0))
    adapter, canary = group.export(1)
    group.close()
    fresh = start(replace(cfg, resume="folder"))
    fresh.load(tmp_path)
    assert _without_seconds(fresh.update_rl(episodes, 0)) == metrics
    again, canary_again = fresh.export(1)
    assert (again.fingerprint, canary_again) == (adapter.fingerprint, canary)


def test_bfloat16_base_follows_float32(
    start: Callable[[Config], LearnerGroup], one_rank: tuple[list[dict[str, float]], Adapter]
) -> None:
    cfg = _config(workers=1, zero_stage=2)
    cfg.dtype = Dtype.bfloat16
    metrics, adapter = _short_run(start(cfg))
    assert {t.dtype for t in adapter.tensors.values()} == {torch.float32}
    assert metrics[0]["loss"] == pytest.approx(one_rank[0][0]["loss"], rel=0.02)
    assert metrics[-1]["entropy"] == pytest.approx(one_rank[0][-1]["entropy"], rel=0.05)


@pytest.mark.slow
def test_a_bad_step_stops_all_ranks_and_names_the_step(start: Callable[[Config], LearnerGroup]) -> None:
    """Infinite weights from an absurd learning rate; then the group takes no further calls."""
    cfg = _config(workers=2, zero_stage=0)
    cfg.sft.learning_rate = 1e30
    group = start(cfg)

    def diverge() -> None:
        for step in range(5):
            group.sft_step(examples_of(random_episodes(6)), step)

    with pytest.raises(LearnerError, match=r"SFT step \d"):
        diverge()
    with pytest.raises(LearnerError, match="no calls any more"):
        group.export(1)


def _pids(group: LearnerGroup) -> list[int]:
    return ray.get([worker.__ray_call__.remote(lambda _: os.getpid()) for worker in group.workers])


def test_a_dead_rank_is_named_and_close_leaves_no_process(start: Callable[[Config], LearnerGroup]) -> None:
    cfg = _config(workers=2, zero_stage=0)
    cfg.algo.kl, cfg.algo.kl_target = KlPlace.none, None
    group = start(cfg)
    pids = _pids(group)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(LearnerError, match="learner rank"):
        group.update_rl(random_episodes(6), 0)
    group.close()
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_silent_rank_misses_its_deadline(start: Callable[[Config], LearnerGroup]) -> None:
    group = start(_config(workers=1, zero_stage=0))
    group.cfg = replace(group.cfg, learner=replace(group.cfg.learner, timeout_s=2.0))
    (pid,) = _pids(group)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(LearnerError, match=r"2 s.*learner rank 0"):
            group.export(1)
    finally:
        os.kill(pid, signal.SIGCONT)


PROMPT = (3, 14, 15, 9)
REWARDED = 7


def _arms(
    rewards: Callable[[int], float], logprobs: Sequence[float], tokens: Sequence[int]
) -> list[Trajectory]:
    """One-token answers to the same prompt: a bandit of as many arms as the vocabulary has tokens."""
    turns = [Turn(PROMPT, (a,), (logprobs[a],), "", "", Finish.STOP, rewards(a), "PULLED", 0) for a in tokens]
    return [
        Trajectory("e", "v", "train", "i", 0, i, i // 8, i, (turn,), Ending.TERMINATED, False)
        for i, turn in enumerate(turns)
    ]


def _arm_logprobs(group: LearnerGroup) -> list[float]:
    """The policy's log-probs of all arms, as its own process computes them."""
    rows = [Row((*PROMPT, arm), (0,) * len(PROMPT) + (1,)) for arm in range(VOCAB)]
    return ray.get(
        group.workers[0].__ray_call__.remote(lambda actor: actor.learner._logprobs(rows, 1.0).tolist())
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [AlgoName.ppo, AlgoName.grpo])
def test_the_rewarded_arm_is_found(start: Callable[[Config], LearnerGroup], name: AlgoName) -> None:
    """On-policy, with a critic and without, arms drawn from the learner's own probabilities: the optimum is known."""

    def reward(arm: int) -> float:
        return 5.0 if arm == REWARDED else 0.0

    cfg = with_algorithm(_config(workers=1, zero_stage=0), name)
    cfg.algo.kl, cfg.algo.learning_rate, cfg.algo.minibatches = KlPlace.none, 1e-2, 1
    cfg.algo.kl_target = None
    group, dice, chances = start(cfg), random.Random(0), []
    for iteration in range(20):
        logprobs = _arm_logprobs(group)
        chances.append(math.exp(logprobs[REWARDED]))
        drawn = dice.choices(range(VOCAB), [math.exp(x) for x in logprobs], k=96)
        group.update_rl(_arms(reward, logprobs, drawn), iteration)
    assert chances[0] < 0.2, chances
    assert chances[-1] > 0.8, chances


def _taught_run(group: LearnerGroup) -> tuple[dict[str, float], Adapter]:
    """An update with a teacher or a critic, and with expert answers in its steps."""
    experts = examples_of(random_episodes(5, seed=7))
    return group.update_rl(random_episodes(8), 0, experts), group.export(1)[0]


@pytest.mark.parametrize(
    ("name", "zero_stage"),
    [
        pytest.param(AlgoName.ppo, 1, marks=pytest.mark.slow),
        pytest.param(AlgoName.opd, 2, marks=pytest.mark.slow),
        (AlgoName.opd, 3),
    ],
)
def test_a_teacher_and_expert_answers_on_two_ranks_equal_one(
    start: Callable[[Config], LearnerGroup], name: AlgoName, zero_stage: int, tmp_path: Path
) -> None:
    """A teacher of another rank; and the last micro-batch has the critic's gradients too, which ZeRO-1 needs."""
    teacher = _config(1, 0)
    teacher.lora.rank = 2
    teaching = start(teacher)
    _short_run(teaching)[1].save(tmp_path / "teacher")
    teaching.close()
    settings = []
    for workers, stage in ((1, 0), (2, zero_stage)):
        cfg = with_algorithm(_config(workers, stage), name)
        cfg.algo.epochs, cfg.algo.minibatches, cfg.algo.critic_warmup = 1, 2, 0
        cfg.algo.expert_coef, cfg.algo.teacher, cfg.algo.kl_target = 0.5, str(tmp_path / "teacher"), None
        settings.append(cfg)
    alone = start(settings[0])
    expected, weights = _taught_run(alone)
    alone.close()
    metrics, found = _taught_run(start(settings[1]))
    assert _without_seconds(metrics) == pytest.approx(_without_seconds(expected), rel=2e-3, abs=2e-5)
    assert metrics["expert_loss"] > 0
    assert ("kl_teacher" in metrics) == (name is AlgoName.opd)
    for tensor_name, tensor in weights.tensors.items():
        torch.testing.assert_close(found.tensors[tensor_name], tensor, rtol=2e-3, atol=2e-5)
