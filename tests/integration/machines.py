"""Two machines made of this one: joined by a cable, with the same packages and nothing else in common.

    node-a  10.77.0.1  ◀── veth pair ──▶  10.77.0.2  node-b
    sees the checkout                     does not see it

Each has its own network, hostname, processes, /tmp and /dev/shm. /etc/hosts maps the hostname to 127.0.1.1, as Debian's
installer does. A machine is a set of namespaces that lasts as long as its first process. That process reads its
standard input, so it ends with the test's process, however that ends; the kernel then kills every other process of the
machine and removes its interface, its mounts and what it wrote to /tmp.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import psutil

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(sys.prefix).resolve()  # the virtual environment
PYTHON = str(PACKAGES / "bin" / "python")
INTERFACE = "eth0"  # at the far end of a cable; node-a's end is named after the machine there
NAMESPACES = ("--mount", "--net", "--uts", "--ipc", "--pid")
MACHINE = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
# Without a handler for SIGCHLD the kernel itself buries the processes that a daemon has left to this one.
FIRST_PROCESS = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""
# A machine takes over nothing of the test's process: vLLM, imported there, preloads a library of the checkout.
VARIABLES = {
    "PATH": f"{PACKAGES / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
}
DEADLINE_S = 30.0


def obstacle() -> str | None:
    """Why machines cannot be made here; None if they can."""
    if missing := [tool for tool in ("unshare", "nsenter", "ip", "mount") if shutil.which(tool) is None]:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid():
        return "namespaces and mounts need root"
    if hidden := [str(path) for path in (ROOT, PACKAGES) if path.is_relative_to("/tmp")]:
        return f"a machine has its own /tmp and would not see {', '.join(hidden)}"
    tried = subprocess.run(
        [*MACHINE, "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True, text=True
    )
    return f"the kernel forbids namespaces: {tried.stderr.strip()}" if tried.returncode else None


@dataclass(frozen=True)
class Machine:
    name: str
    address: str
    outside: subprocess.Popen[str]  # `unshare`, the parent of the machine's first process

    def command(self, *words: str, folder: str = "/", **environment: str) -> list[str]:
        """The command line that runs `words` on the machine."""
        variables = (f"{name}={value}" for name, value in (VARIABLES | environment).items())
        set_up = ["env", "-i", "-C", folder, *variables]
        return ["nsenter", f"--target={self.first_process().pid}", *NAMESPACES, *set_up, *words]

    def call(self, *words: str, timeout_s: float = DEADLINE_S, **environment: str) -> str:
        """Run a command on the machine, which must succeed; return what it printed."""
        return _succeed(self.command(*words, **environment), timeout_s)

    def path(self, inside: str) -> Path:
        """Where this process sees a path of the machine."""
        return Path(f"/proc/{self.first_process().pid}/root{inside}")

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The machine's processes whose name contains `name`, without its first one."""
        first = self.first_process()
        mine = os.readlink(f"/proc/{first.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == mine
                if inside and process != first and name in process.name():
                    found.append(process)
            except (OSError, psutil.Error):  # it has just ended
                continue
        return found

    def unplug(self) -> None:
        """Take the cable out."""
        self.call("ip", "link", "set", INTERFACE, "down")

    def end(self) -> None:
        """As if the power failed: every process ends at once. It may be called twice."""
        if self.outside.poll() is None:
            self.first_process().kill()
        self.outside.communicate(timeout=DEADLINE_S)

    def first_process(self) -> psutil.Process:
        (first,) = psutil.Process(self.outside.pid).children()
        return first


def boot(name: str, address: str, with_checkout: bool) -> Machine:
    """A machine that is not connected to another yet."""
    steps = [
        f"echo {name} > /proc/sys/kernel/hostname",
        "mount -t tmpfs tmpfs /tmp",
        "mount -t tmpfs tmpfs /dev/shm",
        rf"printf '127.0.0.1 localhost\n127.0.1.1 {name}\n' > /tmp/hosts",
        "mount --bind /tmp/hosts /etc/hosts",
        "ip link set lo up",
        *([] if with_checkout else [step for checkout in _checkouts() for step in _hiding(checkout)]),
        shlex.join(["exec", PYTHON, "-c", FIRST_PROCESS]),
    ]
    outside = subprocess.Popen(
        [*MACHINE, "sh", "-ec", "\n".join(steps)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env=VARIABLES,
    )
    assert outside.stdout is not None
    if (told := outside.stdout.readline()) != "up\n":
        outside.kill()
        raise RuntimeError(f"the machine {name} did not start: {told}{outside.communicate()[0]}")
    return Machine(name, address, outside)


def connect(one: Machine, other: Machine) -> None:
    """Lay a cable. Each becomes the other's way to the world: Ray and others learn their own address from that."""
    inner = {machine.name: str(machine.first_process().pid) for machine in (one, other)}
    # The kernel takes a moment to remove the cable of a machine that has just ended.
    one.call("sh", "-c", f"ip link delete {other.name} 2> /dev/null || true")
    ends = ["ip", "link", "add", other.name, "netns", inner[one.name], "type", "veth"]
    _succeed([*ends, "peer", "name", INTERFACE, "netns", inner[other.name]], DEADLINE_S)
    for machine, peer, interface in ((one, other, other.name), (other, one, INTERFACE)):
        machine.call("ip", "address", "add", machine.address, "peer", peer.address, "dev", interface)
        machine.call("ip", "link", "set", interface, "up")
        machine.call("ip", "route", "append", "default", "via", peer.address)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """The head, which sees the checkout, and the other, which does not. Both end with the block."""
    with ExitStack() as stack:
        head = boot("node-a", "10.77.0.1", with_checkout=True)
        stack.callback(head.end)
        other = boot("node-b", "10.77.0.2", with_checkout=False)
        stack.callback(other.end)
        connect(head, other)
        yield head, other


def _checkouts() -> set[Path]:
    """This checkout, and the one from which rlpost is installed, if that is another."""
    installed = importlib.metadata.distribution("rlpost").read_text("direct_url.json")
    place = json.loads(installed) if installed else {}
    is_folder = "dir_info" in place
    return {ROOT} | ({Path(url2pathname(urlparse(place["url"]).path))} if is_folder else set())


def _hiding(checkout: Path) -> list[str]:
    """Shell commands that put an empty folder over the checkout, in which only the packages stay where they are."""
    cover = f"mount -t tmpfs tmpfs {shlex.quote(str(checkout))}"
    if not PACKAGES.is_relative_to(checkout):
        return [cover]
    packages = shlex.quote(str(PACKAGES))
    return [
        "mkdir /tmp/packages",
        f"mount --bind {packages} /tmp/packages",
        cover,
        f"mkdir -p {packages}",
        f"mount --move /tmp/packages {packages}",
        "rmdir /tmp/packages",
    ]


def _succeed(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
