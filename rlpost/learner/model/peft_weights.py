"""The weights of the roles as PEFT's adapters, one a role, on one base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlpost.algorithms.roles import POLICY, ROLES
from rlpost.config.schema import LoraConfig
from rlpost.learner.model.fused_layers import Projections, can_fuse, fuse_layers
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.weights.adapter_settings import KIND_SETTINGS


def peft_config(lora: LoraConfig) -> PeftLoraConfig:
    """The PEFT configuration for `lora`."""
    modules = lora.target_modules
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        **KIND_SETTINGS[lora.kind],
        target_modules=modules if modules == "all-linear" else [name.strip() for name in modules.split(",")],
        task_type="CAUSAL_LM",
    )


class PeftWeights(RoleWeights):
    """See RoleWeights. Adapters are cast when used: by the fused layers, or else by autocast."""

    def __init__(
        self, base: PreTrainedModel, config: PeftLoraConfig, seed: int, roles: tuple[str, ...]
    ) -> None:
        """`roles` starts with POLICY."""
        super().__init__(roles)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the random start of A is the same on every rank
            self.peft = get_peft_model(base, config, adapter_name=roles[0])
            for name in roles[1:]:
                self.peft.add_adapter(name, config)
        self.layers = [m for m in self.peft.modules() if isinstance(m, LoraLayer)]
        for layer in self.layers:
            # Autocast chooses the dtype, which avoids a copy of the activations.
            layer.cast_input_dtype_enabled = False
        for name, parameter in self.peft.named_parameters():
            owner = role_of(name)
            parameter.requires_grad_(owner in self.trained)
            if owner is not None:
                parameter.data = parameter.data.float()

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

    def _activate(self, role: str | None) -> None:
        # PEFT's own set_adapter would also change requires_grad, and so cut the gradient of a pass whose backward has
        # not run yet.
        for layer in self.layers:
            layer._active_adapter = [] if role is None else [role]

    def named(self, role: str) -> dict[str, nn.Parameter]:
        """See RoleWeights.named."""
        return {name: p for name, p in self.peft.named_parameters() if role_of(name) == role}

    def tensors(self, role: str) -> dict[str, Tensor]:
        """See RoleWeights.tensors."""
        tensors = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        return {
            name: t.detach().to("cpu", torch.float32, copy=True).contiguous() for name, t in tensors.items()
        }

    def _write(self, role: str, tensors: Mapping[str, Tensor]) -> None:
        set_peft_model_state_dict(self.peft, dict(tensors), adapter_name=role)

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


def role_of(parameter_name: str) -> str | None:
    """The role that a parameter of the PEFT model belongs to; None for the base."""
    parts = parameter_name.split(".")
    if not any(part.startswith("lora_") for part in parts):
        return None
    return next(name for name in ROLES if name in parts)
