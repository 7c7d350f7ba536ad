"""Refuses a teacher whose log-probs of the policy's tokens cannot be computed beside the policy.

The checks need the files of the teacher and the model, so rlpost.validate.model calls them.
"""

from __future__ import annotations

from pathlib import Path

from rlpost.config.adapter_kinds import FULL
from rlpost.config.adapter_kinds import TABLE as KINDS
from rlpost.config.keys import refusal
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config, Task
from rlpost.errors import AdapterError, ConfigError, ModelError
from rlpost.validate.fit import fitting_update
from rlpost.weights import models, teachers
from rlpost.weights.adapters import Adapter
from rlpost.weights.kind_settings import check_start, trains_parameter
from rlpost.weights.stored_model import StoredModel, read_config, text_part


def check_teacher(cfg: Config, model_folder: Path, model: StoredModel) -> None:
    """Check `algo.teacher` beside the model (its folder, its headers), for runs and comparisons that learn from it.

    Raises:
        ConfigError: the teacher is an adapter that cannot be on one base with lora.*, or a model of another vocabulary
            or with a shorter context.
        AdapterError: the adapter is damaged, or of another model.
        ModelError: the model cannot be found, or its head scales the logits.
    """
    name = cfg.algo.teacher
    learns = cfg.task is Task.compare or (cfg.task is Task.rl and TABLE[cfg.algo.name].taught)
    if name is None or not learns:
        return
    try:
        teacher = teachers.load(name)
    except ModelError as error:
        raise ModelError(f"algo.teacher={name}: {error}") from error
    if isinstance(teacher, Adapter):
        _check_adapter(cfg, name, teacher, model_folder, model)
    else:
        _check_other_model(cfg, name, teacher, model_folder)


def _check_adapter(cfg: Config, name: str, teacher: Adapter, folder: Path, model: StoredModel) -> None:
    if reason := _apart(cfg, teacher):
        remedy = "write it as a model (rlpost merge RUN FOLDER) and give algo.teacher=FOLDER"
        raise ConfigError(refusal("algo.teacher", name, reason, remedy))
    fitting_update(cfg, f"algo.teacher={name}", teacher, folder, model)


def _apart(cfg: Config, teacher: Adapter) -> str | None:
    """Why the teacher's adapter cannot be on one base with the policy's. In LoRA's family all can."""
    its, mine = teacher.config["peft_type"], KINDS[cfg.lora.kind].peft_type
    if its != mine:
        return (
            f"it is of kind {its}, and an adapter of lora.kind={cfg.lora.kind.value} takes no other beside it"
        )
    if mine == "LORA":
        return None
    if unknown := [n for n in teacher.tensors if mine == FULL and not trains_parameter(cfg.lora, n)]:
        return f"it changes {unknown[0]}, which the run does not train, so that its roles have no weight of that name"
    try:
        check_start(teacher.config, cfg.lora)
    except AdapterError as error:
        return f"outside LoRA's family both have the same settings: {error}"
    return None


def _check_other_model(cfg: Config, name: str, folder: Path, model_folder: Path) -> None:
    if scaled := models.scaled_logits(text_part(read_config(folder))):
        raise ModelError(f"algo.teacher={name}: {scaled}")
    reasons = (_other_vocabulary(cfg, folder, model_folder), _shorter(cfg, folder))
    remedy = "give a teacher of the model's own family, or an adapter of the model"
    refusals = [refusal("algo.teacher", name, reason, remedy) for reason in reasons if reason]
    if refusals:
        raise ConfigError("\n".join(refusals))


def _other_vocabulary(cfg: Config, folder: Path, model_folder: Path) -> str | None:
    """Why a token's id would mean something else to the teacher."""
    from transformers import AutoTokenizer  # the import takes seconds, and an adapter needs none

    its, mine = (AutoTokenizer.from_pretrained(each).get_vocab() for each in (folder, model_folder))
    differing = sorted(token for token, number in mine.items() if its.get(token) != number)
    differing += sorted(its.keys() - mine.keys())
    if differing:
        return (
            f"it reads the policy's token ids, and {len(differing)} tokens have other ids in its vocabulary than in"
            f" that of model={cfg.model}, first {differing[0]!r}"
        )
    its_rows, my_rows = (
        text_part(read_config(each)).get("vocab_size") or 0 for each in (folder, model_folder)
    )
    if its_rows < my_rows:
        return f"its head has {its_rows} rows, and model={cfg.model} may sample {my_rows} ids"
    return None


def _shorter(cfg: Config, folder: Path) -> str | None:
    longest = text_part(read_config(folder)).get("max_position_embeddings")
    if longest is None or longest >= cfg.rollout.max_model_len:
        return None
    return f"it reads at most {longest} tokens, fewer than rollout.max_model_len={cfg.rollout.max_model_len}"
