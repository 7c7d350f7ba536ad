"""A bandit of one token: the policy answers one prompt with one token, and one of the tokens is right."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AlgoName, Config, KlPlace
from rlpost.learner import update
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch
from rlpost.types import Ending, Finish, Trajectory, Turn
from tests.learner_data import plain_attention, small_config, with_algorithm

PROMPT = (5, 17, 33, 8)
EPISODES = 32
RANK_OF_RIGHT = 3  # the right token is the one that the base finds this likely, counted from 0


class AdamBackend:
    """One rank without DeepSpeed, with AdamW as the learner has it."""

    def __init__(self, model: ActorCritic, cfg: Config) -> None:
        self.model, self.cfg, self.rendezvous = model, cfg.learner, SimpleNamespace(world_size=1, rank=0)
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters_of(POLICY) if p.requires_grad], betas=(0.9, 0.95), weight_decay=0.0
        )

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        return self.model(batch, roles, temperature)

    def step(
        self, losses: Iterable[torch.Tensor], count: int, learning_rates: dict[str, float], where: str
    ) -> Any:
        self.model.zero_grad()
        assert sum(1 for loss in losses if loss.backward() is None) == count
        self.optimizer.param_groups[0]["lr"] = learning_rates[POLICY]
        self.optimizer.step()
        return {POLICY: 1.0}

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        return values

    largest = summed


@torch.no_grad()
def answers(model: ActorCritic) -> torch.Tensor:
    """The policy's log-probs of each token as the answer, (vocabulary,)."""
    with model.weights.using(POLICY), plain_attention(model.weights.base) as base:
        return torch.log_softmax(base(torch.tensor([PROMPT])).logits[0, -1], dim=-1)


def solve(model: ActorCritic, learning_rate: float, iterations: int) -> list[float]:
    """The probability of the right token before each iteration and after the last; it ends above 0.9."""
    cfg = with_algorithm(small_config(), AlgoName.grpo)
    cfg.algo.kl, cfg.algo.learning_rate, cfg.algo.warmup_steps = KlPlace.none, learning_rate, 1
    cfg.algo.epochs = cfg.algo.minibatches = 1
    cfg.rollout.temperature = 1.0
    backend, dice = AdamBackend(model, cfg), torch.Generator().manual_seed(0)
    logprobs = answers(model)
    right = int(logprobs.argsort(descending=True)[RANK_OF_RIGHT])
    found = [float(logprobs[right].exp())]
    for iteration in range(iterations):
        tokens = torch.multinomial(logprobs.exp(), EPISODES, replacement=True, generator=dice).tolist()
        update.update_rl(
            backend, [_episode(i, t, logprobs, right) for i, t in enumerate(tokens)], cfg, iteration
        )
        logprobs = answers(model)
        found.append(float(logprobs[right].exp()))
        if found[-1] > 0.9:
            break
    return found


def _episode(index: int, token: int, logprobs: torch.Tensor, right: int) -> Trajectory:
    reward = float(token == right)
    turn = Turn(PROMPT, (token,), (float(logprobs[token]),), "", "", Finish.STOP, reward, "", 0)
    return Trajectory("e", "v", "train", "i", 0, index, 0, index, (turn,), Ending.TERMINATED, reward == 1)
