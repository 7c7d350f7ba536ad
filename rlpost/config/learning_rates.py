"""`lora.learning_rate=auto`: learning rates from the model's width and the adapter.

    rate = rate on the bundled model x width factor x the kind's multiple x what alpha adds x the optimizer's multiple

- The rates on the bundled model are the schema's defaults, with one exception: if an iteration has one optimizer step,
  the policy's rate is five times as large. Experiments with such iterations have that rate by hand (`1.5e-3`), from
  runs with 256 episodes an iteration: docs/results/main-job.md.
- The width factor is (2000 / hidden size)^p over that of the bundled model (Llama, hidden size 256), with p by family,
  from "LoRA Without Regret" (Thinking Machines, 2025) as its authors' cookbook has it. There the best rate of LoRA does
  not depend on the rank at one alpha, either.
- The kind's multiple is the column `learning_rate` of rlpost.config.adapter_kinds. It rests on a bandit alone.
- alpha: the bundled model's rates are in use with alpha 32 and with alpha 64, at ranks 8 and 32, so there it adds
  nothing. Outside, the rate is inversely proportional to scaling x rank. That is an assumption: B starts at 0, and
  Adam's step does not depend on the scaling.
- LoRA-Pro's step is that of full fine-tuning, so it has the multiple of `full`. At AdamW's rate it destroyed a policy
  under GRPO, at a tenth and a third of it it did not: docs/results/adapters.md.

The rule knows neither the number of episodes in a step nor the reward, so a rate found by experiment is better.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console

from rlpost.config.adapter_kinds import TABLE, described
from rlpost.config.keys import refusal
from rlpost.config.schema import (
    AdapterKind,
    AlgoConfig,
    Config,
    LearningRate,
    LoraConfig,
    Optimizer,
    SftConfig,
)
from rlpost.errors import ConfigError

# The exponent of the width by the `model_type` of config.json. For other families none is published.
EXPONENTS = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}
PIVOT = 2000  # the width at which the families' fits agree
# The power of the rank in scaling x rank / alpha, of LoRA's family. Other kinds have no B that starts at 0 or no alpha.
RANK_POWERS = {
    AdapterKind.lora: 0.0,
    AdapterKind.dora: 0.0,
    AdapterKind.rslora: 0.5,
    AdapterKind.rsdora: 0.5,
}
# The bundled model, on which the schema's rates are known to be good, and the values of alpha with which they are.
BUNDLED_WIDTH, BUNDLED_FAMILY, BUNDLED_ALPHAS = 256, "llama", (32.0, 64.0)
ONE_STEP = 5.0  # the policy's rate with one optimizer step an iteration, over that with several smaller ones


def settled(cfg: Config, family: str, hidden_size: int, console: Console) -> Config:
    """`cfg` with the advised learning rates if `lora.learning_rate=auto`; they are printed. Raises like `advised`."""
    if cfg.lora.learning_rate is LearningRate.given:
        return cfg
    before, cfg = _told(cfg), advised(cfg, family, hidden_size)
    of_what = f"{family} of width {hidden_size}, {described(cfg.lora)}, {cfg.learner.optimizer.value}"
    told = (
        f"learning rates by lora.learning_rate=auto: {_told(cfg)}, in place of {before}"
        f" ({of_what}; a rule, not a measurement)"
    )
    console.print(told, emoji=False, markup=False, soft_wrap=True)
    return cfg


def advised(cfg: Config, family: str, hidden_size: int) -> Config:
    """`cfg` with the rule's three learning rates, and `lora.learning_rate=given`, so that a resumed run keeps them.

    `family` and `hidden_size` are the model's. Raises ConfigError for a family that the rule does not cover.
    """
    if family not in EXPONENTS:
        reason = f"model={cfg.model} is a {family}, and the rule was fitted to {', '.join(EXPONENTS)}"
        remedy = "give sft.learning_rate, algo.learning_rate and algo.critic_learning_rate, and leave it out"
        raise ConfigError(refusal("lora.learning_rate", "auto", reason, remedy))
    share = factor(cfg.lora, family, hidden_size) * _optimizer_factor(cfg.learner.optimizer)
    steps = ONE_STEP if cfg.algo.epochs * cfg.algo.minibatches == 1 else 1.0
    algo = replace(
        cfg.algo,
        learning_rate=_digits(AlgoConfig.learning_rate * steps * share),
        critic_learning_rate=_digits(AlgoConfig.critic_learning_rate * share),
    )
    sft = replace(cfg.sft, learning_rate=_digits(SftConfig.learning_rate * share))
    return replace(cfg, sft=sft, algo=algo, lora=replace(cfg.lora, learning_rate=LearningRate.given))


def factor(lora: LoraConfig, family: str, hidden_size: int) -> float:
    """The learning rate over that of the bundled model with the default adapter."""
    width = _width_factor(family, hidden_size) / _width_factor(BUNDLED_FAMILY, BUNDLED_WIDTH)
    return width * TABLE[lora.kind].learning_rate * _alpha_factor(lora)


def _alpha_factor(lora: LoraConfig) -> float:
    """1 for other kinds than LoRA's family, whose alphas mean other things."""
    if lora.kind not in RANK_POWERS:
        return 1.0
    alpha, (least, most) = lora.alpha * math.pow(lora.rank, RANK_POWERS[lora.kind]), BUNDLED_ALPHAS
    return min(max(alpha, least), most) / alpha


def _optimizer_factor(optimizer: Optimizer) -> float:
    return TABLE[AdapterKind.full].learning_rate if optimizer is Optimizer.lora_pro else 1.0


def _told(cfg: Config) -> str:
    return (
        f"sft {cfg.sft.learning_rate:g}, policy {cfg.algo.learning_rate:g},"
        f" critic {cfg.algo.critic_learning_rate:g}"
    )


def _width_factor(family: str, hidden_size: int) -> float:
    return math.pow(PIVOT / hidden_size, EXPONENTS[family])


def _digits(rate: float) -> float:
    """Two significant digits: the rule is not more precise. At most 1, the settings' upper bound."""
    return min(1.0, float(f"{rate:.1e}"))
