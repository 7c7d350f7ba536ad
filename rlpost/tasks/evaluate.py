"""Evaluation on the fixed instances of each variant, and `task=eval`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from rlpost.config.schema import Config, Task
from rlpost.envs import registry
from rlpost.envs.base import has_fake_rule
from rlpost.envs.terminal import plain_console
from rlpost.pages.console import Progress
from rlpost.record import failures, metrics
from rlpost.record.run_dir import RunDir
from rlpost.record.summary import held_out_losses, main_decoding
from rlpost.record.tracking import Trackers
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.instances import evaluation_episodes
from rlpost.rollout.pool import PoolSwapReport
from rlpost.rollout.specs import evaluation_specs
from rlpost.tasks import held_out
from rlpost.tasks.canary import canary_ids, plain_peft_canary
from rlpost.tasks.session import Session, open_session, plain, publish, run_folder, show
from rlpost.types import EpisodeSpec, Trajectory
from rlpost.weights.adapters import Adapter

HEADLINE = ("n", "success", "low", "high")


class Player(Protocol):
    """Plays episodes: a pool of engines, or a model behind an endpoint."""

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        """Play every spec to its end; return the episodes in the order of `specs`."""


def evaluate(cfg: Config, player: Player, run_dir: RunDir, progress: Progress, stage: str) -> dict[str, Any]:
    """Play every evaluation variant with every decoding. Results are by variant; episodes go to trajectories/.

    A variant's own `success` is that of `main_decoding`. Raises RolloutError if no episode of a variant was played.
    """
    return {
        variant: _variant(cfg, player, run_dir, progress, stage, variant) for variant in cfg.eval_variants
    }


def _variant(
    cfg: Config, player: Player, run_dir: RunDir, progress: Progress, stage: str, variant: str
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for decoding, sampling in decodings(cfg).items():
        progress.stage(f"evaluation ({stage}): {variant}, {decoding}")
        samples = cfg.eval.samples if sampling.temperature > 0 else 1  # greedy answers are all equal
        specs = evaluation_specs(cfg, variant, evaluation_episodes(cfg, variant), samples)
        played = player.collect(specs, sampling)
        path = run_dir.write_evaluation(stage, variant, decoding, played)
        what = f"evaluation ({stage}): {variant}, {decoding}"
        failures.refuse_all(played, f"{what} (its episodes: {path})")
        for note in failures.notes(played):
            progress.note(f"{what}: {note}")
        results[decoding] = metrics.evaluation(played, cfg.rollout.answer_marker)
        if results[decoding]["graded"]:
            progress.lead_with_reward()
    headline = results[main_decoding(results)]
    return {**{key: headline[key] for key in HEADLINE}, **results}


def evaluate_stage(session: Session, stage: str, finished: int) -> dict[str, Any]:
    """Run `evaluate` as a stage of a run, with its time in a line of metrics.jsonl.

    If the environment does not score answers, the stage measures the held-out loss (rlpost/tasks/held_out.py), plays no
    episodes, and its result is empty.

    `finished`: the iterations (task=sft: steps) before it, the x-axis on which trackers draw the results.
    """
    if not held_out.scored(session.cfg):
        held_out.evaluate_stage(session, stage, axis(session.cfg), finished)
        return {}
    with session.clock.phase("evaluation"):
        evaluation = evaluate(session.cfg, session.pool, session.run_dir, session.progress, stage)
    session.tracker.log_evaluation(evaluation, axis(session.cfg), finished)
    session.book(stage)
    return evaluation


def evaluate_stage_once(session: Session, stage: str, finished: int) -> None:
    """Run `evaluate_stage`, unless a resumed run already has its results."""
    cfg = session.cfg
    wanted = {(stage, variant, decoding) for variant in cfg.eval_variants for decoding in decodings(cfg)}
    played = wanted <= session.run_dir.evaluations().keys()
    if not played and stage not in held_out_losses(session.run_dir.read_metrics()):
        evaluate_stage(session, stage, finished)


def axis(cfg: Config) -> str:
    """The trackers' key for the number of finished iterations or supervised steps: the x-axis of evaluations."""
    return "eval/steps" if cfg.task is Task.sft else "eval/iterations"


def decodings(cfg: Config) -> dict[str, Sampling]:
    """The configured decodings, by name."""
    limit, stop = cfg.rollout.max_new_tokens, tuple(cfg.rollout.stop)
    wanted = {
        "greedy": (cfg.eval.greedy, Sampling(0.0, limit, stop)),
        "sampled": (cfg.eval.sampled, Sampling(cfg.rollout.temperature, limit, stop)),
    }
    return {name: sampling for name, (asked, sampling) in wanted.items() if asked}


def variants_of(cfg: Config) -> dict[str, dict[str, Any]]:
    """The report's entries about each variant."""
    return {
        v.name: {
            "held_out": v.held_out,
            "summary": v.summary,
            **({"fake_rule": True} if has_fake_rule(v) else {}),
        }
        for v in registry.variants(cfg.env, **cfg.env_args)
        if v.name in {*cfg.eval_variants, cfg.train_variant}
    }


def run(cfg: Config) -> None:
    """`task=eval`: the bare model; the adapter of `cfg.adapter`, whose swap is proven by plain PEFT's log-probs; or the
    model behind `cfg.eval.endpoint`.
    """
    if cfg.eval.endpoint is not None:
        _run_endpoint(cfg, cfg.eval.endpoint, str(cfg.eval.endpoint_model))
        return
    with open_session(cfg, with_learner=False) as session:
        stage = "before"
        swaps: list[PoolSwapReport] = []
        if cfg.adapter is not None:
            stage, folder = "after", Path(cfg.adapter)
            ids = canary_ids(cfg, session.chat)
            canary = plain_peft_canary(session.model_folder, folder, ids, cfg.lora.base)
            swaps.append(session.pool.swap(Adapter.load(folder), canary))
        results = evaluate(cfg, session.pool, session.run_dir, session.progress, stage)
        session.tracker.log_evaluation(results, axis(cfg), 0)
        publish(
            session,
            {stage: results},
            variants_of(cfg),
            iterations=0,
            swap_seconds=[swap.seconds for swap in swaps],
            logprob_gaps=[],
            canary_gaps=[swap.canary_gap for swap in swaps],
        )


def _run_endpoint(cfg: Config, url: str, model: str) -> None:
    """Evaluate the model behind an OpenAI-compatible server: no Ray, no engine. Raises RolloutError if it fails."""
    from rlpost.rollout.endpoint.client import EndpointClient
    from rlpost.rollout.endpoint.player import EndpointPlayer

    started, console = time.monotonic(), plain_console()
    with ExitStack() as stack:
        run_dir = stack.enter_context(run_folder(cfg))
        console.print(f"run directory: {run_dir.path}", soft_wrap=True)
        tracker = Trackers.start(cfg, run_dir.path, plain(cfg))
        stack.callback(tracker.finish)
        progress = Progress(console, None)
        stack.callback(progress.close)
        client = EndpointClient(url, model, cfg.rollout.timeout_s)
        stack.callback(client.close)
        player = EndpointPlayer(cfg, client)
        results = evaluate(cfg, player, run_dir, progress, "before")
        tracker.log_evaluation(results, axis(cfg), 0)
        if wrong := player.close():
            console.print(f"closing environments: {len(wrong)} failed, the first: {wrong[0]}", soft_wrap=True)
        summary = {
            "player": {"endpoint": url, "model": model},
            "eval": {"before": results},
            "variants": variants_of(cfg),
            "train_variant": cfg.train_variant,
            "iterations": 0,
            "sittings": 1,
            "seconds": time.monotonic() - started,
            "swap_seconds_median": None,
            "logprob_gap_mean": None,
            "canary_gap_mean": None,
            "workers_replaced": 0,
        }
        show(run_dir, progress, console, summary)
