"""Refuses impossible settings, all at once, before torch, vllm or ray are imported.

Every number of the schema has its range in RANGES. Conditions on several settings have their own checks. A check yields
refusals (key, value, reason, remedy) and never repairs a setting.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlpost.config.compose import with_settings
from rlpost.config.keys import refusal
from rlpost.config.schema import Config, Task
from rlpost.errors import ConfigError
from rlpost.record.folders import holds_files
from rlpost.record.trackers.secrets import without_users
from rlpost.validate.adapter import ADAPTER_CHECKS
from rlpost.validate.adapter_start import adapter_start
from rlpost.validate.algorithm import ALGORITHM_CHECKS
from rlpost.validate.cluster import cluster_address
from rlpost.validate.comparison import COMPARE_CHECKS
from rlpost.validate.environment import TRAINING, environment
from rlpost.validate.optimizer import OPTIMIZER_CHECKS
from rlpost.validate.retention import retention
from rlpost.validate.sleep import sleep
from rlpost.validate.staleness import max_staleness
from rlpost.validate.tracking import tracking
from rlpost.validate.unread import unread


@dataclass(frozen=True)
class Range:
    low: float
    high: float = math.inf
    low_open: bool = False  # the value `low` itself is refused

    def holds(self, value: float) -> bool:
        return (self.low < value if self.low_open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low, high = f"{self.low:.10g}", f"{self.high:.10g}"  # a seed's highest value has ten digits
        bound = f"above {low}" if self.low_open else f"at least {low}"
        return bound if self.high == math.inf else f"{bound} and at most {high}"


COUNT = Range(1)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1)
POSITIVE_SHARE = Range(0, 1, low_open=True)

RANGES: dict[str, Range] = {
    "seed": Range(0, 2**31 - 1),
    "lora.rank": Range(1, 1024),
    "lora.alpha": POSITIVE,
    "lora.start_examples": COUNT,
    "sft.steps": NOT_NEGATIVE,
    "sft.skip": NOT_NEGATIVE,
    "sft.examples": NOT_NEGATIVE,
    "sft.batch_size": COUNT,
    "sft.learning_rate": POSITIVE_SHARE,
    "sft.warmup_steps": NOT_NEGATIVE,
    "sft.final_share": SHARE,
    "sft.revision_share": SHARE,
    "algo.iterations": COUNT,
    "algo.overlong_buffer": NOT_NEGATIVE,
    "algo.overlong_penalty": POSITIVE,
    "algo.gamma": SHARE,
    "algo.gae_lambda": SHARE,
    "algo.epochs": COUNT,
    "algo.minibatches": COUNT,
    "algo.clip": POSITIVE_SHARE,
    "algo.thought_weight": SHARE,
    "algo.value_clip": POSITIVE,
    "algo.value_coef": NOT_NEGATIVE,
    "algo.entropy_coef": NOT_NEGATIVE,
    "algo.dpo_beta": POSITIVE,
    "algo.expert_coef": NOT_NEGATIVE,
    "algo.expert_examples": COUNT,
    "algo.kl_coef": NOT_NEGATIVE,
    "algo.kl_step": POSITIVE_SHARE,
    "algo.max_divergence": POSITIVE,
    "algo.rollout_is_cap": Range(1, low_open=True),
    "algo.max_refills": COUNT,
    "algo.reward_scale": POSITIVE,
    "algo.learning_rate": POSITIVE_SHARE,
    "algo.critic_learning_rate": POSITIVE_SHARE,
    "algo.warmup_steps": NOT_NEGATIVE,
    "algo.final_share": SHARE,
    "algo.critic_warmup": NOT_NEGATIVE,
    "rollout.workers": COUNT,
    "rollout.episodes": COUNT,
    "rollout.max_staleness": NOT_NEGATIVE,
    "rollout.group_size": COUNT,
    "rollout.lag": NOT_NEGATIVE,
    "rollout.temperature": POSITIVE,
    "rollout.max_new_tokens": COUNT,
    "rollout.max_model_len": COUNT,
    "rollout.max_num_seqs": COUNT,
    "rollout.kv_cache_gib": POSITIVE,
    "rollout.gpu_memory_utilization": POSITIVE_SHARE,
    "rollout.tensor_parallel": COUNT,
    "rollout.cpus": NOT_NEGATIVE,
    "rollout.gpus": SHARE,
    "rollout.max_canary_gap": POSITIVE,
    "rollout.restarts": NOT_NEGATIVE,
    "rollout.recycle_mib": NOT_NEGATIVE,
    "rollout.env_timeout_s": POSITIVE,
    "rollout.timeout_s": POSITIVE,
    "learner.workers": COUNT,
    "learner.zero_stage": Range(0, 3),
    "learner.micro_batch_tokens": COUNT,
    "learner.lora_plus_ratio": POSITIVE,
    "learner.weight_decay": NOT_NEGATIVE,
    "learner.max_grad_norm": POSITIVE,
    "learner.cpus": NOT_NEGATIVE,
    "learner.threads": COUNT,
    "learner.gpus": SHARE,
    "learner.timeout_s": POSITIVE,
    "eval.episodes": COUNT,
    "eval.samples": Range(1, 256),
    "eval.every": NOT_NEGATIVE,
    "eval.seed": Range(0, 2**31 - 1),
    "retention.episodes": COUNT,
    "retention.text_tokens": COUNT,
    "retention.kl_episodes": NOT_NEGATIVE,
    "compare.points": COUNT,
    "compare.quick_iterations": COUNT,
    "ray.timeout_s": POSITIVE,
    "ray.wait_s": NOT_NEGATIVE,
    "tracking.checkpoint_every": COUNT,
    "tiny_base.minutes": POSITIVE,
    "tiny_base.vocab_size": Range(64, 65536),
    "tiny_base.hidden_size": COUNT,
    "tiny_base.layers": COUNT,
    "tiny_base.heads": COUNT,
    "tiny_base.intermediate_size": COUNT,
    "tiny_base.batch_tokens": COUNT,
    "tiny_base.learning_rate": POSITIVE_SHARE,
}
# Ranges of settings that may be null.
OPTIONAL_RANGES: dict[str, Range] = {
    "algo.critic_epochs": COUNT,
    "algo.clip_high": POSITIVE,
    "algo.ratio_ceiling": Range(1, low_open=True),
    "algo.rollout_is_floor": SHARE,
    "algo.rollout_reject_cap": Range(1, low_open=True),
    "algo.rollout_reject_floor": SHARE,
    "algo.kl_target": POSITIVE,
    "retention.max_new_tokens": COUNT,
    "rollout.min_workers": COUNT,
    "rollout.max_workers": COUNT,
    "compare.concurrency": COUNT,
}


def validate(config: Config, named: Collection[str] = ()) -> None:
    """Raise one ConfigError that lists every refusal, each with key, value, reason and remedy.

    `named`: the settings that the command line names. Each of them must have an effect.
    """
    refusals = [*(text for check in CHECKS for text in check(config)), *unread(config, named)]
    refusals += _named_settings(config, refusals)
    if refusals:
        raise ConfigError("\n".join(refusals))


def _named_settings(config: Config, already: Collection[str]) -> Iterator[str]:
    """What the settings of `compare.settings` are refused for, besides what the whole comparison is."""
    for name, settings in config.compare.settings.items() if config.task is Task.compare else ():
        try:
            varied = with_settings(config, settings)
        except ConfigError:
            continue  # refused by rlpost.validate.comparison
        varied.compare.settings = {
            name: settings
        }  # the others are not these arms', and composing each takes time
        checks = (check for check in CHECKS if check not in COMPARE_CHECKS)  # those have seen every arm
        texts = (*(text for check in checks for text in check(varied)), *unread(varied, settings))
        yield from (f"compare.settings.{name}: {text}" for text in texts if text not in already)


def numbers(node: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every numeric setting below `node`, by its dotted key."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{prefix}{field.name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", value


def _ranges(config: Config) -> Iterator[str]:
    for key, value in numbers(config):
        allowed = {**RANGES, **OPTIONAL_RANGES}[key]
        if not allowed.holds(value):
            yield refusal(key, value, "out of range", f"give a value {allowed}")


def _betas(config: Config) -> Iterator[str]:
    betas = config.learner.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield refusal(
            "learner.betas", betas, "AdamW takes two, each from 0 up to but not 1", "give [0.9,0.95]"
        )


def _schedule(config: Config) -> Iterator[str]:
    if config.task is Task.sft and config.sft.steps == 0:
        yield refusal("sft.steps", 0, "task=sft would do nothing", "give at least 1")


def _evaluation(config: Config) -> Iterator[str]:
    if config.task is not Task.tiny_base and not (config.eval.greedy or config.eval.sampled):
        yield refusal(
            "eval.sampled", False, "eval.greedy is false too: nothing to evaluate", "set one to true"
        )
    if config.task is Task.compare and config.eval.samples > 1:
        yield refusal(
            "eval.samples",
            config.eval.samples,
            "a comparison plays each instance once a seed, and pairs by that",
            "give 1, and evaluate a cell's adapter with task=eval",
        )


def _endpoint(config: Config) -> Iterator[str]:
    url, model = config.eval.endpoint, config.eval.endpoint_model
    if url is None and model is None:
        return
    if url is None:
        remedy = "give its server as eval.endpoint, or leave it out"
        yield refusal("eval.endpoint_model", model, "eval.endpoint names no server", remedy)
        return
    shown = without_users(url)
    if model is None or not model.strip():
        remedy = "give the name under which the server knows the model"
        yield refusal("eval.endpoint_model", repr(model), f"eval.endpoint={shown} may have several", remedy)
    if fault := _url_fault(url):
        yield refusal(
            "eval.endpoint", shown, fault, "give http://HOST:PORT/v1; the key goes in OPENAI_API_KEY"
        )
    if config.task not in (Task.eval, Task.dry_run):
        reason = f"task={config.task.value} needs a model of this machine"
        yield refusal("eval.endpoint", shown, reason, "leave it out, or task=eval")
    if config.adapter is not None:
        reason = "the model behind eval.endpoint plays, with the adapter that its server may have"
        yield refusal("adapter", config.adapter, reason, "leave one of the two out")
    if importlib.util.find_spec("openai") is None:
        yield refusal("eval.endpoint", shown, "it needs the package openai", "pip install openai")


def _url_fault(url: str) -> str | None:
    """Why `url` is no base address of a server that could be recorded and asked; None if it is one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # `port` raises ValueError for what is no number of a port
    except ValueError as error:
        return f"not an address ({error})"
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() for c in url):
        return "not an address of HTTP"
    if parts.username is not None or parts.password is not None:
        return "it has a user or a password, which a run would record"
    if parts.query or parts.fragment:
        return "it has a query or a fragment, which no path can follow"
    return None


def folders(config: Config) -> Iterator[str]:
    """Refusals of the folders that a run works in."""
    if config.resume is not None:
        yield from _resume(config, Path(config.resume))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        yield refusal("name", config.name, "it names a folder", "use letters, digits, '.', '_' and '-'")
    if config.output_dir is None:
        return
    output = Path(config.output_dir)
    if output.exists() and not output.is_dir():
        yield refusal("output_dir", output, "it is a file", "name a folder")
    elif config.resume is None and output.is_dir() and holds_files(output):
        yield refusal("output_dir", output, "it holds files already", "name a new folder, or use resume=")


def _resume(config: Config, folder: Path) -> Iterator[str]:
    if config.task not in TRAINING:
        yield refusal("resume", folder, f"task={config.task.name} has nothing to go on with", "leave it out")
    below = "cells" if config.task is Task.compare else "checkpoints"
    if not (folder / below).is_dir():
        yield refusal("resume", folder, f"no {below}/ there", "name the output folder of an earlier run")


def _workers(config: Config) -> Iterator[str]:
    workers, fewest = config.rollout.workers, config.rollout.min_workers
    if fewest is not None and fewest > workers:
        reason, remedy = (
            f"a run has rollout.workers={workers} at most",
            "give no more, or more rollout.workers",
        )
        yield refusal("rollout.min_workers", fewest, reason, remedy)
    if fewest is not None and fewest < workers and config.rollout.max_staleness > 0:
        reason = "with rollout.max_staleness above 0 each worker has its own episodes"
        yield refusal("rollout.min_workers", fewest, reason, "leave it out, or rollout.max_staleness=0")


def _most_workers(config: Config) -> Iterator[str]:
    rollout, most = config.rollout, config.rollout.max_workers
    if most is None:
        return
    if most < rollout.workers:
        reason = f"a run starts with rollout.workers={rollout.workers}"
        yield refusal("rollout.max_workers", most, reason, "give no less, or fewer rollout.workers")
    if most > rollout.episodes:
        reason = f"only {rollout.episodes} episodes to share"
        yield refusal("rollout.max_workers", most, reason, "fewer workers, or more rollout.episodes")
    if config.ray.address is None:
        reason = (
            "a run without ray.address has this machine alone, all of whose resources are there at the start"
        )
        yield refusal(
            "rollout.max_workers", most, reason, "give rollout.workers, or join a cluster by ray.address"
        )


def _gpus(config: Config) -> Iterator[str]:
    learner, rollout = config.learner, config.rollout
    if rollout.tensor_parallel > 1 and 0 < rollout.gpus < 1:
        yield refusal(
            "rollout.gpus",
            rollout.gpus,
            f"each of rollout.tensor_parallel={rollout.tensor_parallel} processes needs a GPU of its own",
            "give 1, or rollout.tensor_parallel=1",
        )
    if learner.workers > 1 and 0 < learner.gpus < 1:
        yield refusal(
            "learner.gpus",
            learner.gpus,
            f"Ray may put two of learner.workers={learner.workers} ranks on one GPU, which NCCL refuses",
            "give 1, or learner.workers=1",
        )


def _conversation(config: Config) -> Iterator[str]:
    """Refusals that need no model. The model's chat template refuses the rest (rlpost/rollout/chat.py)."""
    rollout = config.rollout
    if rollout.system_prompt is not None and not rollout.system_prompt.strip():
        yield refusal("rollout.system_prompt", repr(rollout.system_prompt), "it says nothing", "give null")
    if not all(rollout.stop) or len(set(rollout.stop)) != len(rollout.stop):
        yield refusal("rollout.stop", rollout.stop, "one is empty, or stands twice", "name each text once")
    for name in rollout.template_args:
        if not str(name).isidentifier():
            yield refusal(
                "rollout.template_args", name, "no template can read such a name", "give a name: a word"
            )


def _tiny_base(config: Config) -> Iterator[str]:
    recipe = config.tiny_base
    if recipe.heads >= 1 and recipe.hidden_size % (2 * recipe.heads):
        yield refusal(
            "tiny_base.heads",
            recipe.heads,
            f"tiny_base.hidden_size={recipe.hidden_size} does not divide into heads of even width",
            "give a divisor",
        )


CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _ranges,
    _betas,
    *OPTIMIZER_CHECKS,
    *ALGORITHM_CHECKS,
    *COMPARE_CHECKS,
    _schedule,
    _evaluation,
    _endpoint,
    environment,
    retention,
    max_staleness,
    sleep,
    *ADAPTER_CHECKS,
    adapter_start,
    folders,
    tracking,
    cluster_address,
    _workers,
    _most_workers,
    _gpus,
    _conversation,
    _tiny_base,
)
