"""Refuses starts of an adapter (`lora.start`) that a run cannot have, as part of rlpost.validate.checks."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.config.adapter_starts import STARTS
from rlpost.config.keys import refusal_of_all
from rlpost.config.schema import AdapterKind, AdapterStart, BaseKind, Config, Task

_LORA = (AdapterKind.lora, AdapterKind.rslora)
_DORA = (AdapterKind.dora, AdapterKind.rsdora)
_PATTERNS = ("rank_pattern", "alpha_pattern")


def adapter_start(config: Config) -> Iterator[str]:
    """Refusals that need neither the environment nor the model; see validate.environment and validate.model."""
    start = config.lora.start
    if start is AdapterStart.default:
        return
    yield from refusal_of_all("lora.start", start.value, _reasons(config), "")


def _reasons(config: Config) -> Iterator[tuple[str, str]]:
    """(reason, remedy) of each refusal."""
    start, kind = config.lora.start, config.lora.kind
    if start is AdapterStart.loftq and config.lora.base is BaseKind.stored:
        yield (
            f"it makes up for what rounding the base lost, and lora.base={config.lora.base.value} is not rounded",
            "lora.base=nf4, or another start, such as pissa",
        )
    if kind not in (*_LORA, *_DORA):
        yield f"lora.kind={kind.value} has no A and B that it could set", "leave it out, or lora.kind=lora"
    if kind in _DORA and STARTS[start].changes_base:
        yield (
            f"it changes the base to W0 - s B A, and lora.kind={kind.value} divides by the norm of the weight that it"
            " adapts, so that no adapter of W0 has the same policy",
            "lora.kind=lora or rslora, or a start that keeps the base: gaussian, orthogonal, eva",
        )
    if kind in _DORA and start is AdapterStart.loftq:
        yield (
            f"it brings the weight near the stored one, and lora.kind={kind.value} would scale it to the rounded one's"
            " norms",
            "lora.kind=lora or rslora, or another start: gaussian, orthogonal, eva",
        )
    if config.adapter is not None:
        yield f"adapter={config.adapter} has the first values", "leave one of the two out"
    if config.task is Task.compare:
        yield (
            "the arms of a comparison start from one adapter, which its first run trains and saves",
            "leave it out, or compare runs of task=sft and task=rl",
        )
    if start is not AdapterStart.gaussian and (
        patterns := [p for p in _PATTERNS if p in config.lora.settings]
    ):
        yield (
            f"lora.settings has {' and '.join(patterns)}, and this start takes one rank and scaling for all modules",
            "leave one of the two out, or lora.start=gaussian",
        )
    if start is AdapterStart.orthogonal and config.lora.rank % 2:
        yield (
            f"it takes A and B from the two halves of a rotation, and lora.rank={config.lora.rank} is odd",
            "give an even lora.rank",
        )
