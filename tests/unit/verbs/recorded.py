"""Records of runs, and adapters, for the tests of what is done with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlpost.config.compose import compose, to_yaml
from rlpost.record.gains import gains
from rlpost.record.metrics import evaluation
from rlpost.record.run_dir import RunDir, Sitting
from rlpost.types import Trajectory
from rlpost.weights.adapters import Adapter
from tests.unit.episodes import episode, turn

VARIANTS = {
    "faces_10": {"held_out": False, "summary": "J, Q and K count as 10"},
    "faces_11_12_13": {"held_out": True, "summary": "J, Q, K count as 11, 12, 13"},
}


def adapter_for(model_folder: Path, base_name: str, seed: int = 1, **lora: Any) -> Adapter:
    """An adapter by PEFT with a random B, so that its policy differs much from the base."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    settings: dict[str, Any] = {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"} | lora
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": base_name}
    return Adapter.create(config, get_peft_model_state_dict(model), version=2)


def played(solved: Sequence[bool], variant: str = "faces_10") -> list[Trajectory]:
    """An evaluation: an episode an instance."""
    return [
        replace(
            episode(turn("CORRECT" if right else "WRONG_VALUE", 5.0 if right else -1.0), success=right),
            variant=variant,
            instance=f"deal {i}",
            episode=i,
        )
        for i, right in enumerate(solved)
    ]


def run(
    folder: Path,
    *words: str,
    stages: Mapping[str, Sequence[bool]] | None = None,
    finished: bool = True,
) -> RunDir:
    """The record of a run of generalpoints_ppo with settings `words`; which deals each stage solved."""
    config = compose(["experiment=generalpoints_ppo", "dtype=float32", *words])
    run_dir = RunDir.create(folder, config.name, config.seed, to_yaml(config))
    run_dir.write_versions()
    run_dir.write_sittings([Sitting(60.0, 0)])
    for i in range(3):
        run_dir.append_metrics(
            {
                "stage": "rl",
                "iteration": i,
                "success": 0.1 + i / 20,
                "reward": float(i),
                "kl_reference": i / 100,
            }
            | {"tokens/sampled": 1000, "tokens/trained": 500, "seconds/rollout": 2.0, "seconds/total": 3.0}
        )
    stages = (
        {"before": [True] * 10 + [False] * 30, "after": [True] * 25 + [False] * 15}
        if stages is None
        else stages
    )
    results: dict[str, Any] = {}
    for stage, solved in stages.items():
        for variant in VARIANTS:
            episodes = played(solved, variant)
            run_dir.write_evaluation(stage, variant, "sampled", episodes)
            result = evaluation(episodes)
            results.setdefault(stage, {})[variant] = {**result, "sampled": result}
    if finished:
        summary: dict[str, Any] = {"eval": results, "variants": VARIANTS, "train_variant": "faces_10"}
        summary |= {"iterations": 3, "sittings": 1, "seconds": 60.0, "workers_replaced": 0}
        summary |= {"swap_seconds_median": 0.03, "logprob_gap_mean": 0.001, "canary_gap_mean": 0.0005}
        run_dir.write_summary(summary | {"gains": gains(run_dir, summary)})
    return run_dir


def unframed(printed: str) -> str:
    """An error's text without its frame, each line of it after the one before: long paths are cut at the width."""
    inside = [line[2:-2].rstrip() for line in printed.splitlines() if line.startswith("│")]
    return "".join(inside)
