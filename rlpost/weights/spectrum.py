"""Measures what an adapter did to the spectrum of its base's weights.

LoRA, rsLoRA of one rank:  B, A ─▶ QR and a small core: all figures but the intruders, in milliseconds a module
everything else:           merged weight - W0 ─▶ a full SVD a module
intruders:                 the left singular vectors of W0 and of W0 + D, for every kind
principal directions:      the singular vectors of W0, which intruders need anyway, and those of D
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlpost.algorithms import spectrum as algebra
from rlpost.algorithms.spectrum import Svd
from rlpost.config.schema import BaseKind
from rlpost.errors import AdapterError
from rlpost.record.spectrum import Agreement, ModuleSpectrum, Spectrum, place_of
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights, base_weights
from rlpost.weights.models import linear_layers
from rlpost.weights.update import WeightUpdate, weight_update

# In units of `decomposition_cost`; the bundled model as a whole costs 1.3e9, SmolLM2-135M 5.9e10.
RUN_BUDGET = 4_000_000_000


@dataclass(frozen=True)
class Search:
    """How intruders are searched for: `budget` bounds the cost, above which layers are sampled; None: every layer."""

    top: int = algebra.TOP
    epsilon: float = algebra.EPSILON
    budget: int | None = None


def changed_layers(update: WeightUpdate) -> dict[str, tuple[int, int]]:
    """The linear layers whose weights the update changes, with their shapes (out, in).

    Whole weights change more: embeddings, norms and biases have no figures here.
    """
    layers = linear_layers(update.base.folder)
    return {module: shape for module, shape in layers.items() if f"{module}.weight" in update.shapes}


def merged_modules(update: WeightUpdate) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module, W0, merged weight in fp32) of every linear layer that the update changes, both [out, in]."""
    for module in changed_layers(update):
        base = update.base[f"{module}.weight"]
        yield module, base, update.merged(f"{module}.weight", base)


def has_factors(adapter: Adapter) -> bool:
    """Whether the adapter's update is scaling * B A in every module: LoRA and rsLoRA of one rank."""
    return adapter.has_formula and not adapter.config.get("use_dora", False)


def measure(adapter: Adapter, base: BaseWeights, search: Search, dtype: str | None) -> Spectrum:
    """All figures of an adapter on `base`. `dtype`: what weights are rounded to (None: rounding is not measured).

    Raises AdapterError if the adapter is of another model, or does not merge.
    """
    update = weight_update(adapter, base)
    _check_shapes(update)
    chosen = sampled(changed_layers(update), search.budget)
    factored = has_factors(adapter)
    modules = {}
    for module, W0, merged in merged_modules(update):
        svd = _of_factors(adapter, module) if factored else None
        if svd is None and module in chosen:
            svd = _of_difference(W0, merged)
        figures = _figures(W0, merged, svd, dtype)
        if module in chosen:
            figures = replace(figures, **_against_base(W0, merged, svd, search))
        modules[module] = figures
    return Spectrum(adapter.version, search.top, search.epsilon, dtype, modules)


def course(adapter: Adapter, base_folder: Path) -> dict[str, float]:
    """Norm and ranks of an adapter with factors, in milliseconds a module; empty for other kinds.

    The norms of W0 are computed once a process.
    """
    if not has_factors(adapter):
        return {}
    norms = _base_norms(base_folder, adapter.base, adapter.modules)
    modules = {}
    for module in adapter.modules:
        S_K = _of_factors(adapter, module).S_K
        ranks = algebra.effective_rank(S_K), algebra.stable_rank(S_K)
        spectral = float(S_K[0]) if len(S_K) else 0.0
        modules[module] = ModuleSpectrum(float(S_K.norm()), norms[module], spectral, *ranks, None, None)
    return Spectrum(adapter.version, algebra.TOP, algebra.EPSILON, None, modules).totals()


def sampled(shapes: Mapping[str, tuple[int, int]], budget: int | None) -> frozenset[str]:
    """The modules of evenly spaced layers, as many layers as cost no more than `budget`; all without one.

    Modules outside of layers count as a layer of their own. Empty if no layer is affordable.
    """
    by_layer: dict[int, list[str]] = {}
    for module in shapes:
        layer = place_of(module)[1]
        by_layer.setdefault(-1 if layer is None else layer, []).append(module)
    order = sorted(by_layer)
    for stride in range(1, len(order) + 1):
        modules = [module for layer in order[::stride] for module in by_layer[layer]]
        if budget is None or sum(algebra.decomposition_cost(shapes[module]) for module in modules) <= budget:
            return frozenset(modules)
    return frozenset()


def directions(
    adapter: Adapter, base: BaseWeights, start: Adapter | None = None
) -> Iterator[tuple[str, Svd]]:
    """(module, SVD of its update), relative to `start`'s update if it is given."""
    factored = has_factors(adapter) and (start is None or has_factors(start))
    if factored:
        for module in adapter.modules:
            yield module, _of_move(adapter, start, module)
        return
    origin = {} if start is None else dict(weight_update(start, base))
    for module, W0, merged in merged_modules(weight_update(adapter, base)):
        yield module, _of_difference(origin.get(f"{module}.weight", W0), merged)


def agreement(
    first: Adapter, second: Adapter, base: BaseWeights, start: Adapter | None = None, top: int = algebra.TOP
) -> dict[str, Agreement]:
    """How two updates agree, by module that both adapt; relative to `start`'s update if it is given.

    Their spaces are spanned by the `top` leading singular vectors, or by all of them where the rank is lower. Raises
    AdapterError as `measure` does.
    """
    for adapter in (first, second):
        _check_shapes(weight_update(adapter, base))
    others = dict(directions(second, base, start))
    return {
        module: _agreement(svd, others[module], top)
        for module, svd in directions(first, base, start)
        if module in others
    }


def _agreement(first: Svd, second: Svd, top: int) -> Agreement:
    one, two = first.leading(top), second.leading(top)
    larger = max(len(one.S_K), len(two.S_K))
    angles = algebra.principal_angles(one.U_OK, two.U_OK).rad2deg().tolist()
    return Agreement(
        algebra.overlap(one.U_OK, two.U_OK),
        algebra.overlap(one.V_IK, two.V_IK),
        larger / len(one.U_OK),
        larger / len(one.V_IK),
        algebra.alignment(first, second),
        tuple(angles),
    )


@dataclass(frozen=True)
class Scaled:
    """`adapter` with the intruders of W0 + D scaled; `found`: how many each module has."""

    adapter: Adapter
    found: Mapping[str, int]


def scale_intruders(adapter: Adapter, base: BaseWeights, search: Search, factor: float) -> Scaled:
    """Scale the intruder dimensions of W0 + D by `factor` (arXiv 2410.21228): D + (factor - 1) U S V^T, exactly.

    The rank grows by the largest number of intruders of a module. The other modules are padded with zeros, so that the
    adapter keeps one rank, and its alpha keeps the scaling.

    Raises:
        AdapterError: the adapter is no LoRA or rsLoRA of one rank, is of another model, or has no intruders.
    """
    if not has_factors(adapter):
        raise AdapterError(
            "Scaling intruder dimensions adds directions to the factors of a LoRA or rsLoRA of one rank; this adapter"
            f" is of another kind ({adapter.config['peft_type']}, use_dora={adapter.config.get('use_dora', False)},"
            " or with patterns of ranks and alphas)."
        )
    update = weight_update(adapter, base)
    _check_shapes(update)
    grown, found = {}, {}
    for module, W0, merged in merged_modules(update):
        intruders = algebra.find_intruders(algebra.left_vectors(W0), merged, search.top, search.epsilon)
        factors = adapter.factors(module)
        grown[module] = algebra.scaled_factors(factors.A, factors.B, adapter.scaling, intruders, factor)
        found[module] = len(intruders.S_N)
    if not any(found.values()):
        raise AdapterError(
            f"The adapter has no intruder dimension: each of the {search.top} leading singular vectors of every merged"
            f" weight has a cosine of {search.epsilon} or more to one of its base's. There is nothing to scale."
        )
    return Scaled(_padded(adapter, grown, adapter.config["r"] + max(found.values())), found)


def _padded(adapter: Adapter, factors: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> Adapter:
    tensors = {}
    for module, (A, B) in factors.items():
        missing = rank - len(A)
        name = f"base_model.model.{module}"
        tensors[f"{name}.lora_A.weight"] = nn.functional.pad(A, (0, 0, 0, missing)).float()
        tensors[f"{name}.lora_B.weight"] = nn.functional.pad(B, (0, missing)).float()
    root = math.sqrt(rank) if adapter.config.get("use_rslora", False) else rank
    config = {**adapter.config, "r": rank, "lora_alpha": adapter.scaling * root}
    return Adapter.create(config, tensors, adapter.version)


def _of_move(adapter: Adapter, start: Adapter | None, module: str) -> Svd:
    """The update less the start's: a product of factors that are twice as wide."""
    if start is None or module not in start.modules:
        return _of_factors(adapter, module)
    end, begin = adapter.factors(module), start.factors(module)
    A = torch.cat([end.A.double(), begin.A.double()])
    B = torch.cat([adapter.scaling * end.B.double(), -start.scaling * begin.B.double()], dim=1)
    return algebra.of_factors(A, B, 1.0)


def _of_factors(adapter: Adapter, module: str) -> Svd:
    factors = adapter.factors(module)
    return algebra.of_factors(factors.A, factors.B, adapter.scaling)


def _of_difference(W0: Tensor, merged: Tensor) -> Svd:
    """The SVD of the difference of two fp32 weights; singular values within their rounding count as zero."""
    floor = torch.finfo(torch.float32).eps * float(W0.float().norm())
    return algebra.of_matrix(merged.double() - W0.double(), floor)


def _against_base(W0: Tensor, merged: Tensor, svd: Svd | None, search: Search) -> dict[str, Any]:
    """The figures that need the singular vectors of W0: intruders, and the share in its principal directions."""
    base_OK = algebra.left_vectors(W0)
    found = algebra.find_intruders(base_OK, merged, search.top, search.epsilon)
    figures: dict[str, Any] = {"intruders": len(found.S_N)}
    if svd is not None and len(svd.S_K):
        share, by_chance = algebra.in_principal(svd, W0, base_OK, search.top)
        figures |= {"principal_share": share, "principal_by_chance": by_chance}
    return figures


def _figures(W0: Tensor, merged: Tensor, svd: Svd | None, dtype: str | None) -> ModuleSpectrum:
    wide = W0.float()
    norm = float(svd.S_K.norm()) if svd is not None else float((merged - wide).norm())
    lost = algebra.lost_norm(merged, getattr(torch, dtype)) if dtype is not None else None
    return ModuleSpectrum(
        norm=norm,
        base_norm=float(wide.norm()),
        spectral_norm=None if svd is None else float(svd.S_K[0]) if len(svd.S_K) else 0.0,
        effective_rank=None if svd is None else algebra.effective_rank(svd.S_K),
        stable_rank=None if svd is None else algebra.stable_rank(svd.S_K),
        intruders=None,
        rounding_loss=None if lost is None or not norm else lost / norm,
    )


@functools.cache
def _base_norms(folder: Path, kind: BaseKind | None, modules: Sequence[str]) -> dict[str, float]:
    base = base_weights(folder, kind)
    return {module: float(base[f"{module}.weight"].float().norm()) for module in modules}


def _check_shapes(update: WeightUpdate) -> None:
    base = update.base
    wrong = [
        name for name, shape in update.shapes.items() if name not in base or base.shape(name) != tuple(shape)
    ]
    if wrong:
        raise AdapterError(
            f"The adapter is of another model than {update.base.folder}: {len(wrong)} of its {len(update.shapes)}"
            f" parameters do not fit ({wrong[0]}). Give the one that it was trained on: --model MODEL"
        )
