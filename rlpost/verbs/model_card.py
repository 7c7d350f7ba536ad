"""The model card of a trained adapter: what its run's record says. Nothing that was not measured is in it.

Names of machines and folders are left out: only the last part of an absolute path is given, and the card says so.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from rlpost.config.adapter_kinds import TABLE, described
from rlpost.config.compose import defaults_under, to_yaml
from rlpost.config.keys import leaves
from rlpost.config.schema import Config, Task
from rlpost.config.trust import named_code
from rlpost.errors import OutputError
from rlpost.pages.render import render
from rlpost.record.run_dir import RunDir
from rlpost.record.summary import changes, entry_of, measure_of, role, rows_of, stages_of
from rlpost.weights.models import SMOLLM2, is_hub_id

SETTINGS = "settings.yaml"
SMOLLM2_ON_THE_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Settings that say nothing about the policy.
_OF_THE_PLACE = ("output_dir", "resume", "ray", "tracking", "compare", "tiny_base")
_SHOWN_VERSIONS = ("rlpost", "git", "python", "torch", "transformers", "peft", "vllm", "ray", "deepspeed")


@dataclass(frozen=True)
class Base:
    """The public name of the model that an adapter belongs to."""

    name: str  # a hub id, `tiny`, or a folder's last part
    hub: bool


def base_of(config: Config) -> Base:
    if config.model == SMOLLM2:
        return Base(SMOLLM2_ON_THE_HUB, True)
    if is_hub_id(config.model):
        return Base(config.model, True)
    return Base(config.model.rstrip("/").rpartition("/")[2], False)


def public_settings(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The settings in which the run differs from its algorithm's defaults, nested, and those that named a local path.

    `experiment=FILE` with them restores the run's settings, except where it ran and what it reported.
    """
    defaults = dict(leaves(_plain(defaults_under(config.algo.name))))
    changed = {key: value for key, value in leaves(_plain(config)) if defaults[key] != value}
    changed |= {"algo.name": config.algo.name.name, "task": config.task.value}
    kept = {key: value for key, value in changed.items() if key.partition(".")[0] not in _OF_THE_PLACE}
    local = [key for key, value in kept.items() if _without_paths(value) != value]
    nested = OmegaConf.create()
    for key, value in sorted(kept.items()):
        OmegaConf.update(nested, key, _without_paths(value), force_add=True)
    return _container(nested), local


def card(repo: str, run_dir: RunDir, config: Config) -> bytes:
    """README.md for a finished run's adapter. Raises OutputError if the run has not finished."""
    summary = run_dir.read_summary()
    if summary is None:
        raise OutputError(
            f"{run_dir.path}\n  reason: the run has not finished (no summary.json): there are no figures for a card\n"
            f"  remedy: go on with it: python -m rlpost.run {shlex.quote(f'resume={run_dir.path}')}"
        )
    settings, local = public_settings(config)
    settings_yaml = OmegaConf.to_yaml(OmegaConf.create(settings))
    stages, base = stages_of(summary), base_of(config)
    return render(
        "model_card.md.jinja",
        front_matter=OmegaConf.to_yaml(OmegaConf.create(_front_matter(config, base))),
        title=repo.rpartition("/")[2],
        repo=repo,
        base=base,
        converted=config.model == SMOLLM2,
        bundled=config.model == "tiny",
        config=config,
        whole=TABLE[config.lora.kind].whole,
        kind=described(config.lora),
        method=_method(config),
        measure=measure_of(summary),
        stages=stages,
        rows=[
            {
                "variant": variant,
                "role": role(summary, variant),
                "decoding": decoding,
                "rule": summary["variants"].get(variant, {}).get("summary", ""),
                "entries": [entry_of(summary, stage, variant, decoding) for stage in stages],
            }
            for variant, decoding in rows_of(summary)
        ],
        changes=changes(summary),
        variants=summary["variants"],
        train_variant=summary["train_variant"],
        iterations=summary["iterations"],
        settings_yaml=settings_yaml,
        fence=_fence(settings_yaml),
        own_code=list(named_code(config.env, config.env_args).values()),
        local=local,
        versions=_versions(run_dir),
    )


def _plain(config: Config) -> dict[str, Any]:
    return _container(OmegaConf.create(to_yaml(config)))


def _container(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _without_paths(value: Any) -> Any:
    """A setting in which only the last part of each absolute path is left."""
    if isinstance(value, str) and value.startswith(("/", "~")):
        return value.rstrip("/").rpartition("/")[2]
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return value


def _front_matter(config: Config, base: Base) -> dict[str, Any]:
    """The metadata that the hub reads. It has no licence, since the record names none."""
    tags = ["rlpost", config.lora.kind.value, config.algo.name.value if config.task is Task.rl else "sft"]
    library = "transformers" if TABLE[config.lora.kind].whole else "peft"
    front: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation", "tags": tags}
    return {"base_model": base.name, **front} if base.hub else front


def _method(config: Config) -> str:
    warm = f" after {config.sft.steps} supervised steps" if config.sft.steps else ""
    if config.task is Task.rl:
        return f"reinforcement learning by {config.algo.name.value}{warm}"
    return f"supervised fine-tuning on the environment's expert answers ({config.sft.steps} steps)"


def _versions(run_dir: RunDir) -> dict[str, str]:
    if not run_dir.versions.is_file():
        return {}
    plain = json.loads(run_dir.versions.read_bytes())
    return {name: str(plain[name]) for name in _SHOWN_VERSIONS if plain.get(name) is not None}


def _fence(text: str) -> str:
    """A code fence longer than any run of backticks in `text`, so the text cannot end its block."""
    return "`" * max(3, 1 + max(_runs(text), default=0))


def _runs(text: str) -> Iterator[int]:
    return (len(plain) for plain in re.findall("`+", text))
