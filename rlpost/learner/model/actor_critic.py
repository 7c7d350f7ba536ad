"""One frozen base with low-rank adapters: `policy`, and optionally `critic` (with a value head) and `reference`.

    input ids ─▶ base body with one adapter ─▶ hidden states ─▶ head at loss tokens ─▶ log-probs, entropy
                                                            └▶ value head             ─▶ values

Each pass chooses its active adapter. Adapters are float32 whatever the base's dtype (they are their own master weights)
and are cast when used: by the fused layers, or else by autocast.
Shapes: T packed tokens, N loss tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlpost.algorithms.objective import Outputs
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, ROLES
from rlpost.cluster.precision import TORCH_DTYPES
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.errors import AdapterError, ModelError
from rlpost.kernels.linear_logprob import linear_logprob
from rlpost.learner.model.fused_layers import Projections, can_fuse, fuse_layers
from rlpost.learner.model.packed_attention import PACKED
from rlpost.learner.model.packing import MicroBatch
from rlpost.learner.model.packing_check import check_packing, hidden_states
from rlpost.learner.model.quantized_base import with_base
from rlpost.weights.adapter_settings import KIND_SETTINGS, check_start
from rlpost.weights.adapters import Adapter

# Settings of models whose head changes the logits; the head here is linear.
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


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
    """The vocabulary head. It shares the base's weight, which may be tied; as a module it is gathered by ZeRO-3."""

    def __init__(self, weight_VH: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight_VH

    def forward(self, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return linear_logprob(hidden_NH, self.weight, targets_N, temperature)


class ActorCritic(nn.Module):
    """The learner's whole model. `forward` runs the given roles over one micro-batch."""

    def __init__(
        self, base: PreTrainedModel, config: PeftLoraConfig, seed: int, adapters: Sequence[str]
    ) -> None:
        """`adapters` starts with POLICY."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the random start of A is the same on every rank
            self.peft = get_peft_model(base, config, adapter_name=adapters[0])
            for name in adapters[1:]:
                self.peft.add_adapter(name, config)
        self.head = Head(base.get_output_embeddings().weight)
        self.value_head = _value_head(base.config.hidden_size) if CRITIC in adapters else None
        self.trained = tuple(name for name in adapters if name != REFERENCE)
        self.dtype = next(base.parameters()).dtype
        self.layers = [m for m in self.peft.modules() if isinstance(m, LoraLayer)]
        self.active: str | None = POLICY
        self.has_reference = REFERENCE in adapters
        self.fused = False
        self._prepare()

    def _prepare(self) -> None:
        for layer in self.layers:
            # Autocast chooses the dtype, which avoids a copy of the activations.
            layer.cast_input_dtype_enabled = False
        for name, parameter in self.peft.named_parameters():
            owner = adapter_of(name)
            parameter.requires_grad_(owner in self.trained)
            if owner is not None:
                parameter.data = parameter.data.float()
        if self.has_reference:
            self.freeze_reference()
        self.activate(POLICY)

    def activate(self, adapter: str | None) -> None:
        """Make one adapter, or none, active. PEFT's own set_adapter would also change requires_grad, and so cut the
        gradient of a pass whose backward has not run yet."""
        for layer in self.layers:
            layer._active_adapter = [] if adapter is None else [adapter]
        self.active = adapter

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        previous = self.active
        self.activate(adapter)
        try:
            yield
        finally:
            self.activate(previous)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, each with the adapter that was active in its forward."""
        self.peft.get_base_model().gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.using(self.active))}
        )
        for module in self.peft.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.training = True  # only for these modules: dropout stays off everywhere

    def fuse_adapters(self) -> None:
        """Run the decoder layers of known families through rlpost.kernels, or else the plain LoRA layers. The kernels
        read parameters directly from memory, so this is not for ZeRO-3. DoRA layers stay PEFT's."""
        body = self.peft.get_base_model().base_model
        inside = {id(m) for decoder in getattr(body, "layers", ()) for m in decoder.modules()}
        self.fused = fuse_layers(body) and all(id(layer) in inside for layer in self.layers)
        for layer in self.layers:
            if can_fuse(layer):
                layer.forward = partial(_fused_forward, Projections(layer))

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        """Run `roles`, a subset of ROLES. Outputs of other roles are None.

        The reference is the adapter of that name, or the bare base if that adapter does not exist.
        """
        device = batch.input_ids_T.device.type
        outputs = Outputs()
        mixed = self.dtype == torch.bfloat16 and not self.fused
        with torch.autocast(device, dtype=torch.bfloat16, enabled=mixed):
            if POLICY in roles:
                logprobs_N, entropy_N = self.head(self._hidden(POLICY, batch), batch.targets_N, temperature)
                outputs = outputs._replace(logprobs_N=logprobs_N, entropy_N=entropy_N)
            if REFERENCE in roles:
                hidden_NH = self._hidden(REFERENCE if self.has_reference else None, batch)
                outputs = outputs._replace(reference_N=self.head(hidden_NH, batch.targets_N, temperature)[0])
            if CRITIC in roles:
                hidden_NH = self._hidden(CRITIC, batch)
                assert self.value_head is not None, "only a critic has values"
                with torch.autocast(device, enabled=False):
                    outputs = outputs._replace(values_N=self.value_head(hidden_NH.float()).squeeze(-1))
        return outputs

    def _hidden(self, adapter: str | None, batch: MicroBatch) -> Tensor:
        with self.using(adapter):
            return hidden_states(self.peft.get_base_model().base_model, batch)

    def parameters_of(self, adapter: str) -> list[nn.Parameter]:
        """The adapter's parameters; for the critic with the value head. Empty if the adapter does not exist."""
        head = self.value_head if adapter == CRITIC else None
        parameters = [p for name, p in self.peft.named_parameters() if adapter_of(name) == adapter]
        return parameters if head is None else [*parameters, *head.parameters()]

    def freeze_reference(self) -> None:
        """Copy the current policy into the reference adapter."""
        for source, copy in zip(self.parameters_of(POLICY), self.parameters_of(REFERENCE), strict=True):
            copy.data.copy_(source.data)

    def adapter_tensors(self, adapter: str) -> dict[str, Tensor]:
        """The adapter's tensors under PEFT's names, as CPU copies."""
        tensors = get_peft_model_state_dict(self.peft, adapter_name=adapter, save_embedding_layers=False)
        return {
            name: t.detach().to("cpu", torch.float32, copy=True).contiguous() for name, t in tensors.items()
        }

    def load_adapter(self, adapter: str, tensors: Mapping[str, Tensor]) -> None:
        """Write PEFT-named tensors into an adapter. Raises AdapterError unless names and shapes match exactly."""
        own = self.adapter_tensors(adapter)
        wrong = sorted(set(own) ^ set(tensors)) or [n for n in own if own[n].shape != tensors[n].shape]
        if wrong:
            raise AdapterError(
                f"adapter does not fit this model and lora.* settings: {len(wrong)} tensors differ in name or shape, "
                f"first {wrong[0]}; give the lora.rank, lora.kind and lora.target_modules it was trained with"
            )
        set_peft_model_state_dict(self.peft, dict(tensors), adapter_name=adapter)


def _value_head(hidden_size: int) -> nn.Linear:
    """The linear head from hidden states to values. It starts at 0."""
    head = nn.Linear(hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _fused_forward(projection: Projections, inputs: Tensor) -> Tensor:
    """Forward of one LoRA layer alone, (..., in) to (..., out)."""
    flat = inputs.flatten(0, -2).to(projection.dtype)
    return projection(flat).unflatten(0, inputs.shape[:-1])


def adapter_of(parameter_name: str) -> str | None:
    """The adapter that a parameter of the PEFT model belongs to; None for the base."""
    parts = parameter_name.split(".")
    if not any(part.startswith("lora_") for part in parts):
        return None
    return next(name for name in ROLES if name in parts)


def build(
    folder: Path, dtype: Dtype, lora: LoraConfig, seed: int, adapters: Sequence[str], start: Adapter | None
) -> ActorCritic:
    """The base with `adapters`. The policy (and the reference) start at `start` if given, else at the bare base.

    Raises ModelError if the model cannot be used here, AdapterError if the start does not fit the model.
    """
    base = with_base(load_base(folder, dtype), lora.base, folder)
    model = ActorCritic(base, peft_config(lora), seed, adapters)
    if start is not None:
        check_start(start.config, lora)
        model.load_adapter(POLICY, start.tensors)
        if model.has_reference:
            model.freeze_reference()
    return model
