"""The hot swap inside a vLLM worker: from an arriving adapter to weights that are proven to be live.

    Adapter (learner)            vLLM worker (`SwapWorker`, mixed into its class)
    tensors, fingerprint ──────▶ 1 weight_update: fingerprint what arrived    else refuse, nothing touched
    base folder (mmap), kind ──▶ 2 WeightWriter.write: merge, write, probe    else report which layers do not hold it
                                 ▼
                                 WriteReport ──▶ VllmEngine.swap: prefix cache, canary, or restore

In a tensor-parallel engine there is one such worker a rank; each gets the whole adapter and writes its own shard. Only
step 1 knows what an adapter is, and only the writer knows vLLM's layers. A base other than the stored one (`lora.base`)
is written when the engine starts, with the same proof, and from then on every update is merged over it. This file never
imports vllm; vLLM loads it by name as its worker extension.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlpost.config.schema import BaseKind
from rlpost.errors import RlpostError, SwapError
from rlpost.rollout.engine import ranks
from rlpost.rollout.engine.in_place import InPlaceWriter
from rlpost.rollout.engine.weight_writer import WeightWriter, WriteReport
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights, base_weights
from rlpost.weights.update import weight_update


class SwapWorker:
    """vLLM mixes this into its worker class; `collective_rpc` reaches its methods by name."""

    def rlpost_set_base(self, kind: str) -> WriteReport | str:
        """Make the base of that kind (`lora.base`) live, in place of the checkpoint that vLLM has loaded.

        Returns the reason if that failed, as `rlpost_write` does.
        """
        worker: Any = self

        def write() -> WriteReport:
            _, writer = self._rlpost_writer()
            base = base_weights(Path(worker.model_config.model), BaseKind(kind))
            worker._rlpost_writer_ = base, writer
            return writer.set_base(base)

        return _answer(write)

    def rlpost_write(self, adapter: Adapter | None) -> WriteReport | str:
        """Make `adapter` live (None: the bare base model). See `WeightWriter.write` and `weight_update`.

        Returns the reason if that failed; see `rlpost.rollout.engine.weight_writer.together`.
        """

        def write() -> WriteReport:
            base, writer = self._rlpost_writer()
            return writer.write(None if adapter is None else weight_update(adapter, base))

        return _answer(write)

    def rlpost_forget_shared_memory(self) -> None:
        """In a rank, once all have started. See `rlpost.rollout.engine.ranks.forget`."""
        ranks.forget(ranks.shared_memory())

    def _rlpost_writer(self) -> tuple[BaseWeights, WeightWriter]:
        worker: Any = self
        if not hasattr(worker, "_rlpost_writer_"):
            if worker.parallel_config.world_size != worker.parallel_config.tensor_parallel_size:
                raise SwapError(
                    "Merged swaps need engines without pipeline stages (vLLM's pipeline parallel size 1)."
                )
            base = BaseWeights(Path(worker.model_config.model))
            worker._rlpost_writer_ = base, InPlaceWriter(worker.model_runner.get_model(), base)
        base_and_writer: tuple[BaseWeights, WeightWriter] = worker._rlpost_writer_
        return base_and_writer


def _answer(write: Callable[[], WriteReport]) -> WriteReport | str:
    try:
        return write()
    except RlpostError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other ranks answer too
        return f"{type(error).__name__}: {error}"
