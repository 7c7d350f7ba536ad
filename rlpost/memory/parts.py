"""What a memory plan is made of: parts of processes, and the processes of a node."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.config.schema import Dtype

BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}  # of a number in a run's precision
FLOAT = 4  # trained weights, their gradients and moments are float32 in any precision


@dataclass(frozen=True)
class Part:
    """A use of memory by one process, in bytes.

    `certain` parts are there in every run. The others grow with the episodes up to `size`: activations, the KV cache.
    With rollout.sleep, parts that are not `kept` are on the GPU in the process's own turn alone.
    """

    name: str
    size: int
    certain: bool = True
    kept: bool = True


@dataclass(frozen=True)
class Process:
    """`count` equal processes. `host` is the machine's memory that they hold as their own; `device` that of a GPU."""

    name: str
    count: int
    host: tuple[Part, ...]
    device: tuple[Part, ...] = ()

    def size(self, certain_only: bool = False) -> int:
        """Bytes of one process on the host."""
        return _sum(self.host, certain_only)

    def device_size(self, certain_only: bool = False) -> int:
        """Bytes of one process on its GPU, in its own turn."""
        return _sum(self.device, certain_only)

    def kept_size(self, certain_only: bool = False) -> int:
        """Bytes of one process on its GPU while another has its turn there (rollout.sleep)."""
        return _sum(tuple(part for part in self.device if part.kept), certain_only)


@dataclass(frozen=True)
class Plan:
    """The processes of a run."""

    processes: tuple[Process, ...]

    def size(self, certain_only: bool = False) -> int:
        """Bytes on the host, of all processes together."""
        return sum(process.count * process.size(certain_only) for process in self.processes)

    def named(self, name: str) -> Process:
        """The processes of that name. Raises KeyError if the plan has none."""
        for process in self.processes:
            if process.name == name:
                return process
        raise KeyError(name)


def _sum(parts: tuple[Part, ...], certain_only: bool) -> int:
    return sum(part.size for part in parts if part.certain or not certain_only)
