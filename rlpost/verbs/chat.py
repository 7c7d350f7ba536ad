"""Chat with a trained policy at a terminal: rlpost chat RUN [--env] [--variant V] [--temperature T].

The engine, the chat template and the adapter's merge are those of a rollout. With --env the model plays the run's own
environment: the instances of its evaluations, in their order and with their seeds. Its verdict is below each answer.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.config.trust import named_code
from rlpost.envs import registry
from rlpost.envs.messages import Said, readable
from rlpost.errors import ConfigError, RolloutError
from rlpost.rollout.engine.settings import engine_environment
from rlpost.verbs import policy
from rlpost.verbs.policy import Policy
from rlpost.verbs.printable import printable

if TYPE_CHECKING:
    from rlpost.rollout.chat import Chat
    from rlpost.rollout.chat_template import Tools
    from rlpost.rollout.engine.protocol import Engine, Sampling
    from rlpost.rollout.episode import Reply
    from rlpost.rollout.specs import Instance
    from rlpost.verbs.conversation import Answer, Conversation

HELP = "Type a message; an empty line begins anew; Ctrl-D ends."
ENV_HELP = "Enter: the next turn, or the next instance; text: your own message instead; Ctrl-D ends."


def main(argv: Sequence[str]) -> int:
    """Talk with a run's policy at a terminal; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost chat", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--env", action="store_true", help="the run's environment asks, and judges each answer"
    )
    parser.add_argument("--variant", help="of the environment; left out: the one that was trained")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: greedy; left out: the run's")
    parser.add_argument("--seed", type=int, default=0, help="of the dice, without --env")
    parser.add_argument("--model", help="the base, where the record's is not to be found")
    parser.add_argument(
        "--own-code",
        action="store_true",
        help="import the environment that the record names, if it is none of rlpost's",
    )
    asked = parser.parse_args(argv)
    _chat(asked)
    return 0


def _chat(asked: argparse.Namespace) -> None:
    run_dir = policy.run_at(asked.run)
    trained = policy.find(run_dir.path, asked.model)
    assert trained.settings is not None, "a run has settings"
    config = _settings(trained.settings, asked)
    for name, value in engine_environment(_threads(config), config.rollout.enforce_eager).items():
        os.environ.setdefault(name, value)  # before torch is imported, as OpenMP requires
    from rlpost.rollout.chat import Chat
    from rlpost.rollout.engine.protocol import Sampling

    chat = Chat.load(trained.model_folder, config.rollout)
    print(f"starting vLLM on {trained.model_folder.name} with {trained.adapter_folder} ...", flush=True)
    with suppress(KeyboardInterrupt):
        rollout = config.rollout
        sampling = Sampling(rollout.temperature, rollout.max_new_tokens, tuple(rollout.stop))
        talk(Talk(config, _engine(config, trained), chat, sampling, asked.seed), asked.env)


def _settings(config: Config, asked: argparse.Namespace) -> Config:
    """The run's settings, changed by the command line. Raises ConfigError for an impossible one."""
    if asked.temperature is not None:
        if not (math.isfinite(asked.temperature) and asked.temperature >= 0):
            reason = "it is no temperature"
            raise ConfigError(refusal("--temperature", asked.temperature, reason, "give 0 (greedy) or more"))
        config = replace(config, rollout=replace(config.rollout, temperature=asked.temperature))
    if not asked.env:
        if asked.variant is not None:
            remedy = "give --env as well"
            raise ConfigError(refusal("--variant", asked.variant, "only an environment has variants", remedy))
        return config
    if not asked.own_code and (code := named_code(config.env, config.env_args)):
        raise ConfigError(
            refusal(
                "--env",
                ", ".join(code.values()),
                f"{asked.run} names this code, and a record may come from anybody",
                "if you trust it: --own-code",
            )
        )
    try:
        known = [variant.name for variant in registry.variants(config.env, **config.env_args)]
    except ValueError as error:
        raise ConfigError(
            refusal("env", config.env, str(error), "name a run of an environment that is here")
        ) from error
    variant = asked.variant or config.train_variant
    if variant not in known:
        raise ConfigError(
            refusal("--variant", variant, "there is no such variant", "choose of " + ", ".join(known))
        )
    return replace(config, train_variant=variant)


def _threads(config: Config) -> int:
    return max(1, round(config.rollout.cpus))


def _engine(config: Config, trained: Policy) -> Engine:
    """vLLM with the policy merged in; each written layer is probed. Raises SwapError, AdapterError, RolloutError.

    An adapter that says on which base it was trained is served on that one.
    """
    from rlpost.rollout.worker import start_engine
    from rlpost.weights.adapters import Adapter

    adapter = Adapter.load(trained.adapter_folder)
    lora = replace(config.lora, base=adapter.base or config.lora.base)
    engine = start_engine(replace(config, lora=lora), trained.model_folder)
    engine.swap(adapter, None, config.rollout.max_canary_gap)
    return engine


@dataclass(frozen=True)
class Talk:
    """A chat session: the policy, the sampling, and the functions that read and write lines."""

    config: Config
    engine: Engine
    chat: Chat
    sampling: Sampling
    seed: int
    read: Callable[[str], str] = input
    write: Callable[[str], None] = print

    def begin(self, seed: int) -> Conversation:
        from rlpost.verbs.conversation import Conversation

        return Conversation(self.engine, self.chat, self.sampling, seed)

    def show(self, text: str) -> None:
        self.write(printable(text))

    def message(self) -> str | None:
        """A typed line, without surrounding blanks; None, after a notice, if it is not UTF-8."""
        line = self.read("> ").strip()
        try:
            line.encode()
        except UnicodeEncodeError:
            self.show("(not said: the line is not UTF-8)")
            return None
        return line


def talk(with_whom: Talk, env: bool) -> None:
    """Chat until the input ends (Ctrl-D) or Ctrl-C; both end it without an error."""
    try:
        if env:
            _play(with_whom)
        else:
            _converse(with_whom)
    except (EOFError, KeyboardInterrupt):
        with_whom.write("")


def _converse(talk: Talk) -> None:
    from rlpost.verbs.conversation import ContextFull

    talk.show(HELP)
    for number in itertools.count():
        conversation = talk.begin(talk.seed + number)
        while line := _next(talk):
            try:
                _tell(talk, conversation.say(line))
            except ContextFull as full:
                talk.show(f"({full}; nothing was said: an empty line begins anew)")
        talk.show("(a new conversation)")


def _next(talk: Talk) -> str:
    """The next message that the model can take; empty if the line was empty."""
    while (line := talk.message()) is None:
        pass
    return line


def _tell(talk: Talk, answer: Answer) -> None:
    cut = ", cut" if answer.finish.value == "length" else ""
    talk.show(f"{answer.text}\n  ({answer.tokens} tokens{cut})")


def _play(talk: Talk) -> None:
    from rlpost.rollout.env_threads import living
    from rlpost.rollout.instances import evaluation_episodes

    config = talk.config
    instances = evaluation_episodes(config, config.train_variant)
    talk.show(ENV_HELP)
    timeout_s = config.rollout.env_timeout_s
    with living(config.env, config.env_args, timeout_s, "chat --env") as (env, ask):
        for instance in itertools.cycle(instances):
            _Game(talk, env, ask, instance).play()


class _Game:
    """One instance: the environment asks, the model answers and the environment judges, until the episode is over."""

    def __init__(
        self, talk: Talk, env: Any, ask: Callable[[Callable[[], Any]], Any], instance: Instance
    ) -> None:
        from rlpost.rollout.specs import evaluation_specs

        self._talk, self._env, self._ask = talk, env, ask
        self._spec = evaluation_specs(talk.config, talk.config.train_variant, [instance])[0]
        self._conversation = talk.begin(self._spec.seed)
        self._over = False

    def play(self) -> None:
        """Play the instance. Raises RolloutError if the environment fails or hangs."""
        from rlpost.rollout.episode import opened

        opening = self._asked("reset", lambda: opened(lambda: self._env, self._env, self._spec))
        said: Said = opening.messages
        self._talk.show(f"\n{self._spec.variant}, instance {opening.instance}\n{readable(said)}")
        while True:
            feedback = self._turn(said, opening.tools)
            line = _next(self._talk)
            if line:
                said = line
            elif feedback is not None:
                said = feedback
            else:
                return

    def _turn(self, said: Said, tools: Tools) -> Said | None:
        """The environment's reply to the model's answer to `said`; None if the episode is over."""
        from rlpost.rollout.episode import replied
        from rlpost.verbs.conversation import ContextFull

        try:
            answer = self._conversation.say(said, tools)
        except ContextFull as full:
            self._over = True
            self._talk.show(f"({full}; the episode is over: Enter for the next instance)")
            return None
        _tell(self._talk, answer)
        if self._over:
            self._talk.show("  (no verdict: the episode is over; Enter for the next instance)")
            return None
        reply = self._asked("step", lambda: replied(self._env, answer.text))
        self._judge(reply)
        feedback: Said = reply.messages
        return None if self._over else feedback

    def _judge(self, reply: Reply) -> None:
        verdict = "solved" if reply.success else "not solved"
        self._talk.show(f"  {reply.outcome}, reward {reply.reward:+g}, {verdict}")
        if feedback := readable(reply.messages):
            self._talk.show(f"\n{feedback}")
        if reply.ending is not None:
            self._over = True
            self._talk.show(f"  (the episode is over: {reply.ending.value}; Enter for the next instance)")

    def _asked(self, what: str, work: Callable[[], Any]) -> Any:
        """Call the environment, which may raise anything, and turn its errors into RolloutError."""
        try:
            return self._ask(work)
        except (RolloutError, KeyboardInterrupt):
            raise
        except Exception as error:
            name = self._talk.config.env
            raise RolloutError(
                f"The environment {name} failed in {what}: {type(error).__name__}: {error}"
            ) from error
