"""One frozen base with the weights of each role: `policy`, and optionally `critic` (with a value head) and `reference`.

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
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE
from rlpost.cluster.precision import TORCH_DTYPES
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import ModelError
from rlpost.kernels.linear_logprob import linear_logprob
from rlpost.learner.model.full_weights import FullWeights
from rlpost.learner.model.packed_attention import PACKED
from rlpost.learner.model.packing import MicroBatch
from rlpost.learner.model.packing_check import check_packing, hidden_states
from rlpost.learner.model.peft_weights import PeftWeights, peft_config
from rlpost.learner.model.quantized_base import with_base
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.weights.adapters import Adapter
from rlpost.weights.kind_settings import check_start
from rlpost.weights.models import parameter_shapes

# Settings of models whose head changes the logits; the head here is linear.
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def load_base(folder: Path, dtype: Dtype) -> PreTrainedModel:
    """The causal language model in `folder`, frozen. Raises ModelError if it is missing or cannot be used here."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json on this node; every learner node needs the model"
        )
    kind = TORCH_DTYPES[dtype]
    family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
    try:
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=kind, local_files_only=True, attn_implementation=PACKED
        )
    except (KeyError, ValueError) as error:
        # transformers raises these for attention that a model does not support.
        raise ModelError(
            f"model {folder.name}: the architecture {family} does not take packed attention"
            f" ({type(error).__name__}: {error});"
            " choose a model of another architecture, such as Llama or Qwen"
        ) from error
    changed = [name for name in LOGIT_CHANGES if getattr(base.config, name, None) not in (None, 1.0)]
    if changed or base.get_output_embeddings().bias is not None:
        raise ModelError(
            f"model {folder.name}: its head is not a plain linear map ({', '.join(changed) or 'it has a bias'}); "
            "the learner would compute wrong log-probs, choose another model"
        )
    base.requires_grad_(False).eval()
    check_packing(base)
    return base


class Head(nn.Module):
    """The vocabulary head. It shares the base's weight, which may be tied; as a module it is gathered by ZeRO-3.

    It computes in the base's dtype, whatever the dtype of an active role's own head.
    """

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight, self.dtype = weight_VH, weight_VH.dtype

    def forward(self, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return linear_logprob(hidden_NH.to(self.dtype), self.weight.to(self.dtype), targets_N, temperature)


class ActorCritic(nn.Module):
    """The learner's whole model. `forward` runs the given roles over one micro-batch."""

    def __init__(self, weights: RoleWeights) -> None:
        super().__init__()
        base = weights.base
        self.weights = weights
        self.head = Head(base.get_output_embeddings().weight)
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

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        """Run `roles`, a subset of ROLES. Outputs of other roles are None.

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


def build(
    folder: Path, dtype: Dtype, lora: LoraConfig, seed: int, roles: Sequence[str], start: Adapter | None
) -> ActorCritic:
    """The base with the weights of `roles`. The policy (and the reference) start at `start`, or else at the bare base.

    Raises ModelError if the model cannot be used here, AdapterError if the start does not fit the model.
    """
    weights = _weights(folder, dtype, lora, seed, tuple(roles))
    if start is not None:
        check_start(start.config, lora)
        weights.load(POLICY, start.tensors)
    return ActorCritic(weights)


def _weights(folder: Path, dtype: Dtype, lora: LoraConfig, seed: int, roles: tuple[str, ...]) -> RoleWeights:
    base = with_base(load_base(folder, dtype), lora.base, folder)
    if not TABLE[lora.kind].whole:
        return PeftWeights(base, peft_config(lora), seed, roles)
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
