"""Judges the facts of one machine: pure functions from facts to findings."""

from __future__ import annotations

from collections.abc import Iterator

from rlpost.cluster.object_store import OBJECT_STORE_BYTES
from rlpost.doctor.facts import Facts, Space
from rlpost.doctor.finding import Finding, error, ok, warning

GIB = 2**30
# Ray and vLLM hold sockets, logs and mapped files; below the first number Ray itself warns, below the second it fails.
OPEN_FILES = 4096
OPEN_FILES_LEAST = 1024
USER_PROCESSES = 2048  # Ray starts a worker a core, each with tens of threads
TEMPORARY = 2 * GIB  # for Ray's logs and spilled objects
WORKING = 5 * GIB  # for checkpoints
REQUIRED = ("torch", "transformers", "vllm", "ray", "peft", "deepspeed")


def machine_findings(facts: Facts, node: str = "") -> Iterator[Finding]:
    """Findings that hold for any run on the machine."""
    yield _processor(facts, node)
    yield _cores(facts, node)
    yield _memory(facts, node)
    yield from _gpus(facts, node)
    yield _shared(facts, node)
    yield _disk(
        "temporary folder", facts.temporary, TEMPORARY, "set TMPDIR to a folder on another disk", node
    )
    yield _disk("working folder", facts.working, WORKING, "give output_dir= on another disk", node)
    yield _open_files(facts, node)
    yield _user_processes(facts, node)
    yield _ports(facts, node)
    yield _packages(facts, node)


def _processor(facts: Facts, node: str) -> Finding:
    has = ", ".join(facts.instructions) or "no AVX2"
    text = f"{facts.processor}: {has}"
    if "avx2" not in facts.instructions and not facts.gpus:
        return error("processor", text, "use a machine with AVX2, which vLLM's engine on a CPU needs", node)
    return ok("processor", text, node)


def _cores(facts: Facts, node: str) -> Finding:
    text = f"{facts.cores} cores, load {facts.load:.1f}"
    if facts.quota is not None and facts.quota < facts.cores:
        remedy = f"raise the container's limit, or ask for at most {facts.quota:g} Ray CPUs in all"
        return warning("cores", f"{text}; the container may use {facts.quota:g}", remedy, node)
    if facts.load > 1.5 * facts.cores:
        return warning("cores", f"{text}: other work takes them", "wait for it, or expect a slower run", node)
    return ok("cores", text, node)


def _memory(facts: Facts, node: str) -> Finding:
    text = f"{facts.memory_free / GIB:.1f} GiB free of {facts.memory / GIB:.1f} GiB"
    if facts.memory_free < facts.memory / 10:
        return warning("memory", text, "end other programs, or raise the container's limit", node)
    return ok("memory", text, node)


def _gpus(facts: Facts, node: str) -> Iterator[Finding]:
    if facts.gpu_fault:
        remedy = "reinstall the driver, or restart the container with its GPUs (--gpus all)"
        yield error("GPUs", f"nvidia-smi failed: {facts.gpu_fault}", remedy, node)
    elif not facts.gpus:
        yield ok("GPUs", "none", node)
    for gpu in facts.gpus:
        text = f"{gpu.name}, {gpu.memory / GIB:.0f} GiB, driver {gpu.driver}"
        if gpu.used > gpu.memory / 10:
            remedy = "end the programs that hold it (nvidia-smi lists them)"
            yield warning("GPUs", f"{text}; {gpu.used / GIB:.1f} GiB are in use", remedy, node)
        else:
            yield ok("GPUs", text, node)


def _shared(facts: Facts, node: str) -> Finding:
    if facts.shared is None:
        return error("/dev/shm", "it is missing", "mount a tmpfs there: Ray's object store needs it", node)
    text = f"{facts.shared.free / GIB:.2f} GiB free of {facts.shared.total / GIB:.2f} GiB"
    if facts.shared.free < OBJECT_STORE_BYTES:
        remedy = (
            "start the container with --shm-size=2g; Ray uses the temporary folder instead, which is slower"
        )
        return warning("/dev/shm", text, remedy, node)
    return ok("/dev/shm", text, node)


def _disk(what: str, space: Space, least: int, remedy: str, node: str) -> Finding:
    text = f"{space.folder}: {space.free / GIB:.1f} GiB free of {space.total / GIB:.1f} GiB"
    if space.free < least / 20:
        return error(what, text, f"free space there, or {remedy}", node)
    if space.free < least:
        return warning(what, text, f"free space there, or {remedy}", node)
    return ok(what, text, node)


def _open_files(facts: Facts, node: str) -> Finding:
    text = f"{_number(facts.open_files)} (at most {_number(facts.open_files_most)})"
    remedy = f"ulimit -n {OPEN_FILES if facts.open_files_most < 0 else min(65536, facts.open_files_most)}"
    if 0 <= facts.open_files < OPEN_FILES_LEAST:
        return error("open files", text, remedy, node)
    if 0 <= facts.open_files < OPEN_FILES:
        return warning("open files", text, remedy, node)
    return ok("open files", text, node)


def _user_processes(facts: Facts, node: str) -> Finding:
    text = f"{_number(facts.user_processes)} processes and threads of this user"
    if 0 <= facts.user_processes < USER_PROCESSES:
        return warning("processes", text, f"ulimit -u {4 * USER_PROCESSES}", node)
    return ok("processes", text, node)


def _ports(facts: Facts, node: str) -> Finding:
    if facts.port_fault:
        remedy = "allow TCP on the loopback interface: ranks, engines and Ray meet at ports"
        return error("ports", f"a port could not be bound and reached: {facts.port_fault}", remedy, node)
    return ok("ports", "a free port was bound and reached", node)


def _packages(facts: Facts, node: str) -> Finding:
    missing = [name for name in REQUIRED if facts.versions.get(name) is None]
    text = ", ".join(f"{name} {facts.versions.get(name)}" for name in ("python", "rlpost", *REQUIRED))
    if missing:
        return error("packages", f"missing: {', '.join(missing)}", "make setup, or pip install rlpost", node)
    return ok("packages", text, node)


def _number(limit: int) -> str:
    return "no limit" if limit < 0 else f"{limit:,}"
