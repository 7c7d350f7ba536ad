"""The optimizer of a rank: what updates which parameters, by `learner.optimizer` and `learner.lora_plus_ratio`.

    step: roles that learn ─▶ norm of each role's gradient, finite?, clip ─▶ each part updates its own groups

DeepSpeed takes one optimizer, and some of these are two: Muon and LoRA-Pro update matrices, AdamW updates the rest. A
*part* is one of torch's optimizers; each group of parameters names its role and its part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlpost.config.optimizers import is_muons
from rlpost.config.schema import LearnerConfig, Optimizer
from rlpost.errors import LearnerError
from rlpost.learner.lora_pro import LoraPro
from rlpost.learner.model.actor_critic import ActorCritic

Group = dict[str, Any]
SHARDED_FROM = 1  # from this ZeRO stage on, each rank's optimizer holds a part of every group


class RoleOptimizer(torch.optim.Optimizer):
    """Clips each role's gradient by its own norm, has the parts update, and does not touch a role while its `lr` is 0.

    This class checks and clips, because DeepSpeed clips all roles by one norm (the large gradients of a young critic
    would shrink the policy's) and skips a step with non-finite gradients without a message.
    """

    def __init__(self, parts: Mapping[str, torch.optim.Optimizer], max_norm: float, sharded: bool) -> None:
        super().__init__([group for part in parts.values() for group in part.param_groups], {})
        self.parts, self.max_norm, self.sharded = parts, max_norm, sharded
        self.norms: dict[str, float] = {}

    def set_rates(self, learning_rates: Mapping[str, float]) -> None:
        """Set the learning rate of each role, and forget the norms of the last step."""
        for group in self.param_groups:
            group["lr"] = learning_rates[group["name"]] * group["ratio"]
        self.norms = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Raises LearnerError if the gradient of a role is not finite; nothing is updated then."""
        live = [
            g for g in self.param_groups if g["lr"] > 0.0 and any(p.grad is not None for p in g["params"])
        ]
        for role in dict.fromkeys(group["name"] for group in live):
            self._clip(role, [group for group in live if group["name"] == role])
        for name, part in self.parts.items():
            # Loading a checkpoint replaces groups and state, and ZeRO steps one group at a time.
            part.param_groups, part.state = [g for g in live if g["part"] == name], self.state
            if part.param_groups:
                part.step()

    def _clip(self, role: str, groups: Sequence[Group]) -> None:
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        square = torch.stack([g.float().square().sum() for g in gradients]).sum()
        if self.sharded:
            dist.all_reduce(square)
        norm = square.sqrt().item()
        self.norms[role] = norm
        if not torch.isfinite(square):
            raise LearnerError(f"the gradient of the {role} is not finite (norm {norm})")
        scale = self.max_norm / (norm + 1e-6)
        if scale < 1.0:
            torch._foreach_mul_(gradients, scale)

    def reset(self) -> None:
        """Forget all moments and step counts, as if no step had been taken."""
        if not self.sharded:
            self.state.clear()  # what is stored in 8 bits has no 0 that could be written
            return
        for state in self.state.values():  # ZeRO holds references to these
            for tensor in state.values():
                tensor.zero_()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which makes every tensor of the type of its parameter, except that bytes stay bytes."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            for key, value in saved.items():
                if isinstance(value, Tensor) and value.dtype == torch.uint8:
                    self.state[parameters[index]][key] = value.to(parameters[index].device)


def build(model: ActorCritic, cfg: LearnerConfig) -> RoleOptimizer:
    """The optimizer of all roles that `model` trains.

    Raises LearnerError if `learner.lora_plus_ratio` or LoRA-Pro finds no B, or no pair, in a role, or Muon no
    matrix.
    """
    groups: dict[str, list[Group]] = {}
    for role in model.trained:
        for group in _groups_of(model, role, cfg):
            groups.setdefault(group["part"], []).append({"name": role, "ratio": 1.0} | group)
    parts = {name: _part(name, its, cfg) for name, its in groups.items()}
    return RoleOptimizer(parts, cfg.max_grad_norm, cfg.zero_stage >= SHARDED_FROM)


def _part(name: str, groups: list[Group], cfg: LearnerConfig) -> torch.optim.Optimizer:
    betas, on_gpu = (cfg.betas[0], cfg.betas[1]), cfg.gpus > 0
    if name == Optimizer.muon.name:
        # The adjustment gives a step the size of AdamW's, so that AdamW's learning rates fit (arXiv 2502.16982).
        return torch.optim.Muon(groups, lr=1.0, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw")
    if name == Optimizer.lora_pro.name:
        return LoraPro(groups, betas, cfg.weight_decay)
    if name == Optimizer.adamw_8bit.name:
        from bitsandbytes.optim import AdamW8bit

        found: torch.optim.Optimizer = AdamW8bit(groups, lr=1.0, betas=betas, weight_decay=cfg.weight_decay)
        return found
    return torch.optim.AdamW(
        groups, lr=1.0, betas=betas, weight_decay=cfg.weight_decay, foreach=not on_gpu, fused=on_gpu
    )


def _groups_of(model: ActorCritic, role: str, cfg: LearnerConfig) -> Iterator[Group]:
    """A role's groups: parameters with their part and, for LoRA+, their ratio."""
    parameters = model.parameters_of(role)
    if cfg.optimizer is Optimizer.lora_pro:
        yield from _pairs_and_rest(model, role, parameters)
    elif cfg.optimizer is Optimizer.muon:
        matrices = {id(p) for name, p in model.weights.named(role).items() if is_muons(name, p.shape)}
        if not matrices:
            raise LearnerError(
                f"the {role} has no matrix that Muon could update: everything that it trains is a vector or an"
                " embedding; give learner.optimizer=adamw"
            )
        yield from _split(model, role, [p for p in parameters if id(p) in matrices], "muon", cfg)
        yield from _split(model, role, [p for p in parameters if id(p) not in matrices], "adamw", cfg)
    else:
        yield from _split(model, role, parameters, cfg.optimizer.name, cfg)


def _split(
    model: ActorCritic, role: str, parameters: list[nn.Parameter], part: str, cfg: LearnerConfig
) -> Iterator[Group]:
    """One group, or two if B learns faster than the rest (LoRA+, arXiv 2402.12354)."""
    fast = set[int]()
    if cfg.lora_plus_ratio != 1.0:
        fast = {id(B) for _, B, _ in pairs(model, role)}
    for ratio, its in (
        (1.0, [p for p in parameters if id(p) not in fast]),
        (cfg.lora_plus_ratio, [p for p in parameters if id(p) in fast]),
    ):
        if its:
            yield {"params": its, "part": part, "ratio": ratio}


def _pairs_and_rest(model: ActorCritic, role: str, parameters: list[nn.Parameter]) -> Iterator[Group]:
    found = pairs(model, role)
    paired = [p for A, B, _ in found for p in (A, B)]
    yield {"params": paired, "part": "lora_pro", "scalings": [scaling for *_, scaling in found]}
    known = {id(p) for p in paired}
    if rest := [p for p in parameters if id(p) not in known]:
        yield {"params": rest, "part": "adamw"}


def pairs(model: nn.Module, role: str) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
    """A (r, in), B (out, r) and the scaling of every LoRA layer of a role. Raises LearnerError if there is none."""
    found = [
        (layer.lora_A[role].weight, layer.lora_B[role].weight, float(layer.scaling[role]))
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and role in layer.lora_A
    ]
    if not found:
        raise LearnerError(
            f"the {role} has no pair of A and B; learner.optimizer=adamw trains any parameters"
        )
    return found
