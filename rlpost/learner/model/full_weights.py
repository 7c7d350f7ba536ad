"""The weights of the roles as whole parameters: full fine-tuning, of all or of named modules, and of biases alone.

    base W0 (frozen) ◀── None
    copies of policy, critic, reference ◀── the active role: the base's modules point at its copies

A role's copies of the trained parameters are float32. A bfloat16 base computes under autocast, so the copies are their
own master weights. A tied embedding is one parameter in two modules; both point at the same copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlpost.algorithms.roles import CRITIC, TEACHER
from rlpost.config.adapter_kinds import FULL
from rlpost.config.schema import LoraConfig
from rlpost.errors import AdapterError, ModelError
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.weights.adapters import Adapter
from rlpost.weights.kind_settings import trains_parameter


class FullWeights(RoleWeights):
    """See RoleWeights. Its layers are transformers' own: rlpost.kernels give no gradients of a layer's weights."""

    def __init__(self, base: PreTrainedModel, lora: LoraConfig, roles: tuple[str, ...]) -> None:
        """Every role starts at the base. Raises ModelError if `lora` selects none of its parameters."""
        super().__init__(roles)
        self.model = base
        self._targets = lora.target_modules
        self._own = {name: p for name, p in base.named_parameters() if trains_parameter(lora, name)}
        if not self._own:
            raise ModelError(f"lora.kind={lora.kind.value}: the model has no parameter to train")
        self._places = _places(base, self._own)
        self._copies = {role: self._copied(role) for role in roles}
        # Registered by role, so that optimizer and checkpoints find them. Names of parameters cannot have dots.
        self.copies = nn.ModuleDict(
            {role: nn.ParameterDict(_without_dots(found)) for role, found in self._copies.items()}
        )

    def _copied(self, role: str) -> dict[str, nn.Parameter]:
        """Copies of the trained parameters; for the critic without a head of its own, which values do not use."""
        head = self.model.get_output_embeddings().weight
        tied = head is self.model.get_input_embeddings().weight
        return {
            name: nn.Parameter(p.detach().to(torch.float32, copy=True), requires_grad=role in self.trained)
            for name, p in self._own.items()
            if role != CRITIC or tied or p is not head
        }

    @property
    def base(self) -> PreTrainedModel:
        """See RoleWeights.base."""
        return self.model

    @property
    def config(self) -> dict[str, Any]:
        """See RoleWeights.config."""
        return {"peft_type": FULL, "target_modules": self._targets}

    def add_teacher(self, adapter: Adapter) -> None:
        """See RoleWeights.add_teacher. Parameters that the adapter lacks are the base's."""
        fits = {n: t for n, t in adapter.tensors.items() if n in self._own and t.shape == self._own[n].shape}
        if unfit := sorted(set(adapter.tensors) - set(fits)):
            raise AdapterError(
                f"the teacher has {len(unfit)} of {len(adapter.tensors)} tensors that are no parameters trained here,"
                f" first {unfit[0]}; write it as a model (rlpost merge) and give that folder as algo.teacher"
            )
        copies = {name: nn.Parameter(t.float(), requires_grad=False) for name, t in fits.items()}
        self._copies[TEACHER] = copies
        self.copies[TEACHER] = nn.ParameterDict(_without_dots(copies))

    def follow(self, module: nn.Module) -> None:
        """See RoleWeights.follow."""
        for name, places in _places(module, self._own).items():
            self._places[name] += places

    def _activate(self, role: str | None) -> None:
        copies = {} if role is None else self._copies[role]
        for name, places in self._places.items():
            for module, leaf in places:
                module._parameters[leaf] = copies.get(name, self._own[name])

    def named(self, role: str) -> dict[str, nn.Parameter]:
        """See RoleWeights.named."""
        return dict(self._copies.get(role, {}))

    def tensors(self, role: str) -> dict[str, Tensor]:
        """See RoleWeights.tensors."""
        return {
            name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self._copies[role].items()
        }

    def _write(self, role: str, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._copies[role].items():
            parameter.data.copy_(tensors[name])


Place = tuple[nn.Module, str]  # a module and the name of its parameter


def _places(root: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[Place]]:
    """Where `root` and its modules have each of `parameters`; tied ones have several places."""
    names = {id(p): name for name, p in parameters.items()}
    found: dict[str, list[Place]] = {name: [] for name in parameters}
    for module in root.modules():
        for leaf, parameter in module._parameters.items():
            if id(parameter) in names:
                found[names[id(parameter)]].append((module, leaf))
    return found


def _without_dots(parameters: Mapping[str, nn.Parameter]) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name.replace(".", "/"), p) for name, p in parameters.items())
