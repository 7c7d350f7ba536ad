"""`task=rl`: a warm start, then rollouts, update and swap in each iteration, with any algorithm (`algo=`).

collect (adapter v) ─▶ trajectories ─▶ rewards ─▶ learner.update_rl ─▶ adapter v+1 ─▶ swap into every engine, proven
                       with rollout.policy=start the engines keep the start; see rlpost.tasks.start_policy
                       with rollout.lag=k they get version v+1-k; see rlpost.tasks.lag
                       with rollout.sleep their GPU memory is the learner's meanwhile; see rlpost.tasks.turns
                         expert answers (algo.expert_coef) ─┘
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from rlpost.config.schema import Config, RolloutPolicy
from rlpost.record import failures, metrics
from rlpost.record.compute import EXAMPLES
from rlpost.record.run_dir import iteration_name
from rlpost.rollout.dynamic_sampling import Collected, collect
from rlpost.rollout.reward_control import rewards_to_learn_from
from rlpost.rollout.reward_function import Score
from rlpost.rollout.rollouts import Rollouts, rollouts_of
from rlpost.tasks import memory, retention, spectrum, start_policy, training_state, turns
from rlpost.tasks.evaluate import evaluate_stage, evaluate_stage_once
from rlpost.tasks.expert_data import ExpertData
from rlpost.tasks.schedule import Schedule
from rlpost.tasks.session import Session, open_session
from rlpost.tasks.sft import train_step
from rlpost.tasks.stall import Stall
from rlpost.tasks.training_state import TrainingState
from rlpost.types import EpisodeSpec, Example, Trajectory


def run(cfg: Config) -> None:
    """Train, evaluate and report. With `cfg.resume`, continue from the last checkpoint of that run."""
    with open_session(cfg, with_learner=True) as session:
        schedule = Schedule(cfg, cfg.algo.iterations, session.model_folder)
        resumes = cfg.resume is not None
        state = training_state.resume(session, "iteration", live=True) if resumes else _begin(session)
        schedule.replay(session.run_dir.read_metrics(), "iteration")
        with session.sitting():
            memory.refuse_small_limit(session)
            _train(session, schedule, state)
            training_state.make_current_live(session, state)
            training_state.finish(session, state)


def _begin(session: Session) -> TrainingState:
    """Evaluate the bare model, warm up, make the warm adapter the reference; if there is one, evaluate again."""
    state = TrainingState()
    session.book("start")
    cfg = session.cfg
    if cfg.eval.start:
        began = time.monotonic()
        state.evaluations["before"] = evaluate_stage(session, "before", 0)
        session.progress.closing(time.monotonic() - began)
        if cfg.sft.steps > 0 and cfg.adapter is None:  # with an adapter, engines and learner differ here
            retention.measure(session, "before", 0)
    _warm_up(session)
    session.learner.set_reference()
    with session.clock.phase("swap"):
        training_state.swap(session, state)
    warm = cfg.sft.steps > 0 or cfg.adapter is not None
    if cfg.eval.start and warm:
        state.evaluations["warm"] = evaluate_stage(session, "warm", 0)
    retention.begin(session, "warm" if warm else "before")
    if cfg.rollout.policy is RolloutPolicy.start:
        start_policy.keep(session, state.version)
    training_state.checkpoint(session, state)
    return state


def _warm_up(session: Session) -> None:
    if steps := session.cfg.sft.steps:
        with closing(ExpertData(session.cfg, session.chat)) as data:
            for step in range(steps):
                session.progress.stage(f"supervised step {step + 1}/{steps}")
                train_step(session, data, step)


def _train(session: Session, schedule: Schedule, state: TrainingState) -> None:
    with ExitStack() as stack:
        experts = None
        if session.cfg.algo.expert_coef > 0:
            experts = stack.enter_context(closing(ExpertData(session.cfg, session.chat)))
        _iterations(session, schedule, state, experts)


def _iterations(
    session: Session, schedule: Schedule, state: TrainingState, experts: ExpertData | None
) -> None:
    stall, score = Stall(session.cfg.algo), rewards_to_learn_from(session.cfg)
    rollouts = rollouts_of(session.cfg, session.pool)
    while True:
        if schedule.due:
            stage = iteration_name(state.steps - 1)
            rollouts.settle()
            with training_state.current_live(session, state):
                evaluate_stage_once(session, stage, state.steps)
                retention.measure_once(session, stage, state.steps)
        if schedule.over:
            return
        session.progress.stage(f"iteration {schedule.next}")
        session.pool.grow()
        schedule.add(_iterate(session, state, rollouts, stall, score, experts))
        if state.steps % session.cfg.tracking.checkpoint_every == 0 or schedule.over:
            training_state.checkpoint(session, state)


def _iterate(
    session: Session,
    state: TrainingState,
    rollouts: Rollouts,
    stall: Stall,
    score: Score | None,
    experts: ExpertData | None,
) -> dict[str, Any]:
    """Run one iteration and return its line of metrics.jsonl."""
    cfg, clock, iteration = session.cfg, session.clock, state.steps
    collected = collect(partial(_play, session, rollouts, score), cfg, iteration)
    ahead = rollouts.metrics(collected.batch, state.version)
    with clock.phase("record"):  # before the update, so that episodes which break an update can be inspected
        path = session.run_dir.write_trajectories(iteration_name(iteration), collected.played)
    failures.refuse_all(collected.batch, f"iteration {iteration + 1} (its episodes: {path})")
    examples = _expert_answers(session, experts, iteration)
    turns.learner(cfg, session.pool, clock)
    with clock.phase("learner"):
        update_metrics = session.learner.update_rl(collected.batch, iteration, examples)
    seconds = {part: update_metrics.pop(f"seconds_{part}") for part in ("logprobs", "update")}
    clock.split("learner", seconds)
    shown = {EXAMPLES: float(len(examples))} if examples else {}
    measured = {
        **ahead,
        **update_metrics,
        **shown,
        **_go_live(session, state, rollouts),
    }
    state.steps += 1
    # Absent while only the critic learns and the engine's log-probs are used unchanged. If an older policy plays, only
    # the first iteration's is one of engine and learner; later ones are also the way that the policy has moved. So are
    # those of stale batches.
    on_policy = cfg.rollout.plays_current and not ahead.get("staleness/max")
    if "logprob_gap" in update_metrics and (on_policy or iteration == 0):
        state.logprob_gaps.append(update_metrics["logprob_gap"])
    notes = [*_without_step(update_metrics), *filter(None, [stall.see(collected.batch, update_metrics)])]
    return _report(session, state, collected, measured, notes)


def _go_live(session: Session, state: TrainingState, rollouts: Rollouts) -> dict[str, float]:
    """Swap the policy that plays next into the engines (unless these keep the start); measure it and all processes."""
    turns.engines(session.cfg, session.pool, session.clock)
    if session.cfg.rollout.policy is RolloutPolicy.start:
        return memory.look(session)
    with rollouts.swapping(state.steps + 1):
        with session.clock.phase("swap"):
            swap = training_state.swap(session, state)
        figures = memory.look(session)
    return {**swap.metrics(), **spectrum.on_the_way(session), **figures}


def _without_step(update_metrics: Mapping[str, float]) -> Iterator[str]:
    """What the console says of an iteration in which no episode was chosen to learn from (algo=rft, dpo)."""
    if update_metrics.get("kept_episodes") == 0 and "expert_loss" not in update_metrics:
        pairs = "paired_groups" in update_metrics
        why = "no group has two different rewards" if pairs else "no episode succeeded"
        yield f"{why}: the policy took no step"


def _expert_answers(session: Session, experts: ExpertData | None, iteration: int) -> list[Example]:
    """The expert answers of an iteration, on record; none while only the critic learns."""
    if experts is None or iteration < session.cfg.algo.critic_warmup:
        return []
    with session.clock.phase("data"):
        examples, instances = experts.of_iteration(iteration)
        session.run_dir.append_examples(iteration, instances, key="iteration")
    return examples


def _play(
    session: Session, rollouts: Rollouts, score: Score | None, specs: Sequence[EpisodeSpec]
) -> list[Trajectory]:
    """Play episodes and set the rewards to learn from: the environment's, or those that `score` gives.

    Dynamic sampling judges by these rewards too, so they are set after each of its rounds.
    """
    with session.clock.phase("rollout"):
        played = rollouts.collect(specs)
    if score is None:
        return played
    with session.clock.phase("rewards"):
        return score(played)


def _report(
    session: Session,
    state: TrainingState,
    collected: Collected,
    measured: dict[str, float],
    notes: Sequence[str],
) -> dict[str, Any]:
    numbers = {
        "iteration": state.steps - 1,
        "adapter_version": min(v for e in collected.played if (v := e.policy_version) is not None),
        **metrics.rollout_metrics(collected.played),
        "rollout/workers": float(session.pool.workers),
        **collected.metrics,
        **measured,
        **session.clock.lap(),
    }
    cause = failures.first_cause(collected.played)
    line = {"stage": "rl", **numbers} | ({} if cause is None else {"first_failure": cause})
    session.run_dir.append_metrics(line)
    session.tracker.log(numbers, over="iteration")
    session.progress.iteration(state.steps, numbers, [*failures.notes(collected.played), *notes])
    return numbers
