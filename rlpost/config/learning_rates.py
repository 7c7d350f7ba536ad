"""`lora.learning_rate=auto`: learning rates from the model's width and the adapter.

The rule is that of "LoRA Without Regret" (Thinking Machines, 2025) as its authors' cookbook has it: the best learning
rate of LoRA is about proportional to (2000 / hidden size)^p, with p fitted by family (Llama 0.781, Qwen 0.0775), is
about the same for every rank if the scaling is alpha / rank, and is about ten times that of full fine-tuning. The rest
follows from it:

    rate = rate on the bundled model x (width factor of the model / of the bundled model) x 64 / (scaling x rank)

The scaling times the rank is alpha for lora and dora, and alpha x sqrt(rank) for rslora. That the best rate is
inversely proportional to it is an assumption: B starts at 0, and Adam's step does not depend on the scaling. The rates
on the bundled model (hidden size 256, Llama, rank 32, alpha 64) are the schema's defaults. For its SFT, the published
constant (5e-4 at width 2000 and alpha 32) would give 1.25e-3 where the schema has 1e-3.

This is a rule to be checked by experiment, and it does not know the batch or the number of optimizer steps: with one
large step an iteration, `experiment=generalpoints_ppo` takes five times its rate.
"""

from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console

from rlpost.config.keys import refusal
from rlpost.config.schema import AdapterKind, AlgoConfig, Config, LearningRate, LoraConfig, SftConfig
from rlpost.errors import ConfigError

# The exponent of the width by the `model_type` of config.json. For other families none is published.
EXPONENTS = {"llama": 0.781, "qwen2": 0.0775, "qwen3": 0.0775}
PIVOT = 2000  # the width at which the families' fits agree
# The power of the rank in scaling x rank / alpha. DoRA scales as LoRA does.
RANK_POWERS = {
    AdapterKind.lora: 0.0,
    AdapterKind.dora: 0.0,
    AdapterKind.rslora: 0.5,
    AdapterKind.rsdora: 0.5,
}
FULL_SHARE, FULL_ALPHA = 0.1, 32.0  # full fine-tuning's rate over that of LoRA with this alpha, as published
# The bundled model, on which the schema's rates are known to be good.
BUNDLED_WIDTH, BUNDLED_FAMILY, BUNDLED_ALPHA = 256, "llama", 64.0


def settled(cfg: Config, family: str, hidden_size: int, console: Console) -> Config:
    """`cfg` with the advised learning rates if `lora.learning_rate=auto`; they are printed. Raises like `advised`."""
    if cfg.lora.learning_rate is LearningRate.given:
        return cfg
    cfg = advised(cfg, family, hidden_size)
    told = (
        f"learning rates: sft {cfg.sft.learning_rate:g}, policy {cfg.algo.learning_rate:g},"
        f" critic {cfg.algo.critic_learning_rate:g} ({family} of width {hidden_size}, {cfg.lora.kind.name},"
        f" rank {cfg.lora.rank}, alpha {cfg.lora.alpha:g}; a rule, not a measurement)"
    )
    console.print(told, emoji=False, markup=False, soft_wrap=True)
    return cfg


def advised(cfg: Config, family: str, hidden_size: int) -> Config:
    """`cfg` with the rule's three learning rates, and `lora.learning_rate=given`, so that a resumed run keeps them.

    `family` and `hidden_size` are the model's. Raises ConfigError for a family or a kind that the rule does not cover.
    """
    if family not in EXPONENTS:
        raise _refused(f"model={cfg.model} is a {family}, and the rule was fitted to {', '.join(EXPONENTS)}")
    if cfg.lora.kind is not AdapterKind.full and cfg.lora.kind not in RANK_POWERS:
        raise _refused(f"the rule does not cover lora.kind={cfg.lora.kind.name}")
    share = factor(cfg.lora, family, hidden_size)
    algo = replace(
        cfg.algo,
        learning_rate=_digits(AlgoConfig.learning_rate * share),
        critic_learning_rate=_digits(AlgoConfig.critic_learning_rate * share),
    )
    sft = replace(cfg.sft, learning_rate=_digits(SftConfig.learning_rate * share))
    return replace(cfg, sft=sft, algo=algo, lora=replace(cfg.lora, learning_rate=LearningRate.given))


def factor(lora: LoraConfig, family: str, hidden_size: int) -> float:
    """The learning rate over that of the bundled model with the default adapter."""
    width = _width_factor(family, hidden_size) / _width_factor(BUNDLED_FAMILY, BUNDLED_WIDTH)
    if lora.kind is AdapterKind.full:
        return width * FULL_SHARE * BUNDLED_ALPHA / FULL_ALPHA
    return width * BUNDLED_ALPHA / (lora.alpha * math.pow(lora.rank, RANK_POWERS[lora.kind]))


def _width_factor(family: str, hidden_size: int) -> float:
    return math.pow(PIVOT / hidden_size, EXPONENTS[family])


def _digits(rate: float) -> float:
    """Two significant digits: the rule is not more precise. At most 1, the settings' upper bound."""
    return min(1.0, float(f"{rate:.1e}"))


def _refused(reason: str) -> ConfigError:
    remedy = "give sft.learning_rate and algo.learning_rate, and leave it out"
    return ConfigError(refusal("lora.learning_rate", "auto", reason, remedy))
