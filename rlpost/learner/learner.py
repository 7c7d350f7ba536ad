"""One learner rank as a plain class; rlpost.learner.actor runs it in an actor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlpost.algorithms import roles
from rlpost.algorithms.adaptive_kl import steered
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config
from rlpost.errors import CheckpointError, LearnerError
from rlpost.learner import update
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.kept_start import KeptStart
from rlpost.learner.model import actor_critic
from rlpost.learner.model.packing import Row
from rlpost.learner.named_adapters import NamedAdapters, teacher_named
from rlpost.learner.rendezvous import Rendezvous
from rlpost.learner.steps import Batch, Metrics, compute_outputs
from rlpost.types import Canary, Example, Trajectory
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import name_for_loading, on_this_node, parameters, resolve

KL_FILE = "kl.json"  # the KL coefficient, if algo.kl_target adapts it


class Learner:
    """One rank's work. All ranks must make the same calls in the same order, with the same arguments."""

    def __init__(
        self,
        cfg: Config,
        model_folder: Path,
        canary_ids: Sequence[int],
        rendezvous: Rendezvous,
        examples: Sequence[Example] | None,
        adapters: NamedAdapters,
    ) -> None:
        """`model_folder`: where the driver has the model; a rank on another node may find it elsewhere.

        `examples`: what `lora.start` reads; None for a resumed run. See rlpost.learner.model.starts.
        """
        torch.set_num_threads(cfg.learner.threads)
        if len(canary_ids) < 2:
            raise LearnerError(f"a canary of {len(canary_ids)} tokens predicts nothing; give at least two")
        self.cfg, self.rendezvous, self.canary_ids = cfg, rendezvous, tuple(canary_ids)
        self.base_name = name_for_loading(cfg.model, model_folder)
        here = on_this_node(cfg.model, model_folder)
        teacher = adapters.teacher or _teacher_model(cfg)
        self.model = actor_critic.build(
            here, cfg.dtype, cfg.lora, cfg.seed, roles.roles_for(cfg), adapters.start, examples, teacher
        )
        # Counted here, since ZeRO-3 leaves a rank a part of each parameter.
        self.teacher_parameters = parameters(teacher if isinstance(teacher, Path) else here)
        self.backend = DeepSpeedBackend(self.model, cfg.learner, rendezvous)
        self.start = KeptStart(self.model.weights, self.backend, self.model.parameters_of(roles.POLICY))
        self.kl_coef = cfg.algo.kl_coef

    def sft_step(self, examples: Sequence[Example], step: int) -> Metrics:
        return update.sft_step(self.backend, examples, self.cfg, step)

    def sft_loss(self, examples: Sequence[Example]) -> Metrics:
        """The policy's mean negative log-likelihood per loss token, and how many tokens these are."""
        logprobs_N = self._logprobs([Row(e.token_ids, e.loss_mask) for e in examples], temperature=1.0)
        return {"loss": -float(logprobs_N.double().mean()), "tokens": float(len(logprobs_N))}

    def keep_start(self) -> None:
        """Keep a copy of the current policy, from which `distance` measures."""
        self.start.keep()

    def distance(self, own: Sequence[Trajectory], of_start: Sequence[Trajectory]) -> Metrics:
        """How far the policy is from its start, at `rollout.temperature`; see KeptStart.distance."""
        return self.start.distance(
            own, of_start, lambda rows: self._logprobs(rows, self.cfg.rollout.temperature)
        )

    def update_rl(
        self, trajectories: Sequence[Trajectory], iteration: int, examples: Sequence[Example] = ()
    ) -> Metrics:
        """One RL update with the current KL coefficient, which then moves towards `algo.kl_target`."""
        cfg = replace(self.cfg, algo=replace(self.cfg.algo, kl_coef=self.kl_coef))
        algo, metrics = cfg.algo, update.update_rl(self.backend, trajectories, cfg, iteration, examples)
        if TABLE[algo.name].taught:
            metrics["parameters/teacher"] = float(self.teacher_parameters)
        if algo.kl_target is not None:
            self.kl_coef = steered(self.kl_coef, metrics["kl_reference"], algo.kl_target, algo.kl_step)
        return metrics

    def end_turn(self) -> None:
        """With rollout.sleep, leave the GPU to the engines but for what is held between calls."""
        if self.cfg.rollout.sleep:
            self.backend.release()

    def set_reference(self) -> None:
        """End the warm start: the current policy becomes the reference, and the optimizer is reset."""
        self.backend.reset_optimizer()
        if self.model.has_reference:
            with self._whole(roles.POLICY), self._whole(roles.REFERENCE, modify=True):
                self.model.weights.freeze_reference()

    def export(self, version: int) -> tuple[Adapter, Canary]:
        """The policy as an Adapter, and its log-probs of the canary at temperature 1."""
        with self._whole(roles.POLICY, *self.model.weights.frozen):
            config, tensors = self.model.weights.export()
        row = Row(self.canary_ids, (0,) + (1,) * (len(self.canary_ids) - 1))
        logprobs_N = self._logprobs([row], temperature=1.0)
        named = config | {"base_model_name_or_path": self.base_name}
        adapter = Adapter.create(named, tensors, version, self.cfg.lora.base)
        return adapter, Canary(self.canary_ids, tuple(logprobs_N.tolist()))

    def save(self, folder: Path) -> None:
        """Write what `load` needs into an existing folder. The caller renames the folder to make it final."""
        self.backend.save(folder)
        if self.rendezvous.rank == 0:
            (folder / KL_FILE).write_text(json.dumps({"kl_coef": self.kl_coef}))
        for name in self.model.weights.frozen:
            with self._whole(name):
                tensors = self.model.weights.tensors(name)
            if self.rendezvous.rank == 0:
                save_file(tensors, folder / _file_of(name))
        self.start.save(folder, writes=self.rendezvous.rank == 0)

    def load(self, folder: Path) -> None:
        """Restore exactly the state that `save` wrote."""
        self.backend.load(folder)
        self.kl_coef = _kl_coef(folder / KL_FILE)
        for name in self.model.weights.frozen:
            if not (folder / _file_of(name)).is_file():
                raise CheckpointError(f"{folder} has no {_file_of(name)}; it is incomplete or of another run")
            with self._whole(name, modify=True):
                self.model.weights.load(name, load_file(folder / _file_of(name)))
        if self.cfg.retention.kl:
            self.start.load(folder)

    def _logprobs(self, rows: list[Row], temperature: float) -> torch.Tensor:
        budget = self.cfg.learner.micro_batch_tokens
        batch = Batch.of(rows, budget)
        logprobs, _ = compute_outputs(self.backend, batch, (roles.POLICY,), budget, temperature)
        return logprobs[roles.POLICY]

    def _whole(self, *names: str, modify: bool = False) -> AbstractContextManager[None]:
        """A context in which the parameters of roles are gathered; see DeepSpeedBackend.whole."""
        return self.backend.whole([p for name in names for p in self.model.parameters_of(name)], modify)


def _file_of(name: str) -> str:
    """The file in a checkpoint for a part that the optimizer does not train."""
    return f"{name}.safetensors"


def _kl_coef(path: Path) -> float:
    try:
        return float(json.loads(path.read_text())["kl_coef"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read; the checkpoint is incomplete or of another run"
        ) from error


def _teacher_model(cfg: Config) -> Path | None:
    """This node's folder of the model that the task learns from; None without a teacher."""
    name = teacher_named(cfg)
    return None if name is None else resolve(name)
