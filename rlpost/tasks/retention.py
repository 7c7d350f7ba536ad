"""What training costs elsewhere (`retention.*`): at its start and whenever the run evaluates, in metrics.jsonl.

    retention.env   ─▶ the engines play its evaluation instances     ─▶ retention/env/VARIANT/success
    retention.text  ─▶ the learner's loss                            ─▶ retention/text/loss
    sampled evaluation episodes of the trained variant, the policy's and the start's
                    ─▶ the learner's log-probs, as policy and as start ─▶ retention/kl/reverse/..., forward/...

The start is what training begins with: after the warm start, if there is one. docs/retention.md defines each number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlpost.config.schema import Config
from rlpost.record import failures, metrics
from rlpost.record import retention as record
from rlpost.record.run_dir import read_trajectories
from rlpost.record.summary import main_decoding
from rlpost.rollout.elsewhere import elsewhere
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.instances import evaluation_episodes
from rlpost.rollout.specs import evaluation_specs
from rlpost.tasks import held_out_text
from rlpost.tasks.evaluate import HEADLINE, axis, decodings
from rlpost.tasks.session import Session
from rlpost.types import EpisodeSpec, Trajectory

FEWEST = 2  # episodes from which a KL has a standard error


def begin(session: Session, stage: str) -> None:
    """Make the current policy, which the engines serve, the start, and measure it as `stage`."""
    if session.cfg.retention.kl:
        with session.clock.phase("retention"):
            session.learner.keep_start()
            own = _sampled(session, stage)
            session.run_dir.write_trajectories(record.START_EPISODES, own)
        measure(session, stage, 0, own)
    else:
        measure(session, stage, 0)


def measure(session: Session, stage: str, finished: int, own: Sequence[Trajectory] | None = None) -> None:
    """Measure everything that `retention` names, as a line of metrics.jsonl. The engines serve the learner's policy.

    Before `begin` there is no KL.

    Args:
        finished: the iterations (task=sft: steps) before it.
        own: episodes that the policy sampled, for the KL; by default those of the stage's evaluation.
    """
    if not session.cfg.retention.on:
        return
    with session.clock.phase("retention"):
        measured = _played(session, stage) | _text(session, stage) | _distance(session, stage, own)
    along = axis(session.cfg)
    session.tracker.log({along: float(finished), **measured}, over=along)
    session.book(stage, measured)


def measure_once(session: Session, stage: str, finished: int) -> None:
    """Run `measure`, unless a resumed run already has its results."""
    if stage not in {each.stage for each in record.measured(session.run_dir.read_metrics())}:
        measure(session, stage, finished)


def _played(session: Session, stage: str) -> dict[str, float]:
    """Success on each variant of `retention.env`, by the headline decoding, on the same instances at every stage."""
    if session.cfg.retention.env is None:
        return {}
    there, found = elsewhere(session.cfg), dict[str, float]()
    sampling = decodings(there)[main_decoding(decodings(there))]
    for variant in there.eval_variants:
        what = f"retention ({stage}): {variant} of {there.env}"
        session.progress.stage(what)
        specs = [replace(spec, elsewhere=True) for spec in _specs(there, variant)]
        played = session.pool.collect(specs, sampling)
        path = session.run_dir.write_trajectories(record.episodes_name(stage, variant), played)
        failures.refuse_all(played, f"{what} (its episodes: {path})")
        for note in failures.notes(played):
            session.progress.note(f"{what}: {note}")
        result = metrics.evaluation(played, there.rollout.answer_marker)
        found |= {f"{record.ENV}{variant}/{key}": float(result[key]) for key in HEADLINE}
    return found


def _text(session: Session, stage: str) -> dict[str, float]:
    """The policy's loss on the text."""
    if session.cfg.retention.text is None:
        return {}
    session.progress.stage(f"retention ({stage}): the loss on {session.cfg.retention.text}")
    session.pool.sleep()
    found = session.learner.sft_loss(held_out_text.examples(session.cfg, session.model_folder))
    return {f"{record.TEXT}{key}": value for key, value in found.items()}


def _distance(session: Session, stage: str, own: Sequence[Trajectory] | None) -> dict[str, float]:
    """The KL between policy and start, in both directions; empty before there is a start."""
    path = session.run_dir.trajectories_file(record.START_EPISODES)
    if not session.cfg.retention.kl or not path.is_file():
        return {}
    session.progress.stage(f"retention ({stage}): the KL to the start")
    of_start = read_trajectories(path)
    own = _sampled(session, stage) if own is None else own
    if min(len(own), len(of_start)) < FEWEST:
        counted = f"{len(own)} episodes of the policy and {len(of_start)} of the start have a token"
        session.progress.note(f"retention ({stage}): no KL, because {counted}")
        return {}
    session.pool.sleep()
    return {f"{record.KL}{key}": value for key, value in session.learner.distance(own, of_start).items()}


def _sampled(session: Session, stage: str) -> list[Trajectory]:
    """One sampled episode of each of the first `retention.kl_episodes` evaluation instances of the trained variant.

    They are those of the stage's evaluation if it has such; otherwise they are played. Without a token to score, or
    broken by the environment, an episode is left out.
    """
    cfg = session.cfg
    path = session.run_dir.evaluations().get((stage, cfg.train_variant, "sampled"))
    if path is None:
        session.progress.stage(f"retention ({stage}): episodes of {cfg.train_variant}")
        few = replace(cfg, eval=replace(cfg.eval, episodes=cfg.retention.kl_episodes))
        rollout = cfg.rollout
        sampling = Sampling(rollout.temperature, rollout.max_new_tokens, tuple(rollout.stop))
        played = session.pool.collect(_specs(few, cfg.train_variant), sampling)
    else:
        played = read_trajectories(path)
    return scorable(played, cfg.retention.kl_episodes)


def scorable(played: Sequence[Trajectory], most: int) -> list[Trajectory]:
    """Of the first episode of each of the first `most` instances, those with a token that the policy sampled."""
    first = {episode.group: episode for episode in reversed(played)}
    chosen = [first[group] for group in sorted(first)[:most]]
    return [episode for episode in chosen if episode.answer_tokens and not episode.ending.broken]


def _specs(cfg: Config, variant: str) -> list[EpisodeSpec]:
    return evaluation_specs(cfg, variant, evaluation_episodes(cfg, variant))
