"""The only file that imports DeepSpeed: ranks, ZeRO 0 to 3, accumulation, clipping, and state for an exact resume.

An optimizer step is the same on every rank:

    for each micro-batch: forward, backward (losses are shares of the batch's mean, so gradients add up)
    at the last one:      DeepSpeed reduces over ranks ─▶ RoleOptimizer, role by role: norm, finite?, clip, update

DeepSpeed averages gradients over ranks, so the loss is multiplied by the number of ranks to make it a sum. Trainable
parameters are float32 and thus their own master weights, whatever the frozen base's dtype.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlpost.algorithms.objective import Outputs
from rlpost.config.schema import LearnerConfig
from rlpost.errors import CheckpointError, LearnerError
from rlpost.learner import optimizers
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import MicroBatch
from rlpost.learner.optimizers import RoleOptimizer
from rlpost.learner.rendezvous import Rendezvous

# torch's environment variable, which overrides the argument of torch.load.
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
TAG = "learner"  # DeepSpeed's name for the folder of one checkpoint
GATHERED_FROM = 3  # from this ZeRO stage on, each rank also holds only a part of every parameter


class DeepSpeedBackend:
    """The model and its optimizer on this rank."""

    def __init__(self, model: ActorCritic, cfg: LearnerConfig, rendezvous: Rendezvous) -> None:
        self.model, self.cfg, self.rendezvous = model, cfg, rendezvous
        self.device = torch.device("cuda", 0) if cfg.gpus > 0 else torch.device("cpu")
        _join(rendezvous, cfg, self.device)
        if cfg.gradient_checkpointing:
            model.checkpoint_activations()
        if cfg.zero_stage < GATHERED_FROM:
            model.fuse()
        self.optimizer = optimizers.build(model, cfg)
        self.engine = _initialize(model, self.optimizer, cfg)

    def forward(self, batch: MicroBatch, roles: tuple[str, ...], temperature: float) -> Outputs:
        """See ActorCritic.forward."""
        outputs: Outputs = self.engine(batch.to(self.device), roles, temperature)
        return outputs

    def step(
        self, losses: Iterable[Tensor], count: int, learning_rates: dict[str, float], where: str
    ) -> dict[str, float]:
        """One optimizer step over `count` micro-batches. Each loss is computed when the iterator yields it.

        `learning_rates` are by role; a rate of 0 leaves the role unchanged. Returns the gradient norms by role, before
        clipping. Raises LearnerError on all ranks, naming `where`, if a gradient is not finite.
        """
        self.optimizer.set_rates(learning_rates)
        for i, loss in enumerate(losses, start=1):
            self.engine.set_gradient_accumulation_boundary(i == count)
            self.engine.backward(loss * self.rendezvous.world_size)
        try:
            self.engine.step()
        except LearnerError as error:
            raise LearnerError(
                f"{where}: {error}; lower the learning rate or look at the batch's rewards"
            ) from None
        return dict(self.optimizer.norms)

    def release(self) -> None:
        """Give the GPU memory that passes have freed back to other processes; torch would keep it for the next one."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reset_optimizer(self) -> None:
        """Reset all moments and step counts, as if no step had been taken."""
        self.optimizer.reset()

    def summed(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over ranks."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        copy = values.to(self.device, copy=True)
        dist.all_reduce(copy, op=operation)
        return copy.to(values.device)

    @contextmanager
    def whole(self, parameters: Sequence[nn.Parameter], modify: bool = False) -> Iterator[None]:
        """A context in which parameters that ZeRO-3 spread over ranks are gathered; `modify` writes changes back."""
        if self.cfg.zero_stage < GATHERED_FROM:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if modify else None):
            yield

    def save(self, folder: Path) -> None:
        """Write the trainable parameters and the optimizer's state into the existing `folder`. All ranks call it."""
        self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Restore exactly what `save` wrote, with the same number of ranks and the same ZeRO stage.

        Raises CheckpointError if nothing was saved there, or if a file would run code.
        """
        try:
            with _data_only():
                path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        except UnpicklingError as error:
            raise CheckpointError(
                f"{folder}\n  reason: a file there asks for more than tensors and plain data, and was not loaded:"
                f" {str(error).splitlines()[0]}\n  remedy: resume from a checkpoint that a run of rlpost wrote"
            ) from error
        if path is None:
            raise CheckpointError(
                f"{folder} holds no learner state; give a checkpoint that a run of rlpost wrote"
            )


def stored_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor in a file of a checkpoint, by the keys that lead to it: module.layers.0.weight.

    Raises CheckpointError if the file cannot be read, or would run code.
    """
    try:
        with _data_only():
            held = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as error:
        raise CheckpointError(
            f"{file}\n  reason: it cannot be read as tensors and plain data: {str(error).splitlines()[0]}\n"
            "  remedy: restore the file from a copy of the run"
        ) from error
    return dict(_tensors(held, ()))


def _tensors(held: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(held, Tensor):
        yield ".".join(keys), held
    elif isinstance(held, dict):
        for key, inner in held.items():
            yield from _tensors(inner, (*keys, str(key)))
    elif isinstance(held, list | tuple):
        for place, inner in enumerate(held):
            yield from _tensors(inner, (*keys, str(place)))


@contextmanager
def _data_only() -> Iterator[None]:
    """A context in which `torch.load` accepts only tensors and the records of DeepSpeed's own optimizer files.

    DeepSpeed loads with `weights_only=False`, which runs any code in the file, and a run may come from someone else.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _join(rendezvous: Rendezvous, cfg: LearnerConfig, device: torch.device) -> None:
    """Join the other ranks' process group. Afterwards a rank fails if it waits longer than the timeout for another."""
    os.environ |= {"RANK": str(rendezvous.rank), "WORLD_SIZE": str(rendezvous.world_size), "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": rendezvous.host, "MASTER_PORT": str(rendezvous.port)}
    os.environ["DS_ACCELERATOR"] = device.type
    timeout = timedelta(seconds=cfg.timeout_s)
    store = dist.TCPStore(  # type: ignore[attr-defined]  # torch's public name, which it does not declare
        rendezvous.host,
        rendezvous.port,
        rendezvous.world_size,
        is_master=rendezvous.rank == 0,
        timeout=timeout,
        # Another process could take the port if it were closed before it is bound again.
        master_listen_fd=rendezvous.listener,
    )
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rendezvous.rank,
        world_size=rendezvous.world_size,
        timeout=timeout,
    )


def _initialize(model: ActorCritic, optimizer: RoleOptimizer, cfg: LearnerConfig) -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for module in ("deepspeed", "torch.distributed"):
        warnings.filterwarnings("ignore", module=module)
    import deepspeed

    # DeepSpeed compiles its shared-memory collectives at first use. A run must not need a compiler; gloo is installed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=_config(cfg), dist_init_required=False
    )
    return engine


def _config(cfg: LearnerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration. RoleOptimizer clips, boundaries are set explicitly, the model sets its precision."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": cfg.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": cfg.gpus > 0,  # gloo has no reduce-scatter
            # Each group stays in one piece, so that its norm covers all of it.
            "sub_group_size": 1 << 40,
        },
    }
