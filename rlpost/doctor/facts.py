"""Facts about the machine on which this runs. Nothing is judged here, and nothing heavy is imported.

The same function runs on every node of a cluster, so its answer is plain data.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlpost.memory.limit import memory_limit
from rlpost.record.versions import versions

INSTRUCTIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
GPU_TIMEOUT_S = 20.0
_GPU_QUERY = "name,memory.total,memory.used,driver_version"


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: int  # bytes
    used: int  # bytes
    driver: str


@dataclass(frozen=True)
class Space:
    """A file system's bytes."""

    folder: str
    total: int
    free: int


@dataclass(frozen=True)
class Facts:
    """One machine. Sizes are in bytes; a limit of -1 is none."""

    host: str
    processor: str
    instructions: tuple[str, ...]  # those of INSTRUCTIONS that it has
    cores: int  # that this process may use
    quota: float | None  # cores' worth of time by the control group; None: all
    load: float  # processes that wanted to run in the last minute, on average
    memory: int  # the machine's, or the control group's limit, with swap
    memory_free: int
    shared: Space | None  # /dev/shm
    temporary: Space
    working: Space  # the working folder, where runs are written
    open_files: int  # the soft limit
    open_files_most: int  # the hard limit
    user_processes: int  # the soft limit of processes and threads
    gpus: tuple[Gpu, ...]
    gpu_fault: str  # why nvidia-smi did not answer; empty if it did, or is not installed
    name_is_loopback: bool  # whether the host's own name resolves to 127.0.0.0/8 or ::1
    port_fault: str  # why no TCP port of this machine could be bound and reached; empty if one was
    versions: Mapping[str, Any]


def collect() -> Facts:
    """Facts about this machine. It takes at most GPU_TIMEOUT_S, and well under a second without a GPU."""
    gpus, gpu_fault = _gpus()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = memory_limit()
    processor, flags = _processor()
    return Facts(
        host=socket.gethostname(),
        processor=processor,
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        cores=len(os.sched_getaffinity(0)),
        quota=_quota(),
        load=os.getloadavg()[0],
        memory=limit,
        memory_free=min(limit, int(psutil.virtual_memory().available)),
        shared=_space("/dev/shm"),
        temporary=_space(tempfile.gettempdir()) or Space(tempfile.gettempdir(), 0, 0),
        working=_space(os.getcwd()) or Space(os.getcwd(), 0, 0),
        open_files=soft,
        open_files_most=hard,
        user_processes=resource.getrlimit(resource.RLIMIT_NPROC)[0],
        gpus=gpus,
        gpu_fault=gpu_fault,
        name_is_loopback=_name_is_loopback(),
        port_fault=_port_fault(),
        versions=versions(),
    )


def _processor() -> tuple[str, set[str]]:
    """The processor's name and flags, from Linux' list; other systems give the name alone."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    named = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    told = {key.strip(): value.strip() for key, value in named.items()}
    return told.get("model name", platform.processor() or platform.machine()), set(
        told.get("flags", "").split()
    )


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores' worth of time that a control group of version 2 allows."""
    try:
        most, period = file.read_text(encoding="utf-8").split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return None


def _space(folder: str) -> Space | None:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return Space(folder, usage.total, usage.free)


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA's GPUs as nvidia-smi lists them, and why it could not."""
    if shutil.which("nvidia-smi") is None:
        return (), ""
    command = ["nvidia-smi", f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
        return tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip()), ""
    except subprocess.TimeoutExpired:
        return (), f"no answer within {GPU_TIMEOUT_S:g} s"
    except (OSError, subprocess.SubprocessError, ValueError) as fault:
        return (), str(fault)


def _gpu(line: str) -> Gpu:
    """A line of nvidia-smi; memory is in MiB there. Raises ValueError for another form."""
    name, memory, used, driver = (part.strip() for part in line.split(","))
    return Gpu(name, int(memory) * 2**20, int(used) * 2**20, driver)


def _name_is_loopback() -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(socket.gethostname())).is_loopback
    except OSError:
        return False


def _port_fault() -> str:
    """Bind a free port on all addresses, as rank 0 of a learner does, and reach it."""
    try:
        with socket.create_server(("", 0)) as held:
            socket.create_connection(("127.0.0.1", held.getsockname()[1]), timeout=5.0).close()
    except OSError as fault:
        return str(fault)
    return ""
