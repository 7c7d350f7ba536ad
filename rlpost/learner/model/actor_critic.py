"""One frozen base with the weights of each role: `policy`, and optionally `critic` (with a value head), `reference` and
`teacher`, which may also be a model of its own.

    input ids ─▶ base body with one role   ─▶ hidden states ─▶ head at loss tokens ─▶ log-probs, entropy
                                                            └▶ value head             ─▶ values

Each pass chooses its active role (`rlpost.learner.model.role_weights`). Trained weights are float32 whatever the base's
dtype, so they are their own master weights.
Shapes: T packed tokens, N loss tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, TEACHER
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.adapter_starts import STARTS
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import ModelError
from rlpost.learner.model.frozen_base import Head, TeacherModel, load_base
from rlpost.learner.model.full_weights import FullWeights
from rlpost.learner.model.packing import MicroBatch
from rlpost.learner.model.packing_check import hidden_states
from rlpost.learner.model.peft_weights import PeftWeights, peft_config
from rlpost.learner.model.quantized_base import with_base
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.learner.model.starts import start_adapters
from rlpost.seeds import derive
from rlpost.types import Example
from rlpost.weights.adapters import Adapter
from rlpost.weights.kind_settings import check_start
from rlpost.weights.models import linear_layers, parameter_shapes


class ActorCritic(nn.Module):
    """The learner's whole model. `forward` runs the given roles over one micro-batch."""

    def __init__(self, weights: RoleWeights, teacher: TeacherModel | None = None) -> None:
        """`teacher`: a model of its own; without it a teacher is among the roles of `weights`, or there is none."""
        super().__init__()
        base = weights.base
        self.weights, self.teacher = weights, teacher
        self.head = Head(base)
        weights.follow(self.head)
        self.value_head = _value_head(base.config.hidden_size) if CRITIC in weights.roles else None
        self.trained = weights.trained
        self.dtype = next(base.parameters()).dtype
        self.has_reference = REFERENCE in weights.roles
        self.fused = False
        if self.has_reference:
            weights.freeze_reference()
        weights.activate(None)
        # DeepSpeed leaves out frozen parameters by their first name, and would keep a tied or shared one by its second.
        self.register_state_dict_post_hook(_leave_out_frozen)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, each with the role that was active in its forward."""
        weights = self.weights
        weights.base.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (nullcontext(), weights.using(weights.active))}
        )
        for module in weights.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True  # only for these modules: dropout stays off everywhere

    def fuse(self) -> None:
        """Run the layers through rlpost.kernels where possible; see RoleWeights.fuse."""
        self.fused = self.weights.fuse()
        if self.teacher is not None:
            self.teacher.fuse()

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        """Run `roles`, a subset of ROLES and TEACHER. Outputs of other roles are None.

        The reference has weights of its own, or else is the bare base.
        """
        device = batch.input_ids_T.device.type
        outputs = Outputs()
        mixed = self.dtype == torch.bfloat16 and not self.fused
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            if POLICY in roles:
                logprobs_N, entropy_N = self._logprobs(POLICY, batch, temperature)
                outputs = outputs._replace(logprobs_N=logprobs_N, entropy_N=entropy_N)
            if REFERENCE in roles:
                role = REFERENCE if self.has_reference else None
                outputs = outputs._replace(reference_N=self._logprobs(role, batch, temperature)[0])
            if TEACHER in roles:
                outputs = outputs._replace(teacher_N=self._of_teacher(batch, temperature))
            if CRITIC in roles:
                with self.weights.using(CRITIC):
                    hidden_NH = hidden_states(self.weights.base.base_model, batch)
                assert self.value_head is not None, "only a critic has values"
                with torch.autocast(device, enabled=False):
                    outputs = outputs._replace(values_N=self.value_head(hidden_NH.float()).squeeze(-1))
        return outputs

    def _logprobs(self, role: str | None, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        with self.weights.using(role):
            hidden_NH = hidden_states(self.weights.base.base_model, batch)
            logprobs_N, entropy_N = self.head(hidden_NH, batch.targets_N, temperature)
        return logprobs_N, entropy_N

    def _of_teacher(self, batch: MicroBatch, temperature: float) -> Tensor:
        if self.teacher is not None:
            logprobs_N: Tensor = self.teacher(batch, temperature)
            return logprobs_N
        return self._logprobs(TEACHER, batch, temperature)[0]

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """The parameters of a role; for the critic with the value head. Empty if the role does not exist."""
        head = self.value_head if role == CRITIC else None
        parameters = list(self.weights.named(role).values())
        return parameters if head is None else [*parameters, *head.parameters()]


def _leave_out_frozen(module: nn.Module, state: dict[str, Tensor], *unused: object) -> None:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            state.pop(name, None)


def _value_head(hidden_size: int) -> nn.Linear:
    """The linear head from hidden states to values. It starts at 0."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _check_stored(weights: PeftWeights, folder: Path) -> None:
    """Raises ModelError if the checkpoint has adapted modules under other names, by which no swap would find them."""
    adapted = {name for name, module in weights.base.named_modules() if isinstance(module, BaseTunerLayer)}
    if missing := sorted(adapted - set(linear_layers(folder))):
        raise ModelError(
            f"model {folder.name}: {len(missing)} adapted modules are no linear layers of that name in the checkpoint,"
            f" first {missing[0]}, so no swap would find them; name others in lora.target_modules, or save the model"
            " anew by transformers (save_pretrained)"
        )


def build(
    folder: Path,
    dtype: Dtype,
    lora: LoraConfig,
    seed: int,
    roles: Sequence[str],
    start: Adapter | None,
    examples: Sequence[Example] | None = (),
    teacher: Adapter | Path | None = None,
) -> ActorCritic:
    """The base with the weights of `roles`. The policy (and the reference) start at `start`, or else at the bare base.

    `examples`: what `lora.start` reads. None leaves it out, for a resumed run, whose checkpoint has the weights.
    `teacher`: an adapter of the base, or the folder of another model.

    Raises ModelError if the model cannot be used here, AdapterError if the start or the teacher does not fit the model,
    LearnerError if `lora.start` lacks examples.
    """
    weights = _weights(folder, dtype, lora, seed, tuple(roles))
    if examples is not None and isinstance(weights, PeftWeights):
        start_adapters(weights, lora.start, examples, folder, derive(seed, "start"))
    if start is not None:
        check_start(start.config, lora)
        weights.load(POLICY, start.tensors)
    if isinstance(teacher, Adapter):
        weights.add_teacher(teacher)
    return ActorCritic(weights, TeacherModel(teacher, dtype) if isinstance(teacher, Path) else None)


def _weights(folder: Path, dtype: Dtype, lora: LoraConfig, seed: int, roles: tuple[str, ...]) -> RoleWeights:
    base = with_base(load_base(folder, dtype), lora.base, folder)
    if not TABLE[lora.kind].whole:
        adapters = PeftWeights(base, peft_config(lora), seed, roles, STARTS[lora.start].changes_base)
        _check_stored(adapters, folder)
        return adapters
    weights = FullWeights(base, lora, roles)
    # transformers converts some checkpoints as it loads them: experts become one tensor, prefixes are added.
    unknown = sorted(set(weights.named(POLICY)) - set(parameter_shapes(folder)))
    if unknown:
        raise ModelError(
            f"model {folder.name}: {len(unknown)} parameters have other names in its checkpoint, first {unknown[0]}, so"
            f" that engines could not take what lora.kind={lora.kind.value} trains; choose another model, or train an"
            " adapter (lora.kind=lora)"
        )
    return weights
