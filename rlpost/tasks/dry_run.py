"""`task=dry_run`: play an experiment's episodes with scripted answers: no engine, no learner, seconds.

    python -m rlpost.run experiment=generalpoints_ppo task=dry_run

It shows for each variant what the environment says and how many of the model's tokens that takes: whether the expert's
answers earn success and fit `rollout.max_new_tokens`, and whether an episode in which every attempt fails fits
`rollout.max_model_len`. It finds an environment that raises, or a limit that is too small, before a long run does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlpost.config.schema import Config, RolloutConfig
from rlpost.envs import own
from rlpost.envs.base import Expert
from rlpost.envs.terminal import plain_console
from rlpost.errors import RolloutError
from rlpost.record import failures
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.env_threads import living
from rlpost.rollout.episode import Env
from rlpost.rollout.instances import evaluation_episodes
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.rollout.specs import evaluation_specs, training_specs
from rlpost.rollout.worker import RolloutWorker
from rlpost.tasks.prompts import remarks
from rlpost.types import EpisodeSpec, Trajectory
from rlpost.validate.model import check_model
from rlpost.weights import models

T = TypeVar("T")

EPISODES = 64  # at most, for each variant and split
_REMEDY = (
    "mend the environment, which has to take an empty answer too (python -m rlpost.envs.check tries it by itself);"
    " for long prompts raise rollout.max_model_len"
)


@dataclass(frozen=True)
class Shares:
    """The share of episodes that the expert solves, and the length of its longest answer."""

    solved: float
    longest: int  # tokens of the longest answer


def run(cfg: Config) -> None:
    """Print a sample episode and the table.

    Raises ModelError if the model cannot be found; ConfigError or AdapterError if something does not fit it;
    RolloutError if every episode of a variant fails, or if the expert's answers do: a run would end there too.
    """
    model_folder = models.resolve(cfg.model)
    check_model(cfg, model_folder)
    console, chat = plain_console(), Chat.load(model_folder, cfg.rollout)
    table, notes = _table(cfg), list[str]()
    for specs in _specs(cfg):
        played = play_silently(cfg, chat, specs)
        if table.row_count == 0:
            console.print(_sample(played[0]))
        failures.refuse_all(played, f"dry run of {played[0].variant} ({played[0].split})", _REMEDY)
        table.add_row(*_row(played, ask_expert(cfg, chat, specs), cfg.rollout))
        notes += failures.notes(played)
    console.print(table)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    for remark in remarks(cfg, chat):
        console.print(remark, soft_wrap=True)


def play_silently(cfg: Config, chat: Chat, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
    """Play episodes with empty answers, so that every attempt and every feedback occurs."""
    engine = ScriptedEngine(lambda conversation, seed: "", chat, cfg.rollout.max_model_len)
    worker = RolloutWorker(cfg, engine, chat)
    played = worker.collect(specs, Sampling(1.0, cfg.rollout.max_new_tokens, tuple(cfg.rollout.stop)))
    worker.close()
    return played


def ask_expert(cfg: Config, chat: Chat, specs: Sequence[EpisodeSpec]) -> Shares | None:
    """Let the environment's expert answer the first observation of every episode; None if there is no expert.

    Raises RolloutError if one of its episodes raises, or takes longer than rollout.env_timeout_s.
    """
    timeout_s = cfg.rollout.env_timeout_s
    with living(cfg.env, cfg.env_args, timeout_s, "played by its expert") as (env, ask):
        if not isinstance(expert := env.unwrapped, Expert):
            return None
        as_sampled = partial(_as_sampled, chat) if cfg.rollout.stop else str
        played = [
            ask(partial(_named, spec, partial(_played_by_expert, env, expert, spec, as_sampled)))
            for spec in specs
        ]
    longest = max((len(chat.answer_ids(answer)) for answers, _ in played for answer in answers), default=0)
    return Shares(sum(success for _, success in played) / len(specs), longest)


def _named(spec: EpisodeSpec, play: Callable[[], T]) -> T:
    """What `play` returns. Raises RolloutError, naming the episode, for what it raises."""
    try:
        return play()
    except Exception as error:  # an environment may raise anything
        raise RolloutError(
            f"played by its expert, the environment failed (variant {spec.variant}, episode {spec.episode})\n"
            f"  reason: {own.told(error)}\n  remedy: mend the environment, or the answers that its expert gives"
        ) from error


def _as_sampled(chat: Chat, answer: str) -> str:
    """An answer cut at a stop string, as the environment would see it."""
    return chat.text(chat.answer_ids(answer))


def _played_by_expert(
    env: Env, expert: Expert, spec: EpisodeSpec, as_sampled: Callable[[str], str]
) -> tuple[list[str], bool]:
    """The expert's answers, and whether they solve the episode."""
    env.reset(seed=spec.env_seed, options=spec.reset_options)
    answers, success = list[str](), False
    for _, answer, _ in expert.expert(False, random.Random(spec.seed)):
        _, _, terminated, truncated, info = env.step(as_sampled(answer))
        answers.append(answer)
        success = bool(info["success"])
        if terminated or truncated:
            break
    return answers, success


def _specs(cfg: Config) -> list[list[EpisodeSpec]]:
    return [
        training_specs(cfg, 0)[:EPISODES],
        *(evaluation_specs(cfg, v, evaluation_episodes(cfg, v)[:EPISODES]) for v in cfg.eval_variants),
    ]


def _table(cfg: Config) -> Table:
    caption = (
        f"lengths in tokens of {cfg.model}; an episode is one whose every answer is cut off\n"
        f"limits: rollout.max_new_tokens={cfg.rollout.max_new_tokens},"
        f" rollout.max_model_len={cfg.rollout.max_model_len}"
    )
    table = Table(title=f"{cfg.env}, dry run", caption=caption)
    for heading in ("variant", "split"):
        table.add_column(heading, no_wrap=True)
    for heading in ("played", "errors", "unfit", "prompt", "expert solves", "its answer", "episode"):
        table.add_column(heading, justify="right")
    return table


def _row(played: Sequence[Trajectory], expert: Shares | None, rollout: RolloutConfig) -> list[str | Text]:
    turns = [sample for t in played if t.turns for sample in t.samples]
    prompt = max((len(t[0].context_ids) for t in turns), default=0)
    cut_off = max(
        (sum(len(turn.context_ids) + rollout.max_new_tokens for turn in t) for t in turns), default=0
    )
    failed = failures.counts(played)
    return [
        played[0].variant,
        played[0].split,
        str(len(played)),
        _against(failed["broken"], 0),
        _against(failed["unfit"], 0),
        str(prompt),
        f"{expert.solved:.0%}" if expert else "no expert",
        _against(expert.longest, rollout.max_new_tokens) if expert else "",
        _against(cut_off, rollout.max_model_len),
    ]


def _against(tokens: int, limit: int) -> Text:
    return Text(str(tokens), style="red" if tokens > limit else "green")


def _sample(trajectory: Trajectory) -> Panel:
    shown = "\n".join(turn.observation for turn in trajectory.turns) or str(trajectory.error)
    return Panel(Text(shown), title="what a silent player is shown", title_align="left", expand=False)
