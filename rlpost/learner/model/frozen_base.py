"""A frozen causal language model that takes packed rows, its vocabulary head, and a teacher made of both.

Shapes: N loss tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlpost.cluster.precision import TORCH_DTYPES
from rlpost.config.schema import Dtype
from rlpost.errors import ModelError
from rlpost.kernels.linear_logprob import linear_logprob
from rlpost.learner.model.fused_layers import fuse_layers
from rlpost.learner.model.packed_attention import PACKED
from rlpost.learner.model.packing import MicroBatch
from rlpost.learner.model.packing_check import check_packing, hidden_states
from rlpost.weights.models import scaled_logits


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
    if changed := scaled_logits(base.config.to_dict()):
        raise ModelError(f"model {folder.name}: {changed}")
    base.requires_grad_(False).eval()
    check_packing(base)
    return base


class Head(nn.Module):
    """The vocabulary head. It shares the base's weight, which may be tied; as a module it is gathered by ZeRO-3.

    It computes in the base's dtype, whatever the dtype of an active role's own head.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        head = base.get_output_embeddings()
        self.weight, self.bias, self.dtype = head.weight, head.bias, head.weight.dtype
        self.softcap: float | None = getattr(base.config, "final_logit_softcapping", None)

    def forward(self, hidden_NH: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        weight_VH = self.weight.to(self.dtype)
        bias_V = None if self.bias is None else self.bias.to(self.dtype)
        return linear_logprob(
            hidden_NH.to(self.dtype), weight_VH, targets_N, temperature, bias_V=bias_V, softcap=self.softcap
        )


class TeacherModel(nn.Module):
    """A model beside the learner's whose log-probs of the same token ids the policy learns from.

    Both vocabularies must give a token the same id; rlpost.validate.teacher compares them.
    """

    def __init__(self, folder: Path, dtype: Dtype) -> None:
        """Raises ModelError like `load_base`."""
        super().__init__()
        self.base = load_base(folder, dtype)
        self.head = Head(self.base)
        self.fused = False

    def fuse(self) -> None:
        """Run the layers through rlpost.kernels if all of them can be; not for ZeRO-3."""
        self.fused = fuse_layers(self.base.base_model)

    @torch.no_grad()
    def forward(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Log-probs (N,) of the loss tokens."""
        mixed = self.head.dtype == torch.bfloat16 and not self.fused
        with torch.autocast(batch.input_ids_T.device.type, dtype=torch.bfloat16, enabled=mixed):
            hidden_NH = hidden_states(self.base.base_model, batch)
            logprobs_N, _ = self.head(hidden_NH, batch.targets_N, temperature)
        found: Tensor = logprobs_N
        return found
