"""The table of adapter starts: what each needs, and whether it changes the base. Imports nothing heavy.

`rlpost.learner.model.starts` computes them. The names are those of PEFT's `init_lora_weights`. docs/adapters.md says
what each start is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from rlpost.config.schema import AdapterStart


class StartData(Enum):
    """What a start reads of the environment's examples."""

    none = "none"
    tokens = "tokens"  # the inputs of each layer
    answers = "answers"  # the gradient of the loss on an expert's answers


@dataclass(frozen=True)
class StartTraits:
    """One start. Those that change the base belong to W0 - s B0 A0, with A0 and B0 their first values."""

    source: str  # arXiv number, or where else it is described
    data: StartData = StartData.none
    changes_base: bool = False
    directions: int = 0  # singular directions of each weight that it needs for one rank


STARTS: dict[AdapterStart, StartTraits] = {
    AdapterStart.default: StartTraits("2106.09685"),
    AdapterStart.gaussian: StartTraits("2106.09685"),
    AdapterStart.orthogonal: StartTraits("datta0.github.io/posts/rethink-lora-init"),
    AdapterStart.eva: StartTraits("2410.07170", StartData.tokens, directions=1),
    AdapterStart.pissa: StartTraits("2404.02948", changes_base=True, directions=1),
    AdapterStart.olora: StartTraits("2406.01775", changes_base=True, directions=1),
    AdapterStart.corda: StartTraits("2406.05223", StartData.tokens, changes_base=True, directions=1),
    AdapterStart.lora_ga: StartTraits("2407.05000", StartData.answers, changes_base=True, directions=2),
    AdapterStart.loftq: StartTraits("2310.08659", directions=1),
}
