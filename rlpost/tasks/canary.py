"""The canary: a fixed conversation whose log-probs prove that an engine serves the adapter that the learner trained."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rlpost.config.adapter_kinds import FULL
from rlpost.config.schema import BaseKind, Config
from rlpost.envs import registry
from rlpost.envs.adapter import tools_of
from rlpost.envs.base import Expert
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import within
from rlpost.seeds import derive
from rlpost.types import Canary
from rlpost.weights.models import stored_dtypes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_TOKENS = 64  # a swap scores all of them: 0.02 s on the bundled model


def canary_ids(cfg: Config, chat: Chat) -> tuple[int, ...]:
    """A prompt of the training variant, with an expert's answer if the environment has an expert.

    Raises RolloutError if the environment takes longer than rollout.env_timeout_s.
    """
    who = f"the environment {cfg.env} (asked for the canary)"
    return within(cfg.rollout.env_timeout_s, who, partial(_conversation, cfg, chat))


def _conversation(cfg: Config, chat: Chat) -> tuple[int, ...]:
    env = registry.make(cfg.env, **cfg.env_args)
    seed = derive(cfg.eval.seed, "canary")
    observation, _ = env.reset(seed=seed, options={"variant": cfg.train_variant, "split": "train"})
    expert, tools = env.unwrapped, tools_of(env)
    if isinstance(expert, Expert):
        ids = chat.example(expert.expert(False, random.Random(seed)), tools).token_ids
    else:
        ids = chat.prompt_ids(observation, tools)
    env.close()
    return ids[: min(MAX_TOKENS, cfg.rollout.max_model_len - 1)]


def plain_peft_canary(
    model_folder: Path, adapter_folder: Path, token_ids: tuple[int, ...], kind: BaseKind = BaseKind.stored
) -> Canary:
    """The canary of a saved adapter, scored in fp32 by transformers and PEFT alone, without a learner.

    The base model stays in its stored precision, and one module at a time is in fp32: half the memory of an fp32 base.
    Weights that `kind` (`lora.base`) changes replace the stored ones in fp32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rlpost.weights.base_weights import base_weights

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=_stored_dtype(model_folder))
    weights = base_weights(model_folder, kind)
    for name in weights.changed:
        base.get_submodule(name).get_parameter("weight").data = weights[f"{name}.weight"]
    model = _policy(base, adapter_folder).eval()
    _compute_in_float32(model)
    ids_1T = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids_1T).logits[0, :-1].float().log_softmax(-1)
    chosen_T = logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
    return Canary(token_ids, tuple(chosen_T.tolist()))


def _policy(base: nn.Module, adapter_folder: Path) -> nn.Module:
    """`base` with PEFT's layers, or with whole parameters (lora.kind=full) in place of its own."""
    from peft import PeftModel

    from rlpost.weights.adapters import Adapter

    adapter = Adapter.load(adapter_folder)
    if adapter.config["peft_type"] != FULL:
        adapted: nn.Module = PeftModel.from_pretrained(base, adapter_folder)
        return adapted
    for name, tensor in adapter.tensors.items():
        base.get_parameter(name).data = tensor
    return base


def _stored_dtype(model_folder: Path) -> torch.dtype:
    """The half precision in which all of a model's weights are stored, else fp32."""
    import torch

    half = {"BF16": torch.bfloat16, "F16": torch.float16}
    kinds = stored_dtypes(model_folder)
    return half.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32


def _compute_in_float32(model: nn.Module) -> None:
    """Convert each module's own parameters to fp32 while it computes, and back afterwards.

    A PEFT layer is widened with everything in it, since some kinds compute with the weight of the layer inside.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        is_adapted = isinstance(module, BaseTunerLayer)
        if is_adapted:
            inside.update(module.modules())
        stored = {name: each.data for name, each in module.named_parameters(recurse=is_adapted)}
        module.register_forward_pre_hook(partial(_widen, stored))
        module.register_forward_hook(partial(_restore, stored))


def _widen(stored: Mapping[str, Tensor], module: nn.Module, arguments: object) -> None:
    for name, tensor in stored.items():
        module.get_parameter(name).data = tensor.float()


def _restore(stored: Mapping[str, Tensor], module: nn.Module, arguments: object, output: object) -> None:
    for name, tensor in stored.items():
        module.get_parameter(name).data = tensor
