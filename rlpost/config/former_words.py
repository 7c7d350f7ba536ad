"""The current names of settings and words that earlier commits used. No other module knows the old ones.

Records of earlier commits (config.yaml, metrics.jsonl, trajectories, the settings in a checkpoint) are translated when
read. An old word typed by a user, on the command line or in an experiment's file, is refused, and the message names the
current word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rlpost.config.keys import refusal
from rlpost.errors import ConfigError

KEYS = {
    "algo.engine_correction": "algo.rollout_is",
    "algo.engine_correction_cap": "algo.rollout_is_cap",
}
VALUES = {("task", "ppo"): "rl"}  # GRPO and all other algorithms also ran as task=ppo
# By group: settings that a record may lack, with the values it ran with.
ADDED: Mapping[str, Mapping[str, Any]] = {
    "": {
        "retention": {
            **{"env": None, "env_args": {}, "variants": [], "episodes": 64, "max_new_tokens": None},
            **{"text": None, "text_tokens": 8192, "kl_episodes": 64},
        }
    },
    "rollout.": {
        **{
            "policy": "latest",
            "lag": 0,
            "stop": [],
            "template_args": {},
            "tensor_parallel": 1,
            "recycle_mib": 0,
        },
        **{
            "max_staleness": 0,
            "on_swap": "in_flight",
            "min_workers": None,
            "max_workers": None,
            "sleep": False,
        },
    },
    "lora.": {
        "settings": {},
        "start": "default",
        "start_examples": 64,
        "learning_rate": "given",
        "base": "stored",
    },
    "sft.": {"loss": "nll", "schedule": "constant", "final_share": 0.0},
    "algo.": {
        "dpo_beta": 0.1,
        "schedule": "constant",
        "final_share": 0.0,
        "teacher": None,
        "expert_coef": 0.0,
        "expert_examples": 64,
        "reward_control": "none",
        "trust_region": "ratio",
        "max_divergence": 0.15,
        "rollout_is_level": "ratio",
        "rollout_is_floor": None,
        "rollout_reject": "none",
        "rollout_reject_cap": None,
        "rollout_reject_floor": None,
    },
    "eval.": {"instances": "drawn"},
    "learner.": {"optimizer": "adamw", "lora_plus_ratio": 1.0},
    "ray.": {"placement": "pack", "wait_s": 600.0, "autoscaling": False},
    "compare.": {"share_engines": True, "contrasts": []},  # a cell's own record has them, and reads none
}
STAGES = {"ppo": "rl"}  # `stage` in a line of metrics.jsonl


def translated(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a record, nested, in current words; `prefix` is the key of a nested group."""
    now = dict(ADDED.get(prefix, {}))
    for name, value in settings.items():
        key = f"{prefix}{name}"
        today, value = _today(key, translated(value, f"{key}.") if isinstance(value, dict) else value)
        now[today.rpartition(".")[2] if key in KEYS else name] = value
    return now


def translated_line(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl in current words."""
    stage = line.get("stage")
    return {**line, "stage": STAGES[stage]} if isinstance(stage, str) and stage in STAGES else line


def translated_episode(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a trajectories file. Earlier commits wrote one `adapter_version` per episode instead of per turn."""
    now = dict(line)
    if "adapter_version" in now:
        version = now.pop("adapter_version")
        now["turns"] = [{"policy_version": version, **turn} for turn in now["turns"]]
    return now


def refuse_former(settings: Iterable[tuple[str, Any]], where: str) -> None:
    """Raises ConfigError for the first old (dotted key, value), naming `where` and the current word."""
    for key, value in settings:
        now = _today(key, value)
        if now != (key, value):
            today = "{}={}".format(*now)
            raise ConfigError(refusal(key, value, f"it is called {today} now ({where})", f"write {today}"))


def _today(key: str, value: Any) -> tuple[str, Any]:
    return KEYS.get(key, key), VALUES.get((key, value), value) if isinstance(value, str) else value
