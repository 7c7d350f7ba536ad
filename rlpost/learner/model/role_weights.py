"""What is trained: the weights that each role has over one frozen base.

    base W0 ─▶ policy:     PEFT's adapter, or whole parameters of its own
            ├▶ critic:     the same, for the values
            ├▶ reference:  a frozen copy of the policy as it was
            ├▶ teacher:    frozen, an adapter that a file has, maybe of another rank
            └▶ None:       the bare base

One role is active at a time, and none at rest. `rlpost.learner.model.peft_weights` has PEFT's adapters,
`rlpost.learner.model.full_weights` has whole parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlpost.algorithms.roles import POLICY, REFERENCE
from rlpost.errors import AdapterError
from rlpost.weights.adapters import Adapter


class RoleWeights(nn.Module, ABC):
    """The base and the weights of the roles. Trained weights are float32 whatever the base's dtype."""

    def __init__(self, roles: tuple[str, ...]) -> None:
        super().__init__()
        self.roles = roles
        self.trained = tuple(role for role in roles if role != REFERENCE)
        self.active: str | None = None

    @property
    @abstractmethod
    def base(self) -> PreTrainedModel:
        """The model. Its forward computes with the weights of the active role."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """adapter_config.json of what `tensors` gives."""

    @abstractmethod
    def _activate(self, role: str | None) -> None: ...

    @abstractmethod
    def named(self, role: str) -> dict[str, nn.Parameter]:
        """The parameters of a role by name, in the same order for each role. Empty if the role does not exist."""

    @abstractmethod
    def tensors(self, role: str) -> dict[str, Tensor]:
        """The tensors of a role by the names in its file, as float32 copies on the CPU."""

    @property
    def frozen(self) -> tuple[str, ...]:
        """What `tensors` and `load` take besides the trained roles: a checkpoint must contain these too."""
        return (REFERENCE,) if REFERENCE in self.roles else ()

    def export(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """adapter_config.json and the tensors of the policy, as an adapter of the base."""
        return self.config, self.tensors(POLICY)

    @abstractmethod
    def add_teacher(self, adapter: Adapter) -> None:
        """Add the role TEACHER with the weights of `adapter`. Checkpoints do not contain it.

        Raises AdapterError if the adapter cannot be a role beside the policy.
        """

    @abstractmethod
    def _write(self, role: str, tensors: Mapping[str, Tensor]) -> None: ...

    def follow(self, module: nn.Module) -> None:
        """Give `module`, which shares parameters of the base, the active role's own in their place."""

    def fuse(self) -> bool:
        """Run as many layers as possible through rlpost.kernels; return whether these are all layers with parameters.

        The kernels read parameters directly from memory, so this is not for ZeRO-3.
        """
        return False

    def activate(self, role: str | None) -> None:
        """Compute with the weights of `role` (None: the bare base) from now on."""
        self._activate(role)
        self.active = role

    @contextmanager
    def using(self, role: str | None) -> Iterator[None]:
        previous = self.active
        self.activate(role)
        try:
            yield
        finally:
            self.activate(previous)

    def freeze_reference(self) -> None:
        """Copy the current policy into the reference, with what it has beside its parameters."""
        self.load(REFERENCE, self.tensors(POLICY))

    def load(self, role: str, tensors: Mapping[str, Tensor]) -> None:
        """Write what `tensors` gave. Raises AdapterError unless names and shapes match exactly."""
        own = self.tensors(role)
        wrong = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
        if wrong:
            raise AdapterError(
                f"the weights do not fit this model and lora.* settings: {len(wrong)} tensors differ in name or shape, "
                f"first {wrong[0]}; give the lora.* settings they were trained with"
            )
        self._write(role, tensors)
