"""The weights of the roles as PEFT's adapters, one a role, on one base.

A start that changes the base (rlpost.config.adapter_starts) belongs to W0 - s B0 A0. The base stays W0 for the engines
and for the other roles, so one more frozen adapter, START, with the factors A0 and -B0, is active with each role:

    W0 + s B A - s B0 A0  =  W0 + s [B, -B0] [A; A0]      what `export` gives: a plain LoRA of twice the rank
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlpost.algorithms.roles import POLICY, TEACHER
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import LoraConfig
from rlpost.learner.model.fused_layers import Projections, can_fuse, fuse_layers
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.weights.adapters import Adapter

START = "start"  # the frozen adapter that subtracts s B0 A0


def peft_config(lora: LoraConfig) -> PeftConfig:
    """The PEFT configuration for `lora`."""
    modules = lora.target_modules
    return PeftConfig.from_peft_type(
        **TABLE[lora.kind].peft_settings(lora),
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
        task_type="CAUSAL_LM",
    )


class PeftWeights(RoleWeights):
    """See RoleWeights. Adapters are cast when used: by the fused layers, or else by PEFT or autocast."""

    def __init__(
        self,
        base: PreTrainedModel,
        config: PeftConfig,
        seed: int,
        roles: tuple[str, ...],
        subtracts_start: bool = False,
    ) -> None:
        """`roles` starts with POLICY. `subtracts_start`: START is there, for a start that changes the base."""
        super().__init__(roles)
        self.beside = (START,) if subtracts_start else ()
        of_the_base = {id(parameter) for parameter in base.parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the random start is the same on every rank
            self.peft = get_peft_model(base, copy.deepcopy(config), adapter_name=roles[0])
            # PEFT decides which numbers of a kind are trained: those of its first adapter, before there are others.
            learns = {name for name, p in self.peft.named_parameters() if p.requires_grad}
            for name in (*roles[1:], *self.beside):
                self.peft.add_adapter(name, copy.deepcopy(config))
        self._find_layers()
        self._names: dict[str, list[str]] = {name: [] for name in (*roles, *self.beside)}
        for name, parameter in self.peft.named_parameters():
            if id(parameter) not in of_the_base:
                self._add(name, parameter, learns)

    def _find_layers(self) -> None:
        """Note PEFT's layers, and set what each of them must have."""
        self.peft.eval()  # some kinds draw random numbers in training mode
        self.layers = [m for m in self.peft.modules() if isinstance(m, BaseTunerLayer)]
        for layer in self.layers:
            if isinstance(layer, LoraLayer):
                # Autocast chooses the dtype, which avoids a copy of the activations.
                layer.cast_input_dtype_enabled = False

    def _add(self, name: str, parameter: nn.Parameter, learns: set[str]) -> None:
        """Note which role a parameter belongs to. PEFT has the adapter's name as a part of the parameter's."""
        parts = name.split(".")
        role = next(role for role in self._names if role in parts)
        in_the_first = ".".join(self.roles[0] if part == role else part for part in parts)
        parameter.data = parameter.data.float()
        parameter.requires_grad_(role in self.trained and in_the_first in learns)
        self._names[role].append(name)

    @property
    def base(self) -> PreTrainedModel:
        """See RoleWeights.base."""
        base: PreTrainedModel = self.peft.get_base_model()
        return base

    @property
    def config(self) -> dict[str, Any]:
        """See RoleWeights.config."""
        settings: dict[str, Any] = self.peft.peft_config[POLICY].to_dict()
        return settings

    def add_teacher(self, adapter: Adapter) -> None:
        """See RoleWeights.add_teacher. In LoRA's family rank, scaling, kind and modules may be others."""
        known = {name for names in self._names.values() for name in names}
        learns = {name: p.requires_grad for name, p in self.peft.named_parameters()}
        config = PeftConfig.from_peft_type(**adapter.config)
        with torch.random.fork_rng(devices=[]):
            self.peft.add_adapter(TEACHER, config)
        self._find_layers()
        self._names[TEACHER] = []
        for name, parameter in self.peft.named_parameters():
            if TEACHER in name.split(".") and name not in known:
                self._add(name, parameter, set())
            else:  # PEFT may have changed it
                parameter.requires_grad_(learns.get(name, False))
        self.load(TEACHER, adapter.tensors)

    def _activate(self, role: str | None) -> None:
        # PEFT's own set_adapter would also change requires_grad, and so cut the gradient of a pass whose backward has
        # not run yet.
        beside = () if role == TEACHER else self.beside  # its adapter is one of the base itself
        for layer in self.layers:
            layer._active_adapter = [] if role is None else [role, *beside]

    def named(self, role: str) -> dict[str, nn.Parameter]:
        """See RoleWeights.named."""
        parameters = dict(self.peft.named_parameters())
        return {name: parameters[name] for name in self._names.get(role, ())}

    def tensors(self, role: str) -> dict[str, Tensor]:
        """See RoleWeights.tensors."""
        tensors = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        return {name: _copied(tensor) for name, tensor in tensors.items()}

    def _write(self, role: str, tensors: Mapping[str, Tensor]) -> None:
        set_peft_model_state_dict(self.peft, dict(tensors), adapter_name=role)

    @property
    def frozen(self) -> tuple[str, ...]:
        """See RoleWeights.frozen."""
        return (*super().frozen, *self.beside)

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See RoleWeights.export. With START, [B, -B0] and [A; A0] in place of B and A, and the same scaling s."""
        config, tensors = super().export()
        if not self.beside:
            return config, tensors
        start = self.tensors(START)
        both = {n: torch.cat([t, start[n]], dim=0 if "lora_A" in n else 1) for n, t in tensors.items()}
        alpha = config["lora_alpha"] * (math.sqrt(2) if config["use_rslora"] else 2)
        return config | {"r": 2 * config["r"], "lora_alpha": alpha}, both

    @torch.no_grad()
    def share_start(self) -> None:
        """Copy the policy's first A and B to the other roles, and as A and -B to START."""
        for layer in self.layers:
            A, B = layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
            for name in (*self.roles[1:], *self.beside):
                layer.lora_A[name].weight.copy_(A)
                layer.lora_B[name].weight.copy_(-B if name == START else B)

    def fuse(self) -> bool:
        """See RoleWeights.fuse. Decoder layers of known families, or else the plain LoRA layers; DoRA stays PEFT's."""
        body = self.base.base_model
        inside = {id(m) for decoder in getattr(body, "layers", ()) for m in decoder.modules()}
        fused = fuse_layers(body) and all(id(layer) in inside for layer in self.layers)
        for layer in self.layers:
            if can_fuse(layer):
                layer.forward = partial(_fused_forward, Projections(layer))
        return fused


def _fused_forward(projection: Projections, inputs: Tensor) -> Tensor:
    """Forward of one LoRA layer alone, (..., in) to (..., out)."""
    flat = inputs.flatten(0, -2).to(projection.dtype)
    return projection(flat).unflatten(0, inputs.shape[:-1])


def _copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, in float32 unless it has indices, which some kinds save too."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
