"""The canary: a fixed conversation by whose log-probs an engine proves that it serves what the learner trained."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from envs import registry
from envs.base import Expert
from rlpost.config import Config
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import within
from rlpost.seeds import derive
from rlpost.types import Canary

MAX_TOKENS = 64  # a swap scores them all: 0.02 s on the bundled model


def canary_ids(cfg: Config, chat: Chat) -> tuple[int, ...]:
    """A prompt of the training variant, with an expert's answer where the environment has one.

    Raises RolloutError when the environment takes longer than rollout.env_timeout_s.
    """
    who = f"the environment {cfg.env} (asked for the canary)"
    return within(cfg.rollout.env_timeout_s, who, partial(_conversation, cfg, chat))


def _conversation(cfg: Config, chat: Chat) -> tuple[int, ...]:
    env = registry.make(cfg.env, **cfg.env_args)
    seed = derive(cfg.eval.seed, "canary")
    observation, _ = env.reset(seed=seed, options={"variant": cfg.train_variant, "split": "train"})
    expert = env.unwrapped
    if isinstance(expert, Expert):
        ids = chat.example(expert.expert(False, random.Random(seed))).token_ids
    else:
        ids = chat.prompt_ids(observation)
    env.close()
    return ids[: min(MAX_TOKENS, cfg.rollout.max_model_len - 1)]


def plain_peft_canary(model_folder: Path, adapter_folder: Path, token_ids: tuple[int, ...]) -> Canary:
    """The canary of a saved adapter, scored in fp32 by transformers and PEFT alone, without a learner."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
    ids_1T = torch.tensor([token_ids])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids_1T).logits[0, :-1].float().log_softmax(-1)
    chosen_T = logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0]
    return Canary(token_ids, tuple(chosen_T.tolist()))
