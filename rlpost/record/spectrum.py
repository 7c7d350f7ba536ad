"""What an update did to the spectrum of the weights, by module, and as spectrum.json. docs/adapters.md explains it.

rlpost.weights.spectrum measures ─▶ Spectrum ─▶ spectrum.json ─▶ the run's page, the comparison's report
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from rlpost.errors import OutputError
from rlpost.record.files import write_atomic

FILE = "spectrum.json"
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class ModuleSpectrum:
    """One module's update D = W - W0. What was not measured, to save time, is None."""

    norm: float  # ||D||_F
    base_norm: float  # ||W0||_F
    spectral_norm: float | None  # ||D||_2
    effective_rank: float | None  # Roy and Vetterli; 0: no update
    stable_rank: float | None  # ||D||_F^2 / ||D||_2^2; 0: no update
    intruders: int | None  # of the leading singular vectors of W0 + D
    rounding_loss: float | None  # ||round(W) - W|| / ||D|| in `dtype`
    # Share of ||D||_F^2 in the span of the leading singular vectors of W0, and what a random update has there; None in
    # a record of an earlier version, and for no update.
    principal_share: float | None = None
    principal_by_chance: float | None = None

    @property
    def relative_norm(self) -> float:
        return self.norm / self.base_norm if self.base_norm else 0.0


@dataclass(frozen=True)
class Spectrum:
    version: int  # of the adapter
    top: int  # leading singular vectors examined: of W for intruders, of W0 for the share in principal directions
    epsilon: float  # the |cosine| below which one is an intruder
    dtype: str | None  # what the weights are rounded to; None: not asked
    modules: Mapping[str, ModuleSpectrum]

    def totals(self) -> dict[str, float]:
        """Of all modules: the norms of all weights as one vector, mean ranks, the sum of intruders.

        Ranks are means over the modules that have an update; `examined` is the number of modules that were searched for
        intruders. The principal share is of the updates as one vector, and so is that by chance. What was measured
        nowhere is absent.
        """
        every = list(self.modules.values())
        norm = math.hypot(*(each.norm for each in every))
        totals = {"relative_norm": _ratio(norm, math.hypot(*(each.base_norm for each in every)))}
        for name in ("effective_rank", "stable_rank"):
            if values := [value for each in every if (value := getattr(each, name))]:
                totals[name] = fmean(values)
        if searched := [each.intruders for each in every if each.intruders is not None]:
            totals |= {"intruders": float(sum(searched)), "examined": float(len(searched))}
        totals |= _principal(every)
        lost = [each.norm * each.rounding_loss for each in every if each.rounding_loss is not None]
        return totals | ({"rounding_loss": _ratio(math.hypot(*lost), norm)} if lost else {})


def _principal(modules: Sequence[ModuleSpectrum]) -> dict[str, float]:
    """The shares in principal directions, weighted by the squared norms of the updates."""
    totals = {}
    for name in ("principal_share", "principal_by_chance"):
        known = [(each.norm**2, share) for each in modules if (share := getattr(each, name)) is not None]
        if weight := sum(square for square, _ in known):
            totals[name] = sum(square * share for square, share in known) / weight
    return totals


@dataclass(frozen=True)
class Agreement:
    """How the updates D1, D2 of one module agree. The spaces are spanned by the leading singular vectors of each."""

    columns: float  # mean squared cosine of the principal angles between the column spaces: 0 orthogonal, 1 the same
    rows: float  # the same of the row spaces
    columns_by_chance: float  # what random spaces of these dimensions have in the mean
    rows_by_chance: float
    cosine: float  # <D1, D2> / (||D1|| ||D2||)
    angles: tuple[float, ...]  # principal angles of the column spaces in degrees, ascending


def mean_agreement(modules: Mapping[str, Agreement]) -> dict[str, float]:
    """Means over the modules that both updates change; empty without any."""
    both = [each for each in modules.values() if each.angles]
    names = ("columns", "columns_by_chance", "rows", "rows_by_chance", "cosine")
    return {name: fmean(getattr(each, name) for each in both) for name in names} if both else {}


def place_of(module: str) -> tuple[str, int | None]:
    """A module's type and layer: ("q_proj", 3) of model.layers.3.self_attn.q_proj; the layer is None without one."""
    match = _LAYER.search(module)
    return module.rpartition(".")[2], None if match is None else int(match[1])


def to_json(spectrum: Spectrum) -> dict[str, Any]:
    """Plain data, with the totals for readers of the file."""
    return asdict(spectrum) | {"totals": spectrum.totals()}


def write(spectrum: Spectrum, folder: Path) -> None:
    """Write spectrum.json. Raises OutputError."""
    write_atomic(folder / FILE, (json.dumps(to_json(spectrum), indent=1, allow_nan=False) + "\n").encode())


def read(folder: Path) -> Spectrum | None:
    """Inverse of `write`; None if there is no spectrum.json. Raises OutputError for other content."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        modules = {name: ModuleSpectrum(**each) for name, each in record["modules"].items()}
        plain = {field.name: record[field.name] for field in fields(Spectrum) if field.name != "modules"}
        return Spectrum(**plain, modules=modules)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{path}\n  reason: it holds no spectrum ({error})\n  remedy: delete it; rlpost spectrum measures anew"
        ) from error


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
